"""Failures: which prompts fail when the loop goes on, in which loops, and what told so before.

A median hides them and a mean is made of them: prompts that were right after the trained loops and are wrong after
more. Each has a course (one burst of wrong answers, several, or wrong for good) and a loop in which it first fails. The
motion of the state before that loop is compared with that of prompts that stay right; and what could be seen after the
trained loops, before anything failed, is judged by how well it tells which prompts will.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from pydantic import PositiveInt
from torch import Tensor

from loopprobe.config.strict import configuration
from loopprobe.dynamics.calibration import calibrate, require_calibrated
from loopprobe.dynamics.limits import Limit, classify, features, limit_flags
from loopprobe.dynamics.maps import LoopMap, State
from loopprobe.dynamics.spectrum import has_blocks, position_spectra
from loopprobe.dynamics.trail import WINDOW, Trail
from loopprobe.dynamics.trajectory import TINY
from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import error_summary, stamp, with_ends
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.probes.loops import require_far, require_looped
from loopprobe.store.evaluate import batches, over_batches
from loopprobe.store.subject import Subject
from loopprobe.support.statistics import auc_interval, median_interval, share_interval, to_numpy
from loopprobe.support.threads import go_on
from loopprobe.tasks import PromptBatch
from loopprobe.types import Progress

COURSES = ("stays right", "one burst", "comes and goes", "wrong for good", "wrong before")
RIGHT, BURST, RECURRING, LASTING, BEFORE = range(len(COURSES))
SIGNS = (
    "error",
    "prediction's step",
    "query's step",
    "state's step",
    "query's radius",
    "largest radius",
    "query's input",
)


@configuration
class FailuresConfig:
    """How long the loop goes on.

    Attributes:
        loops: iterations in all.
        before: loops before and after the first failure in which the motion is looked at.
        spectra: whether the spectral radius of the loop at the state after the trained loops is a sign too; it takes as
            many derivatives as the state is wide.
    """

    loops: PositiveInt = 500
    before: PositiveInt = 30
    spectra: bool = True

    def __post_init__(self) -> None:
        require_far(self.loops)
        if self.loops < WINDOW:
            raise LoopprobeError(f"loops ({self.loops}) must be at least {WINDOW}: raise it")


def run(
    subject: Subject, prompts: PromptBatch, config: FailuresConfig, progress: Progress = lambda steps: steps
) -> xr.Dataset:
    """Follow the error and the motion of every prompt.

    Returns:
        A dataset with dims ``example`` (the prompt), ``loop`` (iterations done, from 1), ``lag`` (loops since the first
        failure), ``sign``, ``course`` and ``limit_type``:

        * ``error``, ``query_step [loop, example]``: the error at the query; the step of its token's state in this
          loop, ‖z_t − z_{t−1}‖ / ‖z_t‖
        * ``median``, ``failures [loop]`` with ``_low`` and ``_high``, and ``mean [loop]``: see ``error_summary``
        * ``prompt_course [example]``: the index in ``course`` of what becomes of an answer that is right after the
          trained loops; the last one is for those that are not. What is not finite is wrong
        * ``share [course]`` with ``_low`` and ``_high``: how many prompts have it
        * ``onset [example]``: the first loop after the trained ones in which a prompt fails that was right after them;
          missing for all others
        * ``failing_loops``, ``spells [example]``: how many loops after the trained ones fail, and in how many runs of
          loops that follow each other
        * ``limit [example]``: the type of limit of the state of the query's token (``dynamics.limits.Limit``);
          ``limit_share [course, limit_type]``: its share among the prompts of a course; missing where there are none
        * ``lead [lag]`` with ``_low`` and ``_high``: the step of the query's state at that many loops from the onset
          over the median step, in the same loop, of prompts that stay right: its median over prompts that fail; and
          ``lead_prompts [lag]``, how many these are
        * ``seen [sign, example]``: what can be seen after the trained loops: the error, the last step of the
          prediction, of the query's state and of the whole state, the spectral radius of the query's token (and the
          largest of all tokens up to it), and the norm of the injected input at the query
        * ``auc [sign]`` with ``_low`` and ``_high``: the probability that a prompt that will fail has more of it than
          one that stays right (DeLong, DeLong and Clarke-Pearson 1988); missing without two of each

    Raises:
        LoopprobeError: see ``check``.
    """
    check(subject, config, prompts)
    model, trained = subject.model, subject.loops_of(prompts)
    prompts = prompts.to(subject.device)
    thresholds = calibrate(model.dtype)

    def measured(batch: PromptBatch) -> tuple[Tensor, Tensor, Tensor, Tensor, State]:
        system, query = LoopMap.of(model, batch), batch.query
        z, trail = system.initial, Trail(config.loops)
        outputs, errors, steps = system.read(z), [], []
        for loop in range(1, config.loops + 1):
            go_on()
            z_before, outputs_before = z, outputs
            z = system.step(z)
            outputs = system.read(z)
            errors.append(batch.errors(outputs)[:, -1])
            steps.append(_step(z[:, query], z_before[:, query]))
            trail.add(loop - 1, z[:, query : query + 1])
            if loop == trained:
                moved, size = batch.step(outputs, outputs_before)[:, -1], system.e[:, query].flatten(1).norm(dim=1)
                signs, there = torch.stack([errors[-1], moved, steps[-1], _step(z, z_before), size]), z
        limits, _ = classify(features(trail), thresholds)
        return torch.stack(errors), torch.stack(steps), limits[:, 0], signs, there

    chunks = batches(model, prompts)
    parts = list(progress(over_batches(model, prompts, measured, at_once=chunks)))
    error, query_step, limits, seen = (to_numpy(torch.cat([part[i] for part in parts], dim=-1)) for i in range(4))
    radii = np.full((2, prompts.n_prompts), np.nan, np.float32)
    if config.spectra and has_blocks(LoopMap.of(model, prompts[:1])):
        pairs = [(batch, part[-1]) for batch, part in zip(chunks, parts, strict=True)]
        radii = np.concatenate(
            [_radii(LoopMap.of(model, batch), z, batch.query) for batch, z in progress(pairs)], axis=1
        )
    data = _dataset(prompts, trained, config.before, error, query_step, limits, np.stack([*seen[:4], *radii, seen[4]]))
    return stamp(data.assign_coords(model=subject.label), "failures", subject, prompts, config)


def _step(new: Float[Tensor, "batch ..."], old: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
    """The distance between two states over the norm of the newer one."""
    return (new - old).flatten(1).norm(dim=1) / new.flatten(1).norm(dim=1).clamp_min(TINY)


def _radii(system: LoopMap, z: State, query: int) -> Float[ndarray, "2 batch"]:
    """The spectral radius of the query's token at a state, and the largest of the tokens up to it."""
    radii = position_spectra(system, torch.nan_to_num(z))[:, : query + 1, 0].abs()
    finite = torch.isfinite(z).flatten(1).all(1).to(radii.device)
    return to_numpy(torch.stack([radii[:, -1], radii.amax(1)]).where(finite, torch.nan))


