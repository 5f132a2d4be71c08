"""`key=value` on the command line: put into the content of a config file, with the key's type."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

import yaml

from aligndet.strict_yaml import load_yaml
from models.from_mapping import shown


def apply_override(content: dict[str, Any], override: str, config_class: type) -> None:
    """Set one key of nested mappings.

    A key whose type is text takes the value as it is, be it `007`, `no` or `lot #7`; `null` and
    nothing mean "not set" where that is allowed. Any other value is read as YAML.

    Args:
        content: changed in place.
        override: `section.key=value`.
        config_class: the dataclass whose fields give the types.

    Raises:
        ValueError: the override is not of the form `key=value`, or a section of it is a value.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ValueError(f"override {shown(override)} is not of the form key=value")
    *sections, last = key.split(".")
    for section in sections:
        if content.get(section) is None:  # not there, or without a key in the file
            content[section] = {}
        content = content[section]
        if not isinstance(content, dict):
            raise ValueError(f"override {shown(override)}: {section} is a value, not a section")
    content[last] = _value(text, _type_of(key, config_class))


def _value(text: str, hint: Any) -> Any:
    alternatives = _alternatives(hint)
    if str in alternatives:
        unset = type(None) in alternatives and text in ("", "null")
        return None if unset else text
    if hint == tuple[str, ...] and not text.startswith("["):
        return text
    try:
        return load_yaml(text)
    except yaml.YAMLError:
        return text


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union; any other type alone."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _type_of(key: str, config_class: type) -> Any:
    """The annotation of a dotted key; None if it is unknown or below a free mapping."""
    hint: Any = config_class
    for name in key.split("."):
        if not dataclasses.is_dataclass(hint):
            return None
        hint = typing.get_type_hints(hint).get(name)
    return hint
