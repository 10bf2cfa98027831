"""Tables of the probes that look inside the loop and at its long run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from rich.table import Table

from loopprobe.dynamics.limits import Limit
from loopprobe.dynamics.solve import Status
from loopprobe.probes.dataset import read_stamp
from loopprobe.show.arrange import answer_of, loops_to_show
from loopprobe.show.tables.common import errors_caption, failing, interval, percent, with_ends
from loopprobe.show.tables.plain import titled
from loopprobe.support.statistics import share_interval


def lens_table(data: xr.Dataset) -> Table:
    """Tabulate the error of the answer at the query and its distance to the final answer.

    Each lens and site has one row.
    """
    table = titled(f"{data.model.item()}: the answer at the query, read at every site")
    table.caption = f"{read_stamp(data).query_unit}, median [95 % interval]; last column: of the final answer"
    table.add_column("lens")
    table.add_column("read")
    shown = loops_to_show(data)
    for loop in shown:
        table.add_column(f"after {loop} loop{'s' * (loop > 1)}", justify="right")
    table.add_column("distance to the final answer", justify="right")
    for lens in data.lens.values:
        for site in data.site.values:
            row = data.sel(lens=lens, site=site)
            cells = [with_ends(row.sel(loop=t), "query_error") for t in shown]
            last = with_ends(row.isel(loop=-1), "query_to_final")
            table.add_row(str(lens), str(site) if site == "input" else f"after {site}", *cells, last)
    return table


def attribute_table(data: xr.Dataset) -> Table:
    """Tabulate the share of each part in the prediction, or in a logit difference, at the query, one row per part.

    The columns are the last loops, and all earlier loops together.
    """
    answer = answer_of(data)
    table = titled(f"{data.model.item()}: {answer} at the query, split by what was written in each loop")
    table.caption = f"share of {answer} [95 % bootstrap interval]; with initial state and offset they sum to 1"
    table.add_column("part")
    shown = [int(loop) for loop in data.loop.values[-3:]]
    for loop in reversed(shown):
        table.add_column(f"after {loop} loop{'s' * (loop > 1)}", justify="right")
    table.add_column("all earlier", justify="right")
    earlier = data.share.where(data.loop < shown[0], 0).sum("loop")
    for component in data.component.values:
        row = data.sel(component=component)
        cells = [interval(*(row[part].sel(loop=loop) for part in ("share", "low", "high"))) for loop in reversed(shown)]
        table.add_row(str(component), *cells, f"{float(earlier.sel(component=component)):.3g}")
    return table


def attention_table(data: xr.Dataset) -> Table:
    """Tabulate where the query attends in the last loop, and the measures of each head, one row per head."""
    last = data.isel(loop=-1)
    table = titled(f"{data.model.item()}: attention of the query's token in loop {int(last.loop)}")
    even = ", ".join(f"{target} {float(data.uniform.sel(target=target)):.3g}" for target in data.target.values)
    table.caption = (
        f"mean over {read_stamp(data).prompts.get('n_prompts', 'all')} prompts; even attention would give: {even}"
    )
    table.add_column("head")
    for name in (*data.target.values, "mixing score", "concentration", "change"):
        table.add_column(str(name), justify="right")
    for layer in data.layer.values:
        for head in data["head"].values:
            row = last.sel(layer=layer, head=head)
            numbers = [*row.mass.values, row.mixing_score, row.column_sum_concentration, row.change]
            table.add_row(f"{layer}.{head}", *(f"{float(number):.3g}" for number in numbers))
    return table


def patch_table(data: xr.Dataset, most: int = 8) -> Table:
    """Tabulate the places at which a patch has the largest effect, for every site."""
    config = read_stamp(data).options
    correlations = {site: data.attrs.get(f"correlation_{site}", np.nan) for site in config["sites"]}
    measure = f", measured: {data.attrs['measure']}" if "measure" in data.attrs else ""
    title = f"{data.model.item()}: the largest effects of a patch (corrupted: {data.attrs['corruption']}{measure})"
    table = titled(title)
    cost = ""
    if config["exact"]:
        passes = data.attrs["seconds"] / data.attrs["clean_pass"]
        cost = f"; {int(data.attrs['patches']):,} patches cost as much as {passes:,.0f} clean passes; correlation of "
        cost += "effect and estimate: " + ", ".join(
            f"{site} {'–' if np.isnan(value) else format(value, '.2f')}" for site, value in correlations.items()
        )
    table.caption = f"0: as the corrupted run, 1: as the clean one [95 % bootstrap interval]{cost}"
    for name in ("site", "loops done", "layer", "head", "token", "effect", "estimate"):
        table.add_column(name, justify="left" if name == "site" else "right")
    for site in config["sites"]:
        values = data[site if config["exact"] else f"{site}_attribution"]
        for flat in np.argsort(-np.abs(values.values), axis=None)[:most]:
            where = dict(zip(values.dims, np.unravel_index(flat, values.shape), strict=True))
            labels = {axis: str(values[axis].values[i]) for axis, i in where.items()}
            labels["position"] = read_stamp(data).token(int(labels["position"]))
            row = data.isel(where)
            effect = with_ends(row, site) if config["exact"] else "–"
            places = (labels.get(axis, "–") for axis in ("loop", "layer", "head", "position"))
            table.add_row(site, *places, effect, f"{float(row[f'{site}_attribution']):.3g}")
    return table


def limits_table(data: xr.Dataset) -> Table | None:
    """Tabulate where states and predictions go in the long run, one column per type of limit.

    The cells are shares of tokens and of points. Return None if no states were followed.
    """
    if "limit" not in data:
        return None
    types = data.limit.attrs["types"].split(", ")
    prompts = data.sizes["followed"]
    table = titled(f"{data.model.item()}: where it goes in {data.attrs['far']:,} loops")
    settled = []
    for what, values in (("states", data.state_settled), ("predictions", data.prediction_settled)):
        reached = float(values.notnull().mean())
        after = f", after {float(values.median()):.0f} loops in the median" if reached else ""
        settled.append(f"{reached:.0%} of the {what}{after}")
    within = f"Within {data.attrs['tolerance']:g} of the far value for good: {', '.join(settled)}"
    ahead = ""
    if "to_limit" in data and bool(data.to_limit.notnull().any()):
        ahead = (
            f"States that approach a point are {float(data.to_limit.median()):.1g} from it in the median, relative. "
        )
    table.caption = (
        f"share of tokens or points, mean of {prompts} prompts [95 % interval]. {within}. {ahead}"
        f"Mistaken on controls: {data.attrs['control_errors']}"
    )
    table.add_column("")
    for name in types:
        table.add_column(name, justify="right")
    for what, values, examples in (
        ("state", data.limit, data.position // (data.sizes["position"] // data.sizes["point"])),
        ("prediction", data.prediction_limit, data.point),
    ):
        for where, chosen in _split_points(examples, read_stamp(data).model.get("n_dims")).items():
            limits = values.values[:, chosen.values]
            shares = np.stack([(limits == i).mean(1) for i in range(len(types))])
            cells = ["0" if not share.any() else interval(*share_interval(share)) for share in shares]
            table.add_row(what + where, *cells)
    return table


def _split_points(examples: xr.DataArray, n_dims: int | None) -> dict[str, xr.DataArray]:
    """Split the points by whether they have fewer examples than dimensions; without dimensions there is one part."""
    if n_dims is None:
        return {"": examples >= 0}
    return {f", fewer than {n_dims} examples": examples < n_dims, f", {n_dims} examples or more": examples >= n_dims}


def limits_models_table(datasets: Sequence[xr.Dataset]) -> Table | None:
    """Tabulate where the states and predictions of several models go, one row per model.

    Models whose states were not followed have no row. Return None if no model is left.
    """
    if not (datasets := [data for data in datasets if "limit" in data]):
        return None
    table = titled("where states and predictions go")
    prompts, loops = datasets[0].sizes["followed"], int(datasets[0].attrs["far"])
    shares = f"shares of tokens and points, mean of {prompts} prompts [95 % interval], in {loops:,} loops"
    missing = [data.spectral_radius.attrs.get("missing") for data in datasets]
    known = "; radius: the largest of a prompt's tokens, median" if None in missing else ""
    unknown = "".join(f"; no spectral radius where {why}" for why in dict.fromkeys(filter(None, missing)))
    table.caption = f"{shares}{known}{unknown}"
    for name in (
        "model",
        "tokens at a fixed point",
        "approaching one",
        "on a cycle",
        "unsettled",
        "predictions at a fixed point",
        "radius",
    ):
        table.add_column(name, justify="left" if name == "model" else "right")
    for data in datasets:
        states = [
            share_interval((data.limit == kind).mean("position").values)
            for kind in (Limit.FIXED, Limit.APPROACHING, Limit.CYCLE, Limit.UNSETTLED)
        ]
        points = share_interval((data.prediction_limit == Limit.FIXED).mean("point").values)
        radius = float(data.spectral_radius.max("position").median())
        shown = "–" if np.isnan(radius) else f"{radius:.3g}"
        table.add_row(data.model.item(), *(interval(*row) for row in states), interval(*points), shown)
    return table


def exit_table(data: xr.Dataset) -> Table:
    """Tabulate the loops and the error of every exit rule, one row per setting.

    The last column is the number of loops for all prompts that gives as low an error.
    """
    table = titled(f"{data.model.item()}: early exit")
    table.caption = (
        f"error: median of {data.sizes['example']} prompts [95 % interval]; loops: mean; the last column: the fewest "
        f"loops for all prompts alike whose median error is no higher{failing(data)}"
    )
    for name in ("rule", "setting", "loops", "error", "fail", "for all alike"):
        table.add_column(name, justify="left" if name == "rule" else "right")
    for i in range(data.sizes["rule_setting"]):
        row = data.isel(rule_setting=i)
        as_good = np.nonzero(data.budget_median.values <= float(row["median"]))[0]
        alike = str(int(data.loop[as_good[0]])) if len(as_good) else "–"
        errors = with_ends(row, "median"), percent(row, "failures")
        table.add_row(row.rule.item(), f"{row.setting.item():g}", f"{float(row.mean_loops):.1f}", *errors, alike)
    return table


def fixed_points_table(data: xr.Dataset) -> Table:
    """Tabulate how many fixed points were found, how stable they are and how good.

    Prompts whose loop comes to rest and prompts whose loop moves have separate rows.
    """
    table = titled(f"{data.model.item()}: fixed points, {data.sizes['example']} prompts")
    statuses, counts = np.unique(data.status.values, return_counts=True)
    ends = "; ".join(f"{count} × {Status[name].value}" for name, count in zip(statuses, counts, strict=True))
    table.caption = f"medians over prompts; error: {read_stamp(data).query_unit}. Searches: {ends}"
    names = (
        "prompts whose loop",
        "number",
        "found from the end",
        "found from random",
        "most distinct",
        "loop ends there",
    )
    for name in (*names, "spectral radius", "singular value", "Lyapunov exponent", "error there", "error of the loop"):
        table.add_column(name, justify="left" if name == names[0] else "right")
    radius = np.hypot(data.eigenvalue_real, data.eigenvalue_imag).max("eigenvalue")
    for moves, name in ((False, "comes to rest"), (True, "moves")):
        chosen = np.nonzero(data.moves.values == moves)[0]
        prompts, is_found = data.isel(example=chosen), data.status.values[chosen] == "FOUND"
        if not len(chosen):
            continue
        of_prompts = (radius, data.singular_value, data.lyapunov)
        medians = [float(values.isel(example=chosen).median()) for values in of_prompts]
        from_random = f"{is_found[:, 1:].mean():.0%}" if is_found.shape[1] > 1 else "–"
        table.add_row(
            name, str(len(chosen)), f"{is_found[:, 0].mean():.0%}", from_random,
            str(int(prompts["distinct"].max())), f"{float(prompts.limit_is_fixed.mean()):.0%}",
            *(f"{value:.3g}" for value in medians), f"{float(prompts.error.isel(start=0).median()):.3g}",
            f"{float(prompts.loop_error.median()):.3g}",
        )  # fmt: skip
    return table


def recover_table(data: xr.Dataset) -> Table:
    """Tabulate what remains of a push in the prediction, one row per size and token, by loops since then."""
    table = titled(f"{data.model.item()}: the state is pushed after {data.attrs['pushed_after']} loops")
    table.caption = f"root mean square of what it changed in the prediction at the query ({read_stamp(data).step_unit})"
    last = int(data.after[-1])
    shown = sorted({0, 1, 2, 5, 10, 20, last} & {int(t) for t in data.after})
    for name in ("size", "token", *(f"{t} loops later" for t in shown), "half gone after"):
        table.add_column(name, justify="right")
    for size in data["size"].values:
        for token in data.position.values:
            moved = data.prediction_moved.sel(size=size, position=token).values
            above = np.nonzero(moved > moved.max() / 2)[0]
            half = f"{above[-1] + 1}" if len(above) and above[-1] < last else "–"
            cells = (f"{moved[t]:.2g}" for t in shown)
            table.add_row(f"{size:g}", "all" if token == -1 else read_stamp(data).token(int(token)), *cells, half)
    return table


def paths_table(data: xr.Dataset) -> Table:
    """Tabulate the limits of every layer and how far apart the layers are."""
    types = data.layer_limit.attrs["types"].split(", ")
    table = titled(f"{data.model.item()}: the residual stream after each layer, in {int(data.loop[-1])} loops")
    tokens = f"{data.sizes['followed']} prompts × {data.sizes['position']} tokens"
    table.caption = f"shares of {tokens}; distance in the last loop, relative"
    table.add_column("layer", justify="right")
    for name in types:
        table.add_column(name, justify="right")
    for other in data.other_layer.values:
        table.add_column(f"distance to {other}", justify="right")
    for layer in data.layer.values:
        limits = data.layer_limit.sel(layer=layer).values
        shares = (f"{(limits == i).mean():.0%}" for i in range(len(types)))
        apart = (f"{float(data.layer_distance.sel(layer=layer, other_layer=o)):.2f}" for o in data.other_layer.values)
        table.add_row(str(layer), *shares, *apart)
    return table


def explore_table(data: xr.Dataset) -> Table:
    """Tabulate the median error of the clean and the changed run, one column per loop count."""
    table = titled(f"{data.model.item()}: {data.attrs['description']}")
    table.caption = errors_caption(data)
    table.add_column("run")
    shown = loops_to_show(data)
    for loop in shown:
        table.add_column(f"{loop} loop{'s' * (loop > 1)}", justify="right")
    table.add_column("fail", justify="right")
    for name in data.run.values:
        row = data.sel(run=name)
        table.add_row(
            str(name), *(with_ends(row.sel(loop=t), "median") for t in shown), percent(row.isel(loop=-1), "failures")
        )
    return table
