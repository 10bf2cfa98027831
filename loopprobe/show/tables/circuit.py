"""Tables of the circuit probe."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr
from rich.table import Table

from loopprobe.probes.circuit_overlap import overlaps
from loopprobe.probes.dataset import read_stamp
from loopprobe.show.arrange import circuit_edges
from loopprobe.show.tables.common import interval, two_digits, whole_percent, with_ends
from loopprobe.show.tables.plain import titled

LISTED = 16  # edges


def circuit_table(data: xr.Dataset) -> Table:
    """Tabulate the largest edges of a circuit."""
    edges = circuit_edges(data, LISTED)
    table = titled(f"{data.model.item()}: the circuit of the {data.attrs['measure']}, its largest edges")
    table.caption = (
        f"{len(edges)} of {int(data.circuit.sum()):,} edges; effect: direct, 1 is as far as the corrupted run "
        f"({data.attrs['corruption']}), on the {data.sizes['example']} prompts that chose the circuit"
    )
    for name in ("from loop", "sender", "to loop", "receiver", "lag", "effect"):
        table.add_column(name, justify="left" if name in ("sender", "receiver") else "right")
    for edge in edges:
        kind = "exact" if edge["effect"] == edge["exact"] else "share"
        lag = str(edge["to_loop"] - edge["from_loop"])
        effect = interval(edge[kind], edge[f"{kind}_low"], edge[f"{kind}_high"])
        table.add_row(str(edge["from_loop"]), edge["sender"], str(edge["to_loop"]), edge["receiver"], lag, effect)
    return table


def circuit_compare_table(datasets: Sequence[xr.Dataset]) -> Table:
    """Tabulate circuits, one row a model: their size, and what they keep and leave on the prompts that measure."""
    keep = ", ".join(dict.fromkeys(f"{_keep(data):.0%}" for data in datasets))
    measures = " or ".join(dict.fromkeys(str(data.attrs["measure"]) for data in datasets))
    table = titled(f"circuits that keep {keep} of the {measures}")
    table.caption = (
        f"best edges: how many the prompts that choose need; kept, and left without them: on "
        f"{datasets[0].sizes['measured']} other prompts [95 % interval]; unexplained: Σ moved² / Σ total²; circuit: "
        "without the edges that lead nowhere"
    )
    table.add_column("model")
    for name in ("edges", "best edges", "circuit", "kept", "at random", "unexplained", "left", "at random"):
        table.add_column(name, justify="right")
    for data in datasets:
        found = data.sel(edges=data.attrs["found"])
        ranked, random = (found.sel(set=kind) for kind in ("ranked", "random"))
        share = f"{data.attrs['found']:,} ({data.attrs['found'] / data.attrs['possible']:.2g} of all)"
        table.add_row(
            str(data.model.item()), f"{data.attrs['possible']:,}", share, f"{int(data.circuit.sum()):,}",
            whole_percent(ranked, "kept"), whole_percent(random, "kept"),
            f"{two_digits(100 * float(ranked.unexplained))} %",
            whole_percent(ranked, "left"), whole_percent(random, "left"),
        )  # fmt: skip
    return table


def overlap_table(datasets: Sequence[xr.Dataset]) -> Table | None:
    """Tabulate the overlap of every two circuits; None where no two can be compared."""
    pairs = overlaps(datasets)
    if not pairs.sizes["pair"]:
        return None
    table = titled("the overlap of circuits")
    table.caption = (
        "edges in both over edges in one of them [95 % interval over prompts]; by chance: random circuits of the same "
        "sizes, put in order alike"
    )
    for name in ("one", "other", "overlap", "by chance", "heads"):
        table.add_column(name, justify="left" if name in ("one", "other", "heads") else "right")
    for i in range(pairs.sizes["pair"]):
        pair = pairs.isel(pair=i)
        heads = "in the order that fits best" if bool(pair.matched) else "the same"
        table.add_row(
            pair.one.item(), pair.other.item(), with_ends(pair, "overlap"), f"{float(pair.expected):.3g}", heads
        )
    return table


def _keep(data: xr.Dataset) -> float:
    """The share of the behaviour that was asked for."""
    return float(read_stamp(data).options["keep"])
