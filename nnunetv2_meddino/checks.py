"""What ``meddino env --check`` verifies: versions, discovery of the trainers, folders, weights, device."""

from __future__ import annotations

import contextlib
import io
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from nnunetv2_meddino.environment import (
    MEDDINO_WEIGHTS,
    NNUNET_EXT_TRAINER,
    NNUNET_PATHS,
    NNUNET_RAW,
    NNUNET_RESULTS,
    TRAINING_SETTINGS,
    changed_environment,
    ext_trainer_folder,
)
from nnunetv2_meddino.errors import MedDINOError

DISTRIBUTION = "nnunetv2-meddino"


class Status(Enum):
    """Result of a check."""

    OK = "ok"
    NOTE = "note"
    """Works, but the user should know."""
    FAILED = "FAILED"


@dataclass(frozen=True)
class Check:
    """What was verified, the result, what was found and, where needed, what to do."""

    name: str
    status: Status
    detail: str


def run_checks() -> Iterator[Check]:
    """Verify the installation, one check at a time; nothing is downloaded, trained or written."""
    yield from _versions()
    yield from _folders()
    yield _shell()
    yield _discovery()
    yield _settings()
    yield _weights()
    yield _device()


def _versions() -> Iterator[Check]:
    yield Check("Python", Status.OK, platform.python_version())
    for line in requires(DISTRIBUTION) or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Check(requirement.name, Status.FAILED, f"not installed; run: pip install '{line}'")
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        detail = found if fits else f"{found}, but {requirement.specifier} is needed; run: pip install '{line}'"
        yield Check(requirement.name, Status.OK if fits else Status.FAILED, detail)


def _folders() -> Iterator[Check]:
    """Look at nnU-Net's folders; a training needs no raw data."""
    for variable in NNUNET_PATHS:
        value = variable.get()
        if value is None:
            advice = f"not set ({variable.meaning}); run: export {variable.name}=/your/folder"
            yield Check(variable.name, Status.NOTE if variable is NNUNET_RAW else Status.FAILED, advice)
        elif not Path(value).is_dir():
            yield Check(variable.name, Status.FAILED, f"{value} is not a folder; create it or correct the variable")
        elif variable is NNUNET_RESULTS and not os.access(value, os.W_OK):
            yield Check(variable.name, Status.FAILED, f"{value} cannot be written to; change that or name another")
        else:
            yield Check(variable.name, Status.OK, value)


def _shell() -> Check:
    """Whether stock nnU-Net commands that are started from this shell find the trainers."""
    value = NNUNET_EXT_TRAINER.get() or ""
    folders = value.split(os.pathsep) if value else []
    if str(ext_trainer_folder()) in folders:
        return Check(NNUNET_EXT_TRAINER.name, Status.OK, value)
    state = f"is {value}, without this package's folder" if folders else "not set in this shell"
    return Check(
        NNUNET_EXT_TRAINER.name,
        Status.NOTE,
        f'{state}: stock nnU-Net commands will not find the trainers; run: eval "$(meddino env)"  '
        "('meddino train' and 'meddino predict' need no variable)",
    )


def _discovery() -> Check:
    """Look a trainer up the way nnU-Net does."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunetv2_meddino.trainers.meddinov3 import MedDINOv3Trainer

    ours = {NNUNET_EXT_TRAINER.name: str(ext_trainer_folder())}
    with changed_environment(ours), contextlib.redirect_stdout(io.StringIO()):
        found = recursive_find_trainer_class_by_name("MedDINOv3Trainer")
    if found is MedDINOv3Trainer:
        return Check("trainer lookup", Status.OK, f"nnU-Net finds MedDINOv3Trainer in {ext_trainer_folder()}")
    return Check("trainer lookup", Status.FAILED, f"nnU-Net found {found}, not this package's; reinstall the package")


def _settings() -> Check:
    """Whether a training would take our variables as they are set."""
    from nnunetv2_meddino.trainers.fine_tuning import choose_fine_tuning
    from nnunetv2_meddino.trainers.meddinov3 import MedDINOv3Trainer
    from nnunetv2_meddino.trainers.training_input import choose_loader

    try:
        choose_fine_tuning(MedDINOv3Trainer.fine_tuning, MedDINOv3Trainer.__name__)
        choose_loader(MedDINOv3Trainer.loader, None)
    except MedDINOError as error:
        return Check("settings", Status.FAILED, str(error))
    values = [f"{variable.name}={value}" for variable in TRAINING_SETTINGS if (value := variable.get()) is not None]
    return Check("settings", Status.OK, ", ".join(values) or "those of the trainers")


def _weights() -> Check:
    """Whether the weights that MedDINOv3Trainer would start from are there and readable."""
    from huggingface_hub import constants

    from nnunetv2_meddino.trainers.meddinov3 import MedDINOv3Trainer
    from nnunetv2_meddino.weights.backbones import choose_backbone
    from nnunetv2_meddino.weights.hub import cached_path

    try:
        choice = choose_backbone(MedDINOv3Trainer.pretrained)
    except MedDINOError as error:
        return Check("weights", Status.FAILED, str(error))
    if choice.weights is None:
        return Check("weights", Status.NOTE, f"{MEDDINO_WEIGHTS.name}=none: training starts from random weights")
    found = cached_path(choice.weights)
    if found is None and constants.HF_HUB_OFFLINE:
        advice = "is not on this machine, and HF_HUB_OFFLINE forbids to fetch it; unset it, or see docs/weights.md"
        return Check("weights", Status.FAILED, f"{choice.weights} {advice}")
    if found is None:
        return Check(
            "weights",
            Status.NOTE,
            f"{choice.weights} is not on this machine; it is fetched when a training starts, or now by: "
            f"meddino weights fetch {choice.weights}",
        )
    return Check("weights", Status.OK, f"{choice.weights}: {found}")


def _device() -> Check:
    import torch

    from nnunetv2_meddino.networks.precision import autocast_dtype

    if torch.cuda.is_available():
        try:
            torch.ones(16, 16, device="cuda").mm(torch.ones(16, 16, device="cuda")).cpu()
        except RuntimeError as error:  # built for other GPUs, or another program holds this one
            return Check("device", Status.FAILED, f"{torch.cuda.get_device_name()} does not compute: {error}")
        dtype = str(autocast_dtype("cuda")).removeprefix("torch.")
        return Check("device", Status.OK, f"{torch.cuda.get_device_name()}, computing in {dtype}")
    return Check(
        "device",
        Status.NOTE,
        f"no CUDA device, {os.cpu_count()} CPU cores: pass -device cpu; enough for 'meddino demo', not for ViT-B",
    )
