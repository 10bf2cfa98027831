"""Statistics: the precision that they are computed in, and means with their uncertainty."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Real
from numpy import ndarray
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)  # precisions of models that no statistic is computed in


def float64_device(device: torch.device) -> torch.device:
    """Return the device if it has float64, else the CPU; Apple's MPS and some Intel GPUs have no float64."""
    if device.type != "cpu":
        try:
            torch.zeros((), dtype=torch.float64, device=device)
        except (TypeError, RuntimeError):
            return torch.device("cpu")
    return device


def double(values: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Convert to float64, on the same device if it has float64 and else on the CPU."""
    return values.to(float64_device(values.device)).double()


def at_least_single(values: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Convert half precision to float32, which is precise enough for statistics; keep float32 and float64."""
    return values.float() if values.dtype in HALF else values


def to_numpy(values: Tensor) -> ndarray:
    """Copy a tensor of any device and precision to numpy; half precision becomes float32."""
    return at_least_single(values.detach().cpu()).numpy()


def bootstrap_mean(
    values: Float[ndarray, "... sample"] | Bool[ndarray, "... sample"],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Float[ndarray, ...], Float[ndarray, ...], Float[ndarray, ...]]:
    """Return the mean over the last axis with a bootstrap interval (Efron and Tibshirani 1993, section 13.3).

    The interval is that of percentiles. All leading entries are resampled with the same draws, so differences between
    them stay paired.

    Args:
        values: the values, whose last axis holds the samples.
        resamples: the number of bootstrap resamples.
        level: the coverage of the interval.
        seed: the seed of the resampling.

    Returns:
        The mean, the lower end and the upper end, each without the last axis. NaN or infinity among the samples passes
        through. One sample does not determine an interval, so that both ends are NaN.
    """
    return bootstrap_ratio(values, np.ones(values.shape[-1]), resamples=resamples, level=level, seed=seed)


def bootstrap_ratio(
    values: Float[ndarray, "... sample"] | Bool[ndarray, "... sample"],
    totals: Float[ndarray, " sample"],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Float[ndarray, ...], Float[ndarray, ...], Float[ndarray, ...]]:
    """Return the sum of ``values`` over the sum of ``totals``, with a percentile bootstrap interval.

    Args:
        values: the values, whose last axis holds the samples.
        totals: one total for each sample.
        resamples, level, seed: as in ``bootstrap_mean``.

    Returns:
        The ratio, the lower end and the upper end, each without the last axis. They are NaN where the totals are zero,
        and both ends are NaN where there is one sample.
    """
    n, shape = values.shape[-1], values.shape[:-1]
    flat = values.reshape(-1, n).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = flat.sum(axis=1) / totals.sum()
    if n == 1:
        missing = np.full(shape, np.nan)
        return ratio.reshape(shape), missing, missing.copy()
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    ends = [(1 - level) / 2, (1 + level) / 2]
    scale = counts @ totals
    with np.errstate(divide="ignore", invalid="ignore"):
        # Chunks keep [chunk, resamples] small however many leading entries there are.
        chunks = [np.quantile(flat[i : i + 1024] @ counts.T / scale, ends, axis=1) for i in range(0, len(flat), 1024)]
    low, high = np.concatenate(chunks, axis=1)
    return ratio.reshape(shape), low.reshape(shape), high.reshape(shape)


def correlation(a: Float[ndarray, ...], b: Float[ndarray, ...]) -> float:
    """Return Pearson's correlation over all entries of two arrays; NaN where one of them does not vary."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def moving_mean(
    values: Float[ndarray, " row"], steps: Real[ndarray, " row"], width: float = 100
) -> Float[ndarray, " row"]:
    """Return the mean at each row over the rows of the last ``width`` steps.

    Args:
        values: one value for each row.
        steps: the step of each row, in rising order; the rows need not be equally far apart.
        width: the width of the window in steps.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.searchsorted(steps, steps - width, side="right")
    last = np.arange(1, len(values) + 1)
    return (sums[last] - sums[first]) / (last - first)
