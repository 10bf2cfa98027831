"""The table of the steer probe."""

from __future__ import annotations

import xarray as xr
from rich.table import Table

from loopprobe.show.tables.common import with_ends
from loopprobe.show.tables.plain import titled

UNITS = {"std": "standard deviations of the states along it", "norm": "mean norms of the states"}


def steer_table(data: xr.Dataset) -> Table:
    """Tabulate the response to every strength, that to random directions, and what the loop leaves of the push."""
    table = titled(f"{data.model.item()}: steered by the {data.attrs['steered_by']}, {pushed_words(data)}")
    name, unit = data.attrs["measure"], data.attrs["measure_unit"]
    units = f", {unit}" if unit and unit != name else ""
    table.caption = (
        f"change of the {name}{units}, read after {data.attrs['read_after']} loops, median of "
        f"{data.sizes['example']} prompts with its 95 % interval; without a push "
        f"{float(data.clean.median()):.3g}; strength in {UNITS[data.attrs['strength_unit']]}; direction from "
        f"{data.attrs['fitted_on']}; random: mean of {data.sizes['control']} directions a prompt, pushed as far; "
        "distance: of the whole state from that without a push, relative"
    )
    columns = (
        "strength",
        "change",
        "random",
        "change minus random",
        "distance pushed",
        f"after {int(data.loop[-1])}",
        "left",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for strength in data.strength.values:
        row = data.sel(strength=strength)
        pushed, last = row.sel(loop=last_push(data)), row.isel(loop=-1)
        cells = [with_ends(row, name) for name in ("median", "control_median", "against_control_median")]
        left = "–" if strength == 0 else with_ends(row, "left")
        table.add_row(f"{strength:g}", *cells, f"{float(pushed.distance):.2g}", f"{float(last.distance):.2g}", left)
    return table


def last_push(data: xr.Dataset) -> int:
    """The loops that are done at the last push."""
    return int(data.in_loop[-1])


def pushed_words(data: xr.Dataset) -> str:
    """Say after which loops the state is pushed."""
    loops = [int(loop) for loop in data.in_loop.values]
    if len(loops) == 1:
        return f"after loop {loops[0]}"
    whole = loops == list(range(loops[0], loops[-1] + 1))
    return f"after loops {f'{loops[0]} to {loops[-1]}' if whole else ', '.join(map(str, loops))}"
