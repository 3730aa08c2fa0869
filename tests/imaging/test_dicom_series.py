"""A folder of DICOM images is the volume that SimpleITK reads, or is refused with what to do; never half of one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import SegmentationStorage, generate_uid

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.imaging.dicom_series import DicomVolume, find_series, read_dicom_folder
from nnunetv2_meddino.imaging.grid import simpleitk_grid
from tests.conftest import shared_path
from tests.imaging.dicom import PLANES, by_simpleitk, write_series
from tests.pretraining.curation.awkward import PLAIN, write_dicom

MR_STORAGE = "1.2.840.10008.5.1.4.1.1.4"


def setting(**values: Any) -> Callable[[int, Any], None]:
    """Set attributes of every image; callables get the index."""

    def change(i: int, header: Any) -> None:
        for name, value in values.items():
            setattr(header, name, value(i) if callable(value) else value)

    return change


def assert_equal(volume: DicomVolume, image: sitk.Image, atol: float = 0.0) -> None:
    expected = simpleitk_grid(image)
    np.testing.assert_allclose(volume.channels[0], sitk.GetArrayFromImage(image), rtol=0, atol=atol)
    np.testing.assert_allclose(volume.grid.spacing_mm, expected.spacing_mm, rtol=1e-6)
    np.testing.assert_allclose(volume.grid.origin_mm, expected.origin_mm, atol=1e-6)
    np.testing.assert_allclose(volume.grid.directions, expected.directions, atol=1e-6)


@pytest.mark.parametrize("plane", PLANES)
def test_voxels_and_grid_are_simpleitks_in_every_orientation(plane: str, tmp_path: Path) -> None:
    volume = read_dicom_folder(write_series(tmp_path, PLAIN, plane))
    assert_equal(volume, by_simpleitk(tmp_path))
    np.testing.assert_array_equal(volume.channels[0], PLAIN)
    assert volume.channels.dtype == np.int16


@pytest.mark.parametrize("plane", ["axial", "sagittal"])
def test_mr_is_read_as_by_simpleitk(plane: str, tmp_path: Path) -> None:
    change = setting(Modality="MR", SOPClassUID=MR_STORAGE, RescaleSlope=0.37, RescaleIntercept=5)
    volume = read_dicom_folder(write_series(tmp_path, PLAIN, plane, change))
    assert_equal(volume, by_simpleitk(tmp_path), atol=1e-4)
    assert volume.channels.dtype == np.float32


def test_real_ct_is_read_as_by_simpleitk() -> None:
    folder = shared_path("data/unlabelled/dicom_abdomen_crlm1004")
    assert_equal(read_dicom_folder(folder), by_simpleitk(folder))


@pytest.mark.parametrize("plane", ["axial", "axial, head first in the file", "oblique"])
def test_files_are_those_of_the_slices_in_order(plane: str, tmp_path: Path) -> None:
    volume = read_dicom_folder(write_series(tmp_path, PLAIN, plane))
    assert len(volume.files) == len(PLAIN)
    for i, path in enumerate(volume.files):
        image = pydicom.dcmread(path)
        np.testing.assert_array_equal(image.pixel_array - 1024, volume.channels[0, i])
        place = np.array(volume.grid.origin_mm) + i * volume.grid.spacing_mm[0] * volume.grid.directions[0]
        np.testing.assert_allclose(np.array(image.ImagePositionPatient, float), place, atol=1e-6)


def test_every_image_is_rescaled_by_its_own_numbers(tmp_path: Path) -> None:
    """SimpleITK cuts off the fractions here, because the first image has none."""
    write_series(
        tmp_path, PLAIN, change=setting(RescaleSlope=lambda i: 1 + i / 8, RescaleIntercept=lambda i: -1024 + i)
    )
    stored = (PLAIN + 1024).astype(float)
    index = np.arange(len(PLAIN)).reshape(-1, 1, 1)
    np.testing.assert_array_equal(read_dicom_folder(tmp_path).channels[0], stored * (1 + index / 8) - 1024 + index)


def test_whole_values_that_16_bits_do_not_hold_stay_whole(tmp_path: Path) -> None:
    volume = read_dicom_folder(write_series(tmp_path, PLAIN, change=setting(RescaleSlope=100)))
    assert volume.channels.dtype == np.int32
    np.testing.assert_array_equal(volume.channels[0], (PLAIN.astype(int) + 1024) * 100 - 1024)


@pytest.mark.parametrize("signed", [False, True])
def test_bits_beyond_those_stored_do_not_count(signed: bool, tmp_path: Path) -> None:
    """They held overlays once, and of signed values need not be the sign."""
    intercept = 0 if signed else -1024

    def twelve_bits(i: int, header: Any) -> None:
        header.BitsStored, header.HighBit, header.PixelRepresentation = 12, 11, int(signed)
        stored = np.frombuffer(header.PixelData, "<u2") & 0x0FFF
        overlay = np.zeros_like(stored) if signed else np.arange(len(stored), dtype=np.uint16) % 2 << 15
        header.PixelData = (stored | overlay).astype("<u2").tobytes()

    volume = read_dicom_folder(write_series(tmp_path, PLAIN, change=twelve_bits, intercept=intercept))
    np.testing.assert_array_equal(volume.channels[0], PLAIN)
    assert_equal(volume, by_simpleitk(tmp_path))


def test_padding_is_left_as_it_is(tmp_path: Path) -> None:
    voxels = PLAIN.copy()
    voxels[:, :5] = -2000
    volume = read_dicom_folder(write_series(tmp_path, voxels, change=setting(PixelPaddingValue=-976)))
    np.testing.assert_array_equal(volume.channels[0], voxels)


def test_names_and_folders_of_the_files_do_not_matter(tmp_path: Path) -> None:
    write_series(tmp_path / "all", PLAIN)
    for i, path in enumerate(sorted((tmp_path / "all").iterdir())):
        part = tmp_path / "disc" / f"SE{i % 2}"
        part.mkdir(parents=True, exist_ok=True)
        path.rename(part / f"IM{i:04d}")
    (tmp_path / "disc" / "SE0" / ".hidden.dcm").write_text("no image")
    (tmp_path / "disc" / "readme.txt").write_text("no image")
    np.testing.assert_array_equal(read_dicom_folder(tmp_path / "disc").channels[0], PLAIN)


def test_copies_are_used_once(tmp_path: Path) -> None:
    write_series(tmp_path, PLAIN)
    shutil.copy(tmp_path / "image003.dcm", tmp_path / "copy.dcm")
    volume = read_dicom_folder(tmp_path)
    np.testing.assert_array_equal(volume.channels[0], PLAIN)
    assert len(volume.files) == len(PLAIN)


def two_series(folder: Path) -> list[str]:
    """Write two series with descriptions into one folder; return their UIDs."""
    for name, intercept in (("portal venous", -1024), ("arterial", -1000)):
        write_series(folder / name, PLAIN, change=setting(SeriesDescription=name), intercept=intercept)
        for path in (folder / name).iterdir():
            path.rename(folder / f"{name}_{path.name}")
        (folder / name).rmdir()
    return [str(pydicom.dcmread(folder / f"{n}_image000.dcm").SeriesInstanceUID) for n in ("portal venous", "arterial")]


def test_several_series_are_listed_and_one_is_chosen_by_its_uid(tmp_path: Path) -> None:
    venous, arterial = two_series(tmp_path)
    with pytest.raises(DataError, match="holds 2 series where one is expected. Choose one by its UID") as caught:
        read_dicom_folder(tmp_path)
    assert f"{venous}  CT, 20 images: portal venous" in str(caught.value)
    assert f"{arterial}  CT, 20 images: arterial" in str(caught.value)
    chosen = read_dicom_folder(tmp_path, arterial)
    assert {path.name.split("_")[0] for path in chosen.files} == {"arterial"}
    with pytest.raises(DataError, match=r"holds no series 1\.2\.3\.(.|\n)*arterial"):
        read_dicom_folder(tmp_path, "1.2.3")
    assert [series.uid for series in find_series(tmp_path)] == sorted((venous, arterial))


def test_several_series_are_listed_though_one_is_damaged(tmp_path: Path) -> None:
    _, arterial = two_series(tmp_path)
    path = tmp_path / "arterial_image000.dcm"
    name = b"\x10\x00\x10\x00P"  # the tag of PatientName, and half of its type
    path.write_bytes(path.read_bytes().replace(name + b"N", name + b"?"))
    with pytest.raises(DataError, match=rf"{arterial}  CT, 20 images: arterial_image000\.dcm has no readable"):
        read_dicom_folder(tmp_path)


def test_objects_of_other_modalities_are_left_aside(tmp_path: Path) -> None:
    write_series(tmp_path, PLAIN)
    other = pydicom.dcmread(tmp_path / "image000.dcm")
    other.Modality, other.SeriesInstanceUID, other.SOPInstanceUID = "SEG", generate_uid(), generate_uid()
    other.SOPClassUID = SegmentationStorage
    other.save_as(tmp_path / "segmentation.dcm")
    np.testing.assert_array_equal(read_dicom_folder(tmp_path).channels[0], PLAIN)


def test_loss_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_dicom_folder(write_series(tmp_path, PLAIN, change=setting(LossyImageCompression="01")))
    assert "compressed with loss" in caplog.text


REFUSED: dict[str, tuple[Callable[[int, Any], None] | None, int | None, str]] = {
    "gap": (None, 7, r"there are missing: 1 after slice.*Export the series again, complete"),
    "mixed sizes of pixels": (
        setting(PixelSpacing=lambda i: [1, 1] if i else [0.9, 0.9]),
        None,
        r"images differ in PixelSpacing.*Separate what belongs together",
    ),
    "two at one place": (
        setting(ImagePositionPatient=lambda i: [0, 0, i // 2 * 2.5]),
        None,
        r"two images share the position",
    ),
    "some localizers": (
        setting(ImageType=lambda i: ["ORIGINAL", "PRIMARY", "LOCALIZER" if i == 3 else "AXIAL"]),
        None,
        r"1 of 20 images are localizers",
    ),
    "varying distances": (
        setting(ImagePositionPatient=lambda i: [0, 0, i * 5 if i < 10 else 25 + i * 2.5]),
        None,
        r"not on a regular grid.*Separate the parts",
    ),
    "several frames": (setting(NumberOfFrames=5), None, r"holds 5 frames.*dcm2niix"),
    "no position": (setting(ImagePositionPatient=None), None, "no usable ImagePositionPatient"),
    "pixels of no size": (setting(PixelSpacing=[0, 0]), None, "voxels of 2.5 x 0 x 0 mm"),
    "a slope of 0": (setting(RescaleSlope=lambda i: int(i != 5)), None, "RescaleSlope of an image is 0"),
}
"""What is wrong -> how the headers are changed, which file is removed, and the message."""


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_is_no_stack_is_refused_with_what_to_do(wrong: str, tmp_path: Path) -> None:
    change, removed, message = REFUSED[wrong]
    write_series(tmp_path, PLAIN, change=change)
    if removed is not None:
        (tmp_path / f"image{removed:03d}.dcm").unlink()
    with pytest.raises(DataError, match=message) as caught:
        read_dicom_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_tilted_gantry_is_refused_with_what_to_do() -> None:
    with pytest.raises(DataError, match=r"18\.5 degrees to their normal \(a tilted gantry\).*dcm2niix.*_Tilt"):
        read_dicom_folder(shared_path("data/unlabelled/dicom_head_gantry_tilt"))


def test_a_tilt_below_one_pixel_at_the_last_slice_is_rounding(tmp_path: Path) -> None:
    """20 slices at 2.5 mm: 0.5 degrees are 0.41 mm, 2 degrees are 1.66 mm, and pixels are 1 mm wide."""
    read_dicom_folder(write_dicom(tmp_path / "rounding", PLAIN, tilt_deg=0.5))
    with pytest.raises(DataError, match=r"2\.0 degrees.*1\.7 mm beside"):
        read_dicom_folder(write_dicom(tmp_path / "tilted", PLAIN, tilt_deg=2))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    write_series(tmp_path, PLAIN)
    path = tmp_path / "image004.dcm"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(DataError, match=r"image004\.dcm cannot be decoded.*Copy or export the file again"):
        read_dicom_folder(tmp_path)
    path.write_bytes(b"no image" * 100)
    with pytest.raises(DataError, match=r"image004\.dcm has no readable DICOM header"):
        read_dicom_folder(tmp_path)


def test_headers_that_pydicom_stumbles_over_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(TypeError"):
        read_dicom_folder(write_series(tmp_path, PLAIN, change=setting(NumberOfFrames=[1, 2])))


def test_folders_without_a_volume_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_dicom_folder(tmp_path / "absent")
    (tmp_path / "scan.nii.gz").write_text("no DICOM")
    with pytest.raises(DataError, match="holds no CT or MR images"):
        read_dicom_folder(tmp_path)
    with pytest.raises(DataError, match="the series has one image"):
        read_dicom_folder(write_series(tmp_path / "one", PLAIN[:1]))
