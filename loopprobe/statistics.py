"""Means with their uncertainty."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray


def bootstrap_mean(
    values: Float[ndarray, "... sample"], *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[Float[ndarray, ...], Float[ndarray, ...], Float[ndarray, ...]]:
    """Mean over the last axis with a percentile bootstrap interval (Efron and Tibshirani 1993, section 13.3).

    All leading entries are resampled with the same draws, so differences between them stay paired.

    Args:
        values: the samples are the last axis.
        resamples: bootstrap resamples.
        level: coverage of the interval.
        seed: of the resampling.

    Returns:
        mean, lower end, upper end, each without the last axis. NaN or infinity among the samples passes through.
    """
    return bootstrap_ratio(values, np.ones(values.shape[-1]), resamples=resamples, level=level, seed=seed)


def bootstrap_ratio(
    values: Float[ndarray, "... sample"],
    totals: Float[ndarray, " sample"],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Float[ndarray, ...], Float[ndarray, ...], Float[ndarray, ...]]:
    """Sum of ``values`` over the sum of ``totals``, with a percentile bootstrap interval over the samples of both.

    Args:
        values: the samples are the last axis.
        totals: one a sample.
        resamples, level, seed: as in ``bootstrap_mean``.

    Returns:
        ratio, lower end, upper end, each without the last axis.
    """
    n = values.shape[-1]
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    flat = values.reshape(-1, n).astype(np.float64)
    ends = [(1 - level) / 2, (1 + level) / 2]
    scale = counts @ totals
    # Chunks keep [chunk, resamples] small however many leading entries there are.
    chunks = [np.quantile(flat[i : i + 1024] @ counts.T / scale, ends, axis=1) for i in range(0, len(flat), 1024)]
    low, high = np.concatenate(chunks, axis=1)
    shape = values.shape[:-1]
    return (flat.sum(axis=1) / totals.sum()).reshape(shape), low.reshape(shape), high.reshape(shape)


def moving_mean(
    values: Float[ndarray, " row"], steps: Float[ndarray, " row"], width: float = 100
) -> Float[ndarray, " row"]:
    """At each row, the mean over the rows of the last ``width`` steps.

    Args:
        values: one a row.
        steps: where the rows stand, rising; they need not be equally far apart.
        width: of the window, in steps.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.searchsorted(steps, steps - width, side="right")
    last = np.arange(1, len(values) + 1)
    return (sums[last] - sums[first]) / (last - first)
