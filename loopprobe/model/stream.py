"""A cache that goes to disk loop by loop: any number of loops in constant memory, readable even after a kill.

The file is laid out whole before the first loop, contiguous and unfilled; a loop then is raw data written in its
place, and after it its mark in the variable ``written``. Nothing that makes the file readable changes while it
grows, so a killed run leaves the loops that it marked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import h5netcdf
import h5py  # type: ignore[import-untyped]
import numpy as np
import torch
import xarray as xr
from pydantic import NonNegativeInt
from torch import Tensor

from loopprobe.config.selection import Choice
from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.model.cache import LoopCache
from loopprobe.model.hook_points import LoopHookPoint, short_name, split_name
from loopprobe.model.hooked_root import LoopedRootModule
from loopprobe.model.labels import Positions, at_positions, to_numpy
from loopprobe.model.selection import selector
from loopprobe.support.storage import atomic
from loopprobe.tasks import PromptBatch
from loopprobe.types import Progress

WRITTEN = "written"  # the variable that marks the loops whose data are there


@configuration
class CacheConfig:
    """The activations that are kept.

    Attributes:
        loops: iterations, from 0.
        names: short names of activations; None: all.
        layers, positions: layers and tokens, from 0, see ``config.selection``; None: all.
    """

    loops: tuple[NonNegativeInt, ...]
    names: tuple[str, ...] | None = None
    layers: Choice | None = None
    positions: Choice | None = None

    def __post_init__(self) -> None:
        if not self.loops:
            raise LoopprobeError("loops is empty: name at least one, such as 0:19")


def check_cache(model: LoopedRootModule, config: CacheConfig) -> None:
    """Raise LoopprobeError where a cache asks for what the model does not have."""
    LoopCache.choose(model, 1, config.names, None, config.layers, config.positions, n_pos=model.sizes.n_ctx)


def stream_cache(
    model: LoopedRootModule,
    prompts: PromptBatch,
    path: Path,
    config: CacheConfig,
    *,
    attrs: Mapping[str, str] | None = None,
    progress: Progress = lambda steps: steps,
) -> None:
    """Run as many loops as it takes and write activations to a netCDF file.

    Args:
        model: the model to run.
        prompts: go through together; memory is one loop of them.
        path: of the file; it must not exist.
        config: what is kept.
        attrs: attributes of the file.
        progress: wraps the iterations.

    Raises:
        LoopprobeError: something that the model does not have, or the file exists.
    """
    kept, inputs = sorted(set(config.loops)), model.prepare(*prompts.inputs)
    n_loops = kept[-1] + 1
    template, in_loops, positions = _first_loop(model, inputs, n_loops, config)
    _lay_out(path, template, in_loops, kept, attrs or {})
    wanted = selector(config.names, kept, config.layers, model)
    row_of = {loop: row for row, loop in enumerate(kept)}
    layers = template.layer.values.tolist() if "layer" in template.coords else []
    with h5netcdf.File(path, "r+", locking=False) as file:
        variables = {short: file[short] for short in template.data_vars}

        def write(x: Tensor, hook: LoopHookPoint) -> None:
            loop, layer, _ = split_name(str(hook.name))
            assert loop is not None, "what is computed once was written with the layout"
            values = to_numpy(at_positions(str(hook.name), x, positions))
            place = (row_of[loop],) if layer is None else (row_of[loop], layers.index(layer))
            variables[short_name(str(hook.name))][place] = values

        def in_loop(name: str) -> bool:
            return split_name(name)[0] is not None and wanted(name)

        with torch.no_grad(), model.hook_trees.run(n_loops), model.hooks(fwd_hooks=[(in_loop, write)]):
            e = model.embed(*inputs)
            z = model.initial_state(e)
            for loop in progress(range(n_loops)):
                z = model.step(z, e, loop)
                model.predict(z, e, loop)
                if loop in row_of:
                    file.flush()
                    file[WRITTEN][row_of[loop]] = 1
                    file.flush()


def _first_loop(
    model: LoopedRootModule, inputs: tuple[Tensor, ...], n_loops: int, config: CacheConfig
) -> tuple[xr.Dataset, set[str], Positions]:
    """Return what is kept of the first of ``n_loops``, which of it every loop has, and its positions."""
    first = LoopCache.choose(
        model, 1, config.names, None, config.layers, config.positions, n_pos=model.n_tokens(*inputs)
    )
    with torch.no_grad(), model.hook_trees.run(n_loops), model.hooks(fwd_hooks=[(first.holds, first.record)]):
        e = model.embed(*inputs)
        model.predict(model.step(model.initial_state(e), e, 0), e, 0)
    in_loops = {split_name(name)[2] for name in first if split_name(name)[0] == 0}
    template = first.to_xarray()
    return (template.isel(loop=0, drop=True) if in_loops else template.drop_vars("loop")), in_loops, first.positions


def open_cache(path: Path | str) -> xr.Dataset:
    """A cache from its file, not yet in memory: only the loops that were written.

    Where the run was stopped before its end, ``attrs["incomplete"]`` says so.

    Raises:
        LoopprobeError: there is none, or it is not a cache.
    """
    try:
        # not locked: the file may be looked at while it is written
        data = xr.open_dataset(path, engine="h5netcdf", driver_kwds={"locking": False})
    except FileNotFoundError:
        raise LoopprobeError(f"no cache at {path}: check the path") from None
    except (OSError, ValueError) as error:
        raise LoopprobeError(f"{path} is no netCDF file ({error}): write it again") from None
    if WRITTEN not in data:
        data.close()
        raise LoopprobeError(f"{path} is not a cache of loopprobe: give a file that `loopprobe cache` wrote")
    written = data[WRITTEN].values.astype(bool)
    data = data.drop_vars(WRITTEN).isel(loop=written)
    if not written.all():
        data.attrs["incomplete"] = f"{written.sum()} of {len(written)} loops: the run was stopped"
    return data


def _lay_out(
    path: Path, template: xr.Dataset, in_loops: Collection[str], loops: list[int], attrs: Mapping[str, str]
) -> None:
    """Make the file with all its axes and labels, and room for every loop."""
    if path.exists():
        raise LoopprobeError(f"{path} exists: give another path")
    room = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    room.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    room.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with_loops = {short_name(name) for name in in_loops}
    with atomic(path) as partial, h5netcdf.File(partial, "w") as file:
        file.dimensions = {"loop": len(loops), **{str(axis): size for axis, size in template.sizes.items()}}
        file.create_variable("loop", ("loop",), "i8", data=np.array(loops))
        for axis, labels in template.coords.items():
            file.create_variable(str(axis), labels.dims, labels.dtype, data=labels.values)
        file.create_variable(WRITTEN, ("loop",), "i1", data=np.zeros(len(loops), "i1"))
        for short, values in template.data_vars.items():
            if short in with_loops:
                file.create_variable(str(short), ("loop", *values.dims), values.dtype, dcpl=room)
            else:
                file.create_variable(str(short), values.dims, values.dtype, data=values.values)
        file.attrs.update(attrs)
