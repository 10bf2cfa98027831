"""Estimates over seeds and prompts, with intervals that hold each by itself or all findings of a claim together.

A claim is about models that are trained in some way, so the seed is its unit: a number is computed for every seed, and
seeds of two groups are independent. Prompts are shared by all models, and a bootstrap over them (of all models at once)
adds what the choice of prompts contributes. The interval is Student's, with Satterthwaite's degrees of freedom for the
sum of variances (Welch 1947). A group of one seed takes the variance that the other groups of its claim have in common,
in numbers of its kind: one variance for all that take it. The mean over findings is a contrast of the same groups:
models and prompts that findings share are counted once. Every interval holds with 95 %, or all intervals of a claim
together do (Šidák 1967); ``benchmarks/intervals.py`` measures how often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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
        models: the model of every seed, by which findings about the same models are known; empty: no other finding is.
    """

    values: Float[ndarray, "seed example *part"]
    statistic: Statistic
    of_seeds: Literal["all", "these", "most", "least"] = "all"
    models: tuple[str, ...] = ()

    def over_seeds(self, numbers: Float[ndarray, "seed ..."]) -> Float[ndarray, ...]:
        """Return the mean over seeds, or their largest or least number."""
        ends = {"most": numbers.max, "least": numbers.min}
        return np.asarray(ends.get(self.of_seeds, numbers.mean)(axis=0))

    @property
    def parts(self) -> Float[ndarray, "seed example part"]:
        """The values with an axis of parts."""
        return self.values[..., None] if self.values.ndim == 2 else self.values

    @cached_property
    def per_seed(self) -> Float[ndarray, " seed"]:
        """The number of every seed."""
        return self.statistic(self.parts)

    @cached_property
    def drawn(self) -> Float[ndarray, " draw"]:
        """What is said of the seeds for every resample of the prompts, the same for all groups of as many prompts."""
        prompts = self.values.shape[1]
        chosen = np.random.default_rng(0).integers(prompts, size=(RESAMPLES, prompts))
        return self.over_seeds(np.stack([self.statistic(seed[chosen]) for seed in self.parts]))


@dataclass(frozen=True)
class Spread:
    """How much seeds differ that stand for more than their own.

    Attributes:
        variance: over seeds, of one number each; NaN of one seed.
        seeds: their number.
        freedom: the degrees of freedom of the variance.
        models, numbers: the model and the number of every seed, signed by how the estimate takes it.
        is_common: whether the variance is that of other groups, of which several spreads take the same.
    """

    variance: float
    seeds: int
    freedom: float
    models: tuple[str, ...] = ()
    numbers: tuple[float, ...] = ()
    is_common: bool = False


@dataclass(frozen=True)
class Estimate:
    """An estimate with its variances, before the other findings of its claim are known.

    Attributes:
        what: the estimate in words.
        rule: the range that the claim states.
        scale: the kind of number; ``value`` and the variances of a ratio are those of its logarithm.
        value: the estimate.
        spreads: of each group that stands for more seeds than its own, how much they differ.
        of_prompts: the variance that the choice of prompts adds.
        drawn: the estimate for every resample of the prompts; empty: not known.
        part: the part of the claim that the finding is about, of which the mean over findings is taken.
        per_seed: the number of every seed of each group.
    """

    what: str
    rule: Rule
    scale: Scale
    value: float
    spreads: tuple[Spread, ...]
    of_prompts: float
    drawn: tuple[float, ...] = ()
    part: str = ""
    per_seed: tuple[tuple[float, ...], ...] = ()


def estimate(what: str, rule: Rule, scale: Scale, one: Group, other: Group | None = None, part: str = "") -> Estimate:
    """Estimate the statistic of a group, or what it is above that of another group, as means over their seeds."""
    groups = [one] if other is None else [one, other]
    value, drawn, spreads = 0.0, np.zeros(RESAMPLES), []
    for sign, group in zip((1, -1), groups, strict=False):
        value += sign * float(group.over_seeds(group.per_seed))
        drawn += sign * group.drawn
        if group.of_seeds == "all":
            spreads.append(_spread(group.models, sign * group.per_seed))
    of_prompts = float(drawn.var(ddof=1))
    if scale in ("share", "difference"):
        of_prompts = max(of_prompts, sum(map(_least, groups)))
    listed = tuple(tuple(map(float, group.per_seed)) for group in groups)
    return Estimate(what, rule, scale, value, tuple(spreads), of_prompts, tuple(drawn), part, listed)


def _spread(models: tuple[str, ...], numbers: Float[ndarray, " seed"]) -> Spread:
    n = len(numbers)
    variance = float(numbers.var(ddof=1)) if n > 1 else np.nan
    return Spread(variance, n, n - 1, models, tuple(map(float, numbers)))


