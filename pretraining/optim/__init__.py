"""Optimisation of the student and of the teacher that follows it."""

from pretraining.optim.config import OptimConfig
from pretraining.optim.ema import copy_parameters, update_ema
from pretraining.optim.optimizer import build_optimizer, clip_gradients, set_step
from pretraining.optim.param_groups import parameter_groups

__all__ = [
    "OptimConfig",
    "build_optimizer",
    "clip_gradients",
    "copy_parameters",
    "parameter_groups",
    "set_step",
    "update_ema",
]
