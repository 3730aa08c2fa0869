"""The picture of what the training sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from benchmarks.corpora import write_manifest
from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.visualization.style import LIGHT
from pretraining.inspection import montage
from pretraining.inspection.views import save_views, view_tiles
from pretraining.views import ViewConfig
from tests.pretraining.curation.folders import curated, phantom, write_volume

SIZES = {"global_size": 64, "local_size": 32, "gram_size": 128}
PLAIN = ViewConfig(**SIZES, jitter_probability=0, global_2_blur_probability=0, local_blur_probability=0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Two sources, slices of different sizes with pixels that are not square, and slices of air."""
    root = tmp_path_factory.mktemp("inspection")
    voxels = phantom(1, (8, 100, 80))
    voxels[[0, 7]] = -1000
    write_volume(voxels, root / "a" / "one.nii.gz", (5.0, 0.75, 0.6))
    write_volume(phantom(2, (6, 120, 140)), root / "b" / "two.nii.gz", (2.0, 0.95, 0.95))
    curated(root / "corpus", ("a", root / "a"), ("b", root / "b"))
    return root / "corpus"


@pytest.fixture(scope="module")
def rows(corpus) -> list[list[montage.Tile]]:
    """The pictures without augmentation."""
    return view_tiles(corpus, PLAIN)


def _seen_by_hand(image: np.ndarray, box: tuple, size: int) -> torch.Tensor:
    """The pixels in a box, resized by torch and normalised by the constants of MedDINOv3's notebook."""
    top, left, height, width = box[:4]
    pixels = torch.from_numpy(image[top : top + height, left : left + width].astype(np.float32)).clamp(-1000, 1000)
    resized = torch.nn.functional.interpolate(pixels[None, None], (size, size), mode="bicubic", antialias=True)[0, 0]
    return (resized.clamp(-1000, 1000) - 65.1084213256836) / 178.01663208007812


def test_the_boxes_on_the_slice_are_the_regions_of_the_crops(rows):
    assert len(rows) == 6
    for whole, *crops, gram in rows:
        assert len(whole.boxes) == len(crops) == 2 + 4
        assert [box[4] for box in whole.boxes] == [crop.colour for crop in crops], "a colour leads from box to crop"
        for box, crop, size in zip(whole.boxes, crops, [64, 64, 32, 32, 32, 32], strict=True):
            assert crop.image.shape == (size, size)
            # global crops are resized twice, as there is a Gram size: off by a few HU, at edges by some tens
            error = (torch.from_numpy(crop.image) - _seen_by_hand(whole.image, box, size)).abs()
            assert error.mean() < (0.06 if size == 64 else 1e-3)
        assert np.abs(gram.image - _seen_by_hand(whole.image, whole.boxes[0], 128).numpy()).mean() < 1e-3


def test_slices_come_from_all_sources_and_are_not_of_air(rows):
    wholes = [row[0] for row in rows]
    assert [whole.title.split("\n")[0] for whole in wholes] == ["a"] * 3 + ["b"] * 3
    assert [whole.image.shape for whole in wholes] == [(100, 80)] * 3 + [(120, 140)] * 3
    assert [whole.aspect for whole in wholes] == pytest.approx([0.75 / 0.6] * 3 + [1.0] * 3)
    assert all(whole.image.max() > 0 for whole in wholes)
    assert len({whole.title for whole in wholes}) == 6


def test_grey_runs_over_the_range_that_is_clipped_to(rows):
    for whole, *crops in rows:
        assert whole.limits == (-1000, 1000)
        for crop in crops:
            assert crop.limits == pytest.approx([(v - 65.1084213256836) / 178.01663208007812 for v in (-1000, 1000)])
            assert crop.image.min() >= crop.limits[0] - 1e-4
            assert crop.image.max() <= crop.limits[1] + 1e-4


def test_what_is_hidden_is_shaded_in_whole_patches(rows):
    """Half of the crops of a batch are masked, by at most half of their patches (DINOv3)."""
    shades = [crop.shaded for row in rows for crop in row[1:3]]
    assert sum(shade.any() for shade in shades) == len(shades) // 2
    for shade in shades:
        patches = shade.reshape(4, 16, 4, 16).transpose(0, 2, 1, 3).reshape(16, -1)
        assert (patches.all(1) | ~patches.any(1)).all()
        assert shade.mean() <= 0.5
    assert all(tile.shaded is None for row in rows for tile in (row[0], *row[3:]))


def test_views_are_those_of_the_training(corpus, rows):
    """With its augmentation: the second global crop is blurred, so its pixels differ less from their neighbours."""
    augmented = view_tiles(corpus, ViewConfig(**SIZES, jitter_probability=0))
    plain, trained = (np.stack([row[2].image for row in own]) for own in (rows, augmented))
    assert np.abs(np.diff(trained)).mean() < 0.9 * np.abs(np.diff(plain)).mean()


def test_boxes_and_shades_are_drawn_where_the_tile_says(tmp_path, monkeypatch):
    figures: list[Figure] = []
    monkeypatch.setattr(montage, "write_figure", lambda figure, path: figures.append(figure) or path)
    shaded = np.zeros((40, 60), bool)
    shaded[10:20, 30:50] = True
    boxes = ((10, 30, 5, 20, "#E69F00"),)
    tile = montage.Tile(np.zeros((40, 60)), (0, 1), 1.0, "a", boxes=boxes, shaded=shaded, colour="#8900D8")
    montage.save_tiles([tile], tmp_path / "x.png", title="t", theme=LIGHT)
    axes = figures[0].axes[0]
    drawn, frame = (patch for patch in axes.patches if isinstance(patch, Rectangle))
    assert frame.get_edgecolor()[:3] == to_rgb("#8900D8")
    assert axes.title.get_color() == LIGHT.text
    assert figures[0].get_facecolor()[:3] == (1, 1, 1)
    assert drawn.get_bbox().extents.tolist() == [29.5, 9.5, 49.5, 14.5], "left, top, right, bottom"
    assert np.array_equal(axes.images[1].get_array()[..., 3] > 0, shaded)


def test_the_picture_is_there_and_shows_something(corpus, tmp_path):
    path = save_views(corpus, tmp_path / "new" / "views.png")
    pixels = np.asarray(Image.open(path).convert("L"))
    assert min(pixels.shape) > 1000
    assert pixels.std() > 20
    assert [file.name for file in path.parent.iterdir()] == ["views.png"], "nothing half written is left"
    first = path.read_bytes()
    assert save_views(corpus, path).read_bytes() == first


def test_a_corpus_of_air_is_said(tmp_path):
    write_manifest(tmp_path, [("a", "one", (2, 32, 32))], {(0, 0): "empty", (0, 1): "empty"})
    with pytest.raises(DataError, match="no"):
        save_views(tmp_path, tmp_path / "views.png")
