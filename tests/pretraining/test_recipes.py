"""The recipes against what is published: numbers written here by hand from the paper and DINOv3's configurations."""

from __future__ import annotations

import pytest

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.config import STAGES, RunConfig
from pretraining.recipes import RECIPES, recipe
from pretraining.settings import from_dict, to_dict


def values(config: RunConfig, step: int):
    return config.optim.schedules(config.engine.steps, config.data.batch_size).at(step)


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
    assert (last.gram_loss_weight, last.local_loss_weight) == (gram, local)
    assert {(v.global_size, v.local_size, v.gram_size) for v in config.all_views()} == sizes
    assert sum(r.share for r in config.resolutions) == pytest.approx(1.0 if config.resolutions else 0.0)
    assert (config.model.dino_head.prototypes, config.model.drop_path, config.views.num_local) == (65536, 0.3, 8)


def test_gram_weight_reaches_its_target_within_the_first_thousand_steps():
    config = recipe("meddinov3", "stage2")
    weights = [values(config, step).gram_loss_weight for step in range(0, 1100, 50)]
    assert weights[0] == 0
    assert weights == sorted(weights)
    assert weights[20:] == [2.0, 2.0]
    assert values(config, 500).gram_loss_weight == pytest.approx(1.0, abs=0.01)  # half of the cosine


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
    assert config.data.micro_batches(1) >= 8


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("stage", STAGES)
def test_recipes_are_complete_and_survive_a_file(name, stage):
    config = recipe(name, stage)
    assert config.stage == stage
    assert from_dict(RunConfig, to_dict(config)) == config
    assert config.data.micro_batches(1) >= 1


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
        ({"initial": "previous"}, "stage1 has no stage before it"),
        ({"stage": "stage9"}, "is none of"),
    ],
)
def test_configurations_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        from_dict(RunConfig, changes, "test", recipe("meddinov3", "stage1"))
