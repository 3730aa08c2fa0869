"""How settings are written: the texts that stand for values of a type, and what a setting means."""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import re
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

NONE = "none"
_NULLS = ("", "~", "null", "Null", "NULL")
"""None as YAML writes it."""
PEAK = "peak"
"""Field of a schedule that is written as the schedule itself: ``--optim.lr 1e-4``."""
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class YamlOfTexts(yaml.SafeLoader):
    """YAML whose scalars stay texts, since the types of the fields say what they mean; duplicate keys are refused."""

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # noqa: RUF012 (merge keys alone)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping, as the base class does."""
        seen = set()
        for key, _ in node.value:
            name = str(key.value).replace("-", "_")
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value!r}", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def value_of(hint: Any, given: Any) -> Any:
    """Return a text, or what YAML makes of a list, as a value of a type.

    Raises:
        ValueError, KeyError, YAMLError: It is none.
    """
    inner = _without_none(hint)
    if inner is not hint and given in (NONE, *_NULLS):
        return None
    if is_dataclass(inner):  # in a list
        hints = get_type_hints(inner)
        if not isinstance(given, dict) or given.keys() != hints.keys():
            raise ValueError
        return inner(**{name: value_of(hints[name], text) for name, text in given.items()})  # type: ignore[operator]
    if get_origin(inner) is tuple:
        if isinstance(given, str):
            given = yaml.load(given, YamlOfTexts) if given.startswith("[") else given.split(",")  # a SafeLoader
        if not isinstance(given, list):
            raise ValueError
        elements = get_args(inner)
        if elements[-1] is Ellipsis:
            elements = elements[:1] * len(given)
        return tuple(value_of(element, one) for element, one in zip(elements, given, strict=True))
    if not isinstance(given, str):
        raise ValueError
    if get_origin(inner) is Literal:
        return get_args(inner)[get_args(inner).index(given)]  # ValueError where it is none of them
    if inner is bool:
        return _BOOLS[given.lower()]
    if inner is float:
        given = given.replace(".inf", "inf")  # as YAML writes it
    if (inner is float and math.isnan(float(given))) or (inner is str and given in _NULLS):
        raise ValueError
    return inner(given)


def _without_none(hint: Any) -> Any:
    """Return X of ``X | None``, and other types as they are."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    (inner,) = (choice for choice in get_args(hint) if choice is not type(None))
    return inner


def form_of(hint: Any) -> str:
    """Return how values of a type are written."""
    inner = _without_none(hint)
    if inner is not hint:
        return f"{form_of(inner)}|{NONE}"
    if get_origin(hint) is Literal:
        return "|".join(get_args(hint))
    if get_origin(hint) is tuple:
        elements = get_args(hint)
        if elements[-1] is Ellipsis:
            return f"[{form_of(elements[0])}, ...]"
        return ",".join(map(form_of, elements))
    if is_dataclass(hint):
        return f"{{{', '.join(f'{name}: {form_of(one)}' for name, one in get_type_hints(hint).items())}}}"
    return {bool: "true|false", int: "INTEGER", float: "NUMBER", str: "TEXT"}.get(hint, "PATH")


def text_of(value: Any) -> str:
    """Return a value as the command line takes it."""
    if isinstance(value, tuple) and value and not any(isinstance(one, tuple) or is_dataclass(one) for one in value):
        return ",".join(map(text_of, value))
    if isinstance(value, tuple):
        return as_yaml([vars(one) if is_dataclass(one) else one for one in value])
    if value is None or isinstance(value, bool):
        return {None: NONE, True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, float) else str(value)


def as_yaml(value: Any) -> str:
    """Return a value in one line of YAML."""
    # YAML ends a number that stands alone with a line of dots
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf).removesuffix("...\n").strip()


@cache
def docstrings(section: type) -> dict[str, str]:
    """Return the docstrings under fields, with a line for each paragraph; tyro would break lines as the source does."""
    found = {}
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0].body  # type: ignore[attr-defined]
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            text = inspect.cleandoc(str(below.value.value)).replace("``", "`")
            found[ast.unparse(field.target)] = re.sub(r"\n(?![\n-]) *", " ", text)
    return found


@dataclass(frozen=True)
class Described:
    """What documentation says of a setting, or of a section of settings."""

    name: str
    """As on the command line, without the dashes in front."""
    meaning: str
    form: str | None
    """None: it is a section."""
    value: str
    """As the command line takes it; empty for a section."""


def described(section: Any, prefix: str = "") -> Iterator[Described]:
    """Yield all settings of a configuration with their values, each section before its own."""
    kind: type = type(section)
    for field, hint in get_type_hints(kind).items():
        name = prefix.removesuffix(".") if field == PEAK else prefix + field.replace("_", "-")
        meaning, value = docstrings(kind).get(field, ""), getattr(section, field)
        if is_dataclass(hint):
            yield Described(name, meaning, None, "")
            yield from described(value, f"{name}.")
        else:
            yield Described(name, meaning, form_of(hint), text_of(value))
