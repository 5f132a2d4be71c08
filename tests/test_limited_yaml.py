"""YAML that stands for more than it says is refused before it is built."""

from __future__ import annotations

import pytest
import yaml

from aligndet.strict_yaml import load_yaml
from data import limited_yaml
from data.limited_yaml import MOST_LEVELS, TextLoader

NINE = ",".join("*{0}" for _ in range(9))
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{NINE.format(old)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 2000))
LOADS = {"config": load_yaml, "YOLO": lambda text: yaml.load(text, TextLoader)}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, "stands for more than 100,000 values"),
        ("seed: &a [*a]", r"\*a refers to a value that holds it"),
        ("foo: &a {b: [c, {d: *a}]}", r"\*a refers to a value that holds it"),
        ("&a {b: *a}", r"\*a refers to a value that holds it"),
        (CHAIN, "more than 40 levels"),
        ("a: " + "[" * 3000 + "]" * 3000, "more than 40 levels"),
        ("[" * 100_000, "more than 40 levels"),
        ("{a: " * 3000, "more than 40 levels"),
        ("- " * 3000 + "a", "more than 40 levels"),
        ("? " * 3000 + "a", "more than 40 levels"),
    ],
    ids=range(10),
)
def test_what_has_no_end_is_refused_with_its_line(load, text, problem) -> None:
    with pytest.raises(yaml.MarkedYAMLError, match=problem) as error:
        load(text)
    assert error.value.problem_mark.line < text.count("\n") + 1


def test_the_bounds_are_those_of_the_message(monkeypatch) -> None:
    monkeypatch.setattr(limited_yaml, "MOST_VALUES", 1000)  # those of the product take seconds
    inner = MOST_LEVELS - 1  # the innermost value is a level too
    assert load_yaml("[" * inner + "1" + "]" * inner)
    with pytest.raises(yaml.MarkedYAMLError):
        load_yaml("[" * MOST_LEVELS + "1" + "]" * MOST_LEVELS)
    assert len(load_yaml(f"[{'1,' * 999}]")) == 999
    with pytest.raises(yaml.MarkedYAMLError):
        load_yaml(f"[{'1,' * 1000}]")


def test_aliases_that_end_are_read() -> None:
    text = "a: &a {x: 1}\nb: {<<: *a, y: &y [2, 3]}\nc: [*a, *y, *y]"
    a, y = {"x": 1}, [2, 3]
    assert load_yaml(text) == {"a": a, "b": {"x": 1, "y": y}, "c": [a, y, y]}
    assert load_yaml("[!!float 1, 0x1f, 2001-12-14, no]")[:2] == [1.0, 31]
    assert yaml.load("[no, 1.0, 007]", TextLoader) == ["no", "1.0", "007"]


@pytest.mark.parametrize(
    "value",
    ["9" * 5000, "2001-13-45", "!!int x", "!!int ''", "!!bool x", "!!timestamp x", "!!float x"],
)
def test_a_value_that_is_not_what_it_looks_like_is_named_with_its_line(value) -> None:
    with pytest.raises(yaml.MarkedYAMLError, match="a value cannot be read") as error:
        load_yaml(f"a: 1\nb: {value}")
    assert error.value.problem_mark.line == 1
