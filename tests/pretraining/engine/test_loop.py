"""A stage as it runs: exact resume, requests to stop, numbers that are not finite, Gram teachers."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from threading import Event

import pytest
import torch
import torch.nn.functional as F

from nnunetv2_meddino.errors import ConfigurationError, DataError, TrainingError
from pretraining.config import GramTeacherConfig
from pretraining.corpus.dataset import SliceDataset
from pretraining.engine import loop, step
from pretraining.engine.loop import StageTraining
from pretraining.engine.monitoring import alarms as alarms_module
from pretraining.engine.monitoring import monitor
from pretraining.engine.monitoring.alarms import Alarms
from pretraining.engine.monitoring.fixed_slices import patch_features, watched_slices
from pretraining.engine.teachers import teacher_path
from pretraining.model.student_teacher import StudentTeacher
from tests.pretraining.engine.monitoring.labelled import write_balls
from tests.pretraining.training import STEPS, losses, metrics, small_config, small_corpus, teacher, train, with_engine

MICRO_BATCHES = 2
"""Of a step of ``small_config()``."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def straight(corpus, tmp_path_factory):
    """A run of the first stage that nothing disturbed."""
    run = tmp_path_factory.mktemp("straight")
    assert train(small_config(), corpus, run)
    return run


def same_tensors(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_losses_are_finite_and_the_student_learns(straight):
    assert len(losses(straight / "stage1")) == STEPS
    assert all(map(torch.isfinite, map(torch.tensor, losses(straight / "stage1"))))
    assert not same_tensors(teacher(straight, step=3), teacher(straight, step=STEPS))


@pytest.mark.parametrize("stopped", [1, 2, 3, 5])
def test_stopped_and_resumed_run_equals_an_undisturbed_one(corpus, straight, tmp_path, stopped):
    assert not train(small_config(), corpus, tmp_path, stop_after=stopped)
    assert (tmp_path / "stage1" / "checkpoints" / f"step_{stopped:08d}").is_dir()
    assert train(small_config(), corpus, tmp_path)
    resumed = [line for line in metrics(tmp_path / "stage1") if line.get("event") != "stopped"]
    assert resumed == metrics(straight / "stage1")
    assert same_tensors(teacher(tmp_path), teacher(straight))


def train_until_killed(corpus, run, monkeypatch, *, step):
    """Train until the step, counted from 0, would begin."""
    train_step = StageTraining._train

    def dying(self, number, *arguments):
        if number == step:
            self.checkpoints.wait()  # a process that is killed writes nothing afterwards; this one lives on
            raise KeyboardInterrupt
        return train_step(self, number, *arguments)

    monkeypatch.setattr(StageTraining, "_train", dying)
    with pytest.raises(KeyboardInterrupt):
        train(small_config(), corpus, run)
    monkeypatch.undo()


def test_run_killed_between_checkpoints_repeats_the_same_steps(corpus, straight, tmp_path, monkeypatch):
    train_until_killed(corpus, tmp_path, monkeypatch, step=3)
    assert train(small_config(), corpus, tmp_path)
    assert metrics(tmp_path / "stage1") == metrics(straight / "stage1")
    assert same_tensors(teacher(tmp_path), teacher(straight))


def test_other_seed_other_losses(corpus, straight, tmp_path):
    train(small_config("stage1", "--data.seed", "1"), corpus, tmp_path)
    assert losses(tmp_path / "stage1") != losses(straight / "stage1")


def test_every_micro_batch_of_every_step_draws_its_own_random_numbers(corpus, tmp_path, monkeypatch):
    seeds, call = [], step.TrainingStep.__call__

    def watching(self, batches, values, generators, shares, **settings):
        seeds.extend(generator.initial_seed() for generator in generators)
        return call(self, batches, values, generators, shares, **settings)

    monkeypatch.setattr(step.TrainingStep, "__call__", watching)
    train(small_config(), corpus, tmp_path)
    assert len(seeds) == len(set(seeds)) == STEPS * MICRO_BATCHES


def test_loader_waits_as_long_as_was_asked_for(corpus, tmp_path, monkeypatch):
    read = SliceDataset.decode

    def decode(self, rows, pixels):
        if torch.utils.data.get_worker_info() is not None:
            Event().wait()  # nobody sets it
        read(self, rows, pixels)

    monkeypatch.setattr(SliceDataset, "decode", decode)
    config = with_engine(small_config("stage1", "--data.workers", "1"), timeout_s=0.5)
    with pytest.raises(DataError, match=r"timed out after 0\.5 seconds.*raise --engine\.timeout-s"):
        train(config, corpus, tmp_path)


def test_checkpointed_activations_change_nothing(corpus, straight, tmp_path):
    assert train(with_engine(small_config(), checkpoint_activations=True), corpus, tmp_path)
    assert losses(tmp_path / "stage1") == losses(straight / "stage1")


def spoiled(monkeypatch, steps):
    """Put a NaN into one pixel of the views of some steps."""
    make = loop.make_views

    def make_views(slices, config, *, seed, step, share):
        views = make(slices, config, seed=seed, step=step, share=share)
        if step in steps:
            views.global_crops[0, 0, 0, 0] = float("nan")
        return views

    monkeypatch.setattr(loop, "make_views", make_views)


def not_finite(monkeypatch, steps, *, loss):
    """Make the loss of some steps infinite, with gradients that are not, or the other way round."""
    compute, calls = step.objective, []

    def objective(*arguments, **settings):
        losses, number = compute(*arguments, **settings), len(calls) // MICRO_BATCHES
        calls.append(number)
        if number not in steps:
            return losses
        if loss:
            return replace(losses, total=losses.total + torch.inf)
        losses.total.register_hook(lambda gradient: gradient * torch.inf)
        return losses

    monkeypatch.setattr(step, "objective", objective)


@pytest.mark.parametrize(
    "spoil",
    [spoiled, partial(not_finite, loss=True), partial(not_finite, loss=False)],
    ids=["image", "loss", "gradient"],
)
def test_step_that_is_not_finite_is_skipped_and_logged(corpus, tmp_path, monkeypatch, spoil):
    seen = []
    train_step = StageTraining._train

    def watching(self, step, *arguments):
        before = [p.detach().clone() for p in self.model.parameters()]
        result = train_step(self, step, *arguments)
        seen.append(all(torch.equal(a, b) for a, b in zip(before, self.model.parameters(), strict=True)))
        return result

    monkeypatch.setattr(StageTraining, "_train", watching)
    spoil(monkeypatch, {1, 2, 4})
    assert train(small_config("stage1", "--optim.lr.start", "1e-3"), corpus, tmp_path)
    assert seen == [False, True, True, False, True, False]
    lines = metrics(tmp_path / "stage1")
    assert [line["step"] for line in lines if line.get("event") == "skipped"] == [1, 2, 4]
    assert all(torch.isfinite(tensor).all() for tensor in teacher(tmp_path).values())


def test_run_stops_with_a_diagnosis_after_too_many_bad_steps(corpus, tmp_path, monkeypatch):
    spoiled(monkeypatch, range(2, STEPS))
    with pytest.raises(TrainingError, match=r"3 steps in a row.*step 4.*backbone nan.*volumes/one/.*--optim.lr"):
        train(small_config(), corpus, tmp_path)
    monkeypatch.undo()
    assert train(small_config(), corpus, tmp_path), "the checkpoint before is sound"


def test_bad_steps_are_counted_across_a_restart(corpus, tmp_path, monkeypatch):
    spoiled(monkeypatch, range(2, STEPS))
    assert not train(small_config(), corpus, tmp_path, stop_after=4)
    with pytest.raises(TrainingError, match="step 4"):
        train(small_config(), corpus, tmp_path)


def test_stop_after_a_skipped_first_step_does_not_count_as_a_step_of_adam(corpus, tmp_path, monkeypatch):
    spoiled(monkeypatch, {0})
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    config = small_config("stage1", "--optim.lr.start", "1e-3")
    assert train(config, corpus, whole)
    assert not train(config, corpus, stopped, stop_after=1)
    assert train(config, corpus, stopped)
    assert losses(stopped / "stage1") == losses(whole / "stage1")
    assert same_tensors(teacher(stopped), teacher(whole))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("--optim.lr", "1e-4"), r"optim\.lr\.peak was 0\.003, is now 0\.0001"),
        (("--data.seed", "5"), r"data\.seed was 0, is now 5"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(corpus, straight, override, message):
    config = with_engine(small_config("stage1", *override), steps=STEPS + 2)
    with pytest.raises(ConfigurationError, match=message):
        train(config, corpus, straight)


def test_other_corpus_in_the_same_folder_is_refused(straight, corpus, tmp_path):
    other = small_corpus(tmp_path)
    (other / "corpus.json").write_text((corpus / "corpus.json").read_text().replace('"hash": "', '"hash": "f'))
    (straight / "stage1" / "teachers" / f"step_{STEPS:08d}.safetensors").rename(tmp_path / "kept")
    try:
        with pytest.raises(ConfigurationError, match="another corpus"):
            train(small_config(), other, straight)
    finally:
        (tmp_path / "kept").rename(straight / "stage1" / "teachers" / f"step_{STEPS:08d}.safetensors")


def test_vanished_volume_is_named_and_nothing_is_lost(corpus, straight, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    own = small_corpus(tmp_path)
    assert not train(small_config(), own, tmp_path / "run", stop_after=2)
    volume = next((own / "volumes").rglob("*.b2nd"))
    volume.rename(tmp_path / "gone")
    with pytest.raises(Exception, match=volume.name):
        train(small_config(), own, tmp_path / "run")
    (tmp_path / "gone").rename(volume)
    assert train(small_config(), own, tmp_path / "run")
    assert losses(tmp_path / "run" / "stage1") == losses(straight / "stage1")


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        (GramTeacherConfig(True, refresh_every=3), [3, 6, 9, 12]),
        (GramTeacherConfig(True, refresh_every=3, first_refresh=6), [6, 9, 12]),
        (GramTeacherConfig(True, refresh_every=3, first_refresh=5, max_refreshes=2), [6, 9]),
        (GramTeacherConfig(True), []),
    ],
)
def test_gram_teacher_is_renewed_after_these_steps(config, steps):
    assert [step + 1 for step in range(13) if config.refreshes_after(step)] == steps


