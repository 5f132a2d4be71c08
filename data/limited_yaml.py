"""YAML of a bounded size: no nesting without end, and no aliases that multiply or go in circles.

A few lines of aliases can stand for billions of values (`b: [*a, *a]`, `c: [*b, *b]`, ...), or for
a value that holds itself; a thousand brackets exceed Python's stack.
"""

from __future__ import annotations

from typing import Any

import yaml

MOST_VALUES = 100_000  # aliases count as what they stand for
MOST_LEVELS = 40  # of values inside each other
# What PyYAML's constructors raise for values that they misread, such as `!!int x` or 2001-13-01.
MISREAD = (ValueError, KeyError, IndexError, AttributeError, TypeError, OverflowError)


class LimitedLoader:
    """Goes before a loader of PyYAML among the bases of a class."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._level = 0
        self._extents: dict[int, tuple[int, int]] = {}  # values and levels of finished nodes

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """Compose the next node, and take its extent.

        Raises:
            yaml.YAMLError: it holds itself, or more than the limits allow; names the line.
        """
        event = self.peek_event()
        self._level += 1
        self._check(1, self._level, event)
        node = super().compose_node(parent, index)
        self._level -= 1
        if id(node) not in self._extents:
            if isinstance(event, yaml.AliasEvent):
                _refuse(f"*{event.anchor} refers to a value that holds it", event)
            self._extents[id(node)] = self._extent(node)
            self._check(*self._extents[id(node)], event)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node.

        Raises:
            yaml.YAMLError: it is not what its tag or its form says; names the line.
        """
        try:
            return super().construct_object(node, deep)
        except MISREAD as error:
            _refuse(f"a value cannot be read ({error})", node)

    def _extent(self, node: yaml.Node) -> tuple[int, int]:
        inside = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            inside = [part for pair in inside for part in pair]
        extents = [self._extents[id(part)] for part in inside]
        values, levels = zip(*extents, strict=True) if extents else ((), ())
        return 1 + sum(values), 1 + max(levels, default=0)

    def _check(self, values: int, levels: int, event: yaml.Event) -> None:
        if levels > MOST_LEVELS:
            _refuse(f"values are nested more than {MOST_LEVELS} levels deep", event)
        if values > MOST_VALUES:
            _refuse(f"it stands for more than {MOST_VALUES:,} values", event)


def _refuse(problem: str, place: yaml.Event | yaml.Node) -> None:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


class TextLoader(LimitedLoader, yaml.BaseLoader):
    """All values are texts, so that a class called `no` or `1.0` keeps its name."""
