"""Losses of self-supervised training on plain tensors: DINO, iBOT, KoLeo, Gram and the teacher's Sinkhorn targets."""

from pretraining.losses.config import GramConfig, KoLeoConfig, LossConfig
from pretraining.losses.objective import Losses, StudentOutputs, Targets, koleo_term, objective
from pretraining.losses.sinkhorn import sinkhorn_scaling, sinkhorn_targets

__all__ = [
    "GramConfig",
    "KoLeoConfig",
    "LossConfig",
    "Losses",
    "StudentOutputs",
    "Targets",
    "koleo_term",
    "objective",
    "sinkhorn_scaling",
    "sinkhorn_targets",
]
