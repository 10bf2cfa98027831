"""Findings: one sentence on what a probe found in a model, from its dataset; verbs print it below their tables."""

from __future__ import annotations

import numpy as np
import xarray as xr

from loopprobe.dynamics.limits import AT_REST
from loopprobe.dynamics.trajectory import settled_after
from loopprobe.probes.dataset import read_stamp
from loopprobe.probes.failures import COURSES
from loopprobe.show.arrange import answer_of, ignoring
from loopprobe.show.sentences_inside import features as features
from loopprobe.show.sentences_inside import steer as steer
from loopprobe.show.sentences_inside import weights as weights
from loopprobe.show.sentences_of_edges import circuit as circuit
from loopprobe.show.sentences_of_edges import edges as edges
from loopprobe.show.side_by_side import SideBySide
from loopprobe.show.tables.common import interval, with_ends
from loopprobe.show.tables.failures import best_sign
from loopprobe.show.tables.tokens import at_trained_loops, in_words
from loopprobe.show.wording import head_name
from loopprobe.show.wording import largest as _largest
from loopprobe.show.wording import largest_head as _largest_head
from loopprobe.show.wording import loops as _loops
from loopprobe.show.wording import name as _name
from loopprobe.show.wording import times as _times
from loopprobe.support.statistics import moving_mean


def mask(data: xr.Dataset) -> str:
    """Say what the mask costs after the last loop."""
    last = data.isel(loop=-1)
    clean, worst = float(last.clean_median), last.isel(_largest(abs(last["median"] - last.clean_median)))
    if "measure" in data.attrs:
        return (
            f"{_name(data)}: after {_loops(last)} the median {data.attrs['measure']} is {clean:.3g} in the clean run, "
            f"and differs most from it with n = {int(worst.n)}: {float(worst['median']):.3g}."
        )
    worst = last.isel(_largest(last["median"]))
    others = "".join(f"; {name} gives {error:.3g}" for name, error in ignoring(data).items())
    most = float(worst["median"])
    return (
        f"{_name(data)}: after {_loops(last)} the median error is {clean:.3g} in the clean run and {most:.3g} with n = "
        f"{int(worst.n)} ({_times(most, clean)}){others}."
    )


def differences(side: SideBySide) -> list[str]:
    """Say of every paired difference where it is furthest from 0, of lines after the last loop, and whether it is 0."""
    said = []
    for row in side.differences or (side.rows if side.of_differences else []):
        values = row.values if side.y or "loop" not in row.values.dims else row.values.isel(loop=[-1])
        place = _largest(abs(values.astype(float)))
        where = {str(dim): values[dim].values[i].item() for dim, i in place.items()}
        value, ends = row.at(where)
        told = interval(value, *ends) if ends else f"{float(value):.3g}"
        unsure = ", which is not told from 0: ask more prompts" if ends and ends[0] <= 0 <= ends[1] else ""
        name = row.label or str(row.data.attrs["pair"])
        model = f"{side.model}: " if side.model and side.model not in name else ""
        said.append(f"{model}{name} is furthest from 0 at ({side.words(where)}): {told}{unsure}.")
    return said


def converge(data: xr.Dataset) -> str:
    """Say whether the error stays when the loop goes on, and how many states come to rest."""
    trained = min(int(data.attrs["trained_loops"]), int(data.loop[-1]))
    at_b, end = data.sel(loop=trained), data.isel(loop=-1)
    before, after = float(at_b["median"]), float(end["median"])
    resting = ""
    if "limit" in data:
        share = float(data.limit.isin(AT_REST).mean())
        resting = f"; {share:.0%} of the states come to a fixed point or approach one"
    return (
        f"{_name(data)}: after {_loops(end)} the median error is {after:.3g}, {_times(after, before)} that after the "
        f"{trained} of training, and {float(end.failures):.1%} of the prompts fail{resting}."
    )


