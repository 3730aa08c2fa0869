"""Small folders of CT volumes for tests of the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from scipy import ndimage

from pretraining.corpus.storage import StoreSettings
from pretraining.curation.collections import Collection
from pretraining.curation.gather import CollectionFolder, curate
from pretraining.curation.merge import merge

SPACING_MM = (4.0, 0.9, 0.8)


def phantom(seed: int, shape: tuple[int, int, int] = (12, 72, 64)) -> NDArray[np.int16]:
    """A body in air, with lungs, bones and soft structures that differ from seed to seed and from slice to slice."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    voxels = np.full(shape, -1000.0) + rng.normal(0, 8, shape)
    body = (x / 0.85) ** 2 + (y / 0.7) ** 2 < 1
    structure = ndimage.gaussian_filter(rng.normal(0, 1, shape), (1.5, 3, 3))
    voxels[body] = 40 + 60 * (structure / structure.std())[body] + rng.normal(0, 10, shape)[body]
    for _ in range(4):
        cz, cy, cx = rng.uniform(-0.5, 0.5, 3)
        inside = ((z - cz) / 0.8) ** 2 + ((y - cy) / 0.2) ** 2 + ((x - cx) / 0.2) ** 2 < 1
        voxels[inside & body] = rng.choice([-850, 600, 200, -100]) + rng.normal(0, 15, shape)[inside & body]
    return np.clip(np.rint(voxels), -1024, 3000).astype(np.int16)


def write_volume(voxels: NDArray[np.int16], path: Path, spacing_mm: Sequence[float] = SPACING_MM) -> Path:
    """Write voxels (z, y, x), already axial, in any format that SimpleITK knows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing([float(s) for s in spacing_mm[::-1]])
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


def source(name: str, **fields: object) -> Collection:
    """A source that takes every NIfTI, NRRD and MetaImage file of a folder, by its name."""
    values: dict = {
        "name": name,
        "title": f"Collection {name}",
        "homepage": "https://example.org",
        "licence": f"licence of {name}",
        "licence_url": "https://example.org/licence",
        "how": "made by the tests",
        "images": (r"/(?P<case>[^/]+)\.(nii\.gz|nii|nrrd|mha)$",),
    }
    return Collection(**values | fields)


def curated(corpus: Path, *folders: tuple[str, Path], store: StoreSettings | None = None, **options: object) -> dict:
    """Curate folders in this process and return corpus.json."""
    sources = [CollectionFolder(source(name), folder) for name, folder in folders]
    curate(sources, corpus, settings=store or StoreSettings(), **options)  # type: ignore[arg-type]
    return merge(corpus)


def corpus_bytes(corpus: Path) -> dict[str, bytes]:
    """The content of every file of a corpus but the working files of the curation."""
    files = (path for path in corpus.rglob("*") if path.is_file())
    relative = {path.relative_to(corpus).as_posix(): path for path in files}
    return {name: path.read_bytes() for name, path in sorted(relative.items()) if not name.startswith("parts/")}