def _dataset(
    prompts: PromptBatch,
    trained: int,
    before: int,
    error: Float[ndarray, "loop example"],
    query_step: Float[ndarray, "loop example"],
    limits: Int[ndarray, " example"],
    seen: Float[ndarray, "sign example"],
) -> xr.Dataset:
    wrong = ~(error <= prompts.failure_level)
    course, spells = courses(wrong[trained - 1 :])
    later = wrong[trained:]
    fails = (course != RIGHT) & (course != BEFORE)
    onset = np.where(fails, trained + 1 + later.argmax(0), np.nan)
    lags = np.arange(-before, before + 1)
    lead, n_leading = _lead(query_step, onset, course == RIGHT, lags)
    by_course = np.stack([course == i for i in range(len(COURSES))])
    by_limit = np.stack([limits == limit for limit in Limit])
    with np.errstate(invalid="ignore"):  # missing where no prompt has a course
        of_course = by_course.astype(float) @ by_limit.T / by_course.sum(1, keepdims=True)
    auc, auc_low, auc_high = np.array([auc_interval(sign[fails], sign[course == RIGHT]) for sign in seen]).T
    data = xr.Dataset(
        {
            "error": (("loop", "example"), error),
            "query_step": (("loop", "example"), query_step),
            **error_summary(("loop",), error, prompts.failure_level),
            "prompt_course": ("example", course),
            **with_ends("share", ("course",), share_interval(by_course)),
            "onset": ("example", onset),
            "failing_loops": ("example", later.sum(0)),
            "spells": ("example", spells),
            "limit": ("example", limits, limit_flags()),
            "limit_share": (("course", "limit_type"), of_course),
            **with_ends("lead", ("lag",), lead),
            "lead_prompts": ("lag", n_leading),
            "seen": (("sign", "example"), seen),
            **with_ends("auc", ("sign",), (auc, auc_low, auc_high)),
        },
        coords={
            "loop": np.arange(1, len(error) + 1), "lag": lags, "sign": list(SIGNS), "course": list(COURSES),
            "limit_type": [limit.words for limit in Limit],
        },
    )  # fmt: skip
    data["error"].attrs["units"] = prompts.query_unit
    return data


