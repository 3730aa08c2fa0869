"""Every environment variable this package reads or sets, declared once with its meaning."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


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
NNUNET_EXT_TRAINER = EnvironmentVariable(
    "nnUNet_extTrainer",
    "folders in which nnU-Net looks for trainers that it does not ship",
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
SLURM_JOB_ID = EnvironmentVariable("SLURM_JOB_ID", "the job of Slurm that this process belongs to")
SLURM_RESTART_COUNT = EnvironmentVariable("SLURM_RESTART_COUNT", "how often Slurm has queued the job again")
NNUNET_PATHS = tuple(
    EnvironmentVariable(name, meaning)
    for name, meaning in (
        ("nnUNet_raw", "folder of the raw datasets"),
        ("nnUNet_preprocessed", "folder of the preprocessed datasets and their plans"),
        ("nnUNet_results", "folder of the trained models"),
    )
)


_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


def ext_trainer_folder() -> Path:
    """Return the folder that ``nnUNet_extTrainer`` must name: it holds the trainer shim and nothing else."""
    return Path(__file__).resolve().parent / "nnunet_ext"


def ext_trainer_value() -> str:
    """Return ``nnUNet_extTrainer`` with our folder in it, keeping folders the user has already set."""
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


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let processes that start meanwhile use one thread: libraries read these variables when they are loaded."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
