"""What cells and captions of the tables of datasets share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from rich.table import Table

from loopprobe.probes.dataset import read_stamp
from loopprobe.show.tables.plain import titled


def error_table(title: str, datasets: Sequence[xr.Dataset]) -> Table:
    """Return an empty table of errors; its caption names the unit and its first column is the model."""
    table = titled(title)
    table.caption = errors_caption(datasets[0])
    table.add_column("model")
    return table


def errors_caption(data: xr.Dataset) -> str:
    """Return what the cells of a table of errors hold."""
    return f"{read_stamp(data).query_unit}, median of {data.sizes['example']} prompts [95 % interval]{failing(data)}"


def failing(data: xr.Dataset) -> str:
    """Return what counts as a failure, for captions; empty where a dataset does not say it."""
    if "failure_level" not in data.attrs:
        return ""
    return f"; fail: share of prompts with an error above {data.attrs['failure_level']:.2g}"


def two_digits(number: float) -> str:
    """Format a number with two digits, and one of 100 or so as a whole number: ``0.31``, ``100``, not ``1e+02``."""
    return f"{number:.2g}" if abs(number) < 99.5 else f"{number:.0f}"


def percent(data: xr.Dataset, name: str) -> str:
    """Format a share with its interval in percent: ``0.3 % [0.1, 0.9]``."""
    share, low, high = (100 * float(data[name + part]) for part in ("", "_low", "_high"))
    return "–" if np.isnan(share) else f"{two_digits(share)} % [{two_digits(low)},\u00a0{two_digits(high)}]"


def whole_percent(data: xr.Dataset, name: str) -> str:
    """Format a number with its interval in whole percent, which may be below 0 or above 100: ``93 % [88, 101]``."""
    value, low, high = (100 * float(data[name + part]) for part in ("", "_low", "_high"))
    if np.isnan(value):
        return "–"
    ends = "–" if np.isnan(low) else f"{round(low)},\u00a0{round(high)}"
    return f"{round(value)} % [{ends}]"


def interval(mean: Any, low: Any, high: Any) -> str:
    """Format an estimate with its interval: ``0.12 [0.1, 0.14]``.

    An estimate without an interval, such as that of a single prompt, reads ``0.12 [–]``.
    """
    if np.isnan(float(low)) and np.isnan(float(high)):
        return f"{float(mean):.3g} [–]"
    return f"{float(mean):.3g} [{float(low):.3g},\u00a0{float(high):.3g}]"  # a line breaks before the bracket only


def cell(data: xr.Dataset, name: str, **where: Any) -> str:
    """Format a variable with its interval, or a dash where the dataset lacks the coordinates or the variable.

    Args:
        data: a dataset of a probe.
        name: the variable; ``{name}_low`` and ``{name}_high`` are the ends of its interval.
        where: the coordinates to select, by dimension.
    """
    there = name in data and all(value in data[dim].values for dim, value in where.items())
    return with_ends(data[[name, f"{name}_low", f"{name}_high"]].sel(where), name) if there else "–"


def with_ends(data: xr.Dataset, name: str) -> str:
    """Format a variable with its interval, whose ends are ``{name}_low`` and ``{name}_high``."""
    return interval(*(data[name + part] for part in ("", "_low", "_high")))


def loss_unit(datasets: Sequence[xr.Dataset]) -> str:
    """Return the unit of the training loss of these models in words; where they have several, those with "or"."""
    losses = [(read_stamp(data).config["train"] or {}).get("loss") for data in datasets]
    words = ["cross entropy, nats" if loss == "cross_entropy" else "squared error" for loss in losses]
    return " or ".join(dict.fromkeys(words))
