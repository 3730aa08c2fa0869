"""Whether weights have seen a case: the case ids that provenance lists, and what it cannot speak for.

Provenance is what ``read_weights`` returns and trainer checkpoints keep. Its ``derived_from`` is the provenance of what
the weights were made from, a catalog name, or several provenances by the networks that they went to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from nnunetv2_meddino.weights.catalog import CATALOG

SEEN_CASES = "seen_cases"
"""Key of a list of cases: source -> all ids by which a dataset may name one of its cases. The list speaks for what the
weights were made from too, where that has the key as well, emptied by ``without_cases``."""

_LITS_TEST = re.compile(r"(LiTS/)?lits_test_(?P<number>\d{3,})")

Cases = dict[str, list[str]]


def seen_cases(provenance: Mapping[str, Any], cases: Iterable[str]) -> dict[str, tuple[str, ...]] | None:
    """Return for each case the sources that have a case of this id in what the weights were pretrained on.

    An id is not a scan: releases are renamed in other collections, and two sources may use one id.

    Args:
        provenance: Of the weights.
        cases: Ids, as nnU-Net has them; ``source/case`` asks for one source alone.

    Returns:
        Sources by case, none where the id is not listed; None where no cases are listed at all. What the lists do not
        cover is told by ``unlisted``.
    """
    if not any(SEEN_CASES in weights for weights in history(provenance)):
        return None
    ids = {source: frozenset(listed) for source, listed in listed_cases(provenance).items()}
    return {
        case: tuple(s for s, own in ids.items() if own & {case, case.removeprefix(f"{s}/"), _released(case, s)})
        for case in cases
    }


def _released(case: str, source: str) -> str:
    """Return the release's name of a test case of LiTS: lists made by earlier versions have no other one."""
    match = _LITS_TEST.fullmatch(case)
    return f"test-volume-{int(match['number'])}" if match and source == "LiTS" else case


def unlisted(provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of weights in the history whose pretraining images are not listed case by case.

    Catalog weights without medical collections, such as those from photographs, are none of them.
    """
    origins = _origins(provenance)
    names = [name for origin in origins for name in unlisted(origin)]
    own = provenance.get("name")
    copied = own in {origin.get("name") for origin in origins}  # what is trained gets a name of its own
    entry = CATALOG.get(str(own))
    if SEEN_CASES not in provenance and not copied and (entry is None or entry.collections):
        names.insert(0, str(own or "weights without a name"))
    return tuple(dict.fromkeys(names))


def listed_cases(provenance: Mapping[str, Any]) -> Cases:
    """Return all listed cases of weights and of what they were made from, by source, sorted."""
    return merged(*(weights.get(SEEN_CASES, {}) for weights in history(provenance)))


def merged(*lists: Mapping[str, Iterable[str]]) -> Cases:
    """Return the cases of all lists, by source, sorted, each once."""
    ids: dict[str, set[str]] = {}
    for cases in lists:
        for source, own in cases.items():
            ids.setdefault(source, set()).update(own)
    return {source: sorted(ids[source]) for source in sorted(ids)}


def without_cases(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return provenance with all lists emptied, for a place below a list that includes them."""
    return _replaced(provenance, lambda _: {})


def with_counts(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return provenance with the numbers of listed ids in place of the ids, to be printed."""
    return _replaced(provenance, lambda cases: {source: len(ids) for source, ids in cases.items()})


def _replaced(provenance: Mapping[str, Any], replace: Callable[[Any], Any]) -> dict[str, Any]:
    """Return provenance with ``replace(list)`` in place of all lists in it and in that of all it was made from."""
    result = dict(provenance)
    if SEEN_CASES in result:
        result[SEEN_CASES] = replace(result[SEEN_CASES])
    derived_from = result.get("derived_from")
    if isinstance(derived_from, Mapping):
        if is_several(derived_from):
            result["derived_from"] = {name: _replaced(origin, replace) for name, origin in derived_from.items()}
        else:
            result["derived_from"] = _replaced(derived_from, replace)
    return result


def history(provenance: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the provenance of weights, then of all that they were made from."""
    yield provenance
    for origin in _origins(provenance):
        yield from history(origin)


def _origins(provenance: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the provenance of what weights were directly made from."""
    derived_from = provenance.get("derived_from")
    if isinstance(derived_from, str):
        return [{"name": derived_from}]
    if not isinstance(derived_from, Mapping):
        return []
    return list(derived_from.values()) if is_several(derived_from) else [derived_from]


def is_several(derived_from: Mapping[str, Any]) -> bool:
    """Tell whether ``derived_from`` holds several provenances by the networks that they went to, and not one."""
    return all(isinstance(value, Mapping) for value in derived_from.values())
