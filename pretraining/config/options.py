"""What nested frozen dataclasses say of their options: names, types in words, values as text, explanations."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml

NONE = "none"
"""How None is written; in files ``null`` is understood as well."""

_SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}


class Option(NamedTuple):
    """One option of a configuration."""

    name: str
    """Fields from the outermost to the option's own, joined by dots."""
    default: str
    """Its value as it is written on the command line."""
    doc: str
    """What its dataclass says of it; empty if nothing."""


def describe(config: Any, prefix: str = "") -> list[Option]:
    """Return every option with its value in this configuration and its explanation, in the order of the fields.

    A dataclass with a ``MAIN_FIELD`` is one option; describe an instance of it for the fields it has.
    """
    docs, options = attribute_docs(type(config)), []
    for name in type_hints(type(config)):
        value, full = getattr(config, name), f"{prefix}{name}"
        if is_dataclass(value) and main_field(type(value)) is None:
            options += describe(value, f"{full}.")
        else:
            options.append(Option(full, as_text(value), docs.get(name, "")))
    return options


def attribute_docs(cls: type) -> dict[str, str]:
    """Return what the "Attributes" section of a class' docstring (Google style) says of each, on one line."""
    section = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2]
    docs: dict[str, list[str]] = {}
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        if entry := re.match(r" {4}(\w+): *(.*)", line):
            docs[entry[1]] = [entry[2]]
        elif docs and line.strip():
            docs[next(reversed(docs))].append(line.strip())
    return {name: " ".join(lines) for name, lines in docs.items()}


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as what YAML holds: mappings, lists, texts, numbers, None."""
    return {name: as_plain(getattr(config, name)) for name in type_hints(type(config))}


def as_plain(value: Any) -> Any:
    """Return a value as what YAML holds."""
    if is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple):
        return [as_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def as_text(value: Any) -> str:
    """Return a value as the command line takes it."""
    if value is None:
        return NONE
    if isinstance(value, (str, Path)):
        return str(value)
    if isinstance(value, float):
        return repr(value)  # YAML would write 1e-05 as 1.0e-05
    if is_dataclass(value):
        changed = {name: plain for name, plain in to_dict(value).items() if plain != _default(type(value), name)}
        main = main_field(type(value))
        return as_text(getattr(value, main)) if main and set(changed) <= {main} else _flow(changed)
    if isinstance(value, tuple) and value and not any(isinstance(one, tuple) or is_dataclass(one) for one in value):
        return ",".join(map(as_text, value))
    return _flow(as_plain(value))


def type_hints(cls: Any) -> dict[str, Any]:
    """Return name and type of every field of a dataclass that can be given."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls) if field.init}


def required(cls: Any) -> list[str]:
    """Return the names of the fields without a default."""
    return [f.name for f in fields(cls) if f.init and f.default is MISSING and f.default_factory is MISSING]


def main_field(cls: Any) -> str | None:
    """Return the field whose value may stand for a whole dataclass; None where there is none."""
    return getattr(cls, "MAIN_FIELD", None) if is_dataclass(cls) else None


def option_names(cls: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all options and groups of options."""
    for name, hint in type_hints(cls).items():
        yield f"{prefix}{name}"
        inner = without_none(hint)
        if is_dataclass(inner) and main_field(inner) is None:
            yield from option_names(inner, f"{prefix}{name}.")


def without_none(hint: Any) -> Any:
    """Return X of ``X | None``, and other types as they are."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    choices = [choice for choice in get_args(hint) if choice is not type(None)]
    if len(choices) != 1:
        raise TypeError(f"an option may be of one type, or of one type or None, not {hint}")
    return choices[0]


def in_words(hint: Any) -> str:
    """Return a type in words, as errors say it."""
    inner = without_none(hint)
    if inner is not hint:
        return f"{in_words(inner)}, or {NONE}"
    if get_origin(hint) is Literal:
        return f"one of {', '.join(str(choice) for choice in get_args(hint))}"
    if get_origin(hint) is tuple:
        elements = get_args(hint)
        if elements[-1] is Ellipsis:
            return f"a list, each {in_words(elements[0])}"
        return f"a list of {len(elements)} ({', '.join(map(in_words, elements))})"
    return "options by their names" if is_dataclass(hint) else _SCALARS[hint]


def _default(cls: Any, name: str) -> Any:
    return next(as_plain(field.default) for field in fields(cls) if field.name == name)


def _flow(value: Any) -> str:
    # YAML ends a number that stands alone with a line of dots
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).removesuffix("...\n").strip()
