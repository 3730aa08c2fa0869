"""Whether the training data keeps up with the network: each loader alone, a training step alone, and both together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunetv2_meddino.environment import MEDDINO_AUGMENT, MEDDINO_LOADER, NNUNET_N_PROC_DA, changed_environment
from nnunetv2_meddino.trainers.base import BaseTrainer
from nnunetv2_meddino.trainers.stored_data import has_data
from nnunetv2_meddino.trainers.training_input import LOADERS, STOCK

WARM_UP = 2
"""Batches before each measurement: files are opened, code is compiled, memory is taken."""

OnStep = Callable[[str], None]
"""Called with what is measured next, in a few words."""


@dataclass(frozen=True)
class Throughput:
    """What a training takes with one loader."""

    loader: str
    loader_s: float
    """CPU seconds that one core needs to make a sample."""
    step_s: float
    """Seconds of a training step with a batch that is there, per sample."""
    both_s: float
    """Seconds of a training step with the batches of the loader's processes, per sample."""
    wait_share: float
    """Fraction of that time in which the network waits for its batch."""
    processes: int
    """That the loader has on this machine (``nnUNet_n_proc_DA``)."""

    @property
    def processes_needed(self) -> int:
        """How many the loader would need for the network never to wait, on as many free cores."""
        return math.ceil(self.loader_s / self.step_s)


def measure(make: Callable[[], BaseTrainer], steps: int, on_step: OnStep = lambda _: None) -> list[Throughput]:
    """Measure the training of a model with each loader, except nnU-Net's where no data of the configuration is stored.

    Args:
        make: Builds the trainer anew; nothing that it has trained is used.
        steps: Batches of each measurement.
        on_step: Called before each.

    Raises:
        ConfigurationError: The model cannot be trained with one of the loaders.
    """
    found = []
    trainer = make()
    for loader in (name for name in LOADERS if has_data(trainer, name)):
        on_step(f"{loader}: the loader alone")
        with _ready(make, loader, {NNUNET_N_PROC_DA.name: "0"}) as (trainer, batches):
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # as in the loader's processes
            _take(batches, WARM_UP)
            begun = time.process_time()
            _take(batches, steps)
            loader_s = (time.process_time() - begun) / steps / trainer.batch_size
            torch.set_num_threads(threads)
            on_step(f"{loader}: the network alone")
            batch = next(batches)
            _train(trainer, iter([batch] * WARM_UP))
            step_s, _ = _train(trainer, iter([batch] * steps))
        on_step(f"{loader}: both")
        with _ready(make, loader, {}) as (trainer, batches):
            _train(trainer, (next(batches) for _ in range(WARM_UP)))
            both_s, waited_s = _train(trainer, (next(batches) for _ in range(steps)))
            found.append(
                Throughput(
                    loader=loader,
                    loader_s=loader_s,
                    step_s=step_s / steps / trainer.batch_size,
                    both_s=both_s / steps / trainer.batch_size,
                    wait_share=waited_s / both_s,
                    processes=get_allowed_n_proc_DA(),
                )
            )
    return found


@contextmanager
def _ready(make: Callable[[], BaseTrainer], loader: str, changes: Mapping[str, str]) -> Iterator[tuple[Any, Any]]:
    """Yield a trainer that is ready for its first step, and its batches, whose processes end with the block."""
    only_ours = {MEDDINO_AUGMENT.name: None} if loader == STOCK else {}
    with changed_environment({MEDDINO_LOADER.name: loader, **only_ours, **changes}):
        trainer = make()
        trainer.initialize()
        trainer.network.train()
        loaders = trainer.get_dataloaders()
        try:
            yield trainer, loaders[0]
        finally:
            for either in loaders:
                end = getattr(either, "close", None) or getattr(
                    either, "_finish", None
                )  # ours, nnU-Net's with processes
                if end is not None:
                    end()


def _take(batches: Iterator[Mapping[str, Any]], count: int) -> None:
    for _ in range(count):
        next(batches)


def _train(trainer: BaseTrainer, batches: Iterator[Mapping[str, Any]]) -> tuple[float, float]:
    """Train on all batches; return the seconds of it all, and those of them spent waiting for batches."""
    waited, begun = 0.0, time.perf_counter()
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        waited += time.perf_counter() - asked
        trainer.train_step(batch)
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return time.perf_counter() - begun, waited
