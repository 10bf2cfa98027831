"""What the terminal shows: tables and sentences from results."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from rich import box
from rich.console import Console
from rich.table import Table

from loopprobe.config import Config
from loopprobe.figures.mask import loops_to_show
from loopprobe.statistics import bootstrap_mean, moving_mean
from loopprobe.sweep import Planned
from loopprobe.verdicts import Verdict


def show_table(table: Table) -> None:
    """Print a table; as wide as it needs where the output is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(80, Console(width=1000).measure(table).maximum))
    console.print(table)


def mask_table(data: xr.Dataset, loops: Sequence[int] | None = None) -> Table:
    """Error / n_dims with its 95 % interval: a row for the clean run and each n, a column a loop count."""
    table = _table(f"{data.model.item()}: {data.attrs['description']}")
    table.caption = (
        f"squared error at the query / n_dims, mean of {data.sizes['example']} prompts [95 % bootstrap interval]"
    )
    table.add_column("n", justify="right")
    shown = loops_to_show(data, loops)
    for loop in shown:
        table.add_column(f"{loop} loop{'s' * (loop > 1)}", justify="right")
    for n in (None, *data.n.values):
        parts = ("mean", "low", "high")
        mean, low, high = (data[f"clean_{part}"] if n is None else data[part].sel(n=n) for part in parts)
        cells = (_interval(*(part.sel(loop=t) for part in (mean, low, high))) for t in shown)
        table.add_row("clean" if n is None else str(n), *cells)
    return table


def mask_finding(data: xr.Dataset) -> str:
    """One sentence: what the mask costs after the last loop."""
    last = data.isel(loop=-1)
    clean, worst = float(last.clean_mean), last.isel(n=last["mean"].argmax("n"))
    return (
        f"After {int(last.loop)} loops the error is {clean:.3g} in the clean run and {float(worst['mean']):.3g} with "
        f"n = {int(worst.n)} ({float(worst['mean']) / clean:.3g} times); predicting zero gives "
        f"{data.attrs['zero_predictor']:.3g}."
    )


def converge_table(datasets: Sequence[xr.Dataset], loops: Sequence[int] | None = None) -> Table:
    """Error / n_dims with its 95 % interval: a row a model, a column a loop count, the optimum last."""
    last = min(int(data.loop[-1]) for data in datasets)
    shown = [t for t in loops or (5, 10, 20, 50, 100, 500) if t <= last]
    table = _error_table("error against the number of loops", datasets)
    for loop in shown:
        table.add_column(f"{loop} loops", justify="right")
    table.add_column("optimum", justify="right")
    for data in datasets:
        cells = [_interval(*(data[part].sel(loop=t) for part in ("mean", "low", "high"))) for t in shown]
        table.add_row(data.model.item(), *cells, f"{float(data.optimum.mean()):.3g}, {data.attrs['optimum']}")
    return table


