"""Results on disk: xarray datasets in netCDF, with where they come from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import xarray as xr
from numpy import ndarray

from loopprobe.checkpoint import Checkpoint
from loopprobe.errors import LoopprobeError
from loopprobe.provenance import provenance
from loopprobe.storage import atomic
from loopprobe.tasks import Prompts


def stamp(data: xr.Dataset, probe: str, checkpoint: Checkpoint, prompts: Prompts, config: Any) -> xr.Dataset:
    """Write into the attributes which probe made a dataset, of which model, on which prompts, how, and with what.

    Structured attributes are JSON text, which every netCDF reader can show.
    """
    data.attrs |= attributes(probe, checkpoint, prompts, config)
    return data


def attributes(probe: str, checkpoint: Checkpoint, prompts: Prompts, config: Any) -> dict[str, str]:
    """What ``stamp`` writes; equal attributes but for the provenance mean the same question to the same model."""
    parameter = next(checkpoint.model.parameters())
    made_by = provenance(parameter.device, parameter.dtype)
    identity = {"name": checkpoint.name, "weights": checkpoint.digest(), "config": checkpoint.config.to_dict()}
    return {
        "probe": probe,
        "config": json.dumps(dataclasses.asdict(config)),
        "checkpoint": json.dumps(identity),
        "prompts": json.dumps(prompts.origin),
        "provenance": json.dumps(made_by),
    }


def with_ends(
    name: str, dims: tuple[str, ...], estimates: tuple[ndarray, ndarray, ndarray]
) -> dict[str, tuple[tuple[str, ...], ndarray]]:
    """An estimate and the ends of its interval as variables ``{name}``, ``{name}_low`` and ``{name}_high``."""
    return {name + part: (dims, values) for part, values in zip(("", "_low", "_high"), estimates, strict=True)}


def write_dataset(data: xr.Dataset, path: Path) -> None:
    """Write netCDF, compressed, whole or not at all."""
    encoding = {name: {"zlib": True, "complevel": 3} for name, values in data.items() if values.dtype.kind == "f"}
    with atomic(path) as partial:
        data.to_netcdf(partial, engine="h5netcdf", encoding=encoding)


def read_dataset(path: Path) -> xr.Dataset:
    """Read a dataset into memory.

    Raises:
        LoopprobeError: there is none, or it is no netCDF.
    """
    try:
        with xr.open_dataset(path, engine="h5netcdf") as data:
            return data.load()
    except FileNotFoundError:
        raise LoopprobeError(f"no results at {path}: check the path") from None
    except (OSError, ValueError) as error:
        raise LoopprobeError(f"{path} is no netCDF file ({error}): run the probe again") from None