def courses(wrong: Bool[ndarray, "loop example"]) -> tuple[Int[ndarray, " example"], Int[ndarray, " example"]]:
    """Tell what becomes of answers when the loop goes on.

    Args:
        wrong: whether an answer is wrong, after the trained loops first and then after every further one.

    Returns:
        The index in ``COURSES`` of each prompt, and in how many runs of loops it is wrong after the trained ones.
    """
    later = wrong[1:]
    begins = later & ~np.concatenate([np.zeros_like(wrong[:1]), later[:-1]])
    spells = begins.sum(0)
    ends_wrong = later[-1]
    course = np.where(spells == 0, RIGHT, np.where(spells > 1, RECURRING, np.where(ends_wrong, LASTING, BURST)))
    return np.where(wrong[0], BEFORE, course), spells


def leads(
    step: Float[ndarray, "loop example"],
    onset: Float[ndarray, " example"],
    right: Bool[ndarray, " example"],
    lags: Int[ndarray, " lag"],
) -> Float[ndarray, "lag example"]:
    """Return the steps of prompts around their onset, over the median step in the same loop of those that stay right.

    Args:
        step: of the query's state, by loop from 1.
        onset: the loop of the first failure; NaN where there is none.
        right: which prompts stay right.
        lags: loops since the onset.

    Returns:
        The ratios; NaN for prompts without an onset, and where there is no such loop or no prompt that stays right.
    """
    failing = np.flatnonzero(~np.isnan(onset))
    usual = np.median(step[:, right], axis=1) if right.any() else np.full(len(step), np.nan)
    ratios = np.full((len(lags), step.shape[1]), np.nan)
    for ratio, lag in zip(ratios, lags, strict=True):
        at = onset[failing].astype(int) - 1 + lag
        inside = (at >= 0) & (at < len(step))
        ratio[failing[inside]] = step[at[inside], failing[inside]] / np.maximum(usual[at[inside]], TINY)
    return ratios


def _lead(
    step: Float[ndarray, "loop example"],
    onset: Float[ndarray, " example"],
    right: Bool[ndarray, " example"],
    lags: Int[ndarray, " lag"],
) -> tuple[tuple[ndarray, ndarray, ndarray], Int[ndarray, " lag"]]:
    """The median of ``leads`` with its interval, and of how many prompts it is."""
    rows, counts = [], []
    for ratios in leads(step, onset, right, lags):
        known = ratios[np.isfinite(ratios)]
        counts.append(len(known))
        rows.append([float(end) for end in median_interval(known)] if len(known) else [np.nan] * 3)
    lead, low, high = np.array(rows).T
    return (lead, low, high), np.array(counts)


def check(subject: Subject, config: FailuresConfig, prompts: PromptBatch) -> None:
    """Raise LoopprobeError where the loop cannot go on, ends too early, or limits of states cannot be told."""
    require_looped(subject)
    require_calibrated(subject.model.dtype)
    if config.loops <= (trained := subject.loops_of(prompts)):
        raise LoopprobeError(f"loops ({config.loops}) must be above the {trained} of the training: raise it")


PROBE = Probe(
    "failures",
    FailuresConfig,
    run,
    check,
    Shown(
        "failures:failures_figures",
        "failures:failures_table",
        "failures:failures_compare_figure",
        "failures:failures_models_table",
        quantities=(Quantity("failures", unit="share of prompts that fail"),),
    ),
    needs=frozenset({"map", "autonomous"}),
)
