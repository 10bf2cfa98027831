"""The table of the weights probe."""

from __future__ import annotations

import xarray as xr
from rich.table import Table

from loopprobe.probes.dataset import read_stamp
from loopprobe.show.tables.common import interval, with_ends
from loopprobe.show.tables.plain import titled
from loopprobe.show.wording import largest

LAGS = {0: "in the same loop", 1: "in the next loop"}


def weights_table(data: xr.Dataset) -> Table:
    """Tabulate for each head its circuits, and the pair in which it writes what is read furthest above chance."""
    table = titled(f"{data.model.item()}: what the weights of heads tell")
    compared = ""
    if "composition" in data:
        count, of, expected = above_chance(data)
        compared = (
            f"; read most: the composition score furthest above its mean over random rotations, with their interval; "
            f"{count} of {of} scores are above theirs, where chance gives {expected:.0f}"
        )
    table.caption = (
        f"weights {data.attrs['weights_read']}; effective rank: (Σs²)²/Σs⁴, of random weights "
        f"{with_ends(data, 'drawn_effective_rank')}; copying, matching: Σ Re λ / Σ |λ| of OV and QK, of random weights "
        f"{with_ends(data, 'drawn_real_share')}{compared}"
    )
    table.add_column("head")
    for column in ("‖OV‖", "rank of OV", "copying", "‖QK‖", "rank of QK", "matching"):
        table.add_column(column, justify="right")
    if "composition" in data:
        table.add_column("read most by")
        table.add_column("score, and chance", justify="right")
    for head in data["head"].values:
        row = data.sel(head=head)
        cells = [str(head).removeprefix("head ")]
        for circuit in ("OV", "QK"):
            one = row.sel(circuit=circuit)
            norm = float((one.singular_value**2).sum() ** 0.5)
            cells += [f"{norm:.3g}", f"{float(one.effective_rank):.3g}", f"{float(one.real_share):.2f}"]
        if "composition" in data:
            cells += _read_most(data.sel(writer=head))
        table.add_row(*cells)
    return table


def above_chance(data: xr.Dataset) -> tuple[int, int, float]:
    """Count the scores above the interval of chance, all scores, and how many chance would put above it."""
    of = int(data.composition.notnull().sum())
    return int((data.verdict > 0).sum()), of, of * (1 - read_stamp(data).options["level"]) / 2


def pair_words(pair: xr.Dataset) -> str:
    """Name a pair: what is read, of which head, by which head, in which loop."""
    writer, reader = (str(pair[end].item()).removeprefix("head ") for end in ("writer", "reader"))
    return f"the {pair['mode'].item()} of head {reader} {LAGS[int(pair.lag)]} reading head {writer}"


def composition_of(pair: xr.Dataset) -> str:
    """Format a score with the interval of chance."""
    return f"{float(pair.composition):.2f} (chance {interval(pair.chance, pair.chance_low, pair.chance_high)})"


def _read_most(written: xr.Dataset) -> list[str]:
    """The reader of a head that is furthest above chance, and its score."""
    excess = written.composition - written.chance
    if not bool(excess.notnull().any()):
        return ["–", "–"]
    top = written.isel(largest(excess))
    reader = str(top.reader.item()).removeprefix("head ")
    return [f"{top['mode'].item()} of {reader}, {LAGS[int(top.lag)].removeprefix('in the ')}", composition_of(top)]
