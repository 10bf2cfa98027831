import numpy as np
import pytest

from loopprobe.support.statistics import (
    bootstrap_mean,
    bootstrap_ratio,
    median_interval,
    share_difference_interval,
    share_interval,
    summarise_errors,
)


def test_the_interval_of_a_mean_has_the_width_of_theory():
    values = np.random.default_rng(0).normal(3, 2, size=(1, 4000))
    mean, low, high = bootstrap_mean(values)
    assert mean[0] == pytest.approx(values.mean())
    assert high[0] - low[0] == pytest.approx(2 * 1.96 * values.std() / 4000**0.5, rel=0.05)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    values = np.random.default_rng(1).normal(0, 1, size=(400, 100))
    covered = []
    for seed, row in enumerate(values):  # its own resampling each: coverage of independent studies
        _, low, high = bootstrap_mean(row, resamples=500, seed=seed)
        covered.append(low <= 0 <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.035)


def test_few_samples_widen_the_interval_of_a_mean():
    """Of 8 normal values the percentiles of a normal bootstrap hold the mean in 88 %, Student's interval in 95 %."""
    values = np.random.default_rng(6).normal(0, 1, size=(2000, 8))
    _, low, high = bootstrap_mean(values, resamples=1000)
    assert ((low <= 0) & (high >= 0)).mean() == pytest.approx(0.95, abs=0.02)


def test_differences_stay_paired():
    base = np.random.default_rng(2).exponential(size=500)
    _, low, high = bootstrap_mean(np.stack([base, base + 1]))
    assert high[1] - high[0] == pytest.approx(1)
    assert low[1] - low[0] == pytest.approx(1)


def test_shape_and_many_rows():
    values = np.random.default_rng(3).random((3, 700, 20))
    mean, low, high = bootstrap_mean(values, resamples=50)
    assert mean.shape == low.shape == high.shape == (3, 700)
    assert (low <= mean).all()
    assert (mean <= high).all()


def test_a_median_has_the_order_statistics_of_the_binomial_around_it():
    """Of 25 values the 8th and the 18th hold the median with 95.7 % (Conover 1999, table A3)."""
    median, low, high = median_interval(np.random.default_rng(4).permutation(25.0 ** np.arange(25) / 25.0**12)[None])
    assert (median[0], low[0], high[0]) == pytest.approx((1, 25.0**-5, 25.0**5))
    assert [part.tolist() for part in median_interval(np.arange(6.0))] == [2.5, 0, 5]
    assert np.isnan(median_interval(np.arange(5.0))[1:]).all()  # five values leave it out in 6 % of cases
    assert np.isnan(median_interval(np.array([1.0, np.nan] * 8))).all()
    assert median_interval(np.array([1.0] * 9 + [np.inf] * 2))[0] == 1


@pytest.mark.parametrize("n", [64, 1280])
def test_a_median_is_covered_whatever_the_tails(n):
    draw = np.random.default_rng(5)
    values = draw.lognormal(0, 3, size=(2000, n))
    _, low, high = median_interval(values)
    assert 0.94 < ((low <= 1) & (high >= 1)).mean() < 0.985
    _, low, high = bootstrap_mean(values[:200], resamples=400)
    assert ((low <= np.exp(4.5)) & (high >= np.exp(4.5))).mean() < 0.8  # why no mean has an interval


def test_a_share_has_the_exact_interval():
    from scipy.stats import binomtest

    for hits in (0, 1, 7, 40):
        exact = binomtest(hits, 40).proportion_ci(method="exact")
        assert share_interval(np.arange(40) < hits) == pytest.approx((hits / 40, exact.low, exact.high))
    within = np.linspace(0, 1, 40)  # shares of each prompt's tokens
    _, low, high = share_interval(within)
    assert low < 0.5 < high
    assert np.isnan(share_interval(np.array([0.0, np.nan]))).all()
    assert share_interval(np.full(9, 1e-12))[1] == 0


def test_a_summary_tells_what_is_typical_from_what_fails():
    errors = np.array([0.001] * 90 + [50.0] * 10)
    summary = summarise_errors(errors, 0.1)
    assert (summary["median"], summary["failures"]) == (0.001, 0.1)
    assert summary["mean"] == pytest.approx(5.0009)
    assert summary["median_high"] == 0.001
    assert 0.04 < summary["failures_low"] < 0.1 < summary["failures_high"] < 0.18
    unknown = summarise_errors(np.array([0.001, np.nan] * 8), 0.1)
    assert all(np.isnan(value) for value in unknown.values()), "what is not known has neither failed nor succeeded"


def test_the_difference_of_two_ratios_stays_paired():
    draw = np.random.default_rng(7)
    totals, noise = draw.uniform(1, 2, 300), draw.exponential(3, 300)
    one, other = noise + 0.5 * totals, noise
    difference, low, high = bootstrap_ratio(one[None], totals, minus=(other[None], totals))
    assert difference[0] == pytest.approx(0.5)  # what both have in common drops out of every resample
    assert (low[0], high[0]) == pytest.approx((0.5, 0.5))
    apart = draw.permutation(noise)
    difference, low, high = bootstrap_ratio(one[None], totals, minus=(apart[None], totals * 2))
    assert difference[0] == pytest.approx(one.sum() / totals.sum() - apart.sum() / (2 * totals.sum()))
    assert low[0] < difference[0] < high[0]


@pytest.mark.parametrize(("gained", "lost"), [(0.0, 0.0), (0.02, 0.01), (0.3, 0.2)])
def test_a_difference_of_shares_is_covered_and_has_a_width(gained, lost):
    draws = np.random.default_rng(8).choice([1, -1, 0], size=(2000, 64), p=[gained, lost, 1 - gained - lost])
    difference, low, high = share_difference_interval(draws)
    np.testing.assert_allclose(difference, draws.mean(1), atol=1e-12)
    assert ((low <= gained - lost) & (high >= gained - lost)).mean() >= 0.95
    assert (high - low).min() > 0
    assert np.isnan(share_difference_interval(np.array([1.0, np.nan, 0.0]))).all()
