"""Exact hashes, and what fingerprints hold."""

from __future__ import annotations

import dataclasses
import hashlib
import struct

import numpy as np
import pytest

from pretraining.curation.fingerprint import DESCRIBED, Fingerprint, exact_hash, fingerprint, is_current
from pretraining.curation.likeness import likeness
from tests.pretraining.curation.real_ct import changed, volumes


def test_exact_hash_follows_its_definition() -> None:
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    plain = struct.pack("<3q", 2, 3, 4) + voxels.tobytes()
    assert exact_hash(voxels) == hashlib.sha256(plain).hexdigest()


def test_exact_hash_sees_shape_and_every_voxel() -> None:
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    other = voxels.copy()
    other[1, 2, 3] += 1
    assert len({exact_hash(voxels), exact_hash(other), exact_hash(voxels.reshape(3, 2, 4))}) == 3
    assert exact_hash(np.asfortranarray(voxels)) == exact_hash(voxels)


def test_nothing_but_the_stated_spacing_depends_on_the_header() -> None:
    volume = volumes()["abdomen_3mm_int32"]
    plain, wrong = fingerprint(volume), fingerprint(changed(volume, volume.voxels, (1.0, 0.5, 7.0)))
    assert wrong.spacing_mm == (1.0, 0.5, 7.0)
    assert dataclasses.replace(wrong, spacing_mm=plain.spacing_mm).to_bytes() == plain.to_bytes()


@pytest.mark.parametrize(("slices", "described"), [(30, 30), (191, 191), (192, 96), (300, 100)])
def test_slices_are_described_evenly(slices: int, described: int) -> None:
    volume = volumes()["abdomen_3mm_int32"]
    few = fingerprint(changed(volume, np.tile(volume.voxels[:2, ::2, ::2], (slices // 2 + 1, 1, 1))[:slices]))
    assert len(few.slices) == described
    assert few.stride == max(1, slices // DESCRIBED)


def test_the_body_is_measured_alike_in_a_wider_picture_and_in_half_the_pixels() -> None:
    volume = volumes()["sts_026_0000"]
    size = fingerprint(volume).sizes_px
    wider = np.pad(volume.voxels, ((0, 0), (60, 40), (30, 90)), constant_values=-1000)
    np.testing.assert_allclose(fingerprint(changed(volume, wider)).sizes_px, size, rtol=0.02)
    halved = fingerprint(changed(volume, volume.voxels[:, ::2, ::2])).sizes_px
    np.testing.assert_allclose(np.median(2 * halved / size, axis=0), 1, atol=0.03)


def test_fingerprints_are_small_and_survive_bytes() -> None:
    volume = volumes()["chest_lidc0314_1mm"]
    before = fingerprint(volume)
    content = before.to_bytes()
    after = Fingerprint.from_bytes(content)
    assert after.to_bytes() == content
    assert likeness(before, after).similarity == pytest.approx(1, abs=1e-3)
    assert len(content) < 110 * len(before.slices)
    assert is_current(content)
    for wrong in (b"", content[:-1], b"F1" + content[2:]):
        with pytest.raises(ValueError, match="fingerprint"):
            Fingerprint.from_bytes(wrong)
    assert not is_current(b"F1" + content[2:])
