"""The classes that are evaluated, and the tolerances of NSD for each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.files import read_json_value

DEFAULT_TOLERANCES_MM = (1.0, 2.0)
"""Tolerances of NSD; the first, the headline, is that of the MedDINOv3 paper."""

_FORMS = "a dataset.json, {name: id or [ids]} or a list of ids"

Tolerances = float | Iterable[float] | Mapping[str, float | Iterable[float]]


@dataclass(frozen=True)
class LabelSet:
    """The classes that are evaluated."""

    classes: dict[str, tuple[int, ...]]
    """Labels of each class, by name."""
    keys: dict[str, str]
    """Key of each class in nnU-Net's ``summary.json``: ``1``, or ``(1, 2)`` for a region."""
    ignore_label: int | None = None
    """Label of voxels of the reference that are ignored."""

    @classmethod
    def read(cls, path: Path | str) -> LabelSet:
        """Read the classes from nnU-Net's ``dataset.json``, or from a JSON file that holds less (``from_json``).

        Raises:
            ConfigurationError: The file cannot be read, or as ``from_json``.
        """
        content = read_json_value(Path(path), ConfigurationError, f"It must hold {_FORMS}.")
        return cls.from_json(content, str(path))

    @classmethod
    def from_json(cls, content: Any, source: str = "content") -> LabelSet:
        """Take the classes from nnU-Net's ``dataset.json``, from ``{name: id or [ids]}``, or from ``[id or [ids]]``.

        Background is left out; ``ignore`` is the label of ignored voxels. ``{"id": "name"}`` is accepted too.

        Args:
            content: Parsed content of such a file.
            source: Name of the file, for messages.

        Raises:
            ConfigurationError: The content has another form, no classes, or contradicts itself.
        """
        if isinstance(content, Mapping) and isinstance(content.get("labels"), (Mapping, list)):
            content = content["labels"]
        if isinstance(content, list):
            content = {_key(entry): entry for entry in content}
        if not isinstance(content, Mapping):
            raise ConfigurationError(f"{source} must hold {_FORMS}.")
        if content and all(k.isdecimal() and isinstance(v, str) for k, v in content.items()):
            content = {name: int(label) for label, name in content.items()}
        entries = dict(content)
        ignored = entries.pop("ignore", None)
        labels = {name: _labels(name, entry, source) for name, entry in entries.items()}
        labels = {name: own for name, own in labels.items() if set(own) != {0}}
        with_regions = any(len(own) > 1 for own in labels.values())
        keys = {
            n: _key(list(own) if with_regions and isinstance(entries[n], list) else own[0]) for n, own in labels.items()
        }
        if ignored is not None and (len(_labels("ignore", ignored, source)) != 1 or isinstance(ignored, list)):
            raise ConfigurationError(f"The ignore label in {source} must be one whole number, not {ignored!r}.")
        for name, own in labels.items():
            if ignored in own:
                raise ConfigurationError(f"Class {name!r} in {source} contains the ignore label {ignored}.")
        if not labels or len(set(keys.values())) < len(keys):
            msg = f"{source} declares {'the same labels under two names' if labels else 'no class but background'}."
            raise ConfigurationError(msg)
        return cls(labels, keys, ignored)


def _labels(name: str, entry: Any, source: str) -> tuple[int, ...]:
    values = entry if isinstance(entry, list) else [entry]
    if not values or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
        msg = f"Class {name!r} in {source} must be a label or a list of labels, whole numbers from 0, not {entry!r}."
        raise ConfigurationError(msg)
    return tuple(values)


def _key(entry: Any) -> str:
    return str(tuple(entry)) if isinstance(entry, list) else str(entry)


def tolerances_by_class(tolerances_mm: Tolerances, classes: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Return the tolerances of every class, in the order given, without repetitions; the first is the headline.

    Args:
        tolerances_mm: For all classes, or by name of the class.
        classes: Names of the classes.

    Raises:
        ConfigurationError: A class is unknown or has no tolerance, or a value is not a length.
    """
    if not isinstance(tolerances_mm, Mapping):
        values = tuple(tolerances_mm) if isinstance(tolerances_mm, Iterable) else (tolerances_mm,)
        tolerances_mm = dict.fromkeys(classes, values)
    if unknown := sorted(tolerances_mm.keys() - set(classes)):
        msg = f"NSD tolerances name unknown classes: {', '.join(unknown)}. The classes are {', '.join(classes)}."
        raise ConfigurationError(msg)
    if missing := [name for name in classes if name not in tolerances_mm]:
        raise ConfigurationError(f"No NSD tolerance is given for {', '.join(missing)}.")
    result = {}
    for name in classes:
        given = tolerances_mm[name]
        own = tuple(dict.fromkeys(float(t) for t in (given if isinstance(given, Iterable) else (given,))))
        alike = len({f"{t:g}" for t in own}) < len(own)
        if not own or alike or not all(math.isfinite(t) and t >= 0 for t in own):
            msg = f"The NSD tolerances of {name!r} must be different lengths in mm, 0 or more, not {own}."
            raise ConfigurationError(msg)
        result[name] = own
    return result
