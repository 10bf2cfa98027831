"""Claims of the study, sections R1 to R7."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from numpy import ndarray

from loopprobe.dynamics.limits import Limit
from loopprobe.probes.dataset import read_stamp
from loopprobe.study.claims.evidence import (
    EQUAL,
    MORE,
    R1_COMPARE,
    R2_CONVERGE,
    R3_CONVERGE,
    R4_LAST_N,
    R5_FIRST_N,
    R6_CONVERGE,
    R7_CURVES,
    Claim,
    Evidence,
    Kind,
    answers,
    by_loops,
    far,
    kinds,
)
from loopprobe.study.verdicts import (
    Finding,
    Rule,
    about_equal,
    above,
    below,
    bootstrap,
    decide,
    hold_difference,
    hold_ratio,
    ratio_of_means,
    ratio_of_spreads,
)
from loopprobe.support.statistics import moving_mean

STAYS = 1.2  # an error stays at its level while it is below this multiple of the level
RESTS = 0.95  # a model has come to rest when this share of its tokens is at a fixed point
COMPARED_N = (10, 15, 20, 25)  # values of n at which masks are compared


def successive(
    by_kind: Mapping[Kind, Sequence[xr.Dataset]], values: Callable[[Sequence[xr.Dataset]], ndarray], what: str
) -> Iterator[Finding]:
    """Yield a finding for each pair of neighbours in the training loops, by task and window: more against fewer."""
    seen = set()
    for task in sorted({kind.task for kind in by_kind}):
        of_task = {kind: data for kind, data in by_kind.items() if kind.task == task}
        for window in (10, 20):
            row = by_loops(of_task, window)
            loops = sorted(row)
            for fewer, more in itertools.pairwise(loops):
                pair = row[more], row[fewer]
                if pair not in seen:
                    seen.add(pair)
                    ratio = f"{what}: {pair[0]} over {pair[1]}"
                    yield hold_ratio(ratio, values(of_task[pair[0]]), values(of_task[pair[1]]), below(1))


def r1_larger_b(evidence: Evidence) -> Iterator[Finding]:
    by_kind = kinds(answers(evidence, R1_COMPARE))
    yield from successive(by_kind, lambda data: np.stack([d.error.mean("point").values for d in data]), "loss")


def r1_does_well(evidence: Evidence) -> Iterator[Finding]:
    by_kind = kinds(answers(evidence, R1_COMPARE))
    ordinary = [data for kind, data in by_kind.items() if kind.loops == 1]
    for window in (10, 20):
        looped = by_loops(by_kind, window)
        if ordinary and looped:
            best = looped[max(looped)]
            query = [np.stack([d.error.isel(point=-1).values for d in data]) for data in (by_kind[best], ordinary[0])]
            yield hold_ratio(f"error at the query: {best} over ordinary", query[0], query[1], below(2))


def r2_stays(evidence: Evidence) -> Iterator[Finding]:
    for kind, data in kinds(answers(evidence, R2_CONVERGE)).items():
        if kind.loops > 5:
            last = int(data[0].loop[-1])
            ratio = f"{kind}: error after {last} loops over that after {kind.loops}"
            yield hold_ratio(ratio, far(data), far(data, kind.loops), below(STAYS))


def at_rest(datasets: Sequence[xr.Dataset]) -> Float[ndarray, "seed followed"]:
    """Return the share of a prompt's tokens whose state comes to a fixed point."""
    return np.stack([(data.limit == Limit.FIXED).mean("position").values for data in datasets])


def r2_rests(evidence: Evidence) -> Iterator[Finding]:
    for kind, data in kinds([d for d in answers(evidence, R2_CONVERGE) if "limit" in d]).items():
        if kind.loops > 5:
            estimate = bootstrap(lambda rest: rest.mean(-1), at_rest(data))
            yield decide(
                f"{kind}: share of tokens at a fixed point after {data[0].attrs['far']} loops", *estimate, above(RESTS)
            )


def r2_larger_b(evidence: Evidence) -> Iterator[Finding]:
    by_kind = kinds(answers(evidence, R2_CONVERGE))
    yield from successive(by_kind, far, "error after the last loop")


