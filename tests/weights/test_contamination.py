"""Whether weights have seen a case: lists of cases in provenance, and what they do not cover."""

from __future__ import annotations

import copy

import pytest

from nnunetv2_meddino.cli.main import main
from nnunetv2_meddino.weights.contamination import (
    listed_cases,
    merged,
    seen_cases,
    unlisted,
    with_counts,
    without_cases,
)
from nnunetv2_meddino.weights.load import inspect_file, read_weights, write_weights
from tests.weights.checkpoints import SMALL, random_tensors

DINOV3, CT_3M = {"name": "dinov3_vitb16_lvd1689m"}, {"name": "meddinov3_vitb16_ct3m"}
MINE = {"name": "mine", "path": "/w/mine.pth", "derived_from": None}
LISTED = {"LiTS": ["lits_001", "volume-1"], "CT-ORG": ["volume-1", "volume-2"]}


def stage(name="run-stage1", cases=LISTED, **origins):
    """What a stage of a pretraining says of itself."""
    return {"name": name, "derived_from": origins, "corpus": {"hash": "0"}, "seen_cases": cases}


def read_from_file(provenance):
    return {"name": provenance["name"], "path": "/w/a.safetensors", "format": "meddino", "derived_from": provenance}


@pytest.mark.parametrize("wrap", [dict, read_from_file, lambda p: read_from_file(read_from_file(p))])
def test_every_source_that_has_the_id_is_named(wrap):
    cases = ["lits_001", "volume-1", "volume-2", "lits_002", "volume", "LiTS/volume-1", "LiTS/volume-2"]
    assert seen_cases(wrap(stage()), cases) == {
        "lits_001": ("LiTS",),
        "volume-1": ("CT-ORG", "LiTS"),
        "volume-2": ("CT-ORG",),
        "lits_002": (),
        "volume": (),
        "LiTS/volume-1": ("LiTS",),
        "LiTS/volume-2": (),
    }
    assert unlisted(wrap(stage())) == ()


def test_test_images_of_lits_are_found_in_lists_that_name_them_as_the_release_does():
    """Lists made by earlier versions: they have no id of a converted test image."""
    cases = ["lits_test_000", "LiTS/lits_test_012", "lits_test_001", "lits_000"]
    assert seen_cases(stage(cases={"LiTS": ["test-volume-0", "test-volume-12"], "a": ["test-volume-1"]}), cases) == {
        "lits_test_000": ("LiTS",),
        "LiTS/lits_test_012": ("LiTS",),
        "lits_test_001": (),
        "lits_000": (),
    }


@pytest.mark.parametrize("provenance", [DINOV3, CT_3M, MINE, read_from_file(MINE), {"name": "x", "derived_from": "y"}])
def test_without_a_list_nothing_is_known(provenance):
    assert seen_cases(provenance, ["lits_001"]) is None


def test_cases_of_all_that_weights_were_made_from_count():
    first, other = stage(), stage("other", {"LiTS": ["volume-9"], "BTCV": ["img0001"]})
    second = stage("run-stage2", {"BTCV": ["img0002"]}, initial=first, gram_teacher=read_from_file(other))
    found = seen_cases(read_from_file(second), ["lits_001", "volume-9", "img0001", "img0002", "img0003"])
    assert found == {
        "lits_001": ("LiTS",),
        "volume-9": ("LiTS",),
        "img0001": ("BTCV",),
        "img0002": ("BTCV",),
        "img0003": (),
    }
    assert listed_cases(second)["LiTS"] == ["lits_001", "volume-1", "volume-9"]


@pytest.mark.parametrize(
    ("provenance", "names"),
    [
        (DINOV3, ()),
        (CT_3M, ("meddinov3_vitb16_ct3m",)),
        (MINE, ("mine",)),
        ({"licence": "mine"}, ("weights without a name",)),
        (stage(initial=read_from_file(DINOV3)), ()),
        (read_from_file(stage(initial=read_from_file(CT_3M))), ("meddinov3_vitb16_ct3m",)),
        (stage(initial=read_from_file(MINE), gram_teacher=CT_3M), ("mine", "meddinov3_vitb16_ct3m")),
        (stage(initial={"name": "tuned", "derived_from": "dinov3_vitb16_lvd1689m"}), ("tuned",)),
        (stage("run-stage2", initial=without_cases(stage())), ()),
        (stage("run-stage2", initial={"name": "run-stage1", "derived_from": {}, "corpus": {}}), ("run-stage1",)),
    ],
)
def test_weights_whose_images_are_not_listed_are_named(provenance, names):
    assert unlisted(provenance) == names


