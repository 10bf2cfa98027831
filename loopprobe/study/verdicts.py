"""Verdicts on claims: a claim is a set of findings, each a ratio with its interval held against a rule.

Ratios of mean errors are bootstrapped over prompts and, where there are several, over seeds. All models of a task
share the prompts, so pairs stay paired. A finding is supported when its whole interval obeys the rule, contradicted
when all of it breaks the rule, and undecided otherwise. A claim is supported when all of its findings are, and
contradicted when any of them is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from rich.table import Table

from loopprobe.show.tables.common import titled

Status = Literal["supported", "contradicted", "undecided"]
STATUSES: tuple[Status, ...] = get_args(Status)
RESAMPLES = 2000


@dataclass(frozen=True)
class Rule:
    """A range that an estimate must lie in.

    Attributes:
        low, high: the ends of the range; -inf and inf stand for no end.
    """

    low: float = -np.inf
    high: float = np.inf

    def __str__(self) -> str:
        if self.low == -np.inf:
            return f"below {self.high:.3g}"
        if self.high == np.inf:
            return f"above {self.low:.3g}"
        return f"between {self.low:.3g} and {self.high:.3g}"


def below(high: float) -> Rule:
    """Return the rule that an estimate is at most ``high``."""
    return Rule(high=high)


def above(low: float) -> Rule:
    """Return the rule that an estimate is at least ``low``."""
    return Rule(low=low)


def about_equal(factor: float) -> Rule:
    """Return the rule that a ratio differs from one by at most ``factor`` in either direction."""
    return Rule(1 / factor, factor)


@dataclass(frozen=True)
class Finding:
    """One estimate with its 95 % interval, held against a rule.

    Attributes:
        what: the estimate in words.
        estimate, low, high: the estimate and both ends of its interval.
        rule: the range that the claim states.
        status: the status that follows.
    """

    what: str
    estimate: float
    low: float
    high: float
    rule: str
    status: Status


@dataclass(frozen=True)
class Verdict:
    """A claim, its status, and the findings that decided it.

    Attributes:
        section: the section of the study.
        claim: the claim in the study's words.
        status: supported, contradicted or undecided.
        findings: the evidence.
    """

    section: str
    claim: str
    status: Status
    findings: tuple[Finding, ...] = ()

    def count(self, status: Status) -> int:
        """Return the number of findings with a status."""
        return sum(finding.status == status for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def decide(what: str, estimate: float, interval: tuple[float, float], rule: Rule) -> Finding:
    """Hold an interval against a rule; an interval that is not finite decides nothing."""
    low, high = interval
    status: Status = "undecided"
    if not np.isfinite([low, high]).all():
        status = "undecided"
    elif rule.low <= low and high <= rule.high:
        status = "supported"
    elif high < rule.low or low > rule.high:
        status = "contradicted"
    return Finding(what, float(estimate), float(low), float(high), str(rule), status)


def conclude(section: str, claim: str, findings: Iterable[Finding]) -> Verdict:
    """Decide a claim by its findings.

    A claim holds when all of its findings do and falls with any of them. Without findings it is undecided.
    """
    findings = tuple(findings)
    statuses = {finding.status for finding in findings}
    status: Status = "undecided"
    if "contradicted" in statuses:
        status = "contradicted"
    elif statuses == {"supported"}:
        status = "supported"
    return Verdict(section, claim, status, findings)


def bootstrap(
    statistic: Callable[..., Any], *groups: Float[ndarray, "_ example ..."], seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Return an estimate and its 95 % percentile interval over prompts and seeds.

    Prompts are resampled jointly for all groups, which keeps them paired. Seeds are resampled within each group, since
    seed i of one group has nothing in common with seed i of another (Davison and Hinkley 1997, section 3.8). With one
    seed the interval is over prompts only.

    Args:
        statistic: maps the values of each group (means over its seeds), [..., example], to numbers [...]; where groups
            have more dimensions than seed and example, the values have them too.
        groups: the values per seed and prompt, with the same prompts.
        seed: the seed of the resampling.
    """
    generator = np.random.default_rng(seed)
    n = groups[0].shape[1]
    prompts = generator.integers(n, size=(RESAMPLES, n))
    drawn = []
    for group in groups:
        if len(group) == 1:
            drawn.append(group[0][prompts])
            continue
        counts = generator.multinomial(len(group), np.full(len(group), 1 / len(group)), size=RESAMPLES)
        means = np.tensordot(counts / len(group), group, axes=1)  # [resample, example, ...]
        drawn.append(means[np.arange(RESAMPLES)[:, None], prompts])
    estimate, draws = statistic(*(group.mean(0) for group in groups)), statistic(*drawn)
    low, high = np.quantile(draws, [0.025, 0.975]) if np.isfinite(draws).all() else (np.nan, np.nan)
    return float(estimate), (float(low), float(high))


def ratio_of_means(numerator: Float[ndarray, "... example"], denominator: ndarray) -> Float[ndarray, ...]:
    """Return the ratio of two means."""
    return numerator.mean(-1) / denominator.mean(-1)


def difference_of_means(one: Float[ndarray, "... example"], other: ndarray) -> Float[ndarray, ...]:
    """Return the difference of two means."""
    return one.mean(-1) - other.mean(-1)


def ratio_of_spreads(numerator: Float[ndarray, "... example"], denominator: ndarray) -> Float[ndarray, ...]:
    """Return the ratio of two standard deviations."""
    return numerator.std(-1) / denominator.std(-1)


def hold_ratio(
    what: str,
    numerator: Float[ndarray, "seed example"],
    denominator: Float[ndarray, "other_seed example"],
    rule: Rule,
    statistic: Callable[..., Any] = ratio_of_means,
) -> Finding:
    """Hold the ratio of two groups' errors against a rule."""
    return decide(what, *bootstrap(statistic, numerator, denominator), rule)


def hold_difference(
    what: str, one: Float[ndarray, "seed example"], other: Float[ndarray, "other_seed example"], rule: Rule
) -> Finding:
    """Hold the difference of two groups' means, of shares, against a rule."""
    return decide(what, *bootstrap(difference_of_means, one, other), rule)


def verdict_table(decided: Sequence[Verdict]) -> Table:
    """Tabulate the claims, one row each, with the number of findings of every status."""
    table = titled("claims of the study")
    for name in ("section", "claim", "verdict", *STATUSES):
        table.add_column(name, justify="left" if name in ("section", "claim", "verdict") else "right")
    for verdict in decided:
        counts = (str(verdict.count(status)) for status in STATUSES)
        table.add_row(verdict.section, verdict.claim, verdict.status, *counts)
    return table
