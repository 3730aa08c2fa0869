"""A label map comes back from its DICOM segmentation voxel by voxel, by pydicom, highdicom and SimpleITK."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from pydicom.uid import SegmentationStorage
from skimage.color import lab2rgb

from nnunetv2_meddino import __version__
from nnunetv2_meddino.errors import ConfigurationError, DataError
from nnunetv2_meddino.imaging.dicom_series import DicomVolume, read_dicom_folder
from nnunetv2_meddino.inference import dicom_seg
from nnunetv2_meddino.inference.dicom_seg import Kind, segments_of, write_dicom_seg
from nnunetv2_meddino.visualization.style import COLOURS
from tests.conftest import shared_path
from tests.imaging.dicom import PLANES, by_simpleitk, write_series
from tests.pretraining.curation.awkward import PLAIN, SHAPE

NAMES = {"background": 0, "liver": 1, "inferior_vena_cava": 2, "tumour_of_ours": 3, "ignore": 4}
LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
KINDS: tuple[Kind, Kind] = ("labelmap", "binary")


def labels_of(shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint8]:
    """Boxes of three classes, none symmetric; slices without any class at both ends and in the middle."""
    labels = np.zeros(shape, np.uint8)
    labels[2:9, 5:20, 8:30] = 1
    labels[4:7, 10:15, 20:40] = 2
    labels[12:17, 30:44, 3:9] = 3
    labels[3, 0, 0] = 3
    return labels


@pytest.fixture
def volume(tmp_path: Path) -> DicomVolume:
    return read_dicom_folder(write_series(tmp_path / "series", PLAIN))


def masks_by_pydicom(path: Path, volume: DicomVolume) -> dict[int, NDArray[np.bool_]]:
    """Each segment's voxels ``(z, y, x)``: raw frames, put where their functional groups say."""
    file = pydicom.dcmread(path)
    shared = file.SharedFunctionalGroupsSequence[0]
    np.testing.assert_allclose(
        np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float),
        np.concatenate([volume.grid.directions[2], volume.grid.directions[1]]),
        atol=1e-6,
    )
    np.testing.assert_allclose(np.array(shared.PixelMeasuresSequence[0].PixelSpacing), volume.grid.spacing_mm[1:])
    np.testing.assert_allclose(shared.PixelMeasuresSequence[0].SpacingBetweenSlices, volume.grid.spacing_mm[0])
    positions = [np.array(pydicom.dcmread(f).ImagePositionPatient, float) for f in volume.files]
    shape = volume.channels.shape[1:]
    masks = {int(segment.SegmentNumber): np.zeros(shape, bool) for segment in file.SegmentSequence}
    frames = file.pixel_array.reshape(-1, *shape[1:])
    groups = file.PerFrameFunctionalGroupsSequence
    assert len(frames) == len(groups) == int(file.NumberOfFrames)
    for frame, group in zip(frames, groups, strict=True):
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        (z,) = np.flatnonzero(np.linalg.norm(np.array(positions) - place, axis=1) < 1e-4)
        (reference,) = group.DerivationImageSequence[0].SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == pydicom.dcmread(volume.files[z]).SOPInstanceUID
        if file.SegmentationType == "LABELMAP":
            for number, mask in masks.items():
                mask[z] = frame == number
        else:
            identified = group.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence
            masks[int(identified[0].ReferencedSegmentNumber)][z] = frame
    return masks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plane", PLANES)
def test_labels_come_back_by_pydicom_and_highdicom(kind: Kind, plane: str, tmp_path: Path) -> None:
    volume = read_dicom_folder(write_series(tmp_path / "series", PLAIN, plane))
    labels = labels_of()
    write_dicom_seg(labels, NAMES, volume.files, tmp_path / "seg.dcm", kind=kind)
    masks = masks_by_pydicom(tmp_path / "seg.dcm", volume)
    assert set(masks) - {0} == {1, 2, 3}
    for number in (1, 2, 3):
        np.testing.assert_array_equal(masks[number], labels == number)
    file = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert file.SOPClassUID == (LABEL_MAP_STORAGE if kind == "labelmap" else SegmentationStorage)
    read = file.get_volume(combine_segments=True)
    grid = volume.grid
    columns = (grid.directions * np.array(grid.spacing_mm)[:, np.newaxis]).T
    inverse = np.linalg.inv(columns)
    expected = np.zeros(SHAPE, np.uint8)
    for index in range(read.shape[0]):  # highdicom's first slice is the last of ours
        place = read.affine[:3] @ np.array([index, 0, 0, 1.0])
        z, y, x = inverse @ (place - grid.origin_mm)
        np.testing.assert_allclose([y, x, z - round(z)], 0, atol=1e-4)
        expected[round(z)] = read.array[index]
    np.testing.assert_array_equal(expected, labels)


