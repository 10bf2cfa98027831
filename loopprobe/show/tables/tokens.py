"""Tables of the probes of token tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from rich.table import Table

from loopprobe.probes.dataset import read_stamp
from loopprobe.show.tables.common import with_ends as cell_with_ends
from loopprobe.show.tables.plain import titled


@dataclass(frozen=True)
class Group:
    """Models of a task that differ by their seed alone.

    Attributes:
        task: its name, in words.
        form: how the model is built, in words.
        datasets: of the seeds.
    """

    task: str
    form: str
    datasets: list[xr.Dataset]


def groups(datasets: Sequence[xr.Dataset]) -> list[Group]:
    """Group datasets by task and by how the model is built, in the order in which they come."""
    found: dict[tuple[str, str], list[xr.Dataset]] = {}
    for data in datasets:
        config = read_stamp(data).config
        layers, loops = config["model"]["n_layers"], config["model"]["n_loops"]
        by_length = ((config["train"] or {}).get("loops") or {}).get("kind") == "length"
        many = f"{layers} layer{'s' * (layers > 1)}"
        form = many if loops == 1 else f"{many}, looped {'as often as it is long' if by_length else f'{loops} times'}"
        found.setdefault((config["task"]["name"].replace("_", "-"), form), []).append(data)
    return [Group(*key, members) for key, members in found.items()]


def at_trained_loops(data: xr.Dataset) -> xr.Dataset:
    """What was measured with the loops of the training, by length; with the most loops where there were fewer."""
    return data.sel(loop=data.trained_loops.clip(max=int(data.loop[-1])))


def extrapolate_models_table(datasets: Sequence[xr.Dataset]) -> Table:
    """Tabulate what is right within and beyond the training, one row per model."""
    table = titled("prompts that are right as a whole, with the loops of the training")
    table.caption = (
        "share of the prompts [95 % interval] at the longest length of the training, and at the measured "
        "lengths next to 1.5 and 2 times it"
    )
    for name in ("model", "trained to", "there", "at 1.5 times", "at 2 times", "unsolved from", "loops per length"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for data in datasets:
        trained = int(data.attrs["trained_length"])
        cells = []
        for factor in (1, 1.5, 2):
            here = at_trained_loops(data).sel(length=factor * trained, method="nearest")
            cells.append(f"{int(here.length)}: {cell_with_ends(here, 'exact')}")
        slope, fails = _slope(data), int(data.attrs["fails_at"])
        table.add_row(
            data.model.item(), f"{trained} {data.attrs['counts']}", *cells, str(fails) if fails else "–",
            "–" if slope is None else f"{slope:.2f}",
        )  # fmt: skip
    return table


def extrapolate_table(data: xr.Dataset) -> Table:
    """Tabulate what is right at each length, with the loops of the training and with the best number."""
    trained, works = int(data.attrs["trained_length"]), data.attrs["works"]
    table = titled(f"{data.model.item()}: prompts that are right as a whole, by length ({data.attrs['counts']})")
    table.caption = (
        f"share of the prompts [95 % interval]; trained up to length {trained}; {in_words(data)}.{in_theory(data)}"
    )
    names = ["length", "loops as trained", "right", "best loops", "right", f"loops to {works:.0%}", "error, nats"]
    numbered = bool(np.isfinite(data.enough_loops).all())
    for name in names + ["enough in theory"] * numbered:
        table.add_column(name, justify="right")
    for length in data.length.values:
        here, rule = (part.sel(length=length) for part in (data, at_trained_loops(data)))
        best = int(here.exact.argmax("loop")) + 1
        needed = float(here.needed_loops)
        table.add_row(
            f"{length}", f"{int(here.trained_loops)}", cell_with_ends(rule, "exact"), f"{best}",
            cell_with_ends(here.sel(loop=best), "exact"), "–" if np.isnan(needed) else f"{needed:.0f}",
            f"{float(rule.error):.3g}", *[f"{float(here.enough_loops):.0f}"] * numbered,
        )  # fmt: skip
    return table


def in_words(data: xr.Dataset) -> str:
    """Say at which length a model ends, and how its loops rise with the length."""
    works, fails, slope = data.attrs["works"], int(data.attrs["fails_at"]), _slope(data)
    ends = f"no number of loops reaches {works:.0%} at length {fails}" if fails else f"all lengths reach {works:.0%}"
    rise = "" if slope is None else f"; {slope:.2f} loops more for each one longer"
    return ends + rise


def in_theory(data: xr.Dataset) -> str:
    """Say what is known of the depth that the task needs."""
    return f" In theory, {data.attrs['theory']}." if data.attrs["theory"] else ""


def _slope(data: xr.Dataset) -> float | None:
    """The rise of the loops with the length; None where the model is not looped, or too few lengths are solved."""
    slope = float(data.attrs["slope"])
    return round(slope, 2) + 0.0 if data.sizes["loop"] > 1 and np.isfinite(slope) else None  # no -0.00


def results_table(data: xr.Dataset) -> Table:
    """Tabulate how well each result is read at the query's token, and from which loop on, one row per target."""
    iteration = data.attrs["iteration"]
    table = titled(f"{data.model.item()}: intermediate results that a linear classifier reads")
    table.caption = (
        "share of prompts that the classifier was not fitted on, mean over the tokens that have the result; the last "
        f"column: the {iteration} after which half of these tokens, and all, are read in 90 % of prompts"
    )
    names = ("target", "last", "shuffled", "untrained", "chance", "90 % at half / all tokens")
    for name in names:
        table.add_column(name, justify="left" if name == "target" else "right")
    axis = "loop" if iteration == "loop" else "layer"
    data = data.isel({"layer" if axis == "loop" else "loop": -1})
    for name in data.target.values:
        here = data.sel(target=name)
        ends = [f"{float(here.accuracy.sel(control=one).isel({axis: -1}).mean()):.3f}" for one in data.control.values]
        read = here.accuracy.sel(control="none").dropna("position", how="all") >= 0.9
        share = read.mean("position").values
        reached = [np.flatnonzero(share >= part) for part in (0.5, 1)]
        first = [str(int(data[axis][after[0]])) if len(after) else "–" for after in reached]
        table.add_row(str(name), *ends, f"{float(here.chance.mean()):.3f}", " / ".join(first))
    return table
