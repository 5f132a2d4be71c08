"""Time of our linear assignment against SciPy's, which DETR's authors use, on a CPU.

`python benchmarks/assignment.py` solves the problems of one step of DETR: as many as there are
decoder layers times images, each with random costs. SciPy takes them one by one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from scipy.optimize import linear_sum_assignment

from models.linear_assignment import linear_assignment

SHAPES = ((20, 100), (100, 300))  # boxes and queries
LAYERS = 6


def scipys(costs: np.ndarray) -> None:
    """One problem (M, Q) after the other."""
    for problem in costs:
        linear_sum_assignment(problem)


def microseconds(run: Callable[[np.ndarray], object], costs: np.ndarray) -> float:
    """Time of one call, per problem."""
    start = time.perf_counter()
    run(costs)
    return (time.perf_counter() - start) / len(costs) * 1e6


def main() -> None:
    """Print medians and the median of the pairs' ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[2, 4, 8, 16], help="per step")
    parser.add_argument("--pairs", type=int, default=50, help="timings of each, in turns")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    for boxes, queries in SHAPES:
        for problems in (1, *(LAYERS * images for images in args.images)):
            ours, theirs = [], []
            for _ in range(args.pairs):
                costs = rng.random((problems, boxes, queries))
                ours.append(microseconds(linear_assignment, costs))
                theirs.append(microseconds(scipys, costs))
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            print(
                f"{queries} queries x {boxes} boxes, {problems:3} problems: "
                f"ours {statistics.median(ours):6.1f} us per problem, "
                f"SciPy's {statistics.median(theirs):6.1f} us, ours / SciPy's {ratio:.2f}"
            )


if __name__ == "__main__":
    main()
