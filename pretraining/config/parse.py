"""Between recipe, YAML file and command line on one side and the configuration of a stage on the other.

Files and the command line are read alike: both give texts by dotted names, such as ``1e-4`` for ``optim.lr``. The types
of the fields say what a text means; tyro puts the values into the nested dataclasses, and writes the help.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, is_dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro
import yaml
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.config.forms import PEAK, YamlOfTexts, as_yaml, docstrings, form_of, text_of, value_of
from pretraining.config.recipes import recipe
from pretraining.config.run import STAGES, RunConfig

Setting = tuple[str, str | None]
"""Dotted name and text; None where the text is missing."""

COMMAND_LINE = "command line"

RENAMED = {"optim.local_loss_weight": "losses.local_weight", "optim.gram_loss_weight": "losses.gram_weight"}
"""Old names of settings, which are read until the release after 0.1."""

logger = logging.getLogger(__name__)


def stage_configurations(
    stages: Sequence[str], name: str, file: Path | None = None, arguments: Sequence[str] = ()
) -> list[RunConfig]:
    """Return the configurations of stages: a recipe, changed by a file, then by the command line.

    Settings below ``stage1``, ``stage2`` or ``stage3`` are for that stage, the others for all. On the command line,
    names may have ``-`` for ``_``, lists have commas or are YAML, and whole sections are YAML (``--optim.lr "{peak: 1,
    end: 0}"``). The last of a repeated setting counts; what is given in one place is checked together.

    Args:
        stages: Some of ``STAGES``.
        name: Name of the recipe.
        file: YAML file of settings by section.
        arguments: ``--section.setting VALUE`` and ``--stage2.section.setting VALUE``.

    Raises:
        ConfigurationError: A setting is unknown or impossible.
    """
    in_file = [] if file is None else list(_flat(read_yaml(file), str(file)))
    in_file.sort(key=lambda setting: setting[0].partition(".")[0] in STAGES)  # those of one stage count more
    typed = _typed(arguments)
    for old in dict.fromkeys(name for name, _ in (*in_file, *typed) if _current(name) != name):
        logger.warning("%s is now called %s; the next release will not know the old name", old, _current(old))
    configs = []
    for stage in stages:
        config = recipe(name, stage)
        for settings, where in ((in_file, str(file)), (typed, COMMAND_LINE)):
            config = _changed(config, _of_stage(settings, stage), where)
        configs.append(replace(config, stage=stage))
    return configs


def from_dict(mapping: Any, where: str, base: RunConfig | None = None) -> RunConfig:
    """Return the configuration that nested mappings hold.

    Args:
        mapping: What ``read_yaml`` or ``to_dict`` return, or a part of it.
        where: What errors call the mapping, such as the name of its file.
        base: Configuration that gives the settings that the mapping leaves out, by default the defaults.

    Raises:
        ConfigurationError: A setting is unknown or impossible.
    """
    return _changed(RunConfig() if base is None else base, list(_flat(mapping, where)), where)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return a configuration as nested mappings of what YAML and JSON hold."""
    return asdict(config, dict_factory=lambda items: {k: str(v) if isinstance(v, Path) else v for k, v in items})


def read_yaml(path: Path) -> Any:
    """Return what a file holds: mappings, lists and texts; an empty file is an empty mapping.

    Raises:
        ConfigurationError: The file cannot be read, or is not YAML.
    """
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.load(file, YamlOfTexts)  # a SafeLoader
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} cannot be read as YAML: {error}. Correct it.") from error
    return {} if content is None else content


