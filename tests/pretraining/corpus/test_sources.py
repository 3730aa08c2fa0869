"""Records of the collections, and a user's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.weights.catalog import CT_3M
from pretraining.corpus.sources import SOURCES, Source, find_cases, load_source_file
from pretraining.corpus.volume import IntensityRule
from tests.pretraining.corpus.awkward import PLAIN, write_dicom

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

    assert {plain(name) for name in SOURCES} == {plain(name) for name in CT_3M}
    for name, source in SOURCES.items():
        assert source.name == name
        assert source.homepage.startswith("http")
        assert source.licence_url.startswith("http")
        assert set(source.contains) <= SOURCES.keys() - {name}
        assert source.expected_volumes is not None or "not checked" in source.note or "published" in source.note


@pytest.mark.parametrize("name", LAYOUTS)
def test_images_are_told_from_labels(name: str) -> None:
    image, case, label = LAYOUTS[name]
    assert SOURCES[name].case_of(image) == case
    assert SOURCES[name].case_of(label) is None


def test_cases_are_found_in_order(tmp_path: Path) -> None:
    for path in ("b/imagesTr/amos_0002.nii.gz", "a/imagesVa/amos_0010.nii.gz", "a/labelsVa/amos_0010.nii.gz"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    cases = find_cases(SOURCES["AMOS22"], tmp_path)
    assert [(case, candidate.path) for case, candidate in cases] == [
        ("amos_0002", tmp_path / "b/imagesTr/amos_0002.nii.gz"),
        ("amos_0010", tmp_path / "a/imagesVa/amos_0010.nii.gz"),
    ]
    with pytest.raises(DataError, match="is no folder"):
        find_cases(SOURCES["AMOS22"], tmp_path / "nowhere")


def test_series_of_one_patient_have_names_of_their_own(tmp_path: Path) -> None:
    source = Source(**{key: "" for key in ("title", "homepage", "licence", "licence_url", "how")}, name="own",
                    images=(r"/(?P<case>patient\d+)(/|$)",))  # fmt: skip
    for folder in ("patient1/plain", "patient1/contrast", "patient2"):
        write_dicom(tmp_path / folder, PLAIN[:2])
    names = [case for case, _ in find_cases(source, tmp_path)]
    assert names == [case for case, _ in find_cases(source, tmp_path)]
    assert len(set(names)) == 3
    assert [re.sub("-[0-9a-f]{8}$", "", name) for name in names] == ["patient1", "patient1", "patient2"]
    assert names[2] == "patient2"


def test_a_record_in_yaml_is_read(tmp_path: Path) -> None:
    path = tmp_path / "clinic.yaml"
    path.write_text("name: clinic\nmodality: mr\nimages: '/(?P<case>[^/]+)\\.nii\\.gz$'\nexpected_volumes: 12\n")
    source = load_source_file(path)
    assert (source.name, source.modality, source.intensity) == ("clinic", "MR", IntensityRule.MR)
    assert source.case_of("sub/x1.nii.gz") == "x1"
    assert source.expected_volumes == 12


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("name: [", "cannot be read"),
        ("- 1", "holds no record"),
        ("name: a\nmodality: CT", "lacks images"),
        ("name: a\nmodality: CT\nimages: '/x'\nfoo: 1", "unknown fields foo"),
        ("name: a\nmodality: CT\nimages: '/x'", "no group"),
        ("name: a\nmodality: CT\nimages: '/(?P<case>x'", "no regular expression"),
        ("name: a\nmodality: PET\nimages: '/(?P<case>x)'", "PET|pet"),
        ("name: a\nmodality: MR\nintensity: ct\nimages: '/(?P<case>x)'", "not for modality MR"),
        ("name: a/b\nmodality: CT\nimages: '/(?P<case>x)'", "may have letters"),
        ("name: 12\nmodality: CT\nimages: '/(?P<case>x)'", "must be a text"),
        ("name: a\nmodality: CT\nimages: 3", "list of texts"),
        ("name: a\nmodality: CT\nimages: '/(?P<case>x)'\nexpected_volumes: many", "must be a number"),
    ],
)
def test_wrong_records_are_explained(record: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "clinic.yaml"
    path.write_text(record)
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_source_file(path)
    assert str(path) in str(caught.value)