@pytest.mark.parametrize("plane", PLANES)
def test_a_label_map_lies_on_its_images_by_simpleitk(plane: str, tmp_path: Path) -> None:
    """SimpleITK 2.5 does not know the SOP class; under that of binary segmentations it reads the same pixels."""
    volume = read_dicom_folder(write_series(tmp_path / "series", PLAIN, plane))
    labels = labels_of()
    write_dicom_seg(labels, NAMES, volume.files, tmp_path / "seg.dcm")
    with pytest.raises(RuntimeError, match="Unable to determine ImageIO reader"):
        sitk.ReadImage(tmp_path / "seg.dcm")
    file = pydicom.dcmread(tmp_path / "seg.dcm")
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    file.save_as(tmp_path / "known.dcm")
    read = sitk.ReadImage(tmp_path / "known.dcm")
    onto = sitk.Resample(read, by_simpleitk(tmp_path / "series"), sitk.Transform(), sitk.sitkNearestNeighbor)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(onto), labels)
    np.testing.assert_allclose(sorted(read.GetSpacing()), sorted(volume.grid.spacing_mm), rtol=1e-6)


def test_binary_segments_are_0_and_255_by_simpleitk_one_after_the_other(volume: DicomVolume, tmp_path: Path) -> None:
    labels = labels_of()
    write_dicom_seg(labels, NAMES, volume.files, tmp_path / "seg.dcm", kind="binary")
    frames = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "seg.dcm"))
    expected = [
        mask[z] for mask in (labels == n for n in (1, 2, 3)) for z in reversed(range(SHAPE[0])) if mask[z].any()
    ]
    np.testing.assert_array_equal(frames, np.array(expected) * np.uint8(255))


def test_real_ct_and_its_segmentation_agree(tmp_path: Path) -> None:
    volume = read_dicom_folder(shared_path("data/unlabelled/dicom_abdomen_crlm1004"))
    labels = ((volume.channels[0] > 150) + (volume.channels[0] < -200) * 2).astype(np.uint8)
    for kind in KINDS:
        write_dicom_seg(labels, {"background": 0, "Bone": 1, "gas": 2}, volume.files, tmp_path / "seg.dcm", kind=kind)
        masks = masks_by_pydicom(tmp_path / "seg.dcm", volume)
        np.testing.assert_array_equal(masks[1], labels == 1)
        np.testing.assert_array_equal(masks[2], labels == 2)