def compare(data: xr.Dataset) -> str:
    """Say how close a model comes to the best predictor at the query."""
    end = data.isel(point=-1)
    best = ""
    if np.isfinite(float(end.optimum_median)):
        best = f"; the best predictor, {data.attrs['optimum']}, has {float(end.optimum_median):.3g}"
    return f"{_name(data)}: from {int(end.point)} examples the median error is {with_ends(end, 'median')}{best}."


def curves(data: xr.Dataset) -> str:
    """Say where the training loss ends, and from when on it stays near that."""
    loss = moving_mean(data.loss.values, data.step.values)
    since = int(data.step[int(settled_after(np.abs(loss / loss[-1] - 1), 0.1)) - 1])
    return f"{_name(data)}: the loss ends at {loss[-1]:.3g}, and is within a tenth of that from step {since:,} on."


def shift(data: xr.Dataset) -> str:
    """Say which shift costs most."""
    end = data.isel(loop=-1)
    inside, worst = float(end["median"].isel(shift=0)), end.isel(_largest(end["median"]))
    return (
        f"{_name(data)}: the error is largest on prompts “{worst['shift'].item()}”, {float(worst['median']):.3g} in "
        f"the median, {_times(float(worst['median']), inside)} that in distribution."
    )


def folds(data: xr.Dataset) -> str:
    """Say how accurate a model is on tables that it was trained on and on those left out."""
    right = data.right.isel(point=-1).mean("example")
    parts = [
        f"{float(right.values[chosen].mean()):.1%} on tables {words}"
        for words, chosen in (("of its training", data.trained_on.values), ("left out", ~data.trained_on.values))
        if chosen.any()
    ]
    return f"{_name(data)}: right {', and '.join(parts)}."


def align(data: xr.Dataset) -> str:
    """Say which algorithm explains most of the predictions."""
    if bool(data.explained.isnull().all()):
        return f"{_name(data)}: every algorithm diverges."
    best = data.isel(_largest(data.explained))
    return (
        f"{_name(data)}: nearest is {best.algorithm.item()}, which explains {with_ends(best, 'explained')} of the "
        f"predictions, {float(best.steps_per_loop):.2g} steps a {data.attrs['iteration']}."
    )


def decode(data: xr.Dataset) -> str:
    """Say which target is read best at the query's token in the end."""
    measure, words = ("accuracy", "share of prompts") if "accuracy" in data else ("r2", "R²")
    end = data[measure].isel(loop=-1, layer=-1)
    best = end.isel(_largest(end.sel(control="none")))
    read, shuffled = (float(best.sel(control=control)) for control in ("none", "shuffled"))
    return (
        f"{_name(data)}: after the last {data.attrs['iteration']} “{best.target.item()}” is read best, with {words} "
        f"{read:.3g} at token {int(best.position)} ({shuffled:.2g} if shuffled)."
    )


def lens(data: xr.Dataset) -> str:
    """Say from which loop on the model's own read-out nearly has the final answer."""
    own = data.isel(lens=0, site=-1)
    error = own.query_error.values
    near = np.flatnonzero(error <= 2 * error[-1])
    return (
        f"{_name(data)}: read with {own.lens.item()} after {own.site.item()}, the answer at the query first has no "
        f"more than twice its last error ({error[-1]:.3g}) after {_loops(own.isel(loop=int(near[0])))}."
    )


def attribute(data: xr.Dataset) -> str:
    """Say how much of the answer the last loop wrote, and which part of it most."""
    last = data.share.isel(loop=-1)
    most = last.isel(_largest(abs(last)))
    head = _largest_head(data.share)
    of_heads = "" if head is None else f"; of all heads {head_name(head)} wrote most, in loop {int(head.loop)} "
    of_heads += "" if head is None else f"({float(head):.0%})"
    return (
        f"{_name(data)}: the last of {int(data.loop[-1])} loops wrote {float(last.sum()):.0%} of {answer_of(data)}, "
        f"{most.component.item()} most ({float(most):.0%}){of_heads}."
    )


