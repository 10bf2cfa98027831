"""Words that sentences share: names of models, counts of loops, ratios, and the place of the largest number."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import xarray as xr


def largest(values: xr.DataArray) -> dict[Hashable, int]:
    """Return the place of the largest number, as ``isel`` takes it; missing ones do not count."""
    flat = int(np.nanargmax(values.values))
    return dict(zip(values.dims, map(int, np.unravel_index(flat, values.shape)), strict=True))


def name(data: xr.Dataset) -> str:
    """Return what the model of a dataset is called."""
    return str(data.model.item())


def loops(data: xr.Dataset | xr.DataArray) -> str:
    """Say how many loops are done."""
    count = int(data.loop)
    return f"{count:,} loop{'s' * (count > 1)}"


def times(one: float, other: float) -> str:
    """Say how many times as large one number is."""
    return f"{one / other:.3g} times" if other else "against 0 of"
