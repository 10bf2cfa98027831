"""Ablation: the output of a head or an MLP is replaced by something that knows nothing of the prompt.

What an ablation costs depends on what stands in the place of the output: zero, the mean, that of another prompt
(resample ablation, Chan et al. 2022, "Causal scrubbing"), or the constant with the least loss (optimal ablation, Li and
Janson, arXiv 2409.09951). Each component is replaced in one loop alone, and in all chosen loops together. The same
places are ranked by activation patching, by its estimate from a gradient, and by direct attribution.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import torch
import xarray as xr

from loopprobe.errors import LoopprobeError
from loopprobe.model.interventions import mean_activations
from loopprobe.probes.ablate_plan import AblateConfig, Method, Plan
from loopprobe.probes.ablate_runs import AblatedRuns, Values
from loopprobe.probes.agreement import agreement
from loopprobe.probes.constants import Known, best_constants, mean_of, resampled, zero_of
from loopprobe.probes.dataset import stamp, with_ends
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.probes.loops import require_training, training_prompts
from loopprobe.probes.measures import Function, Measure, find_measure
from loopprobe.probes.patch import require_corruption
from loopprobe.probes.rankings import Rankings
from loopprobe.store.evaluate import batches
from loopprobe.store.subject import Subject
from loopprobe.support.statistics import median_interval, share_difference_interval, to_numpy
from loopprobe.tasks import PromptBatch
from loopprobe.types import Progress


def run(
    subject: Subject,
    prompts: PromptBatch,
    config: AblateConfig,
    progress: Progress = lambda steps: steps,
    *,
    training: PromptBatch | None = None,
    corrupted: PromptBatch | None = None,
    measure: str | Function | Measure | None = None,
) -> xr.Dataset:
    """Ablate every chosen component in every chosen loop.

    Args:
        subject, prompts, config: the model, the prompts, and the options.
        progress: wraps the batches, methods and groups of runs.
        training: prompts that optimal constants are fitted on; None: further ones of the model's task.
        corrupted: corrupted prompts for activation patching; None: the prompts are corrupted as the options say.
        measure: what is measured, where it is no name, see ``probes.measures.find_measure``.

    Returns:
        A dataset with dims ``replaced_by`` (the method), ``component`` (named as the probe attribute names them),
        ``loop`` (in which it is ablated, from 1), ``position`` where each has runs of its own, and ``example``:

        * ``effect [replaced_by, component, loop, example]``: the measure of the ablated run minus that of the run as
          it is, ``clean [example]``, in the unit of the measure; ``median`` with ``_low`` and ``_high``, its median
          with a 95 % interval, and its ``mean``
        * ``together [replaced_by, component, example]``: the effect of ablating it in all these loops at once, with
          ``together_median`` and its ends, and ``together_mean``
        * where the measure is the error, ``failures_added [replaced_by, component, loop]`` and
          ``together_failures_added`` with their ends: by how much more prompts fail with the ablation than without, as
          a share of all: what few prompts lose, no median shows
        * ``synergy_median [replaced_by, component]`` with its ends: ``together`` minus the sum of the effects in
          single loops, prompt by prompt
        * ``against_first_median [replaced_by, component, loop]`` with its ends: the effect minus that of the first
          method, prompt by prompt
        * ``importance [way, component, loop]``: the median over prompts of how far the measure moves, or the answer
          (``PromptBatch.answer``) where the measure is the error, by each way to tell it: the methods, and where asked
          for ``patching`` (the output of the clean run in the corrupted one, as the probe patch does it),
          ``attribution patching`` (its estimate from one gradient) and ``direct attribution`` (what the component
          writes towards the answer); a way whose largest is below the precision of the answers is left out, and named
          by the attribute ``too_small``
        * ``rank_correlation [way, other]`` with its ends: Spearman's correlation of two ways over all places, with an
          interval from a bootstrap over prompts

    Raises:
        LoopprobeError: options, prompts or the measure do not fit the model.
    """
    check(subject, config, prompts, training=training, measure=measure)
    prompts = prompts.to(subject.device)
    chosen = find_measure(config.measure if measure is None else measure, prompts)
    plan = Plan.of(subject, prompts, config)
    ranking = find_measure("answer", prompts) if chosen.name == "error" else chosen  # errors hide the direction
    asked = subject, prompts, corrupted, config.corruption, plan.n_loops, ranking
    rankings = Rankings.of(*asked) if config.agreement else None
    if rankings is not None:
        prompts = rankings.prompts
    parts = batches(subject.model, prompts)
    means = mean_activations(subject.model, parts, plan.n_loops, config.sites)
    constants, fitted_on = _constants(subject, prompts, config, plan, training, progress)
    everything = [*plan.singles, *plan.together]
    shape = (len(config.methods), len(everything), prompts.n_prompts)
    effect, moved = np.empty(shape, np.float32), np.empty(shape, np.float32)
    clean, answered, ranked, done = [], [], [], 0
    for batch in progress(parts):
        runs = AblatedRuns(subject.model, batch, plan.n_loops, config.sites)
        here = slice(done, done := done + batch.n_prompts)
        before = to_numpy(chosen(runs.clean, batch)), to_numpy(ranking(runs.clean, batch))
        clean.append(before[0])
        answered.append(before[1])
        for i, method in enumerate(config.methods):
            values = _values(method, runs, means, constants, config.seed)
            for group in runs.groups(everything):
                with torch.no_grad():
                    outputs = runs.outputs([everything[j] for j in group], [values[j % len(values)] for j in group])
                for j, one in zip(group, outputs, strict=True):
                    effect[i, j, here] = to_numpy(chosen(one, batch)) - before[0]
                    moved[i, j, here] = to_numpy(ranking(one, batch)) - before[1]
        if rankings is not None:
            ranked.append(rankings.moved(plan.singles, config.sites, here))
    level = prompts.failure_level if chosen.name == "error" else None
    data = _dataset(subject, config, plan, effect, np.concatenate(clean), level)
    ways = [*config.methods, *(ranked[0] if ranked else {})]
    others = [np.concatenate([part[way] for part in ranked], -1) for way in ways[len(config.methods) :]]
    told = dict(zip(ways, [*moved[:, : len(plan.singles)], *others], strict=True))
    least = torch.finfo(subject.model.dtype).eps * np.median(abs(np.concatenate(answered)))
    small = [way for way in ways[len(config.methods) :] if np.median(abs(told[way]), axis=-1).max() < least]
    told = {way: one for way, one in told.items() if way not in small}
    data = data.merge(_agreement(plan, list(told), list(told.values()), data))
    shares = dict.fromkeys(("failures_added", "together_failures_added"), "share of prompts")
    units = {"importance": ranking.unit, "rank_correlation": "", **shares}
    for name in data:
        data[name].attrs["units"] = units.get(re.sub("_(low|high)$", "", str(name)), chosen.unit)
    data.attrs |= {"measure": chosen.name, "measure_unit": chosen.unit, "measure_source": chosen.source}
    data.attrs |= {"fitted_on": fitted_on, "too_small": ", ".join(small)}
    data.attrs["corruption"] = "" if rankings is None else rankings.words
    return stamp(data, "ablate", subject, prompts, dataclasses.replace(config, measure=chosen.option), chosen.record)


def check(
    subject: Subject,
    config: AblateConfig,
    prompts: PromptBatch,
    *,
    training: PromptBatch | None = None,
    measure: str | Function | Measure | None = None,
) -> None:
    """Raise LoopprobeError where the options do not fit the model or the prompts, before anything runs."""
    find_measure(config.measure if measure is None else measure, prompts)
    Plan.of(subject, prompts, config)
    if "resample" in config.methods and min(batch.n_prompts for batch in batches(subject.model, prompts)) < 2:
        raise LoopprobeError(
            f"resample ablation needs another prompt, and of {prompts.n_prompts} one would run alone: change --prompts"
        )
    if "optimal" in config.methods:
        require_training(subject, prompts, training)
    require_corruption(config.corruption, prompts)


def _constants(
    subject: Subject,
    prompts: PromptBatch,
    config: AblateConfig,
    plan: Plan,
    training: PromptBatch | None,
    progress: Progress,
) -> tuple[list[Values], str]:
    """The optimal constants of every run, and what they are fitted on; none where nobody asks for them."""
    if "optimal" not in config.methods:
        return [], ""
    seed = prompts.origin.get("held_out_seed", 0) + 1
    fitting, words = training_prompts(subject, prompts, config.fit_prompts, seed, training)
    fitting = fitting[: batches(subject.model, fitting)[0].n_prompts]
    own = mean_activations(subject.model, [fitting], plan.n_loops, config.sites)
    fitted = best_constants(
        AblatedRuns(subject.model, fitting, plan.n_loops, config.sites),
        [*plan.singles, *plan.together],
        _known(own),
        lambda outputs: fitting.errors(outputs)[..., -1],
        config.fit_steps,
        progress,
    )
    return [one.__getitem__ for one in fitted], words


def _known(means: Any) -> Known:
    return lambda component, loop: component.of(means, loop)


def _values(method: Method, runs: AblatedRuns, means: Any, constants: list[Values], seed: int) -> list[Values]:
    """What stands in the place of outputs: one for all runs, or one for each."""
    if method == "optimal":
        return constants
    if method == "resample":
        return [resampled(runs, torch.Generator().manual_seed(seed))]
    return [zero_of(runs) if method == "zero" else mean_of(_known(means))]


def _dataset(
    subject: Subject, config: AblateConfig, plan: Plan, effect: np.ndarray, clean: np.ndarray, level: float | None
) -> xr.Dataset:
    """Label the effects, and summarise them; with a level of failure of errors."""
    tokens = ("position",) if config.each_position else ()
    sizes = (len(plan.components), len(plan.loops), len(plan.tokens))
    singles = effect[:, : len(plan.singles)].reshape(len(effect), *sizes, -1)
    together = effect[:, len(plan.singles) :].reshape(len(effect), sizes[0], sizes[2], -1) if plan.together else None
    if not config.each_position:
        singles = singles[:, :, :, 0]
        together = None if together is None else together[:, :, 0]
    of_loops, of_all = ("replaced_by", "component", "loop", *tokens), ("replaced_by", "component", *tokens)
    variables = {
        "clean": (("example",), clean),
        "effect": ((*of_loops, "example"), singles),
        **with_ends("median", of_loops, median_interval(singles)),
        "mean": (of_loops, singles.mean(-1, dtype=np.float64)),
        **with_ends("against_first_median", of_loops, median_interval(singles - singles[:1])),
    }
    if together is not None:
        variables |= {
            "together": ((*of_all, "example"), together),
            **with_ends("together_median", of_all, median_interval(together)),
            "together_mean": (of_all, together.mean(-1, dtype=np.float64)),
            **with_ends("synergy_median", of_all, median_interval(together - singles.sum(2))),
        }
    if level is not None:
        variables |= with_ends("failures_added", of_loops, _failures_added(singles, clean, level))
        if together is not None:
            variables |= with_ends("together_failures_added", of_all, _failures_added(together, clean, level))
    coords: dict[str, Any] = {
        "replaced_by": list(config.methods),
        "component": [one.name for one in plan.components],
        "loop": [loop + 1 for loop in plan.loops],
        "model": subject.label,
    }
    if config.each_position:
        coords["position"] = [at[0] for at in plan.tokens if at is not None]
    return xr.Dataset(variables, coords=coords)


def _failures_added(effect: np.ndarray, clean: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By how much the share of prompts with an error above a level grows, with a paired interval."""
    after = clean + effect
    added = (after > level).astype(np.float64) - (clean > level)
    return share_difference_interval(np.where(np.isnan(after), np.nan, added))


def _agreement(plan: Plan, ways: list[str], moved: list[np.ndarray], data: xr.Dataset) -> xr.Dataset:
    """Rank the places by each way, and compare the ways."""
    dims = data["median"].dims[1:]
    shape = [data.sizes[dim] for dim in dims]
    array = xr.DataArray(
        np.stack(moved).reshape(len(ways), *shape, -1),
        dims=("way", *dims, "example"),
        coords={"way": ways},
    )
    return agreement(array)


PROBE = Probe(
    "ablate",
    AblateConfig,
    run,
    check,
    Shown(
        "ablate:ablate_figures",
        "ablate:ablate_table",
        quantities=(Quantity("median", "effect", across="component", unit="change of the {unit}"),),
    ),
    needs=frozenset({"map"}),
    given=("training", "corrupted", "measure"),
)
