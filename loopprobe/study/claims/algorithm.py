"""Claims on which algorithm the loop runs, section R8.

They test the findings of the reference (Yang et al., arXiv 2311.12424).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr
from jaxtyping import Float
from numpy import ndarray

from loopprobe.probes.dataset import read_stamp
from loopprobe.study.claims.evidence import EQUAL, MORE, R8_CLASSES, R8_DECODE, R8_FOLDS, Claim, Evidence, answers
from loopprobe.study.verdicts import (
    Finding,
    about_equal,
    above,
    below,
    bootstrap,
    decide,
    hold_difference,
    hold_ratio,
)

FEW = (4, 6, 8)  # fewer examples than dimensions, but enough to find a sparse function


def _pairs(evidence: Evidence, task: str) -> list[tuple[xr.Dataset, xr.Dataset]]:
    """Pair each looped model of a task with real labels with the ordinary model of as many training steps."""
    looped, ordinary = [], {}
    for data in answers(evidence, R8_CLASSES):
        cfg = read_stamp(data).config
        if cfg["task"]["name"] != task or cfg["task"].get("labels", "real") != "real":
            continue
        steps = (cfg["train"] or {}).get("steps")
        if cfg["model"]["n_loops"] == 1:
            ordinary[steps] = data
        else:
            looped.append((steps, data))
    return [(data, ordinary[steps]) for steps, data in looped if steps in ordinary]


def r8_sparse(evidence: Evidence) -> Iterator[Finding]:
    for looped, ordinary in _pairs(evidence, "sparse_linear_regression"):
        for k in FEW:
            a, b = (data.error.sel(point=k).values[None] for data in (looped, ordinary))
            what = f"error from {k} examples: {looped.model.item()} over {ordinary.model.item()}"
            yield hold_ratio(what, a, b, below(1))


def r8_equal(evidence: Evidence) -> Iterator[Finding]:
    for task in ("linear_regression", "relu_network"):
        for looped, ordinary in _pairs(evidence, task):
            a, b = (data.error.isel(point=-1).values[None] for data in (looped, ordinary))
            what = f"error at the query: {looped.model.item()} over {ordinary.model.item()}"
            yield hold_ratio(what, a, b, about_equal(EQUAL))


def _r2(squared: Float[ndarray, "... example"], spread: ndarray) -> Float[ndarray, ...]:
    return 1 - squared.sum(-1) / spread.sum(-1)


def _decoded(evidence: Evidence, looped: bool) -> Iterator[tuple[xr.Dataset, str, str, ndarray, ndarray]]:
    """Yield the errors of decoders with the spread of their targets, by model, network and target."""
    for data in answers(evidence, R8_DECODE):
        if (data.attrs["iteration"] == "loop") != looped or "network_squared" not in data:
            continue
        for network in data.network.values:
            for target in ("XᵀY", "w, least squares"):
                squared = data.network_squared.sel(network=network, of=target).values
                yield data, str(network), target, squared, data.network_spread.sel(of=target).isel(iteration=0).values


def r8_with_loops(evidence: Evidence) -> Iterator[Finding]:
    for data, network, target, squared, spread in _decoded(evidence, looped=True):
        what = f"{data.model.item()}, network {network}, R² of {target}: last loop minus first"
        difference = bootstrap(
            lambda a, b, s: _r2(b, s) - _r2(a, s), *(r[None] for r in (squared[0], squared[-1], spread))
        )
        yield decide(what, *difference, above(MORE))


def r8_peak(evidence: Evidence) -> Iterator[Finding]:
    for data, network, target, squared, spread in _decoded(evidence, looped=False):
        middle = squared[1:-1][np.argmin(squared[1:-1].sum(1))]
        for name, end in (("first", squared[0]), ("last", squared[-1])):
            what = f"{data.model.item()}, network {network}, R² of {target}: best middle layer minus {name}"
            difference = bootstrap(lambda a, b, s: _r2(a, s) - _r2(b, s), *(r[None] for r in (middle, end, spread)))
            yield decide(what, *difference, above(MORE))


def r8_tables(evidence: Evidence) -> Iterator[Finding]:
    folds: dict[bool, dict[str, xr.Dataset]] = {True: {}, False: {}}  # looped and ordinary models by left-out table
    for data in answers(evidence, R8_FOLDS):
        cfg = read_stamp(data).config
        if cfg["task"]["name"] == "tables":
            left_out = data.table.values[~data.trained_on.values]
            folds[cfg["model"]["n_loops"] > 1] |= {str(table): data for table in left_out}
    for table, looped in folds[True].items():
        if (ordinary := folds[False].get(table)) is not None:
            a, b = (d.right.sel(table=table).isel(point=-1).values[None].astype(float) for d in (looped, ordinary))
            what = f"accuracy on {table}, left out of training: looped minus ordinary"
            yield hold_difference(what, a, b, above(-MORE))


CLAIMS: tuple[Claim, ...] = (
    ("R8", "looped is better than ordinary on sparse regression with few examples", r8_sparse),
    ("R8", "looped and ordinary are about equal on linear regression and ReLU networks", r8_equal),
    ("R8", "XᵀY and w become more decodable with loops", r8_with_loops),
    ("R8", "in the ordinary transformer they are most decodable in the middle layers", r8_peak),
    ("R8", "on a table of real data that it was not trained on, looped is no less accurate than ordinary", r8_tables),
)
