from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from matplotlib.figure import Figure

from nnunetv2_meddino.comparison.folders import Folders, Method
from nnunetv2_meddino.comparison.report import forest
from nnunetv2_meddino.comparison.report.document import (
    Cell,
    Details,
    Heading,
    Notes,
    Paragraph,
    Table,
    to_html,
    to_markdown,
)
from nnunetv2_meddino.comparison.report.latex import escaped
from nnunetv2_meddino.comparison.report.overlays import WorstCase, _figure, draw_case, worst_cases
from nnunetv2_meddino.comparison.report.report import short_names, write_report
from nnunetv2_meddino.comparison.results import Selection, collect
from nnunetv2_meddino.comparison.statistics import paired
from nnunetv2_meddino.comparison.wording import counted, wrapped
from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.evaluation.results import DICE, METRICS
from tests.comparison.results import anatomy, make_folders, write_dataset, write_method, write_volume

FIRST, SECOND = "Dataset701_AMOS22", "Dataset702_Private"
STOCK, OURS = Method("nnUNetTrainer", "nnUNetPlans", "2d"), Method("MedDINOv3Trainer", "nnUNetPlans", "2d_96")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Two datasets; our method misses the spleen of case 3 of the first."""
    folders = make_folders(tmp_path_factory.mktemp("compare"))
    for name, cases in ((FIRST, 7), (SECOND, 4)):
        write_dataset(folders, name, cases)
        write_method(folders, name, STOCK.name, grow=-1.0)
        write_method(folders, name, OURS.name, spread=0.2, without={3: 2}, weights={"name": "meddinov3_vitb16_ct3m"})
    return folders


@pytest.fixture(scope="module")
def out(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "made here"
    write_report(collect(Selection(("701", "702")), folders), STOCK, folders, out)
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    """Collects what a page refers to, and its tables."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.tables, self.words, self._cell, self._broken = [], [], [], False, False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        self.links += [tag] if tag in ("link", "script", "iframe", "object") else []
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True
        self._broken = tag == "wbr"

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data):
        data = data.replace("\N{NO-BREAK SPACE}", " ")  # reads like any other
        if self._cell:
            before = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = f"{before}{'' if self._broken or not before else ' '}{data}"
        if self._broken and self.words:
            self.words[-1] += data
        else:
            self.words.append(data)
        self._broken = False


def test_the_folder_holds_the_report_in_its_forms_and_nothing_unfinished(out):
    names = ["cases.csv", "figures", "report.html", "report.md", "summary.csv", "tables.tex"]
    assert sorted(p.name for p in out.iterdir()) == names
    figures = [p.name for p in (out / "figures").iterdir()]
    assert len([name for name in figures if name.endswith(".png")]) == 2 * (2 * len(METRICS) + 3)
    charts = [name.removesuffix(".png") for name in figures if name.endswith(".png") and "worst" not in name]
    assert sorted(name for name in figures if name.endswith(".pdf")) == sorted(f"{name}.pdf" for name in charts)
    assert not [name for name in figures if name.startswith(".")]


def test_the_page_needs_nothing_else(out):
    text = (out / "report.html").read_text()
    page = Page(text)
    assert len(page.links) == 2 * (2 * len(METRICS) + 3)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"url\(|@import|https?://", text)
    assert 'name="viewport"' in text


def test_the_means_of_the_summary_are_those_of_the_cases(out):
    cases = rows(out / "cases.csv")
    assert len(cases) == 2 * 2 * (7 + 4)
    summary = rows(out / "summary.csv")
    assert len(summary) == 2 * 2 * 3 * len(METRICS)
    for row in summary:
        mine = [c for c in cases if (c["dataset"], c["method"]) == (row["dataset"], row["method"])]
        values: dict[str, list[float]] = {}
        for case in mine:
            if row["class"] in ("all classes", case["class"]) and case[row["metric"]]:
                values.setdefault(case["case"], []).append(float(case[row["metric"]]))
        means = [np.mean(v) for v in values.values()]
        assert float(row["mean"]) == pytest.approx(np.mean(means))
        assert int(row["n"]) == len(means)
        if row["low"]:
            assert float(row["low"]) < float(row["mean"]) < float(row["high"])
        assert bool(row["p_holm"]) == (row["method"] == OURS.name)


