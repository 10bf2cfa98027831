"""Claims of this project, section R9: the effect of the training loss on the fixed point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import xarray as xr
from jaxtyping import Float
from numpy import ndarray

from loopprobe.study.claims.evidence import R9_CONVERGE, Claim, Evidence, Kind, answers, far, kinds
from loopprobe.study.verdicts import Finding, above, below, bootstrap, decide, hold_ratio


def _pairs(evidence: Evidence) -> Iterator[tuple[Kind, Sequence[xr.Dataset], Sequence[xr.Dataset]]]:
    """Yield models that differ in the loss alone, with the logarithm and with the mean squared error."""
    by_kind = kinds(answers(evidence, R9_CONVERGE))
    for kind, squared in by_kind.items():
        if (log := by_kind.get(replace(kind, loss="log"))) and kind.loss == "mse":
            yield kind, log, squared


def r9_lower(evidence: Evidence) -> Iterator[Finding]:
    for kind, log, squared in _pairs(evidence):
        errors = far(log, kind.loops), far(squared, kind.loops)
        yield hold_ratio(f"{kind}: error after {kind.loops} loops, log loss over mean squared error", *errors, below(1))


def r9_lost(evidence: Evidence) -> Iterator[Finding]:
    for kind, log, squared in _pairs(evidence):
        last = int(log[0].loop[-1])
        ends = [np.stack([far(data), far(data, kind.loops)], axis=-1) for data in (log, squared)]  # of the same seeds
        growth = bootstrap(lambda a, b: _growth(a) / _growth(b), *ends)
        what = f"{kind}: growth of the error from {kind.loops} to {last} loops, log loss over mean squared error"
        yield decide(what, *growth, above(1))


def _growth(ends: Float[ndarray, "... example end"]) -> Float[ndarray, ...]:
    """Return the mean error at the first end over that at the second."""
    means = ends.mean(-2)
    return means[..., 0] / means[..., 1]


CLAIMS: tuple[Claim, ...] = (
    ("R9", "trained on the logarithms of its errors, a loop is better after b loops", r9_lower),
    ("R9", "and loses more of it when the loop goes on", r9_lost),
)