def test_gram_teacher_becomes_the_teacher_of_that_step(corpus, straight, tmp_path, monkeypatch):
    (tmp_path / "stage1").symlink_to(straight / "stage1")
    trainings = []
    run = StageTraining.run
    monkeypatch.setattr(StageTraining, "run", lambda self, *a: trainings.append(self) or run(self, *a))
    config = small_config("stage2", "--gram-teacher.refresh-every", "3", "--gram-teacher.max-refreshes", "1")
    assert train(config, corpus, tmp_path)
    gram = trainings[0].model.gram_teacher.state_dict()
    after = teacher(tmp_path, "stage2", 3)
    assert all(torch.equal(tensor, after[f"backbone.{name}"]) for name, tensor in gram.items())
    assert [line["step"] for line in metrics(tmp_path / "stage2") if line.get("event") == "gram_teacher"] == [2]


def test_linear_probe_is_part_of_the_metrics(corpus, tmp_path):
    data = write_balls(tmp_path / "Dataset001_Blobs")
    settings = ("--monitor.probe-dataset", str(data), "--monitor.probe-every", "3", "--monitor.probe-slices", "4")
    assert train(small_config("stage1", *settings), corpus, tmp_path / "run")
    probed = {
        line["step"] + 1: line["probe/dice"] for line in metrics(tmp_path / "run" / "stage1") if "probe/dice" in line
    }
    assert probed.keys() == {3, STEPS}
    assert all(0 <= dice <= 1 for dice in probed.values())


