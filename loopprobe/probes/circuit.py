"""Circuits: a small set of edges that keeps a share of the behaviour, when all others are corrupted at once.

Edges are ranked by their direct effects on the first half of the prompts (``probes.edges``), and on this half the size
of the circuit is found. What the best k edges keep, and what is left without them, is measured on the other half, and
compared with as many edges at random. See ``probes.circuit_runs`` for what is run.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from loopprobe.config.budget import require
from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.probes import edges
from loopprobe.probes.circuit_runs import Circuit, CircuitRuns, memory_of
from loopprobe.probes.dataset import stamp, with_ends
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.probes.edges import ORDER, EdgesConfig
from loopprobe.probes.measures import Function, Measure, find_measure
from loopprobe.probes.patch import with_corrupted
from loopprobe.store.subject import Subject
from loopprobe.support.statistics import bootstrap_ratio, to_numpy
from loopprobe.tasks import PromptBatch
from loopprobe.types import Progress

SETS = ("ranked", "random")
NEARLY = 1e-4  # of the behaviour that rounding may lose
CURVES = ("set", "edges")


@configuration
class CircuitConfig:
    """Which circuit is looked for, and how.

    Attributes:
        keep: the share of the behaviour that it keeps, at most 1; what it does too much counts as what it does too
            little.
        loops: iterations; the answer is read after the last. None: as many as trained.
        steps: prompts between the corrupted and the clean ones at which gradients are taken, see ``EdgesConfig``.
        exact: how many of the edges with the largest estimates are ranked by their exact direct effect instead.
        per_decade: sizes of circuits from one to ten times as many edges.
        random: draws of as many edges at random.
        halves: also rank the edges on the other half of the prompts, which tells how far the circuit depends on them.
        corruption: how prompts are corrupted, see the probe patch. None: the usual way.
        measure: what is measured of the answers, see ``probes.measures``; it must be differentiable.
        seed: of the edges at random.
    """

    keep: PositiveFloat = 0.9
    loops: PositiveInt | None = None
    steps: PositiveInt = 5
    exact: NonNegativeInt = 0
    per_decade: PositiveInt = 3
    random: PositiveInt = 1
    halves: bool = False
    corruption: str | None = None
    measure: str = "answer"
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        if self.keep > 1:
            raise LoopprobeError(f"keep ({self.keep:g}) must be at most 1, the whole behaviour: lower it")

    @property
    def ranking(self) -> EdgesConfig:
        """The options of the probe edges."""
        return EdgesConfig(
            loops=self.loops, steps=self.steps, exact=self.exact, corruption=self.corruption, measure=self.measure,
            seed=self.seed,
        )  # fmt: skip


def run(
    subject: Subject,
    prompts: PromptBatch,
    config: CircuitConfig,
    progress: Progress = lambda steps: steps,
    *,
    corrupted: PromptBatch | None = None,
    measure: str | Function | Measure | None = None,
) -> xr.Dataset:
    """Rank the edges, find the circuit, and measure what it keeps on other prompts.

    Args:
        subject, prompts, config: the model, the clean prompts, and the options. The first half of the prompts chooses,
            the second half measures.
        progress: wraps batches, loops and sizes of circuits.
        corrupted: the corrupted prompts; None: the clean ones are corrupted as the options say.
        measure: what is measured, where it is no name, see ``probes.measures.find_measure``.

    Returns:
        A dataset with dims ``from_loop`` and ``to_loop`` (from 1), ``sender`` and ``receiver``, as the probe edges has
        them, ``example`` (the prompts that choose), ``measured`` (those that measure), ``set`` (``ranked`` or
        ``random``) and ``edges`` (sizes of circuits):

        * ``share``, ``exact``, ``chosen``, ``moved`` and ``total``: of the prompts that choose, see the probe edges
        * ``rank [from_loop, sender, to_loop, receiver]``: from 1 for the edge with the largest effect; edges that
          cannot be have none
        * ``circuit [from_loop, sender, to_loop, receiver]``: whether an edge is in the circuit; those of the best edges
          that change nothing, since no way leads on to the read-out or none comes from the input, are left out
        * ``kept [set, edges]`` with ``_low`` and ``_high``: the share of the behaviour that circuits of so many edges
          keep, 1 - Σ moved · total / Σ total² over prompts, moved being the measure of the circuit's run and total that
          of the corrupted run, both minus that of the clean run; of random ones the mean over draws
        * ``left [set, edges]`` with its ends: the same of the circuits of all other edges
        * ``unexplained [set, edges]``: Σ moved² / Σ total², which also counts what is off prompt by prompt
        * ``kept_moved``, ``left_moved [set, edges, measured]``, and ``measured_total``, ``measured_clean [measured]``
        * ``by_lag`` and ``similarity``: of the circuit's edges, by the loops from sender to receiver, see the probe
          edges
        * with ``halves``: ``other_circuit``, the circuit of as many best edges of the other half, with
          ``other_moved [from_loop, sender, to_loop, receiver, measured]`` and ``other_exact``

        ``attrs`` hold ``found``, the best edges that the circuit is made of, ``possible``, all edges that can be, and
        ``kept_when_chosen``, the share that the circuit keeps on the prompts that chose it.

    Raises:
        LoopprobeError: options, prompts, corrupted prompts or the measure do not fit; the corrupted prompts change
            nothing.
    """
    check(subject, config, prompts, corrupted=corrupted, measure=measure)
    prompts = prompts.to(subject.device)
    prompts, other, words = with_corrupted(subject, prompts, config.corruption, corrupted)
    chosen = find_measure(config.measure if measure is None else measure, prompts)
    n_loops = config.loops or subject.loops_of(prompts)
    halves = _halves(prompts)

    def ranked(half: slice) -> xr.Dataset:
        return edges.run(subject, prompts[half], config.ranking, progress, corrupted=other[half], measure=chosen)

    def runs(half: slice) -> CircuitRuns:
        return CircuitRuns(subject.model, prompts[half], other[half], n_loops, chosen)

    choosing, measuring = map(runs, halves)
    if any(not one.total.any() for one in (choosing, measuring)):
        raise LoopprobeError(
            f"the corrupted prompts ({words}) change the {chosen.name} of no prompt of one half, so that there is no "
            "circuit: choose another corruption or measure, or raise --prompts"
        )
    data = ranked(halves[0])
    order, sizes = ranking(data), data.share.shape

    def best(k: int) -> Circuit:
        return _first(order, k, sizes)

    @functools.cache
    def keeps(k: int) -> float:
        return float(_kept(to_numpy(choosing.moved(best(k))), to_numpy(choosing.total))[0])

    found = smallest(lambda k: abs(1 - keeps(k)) <= 1 - config.keep + NEARLY, len(order))
    curve = np.union1d(sizes_of(len(order), config.per_decade), found)
    circuit = choosing.wiring.pruned(best(found))
    ranks = np.full(np.prod(sizes), np.nan)
    ranks[order] = 1 + np.arange(len(order))
    made = data.drop_vars(["by_lag", "similarity", "clean", "lag", "lag_receiver", "source"])
    made["rank"], made["circuit"] = (ORDER, ranks.reshape(sizes)), (ORDER, circuit)
    if config.halves:
        again = ranked(halves[1])
        made["other_circuit"] = ORDER, choosing.wiring.pruned(_first(ranking(again), found, sizes))
        made["other_moved"] = (*ORDER, "measured"), again.moved.values
        made["other_exact"] = again.exact.drop_vars("source")
    made = made.merge(_curves(measuring, order, sizes, curve, config, progress))
    made = made.merge(edges.lags(made.share.where(made.circuit | made.share.isnull(), 0)))
    for name in ("moved", "total", "kept_moved", "left_moved", "measured_total", "measured_clean"):
        made[name].attrs["units"] = chosen.unit
    made.attrs = {
        "measure": chosen.name, "measure_unit": chosen.unit, "measure_source": chosen.source, "corruption": words,
        "found": found, "possible": len(order), "kept_when_chosen": keeps(found),
    }  # fmt: skip
    return stamp(made, "circuit", subject, prompts, dataclasses.replace(config, measure=chosen.option))


def check(
    subject: Subject,
    config: CircuitConfig,
    prompts: PromptBatch,
    *,
    corrupted: PromptBatch | None = None,
    measure: str | Function | Measure | None = None,
) -> None:
    """Raise LoopprobeError where the options do not fit the model, the prompts or the memory, before anything runs."""
    if prompts.n_prompts < 2:
        raise LoopprobeError(
            f"prompts ({prompts.n_prompts}) must be 2 at least, since one half chooses and the other measures: add some"
        )
    edges.check(subject, config.ranking, prompts, corrupted=corrupted, measure=measure)
    n_loops = config.loops or subject.loops_of(prompts)
    what = f"circuits of {subject.label} over {n_loops} loops"
    require(memory_of(subject.model, prompts, n_loops), what, "lower --prompts or --loops", subject.device)


def ranking(data: xr.Dataset) -> Int[ndarray, " edge"]:
    """Return the edges that can be, the largest effect first, as places in the flat array; the exact where known."""
    effect = np.abs(data.exact.where(data.exact.notnull(), data.share).values).ravel()
    order = np.argsort(-np.nan_to_num(effect), kind="stable")
    return order[~np.isnan(effect[order])]


def smallest(keeps: Callable[[int], bool], most: int) -> int:
    """Find how many of the best edges keep enough, one of them less not.

    The number is doubled until they do, and halved in on from there. Where what is kept does not grow with every edge,
    a smaller number might do too, which lies between two that are tried.

    Args:
        keeps: whether so many of the best edges keep enough; all of them do.
        most: all edges.
    """
    low, high = 0, 1
    while high < most and not keeps(high):
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return high


def sizes_of(possible: int, per_decade: int) -> Int[ndarray, " size"]:
    """Sizes of circuits from one edge to all, evenly on a logarithmic scale, with a hundredth and a tenth of all."""
    n = int(np.ceil(np.log10(possible) * per_decade))
    return np.unique(np.maximum(1, np.round(possible / 10 ** (np.arange(n + 1) / per_decade)))).astype(int)


def _halves(prompts: PromptBatch) -> tuple[slice, slice]:
    """The prompts that choose, and those that measure."""
    middle = prompts.n_prompts // 2
    return slice(0, middle), slice(middle, prompts.n_prompts)


def _first(order: Int[ndarray, " edge"], k: int, sizes: tuple[int, ...]) -> Circuit:
    """The circuit of the first k edges of an order."""
    circuit: Bool[ndarray, " edge"] = np.zeros(np.prod(sizes), bool)
    circuit[order[:k]] = True
    return circuit.reshape(sizes)


def _kept(moved: Float[ndarray, "... example"], total: Float[ndarray, " example"]) -> tuple[ndarray, ndarray, ndarray]:
    """The share of the behaviour that is kept, with its ends; the lower end is that of the most that is lost."""
    lost, low, high = bootstrap_ratio(moved * total.astype(np.float64), total.astype(np.float64) ** 2)
    return np.asarray(1 - lost), np.asarray(1 - high), np.asarray(1 - low)


def _curves(
    runs: CircuitRuns,
    order: Int[ndarray, " edge"],
    sizes: tuple[int, ...],
    curve: Int[ndarray, " size"],
    config: CircuitConfig,
    progress: Progress,
) -> xr.Dataset:
    """What circuits of so many edges keep, the best and those at random, and what is left without them."""
    rng = np.random.default_rng(config.seed)
    orders = [("ranked", order), *(("random", rng.permutation(order)) for _ in range(config.random))]
    whole = _first(order, len(order), sizes)
    total = to_numpy(runs.total)
    moved = {name: np.zeros((len(SETS), len(curve), len(total))) for name in ("kept", "left")}
    off = np.zeros((len(SETS), len(curve)))
    for i, k in enumerate(progress(curve.tolist())):
        for kind, one in orders:
            circuit, at = _first(one, k, sizes), (SETS.index(kind), i)
            draws = 1 if kind == "ranked" else config.random
            kept, left = (to_numpy(runs.moved(part)).astype(np.float64) for part in (circuit, whole & ~circuit))
            moved["kept"][at] += kept / draws
            moved["left"][at] += left / draws
            off[at] += (kept**2).sum() / draws
    variables: dict[str, Any] = {}
    for name, values in moved.items():
        variables |= with_ends(name, CURVES, _kept(values, total))
        variables[f"{name}_moved"] = (*CURVES, "measured"), values.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        variables["unexplained"] = CURVES, off / (total.astype(np.float64) ** 2).sum()
    variables["measured_total"] = "measured", total
    variables["measured_clean"] = "measured", to_numpy(runs.before)
    return xr.Dataset(variables, {"set": list(SETS), "edges": curve})


PROBE = Probe(
    "circuit",
    CircuitConfig,
    run,
    check,
    Shown(
        "circuit:circuit_figures",
        "circuit:circuit_table",
        "circuit:circuit_compare_figure",
        "circuit:circuit_compare_table",
        "circuit:overlap_figures",
        "circuit:overlap_table",
        compared=True,
        quantities=(Quantity("kept", along=("edges",), unit="share of the behaviour that is kept"),),
    ),
    needs=frozenset({"map"}),
    given=("corrupted", "measure"),
)
