"""Tables and figures of each probe, as its declaration names them.

Drawing imports plotly; making tables does not. Both modules are imported when they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
from rich.table import Table

from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import read_stamp
from loopprobe.probes.declaration import Shown
from loopprobe.probes.paired import DIFFERENCE
from loopprobe.probes.registry import PROBES
from loopprobe.show.group import Datasets, Group, grouped, stem_of
from loopprobe.show.side_by_side import SideBySide

if TYPE_CHECKING:
    import plotly.graph_objects as go


def figures(datasets: Datasets | Group) -> dict[str, go.Figure]:
    """Return all figures of the datasets of a probe, by name.

    The first shows all of them together, where they can stand in one figure. The others show one each.

    Args:
        datasets: those of one probe: of several models, modes, measures or the like; or a dict of them by their labels.

    Raises:
        LoopprobeError: no probe made the datasets, or several did, or one comes twice.
    """
    group = grouped(datasets)
    made = dict(_together(group)) if group.is_shown_together else {}
    if group.probe == DIFFERENCE:
        return made
    for label, data in group.each().items():
        one = _draw_one(group.shown, data)
        made |= {name if len(group.datasets) == 1 else f"{name}-{label}": figure for name, figure in one.items()}
    return made


def _together(group: Group) -> dict[str, go.Figure]:
    """Draw all datasets in one figure, with what else the probe draws of several."""
    if not group.are_models:
        return {group.probe: _draw_side(group.side or group.beside())}
    made = {group.probe: _drawing(group.shown.compare_figure)(group.datasets)}
    made |= {f"{group.probe}-{end}": figure for end, figure in _further(group.shown, group.datasets).items()}
    if (side := group.side) is not None and len(side.differences) == 1:
        made[f"{group.probe}-difference"] = _draw_side(side)
    return made


def _draw_side(side: SideBySide) -> go.Figure:
    drawn: go.Figure = _drawing("side_by_side:side_by_side_figure")(side)
    return drawn


def _function_of(room: str, place: str) -> Callable[..., Any]:
    """Import the function that a declaration names.

    Args:
        room: ``figures`` or ``tables``.
        place: ``module:function`` there.
    """
    module, _, name = place.partition(":")
    function: Callable[..., Any] = getattr(import_module(f"loopprobe.show.{room}.{module}"), name)
    return function


_drawing, _tabling = partial(_function_of, "figures"), partial(_function_of, "tables")


def _further(shown: Shown, datasets: Sequence[xr.Dataset], *how: str) -> dict[str, go.Figure]:
    """Draw the further figures of a probe, if it declares any."""
    return _drawing(shown.further_figures)(datasets, *how) if shown.further_figures else {}


def _draw_one(shown: Shown, data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw the figures of one dataset by itself."""
    if not shown.figures:
        return {}
    from loopprobe.show.figures.style import name_tokens

    texts = read_stamp(data).texts
    return {name: name_tokens(figure, texts) for name, figure in _drawing(shown.figures)(data).items()}


def figure(data: Datasets) -> go.Figure:
    """Return the first figure of a probe's datasets, which is what a notebook shows.

    Several datasets stand in one figure: lines in one panel, whose legend says what differs between them, or heat maps
    in one colour scale. Where they are of the same prompts their paired differences stand beside them, see
    ``difference``.

    Args:
        data: a dataset; several of one probe as a list, as a dict by labels of your own, or joined by ``xr.concat``
            along a dim of its own, such as ``model`` or ``mode``.

    Raises:
        LoopprobeError: no probe made the data, several did, they cannot stand in one figure, or nothing in it can be
            drawn.
    """
    group = grouped(data)
    try:
        several = (len(group.datasets) > 1 and not group.are_models) or group.probe == DIFFERENCE
        drawn = _draw_side(group.beside()) if several else next(iter(figures(data).values()))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise LoopprobeError(
            f"this dataset cannot be drawn ({type(error).__name__}: {error}): give it as the probe returned it, or "
            "several of them as a list"
        ) from error
    if not any(_has_data(trace) for trace in drawn.data):
        raise LoopprobeError("this dataset holds no number that can be drawn: all are missing or infinite")
    return drawn


