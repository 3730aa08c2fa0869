"""One copy of every scan: which volumes are the same, and which of them stays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pretraining.curation.fingerprint import Fingerprint
from pretraining.curation.fingerprint_index import FingerprintIndex
from pretraining.curation.likeness import differ
from pretraining.curation.process_volume import VolumeRecord

EXACT, NEAR = "exact", "near"

NEAR_DUPLICATE_FLAG, SPACING_FLAG = "near_duplicate", "spacing_disagrees"
COPY_FLAGS = {
    NEAR_DUPLICATE_FLAG: "like another volume, and kept because of --keep-near-duplicates",
    SPACING_FLAG: "the header of a copy states another spacing: one of the two is wrong (duplicates.jsonl)",
}
"""Flag that follows from comparing volumes -> what it means."""

_ROUNDING = 0.01
"""Relative difference up to which the spacings in two headers of the same voxels are equal."""

_LOST_MM = (1.0, 1.0, 1.0)
"""What converters write where a spacing was lost."""


@dataclass(frozen=True)
class Match:
    """Another volume with the same content."""

    name: str
    """Its name, ``source/case``."""
    kind: str
    """``exact``: the same voxels; ``near``: the same scan by its fingerprint."""
    similarity: float
    """In [0, 1]; 1 where exact."""
    spacing_disagrees: bool = False
    """Whether the two headers cannot both be right."""


class ContentIndex:
    """Finds volumes by their content."""

    def __init__(self, contents: Iterable[tuple[str, str, bytes]]) -> None:
        """Take name, hash and fingerprint of each volume."""
        self._by_hash: dict[str, list[tuple[str, Sequence[float]]]] = {}
        self._index = FingerprintIndex()
        for name, content_hash, fingerprint in contents:
            content = Fingerprint.from_bytes(fingerprint)
            self._by_hash.setdefault(content_hash, []).append((name, content.spacing_mm))
            self._index.add(name, content)

    def matches(self, content_hash: str, fingerprint: bytes) -> list[Match]:
        """Return the volumes that have this content, sorted by name."""
        content = Fingerprint.from_bytes(fingerprint)
        found = {
            name: Match(name, NEAR, likeness.similarity, likeness.spacing_disagrees)
            for name, likeness in self._index.query(content)
        }
        found |= {
            name: Match(name, EXACT, 1.0, differ(content.spacing_mm, spacing_mm, _ROUNDING))
            for name, spacing_mm in self._by_hash.get(content_hash, [])
        }
        return [found[name] for name in sorted(found)]


@dataclass(frozen=True)
class Duplicate:
    """A copy of a volume that is kept."""

    record: VolumeRecord
    original_id: str
    """The name of the volume that is kept."""
    kind: str
    """``exact`` or ``near``."""
    similarity: float
    """In [0, 1]."""
    spacing_disagrees: bool
    """Whether the two headers cannot both be right."""


@dataclass(frozen=True)
class Deduplicated:
    """Every volume once."""

    kept: list[VolumeRecord]
    """Volumes in the corpus, sorted by source and case."""
    names: dict[str, list[str]]
    """For each kept volume its own name, then the names of its copies, sorted."""
    dropped: list[Duplicate]
    """Their copies, sorted by source and case."""
    near_kept: dict[str, Match]
    """Near-duplicates that are kept on request: name -> the volume that it is like."""

    @property
    def marks(self) -> dict[str, list[str]]:
        """Return for kept volumes the flags that follow from their copies."""
        disagreeing = {copy.original_id for copy in self.dropped if copy.spacing_disagrees}
        for name, match in self.near_kept.items():
            disagreeing |= {name, match.name} if match.spacing_disagrees else set()
        marks = {name: [NEAR_DUPLICATE_FLAG] for name in self.near_kept}
        for name in disagreeing:
            marks.setdefault(name, []).append(SPACING_FLAG)
        return marks


def deduplicate(
    records: Sequence[VolumeRecord],
    matches: Mapping[str, Sequence[Match]],
    source_order: Sequence[str],
    *,
    keep_near: bool = False,
) -> Deduplicated:
    """Keep one copy of every scan.

    Volumes are taken in the order of preference: more slices, then a header that does not say 1 mm along all axes (what
    is written where a spacing was lost), then smaller pixels, then the earlier source, then the case id. One that
    matches a volume already taken is dropped as its copy, of an exact one before a near one, and of the most preferred
    among equals. Likeness is not transitive: in A ~ B ~ C where A and C differ, both A and C are kept.

    Args:
        records: The volumes.
        matches: For each name what ``ContentIndex.matches`` found; names of other volumes are ignored.
        source_order: Names of sources, the most trusted first.
        keep_near: Drop exact copies only.
    """
    rank = {source: index for index, source in enumerate(source_order)}

    def preference(record: VolumeRecord) -> tuple[int, bool, float, int, str]:
        _, y, x = record.native_spacing_mm
        lost = not differ(record.native_spacing_mm, _LOST_MM, _ROUNDING)
        return -record.shape[0], lost, y * x, rank[record.source], record.case

    kept: dict[str, VolumeRecord] = {}
    names: dict[str, list[str]] = {}
    near_kept: dict[str, Match] = {}
    dropped: list[Duplicate] = []
    alike = _symmetric(matches)
    for record in sorted(records, key=preference):
        found = [match for match in alike.get(record.name, ()) if match.name in kept]
        found.sort(key=lambda match: (match.kind != EXACT, preference(kept[match.name])))
        if found and (found[0].kind == EXACT or not keep_near):
            first = found[0]
            dropped.append(Duplicate(record, first.name, first.kind, first.similarity, first.spacing_disagrees))
            names[first.name].append(record.name)
            continue
        if found:
            near_kept[record.name] = found[0]
        kept[record.name] = record
        names[record.name] = [record.name]
    return Deduplicated(
        kept=sorted(kept.values(), key=lambda record: (record.source, record.case)),
        names={name: [own, *sorted(copies)] for name, (own, *copies) in names.items()},
        dropped=sorted(dropped, key=lambda duplicate: (duplicate.record.source, duplicate.record.case)),
        near_kept=near_kept,
    )


def _symmetric(matches: Mapping[str, Sequence[Match]]) -> dict[str, list[Match]]:
    """Return the matches of each name in both directions: the order of two volumes must not matter."""
    both: dict[str, dict[str, Match]] = {}
    for name, found in sorted(matches.items()):
        for match in found:
            if match.name == name:
                continue
            for own, other in ((name, match.name), (match.name, name)):
                known = both.setdefault(own, {}).get(other, match)
                strength = max(match.similarity, known.similarity)
                kind = EXACT if EXACT in (match.kind, known.kind) else NEAR
                both[own][other] = Match(other, kind, strength, match.spacing_disagrees or known.spacing_disagrees)
    return {name: list(found.values()) for name, found in both.items()}
