"""What counts as the same scan, measured on real CT."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pretraining.curation.fingerprint import Fingerprint, fingerprint
from pretraining.curation.likeness import NEAR_DUPLICATE, likeness
from pretraining.curation.readers.read import find_candidates, read_volume
from pretraining.modality import Modality
from tests.conftest import shared_path
from tests.pretraining.curation.real_ct import (
    EXPORTS,
    changed,
    exported,
    fingerprints,
    near_duplicate,
    noisy,
    repeated,
    volumes,
)

NAMES = (
    "chest_lidc0314_1mm",
    "chest_lidc0314_aniso8mm",
    "thigh_sts029",
    "sts_026_0000",
    "sts_051_0000",
    "abdomen_3mm_int32",
)
HEADERS = {  # factors along (z, y, x), or None for 1 mm everywhere
    "right": (1.0, 1.0, 1.0),
    "1 mm": None,
    "thicker": (5 / 3, 1.0, 1.0),
    "thinner": (0.2, 1.0, 1.0),
    "larger": (1.25, 1.25, 1.25),
    "stretched": (1.0, 1.3, 1.0),
}


def stated(one: Fingerprint, header: str) -> Fingerprint:
    """The same content under another header."""
    factors = HEADERS[header]
    z, y, x = one.spacing_mm
    spacing = (factors[0] * z, factors[1] * y, factors[2] * x) if factors else (1.0, 1.0, 1.0)
    return dataclasses.replace(one, spacing_mm=spacing)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("export", EXPORTS)
def test_another_export_is_a_near_duplicate_whatever_its_header_says(export: str, name: str) -> None:
    values = {
        header: likeness(fingerprints()[name], stated(exported(export, name), header)).similarity for header in HEADERS
    }
    assert min(values.values()) >= NEAR_DUPLICATE, values


def test_noise_and_a_wrong_spacing_at_once() -> None:
    volume = volumes()["sts_026_0000"]
    copy = changed(volume, noisy(volume).voxels[5:40, ::2, ::2], (1.0, 1.0, 1.0))
    assert near_duplicate(fingerprint(volume), fingerprint(copy))


def test_the_chest_at_1_mm_and_at_8_mm_is_one_scan() -> None:
    a, b = (fingerprints()[f"chest_lidc0314_{kind}"] for kind in ("1mm", "aniso8mm"))
    found = likeness(a, b)
    assert found.similarity > 0.97
    assert found.similarity == pytest.approx(likeness(b, a).similarity)
    assert not found.spacing_disagrees


def test_a_slab_is_found_in_the_scan_it_was_cut_from() -> None:
    whole = fingerprints()["abdomen_3mm_int32"]
    for slab, inside in (("001", False), ("002", False), ("004", True), ("005", True), ("006", True), ("008", False)):
        for header in HEADERS:
            other = stated(fingerprints()[f"ctmini_{slab}_0000"], header)
            assert near_duplicate(whole, other) is inside, (slab, header)


def test_a_long_scan_is_found_in_a_part_of_other_slices_under_a_wrong_header() -> None:
    """More than twice as many slices as are described: every second one of a part, resampled along z by 3/4."""
    slabs = [volumes()[f"ctmini_00{number}_0000"].voxels for number in (1, 2, 4, 5, 6, 8)]
    volume = changed(volumes()["abdomen_3mm_int32"], np.repeat(np.concatenate(slabs), 3, axis=0))
    part = volume.voxels[50:220]
    places = np.linspace(0, len(part) - 1, len(part) * 3 // 4).round().astype(int)
    copy = changed(volume, part[places], (1.0, 1.0, 1.0))
    assert near_duplicate(fingerprint(volume), fingerprint(copy))


def test_different_patients_are_far_from_the_threshold_whatever_the_header_says() -> None:
    others = ("ctmini", "chest_lidc0314_aniso8mm")
    prints = {name: one for name, one in fingerprints().items() if not name.startswith(others)}
    names = sorted(prints)
    values = {
        (a, b, header): likeness(prints[a], stated(prints[b], header)).similarity
        for header in HEADERS
        for i, a in enumerate(names)
        for b in names[:i]
    }
    worst = max(values, key=lambda key: values[key])
    assert values[worst] < NEAR_DUPLICATE - 0.1, worst


def test_neighbouring_parts_of_one_patient_are_no_copies() -> None:
    names = sorted(name for name in fingerprints() if name.startswith("ctmini"))
    assert len(names) == 6
    values = {
        (a, b, header): likeness(fingerprints()[a], stated(fingerprints()[b], header)).similarity
        for header in HEADERS
        for i, a in enumerate(names)
        for b in names[:i]
    }
    assert max(values.values()) < NEAR_DUPLICATE, max(values, key=lambda key: values[key])


@pytest.mark.parametrize("name", ["ctmini_002_0000", "ctmini_004_0000", "ctmini_005_0000"])
def test_halves_of_a_volume_are_no_copies(name: str) -> None:
    """Their slices are alike, but most alike at the place where one ends and the other begins."""
    volume = volumes()[name]
    half = len(volume.voxels) // 2
    lower, upper = (changed(volume, voxels) for voxels in (volume.voxels[:half], volume.voxels[half:]))
    assert likeness(fingerprint(lower), fingerprint(upper)).similarity < NEAR_DUPLICATE


@pytest.mark.parametrize("name", ["thigh_sts029", "sts_026_0000", "abdomen_3mm_int32"])
def test_two_slices_at_the_end_of_a_scan_are_no_copy_of_it_however_often_they_come(name: str) -> None:
    """As in a scan over time at one place: a line of some slope lays all of it beside those two slices."""
    volume = volumes()[name]
    series = fingerprint(repeated(volume, slice(-2, None), 8))
    assert not near_duplicate(series, fingerprints()[name])
    assert not near_duplicate(fingerprints()[name], series)


@pytest.mark.parametrize("name", ["thigh_sts029", "sts_026_0000", "abdomen_3mm_int32"])
def test_where_all_slices_are_alike_the_headers_are_believed(name: str) -> None:
    """Along any line they fit equally well but for noise, which proves no header wrong."""
    volume = volumes()[name]
    a, b = (fingerprint(repeated(volume, slice(15, 16), 24, seed)) for seed in (0, 1))
    found = likeness(a, b)
    assert found.similarity > 0.99
    assert found.scale[0] == pytest.approx(1)


@pytest.mark.parametrize("header", HEADERS)
def test_headers_that_cannot_both_be_right_are_told(header: str) -> None:
    volume = volumes()["thigh_sts029"]  # 3.27 x 0.98 x 0.98 mm
    found = likeness(fingerprints()["thigh_sts029"], stated(fingerprint(noisy(volume)), header))
    factors = HEADERS[header] or 1 / np.array(volume.spacing_mm)
    np.testing.assert_allclose(found.scale, 1 / np.asarray(factors), rtol=0.05)
    assert found.spacing_disagrees is (header != "right")


def test_other_slices_and_pixels_are_no_disagreement() -> None:
    for export in EXPORTS:
        for name in NAMES:
            assert not likeness(fingerprints()[name], exported(export, name)).spacing_disagrees


def test_modality_and_empty_volumes_are_no_match() -> None:
    ct = volumes()["thigh_sts029"]
    mr = dataclasses.replace(ct, modality=Modality.MR)
    air = changed(ct, np.full_like(ct.voxels, -1000))
    assert likeness(fingerprint(ct), fingerprint(mr)).similarity == 0
    assert likeness(fingerprint(ct), fingerprint(air)).similarity == 0
    assert likeness(fingerprint(air), fingerprint(air)).similarity == 0


def test_mr_is_found_again_whatever_its_scale() -> None:
    path = shared_path("data/unlabelled/mr_t1_cervical_cord.nii.gz")
    (candidate,) = (c for c in find_candidates(path.parent) if c.path == path)
    volume = read_volume(candidate, Modality.MR)
    assert near_duplicate(fingerprint(volume), fingerprint(changed(volume, volume.voxels[20:60] * 4)))
