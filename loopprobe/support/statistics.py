"""Statistics: the precision that they are computed in; medians, shares and means with their uncertainty.

Errors of looped models have heavy tails: a mean of them is made of the few prompts on which the loop fails, and no
interval of it that is computed from a sample holds what it promises (``benchmarks/intervals.py``). What a typical
prompt costs is told by the median, and how often the loop fails by a share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Real
from numpy import ndarray
from scipy.special import bdtr, bdtrik, betaincinv, ndtr, ndtri, stdtrit  # scipy.stats, half a second to import, has it
from torch import Tensor

SUMMARY = ("median", "median_low", "median_high", "failures", "failures_low", "failures_high", "mean")  # of errors
TINY = 1e-9  # a share below it is none
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


def median_interval(
    values: Float[ndarray, "... sample"], *, level: float = 0.95
) -> tuple[Float[ndarray, ...], Float[ndarray, ...], Float[ndarray, ...]]:
    """Return the median over the last axis with an interval that no distribution can break.

    The ends are order statistics: the number of values below the true median is binomial, whatever their distribution
    (Conover 1999, Practical Nonparametric Statistics, section 3.2).

    Args:
        values: the values, whose last axis holds the samples.
        level: the least coverage of the interval.

    Returns:
        The median, the lower end and the upper end, each without the last axis; NaN where a value is NaN. Fewer than
        six samples do not determine a 95 % interval, so that both ends are NaN.
    """
    n = values.shape[-1]
    ordered = np.sort(values, axis=-1)
    broken = np.isnan(ordered[..., -1])  # NaN is sorted to the end
    median = np.where(broken, np.nan, (ordered[..., (n - 1) // 2] + ordered[..., n // 2]) / 2)
    below = _rank((1 - level) / 2, n)  # the largest rank with too little outside, from 1
    if below < 1:
        missing = np.full(median.shape, np.nan)
        return median, missing, missing.copy()
    low, high = (np.where(broken, np.nan, ordered[..., rank]) for rank in (below - 1, n - below))
    return median, low, high


def _rank(outside: float, n: int) -> int:
    """The ``outside`` quantile of the number of heads in n throws, ``scipy.stats.binom.ppf(outside, n, 0.5)``."""
    rank = max(0, math.ceil(bdtrik(outside, n, 0.5)))
    return rank - 1 if rank and bdtr(rank - 1, n, 0.5) >= outside else rank


def _beta(share: float, a: Float[ndarray, ...], b: Float[ndarray, ...]) -> Float[ndarray, ...]:
    """The quantile of a beta distribution, ``scipy.stats.beta.ppf``; NaN where a parameter is not above 0."""
    return np.where((a > 0) & (b > 0), betaincinv(a, b, share), np.nan)


def share_interval(
    values: Float[ndarray, "... sample"] | Bool[ndarray, "... sample"], *, level: float = 0.95
) -> tuple[Float[ndarray, ...], Float[ndarray, ...], Float[ndarray, ...]]:
    """Return the mean over the last axis of values from 0 to 1, with the interval of Clopper and Pearson (1934).

    It holds at least what it promises however few samples are above 0, where Wilson's does not always, and it has a
    width where all samples are alike, which a bootstrap has not. Of shares within a sample, such as the tokens of a
    prompt, it is too wide rather than too narrow, since they vary less than yes and no do.

    Args:
        values: true or false, or shares, whose last axis holds the samples.
        level: the coverage of the interval.

    Returns:
        The share, the lower end and the upper end, each without the last axis; NaN where a value is NaN.
    """
    n, share = values.shape[-1], values.astype(np.float64).mean(-1)
    outside, total = (1 - level) / 2, share * n
    low = np.where(total > TINY, _beta(outside, total, n - total + 1), 0.0)
    high = np.where(total < n - TINY, _beta(1 - outside, total + 1, n - total), 1.0)
    unknown = np.isnan(share)
    low, high = (np.where(unknown, np.nan, end) for end in (np.where(low < TINY, 0.0, low), high))
    return share, low, high


def share_difference_interval(
    differences: Real[ndarray, "... sample"], *, level: float = 0.95
) -> tuple[Float[ndarray, ...], Float[ndarray, ...], Float[ndarray, ...]]:
    """Return the mean over the last axis of paired differences of yes and no, with an interval that has a width.

    The mean is the share of samples with 1 minus the share with -1. Each share has its interval of Clopper and Pearson
    (``share_interval``) at half of what may lie outside, so that both hold together (Bonferroni).

    Args:
        differences: 1, 0 or -1: yes only in the first of a pair, in both or neither, and only in the second.
        level: the least coverage of the interval.

    Returns:
        The mean, the lower end and the upper end, each without the last axis; NaN where a value is NaN.
    """
    known = np.where(np.isnan(differences), np.nan, 1.0)
    half = (1 + level) / 2
    gained, lost = (share_interval(np.where(differences == sign, 1.0, 0.0) * known, level=half) for sign in (1, -1))
    return gained[0] - lost[0], gained[1] - lost[2], gained[2] - lost[1]


def summarise_errors(errors: Float[ndarray, "... sample"], level: float) -> dict[str, Float[ndarray, ...]]:
    """Summarise errors over their last axis: what a typical sample costs, and how often one fails.

    Args:
        errors: the errors, which have heavy tails.
        level: the error above which a sample counts as failed.

    Returns:
        ``median``, ``median_low``, ``median_high``; ``failures``, the share of samples above the level, with
        ``failures_low`` and ``failures_high``, all 95 % intervals; and ``mean``, which has none: a sample of errors
        with heavy tails does not determine one. Where an error is NaN, so are they all.
    """
    failed = np.where(np.isnan(errors), np.nan, errors > level)  # what is not known has neither failed nor succeeded
    numbers = *median_interval(errors), *share_interval(failed), errors.mean(-1, dtype=np.float64)
    return dict(zip(SUMMARY, numbers, strict=True))


def bootstrap_mean(
    values: Float[ndarray, "... sample"] | Bool[ndarray, "... sample"],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Float[ndarray, ...], Float[ndarray, ...], Float[ndarray, ...]]:
    """Return the mean over the last axis with a bootstrap interval (Efron and Tibshirani 1993, section 13.3).

    The interval is that of percentiles, which are a little further out where samples are few, as Student's interval is
    wider than that of a normal distribution (the expanded percentile interval, Hesterberg 2015, arXiv 1411.5279). It
    holds what it promises for values without heavy tails, such as attention patterns; errors have ``median_interval``
    and ``share_interval``. All leading entries are resampled with the same draws, so differences between them stay
    paired.

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
    minus: tuple[Float[ndarray, "... sample"], Float[ndarray, " sample"]] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Float[ndarray, ...], Float[ndarray, ...], Float[ndarray, ...]]:
    """Return the sum of ``values`` over the sum of ``totals``, with the bootstrap interval of ``bootstrap_mean``.

    Args:
        values: the values, whose last axis holds the samples.
        totals: one total for each sample.
        minus: values and totals of another ratio of the same samples, which is subtracted resample by resample, so
            that the difference stays paired; None: nothing is.
        resamples, level, seed: as in ``bootstrap_mean``.

    Returns:
        The ratio, the lower end and the upper end, each without the last axis. They are NaN where the totals are zero,
        and both ends are NaN where there is one sample.
    """
    n, shape = values.shape[-1], values.shape[:-1]
    parts = [(values, totals)] if minus is None else [(values, totals), minus]
    flat = [(part.reshape(-1, n).astype(np.float64), whole) for part, whole in parts]
    with np.errstate(divide="ignore", invalid="ignore"):
        whole_sample = _first_minus_second([part.sum(axis=1) / whole.sum() for part, whole in flat])
    if n == 1:
        missing = np.full(shape, np.nan)
        return whole_sample.reshape(shape), missing, missing.copy()
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    outside = ndtr(np.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - level) / 2))
    ends = [outside, 1 - outside]
    chunks = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for i in range(0, len(flat[0][0]), 1024):  # so that [chunk, resamples] stays small however many entries lead
            of_resamples = [part[i : i + 1024] @ counts.T / (counts @ whole) for part, whole in flat]
            chunks.append(np.quantile(_first_minus_second(of_resamples), ends, axis=1))
    low, high = np.concatenate(chunks, axis=1)
    return whole_sample.reshape(shape), low.reshape(shape), high.reshape(shape)


