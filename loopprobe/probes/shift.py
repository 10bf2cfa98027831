"""Error on prompts that are drawn otherwise than in training (``loopprobe.tasks.shifts``), after every loop."""

from __future__ import annotations

import numpy as np
import xarray as xr
from pydantic import PositiveInt

from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import error_summary, stamp, with_ends
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.store.evaluate import over_batches
from loopprobe.support.statistics import median_interval, to_numpy
from loopprobe.tasks import Prompts
from loopprobe.tasks.shifts import SHIFTS, find_shift
from loopprobe.types import Progress

IN_DISTRIBUTION = "as in training"


@configuration
class ShiftConfig:
    """The shifts, and the length of the loop.

    Attributes:
        shifts: names; empty: all that the model can be run on.
        loops: iterations; None: as many as each model was trained with.
    """

    shifts: tuple[str, ...] = ()
    loops: PositiveInt | None = None


def run(
    checkpoint: Checkpoint, prompts: Prompts, config: ShiftConfig, progress: Progress = lambda steps: steps
) -> xr.Dataset:
    """Measure the error of every shift, beside that in distribution, on prompts of the same seed.

    Returns:
        A dataset with dims ``shift`` (``as in training`` first, then in words), ``loop`` (iterations done, from 1),
        ``example`` (the prompt) and ``point`` (in-context examples before it):

        * ``error [shift, loop, example]``: the error at the query, in units of the shift's own labels
        * ``median``, ``failures [shift, loop]`` with ``_low`` and ``_high``, and ``mean [shift, loop]``: see
          ``error_summary``
        * ``median_by_point [shift, point]``, ``…_low``, ``…_high``: after the last loop, at every point; missing where
          only the query differs from training

    Raises:
        LoopprobeError: there is no such shift, the model cannot be run on it, or the prompts are not as in training.
    """
    check(checkpoint, config, prompts)
    model = checkpoint.model
    seed = prompts.origin.get("held_out_seed", 0)
    n_prompts, n_points = len(prompts.ys), model.cfg.n_points
    loops = config.loops or model.cfg.n_loops
    names: list[str | None] = [None, *(config.shifts or applicable(checkpoint))]
    errors, by_point = [], np.full((3, len(names), n_points), np.nan)
    for i, name in enumerate(progress(names)):
        shifted = prompts.to(checkpoint.device) if name is None else checkpoint.held_out(n_prompts, seed, name)
        parts = over_batches(model, shifted, lambda batch: to_numpy(batch.errors(model(*batch, config.loops))), loops)
        squared = np.concatenate(list(parts), axis=1)
        errors.append(squared[..., -1])
        if name is None or not SHIFTS[name].at_query:
            by_point[:, i, : squared.shape[-1]] = np.stack(median_interval(squared[-1].T))
    error = np.stack(errors)
    dims = ("shift", "loop")
    data = xr.Dataset(
        {
            "error": ((*dims, "example"), error),
            **error_summary(dims, error, prompts.failure_level),
            **with_ends("median_by_point", ("shift", "point"), (by_point[0], by_point[1], by_point[2])),
        },
        coords={
            "shift": [IN_DISTRIBUTION if name is None else SHIFTS[name].words for name in names],
            "loop": np.arange(1, error.shape[1] + 1),
            "point": np.arange(n_points),
            "model": checkpoint.label,
        },
    )
    for variable in data:
        data[variable].attrs["units"] = prompts.unit
    return stamp(data, "shift", checkpoint, prompts, config)


def applicable(checkpoint: Checkpoint) -> list[str]:
    """Name the shifts of a model: more examples or dimensions only where it can read more than it has seen."""
    possible = []
    for name in SHIFTS:
        try:
            checkpoint.held_out(1, shift=name)
        except LoopprobeError:
            continue
        possible.append(name)
    return possible


def check(checkpoint: Checkpoint, config: ShiftConfig, prompts: Prompts) -> None:
    """Raise LoopprobeError where there is no such shift for the model, or the prompts are not as in training."""
    if other := prompts.origin.keys() & {"shift", "data"}:
        raise LoopprobeError(f"the shifts start from prompts as in training: leave out {min(other)}")
    if not checkpoint.is_of_task(prompts):
        raise LoopprobeError(
            "the shifts start from prompts as in training, but these do not say that they are of "
            f"{checkpoint.config.task.name}: give their number, or checkpoint.held_out(…)"
        )
    if not config.shifts and not applicable(checkpoint):
        raise LoopprobeError(
            f"no shift applies to {checkpoint.label}, whose task ({checkpoint.config.task.name}) draws inputs and "
            "labels at once: derive it from loopprobe.tasks.FunctionTask, which draws them apart"
        )
    for name in config.shifts:
        find_shift(name)
        checkpoint.held_out(1, shift=name)


PROBE = Probe(
    "shift",
    ShiftConfig,
    run,
    check,
    Shown(
        compare_figure="shift:shift_figure",
        compare_table="study:shift_table",
        further_figures="shift:shift_curves_figures",
        compared=True,
        quantities=(Quantity("median", "error", log=True),),
    ),
    of_points=True,
)
