"""Linear assignment: the pairs of rows and columns that cost least, for many problems at a time.

Jonker and Volgenant, "A shortest augmenting path algorithm for dense and sparse linear assignment
problems" (Computing 38, 1987): most rows get a column by simple means, `assign_undisputed` and
`bid`; for each of the others, a shortest path is searched along which rows change columns. One
problem of DETR is so small that the calls of NumPy would take most of the time, so all problems of
a step are solved side by side.

Legend: P problems, R rows, C columns, F free rows of all problems, A problems not solved yet.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

UNASSIGNED = -1
BIDDING_ROUNDS = 10  # after which so few rows are free that paths are quicker


def linear_assignment(costs: np.ndarray, counts: Sequence[int] | None = None) -> np.ndarray:
    """Assign rows to columns, at most one to each, such that the sum of their costs is least.

    Args:
        costs: (P, R, C) real numbers.
        counts: how many rows each problem has, the first ones of R; None is all of them.

    Returns:
        (P, C) int64: for each column its row, or `UNASSIGNED`. Each problem has as many pairs as
        the smaller of its numbers of rows and columns.

    Raises:
        ValueError: a cost of a row that counts is infinite or not a number.
    """
    problems, rows, columns = costs.shape
    sizes = np.full(problems, rows) if counts is None else np.asarray(counts, dtype=np.int64)
    costs = np.ascontiguousarray(costs, dtype=np.float64)
    check_finite(costs, sizes)
    row_of = np.full((problems, columns), UNASSIGNED, dtype=np.int64)
    wide = (sizes > 0) & (sizes <= columns)
    if wide.all():
        return assign_rows(costs, sizes)
    if wide.any():
        row_of[wide] = assign_rows(costs[wide][:, : sizes[wide].max()], sizes[wide])
    for problem in np.flatnonzero(sizes > columns):  # columns choose among the rows
        turned = costs[problem, : sizes[problem]].T[None]  # (1, C, R)
        column_of = assign_rows(np.ascontiguousarray(turned), np.array([columns]))[0]  # (R,)
        (assigned,) = np.nonzero(column_of != UNASSIGNED)
        row_of[problem, column_of[assigned]] = assigned
    return row_of


def check_finite(costs: np.ndarray, sizes: np.ndarray) -> None:
    """Refuse costs that have no least sum; those beyond a problem's size may be anything."""
    with np.errstate(over="ignore", invalid="ignore"):
        unsound = ~np.isfinite(costs.sum(axis=2))  # (P, R)
    unsound &= np.arange(costs.shape[1]) < sizes[:, None]
    if unsound.any():
        problem, row = np.argwhere(unsound)[0]
        raise ValueError(
            f"row {row} of assignment problem {problem} has a cost that is infinite or not a "
            "number; use a large number for a pair to avoid"
        )


