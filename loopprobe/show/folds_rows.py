"""What the folds probe shows: the accuracy of every kind of model and baseline, table by table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import xarray as xr

from loopprobe.config.schema import TaskConfig, read_config
from loopprobe.probes.dataset import read_stamp
from loopprobe.support.statistics import bootstrap_mean

Interval = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Row:
    """Accuracy of one kind of model, or of a baseline, on every table that it can be put to.

    Attributes:
        name: of the kind, and whether its models were trained on the table.
        accuracy: at the query, its mean and the ends of its 95 % interval, by table.
        kind: which kind or, counted after them, which baseline it is: for colours and symbols.
        trained_on: whether its models were trained on the tables; None: a baseline.
    """

    name: str
    accuracy: dict[str, Interval]
    kind: int
    trained_on: bool | None


def kind_of(data: xr.Dataset) -> str:
    """What a model is besides the tables that it was trained on; models of one kind are folds of one another."""
    cfg = read_config(read_stamp(data).config)
    if cfg.task.name != "tables":
        return str(data.model.item())
    short = TaskConfig().short
    return dataclasses.replace(cfg, task=TaskConfig()).name.removeprefix(short + "-")


def rows_of(datasets: Sequence[xr.Dataset]) -> list[Row]:
    """Left-out and trained-on tables of every kind, averaged over the models that had them so, then the baselines."""
    kinds: dict[str, list[xr.Dataset]] = {}
    for data in datasets:
        kinds.setdefault(kind_of(data), []).append(data)
    rows = []
    for i, (kind, own) in enumerate(kinds.items()):
        saw = any(bool(data.trained_on.any()) for data in own)
        for trained_on in (False, True):
            accuracy = {}
            for table in tables_in(own):
                right = [
                    d.right.sel(table=table).isel(point=-1) for d in own if d.trained_on.sel(table=table) == trained_on
                ]
                if right:
                    mean, low, high = bootstrap_mean(xr.concat(right, "fold").mean("fold").values)
                    accuracy[table] = float(mean), float(low), float(high)
            if accuracy:
                words = "trained on it" if trained_on else "left out" if saw else "trained on no table"
                rows.append(Row(f"{kind}, {words}", accuracy, i, trained_on))
    first = datasets[0].isel(point=-1)
    for i, baseline in enumerate(first.baseline.values if "baseline" in first else []):
        at = first.sel(baseline=baseline)
        parts = (at.baseline_accuracy, at.baseline_accuracy_low, at.baseline_accuracy_high)
        found = zip(at.table.values, *(part.values for part in parts), strict=True)
        accuracy = {str(table): (float(mean), float(low), float(high)) for table, mean, low, high in found}
        rows.append(Row(str(baseline), accuracy, i, None))
    return rows


def tables_in(datasets: Sequence[xr.Dataset]) -> list[str]:
    """The names of all tables, in the order in which they come."""
    return list(dict.fromkeys(str(table) for data in datasets for table in data.table.values))
