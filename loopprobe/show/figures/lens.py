"""Figures of the lens probe."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.probes.dataset import read_stamp
from loopprobe.show.figures.style import colours, curve, finish, heat

MEASURES = {"error": "error", "to_final": "distance to the final answer", "to_optimum": "distance to the optimum"}
TITLES = {"final norm": "read with the final norm", "no norm": "without norm", "tuned": "tuned: an affine map a site"}


def lens_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """What stands in the residual stream: at the query against the loop, and by point.

    Args:
        data: of the lens probe.
    """
    return {"lens": _at_query(data), "lens-by-point": _by_point(data)}


def _at_query(data: xr.Dataset) -> go.Figure:
    """Rows are measures, columns lenses; one curve a site over the loops, or, of one loop, one curve over the sites."""
    titles = [TITLES[lens] for lens in data.lens.values] + [""] * (len(data.lens) * (len(MEASURES) - 1))
    figure = make_subplots(
        len(MEASURES), len(data.lens), subplot_titles=titles, shared_yaxes="rows", shared_xaxes=True,
        horizontal_spacing=0.03, vertical_spacing=0.05,
    )  # fmt: skip
    ordinary = data.sizes["loop"] == 1
    x, lines = ("site", "loop") if ordinary else ("loop", "site")
    data = data.assign_coords(site=_names(data))
    for row, measure in enumerate(MEASURES, 1):
        for col, lens in enumerate(data.lens.values, 1):
            for line, colour in zip(data[lines].values, colours(data.sizes[lines]), strict=True):
                at = data.sel({"lens": lens, lines: line})
                at = at.isel({x: (at[f"query_{measure}"] > 0).values})  # the final answer is at distance 0 from itself
                mean, low, high = (at[f"query_{measure}{part}"] for part in ("", "_low", "_high"))
                curve(
                    figure, at[x], mean, (low, high), colour=colour, name=str(line), row=row, col=col,
                    in_legend=(row, col) == (1, 1) and not ordinary,
                )  # fmt: skip
    figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    for row, words in enumerate(MEASURES.values(), 1):
        figure.update_yaxes(title=words, row=row, col=1)
    figure.update_xaxes(title=None if ordinary else "loops done", row=len(MEASURES))
    unit = read_stamp(data).unit.replace("error", "difference")
    finish(figure, f"{data.model.item()}: the answer at the query, read at every site ({unit})")
    return figure.update_layout(height=820)


def _by_point(data: xr.Dataset) -> go.Figure:
    """Error with the final norm, logarithmic colours: loop × point, a panel a site; of one loop site × point."""
    logs = xr.apply_ufunc(np.log10, data.error.sel(lens="final norm")).assign_coords(site=_names(data))
    ordinary = data.sizes["loop"] == 1
    titles = ["at every site"] if ordinary else logs.site.values.tolist()
    figure = make_subplots(1, len(titles), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.03)
    if ordinary:
        heat(figure, logs.isel(loop=0), "point", "site", template="10^%{z:.2f}")
    else:
        for col, site in enumerate(titles, 1):
            heat(figure, logs.sel(site=site), "point", "loop", col=col, template="10^%{z:.2f}")
    figure.update_xaxes(title="examples before it")
    figure.update_yaxes(title=None if ordinary else "loops done", col=1)
    bar = {"title": {"text": f"log10 {read_stamp(data).unit}", "side": "right"}, "thickness": 14}
    figure.update_layout(coloraxis={"colorscale": "Viridis_r", "colorbar": bar})
    finish(figure, f"{data.model.item()}: error of the answer read with the final norm, at every point")
    return figure.update_layout(hovermode="closest", margin={"r": 90})


def _names(data: xr.Dataset) -> list[str]:
    return [str(site) if site == "input" else f"after {site}" for site in data.site.values]
