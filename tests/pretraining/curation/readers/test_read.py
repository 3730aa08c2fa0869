"""Files become canonical volumes; independent readers (nibabel, pydicom's pixels, SimpleITK) are the reference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from pretraining.curation.readers.read import find_candidates, read_volume
from pretraining.curation.volume import Rejected, Volume
from pretraining.modality import Modality
from tests.conftest import shared_path
from tests.pretraining.curation.awkward import PLAIN, SHAPE, SPACING, write_dicom, write_nifti

NIFTIS = [
    *("unlabelled/abdomen_3mm_int32.nii.gz", "unlabelled/chest_lidc0314_1mm.nii.gz"),
    *("unlabelled/chest_lidc0314_aniso8mm.nii.gz", "unlabelled/mr_t1_cervical_cord.nii.gz"),
    "unlabelled/mr_t2_cervical_cord_sagittal.nii.gz",
    *(f"Dataset900_CTMini/images{part}" for part in ("Tr", "Ts")),
    *(f"Dataset902_CTSarcoma/images{part}" for part in ("Tr", "Ts")),
]


def canonical_by_nibabel(path: Path) -> tuple[NDArray[np.float64], list[float]]:
    """Voxels and spacing in (z, y, x), from nibabel's own reorientation to left, posterior, superior."""
    image = nibabel.load(path)
    change = ornt_transform(io_orientation(image.affine), axcodes2ornt("LPS"))
    turned = image.as_reoriented(change)
    return turned.get_fdata().transpose(2, 1, 0), [float(size) for size in turned.header.get_zooms()[::-1]]


def read(path: Path, modality: Modality = Modality.CT) -> Volume:
    (candidate,) = find_candidates(path)
    return read_volume(candidate, modality)


@pytest.mark.parametrize("relative", NIFTIS)
def test_nifti_is_oriented_as_by_nibabel(relative: str) -> None:
    path = shared_path(f"data/{relative}")
    for candidate in find_candidates(path if path.is_dir() else path.parent):
        if not path.is_dir() and candidate.path != path:
            continue
        volume = read_volume(candidate, Modality.MR if "mr_" in path.name else Modality.CT)
        expected, spacing = canonical_by_nibabel(candidate.path)
        assert volume.voxels.shape == expected.shape
        np.testing.assert_allclose(volume.spacing_mm, spacing, rtol=1e-5)
        landmark = len(expected) // 3
        np.testing.assert_array_equal(volume.voxels[landmark], expected[landmark])
        np.testing.assert_array_equal(volume.voxels, expected)


@pytest.mark.parametrize("name", ["thigh_sts029.nrrd", "limb_sts048.mha"])
def test_nrrd_and_metaimage_equal_simpleitk(name: str, tmp_path: Path) -> None:
    shutil.copy(shared_path(f"data/unlabelled/{name}"), tmp_path)
    volume = read(tmp_path)
    image = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / name)), "LPS")
    np.testing.assert_array_equal(volume.voxels, sitk.GetArrayFromImage(image))
    np.testing.assert_allclose(volume.spacing_mm, image.GetSpacing()[::-1])


