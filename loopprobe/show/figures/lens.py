"""Figures of the lens probe."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from loopprobe.probes.dataset import read_stamp
from loopprobe.show.figures.style import colours, curve, finish, heat

MEASURES = {"error": "error", "to_final": "distance to the final answer", "to_optimum": "distance to the optimum"}
LEAST = 1e-9  # the least error that a colour stands for: none at all has no logarithm
TITLES = {
    "final norm": "read with the final norm",
    "no norm": "without norm",
    "tuned": "tuned: an affine map a site",
    "coda": "read by the model's own coda",
}


def lens_figures(data: xr.Dataset) -> dict[str, go.Figure]:
    """Draw the answers read from the residual stream: at the query against the loop, and by point.

    Args:
        data: a dataset of the lens probe.
    """
    ranks = {"lens-ranks": _ranks(data)} if "rank" in data else {}
    words = {"lens-answers": answers_in_words(data)} if "top_answer" in data else {}
    return {"lens": _at_query(data), "lens-by-point": _by_point(data)} | ranks | words


def _at_query(data: xr.Dataset) -> go.Figure:
    """Draw the answers at the query, with one row per measure and one column per lens.

    A panel has one curve per site over the loops. A model with one loop has one curve over the sites.
    """
    measures = {name: words for name, words in MEASURES.items() if data[f"query_{name}"].notnull().any()}
    titles = [TITLES[lens] for lens in data.lens.values] + [""] * (len(data.lens) * (len(measures) - 1))
    figure = make_subplots(
        len(measures), len(data.lens), subplot_titles=titles, shared_yaxes="rows", shared_xaxes=True,
        horizontal_spacing=0.03, vertical_spacing=0.05,
    )  # fmt: skip
    ordinary = data.sizes["loop"] == 1
    x, lines = ("site", "loop") if ordinary else ("loop", "site")
    data = data.assign_coords(site=_site_names(data))
    for row, measure in enumerate(measures, 1):
        for col, lens in enumerate(data.lens.values, 1):
            for line, colour in zip(data[lines].values, colours(data.sizes[lines]), strict=True):
                answers = data.sel({"lens": lens, lines: line})
                # The final answer has distance 0 from itself, which no logarithmic axis shows.
                answers = answers.isel({x: (answers[f"query_{measure}"] > 0).values})
                median, low, high = (answers[f"query_{measure}{part}"] for part in ("", "_low", "_high"))
                curve(
                    figure, answers[x], median, (low, high), colour=colour, name=str(line), row=row, col=col,
                    in_legend=(row, col) == (1, 1) and not ordinary,
                )  # fmt: skip
    figure.update_yaxes(type="log")
    for row, words in enumerate(measures.values(), 1):
        figure.update_yaxes(title=words, row=row, col=1)
    figure.update_xaxes(title=None if ordinary else "loops done", row=len(measures))
    unit = read_stamp(data).unit.replace("error", "difference")
    finish(figure, f"{data.model.item()}: the answer at the query, read at every site ({unit})")
    return figure.update_layout(height=100 + 240 * len(measures))


def _by_point(data: xr.Dataset) -> go.Figure:
    """Draw the error with the first lens in logarithmic colours, by loop and point, one panel per site.

    A model with one loop has a single panel by site and point.
    """
    errors = data.error.isel(lens=0).clip(LEAST)
    logs = xr.apply_ufunc(np.log10, errors).assign_coords(site=_site_names(data))
    ordinary = data.sizes["loop"] == 1
    titles = ["at every site"] if ordinary else logs.site.values.tolist()
    figure = make_subplots(1, len(titles), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.03)
    if ordinary:
        heat(figure, logs.isel(loop=0), "point", "site", template="10^%{z:.2f}")
    else:
        for col, site in enumerate(titles, 1):
            heat(figure, logs.sel(site=site), "point", "loop", col=col, template="10^%{z:.2f}")
    figure.update_xaxes(title="answer, from the first" if "rank" in data else "examples before it")
    figure.update_yaxes(title=None if ordinary else "loops done", col=1)
    bar = {"title": {"text": f"log10 {read_stamp(data).unit}", "side": "right"}, "thickness": 14}
    figure.update_layout(coloraxis={"colorscale": "Viridis_r", "colorbar": bar})
    finish(figure, f"{data.model.item()}: error of the answer {TITLES[data.lens.values[0]]}, at every point")
    return figure.update_layout(hovermode="closest", margin={"r": 90})


def _ranks(data: xr.Dataset) -> go.Figure:
    """Draw the mean rank of the final answer and the share of right ones, read with the first lens, by answer."""
    last = data.isel(lens=0, site=-1)
    ordinary = data.sizes["loop"] == 1
    if ordinary:
        last = data.isel(lens=0, loop=0).assign_coords(site=_site_names(data))
    y = "site" if ordinary else "loop"
    titles = ["mean rank of the final answer (0: the top)", "share of right answers"]
    figure = make_subplots(1, 2, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.16)
    for col, (name, template) in enumerate((("rank", "%{z:.2f}"), ("accuracy", "%{z:.1%}")), 1):
        figure.add_heatmap(
            x=last.point.values, y=last[y].values, z=last[name].transpose(y, "point").values, row=1, col=col,
            coloraxis=f"coloraxis{col if col > 1 else ''}",
            hovertemplate=f"{y} %{{y}}, answer %{{x}}: {template}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title="answer, from the first")
    figure.update_yaxes(title=None if ordinary else "loops done", col=1)
    bar = {"thickness": 12, "len": 0.9}
    figure.update_layout(
        coloraxis={"colorscale": "Viridis_r", "cmin": 0, "colorbar": bar | {"x": 0.43}},
        coloraxis2={"colorscale": "Viridis", "cmin": 0, "cmax": 1, "colorbar": bar | {"tickformat": ".0%"}},
    )
    finish(figure, f"{data.model.item()}: the answer after every {y}, {TITLES[data.lens.values[0]]}")
    return figure.update_layout(hovermode="closest", margin={"r": 90})


def answers_in_words(data: xr.Dataset) -> go.Figure:
    """Draw the best answers of the first prompt in words, coloured by their probability.

    Of several answers they are read from the state, after every loop at every answer; of one, at every site.

    Args:
        data: a dataset of the lens probe, whose prompts can name their answers.
    """
    one = data.isel(shown=0, top=0)
    by_site = data.sizes["answer"] == 1 or data.sizes["loop"] == 1
    part = one.isel(answer=-1) if by_site else one.isel(site=-1)
    across = "site" if by_site else "answer"
    words, likely = (part[name].transpose("loop", across) for name in ("top_answer", "top_probability"))
    names = _site_names(data) if by_site else _read_texts(data)
    said = np.char.replace(words.values.astype(str), "<", "&lt;")
    bar = {"title": {"text": "probability", "side": "right"}, "thickness": 14, "tickformat": ".0%"}
    figure = go.Figure()
    figure.add_heatmap(
        x=list(range(len(names))), y=[str(loop) for loop in data.loop.values], z=likely.values, text=said,
        texttemplate="%{text}", textfont={"size": 10}, colorscale="Blues", zmin=0, zmax=1, colorbar=bar,
        hovertemplate="loop %{y}, %{x}: %{text} %{z:.1%}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names, tickangle=-40)
    figure.update_yaxes(title="loops done", autorange="reversed", type="category")
    what = "the best answer at the query, at every site" if by_site else "the best next token at every token"
    finish(figure, f"{data.model.item()}: {what}, {TITLES[data.lens.values[0]]} (first prompt)")
    size = max(620, 46 * len(names) + 180)
    return figure.update_layout(hovermode="closest", width=size, height=180 + 30 * data.sizes["loop"])


def _read_texts(data: xr.Dataset) -> list[str]:
    """Return the texts of the tokens at which the shown answers are read, as far as all prompts share them."""
    texts, n = read_stamp(data).texts, data.sizes["answer"]
    return [text.replace("<", "&lt;") for text in texts[-n:]] if len(texts) >= n else [str(i) for i in range(n)]


def _site_names(data: xr.Dataset) -> list[str]:
    """Return the names of the sites as figures show them."""
    return [str(site) if site == "input" else f"after {site}" for site in data.site.values]
