"""Datasets as people give them: one, a list, a dict by labels, or joined along a dim; checked and told apart."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import xarray as xr

from loopprobe.errors import LoopprobeError
from loopprobe.probes.declaration import Shown
from loopprobe.probes.labels import differ_in_model_alone, labels_of, model_labels
from loopprobe.probes.paired import DIFFERENCE
from loopprobe.probes.registry import PROBES
from loopprobe.show.side_by_side import SideBySide, beside

Datasets = xr.Dataset | Sequence[xr.Dataset] | Mapping[str, xr.Dataset]


class Group:
    """Datasets of one probe, told apart.

    Attributes:
        datasets: the datasets, each under a name of its model that no other model has.
        labels: what a person calls them; None where what differs between them says it.
        probe, shown: what made them, and how it is shown.
    """

    def __init__(self, given: Datasets) -> None:
        """Tell datasets apart.

        Raises:
            LoopprobeError: there is none, several probes made them, or two do not differ.
        """
        self.labels = (
            list(map(str, given)) if isinstance(given, Mapping) and not isinstance(given, xr.Dataset) else None
        )
        several = [given] if isinstance(given, xr.Dataset) else given.values() if isinstance(given, Mapping) else given
        parts = [part for one in several for part in _parts(one)]
        if not parts:
            raise LoopprobeError("there is no dataset to draw: give what a probe of loopprobe returned")
        if self.labels and len(self.labels) != len(parts):
            raise LoopprobeError("a dataset in this dict is several that were joined: give each under a label")
        if len(probes := {_probe(data) for data in parts}) > 1:
            raise LoopprobeError(
                f"the datasets are of several probes ({', '.join(sorted(probes))}): draw them one by one"
            )
        self.datasets = [
            data.assign_coords(model=label) for data, label in zip(parts, model_labels(parts), strict=True)
        ]
        self.names = self.labels or labels_of(self.datasets)
        self.probe = probes.pop()
        self.shown = Shown() if self.probe == DIFFERENCE else PROBES[self.probe].shown

    @property
    def are_models(self) -> bool:
        """Whether the probe has figures and tables of its own for datasets that differ in the model alone."""
        return self.shown.compared and not self.labels and differ_in_model_alone(self.datasets)

    @property
    def is_shown_together(self) -> bool:
        """Whether there is one figure and table of all datasets."""
        return self.are_models or self.side is not None

    @cached_property
    def side(self) -> SideBySide | None:
        """The datasets side by side; None of a single one, and where they cannot stand side by side."""
        if len(self.datasets) == 1 and self.probe != DIFFERENCE:
            return None
        try:
            return self.beside()
        except LoopprobeError:
            return None

    def beside(self) -> SideBySide:
        """Return the datasets side by side.

        Raises:
            LoopprobeError: they cannot stand so.
        """
        return beside(self.datasets, self.labels)

    def require_together(self) -> None:
        """Raise LoopprobeError where there are several datasets and they cannot stand in one figure and table."""
        if len(self.datasets) > 1 and not self.are_models:
            self.beside()

    def each(self) -> dict[str, xr.Dataset]:
        """Return every dataset by a label that a file name may hold; its model is called by what tells it apart."""
        told = {}
        for data, name in zip(self.datasets, self.names, strict=True):
            model = str(data.model.item())
            called = name if self.labels or name.startswith(model) else ", ".join(filter(None, (model, name)))
            told[stem_of(name or model)] = data.assign_coords(model=called)
        return told


def grouped(given: Datasets | Group) -> Group:
    """Return datasets told apart; those that are already stay so, and what was computed of them is kept."""
    return given if isinstance(given, Group) else Group(given)


def stem_of(label: str) -> str:
    """Return a label as a part of a file's name."""
    return re.sub(r"[^\w.+-]+", "-", label).strip("-")


def _parts(data: Any) -> list[xr.Dataset]:
    """Split a dataset that was joined along a dim of its own, and restore the attributes of each part."""
    if not isinstance(data, xr.Dataset):
        raise LoopprobeError(f"a {type(data).__name__} is no dataset: give what a probe of loopprobe returned")
    joined = [str(dim) for dim in (data.source.dims if "source" in data else ())]
    if not joined and "model" not in data.dims and not (data.attrs.get("probe") == "mask" and "mode" in data.dims):
        return [data]
    if len(joined) != 1:
        raise LoopprobeError(
            f"the datasets joined along {' and '.join(joined) or 'model or mode'} have lost what tells them apart: "
            "give them as a list"
        )
    parts = []
    for i in range(data.sizes[joined[0]]):
        part = data.isel({joined[0]: i})
        part.attrs = json.loads(part.source.item())
        parts.append(part if joined == ["model"] else part.drop_vars(joined, errors="ignore"))
    return parts


def _probe(data: xr.Dataset) -> str:
    """Return the name of the probe that made a dataset."""
    probe = data.attrs.get("probe")
    if probe not in PROBES and probe != DIFFERENCE:
        raise LoopprobeError(f"this dataset is of no probe ({probe!r}): give what a probe of loopprobe returned")
    return str(probe)
