"""Places where metrics are shown beside their file: TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from nnunetv2_meddino.errors import ConfigurationError


class MetricLogger(Protocol):
    """Shows what is logged."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show numbers, finite or not."""

    def event(self, step: int, kind: str, message: str) -> None:
        """Show a message."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files of TensorBoard in a folder of their own.

    Args:
        folder: Made where it is missing.
        start_step: What an earlier process showed from this step on is hidden.

    Raises:
        ConfigurationError: The package ``tensorboard`` is missing.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        writer = _imported("torch.utils.tensorboard", package="tensorboard", setting="tensorboard")
        self._writer = writer.SummaryWriter(str(folder), purge_step=start_step or None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show numbers."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def event(self, step: int, kind: str, message: str) -> None:
        """Show a message under the texts."""
        self._writer.add_text(f"event/{kind}", message, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases, continued where the folder names one.

    Args:
        project: Where the run belongs.
        folder: Holds the run's files, and its id in ``wandb_id``.
        start_step: 0 begins a new run.

    Raises:
        ConfigurationError: The package ``wandb`` is missing.
    """

    def __init__(self, project: str, folder: Path, start_step: int) -> None:
        wandb = _imported("wandb", package="wandb", setting="wandb")
        known = folder / "wandb_id"
        run_id = known.read_text().strip() if start_step and known.exists() else None
        self._run = wandb.init(project=project, dir=str(folder), name=folder.name, id=run_id, resume="allow")
        known.write_text(self._run.id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show numbers."""
        self._run.log(dict(values), step=step)

    def event(self, step: int, kind: str, message: str) -> None:
        """Show a message."""
        self._run.log({f"event/{kind}": message}, step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


def _imported(module: str, *, package: str, setting: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        msg = (
            f"Metrics cannot be shown by {package}: {error}. Install it with 'pip install {package}', or switch it off "
            f"(monitor.{setting}); metrics.jsonl is written in any case."
        )
        raise ConfigurationError(msg) from error
