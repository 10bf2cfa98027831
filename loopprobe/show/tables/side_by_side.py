"""The table of several datasets of one probe: a column a dataset, and a column a paired difference."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from rich.table import Table

from loopprobe.show.arrange import evenly, loops_to_show
from loopprobe.show.side_by_side import Place, Row, SideBySide, axis_words
from loopprobe.show.tables.common import cell, interval
from loopprobe.show.tables.plain import titled

MOST_ROWS, MOST_GROUPS = 40, 3
MOST_LINES = 240  # of datasets and differences below one another
MOST_COLUMNS = 4  # that fit a terminal, of numbers with their intervals


def side_by_side_table(side: SideBySide) -> Table:
    """Tabulate datasets of one probe side by side, with their paired differences where they have the prompts.

    Lines have a row for each point along the axis, and loop counts stand beside one another. Heat maps have a row for
    each place at which the datasets differ most.

    Args:
        side: the datasets.
    """
    whose = " against ".join(side.names)
    model = f"{side.model}: " if side.model and side.model not in whose else ""
    table = titled(f"{model}{side.probe.replace('_', ' ')}, {whose}")
    prompts = side.first.sizes.get("example")
    what = " or ".join(side.units) if len(side.units) == 1 else "; ".join(f"{r.label}: {r.unit}" for r in side.rows)
    kind = "median of " if side.quantity.name == "median" else ""
    of = f", {kind}{prompts} prompts [95 % interval]" if prompts else ""
    paired = side.differences or side.of_differences
    why = f"; no paired differences: {side.why}" if side.why else ""
    columns = [*side.rows, *side.differences]
    rows, groups, every = _rows(side)
    blocks: list[Place] = [{}]
    if len(groups) * len(columns) > MOST_COLUMNS:  # what would stand beside one another stands below
        blocks, groups = groups, [{}]
    if len(columns) > MOST_COLUMNS:  # a line a dataset and difference: of many places some
        rows = evenly(rows, max(4, MOST_LINES // (len(columns) * len(blocks))))
    kept = f"; {len(rows)} of {every:,} {'places, those furthest apart' if side.y else 'rows'}"
    some = kept if len(rows) < every else ""
    table.caption = what + of + ("; differences are paired, prompt by prompt" if paired else why) + some
    dims = list(dict.fromkeys(dim for row in (*rows, *blocks) for dim in row))
    lines = list(_lines(side, rows, blocks, dims))
    for dim in dims:
        table.add_column(axis_words(side, dim).partition(" (")[0], justify="right")
    if len(columns) > MOST_COLUMNS:
        _add_below_one_another(table, lines, columns)
        return table
    for group in groups:
        for column in columns:
            name = column.label or "difference"
            table.add_column(", ".join(part for part in (name, side.words(group)) if part), justify="right")
    for line in lines:
        cells = (line.text(column, group) for group in groups for column in columns)
        table.add_row(*line.heads, *cells, end_section=bool(line.reference))
    return table


@dataclass(frozen=True)
class _Line:
    """A line of the table.

    Attributes:
        heads: what stands at its head.
        place: where its numbers are from.
        reference: the variable that stands there instead, such as the clean run's; empty: the quantity.
    """

    heads: list[str]
    place: Place
    reference: str = ""

    def text(self, column: Row, group: Place | None = None) -> str:
        """Return the number of a dataset or a difference in this line, in a group of columns."""
        place = {**self.place, **(group or {})}
        if not self.reference:
            return _cell(column, place)
        return "" if column.of else cell(column.data, self.reference, **place)


def _lines(side: SideBySide, rows: Sequence[Place], blocks: Sequence[Place], dims: Sequence[str]) -> Iterator[_Line]:
    """Yield the lines; a block ends with the reference, where there is one beside all places along the axis."""
    along = not side.of_differences and all(list(row) == [side.x] for row in rows)
    for block in blocks:
        for row in rows:
            place = {**row, **block}
            yield _Line([_short(place.get(dim, "–")) for dim in dims], place)
        if side.quantity.reference and along:
            yield _Line(["clean", *(_short(block[dim]) for dim in dims[1:])], block, side.quantity.reference)


def _add_below_one_another(table: Table, lines: Sequence[_Line], columns: Sequence[Row]) -> None:
    """Add the datasets and differences as rows, line by line."""
    table.add_column("")
    table.add_column("value", justify="right")
    for line in lines:
        heads = line.heads
        for column in columns:
            if value := line.text(column):
                table.add_row(*heads, column.label or "difference", value)
                heads = [""] * len(heads)
        table.add_section()


def _rows(side: SideBySide) -> tuple[list[Place], list[Place], int]:
    """Return the places of the rows, what stands in groups of columns beside one another, and how many rows all are."""
    if side.y:
        return _largest(side), [{}], side.rows[0].values.size
    values = side.rows[0].values[side.x].values.tolist()
    if side.x == "loop":
        shared = xr.Dataset(coords={"loop": values}, attrs=side.first.attrs)
        values = loops_to_show(shared)
    some = values if len(values) <= MOST_ROWS else evenly(values, 12)
    places = side.places(MOST_ROWS)
    along: list[Place] = [{side.x: value} for value in some]
    if {dim for place in places for dim in place} <= {"loop"} and len(places) <= MOST_GROUPS:
        return along, places, len(values)
    every = len(values) * len(side.places(sys.maxsize))
    return [{**place, **one} for place in side.places(12) for one in along], [{}], every


def _largest(side: SideBySide) -> list[Place]:
    """Return the twelve places at which the differences, or else the datasets, are largest."""
    rows = side.differences or side.rows
    sizes = abs(rows[0].values.astype(float))
    if not side.differences and len(side.rows) > 1:
        sizes = abs(side.rows[1].values.astype(float) - sizes)
    flat = np.nan_to_num(sizes.values.ravel(), nan=-1.0, posinf=-1.0)
    order = [i for i in np.argsort(-flat, kind="stable")[:12] if flat[i] >= 0]
    places = [np.unravel_index(i, sizes.shape) for i in order]
    return [
        {str(dim): sizes[dim].values[i].item() for dim, i in zip(sizes.dims, place, strict=True)} for place in places
    ]


def _cell(row: Row, place: Place) -> str:
    value, ends = row.at(place)
    if not np.isfinite(float(value)):
        return "–"
    return f"{float(value):.3g}" if ends is None else interval(value, *ends)


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
