"""The picture: where patches are drawn, its scales and titles, the command, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import image as pictures
from matplotlib.figure import Figure
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from nnunetv2_meddino.cli.main import main
from nnunetv2_meddino.errors import ConfigurationError, DataError, MedDINOError, WeightsError
from nnunetv2_meddino.networks.vit import BACKBONES, VisionTransformer
from nnunetv2_meddino.visualization import feature_panels
from nnunetv2_meddino.visualization.feature_panels import FeatureRow, draw_rows, feature_picture
from nnunetv2_meddino.weights.catalog import CT
from nnunetv2_meddino.weights.load import write_weights
from tests.features.images import ct_slice, write, write_ct


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDDINO_BACKBONE", "tiny")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    network = VisionTransformer(BACKBONES["tiny"])
    path = tmp_path_factory.mktemp("weights") / "ours.safetensors"
    write_weights(
        path, network.state_dict(), network.config, {"name": "ours", "input_statistics": asdict(CT)}, "meddino"
    )
    return path


def planted_row(name: str, similarity: np.ndarray) -> FeatureRow:
    """Left half red, right half blue."""
    colours = np.zeros((4, 8, 3))
    colours[:, :4, 0] = colours[:, 4:, 2] = 1
    return FeatureRow(name, "as is", colours, np.array([0.5, 0.25, 0.125]), similarity)


def count(picture: np.ndarray, colour: tuple[float, float, float]) -> np.ndarray:
    return np.all(np.abs(picture - np.array(colour)) < 0.02, axis=-1)


def test_patches_are_drawn_as_squares_where_they_are(tmp_path: Path) -> None:
    image = ct_slice(32, 64)
    draw_rows(image, [planted_row("a", np.zeros((4, 8)))], tmp_path / "o.png", size=128, point=(16, 60))
    picture = pictures.imread(tmp_path / "o.png")[..., :3]
    red, blue = count(picture, (1, 0, 0)), count(picture, (0, 0, 1))
    columns = [np.flatnonzero(mask.any(axis=0)) for mask in (red, blue)]
    assert abs(columns[0].max() + 1 - columns[1].min()) <= 2  # they touch: nothing is blended
    widths, heights = [np.ptp(c) + 1 for c in columns], [np.ptp(np.flatnonzero(m.any(axis=1))) + 1 for m in (red, blue)]
    assert widths[0] == pytest.approx(widths[1], abs=2)
    assert heights[0] == pytest.approx(widths[0], abs=2)  # four by four patches


def test_what_lies_beyond_the_image_is_cut_off(tmp_path: Path) -> None:
    image = ct_slice(28, 64)  # 56 px of 64 in the last row of patches
    draw_rows(image, [planted_row("a", np.zeros((4, 8)))], tmp_path / "o.png", size=128, point=(16, 60))
    red = count(pictures.imread(tmp_path / "o.png")[..., :3], (1, 0, 0))
    height, width = (np.ptp(np.flatnonzero(red.any(axis=axis))) + 1 for axis in (1, 0))
    assert height / width == pytest.approx(56 / 64, rel=0.01)


def test_two_weights_make_two_rows_with_one_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matplotlib.rcParams, "image.cmap", "magma")  # as a training's plots leave it
    one, two = planted_row("a", np.full((4, 8), 0.0)), planted_row("b", np.full((4, 8), -0.5))
    draw_rows(ct_slice(32, 64), [one], tmp_path / "1.png", size=128, point=(16, 60))
    draw_rows(ct_slice(32, 64), [one, two], tmp_path / "2.png", size=128, point=(16, 60))
    single, double = (pictures.imread(tmp_path / f"{n}.png")[..., :3] for n in (1, 2))
    assert double.shape[1] == single.shape[1]
    assert double.shape[0] > 1.7 * single.shape[0]
    lowest, middle = (0.267, 0.005, 0.329), (0.128, 0.567, 0.551)  # viridis at 0 and at 1/2
    assert count(single, lowest).sum() > 10_000  # 0 on a scale from 0 to 1
    assert count(double, middle).sum() > 10_000  # 0 on a scale from -1 to 1
    assert count(double, lowest).sum() < 2_000


@pytest.mark.parametrize("in_mm", [True, False])
def test_a_slice_with_a_spacing_has_a_scale_bar_of_its_millimetres(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_mm: bool
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(feature_panels, "write_figure", lambda figure, path: figures.append(figure) or path)
    image = replace(ct_slice(32, 64, (2.0, 2.0)), in_mm=in_mm)  # 128 mm wide, 128 px
    draw_rows(image, [planted_row("a", np.zeros((4, 8)))], tmp_path / "o.png", size=128, point=(16, 60))
    panels = figures[0].axes[:3]
    bars = [[artist for artist in panel.artists if isinstance(artist, AnchoredSizeBar)] for panel in panels]
    assert [len(own) for own in bars] == [in_mm, 0, 0]
    if in_mm:
        assert bars[0][0].txt_label.get_text() == "20 mm"
        assert bars[0][0].size_bar.get_children()[0].get_width() == pytest.approx(20)
    assert panels[0].get_title() == "image, \N{MINUS SIGN}160 to 240 HU"


def test_title_says_weights_grid_and_explained_variance() -> None:
    title = planted_row("vitb16", np.zeros((4, 8))).title
    assert title.split("   |   ") == [
        "vitb16",
        "4 x 8 patches",
        "PCA explains 50 + 25 + 12 % of the variance of the body's patches",
    ]


def test_components_are_those_of_the_body_and_air_and_table_are_black(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[FeatureRow] = []
    monkeypatch.setattr(feature_panels, "draw_rows", lambda image, found, out, **_: rows.extend(found) or out)
    voxels = np.random.default_rng(0).integers(-1020, -980, (1, 128, 128)).astype(np.int16)
    voxels[0, 32:96, 32:96] = np.random.default_rng(1).integers(-100, 100, (64, 64))
    voxels[0, 48:80, 48:80] = -900  # lung: as thin as air, inside the body
    voxels[0, 112, :] = 300  # the table
    feature_picture(write(tmp_path / "ct.nii.gz", voxels), ["none"], tmp_path / "o.png", size=128)
    expected = np.zeros((8, 8), bool)
    expected[2:6, 2:6] = True
    np.testing.assert_array_equal(rows[0].colours.any(axis=-1), expected)
    assert rows[0].masked
    photo = np.random.default_rng(2).integers(0, 30, (64, 64, 3)).astype(np.uint8)
    feature_picture(write(tmp_path / "p.png", photo, (1, 1), colour=True), ["none"], tmp_path / "o.png", size=64)
    assert rows[1].colours.any(axis=-1).all()
    assert not rows[1].masked


def test_pictures_are_reproducible_and_report_their_steps(tmp_path: Path, weights: Path) -> None:
    ct = write_ct(tmp_path / "ct.nii.gz")
    steps: list[str] = []
    specs = ["none", str(weights)]
    first = feature_picture(ct, specs, tmp_path / "a" / "1.png", size=64, on_step=steps.append)
    second = feature_picture(ct, specs, tmp_path / "2.PNG", size=64)
    assert first.read_bytes() == second.read_bytes()
    assert steps == [
        f"reading {weights}",
        "reading none",
        "computing features of random weights (tiny)",
        "computing features of ours",
    ]
    third = feature_picture(ct, specs, tmp_path / "3.png", size=64, point=(24, 10))
    assert third.read_bytes() != first.read_bytes()


def test_command_writes_a_picture(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ct, out = write_ct(tmp_path / "ct.nii.gz"), tmp_path / "out.png"
    options = ["--size", "64", "--slice", "4", "--point", "20", "30", "--channel", "0"]
    assert main(["features", str(ct), "--weights", str(weights), "none", "-o", str(out), *options]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert pictures.imread(out).ndim == 3
    vectors = out.with_suffix(".svg")
    assert main(["features", str(ct), "--weights", "none", "-o", str(vectors), "--size", "64"]) == 0
    assert "<svg" in vectors.read_text()
    assert main(["features", str(ct), "--weights", "none", "-o", str(out), "--size", "64", "--theme", "light"]) == 0
    assert np.all(pictures.imread(out)[:5, :, :3] == 1), "a white page"


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"specs": ["none"] * 3}, ConfigurationError, "3 weights are given; a picture compares one or two"),
        ({"specs": ["absent.pth"]}, WeightsError, "absent.pth"),
        ({"out": "o.jpg"}, ConfigurationError, r"o\.jpg must name a file that ends with \.png, \.svg, \.pdf"),
        ({"out": "ct.nii.gz/o.png"}, ConfigurationError, r"ct\.nii\.gz/o\.png: its folder cannot be made"),
        ({"size": 100}, ConfigurationError, "--size 100 must be a multiple of 16"),
        ({"size": 48}, ConfigurationError, "at least 64"),
        ({"index": 10}, DataError, r"ct\.nii\.gz has 10 axial slices, 1 to 10; there is no slice 11"),
        ({"index": -1}, DataError, "there is no slice 0"),
        ({"channel": 1}, DataError, "there is no channel 1"),
        ({"point": (48, 0)}, DataError, "--point 48 0 lies outside .* rows 0 to 47 and columns 0 to 63"),
        ({"point": (0, -1)}, DataError, "--point 0 -1 lies outside"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[MedDINOError], message: str
) -> None:
    settings: dict[str, Any] = {"specs": ["none"], "out": "o.png", "size": 64} | changes
    specs, out = settings.pop("specs"), tmp_path / settings.pop("out")
    with pytest.raises(error, match=message):
        feature_picture(write_ct(tmp_path / "ct.nii.gz"), specs, out, **settings)
    assert not out.exists()


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: None, "does not exist or is not a file"),
        (lambda path: path.mkdir(), "does not exist or is not a file"),
        (lambda path: path.write_text("no image"), "cannot be read as an image"),
        (lambda path: write(path, np.full((3, 32, 32), 7, np.int16)), "slice 1 of 3 holds one value only"),
    ],
)
def test_images_that_cannot_be_used_are_refused(
    tmp_path: Path, prepare: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "image.nii.gz"
    prepare(path)
    with pytest.raises(DataError, match=message):
        feature_picture(path, ["none"], tmp_path / "o.png", size=64)
