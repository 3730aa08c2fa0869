"""NRRD: axes in space out of a header; http://teem.sourceforge.net/nrrd/format.html."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from nnunetv2_meddino.imaging.text_headers import TextHeader, read_header
from pretraining.curation.readers.raw_image import MM_PER_UNIT, RawImage, as_three_axes
from pretraining.curation.volume import Rejected

_SPACES = {
    **dict.fromkeys(("left-posterior-superior", "lps", "left-posterior-superior-time", "lpst"), (1, 1, 1)),
    **dict.fromkeys(("right-anterior-superior", "ras", "right-anterior-superior-time", "rast"), (-1, -1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las", "left-anterior-superior-time", "last"), (1, -1, 1)),
}
"""Space of the header -> signs that turn it into (L, P, S)."""

_GENERIC = ("domain", "space", "???")
"""Kinds that an axis of space may have, and others as well."""


def read_nrrd(path: Path) -> RawImage:
    """Read one file; raises ``Rejected`` or ``DamagedError``."""
    header = read_header(path)
    sizes = header.sizes
    directions = _directions(header)
    kinds = header.fields.get("kinds", "").lower().split() or ["domain"] * len(sizes)
    if len(kinds) != len(sizes) or (directions and len(directions) != len(sizes)):
        raise Rejected("corrupt", "the NRRD header has different numbers of sizes, kinds and space directions")
    kept = []
    for i, (size, kind) in enumerate(zip(sizes, kinds, strict=True)):
        if directions[i] is not None if directions else kind in _GENERIC:
            kept.append(i)
        elif size != 1:
            reason = "complex" if "complex" in kind else "4d" if kind in (*_GENERIC, "list", "time") else "rgb"
            raise Rejected(reason, f"an axis of {size} values outside space (kind '{kind}')")
    shape = as_three_axes([sizes[i] for i in reversed(kept)])
    values = header.values().reshape(shape)
    signs = _SPACES.get(header.fields.get("space", "").lower())
    steps = np.array([directions[i] for i in reversed(kept)], np.float64) if directions else np.empty(0)
    if signs is None or steps.shape != (3, 3):
        raise Rejected("no_orientation", "the NRRD header has no space, or no directions of its axes")
    units = [unit.strip().lower() for unit in re.findall(r'"([^"]*)"', header.fields.get("spaceunits", ""))]
    in_mm = [MM_PER_UNIT.get(unit, 1.0) for unit in units[:3]] or [1.0]
    named = " and ".join(sorted({unit for unit in units if unit in MM_PER_UNIT}))
    return RawImage(values, steps * signs * in_mm, metadata={"format": "nrrd"}, unit=named or "mm")


def _directions(header: TextHeader) -> list[list[float] | None]:
    """Return the step along each axis, as in ``(a,b,c) none (d,e,f)``; nothing where the header gives none."""
    text = re.sub(r"(?<=[(,])\s+|\s+(?=[,)])", "", header.fields.get("spacedirections", ""))
    directions: list[list[float] | None] = []
    for part in text.split():
        vector = None if part.lower() == "none" else [float(number) for number in part.strip("()").split(",")]
        if vector is not None and len(vector) != 3:
            raise Rejected("corrupt", f"the NRRD header is damaged (space direction {part})")
        directions.append(vector)
    return directions