@pytest.mark.parametrize("kind", KINDS)
def test_segments_have_names_codes_and_what_made_them(kind: Kind, volume: DicomVolume, tmp_path: Path) -> None:
    write_dicom_seg(labels_of(), NAMES | {"Neoplasm": 5, "ignore": 6}, volume.files, tmp_path / "seg.dcm", kind=kind)
    file = pydicom.dcmread(tmp_path / "seg.dcm")
    segments = {str(s.SegmentLabel): s for s in file.SegmentSequence if s.SegmentLabel != "Background"}
    codes = {
        name: (
            s.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator,
            s.SegmentedPropertyTypeCodeSequence[0].get("CodeValue"),
            s.SegmentedPropertyCategoryCodeSequence[0].CodeValue,
        )
        for name, s in segments.items()
    }
    assert codes == {
        "liver": ("SCT", "10200004", "91723000"),  # anatomical structure
        "inferior_vena_cava": ("SCT", "64131007", "91723000"),
        "tumour_of_ours": ("99MEDDINO", "tumour_of_ours", "91723000"),
        "Neoplasm": ("SCT", "108369006", "49755003"),  # morphologically abnormal structure
    }
    for segment in segments.values():
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("nnunetv2-meddino", __version__)
    source = pydicom.dcmread(volume.files[0])
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert file[name].value == source[name].value
    assert file.SeriesInstanceUID != source.SeriesInstanceUID
    assert len(file.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == SHAPE[0]


@pytest.mark.parametrize("kind", KINDS)
def test_segments_recommend_the_colours_of_the_pictures(kind: Kind, volume: DicomVolume, tmp_path: Path) -> None:
    """Read by highdicom, and by scikit-image from L*a*b* with the white of D65."""
    write_dicom_seg(labels_of(), NAMES, volume.files, tmp_path / "seg.dcm", kind=kind)
    file = highdicom.seg.segread(tmp_path / "seg.dcm")
    for number, colour in enumerate(COLOURS[:3], start=1):
        stored = file.get_segment_description(number).RecommendedDisplayCIELabValue
        by_highdicom = highdicom.color.CIELabColor.from_dicom_value(tuple(stored)).to_rgb()
        assert by_highdicom == tuple(round(255 * part) for part in to_rgb(colour))
        l_a_b = np.array(stored) / 65535 * (100, 255, 255) - (0, 128, 128)
        np.testing.assert_allclose(lab2rgb(l_a_b), to_rgb(colour), atol=1 / 255)


def test_labels_above_255_take_16_bits(volume: DicomVolume, tmp_path: Path) -> None:
    labels = labels_of().astype(np.uint16)
    labels[labels == 2] = 300
    names = {"background": 0, "a": 1, "c": 3, "b": 300}
    write_dicom_seg(labels, names, volume.files, tmp_path / "seg.dcm")
    assert pydicom.dcmread(tmp_path / "seg.dcm").BitsAllocated == 16
    np.testing.assert_array_equal(masks_by_pydicom(tmp_path / "seg.dcm", volume)[300], labels == 300)
    write_dicom_seg(labels, names, volume.files, tmp_path / "seg.dcm", kind="binary")
    np.testing.assert_array_equal(masks_by_pydicom(tmp_path / "seg.dcm", volume)[3], labels == 300)


@pytest.mark.parametrize("kind", KINDS)
def test_no_voxels_at_all_is_a_whole_file_that_says_so(
    kind: Kind, volume: DicomVolume, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_dicom_seg(np.zeros(SHAPE, np.uint8), NAMES, volume.files, tmp_path / "seg.dcm", kind=kind)
    assert not caplog.records
    masks = masks_by_pydicom(tmp_path / "seg.dcm", volume)
    assert not any(masks[number].any() for number in (1, 2, 3))
    file = pydicom.dcmread(tmp_path / "seg.dcm")
    assert int(file.NumberOfFrames) == (SHAPE[0] if kind == "labelmap" else 3)
    assert len(file.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == SHAPE[0]


def test_regions_that_overlap_are_binary_segments(volume: DicomVolume, tmp_path: Path) -> None:
    """BraTS: each region is a list of labels, the smaller inside the larger."""
    regions = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    labels = labels_of()
    write_dicom_seg(labels, regions, volume.files, tmp_path / "seg.dcm", kind="binary")
    masks = masks_by_pydicom(tmp_path / "seg.dcm", volume)
    names = [str(segment.SegmentLabel) for segment in pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence]
    assert names == ["whole", "core", "enhancing"]
    for number, members in enumerate(((1, 2, 3), (2, 3), (3,)), start=1):
        np.testing.assert_array_equal(masks[number], np.isin(labels, members))
    with pytest.raises(ConfigurationError, match="regions of this dataset overlap.*Choose 'binary'"):
        write_dicom_seg(labels, regions, volume.files, tmp_path / "other.dcm")
    assert not (tmp_path / "other.dcm").exists()


def test_regions_beside_each_other_are_a_label_map(volume: DicomVolume, tmp_path: Path) -> None:
    labels = labels_of()
    write_dicom_seg(labels, {"background": 0, "left": [1, 3], "right": [2]}, volume.files, tmp_path / "seg.dcm")
    masks = masks_by_pydicom(tmp_path / "seg.dcm", volume)
    np.testing.assert_array_equal(masks[1], np.isin(labels, (1, 3)))
    np.testing.assert_array_equal(masks[2], labels == 2)


def test_segments_are_in_the_order_of_their_labels() -> None:
    names = {"background": 0, "b": 7, "a": 2, "ignore": 8}
    assert [(s.number, s.name) for s in segments_of(names, "labelmap")] == [(2, "a"), (7, "b")]
    assert [(s.number, s.name) for s in segments_of(names, "binary")] == [(1, "a"), (2, "b")]
    with pytest.raises(ConfigurationError, match="'labelmap' or 'binary', not 'fractional'"):
        segments_of(names, "fractional")  # type: ignore[arg-type]


def edited(folder: Path, edit: Callable[[int, Any], None]) -> DicomVolume:
    return read_dicom_folder(write_series(folder, PLAIN, change=edit))


@pytest.mark.parametrize("kind", KINDS)
def test_headers_may_lack_or_misstate_what_positions_say(kind: Kind, tmp_path: Path) -> None:
    """A gap instead of a distance, no thickness, orientations that differ by rounding, an anonymiser's holes."""

    def edit(i: int, header: Any) -> None:
        header.SpacingBetweenSlices = 9
        del header.SliceThickness, header.PatientID, header.PatientName
        header.ImageOrientationPatient = [1, 0, 0, 0, 1, 1e-5 * (i % 2)]

    volume = edited(tmp_path / "series", edit)
    labels = labels_of()
    write_dicom_seg(labels, NAMES, volume.files, tmp_path / "seg.dcm", kind=kind)
    assert not pydicom.dcmread(tmp_path / "seg.dcm").PatientID
    np.testing.assert_array_equal(masks_by_pydicom(tmp_path / "seg.dcm", volume)[1], labels == 1)


def test_names_in_any_language_and_of_any_length_are_kept(tmp_path: Path) -> None:
    def edit(_: int, header: Any) -> None:
        header.SpecificCharacterSet, header.PatientName = "ISO_IR 100", "Müller^Jörg"

    volume = edited(tmp_path / "series", edit)
    names = {"background": 0, "肝臓": 1, "x" * 80: 2, "c": 3}
    write_dicom_seg(labels_of(), names, volume.files, tmp_path / "seg.dcm")
    file = pydicom.dcmread(tmp_path / "seg.dcm")
    assert str(file.PatientName) == "Müller^Jörg"
    segments = {int(segment.SegmentNumber): segment for segment in file.SegmentSequence}
    assert segments[1].SegmentLabel == "肝臓"
    assert segments[2].SegmentLabel == "x" * 64
    assert segments[2].SegmentedPropertyTypeCodeSequence[0].LongCodeValue == "x" * 80


def test_what_does_not_fit_is_refused(volume: DicomVolume, tmp_path: Path) -> None:
    labels, path = labels_of(), tmp_path / "seg.dcm"
    with pytest.raises(DataError, match=r"shape \(19, 48, 56\).*for images of shape \(20, 48, 56\)"):
        write_dicom_seg(labels[1:], NAMES, volume.files, path)
    with pytest.raises(DataError, match=r"labels of no class of dataset\.json: \[9, 12\]"):
        write_dicom_seg(np.where(labels == 3, 9, np.where(labels == 2, 12, labels)), NAMES, volume.files, path)
    with pytest.raises(DataError, match="whole numbers from 0"):
        write_dicom_seg(labels.astype(np.float32), NAMES, volume.files, path)
    with pytest.raises(DataError, match="whole numbers from 0"):
        write_dicom_seg(labels.astype(np.int16) - 1, NAMES, volume.files, path)
    assert not path.exists()


def test_who_it_is_is_stored_as_the_images_say_however_odd(tmp_path: Path) -> None:
    odd = {"PatientSex": "male", "PatientBirthDate": "unknown", "StudyTime": "25:99", "PatientName": "Case 7"}

    def edit(_: int, header: Any) -> None:
        for name, value in odd.items():
            setattr(header, name, value)

    volume = edited(tmp_path / "series", edit)
    write_dicom_seg(labels_of(), NAMES, volume.files, tmp_path / "seg.dcm")
    file = pydicom.dcmread(tmp_path / "seg.dcm")
    assert {name: str(file[name].value) for name in odd} == odd


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("FrameOfReferenceUID", lambda _: "", "has no FrameOfReferenceUID.*Write NIfTI instead"),
        ("SOPClassUID", lambda _: "1.2.3", "KeyError: '1.2.3'.*Correct them"),
        ("StudyInstanceUID", lambda i: f"1.2.{i}", "same series.*Correct them, or write the labels as NIfTI"),
    ],
)
def test_headers_that_allow_no_segmentation_are_told(
    attribute: str, value: Callable[[int], str], message: str, tmp_path: Path
) -> None:
    volume = edited(tmp_path / "series", lambda i, header: setattr(header, attribute, value(i)))
    with pytest.raises(DataError, match=message):
        write_dicom_seg(labels_of(), NAMES, volume.files, tmp_path / "seg.dcm")


def test_a_failed_write_leaves_what_was_there(
    volume: DicomVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out" / "seg.dcm"
    write_dicom_seg(labels_of(), NAMES, volume.files, path)
    before = path.read_bytes()

    def fail(_: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dicom_seg.Segmentation, "save_as", fail)
    with pytest.raises(OSError, match="No space left"):
        write_dicom_seg(labels_of(), NAMES, volume.files, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["seg.dcm"]
