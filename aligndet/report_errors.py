"""The section of a report that says what runs get wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aligndet.detection_errors import Errors, confusions, detection_errors
from aligndet.error_kinds import KINDS
from aligndet.markup import Markup, bar, kept_together, table

PAIRS = 5  # of classes that are confused
ADVICE = {
    "class": "the place is right, the class is not",
    "location": "the box is near an object, but not near enough",
    "both": "wrong class and not near enough",
    "duplicate": "the object was found before",
    "background": "there is no object",
    "missed": "an object without any detection that could be mended",
}


def errors_section(
    annotations: Mapping[str, Any], found: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
    """What each kind of error costs each run, side by side; "" if there is no object.

    Args:
        annotations: a dict of `load_coco`.
        found: COCO results by the name of their run, the last one of most interest.
    """
    errors = {name: detection_errors(annotations, results) for name, results in found.items()}
    if not errors or any(one.ap is None for one in errors.values()):
        return ""
    most = max(cost for one in errors.values() for kind, cost in one.cost.items() if kind in KINDS)
    head = ["AP50 lost (errors)", *errors]
    rows = [
        [
            f"{kind}: {ADVICE[kind]}",
            *(_cell(one, kind, most, n) for n, one in enumerate(errors.values())),
        ]
        for kind in KINDS
    ]
    text = (
        "<p>What AP50 each kind of error costs: how much higher it would be if these errors alone "
        "were mended, and how many there are (TIDE, Bolya et al. 2020).</p>"
    )
    return f"<h2>Errors</h2>{text}{table(head, rows)}<p></p>{_confused(annotations, errors)}"


def _cell(errors: Errors, kind: str, most: float, colour: int) -> Markup:
    cost = errors.cost[kind]
    drawn = bar(cost / most if most else 0.0, colour)
    return kept_together(Markup(f"{cost:.1f} ({errors.count[kind]:,}) {drawn}"))


def _confused(annotations: Mapping[str, Any], errors: Mapping[str, Errors]) -> str:
    """The pairs of classes that the last run confuses most."""
    name, last = list(errors.items())[-1]
    names = {entry["id"]: str(entry["name"]) for entry in annotations["categories"]}
    pairs = confusions(last, names)[:PAIRS]
    if not pairs:
        return ""
    head = [f"object ({name})", "taken for", "times", "mean score"]
    rows = [[truth, other, f"{n:,}", f"{score:.2f}"] for truth, other, n, score in pairs]
    return table(head, rows)
