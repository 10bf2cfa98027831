"""Tables of the probes that ask which algorithm a loop runs."""

from __future__ import annotations

import numpy as np
import xarray as xr
from rich.table import Table

from loopprobe.tables.common import titled, with_ends


def align_table(data: xr.Dataset) -> Table:
    """How much of the predictions each algorithm explains, and how like it is: a row an algorithm."""
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
        at = data.sel(algorithm=name)
        diverges = float(at.explained) < -1
        cells = (
            ["diverges"] * 3 if diverges else [with_ends(at, part) for part in ("explained", "gain", "steps_per_loop")]
        )
        similar = [float(at[f"best_{part}_similarity"].sel(loop=middle).mean()) for part in ("error", "weight")]
        null = float(at.null_explained)
        table.add_row(
            str(name), *cells, *(f"{value:.3g}" for value in similar), f"{null:.3g}" if null > -1 else "diverges"
        )
    return table


def improving(data: xr.Dataset) -> np.ndarray:
    """Iterations whose error lies between nine tenths and a twentieth of that of predicting zero."""
    error = data.model_error
    inside = data.loop.values[((error < 0.9) & (error > 0.05)).values]
    return inside if len(inside) else data.loop.values