def baselines(stage_folder):
    return [line["values"] for line in metrics(stage_folder) if line.get("event") == "baseline"]


def test_baseline_is_the_first_line_and_says_what_the_networks_were_before_the_first_step(corpus, tmp_path):
    data = write_balls(tmp_path / "Dataset001_Blobs")
    settings = ("--monitor.probe-dataset", str(data), "--monitor.probe-slices", "4", "--monitor.check-every", "1")
    config = small_config("stage1", *settings)
    assert train(config, corpus, tmp_path / "run")
    first, *rest = metrics(tmp_path / "run" / "stage1")
    values = first.pop("values")
    assert first == {"step": 0, "event": "baseline", "message": "Measured before the first step."}
    assert not any("values" in line for line in rest)
    # a step measures what it saw, which is what was there before it; drop path and masks are drawn alike
    step_0 = next(line for line in rest if "loss" in line)
    for name in ("collapse/target_information", "collapse/class_rank", "collapse/target_entropy"):
        assert values[name] == pytest.approx(step_0[name], rel=1e-6), name
    torch.manual_seed(config.data.seed)
    vit = StudentTeacher(config.model).teacher.backbone
    (watched,) = watched_slices(SliceDataset(corpus), 1, config.views.intensity, size=48)
    (features,) = patch_features(vit, [watched])
    cosines = F.cosine_similarity(features.flatten(0, 1)[:, None], features.flatten(0, 1)[None], dim=-1)
    others = cosines[~torch.eye(len(cosines), dtype=torch.bool)].mean()
    assert values["collapse/patch_similarity"] == pytest.approx(float(others), rel=1e-5)
    assert 0 <= values["probe/dice"] <= 1
    assert (tmp_path / "run" / "stage1" / "pictures" / "step_00000000.png").is_file()


