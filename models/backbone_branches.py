"""Find a backbone's weights in the content of a file.

A file may hold several networks (query and momentum encoder, student and teacher, the trained
weights and their average), each in a container, such as `state_dict`, or below a prefix, such as
`module.encoder_q.`. We call each place where a backbone could be a branch. Containers and prefixes
are found, not listed: what counts is how many of our names lie there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.backbone_fit import first_problem, required, same_weights
from models.backbone_layouts import OTHERS, OURS, Naming, describe
from models.renaming import rename
from models.swin_layouts import POSITION_TABLE, resized_table

# Which of several branches is the backbone. Words of a container's or prefix's name tell:
# a network that only follows another one in training is never taken while the other is there ...
FOLLOWERS = {"momentum", "target", "key", "k"}
# ... and these come first: averages over the training (torchvision's, timm's and Lightning's
# scripts, DINO's teacher), and the trained encoder of a pair.
LEADERS = {"ema", "swa", "average", "averaged", "teacher", "online", "query", "q"}
# If that does not tell, containers come in this order, then all others. Two branches that are
# still alike must hold the same numbers.
CONTAINERS = ("model", "state_dict", "model_state_dict", "net", "weights", "backbone")
LEAST_SHARE = 0.25  # of our names; below that, a few names are the same by accident
DEEPEST = 10  # containers in containers


@dataclass(frozen=True)
class Branch:
    """One place in a file where a backbone's weights could be."""

    entry: str | None  # keys that lead to the state_dict, joined by dots
    weights: Mapping[str, Tensor] = field(repr=False)  # all of the state_dict
    prefix: str  # of the keys below which the branch lies
    naming: Naming
    names: Mapping[str, str]  # from their keys to our names; also those that we do not have
    tables: Mapping[str, int]  # rows of our position tables, by our name

    @cached_property
    def given(self) -> dict[str, Tensor]:
        """Its weights under our names, laid out as ours; position tables of our windows' size."""
        found = {name: self.weights[key] for key, name in self.names.items()}
        if self.naming.convert is not None:
            found = {name: self.naming.convert(name, value) for name, value in found.items()}
        for name in self.tables.keys() & found.keys():
            found[name] = resized_table(found[name], self.tables[name])
        return found

    @property
    def layout(self) -> str:
        """Who names weights like this."""
        return describe(self.naming, self.prefix, self.weights)

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return ".".join(filter(None, (self.entry, self.prefix.removesuffix(".")))) or "the top"

    @property
    def follows(self) -> bool:
        """Whether it only follows another network in training."""
        return bool(words(self.place) & FOLLOWERS)

    def rank(self, ours: Mapping[str, Tensor]) -> tuple[int, ...]:
        """The branch with the lowest rank is preferred."""
        entry = (self.entry or "").split(".")
        return (
            -len(set(required(ours)).intersection(self.names.values())),
            not words(self.prefix) & LEADERS,
            not words(self.entry or "") & LEADERS,
            min((CONTAINERS.index(key) for key in entry if key in CONTAINERS), default=99),
        )


def words(place: str) -> set[str]:
    """`{"state", "dict", "ema"}` of `state_dict_ema`."""
    return set(re.split(r"[._\W]+", place.lower()))


def find_backbone(content: Any, ours: Mapping[str, Tensor]) -> Branch | None:
    """The branch that holds the backbone's weights, or most of them.

    Args:
        content: of a file.
        ours: the backbone's state_dict; it may be on the meta device.

    Returns:
        None if no branch has at least a quarter of our names and none of our names are at the top.

    Raises:
        ValueError: there are two branches with different weights, and no rule that prefers one.
    """
    places = list(state_dicts(content))
    found = [branch for place in places for branch in branches(*place, ours)]
    found = found or [branch for place in places for branch in at_the_top(*place, ours)]
    leading = [branch for branch in found if not branch.follows] or found
    fitting = [b for b in leading if first_problem(b.given, ours) is None] or leading
    if not fitting:
        return None
    ranks = [branch.rank(ours) for branch in fitting]
    best, *others = [b for b, rank in zip(fitting, ranks, strict=True) if rank == min(ranks)]
    for other in others:
        if not same_weights(best.given, other.given):
            raise ValueError(
                f"holds two networks, {best.place} and {other.place}, and nothing tells which one "
                "is meant; save the state_dict of one of them alone"
            )
    return best


def branches(
    entry: str | None, weights: Mapping[str, Tensor], ours: Mapping[str, Tensor]
) -> list[Branch]:
    """The branches of a state_dict; those in other projects' namings only if ours leads to none."""
    wanted = set(required(ours))
    for namings in ((OURS,), OTHERS):
        best: dict[str, tuple[int, Naming]] = {}  # below each prefix, the naming of most names
        for naming in namings:
            for prefix, count in prefixes(weights, naming, wanted).items():
                least = max(LEAST_SHARE * len(wanted), best[prefix][0] + 1 if prefix in best else 0)
                if count >= least:
                    best[prefix] = count, naming
        if best:
            return [
                Branch(
                    entry, weights, prefix, naming, renamed(weights, prefix, naming), tables(ours)
                )
                for prefix, (_, naming) in best.items()
            ]
    return []


def at_the_top(
    entry: str | None, weights: Mapping[str, Tensor], ours: Mapping[str, Tensor]
) -> list[Branch]:
    """The branch without a prefix, if it has any of our names."""
    names = {key: key for key in weights}
    if not names.keys() & required(ours):
        return []
    return [Branch(entry, weights, "", OURS, names, tables(ours))]


def tables(ours: Mapping[str, Tensor]) -> dict[str, int]:
    """The rows of a Swin's position tables."""
    return {name: len(value) for name, value in ours.items() if name.endswith(POSITION_TABLE)}


def prefixes(keys: Mapping[str, Any], naming: Naming, wanted: set[str]) -> dict[str, int]:
    """How many of the wanted names lie below each prefix."""
    found: dict[str, set[str]] = defaultdict(set)
    for key in keys:
        starts = [0, *(match.end() for match in re.finditer(r"\.", key))]
        for start in starts:
            name = rename(key[start:], naming.names)
            if name in wanted:
                found[key[:start]].add(name)
    return {prefix: len(names) for prefix, names in found.items()}


def renamed(keys: Mapping[str, Any], prefix: str, naming: Naming) -> dict[str, str]:
    """Our name for every key below `prefix` that has one."""
    mine = {key: key.removeprefix(prefix) for key in keys if key.startswith(prefix)}
    names = {key: rename(rest, naming.names) for key, rest in mine.items() if rest}
    return {key: name for key, name in names.items() if name is not None}


def state_dicts(
    content: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[str | None, dict[str, Tensor]]]:
    """Every mapping with tensors or NumPy arrays in `content`, at any depth, with its keys joined
    by dots; only its tensors."""
    if isinstance(content, (list, tuple)):
        content = dict(enumerate(content))
    if not isinstance(content, Mapping) or len(path) > DEEPEST:
        return
    tensors = {
        str(k): as_tensor(v) for k, v in content.items() if isinstance(v, Tensor) or array(v)
    }
    if tensors:
        yield ".".join(path) or None, tensors
    for key, value in content.items():
        if isinstance(value, (Mapping, list, tuple)):
            yield from state_dicts(value, (*path, str(key)))


def array(value: object) -> bool:
    """Whether it is an array of numbers; complex ones too, which would else count as missing."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiubc"


def as_tensor(value: Tensor | np.ndarray) -> Tensor:
    """A tensor without gradient; arrays of the other byte order are turned around."""
    if isinstance(value, Tensor):
        return value.detach()
    return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
