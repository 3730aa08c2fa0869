"""What is said about a corpus, and its pictures."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from nnunetv2_meddino.errors import DataError
from pretraining.inspection import montage
from pretraining.inspection.montage import choose_slices, save_histograms, save_slices
from pretraining.inspection.report import corpus_text, inspection_text
from pretraining.inspection.summary import histogram, inspect_corpus
from tests.pretraining.curation.folders import curated, phantom, write_volume


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("inspect")
    voxels = phantom(1, (8, 64, 64))
    voxels[0] = -1000
    write_volume(voxels, root / "a" / "one.nii.gz", (5.0, 0.75, 0.75))
    write_volume(phantom(2, (6, 80, 64)), root / "b" / "two.nii.gz", (2.0, 0.95, 0.95))
    write_volume(phantom(2, (6, 80, 64)), root / "b" / "copy.nii.gz", (2.0, 0.95, 0.95))
    (root / "b" / "bad.nii.gz").write_text("bad")
    curated(root / "corpus", ("a", root / "a"), ("b", root / "b"))
    return root / "corpus"


def _bins(histogram: dict) -> dict[float, int]:
    return {edge: count for edge, count in zip(histogram["edges"], histogram["counts"], strict=False) if count}


def test_the_numbers(corpus):
    numbers = inspect_corpus(corpus)
    assert json.loads(json.dumps(numbers)) == numbers
    assert (numbers["volumes"], numbers["slices"]) == (2, 14)
    assert numbers["counts"] == {"found": 4, "curated": 2, "rejected": 1, "duplicates": 1, "excluded": 0}
    files = list((corpus / "volumes").rglob("*.b2nd"))
    assert numbers["bytes"] == sum(file.stat().st_size for file in files)
    assert numbers["bytes_per_voxel"] == pytest.approx(numbers["bytes"] / (8 * 64 * 64 + 6 * 80 * 64), abs=1e-4)
    assert numbers["sources"]["b"]["bytes"] == next((corpus / "volumes" / "b").iterdir()).stat().st_size
    assert numbers["sizes_px"] == {"64x64": {"volumes": 1, "slices": 8}, "80x64": {"volumes": 1, "slices": 6}}
    assert numbers["licences"]["licence of a"] == {"volumes": 1, "slices": 8}
    assert _bins(numbers["spacing"]["in_plane_mm"]) == {0.75: 8, 0.95: 6}
    assert _bins(numbers["spacing"]["between_slices_mm"]) == {5.0: 8, 2.0: 6}
    assert _bins(numbers["spacing"]["scan_length_mm"]) == {0: 2}
    assert sum(numbers["body"]["fraction"]["counts"]) == 14
    assert numbers["body"]["fraction"]["counts"][0] == 1, "the slice of air"
    assert sum(numbers["body"]["slices_by_relative_z"]) == 14
    assert numbers["flags"]["empty"]["slices"] == 1
    assert numbers["flags"]["empty_slices"]["volumes"] == 1
    (reason,) = numbers["rejections"].values()
    assert reason["cases"] == ["b/bad"]
    assert reason["meaning"]
    assert numbers["duplicates"]["of"] == {"b in b": 1}


def test_the_intensity_histogram_holds_every_voxel_of_the_sampled_slices(corpus):
    intensity = inspect_corpus(corpus)["intensity"]
    assert intensity["slices_sampled"] == 14
    assert sum(intensity["hu"]["counts"]) == 8 * 64 * 64 + 6 * 80 * 64
    air = phantom(2, (6, 80, 64)) < -950
    assert intensity["hu"]["counts"][0] + intensity["hu"]["counts"][1] >= air.sum()


def test_values_beyond_the_edges_are_counted_apart():
    values = np.array([-5.0, 0.5, 2.0, 99.0, 7.0])
    assert histogram(values, (0, 1, 2)) == {"edges": [0, 1, 2], "counts": [1, 1], "below": 1, "above": 2}
    weighted = histogram(values, (0, 1, 2), np.array([3, 4, 5, 6, 7]))
    assert (weighted["below"], weighted["counts"], weighted["above"]) == (3, [4, 5], 13)


def test_all_bins_of_a_histogram_have_one_width_and_its_axis_is_linear(corpus, tmp_path, monkeypatch):
    figures: list[Figure] = []
    monkeypatch.setattr(montage, "write_figure", lambda figure, path: figures.append(figure) or path)
    inspection = inspect_corpus(corpus)
    inspection["spacing"]["in_plane_mm"] |= {"above": 5}
    save_histograms(inspection, tmp_path / "histograms.png")
    axes = figures[0].axes
    for panel in axes:
        assert panel.get_xscale() == "linear"
        bars = [bar for bar in panel.patches if bar.get_facecolor()[:3] == to_rgb("#56B4E9")]
        np.testing.assert_allclose([bar.get_width() for bar in bars], bars[0].get_width())
    drawn = {bar.get_x(): bar.get_height() for bar in axes[0].patches if bar.get_height()}
    assert {round(left, 4): n for left, n in drawn.items() if left < 2} == {0.75: 8, 0.95: 6}
    assert [n for left, n in drawn.items() if left > 2] == [5]
    assert [text.get_text() for text in axes[0].texts] == ["> 2:\n5"]
    assert max(axes[0].get_xticks()) <= 2


def test_the_bars_in_the_text_say_what_lies_beyond(corpus):
    inspection = inspect_corpus(corpus)
    inspection["spacing"]["in_plane_mm"] |= {"above": 5}
    assert re.search(r"\n  above 2 +5  #+\n", inspection_text(inspection))


def test_the_text_names_what_matters(corpus):
    text = inspection_text(inspect_corpus(corpus))
    for part in ("4 volumes found = 2 curated + 1 rejected + 1 duplicates + 0 excluded", "b/bad", "licence of a"):
        assert part in text
    content = json.loads((corpus / "corpus.json").read_text())
    assert "1 exact and 0 near ones dropped" in corpus_text(content, corpus)


def test_the_pictures_show_something(corpus, tmp_path):
    slices = save_slices(corpus, tmp_path / "new" / "montage.png")
    histograms = save_histograms(inspect_corpus(corpus), tmp_path / "histograms.png")
    for path in (slices, histograms):
        pixels = np.asarray(Image.open(path).convert("L"))
        assert min(pixels.shape) > 300
        assert pixels.std() > 20


def test_every_source_and_all_heights_are_shown():
    sources = ["a"] * 100 + ["b"] + ["c"] * 10
    slices = [50] * 100 + [200] + [30] * 10
    chosen = choose_slices(sources, slices, 30)
    assert all(0 <= index < slices[row] for row, index in chosen)
    assert Counter(sources[row] for row, _ in chosen) == {"a": 10, "b": 10, "c": 10}
    assert len({row for row, _ in chosen if sources[row] == "a"}) == 10
    heights = sorted(index / 200 for row, index in chosen if sources[row] == "b")
    assert heights[0] < 0.2
    assert heights[-1] > 0.8
    assert max(np.diff(heights)) < 0.25


def test_a_few_slices_of_many_sources_are_of_sources_from_all_over():
    chosen = choose_slices([f"source {row}" for row in range(12)], [100] * 12, 4)
    assert [row for row, _ in chosen] == [0, 3, 6, 9]
    assert len({index for _, index in chosen}) == 4, "at heights of their own"


def test_a_folder_without_a_corpus_is_said(tmp_path):
    with pytest.raises(DataError, match="no finished corpus"):
        inspect_corpus(tmp_path)
