"""Recipe, file and command line: what counts, and for which stage."""

from __future__ import annotations

import pytest

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.config.configure import stage_configurations

BOTH = ["stage1", "stage2"]


def test_command_line_outweighs_file_and_file_the_recipe(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("optim: {lr: 1e-3, clip_norm: 5}\nstage2: {optim: {lr: 7e-4}}\ndata: {batch_size: 32}\n")
    first, second = stage_configurations(BOTH, "smoke", file, ["--data.batch-size", "64", "--stage2.data.seed=3"])
    assert (first.optim.lr.peak, second.optim.lr.peak) == (1e-3, 7e-4)
    assert first.optim.lr.warmup_steps == 6, "the rest of a schedule stays"
    assert (first.optim.clip_norm, first.data.batch_size) == (5.0, 64)
    assert (first.data.seed, second.data.seed) == (0, 3)
    assert (first.stage, second.stage) == ("stage1", "stage2")


@pytest.mark.parametrize("stage", ["stage2.", "stage1.", ""])
def test_setting_of_one_stage_leaves_the_other(stage):
    first, second = stage_configurations(BOTH, "smoke", None, [f"--{stage}optim.clip-norm", "9"])
    assert [c.optim.clip_norm == 9 for c in (first, second)] == [stage != "stage2.", stage != "stage1."]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optim.learning-rate", "1"], "no option optim.learning_rate"),
        (["--stage1.optim.lr"], "lacks its value"),
        (["--optim.lr", "fast"], "optim.lr"),
        (["optim.lr", "1"], "is no option"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        stage_configurations(["stage1"], "smoke", None, arguments)


def test_unknown_key_of_a_file_is_named(tmp_path):
    (tmp_path / "own.yaml").write_text("stage2: {optm: {lr: 1}}\n")
    with pytest.raises(ConfigurationError, match=r"own\.yaml.*no option optm.*optim"):
        stage_configurations(BOTH, "smoke", tmp_path / "own.yaml")
