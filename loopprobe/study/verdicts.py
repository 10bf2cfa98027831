"""Verdicts on claims: a claim is a set of findings, each an estimate with its intervals held against a rule.

How they are decided is told in ``decisions``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.table import Table

from loopprobe.show.tables.plain import titled
from loopprobe.study.decisions import STATUSES, Outcome, Status, parts, statuses, would_take
from loopprobe.study.estimates import BOUNDS, Estimate, Interval, Scale, intervals

ONE_SEED = "one seed does not tell how much seeds differ"
NO_NUMBER = "it is no finite number"


@dataclass(frozen=True)
class Finding:
    """One estimate with its interval, held against a rule.

    Attributes:
        what: the estimate in words.
        estimate, low, high: the estimate and both ends of its 95 % interval.
        low_together, high_together: both ends of its interval that holds together with those of the other findings.
        scale: the kind of number.
        seeds: the number of seeds of each group.
        rule, why: the range that the claim states and the reason for its ends, in words.
        least, most: its ends, which may be infinite.
        status: the status that follows.
        reason: why there is no interval; empty where there is one.
        part: the part of the claim that it is about; empty of a claim of one part.
        per_seed: the number of every seed of each group, of ratios their logarithms.
    """

    what: str
    estimate: float
    low: float
    high: float
    low_together: float
    high_together: float
    scale: Scale
    seeds: tuple[int, ...]
    rule: str
    why: str
    least: float
    most: float
    status: Status
    reason: str = ""
    part: str = ""
    per_seed: tuple[tuple[float, ...], ...] = ()

    @property
    def of_seeds(self) -> str:
        """The number of seeds of its groups in words; of findings about no other models, that they are alone."""
        if len(self.seeds) <= 2:
            return " and ".join(map(str, self.seeds)) or "these alone"
        least, most = min(self.seeds), max(self.seeds)
        return f"{least} each" if least == most else f"{least} to {most}"


@dataclass(frozen=True)
class Verdict:
    """A claim, its outcome, and the findings that decided it.

    Attributes:
        section: the section of the study.
        claim: the claim in the study's words.
        status: supported, mixed, contradicted or undecided.
        findings: the evidence.
        means: the means over the findings of each part of the claim that has several, unless every one must hold.
        halved, doubled: the outcome if every threshold were half or twice as far from its neutral value; None where
            one would be at the end of what the number can be.
        takes: what would decide it; empty where it is decided.
        control: the verdict on the same claim for models of the study's own recipe; None where that is not asked.
        by: whose claim it is; empty: nobody's.
    """

    section: str
    claim: str
    status: Outcome
    findings: tuple[Finding, ...] = ()
    means: tuple[Finding, ...] = ()
    halved: Outcome | None = "undecided"
    doubled: Outcome | None = "undecided"
    takes: str = ""
    control: Verdict | None = None
    by: str = ""

    def count(self, status: Status) -> int:
        """Return the number of findings with a status."""
        return sum(finding.status == status for finding in self.findings)

    @property
    def size(self) -> tuple[float, float, float]:
        """The effect: the first mean, or the only finding, with its 95 % interval.

        Where every finding must hold it is their median with the range over them. There must be a finding; of several
        kinds of numbers those of the first count.
        """
        first = self._first
        if self.means or len(first) == 1:
            return first[0].estimate, first[0].low, first[0].high
        values = [one.estimate for one in first]
        return float(np.median(values)), min(values), max(values)

    @property
    def _first(self) -> list[Finding]:
        """The means and findings of the first kind of number."""
        return [one for one in (*self.means, *self.findings) if one.scale == self.findings[0].scale]

    @property
    def effect(self) -> str:
        """The effect in words."""
        if not self.findings:
            return "–"
        middle, low, high = self.size
        ends = "" if self.means or len(self._first) == 1 else "findings from "  # a range is no interval
        return f"{self.findings[0].scale} {middle:.3g}" + (f" ({ends}{low:.3g} to {high:.3g})" if low < high else "")

    @property
    def span(self) -> str:
        """The range over the findings that the effect is the mean or the median of."""
        if not self.findings:
            return "–"
        first = self.findings[0]
        values = [one.estimate for one in self.findings if (one.scale, one.part) == (first.scale, first.part)]
        return f"{min(values):.3g} to {max(values):.3g}" if len(values) > 1 else f"{values[0]:.3g}"

    @property
    def control_status(self) -> str:
        """The outcome for models of the study's own recipe; a dash where there are none."""
        return self.control.status if self.control and self.control.findings else "–"

    def moved(self, outcome: Outcome | None) -> str:
        """Return what follows from moved thresholds in words: the outcome, that it is the same, or a dash."""
        return "–" if outcome is None or not self.findings else "same" if outcome == self.status else outcome

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        control = None if self.control is None else self.control.to_dict()
        return asdict(replace(self, control=None)) | {"effect": self.effect, "control": control}


def conclude(section: str, claim: str, estimates: Iterable[Estimate]) -> Verdict:
    """Decide a claim by its estimates; without any it is undecided."""
    estimates = tuple(estimates)
    found = parts(estimates)
    findings, primary = (_findings(of_kind) for of_kind in (found.findings, found.primary))
    means = tuple(finding for finding, one in zip(primary, found.primary, strict=True) if one in found.means)
    halved, doubled = (_if_moved(estimates, factor) for factor in (0.5, 2.0))
    reached = found.outcome
    takes = would_take(found) if reached == "undecided" else ""
    return Verdict(section, claim, reached, findings, means, halved, doubled, takes)


def _if_moved(estimates: Sequence[Estimate], factor: float) -> Outcome | None:
    """Return the outcome with thresholds ``factor`` times as far from their neutral values, see ``Verdict``."""
    moved = [replace(one, rule=one.rule.scaled(factor)) for one in estimates]
    for one in moved:
        least, most = BOUNDS[one.scale]
        if any(np.isfinite(end) and not least < end < most for end in (one.rule.low, one.rule.high)):
            return None
    return parts(moved).outcome


def _findings(estimates: Sequence[Estimate]) -> tuple[Finding, ...]:
    ends = (intervals(estimates, together=together) for together in (False, True))
    return tuple(map(_finding, estimates, *ends, statuses(estimates)))


def _finding(one: Estimate, own: Interval, together: Interval, status: Status) -> Finding:
    value = float(np.exp(one.value)) if one.scale == "ratio" else one.value
    reason = ""
    if np.isnan(own).any():
        reason = ONE_SEED if np.isfinite([one.value, one.of_prompts]).all() else NO_NUMBER
    seeds = tuple(spread.seeds for spread in one.spreads)
    rule = one.rule
    ends = rule.low, rule.high
    claimed = str(rule), rule.why
    return Finding(
        one.what, value, *own, *together, one.scale, seeds, *claimed, *ends, status, reason, one.part, one.per_seed
    )


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
