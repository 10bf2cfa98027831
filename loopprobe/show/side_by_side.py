"""Datasets of one probe side by side: their labels, the places that are shown, and their paired differences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import read_stamp
from loopprobe.probes.declaration import Quantity
from loopprobe.probes.labels import labels_of, model_labels
from loopprobe.probes.paired import (
    DIFFERENCE,
    difference,
    ends_of,
    pairs_of,
    probe_of,
    quantity_of,
    unit_of,
    unpaired,
    with_places,
    without_single,
)
from loopprobe.show.arrange import ends_to_show

MOST_DIFFERENCES = 6  # of one figure or table
Place = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One dataset, or one paired difference: an estimate with the ends of its interval, and what it is called.

    Attributes:
        label: what tells it from the others.
        data: the dataset.
        values, ends: the estimate, and both ends of its interval where there is one.
        unit: what the numbers count in.
        of: of a difference, the places of both datasets among those that are shown.
    """

    label: str
    data: xr.Dataset
    values: xr.DataArray
    ends: tuple[xr.DataArray, xr.DataArray] | None
    unit: str
    of: tuple[int, int] | None = None

    def at(self, place: Place) -> tuple[xr.DataArray, tuple[xr.DataArray, xr.DataArray] | None]:
        """Return the estimate and its ends at a place; NaN where this dataset has no such place."""
        wanted = {dim: [value] for dim, value in place.items()}
        there = [part.reindex(wanted).squeeze(list(place), drop=True) for part in (self.values, *(self.ends or ()))]
        return there[0], (there[1], there[2]) if self.ends else None


@dataclass(frozen=True)
class SideBySide:
    """Datasets of one probe side by side.

    Attributes:
        quantity: what they are compared by.
        rows: the datasets, in their order.
        differences: the paired differences, see ``probes.paired.pairs_of``; none where datasets cannot be paired.
        why: why there are none; empty where there are, or where there is one dataset.
    """

    quantity: Quantity
    rows: list[Row]
    differences: list[Row] = field(default_factory=list)
    why: str = ""

    @property
    def first(self) -> xr.Dataset:
        """The first dataset."""
        return self.rows[0].data

    @property
    def probe(self) -> str:
        """The probe of the datasets."""
        return probe_of(self.first)

    @property
    def of_differences(self) -> bool:
        """Whether the datasets are themselves differences."""
        return bool(self.first.attrs["probe"] == DIFFERENCE)

    @property
    def units(self) -> list[str]:
        """What the datasets count in, each unit once."""
        return list(dict.fromkeys(row.unit for row in self.rows))

    @property
    def model(self) -> str:
        """The model, where all datasets are of one; else empty."""
        names = list(dict.fromkeys(model_labels([row.data for row in self.rows])))
        return names[0] if len(names) == 1 else ""

    @property
    def names(self) -> list[str]:
        """What the datasets are called; of a single difference, what is subtracted from what."""
        return [row.label or str(row.data.attrs["pair"]) for row in self.rows]

    @cached_property
    def x(self) -> str:
        """The dim along the horizontal axis."""
        sizes = {dim: self.rows[0].values.sizes[dim] for dim in self.quantity.along if dim in self.rows[0].values.dims}
        return next((dim for dim, size in sizes.items() if size >= 4), list(sizes)[-1])

    @property
    def y(self) -> str:
        """The dim along the vertical axis of heat maps; empty where lines are drawn."""
        return self.quantity.across

    def places(self, most: int) -> list[Place]:
        """Return the places that are shown beside the axes: those at which the datasets differ most.

        Args:
            most: the most places.
        """
        values = self.rows[0].values
        dims = [dim for dim in values.dims if dim not in (self.x, self.y)]
        choices = []
        for dim in dims:
            at = values[dim].values.tolist()
            if dim == "loop":
                shared = sorted(set.intersection(*(set(row.values[dim].values.tolist()) for row in self.rows)) or at)
                at = ends_to_show(xr.Dataset(coords={"loop": shared}, attrs=self.first.attrs))
            choices.append(at)
        every: list[Place] = [dict(zip(map(str, dims), place, strict=True)) for place in itertools.product(*choices)]
        if len(every) <= most:
            return every
        sizes = [self._spread(place) for place in every]
        return [every[i] for i in sorted(np.argsort(-np.array(sizes), kind="stable")[:most])]

    def words(self, place: Place) -> str:
        """Say where a place is: ``after 20 loops, n = 10``."""
        return ", ".join(self._said(dim, value) for dim, value in place.items())

    def _said(self, dim: str, value: Any) -> str:
        if dim == "loop":
            return f"in loop {value}" if self.probe == "ablate" else f"after {value} loop{'s' * (value != 1)}"
        if isinstance(value, str):
            return f"by {value}" if dim == "replaced_by" else value
        return f"{dim.replace('_', ' ')} {'= ' if dim == 'n' else ''}{value:g}"

    def _spread(self, place: Place) -> float:
        """Return how far apart the datasets are at a place, or how large they are where there is one."""
        parts = [row.at(place)[0] for row in self.rows]
        if len(parts) == 1:
            return _largest(parts[0])
        return max(_largest(part - parts[0]) for part in parts[1:])


