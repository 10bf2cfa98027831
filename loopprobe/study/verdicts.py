"""Verdicts on claims: a claim is a set of findings, each an estimate with its interval held against a rule.

A finding is supported when its whole interval obeys the rule, contradicted when all of it breaks the rule, and
undecided otherwise. A claim is supported when all of its findings are, mixed when some are supported and some
contradicted, contradicted when some are and none is supported, and else undecided. Since the intervals of a claim hold
together (``estimates``), so do its findings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from rich.table import Table

from loopprobe.show.tables.common import titled
from loopprobe.study.estimates import Estimate, Scale, intervals
from loopprobe.study.rules import Rule

Status = Literal["supported", "contradicted", "undecided"]
STATUSES: tuple[Status, ...] = get_args(Status)
Outcome = Literal["supported", "mixed", "contradicted", "undecided"]
ONE_SEED = "one seed does not tell how much seeds differ"
NO_NUMBER = "it is no finite number"


@dataclass(frozen=True)
class Finding:
    """One estimate with its interval, held against a rule.

    Attributes:
        what: the estimate in words.
        estimate, low, high: the estimate and both ends of its interval.
        scale: the kind of number.
        seeds: the number of seeds of each group.
        rule: the range that the claim states, in words.
        least, most: its ends, which may be infinite.
        status: the status that follows.
        reason: why there is no interval; empty where there is one.
    """

    what: str
    estimate: float
    low: float
    high: float
    scale: Scale
    seeds: tuple[int, ...]
    rule: str
    least: float
    most: float
    status: Status
    reason: str = ""


@dataclass(frozen=True)
class Verdict:
    """A claim, its outcome, and the findings that decided it.

    Attributes:
        section: the section of the study.
        claim: the claim in the study's words.
        status: supported, mixed, contradicted or undecided.
        findings: the evidence.
        halved, doubled: the outcome if every threshold were half or twice as far from no effect.
    """

    section: str
    claim: str
    status: Outcome
    findings: tuple[Finding, ...] = ()
    halved: Outcome = "undecided"
    doubled: Outcome = "undecided"

    def count(self, status: Status) -> int:
        """Return the number of findings with a status."""
        return sum(finding.status == status for finding in self.findings)

    @property
    def effect(self) -> str:
        """The effect size in one number, the median of the findings of the first kind, with the range over them."""
        if not self.findings:
            return "–"
        scale = self.findings[0].scale
        values = [finding.estimate for finding in self.findings if finding.scale == scale]
        words = f"{scale} {np.median(values):.3g}"
        return words if len(values) == 1 else f"{words} ({min(values):.3g} to {max(values):.3g})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self) | {"effect": self.effect}


def decide(one: Estimate, interval: tuple[float, float], rule: Rule | None = None) -> Finding:
    """Hold the interval of an estimate against its rule, or another; one that is not finite decides nothing."""
    rule = rule or one.rule
    low, high = interval
    value = float(np.exp(one.value)) if one.scale == "ratio" else one.value
    status: Status = "undecided"
    reason = ""
    if np.isnan([low, high]).any():
        reason = NO_NUMBER if not np.isfinite([one.value, one.of_prompts]).all() else ONE_SEED
    elif rule.low <= low and high <= rule.high:
        status = "supported"
    elif high < rule.low or low > rule.high:
        status = "contradicted"
    seeds = tuple(n for _, n in one.spreads)
    ends = rule.low, rule.high
    return Finding(one.what, value, float(low), float(high), one.scale, seeds, str(rule), *ends, status, reason)


def conclude(section: str, claim: str, estimates: Iterable[Estimate]) -> Verdict:
    """Decide a claim by its estimates; without any it is undecided."""
    estimates = tuple(estimates)
    ends = intervals(estimates)
    by_factor = {
        factor: tuple(
            decide(one, interval, one.rule.scaled(factor)) for one, interval in zip(estimates, ends, strict=True)
        )
        for factor in (1.0, 0.5, 2.0)
    }
    outcomes = [_outcome(findings) for findings in by_factor.values()]
    return Verdict(section, claim, outcomes[0], by_factor[1.0], *outcomes[1:])


def _outcome(findings: Sequence[Finding]) -> Outcome:
    statuses = {finding.status for finding in findings}
    if "contradicted" in statuses:
        return "mixed" if "supported" in statuses else "contradicted"
    return "supported" if statuses == {"supported"} else "undecided"


def verdict_table(decided: Sequence[Verdict]) -> Table:
    """Tabulate the claims, one row each, with the number of findings of every status and the effect."""
    table = titled("claims of the study")
    left = ("section", "claim", "verdict", "effect")
    for name in ("section", "claim", "verdict", *STATUSES, "effect"):
        table.add_column(name, justify="left" if name in left else "right")
    for verdict in decided:
        counts = (str(verdict.count(status)) for status in STATUSES)
        table.add_row(verdict.section, verdict.claim, verdict.status, *counts, verdict.effect)
    return table
