"""The one reader of images: what it takes, in which unit and order, and what it refuses."""

from __future__ import annotations

import gzip
import locale
import warnings
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.features.image import read_slice
from nnunetv2_meddino.imaging.io import read_grid, read_image, read_picture
from nnunetv2_meddino.imaging.segmentation import check_same_grid, read_segmentation

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (6, 40, 50)).astype(np.int16)
AFFINE = np.diag([-0.7, -0.9, 2.5, 1.0])


def write(path: Path, voxels: np.ndarray = VOXELS, *, vector: bool = False) -> Path:
    image = sitk.GetImageFromArray(voxels, isVector=vector)
    sitk.WriteImage(image, path, True)
    return path


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".gipl.gz", ".mgz", ".hdr"])
def test_truncated_volumes_are_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"ct{ending}"
    if ending == ".mgz":
        nibabel.save(nibabel.MGHImage(VOXELS.T, AFFINE), path)
    else:
        write(path)
    data = path.with_suffix(".img") if ending == ".hdr" else path
    data.write_bytes(data.read_bytes()[:-40])
    if ending == ".nii.gz":
        assert sitk.ReadImage(path).GetSize() == (50, 40, 6), "the trap: SimpleITK says nothing"
    with pytest.raises(DataError, match=f"ct{ending} cannot be read"):
        read_image(path)


@pytest.mark.parametrize("reader", [read_picture, read_segmentation, read_slice])
def test_every_reader_refuses_what_read_image_refuses(tmp_path: Path, reader) -> None:
    path = write(tmp_path / "ct.nii.gz")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"ct\.nii\.gz cannot be read"):
        reader(path)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_one_changed_byte_of_compressed_data_is_refused(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"ct{ending}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"ct{ending} cannot be read"):
        read_image(path)


def test_a_damaged_gzip_stream_is_refused_although_its_length_is_right(tmp_path: Path) -> None:
    path = write(tmp_path / "ct.nii.gz")
    packed = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
    packed[-200] ^= 1  # stored, not compressed: only the checksum can tell
    path.write_bytes(packed)
    with pytest.raises(DataError, match=r"ct\.nii\.gz cannot be read.*CRC"):
        read_image(path)


@pytest.mark.parametrize(
    ("ending", "place", "value"),
    [
        (".nii", 70, b"\x42\x42"),
        (".nii", 108, np.float32(201).tobytes()),
        (".hdr", 70, b"\x42\x42"),
    ],
    ids=["type", "offset", "type in a pair"],
)
def test_a_damaged_header_is_refused_by_name(tmp_path: Path, ending: str, place: int, value: bytes) -> None:
    path = write(tmp_path / f"ct{ending}")
    content = bytearray(path.read_bytes())
    content[place : place + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"ct{ending} cannot be read"):
        read_image(path)


def test_compressed_metaimages_with_data_in_a_second_file_are_checked_and_read(tmp_path: Path) -> None:
    path = write(tmp_path / "ct.mhd")
    np.testing.assert_array_equal(read_image(path).channels[0], VOXELS)
    data = tmp_path / "ct.zraw"
    content = bytearray(data.read_bytes())
    content[-2] ^= 1  # of the checksum
    data.write_bytes(content)
    with pytest.raises(DataError, match=r"ct\.mhd cannot be read"):
        read_image(path)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".bmp", ".tif", ".vtk"])
def test_truncated_pictures_are_refused(tmp_path: Path, ending: str) -> None:
    voxels = np.random.default_rng(0).integers(0, 255, (5, 60, 70)).astype(np.uint8)
    path = write(tmp_path / f"p{ending}", voxels if ending in (".tif", ".vtk") else voxels[0])
    assert read_image(path).channels.shape[-2:] == (60, 70)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    with pytest.raises(DataError, match=f"p{ending} cannot be read"):
        read_image(path)


