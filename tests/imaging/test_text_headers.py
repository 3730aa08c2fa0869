"""Every way in which NRRD and MetaImage keep voxels: read as by SimpleITK where that reads it right, or rejected."""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_meddino.errors import DataError
from nnunetv2_meddino.imaging.io import read_image
from pretraining.curation.readers.read import Candidate, find_candidates, input_files, read_volume
from pretraining.curation.volume import Rejected
from pretraining.modality import Modality
from tests.pretraining.curation.awkward import PLAIN, SHAPE, SPACING

RAW = PLAIN.astype("<i2").tobytes()
BIG = PLAIN.astype(">i2").tobytes()
TEXT = " ".join(map(str, PLAIN.ravel())).encode() + b"\n"
PLANES = [plane.tobytes() for plane in PLAIN]
NAMES = [f"plane{i:03d}" for i in range(SHAPE[0])]
GZIP, ZLIB = gzip.compress(RAW), zlib.compress(RAW)


def nrrd(encoding: str, *lines: str, **changes: str) -> bytes:
    """The header of the phantom, without the empty line that ends it."""
    fields = {
        "type": "int16",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, SHAPE[::-1])),
        "space directions": f"({SPACING[2]},0,0) (0,{SPACING[1]},0) (0,0,{SPACING[0]})",
        "endian": "little",
        "encoding": encoding,
        **{name.replace("_", " "): value for name, value in changes.items()},
    }
    return "".join(f"{line}\n" for line in ("NRRD0005", *(f"{k}: {v}" for k, v in fields.items()), *lines)).encode()


def mhd(data: str, *lines: str, names: list[str] | None = None) -> bytes:
    """The header of the phantom, the names of a list behind it."""
    fields = (
        *("ObjectType = Image", "NDims = 3", "BinaryDataByteOrderMSB = False", *lines),
        f"ElementSpacing = {SPACING[2]} {SPACING[1]} {SPACING[0]}",
        *(f"DimSize = {SHAPE[2]} {SHAPE[1]} {SHAPE[0]}", "ElementType = MET_SHORT", f"ElementDataFile = {data}"),
    )
    return "".join(f"{line}\n" for line in (*fields, *(names or ()))).encode()


def files(ending: str, contents: list[bytes] = PLANES, names: list[str] = NAMES) -> dict[str, bytes]:
    return {f"{name}{ending}": content for name, content in zip(names, contents, strict=True)}


def listed(ending: str) -> list[str]:
    return [f"{name}{ending}" for name in NAMES]


LIST = "data file: LIST\n" + "\n".join(listed(".raw"))
COMPRESSED = "CompressedData = True"

