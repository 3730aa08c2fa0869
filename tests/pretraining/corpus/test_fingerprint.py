"""Exact hashes and fingerprints: what counts as the same scan, measured on real CT."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from pretraining.corpus.fingerprint import (
    NEAR_DUPLICATE,
    Fingerprint,
    FingerprintIndex,
    exact_hash,
    fingerprint,
    near_duplicate,
    similarity,
)
from pretraining.corpus.readers import find_candidates, read_volume
from pretraining.corpus.volume import IntensityRule, Volume
from tests.conftest import shared_path


@cache
def volumes() -> dict[str, Volume]:
    """Real CT by name of file or folder."""
    found = {}
    for folder in ("unlabelled", "Dataset902_CTSarcoma/imagesTs", "Dataset900_CTMini/imagesTr"):
        for candidate in find_candidates(shared_path(f"data/{folder}")):
            if not candidate.path.name.startswith("mr_"):
                name = candidate.path.name.split(".")[0]
                found[name] = read_volume(candidate, IntensityRule.CT)
    return found


def changed(volume: Volume, voxels: NDArray[np.int16], spacing_mm: tuple[float, float, float] | None = None) -> Volume:
    return dataclasses.replace(volume, voxels=np.ascontiguousarray(voxels), spacing_mm=spacing_mm or volume.spacing_mm)


def halved(volume: Volume) -> Volume:
    z, y, x = volume.spacing_mm
    return changed(volume, volume.voxels[:, ::2, ::2], (z, 2 * y, 2 * x))


def sparser(volume: Volume) -> Volume:
    z, y, x = volume.spacing_mm
    return changed(volume, volume.voxels[1::2], (2 * z, y, x))


def noisy(volume: Volume) -> Volume:
    noise = np.random.default_rng(0).normal(3, 20, volume.voxels.shape)
    return changed(volume, (volume.voxels + noise).round().clip(-1024, 3000).astype(np.int16))


def larger_field(volume: Volume) -> Volume:
    return changed(volume, np.pad(volume.voxels, ((0, 0), (40, 20), (10, 60)), constant_values=-1000))


EXPORTS: dict[str, Callable[[Volume], Volume]] = {
    "first 16 slices": lambda volume: changed(volume, volume.voxels[:16]),
    "16 inner slices": lambda volume: changed(volume, volume.voxels[7:23]),
    "clipped": lambda volume: changed(volume, volume.voxels.clip(-1000, 1000)),
    "noise and offset": noisy,
    "half the pixels": halved,
    "every second slice": sparser,
    "larger field of view": larger_field,
}
NAMES = (
    "chest_lidc0314_1mm",
    "chest_lidc0314_aniso8mm",
    "thigh_sts029",
    "sts_026_0000",
    "sts_051_0000",
    "abdomen_3mm_int32",
)


def test_exact_hash_follows_its_definition() -> None:
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    plain = struct.pack("<6q", 2, 3, 4, 50000, 7812, 7812) + voxels.tobytes()
    assert exact_hash(voxels, (5.0, 0.78120001, 0.78119999)) == hashlib.sha256(plain).hexdigest()


def test_exact_hash_sees_shape_spacing_and_every_voxel() -> None:
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    other = voxels.copy()
    other[1, 2, 3] += 1
    hashes = {
        exact_hash(voxels, (5, 1, 1)),
        exact_hash(other, (5, 1, 1)),
        exact_hash(voxels, (5, 1, 1.001)),
        exact_hash(voxels.reshape(3, 2, 4), (5, 1, 1)),
    }
    assert len(hashes) == 4
    view = np.asfortranarray(voxels)
    assert exact_hash(view, (5, 1, 1)) in hashes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("export", EXPORTS)
def test_another_export_is_a_near_duplicate(export: str, name: str) -> None:
    volume = volumes()[name]
    assert near_duplicate(fingerprint(volume), fingerprint(EXPORTS[export](volume)))


def test_the_chest_at_1_mm_and_at_8_mm_is_one_scan() -> None:
    a, b = (fingerprint(volumes()[f"chest_lidc0314_{kind}"]) for kind in ("1mm", "aniso8mm"))
    assert similarity(a, b) > 0.97
    assert similarity(a, b) == pytest.approx(similarity(b, a))


def test_a_slab_is_found_in_the_scan_it_was_cut_from() -> None:
    whole = fingerprint(volumes()["abdomen_3mm_int32"])
    for slab, inside in (("001", False), ("002", False), ("004", True), ("005", True), ("006", True), ("008", False)):
        assert near_duplicate(whole, fingerprint(volumes()[f"ctmini_{slab}_0000"])) is inside


def test_different_patients_are_far_from_the_threshold() -> None:
    prints = {name: fingerprint(volume) for name, volume in volumes().items() if not name.startswith("ctmini")}
    names = [name for name in prints if name != "chest_lidc0314_aniso8mm"]
    highest = max(similarity(prints[a], prints[b]) for i, a in enumerate(names) for b in names[:i])
    assert highest < NEAR_DUPLICATE - 0.1


def test_modality_and_empty_volumes_are_no_match() -> None:
    ct = volumes()["thigh_sts029"]
    mr = dataclasses.replace(ct, modality="MR")
    air = changed(ct, np.full_like(ct.voxels, -1000))
    assert similarity(fingerprint(ct), fingerprint(mr)) == 0
    assert similarity(fingerprint(ct), fingerprint(air)) == 0
    assert similarity(fingerprint(air), fingerprint(air)) == 0


def test_mr_is_found_again_whatever_its_scale() -> None:
    path = shared_path("data/unlabelled/mr_t1_cervical_cord.nii.gz")
    (candidate,) = (c for c in find_candidates(path.parent) if c.path == path)
    volume = read_volume(candidate, IntensityRule.MR)
    assert near_duplicate(fingerprint(volume), fingerprint(changed(volume, volume.voxels[20:60] * 4)))


def test_fingerprints_are_small_and_survive_bytes() -> None:
    volume = volumes()["chest_lidc0314_1mm"]
    before = fingerprint(volume)
    content = before.to_bytes()
    after = Fingerprint.from_bytes(content)
    assert after.to_bytes() == content
    assert similarity(before, after) == pytest.approx(1, abs=1e-3)
    assert len(content) < 2000
    for wrong in (b"", content[:-1], b"XX" + content[2:]):
        with pytest.raises(ValueError, match="fingerprint"):
            Fingerprint.from_bytes(wrong)


@pytest.mark.parametrize("others", [0, 200])
def test_index_finds_what_comparing_all_pairs_finds(others: int) -> None:
    """With 200 random volumes the tree is used, without them every volume is compared."""
    prints = {name: fingerprint(volume) for name, volume in volumes().items()}
    index = FingerprintIndex()
    rng = np.random.default_rng(0)
    for name, one in prints.items():
        index.add(name, one)
    for i in range(others):
        slices = rng.normal(0, 13, (20, 99)).round().astype(np.int8)
        index.add(f"other{i}", Fingerprint("CT", 5.0, np.full((20, 2), 150, np.float32), slices))
    assert len(index) == len(prints) + others
    for export in EXPORTS.values():
        for name in ("chest_lidc0314_aniso8mm", "thigh_sts029", "abdomen_3mm_int32"):
            query = fingerprint(export(volumes()[name]))
            expected = {key for key, one in prints.items() if near_duplicate(query, one)}
            found = index.query(query)
            assert {key for key, _ in found} == expected
            assert [value for _, value in found] == sorted((value for _, value in found), reverse=True)
