"""The teacher of a run as weights: for the plugin's trainers, for timm, and for the MedDINOv3 release's own code."""

from __future__ import annotations

from pathlib import Path

from nnunetv2_meddino.errors import WeightsError
from nnunetv2_meddino.weights.load import read_weights, write_weights
from pretraining.config import STAGES
from pretraining.engine.teachers import teacher_path, teacher_steps


def find_teacher(place: Path, step: int | None = None) -> Path:
    """Return the file of a teacher.

    Args:
        place: A teacher's file, the folder of a stage, or that of a run, whose latest stage with a teacher is meant.
        step: Of the teacher; None is the last.

    Raises:
        WeightsError: There is none.
    """
    if place.is_file():
        return place
    folders = [place, *(place / stage for stage in reversed(STAGES))]
    for folder in folders:
        steps = teacher_steps(folder)
        if steps and step is None:
            return teacher_path(folder, steps[-1])
        if step in steps:
            return teacher_path(folder, step)
    found = [
        f"{folder.name} {', '.join(map(str, teacher_steps(folder)))}" for folder in folders if teacher_steps(folder)
    ]
    wanted = "no teacher" if step is None else f"no teacher of step {step}"
    msg = (
        f"{place} holds {wanted}; it has {'; '.join(found) or 'none at all'}. Give the folder of a run or of one of "
        "its stages; a stage writes teachers every engine.teacher_every steps and at its end."
    )
    raise WeightsError(msg)


def export_teacher(teacher: Path, out: Path, layout: str) -> None:
    """Write a teacher's backbone in another layout; where it has a header, all that is known of it stays there.

    Args:
        teacher: File of the teacher.
        out: Ends in ``.pth`` for ``meddinov3``, else in ``.safetensors``.
        layout: One of the plugin's ``FORMATS``.

    Raises:
        WeightsError: The file is no teacher, or the layout cannot hold it.
    """
    weights = read_weights(str(teacher))
    provenance = weights.provenance["derived_from"] or weights.provenance
    write_weights(out, weights.tensors, weights.config, provenance, layout)
