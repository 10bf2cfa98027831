"""The overlap of circuits: of several seeds, and of one model on other prompts."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Bool, Int
from numpy import ndarray

from loopprobe.probes.circuit_runs import Circuit
from loopprobe.probes.dataset import read_stamp
from loopprobe.probes.edges import ORDER

RESAMPLES, DRAWS = 200, 20  # of prompts; of pairs of random circuits
SURE = 1.96  # standard deviations of a 95 % interval
EVERY = 4  # heads of a layer, up to which every order of them is tried
FIELDS = ("one", "other", "overlap", "overlap_low", "overlap_high", "expected", "matched")
Circuits = Bool[ndarray, "*set from_loop sender to_loop receiver"]
Order = tuple[Int[ndarray, " sender"], Int[ndarray, " receiver"]]  # whose place each takes
_HEAD = re.compile(r"head (\d+)\.(\d+)")


@dataclass(frozen=True)
class Found:
    """A circuit and the prompts that it was found on.

    Attributes:
        name: of the model, with the half of the prompts where there are two.
        data: the dataset that it is of.
        circuit: its edges.
        half: which half of the prompts chose it.
    """

    name: str
    data: xr.Dataset
    circuit: Circuit
    half: int = 0

    @functools.cached_property
    def resampled(self) -> Bool[ndarray, "resample from_loop sender to_loop receiver"]:
        """The best edges, as many as were found, on resampled prompts; exact effects move as their estimates do."""
        names = [("moved", "total", "exact"), ("other_moved", "measured_total", "other_exact")]
        moved, total, exact_name = names[self.half]
        gains, scale = self.data[moved].values * self.data[total].values, self.data[total].values ** 2
        n = len(scale)
        counts = np.random.default_rng(self.half).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
        flat = gains.reshape(-1, n)
        possible = np.flatnonzero(self.data.share.notnull().values)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = flat[possible].sum(-1) / scale.sum()
            effects = (flat[possible] @ counts.T / (counts @ scale)).T
        exact = self.data[exact_name].values.ravel()[possible]
        effects += np.where(np.isnan(exact), 0, exact - share)
        k = int(self.data.attrs["found"])
        made = np.zeros((RESAMPLES, self.circuit.size), bool)
        best = np.argsort(-np.abs(np.nan_to_num(effects)), -1, kind="stable")[:, :k]
        np.put_along_axis(made, possible[best], True, -1)
        return made.reshape(RESAMPLES, *self.circuit.shape)


def overlaps(datasets: Sequence[xr.Dataset]) -> xr.Dataset:
    """Compare the circuits of every two models with the same components and loops, and those of two halves of prompts.

    Heads of two models that were trained apart have no common order. So the heads of one are put, layer by layer, into
    the order in which the circuits have most edges in common, and so are those of the random circuits that they are
    compared with.

    Args:
        datasets: of the probe circuit.

    Returns:
        A dataset with dim ``pair``: ``one`` and ``other``, the names of the two; ``overlap``, the edges that both
        circuits have over those that one of them has (Jaccard), with ``_low`` and ``_high``: the estimate and 1.96
        standard deviations over resampled prompts to either side, since resampling itself makes rankings less alike;
        ``expected``, the mean overlap of random circuits of the same sizes; and ``matched``, whether heads were put
        in order. It has no pair where no two circuits can be compared.
    """
    rows = [_compared(one, other, matched) for one, other, matched in _pairs(datasets)]
    return xr.Dataset({name: ("pair", [row[i] for row in rows]) for i, name in enumerate(FIELDS)})


def _pairs(datasets: Sequence[xr.Dataset]) -> Iterator[tuple[Found, Found, bool]]:
    """Yield the circuits to compare, and whether the heads of the second are put in order."""
    firsts = [Found(str(data.model.item()), data, data.circuit.values.astype(bool)) for data in datasets]
    for one, data in zip(firsts, datasets, strict=True):
        if "other_circuit" in data:
            name = f"{one.name}, other prompts"
            yield one, Found(name, data, data.other_circuit.values.astype(bool), half=1), False
    for one, other in itertools.combinations(firsts, 2):
        if all(np.array_equal(one.data[dim].values, other.data[dim].values) for dim in ORDER):
            yield one, other, read_stamp(one.data).weights != read_stamp(other.data).weights


def jaccard(one: Circuit, other: Circuit) -> float:
    """Return what two sets have in common over what one of them has; NaN where both are empty."""
    either = int((one | other).sum())
    return int((one & other).sum()) / either if either else float("nan")


def best_order(one: Circuit, other: Circuit, data: xr.Dataset) -> Order:
    """Find the order of the other's heads in which two circuits have most edges in common.

    Layers are taken in turn until nothing is gained. Of up to four heads in a layer every order is tried, of more every
    exchange of two.
    """
    names = [[str(name) for name in data[dim].values] for dim in ("sender", "receiver")]
    heads = sorted({(int(at[1]), int(at[2])) for name in names[0] if (at := _HEAD.match(name))})
    now = {head: head for head in heads}

    def places(order: dict[tuple[int, int], tuple[int, int]]) -> Order:
        def renamed(at: re.Match[str]) -> str:
            layer, head = order[int(at[1]), int(at[2])]
            return f"head {layer}.{head}"

        senders, receivers = (np.array([some.index(_HEAD.sub(renamed, name)) for name in some]) for some in names)
        return senders, receivers

    most, gained = _common(one, other, places(now)), True
    while gained:
        gained = False
        for layer in sorted({layer for layer, _ in heads}):
            for changed in _orders([now[head] for head in heads if head[0] == layer]):
                tried = now | dict(zip([head for head in heads if head[0] == layer], changed, strict=True))
                if (count := _common(one, other, places(tried))) > most:
                    most, now, gained = count, tried, True
    return places(now)


def reordered(circuit: Circuits, order: Order) -> Circuits:
    """Return a circuit, or several, with its senders and receivers in another order."""
    return circuit[..., order[0], :, :][..., order[1]]


def _common(one: Circuit, other: Circuit, order: Order) -> int:
    return int((one & reordered(other, order)).sum())


def _orders(heads: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """All orders of few heads; of more, those with two exchanged."""
    if len(heads) <= EVERY:
        return [list(order) for order in itertools.permutations(heads)]
    made = []
    for i, j in itertools.combinations(range(len(heads)), 2):
        made.append([heads[{i: j, j: i}.get(place, place)] for place in range(len(heads))])
    return made


def _compared(one: Found, other: Found, matched: bool) -> tuple[str, str, float, float, float, float, bool]:
    """Compare two circuits, in the order of ``FIELDS``."""
    shape, rng = one.circuit.shape, np.random.default_rng(0)
    same = np.arange(shape[1]), np.arange(shape[3])
    order = best_order(one.circuit, other.circuit, one.data) if matched else same
    value = jaccard(one.circuit, reordered(other.circuit, order))
    half = float("nan")
    if min(one.data.sizes["example"], other.data.sizes["example"]) > 1:
        several = zip(one.resampled, reordered(other.resampled, order), strict=True)
        half = SURE * float(np.std([jaccard(*pair) for pair in several]))
    possible, chance = np.flatnonzero(one.data.share.notnull().values), []
    for _ in range(DRAWS):
        first, second = (_random(possible, int(found.circuit.sum()), shape, rng) for found in (one, other))
        chance.append(jaccard(first, reordered(second, best_order(first, second, one.data) if matched else same)))
    low, high = (min(max(end, 0.0), 1.0) for end in (value - half, value + half))
    return one.name, other.name, value, low, high, float(np.mean(chance)), matched


def _random(possible: ndarray, size: int, shape: tuple[int, ...], rng: np.random.Generator) -> Circuit:
    """A random circuit of so many edges."""
    circuit: Circuit = np.zeros(np.prod(shape), bool)
    circuit[rng.choice(possible, size, replace=False)] = True
    return circuit.reshape(shape)
