"""The arithmetic of statistics: the precision that they are computed in, and means with their uncertainty."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Real
from numpy import ndarray
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)  # precisions of models, in which no statistic is computed


def float64_device(device: torch.device) -> torch.device:
    """The device itself where it has float64, else the CPU: Apple's MPS and some of Intel's GPUs have none."""
    if device.type != "cpu":
        try:
            torch.zeros((), dtype=torch.float64, device=device)
        except (TypeError, RuntimeError):
            return torch.device("cpu")
    return device


def double(values: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Convert to float64, on the same device where it has float64 and on the CPU where it has not."""
    return values.to(float64_device(values.device)).double()


def at_least_single(values: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Convert half precision to float32, in which statistics hold their digits; leave float32 and float64 alone."""
    return values.float() if values.dtype in HALF else values


def to_numpy(values: Tensor) -> ndarray:
    """Copy a tensor of any device and precision to numpy, half precision as float32."""
    return at_least_single(values.detach().cpu()).numpy()


def bootstrap_mean(
    values: Float[ndarray, "... sample"] | Bool[ndarray, "... sample"],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Float[ndarray, ...], Float[ndarray, ...], Float[ndarray, ...]]:
    """Mean over the last axis with a percentile bootstrap interval (Efron and Tibshirani 1993, section 13.3).

    All leading entries are resampled with the same draws, so differences between them stay paired.

    Args:
        values: the samples are the last axis.
        resamples: bootstrap resamples.
        level: coverage of the interval.
        seed: of the resampling.

    Returns:
        mean, lower end, upper end, each without the last axis. NaN or infinity among the samples passes through; one
        sample says nothing of its uncertainty, so that both ends are NaN.
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
    """Sum of ``values`` over the sum of ``totals``, with a percentile bootstrap interval over the samples of both.

    Args:
        values: the samples are the last axis.
        totals: one a sample.
        resamples, level, seed: as in ``bootstrap_mean``.

    Returns:
        ratio, lower end, upper end, each without the last axis: NaN where the totals are zero, and both ends where
        there is one sample.
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
    """Pearson's correlation over all entries of two arrays; NaN where one of them does not vary."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def moving_mean(
    values: Float[ndarray, " row"], steps: Real[ndarray, " row"], width: float = 100
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