@pytest.mark.parametrize("image_class", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("shear", [0, 0.2])
@pytest.mark.parametrize(("unit", "in_mm"), [("mm", 1), ("meter", 1000), ("micron", 0.001)])
def test_units_of_nifti_count_in_spacing_and_origin(
    tmp_path: Path, image_class, shear, unit: str, in_mm: float
) -> None:
    affine = AFFINE / in_mm
    affine[0, 1] = shear / in_mm
    affine[:3, 3] = np.array([10, 20, 30]) / in_mm
    affine[3, 3] = 1
    image = image_class(VOXELS.T, affine)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "ct.nii.gz")
    read = read_image(tmp_path / "ct.nii.gz")
    assert read.grid.spacing_mm == pytest.approx((2.5, np.hypot(0.9, shear), 0.7), rel=1e-5)
    assert read.grid.origin_mm == pytest.approx((-10, -20, 30), rel=1e-5)
    np.testing.assert_array_equal(read.channels[0], VOXELS)
    shape, grid = read_grid(tmp_path / "ct.nii.gz")
    assert shape == VOXELS.shape
    assert (grid.spacing_mm, grid.origin_mm) == (read.grid.spacing_mm, read.grid.origin_mm)


def test_label_maps_in_metres_and_in_millimetres_lie_on_one_grid(tmp_path: Path) -> None:
    for name, unit, in_mm in (("a", "mm", 1), ("b", "meter", 1000)):
        image = nibabel.Nifti1Image((VOXELS.T > 0).astype(np.uint8), np.diag([*(np.diag(AFFINE)[:3] / in_mm), 1]))
        image.header.set_xyzt_units(unit)
        nibabel.save(image, tmp_path / f"{name}.nii.gz")
    check_same_grid(*(read_segmentation(tmp_path / f"{name}.nii.gz") for name in "ab"))


