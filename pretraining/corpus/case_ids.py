"""Which cases are in a corpus, by every id that a list may name them by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretraining.corpus.format import VOLUMES_FILE, read_corpus, read_table

NUMBER = re.compile(r"\{n(?::0[0-9]+d)?\}")
"""Place of a case's number in an alias, as in ``lits_{n:03d}``."""

_SERIES = re.compile(r"-[0-9a-f]{8}$")
"""What curation adds to a case id that several series or files have."""


def corpus_record(corpus: Path) -> dict[str, Any]:
    """Return what a checkpoint keeps about the corpus it was trained on.

    Returns:
        Hash, settings, volumes, slices, sources and exclusions as in ``corpus.json``; ``cases`` has for each source all
        ids by which a list may name one of its cases, sorted. Copies that were merged into a volume are among them.

    Raises:
        DataError: There is no finished corpus in the folder, or its tables cannot be read.
    """
    content = read_corpus(corpus)
    record = {key: content[key] for key in ("hash", "settings", "volumes", "slices", "sources", "exclusions")}
    ids: dict[str, set[str]] = {}
    for names in read_table(corpus / VOLUMES_FILE, ["names"]).column("names").to_pylist():
        for source, _, case in (name.partition("/") for name in names):
            ids.setdefault(source, set()).update(listed_ids(case, content["sources"][source]["aliases"]))
    return record | {"cases": {source: sorted(ids[source]) for source in sorted(ids)}}


def listed_ids(case: str, aliases: Mapping[str, str]) -> set[str]:
    """Return the ids by which lists may name a case: its own, that of the patient of a series, and aliases.

    Args:
        case: Its id in the corpus.
        aliases: Of its source, other id to case id, with the place of a number in both: ``lits_{n:03d}: volume-{n}``.
    """
    own = {case, _SERIES.sub("", case)}
    numbers = ((alias, _number(name, pattern)) for alias, pattern in aliases.items() for name in own)
    return own | {alias.format(n=number) for alias, number in numbers if number is not None}


def _number(text: str, pattern: str) -> int | None:
    """Return the number for which a pattern gives a text; None if there is none."""
    before, after = NUMBER.split(pattern, maxsplit=1)
    digits = text.removeprefix(before).removesuffix(after)
    if not re.fullmatch(r"[0-9]+", digits) or pattern.format(n=int(digits)) != text:
        return None
    return int(digits)


def short_name(name: str) -> str:
    """Return a case id that fits above a picture."""
    return name if len(name) <= 18 else f"{name[:8]}...{name[-7:]}"
