"""Records of the collections, and a user's own."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from nnunetv2_meddino.datasets.layouts import LAYOUTS as LAYOUTS_OF_CONVERTERS
from nnunetv2_meddino.datasets.layouts import find_release
from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.weights.catalog import CT_3M
from pretraining.corpus.case_ids import listed_ids
from pretraining.curation.cases import survey
from pretraining.curation.collections import COLLECTIONS, Collection, load_collection
from pretraining.modality import Modality
from tests.pretraining.curation.awkward import PLAIN, write_dicom

LAYOUTS = {
    "BTCV": ("RawData/Training/img/img0001.nii.gz", "img0001", "RawData/Training/label/label0001.nii.gz"),
    "Pancreas-CT": ("Pancreas-CT/PANCREAS_0001/11-24-2015/2-Pancreas", "PANCREAS_0001", "labels/label0001.nii.gz"),
    "CHAOS": ("Train_Sets/CT/1/DICOM_anon", "1", "Train_Sets/MR/1/T2SPIR/DICOM_anon"),
    "LiTS": ("Training Batch 1/volume-0.nii", "volume-0", "Training Batch 1/segmentation-0.nii"),
    "KiTS": ("dataset/case_00000/imaging.nii.gz", "case_00000", "dataset/case_00000/segmentation.nii.gz"),
    "WORD": ("WORD-V0.1.0/imagesVal/word_0001.nii.gz", "word_0001", "WORD-V0.1.0/labelsVal/word_0001.nii.gz"),
    "AbdomenCT-1K": ("part1/Case_00001_0000.nii.gz", "Case_00001", "Mask/Case_00001.nii.gz"),
    "AMOS22": ("amos22/imagesTr/amos_0001.nii.gz", "amos_0001", "amos22/imagesTr/amos_0507.nii.gz"),
    "MSD-Liver": ("Task03_Liver/imagesTr/liver_0.nii.gz", "liver_0", "Task03_Liver/labelsTr/liver_0.nii.gz"),
    "MSD-HepaticVessel": (
        "Task08_HepaticVessel/imagesTs/hepaticvessel_003.nii.gz",
        "hepaticvessel_003",
        "Task08_HepaticVessel/labelsTr/hepaticvessel_001.nii.gz",
    ),
    "CT-ORG": ("OrganSegmentations/volume-0.nii.gz", "volume-0", "OrganSegmentations/labels-0.nii.gz"),
    "TotalSegmentator": ("s0000/ct.nii.gz", "s0000", "s0000/segmentations/liver.nii.gz"),
    "AbdomenAtlas3": ("BDMAP_00000001/ct.nii.gz", "BDMAP_00000001", "BDMAP_00000001/segmentations/liver.nii.gz"),
}


def test_every_collection_of_ct_3m_has_a_record() -> None:
    def plain(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", name.lower().removesuffix(".0"))

    assert {plain(name) for name in COLLECTIONS} == {plain(name) for name in CT_3M}
    for name, source in COLLECTIONS.items():
        assert source.name == name
        assert source.homepage.startswith("http")
        assert source.licence_url.startswith("http")
        assert set(source.contains) <= COLLECTIONS.keys() - {name}
        assert source.expected_volumes is not None or "not checked" in source.note or "published" in source.note


@pytest.mark.parametrize("name", LAYOUTS)
def test_images_are_told_from_labels(name: str) -> None:
    image, case, label = LAYOUTS[name]
    assert COLLECTIONS[name].case_of(image) == case
    assert COLLECTIONS[name].case_of(label) is None


def test_cases_are_found_in_order(tmp_path: Path) -> None:
    for path in ("b/imagesTr/amos_0002.nii.gz", "a/imagesVa/amos_0010.nii.gz", "a/labelsVa/amos_0010.nii.gz"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    cases = survey(COLLECTIONS["AMOS22"], tmp_path).cases
    assert [(case, candidate.path) for case, candidate in cases] == [
        ("amos_0002", tmp_path / "b/imagesTr/amos_0002.nii.gz"),
        ("amos_0010", tmp_path / "a/imagesVa/amos_0010.nii.gz"),
    ]
    with pytest.raises(DataError, match="is not a folder"):
        survey(COLLECTIONS["AMOS22"], tmp_path / "nowhere")


@pytest.mark.parametrize("end", ["(/|$)", "/", ""])
def test_series_of_one_patient_have_names_of_their_own(tmp_path: Path, end: str) -> None:
    source = Collection(**{key: "" for key in ("title", "homepage", "licence", "licence_url", "how")}, name="own",
                    images=(rf"/(?P<case>patient\d+){end}",))  # fmt: skip
    for folder in ("patient1/plain", "patient1/contrast", "patient2"):
        write_dicom(tmp_path / folder, PLAIN[:2])
    names = [case for case, _ in survey(source, tmp_path).cases]
    assert names == [case for case, _ in survey(source, tmp_path).cases]
    assert len(set(names)) == 3
    assert [re.sub("-[0-9a-f]{8}$", "", name) for name in names] == ["patient1", "patient1", "patient2"]
    assert names[2] == "patient2"


RELEASES = {
    "amos22": ("AMOS22", "imagesTr/amos_{:04d}.nii.gz", "labelsTr/amos_{:04d}.nii.gz"),
    "btcv": ("BTCV", "RawData/Training/img/img{:04d}.nii.gz", "RawData/Training/label/label{:04d}.nii.gz"),
    "kits23": ("KiTS", "dataset/case_{:05d}/imaging.nii.gz", "dataset/case_{:05d}/segmentation.nii.gz"),
    "lits": ("LiTS", "Training Batch 1/volume-{}.nii", "Training Batch 1/segmentation-{}.nii"),
}
TEST_IMAGES = {
    "amos22": ("imagesTs/amos_{:04d}.nii.gz", (2, 41)),
    "btcv": ("RawData/Testing/img/img{:04d}.nii.gz", (61, 80)),
    "lits": ("LITS-Challenge-Test-Data/test-volume-{}.nii", (1, 40)),
}


@pytest.mark.parametrize("converter", LAYOUTS_OF_CONVERTERS)
def test_cases_of_converted_data_sets_have_the_ids_that_lists_of_them_use(converter: str, tmp_path: Path) -> None:
    """The converter and the corpus look at the same release; a list made by the one must be understood by the other."""
    name, *patterns = RELEASES[converter]
    paths = [pattern.format(number) for pattern in patterns for number in (1, 40, 123)]
    tests, numbers = TEST_IMAGES.get(converter, ("", ()))
    for path in [*paths, *(tests.format(number) for number in numbers)]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    release = find_release(LAYOUTS_OF_CONVERTERS[converter], tmp_path)
    converted = {case.image: case.name for case in release.cases}
    converted |= {image: case for case, image in release.test_images.items()}
    found = survey(COLLECTIONS[name], tmp_path).cases
    assert len(converted) == len(set(converted.values())) == len(found) == 3 + len(numbers)
    for case, candidate in found:
        assert converted[candidate.path] in listed_ids(case, COLLECTIONS[name].aliases)
        others = set(converted.values()) - {converted[candidate.path]}
        assert not others & listed_ids(case, COLLECTIONS[name].aliases)


@pytest.mark.parametrize(
    ("case", "ids"),
    [
        ("volume-7", {"volume-7", "lits_007"}),
        ("volume-1234", {"volume-1234", "lits_1234"}),
        ("test-volume-7", {"test-volume-7", "lits_test_007"}),
        ("volume-07", {"volume-07"}),
        ("volume-", {"volume-"}),
        ("volume-7-0a1b2c3d", {"volume-7-0a1b2c3d", "volume-7", "lits_007"}),
    ],
)
def test_ids_by_which_a_case_may_be_listed(case: str, ids: set[str]) -> None:
    assert listed_ids(case, COLLECTIONS["LiTS"].aliases) == ids


def test_a_patient_is_listed_for_all_its_series(tmp_path: Path) -> None:
    """As ``survey`` names them: were the two ever to differ, a listed patient would be in the corpus."""
    for folder in ("patient1/plain", "patient1/contrast"):
        write_dicom(tmp_path / folder, PLAIN[:2])
    own = replace(COLLECTIONS["LiTS"], images=(r"/(?P<case>patient\d+)(/|$)",))
    cases = [case for case, _ in survey(own, tmp_path).cases]
    assert len(set(cases)) == 2
    assert all(listed_ids(case, {}) == {case, "patient1"} for case in cases)


def test_a_record_in_yaml_is_read(tmp_path: Path) -> None:
    path = tmp_path / "clinic.yaml"
    path.write_text("name: clinic\nmodality: mr\nimages: '/(?P<case>[^/]+)\\.nii\\.gz$'\nexpected_volumes: 12\n"
                    "aliases: {'c_{n:03d}': 'x{n}'}\n")  # fmt: skip
    source = load_collection(path)
    assert (source.name, source.modality) == ("clinic", Modality.MR)
    assert source.case_of("sub/x1.nii.gz") == "x1"
    assert source.expected_volumes == 12
    assert listed_ids("x1", source.aliases) == {"x1", "c_001"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("name: [", "cannot be read"),
        ("- 1", "is not a record"),
        ("name: a\nmodality: CT", "lacks images"),
        ("name: a\nmodality: CT\nimages: '/x'\nfoo: 1", "unknown fields foo"),
        ("name: a\nmodality: CT\nimages: '/x'", "no group"),
        ("name: a\nmodality: CT\nimages: '/(?P<case>x'", "not a regular expression"),
        ("name: a\nmodality: PET\nimages: '/(?P<case>x)'", "PET|pet"),
        ("name: a\nmodality: MR\nintensity: ct\nimages: '/(?P<case>x)'", "not for modality MR"),
        ("name: a/b\nmodality: CT\nimages: '/(?P<case>x)'", "may have letters"),
        ("name: 12\nmodality: CT\nimages: '/(?P<case>x)'", "must be a text"),
        ("name: a\nmodality: CT\nimages: 3", "list of texts"),
        ("name: a\nmodality: CT\nimages: '/(?P<case>x)'\nexpected_volumes: many", "must be a number"),
        ("name: a\nmodality: CT\nimages: '/(?P<case>x)'\naliases: [a]", "lines of 'other id: case id'"),
        ("name: a\nmodality: CT\nimages: '/(?P<case>x)'\naliases: {'b_{n}': 'x'}", "must have one number"),
        ("name: a\nmodality: CT\nimages: '/(?P<case>x)'\naliases: {'b_{n}_{n}': 'x{n}'}", "must have one number"),
    ],
)
def test_wrong_records_are_explained(record: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "clinic.yaml"
    path.write_text(record)
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_collection(path)
    assert str(path) in str(caught.value)
