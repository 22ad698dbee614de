"""Statistics of a few runs against closed forms and against what they are defined by."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from relax_rl.comparison.statistics import (
    bootstrap,
    improvement,
    improvement_matrix,
    iqm,
    median,
    performance_profile,
    solved_fraction,
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
