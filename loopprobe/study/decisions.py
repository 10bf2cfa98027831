"""Decisions: from the intervals of a claim's findings to its verdict, and what an undecided claim would take.

An interval supports a rule when all of it obeys, contradicts it when all of it breaks the rule, and otherwise leaves it
undecided. What a claim says first is about the mean over the findings of each of its parts (over kinds of models, say),
or about every finding where a mean would hide opposite ones. These primary estimates all must hold, which is tested by
the 95 % interval of each: that takes no correction for their number, since a claim of which any part is wrong passes
only if that part passes (the intersection-union test, Berger 1982). If one does not hold they are looked at one by one,
by the wider intervals that hold together (``estimates``), and so are the findings. A claim is mixed when anything
supports and anything contradicts it, contradicted when something does and nothing supports it, supported when all
primary estimates do, and else undecided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from loopprobe.study.estimates import Estimate, Interval, intervals, on_average, with_common
from loopprobe.study.rules import Rule

Status = Literal["supported", "contradicted", "undecided"]
STATUSES: tuple[Status, ...] = get_args(Status)
Outcome = Literal["supported", "mixed", "contradicted", "undecided"]
MOST_SEEDS = 50  # that an undecided claim is said to take


def held(interval: Interval, rule: Rule) -> Status:
    """Hold an interval against a rule; one that is not finite decides nothing."""
    low, high = interval
    if rule.low <= low and high <= rule.high:
        return "supported"
    return "contradicted" if high < rule.low or low > rule.high else "undecided"


def statuses(estimates: Sequence[Estimate]) -> list[Status]:
    """Return the status of every finding: by the own intervals if all support, else by those that hold together."""
    for together in (False, True):
        ends = intervals(estimates, together=together)
        found = [held(interval, one.rule) for interval, one in zip(ends, estimates, strict=True)]
        if set(found) == {"supported"}:
            break
    return found


@dataclass(frozen=True)
class Parts:
    """What a claim is decided by.

    Attributes:
        primary: the means over findings, the findings that must hold each, and those that are alone in their part.
        findings: all findings.
    """

    primary: tuple[Estimate, ...]
    findings: tuple[Estimate, ...]

    @property
    def means(self) -> tuple[Estimate, ...]:
        """The primary estimates that are no findings."""
        return tuple(one for one in self.primary if one not in self.findings)

    @property
    def outcome(self) -> Outcome:
        """The verdict that follows; without any finding a claim is undecided."""
        primary = statuses(self.primary)
        found = {*primary, *statuses(self.findings)}
        if "contradicted" in found:
            return "mixed" if "supported" in found else "contradicted"
        return "supported" if set(primary) == {"supported"} else "undecided"

    def without_prompts(self) -> Parts:
        """Return the same from prompts without end."""
        return self._each(lambda one: replace(one, of_prompts=0.0))

    def with_seeds(self, seeds: int) -> Parts:
        """Return the same from at least so many seeds of every kind of model."""

        def more(one: Estimate) -> Estimate:
            spreads = (
                replace(s, seeds=seeds, freedom=seeds - 1, is_common=False) if s.seeds < seeds else s
                for s in one.spreads
            )
            return replace(one, spreads=tuple(spreads))

        return self._each(more)

    def _each(self, changed: Callable[[Estimate], Estimate]) -> Parts:
        return Parts(tuple(map(changed, self.primary)), tuple(map(changed, self.findings)))


def parts(estimates: Sequence[Estimate]) -> Parts:
    """Return what a claim is decided by, from its findings."""
    findings = with_common(estimates)
    grouped: dict[tuple[str, str, Rule], list[Estimate]] = {}
    for one in findings:
        grouped.setdefault((one.part, one.scale, one.rule), []).append(one)
    primary: list[Estimate] = []
    for (_, _, rule), members in grouped.items():
        primary += members if rule.each or len(members) == 1 else [on_average(members)]
    return Parts(tuple(primary), tuple(findings))


def would_take(found: Parts) -> str:
    """Say what would decide a claim that is undecided, if its estimates and variances stayed as they are.

    Returns:
        Whether prompts without end would decide it, and how many seeds a group would.
    """
    if not found.findings:
        return "its models are not here"
    if found.without_prompts().outcome != "undecided":
        return "more prompts would decide it, for seeds differ little"
    if any(np.isnan(s.variance) for one in found.primary for s in one.spreads):
        return "it takes a second seed: one does not tell how much seeds differ"
    for parts_then, and_more in ((found, ""), (found.without_prompts(), " and more prompts")):
        for seeds in range(2, MOST_SEEDS + 1):
            if parts_then.with_seeds(seeds).outcome != "undecided":
                alone = " alone" if and_more else ""
                needed = f"{seeds} seeds of every kind of model{and_more}"
                return f"more prompts{alone} would not decide it, {needed} would"
    return f"neither more prompts nor {MOST_SEEDS} seeds would decide it: an estimate is too near the end of its range"
