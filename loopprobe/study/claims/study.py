"""Claims about the number of loops and masks of the state, sections R1 to R5."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float
from numpy import ndarray

from loopprobe.study.claims.evidence import (
    OURS,
    R1_COMPARE,
    R2_CONVERGE,
    R3_CONVERGE,
    R4_LAST_N,
    R5_FIRST_N,
    Claim,
    Evidence,
    Kind,
    Seeds,
    answers,
    at_query,
    at_rest,
    by_loops,
    difference,
    errors_at,
    failed,
    far,
    group,
    kinds,
    of_seeds,
    own_difference,
    own_ratio,
    ratio,
    share,
)
from loopprobe.study.claims.thresholds import (
    EQUAL,
    GROWS,
    IN_ORDER,
    LOWER,
    NO_BETTER,
    NO_MORE,
    RESTS,
    STAYS,
    WELL,
    WIDER,
)
from loopprobe.study.estimates import Estimate, estimate, log_spread, log_spread_of_logs

COMPARED_N = (10, 15, 20, 25)  # values of n at which masks are compared


def successive(
    by_kind: Mapping[Kind, Sequence[xr.Dataset]], values: Callable[[Sequence[xr.Dataset]], Seeds], what: str
) -> Iterator[tuple[Estimate, Seeds, Seeds]]:
    """Yield an estimate for each pair of neighbours in the training loops, by task and window: more against fewer.

    The values of both come with it.
    """
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
                    one, other = (values(of_task[kind]) for kind in pair)
                    yield ratio(f"{what}: {pair[0]} over {pair[1]}", one, other, LOWER), one, other


def r1_larger_b(evidence: Evidence) -> Iterator[Estimate]:
    """Compare what losses are above that of the best predictor: the rest, by far the most, no model can avoid."""

    def above_best(datasets: Sequence[xr.Dataset]) -> Seeds:
        return of_seeds(datasets, ((data.error - data.optimum).mean("point") for data in datasets))

    by_kind = kinds(answers(evidence, R1_COMPARE))
    for one, _, _ in successive(by_kind, above_best, "typical loss above that of the best predictor"):
        yield one


def r1_does_well(evidence: Evidence) -> Iterator[Estimate]:
    by_kind = kinds(answers(evidence, R1_COMPARE))
    ordinary = [data for kind, data in by_kind.items() if kind.loops == 1]
    for window in (10, 20):
        looped = by_loops(by_kind, window)
        if ordinary and looped:
            best = looped[max(looped)]
            what = f"error at the query: {best} over ordinary"
            yield ratio(what, at_query(by_kind[best]), at_query(ordinary[0]), WELL)


def r2_stays(evidence: Evidence) -> Iterator[Estimate]:
    for kind, data in kinds(answers(evidence, R2_CONVERGE)).items():
        if kind.loops > 5:
            last = int(data[0].loop[-1])
            at_end, at_b = far(data), far(data, kind.loops)
            what = f"{kind}: error after {last} loops over that after {kind.loops}"
            yield own_ratio(what, at_end, at_b, STAYS)
            what = f"{kind}: share of failures after {last} loops minus that after {kind.loops}"
            yield own_difference(what, failed(at_end), failed(at_b), NO_MORE)


def r2_rests(evidence: Evidence) -> Iterator[Estimate]:
    for kind, data in kinds([d for d in answers(evidence, R2_CONVERGE) if "limit" in d]).items():
        if kind.loops > 5:
            what = f"{kind}: share of tokens at or approaching a fixed point after {data[0].attrs['far']} loops"
            yield share(what, at_rest(data), RESTS)


def r2_larger_b(evidence: Evidence) -> Iterator[Estimate]:
    by_kind = kinds(answers(evidence, R2_CONVERGE))
    for one, more, fewer in successive(by_kind, far, "error after the last loop"):
        yield one
        what = one.what.replace("error", "share of failures").replace(" over ", " minus ")
        yield difference(what, failed(more), failed(fewer), NO_MORE)


def _grown_over_fixed(evidence: Evidence, window: int) -> Iterator[tuple[str, Seeds, Seeds]]:
    """Yield the errors of each model with grown loops beside those of every fixed model of as many steps."""
    by_kind = kinds(answers(evidence, R3_CONVERGE))
    for grown in (kind for kind in by_kind if kind.grown and kind.window == window):
        of_steps = {kind: data for kind, data in by_kind.items() if kind.steps == grown.steps}
        for fixed in by_loops(of_steps, window).values():
            yield f"{grown} over {fixed}", far(by_kind[grown]), far(by_kind[fixed])


def r3_lower_at_20(evidence: Evidence) -> Iterator[Estimate]:
    for pair, grown, fixed in _grown_over_fixed(evidence, 20):
        yield ratio(f"error after the last loop: {pair}", grown, fixed, LOWER)


def r3_same_at_10(evidence: Evidence) -> Iterator[Estimate]:
    for pair, grown, fixed in _grown_over_fixed(evidence, 10):
        yield ratio(f"error after the last loop: {pair}", grown, fixed, EQUAL)


def r3_spread(evidence: Evidence) -> Iterator[Estimate]:
    for part, statistic in (("errors", log_spread), ("logarithms of errors", log_spread_of_logs)):
        for window in (10, 20):
            for pair, *both in _grown_over_fixed(evidence, window):
                grown, fixed = (group(errors, statistic) for errors in both)
                yield estimate(f"10 % to 90 % of {part}: {pair}", WIDER, "ratio", grown, fixed, part=part)


def _masks(evidence: Evidence, name: str) -> dict[Kind, list[xr.Dataset]]:
    return kinds(answers(evidence, name))


def _grows(evidence: Evidence, name: str) -> Iterator[Estimate]:
    for kind, data in _masks(evidence, name).items():
        if data[0].sizes["n"] < 2:
            continue
        errors = of_seeds(data, (d.error.sel(loop=kind.loops).transpose("example", "n") for d in data))
        ranks = data[0].n.values.argsort().argsort()

        def spearman(values: Float[ndarray, "... example part"], ranks: ndarray = ranks) -> Float[ndarray, ...]:
            error_ranks = np.median(values, axis=-2).argsort(-1).argsort(-1)
            return (error_ranks - ranks.mean()) @ (ranks - ranks.mean()) / ((ranks - ranks.mean()) ** 2).sum()

        what = f"{kind}: rank correlation of error and n"
        yield estimate(what, IN_ORDER, "correlation", group(errors, spearman))


def _more_loops(evidence: Evidence, name: str) -> Iterator[Estimate]:
    for kind, data in _masks(evidence, name).items():
        last = int(data[0].loop[-1])
        if n := [n for n in COMPARED_N if n in data[0].n.values]:
            more, trained = (
                of_seeds(data, (d.error.sel(n=n, loop=loop).transpose("example", "n") for d in data))
                for loop in (last, kind.loops)
            )
            what = f"{kind}, n {n[0]} to {n[-1]}: error after {last} loops over that after {kind.loops}, mean over n"
            yield own_ratio(what, more, trained, NO_BETTER)


def r4_grows(evidence: Evidence) -> Iterator[Estimate]:
    yield from _grows(evidence, R4_LAST_N)


def r4_more_loops(evidence: Evidence) -> Iterator[Estimate]:
    yield from _more_loops(evidence, R4_LAST_N)


def r5_grows(evidence: Evidence) -> Iterator[Estimate]:
    yield from _grows(evidence, R5_FIRST_N)


def r5_more_loops(evidence: Evidence) -> Iterator[Estimate]:
    yield from _more_loops(evidence, R5_FIRST_N)


def r5_first_and_last(evidence: Evidence) -> Iterator[Estimate]:
    first, last = _masks(evidence, R5_FIRST_N), _masks(evidence, R4_LAST_N)
    for kind in (kind for kind in first if kind in last):
        for n in (n for n in COMPARED_N if all(n in masks[kind][0].n.values for masks in (first, last))):
            a, b = (errors_at(masks[kind], n=n, loop=kind.loops) for masks in (last, first))
            what = f"{kind}, n {n}: error with the last over that with the first"
            if set(a.seed.values) & set(b.seed.values):
                yield own_ratio(what, a, b, EQUAL)


def r5_memory(evidence: Evidence) -> Iterator[Estimate]:
    for kind, data in _masks(evidence, R4_LAST_N).items():
        if 1 in data[0].n.values:
            alone, clean = errors_at(data, n=1, loop=kind.loops), errors_at(data, "clean_error", loop=kind.loops)
            what = f"{kind}: error with the query's own state alone over the clean run"
            yield own_ratio(what, alone, clean, GROWS)


CLAIMS: tuple[Claim, ...] = (
    Claim("R1", "larger b gives lower loss", r1_larger_b),
    Claim("R1", "with 12 times fewer parameters the looped model does well", r1_does_well),
    Claim("R2", "trained with b > 5 the error stays at its minimum when the loop goes on", r2_stays),
    Claim("R2", "it stays because the state has come to a fixed point", r2_rests, OURS),
    Claim("R2", "larger b is better", r2_larger_b),
    Claim("R3", "a schedule gives lower error at many iterations for T = 20", r3_lower_at_20),
    Claim("R3", "for T = 10 the schedule cannot be told apart", r3_same_at_10),
    Claim("R3", "the scheduled model's errors spread much more", r3_spread),
    Claim("R4", "error grows as n shrinks (last n)", r4_grows),
    Claim("R4", "for a given n, more loops do not help (last n)", r4_more_loops),
    Claim("R5", "error grows as n shrinks (first n)", r5_grows),
    Claim("R5", "for a given n, more loops do not help (first n)", r5_more_loops),
    Claim("R5", "first and last points matter about equally", r5_first_and_last),
    Claim("R5", "the state at the other tokens is used as memory between iterations", r5_memory),
)
