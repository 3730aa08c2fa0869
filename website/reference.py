"""The reference, made of the code when the site is built: commands, settings, variables, trainers, weights, Python."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module

import nnunetv2_meddino.cli.main
import pretraining.cli.main
from nnunetv2_meddino import environment
from nnunetv2_meddino.trainers import TRAINERS, find_trainer
from nnunetv2_meddino.weights.catalog import CATALOG
from pretraining.config import STAGES
from pretraining.config.forms import described
from pretraining.config.recipes import RECIPES, recipe
from website.options import code, command_page, prose, table

PYTHON = {
    "inference": ("Predict", ("nnunetv2_meddino.inference", "nnunetv2_meddino.inference.folders:predict_folder")),
    "evaluation": ("Evaluate", ("nnunetv2_meddino.evaluation",)),
    "features": ("Features", ("nnunetv2_meddino.features",)),
    "weights": (
        "Weights and networks",
        (
            "nnunetv2_meddino.weights.load:read_weights,load_into,write_weights",
            "nnunetv2_meddino.weights.contamination:seen_cases,unlisted",
            "nnunetv2_meddino.networks.vit:VisionTransformer",
        ),
    ),
    "planning": ("Planning", ("nnunetv2_meddino.planning.planner:plan_dataset",)),
    "pretraining": (
        "Corpus and views",
        (
            "pretraining.corpus.loader:slice_loader",
            "pretraining.views",
            "pretraining.curation.contamination:SeenScans",
        ),
    ),
    "errors": ("Errors", ("nnunetv2_meddino.errors",)),
}
"""Page -> title, and what it documents: all that a module offers, or some names of it."""


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path of every page, and what it holds in Markdown."""
    yield "reference/meddino.md", command_page(nnunetv2_meddino.cli.main.parser(), "meddino", _MEDDINO)
    yield (
        "reference/meddino-pretrain.md",
        command_page(pretraining.cli.main.parser(), "meddino-pretrain", _PRETRAIN),
    )
    yield "reference/settings.md", _settings()
    yield "reference/environment.md", _environment()
    yield "reference/trainers.md", _trainers()
    yield "reference/weights.md", _weights()
    for name, (title, parts) in PYTHON.items():
        members = [f"::: {member}" for part in parts for member in _members(part)]
        yield f"reference/python/{name}.md", "\n\n".join([f"# {title}", *members]) + "\n"


_MEDDINO = (
    "For nnU-Net's users. Every sub-command prints its help with `--help`. Exit codes: 0 done, 2 an error, 130 after "
    "Ctrl-C, 143 after SIGTERM, 129 after SIGHUP; where 1 can occur, the command says what it means. What some of them "
    "read from the environment: [variables](environment.md)."
)
_PRETRAIN = (
    "From volumes to a corpus, and from a corpus to weights. Every sub-command prints its help with `--help`; settings "
    "of a training are on [a page of their own](settings.md)."
)


def _settings() -> str:
    """Return all settings, with their values in the default recipe."""
    parts = [
        "# Settings of the pretraining",
        "On the command line `--section.setting VALUE`, for one stage `--stage2.section.setting VALUE`; nested YAML "
        "in a file that `--config` names. The values are those of the recipe `meddinov3`, of stages 1, 2 and 3 "
        "where they differ; `--recipe` takes "
        f"{', '.join(f'`{name}`' for name in RECIPES)}, and `meddino-pretrain train STAGE --show` prints the values of "
        "any of them. How to use them: [pretraining](../pretraining.md#recipes-and-settings).",
    ]
    rows: list[list[str]] = []
    for settings in zip(*(described(recipe("meddinov3", stage)) for stage in STAGES), strict=True):
        setting, values = settings[0], [code(one.value) for one in settings]
        if setting.form is None:
            parts += [_settings_table(rows), f"## {setting.name}", prose(setting.meaning)]
            rows = []
            continue
        value = values[0] if len(set(values)) == 1 else "<br>".join(f"{n} {v}" for n, v in enumerate(values, start=1))
        rows.append([code(f"--{setting.name}"), prose(setting.meaning), code(setting.form), value])
    return "\n\n".join(part for part in [*parts, _settings_table(rows)] if part) + "\n"


def _settings_table(rows: list[list[str]]) -> str:
    return table(("setting", "meaning", "form", "value"), rows) if rows else ""


def _environment() -> str:
    variables = [value for value in vars(environment).values() if isinstance(value, environment.EnvironmentVariable)]
    rows = [(code(variable.name), prose(variable.meaning)) for variable in variables]
    introduction = (
        "Everything that is read from the environment or set in it. `meddino env --check` verifies the folders."
    )
    return f"# Environment variables\n\n{introduction}\n\n{table(('variable', 'meaning'), rows)}\n"


def _trainers() -> str:
    rows = [(code(name), prose(_first_paragraph(find_trainer(name)))) for name in TRAINERS]
    introduction = "For `-tr` of `meddino train`, `nnUNetv2_train` and the commands that predict."
    return f"# Trainers\n\n{introduction}\n\n{table(('trainer', 'what it is'), rows)}\n"


def _weights() -> str:
    parts = [
        "# Catalog of weights",
        "For `MEDDINO_WEIGHTS` and `--weights`, which [take more than these](../weights.md#choosing-weights).",
    ]
    for entry in CATALOG.values():
        parts += [f"## {entry.name}", prose(f"{entry.description.rstrip('.')}. {entry.note}")]
        file = f"{code(entry.filename)} of {code(entry.repository)}"
        parts.append(
            f"- Licence: [{entry.licence}]({entry.licence_url})\n- From: [{entry.homepage}]({entry.homepage}), {file}"
        )
        if entry.collections:
            parts.append(f"Its pretraining read images of {', '.join(entry.collections)}.")
    return "\n\n".join(parts) + "\n"


def _first_paragraph(thing: type) -> str:
    return inspect.cleandoc(thing.__doc__ or "").partition("\n\n")[0]


def _members(part: str) -> list[str]:
    """Return the full names of what a page documents of a module."""
    name, _, chosen = part.partition(":")
    module = import_module(name)
    classes = [key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == name]
    members = chosen.split(",") if chosen else getattr(module, "__all__", classes)
    functions_first = sorted(members, key=lambda member: inspect.isclass(getattr(module, member)))
    return [f"{name}.{member}" for member in functions_first]