def to_yaml(config: RunConfig) -> str:
    """Return a configuration with all its values as YAML."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None, width=120)


def print_settings(config: RunConfig, recipe_name: str) -> None:
    """Print name, type, meaning and value of every setting of a configuration."""
    description = f"Settings of {config.stage}, with the values of the recipe {recipe_name}."
    with suppress(SystemExit):
        _tyro(config, ["--help"], prog=f"meddino-pretrain train {config.stage}", description=description)


def _flat(content: Any, where: str, prefix: str = "") -> Iterator[Setting]:
    """Yield the settings in nested mappings."""
    if not isinstance(content, dict):
        raise ConfigurationError(f"{where}: settings must be given by section, not as {content!r}.")
    for key, value in content.items():
        name = f"{prefix}{key}".replace("-", "_")
        if isinstance(value, dict):
            yield from _flat(value, where, f"{name}.")
        else:
            yield name, value if isinstance(value, str) else as_yaml(value)


def _typed(arguments: Sequence[str]) -> list[Setting]:
    """Return the settings of a command line."""
    settings: list[Setting] = []
    rest = list(arguments)
    while rest:
        name, equals, text = rest.pop(0).partition("=")
        if not name.startswith("--") or name == "--":
            raise ConfigurationError(f"{COMMAND_LINE}: unexpected {name!r}. Settings are given as --name VALUE.")
        name = name[2:].replace("-", "_")
        if not equals:
            if not rest or rest[0].startswith("--"):
                settings.append((name, None))
                continue
            text = rest.pop(0)
        if text.startswith("{"):
            try:
                settings += _flat(yaml.load(text, YamlOfTexts), COMMAND_LINE, f"{name}.")  # a SafeLoader
            except yaml.YAMLError as error:
                raise ConfigurationError(f"{COMMAND_LINE}: {name} is not YAML: {error}.") from error
        else:
            settings.append((name, text))
    return settings


def _of_stage(settings: Iterable[Setting], stage: str) -> list[Setting]:
    """Return the settings that concern a stage, without its name."""
    kept = []
    for name, text in settings:
        first, _, rest = name.partition(".")
        if first not in STAGES:
            kept.append((name, text))
        elif first == stage and (rest or text):  # a file may have a stage without settings
            kept.append((rest or name, text))
    return kept


def _current(name: str) -> str:
    """Return the present name of a setting, with that of a stage where it has one."""
    for old, new in RENAMED.items():
        name = re.sub(rf"\b{re.escape(old)}\b", new, name)
    return name


def _changed(config: RunConfig, settings: Sequence[Setting], where: str) -> RunConfig:
    """Return a configuration with other settings."""
    if not settings:
        return config
    known = [name.removesuffix(f".{PEAK}") for name, _ in _flat(to_dict(config), where)]
    arguments = []
    for written, text in settings:
        name = _current(written).removesuffix(f".{PEAK}")
        if name not in known:
            raise ConfigurationError(f"{where}: {_unknown(name, known)}")
        if text is None:
            option = name.replace("_", "-")
            raise ConfigurationError(f"{where}: --{option} needs a value: --{option} VALUE.")
        arguments.append(f"--{name}={name}={text}")  # the value carries its name, so that its error can say it
    try:
        return _tyro(config, arguments)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {_place(config, arguments, str(error))}{error}") from error


def _place(config: RunConfig, arguments: Sequence[str], message: str) -> str:
    """Return the section within a section, such as ``optim.lr: ``, that an error is of; tyro does not say where it is.

    It is the one whose settings give the same error without the others.
    """
    names = [argument[2:].partition("=")[0] for argument in arguments]
    for section in dict.fromkeys(place for name in names for place in (name, name.rpartition(".")[0])):
        if "." not in section or not is_dataclass(attrgetter(section)(config)):
            continue
        own = [a for a, name in zip(arguments, names, strict=True) if f"{name}.".startswith(f"{section}.")]
        try:
            _tyro(config, own)
        except ConfigurationError as error:
            if str(error) == message and not message.startswith(section):
                return f"{section}: "
    return ""


def _tyro(config: RunConfig, arguments: Sequence[str], **texts: Any) -> RunConfig:
    markers = (tyro.conf.FlagConversionOff,)  # true and false are written
    return tyro.cli(RunConfig, default=config, args=arguments, config=markers, registry=_REGISTRY, **texts)


def _unknown(name: str, known: Sequence[str]) -> str:
    """Return what to say of a name that no setting has."""
    if inside := [one for one in known if one.startswith(f"{name}.")]:
        return f"{name} is a section of {len(inside)} settings. Give them by their names, such as {inside[0]}."
    group, dot, leaf = name.rpartition(".")
    here = dict.fromkeys(one[len(group + dot) :].split(".")[0] for one in known if one.startswith(group + dot))
    near = [f"{group}{dot}{one}" for one in difflib.get_close_matches(leaf, here, n=1)]
    near = near or [one for one in known if one.rpartition(".")[2] == leaf]
    if near:
        advice = f"Did you mean {' or '.join(near)}?"
    elif dot and here:
        advice = f"{group} has {', '.join(here)}."
    else:
        advice = "meddino-pretrain train stage1 --help lists all."
    return f"there is no option {name}. {advice}"


_REGISTRY = ConstructorRegistry()


@_REGISTRY.struct_rule
def _section(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Tell tyro the settings of a section, with the docstrings under them."""
    if not is_dataclass(info.type):
        return None
    hints = get_type_hints(info.type)
    hints |= {PEAK: Annotated[hints[PEAK], tyro.conf.arg(name="")]} if PEAK in hints else {}
    settings = (
        StructFieldSpec(name, hint, getattr(info.default, name), docstrings(info.type).get(name))
        for name, hint in hints.items()
    )
    return StructConstructorSpec(info.type, tuple(settings))


@_REGISTRY.primitive_rule
def _rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Tell tyro how a setting that is not a section is written."""
    hint = info.type
    if is_dataclass(hint):
        return None

    def value(given: list[str]) -> Any:
        name, _, text = given[0].partition("=")
        try:
            return value_of(hint, text)
        except (ValueError, KeyError, yaml.YAMLError) as error:
            raise ConfigurationError(f"{name} must be {form_of(hint)}, not {text!r}.") from error

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=form_of(hint),
        instance_from_str=value,
        is_instance=lambda _: True,
        str_from_instance=lambda value: [text_of(value)],
    )
