import math

import pytest

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.optim.config import OptimConfig, lr_factor
from pretraining.schedules import Schedule


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": Schedule(-1e-4)}, "lr must"),
        ({"lr": Schedule(1e-4, start=-1e-4, warmup_steps=5)}, "lr must"),
        ({"lr_scaling": "sqrt"}, "lr_scaling 'sqrt' is none of none, sqrt_1024, linear_256"),
        ({"weight_decay": Schedule(0.04, end=-0.1)}, "weight_decay"),
        ({"momentum": Schedule(0.99, end=1.01)}, "momentum"),
        ({"teacher_temperature": Schedule(0.07, warmup_steps=5)}, "teacher_temperature"),
        ({"freeze_last_layer_steps": -1}, "freeze_last_layer_steps -1"),
        ({"layer_decay": 0.0}, "layer_decay 0.0"),
        ({"layer_decay": 1.1}, "layer_decay 1.1"),
        ({"patch_embed_lr_multiplier": -0.2}, "patch_embed_lr_multiplier"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"betas": (0.9,)}, "betas"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"clip_norm": math.nan}, "clip_norm"),
    ],
)
def test_refuses_what_cannot_be_optimised(options, message):
    with pytest.raises(ConfigurationError, match=f"optim: {message}"):
        OptimConfig(**options)


@pytest.mark.parametrize(
    ("rule", "batch", "expected"),
    [("none", 512, 1.0), ("sqrt_1024", 512, math.sqrt(8)), ("sqrt_1024", 4096, 8.0), ("linear_256", 512, 2.0)],
)
def test_lr_factor(rule, batch, expected):
    assert lr_factor(rule, batch) == pytest.approx(expected, rel=1e-12)


def test_unused_start_is_not_checked():
    OptimConfig(teacher_temperature=Schedule(0.07, start=0.0))
