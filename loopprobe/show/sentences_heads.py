"""Findings about what heads can do: one sentence each, see ``sentences``."""

from __future__ import annotations

import xarray as xr

from loopprobe.show.tables.common import interval
from loopprobe.show.tables.weights import above_chance, composition_of, pair_words
from loopprobe.show.wording import largest, name


def weights(data: xr.Dataset) -> str:
    """Say which head copies most, and which pair is furthest above chance."""
    share = data.real_share.sel(circuit="OV")
    parts = "no OV circuit has an eigenvalue"
    if bool(share.notnull().any()):
        most = share.isel(largest(abs(share)))
        low, high = float(data.drawn_real_share_low), float(data.drawn_real_share_high)
        parts = (
            f"the OV circuit nearest to copying or to its opposite is that of {most['head'].item()}, with eigenvalues "
            f"that add up to {float(most):.2f} of their sizes (chance {interval(data.drawn_real_share, low, high)})"
        )
    if "composition" not in data:
        return f"{name(data)}: {parts}; there is no pair of heads whose composition weights tell."
    count, of, expected = above_chance(data)
    excess = data.composition - data.chance
    top = data.isel(largest(excess))
    return (
        f"{name(data)}: {count} of {of} composition scores are above chance, where chance gives {expected:.0f}; "
        f"furthest is {pair_words(top)}, {composition_of(top)}; {parts}."
    )
