"""Overlay pictures: colours, proportions, orientation and how they are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import colors, image
from matplotlib.figure import Figure

from nnunetv2_meddino.imaging.slices import richest_slice
from nnunetv2_meddino.visualization.overlays import save_overlay
from nnunetv2_meddino.visualization.style import COLOURS, SURELY_DISTINCT

NAMES = {1: "liver", 2: "spleen"}


def draw(path: Path, prediction: np.ndarray, reference: np.ndarray | None = None, **settings: object) -> np.ndarray:
    """Draw labels over a black image and return the picture as ``(H, W, 3)`` in 0..1."""
    options = {"spacing_mm": (1.0, 1.0), "label_names": NAMES, "window_hu": (-160, 240), "title": "case"} | settings
    black = np.full(prediction.shape, -1000)
    assert save_overlay(black, reference, prediction, path, **options) == path  # type: ignore[arg-type]
    return image.imread(path)[..., :3]


def pixels(picture: np.ndarray, colour: str, opacity: float = 1.0) -> np.ndarray:
    """Pixels of a colour as it shows on black."""
    return np.all(np.abs(picture - opacity * np.array(colors.to_rgb(colour))) < 0.02, axis=-1)


@pytest.fixture
def square() -> np.ndarray:
    labels = np.zeros((100, 100), int)
    labels[20:60, 30:70] = 1
    return labels


def test_structures_are_tinted_in_both_panels_in_the_colour_of_the_legend(tmp_path: Path, square: np.ndarray) -> None:
    picture = draw(tmp_path / "o.png", prediction=square * 2, reference=square)
    third = picture.shape[1] // 3
    for label, panel in ((1, 1), (2, 2)):
        tint = pixels(picture, COLOURS[label - 1], opacity=0.35)
        inside = tint[:, panel * third : (panel + 1) * third]
        assert inside.sum() == tint.sum() > 20_000
        assert pixels(picture, COLOURS[label - 1])[-80:].sum() > 100  # the legend's patch


def test_without_a_reference_only_image_and_prediction_are_shown(tmp_path: Path, square: np.ndarray) -> None:
    with_reference = draw(tmp_path / "a.png", square, square)
    without = draw(tmp_path / "b.png", square)
    assert without.shape[1] < with_reference.shape[1]
    assert pixels(without, COLOURS[0], opacity=0.35).sum() > 20_000


def test_picture_keeps_the_patients_proportions(tmp_path: Path, square: np.ndarray) -> None:
    tint = pixels(draw(tmp_path / "o.png", square, spacing_mm=(3.0, 1.5)), COLOURS[0], opacity=0.35)
    rows, columns = (np.flatnonzero(tint.any(axis=axis)) for axis in (1, 0))
    assert np.ptp(rows) / np.ptp(columns) == pytest.approx(2.0, rel=0.06)  # the outline has the same width on all sides


def test_a_label_without_a_name_is_still_shown(tmp_path: Path, square: np.ndarray) -> None:
    assert pixels(draw(tmp_path / "o.png", square * 9), COLOURS[0], opacity=0.35).sum() > 20_000


def test_window_maps_hu_to_grey(tmp_path: Path) -> None:
    levels = np.full((50, 50), 40)
    save_overlay(
        levels,
        None,
        np.zeros((50, 50), int),
        tmp_path / "o.png",
        spacing_mm=(1, 1),
        label_names={},
        window_hu=(-160, 240),
        title="",
    )
    picture = image.imread(tmp_path / "o.png")[..., :3]
    height, width = picture.shape[:2]
    middle_of_window = 0.5
    np.testing.assert_allclose(picture[height // 2, width // 4], middle_of_window, atol=0.01)


def test_labels_on_another_grid_are_refused(tmp_path: Path, square: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(100, 100\).*\(100, 50\)"):
        draw(tmp_path / "o.png", square, reference=square[:, :50])


def test_richest_slice_shows_most_structures_then_most_foreground() -> None:
    labels = np.zeros((4, 8, 8), int)
    labels[0] = 1
    labels[1, :2], labels[1, 2:3] = 1, 2
    labels[2, :4], labels[2, 4:6] = 1, 2
    assert richest_slice(labels) == 2


def test_structures_shown_get_the_first_colours_whatever_their_numbers(tmp_path: Path, square: np.ndarray) -> None:
    names = {value: f"organ {value}" for value in range(1, 31)}
    labels = np.where(square, 30, 0)
    labels[70:90, 30:70] = 12
    picture = draw(tmp_path / "o.png", labels, label_names=names)
    assert pixels(picture, COLOURS[0], opacity=0.35).sum() > 10_000
    assert pixels(picture, COLOURS[1], opacity=0.35).sum() > 20_000


@pytest.mark.parametrize("count", [SURELY_DISTINCT, SURELY_DISTINCT + 1])
def test_many_structures_bear_their_number_in_picture_and_legend(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.repeat(np.repeat(np.arange(count + 1)[None], 40, axis=0), 8, axis=1)
    labels[10:30, -8:] = 0  # the last one is in two parts: its centre of mass lies outside
    figures: list[Figure] = []
    monkeypatch.setattr(
        "nnunetv2_meddino.visualization.overlays.write_figure", lambda figure, path: figures.append(figure) or path
    )
    names = {value: f"organ {value}" for value in range(1, count)}
    save_overlay(
        np.zeros(labels.shape),
        None,
        labels,
        tmp_path / "o.png",
        spacing_mm=(1, 1),
        label_names=names,
        window_hu=(0, 1),
        title="",
    )
    (figure,) = figures
    texts = figure.axes[1].texts
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    if count <= SURELY_DISTINCT:
        assert not texts
        assert legend == [*names.values(), f"label {count}"]
        return
    assert legend == [*(f"{value} {name}" for value, name in names.items()), str(count)]
    places = {int(text.get_text()): text.get_position() for text in texts}
    assert sorted(places) == list(range(1, count + 1))
    assert all(labels[y, x] == value for value, (x, y) in places.items())
