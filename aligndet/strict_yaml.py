"""YAML in which a key may be given only once.

PyYAML keeps the last of two equal keys and says nothing, so a slip can lose half of a file.
"""

from __future__ import annotations

from typing import Any

import yaml


class _UniqueKeyLoader(yaml.SafeLoader):
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
    """`yaml.safe_load` that refuses repeated keys.

    Raises:
        yaml.YAMLError: the text is not YAML, or a mapping has a key twice; names the line.
    """
    return yaml.load(text, _UniqueKeyLoader)
