"""Names and numbers as readers expect them: names broken between their words only; one epoch, two epochs."""

from __future__ import annotations

import re


def wrapped(text: str, letters: int) -> str:
    """Break a text into lines of at most so many letters, after spaces and underscores; longer words stay whole."""
    lines = [""]
    for word in re.split(r"(?<=[ _])", text):
        if lines[-1] and len(lines[-1]) + len(word.rstrip()) > letters:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.rstrip() for line in lines)


def counted(number: int | str, noun: str) -> str:
    """Return ``1 epoch``, ``2 epochs``."""
    return f"{number} {noun}{'' if str(number) == '1' else 's'}"