def _first_minus_second(ratios: Sequence[ndarray]) -> ndarray:
    """Return the difference of two, or the only one."""
    return ratios[0] - ratios[1] if len(ratios) == 2 else ratios[0]


def auc(positive: Float[ndarray, " one"], negative: Float[ndarray, " other"]) -> float:
    """Return the area under the ROC curve: how often a value of the first sample is above one of the second.

    Ties count half. It is NaN where a sample is empty.
    """
    return float(_placements(positive, negative).mean()) if len(positive) and len(negative) else math.nan


def auc_interval(
    positive: Float[ndarray, " one"], negative: Float[ndarray, " other"], *, level: float = 0.95
) -> tuple[float, float, float]:
    """Return the area under the ROC curve (``auc``) with its interval.

    The interval is that of DeLong, DeLong and Clarke-Pearson (1988), taken of the logit, so that it stays between 0
    and 1.

    Args:
        positive, negative: the values of the two samples.
        level: the coverage of the interval.

    Returns:
        The area, the lower end and the upper end; all NaN with fewer than two values in a sample, or where one is not a
        number. Where the samples do not overlap the ends are NaN: no variance can be told.
    """
    if min(len(positive), len(negative)) < 2 or np.isnan([*positive, *negative]).any():
        return math.nan, math.nan, math.nan
    below = _placements(positive, negative)
    area = float(below.mean())
    variance = below.var(ddof=1) / len(positive) + _placements(-negative, -positive).var(ddof=1) / len(negative)
    if not 0 < area < 1 or variance == 0:
        return area, math.nan, math.nan
    logit, wide = math.log(area / (1 - area)), float(ndtri((1 + level) / 2)) * math.sqrt(variance) / (area * (1 - area))
    return area, 1 / (1 + math.exp(wide - logit)), 1 / (1 + math.exp(-wide - logit))


def _placements(values: Float[ndarray, " one"], others: Float[ndarray, " other"]) -> Float[ndarray, " one"]:
    """The share of the others that lie below each value; ties count half."""
    ordered = np.sort(others)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (2 * len(others))


def correlation(a: Float[ndarray, ...], b: Float[ndarray, ...]) -> float:
    """Return Pearson's correlation over all entries of two arrays; NaN where one of them does not vary."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def ranks(values: Float[ndarray, "... entry"]) -> Float[ndarray, "... entry"]:
    """Return the rank of each entry along the last axis, from 1; entries that are alike share the mean of theirs."""
    from scipy.stats import rankdata  # imported here: it takes half a second

    return np.asarray(rankdata(values, axis=-1))


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
