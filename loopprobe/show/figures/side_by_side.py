"""The figure of several datasets of one probe: lines in one panel or heat maps in one colour scale, and differences."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.probes.dataset import read_stamp
from loopprobe.show.arrange import ignoring
from loopprobe.show.figures.style import (
    BLACK,
    DASHES,
    DASHES_OF_DIFFERENCES,
    colours,
    curve,
    diverging,
    finish,
    heat,
    level,
    name_tokens,
)
from loopprobe.show.side_by_side import Place, Row, SideBySide, axis_words

MOST_LINES, MOST_MAPS = 6, 4  # places beside the axes, for each dataset
PAIRED = "prompt by prompt"
_MANY = re.compile(r" \(n = [^)]*\)")  # what n is, which an axis tells
MOST_WAYS = 2  # of masking that a title tells
BAR = {"lenmode": "pixels", "len": 300, "y": 1, "yanchor": "top"}


def side_by_side_figure(side: SideBySide) -> go.Figure:
    """Draw datasets of one probe side by side, and beside them their paired differences where they have the prompts.

    Args:
        side: the datasets.

    Returns:
        Lines of all datasets in one panel (one a unit where they measure several), whose legend says what differs
        between them; or heat maps in one colour scale.
    """
    figure = _maps(side) if side.y else _lines(side)
    texts = [read_stamp(row.data).texts for row in side.rows]
    return name_tokens(figure, texts[0]) if texts[0] and all(one == texts[0] for one in texts) else figure


def _lines(side: SideBySide) -> go.Figure:
    """Draw a line for each dataset and place: a colour a place, a dash a dataset, or a colour where there is one."""
    places = side.places(MOST_LINES)
    units = side.units
    panels = [[row for row in side.rows if row.unit == unit] for unit in units] + [side.differences][
        : len(side.differences)
    ]
    titles = ["" if side.of_differences else _wrapped(unit, len(panels)) for unit in units]
    titles += [_wrapped(_pairs(side), len(panels))] if side.differences else []
    figure = make_subplots(1, len(panels), subplot_titles=titles, horizontal_spacing=0.14)
    one_place = len(places) == 1
    looks = colours(len(side.rows) if one_place else len(places))
    for col, panel in enumerate(panels, 1):
        for (n, row), (p, place) in product(enumerate(panel), enumerate(places)):
            number = n if row.of else side.rows.index(row)
            colour = looks[p] if not one_place else BLACK if row.of and len(panel) == 1 else looks[number % len(looks)]
            dashes = DASHES_OF_DIFFERENCES if row.of else DASHES
            _line(figure, side, row, place, colour, dashes[number % len(dashes)], col)
    logarithmic = side.quantity.log and not side.of_differences
    for col, unit in enumerate(units, 1):
        measured = next(row.data for row in side.rows if row.unit == unit)
        log = logarithmic and "measure" not in measured.attrs
        figure.update_yaxes(title=_statistic(side), type="log" if log else None, col=col)
        if logarithmic and len(units) == 1:
            _references(figure, side, places)
    x = side.rows[0].values[side.x].values
    if side.differences or side.of_differences:
        col = len(panels)
        if x.dtype.kind in "iuf":
            level(figure, x, 0.0, "no difference", col=col, in_legend=False)
        figure.update_yaxes(title=f"difference ({units[0]})", col=col)
    figure.update_xaxes(title=_wrapped(axis_words(side, side.x), len(panels)))
    if x.dtype.kind in "iu" and np.ptp(x) <= 12:
        figure.update_xaxes(dtick=1)
    finish(figure, _title(side, places))
    return figure.update_layout(margin={"t": figure.layout.margin.t + _further_lines(titles)})


def _further_lines(titles: Sequence[str]) -> int:
    """Return the pixels that titles of panels need for further lines."""
    return 20 * max((title.count("<br>") for title in titles), default=0)


def _line(figure: go.Figure, side: SideBySide, row: Row, place: Place, colour: str, dash: str, col: int) -> None:
    values, ends = row.at(place)
    there = np.isfinite(values.values.astype(float))
    values, ends = values[there], ends and (ends[0][there], ends[1][there])
    if not values.size:
        return
    known = ends is not None and not bool(np.isnan(ends[0]).any())
    name = ", ".join(part for part in (row.label, side.words(place)) if part)
    curve(figure, values[side.x], values, ends if known else None, colour=colour, dash=dash, name=name, col=col)


def _references(figure: go.Figure, side: SideBySide, places: Sequence[Place]) -> None:
    """Draw what is measured without a change, once where it is alike for all datasets, and the trivial predictor."""
    name = side.quantity.reference
    distinct: list[Row] = []
    for row in side.rows if name else ():
        if not any(_alike(row.data[name], one.data[name]) for one in distinct):
            distinct.append(row)
    for row, dash in zip(distinct, DASHES, strict=False):
        reference = row.data[name]
        of = "clean run" if len(distinct) == 1 else f"clean run, {row.label if side.model else row.data.model.item()}"
        if side.x in reference.dims:
            ends = row.data[f"{name}_low"], row.data[f"{name}_high"]
            curve(figure, reference[side.x], reference, ends, colour=BLACK, name=of, dash=dash)
        else:
            last = places[-1]
            at = reference.sel({dim: value for dim, value in last.items() if dim in reference.dims})
            name_of, dashed = f"{of}, {side.words(last)}", "dot" if len(distinct) == 1 else dash
            level(figure, side.rows[0].values[side.x], float(at), name_of, colour=BLACK, dash=dashed)
    for words, error in ignoring(side.first).items():
        level(figure, side.rows[0].values[side.x], error, words)


def _alike(one: xr.DataArray, other: xr.DataArray) -> bool:
    """Return whether two lines cannot be told apart in a figure."""
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=1e-3))


def _maps(side: SideBySide) -> go.Figure:
    """Draw heat maps: a column a dataset, in one colour scale a unit, then a column a difference, in one scale."""
    places = side.places(MOST_MAPS)
    columns = [*side.rows, *side.differences]
    n, rows = len(columns), len(places)
    titles = []
    for place, column in product(places, columns):
        missing = "" if _is_there(column.at(place)[0]) else "no number"
        titles.append(_wrapped(", ".join(filter(None, (column.label, side.words(place), missing))), n))
    figure = make_subplots(
        rows, n, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.12 / n, vertical_spacing=0.3 / rows
    )
    shown: dict[str, list[xr.DataArray]] = {}  # by the words of their colour scale
    for (i, place), (j, column) in product(enumerate(places, 1), enumerate(columns, 1)):
        values = column.at(place)[0]
        if not _is_there(values):  # the title says so
            continue
        is_difference = column.of is not None or side.of_differences
        words = f"difference ({column.unit})" if is_difference else column.unit
        shown.setdefault(words, []).append(values)
        number = list(shown).index(words) + 1
        axis = "coloraxis" if number == 1 else f"coloraxis{number}"
        heat(figure, values, side.x, side.y, row=i, col=j, coloraxis=axis)
        figure.update_xaxes(title=axis_words(side, side.x) if i == rows else None, row=i, col=j)
        down = {"autorange": "reversed"} if values[side.y].dtype.kind not in "iuf" else {}
        figure.update_yaxes(title=axis_words(side, side.y) if j == 1 else None, **down, row=i, col=j)
    if side.rows[0].values[side.x].dtype.kind in "iu" and side.rows[0].values.sizes[side.x] <= 12:
        figure.update_xaxes(dtick=1)
    finish(figure, _title(side, places))
    tall = 170 + 300 * rows
    for i, (words, parts) in enumerate(shown.items()):
        scale = _scale(parts, words, words.startswith("difference"), x=1.02 + 0.1 * i, **BAR)
        figure.update_layout({f"coloraxis{i + 1 if i else ''}": scale})
    margin = {"r": 60 + 90 * len(shown), "t": figure.layout.margin.t + _further_lines(titles)}
    return figure.update_layout(height=tall, hovermode="closest", margin=margin)


def _is_there(values: xr.DataArray) -> bool:
    """Return whether there is any number to draw."""
    return bool(np.isfinite(values.values.astype(float)).any())


def _scale(parts: Sequence[xr.DataArray], words: str, signed: bool, **bar: Any) -> dict[str, Any]:
    """Return one colour scale for all these maps: around zero where they hold numbers of both signs."""
    values = np.concatenate([part.values.astype(float).ravel() for part in parts])
    values = values[np.isfinite(values)]
    if signed or values.min() < 0:
        return diverging(values, words, **bar)
    colorbar = {"title": {"text": words, "side": "right"}, "thickness": 14, **bar}
    return {"colorscale": "Viridis", "cmin": 0.0, "cmax": float(values.max()) or 1.0, "colorbar": colorbar}


def _title(side: SideBySide, places: Sequence[Place]) -> str:
    """Say whose numbers stand side by side, how they came about, and which places were left out."""
    names = side.names
    if len(names) == 1 and side.of_differences:
        names = [str(side.first.attrs["description"])]
    whose = " against ".join(names) if len(names) <= MOST_MAPS else f"{len(names)} datasets"
    model = f"{side.model}: " if side.model and side.model not in whose else ""
    every = len(side.places(10**9))
    notes = [
        *_descriptions(side),
        f"{len(places)} of {every} places, where they differ most" if every > len(places) else "",
        f"no paired differences: {side.why}" if side.why else "",
    ]
    return "; ".join([f"{model}{side.probe.replace('_', ' ')}, {whose}", *(note for note in notes if note)])


def _descriptions(side: SideBySide) -> list[str]:
    """Say how masked runs came about: what is the same in all of them once, and what is not where it is in few ways."""
    told = [_MANY.sub("", row.data.attrs["description"]).split("; ") for row in side.rows if "full" in row.data.attrs]
    same = [part for part in (told[0] if told else []) if all(part in parts for parts in told)]
    others = dict.fromkeys("; ".join(part for part in parts if part not in same) for parts in told)
    return [" or ".join(filter(None, others)) if len(others) <= MOST_WAYS else "", *same]


def _statistic(side: SideBySide) -> str:
    """Return what the lines are, as the title of their axis."""
    kind = "median of " if side.quantity.name == "median" else ""
    prompts = side.first.sizes.get("example")
    return f"{kind}{prompts} prompts [95 % interval]" if prompts else ""


def _pairs(side: SideBySide) -> str:
    """Say what the panel of the differences shows; of errors also which side is better."""
    if len(side.differences) > 1:
        return "differences, paired"
    [row] = side.differences
    is_error = side.quantity.log and "measure" not in side.first.attrs
    better = f" (below 0: {side.rows[0].label} is better)" if is_error else ""
    return f"{row.label}, paired{better}"


def _wrapped(text: str, n: int) -> str:
    return "<br>".join(textwrap.wrap(text, max(16, 110 // n)))
