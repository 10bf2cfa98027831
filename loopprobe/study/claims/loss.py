"""Claims of this project, section R9: the effect of the training loss on the fixed point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import xarray as xr

from loopprobe.study.claims.evidence import (
    OURS,
    R9_CONVERGE,
    Claim,
    Evidence,
    Kind,
    answers,
    far,
    group,
    kinds,
    ratio,
    side_by_side,
)
from loopprobe.study.claims.thresholds import HIGHER, LOWER
from loopprobe.study.estimates import Estimate, estimate, log_median


def _pairs(evidence: Evidence) -> Iterator[tuple[Kind, Sequence[xr.Dataset], Sequence[xr.Dataset]]]:
    """Yield models that differ in the loss alone, with the logarithm and with the mean squared error."""
    by_kind = kinds(answers(evidence, R9_CONVERGE))
    for kind, squared in by_kind.items():
        if (log := by_kind.get(replace(kind, loss="log"))) and kind.loss == "mse":
            yield kind, log, squared


def r9_lower(evidence: Evidence) -> Iterator[Estimate]:
    for kind, log, squared in _pairs(evidence):
        errors = far(log, kind.loops), far(squared, kind.loops)
        yield ratio(f"{kind}: error after {kind.loops} loops, log loss over mean squared error", *errors, LOWER)


def r9_lost(evidence: Evidence) -> Iterator[Estimate]:
    for kind, log, squared in _pairs(evidence):
        last = int(log[0].loop[-1])
        log_growth, squared_growth = (
            group(side_by_side(far(data), far(data, kind.loops)), log_median) for data in (log, squared)
        )
        what = f"{kind}: growth of the error from {kind.loops} to {last} loops, log loss over mean squared error"
        yield estimate(what, HIGHER, "ratio", log_growth, squared_growth)


CLAIMS: tuple[Claim, ...] = (
    Claim("R9", "trained on the logarithms of its errors, a loop is better after b loops", r9_lower, OURS),
    Claim("R9", "and its error grows more when the loop goes on", r9_lost, OURS),
)