def test_missed_classes_are_counted_where_distances_leave_them_out(out):
    def row(metric: str, label: str, method: Method) -> dict[str, str]:
        return next(
            r
            for r in rows(out / "summary.csv")
            if (r["dataset"], r["metric"], r["class"], r["method"]) == (FIRST, metric, label, method.name)
        )

    assert row("HD95_voxel_mm", "spleen", OURS)["n"] == "6"
    assert row("HD95_voxel_mm", "spleen", OURS)["n_missed"] == "1"
    assert row("Dice", "spleen", OURS)["n"] == "7"
    assert row("Dice", "all classes", STOCK)["n_missed"] == "0"
    missed = [r for r in rows(out / "cases.csv") if r["missed"] == "1"]
    assert {(r["case"], r["class"], r["Dice"], r["HD95_voxel_mm"]) for r in missed} == {
        ("case_003", "spleen", "0.0", "")
    }


def test_page_and_markdown_tell_the_same_numbers(out):
    page, markdown = Page((out / "report.html").read_text()), (out / "report.md").read_text()
    scores = page.tables[0]
    assert scores[0] == ["method", *(metric.title for metric in METRICS), "cases", "missed"]
    assert [line[0] for line in scores[1:]] == ["nnUNetTrainer, 2d (reference method)", "MedDINOv3Trainer, 2d_96"]
    mean = next(
        r
        for r in rows(out / "summary.csv")
        if r["dataset"] == FIRST and r["metric"] == "Dice" and r["method"] == STOCK.name
    )
    assert scores[1][1] == f"{float(mean['mean']):.4f} [{float(mean['low']):.4f}, {float(mean['high']):.4f}]"
    assert f"| {scores[1][1]} |" in markdown
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", markdown):
        assert (out / picture).is_file()


def test_every_distance_stands_beside_its_number_of_cases(out):
    scores = Page((out / "report.html").read_text()).tables[0]
    columns = {name: index for index, name in enumerate(scores[0])}
    summary = {(r["dataset"], r["method"], r["metric"], r["class"]): r for r in rows(out / "summary.csv")}
    for line, method in zip(scores[1:], (STOCK, OURS), strict=True):
        for metric in METRICS:
            n = summary[FIRST, method.name, metric.key, "all classes"]["n"]
            assert line[columns[metric.title]].endswith(f"\nn {n}") is not metric.higher_is_better


