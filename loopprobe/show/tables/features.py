"""The tables of the features probe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from rich.table import Table

from loopprobe.config.selection import ranges
from loopprobe.probes.dataset import read_stamp
from loopprobe.probes.feature_scores import FOUND
from loopprobe.show.tables.common import whole_percent, with_ends
from loopprobe.show.tables.plain import titled

LONGEST = 24  # characters of tokens that a caption lists


def dictionaries_table(datasets: Sequence[xr.Dataset]) -> Table:
    """Tabulate what every dictionary explains, how many of its features are dead, and how long they live."""
    table = titled("sparse dictionaries of loop states")
    data = datasets[0]
    of = data.attrs["dictionary_of"]
    elsewhere = "" if of == read_stamp(data).checkpoint else f" in {of}"
    table.caption = (
        f"{data.attrs['k']} features active in a state at most; explained: variance of the states of "
        f"{data.sizes['example']} held-out prompts about the mean of their loop, all loops counted alike [95 % "
        f"interval], and the difference, paired; trained on the states of {data.attrs['fitted_on']}{elsewhere}; dead: "
        "active in no held-out state; then how many features live where, a feature living in a loop where its mean "
        f"activation is at least {read_stamp(data).options['lives']:.0%} of its largest; state replaced: change of the "
        f"{measured(data)} where what is decoded takes the place of the state {edited_words(data)}, median"
    )
    for column in ("model", "dictionary"):
        table.add_column(column)
    kinds = [str(kind) for kind in data.kind.values[:-1]]
    for column in ("features", "explained", "shared minus this", "dead", *kinds, "state replaced"):
        table.add_column(column, justify="right")
    for data in datasets:
        for i, name in enumerate(data.dictionary.values):
            row = data.sel(dictionary=name)
            size = f"{int(row.n_features):,}" if float(row.n_features) else "–"
            dead = "–" if bool(row.dead.isnull()) else f"{100 * float(row.dead):.1f} %"
            numbers = [_count(number) for number in row.lifetimes.values[:-1]]
            replaced = "–" if bool(row.replaced_median.isnull()) else with_ends(row, "replaced_median")
            explained = whole_percent(row, "explained_over_loops")
            gain = "–" if i == 0 else whole_percent(row, "shared_gain")
            model = str(data.model.item()) if i == 0 else ""
            table.add_row(model, str(name), size, explained, gain, dead, *numbers, replaced)
    return table


def features_table(data: xr.Dataset) -> Table:
    """Tabulate the features that are looked at: where they live, how active they are, and what ablating one does."""
    table = titled(f"{data.model.item()}: features of the dictionary that all loops share")
    compared = ""
    if "found_again" in data:
        alive = data.found_again.notnull()
        shares = [float((data[name] >= FOUND).sum() / alive.sum()) for name in ("found_again", "found_in_gaussian")]
        compared = (
            f"; found again: cosine with its partner of another seed, at least {FOUND} for {shares[0]:.0%} of all "
            f"features (of a dictionary of Gaussian states, which is chance: {shares[1]:.0%})"
        )
    table.caption = (
        f"active: share of held-out states; activation: mean over all of them, in the unit of the state{compared}; "
        f"ablated: change of the {measured(data)} where the feature's contribution is taken out of the state "
        f"{edited_words(data)}, median of {data.sizes['example']} prompts with its 95 % interval; without an edit "
        f"{float(data.clean.median()):.3g}; random: as much taken in {data.sizes['control']} random directions"
    )
    table.add_column("feature", justify="right")
    table.add_column("lives in loops")
    table.add_column("most active at")
    again = ["found again"] if "found_again" in data else []
    for column in ("active", "activation", *again, "ablated", "random", "ablated minus random"):
        table.add_column(column, justify="right")
    stamp = read_stamp(data)
    for number in data.shown.values:
        row, of_feature = data.sel(shown=number), data.sel(feature=number)
        effects = [with_ends(row, name) for name in ("median", "control_median", "against_control_median")]
        cosine = [f"{float(of_feature.found_again):.2f}"] if "found_again" in data else []
        loop, token = np.unravel_index(int(np.argmax(row.map_activation.values)), row.map_activation.shape)
        at = f"loop {int(data.loop[loop])}, token {stamp.token(int(data.position[token]))}"
        dead = str(of_feature.lifetime.item()) == "dead"
        table.add_row(
            str(int(number)), "dead" if dead else lived(of_feature), "–" if dead else at,
            f"{100 * float(of_feature.rate.mean()):.1f} %", f"{float(of_feature.activation.mean()):.3g}", *cosine,
            *effects,
        )  # fmt: skip
    return table


def lived(of_feature: xr.Dataset) -> str:
    """Return the loops in which a feature lives, none of a dead one."""
    return ranges([int(loop) for loop in of_feature.loop.values[of_feature.lives.values.astype(bool)]])


def measured(data: xr.Dataset) -> str:
    """Return what is measured, with its unit."""
    name, unit = data.attrs["measure"], data.attrs["measure_unit"]
    return f"{name} ({unit})" if unit and unit != name else str(name)


def edited_words(data: xr.Dataset) -> str:
    """Say after which loops and at which tokens the state is edited, and when the answer is read."""
    loops, tokens = (np.ravel(data.attrs[name]).tolist() for name in ("ablated_after", "ablated_at"))
    where = "after every loop" if loops == data.loop.values.tolist() else f"after loops {ranges(loops)}"
    if len(loops) == 1:
        where = f"after loop {loops[0]}"
    if sorted(tokens) != data.position.values.tolist():
        listed = ranges(sorted(tokens))
        where += f" at tokens {listed}" if len(listed) <= LONGEST else f" at {len(tokens)} tokens"
    last = int(data.attrs["read_after"])
    return where if last == int(data.loop[-1]) else f"{where}, read after loop {last}"


def _count(number: float) -> str:
    return "–" if np.isnan(number) else f"{int(number):,}"
