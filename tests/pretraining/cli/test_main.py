"""The command line of the pretraining: what it prints, what it exits with."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pretraining.cli.main import main
from pretraining.curation import collections
from tests.conftest import PROJECT
from tests.pretraining.corpora import flip_silent_bit
from tests.pretraining.curation.folders import corpus_bytes, phantom, source, write_volume


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    for seed in range(3):
        write_volume(phantom(seed), root / "one" / f"case_{seed}.nii.gz")
    write_volume(phantom(0), root / "two" / "copy.nii.gz")
    (root / "two" / "bad.nii.gz").write_text("bad")
    (root / "splits_final.json").write_text(json.dumps([{"train": [], "val": ["case_2", "case_7"]}]))
    return root


@pytest.fixture(autouse=True)
def _two_sources(monkeypatch):
    for name in ("one", "two"):
        monkeypatch.setitem(collections.COLLECTIONS, name, source(name))


def _curate(data: Path, corpus: Path, *more: object) -> list[str]:
    named = ["--source", f"one={data / 'one'}", "--source", f"two={data / 'two'}"]
    return ["curate", *named, "--out", str(corpus), "-np", "1", *map(str, more)]


def test_curate_prints_where_every_volume_went(data, tmp_path, capsys):
    exclude = ("--exclude", data / "splits_final.json", "--fold", 0, "--images", data / "one")
    assert main(_curate(data, tmp_path / "c", *exclude)) == 0
    captured = capsys.readouterr()
    assert "5 volumes found = 2 curated + 1 rejected + 1 duplicates + 1 excluded" in captured.out
    assert "1 exact and 0 near ones dropped" in captured.out
    assert "excluded: 1 of 2 listed cases are among the sources; 1 volumes left out, 1 by id and 0 by content" in (
        captured.out
    )
    assert "not found anywhere: case_7" in captured.out
    assert captured.err == "", "no progress bar where there is no terminal"


def test_parts_and_merge(data, tmp_path, capsys):
    assert main(_curate(data, tmp_path / "whole")) == 0
    for part in (1, 0):
        assert main(["merge", str(tmp_path / "c")]) == 2
        assert main(_curate(data, tmp_path / "c", "--part-id", part, "--num-parts", 2)) == 0
    out = capsys.readouterr().out
    assert f"meddino-pretrain merge {tmp_path / 'c'}" in out
    assert main(["merge", str(tmp_path / "c")]) == 0
    assert corpus_bytes(tmp_path / "c") == corpus_bytes(tmp_path / "whole")


def test_inspect_prints_text_or_json_and_draws(data, tmp_path, capsys):
    main(_curate(data, tmp_path / "c"))
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "c"), "--json", "-o", str(tmp_path / "pictures")]) == 0
    assert json.loads(capsys.readouterr().out)["volumes"] == 3
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {
        *("montage.png", "histograms.png", "views.png")
    }
    assert main(["inspect", str(tmp_path / "c")]) == 0
    assert "3 volumes, 36 slices" in capsys.readouterr().out


def test_seen_says_of_each_image_whether_the_corpus_has_it(data, tmp_path, capsys):
    main(_curate(data, tmp_path / "c"))
    capsys.readouterr()
    new = write_volume(phantom(40), tmp_path / "new.nii.gz")
    part = write_volume(phantom(1)[2:], tmp_path / "part.nrrd")
    assert main(["seen", str(tmp_path / "c"), str(new)]) == 0
    assert capsys.readouterr().out == f"{new}: not seen\n"
    copy, bad = data / "two" / "copy.nii.gz", data / "two" / "bad.nii.gz"
    assert main(["seen", str(tmp_path / "c"), str(copy), str(new), str(part)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"{copy}: exact 1.000 one/case_0, two/copy", f"{new}: not seen"]
    assert re.fullmatch(rf"{part}: near (1\.000|0\.\d{{3}}) one/case_1", lines[2])
    assert main(["seen", str(tmp_path / "c"), str(bad), str(copy)]) == 2, "an answer is missing"
    captured = capsys.readouterr()
    assert captured.out == f"{copy}: exact 1.000 one/case_0, two/copy\n", "the others are told all the same"
    assert "bad.nii.gz cannot be compared" in captured.err
    assert captured.err.splitlines()[-2:] == [
        "1 of 2 images are in the corpus (curate --exclude --images leaves them out): copy.nii.gz",
        "1 of 2 images could not be compared: bad.nii.gz",
    ]
    assert main(["seen", str(tmp_path / "absent"), str(copy)]) == 2


def test_verify_names_damaged_volumes(data, tmp_path, capsys):
    corpus = tmp_path / "c"
    main(_curate(data, corpus))
    capsys.readouterr()
    assert main(["inspect", str(corpus), "--verify"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{corpus}: no damage found\n"
    assert captured.err == "", "no progress bar where there is no terminal"
    path = corpus / "volumes" / "one" / "case_1.b2nd"
    flip_silent_bit(path, 5)
    assert main(["inspect", str(corpus), "--verify"]) == 1
    damaged, total = capsys.readouterr().out.splitlines()
    assert f"slice 6 of {path}" in damaged
    assert total == f"{corpus}: 1 volumes are damaged"
    assert main(["inspect", str(corpus), "--verify", "--json"]) == 2
    assert "leave out --json and -o" in capsys.readouterr().err


def test_sources_lists_what_is_known_and_what_is_found(data, capsys):
    assert main(["sources", "--source", f"one={data / 'one'}"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["one"].split()[-1] == "3"
    assert "two" in lines
    assert main(["sources", "one", "--source", f"one={data / 'one'}"]) == 0
    out = capsys.readouterr().out
    assert "found: 3" in out
    assert "https://example.org/licence" in out


def test_a_corpus_of_nothing_is_an_exit_code(data, tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.nii.gz").write_text("bad")
    assert main(["curate", "--source", f"one={tmp_path / 'bad'}", "--out", str(tmp_path / "c"), "-np", "1"]) == 1
    assert "1 volumes found = 0 curated + 1 rejected" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "c")]) == 0
    assert main(["inspect", str(tmp_path / "c"), "-o", str(tmp_path / "p")]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "BTVC={data}/one"], "BTVC is not a known collection; BTCV is"),
        (["--source", "msd_liver={data}/one"], "msd_liver is not a known collection; MSD-Liver is"),
        (["--source", "TotalSeg={data}/one"], "TotalSegmentator is"),
        (["--source", "our ct={data}/one"], "may have letters"),
        (["--source", "one"], "must be NAME=FOLDER"),
        (["--source", "one={data}/absent"], "does not exist"),
        (["--source", "one={data}/one", "--source", "ONE={data}/two"], "given twice"),
        (["--source", "one={data}/one", "--part-id", "2", "--num-parts", "2"], "--part-id must be 0 to 1"),
        (["--source", "one={data}/one", "--fold", "0"], "--fold selects a fold"),
        (["--source", "one={data}/one", "--exclude", "{data}/splits_final.json"], "name with --fold"),
        (["--source", "one={data}/one", "--images", "{data}/one"], "1 --images and 0 --exclude are given"),
        (["--source", "one={data}/one", "--store-size", "3"], "--store-size"),
        (["--source", "absent.yaml={data}/one"], "absent.yaml"),
    ],
)
def test_mistakes_are_one_line(data, tmp_path, capsys, arguments, message):
    filled = [argument.format(data=data) for argument in arguments]
    assert main(["curate", *filled, "--out", str(tmp_path / "c")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["curate"], ["curate", "--source", "a=b"], ["merge"]])
def test_wrong_usage_prints_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: meddino-pretrain" in capsys.readouterr().err


def test_help_loads_no_torch_and_no_reader():
    script = """
