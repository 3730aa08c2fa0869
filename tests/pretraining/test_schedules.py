"""Schedules against values of the DINOv3 reference (golden) and against closed forms."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.losses import LossConfig
from pretraining.optim import OptimConfig
from pretraining.schedules import Schedule, Schedules, scheduled
from tests.conftest import shared_path

V1_RUNS = ("vitl_im1k_ws32", "tiny_v1_full")
V2_RUNS = ("stage1_7b_ws256", "stage2_7b_ws256", "stage3_7b_ws256", "tiny_v2_full")
VITL_LR = 1e-3
"""Before the scaling rule; the golden inputs of this family hold it after."""

NAMES = {
    "lr": "lr",
    "last_layer_lr": "last_layer_lr",
    "weight_decay": "weight_decay",
    "momentum": "momentum",
    "teacher_temp": "teacher_temperature",
    "dino_local_loss_weight": "local_weight",
    "gram_loss_weight": "gram_weight",
}


def golden(name):
    return json.loads(shared_path("golden/schedules/schedules.json").read_text())[name]


def schedules_of(name, *run_length) -> Schedules:
    """Return our schedules of a reference's run, by default of its own length and batch size."""
    run = golden(name)
    optim, losses = (v1_configs if name in V1_RUNS else v2_configs)(run)
    run_length = run_length or (run["total_iterations"], run["global_batch"])
    return optim.schedules(*run_length, scheduled(losses))


def v1_configs(run) -> tuple[OptimConfig, LossConfig]:
    epoch, optim, teacher = run["epoch_length"], run["inputs"]["optim"], run["inputs"]["teacher"]

    def dinov2(peak, **options):
        return Schedule(peak, family="dinov2", **options)

    config = OptimConfig(
        lr=dinov2(VITL_LR, end=optim["min_lr"], warmup_steps=optim["warmup_epochs"] * epoch),
        lr_scaling="sqrt_1024",
        weight_decay=dinov2(optim["weight_decay"], end=optim["weight_decay_end"]),
        momentum=dinov2(teacher["momentum_teacher"], end=teacher["final_momentum_teacher"]),
        teacher_temperature=dinov2(
            teacher["teacher_temp"],
            start=teacher["warmup_teacher_temp"],
            warmup_steps=teacher["warmup_teacher_temp_epochs"] * epoch,
        ),
        freeze_last_layer_steps=optim["freeze_last_layer_epochs"] * epoch,
    )
    return config, LossConfig()


def v2_configs(run) -> tuple[OptimConfig, LossConfig]:
    epoch, inputs = run["epoch_length"], run["inputs"]

    def dinov3(record):
        cosine = record.get("cosine_epochs")
        return Schedule(
            record["peak"],
            start=record["start"],
            end=record["end"],
            warmup_steps=record["warmup_epochs"] * epoch,
            decay_steps=None if cosine is None else cosine * epoch,
        )

    keys = ("gram_loss_weight", "dino_local_loss_weight")
    schedules = inputs["schedules"]
    optim = OptimConfig(
        lr=dinov3(schedules["lr"]),
        lr_scaling="sqrt_1024",
        weight_decay=dinov3(schedules["weight_decay"]),
        momentum=dinov3(schedules["momentum"]),
        teacher_temperature=dinov3(schedules["teacher_temp"]),
        freeze_last_layer_steps=schedules["lr"]["freeze_last_layer_epochs"] * epoch,
    )
    return optim, LossConfig(**{NAMES[key]: dinov3(inputs[key]) for key in keys if key in inputs})


@pytest.mark.parametrize("name", [*V1_RUNS, *V2_RUNS])
def test_equals_the_reference_at_every_recorded_step(name):
    run = golden(name)
    schedules = schedules_of(name)
    values = [schedules.at(step) for step in run["iterations"]]
    for key, expected in run["values"].items():
        np.testing.assert_allclose([getattr(v, NAMES[key]) for v in values], expected, rtol=1e-9, err_msg=key)
    assert set(run["values"]) <= set(NAMES)


@pytest.mark.parametrize("name", ["tiny_v1_full", "tiny_v2_full"])
def test_table_equals_single_steps_and_the_reference(name):
    run = golden(name)
    lr = schedules_of(name).by_name["lr"]
    table = lr.values(run["total_iterations"])
    assert table.dtype == np.float64
    np.testing.assert_allclose(table, run["values"]["lr"], rtol=1e-9)
    np.testing.assert_array_equal(table, [lr.at(step, run["total_iterations"]) for step in run["iterations"]])


def test_cosine_warmup_is_the_ramp_of_stage_3():
    run = golden("stage3_7b_ws256")
    ramp = Schedule(run["values"]["lr"][-1], warmup_steps=10_000, warmup_shape="cosine")
    values = [ramp.at(step, run["total_iterations"]) for step in run["iterations"]]
    np.testing.assert_allclose(values, run["values"]["lr"], rtol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(0.04), [0.04] * 8),
        (Schedule(1.0, warmup_steps=4), [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]),
        (Schedule(1.0, warmup_steps=4, family="dinov2"), [0, 1 / 3, 2 / 3, 1, 1, 1, 1, 1]),
        (Schedule(1.0, end=0.0, warmup_steps=2, decay_steps=3), [0, 0.5, 1, 0.5, 0, 0, 0, 0]),
        (Schedule(1.0, end=3.0, decay_steps=0), [3.0] * 8),
        (Schedule(1.0, end=0.0, warmup_steps=5), [0, 0.2, 0.4, 0.6, 0.8, 1, 0.5, 0]),
        (
            Schedule(1.0, end=0.0, warmup_steps=4, family="dinov2"),
            [0, 1 / 3, 2 / 3, 1, 1, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 + math.cos(3 * math.pi / 4)) / 2],
        ),
        (Schedule(1.0, start=0.5, warmup_steps=3, warmup_shape="cosine"), [0.5, 0.75, 1, 1, 1, 1, 1, 1]),
        (Schedule(1.0, warmup_steps=16), [i / 16 for i in range(8)]),
    ],
)
def test_closed_forms(schedule, expected):
    np.testing.assert_allclose(schedule.values(8), expected, atol=1e-15)


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_rests_at_its_end_after_the_run(family):
    schedule = Schedule(1.0, end=0.25, warmup_steps=2, family=family)
    assert schedule.at(8, 8) == schedule.at(100, 8) == 0.25


