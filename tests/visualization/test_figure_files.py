"""Figures as files: the format is the ending's, the content whole and always the same."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.visualization.figure_files import write_figure


def figure(title: str = "a title") -> Figure:
    figure = Figure(figsize=(4, 3), dpi=50)
    axes = figure.add_subplot()
    axes.imshow(np.random.default_rng(0).random((200, 200)))
    axes.plot([0, 100], [0, 100])
    axes.set_title(title)
    return figure


def test_png_has_the_pixels_of_the_figure(tmp_path: Path) -> None:
    with Image.open(write_figure(figure(), tmp_path / "new" / "f.png")) as image:
        assert (image.format, image.size) == ("PNG", (200, 150))


def test_vectors_keep_size_and_lines_and_have_images_fit_for_print(tmp_path: Path) -> None:
    svg = write_figure(figure(), tmp_path / "f.svg").read_text()
    assert re.search(r'<svg[^>]* width="288pt" height="216pt"', svg), "4 x 3 inches"
    (image,) = re.findall(r"<image [^>]*>", svg)
    with Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", image)[1]))) as pixels:  # type: ignore[index]
        inches = float(re.search(r' width="([0-9.]+)"', image)[1]) / 72  # type: ignore[index]
        assert pixels.width / inches == pytest.approx(300, rel=0.01)
    assert svg.count("<path") > 5


def test_pdf_is_of_the_figures_size_with_fonts_that_journals_take(tmp_path: Path) -> None:
    pdf = write_figure(figure(), tmp_path / "f.PDF").read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert re.search(rb"/MediaBox \[ 0 0 288 216 \]", pdf)
    assert b"/Subtype /Type3" not in pdf
    assert b"/CIDFontType2" in pdf or b"/TrueType" in pdf


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_the_same_figure_makes_the_same_file(tmp_path: Path, ending: str) -> None:
    first, second = (write_figure(figure(), tmp_path / f"{n}{ending}").read_bytes() for n in "ab")
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a{ending}", f"b{ending}"]


@pytest.mark.parametrize("name", ["f.jpg", "f", "folder.png"])
def test_other_endings_and_folders_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigurationError, match=r"must name a file that ends with .png, .svg, .pdf"):
        write_figure(figure(), tmp_path / name)


def test_a_failed_write_leaves_the_old_picture_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_figure(figure(), tmp_path / "f.png")
    before = path.read_bytes()

    def torn(canvas: object, name: str) -> None:
        Path(name).write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr("nnunetv2_meddino.visualization.figure_files.FigureCanvasAgg.print_png", torn)
    with pytest.raises(OSError, match="disk full"):
        write_figure(figure("another"), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
