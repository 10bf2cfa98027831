"""Steering: a direction is added to the state at chosen loops and tokens, and the loop runs on.

Differences of means as steering vectors: Turner et al., arXiv 2308.10248; Rimsky et al., arXiv 2312.06681. The control
of a push is one as long in a random direction, another for each prompt, loop and token.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import stamp, with_ends
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.probes.directions import (
    DECODER,
    FILE,
    Found,
    States,
    of_answers,
    of_decoder,
    of_groups,
    of_results,
    of_vector,
    read_vectors,
    require_no_values,
    results_of,
    states_at,
    target_named,
)
from loopprobe.probes.loops import require_training, training_prompts
from loopprobe.probes.measures import Function, Measure, find_measure
from loopprobe.probes.patch import PatchConfig, corrupted_prompts, matched, require_corruption
from loopprobe.probes.pushes import Push, at_tokens, distance, follow, random_pushes
from loopprobe.probes.steer_plan import CORRUPTED, Plan, SteerConfig
from loopprobe.store.evaluate import batches
from loopprobe.store.subject import Subject
from loopprobe.support.statistics import median_interval, to_numpy
from loopprobe.tasks import PromptBatch, Prompts
from loopprobe.tasks.logits import LogitPrompts
from loopprobe.types import Progress


def run(
    subject: Subject,
    prompts: PromptBatch,
    config: SteerConfig,
    progress: Progress = lambda steps: steps,
    *,
    direction: Any = None,
    groups: tuple[PromptBatch, PromptBatch] | None = None,
    corrupted: PromptBatch | None = None,
    training: PromptBatch | None = None,
    measure: str | Function | Measure | None = None,
) -> xr.Dataset:
    """Add a direction to the state at several strengths, and run on.

    Args:
        subject, prompts, config: the model, the prompts that are steered, and the options.
        progress: wraps the batches.
        direction: a tensor or array instead of what the options name: [d_model], [token, d_model], or [in_loop, token,
            d_model].
        groups: two groups of prompts, as long as these: the direction is the mean state of the first minus the second.
        corrupted: the corrupted counterparts of ``prompts``: the direction is the mean of clean minus corrupted states.
        training: prompts that the direction is taken from; None: further ones of the model's task.
        measure: what is measured, where it is no name, see ``probes.measures.find_measure``.

    Returns:
        A dataset with dims ``strength``, ``loop`` (loops that are done, from the first push on), ``example``,
        ``control`` (random directions), and ``in_loop``, ``position`` and ``dim`` of the direction:

        * ``response [strength, example]``: the measure of the steered run minus that of the run as it is, ``clean
          [example]``, with ``median`` and its 95 % interval; 0 where the strength is
        * ``control_response [control, strength, example]``: the same for random directions, pushes as long, and
          ``control_median [strength]`` with its ends, of the mean over these directions
        * ``against_control_median [strength]`` with its ends: the response minus that mean, prompt by prompt
        * ``slope_median`` with its ends: the response per unit of strength, Σ s r / Σ s² of each prompt
        * ``distance [strength, loop]`` with its ends: ‖z − z_clean‖ / ‖z_clean‖ of the whole state, median over
          prompts, and ``control_distance``, alike, of the mean over random directions
        * ``left [strength]`` with its ends: the distance after the last loop over that after the last push, median over
          prompts; missing for strength 0
        * ``direction [in_loop, position, dim]``: of length 1, and ``push_size [in_loop, position]``: the length of a
          push of strength 1

    Raises:
        LoopprobeError: options, prompts, the direction or the measure do not fit the model.
    """
    if isinstance(direction, str):  # a name or a file, as options have it
        config, direction = dataclasses.replace(config, direction=direction), None
    given = {"direction": direction, "groups": groups, "corrupted": corrupted}
    check(subject, config, prompts, training=training, measure=measure, **given)
    prompts = prompts.to(subject.device)
    plan = Plan.of(subject, prompts, config)
    found, states, fitted_on = _found(subject, prompts, config, plan, training, **given)
    lengths = found.vectors.norm(dim=-1, keepdim=True)
    if not bool((lengths > 0).all()):
        raise LoopprobeError("the direction is zero at a chosen loop and token: nothing tells its groups apart there")
    unit = found.vectors / lengths
    sizes = _sizes(states, unit, config.unit)
    chosen = found.measure if measure is None and config.measure is None else None
    chosen = chosen or find_measure(measure or config.measure or "answer", prompts)
    response, away, clean = _runs(subject, prompts, config, plan, unit * sizes[..., None], chosen, progress)
    data = _dataset(subject, config, plan, response, away, clean)
    data["direction"] = (("in_loop", "position", "dim"), to_numpy(unit))
    data["push_size"] = (("in_loop", "position"), to_numpy(sizes))
    for name in ("clean", "response", "control_response", "slope_median", "median", "control_median"):
        data[name].attrs["units"] = chosen.unit
    data.attrs |= {"measure": chosen.name, "measure_unit": chosen.unit, "measure_source": chosen.source}
    data.attrs |= {"steered_by": found.words, "fitted_on": fitted_on, "strength_unit": config.unit}
    data.attrs |= {"pushed_after": plan.pushed, "read_after": plan.read_loop}
    if measure is not None or config.measure is not None:
        config = dataclasses.replace(config, measure=chosen.option)
    return stamp(data, "steer", subject, prompts, config, chosen.record)


def check(
    subject: Subject,
    config: SteerConfig,
    prompts: PromptBatch,
    *,
    direction: Any = None,
    groups: tuple[PromptBatch, PromptBatch] | None = None,
    corrupted: PromptBatch | None = None,
    training: PromptBatch | None = None,
    measure: str | Function | Measure | None = None,
) -> None:
    """Raise LoopprobeError where the options do not fit the model or the prompts, before anything runs."""
    plan = Plan.of(subject, prompts, config)
    if measure is not None or config.measure is not None:
        find_measure(measure or config.measure or "", prompts)
    given = [name for name, one in (("direction", direction), ("groups", groups), ("corrupted", corrupted))
             if one is not None]  # fmt: skip
    if len(given) > 1:
        raise LoopprobeError(f"{' and '.join(given)} are given, and each is a direction of its own: give one of them")
    if groups is not None:
        if len(groups) != 2 or any(one.extent != prompts.extent for one in groups):
            raise LoopprobeError(f"groups must be two batches of prompts of {prompts.extent}, as these: give such")
        return
    if corrupted is not None:
        matched(prompts, corrupted)
        return
    kind, width = config.direction, subject.model.sizes.d_model
    if direction is not None or FILE.fullmatch(kind):
        vector = read_vectors(kind) if direction is None else direction
        of_vector(vector, len(plan.pushed), len(plan.tokens), width, "")
        require_no_values(config.values, "a given direction")
        return
    if config.values is not None and (kind == CORRUPTED or not isinstance(prompts, LogitPrompts)):
        require_no_values(config.values, f"direction {kind!r} of these prompts")
    if kind == CORRUPTED:
        require_corruption(config.corruption, prompts)
        if not prompts.corruptions:
            raise LoopprobeError("these prompts have no corrupted counterparts: give corrupted=, or another direction")
    elif kind.startswith(DECODER):
        target = kind.removeprefix(DECODER)
        if isinstance(prompts, Prompts):
            target_named(prompts, target, plan.tokens)
        elif target != "answer":
            results_of(prompts, target)
    elif kind != "answer":
        results_of(prompts, kind)
    require_training(subject, prompts, training)


def _found(
    subject: Subject,
    prompts: PromptBatch,
    config: SteerConfig,
    plan: Plan,
    training: PromptBatch | None,
    direction: Any,
    groups: tuple[PromptBatch, PromptBatch] | None,
    corrupted: PromptBatch | None,
) -> tuple[Found, States, str]:
    """The direction, the states that tell how long a push is, and the prompts that both come from, in words."""

    def states_of(batch: PromptBatch) -> States:
        return states_at(subject.model, batch.to(subject.device), plan.pushed, plan.tokens)

    if groups is not None:
        one, other = map(states_of, groups)
        words = "mean state of the first group minus that of the second"
        return of_groups(one, other, words), torch.cat([one, other], 1), "two given groups of prompts"
    if corrupted is not None:
        one, other = states_of(prompts), states_of(corrupted)
        return of_groups(one, other, "mean state of clean minus that of corrupted prompts"), one, "these prompts"
    if direction is not None or FILE.fullmatch(config.direction):
        vector = read_vectors(config.direction) if direction is None else direction
        states = states_of(prompts)
        words = "a given direction" if direction is not None else f"the direction in {config.direction}"
        found = of_vector(vector, len(states), states.shape[2], states.shape[3], words)
        return found.on(states), states, "these prompts"
    seed = prompts.origin.get("held_out_seed", 0) + 1
    fitting, fitted_on = training_prompts(subject, prompts, config.fit_prompts, seed, training)
    states, kind = states_of(fitting), config.direction
    if kind == CORRUPTED:
        patched = PatchConfig(corruption=config.corruption)  # type: ignore[arg-type]  # checked
        words = "mean state of clean minus that of corrupted prompts"
        return of_groups(states, states_of(corrupted_prompts(subject, fitting, patched)), words), states, fitted_on
    if kind == "answer":
        return of_answers(subject.model, fitting, states, config.values, plan.read_loop), states, fitted_on
    if kind.startswith(DECODER):
        target = kind.removeprefix(DECODER)
        found = of_decoder(fitting, states, plan.tokens, target, config.values, config.ridge, plan.pushed)
        return found, states, fitted_on
    return of_results(fitting, states, plan.tokens, kind, config.values), states, fitted_on


def _sizes(states: States, unit: Tensor, kind: str) -> Tensor:
    """How long a push of strength 1 is, [loop, token].

    Raises:
        LoopprobeError: the states do not vary along the direction.
    """
    if kind == "norm":
        return states.norm(dim=-1).mean(1)
    along = torch.einsum("lbtd,ltd->lbt", states, unit)
    sizes = along.std(1) if along.shape[1] > 1 else torch.zeros_like(along[:, 0])
    if not bool((sizes > 1e-9 * states.norm(dim=-1).mean(1)).all()):
        raise LoopprobeError("the states do not vary along the direction, so that their std is no unit: choose norm")
    return sizes


def _runs(
    subject: Subject,
    prompts: PromptBatch,
    config: SteerConfig,
    plan: Plan,
    push: Tensor,
    measure: Measure,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run with pushes along the direction, [loop, token, d_model] for strength 1, and along random ones.

    Returns:
        Responses [direction, strength, example] and distances [direction, strength, loop, example], of which the first
        direction is that which is asked for; and the measure without a push [example].
    """
    model, first, width = subject.model, plan.pushed[0], push.shape[-1]
    shape = (1 + config.controls, len(config.strengths))
    generator = torch.Generator().manual_seed(config.seed)
    response = np.empty((*shape, prompts.n_prompts), np.float32)
    away = np.empty((*shape, plan.n_loops - first + 1, prompts.n_prompts), np.float32)
    clean, start = np.empty(prompts.n_prompts, np.float32), 0
    each = push.norm(dim=-1)[:, None]  # [loop, 1, token]
    with torch.no_grad():
        for batch in progress(batches(model, prompts, plan.n_loops - first + 1, states=True)):
            here = slice(start, start := start + batch.n_prompts)
            e = model.embed(*model.prepare(*batch.inputs))

            def step(z: Tensor, loop: int, e: Tensor = e) -> Tensor:
                return model.step(z, e, loop)

            def read(z: Tensor, e: Tensor = e, batch: Any = batch) -> np.ndarray:
                outputs = model.predict(z, e, plan.read_loop - 1, read_at=batch.read_at)
                return to_numpy(measure(outputs, batch))

            *_, z = follow(step, model.initial_state(e), 0, first, {})
            as_it_is = list(follow(step, z, first, plan.n_loops, {}))
            clean[here] = read(as_it_is[plan.read_loop - first])
            for i in range(1 + config.controls):
                one = push[:, None] if i == 0 else random_pushes(each.expand(-1, batch.n_prompts, -1), width, generator)
                for j, strength in enumerate(config.strengths):
                    pushes: dict[int, Push] = {
                        loop: at_tokens(strength * vectors, z, plan.tokens)
                        for loop, vectors in zip(plan.pushed, one, strict=True)
                    }
                    for k, state in enumerate(follow(step, z, first, plan.n_loops, pushes)):
                        away[i, j, k, here] = to_numpy(distance(state, as_it_is[k]))
                        if first + k == plan.read_loop:
                            response[i, j, here] = read(state) - clean[here]
    return response, away, clean


