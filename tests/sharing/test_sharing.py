"""Models that are pushed to a stand-in for the hub, and fetched from there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, hf_hub_download

from nnunetv2_meddino.cli.main import main
from nnunetv2_meddino.comparison.folders import Folders
from nnunetv2_meddino.comparison.results import Selection, collect
from nnunetv2_meddino.files import write_json
from nnunetv2_meddino.sharing import model_files
from nnunetv2_meddino.weights.load import read_weights, write_weights
from tests.comparison import results
from tests.hub import Hub, Repository, reached_from_here, serve
from tests.inference.models import stock_prediction, write_model
from tests.weights.checkpoints import SMALL, checkpoint, random_tensors

MODEL = Path("Dataset998_Discs", "nnUNetTrainer__nnUNetPlans__2d")
FINE_TUNED = Path("Dataset027_LiTS", "MedDINOv3Trainer__nnUNetPlans__2d_896")
SECRET = "jane_doe"
"""In every place that must not leave this machine: a case, a user, a folder, a file."""
ORIGIN = {
    "name": "our-run-stage3",
    "source": f"/home/{SECRET}/run/teacher.safetensors",
    "path": f"/home/{SECRET}/run/teacher.safetensors",
    "licence": "DINOv3 License",
    "licence_url": "https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
    "configuration": {"model": {"weights": f"/home/{SECRET}/weights.pth"}},
    "corpus": {
        "hash": "5e1f",
        "volumes": 2,
        "slices": 180,
        "sources": {"LiTS": {"images": f"/home/{SECRET}"}, "clinic": {}},
        "exclusions": [f"{SECRET}_2"],
    },
    "seen_cases": {"LiTS": ["lits_007"], "clinic": [f"{SECRET}_1", f"{SECRET}_2"]},
    "derived_from": {"initial": {"name": "dinov3_vitb16_lvd1689m", "path": f"/{SECRET}", "derived_from": None}},
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    with serve() as stand_in, reached_from_here(stand_in, tmp_path / "cache"):
        yield stand_in


@pytest.fixture
def model(tmp_path) -> Path:
    """A U-Net of two folds where its user trained it, out of the way of what is fetched."""
    return write_model(tmp_path / "theirs" / MODEL, folds=(0, 1))


@pytest.fixture
def fine_tuned(tmp_path) -> Path:
    """A model with a DINOv3 ViT, whose files name a patient wherever they can."""
    folder = tmp_path / "theirs" / FINE_TUNED
    network = {f"encoder.{name}": tensor for name, tensor in random_tensors().items()} | {"head.weight": torch.ones(2)}
    (folder / "fold_2").mkdir(parents=True)
    path = checkpoint(folder / "fold_2" / "checkpoint_final.pth", network)
    content = torch.load(path, weights_only=False)
    content["init_args"]["meddino"]["weights"] = ORIGIN
    content["init_args"]["dataset_json"]["training"] = [SECRET]
    torch.save(content, path)
    plans = content["init_args"]["plans"] | {"plans_name": "nnUNetPlans"}
    plans["configurations"]["2d_896"] |= {"patch_size": [896, 896], "spacing": [0.7, 0.7], "batch_size": 2}
    (folder / "plans.json").write_text(json.dumps(plans, default=float))
    listed = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    files = [{"image": f"./imagesTr/{SECRET}.nii.gz"}]
    write_json(listed | {"numTraining": 131, "training": files, "name": SECRET}, folder / "dataset.json")
    return folder


def run(capsys, *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([*map(str, words)])
    return code, *capsys.readouterr()


def push(capsys, *words: object) -> str:
    code, out, error = run(capsys, "push", *words)
    assert code == 0, error
    return out


def refusal(capsys, *words: object) -> str:
    code, _, error = run(capsys, *words)
    assert code == 2
    assert len(error.strip().splitlines()) == 1, error
    return error


def test_a_model_that_was_pushed_and_fetched_predicts_the_same_bits(hub, model, tmp_path, capsys):
    assert hub.address in push(capsys, model, "me/discs", "--licence", "cc-by-4.0")
    assert hub.repositories["me/discs"].private
    assert hub.repositories["me/discs"].commits == 1
    code, out, error = run(capsys, "fetch", "me/discs")
    assert code == 0, error
    fetched = tmp_path / "results" / MODEL
    assert out.splitlines()[0] == str(fetched)
    command = "use with: meddino predict -d Dataset998_Discs -c 2d -p nnUNetPlans -tr nnUNetTrainer -f 0 1"
    assert out.splitlines()[1].startswith(command)
    image = np.random.default_rng(0).normal(60, 60, (1, 3, 40, 44))
    expected, got = (stock_prediction(folder, image, (3.0, 0.7, 0.8), folds=(0, 1)) for folder in (model, fetched))
    assert len(np.unique(expected[0])) > 1
    for ours, theirs in zip(got, expected, strict=True):
        assert np.array_equal(ours, theirs)


def test_no_pickle_and_no_optimizer_state_is_sent(hub, fine_tuned, capsys):
    push(capsys, fine_tuned, "me/liver")
    files = hub.repositories["me/liver"].files
    expected = {"README.md", "meddino.json", "plans.json", "dataset.json", "fold_2/checkpoint_final.safetensors"}
    assert files.keys() == expected
    assert b"exp_avg" not in b"".join(files.values())


def test_a_fetched_model_is_a_source_of_weights_as_the_original_is(hub, fine_tuned, tmp_path, capsys):
    push(capsys, fine_tuned, "me/liver")
    assert run(capsys, "fetch", "me/liver")[0] == 0
    fold = Path("fold_2", "checkpoint_final.pth")
    ours, theirs = (read_weights(str(f / fold)) for f in (tmp_path / "results" / FINE_TUNED, fine_tuned))
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(ours.tensors[name], tensor) for name, tensor in theirs.tensors.items())
    same = ("name", "epochs", "licence", "input_statistics")
    got, expected = (weights.provenance["derived_from"] for weights in (ours, theirs))
    assert {key: got[key] for key in same} == {key: expected[key] for key in same}


def test_names_of_cases_files_and_folders_stay_here(hub, fine_tuned, tmp_path, capsys):
    printed = push(capsys, fine_tuned, "me/liver")
    sent = b"".join(hub.repositories["me/liver"].files.values())
    assert b"our-run-stage3" in sent
    assert SECRET.encode() not in sent
    assert SECRET not in printed
    assert run(capsys, "fetch", "me/liver")[0] == 0
    weights = tmp_path / "results" / FINE_TUNED / "fold_2" / "checkpoint_final.pth"
    assert "does not list the cases" in refusal(capsys, "weights", "seen", weights, "lits_007")


def test_seen_cases_are_sent_where_that_is_asked_for(hub, fine_tuned, tmp_path, capsys):
    push(capsys, fine_tuned, "me/liver", "--seen-cases")
    assert run(capsys, "fetch", "me/liver")[0] == 0
    weights = tmp_path / "results" / FINE_TUNED / "fold_2" / "checkpoint_final.pth"
    assert "lits_007: seen in LiTS" in run(capsys, "weights", "seen", weights, "lits_007")[1]


def test_a_dry_run_sends_no_request(hub, fine_tuned, capsys):
    out = push(capsys, fine_tuned, "me/liver", "--dry-run")
    assert hub.requests == []
    assert "fold_2/checkpoint_final.safetensors" in out
    assert "There is no" in refusal(capsys, "push", "dinov3_vits16_lvd1689m", "me/vits16", "--dry-run")
    assert hub.requests == []
    push(capsys, fine_tuned, "me/liver")
    for name, content in hub.repositories["me/liver"].files.items():
        assert f"{len(content):,} bytes  {name}\n" in out
    assert hub.repositories["me/liver"].files["README.md"].decode() in out


def test_the_card_says_what_is_known_in_the_hubs_own_terms(hub, fine_tuned, capsys):
    push(capsys, fine_tuned, "me/liver")
    card = ModelCard(hub.repositories["me/liver"].files["README.md"].decode())
    metadata = card.data.to_dict()
    assert metadata["license"] == "other"
    assert metadata["license_name"] == "dinov3-license"
    assert metadata["license_link"] == ORIGIN["licence_url"]
    assert metadata["base_model"] == "timm/vit_base_patch16_dinov3.lvd1689m"
    assert metadata["pipeline_tag"] == "image-segmentation"
    for known in ("`5e1f`, 2 volumes, 180 slices, of LiTS, clinic", "1 of LiTS, 2 of clinic (not published)", "131"):
        assert known in card.text
    assert "meddino fetch me/liver\nmeddino predict -d Dataset027_LiTS -c 2d_896" in card.text


def test_the_card_has_the_scores_of_all_folds_with_intervals(hub, tmp_path, capsys):
    folders: Folders = results.make_folders(tmp_path / "theirs")
    results.write_dataset(folders, "Dataset219_One", 6)
    name = "MedDINOv3Trainer__nnUNetPlans__2d"
    model = results.write_method(folders, "Dataset219_One", name, spacing=[1.0, 1.0])
    for fold in model.glob("fold_*"):
        content = torch.load(fold / "checkpoint_final.pth", weights_only=False)
        content["init_args"]["configuration"] = "2d"
        torch.save(content, fold / "checkpoint_final.pth")
    assert "No validation of its folds is measured." in push(capsys, model, "me/a", "--licence", "mit", "--dry-run")
    collect(Selection(("219",)), folders)
    card = ModelCard(push(capsys, model, "me/a", "--licence", "mit", "--dry-run").partition("\n\n")[2])
    rows = [
        case["metrics"]
        for fold in sorted(model.glob("fold_*"))
        for case in json.loads((fold / "validation" / "surface_metrics.json").read_text())["metric_per_case"]
    ]
    dice = np.array([[row[label]["Dice"] for label in ("1", "2")] for row in rows])
    assert {r.metric_type: r.metric_value for r in card.data.eval_results}["Dice"] == round(dice.mean(), 4)
    assert f"| liver | {dice[:, 0].mean():.4f} [" in card.text
    assert "6 validation cases of folds 0, 1" in card.text


def test_no_licence_is_supposed(hub, model, capsys):
    message = refusal(capsys, "push", model, "me/discs")
    assert "--licence" in message
    assert hub.requests == []


def test_a_later_push_replaces_an_earlier_one_and_an_equal_one_changes_nothing(hub, model, capsys):
    for expected in (1, 1):
        push(capsys, model, "me/discs", "--licence", "mit")
        assert hub.repositories["me/discs"].commits == expected
    hub.repositories["me/discs"].files[".gitattributes"] = b""
    shutil.rmtree(model / "fold_1")
    push(capsys, model, "me/discs", "--licence", "mit")
    assert "fold_1/checkpoint_final.safetensors" not in hub.repositories["me/discs"].files
    assert ".gitattributes" in hub.repositories["me/discs"].files


def test_a_backbone_is_weights_by_the_name_of_its_repository(hub, tmp_path, capsys):
    tensors = random_tensors()
    write_weights(tmp_path / "backbone.safetensors", tensors, SMALL, ORIGIN, "meddino")
    push(capsys, tmp_path / "backbone.safetensors", "me/backbone", "--public")
    assert not hub.repositories["me/backbone"].private
    assert SECRET.encode() not in b"".join(hub.repositories["me/backbone"].files.values())
    _, out, _ = run(capsys, "fetch", "me/backbone")
    assert "MEDDINO_WEIGHTS=me/backbone" in out
    for spec in ("me/backbone", out.splitlines()[0]):
        read = read_weights(spec)
        assert read.config == SMALL
        assert all(torch.equal(read.tensors[name], tensor) for name, tensor in tensors.items())
    assert ModelCard(hub.repositories["me/backbone"].files["README.md"].decode()).data.license == "other"


def test_an_interrupted_fetch_leaves_nothing_and_goes_on_with_what_is_missing(hub, model, tmp_path, capsys):
    push(capsys, model, "me/discs", "--licence", "mit")
    hf_hub_download("me/discs", "fold_0/checkpoint_final.safetensors")  # has arrived when the connection breaks off
    hub.cut.add("me/discs/fold_1/checkpoint_final.safetensors")
    with mock.patch("time.sleep"):  # between attempts
        assert "what has arrived is kept" in refusal(capsys, "fetch", "me/discs")
    assert not list(tmp_path.glob("results/**/*"))
    hub.cut.clear()
    hub.requests.clear()
    with mock.patch.object(model_files, "write_torch", side_effect=KeyboardInterrupt):
        assert run(capsys, "fetch", "me/discs")[0] == 130
    assert not list(tmp_path.glob("results/*"))
    assert run(capsys, "fetch", "me/discs")[0] == 0
    sent = [request for request in hub.requests if request.startswith("GET") and "checkpoint" in request]
    assert len(sent) == 1
    assert "fold_1" in sent[0]


def test_without_network_a_model_comes_from_the_cache(hub, model, tmp_path, capsys):
    push(capsys, model, "me/discs", "--licence", "mit")
    assert run(capsys, "fetch", "me/discs")[0] == 0
    shutil.rmtree(tmp_path / "results")
    with mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True):
        assert run(capsys, "fetch", "me/discs")[0] == 0
    assert (tmp_path / "results" / MODEL / "fold_1" / "checkpoint_final.pth").is_file()


def test_what_is_there_is_not_overwritten(hub, model, tmp_path, capsys):
    push(capsys, model, "me/discs", "--licence", "mit")
    (tmp_path / "results" / MODEL).mkdir(parents=True)
    assert "Move it away" in refusal(capsys, "fetch", "me/discs")
    (tmp_path / "results" / MODEL).rmdir()
    (tmp_path / "raw" / "Dataset998_Other").mkdir(parents=True)
    assert "Dataset998_Other has the same number" in refusal(capsys, "fetch", "me/discs")


@pytest.mark.parametrize(
    ("repository", "token", "expected"),
    [
        ("me/discs", None, ["hf auth login", "right to write"]),
        ("me/discs", "hf_revoked", ["does not accept", "hf auth login"]),
        ("others/discs", "", ["may not write to others/discs", "hf auth whoami"]),
        ("me/open", "", ["is public", "--public"]),
        ("me/gated", "", ["may not write to me/gated"]),
        ("discs", "", ["org/name"]),
    ],
)
def test_a_refused_push_says_what_to_do(hub, model, capsys, monkeypatch, repository, token, expected):
    hub.repositories["me/open"] = Repository()
    hub.refusals["me/gated"] = (403, "GatedRepo")
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    elif token:
        monkeypatch.setenv("HF_TOKEN", token)
    message = refusal(capsys, "push", model, repository, "--licence", "mit")
    assert all(part in message for part in expected), message
    assert not any(held.commits for held in hub.repositories.values())


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        ("me/absent", ["no repository me/absent", "hf auth login"]),
        ("me/gated", ["gated", "hf auth login"]),
        ("me/empty", ["has no file model.safetensors", "https://huggingface.co/me/empty"]),
    ],
)
def test_a_refused_fetch_says_what_to_do(hub, capsys, repository, expected):
    hub.repositories["me/empty"] = Repository()
    hub.refusals["me/gated"] = (401, "GatedRepo")
    message = refusal(capsys, "fetch", repository)
    assert all(part in message for part in expected), message


def forge(hub: Hub, name: str, **changes: object) -> None:
    files = hub.repositories["me/discs"].files
    files[name] = json.dumps(json.loads(files[name]) | changes).encode()
    hub.repositories["me/discs"].commits += 1


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "../Dataset998_Discs"},
        {"model": "../x__y__z"},
        {"folds": ["0/../../.."]},
        {"folds": []},
        {"folds": 3},
        {"format_version": 2},
    ],
)
def test_a_manifest_that_leads_elsewhere_is_refused(hub, model, tmp_path, capsys, changes):
    push(capsys, model, "me/discs", "--licence", "mit")
    forge(hub, "meddino.json", **changes)
    assert "me/discs" in refusal(capsys, "fetch", "me/discs")
    assert not list(tmp_path.glob("results/*"))


def test_plans_of_another_configuration_are_refused(hub, model, tmp_path, capsys):
    push(capsys, model, "me/discs", "--licence", "mit")
    forge(hub, "plans.json", configurations={"2d_896": {}})
    assert "no usable configuration 2d" in refusal(capsys, "fetch", "me/discs")
    assert not list(tmp_path.glob("results/*"))


@pytest.mark.parametrize(
    ("network", "layer"),
    [
        ("subprocess.Popen", "torch.nn.Conv2d"),
        ("dynamic_network_architectures.architectures.unet.torch.load", "torch.nn.Conv2d"),
        ("dynamic_network_architectures.architectures.unet.PlainConvUNet", "os.system"),
    ],
)
def test_plans_that_would_run_other_code_than_networks_are_refused(hub, model, tmp_path, capsys, network, layer):
    push(capsys, model, "me/discs", "--licence", "mit")
    plans = json.loads(hub.repositories["me/discs"].files["plans.json"])
    architecture = plans["configurations"]["2d"]["architecture"]
    architecture["network_class_name"], architecture["arch_kwargs"]["conv_op"] = network, layer
    forge(hub, "plans.json", **plans)
    message = refusal(capsys, "fetch", "me/discs")
    assert (layer if network.endswith("UNet") else network) in message
    assert not list(tmp_path.glob("results/*"))
