"""The palette: how far apart its colours are for every kind of colour vision, measured without the script."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from skimage.color import deltaE_ciede2000, rgb2lab, rgb2xyz, xyz2rgb

from nnunetv2_meddino.visualization.style import COLOURS, SURELY_DISTINCT, THEMES, Theme, structure_colours

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
DEFICIENCIES = {
    "protanopia": "0.152286 1.052583 -0.204868 0.114503 0.786281 0.099216 -0.003882 -0.048116 1.051998",
    "deuteranopia": "0.367322 0.860646 -0.227968 0.280085 0.672501 0.047413 -0.011820 0.042940 0.968881",
    "tritanopia": "1.255528 -0.076749 -0.178779 -0.078411 0.930809 0.147602 0.004733 0.691367 0.303900",
}
XYZ_OF_RGB = rgb2xyz(np.eye(3)).T
"""Columns: the primaries, whose linear values are those of sRGB."""


def as_seen(codes: tuple[str, ...], vision: str) -> np.ndarray:
    rgb = np.array([to_rgb(code) for code in codes])
    if vision == "normal":
        return rgb2lab(rgb)
    linear = rgb2xyz(rgb) @ np.linalg.inv(XYZ_OF_RGB).T
    matrix = np.array(DEFICIENCIES[vision].split(), float).reshape(3, 3)
    return rgb2lab(xyz2rgb(np.clip(linear @ matrix.T, 0, 1) @ XYZ_OF_RGB.T))


def smallest_distance(codes: tuple[str, ...], visions: tuple[str, ...] = ("normal", *DEFICIENCIES)) -> float:
    seen = {vision: as_seen(codes, vision) for vision in visions}
    pairs = itertools.combinations(range(len(codes)), 2)
    return min(float(deltaE_ciede2000(lab[a], lab[b])) for a, b in pairs for lab in seen.values())


@pytest.mark.parametrize(("count", "distance"), [(3, 25.5), (7, 15.3), (SURELY_DISTINCT, 10.1), (24, 6.5)])
def test_the_first_colours_are_as_far_apart_as_is_said_whoever_looks(count: int, distance: float) -> None:
    assert smallest_distance(COLOURS[:count]) == pytest.approx(distance, abs=0.1)


def test_there_are_24_colours_that_differ_plainly_in_normal_vision() -> None:
    assert len(COLOURS) >= 24
    assert smallest_distance(COLOURS, ("normal",)) == pytest.approx(12.7, abs=0.1)


@pytest.mark.parametrize(("vision", "distance"), [("normal", 18), *((name, 8) for name in DEFICIENCIES)])
def test_no_colour_is_a_grey_of_the_image(vision: str, distance: float) -> None:
    greys = as_seen(tuple(f"#{level:02x}{level:02x}{level:02x}" for level in range(256)), "normal")
    colours = as_seen(COLOURS, vision)
    assert deltaE_ciede2000(colours[:, None], greys[None]).min() > distance - 0.2


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2."""
    lighter, darker = sorted((rgb2xyz(np.array(to_rgb(code)))[1] for code in (one, other)), reverse=True)
    return float((lighter + 0.05) / (darker + 0.05))


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_all_text_of_a_theme_can_be_read_on_its_page(theme: Theme) -> None:
    assert contrast(theme.text, theme.page) > 7
    assert contrast(theme.faint, theme.page) > 4.5


def test_the_light_theme_is_for_white_paper() -> None:
    assert to_rgb(THEMES["light"].page) == (1, 1, 1)


def test_labels_shown_get_the_first_colours_and_the_background_has_no_colour() -> None:
    colours = structure_colours({0, 40, 7})
    assert list(colours) == [7, 40]
    assert colours[7] == to_rgb(COLOURS[0])
    assert len(set(structure_colours(range(1, 25)).values())) == 24
