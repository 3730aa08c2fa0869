"""What a file or folder is that holds no weights to be read here, by its content and neighbours, and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from huggingface_hub import constants

from nnunetv2_meddino.weights.formats import listing

HEAD_BYTES = 512
WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")

_SAVE_ALONE = "Save the weights alone where they were made: as safetensors, or as a state_dict with torch.save."
_UNPACK = "Unpack it and name the weights file in it."
_SIGNATURES = (
    (b"\x93NUMPY", "a NumPy array (.npy)", _SAVE_ALONE),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write weights", _SAVE_ALONE),
    (b"GGUF", "a GGUF file", _SAVE_ALONE),
    (b"\x1f\x8b", "compressed by gzip (a .tar.gz archive, or a .nii.gz image)", _UNPACK),
    (b"BZh", "compressed by bzip2", _UNPACK),
    (b"\xfd7zXZ\x00", "compressed by xz", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
)
_TENSORFLOW = re.compile(r".*(\.pb|\.index|\.data-\d{5}-of-\d{5})")
_LOOK_UP = "Name a weights file; `meddino weights list` shows the known weights."
_NEARBY_LEVELS = 4
"""How far up a run folder is looked for: a shard lies at RUN/stage1/checkpoints/step_N/__0_0.distcp."""


def foreign_file(path: Path, head: bytes) -> str | None:
    """Say what a file is and what to do where its first bytes, or its name, are those of no format that is read here.

    Args:
        path: The file.
        head: Its first ``HEAD_BYTES``.

    Returns:
        A predicate and advice, to be put after the file's name; None where it may be weights.
    """
    if path.suffix == ".distcp" or (path.name == ".metadata" and any(path.parent.glob("*.distcp"))):
        return f"is a part of a distributed checkpoint of PyTorch, {path.parent}. {_distributed(path.parent)}"
    if not head:
        return "is empty: a download or copy that has not begun. Get the file again from where it came."
    for signature, what, advice in _SIGNATURES:
        if head.startswith(signature):
            return f"is {what}. {advice}"
    if head[257:262] == b"ustar":
        return f"is a tar archive. {_UNPACK}"
    if path.suffix == ".onnx" or (head.startswith(b"\x08") and b"\x12\x07pytorch" in head):
        return f"is an ONNX model. {_SAVE_ALONE}"
    if _TENSORFLOW.fullmatch(path.name):
        return f"is a file of TensorFlow. {_SAVE_ALONE}"
    return _text(path, head) if _is_text(head) else None


def foreign_zip(names: Sequence[str]) -> str | None:
    """Say what a zip archive is and what to do; None where PyTorch wrote it and it may hold weights.

    Args:
        names: Of its members.
    """
    if names and all(name.endswith(".npy") for name in names):
        return f"is a NumPy archive (.npz). {_SAVE_ALONE}"
    if any(name.endswith("/constants.pkl") for name in names):
        return (
            "is a TorchScript program, which would have to be run; weights alone are needed. If you trust its origin: "
            "torch.save(torch.jit.load(FILE).state_dict(), ...)."
        )
    if any(re.search(r"(^|/)fold_\w+/checkpoint_\w+\.pth$", name) for name in names):
        return (
            "is a trained model that nnU-Net exported. Unpack it (nnUNetv2_install_pretrained_model_from_zip) and name "
            "the checkpoint of a fold in it."
        )
    if any(name.endswith(".weights.h5") for name in names):
        return f"is a Keras model. {_SAVE_ALONE}"
    if not any(name.endswith("/data.pkl") for name in names):
        return f"is a zip archive, but not one of PyTorch's weights; it holds {listing(names) or 'nothing'}. {_UNPACK}"
    return None


def folder(path: Path) -> str:
    """Say what a folder is and which weights files are in it or near, as a predicate and advice."""
    if any(path.glob("*.distcp")):
        return f"is a distributed checkpoint of PyTorch. {_distributed(path)}"
    if _is_run(path):
        return f"is a folder of a pretraining. {_run(path)}"
    inside = sorted(p for p in path.iterdir() if p.suffix in WEIGHTS_SUFFIXES)
    inside = inside or sorted(path.glob("fold_*/checkpoint_*.pth"))
    if any(path.glob("*.index.json")):
        return f"is a folder of weights in several files, which are not read. {_SAVE_ALONE}"
    if inside:
        return f"is a folder. Name one weights file in it: {', '.join(map(str, inside))}"
    if (path / "saved_model.pb").is_file():
        return f"is a SavedModel of TensorFlow. {_SAVE_ALONE}"
    return f"is a folder without weights files ({', '.join(WEIGHTS_SUFFIXES)}). {_LOOK_UP}"


def published_name(path: Path) -> Path | None:
    """Return the file in the hub's cache that a path stands for, whose name is the SHA-256 of what was published.

    None for files elsewhere, and for those that the hub names by another checksum.
    """
    stored, cache = path.resolve(), Path(constants.HF_HUB_CACHE).resolve()
    own = stored.parent.name == "blobs" and stored.is_relative_to(cache) and re.fullmatch("[0-9a-f]{64}", stored.name)
    return stored if own else None


def _is_text(head: bytes) -> bool:
    text = head.decode("utf-8", errors="ignore")  # the last character may be cut
    return len(text.encode()) > len(head) - 4 and all(c.isprintable() or c.isspace() for c in text)


def _text(path: Path, head: bytes) -> str:
    text = head.decode("utf-8", errors="ignore").lstrip("\ufeff \t\r\n").lower()
    if text.startswith("version https://git-lfs"):
        return "is a git-lfs pointer, not the weights. `git lfs pull` in its folder gets them."
    if text.startswith(("<!doctype", "<html", "<?xml")):
        return (
            "is a web page, not the weights: the download was answered by a login or error page. Get the file again, "
            "logged in."
        )
    if path.name.endswith(".index.json"):
        return f"lists weights in several files, which are not read. {_SAVE_ALONE}"
    if text.startswith(("{", "[")):
        return f"is JSON text, not weights. {_LOOK_UP}"
    return f"is a text file, not weights. {_LOOK_UP}"


def _distributed(checkpoint: Path) -> str:
    """Say where the weights of a run are to which a distributed checkpoint belongs, or how to get at those in it."""
    near = next((p for p in list(checkpoint.resolve().parents)[:_NEARBY_LEVELS] if _is_run(p)), None)
    if near is not None:
        return f"It is what a pretraining goes on from. {_run(near)}"
    return (
        "If meddino-pretrain wrote it, the weights of its run are RUN/stage*/teachers/*.safetensors (`meddino-pretrain "
        "export RUN --out WEIGHTS.safetensors`). Of another's, one file is made by: python -m "
        f"torch.distributed.checkpoint.format_utils dcp_to_torch {quote(str(checkpoint))} WEIGHTS.pth"
    )


def _is_run(path: Path) -> bool:
    """Tell whether a folder is a run of our pretraining, one of its stages, or the checkpoints or teachers in one."""
    stages = (path, path.parent, *path.glob("stage*"))
    names = ("initial_weights.json", "origins.json")  # the second up to 0.1, for one more release
    written = any((stage / name).is_file() for stage in stages for name in names)
    return written or any(any(stage.glob("teachers/*.safetensors")) for stage in stages)


def _run(path: Path) -> str:
    """Name the newest teacher of a run or stage, and the command that exports it."""
    for place in (path, path.parent):
        teachers = sorted(place.glob("teachers/*.safetensors")) or sorted(place.glob("stage*/teachers/*.safetensors"))
        if teachers:
            return (
                f"Its weights are its teachers, of which the newest is {teachers[-1]}; "
                f"`meddino-pretrain export {quote(str(place))} --out WEIGHTS.safetensors` writes its backbone alone."
            )
    return (
        "It has no weights yet: a stage writes teachers/*.safetensors every engine.teacher_every steps and at its end."
    )
