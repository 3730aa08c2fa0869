"""The whole objective of a micro-batch: DINO, iBOT, KoLeo and Gram, weighted as in DINOv3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from pretraining.losses.config import LossConfig
from pretraining.losses.dino import GLOBAL_CROPS, dino_loss, pair_shares
from pretraining.losses.gram import gram_loss
from pretraining.losses.ibot import ibot_loss
from pretraining.losses.koleo import koleo_loss
from pretraining.schedules import StepValues


class StudentOutputs(Protocol):
    """What the objective needs of the student. Crops are crop-major: crop 0 of all B images, then crop 1, and so on."""

    @property
    def global_cls(self) -> Tensor:
        """``(2B, D)`` class tokens of the global crops after the final norm, before the head."""

    @property
    def patches(self) -> Tensor:
        """``(2B, P, D)`` patch tokens of the global crops after the final norm, masked ones among them."""

    @property
    def dino_global(self) -> Tensor:
        """``(2B, K)`` logits of the global crops."""

    @property
    def dino_local(self) -> Tensor:
        """``(LB, K)`` logits of the local crops."""

    @property
    def ibot(self) -> Tensor:
        """``(M, K)`` logits of the masked patches."""


class Targets(NamedTuple):
    """The teacher's probabilities, from ``sinkhorn_targets``."""

    dino: Tensor
    """``(2B, K)`` of the global crops."""
    ibot: Tensor
    """``(M, K)`` of the masked patches."""


@dataclass(frozen=True)
class Losses:
    """The objective of a micro-batch."""

    total: Tensor
    """Scalar with a gradient."""
    terms: dict[str, Tensor]
    """Detached scalars before weighting: ``dino_local``, ``dino_global``, ``koleo`` (the mean over the two crops),
    ``ibot``, and ``gram`` where there is a Gram teacher. On the device: reading one waits for it."""


def objective(
    student: StudentOutputs,
    targets: Targets,
    patch_weights: Tensor,
    *,
    config: LossConfig,
    values: StepValues,
    gram_patches: Tensor | None = None,
    masks: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    koleo: Tensor | None = None,
) -> Losses:
    """Return the weighted sum of all terms for one micro-batch.

    Args:
        student: Outputs of the student.
        targets: Of the teacher for the same crops and patches.
        patch_weights: ``(M,)`` one over the number of masked patches in the patch's crop.
        config: Constant weights and options.
        values: Scheduled weights of this step, by their names in the configuration.
        gram_patches: ``(2B, P', D)`` patches of the Gram teacher after the final norm, or None for no Gram loss.
        masks: ``(2B, P)`` bool, the student's; needed where the Gram loss looks at some patches only.
        group: Processes among which KoLeo looks for neighbours; None for this one alone.
        koleo: KoLeo's term, a scalar with a gradient, where it takes more than this micro-batch.

    Raises:
        ConfigurationError: A term cannot be computed from a batch of this size or shape.
    """
    temperature = config.student_temperature
    dino = dino_loss(
        student.dino_global,
        student.dino_local,
        targets.dino,
        temperature=temperature,
        ignore_diagonal=config.global_ignore_diagonal,
    )
    if koleo is None:
        koleo = koleo_term(student.global_cls, config, group)
    ibot = ibot_loss(student.ibot, targets.ibot, patch_weights, len(student.global_cls), temperature=temperature)
    terms = {"dino_local": dino.local, "dino_global": dino.global_, "koleo": koleo, "ibot": ibot}
    if gram_patches is not None:
        terms["gram"] = gram_loss(student.patches, gram_patches, config.gram, masks)
    num_local = GLOBAL_CROPS * len(student.dino_local) // len(student.dino_global)
    total = weighted_sum(terms, num_local, config, values)
    return Losses(total, {name: term.detach() for name, term in terms.items()})


def koleo_term(global_cls: Tensor, config: LossConfig, group: dist.ProcessGroup | None) -> Tensor:
    """Return the mean of the KoLeo losses of the two crops, from class tokens ``(2B, D)``; see ``objective``."""
    crops = global_cls.chunk(GLOBAL_CROPS)
    return torch.stack([koleo_loss(crop, top_k=config.koleo.top_k, group=group) for crop in crops]).mean()


def weighted_sum(terms: Mapping[str, Tensor], num_local: int, config: LossConfig, values: StepValues) -> Tensor:
    """Return the objective from its terms, those of ``Losses``.

    ``w_dino (a_local w_local L_local + a_global L_global) + w_koleo (KoLeo_1 + KoLeo_2) + w_ibot L_ibot + w_gram
    L_gram``, with ``a_local`` and ``a_global`` the shares of pairs of crops (DINOv3).
    """
    local_share, global_share = pair_shares(num_local, ignore_diagonal=config.global_ignore_diagonal)
    dino = local_share * values.local_weight * terms["dino_local"] + global_share * terms["dino_global"]
    koleo = GLOBAL_CROPS * terms["koleo"]
    total = config.dino_weight * dino + config.koleo_weight * koleo + config.ibot_weight * terms["ibot"]
    return total + values.gram_weight * terms["gram"] if "gram" in terms else total
