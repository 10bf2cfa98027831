"""Decisions: from the intervals of a claim's findings to its verdict, and what an undecided claim would take.

An interval supports a rule when all of it obeys, contradicts it when all of it breaks the rule, and otherwise leaves it
undecided. A claim says that all of its findings hold. It is supported when the 95 % interval of every finding supports
its rule: that takes no correction for their number, since a claim of which any part is wrong passes only if that part
passes (the intersection-union test, Berger 1982). Otherwise findings are looked at one by one, by the wider intervals
that hold together (``estimates``): the claim is mixed when some support and some contradict, contradicted when some do
and none supports, and else undecided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from loopprobe.study.estimates import Estimate, Interval, intervals, pooled
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


def outcome(found: Sequence[Status]) -> Outcome:
    """Return the verdict that follows from the findings; without any a claim is undecided."""
    if "contradicted" in found:
        return "mixed" if "supported" in found else "contradicted"
    return "supported" if set(found) == {"supported"} else "undecided"


def would_take(estimates: Sequence[Estimate]) -> str:
    """Say what would decide a claim that is undecided, if its estimates and variances stayed as they are.

    Returns:
        Whether prompts without end would decide it, and how many seeds a group would.
    """
    if not estimates:
        return "its models are not here"
    if outcome(statuses([replace(one, of_prompts=0.0) for one in estimates])) != "undecided":
        return "more prompts would decide it, for seeds differ little"
    common = pooled(estimates)
    if any(n < 2 and np.isnan(common[one.scale][0]) for one in estimates for _, n in one.spreads):
        return "it takes a second seed: one does not tell how much seeds differ"
    for seeds in range(2, MOST_SEEDS + 1):
        more = [
            replace(
                one,
                spreads=tuple((v if n > 1 else common[one.scale][0], max(n, seeds)) for v, n in one.spreads),
            )
            for one in estimates
        ]
        if outcome(statuses(more)) != "undecided":
            return f"more prompts would not decide it, {seeds} seeds of every kind of model would"
    return f"neither more prompts nor {MOST_SEEDS} seeds would decide it: an estimate is too near the end of its range"
