"""Claims on which algorithm the loop runs, section R8.

They test findings of the reference (Yang et al., arXiv 2311.12424).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float
from numpy import ndarray

from loopprobe.probes.dataset import read_stamp
from loopprobe.study.claims.evidence import (
    OURS,
    R8_CLASSES,
    R8_DECODE,
    R8_FOLDS,
    R8_SPARSE,
    REFERENCE,
    Claim,
    Evidence,
    Kind,
    answers,
    at_query,
    difference,
    errors_at,
    failed,
    kinds,
    of_seeds,
    ratio,
    share,
)
from loopprobe.study.claims.thresholds import EQUAL, FOUND, LOWER, MORE, MORE_EACH, NO_LESS
from loopprobe.study.estimates import Estimate, Group, estimate
from loopprobe.study.rules import Rule
from loopprobe.tasks.prompts import FAILURE_LEVEL

SPARSE = "sparse_linear_regression"
FEW = (4, 6, 8)  # fewer examples than dimensions, but enough to find a sparse function


def _pairs(models: Sequence[xr.Dataset], task: str) -> Iterator[tuple[str, list[xr.Dataset], list[xr.Dataset]]]:
    """Pair each looped model of a task with real labels with the ordinary model of as many training steps.

    A model that was trained on smaller prompts than it can read has no pair.
    """
    real = [data for data in models if _is_of(data, task)]
    by_kind = kinds(real)
    ordinary: dict[int, tuple[Kind, list[xr.Dataset]]] = {k.steps: (k, d) for k, d in by_kind.items() if k.loops == 1}
    for kind, data in by_kind.items():
        if kind.loops > 1 and kind.steps in ordinary:
            other, others = ordinary[kind.steps]
            yield f"{task.replace('_', ' ')}, looped ({kind}) over ordinary (L {other.layers})", data, others


def _is_of(data: xr.Dataset, task: str) -> bool:
    cfg = read_stamp(data).config
    train, model = cfg["train"] or {}, cfg["model"]
    whole = train.get("dims", {}).get("end") in (None, model.get("n_dims"))
    return cfg["task"]["name"] == task and cfg["task"].get("labels", "real") == "real" and whole


def r8_sparse(evidence: Evidence) -> Iterator[Estimate]:
    for pair, looped, ordinary in _pairs(answers(evidence, R8_SPARSE), SPARSE):
        for k in FEW:
            a, b = (errors_at(seeds, point=k) for seeds in (looped, ordinary))
            yield ratio(f"error from {k} examples: {pair}", a, b, LOWER)


def r8_finds_sparse(evidence: Evidence) -> Iterator[Estimate]:
    """Tell whether models of sparse regression know the task, which Lasso and the best predictor solve from so few."""
    sparse = [data for data in answers(evidence, R8_SPARSE) if _is_of(data, SPARSE)]
    for kind, seeds in kinds(sparse).items():
        name = f"ordinary ({kind.of_ordinary})" if kind.loops == 1 else f"looped ({kind})"
        right = 1 - failed(errors_at(seeds, point=FEW[-1]))
        yield share(f"{name}: prompts with an error of at most {FAILURE_LEVEL:g} from {FEW[-1]} examples", right, FOUND)


def r8_equal(evidence: Evidence) -> Iterator[Estimate]:
    for task in ("linear_regression", "relu_network"):
        for pair, looped, ordinary in _pairs(answers(evidence, R8_CLASSES), task):
            yield ratio(f"error at the query: {pair}", at_query(looped), at_query(ordinary), EQUAL)


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


def _gain(what: str, before: ndarray, after: ndarray, spread: ndarray, rule: Rule, part: str = "") -> Estimate:
    """Estimate by how much R² is above that before, of one model: [example] each."""

    def gain(values: Float[ndarray, "... example part"]) -> Float[ndarray, ...]:
        first, last, of_all = (values[..., i] for i in range(3))
        return _r2(last, of_all) - _r2(first, of_all)

    parts = np.stack([before, after, spread], axis=-1)[None]
    return estimate(what, rule, "difference", Group(parts, gain, of_seeds="these"), part=part)


def r8_with_loops(evidence: Evidence) -> Iterator[Estimate]:
    for data, network, target, squared, spread in _decoded(evidence, looped=True):
        what = f"{data.model.item()}, network {network}, R² of {target}: last loop minus first"
        yield _gain(what, squared[0], squared[-1], spread, MORE, target)


def r8_peak(evidence: Evidence) -> Iterator[Estimate]:
    """Compare the middle layer that is best on half of the prompts with the first and the last on the other half."""
    for data, network, target, squared, spread in _decoded(evidence, looped=False):
        if len(squared) < 3:  # asked so, there is no layer between the first and the last
            continue
        best = 1 + np.argmin(squared[1:-1, ::2].sum(1))
        for name, end in (("first", 0), ("last", -1)):
            what = f"{data.model.item()}, network {network}, R² of {target}: best middle layer minus {name}"
            yield _gain(what, squared[end, 1::2], squared[best, 1::2], spread[1::2], MORE_EACH)


def r8_tables(evidence: Evidence) -> Iterator[Estimate]:
    folds: dict[bool, dict[str, list[xr.Dataset]]] = {True: {}, False: {}}  # looped and ordinary, by left-out table
    for data in answers(evidence, R8_FOLDS):
        cfg = read_stamp(data).config
        if cfg["task"]["name"] == "tables":
            for table in data.table.values[~data.trained_on.values]:
                folds[cfg["model"]["n_loops"] > 1].setdefault(str(table), []).append(data)
    for table, looped in folds[True].items():
        if ordinary := folds[False].get(table):
            a, b = (
                of_seeds(seeds, (d.right.sel(table=table).isel(point=-1).astype(float) for d in seeds))
                for seeds in (looped, ordinary)
            )
            what = f"accuracy on {table}, left out of training: looped minus ordinary"
            yield difference(what, a, b, NO_LESS)


CLAIMS: tuple[Claim, ...] = (
    Claim("R8", "looped is better than ordinary on sparse regression with few examples", r8_sparse, REFERENCE),
    Claim(
        "R8", "trained on sparse functions, models find them from fewer examples than dimensions", r8_finds_sparse, OURS
    ),
    Claim("R8", "looped and ordinary are about equal on linear regression and ReLU networks", r8_equal, REFERENCE),
    Claim("R8", "XᵀY and w become more decodable with loops", r8_with_loops, REFERENCE),
    Claim("R8", "in the ordinary transformer they are most decodable in the middle layers", r8_peak, REFERENCE),
    Claim(
        "R8",
        "on a table of real data that it was not trained on, looped is no less accurate than ordinary",
        r8_tables,
        REFERENCE,
    ),
)