def _dataset(
    subject: Subject, config: SteerConfig, plan: Plan, response: np.ndarray, away: np.ndarray, clean: np.ndarray
) -> xr.Dataset:
    """Label responses and distances, and summarise them over prompts."""
    strengths = np.array(config.strengths)
    steered, controls = response[0], response[1:]
    after = plan.pushed[-1] - plan.pushed[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.where(strengths[:, None] == 0, np.nan, away[0, :, -1] / away[0, :, after])
        slope = (strengths[:, None] * steered).sum(0) / (strengths**2).sum()
    of_strength, by_loop = ("strength",), ("strength", "loop")
    variables = {
        "clean": (("example",), clean),
        "response": (("strength", "example"), steered),
        **with_ends("median", of_strength, median_interval(steered)),
        "control_response": (("control", "strength", "example"), controls),
        **with_ends("control_median", of_strength, median_interval(controls.mean(0))),
        **with_ends("against_control_median", of_strength, median_interval(steered - controls.mean(0))),
        **with_ends("slope_median", (), median_interval(slope)),
        **with_ends("distance", by_loop, median_interval(away[0])),
        **with_ends("control_distance", by_loop, median_interval(away[1:].mean(0))),
        **with_ends("left", of_strength, median_interval(left)),
    }
    coords = {
        "strength": strengths, "loop": np.arange(plan.pushed[0], plan.n_loops + 1), "in_loop": plan.pushed,
        "position": plan.tokens, "control": np.arange(1, len(controls) + 1), "model": subject.label,
    }  # fmt: skip
    return xr.Dataset(variables, coords=coords)


PROBE = Probe(
    "steer",
    SteerConfig,
    run,
    check,
    Shown(
        "steer:steer_figures",
        "steer:steer_table",
        quantities=(Quantity("median", "response", along=("strength",), same=("unit",), unit="change of the {unit}"),),
    ),
    needs=frozenset({"map"}),
    given=("direction", "groups", "corrupted", "training", "measure"),
)
