"""Claims of this project, section R14: circuits through loops.

What circuits keep is measured on prompts that did not choose them. Overlaps of circuits and cosines of loops have one
number a seed: how far they depend on prompts shows in how much seeds differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import xarray as xr
from jaxtyping import Float
from numpy import ndarray

from loopprobe.probes.circuit_overlap import overlaps
from loopprobe.probes.edges import lags
from loopprobe.study.claims.evidence import (
    OURS,
    R14_REGRESSION,
    R14_TOKENS,
    Claim,
    Evidence,
    answers,
    group,
    kinds,
    of_seeds,
)
from loopprobe.study.claims.thresholds import ALIKE, COMMON, GONE, KEEPS, SAME
from loopprobe.study.estimates import Estimate, Group, estimate

HUNDREDTH, TENTH = 0.01, 0.1  # of all edges
LAGS = {0: "within a loop", 1: "to the next loop"}


def _circuits(evidence: Evidence) -> Iterator[tuple[str, Sequence[xr.Dataset]]]:
    """Yield the kinds of models in words, with the circuits of their seeds."""
    for question in (R14_REGRESSION, R14_TOKENS):
        for kind, seeds in kinds(answers(evidence, question)).items():
            yield f"{kind.task} ({kind})", seeds


def _shares(name: str, seeds: Sequence[xr.Dataset], share: float) -> Group:
    """What the best edges keep, or what is left without them, prompt by prompt.

    Args:
        name: ``kept`` or ``left``.
        seeds: datasets of the circuit probe.
        share: of all edges; the nearest size that was run counts.
    """

    def moved(data: xr.Dataset) -> ndarray:
        size = share * data.attrs["possible"]
        moved = data[f"{name}_moved"].sel(set="ranked").sel(edges=size, method="nearest").values.astype(float)
        total = data.measured_total.values.astype(float)
        return np.stack([moved * total, total**2], axis=-1)

    return group(of_seeds(seeds, map(moved, seeds)), _share_kept)


def r14_keeps(share: float, words: str, evidence: Evidence) -> Iterator[Estimate]:
    for kind, seeds in _circuits(evidence):
        what = f"{kind}: share of the behaviour that {words} of the edges keeps"
        yield estimate(what, KEEPS, "share", _shares("kept", seeds, share))


def r14_needed(evidence: Evidence) -> Iterator[Estimate]:
    for kind, seeds in _circuits(evidence):
        what = f"{kind}: share of the behaviour that is left without the best hundredth of the edges"
        yield estimate(what, GONE, "share", _shares("left", seeds, HUNDREDTH))


def r14_seeds(evidence: Evidence) -> Iterator[Estimate]:
    for kind, seeds in _circuits(evidence):
        what = f"{kind}: edges in the best hundredth of two seeds over edges in one of them"
        yield estimate(what, SAME, "share", _of_pairs(seeds, lambda pairs: pairs.overlap.values))


def r14_chance(evidence: Evidence) -> Iterator[Estimate]:
    for kind, seeds in _circuits(evidence):
        what = f"{kind}: overlap of the best hundredths of two seeds minus that of random ones"
        of_pairs = _of_pairs(seeds, lambda pairs: (pairs.overlap - pairs.expected).values)
        yield estimate(what, COMMON, "difference", of_pairs)


def r14_same(evidence: Evidence) -> Iterator[Estimate]:
    for kind, seeds in _circuits(evidence):
        for lag, words in LAGS.items():
            similar = (lags(data.share).similarity.sel(lag=lag).dropna("from_loop")[:-1] for data in seeds)
            later = of_seeds(seeds, ([one[len(one) // 2 :].mean().item()] for one in similar))
            what = f"{kind}: cosine of the edges {words} that leave a loop of the second half and the last such loop"
            yield estimate(what, ALIKE, "correlation", group(later, _mean))


def _of_pairs(seeds: Sequence[xr.Dataset], number: Callable[[xr.Dataset], ndarray]) -> Group:
    """The mean over pairs of the best hundredths, as one pseudo-value a seed: their variance is that of the jackknife.

    A seed is in several pairs, which are not independent (Efron and Tibshirani 1993, section 11.5). Two seeds are one
    pair, which does not tell how much pairs differ.
    """
    n = len(seeds)
    pairs = overlaps([_best(data, HUNDREDTH).assign_coords(model=str(i)) for i, data in enumerate(seeds)])
    values = number(pairs)
    if n < 3:
        return Group(values[:, None], _mean)
    without = [values[(pairs.one.values != str(i)) & (pairs.other.values != str(i))].mean() for i in range(n)]
    return Group((n * values.mean() - (n - 1) * np.array(without))[:, None], _mean)


def _best(data: xr.Dataset, share: float) -> xr.Dataset:
    """The same dataset with a share of all edges, the best, as its circuit: circuits of one size can be compared."""
    size = max(1, round(share * data.attrs["possible"]))
    return data.assign(circuit=data["rank"] <= size).assign_attrs(found=size)


def _share_kept(values: Float[ndarray, "... example part"]) -> Float[ndarray, ...]:
    """The share that is kept, at least 0; what is done too much counts as what is done too little."""
    sums = values.sum(-2)
    return np.asarray(np.maximum(0, 1 - abs(sums[..., 0] / sums[..., 1])))


def _mean(values: Float[ndarray, "... example part"]) -> Float[ndarray, ...]:
    return np.asarray(values[..., 0].mean(-1))


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "R14",
        "a hundredth of the edges keeps nine tenths of the behaviour",
        partial(r14_keeps, HUNDREDTH, "a hundredth"),
        OURS,
    ),
    Claim("R14", "a tenth of the edges keeps nine tenths of the behaviour", partial(r14_keeps, TENTH, "a tenth"), OURS),
    Claim("R14", "without the best hundredth of the edges the behaviour is gone", r14_needed, OURS),
    Claim("R14", "most of the best hundredth of the edges are the same in other seeds", r14_seeds, OURS),
    Claim("R14", "the best hundredths of seeds have more edges in common than random ones", r14_chance, OURS),
    Claim("R14", "in the second half of the loops each does what the last one does", r14_same, OURS),
)