def beside(datasets: Sequence[xr.Dataset], labels: Sequence[str] | None = None) -> SideBySide:
    """Put datasets of one probe side by side.

    Args:
        datasets: those of one probe, or paired differences of one probe.
        labels: what they are called; None: what differs between them says it.

    Raises:
        LoopprobeError: they cannot stand side by side.
    """
    quantity, names = quantity_of(datasets), list(labels or labels_of(datasets))
    told = zip(names, without_single(datasets, quantity), strict=True)
    rows = [_row(label, data, quantity) for label, data in told]
    for row in rows[1:]:
        for dim in row.values.dims:
            if not set(row.values[dim].values.tolist()) & set(rows[0].values[dim].values.tolist()):
                raise LoopprobeError(
                    f"{rows[0].label} and {row.label} have no {dim} in common: run both with the same {dim}"
                )
    if len(rows) == 1:
        return SideBySide(quantity, rows)
    pairs = pairs_of(datasets)
    whys = list(dict.fromkeys(unpaired([datasets[i], datasets[j]], quantity) for i, j in pairs))
    possible = [(i, j) for i, j in pairs if not unpaired([datasets[i], datasets[j]], quantity)]
    if len(possible) > MOST_DIFFERENCES:
        return SideBySide(quantity, rows, why=f"there are more than {MOST_DIFFERENCES} of them")
    made = []
    for i, j in possible:
        data = difference(datasets[i], datasets[j])
        pair = f"{names[i]} minus {names[j]}" if labels else str(data.attrs["pair"])
        made.append(replace(_row(pair, data, quantity), of=(i, j)))
    if len({row.label for row in made}) < len(made):
        made = [replace(row, label=f"{row.data.model.item()}: {row.label}") for row in made]
    return SideBySide(quantity, rows, made, "" if made else whys[0])


def _row(label: str, data: xr.Dataset, quantity: Quantity) -> Row:
    first = {dim: 0 for dim in quantity.first if dim in data[quantity.name].dims}
    ends = ends_of(data, quantity)
    values, *both = (with_places(data[name].isel(first)) for name in (quantity.name, *(ends or ())))
    if data.attrs["probe"] != DIFFERENCE:
        values = values.clip(*quantity.bounds)
    if not bool(np.isfinite(values.values.astype(float)).any()):
        raise LoopprobeError(
            f"the dataset {label or data.model.item()} holds no number that can be drawn: all are missing or infinite"
        )
    return Row(label, data, values, (both[0], both[1]) if ends else None, unit_of(data, quantity))


def _largest(values: xr.DataArray) -> float:
    sizes = np.abs(values.values.astype(float))
    return float(sizes[np.isfinite(sizes)].max(initial=-math.inf))


def axis_words(side: SideBySide, dim: str) -> str:
    """Return what is counted along a dim, as the title of an axis or of a column."""
    stamp = read_stamp(side.first)
    of_probe = {
        ("ablate", "loop"): "loop in which it is ablated", ("patch", "loop"): "loops done when patched",
        ("attribute", "loop"): "loops done once it was written",
        ("mask", "n"): f"n: {stamp.options.get('unit')}s of the state "
                       f"{'masked' if stamp.options.get('invert') else 'kept'}",
    }  # fmt: skip
    words = {
        "loop": "loops done", "point": "in-context examples", "position": f"token ({stamp.tokens})",
        "after": "loops since the push", "edges": "edges that are kept", "from_loop": "loop of the sender",
        "to_loop": "loop of the receiver", "rule_setting": "rule of early exit", "reader": "reads", "writer": "writes",
    }  # fmt: skip
    return of_probe.get((side.probe, dim)) or words.get(dim, dim.replace("_", " "))
