"""Trainings of seconds: a small corpus, a small configuration, and what came of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pretraining.config import RunConfig
from pretraining.config.parse import stage_configurations
from pretraining.engine.distributed import Ranks
from pretraining.engine.stages import train_stages
from pretraining.engine.stop import StopRequest
from pretraining.engine.teachers import teacher_path
from tests.pretraining.curation.folders import curated, phantom, write_volume

ALONE = Ranks(0, 1, torch.device("cpu"))
STEPS = 6
SMALL = (
    *("--engine.steps", str(STEPS), "--engine.checkpoint-every", "2", "--engine.teacher-every", "3"),
    *("--model.drop-path", "0.3", "--data.batch-size", "8", "--data.group-size", "4", "--views.num-local", "2"),
    *("--views.global-size", "48", "--monitor.pictures", "1", "--monitor.image-size", "48"),
    *("--monitor.tensorboard", "false", "--monitor.check-every", "3", "--model.dino-head.prototypes", "64"),
    *("--model.ibot-head.prototypes", "48"),
)
ANY_STAGE = {
    "stage1": ("--optim.teacher-temperature.warmup-steps", "2"),
    "stage2": (
        *("--views.gram-size", "64", "--gram-teacher.teacher", "previous:3"),
        *("--losses.local-weight.warmup-steps", "2", "--losses.gram-weight.warmup-steps", "2"),
    ),
    "stage3": (),
}


def small_config(stage: str = "stage1", *overrides: str) -> RunConfig:
    """Return a stage of a few steps."""
    (config,) = stage_configurations([stage], "smoke", None, [*SMALL, *ANY_STAGE[stage], *overrides])
    return config


def small_corpus(folder: Path, phantoms: int = 2) -> Path:
    """Curate some phantoms; returns the corpus."""
    for seed in range(phantoms):
        write_volume(phantom(seed), folder / "raw" / f"case_{seed}.nii.gz")
    curated(folder / "corpus", ("one", folder / "raw"))
    return folder / "corpus"


class StopAfter(StopRequest):
    """A request to stop that comes during a step, counted from 1."""

    def __init__(self, step: int | None) -> None:
        super().__init__()
        self.step = step

    def progress(self, name: str):
        """Return what is told about the steps of a stage."""

        def update(done: int, total: int, metrics: dict[str, float]) -> None:
            if done == self.step:
                self.received = "SIGTERM"

        return update


def train(config: RunConfig, corpus: Path, run: Path, *, stop_after: int | None = None, ranks: Ranks = ALONE) -> bool:
    """Train a stage in this process."""
    return train_all([config], corpus, run, stop_after=stop_after, ranks=ranks)


def train_all(
    configs: list[RunConfig], corpus: Path, run: Path, *, stop_after: int | None = None, ranks: Ranks = ALONE
) -> bool:
    """Train stages in this process, on one thread as processes of ``torchrun``: Adam makes much of other rounding."""
    stop = StopAfter(stop_after)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train_stages(configs, corpus, run, ranks, stop=stop, progress=stop.progress)
    finally:
        torch.set_num_threads(threads)


def metrics(stage_folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the metrics file without measured speeds."""
    lines = [json.loads(line) for line in (stage_folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("throughput/")} for line in lines]


def losses(stage_folder: Path) -> list[float]:
    """Return the loss of every step."""
    return [line["loss"] for line in metrics(stage_folder) if "loss" in line]


def teacher(run: Path, stage: str = "stage1", step: int = STEPS) -> dict[str, Tensor]:
    """Return a teacher of a run."""
    return load_file(teacher_path(run / stage, step))


def with_engine(config: RunConfig, **settings: Any) -> RunConfig:
    """Return a configuration with other settings of the engine."""
    return replace(config, engine=replace(config.engine, **settings))