def assign_rows(costs: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """`linear_assignment` of problems (P, R, C) with at most as many rows, 1 to C, as columns.

    `price` (P, C) is the dual variable of the columns: a row prefers the column of the least
    cost - price. Throughout, an assigned row has a column that it prefers. The dual variables of
    the rows follow from that and are not kept.
    """
    columns = costs.shape[2]
    price = np.zeros((len(costs), columns))
    row_of, free = assign_undisputed(costs, sizes)
    for _ in range(BIDDING_ROUNDS if columns > 1 else 0):
        bid(costs, row_of, price, free)
    search_paths(costs, row_of, price, free)
    return row_of


def assign_undisputed(costs: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give each column to the first of the rows for which it is the cheapest.

    Returns:
        (P, C) row of each column, and (P, R) bool: rows that got nothing.
    """
    problems, rows, columns = costs.shape
    cheapest = costs.argmin(axis=2)  # (P, R)
    counted = np.arange(rows) < sizes[:, None]  # (P, R)
    row_of = np.full((problems, columns), UNASSIGNED, dtype=np.int64)
    problem, row = (index[::-1] for index in np.nonzero(counted))  # of several the last one holds
    row_of[problem, cheapest[problem, row]] = row
    got = np.take_along_axis(row_of, cheapest, axis=1) == np.arange(rows)
    return row_of, counted & ~got


def bid(costs: np.ndarray, row_of: np.ndarray, price: np.ndarray, free: np.ndarray) -> None:
    """All free rows ask for the column that they prefer; each column takes one of them (in place).

    Jonker and Volgenant's augmenting row reduction, for all rows at once: a row lowers the price by
    so much that the second-best column is as good to it. The one that lowers it most gets the
    column, and the row that had it is free again. Solves most of a problem, but might go on
    forever.
    """
    problem, row = np.nonzero(free)  # (F,) free rows of all problems
    if not len(row):
        return
    number = np.arange(len(row))
    value = costs[problem, row]  # (F, C)
    value -= price[problem]
    column = value.argmin(axis=1)
    least = value[number, column]
    value[number, column] = np.inf
    advantage = value.min(axis=1) - least
    order = np.argsort(advantage, kind="stable")
    taker = np.full(row_of.shape, -1)
    taker[problem[order], column[order]] = order  # of several the last one holds
    won = np.flatnonzero(taker[problem, column] == number)
    owner = row_of[problem[won], column[won]]
    won = won[(advantage[won] > 0) | (owner == UNASSIGNED)]  # else two rows would just alternate
    problem, row, column = problem[won], row[won], column[won]
    owner = row_of[problem, column]
    price[problem, column] -= advantage[won]
    row_of[problem, column] = row
    free[problem, row] = False
    owned = owner != UNASSIGNED
    free[problem[owned], owner[owned]] = True


def search_paths(
    costs: np.ndarray, row_of: np.ndarray, price: np.ndarray, free: np.ndarray
) -> None:
    """Assign the free rows (P, R) that are left, one after the other in each problem, in place."""
    waiting = free.sum(axis=1)
    active = np.flatnonzero(waiting)
    if not len(active):
        return
    queues = np.argsort(~free, axis=1, kind="stable")  # (P, R) free rows first
    taken = np.zeros_like(waiting)
    search = Search(costs, row_of, price, active, queues[active, 0])
    while len(active):
        ended = search.scan_rows()
        if not ended.any():
            continue
        search.augment(ended)
        taken[active[ended]] += 1
        left = taken[active] < waiting[active]
        if not left.all():
            search.keep(left)
            active, ended = active[left], ended[left]
        starting = active[ended]
        search.restart(ended, queues[starting, taken[starting]])


class Search:
    """Shortest paths from a free row to a free column, one for each active problem (Dijkstra).

    A path alternates: from a row to any column, from a column to the row that it is assigned to.

    Args:
        costs: (P, R, C).
        row_of, price: (P, C), changed in place.
        active: (A,) problems.
        start: (A,) a free row of each.
    """

    def __init__(
        self,
        costs: np.ndarray,
        row_of: np.ndarray,
        price: np.ndarray,
        active: np.ndarray,
        start: np.ndarray,
    ) -> None:
        self.costs, self.row_of, self.price, self.active = costs, row_of, price, active
        shape = (len(active), costs.shape[2])
        self.length = np.full(shape, np.inf)  # of the shortest path found to each column
        self.closed = np.zeros(shape)  # infinite for columns whose path is final
        self.before = np.full(shape, UNASSIGNED)  # the row in front of each column
        self.row = start.copy()  # (A,) to be scanned
        self.offset = np.zeros(len(active))  # length of the path to it, less its best cost - price
        self.column = np.zeros(len(active), dtype=np.int64)  # the last one whose path is final

    def scan_rows(self) -> np.ndarray:
        """Prolong the shortest paths by one row each; (A,) bool: those that end in a free column.

        Adding `closed` keeps final columns from being found again.
        """
        number = np.arange(len(self.active))
        via = self.costs[self.active, self.row]  # (A, C)
        via -= self.price[self.active]
        via += self.offset[:, None]
        shorter = via + self.closed < self.length
        np.copyto(self.length, via, where=shorter)
        np.copyto(self.before, self.row[:, None], where=shorter)
        self.column = (self.length + self.closed).argmin(axis=1)
        self.closed[number, self.column] = np.inf
        self.row = self.row_of[self.active, self.column]
        reached = self.length[number, self.column]
        problem, column = self.active, self.column
        # An assigned row prefers its column: its edges are measured from there. Where the column
        # is free the row is -1, and the path has ended.
        best = self.costs[problem, self.row, column] - self.price[problem, column]
        self.offset = reached - best
        return self.row == UNASSIGNED

    def augment(self, ended: np.ndarray) -> None:
        """Lower prices along the paths (A,) that have ended, and shift their rows by one column."""
        number = np.flatnonzero(ended)
        problem, column = self.active[number], self.column[number]
        total = self.length[number, column]
        final = np.isinf(self.closed[number])
        self.price[problem] -= np.where(final, total[:, None] - self.length[number], 0)
        while len(number):
            row = self.before[number, column]
            # Which column the row leaves; its start leaves none.
            held = self.row_of[problem] == row[:, None]
            self.row_of[problem, column] = row
            more = held.any(axis=1)
            column = held.argmax(axis=1)[more]
            number, problem = number[more], problem[more]

    def keep(self, left: np.ndarray) -> None:
        """Drop the problems (A,) that are not `left`."""
        for name in ("active", "length", "closed", "before", "row", "offset", "column"):
            setattr(self, name, getattr(self, name)[left])

    def restart(self, ended: np.ndarray, start: np.ndarray) -> None:
        """Begin anew, from the rows `start`, where paths have `ended` (A,)."""
        self.length[ended], self.closed[ended] = np.inf, 0
        self.row[ended], self.offset[ended] = start, 0