def attention(data: xr.Dataset) -> str:
    """Say what the query attends to most in the last loop, against even attention."""
    last = data.mass.isel(loop=-1)
    excess = (last / data.uniform).where(last > 0).fillna(0)
    place = _largest(excess)
    most = last.isel(place)
    return (
        f"{_name(data)}: in loop {int(data.loop[-1])} head {int(most.layer)}.{int(most['head'])} attends to "
        f"{most.target.item()} with {float(most):.0%} of its pattern, {float(excess.isel(place)):.2g} times its "
        "even share."
    )


def patch(data: xr.Dataset) -> str:
    """Say which patch has the largest effect."""
    options = read_stamp(data).options
    names = {site: site if options["exact"] else f"{site}_attribution" for site in options["sites"]}
    site = max(names, key=lambda one: float(abs(data[names[one]]).max()))
    values = data[names[site]]
    place = _largest(abs(values))
    most = values.isel(place)
    where = [f"after {_loops(most)}", *(f"{axis} {int(most[axis])}" for axis in ("layer", "head") if axis in place)]
    if "position" in place:
        where.append(f"token {read_stamp(data).token(int(most.position))}")
    return (
        f"{_name(data)}: the largest effect is of {site} {', '.join(where)}: it brings {float(most):.0%} of the way "
        f"from the corrupted to the clean answer{'' if options['exact'] else ', as estimated'}{_patched_head(data)}."
    )


def _patched_head(data: xr.Dataset) -> str:
    """Name the head whose patch has the largest effect, over tokens that are patched one at a time."""
    exact = "attn_z" in data
    if not exact and "attn_z_attribution" not in data:
        return ""
    head = _largest_head(data["attn_z" if exact else "attn_z_attribution"])
    return (
        "" if head is None else f"; of all heads {head_name(head)} does most, after {_loops(head)} ({float(head):.0%})"
    )


def ablate(data: xr.Dataset) -> str:
    """Say which component costs most to ablate, and how well its importance is told by other ways."""
    first = data.isel(replaced_by=0)
    method, name = str(first.replaced_by.item()), data.attrs["measure"]
    alone = first.isel(_largest(abs(first["median"])))
    words = f"{alone.component.item()} in loop {int(alone.loop)}"
    if "together" in data and data.sizes["loop"] > 1:
        most = first.isel(_largest(abs(first.together_median)))
        in_all = f"{most.component.item()} in all loops changes it most, by {_known(most, 'together_median')}"
        words = f"{in_all}, and in one loop {words}, by {_known(alone, 'median')}"
    else:
        words = f"{words} changes it most, by {_known(alone, 'median')}"
    head = _largest_head(first["median"])
    if head is not None and not str(alone.component.item()).startswith("head"):
        words += f"; of all heads {head_name(head)} in loop {int(head.loop)} does most, by {float(head):.3g}"
    others = data.rank_correlation.sel(way=method).drop_sel(other=method).dropna("other")
    agree = ""
    if others.size:
        nearest = data.sel(way=method, other=others.other[int(np.argmax(others.values))])
        agree = (
            f"; of {others.size} other ways {nearest.other.item()} ranks the {first['median'].size} places most alike "
            f"({with_ends(nearest, 'rank_correlation')})"
        )
    clean = float(data.clean.median())
    return f"{_name(data)}: the median {name} is {clean:.3g}; ablated by {method}, {words}{agree}."


def _known(row: xr.Dataset, name: str) -> str:
    """An estimate with its interval, and what to do where the interval holds zero."""
    low, high = (float(row[f"{name}{end}"]) for end in ("_low", "_high"))
    unsure = ", which is not told from 0: ask more prompts" if low <= 0 <= high else ""
    return with_ends(row, name) + unsure