AS_SIMPLEITK: dict[str, dict[str, bytes]] = {
    "text.nrrd": {"": nrrd("ascii") + b"\n" + TEXT},
    "text_with_commas.nrrd": {"": nrrd("txt") + b"\n" + TEXT.replace(b" ", b", ")},
    "hex.nrrd": {"": nrrd("hex") + b"\n" + RAW.hex().encode() + b"\n"},
    "big_endian_hex.nrrd": {"": nrrd("hex", endian="big") + b"\n" + BIG.hex().encode()},
    "two_gzip_members.nrrd": {"": nrrd("gzip") + b"\n" + gzip.compress(RAW[:999]) + gzip.compress(RAW[999:])},
    "windows_line_ends.nrrd": {"": nrrd("raw").replace(b"\n", b"\r\n") + b"\r\n" + RAW},
    "list.nhdr": {"": nrrd("raw", LIST), **files(".raw")},
    "list_of_slabs.nhdr": {
        "": nrrd("raw", "data file: LIST 3", "a.raw", "b.raw"),
        **files(".raw", [RAW[: len(RAW) // 2], RAW[len(RAW) // 2 :]], ["a", "b"]),
    },
    "list_gzip.nhdr": {
        "": nrrd("gzip", "data file: LIST", *listed(".gz")),
        **files(".gz", [gzip.compress(plane) for plane in PLANES]),
    },
    "pattern.nhdr": {"": nrrd("raw", f"data file: plane%03d.raw 0 {SHAPE[0] - 1} 1"), **files(".raw")},
    "pattern_backwards.nhdr": {
        "": nrrd("raw", f"data file: plane%03d.raw {SHAPE[0] - 1} 0 -1"),
        **files(".raw", PLANES[::-1]),
    },
    "line_and_byte_skip.nhdr": {"": nrrd("raw", "line skip: 2", "byte skip: 3", "data file: a.raw"),
                                "a.raw": b"one\ntwo\nabc" + RAW},
    "byte_skip_within_gzip.nhdr": {"": nrrd("gzip", "byte skip: 3", "data file: a.gz"),
                                   "a.gz": gzip.compress(b"abc" + RAW)},
    "last_bytes.nhdr": {"": nrrd("raw", "byte skip: -1", "data file: a.raw"), "a.raw": b"a header" + RAW},
    "file_above.nhdr": {"": nrrd("raw", "data file: ../a.raw"), "../a.raw": RAW},
    "text.mha": {"": mhd("LOCAL", "BinaryData = False") + TEXT},
    "text.mhd": {"": mhd("a.txt", "BinaryData = False"), "a.txt": TEXT},
    "list.mhd": {"": mhd("LIST", names=listed(".raw")), **files(".raw")},
    "list_zlib.mhd": {
        "": mhd("LIST", COMPRESSED, names=listed(".z")),
        **files(".z", [zlib.compress(plane) for plane in PLANES]),
    },
    "pattern.mhd": {"": mhd(f"plane%03d.raw 0 {SHAPE[0] - 1} 1"), **files(".raw")},
    "pattern_from_0.mhd": {"": mhd("plane%03d.raw 0"), **files(".raw")},
    "pattern_alone.mhd": {"": mhd("p%d.raw"), **files(".raw", names=[f"p{i + 1}" for i in range(SHAPE[0])])},
    "pattern_of_odd_numbers.mhd": {
        "": mhd(f"p%02d.raw 1 {2 * SHAPE[0] - 1} 2"),
        **files(".raw", names=[f"p{2 * i + 1:02d}" for i in range(SHAPE[0])]),
    },
    "behind_a_header.mhd": {"": mhd("a.raw", "HeaderSize = 5"), "a.raw": b"12345" + RAW},
    "last_bytes.mhd": {"": mhd("a.raw", "HeaderSize = -1"), "a.raw": b"12345" + RAW},
    "no_transform_matrix.mhd": {"": mhd("a.raw"), "a.raw": RAW},
    "zlib.mha": {"": mhd("LOCAL", COMPRESSED, f"CompressedDataSize = {len(ZLIB)}") + ZLIB},
}  # fmt: skip

VALID: dict[str, dict[str, bytes]] = {  # SimpleITK 2.5.7 cannot read these, or reads something else without an error
    "bzip2.nrrd": {"": nrrd("bzip2") + b"\n" + bz2.compress(RAW)},
    "two_bzip2_streams.nrrd": {"": nrrd("bzip2") + b"\n" + bz2.compress(RAW[:999]) + bz2.compress(RAW[999:])},
    "zlib_without_its_size.mha": {"": mhd("LOCAL", COMPRESSED) + ZLIB},
    "padded_gzip.nrrd": {"": nrrd("gzip") + b"\n" + gzip.compress(RAW[:999]) + bytes(9) + gzip.compress(RAW[999:])},
    "bytes_behind_zlib.mha": {"": mhd("LOCAL", COMPRESSED, f"CompressedDataSize = {len(ZLIB)}") + ZLIB + b"more"},
    "gzip.mha": {"": mhd("LOCAL", COMPRESSED) + GZIP},
    "text_without_a_last_line_end.mha": {"": mhd("LOCAL", "BinaryData = False") + TEXT.strip()},
    "pattern_without_step.mhd": {"": mhd(f"p%d.raw 1 {SHAPE[0]}"),
                                 **files(".raw", names=[f"p{i + 1}" for i in range(SHAPE[0])])},
    "metres.nrrd": {"": nrrd("raw", 'space units: "m" "m" "m"',
                             space_directions="(0.001,0,0) (0,0.001,0) (0,0,0.0025)") + b"\n" + RAW},
    "capitals.MHA": {"": mhd("LOCAL") + RAW},
}  # fmt: skip


def _flipped(content: bytes, at: int) -> bytes:
    damaged = bytearray(content)
    damaged[at] ^= 0x10
    return bytes(damaged)


def _without(names: dict[str, bytes], *gone: str) -> dict[str, bytes]:
    return {name: content for name, content in names.items() if name not in gone}


HALF = len(ZLIB) // 2
WRONG: dict[str, tuple[str, dict[str, bytes]]] = {
    "too_short.nhdr": ("truncated", {"": nrrd("raw", "data file: a.raw"), "a.raw": RAW[:-2]}),
    "too_long.nhdr": ("corrupt", {"": nrrd("raw", "data file: a.raw"), "a.raw": RAW + b"ab"}),
    "last_bytes_too_few.nhdr": ("truncated", {"": nrrd("raw", "byte skip: -1", "data file: a.raw"), "a.raw": RAW[2:]}),
    "list_with_one_missing.nhdr": ("truncated", {"": nrrd("raw", LIST), **_without(files(".raw"), "plane007.raw")}),
    "list_with_one_cut.nhdr": (
        "truncated",
        {"": nrrd("raw", LIST), **files(".raw"), "plane007.raw": PLANES[7][:-2]},
    ),
    "list_with_one_too_long.nhdr": ("corrupt", {"": nrrd("raw", LIST), **files(".raw"), "plane007.raw": RAW}),
    "list_too_short.nhdr": ("corrupt", {"": nrrd("raw", "data file: LIST", *listed(".raw")[:-1]), **files(".raw")}),
    "list_of_nothing.nhdr": ("corrupt", {"": nrrd("raw", "data file: LIST")}),
    "pattern_of_too_many.nhdr": ("corrupt", {"": nrrd("raw", "data file: p%03d.raw 0 999999999 1")}),
    "pattern_without_end.nhdr": ("corrupt", {"": nrrd("raw", "data file: p%03d.raw 0 9 0")}),
    "terabytes.nrrd": ("truncated", {"": nrrd("raw", sizes="56 48 99999999999") + b"\n" + RAW}),
    "terabytes_gzip.nrrd": ("truncated", {"": nrrd("gzip", sizes="56 48 99999999999") + b"\n" + GZIP}),
    "cut_gzip.nhdr": ("truncated", {"": nrrd("gzip", "data file: a.gz"), "a.gz": GZIP[:-9]}),
    "second_member_missing.nrrd": ("truncated", {"": nrrd("gzip") + b"\n" + gzip.compress(RAW[:999])}),
    "first_member_damaged.nrrd": (
        "corrupt",
        {"": nrrd("gzip") + b"\n" + _flipped(gzip.compress(RAW[:999]), -6) + gzip.compress(RAW[999:])},
    ),
    "more_in_a_second_member.nrrd": ("corrupt", {"": nrrd("gzip") + b"\n" + GZIP + gzip.compress(b"more")}),
    "cut_bzip2.nrrd": ("truncated", {"": nrrd("bzip2") + b"\n" + bz2.compress(RAW)[:-9]}),
    "damaged_bzip2.nrrd": ("corrupt", {"": nrrd("bzip2") + b"\n" + _flipped(bz2.compress(RAW), 5000)}),
    "cut_text.nrrd": ("truncated", {"": nrrd("ascii") + b"\n" + TEXT[:-99]}),
    "more_text.nrrd": ("corrupt", {"": nrrd("ascii") + b"\n" + TEXT + b"7"}),
    "damaged_text.nrrd": ("corrupt", {"": nrrd("ascii") + b"\n" + TEXT.replace(b"40", b"4x", 1)}),
    "text_beyond_its_type.nrrd": ("corrupt", {"": nrrd("ascii") + b"\n" + TEXT.replace(b"40 ", b"99999 ", 1)}),
    "cut_hex.nrrd": ("truncated", {"": nrrd("hex") + b"\n" + RAW.hex()[:-8].encode()}),
    "damaged_hex.nrrd": ("corrupt", {"": nrrd("hex") + b"\n" + b"zz" + RAW.hex()[2:].encode()}),
    "unknown_encoding.nrrd": ("unreadable", {"": nrrd("zrl") + b"\n" + RAW}),
    "metres_by_mistake.nrrd": ("bad_geometry", {"": nrrd("raw", 'space units: "m" "m" "m"') + b"\n" + RAW}),
    "scanner_space.nrrd": ("no_orientation", {"": nrrd("raw", space="scanner-xyz") + b"\n" + RAW}),
    "spacings_alone.nrrd": (
        "no_orientation",
        {"": nrrd("raw", "spacings: 1 1 2.5").replace(b"space directions", b"# was") + b"\n" + RAW},
    ),
    "vectors.nrrd": (
        "rgb",
        {"": nrrd("raw", "kinds: vector domain domain domain", dimension="4", sizes="2 56 48 10",
                  space_directions="none (1,0,0) (0,1,0) (0,0,2.5)") + b"\n" + RAW},
    ),
    "two_volumes.nrrd": (
        "4d",
        {"": nrrd("raw", "kinds: domain domain domain list", dimension="4", sizes="56 48 10 2",
                  space_directions="(1,0,0) (0,1,0) (0,0,2.5) none") + b"\n" + RAW},
    ),
    "two_dimensions.nrrd": (
        "single_slice",
        {"": nrrd("raw", dimension="2", sizes="56 48", space_directions="(1,0,0) (0,1,0)") + b"\n" + PLANES[0]},
    ),
    "too_short.mhd": ("truncated", {"": mhd("a.raw"), "a.raw": RAW[:-2]}),
    "too_long.mhd": ("corrupt", {"": mhd("a.raw"), "a.raw": RAW + b"ab"}),
    "list_with_one_missing.mhd": (
        "truncated",
        {"": mhd("LIST", names=listed(".raw")), **_without(files(".raw"), "plane007.raw")},
    ),
    "list_too_short.mhd": ("corrupt", {"": mhd("LIST", names=listed(".raw")[:-1]), **files(".raw")}),
    "pattern_too_short.mhd": ("truncated", {"": mhd("plane%03d.raw 0 9 1"), **files(".raw")}),
    "damaged_zlib.mha": (
        "corrupt",
        {"": mhd("LOCAL", COMPRESSED, f"CompressedDataSize = {len(ZLIB)}") + _flipped(ZLIB, HALF)},
    ),
    "damaged_zlib.mhd": ("corrupt", {"": mhd("a.zraw", COMPRESSED), "a.zraw": _flipped(ZLIB, HALF)}),
    "cut_zlib.mhd": ("truncated", {"": mhd("a.zraw", COMPRESSED), "a.zraw": ZLIB[:-40]}),
    "cut_text.mha": ("truncated", {"": mhd("LOCAL", "BinaryData = False") + TEXT[:-99]}),
    "micrometres.mhd": ("bad_geometry", {"": mhd("a.raw", "DistanceUnits = um"), "a.raw": RAW}),
    "no_spacing.mhd": ("bad_geometry", {"": mhd("a.raw").replace(b"ElementSpacing", b"Spacing"), "a.raw": RAW}),
    "channels.mha": ("rgb", {"": mhd("LOCAL", "ElementNumberOfChannels = 2") + RAW}),
}  # fmt: skip


def write(folder: Path, name: str, contents: dict[str, bytes]) -> Candidate:
    """Write a header, which has no name in ``contents``, and its files, and return what is found."""
    (folder / "in").mkdir()
    for file, content in contents.items():
        (folder / "in" / (file or name)).write_bytes(content)
    (candidate,) = find_candidates(folder / "in")
    return candidate


@pytest.mark.parametrize("name", AS_SIMPLEITK)
def test_valid_files_are_read_as_by_simpleitk(name: str, tmp_path: Path) -> None:
    candidate = write(tmp_path, name, AS_SIMPLEITK[name])
    volume = read_volume(candidate, Modality.CT)
    image = sitk.ReadImage(str(candidate.path))
    np.testing.assert_array_equal(volume.voxels, sitk.GetArrayFromImage(image))
    np.testing.assert_array_equal(volume.voxels, PLAIN)
    np.testing.assert_allclose(volume.spacing_mm, image.GetSpacing()[::-1])
    assert volume.metadata["stored_orientation"] == "LPS"
    assert volume.flags == ()
    np.testing.assert_array_equal(read_image(candidate.path).channels[0], PLAIN)  # as for every other command


@pytest.mark.parametrize("name", VALID)
def test_valid_files_that_simpleitk_does_not_read_are_read(name: str, tmp_path: Path) -> None:
    volume = read_volume(write(tmp_path, name, VALID[name]), Modality.CT)
    np.testing.assert_array_equal(volume.voxels, PLAIN)
    np.testing.assert_allclose(volume.spacing_mm, SPACING)
    assert volume.flags == (("units_converted",) if name.startswith("metres") else ())


@pytest.mark.parametrize("name", WRONG)
def test_files_that_do_not_hold_what_they_declare_are_refused(name: str, tmp_path: Path) -> None:
    reason, contents = WRONG[name]
    candidate = write(tmp_path, name, contents)
    with pytest.raises(Rejected) as caught:
        read_volume(candidate, Modality.CT)
    assert caught.value.reason == reason, caught.value
    if reason in ("truncated", "corrupt") and not name.startswith("pattern"):
        with pytest.raises(DataError, match="cannot be read as an image"):  # as by every other command
            read_image(candidate.path)


def test_bytes_need_no_order_and_larger_values_do(tmp_path: Path) -> None:
    header = nrrd("raw").replace(b"endian: little\n", b"")
    labels = (PLAIN > 0).astype(np.uint8)
    (tmp_path / "labels.nrrd").write_bytes(header.replace(b"int16", b"uchar") + b"\n" + labels.tobytes())
    np.testing.assert_array_equal(read_image(tmp_path / "labels.nrrd").channels[0], labels)
    with pytest.raises(Rejected, match="no field 'endian'"):
        read_volume(write(tmp_path, "scan.nrrd", {"": header + b"\n" + RAW}), Modality.CT)


@pytest.mark.parametrize("encoding", ["gzip", "bzip2", "hex"])
def test_errors_of_the_disk_are_no_damage(encoding: str, tmp_path: Path) -> None:
    """They are tried again by the next run. This file of the system gives an input/output error."""
    candidate = write(tmp_path, "scan.nhdr", {"": nrrd(encoding, "data file: a")})
    (tmp_path / "in" / "a").symlink_to("/proc/self/mem")
    with pytest.raises(Rejected, match="Input/output error") as caught:
        read_volume(candidate, Modality.CT)
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("name", ["list.nhdr", "pattern.nhdr", "list.mhd", "pattern.mhd"])
def test_every_file_of_voxels_decides_what_a_header_reads_as(name: str, tmp_path: Path) -> None:
    candidate = write(tmp_path, name, AS_SIMPLEITK[name])
    assert set(input_files(candidate)) == set((tmp_path / "in").iterdir())
    (tmp_path / "in" / "plane007.raw").unlink()
    assert tmp_path / "in" / "plane007.raw" in input_files(candidate), "it may come back"
    candidate.path.write_bytes(b"damaged")
    assert input_files(candidate) == (candidate.path,)


@pytest.mark.parametrize("header", [nrrd("raw") + b"\n" + RAW, mhd("LOCAL") + RAW], ids=["nrrd", "mha"])
def test_damaged_headers_are_refused_and_nothing_else(header: bytes, tmp_path: Path) -> None:
    """Words, lines and lengths that crash other readers; every one is read or rejected."""
    rng = np.random.default_rng(0)
    tokens = [b"-1", b"99", b"1e308", b"nan", b"none", b"%s", b"%d 1 2 3", b"A" * 3000, b"3 " * 20, b"\0", b"LIST"]
    end = header.index(RAW)
    change: list[Callable[[list[bytes], int], object]] = [
        lambda words, i: words.pop(i),
        lambda words, i: words.insert(i, words[-1 - i]),
        lambda words, i: words.__setitem__(i, tokens[rng.integers(len(tokens))]),
    ]
    path = tmp_path / ("scan.nrrd" if header.startswith(b"NRRD") else "scan.mha")
    rejected = 0
    for number in range(300):
        mark = b"\n" if number % 2 else b" "
        words = header[:end].split(mark)
        change[rng.integers(len(change))](words, int(rng.integers(len(words) - 1)))
        path.write_bytes(mark.join(words) + RAW)
        (candidate,) = find_candidates(tmp_path)
        input_files(candidate)
        try:
            read_volume(candidate, Modality.CT)
        except Rejected:
            rejected += 1
    assert rejected > 100
