"""Ablation of the state: the first or last n points are left, the rest is replaced, and the error is measured.

Before every loop the state outside the kept points is replaced; the injected input stays. No mask was in training.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from pydantic import NonNegativeInt, PositiveInt

from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.model.masks import kept_tokens, mean_states
from loopprobe.model.protocol import LoopedModel
from loopprobe.probes.dataset import error_summary, stamp, with_ends
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.probes.mask_runs import from_where_they_differ, one_by_one
from loopprobe.probes.measures import Function, Measure, find_measure
from loopprobe.store.evaluate import batches, over_batches
from loopprobe.store.subject import Subject
from loopprobe.support.statistics import median_interval, to_numpy
from loopprobe.support.threads import go_on
from loopprobe.tasks import PromptBatch
from loopprobe.types import Progress


@configuration
class MaskConfig:
    """The part of the state that the mask leaves, and what replaces the rest.

    Attributes:
        mode: keep the ``first`` or the ``last`` positions.
        n: the number of positions that are kept, one run each.
        loops: the number of iterations; the dataset has the errors after every one of them.
        unit: the unit of n.
        invert: mask the named positions and keep the others.
        fill: what replaces the state: its ``initial`` value, ``zero``, or its ``mean`` over the prompts in the
            clean run, loop by loop.
        once: mask once only, instead of before every loop.
        at: with ``once``, after how many loops; None: after as many as the training gives such prompts.
        measure: what is measured of the answers, see ``probes.measures``.
    """

    mode: Literal["first", "last"] = "first"
    n: tuple[NonNegativeInt, ...] = (10,)
    loops: PositiveInt = 50
    unit: Literal["point", "token"] = "point"
    invert: bool = False
    fill: Literal["initial", "zero", "mean"] = "initial"
    once: bool = False
    at: NonNegativeInt | None = None
    measure: str = "error"

    def __post_init__(self) -> None:
        if not self.n:
            raise LoopprobeError("n is empty: give a number, a list like 5,10 or a range like 0:31")
        if self.at is not None and not self.once:
            raise LoopprobeError(f"at ({self.at}) goes with once: add --once or drop --at")


def run(
    subject: Subject,
    prompts: PromptBatch,
    config: MaskConfig,
    progress: Progress = lambda steps: steps,
    *,
    measure: str | Function | Measure | None = None,
) -> xr.Dataset:
    """Measure the error of the clean run and of every mask, after every loop.

    Where the model supports ``causal`` and ``past``, each mask computes the tokens from the first that it changes on:
    those before are of the clean run, or of the run in which all are masked.

    Returns:
        A dataset with dims ``n``, ``loop`` (iterations done, from 1), ``example`` (the prompt) and ``point``
        (in-context examples before it):

        * ``error [n, loop, example]``: the error at the query; ``clean_error [loop, example]``
        * ``median``, ``failures [n, loop]`` with ``_low`` and ``_high``, ``mean [n, loop]``, and the same of the clean
          run, ``clean_median [loop]`` …: see ``error_summary``
        * ``error_by_point [n, loop, point]``, ``clean_error_by_point [loop, point]``: means at every point
        * ``median_by_point [n, point]``, ``clean_median_by_point [point]``: medians after the last loop, with ends

        With another measure than the error, ``error`` and ``clean_error`` hold its values, and nothing tells of
        failures or of other points. ``measure`` gives it where it is no name, see ``probes.measures.find_measure``.

        A sentence in ``attrs["description"]`` says what was kept and what was masked.

    Raises:
        LoopprobeError: n is above what the prompts have, or the prompts do not fit the model.
    """
    prompts = prompts.to(subject.device)
    check(subject, config, prompts, measure=measure)
    chosen = find_measure(config.measure if measure is None else measure, prompts)
    full = prompts.n_tokens // (prompts.tokens_per_point if config.unit == "point" else 1)
    counts = [*config.n, 0 if config.invert else full]  # the last one masks nothing: the clean run
    at = _mask_at(subject, config, prompts)
    measured = _measured(subject.model, prompts, config, chosen, counts, at, progress)
    data = _labelled(*measured, config, prompts.failure_level)
    data = data.assign_coords(model=subject.label)
    data.attrs |= {"description": describe(config, prompts, at), "full": full}
    if chosen.record is not None:
        data = data.drop_vars([name for name in data if "failures" in str(name) or "by_point" in str(name)])
    elif (baseline := prompts.baseline()) is not None:
        data.attrs["baseline"], data.attrs["zero_predictor"] = baseline
    for name in data:
        data[name].attrs["units"] = prompts.unit if chosen.record is None else chosen.unit
    config = dataclasses.replace(config, measure=chosen.option)
    return stamp(data, "mask", subject, prompts, config, chosen.record)


def _measured(
    model: LoopedModel,
    prompts: PromptBatch,
    config: MaskConfig,
    measure: Measure,
    counts: list[int],
    at: int | None,
    progress: Progress,
) -> tuple[
    Float[np.ndarray, "n loop example"], Float[np.ndarray, "n loop point"], Float[np.ndarray, "n example point"]
]:
    """Run every mask, and return the errors at the query, their means at every point, and all of the last loop."""
    causal = {"causal", "past"} <= model.supports
    outputs_of, run_share = (from_where_they_differ, 0.5) if causal else (one_by_one, 1.0)
    chunks = batches(model, prompts, len(counts), run_share=run_share)
    fill: Any = mean_states(model, chunks, config.loops) if config.fill == "mean" else config.fill
    keep = kept_tokens(
        config.mode, counts, prompts.n_tokens, unit=config.unit, invert=config.invert,
        tokens_per_point=prompts.tokens_per_point,
    )  # fmt: skip
    errors = np.empty((len(counts), config.loops, prompts.n_prompts), np.float32)
    by_point = np.zeros((len(counts), config.loops, prompts.n_answers))
    at_end = np.empty((len(counts), prompts.n_prompts, prompts.n_answers), np.float32)
    done = 0

    def measured(batch: PromptBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at_query = np.empty((len(counts), config.loops, batch.n_prompts), np.float32)
        summed = np.empty_like(by_point)
        for loop, outputs in enumerate(outputs_of(model, batch, keep, fill, config.loops, at)):
            go_on()
            error = to_numpy(batch.errors(torch.stack(outputs)))  # [n, example, answer]
            at_query[:, loop] = error[..., -1]
            if measure.record is not None:
                at_query[:, loop] = to_numpy(torch.stack([measure(one, batch) for one in outputs]))
            summed[:, loop] = error.sum(axis=1, dtype=np.float64)
        return at_query, summed, error

    for at_query, summed, last in progress(over_batches(model, prompts, measured, len(counts), chunks)):
        here = slice(done, done + at_query.shape[-1])
        errors[..., here], at_end[:, here] = at_query, last
        by_point += summed
        done = here.stop
    return errors, by_point / prompts.n_prompts, at_end


def _labelled(
    errors: Float[np.ndarray, "n loop example"],
    by_point: Float[np.ndarray, "n loop point"],
    at_end: Float[np.ndarray, "n example point"],
    config: MaskConfig,
    failure_level: float,
) -> xr.Dataset:
    """The dataset of these errors, the last of which are those of the clean run."""
    medians = [np.moveaxis(at_end, 1, -1)[:-1], np.moveaxis(at_end, 1, -1)[-1]]
    variables = {
        "error": (("n", "loop", "example"), errors[:-1]),
        **error_summary(("n", "loop"), errors[:-1], failure_level),
        "error_by_point": (("n", "loop", "point"), by_point[:-1]),
        **with_ends("median_by_point", ("n", "point"), median_interval(medians[0])),
        "clean_error": (("loop", "example"), errors[-1]),
        **error_summary(("loop",), errors[-1], failure_level, "clean_"),
        "clean_error_by_point": (("loop", "point"), by_point[-1]),
        **with_ends("clean_median_by_point", ("point",), median_interval(medians[1])),
    }
    coords = {"n": list(config.n), "loop": np.arange(1, config.loops + 1), "point": np.arange(by_point.shape[-1])}
    return xr.Dataset(variables, coords=coords)


def check(
    subject: Subject,
    config: MaskConfig,
    prompts: PromptBatch,
    *,
    measure: str | Function | Measure | None = None,
) -> None:
    """Raise LoopprobeError where the mask does not fit the model or the prompts, before anything runs."""
    find_measure(config.measure if measure is None else measure, prompts)
    kept_tokens(config.mode, config.n, prompts.n_tokens, unit=config.unit, tokens_per_point=prompts.tokens_per_point)
    at = _mask_at(subject, config, prompts)
    if at is not None and at >= config.loops:
        raise LoopprobeError(f"the mask comes after {at} loops but only {config.loops} are run: raise --loops")


def _mask_at(subject: Subject, config: MaskConfig, prompts: PromptBatch) -> int | None:
    """Return the one loop (from 0) before which the state is masked; None for every loop."""
    if not config.once:
        return None
    return subject.loops_of(prompts) if config.at is None else config.at


def describe(config: MaskConfig, prompts: PromptBatch, at: int | None) -> str:
    """Describe a mask in words: which positions are kept and which are masked.

    Args:
        config, prompts: of the mask.
        at: the one loop, from 0, before which it comes; None: before every loop.
    """
    verb = "masking" if config.invert else "keeping"
    counts = ", ".join(map(str, config.n))
    if len(config.n) > 2 and config.n == tuple(range(config.n[0], config.n[-1] + 1)):
        counts = f"{config.n[0]} to {config.n[-1]}"
    one = len(config.n) == 1
    which = f"{config.mode} {config.n[0] if one else 'n'} of "
    if config.unit == "point":
        each = prompts.tokens_per_point
        tokens = str(each * config.n[0]) if one else f"{each}n" if each > 1 else "n"
        which += f"{prompts.n_tokens // each} points, {tokens} of {prompts.n_tokens} tokens"
    else:
        which += f"{prompts.n_tokens} tokens"
    fill = {
        "initial": "reset to its initial value",
        "zero": "set to zero",
        "mean": "set to its mean over the prompts in the clean run",
    }[config.fill]
    when = "before every loop" if at is None else f"once, after {at} loops"
    masked = "it is" if config.invert else "the rest is"
    series = "" if one else f" (n = {counts})"
    return f"{verb} the state of the {which}{series}; {masked} {fill} {when}; the injected input stays"


PROBE = Probe(
    "mask",
    MaskConfig,
    run,
    check,
    Shown(
        "mask:mask_figures",
        "study:mask_table",
        "mask:mask_models_figure",
        "study:mask_models_table",
        further_figures="mask:failures_figures",
        panels=True,
        quantities=(
            Quantity(
                "median", "error", along=("n", "loop"), same=("unit",), reference="clean_median", log=True, is_all=True
            ),
        ),
    ),
    needs=frozenset({"map"}),
    given=("measure",),
)
