import numpy as np
import pytest

from loopprobe.support.statistics import bootstrap_mean


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
