"""From a recipe, a file and the command line to the configuration of each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pretraining.config import STAGES, RunConfig
from pretraining.config.recipes import recipe
from pretraining.config.settings import from_dict, parse_overrides, read_yaml


def stage_configurations(
    stages: Sequence[str], name: str, file: Path | None = None, overrides: Sequence[str] = ()
) -> list[RunConfig]:
    """Return the configurations of stages; what comes later counts: recipe, file, command line.

    A file holds settings by section; those below ``stage1``, ``stage2`` or ``stage3`` are for that stage, the rest for
    all. ``--stage2.engine.steps 100`` on the command line is for that stage likewise.

    Args:
        stages: Some of ``STAGES``.
        name: Of the recipe.
        file: YAML.
        overrides: ``--section.field VALUE`` pieces.

    Raises:
        ConfigurationError: A setting is unknown or impossible.
    """
    content = {} if file is None else read_yaml(file)
    common = {key: value for key, value in content.items() if key not in STAGES}
    configs = []
    for stage in stages:
        config = recipe(name, stage)
        for part in (common, content.get(stage) or {}):
            config = from_dict(RunConfig, part, str(file), config)
        config = parse_overrides(config, _of_stage(overrides, stage))
        configs.append(replace(config, stage=stage))
    return configs


def _of_stage(overrides: Sequence[str], stage: str) -> list[str]:
    """Return the pieces that concern a stage, without its name."""
    kept: list[str] = []
    pieces = list(overrides)
    while pieces:
        piece = pieces.pop(0)
        value = [] if "=" in piece or not pieces or pieces[0].startswith("--") else [pieces.pop(0)]
        named, _, rest = piece.removeprefix("--").partition(".")
        if named not in STAGES:
            kept += [piece, *value]
        elif named == stage:
            kept += [f"--{rest}", *value]
    return kept