def test_baseline_changes_nothing_in_the_training(corpus, straight, tmp_path, monkeypatch):
    monkeypatch.setattr(StageTraining, "_measure_start", lambda *_: None)
    assert train(small_config(), corpus, tmp_path)
    assert not baselines(tmp_path / "stage1")
    assert losses(tmp_path / "stage1") == losses(straight / "stage1")
    assert same_tensors(teacher(tmp_path), teacher(straight))


def test_run_killed_before_its_first_checkpoint_holds_one_baseline(corpus, straight, tmp_path, monkeypatch):
    train_until_killed(corpus, tmp_path, monkeypatch, step=1)
    assert len(baselines(tmp_path / "stage1")) == 1
    assert train(small_config(), corpus, tmp_path)
    assert metrics(tmp_path / "stage1") == metrics(straight / "stage1")
    assert len(baselines(tmp_path / "stage1")) == 1


def test_views_that_are_compared_are_those_of_the_first_steps(corpus, tmp_path, monkeypatch):
    compared, trained = [], []
    tokens, call = monitor.class_tokens, step.TrainingStep.__call__

    def watching(self, batches, *arguments, **settings):
        trained.extend(batches)
        return call(self, batches, *arguments, **settings)

    monkeypatch.setattr(monitor, "class_tokens", lambda vit, views: compared.append(views) or tokens(vit, views))
    monkeypatch.setattr(step.TrainingStep, "__call__", watching)
    config = small_config("stage1", "--monitor.correlation-slices", "24")
    assert train(config, corpus, tmp_path)
    assert len(compared) == 24 // config.data.group_size == 6
    for one, other in zip(compared, trained, strict=False):
        assert torch.equal(one.global_crops, other.global_crops)
        assert torch.equal(one.local_crops, other.local_crops)


@pytest.mark.parametrize(
    ("temperature", "initial", "warned"), [("0.3", False, True), ("0.04", False, False), ("0.3", True, False)]
)
def test_views_below_the_border_are_reported_where_heads_are_random(straight, tmp_path, temperature, initial, warned):
    corpus = small_corpus(tmp_path, phantoms=4)
    given = ("--initial", str(teacher_path(straight / "stage1", STEPS))) if initial else ()
    alike = ("--views.global-scale", "1,1", "--views.local-scale", "1,1", "--views.jitter-probability", "0")
    rising = ("--optim.teacher-temperature", "0.07", "--optim.teacher-temperature.start", temperature)
    given = (*given, *alike, *rising, "--data.group-size", "8")
    config = small_config("stage1", *given)
    assert not train(config, corpus, tmp_path, stop_after=1)
    (values,) = baselines(tmp_path / "stage1")
    assert values["views/border"] == pytest.approx(float(temperature) / 0.1)
    assert values["views/border_largest"] == pytest.approx(max(float(temperature), 0.07) / 0.1)
    assert 0.6 < values["views/correlation"] < 1.4
    assert values["views/slices"] == len(SliceDataset(corpus).usable_rows()) > 24
    events = [
        (line["step"], line["message"]) for line in metrics(tmp_path / "stage1") if line.get("event") == "warning"
    ]
    assert len(events) == warned
    assert all(place == 0 and "agree too little" in message for place, message in events)


def test_patches_are_compared_with_the_baseline_by_the_alarm(corpus, tmp_path, monkeypatch):
    checked = []
    check = Alarms.check
    monkeypatch.setattr(Alarms, "check", lambda self, *a: checked.append((self, *a)) or check(self, *a))
    assert not train(small_config(), corpus, tmp_path, stop_after=1)
    (values,) = baselines(tmp_path / "stage1")
    assert checked[0][0].state_dict()["first_spread"] == 1 - values["collapse/patch_similarity"]
    assert checked[0][1] == -1


def test_short_stage_whose_heads_say_nothing_reports_that_at_its_end(corpus, tmp_path, monkeypatch):
    """Although it ends before the first regular look for a collapse."""
    monkeypatch.setattr(alarms_module, "FEWEST_FREE_STEPS", 1)
    for name, bound, reported in (("silent", "0.01", [STEPS - 1]), ("quiet", "0", [])):
        low = ("--model.layer-scale", "1e-5")  # untrained class tokens are then all alike, and the heads cannot begin
        settings = ("--monitor.alarms.heads-information", bound, "--monitor.check-every", "100", *low)
        assert train(small_config("stage1", *settings), corpus, tmp_path / name)
        alarms = [line for line in metrics(tmp_path / name / "stage1") if line.get("event") == "alarm"]
        assert [line["step"] for line in alarms] == reported
        assert all("only KoLeo is training" in line["message"] for line in alarms)
