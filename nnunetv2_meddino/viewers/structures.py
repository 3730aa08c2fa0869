"""What viewers show of the classes of a dataset: names and colours, the same in every format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunetv2_meddino.evaluation.classes import LabelSet
from nnunetv2_meddino.visualization.style import structure_colours

Colour = tuple[float, float, float]
"""Red, green and blue from 0 to 1."""

IGNORED_COLOUR: Colour = (0.5, 0.5, 0.5)
"""Of voxels that nobody labelled; no class is grey."""


@dataclass(frozen=True)
class Structure:
    """What a viewer shows as one thing."""

    name: str
    labels: tuple[int, ...]
    """Labels of the voxels that belong to it."""
    colour: Colour


def structures_of(labels: Mapping[str, Any]) -> list[Structure]:
    """Return the classes of a dataset, without background and ``ignore``, in the order of their labels.

    Args:
        labels: Name of a class -> label, or list of labels (a region): the entry ``labels`` of ``dataset.json``.

    Raises:
        ConfigurationError: The labels contradict themselves.
    """
    classes = sorted(LabelSet.from_json(labels, "dataset.json").classes.items(), key=lambda item: item[1])
    colours = structure_colours(range(1, len(classes) + 1)).values()
    return [Structure(name, own, colour) for (name, own), colour in zip(classes, colours, strict=True)]


def ignored_structure(labels: Mapping[str, Any]) -> Structure | None:
    """Return what shows voxels that nobody labelled; None where the dataset has no ``ignore`` label."""
    label = LabelSet.from_json(labels, "dataset.json").ignore_label
    return None if label is None else Structure("ignore", (label,), IGNORED_COLOUR)


def structures_by_label(labels: Mapping[str, Any]) -> list[Structure]:
    """Return one structure for each label, for formats in which a voxel value has one name; ``ignore`` is the last.

    A label that belongs to several regions bears all their names: voxels of 2 in ``whole: [1, 2]`` and ``core: [2]``
    are ``whole + core``, those of 1 only ``whole``.

    Raises:
        ConfigurationError: As ``structures_of``.
    """
    names: dict[int, list[str]] = {}
    for structure in structures_of(labels):
        for label in structure.labels:
            names.setdefault(label, []).append(structure.name)
    colours = structure_colours(names)
    ignored = ignored_structure(labels)
    named = [Structure(" + ".join(names[label]), (label,), colour) for label, colour in colours.items()]
    return [*named, *([] if ignored is None else [ignored])]
