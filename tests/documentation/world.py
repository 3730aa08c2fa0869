"""What the pages suppose to be there: downloads, datasets, a corpus, weights, under the names that they use."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

from nnunetv2_meddino.comparison.folders import Folders
from nnunetv2_meddino.weights.catalog import CATALOG, CatalogEntry
from nnunetv2_meddino.weights.load import write_weights
from tests.comparison import results
from tests.datasets.releases import write_amos, write_btcv, write_lits
from tests.inference.models import write_model
from tests.nnunet import write_dataset
from tests.pretraining.curation.folders import curated, phantom, write_volume
from tests.weights.checkpoints import random_tensors

ABSOLUTE = re.compile(r"(?<![\w./])/(data|path/to)/")
"""Folders that are absolute in the pages; here they are in the world."""

_RECORD = "name: our_ct\nmodality: CT\nimages: ['/(?P<case>[^/]+)\\.nii\\.gz$']\n"
_LISTED = {"name": "mine", "derived_from": None, "seen_cases": {"LiTS": ["lits_007"]}}


class World:
    """Folders of one page.

    Args:
        root: Of everything.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.home, self.work, self.data = root, root / "home", root / "work", root / "data"
        self.nnunet = Folders(root / "raw", root / "preprocessed", root / "results")

    def variables(self) -> dict[str, str]:
        """Return the environment of a user who has set nnU-Net's folders."""
        folders = {f"nnUNet_{name}": str(self.root / name) for name in ("raw", "preprocessed", "results")}
        return {**folders, "HOME": str(self.home), "nnUNet_compile": "f"}

    def text_of(self, text: str) -> str:
        """Return a text of the pages whose absolute folders are those of this world."""
        return ABSOLUTE.sub(lambda match: f"{self.root}/{match[1]}/", text)

    def copy(self, root: Path) -> World:
        """Return a world of the same files."""
        shutil.copytree(self.root, root, symlinks=True)
        return World(root)


def small_entry(entry: CatalogEntry) -> CatalogEntry:
    """Return a catalog entry whose weights are of a small network with as many blocks."""
    return replace(entry, architecture=replace(entry.architecture, embed_dim=64, num_heads=1, mlp_hidden=96))


def write_downloads(folder: Path) -> dict[tuple[str, str], Path]:
    """Write weights for the small entries in the layouts of their publishers; return them by repository and file."""
    folder.mkdir(parents=True)
    files = {}
    for entry in map(small_entry, (entry for entry in CATALOG.values() if "dinov3" in entry.name)):
        file = folder / entry.name / entry.filename
        layout = "meddinov3" if file.suffix == ".pth" else "timm"
        write_weights(file, random_tensors(entry.architecture), entry.architecture, {}, layout)
        files[entry.repository, entry.filename] = file
    return files


def make_world(world: World, downloads: dict[tuple[str, str], Path]) -> None:
    """Write everything but what nnU-Net makes of Dataset900_CTMini."""
    for folder in (world.home, world.work, *(world.root / name for name in ("raw", "preprocessed", "results"))):
        folder.mkdir(parents=True)
    _write_volumes(world)
    _write_nnunet(world)
    _write_weights(world.work, downloads)
    write_model(world.work / "MODEL")
    (world.root / "path" / "to" / ".venv" / "bin").mkdir(parents=True)


def _write_volumes(world: World) -> None:
    write_amos(world.home / "downloads" / "amos22")
    for name, writer in {"btcv": write_btcv, "lits": write_lits}.items():
        for folder in (world.home / "downloads" / name, world.data / name):
            writer(folder)
            if name == "btcv":  # the others are too small for a corpus
                write_volume(phantom(4), folder / "averaged-training-images/RawData/Training/img/img0001.nii.gz")
    write_amos(world.work / "RELEASE")
    for seed in range(2):
        write_volume(phantom(seed), world.data / "ct" / f"patient{seed}.nii.gz")
    curated(world.data / "corpus", ("one", world.data / "ct"))
    for name in ("C", "CORPUS", "corpus"):
        (world.work / name).symlink_to("../data/corpus")
    write_volume(phantom(2, (62, 240, 360)), world.work / "ct.nii.gz")
    shutil.copy(world.data / "ct" / "patient0.nii.gz", world.work / "case_0000.nii.gz")
    for name in ("record.yaml", "our_ct.yaml"):
        (world.work / name).write_text(_RECORD)
    (world.work / "own.yaml").write_text("engine:\n  checkpoint_every: 500\n")


def _write_nnunet(world: World) -> None:
    dataset = write_dataset(world.nnunet.raw, "Dataset900_CTMini", labels={"channel_names": {"0": "CT"}})
    shutil.copy(dataset / "dataset.json", world.work)
    for copy in ("predictions", "labelsTs", "PREDICTIONS", "REFERENCES"):
        shutil.copytree(dataset / "labelsTs", world.work / copy)
    for copy in ("imagesTs", "IMAGES"):
        shutil.copytree(dataset / "imagesTs", world.work / copy)
    for copy, case in {"reference": "disc_100", "prediction": "disc_101"}.items():
        shutil.copy(dataset / "labelsTs" / f"{case}.nii.gz", world.work / f"{copy}.nii.gz")
    for name, case in (("Dataset301_AMOS22CT", "amos_0001"), ("Dataset027_LiTS", "lits_007")):
        write_volume(phantom(3), world.nnunet.raw / name / "imagesTr" / f"{case}_0000.nii.gz")
        splits = world.nnunet.preprocessed / name / "splits_final.json"
        splits.parent.mkdir()
        splits.write_text(json.dumps([{"train": [], "val": [case]}]))
    for name in ("Dataset219_One", "Dataset220_Other"):
        results.write_dataset(world.nnunet, name, cases=2)
        for trainer in ("nnUNetTrainer", "MedDINOv3Trainer"):
            results.write_method(world.nnunet, name, f"{trainer}__nnUNetPlans__2d")


def _write_weights(folder: Path, downloads: dict[tuple[str, str], Path]) -> None:
    entry = small_entry(CATALOG["meddinov3_vitb16_ct3m"])
    shutil.copy(downloads[entry.repository, entry.filename], folder / "model.pth")
    for name in ("teacher", "best", "my_backbone"):
        tensors = random_tensors(entry.architecture)
        write_weights(folder / f"{name}.safetensors", tensors, entry.architecture, _LISTED, "meddino")
