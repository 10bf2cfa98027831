"""Figures of the circuit probe."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.probes.circuit_overlap import overlaps
from loopprobe.probes.dataset import read_stamp
from loopprobe.show.arrange import circuit_edges
from loopprobe.show.figures.edges import KEY, edge_graph, lag_figure
from loopprobe.show.figures.style import BLACK, DASHES, GREY, colours, curve, finish

DRAWN = 60  # edges in the graph
LAG = 1  # of the edges that are compared from loop to loop


def circuit_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw a circuit as a graph whose rows are loops, and its edges by their lag.

    Args:
        data: a dataset of the circuit probe.
    """
    edges, name = circuit_edges(data, DRAWN), str(data.model.item())
    size = int(data.circuit.sum())
    of_all = "all" if len(edges) == size else f"the {len(edges)} largest of"
    title = (
        f"{name}: {of_all} {size:,} edges of the circuit that shall keep {read_stamp(data).options['keep']:.0%} of the "
        f"{data.attrs['measure']}, as wide as their direct effect ({KEY}; corrupted: {data.attrs['corruption']})"
    )
    lags = f"{name}: the edges of the circuit by lag (share of the change from the clean to the corrupted run)"
    return {"circuit-graph": edge_graph(data, edges, title), "circuit-lags": lag_figure(data, lags)}


def circuit_compare_figure(datasets: Sequence[xr.Dataset], title: str = "") -> go.Figure:
    """Draw what the best edges keep, what is left without them, and how alike the edges of all loops are.

    Args:
        datasets: of the circuit probe, one a model.
        title: of the figure; empty: what it shows.
    """
    titles = ["kept by the best edges", "left without them", f"how alike loops are (lag {LAG})"]
    figure = make_subplots(1, 3, horizontal_spacing=0.08, subplot_titles=titles)
    for i, (data, colour) in enumerate(zip(datasets, colours(len(datasets)), strict=True)):
        share = data.edges / data.attrs["possible"]
        for col, name in enumerate(("kept", "left"), 1):
            ranked, random = (data.sel(set=kind) for kind in ("ranked", "random"))
            ends = ranked[f"{name}_low"], ranked[f"{name}_high"]
            label = str(data.model.item())
            curve(figure, share, ranked[name], ends, colour=colour, name=label, col=col, in_legend=col == 1)
            chance = "as many at random"
            curve(
                figure, share, random[name], colour=colour if len(datasets) > 1 else GREY, name=chance, col=col,
                dash="dot", in_legend=col == 1 and i == 0,
            )  # fmt: skip
        if data.attrs["found"] in data.edges:
            at = data.sel(edges=data.attrs["found"], set="ranked")
            figure.add_scatter(
                x=[data.attrs["found"] / data.attrs["possible"]], y=[float(at.kept)], mode="markers", row=1, col=1,
                marker={"symbol": "diamond", "size": 11, "color": colour, "line": {"color": BLACK, "width": 1}},
                name="the circuit", legendgroup="found", showlegend=i == 0,
                hovertemplate=f"{data.attrs['found']:,} edges: %{{y:.3g}}",
            )  # fmt: skip
        row = data.similarity.sel(lag=LAG).dropna("from_loop") if LAG in data.lag else data.similarity[:0, 0]
        if row.size > 1:
            dash = DASHES[i % len(DASHES)]
            curve(figure, row.from_loop, row, colour=colour, name=label, col=3, dash=dash, in_legend=False)
    keep = read_stamp(datasets[0]).options["keep"]
    figure.add_hline(y=keep, line={"color": GREY, "dash": "dash", "width": 1}, row=1, col=1)
    for col in (1, 2):
        figure.update_xaxes(title="share of all edges", type="log", dtick=1, tickformat=".2~%", col=col)
        figure.update_yaxes(range=[-0.5, 1.5], col=col)
    figure.update_yaxes(title=f"share of the {_measures(datasets)}", col=1)
    figure.update_xaxes(title="loop of the senders", col=3)
    figure.update_yaxes(title="cosine with the last such loop", range=[-1.05, 1.05], col=3)
    finish(
        figure,
        title
        or f"what circuits keep on prompts that did not choose them, with 95 % intervals ({_models(datasets)}; dashed: "
        f"{keep:.0%})",
    )
    return figure.update_layout(height=max(480, figure.layout.height), hovermode="closest")


def overlap_figures(datasets: Sequence[xr.Dataset], title: str = "") -> dict[str, go.Figure]:
    """Draw the overlap of every two circuits with what random ones have; nothing where no two can be compared.

    Args:
        datasets: of the circuit probe, one a model.
        title: of the figure; empty: what it shows.
    """
    pairs = overlaps(datasets)
    if not pairs.sizes["pair"]:
        return {}
    names = [f"{one} and {other}" for one, other in zip(pairs.one.values, pairs.other.values, strict=True)]
    rows, figure = list(range(len(names))), go.Figure()
    ends = pairs.overlap_high - pairs.overlap, pairs.overlap - pairs.overlap_low
    figure.add_scatter(
        x=pairs.overlap.values, y=rows, mode="markers", text=names, marker={"color": BLACK, "size": 9}, name="circuits",
        error_x={"type": "data", "array": ends[0].values, "arrayminus": ends[1].values, "color": BLACK},
        hovertemplate="%{text}: %{x:.3g}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=pairs.expected.values, y=rows, mode="markers", text=names, marker={"color": GREY, "size": 9, "symbol": "x"},
        name="random circuits", hovertemplate="%{text}: %{x:.3g}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title="edges in both over edges in one of them, with 95 % intervals", range=[0, 1.02])
    figure.update_yaxes(autorange="reversed", tickvals=rows, ticktext=names)
    words = "how far circuits overlap, heads of other seeds in the order that fits best"
    finish(figure, f"{title}: {words}" if title else words)
    return {"overlap": figure.update_layout(hovermode="closest", height=max(320, 36 * len(names) + 180))}


def _measures(datasets: Sequence[xr.Dataset]) -> str:
    return " or ".join(dict.fromkeys(str(data.attrs["measure"]) for data in datasets))


def _models(datasets: Sequence[xr.Dataset]) -> str:
    """Name one model, or count several."""
    return str(datasets[0].model.item()) if len(datasets) == 1 else f"{len(datasets)} models"
