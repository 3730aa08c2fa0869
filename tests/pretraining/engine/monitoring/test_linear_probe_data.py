import json

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from nnunetv2_meddino.errors import ConfigurationError, DataError
from pretraining.engine.monitoring.linear_probe_data import IGNORED, read_probe_data
from pretraining.views import IntensityConfig
from tests.pretraining.engine.monitoring.labelled import write_balls, write_image

OPTIONS = {"slices": 8, "seed": 0, "intensity": IntensityConfig(), "size": 48, "patch_size": 8}


@pytest.fixture
def folder(tmp_path):
    return write_balls(tmp_path / "Dataset001_Balls")


def test_no_case_is_fitted_and_judged(folder):
    for seed in range(6):
        data = read_probe_data(folder, **(OPTIONS | {"seed": seed}))
        train, validation = ({labelled.case for labelled in part} for part in (data.train, data.validation))
        assert len(train) == 3
        assert len(validation) == 1
        assert not train & validation
        assert (len(data.train), len(data.validation)) == (6, 2)


def test_the_choice_depends_on_the_seed_alone(folder):
    def names(seed):
        data = read_probe_data(folder, **(OPTIONS | {"seed": seed}))
        return [labelled.image.name for labelled in (*data.train, *data.validation)]

    assert names(3) == names(3)
    assert len({tuple(names(seed)) for seed in range(6)}) > 1


def test_slices_and_labels_are_those_of_the_files(folder):
    data = read_probe_data(folder, **(OPTIONS | {"slices": 40}))
    assert data.names == ("ball", "box")
    for labelled in data.train:
        case, position = labelled.image.name.split()
        z = int(position.split("/")[0]) - 1
        assert z > 0  # slice 0 has no foreground
        stored = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr" / f"{case}.nii.gz")))[z]
        np.testing.assert_array_equal(labelled.classes.numpy(), stored)
        assert labelled.image.input.shape == (1, 48, 48)
        bright = torch.nn.functional.interpolate(labelled.image.unit[None, None], (96, 96), mode="bilinear")[0, 0]
        assert bright[labelled.classes == 1].mean() > bright[labelled.classes == 2].mean() + 0.1
    assert len(data.train) == 15  # of each case all five, no slice twice
    assert len({labelled.image.name for labelled in data.train}) == 15


def test_image_and_labels_stored_in_another_orientation_are_brought_to_the_same(folder, tmp_path):
    expected = read_probe_data(folder, **OPTIONS)
    for path in folder.glob("*Tr/*.nii.gz"):
        turned = sitk.DICOMOrient(sitk.ReadImage(str(path)), "RAI")
        sitk.WriteImage(turned, str(path))
    for one, other in zip(expected.train, read_probe_data(folder, **OPTIONS).train, strict=True):
        torch.testing.assert_close(one.image.input, other.image.input)
        torch.testing.assert_close(one.classes, other.classes)


def test_labels_of_no_class_are_background_and_the_ignore_label_is_left_out(tmp_path):
    folder = write_balls(tmp_path / "d", labels={"background": 0, "thing": 2, "ignore": 1})
    data = read_probe_data(folder, **OPTIONS)
    assert data.names == ("thing",)
    assert {int(v) for labelled in data.train for v in labelled.classes.unique()} == {0, 1, IGNORED}


def test_more_cases_than_slices_read_one_slice_of_some(tmp_path):
    data = read_probe_data(write_balls(tmp_path / "d", cases=12), **OPTIONS)
    assert len({labelled.case for labelled in data.train}) == len(data.train) == 6


def spoil(folder, how):
    labels, image = folder / "labelsTr" / "ball_001.nii.gz", folder / "imagesTr" / "ball_001_0000.nii.gz"
    if how == "no dataset.json":
        (folder / "dataset.json").unlink()
    elif how == "no file_ending":
        (folder / "dataset.json").write_text('{"labels": {"background": 0, "ball": 1}}')
    elif how == "one case":
        for number in range(1, 4):
            (folder / "labelsTr" / f"ball_{number:03d}.nii.gz").unlink()
    elif how == "truncated":
        image.write_bytes(image.read_bytes()[:200])
    elif how == "no hounsfield units":
        write_image(image, np.random.default_rng(0).integers(0, 1000, (6, 96, 96)).astype(np.int16))
    elif how == "another shape":
        write_image(labels, (np.indices((6, 96, 95))[2] > 50).astype(np.uint8))
    elif how == "fractions":
        write_image(labels, np.linspace(0, 1, 6 * 96 * 96, dtype=np.float32).reshape(6, 96, 96))
    elif how == "no foreground":
        for path in (folder / "labelsTr").iterdir():
            write_image(path, np.zeros((6, 96, 96), np.uint8))
    elif how == "regions":
        content = json.loads((folder / "dataset.json").read_text())
        content["labels"] = {"background": 0, "whole": [1, 2], "box": 2}
        (folder / "dataset.json").write_text(json.dumps(content))


def test_a_case_without_labels_gives_no_slice(folder):
    write_image(folder / "labelsTr" / "ball_001.nii.gz", np.zeros((6, 96, 96), np.uint8))
    seen = set()
    for seed in range(3):
        data = read_probe_data(folder, **(OPTIONS | {"seed": seed, "slices": 4}))
        seen |= {labelled.case for labelled in data.train}
    assert seen == {"ball_000", "ball_002", "ball_003"}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no dataset.json", "no dataset for the probe: it has no dataset.json. Name a folder"),
        ("no file_ending", "names no file_ending"),
        ("one case", "has 1 cases .* needs at least 2"),
        ("truncated", r"cannot use ball_001 of .*truncated.*ball_001_0000.nii.gz"),
        ("no hounsfield units", "cannot use ball_001 of .*not_hounsfield"),
        ("another shape", "does not lie on its image"),
        ("fractions", "no labels from 0 to 255"),
        ("no foreground", "show no foreground"),
        ("regions", "shares a label"),
    ],
)
def test_a_data_set_that_cannot_be_used_is_named_with_the_reason(folder, how, message):
    spoil(folder, how)
    with pytest.raises(DataError, match=message):
        read_probe_data(folder, **OPTIONS)


def test_a_data_set_without_classes_is_a_configuration_error(tmp_path):
    folder = write_balls(tmp_path / "d", labels={"background": 0})
    with pytest.raises(ConfigurationError, match="no class but background"):
        read_probe_data(folder, **OPTIONS)
