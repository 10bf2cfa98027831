"""The table of the edges probe."""

from __future__ import annotations

import numpy as np
import xarray as xr
from rich.table import Table

from loopprobe.show.arrange import edge_name, estimates_that_fail, largest_edges
from loopprobe.show.tables.common import interval
from loopprobe.show.tables.plain import titled


def edges_table(data: xr.Dataset, most: int = 16) -> Table:
    """Tabulate the largest direct effects with their exact values, where they were computed.

    The caption says how far the estimates agree with them, and names the edges where they fail.
    """
    table = titled(f"{data.model.item()}: the largest direct effects on the {data.attrs['measure']}")
    failing = estimates_that_fail(data)
    checked = int(data.chosen.isin(["largest", "random"]).sum())
    caption = (
        f"of {int(data.share.notnull().sum()):,} edges; 1: as far as the corrupted run ({data.attrs['corruption']})"
    )
    if checked:
        caption += "; correlation of estimates and exact effects " + ", ".join(
            f"{'–' if np.isnan(data.attrs[key]) else format(data.attrs[key], '.2f')} {words}"
            for key, words in (("correlation", "at random"), ("correlation_largest", "among the largest"))
        )
        caption += f"; {len(failing)} of {checked} estimates lie outside the exact interval"
        caption += f", most of all {', '.join(map(edge_name, failing[:3]))}" if failing else ""
    table.caption = caption
    for name in ("from loop", "sender", "to loop", "receiver", "lag", "estimate", "exact"):
        table.add_column(name, justify="left" if name in ("sender", "receiver") else "right")
    for edge in largest_edges(data, most):
        exact = "–" if np.isnan(edge["exact"]) else interval(edge["exact"], edge["exact_low"], edge["exact_high"])
        table.add_row(
            str(edge["from_loop"]), edge["sender"], str(edge["to_loop"]), edge["receiver"],
            str(edge["to_loop"] - edge["from_loop"]),
            interval(edge["share"], edge["share_low"], edge["share_high"]), exact,
        )  # fmt: skip
    return table
