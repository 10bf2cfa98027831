"""Estimates over seeds and prompts, with intervals that hold each by itself or all findings of a claim together.

A claim is about models that are trained in some way, so the seed is its unit: a number is computed for every seed, and
seeds of two groups are independent. Prompts are shared by all models, and a bootstrap over them (of all models at once)
adds what the choice of prompts contributes. The interval is Student's, with Satterthwaite's degrees of freedom for the
sum of variances (Welch 1947). A group of one seed takes the variance that the other groups of its claim have in common,
in numbers of its kind. Every interval holds with 95 %, or all intervals of a claim together do (Šidák 1967);
``benchmarks/coverage.py`` measures how often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from loopprobe.study.rules import Rule

LEVEL = 0.95  # of an interval, or of all intervals of a claim together
FREEDOM = 1e6  # degrees of freedom that stand for a normal distribution
RESAMPLES = 400  # of prompts: they give a variance, not an interval
Scale = Literal["ratio", "difference", "share", "correlation"]
BOUNDS: dict[Scale, tuple[float, float]] = {
    "ratio": (0, np.inf), "difference": (-np.inf, np.inf), "share": (0, 1), "correlation": (-1, 1),
}  # fmt: skip
Interval = tuple[float, float]
Statistic = Callable[[Float[ndarray, "... example part"]], Float[ndarray, "..."]]


@dataclass(frozen=True)
class Group:
    """Models that differ in their seed alone, and what is computed of each.

    Attributes:
        values: [seed, example] or [seed, example, part], of the same prompts for all groups of a finding.
        statistic: from [..., example, part] to one number each; of ratios its logarithm.
        of_seeds: what is said of the seeds: of all that could be trained their mean; or of these alone their mean,
            their largest or their least number, whose interval is over prompts.
    """

    values: Float[ndarray, "seed example *part"]
    statistic: Statistic
    of_seeds: Literal["all", "these", "most", "least"] = "all"

    def over_seeds(self, numbers: Float[ndarray, "seed ..."]) -> Float[ndarray, ...]:
        """Return the mean over seeds, or their largest or least number."""
        ends = {"most": numbers.max, "least": numbers.min}
        return np.asarray(ends.get(self.of_seeds, numbers.mean)(axis=0))

    @property
    def parts(self) -> Float[ndarray, "seed example part"]:
        """The values with an axis of parts."""
        return self.values[..., None] if self.values.ndim == 2 else self.values


@dataclass(frozen=True)
class Estimate:
    """An estimate with its variances, before the other findings of its claim are known.

    Attributes:
        what: the estimate in words.
        rule: the range that the claim states.
        scale: the kind of number; ``value`` and the variances of a ratio are those of its logarithm.
        value: the estimate.
        spreads: of each group that stands for more seeds than its own, the variance over seeds (NaN of one seed) and
            their number.
        of_prompts: the variance that the choice of prompts adds.
        per_seed: the number of every seed of each group.
    """

    what: str
    rule: Rule
    scale: Scale
    value: float
    spreads: tuple[tuple[float, int], ...]
    of_prompts: float
    per_seed: tuple[tuple[float, ...], ...] = ()


def estimate(what: str, rule: Rule, scale: Scale, one: Group, other: Group | None = None) -> Estimate:
    """Estimate the statistic of a group, or what it is above that of another group, as means over their seeds."""
    groups = [one] if other is None else [one, other]
    signs = (1, -1)
    per_seed = [group.statistic(group.parts) for group in groups]
    value, drawn, spreads = 0.0, np.zeros(RESAMPLES), []
    chosen = np.random.default_rng(0).integers(one.values.shape[1], size=(RESAMPLES, one.values.shape[1]))
    for sign, group, numbers in zip(signs, groups, per_seed, strict=False):
        value += sign * float(group.over_seeds(numbers))
        drawn += sign * group.over_seeds(np.stack([group.statistic(seed[chosen]) for seed in group.parts]))
        if group.of_seeds == "all":
            spreads.append((float(numbers.var(ddof=1)) if len(numbers) > 1 else np.nan, len(numbers)))
    of_prompts = float(drawn.var(ddof=1))
    if scale in ("share", "difference"):
        of_prompts = max(of_prompts, sum(map(_least, groups)))
    listed = tuple(tuple(map(float, numbers)) for numbers in per_seed)
    return Estimate(what, rule, scale, value, tuple(spreads), of_prompts, listed)


def _least(group: Group) -> float:
    """Return the variance that a share of prompts has at least, 0 of what is no share.

    A few failures among many prompts vary more than they show, and none at all show nothing. It is the variance with
    two more prompts that fail and two that do not (Agresti and Coull 1998); of differences, one more either way.
    """
    if group.statistic is not share_of:
        return 0.0
    of_prompts = group.parts.mean(0)
    one_part = of_prompts.shape[-1] == 1
    values = of_prompts[:, 0] if one_part else of_prompts[:, 0] - of_prompts[:, 1]
    return float(
        np.append(values, [0, 0, 1, 1] if one_part else [-1, 1]).var() / (len(values) + (4 if one_part else 2))
    )


def intervals(estimates: Sequence[Estimate], *, together: bool) -> list[Interval]:
    """Return both ends of every estimate's interval, of 95 % each, or wider so that all hold together with 95 %.

    Ends are NaN where no seed tells how much seeds differ, or an estimate is not finite.
    """
    from scipy.stats import t  # imported here: it takes half a second

    common = pooled(estimates)
    decided = [bool(np.isfinite([one.value, one.of_prompts]).all()) for one in estimates]
    error = 1 - LEVEL ** (1 / max(1, sum(decided))) if together else 1 - LEVEL
    made = []
    for one, is_finite in zip(estimates, decided, strict=True):
        known = [(variance, n - 1) if n > 1 else common[one.scale] for variance, n in one.spreads]
        parts = [variance / n for (variance, _), (_, n) in zip(known, one.spreads, strict=True)]
        total = sum(parts) + one.of_prompts
        if not (is_finite and np.isfinite(total)):
            made.append((np.nan, np.nan))
            continue
        slack = sum(part**2 / freedom for part, (_, freedom) in zip(parts, known, strict=True))
        freedom = min(total**2 / slack, FREEDOM) if slack else FREEDOM
        half = float(t.ppf(1 - error / 2, freedom)) * np.sqrt(total)
        ends = one.value - half, one.value + half
        low, high = (float(np.exp(end)) for end in ends) if one.scale == "ratio" else ends
        least, most = BOUNDS[one.scale]
        made.append((max(low, least), min(high, most)))
    return made


def pooled(estimates: Sequence[Estimate]) -> dict[Scale, tuple[float, float]]:
    """Return the variance over seeds that groups have in common, and its degrees of freedom, of each kind of number.

    They are NaN where no group has two seeds.
    """
    found: dict[Scale, tuple[float, float]] = {}
    for scale in {one.scale for one in estimates}:
        spreads = [spread for one in estimates if one.scale == scale for spread in one.spreads]
        known = [(variance, n - 1) for variance, n in spreads if n > 1]
        freedom = sum(own for _, own in known)
        total = sum(own * variance for variance, own in known)
        found[scale] = (total / freedom, freedom) if known else (np.nan, np.nan)
    return found


# Statistics of a seed's prompts, [..., example, part] → [...]


def log_median(values: Float[ndarray, "... example part"]) -> Float[ndarray, ...]:
    """Return the logarithm of the median; of more parts than one, by how much their first half is above the second."""
    with np.errstate(divide="ignore"):
        logs = np.log(np.median(values, axis=-2))
    half = logs.shape[-1] // 2
    return logs[..., 0] if half == 0 else logs[..., :half].mean(-1) - logs[..., half:].mean(-1)


def share_of(values: Float[ndarray, "... example part"]) -> Float[ndarray, ...]:
    """Return the mean of shares; of two parts, how much the first is above the second."""
    means = values.mean(-2)
    return means[..., 0] if means.shape[-1] == 1 else means[..., 0] - means[..., 1]


def log_spread(values: Float[ndarray, "... example part"]) -> Float[ndarray, ...]:
    """Return the logarithm of the distance from the tenth to the ninetieth percentile."""
    low, high = np.quantile(values[..., 0], [0.1, 0.9], axis=-1)
    return np.log(high - low)
