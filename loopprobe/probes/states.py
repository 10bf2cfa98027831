"""The long run of the states of single prompts, beside that of their predictions: the second half of ``converge``.

A steady error says nothing about the state: the prediction is read from one direction of one token's state, and
motion in the other directions need not touch it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from loopprobe.dynamics.calibration import calibrate, control_errors
from loopprobe.dynamics.limits import Features, Limit, Thresholds, classify, features, limit_flags, to_limit
from loopprobe.dynamics.maps import LoopMap, State
from loopprobe.dynamics.spectrum import has_blocks, position_spectra
from loopprobe.dynamics.trail import run_late
from loopprobe.dynamics.trajectory import Moves, contraction_rate, decimal_places, follow, settled_after
from loopprobe.store.subject import Subject
from loopprobe.support.statistics import to_numpy
from loopprobe.tasks import PromptBatch
from loopprobe.types import Progress

Variables = dict[str, tuple[tuple[str, ...], Any]]
BY_TOKEN, BY_POINT = ("followed", "position"), ("followed", "point")


def follow_states(
    subject: Subject,
    prompts: PromptBatch,
    *,
    loops: int,
    far: int,
    tolerance: float,
    progress: Progress = lambda steps: steps,
) -> xr.Dataset:
    """Follow the states of prompts, token by token, and classify their limits.

    Args:
        subject: a looped model and its task.
        prompts: few: arrays are loops × prompts × tokens.
        loops: the number of iterations that are measured one by one.
        far: the number of iterations after which a trajectory counts as at its end; limits are told by its last half
            and its last 128 loops (``dynamics.limits`` says what can be told after how many).
        tolerance: the distance within which a trajectory has settled, relative for states and in
            the unit of steps of the prompts for outputs.
        progress: wraps the iterations.

    Returns:
        A dataset with dims ``loop`` (from 1), ``followed`` (the prompt), ``position`` (token) and ``point``:

        * ``state_step``, ``relative_step``, ``cosine``, ``distance [loop, followed, position]``: see
          ``dynamics.trajectory.Moves``
        * ``prediction_step``, ``followed_error [loop, followed]`` at the query: change of the prediction from the
          loop before and its error, both in the unit of the prompts
        * ``decimals_to_limit``, ``decimals_to_optimum [loop, followed]``: correct decimal places of the prediction at
          the query, against its own far value and against the attainable optimum
        * ``limit``, ``period [followed, position]``, ``prediction_limit``, ``prediction_period [followed, point]``:
          the type of limit (``dynamics.limits.Limit``), and the period of cycles, 0 for other types
        * ``movement [followed, position]``, ``prediction_movement [followed, point]``: the largest over all lags at the
          end, root mean square, relative to the state and to the typical size of an output
        * ``to_limit [followed, position]``, ``prediction_to_limit [followed, point]``: of what approaches a point, the
          estimated distance still to go, relative to the state and to the typical size of an output, and with
          ``approach_factor``, ``prediction_approach_factor`` the factor by which it shrinks in a loop, or with
          ``approach_exponent``, ``prediction_approach_exponent`` the q of loops^−q; missing elsewhere
        * ``state_settled [followed, position]``, ``prediction_settled [followed, point]``: loops until within the
          tolerance of the far value for good; missing where that does not happen
        * ``rate``, ``rate_low``, ``rate_high [followed, position]``: factor by which the distance to a fixed point
          shrinks in a loop, with its interval; missing where there is none
        * ``spectral_radius [followed, position]``: of the token's block of the Jacobian at the far state; a token
          comes to rest no faster than the slowest up to it. Where it is missing of every token, its attribute
          ``missing`` says why

        ``attrs["control_errors"]`` says how often each type is mistaken on controls with a known answer.

    Raises:
        LoopprobeError: the model is in half precision.
    """
    system = LoopMap.of(subject.model, prompts)
    thresholds = calibrate(system.e.dtype)
    trail, trail_of_outputs = run_late(system, far, progress=progress)
    end = trail.last[-1]
    states = Ends.of(features(trail), thresholds)
    predictions = Ends.of(features(trail_of_outputs, size=prompts.output_size), thresholds)
    moves = follow(system, loops, end)
    variables = _over_loops(subject, prompts, moves) | _at_the_end(prompts, moves, states, predictions, tolerance)
    variables["spectral_radius"] = BY_TOKEN, to_numpy(_radii(system, end))
    of_rates = zip(("rate", "rate_low", "rate_high"), _rates(moves, states.limit, thresholds.fixed), strict=True)
    variables |= {name: (BY_TOKEN, values) for name, values in of_rates}
    coords = {"loop": np.arange(1, loops + 1), "position": np.arange(end.shape[1])}
    data = xr.Dataset(variables, coords=coords)
    for name in ("limit", "prediction_limit"):
        data[name].attrs |= limit_flags()
    if missing := _why_without_blocks(system):
        data.spectral_radius.attrs["missing"] = missing
    wrong = control_errors(system.e.dtype)
    data.attrs |= {"far": far, "tolerance": tolerance, "fixed_threshold": thresholds.fixed}
    data.attrs["control_errors"] = ", ".join(f"{t.words} {wrong[t]:.1%}" for t in Limit)
    return data


@dataclass(frozen=True)
class Ends:
    """The ends of trajectories.

    Attributes:
        limit: the type of limit of each.
        period: of those on a cycle, else 0.
        movement: the largest over all lags at the end, root mean square, relative to their size.
        to_limit, factor, exponent: of those that approach a point, see ``dynamics.limits.to_limit``.
    """

    limit: Int[Tensor, "followed place"]
    period: Int[Tensor, "followed place"]
    movement: Float[Tensor, "followed place"]
    to_limit: Float[Tensor, "followed place"]
    factor: Float[Tensor, "followed place"]
    exponent: Float[Tensor, "followed place"]

    @classmethod
    def of(cls, measured: Features, thresholds: Thresholds) -> Ends:
        """Classify what was measured of the last states."""
        limit, period = classify(measured, thresholds)
        ahead = (values.float() for values in to_limit(measured, limit, thresholds))
        return cls(limit, period, measured.lags.amax(0).float(), *ahead)


def _over_loops(subject: Subject, prompts: PromptBatch, moves: Moves) -> Variables:
    """Measure every loop, of tokens and at the query."""
    answer, far_answer = prompts.answer(moves.read), prompts.answer(moves.far_read)
    _, best = subject.optimum(prompts)
    best_answer = prompts.answer(best).to(answer)
    step = prompts.distance(moves.read[1:], moves.read[:-1])[..., -1]
    step = torch.cat([torch.full_like(answer[:1], torch.nan), step])
    of_tokens = {
        "state_step": moves.step,
        "relative_step": moves.relative_step,
        "cosine": moves.cosine,
        "distance": moves.distance,
    }
    at_query = {
        "prediction_step": to_numpy(step),
        "followed_error": to_numpy(prompts.errors(moves.read)[..., -1]),
        "decimals_to_limit": decimal_places(to_numpy((answer - far_answer).abs())),
        "decimals_to_optimum": decimal_places(to_numpy((answer - best_answer).abs())),
    }
    variables: Variables = {name: (("loop", *BY_TOKEN), to_numpy(values)) for name, values in of_tokens.items()}
    return variables | {name: (("loop", "followed"), values) for name, values in at_query.items()}


def _at_the_end(prompts: PromptBatch, moves: Moves, states: Ends, predictions: Ends, tolerance: float) -> Variables:
    """Label the end: limits, periods, movement, and when it was reached."""
    to_far = to_numpy(prompts.step(moves.read, moves.far_read))
    of_ends = {
        "limit": "limit",
        "period": "period",
        "movement": "movement",
        "to_limit": "to_limit",
        "approach_factor": "factor",
        "approach_exponent": "exponent",
    }
    variables: Variables = {}
    for name, field in of_ends.items():
        variables[name] = BY_TOKEN, to_numpy(getattr(states, field))
        variables[f"prediction_{name}"] = BY_POINT, to_numpy(getattr(predictions, field))
    return variables | {
        "state_settled": (BY_TOKEN, settled_after(to_numpy(moves.distance), tolerance)),
        "prediction_settled": (BY_POINT, settled_after(to_far, tolerance)),
    }


def _rates(
    moves: Moves, limit: Int[Tensor, "followed position"], fixed: float
) -> Float[np.ndarray, "3 followed position"]:
    """The factor by which the distance to a fixed point shrinks in a loop, with its interval; missing elsewhere."""
    distance = to_numpy(moves.distance)
    rates = np.full((3, *limit.shape), np.nan)
    for prompt, token in np.argwhere(to_numpy(limit == Limit.FIXED)):
        rates[:, prompt, token] = contraction_rate(distance[:, prompt, token], floor=100 * fixed)
    return rates


def _why_without_blocks(system: LoopMap) -> str:
    """Say why the tokens of a map have no blocks of the Jacobian; empty where they have."""
    if has_blocks(system):
        return ""
    if "causal" not in system.model.supports:
        return "tokens see later ones, so that none has a block of its own"
    return "the model keeps no keys and values of earlier tokens, so that no token has a block of its own"


def _radii(system: LoopMap, z: State) -> Float[Tensor, "batch pos"]:
    """The spectral radius of each token's block; missing where a state is not finite, or a token sees later ones."""
    if not has_blocks(system):
        return torch.full(z.shape[:2], torch.nan)
    radii = position_spectra(system, torch.nan_to_num(z))[..., 0].abs()
    return radii.where(torch.isfinite(z).all(-1).to(radii.device), torch.nan)
