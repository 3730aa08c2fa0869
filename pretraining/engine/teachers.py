"""Teachers on disk: what one stage hands to the next, and what the plugin loads as weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from nnunetv2_meddino.errors import WeightsError
from nnunetv2_meddino.networks.vit import VisionTransformer, ViTConfig
from nnunetv2_meddino.weights.files import file_sha256, read_file, write_safetensors
from nnunetv2_meddino.weights.formats import listing
from nnunetv2_meddino.weights.load import FORMAT_NAME, FORMAT_VERSION, load_into, read_weights
from pretraining.engine.distributed import Ranks
from pretraining.model.backbone import PretrainingViT
from pretraining.model.student_teacher import Network, StudentTeacher
from pretraining.optim.ema import copy_parameters

TEACHERS = "teachers"
_NAME = re.compile(r"step_(\d{8,})\.safetensors")


def teacher_path(stage_folder: Path, step: int) -> Path:
    """Return the file of the teacher after ``step`` steps of a stage."""
    return stage_folder / TEACHERS / f"step_{step:08d}.safetensors"


def teacher_steps(stage_folder: Path) -> list[int]:
    """Return the steps of all teachers of a stage, ascending."""
    names = (_NAME.fullmatch(path.name) for path in (stage_folder / TEACHERS).glob("*.safetensors"))
    return sorted(int(name.group(1)) for name in names if name)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the full parameters of a network that may be sharded, on the CPU; empty on all processes but the first.

    Every process must call this.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast(dict[str, Tensor], get_model_state_dict(module, options=options))


def save_teacher(path: Path, teacher: Network, vit: ViTConfig, provenance: Mapping[str, Any], ranks: Ranks) -> None:
    """Write the EMA teacher, backbone and heads, as safetensors; every process must call this.

    The header says what it is: architecture and provenance, as in all weights files of the plugin, which reads the
    backbone from it.
    """
    state = whole_state(teacher)
    if not ranks.is_main:
        return
    metadata = {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        "architecture": json.dumps(vit.to_dict()),
        "provenance": json.dumps(dict(provenance)),
    }
    write_safetensors(path, state, metadata)


def load_teacher(path: Path, model: StudentTeacher) -> dict[str, Any]:
    """Copy a teacher of an earlier stage into student, teacher and Gram teacher.

    Args:
        path: File of the teacher.
        model: As built, not sharded.

    Returns:
        Provenance: file, SHA-256, and what the file says of itself.

    Raises:
        WeightsError: It cannot be read, has no heads, or is of another architecture.
    """
    file = read_file(path)
    own, given = model.student.state_dict(), file.content
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    wrong = sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != _shape(given.get(name)))
    if wrong:
        raise WeightsError(
            f"{path} does not fit the networks of this stage: {listing(wrong)}. A stage goes on from a teacher of the "
            "same model section, with both heads (a run's teachers/*.safetensors); weights without heads are given as "
            "model.weights."
        )
    model.student.load_state_dict(given)
    _copy_from_student(model)
    return {"path": str(path), "sha256": file_sha256(path), **json.loads(file.metadata.get("provenance", "{}"))}


def load_backbone(spec: str, model: StudentTeacher) -> dict[str, Any]:
    """Copy published weights into all backbones; heads stay as they are.

    Args:
        spec: A catalog name, a file or a hub id.
        model: As built, not sharded.

    Returns:
        Provenance of the weights.

    Raises:
        WeightsError: They cannot be read, or are of another architecture.
    """
    provenance = _read_into(model.student.backbone, spec)
    _copy_from_student(model)
    return provenance


def load_gram_teacher(path: Path, gram_teacher: PretrainingViT) -> dict[str, Any]:
    """Copy a teacher's backbone, or any weights that the plugin reads, into the Gram teacher.

    Returns:
        Provenance of the weights.

    Raises:
        WeightsError: As ``load_backbone``.
    """
    return _read_into(gram_teacher, str(path))


def _read_into(backbone: PretrainingViT, spec: str) -> dict[str, Any]:
    """Fill a backbone; what only pretraining has (mask token, norm of local crops) stays as it is."""
    weights = read_weights(spec)
    plain = VisionTransformer(backbone.config, backbone.in_channels)
    load_into(plain, weights)
    backbone.load_state_dict(plain.state_dict(), strict=False)
    return weights.provenance


def _copy_from_student(model: StudentTeacher) -> None:
    copy_parameters(model.student, model.teacher)
    if model.gram_teacher is not None:
        copy_parameters(model.student.backbone, model.gram_teacher)


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
