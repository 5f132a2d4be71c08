"""Dataclasses from mappings: types, nesting, null, and messages that name the key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from models.fcos import FCOSConfig
from models.from_mapping import from_mapping


@dataclass(frozen=True)
class Inner:
    size: int = 3
    scales: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Outer:
    name: str
    rate: float | None = 0.5
    inner: Inner = field(default_factory=Inner)
    parts: Mapping[str, Inner] = field(default_factory=dict)
    free: Mapping[str, Any] = field(default_factory=dict)
    lists: tuple[Mapping[str, Any], ...] = ()


def test_every_kind_of_field():
    content = {
        "name": "x",
        "rate": None,
        "inner": {"size": 4, "scales": [1, "2e-1"]},
        "parts": {"a": {}, "b": {"scales": 7}},
        "free": {"any.key": [1, "two"]},
        "lists": [{"a": 1}, {"b": 2}],
    }
    result = from_mapping(Outer, content)
    assert result == Outer(
        "x",
        None,
        Inner(4, (1.0, 0.2)),
        {"a": Inner(), "b": Inner(scales=(7.0,))},
        {"any.key": [1, "two"]},
        ({"a": 1}, {"b": 2}),
    )
    assert [type(scale) for scale in result.inner.scales] == [float, float]
    assert from_mapping(Outer, {"name": "x"}) == Outer("x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "top.name is not set; add it"),
        ({"name": 7}, "top.name is 7; it must be text"),
        ({"name": "x", "rate": "fast"}, "top.rate is 'fast'; it must be a number"),
        ({"name": "x", "rate": float("nan")}, "top.rate is nan; it must be a number"),
        ({"name": "x", "rate": True}, "top.rate is True; it must be a number"),
        ({"name": "x", "inner": 3}, "top.inner is 3; it must be a section"),
        ({"name": "x", "inner": {"size": 2.0}}, "top.inner.size is 2.0; it must be a whole number"),
        ({"name": "x", "inner": {"size": None}}, "top.inner.size is None; it must be a whole"),
        ({"name": "x", "inner": {"sise": 2}}, "top.inner.sise is unknown; did you mean size"),
        ({"name": "x", "parts": {"a": {"size": True}}}, "top.parts.a.size is True"),
        ({"name": "x", "parts": [1]}, r"top.parts is \[1\]; it must be a section"),
        ({"name": "x", "lists": [3]}, "top.lists is 3; it must be a section"),
    ],
)
def test_the_message_names_the_key(content, message):
    with pytest.raises(ValueError, match=message):
        from_mapping(Outer, content, "top.")


def test_options_of_a_detector_take_null():
    assert from_mapping(FCOSConfig, {"center_radius": None}).center_radius is None
    with pytest.raises(ValueError, match="center_radius is 0.0; it must be above 0"):
        from_mapping(FCOSConfig, {"center_radius": 0})
