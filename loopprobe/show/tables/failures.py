"""Tables of the failures probe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from rich.table import Table

from loopprobe.probes.failures import COURSES
from loopprobe.show.tables.common import failing, percent, with_ends
from loopprobe.show.tables.plain import titled


def failures_table(data: xr.Dataset) -> Table:
    """Tabulate what becomes of the prompts, and where the query's state goes in each case.

    Args:
        data: a dataset of the failures probe.
    """
    loops, trained = int(data.loop[-1]), int(data.attrs["trained_loops"])
    table = titled(f"{data.model.item()}: answers after {trained + 1} to {loops} loops")
    table.caption = (
        f"share of {data.sizes['example']} prompts [95 % interval]{failing(data)}; first failure: median loop; of each "
        "the limit of the query's state"
    )
    limits = [str(name) for name in data.limit_type.values if float(data.limit_share.sel(limit_type=name).max()) > 0]
    for name in ("answer", "prompts", "first failure", *limits):
        table.add_column(name, justify="left" if name == "answer" else "right")
    for i, name in enumerate(COURSES):
        own = data.isel(course=i)
        onset = data.onset.values[data.prompt_course.values == i]
        first = f"{np.median(onset):.0f}" if len(onset) and np.isfinite(onset).all() else "–"
        shares = [float(own.limit_share.sel(limit_type=limit)) for limit in limits]
        table.add_row(name, percent(own, "share"), first, *("–" if np.isnan(one) else f"{one:.0%}" for one in shares))
    return table


def failures_models_table(datasets: Sequence[xr.Dataset]) -> Table:
    """Tabulate several models, one row each: what becomes of prompts, and the sign that tells most.

    Args:
        datasets: of the failures probe.
    """
    table = titled("answers when the loop goes on")
    table.caption = (
        f"shares of prompts [95 % interval]{failing(datasets[0])}; the sign after the trained loops that tells best "
        "which prompts will fail, with the area under its ROC curve"
    )
    for name in ("model", "loops", *COURSES, "best sign"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for data in datasets:
        shares = (percent(data.isel(course=i), "share") for i in range(len(COURSES)))
        table.add_row(str(data.model.item()), str(int(data.loop[-1])), *shares, best_sign(data))
    return table


def best_sign(data: xr.Dataset) -> str:
    """Return the sign whose area is farthest from one half, with its interval; a dash where none is known.

    Args:
        data: a dataset of the failures probe.
    """
    if data.auc.isnull().all():
        return "–"
    best = data.isel(sign=int(np.nanargmax(abs(data.auc.values - 0.5))))
    return f"{best.sign.item()} {with_ends(best, 'auc')}"
