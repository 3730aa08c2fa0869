"""Every environment variable that this package reads or sets, with its meaning."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from nnunetv2_meddino.errors import ConfigurationError


@dataclass(frozen=True)
class EnvironmentVariable:
    """One environment variable: its name and what it means to a user."""

    name: str
    meaning: str

    def get(self) -> str | None:
        """Return the value, or None where the variable is unset or blank."""
        return os.environ.get(self.name, "").strip() or None


MEDDINO_WEIGHTS = EnvironmentVariable(
    "MEDDINO_WEIGHTS",
    "pretrained backbone weights: a catalog name, a file, a hub id, or 'none' (random initialisation, on purpose); "
    "unset: the trainer's own choice",
)
MEDDINO_BACKBONE = EnvironmentVariable(
    "MEDDINO_BACKBONE",
    "backbone architecture: tiny, vits16, vitb16 or vitl16; unset: what the weights hold",
)
MEDDINO_LOADER = EnvironmentVariable(
    "MEDDINO_LOADER",
    "what makes training batches: 'stock' is nnU-Net's loader, 'whole_slice' ours; unset: the trainer's own choice, "
    "which is 'stock'",
)
MEDDINO_AUGMENT = EnvironmentVariable(
    "MEDDINO_AUGMENT",
    "where the loader 'whole_slice' augments: 'worker' in its processes, 'device' on the GPU that trains; unset: "
    "'worker'",
)
MEDDINO_FINETUNE = EnvironmentVariable(
    "MEDDINO_FINETUNE",
    "what is trained of a pretrained ViT: 'full' everything, 'frozen' nothing, 'lora' low-rank adapters, 'layer_decay' "
    "everything, the first blocks least; unset: the trainer's own choice, which is 'full'",
)
TRAINING_SETTINGS = (MEDDINO_WEIGHTS, MEDDINO_BACKBONE, MEDDINO_FINETUNE, MEDDINO_LOADER, MEDDINO_AUGMENT)
"""What decides how a trainer trains."""

NNUNET_EXT_TRAINER = EnvironmentVariable(
    "nnUNet_extTrainer",
    "folders where nnU-Net looks for trainers that it does not ship",
)
OMP_WAIT_POLICY = EnvironmentVariable(
    "OMP_WAIT_POLICY",
    "'passive' keeps idle OpenMP threads from spinning; without it a CPU run with worker processes is about ten "
    "times slower",
)
NNUNET_N_PROC_DA = EnvironmentVariable(
    "nnUNet_n_proc_DA",
    "processes that augment training data; 0 (good on a CPU with few cores) does it in the training process",
)
NNUNET_WANDB = EnvironmentVariable(
    "nnUNet_wandb_enabled",
    "1 sends a training's curves to Weights & Biases as well; nnU-Net deletes fold_X/wandb whenever it is started "
    "without --c, with --val too",
)
NNUNET_COMPILE = EnvironmentVariable("nnUNet_compile", "1 compiles networks with torch.compile before prediction too")
SLURM_JOB_ID = EnvironmentVariable("SLURM_JOB_ID", "the job of Slurm that this process belongs to")
SLURM_RESTART_COUNT = EnvironmentVariable("SLURM_RESTART_COUNT", "how often Slurm has queued the job again")
NNUNET_RAW = EnvironmentVariable("nnUNet_raw", "folder of the raw datasets")
NNUNET_PREPROCESSED = EnvironmentVariable("nnUNet_preprocessed", "folder of the preprocessed datasets and their plans")
NNUNET_RESULTS = EnvironmentVariable("nnUNet_results", "folder of the trained models")
NNUNET_PATHS = (NNUNET_RAW, NNUNET_PREPROCESSED, NNUNET_RESULTS)

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


def require_unchanged(variable: EnvironmentVariable, what: str, begun: str) -> None:
    """Refuse a variable that says something else than what a training was begun with.

    Args:
        variable: May be unset.
        what: It chooses, for the message.
        begun: Its value when the training began.

    Raises:
        ConfigurationError: It does.
    """
    if (wanted := variable.get()) not in (None, begun):
        msg = (
            f"This training was begun with the {what} {begun}, and {variable.name} is {wanted}: half a training with "
            f"each would be comparable with neither. Unset {variable.name} to go on as it began, or start anew, "
            "without --c."
        )
        raise ConfigurationError(msg)


def ext_trainer_folder() -> Path:
    """Return the folder that ``nnUNet_extTrainer`` must name: it holds the trainer shim and nothing else.

    Raises:
        ConfigurationError: The package is in an archive (``PYTHONPATH=a.whl``); nnU-Net passes over what is no folder.
    """
    folder = resources.files("nnunetv2_meddino") / "nnunet_ext"
    if not isinstance(folder, Path):
        msg = (
            f"{folder} is in an archive, and nnU-Net looks for trainers in folders. Install the package instead of "
            "importing it from there: pip install ARCHIVE, or pip install --target FOLDER ARCHIVE."
        )
        raise ConfigurationError(msg)
    return folder.resolve()


def ext_trainer_value() -> str:
    """Return ``nnUNet_extTrainer`` with our folder added to those that the user has set."""
    ours = str(ext_trainer_folder())
    current = NNUNET_EXT_TRAINER.get()
    folders = current.split(os.pathsep) if current else []
    return os.pathsep.join(folders if ours in folders else [*folders, ours])


def run_environment() -> dict[str, str]:
    """Return the variables that nnU-Net commands need so that they find our trainers and use the CPU well."""
    return {
        NNUNET_EXT_TRAINER.name: ext_trainer_value(),
        OMP_WAIT_POLICY.name: OMP_WAIT_POLICY.get() or "passive",
    }


def nnunet_folders(*variables: EnvironmentVariable) -> list[Path]:
    """Return the folders that some of ``NNUNET_PATHS`` name.

    Raises:
        ConfigurationError: One is not set.
    """
    values = {variable.name: variable.get() for variable in variables}
    if unset := [name for name, value in values.items() if value is None]:
        msg = f"Not set: {', '.join(unset)}. Export the folders of your nnU-Net data and run the same command again:"
        raise ConfigurationError(f"{msg}\n  export {' '.join(f'{name}=/your/folder' for name in unset)}")
    return [Path(str(value)) for value in values.values()]


@contextmanager
def changed_environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables for a moment, or unset those whose value is None."""
    before = {name: os.environ.get(name) for name in changes}
    _change_environment(changes)
    try:
        yield
    finally:
        _change_environment(before)


def _change_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def one_thread_each() -> AbstractContextManager[None]:
    """Make processes that start meanwhile use one thread: libraries read these variables when they are loaded."""
    return changed_environment(dict.fromkeys(_THREAD_VARIABLES, "1"))
