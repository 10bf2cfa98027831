"""Claims about token tasks, sections R10 to R12: depth by looping, lengths beyond training, results loop by loop.

R10 is of Saunshi et al. (arXiv 2502.17416), R11 starts from Fan et al. (arXiv 2409.15647), R12 asks what arXiv
2507.02199 asks of a language model: whether intermediate results follow one another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import xarray as xr

from loopprobe.probes.dataset import read_stamp
from loopprobe.study.claims.evidence import (
    FAN,
    OURS,
    R10_LENGTH,
    R11_LOOPS,
    R12_RESULTS,
    SAUNSHI,
    Claim,
    Evidence,
    Seeds,
    answers,
    difference,
    of_seeds,
    own_difference,
    share,
)
from loopprobe.study.claims.thresholds import (
    AS_GOOD,
    COMPUTED,
    FAR_BETTER,
    FEWER,
    HALF,
    LATER,
    NOT_YET,
    READ,
    SOLVED,
)
from loopprobe.study.estimates import Estimate

IN_THE_TOKENS = 0.99  # the share from which a model that was never trained holds a result: nothing is left to compute
LOOPED, DEEP, SHALLOW = "looped", "as deep", "one block"


def _forms(evidence: Evidence, question: str) -> dict[str, dict[str, list[xr.Dataset]]]:
    """Group the datasets of a question by task, and by whether the model is looped, as deep, or one block."""
    found: dict[str, dict[str, list[xr.Dataset]]] = {}
    for data in answers(evidence, question):
        config = read_stamp(data).config
        layers, loops = config["model"]["n_layers"], config["model"]["n_loops"]
        form = LOOPED if loops > 1 else DEEP if layers > 1 else SHALLOW
        found.setdefault(config["task"]["name"], {}).setdefault(form, []).append(data)
    return found


def _right(datasets: Sequence[xr.Dataset], factor: float = 1.0, loops: float = 1.0) -> Seeds:
    """Which prompts are right as a whole.

    Args:
        datasets: of the extrapolate probe, one a seed.
        factor: of the longest length of the training; the nearest length that was measured counts.
        loops: of the loops that the training gives that length.
    """

    def right(data: xr.Dataset) -> xr.DataArray:
        here = data.sel(length=factor * data.attrs["trained_length"], method="nearest")
        count = min(max(1, round(loops * int(here.trained_loops))), int(data.loop[-1]))
        return here.right.sel(loop=count).astype(float)

    return of_seeds(datasets, map(right, datasets))


def r10_as_good(evidence: Evidence) -> Iterator[Estimate]:
    for task, forms in _forms(evidence, R10_LENGTH).items():
        if {LOOPED, DEEP} <= forms.keys():
            what = f"{task}: right prompts at the training's length, looped minus as many layers as loops"
            yield difference(what, _right(forms[LOOPED]), _right(forms[DEEP]), AS_GOOD)


def r10_better(evidence: Evidence) -> Iterator[Estimate]:
    for task, forms in _forms(evidence, R10_LENGTH).items():
        if {LOOPED, SHALLOW} <= forms.keys():
            what = f"{task}: right prompts at the training's length, looped minus one layer"
            yield difference(what, _right(forms[LOOPED]), _right(forms[SHALLOW]), FAR_BETTER)


def _by_length(evidence: Evidence) -> Iterator[tuple[str, Sequence[xr.Dataset]]]:
    """Yield the tasks whose loops are as many as the length, with the looped models of all seeds."""
    for task, forms in _forms(evidence, R11_LOOPS).items():
        seeds = forms.get(LOOPED, [])
        if seeds and read_stamp(seeds[0]).config["train"]["loops"]["kind"] == "length":
            yield task, seeds


def r11_longer(evidence: Evidence) -> Iterator[Estimate]:
    for task, seeds in _by_length(evidence):
        for factor in (1.5, 2.0):
            yield share(f"{task}: right prompts at {factor:g} times the length", _right(seeds, factor), SOLVED)


def r11_needed(evidence: Evidence) -> Iterator[Estimate]:
    for task, seeds in _by_length(evidence):
        what = f"{task}: right prompts at the training's length after half as many loops"
        yield share(what, _right(seeds, 1.0, 0.5), HALF)


def r11_harmless(evidence: Evidence) -> Iterator[Estimate]:
    for task, seeds in _by_length(evidence):
        what = f"{task}: right prompts at the training's length, twice the loops minus the loops"
        yield own_difference(what, _right(seeds, 1.0, 2.0), _right(seeds), AS_GOOD)


def r11_deep(evidence: Evidence) -> Iterator[Estimate]:
    for task, forms in _forms(evidence, R10_LENGTH).items():
        if {LOOPED, DEEP} <= forms.keys() and task in dict(_by_length(evidence)):
            what = f"{task}: right prompts at twice the length, as many layers as loops minus looped"
            yield difference(what, _right(forms[DEEP], 2.0), _right(forms[LOOPED], 2.0), FEWER)


def _read(
    datasets: Sequence[xr.Dataset], target: str, loop: int, control: str = "none", position: int | None = None
) -> Seeds:
    """Return the share of tokens (or whether the one) at which a result is read, of each seed and prompt."""

    def read(data: xr.Dataset) -> xr.DataArray:
        hits = data.right.sel(target=target, control=control, loop=loop).isel(layer=-1)
        hits = hits if position is None else hits.sel(position=[position])
        there = hits.where(hits >= 0)
        return there.mean("position").fillna(0)

    return of_seeds(datasets, map(read, datasets))


def r12_in_turn(evidence: Evidence) -> Iterator[Estimate]:
    hops = _forms(evidence, R12_RESULTS).get("p_hop", {}).get(LOOPED, [])
    if hops:
        names = [str(name) for name in hops[0].target.values if str(name).startswith("after hop")]
        for name, following in pairwise(names):
            shares = {one: [_read(hops, one, int(loop)).mean() for loop in hops[0].loop] for one in (name, following)}
            first = next((int(hops[0].loop[i]) for i, share in enumerate(shares[name]) if share >= READ.low), None)
            if first is not None:
                what = f"p_hop: read {following} minus {name}, in the loop that first has {name} ({first})"
                yield own_difference(what, _read(hops, following, first), _read(hops, name, first), LATER)
    moves = _forms(evidence, R12_RESULTS).get("s5", {}).get(LOOPED, [])
    if moves:
        middle = int(moves[0].position[-1]) // 2
        for loop, rule in ((middle, READ), (middle - 2, NOT_YET)):
            what = f"s5: product of {middle} moves read at their token after {loop} loops"
            yield share(what, _read(moves, "product so far", loop, position=middle), rule)


def r12_computed(evidence: Evidence) -> Iterator[Estimate]:
    for task, forms in _forms(evidence, R12_RESULTS).items():
        seeds = forms.get(LOOPED, [])
        for target in seeds[0].target.values if seeds else []:
            last = int(seeds[0].loop[-1])
            what = f"{task}: {target} read after the last loop, minus in a model that was never trained"
            read, unread = (_read(seeds, str(target), last, control) for control in ("none", "untrained"))
            if unread.mean() > IN_THE_TOKENS:
                continue
            yield own_difference(what, read, unread, COMPUTED)


CLAIMS: tuple[Claim, ...] = (
    Claim("R10", "a layer looped L times does algorithmic tasks as well as L layers", r10_as_good, SAUNSHI),
    Claim("R10", "and far better than one layer", r10_better, SAUNSHI),
    Claim("R11", "with as many loops as the length, longer prompts than in training are solved", r11_longer, FAN),
    Claim("R11", "a length needs more than half as many loops", r11_needed, OURS),
    Claim("R11", "more loops than the length do no harm", r11_harmless, OURS),
    Claim("R11", "as many layers as loops are worse on longer prompts", r11_deep, FAN),
    Claim("R12", "the results of an algorithm stand in the state one after the other", r12_in_turn, OURS),
    Claim(
        "R12", "they are learnt: an untrained model holds less, but for what stands in the tokens", r12_computed, OURS
    ),
)
