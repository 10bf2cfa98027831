"""Claims decided on results: a claim is a set of findings, each a ratio with its interval held against a rule.

Ratios of mean errors are bootstrapped over prompts, which all models of a task share, so that pairs stay paired,
and over seeds where there are several. A finding is supported when its whole interval obeys the rule, contradicted
when all of it breaks the rule, undecided otherwise; a claim is supported when all of its findings are, contradicted
when any is.
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
        low, high: its ends; -inf and inf for none.
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
    """At most ``high``."""
    return Rule(high=high)


def above(low: float) -> Rule:
    """At least ``low``."""
    return Rule(low=low)


def about_equal(factor: float) -> Rule:
    """A ratio that is one within ``factor`` to either side."""
    return Rule(1 / factor, factor)


@dataclass(frozen=True)
class Finding:
    """One estimate with its 95 % interval, held against a rule.

    Attributes:
        what: in words.
        estimate, low, high: the number.
        rule: what the claim says it is.
        status: what follows.
    """

    what: str
    estimate: float
    low: float
    high: float
    rule: str
    status: Status


@dataclass(frozen=True)
class Verdict:
    """A claim, what became of it, and the findings that decided.

    Attributes:
        section: of the study.
        claim: in the study's words.
        status: supported, contradicted or undecided.
        findings: the evidence.
    """

    section: str
    claim: str
    status: Status
    findings: tuple[Finding, ...] = ()

    def count(self, status: Status) -> int:
        """How many of the findings are so."""
        return sum(finding.status == status for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def decide(what: str, estimate: float, interval: tuple[float, float], rule: Rule) -> Finding:
    """Hold an interval against a rule; one that is not finite decides nothing."""
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
    """A claim holds when all of its findings do, and falls with any of them; without findings it is undecided."""
    findings = tuple(findings)
    found = {finding.status for finding in findings}
    status: Status = "undecided"
    if "contradicted" in found:
        status = "contradicted"
    elif found == {"supported"}:
        status = "supported"
    return Verdict(section, claim, status, findings)


def bootstrap(
    statistic: Callable[..., Any], *groups: Float[ndarray, "_ example ..."], seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """An estimate and its 95 % percentile interval over prompts and seeds.

    Prompts are resampled jointly for all groups, which keeps them paired; seeds within each group, since seed i
    of one group has nothing in common with seed i of another (Davison and Hinkley 1997, section 3.8). With one
    seed the interval is over prompts only.

    Args:
        statistic: from the values of each group (means over its seeds), [..., example], to numbers [...]; where groups
            have more dimensions than seed and example, the values have them too.
        groups: values per seed and prompt, with the same prompts.
        seed: of the resampling.
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
    """Mean over mean."""
    return numerator.mean(-1) / denominator.mean(-1)


def difference_of_means(one: Float[ndarray, "... example"], other: ndarray) -> Float[ndarray, ...]:
    """Mean minus mean."""
    return one.mean(-1) - other.mean(-1)


def ratio_of_spreads(numerator: Float[ndarray, "... example"], denominator: ndarray) -> Float[ndarray, ...]:
    """Standard deviation over standard deviation."""
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


def verdict_table(decided: Sequence[Verdict]) -> Table:
    """One row a claim, with how many of its findings support it."""
    table = titled("claims of the study")
    for name in ("section", "claim", "verdict", *STATUSES):
        table.add_column(name, justify="left" if name in ("section", "claim", "verdict") else "right")
    for verdict in decided:
        counts = (str(verdict.count(status)) for status in STATUSES)
        table.add_row(verdict.section, verdict.claim, verdict.status, *counts)
    return table
