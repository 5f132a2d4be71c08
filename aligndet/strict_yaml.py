"""YAML in which a key may be given only once, of a bounded size (`data.limited_yaml`).

PyYAML keeps the last of two equal keys and says nothing, so a slip can lose half of a file.
"""

from __future__ import annotations

from typing import Any

import yaml

from data.limited_yaml import LimitedLoader


class _UniqueKeyLoader(LimitedLoader, yaml.SafeLoader):
    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                problem = f"the key {key.value!r} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
        return node


def load_yaml(text: str) -> Any:
    """`yaml.safe_load` that refuses repeated keys, and values without end.

    Raises:
        yaml.YAMLError: the text is not YAML, a mapping has a key twice, or it stands for too many
            values; names the line.
    """
    return yaml.load(text, _UniqueKeyLoader)
