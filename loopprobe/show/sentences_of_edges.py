"""What datasets of edges and circuits say, in one sentence each."""

from __future__ import annotations

import numpy as np
import xarray as xr

from loopprobe.show.arrange import edge_name, largest_edges
from loopprobe.show.tables.common import whole_percent

WIDE = 0.4  # of an interval of a share
ALIKE = 0.9  # cosine of the edges of two loops that do the same


def edges(data: xr.Dataset) -> str:
    """Say which edge is largest, at which lag most is told, and from when on the loops do the same."""
    largest = largest_edges(data, 1)
    if not largest:
        return f"{data.model.item()}: no component tells another anything directly."
    return (
        f"{data.model.item()}: the largest direct effect is {edge_name(largest[0])}, {largest[0]['effect']:.0%} of the "
        f"way to the corrupted answer; most is told with {_alike(data)}."
    )


def circuit(data: xr.Dataset) -> str:
    """Say how many edges keep the behaviour on other prompts, and from when on the loops do the same."""
    found, name = int(data.attrs["found"]), str(data.model.item())
    here, chance = (data.sel(set=kind, edges=found) for kind in ("ranked", "random"))
    wide = float(here.kept_high - here.kept_low) > WIDE
    few = " The interval of what they keep is wide: give more prompts." if wide else ""
    return (
        f"{name}: the best {found:,} of {data.attrs['possible']:,} edges keep {whole_percent(here, 'kept')} of the "
        f"{data.attrs['measure']} on prompts that did not choose them, as many at random "
        f"{round(100 * float(chance.kept))} %; without them {round(100 * float(here.left))} % is left; most of the "
        f"circuit is told with {_alike(data)}.{few}"
    )


def _alike(data: xr.Dataset) -> str:
    """Name the lag at which most is told, and the loop from which on the loops do the same at this lag."""
    by_lag = abs(data.by_lag).sum(("sender", "lag_receiver"))
    lag = int(by_lag.lag[int(by_lag.values.argmax())])
    similar = data.similarity.sel(lag=lag).dropna("from_loop")
    if similar.size < 2:
        return f"lag {lag}; no two loops can be compared"
    unlike = np.flatnonzero(similar.values < ALIKE)
    first = int(similar.from_loop[unlike[-1] + 1]) if len(unlike) else int(similar.from_loop[0])
    end = int(similar.from_loop[-1])
    if first == end:
        return f"lag {lag}; no loop before loop {end} has edges of that lag like those of it (cosine below {ALIKE:g})"
    return f"lag {lag}; from loop {first} on the edges of that lag are alike (cosine at least {ALIKE:g} with the last)"
