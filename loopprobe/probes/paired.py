"""First against last: what it costs a prompt to keep the one end of the state rather than the other."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import read_stamp, with_ends
from loopprobe.support.statistics import median_interval

MODES = ("first", "last")


def mask_difference(first: xr.Dataset, last: xr.Dataset) -> xr.Dataset:
    """Error where the first n are kept minus error where the last n are kept, prompt by prompt.

    The two runs have the same prompts, so the interval of their difference is free of what prompts have in common.

    Args:
        first, last: of the mask probe, of one model, with the same prompts and options but for ``mode``.

    Returns:
        A dataset with dims ``n``, ``loop`` (iterations done, from 1) and ``example``: ``difference [n, loop, example]``
        in the units of the errors, and ``median``, ``median_low``, ``median_high [n, loop]``, its median with a 95 %
        interval. Positive where keeping the last is better. It has the n and loops that both datasets have.

    Raises:
        LoopprobeError: they are not such a pair.
    """
    for key in ("checkpoint", "prompts"):
        if first.attrs[key] != last.attrs[key]:
            raise LoopprobeError(f"the masks differ in their {key}: compare first and last of one model")
    stamps = [read_stamp(data) for data in (first, last)]
    options = [dict(stamp.options) for stamp in stamps]
    modes = [config.pop("mode") for config in options]
    unlike = [key for key in options[0] if key not in ("n", "loops") and options[0][key] != options[1][key]]
    if modes != list(MODES) or unlike:
        raise LoopprobeError(
            f"the masks keep {' and '.join(modes)} and differ in {', '.join(unlike) or 'nothing else'}: give one of "
            "first and one of last with the same options"
        )
    one, other = xr.align(first.error.reset_coords(drop=True), last.error.reset_coords(drop=True), join="inner")
    if not one.size:
        raise LoopprobeError("the masks have no n or no loop in common: run both with the same --n and --loops")
    difference = (one - other).transpose("n", "loop", "example")
    medians = with_ends("median", ("n", "loop"), median_interval(difference.values))
    data = xr.Dataset(
        {"difference": difference, **medians},
        coords={"model": first.model.item()},
        attrs=_attributes(first, options[0], one),
    )
    for name in data:
        data[name].attrs["units"] = stamps[0].unit
    return data


def _attributes(first: xr.Dataset, options: dict[str, Any], shared: xr.DataArray) -> dict[str, Any]:
    same = {key: first.attrs[key] for key in ("checkpoint", "prompts", "provenance", "trained_loops", "full")}
    same |= {"units": first.attrs["units"]} if "units" in first.attrs else {}
    config = options | {"n": np.asarray(shared.n).tolist(), "loops": int(shared.loop[-1])}
    words = f"error with the first n {options['unit']}s minus error with the last n, prompt by prompt"
    return same | {"probe": "mask_difference", "config": json.dumps(config), "description": words}
