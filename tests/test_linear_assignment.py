import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from models.assign import BACKGROUND
from models.linear_assignment import UNASSIGNED, linear_assignment


def assert_least(costs, counts, row_of):
    """Pairs are distinct and as many as there can be, and cost what SciPy's cost."""
    assert row_of.shape == (len(costs), costs.shape[2])
    for problem, count, rows in zip(costs, counts, row_of, strict=True):
        (columns,) = np.nonzero(rows != UNASSIGNED)
        rows = rows[columns]
        assert len(set(rows)) == len(rows) == min(count, len(problem[0]))
        assert ((rows >= 0) & (rows < count)).all()
        least = problem[:count][linear_sum_assignment(problem[:count])].sum()
        assert problem[rows, columns].sum() == pytest.approx(least, rel=1e-12, abs=1e-12)


KINDS = {
    "uniform": lambda rng, shape: rng.random(shape),
    "ties": lambda rng, shape: rng.integers(0, 4, shape).astype(float),
    "all equal": lambda rng, shape: np.ones(shape),
    "negative and far apart": lambda rng, shape: rng.normal(size=shape) ** 9,
    # All rows want the same columns: the most conflicts.
    "sums": lambda rng, shape: rng.random(shape[:2])[..., None] + rng.random(shape[::2])[:, None],
    "products": lambda rng, shape: (
        rng.random(shape[:2])[..., None] * rng.random(shape[::2])[:, None]
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_problems_cost_what_scipys_cost(kind):
    rng = np.random.default_rng(0)
    for number in (1, 2, 3, 5, 9) * 10:
        rows, columns = rng.integers(1, 25, 2)
        costs = KINDS[kind](rng, (number, rows, columns))
        counts = rng.integers(0, rows + 1, number)
        assert_least(costs, counts, linear_assignment(costs, counts))
    for shape in ((3, 20, 100), (2, 60, 40), (2, 40, 40)):
        costs = KINDS[kind](rng, shape)
        counts = [shape[1]] * shape[0]
        assert_least(costs, counts, linear_assignment(costs))


def test_by_hand():
    costs = np.array([[[1.0, 2, 9], [1, 4, 9]]])  # the first row gives way: 2 + 1 < 1 + 4
    assert linear_assignment(costs).tolist() == [[1, 0, UNASSIGNED]]
    assert linear_assignment(costs, [1]).tolist() == [[0, UNASSIGNED, UNASSIGNED]]
    assert linear_assignment(costs[:, :, :1]).tolist() == [[0]]


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_nothing_to_assign(shape):
    assert (linear_assignment(np.zeros(shape)) == UNASSIGNED).all()
    assert linear_assignment(np.zeros(shape)).shape == (shape[0], shape[2])


def test_half_precision_integers_and_strides():
    rng = np.random.default_rng(1)
    costs = rng.integers(0, 50, (3, 8, 6))
    for form in (costs, costs.astype(np.float16), np.asfortranarray(costs)):
        assert_least(costs.astype(float), [8] * 3, linear_assignment(form))
    before = costs.copy()
    linear_assignment(costs.astype(float))
    assert (costs == before).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_costs_without_a_least_sum_are_one_sentence(value):
    costs = np.ones((2, 3, 4))
    costs[1, 2, 3] = value
    with pytest.raises(ValueError, match="row 2 of assignment problem 1 .*infinite or not a") as e:
        linear_assignment(costs)
    assert "\n" not in str(e.value)
    assert_least(np.ones((2, 3, 4)), [3, 2], linear_assignment(costs, [3, 2]))  # not its row


def test_opposite_infinities_do_not_cancel():
    costs = np.ones((1, 1, 2))
    costs[0, 0] = np.inf, -np.inf
    with pytest.raises(ValueError, match="row 0 of assignment problem 0"):
        linear_assignment(costs)


def test_what_has_no_row_is_background():
    assert UNASSIGNED == BACKGROUND
