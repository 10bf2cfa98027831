"""Figures of the weights probe."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.show.arrange import evenly
from loopprobe.show.figures.style import DASHES, GREY, colours, diverging, finish, heat
from loopprobe.show.tables.weights import LAGS

READ = {"Q": "queries", "K": "keys", "V": "values"}
MOST_CURVES = 16  # spectra that one panel can show
MARKED = 48  # heads along an axis, up to which every score has a mark
CIRCUITS = {"OV": "copying: real share of eigenvalues, OV", "QK": "matching: real share of eigenvalues, QK"}


def weights_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw the composition scores above chance, and the spectra of the circuits.

    Args:
        data: a dataset of the weights probe.
    """
    spectra = {"weights-spectra": _spectra(data)}
    return {"weights": _composition(data)} | spectra if "composition" in data else spectra


def _short(names: Any) -> list[str]:
    return [str(name).removeprefix("head ") for name in np.asarray(names)]


def _composition(data: xr.Dataset) -> go.Figure:
    """Draw heat maps of what every score is above chance, with dots where it is outside the interval."""
    modes, lags = list(map(str, data["mode"].values)), list(map(int, data.lag.values))
    data = data.assign_coords(writer=_short(data.writer), reader=_short(data.reader))
    excess = data.composition - data.chance
    titles = [f"{READ[mode]}, {LAGS[lag].removeprefix('in the ')}" for lag in lags for mode in modes]
    figure = make_subplots(
        len(lags), len(modes), subplot_titles=titles, horizontal_spacing=0.05, vertical_spacing=0.16,
        shared_yaxes=True,
    )  # fmt: skip
    marked = data.sizes["writer"] <= MARKED
    for row, lag in enumerate(lags, 1):
        for col, mode in enumerate(modes, 1):
            where = {"lag": lag, "mode": mode}
            heat(figure, excess.sel(where), "reader", "writer", row=row, col=col, template="%{z:+.3f}")
            if marked:
                _mark(figure, data.verdict.sel(where), row, col)
            figure.update_xaxes(title="reads (head)" if row == len(lags) else None, type="category", row=row, col=col)
            figure.update_yaxes(
                title="writes (head)" if col == 1 else None, type="category", autorange="reversed", row=row, col=col
            )
    dots = "; black dots: above the interval of chance, white dots: below it" if marked else ""
    mean = float(data.chance.mean())
    title = (
        f"{data.model.item()}: composition scores minus their mean over random rotations ({mean:.3g}){dots}."
        f" Weights {data.attrs['weights_read']}"
    )
    finish(figure, title)
    figure.update_layout(coloraxis=diverging(excess, "score above chance", x=1.02), hovermode="closest")
    return figure.update_layout(height=170 + 330 * len(lags))


def _mark(figure: go.Figure, verdict: xr.DataArray, row: int, col: int) -> None:
    """Put a dot on every score that is outside the interval of chance."""
    for sign, inside, outline in ((1, "black", "white"), (-1, "white", "black")):
        i, j = np.nonzero(verdict.transpose("writer", "reader").values == sign)
        figure.add_scatter(
            x=verdict.reader.values[j], y=verdict.writer.values[i], mode="markers", showlegend=False, hoverinfo="skip",
            marker={"color": inside, "size": 6, "line": {"color": outline, "width": 1}}, row=row, col=col,
        )  # fmt: skip


def _spectra(data: xr.Dataset) -> go.Figure:
    """Draw the singular values of every circuit by rank, relative to its norm, and the real share of eigenvalues."""
    titles = ["singular values, OV", "singular values, QK", *CIRCUITS.values()]
    figure = make_subplots(2, 2, subplot_titles=titles, vertical_spacing=0.17, horizontal_spacing=0.09)
    heads = data["head"].values
    shown = evenly(heads.tolist(), MOST_CURVES)
    norms = (data.singular_value**2).sum("rank") ** 0.5
    for col, circuit in enumerate(CIRCUITS, 1):
        _drawn(figure, data, col)
        for i, (head, colour) in enumerate(zip(shown, colours(len(shown)), strict=True)):
            where = {"circuit": circuit, "head": head}
            figure.add_scatter(
                x=data["rank"], y=data.singular_value.sel(where) / norms.sel(where), mode="lines", name=str(head),
                line={"color": colour, "width": 2, "dash": DASHES[i % len(DASHES)]}, legendgroup=str(head),
                showlegend=col == 1, hovertemplate="%{y:.3g}", row=1, col=col,
            )  # fmt: skip
        low, high = float(data.drawn_real_share_low), float(data.drawn_real_share_high)
        figure.add_bar(
            x=_short(heads), y=data.real_share.sel(circuit=circuit).values, showlegend=False,
            marker={"color": colours(1)[0]}, hovertemplate="%{y:.2f}<extra></extra>", row=2, col=col,
        )  # fmt: skip
        band = {"fillcolor": GREY, "opacity": 0.3, "line_width": 0, "layer": "below"}
        figure.add_hrect(y0=low, y1=high, **band, row=2, col=col)
        figure.update_xaxes(title="rank", row=1, col=col)
        figure.update_xaxes(title="head", type="category", row=2, col=col)
        figure.update_yaxes(range=[-1.05, 1.05], zeroline=True, row=2, col=col)
    figure.update_yaxes(title="share of the norm", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title="Σ Re λ / Σ |λ|", row=2, col=1)
    some = "" if len(shown) == len(heads) else f", {len(shown)} of {len(heads)} heads"
    title = (
        f"{data.model.item()}: spectra of the circuits of heads{some}; grey: random weights of the same sizes. "
        f"Weights {data.attrs['weights_read']}"
    )
    finish(figure, title)
    return figure.update_layout(hovermode="closest", height=max(680, figure.layout.height))


def _drawn(figure: go.Figure, data: xr.Dataset, col: int) -> None:
    """Draw the band in which the singular values of random circuits lie."""
    low, high = data.drawn_singular_value_low.values, data.drawn_singular_value_high.values
    ranks = data["rank"].values
    figure.add_scatter(
        x=np.concatenate([ranks, ranks[::-1]]), y=np.concatenate([high, low[::-1]]), fill="toself", fillcolor=GREY,
        opacity=0.3, line={"width": 0}, mode="lines", name="random weights", legendgroup="random weights",
        showlegend=col == 1, hoverinfo="skip", row=1, col=col,
    )  # fmt: skip