def _has_data(trace: Any) -> bool:
    """Return whether a trace shows at least one number."""
    values = getattr(trace, "z", None) if trace.type == "heatmap" else getattr(trace, "y", None)
    return values is not None and any(not isinstance(v, float) or np.isfinite(v) for v in np.ravel(values).tolist())


def table(data: Datasets) -> Table:
    """Return the first table of a probe's datasets: of several the one in which they stand side by side.

    Args:
        data: a dataset, or several, as for ``figure``.

    Raises:
        LoopprobeError: as ``figure`` does.
    """
    group = grouped(data)
    if group.are_models:
        return _filled(_tabling(group.shown.compare_table)(group.datasets))
    if len(group.datasets) > 1 or group.probe == DIFFERENCE:
        return _filled(_tabling("side_by_side:side_by_side_table")(group.beside()))
    made: Table = _filled(_tabling(group.shown.table)(group.datasets[0]))
    return made


def tables_for(datasets: Datasets | Group) -> list[Table]:
    """Return the tables that a verb prints: one of all datasets where they can stand together, then one of each.

    Args:
        datasets: the datasets of one probe, as for ``figures``.
    """
    group = grouped(datasets)
    side = group.side
    made: list[Table | None] = []
    beside_table = [] if side is None else [_tabling("side_by_side:side_by_side_table")(side)]
    if group.are_models:
        made.append(_tabling(group.shown.compare_table)(group.datasets))
        made += beside_table if side is not None and len(side.differences) == 1 else []
        made += [_tabling(group.shown.table)(data) for data in group.datasets] if group.shown.table else []
        made += [_tabling(group.shown.further_table)(group.datasets)] if group.shown.further_table else []
    else:
        made += beside_table
        if group.shown.table and (side is None or not side.quantity.is_all):
            made += [_tabling(group.shown.table)(data) for data in group.each().values()]
    return [_filled(one) for one in made if one is not None]


def _filled(made: Table) -> Table:
    """Leave out the columns of a table that are empty in every row, and there is more than one column."""
    empty = [
        column for column in made.columns[1:] if made.row_count and all(str(cell) in ("", "–") for cell in column.cells)
    ]
    made.columns = [column for column in made.columns if column not in empty]
    return made


def findings(datasets: Datasets | Group) -> list[str]:
    """Return the sentences that a verb prints below its tables: one per dataset, and one per paired difference."""
    says = import_module("loopprobe.show.sentences")
    group = grouped(datasets)
    paired = [] if group.side is None else says.differences(group.side)
    if group.probe == DIFFERENCE:
        return paired
    return [getattr(says, group.probe)(data) for data in group.each().values()] + paired


def differences_of(datasets: Datasets | Group) -> dict[str, xr.Dataset]:
    """Return the paired differences of a probe's datasets, by what their files are called.

    Args:
        datasets: those of one probe, as for ``figures``.
    """
    group = grouped(datasets)
    rows = [] if group.side is None else group.side.differences
    if len(rows) <= 1:
        return {f"{group.probe}-difference": row.data for row in rows}
    models = [str(row.data.model.item()) for row in rows]
    names = models if len(set(models)) == len(models) else [row.label for row in rows]
    return {f"{group.probe}-difference-{stem_of(name)}": row.data for name, row in zip(names, rows, strict=True)}


def figures_of(
    probe: str, datasets: Sequence[xr.Dataset], title: str, by: Literal["window", "layers", "loss"] = "window"
) -> dict[str, go.Figure]:
    """Return the figures of a saved question: one of all models where the probe compares them, else those of each."""
    shown = PROBES[probe].shown
    if not shown.compare_figure:
        return {f"figure-{name}": made for name, made in figures(datasets).items()}
    panels = [by] if shown.panels else []
    made = {"figure": _drawing(shown.compare_figure)(datasets, title, *panels)}
    return made | {f"figure-{end}": figure for end, figure in _further(shown, datasets, title, *panels).items()}


def tables_of(probe: str, datasets: Sequence[xr.Dataset]) -> list[Table]:
    """Return the tables of a saved question: one of all models where the probe compares them, else one of each."""
    shown = PROBES[probe].shown
    if not shown.compare_table:
        return [table(data) for data in datasets]
    further = _tabling(shown.further_table)(datasets) if shown.further_table else None
    return [_tabling(shown.compare_table)(datasets), *([] if further is None else [further])]
