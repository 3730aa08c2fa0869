"""One copy of every scan: which volumes are the same, and which of them stays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pretraining.corpus.fingerprint import Fingerprint, FingerprintIndex
from pretraining.corpus.units import Record

EXACT, NEAR = "exact", "near"


@dataclass(frozen=True)
class Match:
    """Another volume with the same content.

    Attributes:
        name: Its name, ``source/case``.
        kind: ``exact``: the same voxels on the same grid; ``near``: the same scan by its fingerprint.
        similarity: In [0, 1]; 1 where exact.
    """

    name: str
    kind: str
    similarity: float


class ContentIndex:
    """Volumes to be found by their content."""

    def __init__(self, contents: Iterable[tuple[str, str, bytes]]) -> None:
        """Take name, hash and fingerprint of each volume."""
        self._by_hash: dict[str, list[str]] = {}
        self._index = FingerprintIndex()
        for name, content_hash, fingerprint in contents:
            self._by_hash.setdefault(content_hash, []).append(name)
            self._index.add(name, Fingerprint.from_bytes(fingerprint))

    def matches(self, content_hash: str, fingerprint: bytes) -> list[Match]:
        """Return the volumes that have this content, sorted by name."""
        found = {
            name: Match(name, NEAR, min(1.0, float(similarity)))
            for name, similarity in self._index.query(Fingerprint.from_bytes(fingerprint))
        }
        found |= {name: Match(name, EXACT, 1.0) for name in self._by_hash.get(content_hash, [])}
        return [found[name] for name in sorted(found)]


@dataclass(frozen=True)
class Duplicate:
    """A volume that is the same as one that is kept.

    Attributes:
        record: It.
        of: The name of the volume that is kept.
        kind: ``exact`` or ``near``.
        similarity: In [0, 1].
    """

    record: Record
    of: str
    kind: str
    similarity: float


@dataclass(frozen=True)
class Deduplicated:
    """Every volume once.

    Attributes:
        kept: Those that stay, sorted by source and case.
        names: For each kept volume its own name, then the names of its copies, sorted.
        dropped: Those that go, sorted by source and case.
        near_kept: Near-duplicates that stay because they were asked to: by name, the volume that each is like.
    """

    kept: list[Record]
    names: dict[str, list[str]]
    dropped: list[Duplicate]
    near_kept: dict[str, Match]


def deduplicate(
    records: Sequence[Record],
    matches: Mapping[str, Sequence[Match]],
    source_order: Sequence[str],
    *,
    keep_near: bool = False,
) -> Deduplicated:
    """Keep one copy of every scan.

    Volumes are taken in the order of preference: more slices, then smaller pixels, then the earlier source, then the
    case id. One that matches a volume already taken is dropped as its copy, of an exact one before a near one, and of
    the most preferred among equals. Being alike is not passed on: in A ~ B ~ C where A and C differ, both A and C stay.

    Args:
        records: Volumes that take part.
        matches: For each name what ``ContentIndex.matches`` found; names that do not take part are passed over.
        source_order: Names of sources, the most trusted first.
        keep_near: Drop exact copies only.
    """
    rank = {source: index for index, source in enumerate(source_order)}

    def preference(record: Record) -> tuple[int, float, int, str]:
        _, y, x = record.native_spacing_mm
        return -record.shape[0], y * x, rank[record.source], record.case

    kept: dict[str, Record] = {}
    names: dict[str, list[str]] = {}
    near_kept: dict[str, Match] = {}
    dropped: list[Duplicate] = []
    alike = _symmetric(matches)
    for record in sorted(records, key=preference):
        found = [match for match in alike.get(record.name, ()) if match.name in kept]
        found.sort(key=lambda match: (match.kind != EXACT, preference(kept[match.name])))
        if found and (found[0].kind == EXACT or not keep_near):
            first = found[0]
            dropped.append(Duplicate(record, first.name, first.kind, first.similarity))
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
    """Return the matches of each name in both directions: which of two was asked about the other must not matter."""
    both: dict[str, dict[str, Match]] = {}
    for name, found in sorted(matches.items()):
        for match in found:
            if match.name == name:
                continue
            for own, other in ((name, match.name), (match.name, name)):
                known = both.setdefault(own, {}).get(other)
                strength = max(match.similarity, known.similarity if known else 0.0)
                kind = EXACT if EXACT in (match.kind, known.kind if known else NEAR) else NEAR
                both[own][other] = Match(other, kind, strength)
    return {name: list(found.values()) for name, found in both.items()}