def _grown_over_fixed(
    evidence: Evidence, window: int, rule: Rule, what: str = "error after the last loop", **statistic: Any
) -> Iterator[Finding]:
    """Yield the ratio of each model with grown loops over every fixed model of as many steps."""
    by_kind = kinds(answers(evidence, R3_CONVERGE))
    for grown in (kind for kind in by_kind if kind.grown and kind.window == window):
        of_steps = {kind: data for kind, data in by_kind.items() if kind.steps == grown.steps}
        for fixed in by_loops(of_steps, window).values():
            yield hold_ratio(
                f"{what}: {grown} over {fixed}", far(by_kind[grown]), far(by_kind[fixed]), rule, **statistic
            )


def r3_lower_at_20(evidence: Evidence) -> Iterator[Finding]:
    yield from _grown_over_fixed(evidence, 20, below(1))


def r3_same_at_10(evidence: Evidence) -> Iterator[Finding]:
    yield from _grown_over_fixed(evidence, 10, about_equal(EQUAL))


def r3_spread(evidence: Evidence) -> Iterator[Finding]:
    for window in (10, 20):
        yield from _grown_over_fixed(evidence, window, above(1.5), "spread of errors", statistic=ratio_of_spreads)


def _masks(evidence: Evidence, name: str) -> dict[Kind, xr.Dataset]:
    return {kind: data[0] for kind, data in kinds(answers(evidence, name)).items()}


def _grows(evidence: Evidence, name: str) -> Iterator[Finding]:
    for kind, data in _masks(evidence, name).items():
        errors = data.error.sel(loop=kind.loops).values  # [n, example]
        ranks = data.n.values.argsort().argsort()

        def spearman(*rows: Float[ndarray, "... example"], ranks: ndarray = ranks) -> Float[ndarray, ...]:
            error_ranks = np.stack([row.mean(-1) for row in rows], axis=-1).argsort(-1).argsort(-1)
            return (error_ranks - ranks.mean()) @ (ranks - ranks.mean()) / ((ranks - ranks.mean()) ** 2).sum()

        estimate, interval = bootstrap(spearman, *(row[None] for row in errors))
        yield decide(f"{kind}: rank correlation of error and n", estimate, interval, below(-0.8))


def _more_loops(evidence: Evidence, name: str) -> Iterator[Finding]:
    for kind, data in _masks(evidence, name).items():
        last = int(data.loop[-1])
        for n in (n for n in COMPARED_N if n in data.n.values):
            errors = data.error.sel(n=n)
            more, trained = errors.isel(loop=-1).values[None], errors.sel(loop=kind.loops).values[None]
            ratio = f"{kind}, n {n}: error after {last} loops over that after {kind.loops}"
            yield hold_ratio(ratio, more, trained, above(0.9))


def r4_grows(evidence: Evidence) -> Iterator[Finding]:
    yield from _grows(evidence, R4_LAST_N)


def r4_more_loops(evidence: Evidence) -> Iterator[Finding]:
    yield from _more_loops(evidence, R4_LAST_N)


def r5_grows(evidence: Evidence) -> Iterator[Finding]:
    yield from _grows(evidence, R5_FIRST_N)


def r5_more_loops(evidence: Evidence) -> Iterator[Finding]:
    yield from _more_loops(evidence, R5_FIRST_N)


def r5_first_and_last(evidence: Evidence) -> Iterator[Finding]:
    first, last = _masks(evidence, R5_FIRST_N), _masks(evidence, R4_LAST_N)
    for kind in (kind for kind in first if kind in last):
        for n in (n for n in COMPARED_N if n in first[kind].n.values and n in last[kind].n.values):
            a, b = (masks[kind].error.sel(n=n, loop=kind.loops).values[None] for masks in (last, first))
            yield hold_ratio(f"{kind}, n {n}: error with the last over that with the first", a, b, about_equal(EQUAL))


def r5_memory(evidence: Evidence) -> Iterator[Finding]:
    for kind, data in _masks(evidence, R4_LAST_N).items():
        if 1 in data.n.values:
            alone = data.error.sel(n=1, loop=kind.loops).values[None]
            clean = data.clean_error.sel(loop=kind.loops).values[None]
            ratio = f"{kind}: error with the query's own state alone over the clean run"
            yield hold_ratio(ratio, alone, clean, above(STAYS))


def r6_more_layers(evidence: Evidence) -> Iterator[Finding]:
    yield from _over_layers(kinds(answers(evidence, R6_CONVERGE)))


