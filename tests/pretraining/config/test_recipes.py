"""The recipes against what is published: numbers written here by hand from the paper and DINOv3's configurations."""

from __future__ import annotations

import pytest

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.config import STAGES, RunConfig
from pretraining.config.parse import from_dict, stage_configurations
from pretraining.config.recipes import RECIPES, recipe


def values(config: RunConfig, step: int):
    return config.schedules().at(step)


@pytest.mark.parametrize(
    ("stage", "steps", "lr", "momentum", "sizes", "gram", "local"),
    [
        ("stage1", 100_000, 2e-4, 0.994, {(256, 112, None)}, 0.0, 1.0),
        ("stage2", 10_000, 5e-5, 0.999, {(256, 112, 512)}, 2.0, 0.5),
        (
            *("stage3", 10_000, 2.5e-5, 0.999),
            {(512, 112, 768), (768, 112, 1152), (768, 168, 1152), (768, 224, 1152), (768, 336, 1152)},
            *(1.5, 0.5),
        ),
    ],
)
def test_meddinov3_has_the_published_stages(stage, steps, lr, momentum, sizes, gram, local):
    config = recipe("meddinov3", stage)
    last = values(config, steps - 1)
    assert (config.engine.steps, config.data.batch_size) == (steps, 512)
    assert (last.lr, last.momentum, last.weight_decay, last.teacher_temperature) == (lr, momentum, 0.04, 0.07)
    assert (last.gram_weight, last.local_weight) == (gram, local)
    assert {(v.global_size, v.local_size, v.gram_size) for v in config.all_views()} == sizes
    assert sum(r.share for r in config.resolutions) == pytest.approx(1.0 if config.resolutions else 0.0)
    assert (config.model.dino_head.prototypes, config.model.drop_path, config.views.num_local) == (65536, 0.3, 8)


def test_gram_weight_reaches_its_target_within_the_first_thousand_steps():
    config = recipe("meddinov3", "stage2")
    weights = [values(config, step).gram_weight for step in range(0, 1100, 50)]
    assert weights[0] == 0
    assert weights == sorted(weights)
    assert weights[20:] == [2.0, 2.0]
    assert values(config, 500).gram_weight == pytest.approx(1.0, abs=0.01)  # half of the cosine


def test_first_stage_warms_up_as_chosen():
    config = recipe("meddinov3", "stage1")
    assert (values(config, 0).lr, values(config, 2500).lr, values(config, 5000).lr) == (0, pytest.approx(1e-4), 2e-4)
    assert (values(config, 4999).last_layer_lr, values(config, 5000).last_layer_lr) == (0, 2e-4)
    assert values(config, 0).teacher_temperature == 0.04
    assert values(config, 5000).teacher_temperature == pytest.approx(0.055)


def test_third_stage_rises_along_a_cosine_over_a_third():
    config = recipe("meddinov3", "stage3")
    assert values(config, 1666).lr == pytest.approx(1.25e-5, rel=1e-3)
    assert values(config, 9999).lr == 2.5e-5


def test_im1k_is_the_vit_l_schedule_scaled_by_the_root_rule():
    config = recipe("im1k", "stage1")
    assert values(config, 9_999).lr == pytest.approx(1e-3 * 4 * 0.5**0.5)
    assert values(config, 99_999).lr == pytest.approx(1e-6, rel=0.1)
    assert values(config, 99_999).weight_decay == pytest.approx(0.4, rel=1e-3)
    assert (values(config, 0).momentum, values(config, 99_999).momentum) == (0.992, pytest.approx(1.0, abs=1e-6))
    assert (config.views.global_size, config.views.local_size) == (224, 96)


