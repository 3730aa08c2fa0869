"""Pictures of segmentations: an image beside its reference and its prediction."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the name everyone gives it)
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from nnunetv2_meddino.files import replacing

CT_WINDOW_HU = (-160.0, 240.0)
"""The usual soft-tissue window of abdominal CT: level 40, width 400."""

# Okabe and Ito's palette, then four of Paul Tol's: told apart by colour-blind readers. Black and grey are the image's.
COLOURS = (
    *("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2"),
    *("#44AA99", "#AA4499", "#DDCC77", "#882255"),
)

_BACKGROUND, _FOREGROUND = "#101014", "#E8E8E8"
_PANEL_HEIGHT_INCH, _DPI = 4.2, 130
_FILL_OPACITY = 0.35


def read_axial(path: Path) -> tuple[NDArray[Any], tuple[float, float, float]]:
    """Read a volume so that its slices show as a radiologist expects: axial, patient's right on the left, front up.

    Args:
        path: Any image SimpleITK reads. A 2D image becomes one slice and keeps its orientation; of a colour image the
            first channel is taken.

    Returns:
        The voxels ``(z, y, x)`` and the spacing in mm in the same axis order.
    """
    image = sitk.ReadImage(str(path))
    if image.GetNumberOfComponentsPerPixel() > 1:
        image = sitk.VectorIndexSelectionCast(image, 0)
    image = sitk.DICOMOrient(image, "LPS") if image.GetDimension() == 3 else sitk.JoinSeries(image)
    x, y, z = image.GetSpacing()
    return sitk.GetArrayFromImage(image), (z, y, x)


def richest_slice(labels: NDArray[Any]) -> int:
    """Return the index of the slice of ``labels (z, y, x)`` with most structures and, among those, most foreground."""
    return max(range(len(labels)), key=lambda z: (len(np.unique(labels[z])), np.count_nonzero(labels[z])))


def save_overlay(
    image: NDArray[Any],
    reference: NDArray[Any] | None,
    prediction: NDArray[Any],
    path: Path,
    *,
    spacing_mm: tuple[float, float],
    label_names: Mapping[int, str],
    window_hu: tuple[float, float] | None,
    title: str,
) -> Path:
    """Write a picture with the panels image, reference (where there is one) and prediction, and a legend.

    Args:
        image: One slice ``(H, W)``.
        reference: Its reference labels ``(H, W)``, or None.
        prediction: Its predicted labels ``(H, W)``; 0 is background.
        path: The PNG to write; it appears only once it is complete.
        spacing_mm: Pixel spacing ``(y, x)``: the picture keeps the patient's proportions.
        label_names: Name of each label; a label without a name is shown by its number.
        window_hu: Grey window (lower, upper) for CT; None spans the 1st to the 99th percentile.
        title: One line above the panels.

    Returns:
        ``path``.
    """
    if any(labels is not None and labels.shape != image.shape for labels in (reference, prediction)):
        msg = f"an overlay needs labels on the grid of the image {image.shape}; got a prediction {prediction.shape}"
        msg += "" if reference is None else f" and a reference {reference.shape}"
        raise ValueError(msg)
    maps = [("prediction", prediction)] if reference is None else [("reference", reference), ("prediction", prediction)]
    panels: list[tuple[str, NDArray[Any] | None]] = [("image", None), *maps]
    shown = sorted({int(value) for _, labels in maps for value in np.unique(labels)} - {0})
    colours = {value: to_rgb(COLOURS[i % len(COLOURS)]) for i, value in enumerate(sorted({*label_names, *shown} - {0}))}
    limits = window_hu or tuple(np.percentile(image, (1, 99)))

    aspect = spacing_mm[0] / spacing_mm[1]
    panel_width = _PANEL_HEIGHT_INCH * image.shape[1] / (image.shape[0] * aspect)
    size_inch = (max(panel_width * len(panels), 6), _PANEL_HEIGHT_INCH + 1)
    figure = Figure(figsize=size_inch, facecolor=_BACKGROUND, dpi=_DPI)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.11, top=0.85, wspace=0.02)
    for axes, (name, labels) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1], aspect=aspect, interpolation="bilinear")
        if labels is not None:
            draw_labels(axes, labels, colours)
        axes.set_title(name, color=_FOREGROUND, fontsize=11)
        axes.set_axis_off()
    figure.suptitle(title, color=_FOREGROUND, fontsize=12, y=0.975)
    handles = [Patch(facecolor=colours[value], label=label_names.get(value, f"label {value}")) for value in shown]
    if handles:
        style = {"frameon": False, "labelcolor": _FOREGROUND, "fontsize": 11, "handlelength": 1.1, "handleheight": 1.1}
        figure.legend(handles=handles, loc="lower center", ncols=min(len(handles), 7), **style)
    return write_png(figure, path)


def draw_labels(axes: Axes, labels: NDArray[Any], colours: Mapping[int, tuple[float, float, float]]) -> None:
    """Tint every structure of a label map ``(y, x)`` and trace its outline; colours are RGB from 0 to 1."""
    tint = np.zeros((*labels.shape, 4))
    for value, colour in colours.items():
        mask = labels == value
        tint[mask] = (*colour, _FILL_OPACITY)
        if mask.any() and not mask.all():
            axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.3)
    axes.imshow(tint, aspect=axes.get_aspect(), interpolation="nearest")


def write_png(figure: Figure, path: Path) -> Path:
    """Write a figure under a temporary name and rename it; return its path."""
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
    return path