def test_lists_are_merged_emptied_and_counted():
    assert merged({"b": ["2", "1"]}, {"b": ["1", "3"], "a": ["0"]}) == {"a": ["0"], "b": ["1", "2", "3"]}
    whole = read_from_file(
        stage("run-stage2", {"BTCV": ["img0002"]}, initial=stage(), gram_teacher=read_from_file(MINE))
    )
    before = copy.deepcopy(whole)
    emptied, counted = without_cases(whole), with_counts(whole)
    assert whole == before
    assert listed_cases(emptied) == {}
    assert emptied["derived_from"]["derived_from"]["gram_teacher"] == read_from_file(MINE)
    assert counted["derived_from"]["seen_cases"] == {"BTCV": 1}
    assert counted["derived_from"]["derived_from"]["initial"]["seen_cases"] == {"LiTS": 2, "CT-ORG": 2}


@pytest.fixture
def weights(tmp_path):
    def write(provenance):
        write_weights(tmp_path / "w.safetensors", random_tensors(), SMALL, provenance, "meddino")
        return str(tmp_path / "w.safetensors")

    return write


@pytest.mark.parametrize(
    ("provenance", "cases", "code"),
    [
        (stage(), ["lits_001", "lits_002"], 1),
        (stage(), ["lits_002"], 0),
        (stage(initial=CT_3M), ["lits_001"], 1),
        (stage(initial=CT_3M), ["lits_002"], 2),
        (stage(), [], 2),
        ({"name": "mine"}, ["lits_001"], 2),
    ],
)
def test_exit_code_of_the_command(weights, provenance, cases, code):
    assert main(["weights", "seen", weights(provenance), *cases]) == code


def test_command_says_where_a_case_was_seen_and_what_it_cannot_know(weights, capsys):
    main(["weights", "seen", weights(stage(initial=CT_3M)), "volume-1", "lits_002"])
    said = capsys.readouterr()
    assert said.out.splitlines() == ["volume-1: seen in CT-ORG, LiTS", "lits_002: not listed"]
    assert "meddino-pretrain seen CORPUS IMAGE" in said.err
    assert "meddinov3_vitb16_ct3m names the collections BTCV" in said.err
    assert main(["weights", "seen", "meddinov3_vitb16_ct3m", "lits_002"]) == 2
    assert "names the collections BTCV" in capsys.readouterr().err


def test_command_reads_the_cases_of_a_folder_of_images(weights, tmp_path, capsys):
    images = tmp_path / "imagesTr"
    images.mkdir()
    for name in ("lits_001_0000.nii.gz", "lits_001_0001.nii.gz", "a.b_0003_0000.nrrd", "dataset.json"):
        (images / name).touch()
    assert main(["weights", "seen", weights(stage()), "--images", str(images)]) == 1
    assert capsys.readouterr().out.splitlines() == ["a.b_0003: not listed", "lits_001: seen in LiTS"]
    assert main(["weights", "seen", weights(stage()), "--images", str(tmp_path)]) == 2
    assert "holds no images of nnU-Net" in capsys.readouterr().err


def test_command_refuses_images_whose_names_mean_two_patients(weights, tmp_path, capsys):
    for folder in ("imagesTr", "imagesTs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "lits_001_0000.nii").write_text(folder)
    assert main(["weights", "seen", weights(stage()), "--images", str(tmp_path / "imagesTs")]) == 2
    assert "does not say which patient is meant" in capsys.readouterr().err
    assert main(["weights", "seen", weights(stage()), "--images", str(tmp_path / "imagesTr")]) == 1


def test_inspection_shows_numbers_of_cases_in_place_of_ids(weights):
    path = weights(stage())
    assert '"seen_cases": {"LiTS": 2, "CT-ORG": 2}' in inspect_file(path).metadata["provenance"]
    assert read_weights(path).provenance["derived_from"]["seen_cases"] == LISTED
