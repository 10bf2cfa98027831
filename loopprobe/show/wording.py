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


def largest_head(values: xr.DataArray) -> xr.DataArray | None:
    """Return the number furthest from 0 among those of heads, with its place; None where no head has one.

    Args:
        values: numbers with a dim ``component``, whose heads are called ``head 0.1``, or with dims ``layer`` and
            ``head``.
    """
    if "component" in values.dims:
        values = values.isel(component=[str(one).startswith("head ") for one in values.component.values])
    elif "head" not in values.dims:
        return None
    if not values.size or not bool(np.isfinite(values).any()):
        return None
    return values.isel(largest(abs(values)))


def head_name(place: xr.DataArray | xr.Dataset) -> str:
    """Return what a head is called, such as ``head 0.1``."""
    if "component" in place.coords:
        return str(place.component.item())
    return f"head {int(place.layer) if 'layer' in place.coords else 0}.{int(place['head'])}"