def test_the_forest_plot_shows_mean_interval_and_pairs(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(forest, "write_chart", lambda figure, path: figures.append(figure) or path)
    certain = paired(np.array([0.5, 0.7, 0.6, 0.9]), np.array([0.4, 0.5, 0.55, 0.6]), higher_is_better=True)
    few = paired(np.array([0.5]), np.array([0.7]), higher_is_better=True)
    none = paired(np.array([np.nan]), np.array([0.7]), higher_is_better=True)
    forest.draw_forest(DICE, {"A": certain, "B": few, "C": none}, "stock", tmp_path / "f.png")
    (axes,) = figures[0].axes
    points = [tuple(points.get_offsets()[0]) for points in axes.collections]
    assert points == [pytest.approx((0.1625, 0)), pytest.approx((-0.2, 1))]
    zero, interval = axes.lines
    assert list(zero.get_xdata()) == [0, 0]
    assert list(interval.get_xdata()) == [certain.mean_interval.low, certain.mean_interval.high]
    assert list(interval.get_ydata()) == [0, 0]
    assert [text.get_text() for text in axes.texts][:3] == ["A, n 4", "B, n 1", "C, n 0"]
    sides = {text.get_text(): text.get_position()[0] for text in axes.texts[3:]}
    assert sides == {"method better": 1.0, "stock better": 0.0}
    assert axes.get_xlim()[0] == -axes.get_xlim()[1]


def test_the_latex_tables_hold_the_numbers_of_the_page(out):
    page, text = Page((out / "report.html").read_text()), (out / "tables.tex").read_text()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 4, "scores and comparison of two datasets"
    assert r"\toprule" in text and text.startswith(r"% \usepackage{booktabs}")
    for line in page.tables[0][1:]:
        assert line[1].split()[0] in text
    assert r"MedDINOv3Trainer, 2d\_96" in text
    assert not re.search(r"(?<!\\)_", text), "an underscore outside of mathematics stops LaTeX"
    assert all(row.count(" & ") == 7 for row in text.splitlines() if row.startswith("DSC"))


def test_what_latex_takes_for_commands_is_escaped():
    assert escaped(r"a_b & 5 % $ # {x} ~ ^ \ < 0.001 −1") == (
        r"a\_b \& 5 \% \$ \# \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{} $<$ 0.001 $-$1"
    )


def test_names_are_broken_after_underscores_and_spaces_only():
    name = "MedDINOv3Trainer_scratch_noregularization, 2d_96"
    assert wrapped(name, 26).split("\n") == ["MedDINOv3Trainer_scratch_", "noregularization, 2d_96"]
    assert wrapped("Incomprehensibilities", 8) == "Incomprehensibilities"
    page = to_html([Heading(1, "t"), Table(("NSD voxel 1 mm",), ((Cell(name),),))])
    assert "MedDINOv3Trainer_<wbr>scratch_<wbr>noregularization, 2d_<wbr>96" in page
    assert "NSD voxel 1\N{NO-BREAK SPACE}mm" in page, "a unit does not part from its number"
    assert "overflow-wrap: anywhere" not in page


@pytest.mark.parametrize(("methods", "grid"), [(1, (1, 3)), (2, (1, 4)), (3, (2, 3)), (5, (2, 4)), (7, (3, 3))])
def test_panels_stand_four_in_a_row_and_fill_the_last(methods, grid):
    panels = [("image", None), *((f"{n}", np.zeros((8, 8), int)) for n in range(methods + 1))]
    drawn = _figure(np.zeros((8, 8)), panels, (1.0, 1.0), (0.0, 1.0), {}, "t", in_mm=True)
    assert drawn.axes[0].get_gridspec().get_geometry() == grid


def test_one_is_singular():
    assert [counted(n, "epoch") for n in (1, 2, 0, "1", "?")] == [
        "1 epoch",
        "2 epochs",
        "0 epochs",
        "1 epoch",
        "? epochs",
    ]


def test_warnings_name_their_rows(out):
    words = " ".join(Page((out / "report.html").read_text()).words)
    assert f"{FIRST}: {OURS.name}: its weights (meddinov3_vitb16_ct3m) were pretrained on images of AMOS22" in words
    assert "With 4 cases no difference can be significant" in words


def test_the_worst_case_is_the_one_that_falls_furthest_behind(folders):
    (dataset,) = collect(Selection((FIRST,)), folders)
    names = short_names([STOCK, OURS])
    worst = worst_cases(dataset, STOCK, names)
    assert worst[0].case == "case_003"
    assert len(worst) == 3
    assert re.fullmatch(r"DSC 0.4\d\d with MedDINOv3Trainer, 2d_96; 0.\d\d\d with nnUNetTrainer, 2d", worst[0].reason)
    alone = collect(Selection((FIRST,), trainers=("MedDINOv3Trainer",)), folders)[0]
    assert worst_cases(alone, OURS, names)[0].reason.startswith("DSC 0.4")


def test_the_picture_shows_the_slice_that_is_wrong(folders, tmp_path, monkeypatch):
    (dataset,) = collect(Selection((FIRST,), folds=("0",)), folders)
    prediction = folders.model(FIRST, OURS) / "fold_0" / "validation" / "case_006.nii.gz"
    kept = prediction.read_bytes()
    labels = anatomy(6)
    labels[6] = 2
    write_volume(prediction, labels)
    titles = []
    original = Figure.suptitle
    monkeypatch.setattr(Figure, "suptitle", lambda self, t, **k: titles.append(t) or original(self, t, **k))
    worst = WorstCase("case_006", "why")
    draw_case(dataset, worst, short_names([STOCK, OURS]), folders, tmp_path / "a.png")
    prediction.write_bytes(kept)
    assert titles == ["case_006, slice 7 of 8: why"]


def test_files_that_do_not_lie_on_one_another_are_not_drawn(folders, tmp_path):
    (dataset,) = collect(Selection((SECOND,)), folders)
    elsewhere = Folders(tmp_path, folders.preprocessed, folders.results)
    image = sitk.ReadImage(str(folders.raw / SECOND / "imagesTr" / "case_000_0000.nii.gz"))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    (tmp_path / SECOND / "imagesTr").mkdir(parents=True)
    sitk.WriteImage(image, str(tmp_path / SECOND / "imagesTr" / "case_000_0000.nii.gz"))
    with pytest.raises(
        DataError, match=r"Size or direction .*differ .*image \(8, 40, 44\) \[\[0.0, 0.0, 1.0\], \[0.0, -1.0"
    ):
        draw_case(dataset, WorstCase("case_000", ""), short_names([STOCK, OURS]), elsewhere, tmp_path / "a.png")


def test_a_damaged_image_is_not_drawn(folders, tmp_path):
    (dataset,) = collect(Selection((SECOND,)), folders)
    elsewhere = Folders(tmp_path, folders.preprocessed, folders.results)
    name = Path(SECOND, "imagesTr", "case_000_0000.nii.gz")
    content = (folders.raw / name).read_bytes()
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"case_000_0000\.nii\.gz cannot be read"):
        draw_case(dataset, WorstCase("case_000", ""), short_names([STOCK, OURS]), elsewhere, tmp_path / "a.png")


