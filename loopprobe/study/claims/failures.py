"""Claims of this project, section R13: prompts that fail when the loop goes on.

A finding is about kinds of models of which every seed has at least five prompts that fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float
from numpy import ndarray

from loopprobe.probes.failures import BEFORE, LASTING, RIGHT, leads
from loopprobe.study.claims.evidence import (
    OURS,
    R13_FAILURES,
    Claim,
    Evidence,
    Kind,
    Seeds,
    answers,
    group,
    kinds,
    of_seeds,
    side_by_side,
)
from loopprobe.study.claims.thresholds import GROWS, RETURNS, TOLD
from loopprobe.study.estimates import Estimate, estimate
from loopprobe.support.statistics import auc

LEAST = 5  # prompts of a seed that fail
LEAD = -5  # loops before the first failure


def _failing(evidence: Evidence) -> Iterator[tuple[Kind, Sequence[xr.Dataset], Seeds]]:
    """Yield kinds of models with their seeds, and which prompts fail that were right after the trained loops."""
    for kind, seeds in kinds(answers(evidence, R13_FAILURES)).items():
        failing = of_seeds(seeds, (data.onset.notnull() for data in seeds))
        if failing.sum("example").min() >= LEAST:
            yield kind, seeds, failing


def r13_returns(evidence: Evidence) -> Iterator[Estimate]:
    for kind, seeds, failing in _failing(evidence):
        back = of_seeds(seeds, (data.onset.notnull() & (data.prompt_course != LASTING) for data in seeds))
        what = f"{kind}: share of the prompts that fail which are right again later"
        yield estimate(what, RETURNS, "share", group(side_by_side(back, failing).astype(float), _share_among))


def r13_announced(evidence: Evidence) -> Iterator[Estimate]:
    for kind, seeds, _ in _failing(evidence):
        ratios = of_seeds(seeds, map(_lead, seeds))
        what = f"{kind}: step of the query's state {-LEAD} loops before a failure, over that of prompts that stay right"
        yield estimate(what, GROWS, "ratio", group(ratios, _log_median_known))


def r13_foreseen(evidence: Evidence) -> Iterator[Estimate]:
    for kind, seeds, failing in _failing(evidence):
        signs = of_seeds(seeds, (data.seen.sel(sign="state's step") for data in seeds))
        counted = of_seeds(seeds, (data.prompt_course != BEFORE for data in seeds))
        values = side_by_side(signs, failing, counted).astype(float)
        what = f"{kind}: how well the state's step after {kind.loops} loops tells which prompts will fail (area)"
        yield estimate(what, TOLD, "share", group(values, _area))


def _lead(data: xr.Dataset) -> Float[ndarray, " example"]:
    """Return how much the state of every prompt moves before it fails, over what those move that stay right."""
    is_right = data.prompt_course.values == RIGHT
    return leads(data.query_step.values, data.onset.values, is_right, np.array([LEAD]))[0]


def _share_among(values: Float[ndarray, "... example part"]) -> Float[ndarray, ...]:
    """The share of the prompts that the second part counts which the first counts too."""
    counted = values.sum(-2)
    with np.errstate(invalid="ignore"):
        return np.asarray(counted[..., 0] / counted[..., 1])


def _log_median_known(values: Float[ndarray, "... example part"]) -> Float[ndarray, ...]:
    """The logarithm of the median of what is known; NaN where nothing is."""
    flat = values[..., 0].reshape(-1, values.shape[-2])
    known = (row[np.isfinite(row)] for row in flat)
    return np.array([np.log(np.median(row)) if len(row) else np.nan for row in known]).reshape(values.shape[:-2])


def _area(values: Float[ndarray, "... example part"]) -> Float[ndarray, ...]:
    """The area under the ROC curve of a sign, of [sign, fails, counts] for every prompt."""
    rows = np.moveaxis(values.reshape(-1, *values.shape[-2:]), -1, 1)
    areas = [auc(sign[(counts > 0) & (fails > 0)], sign[(counts > 0) & (fails == 0)]) for sign, fails, counts in rows]
    return np.array(areas).reshape(values.shape[:-2])


CLAIMS: tuple[Claim, ...] = (
    Claim("R13", "most prompts that fail beyond the training are right again later", r13_returns, OURS),
    Claim("R13", "before a prompt fails its state moves more than those of others", r13_announced, OURS),
    Claim(
        "R13", "how far its state moves in the last trained loop tells whether a prompt will fail", r13_foreseen, OURS
    ),
)
