"""What is no weights file is named for what it is, with a way to weights, and is never to be deleted."""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from nnunetv2_meddino.errors import WeightsError
from nnunetv2_meddino.weights.files import read_file


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_file(path)
    message = str(caught.value)
    assert str(path) in message
    assert "elete" not in message
    assert "damaged" not in message
    assert "\n" not in message
    return message


def torchscript(path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "model.pth")


def archive_of(*names: str):
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "x")

    return write


FOREIGN = {
    "w.npz": (lambda path: np.savez(path, w=np.ones(3)), "is a NumPy archive"),
    "w.npy": (lambda path: np.save(path, np.ones(3)), "is a NumPy array"),
    "script.pt": (torchscript, "is a TorchScript program"),
    "model.tar": (tar, "is a tar archive.*Unpack"),
    "weights.zip": (archive_of("readme.txt"), "is a zip archive.*readme.txt.*Unpack"),
    "model.keras": (archive_of("config.json", "model.weights.h5"), "is a Keras model"),
    "export.zip": (
        archive_of("Dataset001_A/T__P__2d/fold_0/checkpoint_final.pth", "Dataset001_A/T__P__2d/plans.json"),
        "nnU-Net exported.*nnUNetv2_install_pretrained_model_from_zip",
    ),
    "w.h5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file"),
    "w.gguf": (b"GGUF" + bytes(100), "is a GGUF file"),
    "model.onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.4.0" + bytes(100), "is an ONNX model"),
    "anything": (b"\x08\x08\x12\x07pytorch\x1a\x052.4.0" + bytes(100), "is an ONNX model"),
    "saved_model.pb": (b"\x08\x01\x12\x00" + bytes(100), "is a file of TensorFlow"),
    "model.ckpt-100.index": (b"\x00\x00\x08" + bytes(100), "is a file of TensorFlow"),
    "model.ckpt-100.data-00000-of-00001": (bytes(100), "is a file of TensorFlow"),
    "case_0000.nii.gz": (b"\x1f\x8b\x08" + bytes(100), "compressed by gzip"),
    "empty.pth": (b"", "is empty"),
    "lfs.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git-lfs pointer.*git lfs pull"),
    "page.pth": (b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page"),
    "answer.pth": (b'{"error": "Entry not found"}', "is JSON text"),
    "array.pth": (b"[[1, 2]{" * 8, "is JSON text"),
    "model.safetensors.index.json": (b'{"weight_map": {}}', "lists weights in several files"),
    "config.yaml": ("größe: 3\n".encode() * 100, "is a text file"),
    "other.bin": (
        bytes([7, 200, 255] * 99),
        "neither safetensors nor a PyTorch file; it begins with the bytes 07 c8 ff",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_kind_is_named(tmp_path, name):
    write, expected = FOREIGN[name]
    path = tmp_path / name
    if isinstance(write, bytes):
        path.write_bytes(write)
    else:
        write(path)
    message = refusal(path)
    assert re.search(expected, message), message


@pytest.fixture
def run(tmp_path) -> Path:
    """A run of a pretraining: two stages, the second without a teacher, a checkpoint in each."""
    run = tmp_path / "run"
    for stage in ("stage1", "stage2"):
        (run / stage / "teachers").mkdir(parents=True)
        (run / stage / "origins.json").write_text("{}")
        dcp.save({"w": torch.ones(3)}, checkpoint_id=run / stage / "checkpoints/step_00000010")
    for step in (5, 10):
        save_file({"w": torch.ones(3)}, run / f"stage1/teachers/step_{step:08d}.safetensors")
    return run


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_lies_in_a_run_leads_to_its_teachers(run):
    teacher = run / "stage1/teachers/step_00000010.safetensors"
    checkpoint = run / "stage1/checkpoints/step_00000010"
    for path, place in {
        checkpoint / "__0_0.distcp": run / "stage1",
        checkpoint / ".metadata": run / "stage1",
        checkpoint: run / "stage1",
        run / "stage1": run / "stage1",
        run / "stage1/teachers": run / "stage1",
        run: run,
    }.items():
        message = refusal(path)
        assert f"newest is {teacher}" in message, path
        assert f"`meddino-pretrain export {place} --out WEIGHTS.safetensors`" in message, path
    assert "part of a distributed checkpoint" in refusal(checkpoint / "__0_0.distcp")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_stage_without_teachers_says_when_they_come(run):
    (run / "stage1").rename(run / "other")
    assert "engine.teacher_every" in refusal(run / "stage2/checkpoints/step_00000010")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_checkpoint_without_a_run_says_where_runs_keep_weights(tmp_path):
    dcp.save({"w": torch.ones(3)}, checkpoint_id=tmp_path / "step_00000010")
    for path in (tmp_path / "step_00000010", tmp_path / "step_00000010/__0_0.distcp"):
        message = refusal(path)
        assert "teachers/*.safetensors" in message
        assert "meddino-pretrain export" in message
        assert "dcp_to_torch" in message


def test_folders_name_the_files_in_them(tmp_path):
    assert "without weights files" in refusal(tmp_path)
    model = tmp_path / "Trainer__Plans__2d"
    (model / "fold_1").mkdir(parents=True)
    (model / "fold_1/checkpoint_final.pth").touch()
    assert refusal(model).endswith(f"{model}/fold_1/checkpoint_final.pth")
    assert refusal(model / "fold_1").endswith(f"{model}/fold_1/checkpoint_final.pth")
    parts = tmp_path / "parts"
    parts.mkdir()
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (parts / name).touch()
    assert "weights in several files" in refusal(parts)
    (tmp_path / "saved_model.pb").touch()
    assert "SavedModel of TensorFlow" in refusal(tmp_path)


def test_python_objects_are_named(tmp_path):
    torch.save({"state_dict": {}, "callbacks": np.ones(2)}, tmp_path / "epoch=3.ckpt")
    assert "besides tensors (numpy" in refusal(tmp_path / "epoch=3.ckpt")