def on_average(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of estimates of one kind and one rule, with the variances of the mean.

    Groups of the same models are one group, whose seeds are added up over the findings before they are compared.
    Prompts are resampled for all findings at once. A group of one seed has the variance that ``with_common`` gave it,
    as if it stood in its findings with one sign.
    """
    count = len(estimates)
    known: dict[tuple[str, ...], np.ndarray] = {}
    spreads = []
    for spread in (spread for one in estimates for spread in one.spreads):
        if spread.models and spread.seeds > 1:
            known[spread.models] = known.get(spread.models, 0.0) + np.array(spread.numbers) / count
        else:
            spreads.append(spread)
    alone: dict[tuple[str, ...], list[Spread]] = {}
    for i, spread in enumerate(spreads):
        alone.setdefault(spread.models or (f"group {i}",), []).append(spread)
    once = [replace(same[0], variance=same[0].variance * (len(same) / count) ** 2) for same in alone.values()]
    drawn = np.array([one.drawn for one in estimates]) if all(one.drawn for one in estimates) else np.empty((count, 0))
    least = sum(one.of_prompts for one in estimates) / count**2  # of prompts that differ from finding to finding
    return replace(
        estimates[0],
        what=f"mean over {count} findings" + (f": {estimates[0].part}" if estimates[0].part else ""),
        value=float(np.mean([one.value for one in estimates])),
        spreads=(*(_spread(models, numbers) for models, numbers in known.items()), *once),
        of_prompts=max(least, float(drawn.mean(0).var(ddof=1))) if drawn.size else least,
        drawn=tuple(drawn.mean(0)),
        per_seed=(),
    )


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

    totals = [sum(s.variance / s.seeds for s in one.spreads) + one.of_prompts for one in estimates]
    decided = [bool(np.isfinite([one.value, one.of_prompts]).all()) for one in estimates]
    error = 1 - LEVEL ** (1 / max(1, sum(decided))) if together else 1 - LEVEL
    made = []
    for one, total, is_finite in zip(estimates, totals, decided, strict=True):
        if not (is_finite and np.isfinite(total)):
            made.append((np.nan, np.nan))
            continue
        slack = _slack(one.spreads)
        freedom = min(total**2 / slack, FREEDOM) if slack else FREEDOM
        half = float(t.ppf(1 - error / 2, freedom)) * np.sqrt(total)
        ends = one.value - half, one.value + half
        low, high = (float(np.exp(end)) for end in ends) if one.scale == "ratio" else ends
        least, most = BOUNDS[one.scale]
        made.append((max(low, least), min(high, most)))
    return made


def _slack(spreads: Sequence[Spread]) -> float:
    """Return the variance of the summed variances, halved; those that are one and the same are one (Satterthwaite)."""
    of_mean = [(s.variance / s.seeds, s) for s in spreads]
    common = [(share, s.freedom) for share, s in of_mean if s.is_common]
    own = sum(share**2 / s.freedom for share, s in of_mean if not s.is_common)
    return own + (sum(share for share, _ in common) ** 2 / common[0][1] if common else 0.0)


def with_common(estimates: Sequence[Estimate]) -> list[Estimate]:
    """Return the estimates with groups of one seed taking the variance that others of their kind of number have.

    Numbers of a kind have one scale and are in one part of the claim. Models in several findings count once, by the
    mean of their variances. It stays NaN where no group has two seeds.
    """
    common: dict[tuple[Scale, str], tuple[float, float]] = {}
    for kind in {(one.scale, one.part) for one in estimates}:
        of_kind = (s for one in estimates if (one.scale, one.part) == kind for s in one.spreads if s.seeds > 1)
        known: dict[tuple[str, ...], list[Spread]] = {}
        for i, spread in enumerate(of_kind):
            known.setdefault(spread.models or (f"group {i}",), []).append(spread)
        freedom = sum(same[0].freedom for same in known.values())
        summed = sum(same[0].freedom * float(np.mean([s.variance for s in same])) for same in known.values())
        common[kind] = (summed / freedom, freedom) if known else (np.nan, np.nan)

    def filled(one: Estimate) -> Estimate:
        variance, freedom = common[one.scale, one.part]
        spreads = (
            s if s.seeds > 1 else replace(s, variance=variance, freedom=freedom, is_common=True) for s in one.spreads
        )
        return replace(one, spreads=tuple(spreads))

    return [filled(one) for one in estimates]


# Statistics of a seed's prompts, [..., example, part] → [...]


def log_median(values: Float[ndarray, "... example part"]) -> Float[ndarray, ...]:
    """Return the logarithm of the median; of more parts than one, by how much their first half is above the second."""
    with np.errstate(divide="ignore", invalid="ignore"):
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


def log_spread_of_logs(values: Float[ndarray, "... example part"]) -> Float[ndarray, ...]:
    """Return the logarithm of that distance of the logarithms of the values: by how many times they differ."""
    with np.errstate(divide="ignore"):
        return log_spread(np.log(values))
