"""What all tables share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from rich import box
from rich.console import Console
from rich.table import Table

from loopprobe.probes.dataset import read_stamp


def show_table(table: Table) -> None:
    """Print a table; as wide as it needs where the output is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(80, Console(width=1000).measure(table).maximum))
    console.print(table)


def markdown(table: Table) -> str:
    """The same table for a page in Markdown, folded under its title."""
    head, *rows = lines_of(table)
    lines = (f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
    return "\n".join([f"<details><summary>{table.title} ({len(rows)})</summary>", "", *lines, "", "</details>"])


def lines_of(table: Table) -> list[list[str]]:
    """What stands in a table, line by line, its head first."""
    columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    return [list(line) for line in zip(*columns, strict=True)]


def titled(title: str) -> Table:
    """A table in the common style."""
    return Table(title=title, box=box.SIMPLE, title_justify="left", caption_justify="left")


def error_table(title: str, datasets: Sequence[xr.Dataset]) -> Table:
    """A table of errors, whose caption says what they are; its first column is the model."""
    table = titled(title)
    prompts = datasets[0].sizes["example"]
    table.caption = f"{read_stamp(datasets[0]).unit}, mean of {prompts} prompts [95 % bootstrap interval]"
    table.add_column("model")
    return table


def interval(mean: Any, low: Any, high: Any) -> str:
    """``0.12 [0.1, 0.14]``; ``0.12 [–]`` where there is no interval, as of a single prompt."""
    if np.isnan(float(low)) and np.isnan(float(high)):
        return f"{float(mean):.3g} [–]"
    return f"{float(mean):.3g} [{float(low):.3g},\u00a0{float(high):.3g}]"  # breaks before the bracket only


def cell(data: xr.Dataset, names: Sequence[str], **where: Any) -> str:
    """A mean with its interval where a dataset has the place and the variables; else a dash.

    Args:
        data: of a probe.
        names: of the mean and the ends of its interval.
        where: the labels along its dims.
    """
    there = all(name in data for name in names) and all(value in data[dim].values for dim, value in where.items())
    return interval(*(data[name].sel(where) for name in names)) if there else "–"


def with_ends(at: xr.Dataset, name: str) -> str:
    """A variable with its ends ``{name}_low`` and ``{name}_high``."""
    return interval(*(at[name + part] for part in ("", "_low", "_high")))
