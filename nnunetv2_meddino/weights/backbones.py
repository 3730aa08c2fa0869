"""Which backbone and which weights a fresh training uses: the trainer's own, unless the user says otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from nnunetv2_meddino.environment import MEDDINO_BACKBONE, MEDDINO_WEIGHTS
from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.networks.vit import BACKBONES
from nnunetv2_meddino.weights.load import (
    LoadReport,
    PretrainedWeights,
    architecture_of,
    backbone_name,
    load_into,
    read_weights,
)

NO_WEIGHTS = "none"
"""Value of ``MEDDINO_WEIGHTS`` that asks for random initialisation."""


@dataclass(frozen=True)
class BackboneFamily:
    """The architectures among which a trainer can choose, and what is known of their pretrained weights."""

    argument: str
    """Argument of a segmentation network that takes the architecture's fields."""
    backbones: Mapping[str, Any]
    """Architectures by the name that ``MEDDINO_BACKBONE`` takes."""
    default: str
    """The one to build where nothing else is said."""
    architecture_of: Callable[[str], Any]
    """Finds the architecture of pretrained weights."""
    name_of: Callable[[Any], str | None]
    """Finds the name of an architecture."""
    read: Callable[[str], PretrainedWeights]
    """Reads pretrained weights."""
    load: Callable[[Any, PretrainedWeights], LoadReport]
    """Copies them into an encoder."""


VIT = BackboneFamily("vit", BACKBONES, "vitb16", architecture_of, backbone_name, read_weights, load_into)


class BackboneChoice(NamedTuple):
    """A backbone and where its weights come from; no weights is random initialisation, asked for."""

    config: Any
    """A member of the family: ``ViTConfig`` in that of the ViT."""
    weights: str | None


def choose_backbone(pretrained: Mapping[str, str], family: BackboneFamily = VIT) -> BackboneChoice:
    """Combine a trainer's own weights with ``MEDDINO_WEIGHTS`` and ``MEDDINO_BACKBONE``.

    Args:
        pretrained: Backbone names and the weights a trainer uses for them, the default first. Empty for a trainer that
            starts from random weights by definition: it then takes the architecture of ``MEDDINO_WEIGHTS``, so that it
            stays comparable, and not the weights.
        family: The architectures to choose among.

    Raises:
        ConfigurationError: The backbone is unknown, has no weights, or differs from the weights' architecture.
        WeightsError: The weights cannot be read.
    """
    backbone, weights = MEDDINO_BACKBONE.get(), MEDDINO_WEIGHTS.get()
    if backbone is not None and backbone not in family.backbones:
        msg = f"MEDDINO_BACKBONE is {backbone!r}; it must be one of {', '.join(family.backbones)}, or unset."
        raise ConfigurationError(msg)
    if weights is not None and weights.lower() == NO_WEIGHTS:
        return BackboneChoice(family.backbones[backbone or family.default], None)
    if weights is None and pretrained:
        weights = _own_weights(pretrained, backbone)
    if weights is None:
        return BackboneChoice(family.backbones[backbone or family.default], None)
    config = family.architecture_of(weights)
    if backbone is not None and family.name_of(config) != backbone:
        msg = (
            f"MEDDINO_BACKBONE is {backbone}, but the weights {weights} are of another architecture ({config}). Unset "
            "MEDDINO_BACKBONE to use the weights' architecture, or choose other weights."
        )
        raise ConfigurationError(msg)
    return BackboneChoice(config, weights if pretrained else None)


def _own_weights(pretrained: Mapping[str, str], backbone: str | None) -> str:
    """Return the trainer's weights for a backbone; for its default backbone where none is named."""
    if backbone is None:
        return next(iter(pretrained.values()))
    if backbone not in pretrained:
        msg = (
            f"This trainer has no pretrained weights for MEDDINO_BACKBONE={backbone} (it has them for "
            f"{', '.join(pretrained)}). Set MEDDINO_WEIGHTS to weights of that architecture, or MEDDINO_WEIGHTS=none "
            "to train from random weights on purpose."
        )
        raise ConfigurationError(msg)
    return pretrained[backbone]
