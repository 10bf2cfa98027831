"""Tables of the probes that ask which algorithm a loop runs."""

from __future__ import annotations

import numpy as np
import xarray as xr
from rich.table import Table

from loopprobe.show.tables.common import with_ends
from loopprobe.show.tables.plain import titled
from loopprobe.show.tables.tokens import results_table


def align_table(data: xr.Dataset) -> Table:
    """Tabulate how much of the predictions each algorithm explains and how similar it is, one row per algorithm."""
    iteration = data.attrs["iteration"]
    table = titled(f"{data.model.item()}: {data.attrs['identified']} identified")
    table.caption = (
        "explained: share of the predictions of all iterations, each with its nearest step; gain: over least squares "
        "scaled from 0 to 1; cosines: mean over the iterations in which the model improves most "
        f"[95 % bootstrap interval]. Fitted: {data.attrs['constants']}"
    )
    for column in ("algorithm", "explained", "gain", f"steps a {iteration}", "cosine of errors", "of induced weights"):
        table.add_column(column, justify="left" if column == "algorithm" else "right")
    table.add_column("never trained: explained", justify="right")
    middle = improving(data)
    for name in data.algorithm.values:
        algorithm = data.sel(algorithm=name)
        diverges = bool(algorithm.explained.isnull())
        cells = (
            ["diverges"] * 3
            if diverges
            else [with_ends(algorithm, part) for part in ("explained", "gain", "steps_per_loop")]
        )
        similar = [float(algorithm[f"best_{part}_similarity"].sel(loop=middle).mean()) for part in ("error", "weight")]
        null = "diverges" if algorithm.null_explained.isnull() else f"{float(algorithm.null_explained):.3g}"
        table.add_row(str(name), *cells, *(f"{value:.3g}" for value in similar), null)
    return table


def improving(data: xr.Dataset) -> np.ndarray:
    """Return the iterations whose error lies between a twentieth and nine tenths of the error of predicting zero.

    If there are none, return all iterations.
    """
    error = data.model_error
    inside = data.loop.values[((error < 0.9) & (error > 0.05)).values]
    return inside if len(inside) else data.loop.values


def decode_table(data: xr.Dataset) -> Table:
    """Tabulate where ridge regression reads each target best, and what networks read, one row per target.

    The query's token has a column of its own.
    """
    if "accuracy" in data:
        return results_table(data)
    iteration = data.attrs["iteration"]
    table = titled(f"{data.model.item()}: what the state holds")
    table.caption = (
        "R² on other prompts than the decoders were trained on; in brackets with shuffled targets. Networks: after the "
        f"first and the last {iteration}, with 95 % bootstrap intervals"
    )
    table.add_column("target")
    for column in (
        "ridge, best place",
        "where",
        "ridge, query's token",
        "network, pooled state",
        "network, every token",
    ):
        table.add_column(column, justify="right")
    for name in data.target.values:
        r2, shuffled = (data.r2.sel(target=name, control=one) for one in ("none", "shuffled"))
        best = r2.isel(r2.argmax(["loop", "layer", "position"]))
        place = {dim: best[dim].item() for dim in ("loop", "layer", "position")}
        where = f"loop {place['loop']}, " if data.sizes["loop"] > 1 else ""
        where += f"layer {place['layer']}, " if data.sizes["layer"] > 1 else ""
        last = {"loop": -1, "layer": -1, "position": -1}
        cells = [
            f"{float(best):.3g} ({float(shuffled.sel(place)):.2g})", f"{where}token {place['position']}",
            f"{float(r2.isel(last)):.3g} ({float(shuffled.isel(last)):.2g})",
        ]  # fmt: skip
        for kind in data.network.values if "network_r2" in data and name in data["of"] else []:
            decoded = data.sel(network=kind, control="none", of=name)
            cells.append(" → ".join(with_ends(decoded.isel(iteration=i), "network_r2") for i in (0, -1)))
        table.add_row(str(name), *cells, *[""] * (5 - len(cells)))
    if "loop_index_r2" in data:
        index = data.loop_index_r2
        best = index.isel(index.argmax(["layer", "position"]))
        where = f"layer {int(best.layer)}, " if data.sizes["layer"] > 1 else ""
        last = index.isel(layer=-1, position=-1)
        cells = [f"{float(best):.3g}", f"{where}token {int(best.position)}", f"{float(last):.3g}"]
        table.add_row("number of the loop", *cells, "", "")
    for edit in data.edit.values if "slope" in data else []:
        edited = data.sel(edit=edit)
        moved = ", ".join(f"{with_ends(edited.sel(after=k), 'slope')} after {k}" for k in (0, 1, 2) if k in data.after)
        table.caption += f"\nEdited in loop {data.attrs['edited_loop']}: {edit}; prediction moved / as decoded: {moved}"
    return table
