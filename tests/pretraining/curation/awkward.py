"""Makes awkward inputs: small volumes that look like CT, and what goes wrong with them in the world."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from pretraining.modality import Modality

SHAPE = (20, 48, 56)
SPACING = (2.5, 1.0, 1.0)
CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"


def phantom(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> NDArray[np.int16]:
    """An ellipse of tissue with lung, bone and noise in air, int16 (z, y, x) HU; every octant differs."""
    rng = np.random.default_rng(seed)
    z, y, x = (
        np.linspace(-1, 1, n).reshape([-1 if i == axis else 1 for i in range(3)]) for axis, n in enumerate(shape)
    )
    values = np.full(shape, -1000.0)
    values[np.broadcast_to((y / 0.8) ** 2 + (x / 0.85) ** 2 < 1, shape)] = 40
    values[np.broadcast_to((y + 0.2) ** 2 + (x + 0.4) ** 2 < 0.05 + 0.02 * z, shape)] = -800
    values[np.broadcast_to((y - 0.5) ** 2 + (x - 0.1 * z) ** 2 < 0.02, shape)] = 700
    values[np.broadcast_to((y + 0.1) ** 2 + (x - 0.4) ** 2 < 0.04, shape)] = 120
    return np.rint(values + rng.normal(0, 12, shape)).clip(-1024).astype(np.int16)


def write_nifti(
    path: Path,
    voxels: NDArray[Any],
    affine: NDArray[np.float64] | None = None,
    change: Callable[[Any], None] | None = None,
) -> Path:
    """Write (z, y, x) voxels in (L, P, S) order, or as the affine says."""
    affine = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0]) if affine is None else affine
    image = nibabel.Nifti1Image(voxels.T if voxels.dtype.names is None else voxels, affine)
    image.header.set_data_dtype(voxels.dtype)
    if change:
        change(image.header)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)
    return path


def write_dicom(
    folder: Path,
    voxels: NDArray[Any],
    change: Callable[[int, Any], None] | None = None,
    *,
    intercept: int | None = -1024,
    tilt_deg: float = 0.0,
) -> Path:
    """Write one file a slice, in an order that is not that of the positions; ``change(i, dataset)`` alters slice i."""
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    cosine, sine = np.cos(np.radians(tilt_deg)), np.sin(np.radians(tilt_deg))
    for i, section in enumerate(voxels):
        header = pydicom.Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = CT_STORAGE
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = generate_uid()
        header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = study, series, frame
        header.PatientName, header.PatientID = "Doe^Jane", "4711"
        header.Modality, header.ImageType, header.Manufacturer = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], "Maker"
        header.Rows, header.Columns = section.shape
        header.PixelSpacing, header.SliceThickness = [SPACING[1], SPACING[2]], SPACING[0]
        header.ImageOrientationPatient = [1, 0, 0, 0, round(cosine, 6), round(-sine, 6)]
        header.ImagePositionPatient = [-20.0, -30.0, round(100 + i * SPACING[0], 3)]
        header.InstanceNumber = len(voxels) - i
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
        if intercept is not None:
            header.RescaleIntercept, header.RescaleSlope = intercept, 1
        header.PixelData = (section.astype(np.int32) - (intercept or 0)).astype("<i2").tobytes()
        if change:
            change(i, header)
        header.save_as(folder / f"image{(i * 7) % len(voxels):03d}.dcm", enforce_file_format=True)
    return folder


@dataclass(frozen=True)
class Awkward:
    """One input: how it is made below a folder, and what must become of it.

    ``reason`` None means that it is read; then ``flags`` are its flags, and ``expected`` its voxels (None: any).
    """

    make: Callable[[Path], object]
    reason: str | None = None
    flags: tuple[str, ...] = ()
    expected: NDArray[np.int16] | None = None
    modality: Modality = Modality.CT


def _nifti(voxels: NDArray[Any], **options: Any) -> Callable[[Path], object]:
    return lambda folder: write_nifti(folder / "scan.nii.gz", voxels, **options)


def _dicom(
    voxels: NDArray[Any], change: Callable[[int, Any], None] | None = None, **options: Any
) -> Callable[[Path], object]:
    return lambda folder: write_dicom(folder, voxels, change, **options)


def _cut(share: float, name: str = "scan.nii.gz") -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        path = write_nifti(folder / name, phantom())
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return make


def _flip_bit(name: str) -> Callable[[Path], object]:
    """Change one bit of stored (not compressed) deflate blocks: only the checksum can tell."""

    def make(folder: Path) -> None:
        content = bytearray(gzip.compress(write_nifti(folder / "scan.nii", phantom()).read_bytes(), compresslevel=0))
        (folder / "scan.nii").unlink()
        content[len(content) // 2] ^= 0x10
        (folder / name).write_bytes(content)

    return make


def _itk(
    name: str, *, compressed: bool = False, cut: int = 0, flip: int = 0, remove: str = ""
) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        image = sitk.GetImageFromArray(phantom())
        image.SetSpacing(SPACING[::-1])
        sitk.WriteImage(image, str(folder / name), compressed)
        path = folder / name
        content = bytearray(path.read_bytes())
        if flip:
            content[-flip] ^= 0x10
        path.write_bytes(content[: len(content) - cut])
        if remove:
            (folder / remove).unlink()

    return make


def _rgb(folder: Path) -> None:
    colours = np.zeros(SHAPE[::-1], np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    write_nifti(folder / "scan.nii.gz", colours)


def _sheared() -> NDArray[np.float64]:
    affine = np.diag([-1.0, -1.0, 2.5, 1.0])
    affine[1, 2] = 0.8
    return affine


def _patched(voxels: NDArray[Any], offset: int, content: bytes) -> Callable[[Path], object]:
    """Alter bytes of the header after writing, where nibabel would put them right."""

    def make(folder: Path) -> None:
        path = write_nifti(folder / "scan.nii", voxels)
        stored = bytearray(path.read_bytes())
        stored[offset : offset + len(content)] = content
        path.write_bytes(stored)

    return make


def _set(**values: Any) -> Callable[[int, Any], None]:
    """Set attributes of every image; callables get the index."""

    def change(i: int, header: Any) -> None:
        for name, value in values.items():
            setattr(header, name, value(i) if callable(value) else value)

    return change


def _drop(*names: str) -> Callable[[int, Any], None]:
    """Remove attributes of every image."""

    def change(_: int, header: Any) -> None:
        for name in names:
            delattr(header, name)

    return change


def _both(*changes: Callable[[int, Any], None]) -> Callable[[int, Any], None]:
    def change(i: int, header: Any) -> None:
        for one in changes:
            one(i, header)

    return change


def _two_scans_without_uid(folder: Path) -> None:
    """Two phases of one study with the same grid, as an anonymiser may leave them."""
    for name in ("early", "late"):
        change = _both(_set(SeriesInstanceUID="", StudyInstanceUID="1.2.3"))
        write_dicom(folder / name, PLAIN, change)
        for path in sorted((folder / name).iterdir()):
            path.rename(folder / f"{name}_{path.name}")
        (folder / name).rmdir()


def _without_names(folder: Path) -> None:
    write_dicom(folder, PLAIN, _drop("SeriesInstanceUID", "SOPClassUID", "StudyInstanceUID"))
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        del header.file_meta.MediaStorageSOPClassUID
        header.save_as(path, enforce_file_format=False)


def _heights(*steps: tuple[int, float]) -> Callable[[int, Any], None]:
    """Place the images at distances of their own: so many steps of so many millimetres, one pair after another."""
    gaps = [gap for count, gap in steps for _ in range(count)]
    return _set(ImagePositionPatient=lambda i: [-20, -30, 100 + sum(gaps[:i])])


def _units(code: str) -> Callable[[Any], None]:
    return lambda header: header.set_xyzt_units(code)


def _with_padding(value: int) -> NDArray[np.int16]:
    voxels = phantom()
    voxels[:, :6] = value
    return voxels


def _with_copy(folder: Path) -> None:
    write_dicom(folder, phantom())
    (folder / "again.dcm").write_bytes((folder / "image003.dcm").read_bytes())


def _without(index: int) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        write_dicom(folder, phantom())
        (folder / f"image{index:03d}.dcm").unlink()

    return make


def _truncated_dicom(folder: Path) -> None:
    write_dicom(folder, phantom())
    path = folder / "image004.dcm"
    path.write_bytes(path.read_bytes()[:-1000])


def _text(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def _empty_ends() -> NDArray[np.int16]:
    voxels = phantom()
    voxels[:2] = -1000
    return voxels


def _round_field(fill: int) -> NDArray[np.int16]:
    """Fill what lies outside the scanner's circle of view."""
    voxels = phantom()
    y, x = np.linspace(-1, 1, SHAPE[1])[:, np.newaxis], np.linspace(-1, 1, SHAPE[2])
    voxels[:, y**2 + x**2 > 1] = fill
    return voxels


