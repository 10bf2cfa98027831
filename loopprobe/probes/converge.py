"""Error against the number of loops, far beyond the number that the model was trained with."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from loopprobe.config.strict import configuration
from loopprobe.dynamics.calibration import require_calibrated
from loopprobe.dynamics.trail import WINDOW
from loopprobe.errors import LoopprobeError
from loopprobe.model.protocol import require
from loopprobe.probes.dataset import error_summary, stamp, with_ends
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.probes.loops import require_far, require_looped
from loopprobe.probes.states import follow_states
from loopprobe.store.evaluate import over_batches
from loopprobe.store.subject import Subject
from loopprobe.support.statistics import median_interval, to_numpy
from loopprobe.tasks import PromptBatch, TextPrompts
from loopprobe.types import Progress


@configuration
class ConvergeConfig:
    """The length of the loop, and whether the states are followed.

    Attributes:
        loops: iterations; errors after every one of them come out.
        states: the number of prompts whose states are followed, token by token; 0 for none, which is quicker.
        far: the number of iterations after which a trajectory counts as at its end.
        tolerance: the distance within which a trajectory has settled, relative for states and in
            the unit of steps of the prompts for outputs.
        trajectories: whether the dataset holds every token in every loop (megabytes), or only their ends.
    """

    loops: PositiveInt = 500
    states: NonNegativeInt = 32
    far: PositiveInt = 2000
    tolerance: PositiveFloat = 1e-3
    trajectories: bool = True

    def __post_init__(self) -> None:
        noise = 10 * torch.finfo(torch.float32).eps
        if self.tolerance <= noise:
            raise LoopprobeError(
                f"tolerance ({self.tolerance:g}) must be above the noise of float32 ({noise:.1e}): raise it"
            )
        if self.states:
            require_far(self.far)
        if self.states and self.far < max(self.loops, WINDOW):
            raise LoopprobeError(f"far ({self.far}) must be at least loops ({self.loops}) and {WINDOW}: raise it")


def run(
    subject: Subject, prompts: PromptBatch, config: ConvergeConfig, progress: Progress = lambda steps: steps
) -> xr.Dataset:
    """The error after every loop, with the attainable optimum.

    Returns:
        A dataset with dims ``loop`` (iterations done, from 1), ``example`` (the prompt) and ``point`` (in-context
        examples before it):

        * ``error [loop, example]``: the error at the query
        * ``median``, ``failures [loop]`` with ``_low`` and ``_high``, and ``mean [loop]``: see ``error_summary``
        * ``error_by_point [loop, point]``: means at every point
        * ``optimum [example]``, ``optimum_by_point [point]``: the error of the best predictor that knows the
          task, named in ``attrs["optimum"]``; missing where the prompts do not say which task they are from
        * where answers can be right, ``accuracy [loop]``: their share; ``to_last``, with ``_low`` and ``_high
          [loop]``: the median distance of the answer at the query to that after the last loop, with its 95 % interval;
          of text also ``perplexity [loop]``: the exponential of the mean error over all answers that are read
        * with ``states``, everything that ``follow_states`` measures on that many prompts

    Raises:
        LoopprobeError: the model is not looped, the prompts do not fit it, or its states are in half precision.
    """
    check(subject, config, prompts)
    model = subject.model
    prompts = prompts.to(subject.device)
    n_prompts, n_points = prompts.n_prompts, prompts.n_answers
    errors = np.empty((config.loops, n_prompts), np.float32)
    right: list[np.ndarray] = []  # [loop] a batch: how many answers are right
    by_point = np.zeros((config.loops, n_points))
    to_last = np.empty_like(errors)
    done = 0

    def measured(batch: PromptBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
        outputs = model(*batch.inputs, n_loops=config.loops, read_at=batch.read_at)
        error = to_numpy(batch.errors(outputs))
        at_query, summed = error[..., -1].copy(), error.sum(axis=1, dtype=np.float64)
        if (correct := batch.correct(outputs)) is None:
            return at_query, summed, None, None
        apart = batch.distance(outputs[:, :, -1:], outputs[-1:, :, -1:])
        return at_query, summed, to_numpy(correct.sum((1, 2))), to_numpy(apart)[..., 0]

    for at_query, summed, correct, apart in progress(over_batches(model, prompts, measured, config.loops)):
        here = slice(done, done + at_query.shape[1])
        errors[:, here] = at_query
        by_point += summed
        if correct is not None:
            right.append(correct)
            to_last[:, here] = apart
        done = here.stop
    name, best = subject.optimum(prompts)
    best_error = to_numpy(prompts.errors(best))
    data = xr.Dataset(
        {
            "error": (("loop", "example"), errors),
            **error_summary(("loop",), errors, prompts.failure_level),
            "error_by_point": (("loop", "point"), by_point / n_prompts),
            "optimum": ("example", best_error[:, -1]),
            "optimum_by_point": ("point", best_error.mean(0)),
        },
        coords={"loop": np.arange(1, config.loops + 1), "point": np.arange(n_points), "model": subject.label},
        attrs={"optimum": name},
    )
    for variable in data:
        data[variable].attrs["units"] = prompts.unit
    if right:
        data["accuracy"] = "loop", sum(right) / (n_prompts * n_points)
        data = data.assign(with_ends("to_last", ("loop",), median_interval(to_last)))
    if isinstance(prompts, TextPrompts):
        data["perplexity"] = "loop", np.exp(by_point.sum(1) / (n_prompts * n_points))
    if config.states:
        few = prompts[: config.states]
        followed = follow_states(
            subject, few, loops=config.loops, far=config.far, tolerance=config.tolerance, progress=progress
        )
        if not config.trajectories:
            followed = followed.drop_vars([name for name in followed.data_vars if "loop" in followed[name].dims])
        data = data.merge(followed, combine_attrs="no_conflicts")
    return stamp(data, "converge", subject, prompts, config)


def check(subject: Subject, config: ConvergeConfig, prompts: PromptBatch) -> None:
    """Raise LoopprobeError where the loop count of the model cannot vary, or limits of its states cannot be told."""
    require_looped(subject)
    if config.states:
        require(
            subject.model, frozenset({"map", "autonomous"}), subject.label, "converge with states", "set states to 0"
        )
        require_calibrated(subject.model.dtype)


PROBE = Probe(
    "converge",
    ConvergeConfig,
    run,
    check,
    Shown(
        "states:states_figures",
        "inside:limits_table",
        "converge:converge_figure",
        "study:converge_table",
        "converge:further_figures",
        "inside:limits_models_table",
        panels=True,
        compared=True,
        quantities=(Quantity("median", "error", log=True),),
    ),
)
