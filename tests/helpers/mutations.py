"""Changes to good files: an odd value in each place, and broken texts; the same for each seed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1.5, 1e308, float("nan"), float("inf"), 10**30, "", "1", " "),
    *("../../../etc/passwd", "/etc/passwd", "a\0b", "\x1b[31m\n", "é\ud800", [], [1], {}, [[[]]]),
    {"a": 1},
]
CHARACTERS = "\0\"',-.0159:;<>&[]{}xé \n\t#*!|"
Path = tuple[Any, ...]


def mutated_json(content: Any, rng: random.Random, values: int, texts: int) -> Iterator[bytes]:
    """JSON files with one change each: `values` of them in one value, `texts` in one character."""
    places = [path for path in _paths(content) if path]
    for _ in range(values):
        yield json.dumps(
            _changed(content, rng.choice(places), rng.choice([*ODD, _DELETED]))
        ).encode()
    yield from mutated_text(json.dumps(content), rng, texts)


def mutated_text(text: str, rng: random.Random, number: int) -> Iterator[bytes]:
    """The text with another character, or cut."""
    for _ in range(number):
        place = rng.randrange(len(text))
        rest = text[place + 1 :] if rng.random() < 0.8 else ""
        yield (text[:place] + rng.choice(CHARACTERS) + rest).encode()


_DELETED = object()


def _paths(value: Any, prefix: Path = ()) -> Iterator[Path]:
    yield prefix
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from _paths(inside, (*prefix, key))
    elif isinstance(value, list):
        for number, inside in enumerate(value):
            yield from _paths(inside, (*prefix, number))


def _changed(content: Any, path: Path, value: Any) -> Any:
    content = copy.deepcopy(content)
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is _DELETED:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content