def test_features_show_a_nifti_whose_axes_are_not_perpendicular(tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[0, 1] = 0.003
    nibabel.save(nibabel.Nifti1Image(VOXELS.T, affine), tmp_path / "ct.nii.gz")
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(tmp_path / "ct.nii.gz")
    shown = read_slice(tmp_path / "ct.nii.gz", 2)
    np.testing.assert_array_equal(shown.pixels[0], VOXELS[2])
    assert shown.spacing_mm == pytest.approx((0.9, 0.7), rel=1e-4)


def test_colours_and_series_are_channels(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rgb = random.integers(0, 255, (4, 20, 30, 3)).astype(np.uint8)
    for name in ("v.mha", "v.nii.gz"):
        image = read_image(write(tmp_path / name, rgb, vector=True))
        np.testing.assert_array_equal(image.channels, np.moveaxis(rgb, -1, 0))
        assert image.vector
    image = read_image(write(tmp_path / "p.png", rgb[0], vector=True))
    np.testing.assert_array_equal(image.channels, np.moveaxis(rgb[0], -1, 0)[:, None])
    image = read_image(write(tmp_path / "p2.nii.gz", rgb[0], vector=True))
    np.testing.assert_array_equal(image.channels, np.moveaxis(rgb[0], -1, 0)[:, None])
    series = random.normal(size=(2, 4, 20, 30)).astype(np.float32)
    image = read_image(write(tmp_path / "s.nii.gz", series))
    np.testing.assert_array_equal(image.channels, series)
    assert not image.vector
    flat = read_image(write(tmp_path / "f.nii.gz", series[0, 0]))
    np.testing.assert_array_equal(flat.channels, series[:1, :1])
    assert flat.grid.in_plane


def test_a_png_of_16_bits_keeps_the_values_above_32767(tmp_path: Path) -> None:
    stored = np.array([[0, 31768, 32768, 65535]], np.uint16)  # CT is published with 32768 added
    PIL.Image.fromarray(stored).save(tmp_path / "slice.png")
    np.testing.assert_array_equal(read_image(tmp_path / "slice.png").channels, stored[np.newaxis, np.newaxis])


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha"])
def test_values_that_are_not_finite_are_refused_with_their_number(tmp_path: Path, ending: str) -> None:
    voxels = VOXELS.astype(np.float32)
    voxels[2, 3, 4], voxels[5, 6, 7:9] = np.nan, np.inf
    path = write(tmp_path / f"ct{ending}", voxels)
    with pytest.raises(DataError, match=rf"ct{ending} holds values that are not finite: 3 of 12000"):
        read_picture(path)
    assert np.isnan(read_image(path).channels[0, 2, 3, 4])


def test_complex_values_are_refused(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(VOXELS.T.astype(np.complex64), AFFINE), tmp_path / "c.nii")
    with pytest.raises(DataError, match=r"c\.nii holds values of type complex64"):
        read_picture(tmp_path / "c.nii")


def test_scaled_values_are_those_that_the_header_means(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros(VOXELS.T.shape, np.int16), AFFINE)
    image.header.set_slope_inter(2, -1024)
    content = bytearray(image.to_bytes())
    content[352:] = VOXELS.tobytes()
    content[112:120] = np.array([2, -1024], "<f4").tobytes()
    (tmp_path / "ct.nii.gz").write_bytes(gzip.compress(bytes(content)))
    np.testing.assert_array_equal(read_image(tmp_path / "ct.nii.gz").channels[0], VOXELS * 2.0 - 1024)


def write_dicom(path: Path, kind: str, modality: str) -> Path:
    """Write a DICOM object of one bit per pixel, of which SimpleITK makes a picture of 0 and 255."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = kind
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Modality, dataset.PatientID = modality, "nobody"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    if modality == "SEG":
        dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 16, 16, 2
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 1, 0
        dataset.PixelData = np.packbits(np.arange(512) % 3 == 0, bitorder="little").tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize(
    ("reader", "name"),
    [(read_image, "seg.dcm"), (read_image, "IM000001"), (read_grid, "seg.dcm"), (read_segmentation, "seg.dcm")],
)
def test_a_dicom_segmentation_is_refused_with_what_to_do(tmp_path: Path, reader, name: str) -> None:
    path = write_dicom(tmp_path / name, pydicom.uid.SegmentationStorage, "SEG")
    assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(path)))) == {0, 255}, "the trap"
    with pytest.raises(DataError, match=f"{name} is a DICOM segmentation; convert it to NIfTI with .*one label map"):
        reader(path)


def test_dicom_contours_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "rt.dcm", pydicom.uid.RTStructureSetStorage, "RTSTRUCT")
    with pytest.raises(DataError, match=r"rt\.dcm is a DICOM object of contours or surfaces.*label map"):
        read_picture(path)


def test_a_dicom_slice_is_an_image(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write(tmp_path / "slice.dcm", VOXELS[0])
    np.testing.assert_array_equal(read_picture(path).channels[0, 0], VOXELS[0])


def test_headers_alone_that_are_unreadable_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.nii.gz").write_text("no image")
    for name, message in (("text.nii.gz", "cannot be read"), ("absent.nii.gz", "does not exist")):
        with pytest.raises(DataError, match=f"{name} {message}"):
            read_grid(tmp_path / name)


@pytest.mark.parametrize("slices", [2, 3, 4, 5])
def test_tiff_volumes_of_bytes_have_all_their_slices(tmp_path, slices):
    volume = np.random.default_rng(0).integers(0, 5, (slices, 20, 24)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "case.tif", data=volume, compression="zlib")  # as nnU-Net's Tiff3DIO
    image = read_image(tmp_path / "case.tif")
    np.testing.assert_array_equal(image.channels, volume[np.newaxis])
    assert not image.vector
    assert read_grid(tmp_path / "case.tif")[0] == volume.shape


def test_a_colour_tiff_is_a_picture_of_three_channels(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (20, 24, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "picture.tif", data=picture, photometric="rgb")
    image = read_image(tmp_path / "picture.tif")
    np.testing.assert_array_equal(image.channels, np.moveaxis(picture, -1, 0)[:, np.newaxis])
    assert image.vector
    assert image.grid.in_plane


@pytest.mark.parametrize("read", [read_image, read_grid])
def test_reading_leaves_the_locale_alone(tmp_path, read):
    """As SimpleITK's reader of VTK files does not."""
    path = write(tmp_path / "volume.vtk")
    before = locale.setlocale(locale.LC_ALL)
    wanted = locale.setlocale(locale.LC_ALL, "C.UTF-8")
    try:
        read(path)
        assert locale.setlocale(locale.LC_ALL) == wanted
    finally:
        locale.setlocale(locale.LC_ALL, before)
