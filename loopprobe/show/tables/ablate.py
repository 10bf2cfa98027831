"""The table of the ablate probe."""

from __future__ import annotations

import xarray as xr
from rich.table import Table

from loopprobe.show.tables.common import whole_percent, with_ends
from loopprobe.show.tables.plain import titled


def ablate_table(data: xr.Dataset) -> Table:
    """Tabulate for each component what it costs to ablate it in all loops, and in the one loop where it costs most.

    Where one loop is ablated alone it is all of them.

    Last come the rank correlations of the first method with every other way to rank places.
    """
    methods = [str(name) for name in data.replaced_by.values]
    name, unit = data.attrs["measure"], data.attrs["measure_unit"]
    table = titled(f"{data.model.item()}: change of the {name} by ablation")
    clean = float(data.clean.median())
    first, several = methods[0], "together" in data and data.sizes["loop"] > 1
    of_first = data.sel(way=first)
    ranked = [
        f"{way} {with_ends(of_first.sel(other=way), 'rank_correlation')}"
        for way in map(str, data.way.values)
        if way != first
    ]
    places, units = data.sizes["component"] * data.sizes["loop"], data.importance.attrs["units"]
    agree = f"; ranks of {places} places by how far the measure moves ({units}), Spearman with {first}: "
    agree = agree + ", ".join(ranked) if ranked else ""
    if small := data.attrs["too_small"]:
        agree += f"; {small}: below the precision of the answers"
    fails = "failures_added" in data
    parts = [
        f"{unit or name}, median of {data.sizes['example']} prompts [95 % interval]",
        f"without ablation {clean:.3g}",
        *(["synergy: all loops together minus the sum of single loops"] if several else []),
        *([f"fail: how many more prompts have an error above {data.attrs['failure_level']:.2g}"] if fails else []),
    ]
    table.caption = "; ".join(parts) + agree
    table.add_column("component")
    table.add_column("replaced by")
    of_all = ("all loops together", *(["fail"] if fails else []), "synergy") if several else ()
    for column in (*of_all, "most in loop", "there", *(["fail there"] if fails else []), f"there, minus {first}"):
        table.add_column(column, justify="right")
    for component in data.component.values:
        for method in methods:
            row = data.sel(component=component, replaced_by=method)
            at = row.isel(abs(row["median"]).argmax(...))
            of_all = ()
            if several:
                all_loops = row if "position" not in row.dims else row.isel(abs(row.together_median).argmax(...))
                more = (whole_percent(all_loops, "together_failures_added"),) if fails else ()
                of_all = with_ends(all_loops, "together_median"), *more, with_ends(all_loops, "synergy_median")
            where = f"{int(at.loop)}" + (f", token {int(at.position)}" if "position" in row.dims else "")
            against = "–" if method == first else with_ends(at, "against_first_median")
            more = (whole_percent(at, "failures_added"),) if fails else ()
            table.add_row(str(component), method, *of_all, where, with_ends(at, "median"), *more, against)
    return table
