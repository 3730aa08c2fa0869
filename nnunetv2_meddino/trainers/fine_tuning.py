"""How the pretrained encoder of a trainer is fine-tuned: in full, not at all, or in part."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from nnunetv2_meddino.environment import MEDDINO_FINETUNE
from nnunetv2_meddino.errors import ConfigurationError

FULL, FROZEN, LORA, LAYER_DECAY = "full", "frozen", "lora", "layer_decay"

SETTINGS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        FULL: MappingProxyType({}),
        FROZEN: MappingProxyType({}),
        LORA: MappingProxyType({"rank": 8, "alpha": 16}),
        LAYER_DECAY: MappingProxyType({"decay": 0.75}),
    }
)
"""Values of ``MEDDINO_FINETUNE`` and of a trainer's ``fine_tuning``, with the numbers that each has.

Rank and alpha are those of Hu et al. 2021 (arXiv:2106.09685, table 9: RoBERTa large); SAMed, which adapted a ViT to
segment CT of 18 patients, has rank 4 (Zhang and Liu 2023, arXiv:2304.13785). The decay is that of "MAE", He et al. 2022
(arXiv:2111.06377, table 9), after Clark et al. 2020 (arXiv:2003.10555).
"""

FINE_TUNING = "fine_tuning"
"""Key of the fine-tuning in the provenance that a checkpoint keeps: what ``choose_fine_tuning`` returned. It is absent
where the encoder is trained in full, or as the trainer alone defines it."""


def choose_fine_tuning(own: str | None, trainer: str) -> dict[str, Any]:
    """Return the fine-tuning of a fresh training: that of ``MEDDINO_FINETUNE``, else the trainer's own.

    Args:
        own: The trainer's; None: it has no choice.
        trainer: Its name, for messages.

    Returns:
        Its ``name`` and its numbers in ``SETTINGS``.

    Raises:
        ConfigurationError: There is no such fine-tuning, or no choice.
    """
    wanted = MEDDINO_FINETUNE.get()
    if own is None and wanted is not None:
        msg = (
            f"{MEDDINO_FINETUNE.name} is {wanted}, and {trainer} has no choice of how a pretrained ViT is fine-tuned. "
            f"Unset {MEDDINO_FINETUNE.name} for it, or train MedDINOv3Trainer or another row of its ablation."
        )
        raise ConfigurationError(msg)
    if (name := wanted or own or FULL) not in SETTINGS:
        msg = f"{MEDDINO_FINETUNE.name if wanted else f'fine_tuning of {trainer}'} is {name!r}; it must be one of"
        raise ConfigurationError(f"{msg} {', '.join(SETTINGS)}.")
    return {"name": name, **SETTINGS[name]}


def fine_tuned(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a network, ``MedDINOv3``, that a fine-tuning asks for, as JSON values.

    Features of a frozen encoder are those of its pretrained network, in training as in prediction: without stochastic
    depth, whose noise is there for what is trained.

    Args:
        chosen: From ``choose_fine_tuning``.
    """
    if chosen["name"] == FROZEN:
        return {"frozen": True, "drop_path": 0.0}
    return {"lora": {"rank": chosen["rank"], "alpha": chosen["alpha"]}} if chosen["name"] == LORA else {}
