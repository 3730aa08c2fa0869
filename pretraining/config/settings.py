"""Settings between nested frozen dataclasses, YAML files and the command line.

The dataclasses are the only list of options there is: names, types, defaults and explanations (the "Attributes" of
their docstrings) are read from them. A dataclass that names one of its fields in ``MAIN_FIELD`` may be written as the
value of that field alone; what else it holds then stays as it was.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

import yaml

from nnunetv2_meddino.errors import ConfigurationError
from nnunetv2_meddino.files import replacing
from pretraining.config.options import (
    NONE,
    Option,
    describe,
    in_words,
    main_field,
    option_names,
    required,
    to_dict,
    type_hints,
    without_none,
)

__all__ = [
    "Option",
    "describe",
    "from_dict",
    "override",
    "parse_overrides",
    "read_yaml",
    "save_yaml",
    "to_dict",
    "to_yaml",
]

T = TypeVar("T")


def from_dict(cls: type[T], mapping: Any, where: str = "configuration", base: T | None = None) -> T:
    """Build a configuration.

    Args:
        cls: The dataclass.
        mapping: Values by name, as ``to_dict`` makes them; nested dataclasses are mappings.
        where: What errors call the mapping, such as the name of its file.
        base: Gives the values that the mapping leaves out; by default the dataclass' own defaults do.

    Raises:
        ConfigurationError: An option is unknown, missing or of another type, or the dataclass refuses its value.
    """
    return _Reader(cls, where).build(cls, mapping, base, "")


def read_yaml(path: str | Path) -> Any:
    """Return what a file holds; an empty one is an empty mapping.

    Raises:
        ConfigurationError: The file cannot be read, or is not YAML.
    """
    try:
        content = yaml.load(Path(path).read_text(), _Loader)  # a SafeLoader
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} cannot be read as YAML: {error}. Correct it.") from error
    return {} if content is None else content


def to_yaml(config: Any) -> str:
    """Return a configuration with all its values as YAML."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None, width=120)


def save_yaml(config: Any, path: str | Path) -> None:
    """Write a configuration with all its values, whole or not at all.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    path = Path(path)
    try:
        with replacing(path) as temporary:
            temporary.write_text(to_yaml(config))
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror or error}. See that its folder exists and has room."
        raise ConfigurationError(msg) from error


def override(config: T, path: str, text: str) -> T:
    """Return the configuration with one option changed, as ``parse_overrides`` does with ``--path=text``."""
    return parse_overrides(config, [f"--{path}={text}"])


def parse_overrides(config: T, arguments: Sequence[str]) -> T:
    """Return the configuration with options from the command line.

    ``--views.gram-size 512 --views.global-scale 0.3,1.0 --optim.lr=1e-4 --monitor.probe none``: names with dots, ``-``
    for ``_`` if liked; lists with commas; lists of lists and whole groups as YAML. All are applied before anything is
    checked together; the last of a repeated option counts.

    Raises:
        ConfigurationError: An option is unknown, lacks its value, or has one of another type or one that is refused.
    """
    reader = _Reader(type(config), "command line")
    mapping: dict[str, Any] = {}
    for name, text in _pairs(arguments):
        path, hint = reader.resolve(type(config), name)
        value = reader.parse(hint, text, ".".join(path))
        main = main_field(without_none(hint))
        if main is not None and value != NONE and not isinstance(value, Mapping):
            value = {main: value}  # so that other options of the same dataclass can join it
        _merge(mapping, path, value)
    return reader.build(type(config), mapping, config, "")


class _Loader(yaml.SafeLoader):
    """YAML without two of its traps: 1e-4 is a number here (and inf), and no key may stand twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{repeated[0]!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+|inf)$"), list("-+0123456789i")
)


