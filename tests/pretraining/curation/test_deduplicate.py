"""Which copy of a scan stays."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from pretraining.curation.deduplicate import EXACT, NEAR, ContentIndex, Match, deduplicate
from pretraining.curation.fingerprint import exact_hash, fingerprint
from pretraining.curation.process_volume import VolumeRecord
from pretraining.curation.volume import Volume
from tests.pretraining.curation.folders import SPACING_MM, phantom


def _record(name: str, slices: int = 10, pixel_mm: float = 0.8) -> VolumeRecord:
    source, case = name.split("/")
    spacing = (3.0, pixel_mm, pixel_mm)
    return VolumeRecord(source, case, (), "", hash=name, native_spacing_mm=spacing, shape=(slices, 64, 64))


def _kept(records, matches, order=("a", "b", "c"), **options):
    result = deduplicate(records, matches, order, **options)
    return [record.name for record in result.kept], result


def test_more_slices_then_smaller_pixels_then_the_earlier_source_then_the_case():
    alike = {"a/1": [Match(name, NEAR, 0.9) for name in ("b/1", "b/2", "c/1")], "b/1": [Match("b/2", NEAR, 0.9)]}
    alike |= {"c/1": [Match("b/1", NEAR, 0.9), Match("b/2", NEAR, 0.9)]}
    records = [_record("a/1"), _record("b/1"), _record("b/2"), _record("c/1", slices=11)]
    assert _kept(records, alike)[0] == ["c/1"]
    records[3] = _record("c/1", pixel_mm=0.7)
    assert _kept(records, alike)[0] == ["c/1"]
    records[3] = _record("c/1")
    assert _kept(records, alike)[0] == ["a/1"]
    assert _kept(records, alike, order=("b", "a", "c"))[0] == ["b/1"]


def test_the_order_of_the_input_and_the_direction_of_a_match_do_not_matter():
    records = [_record(f"{source}/{case}", slices=10 + case) for source in "ab" for case in range(3)]
    alike = {"a/0": [Match("b/2", NEAR, 0.8)], "b/1": [Match("a/1", EXACT, 1.0)]}
    reverse = {"b/2": [Match("a/0", NEAR, 0.8)], "a/1": [Match("b/1", EXACT, 1.0)]}
    expected = ["a/1", "a/2", "b/0", "b/2"]
    for seed, matches in itertools.product(range(5), (alike, reverse)):
        random.Random(seed).shuffle(records)
        assert _kept(records, matches)[0] == expected


def test_all_names_of_a_scan_are_kept():
    alike = {"a/1": [Match("c/1", EXACT, 1.0), Match("b/1", NEAR, 0.9), Match("a/1", EXACT, 1.0)]}
    kept, result = _kept([_record("c/1"), _record("b/1"), _record("a/1")], alike)
    assert kept == ["a/1"]
    assert result.names == {"a/1": ["a/1", "b/1", "c/1"]}
    assert [(d.record.name, d.original_id, d.kind, d.similarity) for d in result.dropped] == [
        ("b/1", "a/1", NEAR, 0.9),
        ("c/1", "a/1", EXACT, 1.0),
    ]


def test_being_alike_is_not_passed_on():
    alike = {"b/1": [Match("a/1", NEAR, 0.9), Match("c/1", NEAR, 0.9)]}
    kept, result = _kept([_record("a/1", 12), _record("b/1", 11), _record("c/1", 10)], alike)
    assert kept == ["a/1", "c/1"]
    assert result.names == {"a/1": ["a/1", "b/1"], "c/1": ["c/1"]}


def test_near_duplicates_stay_if_asked_and_exact_ones_do_not():
    alike = {"a/1": [Match("b/1", NEAR, 0.9), Match("c/1", EXACT, 1.0)]}
    kept, result = _kept([_record("a/1"), _record("b/1"), _record("c/1")], alike, keep_near=True)
    assert kept == ["a/1", "b/1"]
    assert result.near_kept == {"b/1": Match("a/1", NEAR, 0.9)}


def test_matches_with_volumes_that_take_no_part_do_not_count():
    kept, _ = _kept([_record("b/1")], {"b/1": [Match("a/1", EXACT, 1.0)]})
    assert kept == ["b/1"]


def _entry(name: str, voxels: np.ndarray) -> tuple[str, str, bytes]:
    volume = Volume(np.ascontiguousarray(voxels), SPACING_MM, "CT")
    return name, exact_hash(volume.voxels), fingerprint(volume).to_bytes()


def test_content_is_found_again_exactly_and_nearly():
    shape = (24, 96, 96)
    entries = [_entry(f"a/{seed}", phantom(seed, shape)) for seed in range(6)]
    index = ContentIndex(entries)
    for name, content_hash, content in entries:
        assert index.matches(content_hash, content) == [Match(name, EXACT, 1.0)]
    _, content_hash, content = _entry("x/1", phantom(2, shape)[4:])
    (match,) = index.matches(content_hash, content)
    assert (match.name, match.kind) == ("a/2", NEAR)
    assert 0.5 < match.similarity <= 1.0
    _, content_hash, content = _entry("x/2", phantom(77, shape))
    assert index.matches(content_hash, content) == []


def test_copies_of_one_hash_are_all_found():
    voxels = phantom(1)
    entries = [_entry(name, voxels) for name in ("b/1", "a/1")]
    found = ContentIndex(entries).matches(*entries[0][1:])
    assert found == [Match("a/1", EXACT, 1.0), Match("b/1", EXACT, 1.0)]


def test_unknown_sources_are_an_error_not_a_guess():
    with pytest.raises(KeyError):
        deduplicate([_record("z/1")], {}, ["a"])