@pytest.mark.parametrize(
    ("extra", "steps", "shares"),
    [
        # n = int(1.5 * 4) = 6: the first four of (1 + cos(i pi / 5)) / 2, less the fourth, over 1 less the fourth
        (0.5, 4, [1.0, 0.854101966249684, 0.472135954999579, 0.0]),
        # n = int(1.3 * 5) = 6, not 6.5
        (0.3, 5, [1.0, 0.894427190999916, 0.618033988749895, 0.276393202250021, 0.0]),
        # n = int(1.01 * 3) = 3: the whole of a cosine of three steps, which contains both its ends
        (0.01, 3, [1.0, 0.5, 0.0]),
        (0.5, 1, [1.0]),
    ],
)
def test_trunc_extra_is_the_beginning_of_a_longer_cosine(extra, steps, shares):
    cut = Schedule(1.0, start=0.1, end=0.1, warmup_steps=2, family="dinov2", trunc_extra=extra)
    expected = [0.1, 1.0, *(0.1 + 0.9 * share for share in shares)]
    np.testing.assert_allclose(cut.values(2 + steps), expected, atol=1e-14)


@pytest.mark.parametrize(("family", "end"), [("dinov2", 0.1), ("dinov3", 0.4)])
def test_scaling_changes_the_peak_and_only_in_dinov3_the_end(family, end):
    scaled = Schedule(1.0, start=0.01, end=0.1, warmup_steps=2, family=family).scaled(4.0)
    assert (scaled.start, scaled.peak, scaled.end) == (0.01, 4.0, end)
    assert Schedule(1.0, family=family).scaled(4.0).at(7, 8) == 4.0


def test_defaults_are_the_first_stage_of_100_000_steps_unscaled():
    schedules = OptimConfig().schedules(100_000, 512, scheduled(LossConfig()))
    first, warming, frozen, free, last = (schedules.at(step) for step in (0, 2_500, 4_999, 5_000, 99_999))
    assert first.lr == 0.0
    assert warming.lr == pytest.approx(1e-4)
    assert frozen.last_layer_lr == 0.0 < frozen.lr
    assert (free.lr, free.last_layer_lr) == (2e-4, 2e-4)
    assert (last.lr, last.weight_decay, last.momentum) == (2e-4, 0.04, 0.994)
    assert (first.teacher_temperature, last.teacher_temperature) == (0.04, 0.07)
    assert schedules.at(5_000).teacher_temperature == pytest.approx(0.055)
    assert (last.local_weight, last.gram_weight) == (1.0, 0.0)


def test_a_step_has_a_value_of_every_schedule_in_the_configuration():
    @dataclass(frozen=True)
    class MoreLosses(LossConfig):
        more_weight: Schedule = Schedule(2.0, warmup_steps=4)

    schedules = OptimConfig().schedules(100_000, 512, scheduled(MoreLosses()))
    assert [schedules.at(step).more_weight for step in (0, 1, 4)] == [0.0, 0.5, 2.0]
    names = {"lr", "last_layer_lr", "weight_decay", "momentum", "teacher_temperature", "local_weight", "gram_weight"}
    assert vars(schedules.at(0)).keys() == names | {"more_weight"}
    with pytest.raises(ConfigurationError, match="losses: more_weight must never be below 0"):
        MoreLosses(more_weight=Schedule(1.0, end=-0.1))


def test_names_what_a_short_run_never_finishes():
    """The reference's second stage, started at step 0 of a short run, keeps a Gram weight of 0."""
    short, full = (schedules_of("stage2_7b_ws256", steps, 512) for steps in (10_000, 1_200_000))
    assert max(short.by_name["gram_weight"].values(10_000)) == 0.0
    assert short.unfinished() == ["lr", "teacher_temperature", "local_weight", "gram_weight"]
    assert full.unfinished() == []
    assert OptimConfig().schedules(4_000, 512, {}).unfinished() == [
        "lr",
        "teacher_temperature",
        "freeze_last_layer_steps",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps -1"),
        ({"decay_steps": -1}, "decay_steps -1"),
        ({"warmup_shape": "sine"}, "warmup_shape 'sine'"),
        ({"family": "dinov4"}, "family 'dinov4'"),
        ({"trunc_extra": 0.1}, "trunc_extra"),
        ({"trunc_extra": -0.1, "family": "dinov2"}, "trunc_extra -0.1"),
        ({"decay_steps": 5, "family": "dinov2"}, "decay_steps"),
    ],
)
def test_refuses_impossible_schedules(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Schedule(1.0, **options)
