"""Figures as files, in the format that the ending of the name asks for: pixels, or vectors for print."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.files import replacing

FIGURE_ENDINGS = (".png", ".svg", ".pdf")
"""What ``write_figure`` writes."""

_VECTOR_DPI = 300
"""Of the images inside vector files."""


def check_figure_name(path: Path) -> None:
    """Refuse a name that ``write_figure`` cannot write to.

    Raises:
        ConfigurationError: The ending is none of ``FIGURE_ENDINGS``, or the name is a folder's.
    """
    if path.suffix.lower() not in FIGURE_ENDINGS or path.is_dir():
        raise ConfigurationError(f"{path} must name a file that ends with {', '.join(FIGURE_ENDINGS)}.")


def write_figure(figure: Figure, path: Path) -> Path:
    """Write a figure whole or not at all, the same bytes for the same figure; return its path.

    Args:
        figure: What is written.
        path: PNG, or SVG or PDF: lines and letters are then vectors, and images have 300 dpi.

    Raises:
        ConfigurationError: As ``check_figure_name``.
    """
    check_figure_name(path)
    dpi = figure.dpi
    # TrueType fonts in PDF, for journals refuse matplotlib's usual Type 3; the same identifiers in every SVG
    with replacing(path) as temporary, rc_context({"pdf.fonttype": 42, "svg.hashsalt": "meddino"}):
        match path.suffix.lower():
            case ".svg":
                figure.dpi = _VECTOR_DPI
                FigureCanvasSVG(figure).print_svg(str(temporary), metadata={"Date": None})
            case ".pdf":
                figure.dpi = _VECTOR_DPI
                FigureCanvasPdf(figure).print_pdf(str(temporary), metadata={"CreationDate": None})
            case _:
                FigureCanvasAgg(figure).print_png(str(temporary))
        figure.dpi = dpi  # which vector formats change
    return path
