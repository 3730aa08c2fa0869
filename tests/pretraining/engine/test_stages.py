"""From stage to stage: what is handed over, what is passed over, what is refused; and what comes out as weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from nnunetv2_meddino.errors import BusyError, CheckpointError, ConfigurationError, DataError, WeightsError
from nnunetv2_meddino.locks import locked
from nnunetv2_meddino.networks.vit import VisionTransformer
from nnunetv2_meddino.weights.contamination import seen_cases, unlisted
from nnunetv2_meddino.weights.load import load_into, read_weights, write_weights
from pretraining.corpus.format import read_corpus
from pretraining.engine.checkpointing.checkpoint import Checkpoints
from pretraining.engine.export import export_teacher, find_teacher
from pretraining.engine.loop import StageTraining
from pretraining.engine.stages import initialize_from
from pretraining.engine.teachers import teacher_path
from pretraining.model.student_teacher import StudentTeacher
from tests.pretraining.curation.folders import curated, phantom, write_volume
from tests.pretraining.golden import under
from tests.pretraining.training import STEPS, losses, small_config, small_corpus, teacher, train, train_all

STAGES = ("stage1", "stage2", "stage3")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """All three stages."""
    folder = tmp_path_factory.mktemp("run")
    configs = [small_config(stage) for stage in STAGES]
    assert train_all(configs, corpus, folder)
    return folder


def filled(config, run):
    model = StudentTeacher(config.model, gram=config.gram_teacher.enabled)
    return model, initialize_from(model, config, run)


def equal(module, state):
    """Compare all tensors but mask tokens: weights of the plugin have none, and teachers mask nothing."""
    ours = module.state_dict()
    same = all(torch.equal(ours[name], tensor) for name, tensor in state.items() if "mask_token" not in name)
    return same and ours.keys() == state.keys()


def test_every_stage_has_its_losses_and_files(run):
    for stage in STAGES:
        assert len(losses(run / stage)) == STEPS
        assert (run / stage / "config.yaml").is_file()
        assert (run / stage / "pictures" / f"step_{STEPS:08d}.png").is_file()
    assert "loss/gram" in (run / "stage2" / "metrics.jsonl").read_text()
    assert "loss/gram" not in (run / "stage1" / "metrics.jsonl").read_text()


def test_second_stage_starts_from_the_first_ones_teachers(run):
    model, origins = filled(small_config("stage2"), run)
    last, anchor = teacher(run, "stage1"), teacher(run, "stage1", 3)
    assert equal(model.student, last)
    assert equal(model.teacher, last)
    assert equal(model.gram_teacher, under(anchor, "backbone."))
    assert not equal(model.gram_teacher, under(last, "backbone."))
    files = [Path(origins[name]["path"]).name for name in ("initial", "gram_teacher")]
    assert files == [f"step_{STEPS:08d}.safetensors", "step_00000003.safetensors"]


def test_third_stage_starts_from_the_second_ones_last_teacher(run):
    model, _ = filled(small_config("stage3"), run)
    last = teacher(run, "stage2")
    assert equal(model.student, last)
    assert equal(model.gram_teacher, under(last, "backbone."))


def test_finished_stages_are_passed_over_and_the_rest_goes_on(corpus, run, tmp_path, monkeypatch):
    (tmp_path / "stage1").symlink_to(run / "stage1")
    ran = []
    train_step = StageTraining._train
    monkeypatch.setattr(
        StageTraining, "_train", lambda self, *a: ran.append((self.config.stage, a[0])) or train_step(self, *a)
    )
    configs = [small_config(stage) for stage in STAGES]
    assert not train_all(configs, corpus, tmp_path, stop_after=4)
    assert train_all(configs, corpus, tmp_path)
    assert ran == [("stage2", step) for step in range(STEPS)] + [("stage3", step) for step in range(STEPS)]
    assert losses(tmp_path / "stage3") == losses(run / "stage3")


def test_finished_stage_is_not_passed_over_with_other_settings_or_another_corpus(corpus, run, tmp_path):
    before = (run / "stage1" / "config.yaml").read_bytes()
    wanted = "stage1 is finished, with other settings: optim.lr.peak was .*, is now 1e-05. Go on with the same settings"
    with pytest.raises(ConfigurationError, match=wanted):
        train(small_config("stage1", "--optim.lr", "1e-5"), corpus, run)
    assert train(small_config("stage1", "--data.workers", "2"), corpus, run), "that makes no other model"
    write_volume(phantom(7), tmp_path / "raw" / "case_7.nii.gz")
    curated(tmp_path / "other", ("two", tmp_path / "raw"))
    with pytest.raises(ConfigurationError, match="trained on another corpus"):
        train(small_config("stage1"), tmp_path / "other", run)
    assert (run / "stage1" / "config.yaml").read_bytes() == before


def test_settings_written_before_there_were_groups_are_understood(corpus, run, tmp_path):
    """As ``config.yaml`` was: what a process held at once was a group, and KoLeo could look on other processes."""
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "stage1" / "config.yaml"
    content = yaml.safe_load(path.read_text())
    content["data"] |= {"micro_batch_size": content["data"].pop("group_size")}
    content["losses"]["koleo"] = {"distributed": False, "group_size": None, "top_k": 1}
    path.write_text(yaml.safe_dump(content))
    assert train(small_config("stage1"), corpus, tmp_path / "run")
    content["losses"]["koleo"]["distributed"] = True
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigurationError, match=f"{path}.*distributed"):
        train(small_config("stage1"), corpus, tmp_path / "run")


def test_settings_of_all_stages_are_compared_before_one_is_trained(corpus, run, tmp_path):
    (tmp_path / "stage2").symlink_to(run / "stage2")
    configs = [small_config("stage1"), small_config("stage2", "--optim.lr", "1e-5")]
    with pytest.raises(ConfigurationError, match="stage2 is finished, with other settings"):
        train_all(configs, corpus, tmp_path)
    assert not (tmp_path / "stage1").exists()


def test_stage_begun_when_a_seed_drew_other_numbers_is_not_resumed(corpus, tmp_path, monkeypatch):
    save = Checkpoints.save

    def unversioned(self, step, state, metadata):  # as releases did that ordered slices by a Feistel network
        save(self, step, state, {name: value for name, value in metadata.items() if name != "draws_version"})

    monkeypatch.setattr(Checkpoints, "save", unversioned)
    assert not train(small_config(), corpus, tmp_path, stop_after=1)
    files = sorted(path for path in (tmp_path / "stage1").rglob("*") if path.is_file())
    before = [path.read_bytes() for path in files]
    with pytest.raises(CheckpointError, match=r"stage1 was begun by a release that draws.*or begin it anew"):
        train(small_config(), corpus, tmp_path)
    assert [path.read_bytes() for path in files] == before
    last = teacher_path(tmp_path / "stage1", STEPS)
    last.parent.mkdir(exist_ok=True)
    last.touch()
    assert train(small_config(), corpus, tmp_path), "a finished stage needs no checkpoint"


def test_two_trainings_of_a_run_do_not_write_over_each_other(corpus, tmp_path):
    with locked(tmp_path), pytest.raises(BusyError, match=f"another command works in {tmp_path}"):
        train(small_config(), corpus, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_stage_killed_before_its_first_checkpoint_begins_anew(corpus, run, tmp_path, monkeypatch):
    (tmp_path / "stage1").symlink_to(run / "stage1")

    def killed(self, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(StageTraining, "_train", killed)
    with pytest.raises(KeyboardInterrupt):
        train(small_config("stage2"), corpus, tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "stage2" / "initial_weights.json").is_file()
    assert train(small_config("stage2"), corpus, tmp_path)
    assert losses(tmp_path / "stage2") == losses(run / "stage2")


def test_stage_before_must_be_finished(corpus, run, tmp_path):
    with pytest.raises(ConfigurationError, match="the last teacher of stage1, which is not finished"):
        train(small_config("stage2"), corpus, tmp_path)
    with pytest.raises(ConfigurationError, match="there are those of steps 3, 6"):
        filled(small_config("stage2", "--gram-teacher.teacher", "previous:4"), run)


def test_teacher_of_another_architecture_is_refused(run):
    config = small_config("stage2", "--model.dino-head.prototypes", "32")
    with pytest.raises(WeightsError, match="dino_head.last_layer.weight"):
        filled(config, run)


def test_first_stage_starts_from_weights(tmp_path, run):
    exported = tmp_path / "w.safetensors"
    export_teacher(teacher_path(run / "stage1", 3), exported, "meddino")
    model, origins = filled(small_config("stage1", "--model.weights", str(exported)), tmp_path)
    for network in (model.student, model.teacher):
        assert equal(network.backbone, under(teacher(run, "stage1", 3), "backbone."))
    assert origins["initial"]["derived_from"]["step"] == 3


def test_gram_teacher_from_a_file(tmp_path, run):
    exported = tmp_path / "w.safetensors"
    export_teacher(teacher_path(run / "stage2", STEPS), exported, "meddino")
    model, _ = filled(small_config("stage2", "--gram-teacher.teacher", str(exported)), run)
    assert equal(model.gram_teacher, under(teacher(run, "stage2"), "backbone."))


def test_teacher_says_what_it_is(run, corpus):
    with safe_open(teacher_path(run / "stage3", STEPS), "pt") as file:
        header = json.loads(file.metadata()["provenance"])
    assert header["corpus"]["hash"] == read_corpus(corpus)["hash"]
    assert "exclusions" in header["corpus"]
    assert header["step"] == STEPS
    assert header["configuration"]["stage"] == "stage3"
    assert header["input_statistics"]["mean"] == [65.1084213256836]
    assert header["derived_from"]["initial"]["derived_from"]["initial"]["configuration"]["stage"] == "stage1"


def test_teacher_lists_the_cases_of_all_stages_once(tmp_path, run, corpus):
    """Stage 2 goes on with another corpus from a teacher of stage 1 of ``run``; its Gram teacher is of that, too."""
    write_volume(phantom(7), tmp_path / "raw" / "case_7.nii.gz")
    curated(tmp_path / "other", ("two", tmp_path / "raw"))
    first = str(teacher_path(run / "stage1", STEPS))
    config = small_config("stage2", "--initial", first, "--gram-teacher.teacher", first, "--engine.steps", "3")
    assert train(config, tmp_path / "other", tmp_path / "run")
    found = find_teacher(tmp_path / "run")
    with safe_open(found, "pt") as file:
        text = file.metadata()["provenance"]
    assert json.loads(text)["seen_cases"] == {"one": ["case_0", "case_1"], "two": ["case_7"]}
    assert text.count("case_0") == 1
    exported = tmp_path / "exported.safetensors"
    export_teacher(found, exported, "timm")
    provenance = read_weights(str(exported)).provenance
    assert seen_cases(provenance, ["case_1", "case_7", "case_8"]) == {
        "case_1": ("one",),
        "case_7": ("two",),
        "case_8": (),
    }
    assert unlisted(provenance) == ()


@pytest.mark.parametrize("layout", ["meddino", "timm", "meddinov3"])
def test_export_has_the_teachers_features_in_every_layout(run, tmp_path, layout):
    out = tmp_path / f"weights{'.pth' if layout == 'meddinov3' else '.safetensors'}"
    export_teacher(find_teacher(run), out, layout)
    weights = read_weights(str(out))
    torch.manual_seed(0)
    image = torch.randn(1, 1, 48, 64)
    model, _ = filled(small_config("stage3"), run)
    model.teacher.load_state_dict(teacher(run, "stage3"))
    if layout == "meddinov3":  # the file cannot say how wide a head is, the release's have 64
        stored = torch.load(out, weights_only=True)["teacher"]
        state = {name.removeprefix("backbone."): tensor for name, tensor in stored.items() if "head" not in name}
        assert {"cls_token", "storage_tokens", "mask_token", "rope_embed.periods", "norm.bias"} <= state.keys()
        assert not any("qkv.bias" in name or "local" in name for name in state)
        return
    vit = VisionTransformer(weights.config, 1).eval()
    load_into(vit, weights)
    with torch.no_grad():
        features = vit.forward_tokens(image, [vit.config.depth - 1])[0].patches
        torch.testing.assert_close(features, model.teacher.backbone(image).patches)


def test_export_without_header_keeps_what_is_known(run, tmp_path):
    weights = read_weights(str(find_teacher(run)))
    write_weights(tmp_path / "a.safetensors", weights.tensors, weights.config, {"licence": "of its own"}, "meddino")
    export_teacher(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "meddino")
    assert read_weights(str(tmp_path / "b.safetensors")).provenance["licence"] == "of its own"


def test_teachers_are_found_by_run_stage_and_step(run, tmp_path):
    assert find_teacher(run) == teacher_path(run / "stage3", STEPS)
    assert find_teacher(run / "stage1") == teacher_path(run / "stage1", STEPS)
    assert find_teacher(run / "stage1", 3) == teacher_path(run / "stage1", 3)
    with pytest.raises(WeightsError, match="no teacher of step 4; it has .*stage1 3, 6"):
        find_teacher(run, 4)
    with pytest.raises(WeightsError, match="none at all"):
        find_teacher(tmp_path)


def test_stage_that_goes_on_needs_nothing_it_started_from(corpus, run, tmp_path):
    shutil.copytree(run / "stage1", tmp_path / "stage1")
    assert not train(small_config("stage2"), corpus, tmp_path, stop_after=2)
    shutil.rmtree(tmp_path / "stage1")
    (tmp_path / "stage2/initial_weights.json").rename(tmp_path / "stage2/origins.json")  # its name up to 0.1
    assert train(small_config("stage2"), corpus, tmp_path)
    assert not (tmp_path / "stage2/initial_weights.json").exists()
    assert losses(tmp_path / "stage2") == losses(run / "stage2")
    headers = []
    for folder in (run, tmp_path):
        with safe_open(teacher_path(folder / "stage2", STEPS), "pt") as file:
            headers.append(json.loads(file.metadata()["provenance"]))
    origins = [header["derived_from"]["initial"]["configuration"] for header in headers]
    assert origins[0] == origins[1]


def test_broken_origins_of_a_stage_that_goes_on_are_an_error_of_their_own(corpus, tmp_path):
    assert not train(small_config("stage1"), corpus, tmp_path, stop_after=2)
    (tmp_path / "stage1/initial_weights.json").write_text('{"initial": ')
    with pytest.raises(
        DataError, match=r"initial_weights\.json cannot be read as JSON.*restore it from a copy, or train"
    ) as caught:
        train(small_config("stage1"), corpus, tmp_path)
    assert "plan" not in str(caught.value)


def test_request_to_stop_in_the_last_step_begins_no_other_stage(corpus, tmp_path):
    configs = [small_config(stage) for stage in STAGES[:2]]
    assert not train_all(configs, corpus, tmp_path, stop_after=STEPS)
    assert teacher_path(tmp_path / "stage1", STEPS).is_file()
    assert not (tmp_path / "stage2").exists()
    assert (tmp_path / "stopped").is_file()