def limits_table(data: xr.Dataset) -> Table:
    """Where states and predictions go in the long run: shares of tokens and points, a column a type of limit."""
    types = data.limit.attrs["types"].split(", ")
    prompts = data.sizes["followed"]
    table = _table(f"{data.model.item()}: where it goes in {data.attrs['far']:,} loops")
    table.caption = f"share of tokens or points, mean of {prompts} prompts [95 % bootstrap interval]"
    table.add_column("")
    for name in types:
        table.add_column(name, justify="right")
    n_dims = json.loads(data.attrs["checkpoint"])["config"]["model"]["n_dims"]
    few, many = f"fewer than {n_dims} examples", f"{n_dims} examples or more"
    for what, values, examples in (
        ("state", data.limit, data.position // 2),
        ("prediction", data.prediction_limit, data.point),
    ):
        for where, chosen in ((few, examples < n_dims), (many, examples >= n_dims)):
            at = values.values[:, chosen.values]
            shares = np.stack([(at == i).mean(1) for i in range(len(types))])
            cells = ["0" if not row.any() else _interval(*bootstrap_mean(row)) for row in shares]
            table.add_row(f"{what}, {where}", *cells)
    return table


def compare_table(datasets: Sequence[xr.Dataset]) -> Table:
    """Error / n_dims with its 95 % interval: a row a model and for the optimum, columns by in-context examples."""
    points = [int(p) for p in np.unique(np.linspace(0, int(datasets[0].point[-1]), 5).round())]
    table = _error_table("error by in-context examples", datasets)
    table.add_column("parameters", justify="right")
    for point in points:
        table.add_column(f"{point} examples", justify="right")
    for data in datasets:
        cells = [_interval(*(data[part].sel(point=p) for part in ("mean", "low", "high"))) for p in points]
        table.add_row(
            f"{data.model.item()}, {data.attrs['loops']} loop{'s' * (int(data.attrs['loops']) > 1)}",
            f"{data.attrs['parameters']:,}",
            *cells,
        )
    for name, data in {data.attrs["optimum"]: data for data in datasets}.items():
        cells = [_interval(*(data[f"optimum_{part}"].sel(point=p) for part in ("mean", "low", "high"))) for p in points]
        table.add_row(name, "", *cells)
    return table


def mask_models_table(datasets: Sequence[xr.Dataset]) -> Table:
    """Error / n_dims with its 95 % interval: a row a model and loop count, a column an n."""
    first = datasets[0]
    picked = first.n.values[np.unique(np.linspace(0, first.sizes["n"] - 1, 8).round().astype(int))]
    table = _error_table("error by what is kept", datasets)
    table.add_column("loops", justify="right")
    for n in picked:
        table.add_column(f"n = {n}", justify="right")
    for data in datasets:
        for loop in loops_to_show(data, (int(data.attrs["trained_loops"]), int(data.loop[-1]))):
            at = data.sel(loop=loop)
            cells = [_interval(*(at[part].sel(n=n) for part in ("mean", "low", "high"))) for n in picked]
            table.add_row(data.model.item(), str(loop), *cells)
    return table


def lens_table(data: xr.Dataset) -> Table:
    """Error of the answer at the query, and its distance to the final answer: a row a lens and site."""
    table = _table(f"{data.model.item()}: the answer at the query, read at every site")
    table.caption = "squared error at the query / n_dims [95 % bootstrap interval]; last column: of the final answer"
    table.add_column("lens")
    table.add_column("read")
    shown = loops_to_show(data)
    for loop in shown:
        table.add_column(f"loop {loop}", justify="right")
    table.add_column("distance to the final answer", justify="right")
    for lens in data.lens.values:
        for site in data.site.values:
            at = data.sel(lens=lens, site=site)
            cells = [_with_ends(at.sel(loop=t), "query_error") for t in shown]
            last = _with_ends(at.isel(loop=-1), "query_to_final")
            table.add_row(str(lens), str(site) if site == "input" else f"after {site}", *cells, last)
    return table


def attribute_table(data: xr.Dataset) -> Table:
    """Share of the prediction at the query: a row a part, columns the last loops, and all earlier ones together."""
    table = _table(f"{data.model.item()}: the prediction at the query, split by what was written in each loop")
    table.caption = "share of the prediction [95 % bootstrap interval]; with initial state and offset they sum to 1"
    table.add_column("part")
    shown = [int(loop) for loop in data.loop.values[-3:]]
    for loop in reversed(shown):
        table.add_column(f"loop {loop}", justify="right")
    table.add_column("all earlier", justify="right")
    earlier = data.share.where(data.loop < shown[0], 0).sum("loop")
    for component in data.component.values:
        at = data.sel(component=component)
        cells = [_interval(*(at[part].sel(loop=loop) for part in ("share", "low", "high"))) for loop in reversed(shown)]
        table.add_row(str(component), *cells, f"{float(earlier.sel(component=component)):.3g}")
    return table


def attention_table(data: xr.Dataset) -> Table:
    """Where the query attends in the last loop, and the measures: a row a head."""
    last = data.isel(loop=-1)
    table = _table(f"{data.model.item()}: attention of the query's token in loop {int(last.loop)}")
    even = ", ".join(f"{target} {float(data.uniform.sel(target=target)):.3g}" for target in data.target.values)
    table.caption = (
        f"mean over {json.loads(data.attrs['prompts'])['n_prompts']} prompts; even attention would give: {even}"
    )
    table.add_column("head")
    for name in (*data.target.values, "mixing score", "concentration", "change"):
        table.add_column(str(name), justify="right")
    for layer in data.layer.values:
        for head in data["head"].values:
            at = last.sel(layer=layer, head=head)
            numbers = [*at.mass.values, at.mixing_score, at.column_sum_concentration, at.change]
            table.add_row(f"{layer}.{head}", *(f"{float(number):.3g}" for number in numbers))
    return table


def patch_table(data: xr.Dataset, most: int = 8) -> Table:
    """The places whose patch has the largest effect, of every site."""
    config = json.loads(data.attrs["config"])
    table = _table(f"{data.model.item()}: the largest effects of a patch (corrupted: {config['corruption']})")
    cost = ""
    if config["exact"]:
        passes = data.attrs["seconds"] / data.attrs["clean_pass"]
        cost = f"; {int(data.attrs['patches']):,} patches cost as much as {passes:,.0f} clean passes; correlation of "
        cost += "effect and estimate: " + ", ".join(
            f"{site} {data.attrs[f'correlation_{site}']:.2f}" for site in config["sites"]
        )
    table.caption = f"0: as the corrupted run, 1: as the clean one [95 % bootstrap interval]{cost}"
    for name in ("site", "loop", "layer", "head", "token", "effect", "estimate"):
        table.add_column(name, justify="left" if name == "site" else "right")
    for site in config["sites"]:
        values = data[site if config["exact"] else f"{site}_attribution"]
        for flat in np.argsort(-np.abs(values.values), axis=None)[:most]:
            where = dict(zip(values.dims, np.unravel_index(flat, values.shape), strict=True))
            labels = {axis: str(values[axis].values[i]) for axis, i in where.items()}
            at = data.isel(where)
            effect = _with_ends(at, site) if config["exact"] else "–"
            places = (labels.get(axis, "–") for axis in ("loop", "layer", "head", "position"))
            table.add_row(site, *places, effect, f"{float(at[f'{site}_attribution']):.3g}")
    return table


def curves_table(datasets: Sequence[xr.Dataset]) -> Table:
    """Smoothed training loss: a row a model, a column a fraction of its steps."""
    table = _table("training loss")
    table.caption = "squared error of the training prompts, mean over points, window and the last 100 steps"
    for name in ("model", "steps", *(f"{percent} %" for percent in (10, 25, 50, 75, 100)), "seconds"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for data in datasets:
        loss = moving_mean(data.loss.values, data.step.values)
        at = [int(np.searchsorted(data.step, fraction * int(data.step[-1]))) for fraction in (0.1, 0.25, 0.5, 0.75, 1)]
        cells = [f"{loss[i]:.3g}" for i in at]
        table.add_row(data.model.item(), f"{int(data.step[-1]):,}", *cells, f"{float(data.seconds[-1]):.0f}")
    return table


def verdict_table(decided: Sequence[Verdict]) -> Table:
    """One row a claim, with how many of its findings support it."""
    table = _table("claims of the study")
    for name in ("section", "claim", "verdict", "supported", "contradicted", "undecided"):
        table.add_column(name, justify="left" if name in ("section", "claim", "verdict") else "right")
    for verdict in decided:
        states = [finding.status for finding in verdict.findings]
        counts = [str(states.count(status)) for status in ("supported", "contradicted", "undecided")]
        table.add_row(verdict.section, verdict.claim, verdict.status, *counts)
    return table


def checkpoint_table(rows: Iterable[tuple[str, Config, dict[str, Any]]]) -> Table:
    """One row a checkpoint: what it is and how good."""
    table = _table("checkpoints")
    for name in ("name", "task", "layers", "loops b", "window T", "error at b", "error at 500", "steps"):
        table.add_column(name, justify="left" if name in ("name", "task") else "right")
    for name, cfg, tree in rows:
        errors = [f"{error:.3g}" for error in (tree["evaluation"] or {}).get("error", [])]
        at_b, far = (*errors, "–", "–")[:2]
        window = str(cfg.train.loop_window) if cfg.train and cfg.model.n_loops > 1 else "–"
        table.add_row(
            name,
            cfg.task.name,
            str(cfg.model.n_layers),
            str(cfg.model.n_loops),
            window,
            at_b,
            far,
            str(tree["step"]),
        )
    return table


def plan_table(planned: Iterable[Planned]) -> Table:
    """What a sweep would do with each model."""
    words = {"new": "train", "resume": "go on", "done": "is there", "differs": "is there, configured otherwise"}
    table = _table("models of the grid")
    for name in ("name", "steps", ""):
        table.add_column(name)
    for model in planned:
        table.add_row(model.name, str(model.steps), words[model.status])
    return table


def checkpoint_summary(folder: Path, cfg: Config, tree: dict[str, Any]) -> str:
    """Everything that is known of a checkpoint, as lines of text."""
    lines = [f"{folder}"]
    evaluation = tree["evaluation"]
    if evaluation is None:
        lines.append(f"in training: {tree['step']} steps done, {tree['wall_time_s']:.0f} s")
    else:
        for loop, mean, low, high in zip(
            *(evaluation[key] for key in ("loops", "error", "error_low", "error_high")), strict=True
        ):
            lines.append(
                f"error after {loop} loop{'s' * (loop > 1)}: {mean:.4g} [{low:.4g}, {high:.4g}] "
                f"({evaluation['measure']}, {evaluation['n_prompts']} held-out prompts)"
            )
        lines.append(f"trained for {tree['step']} steps in {tree['wall_time_s']:.0f} s")
    for title, part in (("model", cfg.model), ("task", cfg.task), ("train", cfg.train)):
        if part is not None:
            lines.append(f"\n[{title}]")
            lines += [
                f"{key} = {_compact(value)}" for key, value in dataclasses.asdict(part).items() if value is not None
            ]
    lines.append("\n[provenance]")
    lines += [f"{key} = {value}" for key, value in tree["provenance"].items()]
    return "\n".join(lines)


def _error_table(title: str, datasets: Sequence[xr.Dataset]) -> Table:
    table = _table(title)
    prompts = datasets[0].sizes["example"]
    table.caption = f"squared error / n_dims, mean of {prompts} prompts [95 % bootstrap interval]"
    table.add_column("model")
    return table


def _interval(mean: Any, low: Any, high: Any) -> str:
    return f"{float(mean):.3g} [{float(low):.3g},\u00a0{float(high):.3g}]"  # breaks before the bracket only


def _with_ends(at: xr.Dataset, name: str) -> str:
    return _interval(*(at[name + part] for part in ("", "_low", "_high")))


def _compact(value: Any) -> Any:
    return {key: part for key, part in value.items() if part is not None} if isinstance(value, dict) else value


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE, title_justify="left", caption_justify="left")