class _Reader:
    """Turns plain values into dataclasses; its errors name the place."""

    def __init__(self, cls: type, where: str) -> None:
        self.where = where
        self.names = list(option_names(cls))

    def build(self, cls: type[T], mapping: Any, base: T | None, place: str) -> T:
        """Return the dataclass with the mapping's values, and for the rest the base's or the defaults."""
        if not isinstance(mapping, Mapping):
            self._fail(place, f"must be options by their names, not {mapping!r}")
        hints = type_hints(cls)
        values = {} if base is None else {name: getattr(base, name) for name in hints}
        for key, value in mapping.items():
            full = _join(place, key)
            if key not in hints:
                self._unknown(full, list(hints))
            values[key] = self.convert(hints[key], value, values.get(key), full)
        if missing := [name for name in required(cls) if name not in values]:
            self._fail(_join(place, missing[0]), "is missing and has no default")
        try:
            return cls(**values)
        except ConfigurationError as error:
            named = str(error) if not place or str(error).startswith(f"{place}: ") else f"{place}: {error}"
            raise ConfigurationError(f"{self.where}: {named}") from error

    def convert(self, hint: Any, value: Any, base: Any, place: str) -> Any:
        """Return a plain value as the type that the hint asks for; what a dataclass leaves out is as in its base."""
        inner = without_none(hint)
        if inner is not hint and value in (None, NONE):
            return None
        if is_dataclass(inner):
            main = main_field(inner)
            mapping = value if main is None or isinstance(value, Mapping) else {main: value}
            return self.build(inner, mapping, base, place)  # type: ignore[arg-type]
        if get_origin(inner) is tuple and isinstance(value, (list, tuple)):
            elements = _elements(inner, len(value))
            if len(value) == len(elements):
                pairs = enumerate(zip(elements, value, strict=True))
                return tuple(self.convert(element, one, None, f"{place}[{i}]") for i, (element, one) in pairs)
        if not _fits(inner, value):
            self._fail(place, f"must be {in_words(hint)}, not {value!r}")
        return inner(value) if inner in (float, Path) else value

    def parse(self, hint: Any, text: str, place: str) -> Any:
        """Return what a text of the command line would be in a file; ``convert`` does the rest."""
        inner = without_none(hint)
        if (inner is not hint and text == NONE) or inner in (str, Path):
            return text
        if get_origin(inner) is Literal and text in get_args(inner):
            return text
        if get_origin(inner) is tuple and not text.startswith("["):
            parts = [part.strip() for part in text.split(",")]
            elements = _elements(inner, len(parts))
            if len(elements) != len(parts):
                return parts  # which convert refuses
            return [self.parse(element, part, place) for element, part in zip(elements, parts, strict=True)]
        try:
            return yaml.load(text, _Loader)  # a SafeLoader
        except yaml.YAMLError:
            return self._fail(place, f"must be {in_words(hint)}, not {text!r}")

    def resolve(self, cls: type, name: str) -> tuple[list[str], Any]:
        """Return the fields that ``a.b-c`` leads through, and the type of the last."""
        path, hint = name.replace("-", "_").split("."), cls
        for depth, part in enumerate(path):
            inner = without_none(hint)
            hints = type_hints(inner) if is_dataclass(inner) else {}
            if part not in hints:
                self._unknown(".".join(path[: depth + 1]), list(hints))
            hint = hints[part]
        return path, hint

    def _unknown(self, place: str, known: Sequence[str]) -> NoReturn:
        """Name the nearest option: one spelt like it in the same group, else those of the same name in others."""
        group, _, leaf = place.rpartition(".")
        near = [_join(group, name) for name in difflib.get_close_matches(leaf, known, n=1)]
        near = near or [name for name in self.names if name.rpartition(".")[2] == leaf]
        advice = f"Did you mean {' or '.join(near)}?" if near else f"Known here: {', '.join(known) or 'none'}."
        raise ConfigurationError(f"{self.where}: there is no option {place}. {advice}")

    def _fail(self, place: str, what: str) -> NoReturn:
        raise ConfigurationError(f"{self.where}: {place or 'the content'} {what}.")


def _elements(hint: Any, count: int) -> tuple[Any, ...]:
    """Return the types of a tuple's elements; ``tuple[X, ...]`` has as many as there are values."""
    elements = get_args(hint)
    return elements[:1] * count if elements[-1] is Ellipsis else elements


def _fits(hint: Any, value: Any) -> bool:
    """Tell whether a value is of a type; a whole number is a number, but true and false are none."""
    if get_origin(hint) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return False  # one that fits has been converted
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, {float: (int, float), Path: (str, Path)}.get(hint, hint))


def _join(place: str, name: object) -> str:
    return f"{place}.{name}" if place else str(name)


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Split ``--name value`` and ``--name=value``."""
    pairs, rest = [], list(arguments)
    while rest:
        name, equals, text = rest.pop(0).partition("=")
        if not name.startswith("--") or name == "--":
            raise ConfigurationError(f"command line: {name!r} is no option. Options begin with --, as in --name value.")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigurationError(f"command line: {name} lacks its value. Write {name} VALUE.")
            text = rest.pop(0)
        pairs.append((name.removeprefix("--"), text))
    return pairs


def _merge(mapping: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Put a value into nested mappings, where it joins what was given before."""
    *groups, last = path
    for part in groups:
        if not isinstance(mapping.get(part), dict):
            mapping[part] = {}
        mapping = mapping[part]
    if not isinstance(value, dict):
        mapping[last] = value
        return
    for name, one in value.items():
        _merge(mapping, [last, name], one)
