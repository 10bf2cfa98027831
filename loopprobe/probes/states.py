"""The long run of the states of single prompts, beside that of their predictions: the second half of ``converge``.

A steady error says nothing about the state: the prediction is read from one direction of one token's state, and
motion in the other directions need not touch it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from loopprobe.dynamics.limits import Limit, calibrate, classify, confusion, features, run_late
from loopprobe.dynamics.maps import LoopMap, State
from loopprobe.dynamics.spectrum import position_spectra
from loopprobe.dynamics.trajectory import contraction_rate, decimal_places, follow, settled_after
from loopprobe.store.subject import Subject
from loopprobe.support.statistics import to_numpy
from loopprobe.tasks import PromptBatch
from loopprobe.types import Progress


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
        far: the number of iterations after which a trajectory counts as at its end; limits are those of the last 128.
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
        * ``state_settled [followed, position]``, ``prediction_settled [followed, point]``: loops until within the
          tolerance of the far value for good; missing where that does not happen
        * ``rate``, ``rate_low``, ``rate_high [followed, position]``: factor by which the distance to a fixed point
          shrinks in a loop, with its interval; missing where there is none
        * ``spectral_radius [followed, position]``: of the token's block of the Jacobian at the far state; a token
          comes to rest no faster than the slowest up to it

        ``attrs["control_errors"]`` says how often each type is mistaken on controls with a known answer.

    Raises:
        LoopprobeError: the model is in half precision.
    """
    model = subject.model
    system = LoopMap.of(model, prompts)
    thresholds = calibrate(system.e.dtype)
    late, late_read = run_late(system, far, progress=progress)
    ends = features(late)
    limit, period = classify(ends, thresholds)
    read_ends = features(late_read.flatten(3) if late_read.ndim > 3 else late_read[..., None], size=prompts.output_size)
    read_limit, read_period = classify(read_ends, thresholds)
    moves = follow(system, loops, late[-1])
    radius = _radii(system, late[-1])
    answer, far_answer = prompts.answer(moves.read), prompts.answer(moves.far_read)
    _, best = subject.optimum(prompts)
    best_answer = torch.full_like(far_answer, torch.nan) if best is None else prompts.answer(best).to(answer)
    error = to_numpy(prompts.errors(moves.read)[..., -1])
    read_step = prompts.distance(moves.read[1:], moves.read[:-1])[..., -1]
    read_step = torch.cat([torch.full_like(answer[:1], torch.nan), read_step])
    distance = to_numpy(moves.distance)
    rates = np.full((3, *limit.shape), np.nan)
    for prompt, token in np.argwhere(to_numpy(limit == Limit.FIXED)):
        rates[:, prompt, token] = contraction_rate(distance[:, prompt, token], floor=100 * thresholds.fixed)
    by_token, by_point, over_loops = ("followed", "position"), ("followed", "point"), ("loop", "followed")
    variables: dict[str, tuple[tuple[str, ...], Any]] = {
        name: (("loop", *by_token), to_numpy(getattr(moves, attribute)))
        for name, attribute in (("state_step", "step"), ("relative_step", "relative_step"), ("cosine", "cosine"))
    }
    variables |= {
        "distance": (("loop", *by_token), distance),
        "prediction_step": (over_loops, to_numpy(read_step)),
        "followed_error": (over_loops, error),
        "decimals_to_limit": (over_loops, decimal_places(to_numpy((answer - far_answer).abs()))),
        "decimals_to_optimum": (over_loops, decimal_places(to_numpy((answer - best_answer).abs()))),
        "limit": (by_token, to_numpy(limit)),
        "period": (by_token, to_numpy(period)),
        "prediction_limit": (by_point, to_numpy(read_limit)),
        "prediction_period": (by_point, to_numpy(read_period)),
        "movement": (by_token, to_numpy(ends.lags.amax(0).float())),
        "prediction_movement": (by_point, to_numpy(read_ends.lags.amax(0).float())),
        "state_settled": (by_token, settled_after(distance, tolerance)),
        "prediction_settled": (by_point, settled_after(to_numpy(prompts.step(moves.read, moves.far_read)), tolerance)),
        "spectral_radius": (by_token, to_numpy(radius)),
    }
    of_rates = zip(("rate", "rate_low", "rate_high"), rates, strict=True)
    variables |= {name: (by_token, values) for name, values in of_rates}
    data = xr.Dataset(variables, coords={"loop": np.arange(1, loops + 1), "position": np.arange(limit.shape[1])})
    data["limit"].attrs["types"] = data["prediction_limit"].attrs["types"] = ", ".join(t.words for t in Limit)
    wrong = 1 - confusion(thresholds, system.e.dtype).diagonal()
    data.attrs |= {"far": far, "tolerance": tolerance, "fixed_threshold": thresholds.fixed}
    data.attrs["control_errors"] = ", ".join(f"{t.words} {wrong[t]:.1%}" for t in Limit)
    return data


def _radii(system: LoopMap, z: State) -> Float[Tensor, "batch pos"]:
    """The spectral radius of each token's block; missing where a state is not finite, or a token sees later ones."""
    if "causal" not in system.model.supports:
        return torch.full(z.shape[:2], torch.nan)
    radii = position_spectra(system, torch.nan_to_num(z))[..., 0].abs()
    return radii.where(torch.isfinite(z).all(-1).to(radii.device), torch.nan)
