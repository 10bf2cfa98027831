"""Lengths and loops beyond the training: where a model of a token task is still right, and how many loops it needs.

A loop whose count grows with the length may solve lengths that no training showed (Fan et al., arXiv 2409.15647). The
map of length and loops shows whether it does, and whether the loops or the length end it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float, Real
from pydantic import Field, PositiveInt

from loopprobe.config.schema import TaskConfig
from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import stamp, with_ends
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.store.evaluate import over_batches
from loopprobe.store.subject import PromptSpec, Subject
from loopprobe.support.statistics import share_interval, to_numpy
from loopprobe.tasks import TokenPrompts
from loopprobe.tasks.tokens import longest_length
from loopprobe.types import Progress

SHOWN = 16  # lengths where none are chosen


@configuration
class ExtrapolateConfig:
    """The lengths and loops of the map.

    Attributes:
        lengths: those of the prompts; None: the longest of the training, and up to 16 from 1 to ``reach`` times it.
        reach: see ``lengths``.
        loops: the most loops; None: twice as many as the longest of these lengths were trained with, or would be; one
            where the model is not looped.
        works: the share of prompts that are right as a whole from which a length counts as solved.
    """

    lengths: tuple[PositiveInt, ...] | None = None
    reach: float = Field(default=2.0, ge=1, le=64)
    loops: PositiveInt | None = None
    works: float = Field(default=0.9, gt=0, le=1)


def run(
    subject: Subject, prompts: TokenPrompts, config: ExtrapolateConfig, progress: Progress = lambda steps: steps
) -> xr.Dataset:
    """Measure every length after every loop.

    Args:
        subject: the model and its task, from which prompts of each length are drawn.
        prompts: their number and seed are those of every length.
        config: the lengths and loops.
        progress: wraps the lengths.

    Returns:
        A dataset with dims ``length``, ``loop`` (from 1) and ``example``:

        * ``right [length, loop, example]``: 1 for a prompt whose answers are all right, else 0
        * ``exact``, ``exact_low``, ``exact_high [length, loop]``: the share of prompts whose answers are all right,
          with 95 % bootstrap intervals; ``accuracy [length, loop]``: of all answers; ``error [length, loop]``: their
          mean cross entropy in nats
        * ``trained_loops [length]``: the loops of the training for this length, or what its rule would give
        * ``best_loops [length]``: the loops of the least error
        * ``needed_loops [length]``: the fewest loops after which the length is solved, missing where it never is
        * ``enough_loops [length]``: the fewest whose layers make the depth that is known to suffice for some weights,
          missing where theory gives no number

        ``attrs`` hold ``theory``, what is known of the depth that the task needs, ``trained_length``, ``fails_at`` (the
        first length that no number of loops solves; 0 where all are solved) and ``slope``, the rise of
        ``needed_loops`` with the length over the solved lengths, by least squares.

    Raises:
        LoopprobeError: a length that the task or the model does not have.
    """
    check(subject, config, prompts)
    lengths = _lengths(config, prompts, subject)
    trained = [subject.loops_of(_drawn(subject, prompts, length, 1)) for length in lengths]
    loops = config.loops or (1 if subject.model.sizes.n_loops == 1 else 2 * max(trained))
    measured = [_measured(subject, _drawn(subject, prompts, length), loops) for length in progress(lengths)]
    exact, accuracy, error = (np.stack(parts) for parts in zip(*measured, strict=True))  # [length, loop, prompt]
    share = exact.mean(-1)
    solved = (share >= config.works).any(1)
    needed = np.where(solved, (share >= config.works).argmax(1) + 1.0, np.nan)
    data = xr.Dataset(
        {
            "right": (("length", "loop", "example"), exact.astype(np.int8)),
            **with_ends("exact", ("length", "loop"), share_interval(exact)),
            "accuracy": (("length", "loop"), accuracy.mean(-1)),
            "error": (("length", "loop"), error.mean(-1)),
            "trained_loops": ("length", trained),
            "best_loops": ("length", error.mean(-1).argmin(1) + 1),
            "needed_loops": ("length", needed),
            "enough_loops": ("length", _enough(prompts.task, lengths, subject.model.sizes.n_layers)),
        },
        coords={"length": list(lengths), "loop": np.arange(1, loops + 1), "model": subject.label},
        attrs={
            "trained_length": int(prompts.task.length or 0),
            "fails_at": 0 if solved.all() else int(lengths[int(solved.argmin())]),
            "slope": _slope(np.array(lengths, float)[solved], needed[solved]),
            "works": config.works,
            "counts": prompts.task.rules.counts,
            "theory": prompts.task.rules.theory,
        },
    )
    data["error"].attrs["units"] = prompts.unit
    return stamp(data, "extrapolate", subject, prompts, config)


def check(subject: Subject, config: ExtrapolateConfig, prompts: TokenPrompts) -> None:
    """Raise LoopprobeError where the task or the model does not have a length."""
    for length in _lengths(config, prompts, subject):
        _drawn(subject, prompts, length, 1)


def _lengths(config: ExtrapolateConfig, prompts: TokenPrompts, subject: Subject) -> tuple[int, ...]:
    if config.lengths is not None:
        if not config.lengths:
            raise LoopprobeError("lengths is empty: name at least one, such as 4,8,16")
        return tuple(sorted(set(config.lengths)))
    trained = prompts.task.length or 1
    most = longest_length(prompts.task, subject.model.sizes.n_ctx, int(config.reach * trained))
    return tuple(sorted({round(length) for length in np.linspace(1, most, min(SHOWN, most))} | {min(trained, most)}))


def _drawn(subject: Subject, prompts: TokenPrompts, length: int, n_prompts: int | None = None) -> TokenPrompts:
    """Prompts of a length, as many as these where nothing else is said."""
    seed = int(prompts.origin.get("held_out_seed", 0))
    drawn: TokenPrompts = subject.draw(PromptSpec(prompts=n_prompts or prompts.n_prompts, seed=seed, length=length))
    return drawn


def _measured(
    subject: Subject, prompts: TokenPrompts, loops: int
) -> tuple[Float[np.ndarray, "loop prompt"], Float[np.ndarray, "loop prompt"], Float[np.ndarray, "loop prompt"]]:
    """Return for every loop and prompt whether it is right as a whole, the share of right answers, and the error."""

    def measured(batch: TokenPrompts) -> tuple[np.ndarray, ...]:
        outputs = subject.model(*batch.inputs, n_loops=loops, read_at=batch.read_at)
        right = batch.correct(outputs)
        assert right is not None, "a task knows its answers"
        measures = right.all(-1).float(), right.float().mean(-1), batch.errors(outputs).mean(-1)
        return tuple(to_numpy(values) for values in measures)

    parts = list(over_batches(subject.model, prompts, measured, loops))
    exact, accuracy, error = (np.concatenate(values, axis=1) for values in zip(*parts, strict=True))
    return exact, accuracy, error


def _enough(task: TaskConfig, lengths: Sequence[int], n_layers: int) -> Real[np.ndarray, " length"]:
    """The fewest loops of so many layers that are as deep as theory says to be enough; NaN where it gives no number."""
    depths = [task.rules.least_depth(length) for length in lengths]
    return np.array([np.nan if depth is None else math.ceil(depth / n_layers) for depth in depths])


def _slope(lengths: Float[np.ndarray, " length"], loops: Float[np.ndarray, " length"]) -> float:
    """The rise of loops with the length, by least squares; NaN for fewer than two lengths."""
    return float(np.polyfit(lengths, loops, 1)[0]) if len(lengths) > 1 else float("nan")


PROBE = Probe(
    "extrapolate",
    ExtrapolateConfig,
    run,
    check,
    Shown(
        "extrapolate:extrapolate_figures",
        "tokens:extrapolate_table",
        "extrapolate:extrapolate_models_figure",
        "tokens:extrapolate_models_table",
        "extrapolate:maps_figures",
        quantities=(Quantity("exact", "right", "share", along=("length",), unit="share of prompts right as a whole"),),
    ),
    of_tokens=True,
)
