"""Tables and sentences of the study's probes and verdicts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from rich.table import Table

from loopprobe.show.arrange import baselines_of, by_prompts, ends_to_show, evenly, loops_to_show, told_to_show
from loopprobe.show.folds_rows import rows_of
from loopprobe.show.tables.common import (
    cell,
    error_table,
    errors_caption,
    interval,
    loss_unit,
    percent,
    with_ends,
)
from loopprobe.show.tables.plain import titled
from loopprobe.support.statistics import moving_mean


def mask_table(data: xr.Dataset) -> Table:
    """Tabulate the median error with its 95 % interval: a row for the clean run and each n, a column per loop count.

    The last columns are the share of prompts that fail and the mean error, after the last of these loops.
    """
    table = titled(f"{data.model.item()}: {data.attrs['description']}")
    table.caption = errors_caption(data)
    table.add_column("n", justify="right")
    shown = loops_to_show(data)
    for loop in shown:
        table.add_column(f"{loop} loop{'s' * (loop > 1)}", justify="right")
    fails = "failures" in data
    for name in ("fail", "mean") if fails else ("mean",):
        table.add_column(name, justify="right")
    for n in (None, *data.n.values):
        row, prefix = (data, "clean_") if n is None else (data.sel(n=n), "")
        cells = [with_ends(row.sel(loop=t), f"{prefix}median") for t in shown]
        end = row.sel(loop=shown[-1])
        cells += [percent(end, f"{prefix}failures")] if fails else []
        table.add_row("clean" if n is None else str(n), *cells, f"{float(end[f'{prefix}mean']):.3g}")
    return table


def converge_table(datasets: Sequence[xr.Dataset]) -> Table:
    """Tabulate the median error with its 95 % interval: one row per model, one column per loop count.

    Then come the share of prompts that fail and the mean error, both after the last of these loops, and the optimum.
    """
    last = min(int(data.loop[-1]) for data in datasets)
    wanted = told_to_show(datasets[0]) or (5, 10, 20, 50, 100, 500)
    shown = [t for t in wanted if t <= last] or [last]
    table = error_table("error against the number of loops", datasets)
    for loop in shown:
        table.add_column(f"{loop} loops", justify="right")
    for name in ("fail", "mean"):
        table.add_column(name, justify="right")
    of_text = any("perplexity" in data for data in datasets)
    table.add_column("perplexity of all tokens" if of_text else "optimum", justify="right")
    for data in datasets:
        end = data.sel(loop=shown[-1])
        cells = [with_ends(data.sel(loop=t), "median") for t in shown]
        cells += [percent(end, "failures"), f"{float(end['mean']):.3g}"]
        error, name = float(data.optimum.median()), data.attrs["optimum"]
        best = name if np.isnan(error) else f"{error:.3g}, {name}"
        if of_text:
            best = (
                ", ".join(f"{float(data.perplexity.sel(loop=t)):.4g}" for t in shown) if "perplexity" in data else "–"
            )
        table.add_row(data.model.item(), *cells, best)
    return table


def compare_table(datasets: Sequence[xr.Dataset]) -> Table:
    """Tabulate the median error with its 95 % interval by in-context examples.

    Each model, each optimum and each baseline has one row. The last columns are the share of prompts that fail and the
    mean error, both at the query, and if labels are signs the accuracy there.
    """
    last = sorted({int(data.point[-1]) for data in datasets})
    points = sorted({*(int(p) for p in np.linspace(0, last[-1], 5).round()), *last})
    right = any("accuracy" in data for data in datasets)
    table = error_table("error by in-context examples", datasets)
    at_query = ("fail", "mean", "accuracy") if right else ("fail", "mean")
    for column in ("parameters", *(f"{point} examples" for point in points), *at_query):
        table.add_column(column, justify="right")
    rows = [(_looped(data, int(data.attrs["loops"])), f"{data.attrs['parameters']:,}", data, "") for data in datasets]
    for words, members in by_prompts(datasets).items():
        suffix = f" ({words})" if words else ""
        if bool(members[0].optimum.notnull().any()):
            rows.append((members[0].attrs["optimum"] + suffix, "", members[0], "optimum_"))
        for name, data in baselines_of(members).items():
            rows.append((f"{name}{suffix}, {int(data.baseline_prompts)} prompts", "", data, "baseline_"))
    for name, parameters, data, prefix in rows:
        cells = [cell(data, f"{prefix}median", point=p) for p in points]
        end = data.isel(point=-1)
        cells += [percent(end, f"{prefix}failures"), f"{float(end[f'{prefix}mean']):.3g}"]
        if right:
            cells.append(cell(data, f"{prefix}accuracy", point=int(data.point[-1])))
        table.add_row(name, parameters, *cells)
    return table


def _looped(data: xr.Dataset, loops: int) -> str:
    """Return the name of a model with its number of loops."""
    return f"{data.model.item()}, {loops} loop{'s' * (loops > 1)}"


def shift_table(datasets: Sequence[xr.Dataset]) -> Table:
    """Tabulate the error at the query: one row per shift, one column per model after its trained loops.

    A looped model that is better in distribution than another model gets a second column, after so few loops that it
    is not. A difference out of distribution that remains there is not explained by the difference in distribution.
    """
    table = titled("error out of distribution")
    table.caption = errors_caption(datasets[0])
    table.add_column("prompts")
    level = max(float(data["median"].isel(shift=0, loop=-1)) for data in datasets)
    columns: list[xr.Dataset] = []
    for data in datasets:
        trained = data.isel(loop=-1)
        equal = data.isel(loop=int(np.abs(np.log(data["median"].isel(shift=0).values / level)).argmin()))
        columns += [trained] if int(equal.loop) == int(trained.loop) else [trained, equal]
    for column in columns:
        table.add_column(_looped(column, int(column.loop)), justify="right")
        table.add_column("fail", justify="right")
    for shift in dict.fromkeys(str(s) for data in datasets for s in data["shift"].values):
        rows = [column.sel(shift=shift) if shift in column["shift"] else None for column in columns]
        cells = [
            text for row in rows
            for text in (("–", "–") if row is None else (with_ends(row, "median"), percent(row, "failures")))
        ]  # fmt: skip
        table.add_row(shift, *cells)
    return table


def folds_table(datasets: Sequence[xr.Dataset]) -> Table:
    """Tabulate the accuracy at the query, one column per table.

    Each kind of model has one row for the tables that were left out and one for those that it was trained on.
    """
    table = titled("tables of real data")
    prompts, examples = datasets[0].sizes["example"], int(datasets[0].point[-1])
    table.caption = f"right answers after {examples} examples, share of {prompts} prompts [95 % interval]"
    table.add_column("model")
    names = [str(name) for name in datasets[0].table.values]
    for name in names:
        table.add_column(name, justify="right")
    for row in rows_of(datasets):
        table.add_row(row.name, *(interval(*row.accuracy[name]) if name in row.accuracy else "–" for name in names))
    return table


def mask_models_table(datasets: Sequence[xr.Dataset]) -> Table:
    """Tabulate the median error with its 95 % interval: one row per model and loop count, one column per n."""
    values = np.unique(np.concatenate([data.n.values for data in datasets]))
    picked = evenly(values.tolist(), 8)
    table = error_table("error by what is kept", datasets)
    table.caption = f"{table.caption}; {len(picked)} of {len(values)} n" if len(picked) < len(values) else table.caption
    table.add_column("loops", justify="right")
    for n in picked:
        table.add_column(f"n = {n}", justify="right")
    for data in datasets:
        for loop in ends_to_show(data):
            cells = [cell(data, "median", loop=loop, n=n) for n in picked]
            table.add_row(data.model.item(), str(loop), *cells)
    return table


def curves_table(datasets: Sequence[xr.Dataset]) -> Table:
    """Tabulate the smoothed training loss: one row per model, one column per fraction of its steps."""
    table = titled("training loss")
    table.caption = f"{loss_unit(datasets)} of the training prompts, mean over answers, loops and the last 100 steps"
    for name in ("model", "steps", *(f"{share} %" for share in (10, 25, 50, 75, 100)), "seconds"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for data in datasets:
        loss = moving_mean(data.loss.values, data.step.values)
        indices = [
            int(np.searchsorted(data.step, fraction * int(data.step[-1]))) for fraction in (0.1, 0.25, 0.5, 0.75, 1)
        ]
        cells = [f"{loss[i]:.3g}" for i in indices]
        table.add_row(data.model.item(), f"{int(data.step[-1]):,}", *cells, f"{float(data.seconds[-1]):.0f}")
    return table