import sys
from pretraining.cli.main import main
try:
    main(["curate", "--help"])
except SystemExit:
    pass
assert not {"torch", "SimpleITK", "pyarrow", "blosc2"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert "--num-parts" in done.stdout


def test_a_source_of_ones_own_needs_no_code(data, tmp_path, capsys):
    record = tmp_path / "clinic.yaml"
    record.write_text(
        "name: clinic\nmodality: CT\nlicence: internal use\nimages: ['/(?P<case>case_[0-9]+)\\.nii\\.gz$']\n"
    )
    assert main(["curate", "--source", f"{record}={data / 'one'}", "--out", str(tmp_path / "c"), "-np", "1"]) == 0
    assert "3 volumes found = 3 curated" in capsys.readouterr().out
    content = json.loads((tmp_path / "c" / "corpus.json").read_text())
    assert content["sources"]["clinic"]["licence"] == "internal use"
    assert main(["sources", str(record), "--source", f"{record}={data / 'one'}"]) == 0
    assert "found: 3" in capsys.readouterr().out


def test_a_folder_of_ones_own_needs_no_record(data, tmp_path, capsys):
    named = ["--source", f"our_ct={data / 'one'}"]
    assert main(["curate", *named, "--out", str(tmp_path / "c"), "-np", "1"]) == 0
    out = capsys.readouterr().out
    assert "3 volumes found = 3 curated" in out
    assert "licence unknown: our_ct" in out
    content = json.loads((tmp_path / "c" / "corpus.json").read_text())
    assert content["sources"]["our_ct"]["licence"] == "unknown"
    assert main(["sources", *named]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert re.search(r"unknown +3$", lines["our_ct"])
    assert main(["sources", "our_ct", *named]) == 0
    out = capsys.readouterr().out
    assert "licence      unknown" in out
    assert "looked for   every image that a reader knows" in out
    assert "found: 3" in out
    assert main(["sources", "our_ct"]) == 2
    assert "our_ct is not a known source" in capsys.readouterr().err
