"""The axes of activations: choosing tokens, and xarray datasets with labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from loopprobe.config.selection import ranges
from loopprobe.errors import LoopprobeError
from loopprobe.model.hook_points import dims, short_name, split_name

Positions = slice | list[int] | None  # tokens; None for all


def labelled(
    stacks: Mapping[str, np.ndarray],
    loops_of: Mapping[str, list[int | None]],
    loops: list[int],
    places: list[int],
    *,
    has_batch_dim: bool = True,
) -> xr.Dataset:
    """Activations by their names within a loop as one dataset, see ``LoopCache.to_xarray``.

    Args:
        stacks: of each name, with the loops as the first axis.
        loops_of: the loops of each name; [None] for what is passed once.
        loops: all loops.
        places: the tokens that were kept, by their number in the prompt.
        has_batch_dim: whether the activations have a batch axis.

    Raises:
        LoopprobeError: the names were kept for different loops.
    """
    by_short: dict[str, dict[int | None, str]] = {}
    for local in stacks:
        by_short.setdefault(short_name(local), {})[split_name(local)[1]] = local
    data = xr.Dataset()
    for short, layers in by_short.items():
        first = next(iter(layers.values()))
        arrays = [stacks[local] for local in layers.values()]
        axes = dims(first) if has_batch_dim else dims(first)[1:]
        axes = axes[: arrays[0].ndim - 1]
        sizes = dict(zip(axes, arrays[0].shape[1:], strict=True))
        axes = tuple(f"{axis}_{short}" if data.sizes.get(axis, sizes[axis]) != sizes[axis] else axis for axis in axes)
        if loops_of[first] == [None]:
            data[short] = axes, arrays[0][0]
            continue
        if any(loops_of[local] != loops for local in layers.values()):
            raise LoopprobeError(f"{short} was kept for some of the loops {ranges(loops)} only: keep it in all")
        if list(layers) == [None]:
            data[short] = ("loop", *axes), arrays[0]
        else:
            data[short] = ("loop", "layer", *axes), arrays[0][:, None] if len(arrays) == 1 else np.stack(arrays, 1)
            data.coords["layer"] = list(layers)
    data.coords["loop"] = loops
    coords: dict[str, Any] = {axis: places for axis in ("position", "query") if axis in data.sizes}
    coords |= {axis: np.arange(data.sizes[axis]) for axis in ("head", "point", "key") if axis in data.sizes}
    return data.assign_coords(coords)


def to_numpy(x: Tensor) -> np.ndarray:
    """Return an array on the CPU, half precision as float32, which numpy and netCDF can hold."""
    x = x.detach()
    return (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x).cpu().numpy()


def at_positions(name: str, activation: Tensor, positions: Positions) -> Tensor:
    """The chosen token positions (of the query, for scores and patterns) of an activation."""
    axis = token_axis(name)
    if positions is None or axis is None:
        return activation
    if isinstance(positions, slice):
        return activation[(slice(None),) * axis + (positions,)]
    index = torch.as_tensor(list(positions), device=activation.device)
    return activation.index_select(axis, index)


def token_axis(name: str) -> int | None:
    axes = dims(name)
    return next((axes.index(axis) for axis in ("query", "position") if axis in axes), None)