def _steps_of_eight() -> NDArray[np.int16]:
    voxels = phantom().clip(-1000, 1000) // 8 * 8
    voxels[:, :5].flat[:5000] = np.arange(5000) % 250 * 8 - 1000
    return voxels


def _padded(value: int = -1024) -> NDArray[np.int16]:
    return _with_padding(value)


def _nan() -> NDArray[np.float32]:
    voxels = phantom().astype(np.float32)
    voxels[3, 4, 5] = np.nan
    return voxels


def _infinite() -> NDArray[np.float64]:
    voxels = phantom().astype(np.float64)
    voxels[19, 4, 5] = -np.inf
    return voxels


def _axes(*spacing: float) -> NDArray[np.float64]:
    """Spacing along (x, y, z), stored in (L, P, S)."""
    return np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])


def _qform_differs(header: Any) -> None:
    header.set_qform(np.diag([1.0, 1.0, 2.5, 1.0]), code=1)


PLAIN = phantom()
_AIR = np.random.default_rng(1).normal(-1000, 5, SHAPE).round().astype(np.int16)
_WINDOWED = PLAIN.clip(-160, 240)
KINDS: Mapping[str, Awkward] = {
    # files that are not whole
    "truncated_nii_gz": Awkward(_cut(0.7), "truncated"),
    "truncated_nii": Awkward(_cut(0.7, "scan.nii"), "truncated"),
    "gzip_without_its_last_bytes": Awkward(_cut(0.9999), "truncated"),
    "header_alone": Awkward(_cut(0.002, "scan.nii"), "truncated"),
    "bit_flipped_nii_gz": Awkward(_flip_bit("scan.nii.gz"), "corrupt"),
    "empty_file": Awkward(_text("scan.nii.gz", b""), "truncated"),
    "text_named_nii": Awkward(_text("scan.nii", b"not an image" * 100), "corrupt"),
    "text_named_dcm": Awkward(_text("scan.dcm", b"not an image" * 100), "corrupt"),
    "truncated_nrrd": Awkward(_itk("scan.nrrd", cut=500), "truncated"),
    "truncated_nrrd_gzip": Awkward(_itk("scan.nrrd", compressed=True, cut=500), "truncated"),
    "bit_flipped_nrrd_gzip": Awkward(_itk("scan.nrrd", compressed=True, flip=6), "corrupt"),
    "truncated_mha": Awkward(_itk("scan.mha", cut=500), "truncated"),
    "truncated_mha_zlib": Awkward(_itk("scan.mha", compressed=True, cut=500), "truncated"),
    "mha_zlib_without_its_checksum": Awkward(_itk("scan.mha", compressed=True, cut=2), "truncated"),
    "nrrd_gzip_without_its_checksum": Awkward(_itk("scan.nrrd", compressed=True, cut=2), "truncated"),
    "bit_flipped_mha_zlib": Awkward(_itk("scan.mha", compressed=True, flip=2), "corrupt"),
    "mhd_without_raw": Awkward(_itk("scan.mhd", remove="scan.raw"), "truncated"),
    "nhdr_without_raw": Awkward(_itk("scan.nhdr", remove="scan.raw"), "truncated"),
    "truncated_dicom": Awkward(_truncated_dicom, "truncated"),
    # values
    "four_dimensions": Awkward(_nifti(np.stack([PLAIN, PLAIN])), "4d"),
    "colour": Awkward(_rgb, "rgb"),
    "complex": Awkward(_nifti(PLAIN.astype(np.complex64)), "complex"),
    "eight_bit": Awkward(_nifti((PLAIN.clip(-1000, 1000) / 8 + 125).astype(np.uint8)), "8_bit"),
    "eight_bit_in_16": Awkward(_nifti((PLAIN.clip(-1000, 1000) / 8 + 125).astype(np.int16)), "8_bit"),
    "eight_bit_stretched": Awkward(_nifti(_steps_of_eight()), "8_bit"),
    "not_a_number": Awkward(_nifti(_nan()), "nonfinite"),
    "infinite": Awkward(_nifti(_infinite()), "nonfinite"),
    "air": Awkward(_nifti(_AIR), "empty"),
    "constant": Awkward(_nifti(np.zeros(SHAPE, np.int16)), "empty"),
    "stored_unsigned": Awkward(_nifti((PLAIN + 1024).astype(np.uint16)), "not_hounsfield"),
    "rescaled_twice": Awkward(_nifti(PLAIN - 1024), "not_hounsfield"),
    "scaled_to_one": Awkward(_nifti((PLAIN / 1000).astype(np.float32)), "not_hounsfield"),
    "half_slope": Awkward(_nifti(PLAIN // 2), "not_hounsfield"),
    "lost_sign": Awkward(_nifti(PLAIN.view(np.uint16)), "not_hounsfield"),
    "float_with_fractions": Awkward(_nifti((PLAIN + 0.25).astype(np.float32)), None, ("rounded",), PLAIN),
    "nifti_slope": Awkward(_patched((PLAIN + 1024) * 2, 112, struct.pack("<2f", 0.5, -1024)), None, (), PLAIN),
    "padding_3024": Awkward(_nifti(_padded(-3024)), None, ("padding_replaced",), _padded()),
    "padding_2000": Awkward(_nifti(_padded(-2000)), None, ("padding_replaced",), _padded()),
    "padding_of_zeros": Awkward(_nifti(_round_field(0)), None, ("padding_replaced",), _round_field(-1024)),
    "beyond_16_bit": Awkward(_nifti(np.where(PLAIN > 730, 50000, PLAIN.astype(np.int32))), None, ("clipped",)),
    "windowed": Awkward(_nifti(_WINDOWED), None, ("windowed",), _WINDOWED),
    "empty_slices": Awkward(_nifti(_empty_ends()), None, ("empty_slices",), _empty_ends()),
    # geometry
    "single_slice": Awkward(_nifti(PLAIN[:1]), "single_slice"),
    "picture": Awkward(_nifti(PLAIN[0]), "single_slice"),
    "tiny": Awkward(_nifti(PLAIN[:, :10, :10]), "too_small"),
    "sheared": Awkward(_nifti(PLAIN, affine=_sheared()), "sheared"),
    "no_orientation": Awkward(_patched(PLAIN, 252, bytes(4)), "no_orientation"),
    "sagittal": Awkward(_nifti(PLAIN, affine=_axes(5, 0.8, 0.8)), "not_axial"),
    "coronal": Awkward(_nifti(PLAIN, affine=_axes(0.8, 5, 0.8)), "not_axial"),
    "zero_spacing": Awkward(_nifti(PLAIN, affine=_axes(1, 1, 1e-6)), "bad_geometry"),
    "metres": Awkward(_nifti(PLAIN, affine=_axes(0.001, 0.001, 0.0025)), "bad_geometry"),
    "micrometres": Awkward(_nifti(PLAIN, affine=_axes(20, 20, 30), change=_units("micron")), "bad_geometry"),
    "micrometres_by_mistake": Awkward(_nifti(PLAIN, change=_units("micron")), "bad_geometry"),
    "metres_by_mistake": Awkward(_nifti(PLAIN, change=_units("meter")), "bad_geometry"),
    "metres_stated": Awkward(
        _nifti(PLAIN, affine=_axes(0.001, 0.001, 0.0025), change=_units("meter")), None, ("units_converted",), PLAIN
    ),
    "affines_differ": Awkward(_nifti(PLAIN, change=_qform_differs), None, ("affines_differ",), PLAIN),
    "mirrored_storage": Awkward(
        _nifti(np.ascontiguousarray(PLAIN[:, ::-1, ::-1]), affine=np.diag([1.0, 1.0, 2.5, 1.0])),
        None,
        ("reoriented",),
        PLAIN,
    ),
    # DICOM
    "dicom": Awkward(_dicom(PLAIN), None, (), PLAIN),
    "dicom_without_rescale": Awkward(_dicom(PLAIN + 1024, intercept=None), "not_hounsfield"),
    "dicom_of_mr": Awkward(_dicom(PLAIN, _set(Modality="MR")), "not_ct"),
    "dicom_ct_as_mr": Awkward(_dicom(PLAIN), "other_modality", modality=Modality.MR),
    "dicom_localizer": Awkward(_dicom(PLAIN, _set(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])), "localizer"),
    "dicom_secondary_capture": Awkward(
        _dicom(PLAIN, _set(SOPClassUID="1.2.840.10008.5.1.4.1.1.7")), "secondary_capture"
    ),
    "dicom_multiframe": Awkward(_dicom(PLAIN, _set(NumberOfFrames=5)), "multiframe"),
    "dicom_colour": Awkward(_dicom(PLAIN, _set(SamplesPerPixel=3, PhotometricInterpretation="RGB")), "rgb"),
    "dicom_eight_bit": Awkward(_dicom(PLAIN, _set(BitsStored=8)), "8_bit"),
    "dicom_one_image": Awkward(_dicom(PLAIN[:1]), "single_slice"),
    "dicom_missing_slice": Awkward(_without(0), None, (), PLAIN[1:]),
    "dicom_missing_inner_slice": Awkward(_without(7), "missing_slices"),
    "dicom_two_missing_inner_slices": Awkward(_dicom(PLAIN, _heights((8, 2.5), (2, 5), (9, 2.5))), "missing_slices"),
    "dicom_finer_in_one_part": Awkward(_dicom(PLAIN, _heights((10, 5), (9, 2.5))), "varying_spacing"),
    "dicom_coarser_in_one_part": Awkward(_dicom(PLAIN, _heights((10, 3), (9, 5))), "varying_spacing"),
    "dicom_finer_in_the_middle": Awkward(_dicom(PLAIN, _heights((3, 5), (13, 2.5), (3, 5))), "varying_spacing"),
    "dicom_uneven": Awkward(
        _dicom(PLAIN, _set(ImagePositionPatient=lambda i: [-20, -30, 100 + i * 2.5 + (1 if i == 9 else 0)])),
        "uneven_slices",
    ),
    "dicom_rounded_positions": Awkward(
        _dicom(PLAIN, _set(ImagePositionPatient=lambda i: [-20, -30, round(100 + i * 0.625, 1)])), None, (), PLAIN
    ),
    "dicom_shared_position": Awkward(
        _dicom(PLAIN, _set(ImagePositionPatient=lambda i: [-20, -30, 100 + i // 2 * 2.5])), "mixed_series"
    ),
    "dicom_mixed_spacing": Awkward(
        _dicom(PLAIN, _set(PixelSpacing=lambda i: [1, 1] if i else [0.9, 0.9])), "mixed_series"
    ),
    "dicom_mixed_orientation": Awkward(
        _dicom(PLAIN, _set(ImageOrientationPatient=lambda i: [1, 0, 0, 0, 1, 0] if i else [0, 1, 0, 0, 0, -1])),
        "mixed_series",
    ),
    "dicom_no_position": Awkward(_dicom(PLAIN, _set(ImagePositionPatient=None)), "bad_geometry"),
    "dicom_tilted": Awkward(_dicom(PLAIN, tilt_deg=15), None, ("oblique", "gantry_tilt"), PLAIN),
    "dicom_skewed": Awkward(
        _dicom(PLAIN, _set(ImagePositionPatient=lambda i: [-20 + i, -30, 100 + i * 2.5])), "sheared"
    ),
    "dicom_without_series_uid": Awkward(_dicom(PLAIN, _drop("SeriesInstanceUID")), None, ("no_series_uid",), PLAIN),
    "dicom_without_series_uid_and_class": Awkward(
        _dicom(PLAIN, _drop("SeriesInstanceUID", "SOPClassUID")), None, ("no_series_uid",), PLAIN
    ),
    "dicom_without_anything_that_names_it": Awkward(_without_names, "corrupt"),
    "dicom_blank_series_uid": Awkward(_dicom(PLAIN, _set(SeriesInstanceUID="")), None, ("no_series_uid",), PLAIN),
    "dicom_blank_series_uid_jittered": Awkward(
        _dicom(PLAIN, _set(SeriesInstanceUID="", PixelSpacing=lambda i: [1, 1 + i % 2 * 2e-4])),
        None,
        ("no_series_uid",),
        PLAIN,
    ),
    "dicom_two_scans_without_series_uid": Awkward(_two_scans_without_uid, "ambiguous_series"),
    "dicom_gap_without_series_uid": Awkward(
        _dicom(PLAIN, _both(_set(SeriesInstanceUID=""), _heights((8, 2.5), (1, 30), (10, 2.5)))), "ambiguous_series"
    ),
    "dicom_without_modality": Awkward(_dicom(PLAIN, _drop("Modality")), None, ("modality_from_class",), PLAIN),
    "dicom_blank_modality": Awkward(_dicom(PLAIN, _set(Modality="")), None, ("modality_from_class",), PLAIN),
    "dicom_mr_without_modality": Awkward(
        _dicom(PLAIN, _both(_drop("Modality"), _set(SOPClassUID="1.2.840.10008.5.1.4.1.1.4"))), "not_ct"
    ),
    "dicom_neither_modality_nor_class_of_one": Awkward(
        _dicom(PLAIN, _both(_drop("Modality"), _set(SOPClassUID="1.2.840.10008.5.1.4.1.1.66"))), "not_ct"
    ),
    "dicom_blank_instance_uids_at_one_place": Awkward(
        _dicom(PLAIN, _set(SOPInstanceUID="", ImagePositionPatient=lambda i: [-20, -30, 100 + i // 2 * 2.5])),
        "mixed_series",
    ),
    "dicom_copies": Awkward(_with_copy, None, ("repeated_files",), PLAIN),
    "dicom_stated_padding": Awkward(
        _dicom(_padded(-1200), _set(PixelPaddingValue=-176)), None, ("padding_replaced",), _padded()
    ),
}