@pytest.mark.parametrize("stage", STAGES)
def test_sister_study_warms_up_over_a_tenth_and_falls_to_one_millionth(stage):
    config = recipe("linear_warmup_cosine", stage)
    steps = config.engine.steps
    peak = recipe("meddinov3", stage).optim.lr.peak
    assert values(config, steps // 10).lr == pytest.approx(peak)
    assert values(config, steps // 20).lr == pytest.approx(peak / 2)
    assert values(config, steps - 1).lr == pytest.approx(1e-6)
    assert (config.data.batch_size, config.engine.precision) == (256, "float16")
    assert config.data.division(1).micro_batches >= 8


GROUPS = {
    "meddinov3": (512, 64, 64, 16),
    "im1k": (512, 64, 64, 16),
    "linear_warmup_cosine": (256, 32, 32, 16),
    "single_gpu": (128, 32, 32, 8),
    "small": (64, 64, 64, 16),
    "smoke": (32, 32, 32, 8),
}
"""Batch, and slices of a group in each stage."""


@pytest.mark.parametrize("processes", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_starts_as_written_on_1_to_64_processes(name, stage, processes):
    (config,) = stage_configurations([stage], name)
    batch, group = GROUPS[name][0], GROUPS[name][1 + STAGES.index(stage)]
    if processes > batch:
        with pytest.raises(ConfigurationError, match=f"over {processes} processes; it can over 1, 2, 4, 8, 16, 32\\."):
            config.division(processes)
        return
    division, own = config.division(processes), batch // processes
    assert (division.group, division.micro_batch) == (group, min(own, group))
    assert division.micro_batch * division.micro_batches == own
    assert (division.processes, division.parts) == (max(group // own, 1), 1)
    # every micro-batch of every process is a share of a group, and the groups are the same runs of places
    places = [rank * own + i * division.micro_batch for rank in range(processes) for i in range(division.micro_batches)]
    starts = [place - division.share(place).start for place in places]
    assert sorted(set(starts)) == list(range(0, batch, group))
    assert division.micro_batch % division.stratum == 0  # what a block is compiled for does not vary


@pytest.mark.parametrize("processes", [3, 5, 6, 12, 24, 48])
def test_sizes_that_cannot_work_are_refused_with_those_that_can(processes):
    message = f"cannot be divided over {processes} processes; it can over 1, 2, 4, 8, 16, 32, 64, 128, 256, 512\\."
    with pytest.raises(ConfigurationError, match=message):
        recipe("meddinov3", "stage1").division(processes)


def test_other_batches_suit_other_numbers_of_processes():
    (config,) = stage_configurations(["stage1"], "meddinov3", None, ["--data.batch-size", "384"])
    assert [config.division(processes).processes for processes in (1, 3, 6, 12, 24, 48)] == [1, 1, 1, 2, 4, 8]


@pytest.mark.parametrize(("most", "micro_batch", "parts"), [(128, 64, 1), (32, 32, 2), (30, 16, 4), (3, 2, 32)])
def test_a_smaller_micro_batch_divides_the_group(most, micro_batch, parts):
    (config,) = stage_configurations(["stage1"], "meddinov3", None, ["--data.micro-batch-size", str(most)])
    division = config.division(1)
    assert (division.micro_batch, division.parts, division.processes) == (micro_batch, parts, 1)
    assert division.micro_batch * division.micro_batches == 512


def test_gram_similarities_of_a_batch_need_whole_groups():
    overrides = ["--losses.gram.level", "batch"]
    (config,) = stage_configurations(["stage2"], "meddinov3", None, overrides)
    assert config.division(8).micro_batch == 64
    with pytest.raises(ConfigurationError, match="of a group of 64 slices, of which a process holds 32 at once"):
        config.division(16)


@pytest.mark.parametrize(("name", "stage"), [("none", "stage1"), ("smoke", "stage4")])
def test_unknown_recipes_and_stages_are_refused(name, stage):
    with pytest.raises(ConfigurationError, match="there are"):
        recipe(name, stage)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": {"steps": 3000}}, "freeze_last_layer_steps.*do not end within the 3000 steps"),
        ({"gram_teacher": {"enabled": True}}, "Gram teacher needs crops of its own"),
        ({"views": {"gram_size": 512}}, "Gram teacher needs crops of its own"),
        ({"data": {"group_size": 1}}, "group_size 1 must be above the number of neighbours"),
        ({"data": {"group_size": 60}}, "batch_size 512 must be a multiple of group_size 60"),
        ({"initial": "previous"}, "stage1 has no stage before it"),
        ({"stage": "stage9"}, "is none of"),
    ],
)
def test_configurations_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        from_dict(changes, "test", recipe("meddinov3", "stage1"))


@pytest.mark.parametrize("name", list(RECIPES))
def test_blocks_start_low_but_in_small_trainings_from_random_weights(name):
    assert {recipe(name, stage).model.layer_scale for stage in STAGES} == {1.0 if name in ("small", "smoke") else 1e-5}
