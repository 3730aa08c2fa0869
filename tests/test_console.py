"""Bars and tables on a terminal and elsewhere."""

from __future__ import annotations

import re

import pytest
from rich.table import Table

from nnunetv2_meddino.console import print_table, progress


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")


def show_some(*, shown: bool = True) -> None:
    with progress(shown=shown) as show:
        show("[bold]job", 3, 5)
        show("other", 0, None, "[i]words")


def test_bars_say_what_is_done_of_how_many_and_take_words_as_they_are(terminal, capsys):
    show_some()
    printed = capsys.readouterr()
    assert all(words in printed.err for words in ("[bold]job", "3/5", "other", "[i]words"))
    assert printed.out == ""


def test_in_80_columns_a_long_job_leaves_place_for_bar_words_and_time(terminal, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    job = "[2/3] Dataset701_Abdomen: train MedDINOv3Trainer_100epochs__nnUNetPlans__2d_896, fold 0"
    detail = "epoch 1000/1000, loss -0.53, pseudo Dice 0.55"
    with progress() as show:
        show(job, 0.5, 1, detail)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err).splitlines()
    assert max(map(len, lines)) <= 80
    assert job in " ".join(line.strip() for line in lines)
    (bar,) = {line.strip() for line in lines if detail in line}
    assert re.fullmatch(rf"━+[╸╺]?━* {detail} 0:00:\d\d [-:\d]+", bar)
    assert bar.count("━") >= 10


def test_without_a_terminal_or_on_request_there_is_no_bar(capsys, monkeypatch):
    show_some()
    monkeypatch.setenv("FORCE_COLOR", "1")
    show_some(shown=False)
    assert capsys.readouterr() == ("", "")


def row(*cells: str) -> Table:
    table = Table()
    for _ in cells:
        table.add_column()
    table.add_row(*cells)
    return table


def test_a_table_is_never_cut_where_it_goes_to_a_file(capsys):
    print_table(row("a" * 150, "b" * 50))
    assert "a" * 150 in capsys.readouterr().out


def test_a_terminal_gets_the_narrow_table_where_the_other_does_not_fit(terminal, capsys):
    wide, narrow = row("wide " * 30), row("narrow " * 20)
    print_table(row("wide"), narrow)
    assert "wide" in capsys.readouterr().out
    print_table(wide, narrow)
    assert ("narrow " * 20).strip() in capsys.readouterr().out, "its lines overflow"
    print_table(row("a" * 150))
    assert "a" * 150 not in capsys.readouterr().out, "without a narrow one, columns shrink"
