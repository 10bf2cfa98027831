"""Claims about loops of several layers, sections R6 and R7: when the loop goes on, and in training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import xarray as xr
from jaxtyping import Bool
from numpy import ndarray

from loopprobe.dynamics.trajectory import for_good
from loopprobe.study.claims.evidence import (
    OURS,
    R6_CONVERGE,
    R7_CURVES,
    Claim,
    Evidence,
    Kind,
    answers,
    at_rest,
    difference,
    failed,
    far,
    group,
    kinds,
    of_seeds,
    ratio,
)
from loopprobe.study.claims.thresholds import A_PLACE_LOWER, LOWER, LOWER_EACH, MORE, NO_MORE
from loopprobe.study.estimates import Estimate, estimate, log_median
from loopprobe.study.rules import Rule
from loopprobe.support.statistics import moving_mean


def _deeper(evidence: Evidence) -> Iterator[tuple[Kind, list[xr.Dataset], Kind, list[xr.Dataset]]]:
    """Yield each model with twice the layers beside the model with fewer."""
    by_kind = kinds(answers(evidence, R6_CONVERGE))
    for kind in by_kind:
        deeper = replace(kind, layers=2 * kind.layers)
        if deeper in by_kind:
            yield deeper, by_kind[deeper], kind, by_kind[kind]


def _errors(evidence: Evidence, rule: Rule) -> Iterator[tuple[Estimate, Estimate]]:
    """Estimate how errors and failures differ where the layers are twice as many."""
    for deeper, more, kind, fewer in _deeper(evidence):
        one, other = far(more), far(fewer)
        of_errors = ratio(f"error after the last loop: {deeper} over L {kind.layers}", one, other, rule)
        what = f"share of failures after the last loop: {deeper} minus L {kind.layers}"
        yield of_errors, difference(what, failed(one), failed(other), NO_MORE)


def r6_more_layers(evidence: Evidence) -> Iterator[Estimate]:
    for both in _errors(evidence, LOWER):
        yield from both


def r6_decimal_places(evidence: Evidence) -> Iterator[Estimate]:
    for of_errors, _ in _errors(evidence, A_PLACE_LOWER):
        yield of_errors


def r6_rests(evidence: Evidence) -> Iterator[Estimate]:
    for deeper, more, kind, fewer in _deeper(evidence):
        followed = all("limit" in data for data in (*more, *fewer))
        if followed and at_rest(fewer).mean() <= 1 - MORE.low:  # nearly all leave no room for more
            what = f"share of tokens at or approaching a fixed point: {deeper} minus L {kind.layers}"
            yield difference(what, at_rest(more), at_rest(fewer), MORE)


def r6_every_seed(evidence: Evidence) -> Iterator[Estimate]:
    for deeper, more, kind, fewer in _deeper(evidence):
        worst = group(far(more), log_median, "most")
        best = group(far(fewer), log_median, "least")
        what = f"error after the last loop: the worst seed of {deeper} over the best of L {kind.layers}"
        yield estimate(what, LOWER_EACH, "ratio", worst, best)


def falls_at(data: xr.Dataset) -> float:
    """Return the first step at which the smoothed query error is below 0.1 for good, or infinity."""
    return _for_good(data, moving_mean(data["error"].values, data.step.values) < 0.1)


def flattens_at(data: xr.Dataset) -> float:
    """Return the first step from which the smoothed loss stays within a tenth of its last value."""
    loss = moving_mean(data["loss"].values, data.step.values)
    return _for_good(data, np.abs(loss / loss[-1] - 1) < 0.1)


def _for_good(data: xr.Dataset, holds: Bool[ndarray, " step"]) -> float:
    """Return the first step from which a condition holds to the end, or infinity."""
    first = for_good(holds)
    return np.inf if np.isnan(first) else float(data.step[int(first) - 1])


def r7_earlier(evidence: Evidence) -> Iterator[Estimate]:
    by_kind = kinds(answers(evidence, R7_CURVES))
    for kind in (kind for kind in by_kind if kind.layers == 1):
        for layers in (2, 4):
            deeper = replace(kind, layers=layers)
            if deeper not in by_kind:
                continue
            for what, measure in (("the query error falls", falls_at), ("the loss flattens", flattens_at)):
                one, more = (
                    group(of_seeds(by_kind[k], ([measure(d)] for d in by_kind[k])), log_median) for k in (kind, deeper)
                )
                words = f"step at which {what}: {kind} over L {layers}"
                yield estimate(words, LOWER, "ratio", one, more, part=what)


CLAIMS: tuple[Claim, ...] = (
    Claim("R6", "more layers give a better fixed point", r6_more_layers),
    Claim("R6", "this holds for every T and seed", r6_every_seed),
    Claim("R6", "it is better by decimal places", r6_decimal_places),
    Claim("R6", "with more layers more tokens come to a fixed point", r6_rests, OURS),
    Claim("R7", "at equal b, the loss of L = 1 falls and flattens earlier than that of L = 2 and 4", r7_earlier),
)
