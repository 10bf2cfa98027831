"""Findings about weights, directions and features: one sentence each, see ``sentences``."""

from __future__ import annotations

import numpy as np
import xarray as xr

from loopprobe.probes.feature_fits import GAUSSIAN, IN_EACH, IN_TOTAL, SHARED
from loopprobe.probes.feature_scores import FOUND
from loopprobe.show.tables.common import interval, whole_percent, with_ends
from loopprobe.show.tables.features import edited_words
from loopprobe.show.tables.steer import last_push, pushed_words
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


def steer(data: xr.Dataset) -> str:
    """Say what one unit of the direction does, against random directions, and how much of the push the loop leaves."""
    most = data.sortby("strength", ascending=False).pipe(lambda one: one.isel(largest(abs(one.strength))))
    measure = data.attrs["measure"]
    left = ""
    if float(most.strength) and int(data.loop[-1]) > last_push(data):
        left = f"; {float(most.left):.0%} of the push is left in the state after loop {int(data.loop[-1])}"
    return (
        f"{name(data)}: a push of strength {float(most.strength):g} {pushed_words(data)} changes the {measure} by "
        f"{with_ends(most, 'median')}, which is {with_ends(most, 'against_control_median')} more than random pushes as "
        f"long{left}."
    )


def features(data: xr.Dataset) -> str:
    """Say what the shared dictionary explains against the others, how long features live, and which costs most."""

    def explained(dictionary: str) -> str:
        return whole_percent(data.sel(dictionary=dictionary), "explained_over_loops")

    def gain(dictionary: str) -> str:
        return whole_percent(data.sel(dictionary=dictionary), "shared_gain")

    counts = data.lifetimes.sel(dictionary=SHARED)
    words = (
        f"{name(data)}: one dictionary of {data.sizes['feature']:,} features, {data.attrs['k']} active at most, "
        f"explains {explained(SHARED)} of the variance of held-out states"
    )
    if IN_TOTAL in data.dictionary.values:
        again = float((data.found_again >= FOUND).sum() / data.found_again.notnull().sum())
        words += (
            f", {gain(IN_TOTAL)} more than one a loop with as many features in total and {gain(IN_EACH)} more than one "
            f"a loop with as many in each; of Gaussian states one explains {explained(GAUSSIAN)}; {again:.0%} of its "
            "features are found again from another seed"
        )
    most = data.isel(shown=int(np.argmax(abs(data["median"].fillna(0).values))))
    return (
        f"{words}; {int(counts.sel(kind='all loops'))} features live in all loops, "
        f"{int(counts.sel(kind='a run of loops'))} in a run of them, {int(counts.sel(kind='one loop'))} in one; of "
        f"those shown, feature {int(most.shown)} moves the {data.attrs['measure']} most: taken out "
        f"{edited_words(data)} by {with_ends(most, 'median')}, which is {with_ends(most, 'against_control_median')} "
        "more than as much in random directions."
    )