def fixed_points(data: xr.Dataset) -> str:
    """Say for how many prompts a fixed point was found, and how many of these are stable."""
    found = (data.status == "FOUND").isel(start=0)
    radius = np.hypot(data.eigenvalue_real, data.eigenvalue_imag).max("eigenvalue")
    stable = (radius.where(found) < 1).sum() / max(1, int(found.sum()))
    return (
        f"{_name(data)}: the end of the loop leads to a fixed point for {float(found.mean()):.0%} of {found.size} "
        f"prompts, and {float(stable):.0%} of these are stable; the loop itself comes to rest for "
        f"{float((~data.moves).mean()):.0%}."
    )


def exit(data: xr.Dataset) -> str:
    """Say which rule saves most loops at no more than a tenth more error than the trained loops."""
    trained = min(int(data.attrs["trained_loops"]), int(data.loop[-1]))
    level = 1.1 * float(data.budget_median.sel(loop=trained))
    good = np.flatnonzero(data["median"].values <= level)
    if not len(good):
        return f"{_name(data)}: no rule keeps the error within a tenth of that after {trained} loops."
    best = data.isel(rule_setting=int(good[data.mean_loops.values[good].argmin()]))
    return (
        f"{_name(data)}: {best.rule.item()} at {best.setting.item():g} needs {float(best.mean_loops):.1f} loops in the "
        f"mean for an error within a tenth of that after {trained}."
    )


def explore(data: xr.Dataset) -> str:
    """Say what a change does to the error after the last loop."""
    end = data.isel(loop=-1)
    clean = float(end["median"].sel(run="clean"))
    if "changed" not in data.run:
        return f"{_name(data)}: after {_loops(end)} the median error at the query is {clean:.3g}."
    error = float(end["median"].sel(run="changed"))
    return (
        f"{_name(data)}: with {data.attrs['description']}, the median error at the query after {_loops(end)} is "
        f"{error:.3g}, {_times(error, clean)} the {clean:.3g} of the clean run."
    )


def extrapolate(data: xr.Dataset) -> str:
    """Say what is right at the training's length, and where it ends."""
    trained = int(data.attrs["trained_length"])
    here = at_trained_loops(data).sel(length=trained, method="nearest")
    return f"{_name(data)}: right on {float(here.exact):.1%} of prompts of length {int(here.length)}; {in_words(data)}."


def recover(data: xr.Dataset) -> str:
    """Say how much of the largest push is left in the prediction after the last loop."""
    moved = data.prediction_moved.isel(size=-1)
    most = moved.isel(_largest(moved.max("after")))
    token = int(most.position)
    left = float(most[-1] / most.max())
    where = "all tokens" if token == -1 else f"token {token}"
    return (
        f"{_name(data)}: a push of {float(data['size'][-1]):g} at {where} changes "
        f"the prediction by {float(most.max()):.2g}, and {left:.0%} of it is left {int(data.after[-1])} loops later."
    )


def failures(data: xr.Dataset) -> str:
    """Say how many prompts fail that were right after the trained loops, and what told so."""
    trained, late = int(data.attrs["trained_loops"]), int(data.onset.notnull().sum())
    right = data.sizes["example"] - int((data.prompt_course == COURSES.index("wrong before")).sum())
    begin = f"{_name(data)}: of {right} prompts that are right after {trained} loops {late} fail in the following ones"
    if not late:
        return f"{begin}."
    lasting = int((data.prompt_course == COURSES.index("wrong for good")).sum())
    told = "" if data.auc.isnull().all() else f"; what tells most beforehand is {best_sign(data)}"
    return f"{begin}, {lasting} of them for good{told}."


def paths(data: xr.Dataset) -> str:
    """Say how many of the states of the last layer come to a fixed point."""
    limits = data.layer_limit.isel(layer=-1)
    share = float(limits.isin(AT_REST).mean())
    return (
        f"{_name(data)}: after layer {int(data.layer[-1])} {share:.0%} of the states come to a fixed point or approach "
        f"one in {int(data.loop[-1])} loops."
    )
