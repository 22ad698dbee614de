"""Statistics of a few runs against closed forms and against what they are defined by."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from relax_rl.comparison.statistics import (
    aggregates,
    bootstrap,
    improvement,
    improvement_matrix,
    iqm,
    median,
    normalised,
    optimality_gap,
    performance_profile,
    solved_fraction,
    stratified,
)


def probability(x, y) -> float:
    return float(improvement_matrix(x, y).mean())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 10, 13])
def test_the_interquartile_mean_is_the_trimmed_mean(count):
    scores = np.random.default_rng(count).normal(size=(count, 3))
    assert iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=0))
    assert iqm(scores.T, axis=1) == pytest.approx(iqm(scores))


def test_the_interquartile_mean_drops_outliers():
    assert iqm(np.array([-1e9, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1e9])) == 3.5


def test_the_median_knows_never():
    assert median(np.array([3.0, 1.0, math.inf])) == 3.0
    assert median(np.array([3.0, 1.0, math.inf, math.inf])) == math.inf
    assert median(np.array([4.0, 2.0])) == 3.0
    table = np.array([[1.0, math.inf], [2.0, 5.0], [3.0, math.inf]])
    assert median(table).tolist() == [2.0, math.inf]


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    scores = np.random.default_rng(0).normal(size=400)
    found = bootstrap(np.mean, scores)
    half = 1.96 * scores.std() / 20
    assert found.value == scores.mean()
    assert found.low == pytest.approx(scores.mean() - half, abs=0.01)
    assert found.high == pytest.approx(scores.mean() + half, abs=0.01)


def test_intervals_are_the_same_every_time_and_for_every_column():
    scores = np.random.default_rng(1).normal(size=10)
    table = np.stack([scores, 2 * scores], axis=1)
    found, again = bootstrap(iqm, table), bootstrap(iqm, scores)
    assert found.low.tolist() == pytest.approx([again.low, 2 * again.low])
    assert found.high.tolist() == pytest.approx([again.high, 2 * again.high])


def test_the_interval_of_a_median_reaches_never():
    found = bootstrap(median, np.array([1.0, 2.0, 3.0, math.inf, math.inf]))
    assert (found.value, found.high) == (3.0, math.inf) and found.low <= 2.0


def test_one_run_has_no_interval():
    found = bootstrap(iqm, np.array([5.0]))
    assert found.value == found.low == found.high == 5.0


def test_the_probability_of_improvement_is_mann_whitney():
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 6, size=9).tolist(), rng.integers(0, 6, size=7).tolist()
    u = stats.mannwhitneyu(x, y).statistic
    assert probability(x, y) == pytest.approx(u / 63)
    assert probability(x, y) + probability(y, x) == pytest.approx(1.0)
    assert improvement_matrix([1, 2], [2, 0]).tolist() == [[0.0, 1.0], [0.5, 1.0]]


def test_the_probability_of_improvement_of_two_normal_distributions():
    rng = np.random.default_rng(4)
    x, y = rng.normal(1.0, 1.0, size=3000), rng.normal(0.0, 1.0, size=3000)
    assert probability(x, y) == pytest.approx(stats.norm.cdf(1 / math.sqrt(2)), abs=0.01)


def test_its_interval_covers_as_often_as_it_says():
    truth, covered, rng = stats.norm.cdf(0.5 / math.sqrt(2)), 0, np.random.default_rng(5)
    for _ in range(200):
        found = improvement([(rng.normal(0.5, 1.0, size=20), rng.normal(0.0, 1.0, size=20))])
        covered += found.low <= truth <= found.high
    assert 0.88 <= covered / 200 <= 1.0


def test_environments_count_equally():
    sure, tie = ([2.0, 3.0], [0.0, 1.0]), ([1.0] * 10, [1.0] * 10)
    found = improvement([sure, tie])
    assert (found.value, found.low, found.high) == (0.75, 0.75, 0.75)


def test_the_bootstrap_of_pairs_is_that_of_resampled_runs():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=5), rng.normal(size=4)
    resampled = [improvement_matrix(x[rng.integers(5, size=5)], y[rng.integers(4, size=4)]).mean() for _ in range(4000)]
    found = improvement([(x, y)])
    assert found.low == pytest.approx(np.quantile(resampled, 0.025), abs=0.06)
    assert found.high == pytest.approx(np.quantile(resampled, 0.975), abs=0.06)


def test_the_performance_profile_is_the_share_above():
    found = performance_profile([1.0, 2.0, 2.0, 4.0], np.array([0.0, 1.0, 2.0, 3.0, 4.0]))
    assert found.value.tolist() == [1.0, 0.75, 0.25, 0.25, 0.0]
    assert (found.low <= found.value).all() and (found.high >= found.value).all()
    assert found.low[0] == found.high[0] == 1.0


def test_the_solved_share_is_over_all_runs():
    at, share = solved_fraction([5.0, 3.0, math.inf, 3.0])
    assert at == [0.0, 3.0, 5.0] and share == pytest.approx([0.0, 0.5, 0.75])
    assert solved_fraction([math.inf, math.inf]) == ([0.0], [0.0])


def test_the_solved_share_reaches_a_half_at_the_median():
    times = [4.0, 1.0, math.inf, 9.0, 7.0]
    at, share = solved_fraction(times)
    assert at[next(k for k, value in enumerate(share) if value >= 0.5)] == median(np.array(times)) == 7.0


def test_what_is_no_number_is_never_the_best():
    scores = np.array([1.0, 2.0, math.nan, 4.0])
    assert np.isnan(iqm(scores)) and np.isnan(median(scores))
    table = np.array([[1.0, 1.0], [2.0, math.nan], [3.0, 3.0], [4.0, 4.0]])
    assert iqm(table)[0] == 2.5 and np.isnan(iqm(table)[1])
    found = bootstrap(iqm, table)
    assert found.low[0] < 2.5 < found.high[0] and np.isnan([found.low[1], found.high[1]]).all()
    matrix = improvement_matrix([math.nan, 3.0], [1.0, math.nan])
    assert matrix[1, 0] == 1.0 and np.isnan(matrix).sum() == 3
    assert np.isnan(improvement([([1.0, math.nan], [0.0])]).value)
    assert np.isnan(performance_profile([1.0, math.nan], np.array([0.0])).value).all()


# Over tasks


def loops_of_rliable(table, statistic, draws):
    """Runs resampled within each task, one draw after the other."""
    rng = np.random.default_rng(11)
    found = []
    for _ in range(draws):
        columns = [table[rng.integers(len(table), size=len(table)), task] for task in range(table.shape[1])]
        found.append(statistic(np.stack(columns, axis=1)))
    return np.quantile(found, [0.025, 0.975])


AGGREGATES = {
    "iqm": lambda x: stats.trim_mean(x, 0.25, axis=None),
    "mean": np.mean,
    "median": lambda x: np.median(np.mean(x, axis=0)),
    "optimality_gap": lambda x: 1.0 - np.mean(np.minimum(x, 1.0)),
}


@pytest.mark.parametrize("name", AGGREGATES)
def test_aggregates_over_tasks_are_those_of_loops(name):
    table = np.random.default_rng(7).normal([0.2, 0.9, 2.0], [0.1, 0.3, 0.5], size=(10, 3))
    found = aggregates(table)[name]
    assert found.value == pytest.approx(AGGREGATES[name](table))
    low, high = loops_of_rliable(table, AGGREGATES[name], 2_000)
    width = high - low
    assert found.low == pytest.approx(low, abs=0.15 * width) and found.high == pytest.approx(high, abs=0.15 * width)


def test_runs_are_resampled_within_each_task():
    """A run of one task has nothing to do with one of another: together they would give twice the variance."""
    ups_and_downs = np.tile([[-1.0, -1.0], [1.0, 1.0]], (20, 1))
    apart = stratified(lambda x: x.mean((-2, -1)), ups_and_downs)
    together = bootstrap(lambda x, axis: x.mean(axis).mean(-1), ups_and_downs)
    assert apart.high - apart.low == pytest.approx((together.high - together.low) / math.sqrt(2), rel=0.1)


def test_the_optimality_gap_counts_no_more_than_the_optimum():
    table = np.array([[0.5, 3.0], [1.0, 0.0]])
    assert optimality_gap(table) == pytest.approx(1.5 / 4) and optimality_gap(table, optimum=0.5) == pytest.approx(
        0.5 / 4
    )
    assert aggregates(table, optimum=0.5)["optimality_gap"].value == pytest.approx(0.5 / 4)


def test_scores_are_put_on_one_scale():
    table = np.array([[20.0, -500.0], [500.0, -80.0]])
    assert normalised(table, [20.0, -500.0], [500.0, -80.0]).tolist() == [[0.0, 0.0], [1.0, 1.0]]
    with pytest.raises(ValueError, match=r"expected above that of 0"):
        normalised(table, [20.0, -500.0], [500.0, -500.0])


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([[1.0, math.nan], [2.0, math.nan]], "2 of 2 scores of task 1 are NaN"),
        ([1.0, 2.0], r"expected \[runs, tasks\]"),
        ([[1.0, 2.0], [3.0]], r"expected \[runs, tasks\], as many runs of every task"),
        ([], r"expected \[runs, tasks\]"),
    ],
)
def test_tables_that_cannot_be_summed_up_are_told(scores, expected):
    with pytest.raises(ValueError, match=expected):
        aggregates(scores)