def test_a_report_without_images_says_so(folders, tmp_path):
    datasets = collect(Selection((SECOND,)), folders)
    elsewhere = Folders(tmp_path / "nowhere", folders.preprocessed, folders.results)
    write_report(datasets, STOCK, elsewhere, tmp_path / "out")
    assert "No picture: " in (tmp_path / "out" / "report.md").read_text()


def test_a_single_method_is_reported_without_comparison(folders, tmp_path):
    datasets = collect(Selection((SECOND,), trainers=("MedDINOv3Trainer",)), folders)
    write_report(datasets, OURS, folders, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "Against" not in text
    assert {row["p"] for row in rows(tmp_path / "summary.csv")} == {""}


def test_names_leave_out_what_all_methods_share():
    other = Method("nnUNetTrainer", "OtherPlans", "2d")
    assert list(short_names([STOCK]).values()) == ["nnUNetTrainer"]
    assert short_names([STOCK, OURS])[OURS] == "MedDINOv3Trainer, 2d_96"
    assert short_names([STOCK, other])[other] == "nnUNetTrainer, OtherPlans"


def test_markup_in_names_is_shown_as_it_is(tmp_path):
    nasty = "<script>a|b_c*"
    table = Table((nasty,), ((Cell(nasty, nasty),),), caption=nasty)
    blocks = [Heading(1, nasty), Paragraph(nasty), Notes((nasty,), are_warnings=True), table, Details(nasty, table)]
    page = Page(to_html(blocks))
    assert page.links == []
    assert page.tables[0] == [[nasty], [f"{nasty} {nasty}"]]
    assert "<script>" not in to_markdown(blocks, tmp_path).replace("\\<script>", "")
    assert "a|b" not in to_markdown(blocks, tmp_path)


def test_numbers_are_aligned_right_and_names_left(out):
    text = (out / "report.html").read_text()
    assert re.search(r"th, td \{[^}]*text-align: right", text)
    first_rows = re.findall(r"<tr><td( class=\"text\")?>", text)
    assert first_rows and all(first_rows)