@pytest.mark.parametrize("ending", ["nii.gz", "nii", "nrrd", "nhdr", "mha", "mhd"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PSR", "SAL", "IPR"])
def test_every_format_and_orientation_gives_the_same_voxels(
    ending: str, compressed: bool, orientation: str, tmp_path: Path
) -> None:
    image = sitk.GetImageFromArray(PLAIN)
    image.SetSpacing(SPACING[::-1])
    sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(tmp_path / f"scan.{ending}"), compressed)
    volume = read(tmp_path)
    np.testing.assert_array_equal(volume.voxels, PLAIN)
    np.testing.assert_allclose(volume.spacing_mm, SPACING, rtol=1e-6)
    assert volume.metadata["stored_orientation"] == orientation
    assert volume.flags == (() if orientation == "LPS" else ("reoriented",))


@pytest.mark.parametrize("dtype", ["<i4", ">i2", ">f4", "<f8"])
def test_stored_types_do_not_matter(dtype: str, tmp_path: Path) -> None:
    affine = np.diag([-1.0, -1.0, 2.5, 1.0])
    header = nibabel.Nifti1Header(endianness=dtype[0])
    image = nibabel.Nifti1Image(PLAIN.T.astype(dtype), affine, header)
    image.header.set_data_dtype(np.dtype(dtype))
    image.to_filename(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(read(tmp_path).voxels, PLAIN)


def test_dicom_and_nifti_of_one_scan_give_the_same_voxels(tmp_path: Path) -> None:
    """The NIfTI file is made from pydicom's pixels, stacked by position."""
    folder = shared_path("data/unlabelled/dicom_abdomen_crlm1004")
    slices = sorted((pydicom.dcmread(path) for path in folder.glob("*.dcm")), key=lambda s: s.ImagePositionPatient[2])
    pixels = np.stack([s.pixel_array * s.RescaleSlope + s.RescaleIntercept for s in slices]).astype(np.int16)
    y, x = slices[0].PixelSpacing
    step = slices[1].ImagePositionPatient[2] - slices[0].ImagePositionPatient[2]
    first = slices[0].ImagePositionPatient
    affine = np.array([[-x, 0, 0, -first[0]], [0, -y, 0, -first[1]], [0, 0, step, first[2]], [0, 0, 0, 1]], float)
    write_nifti(tmp_path / "scan.nii.gz", pixels, affine)
    from_dicom, from_nifti = read(folder), read(tmp_path)
    np.testing.assert_array_equal(from_dicom.voxels, from_nifti.voxels)
    np.testing.assert_allclose(from_dicom.spacing_mm, from_nifti.spacing_mm, rtol=1e-6)
    expected, _ = canonical_by_nibabel(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(from_dicom.voxels, np.where(expected == -3024, -1024, expected))
    assert from_dicom.flags == from_nifti.flags == ("padding_replaced",)


def test_tilted_head_is_flagged() -> None:
    volume = read(shared_path("data/unlabelled/dicom_head_gantry_tilt"))
    assert "gantry_tilt" in volume.flags
    assert volume.metadata["gantry_tilt_deg"] == pytest.approx(18.5, abs=0.05)
    assert volume.spacing_mm == pytest.approx((4.22, 0.48828, 0.48828), abs=1e-3)
    bottom = pydicom.dcmread(shared_path("data/unlabelled/dicom_head_gantry_tilt/01.dcm")).pixel_array
    np.testing.assert_array_equal(volume.voxels[0], np.where(bottom <= -1500, -1024, bottom))


def test_series_in_one_folder_are_candidates_of_their_own(tmp_path: Path) -> None:
    for part in ("a", "b"):
        write_dicom(tmp_path / part, PLAIN)
        for path in (tmp_path / part).iterdir():
            path.rename(tmp_path / f"{part}_{path.stem}")  # no ending: known by the mark in the file
        (tmp_path / part).rmdir()
    write_nifti(tmp_path / "sub" / "scan.nii.gz", PLAIN)
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / ".hidden.nii.gz").write_text("")
    candidates = find_candidates(tmp_path)
    assert [candidate.kind for candidate in candidates] == ["dicom", "dicom", "nifti"]
    assert candidates[0].series_uid != candidates[1].series_uid
    assert [len(candidate.files) for candidate in candidates] == [SHAPE[0], SHAPE[0], 1]
    assert candidates == find_candidates(tmp_path)
    for candidate in candidates:
        np.testing.assert_array_equal(read_volume(candidate, Modality.CT).voxels, PLAIN)


@pytest.mark.parametrize("compressor", ["JPEG2000", "JPEG"])
def test_compressed_dicom_is_read(compressor: str, tmp_path: Path) -> None:
    """The pixels are compressed by GDCM; JPEG stands for its lossless process 14."""
    (tmp_path / "series").mkdir()
    writer = sitk.ImageFileWriter()
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.SetFileName(str(tmp_path / "pixels.dcm"))

    def change(i: int, header: pydicom.Dataset) -> None:
        writer.Execute(sitk.GetImageFromArray(PLAIN[i : i + 1] + np.int16(1024)))
        packed = pydicom.dcmread(tmp_path / "pixels.dcm")
        header.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
        header["PixelData"] = packed["PixelData"]

    write_dicom(tmp_path / "series", PLAIN, change)
    header = pydicom.dcmread(tmp_path / "series" / "image000.dcm")
    assert header.file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(read(tmp_path / "series").voxels, PLAIN)


def test_truncated_compressed_dicom_is_refused(tmp_path: Path) -> None:
    write_dicom(tmp_path, PLAIN)
    path = tmp_path / "image004.dcm"
    header = pydicom.dcmread(path)
    header.compress(pydicom.uid.RLELossless)
    header.save_as(path)
    np.testing.assert_array_equal(read(tmp_path).voxels, PLAIN)
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(Rejected) as caught:
        read(tmp_path)
    assert caught.value.reason in ("truncated", "corrupt")


def test_rescale_may_differ_between_slices(tmp_path: Path) -> None:
    def change(i: int, header: pydicom.Dataset) -> None:
        header.RescaleIntercept = -1024 + i
        header.PixelData = (PLAIN[i].astype(np.int32) + 1024 - i).astype("<i2").tobytes()

    np.testing.assert_array_equal(read(write_dicom(tmp_path, PLAIN, change)).voxels, PLAIN)


def test_x_ray_picture_is_one_slice(tmp_path: Path) -> None:
    def change(_: int, header: pydicom.Dataset) -> None:
        header.Modality, header.PhotometricInterpretation = "DX", "MONOCHROME1"
        del header.ImageOrientationPatient, header.ImagePositionPatient

    write_dicom(tmp_path, PLAIN[:2], change, intercept=None)
    candidates = find_candidates(tmp_path)
    assert len(candidates) == 2
    volume = read_volume(candidates[0], Modality.XR)
    assert volume.modality == "XR"
    low, high = int(PLAIN[0].min()), int(PLAIN[0].max())
    np.testing.assert_array_equal(volume.voxels, (low + high - PLAIN[:1].astype(int)))


def test_metadata_is_json_without_anything_personal(tmp_path: Path) -> None:
    volume = read(write_dicom(tmp_path, PLAIN))
    text = json.dumps(volume.metadata)
    assert volume.metadata["manufacturer"] == "Maker"
    assert "Doe" not in text
    assert "4711" not in text
    assert volume.files == tuple(sorted(tmp_path.iterdir()))


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nrrd", "mha", "dcm"])
def test_random_damage_to_headers_never_crashes(ending: str, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(PLAIN)
    if ending == "dcm":
        write_dicom(tmp_path, PLAIN[:3])
    else:
        sitk.WriteImage(image, str(tmp_path / f"scan.{ending}"))
    path = sorted(tmp_path.iterdir())[0]
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        content = bytearray(whole)
        for at in rng.integers(0, min(len(content), 1200 if ending == "dcm" else 400), 3):
            content[at] = rng.integers(256)
        path.write_bytes(content)
        for candidate in find_candidates(tmp_path):
            try:
                read_volume(candidate, Modality.CT)
                outcomes.add("read")
            except Rejected as rejected:
                outcomes.add(rejected.reason)
    assert outcomes - {"read"}


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    write_nifti(tmp_path / "elsewhere" / "scan.nii.gz", PLAIN)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    assert [c.path.name for c in find_candidates(tmp_path / "data")] == ["scan.nii.gz"]


@pytest.mark.parametrize(
    ("space", "signs"),
    [("left-posterior-superior", (1, 1)), ("right-anterior-superior", (-1, -1)), ("LAS", (1, -1))],
)
def test_spaces_of_nrrd_are_told_apart(space: str, signs: tuple[int, int], tmp_path: Path) -> None:
    header = (
        f"NRRD0004\ntype: int16\ndimension: 3\nspace: {space}\nsizes: {SHAPE[2]} {SHAPE[1]} {SHAPE[0]}\n"
        f"space directions: ({signs[0]},0,0) (0,{signs[1]},0) (0,0,2.5)\nencoding: raw\nendian: big\n\n"
    )
    (tmp_path / "scan.nrrd").write_bytes(header.encode() + PLAIN.astype(">i2").tobytes())
    volume = read(tmp_path)
    np.testing.assert_array_equal(volume.voxels, PLAIN)
    assert volume.flags == ()
