"""Make config dataclasses from mappings, such as YAML files hold; check names and types."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from models.checks import valid_choices

LONGEST = 80  # characters of a value in a message
Unknown = Callable[[str, Any, list[str]], None]


def unknown_key(key: str, value: Any, known: list[str]) -> None:
    """Raise a ValueError for a key that its section does not have."""
    raise ValueError(f"{key} is unknown; {valid_choices(key.split('.')[-1], known)}")


def from_mapping(
    cls: type, content: Mapping[str, Any], prefix: str = "", unknown: Unknown = unknown_key
) -> Any:
    """Make a dataclass from nested mappings.

    Args:
        cls: a dataclass. Its fields may be bool, int, float, str, tuples (from lists; a single
            value makes a tuple of one), mappings, other dataclasses, and any of these or None.
        content: its fields by name; a field that is left out keeps its default.
        prefix: of dotted keys in messages, such as `model.options.`.
        unknown: called with the dotted key, the value and the known names for a key that the
            dataclass lacks; must raise.

    Raises:
        ValueError: one sentence that names the dotted key, if a key is unknown or missing, or a
            value has the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in content.items():
        if name not in fields:
            unknown(f"{prefix}{name}", value, list(fields))
        values[name] = _convert(value, hints[name], f"{prefix}{name}", unknown)
    for f in fields.values():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in values:
            raise ValueError(f"{prefix}{f.name} is not set; add it")
    return cls(**values)


def _convert(value: Any, hint: Any, key: str, unknown: Unknown) -> Any:
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return from_mapping(hint, _section(value, key), f"{key}.", unknown)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        inner = next(a for a in arguments if a is not type(None))
        return _convert(value, inner, key, unknown)
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_convert(item, arguments[0], key, unknown) for item in items)
    if origin is not None:  # a mapping from names
        section = _section(value, key)
        return {k: _convert(v, arguments[1], f"{key}.{k}", unknown) for k, v in section.items()}
    if hint is float:
        return _number(value, key)
    if type(value) is not hint:
        _wrong(value, hint, key)
    return value


def _section(value: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{key} is {shown(value)}; it must be a section of key: value lines")
    return value


def _number(value: Any, key: str) -> float:
    try:
        number = float(value)  # YAML reads 1e-4 (without a dot) as text
    except (TypeError, ValueError, OverflowError):
        _wrong(value, float, key)
    if isinstance(value, bool) or not math.isfinite(number):
        _wrong(value, float, key)
    return number


def _wrong(value: Any, hint: type, key: str) -> typing.NoReturn:
    kinds = {int: "a whole number", float: "a number", bool: "true or false"}
    kinds[str] = "text" if isinstance(value, (list, Mapping)) else "text, in quotes in a YAML file"
    raise ValueError(f"{key} is {shown(value)}; it must be {kinds[hint]}")


def shown(value: Any) -> str:
    """A value as messages quote it, at most 80 characters of it."""
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