def r6_rests(evidence: Evidence) -> Iterator[Finding]:
    by_kind = kinds([d for d in answers(evidence, R6_CONVERGE) if "limit" in d])
    for kind in by_kind:
        deeper = replace(kind, layers=2 * kind.layers)
        if deeper in by_kind and at_rest(by_kind[kind]).mean() <= 1 - MORE:  # nearly all leaves no room for more
            what = f"share of tokens at a fixed point: {deeper} minus L {kind.layers}"
            yield hold_difference(what, at_rest(by_kind[deeper]), at_rest(by_kind[kind]), above(MORE))


def r6_every_seed(evidence: Evidence) -> Iterator[Finding]:
    datasets = answers(evidence, R6_CONVERGE)
    seeds = sorted({read_stamp(d).config["train"]["seed"] for d in datasets})
    for seed in seeds:
        of_seed = [d for d in datasets if read_stamp(d).config["train"]["seed"] == seed]
        yield from _over_layers(kinds(of_seed), f"seed {seed}, ")


def _over_layers(by_kind: Mapping[Kind, Sequence[xr.Dataset]], prefix: str = "") -> Iterator[Finding]:
    """Yield the ratio of each model with twice the layers over the model with fewer."""
    for kind in by_kind:
        deeper = replace(kind, layers=2 * kind.layers)
        if deeper in by_kind:
            what = f"{prefix}error after the last loop: {deeper} over L {kind.layers}"
            yield hold_ratio(what, far(by_kind[deeper]), far(by_kind[kind]), below(1))


def falls_at(data: xr.Dataset) -> float:
    """Return the first step at which the smoothed query error is below 0.1 for good, or infinity."""
    return _for_good(data, moving_mean(data["error"].values, data.step.values) < 0.1)


def flattens_at(data: xr.Dataset) -> float:
    """Return the first step from which the smoothed loss stays within a tenth of its last value."""
    loss = moving_mean(data["loss"].values, data.step.values)
    return _for_good(data, np.abs(loss / loss[-1] - 1) < 0.1)


def _for_good(data: xr.Dataset, holds: ndarray) -> float:
    """Return the first step from which a condition holds to the end, or infinity."""
    broken = np.flatnonzero(~holds)
    first = 0 if len(broken) == 0 else broken[-1] + 1
    return float(data.step[first]) if first < len(holds) else np.inf


def r7_earlier(evidence: Evidence) -> Iterator[Finding]:
    by_kind = kinds(answers(evidence, R7_CURVES))
    for kind in (kind for kind in by_kind if kind.layers == 1):
        for layers in (2, 4):
            deeper = replace(kind, layers=layers)
            if deeper not in by_kind:
                continue
            for what, measure in (("falls", falls_at), ("flattens", flattens_at)):
                one, more = (np.array([[measure(d)] for d in by_kind[k]]) for k in (kind, deeper))
                estimate, interval = bootstrap(ratio_of_means, one, more)
                if min(len(one), len(more)) < 2:
                    interval = (np.nan, np.nan)  # one run has no spread over seeds and decides nothing
                yield decide(f"step at which the loss {what}: {kind} over L {layers}", estimate, interval, below(1))


CLAIMS: tuple[Claim, ...] = (
    ("R1", "larger b gives lower loss", r1_larger_b),
    ("R1", "with 12 times fewer parameters the looped model does well", r1_does_well),
    ("R2", "trained with b > 5 the error stays at its minimum when the loop goes on", r2_stays),
    ("R2", "it stays because the state has come to a fixed point", r2_rests),
    ("R2", "larger b is better", r2_larger_b),
    ("R3", "a schedule gives lower error at many iterations for T = 20", r3_lower_at_20),
    ("R3", "for T = 10 the schedule cannot be told apart", r3_same_at_10),
    ("R3", "the scheduled model's errors spread much more", r3_spread),
    ("R4", "error grows as n shrinks (last n)", r4_grows),
    ("R4", "for a given n, more loops do not help (last n)", r4_more_loops),
    ("R5", "error grows as n shrinks (first n)", r5_grows),
    ("R5", "for a given n, more loops do not help (first n)", r5_more_loops),
    ("R5", "first and last points matter about equally", r5_first_and_last),
    ("R5", "the state at the other tokens is used as memory between iterations", r5_memory),
    ("R6", "more layers give a better fixed point", r6_more_layers),
    ("R6", "with more layers more tokens come to a fixed point", r6_rests),
    ("R6", "this holds for every T and seed", r6_every_seed),
    ("R7", "at equal b, the loss of L = 1 falls and flattens earlier", r7_earlier),
)
