"""The motion of a trajectory, loop by loop; the rate at which it approaches its end, and when it settles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from loopprobe.dynamics.maps import Map, State
from loopprobe.support.statistics import at_least_single

TINY = 1e-30  # stands for zero in a denominator, in float32


@dataclass(frozen=True)
class Moves:
    """Measurements of a trajectory in every loop.

    Attributes:
        step: the size of the update, ‖z_{t+1} − z_t‖.
        relative_step: the size of the update over ‖z_{t+1}‖.
        cosine: the cosine between successive updates, z_{t+1} − z_t and z_t − z_{t−1} (arXiv 2509.23314); NaN in the
            first loop.
        distance: the distance ‖z_{t+1} − z_far‖ / ‖z_far‖ to a state after many loops (arXiv 2604.11791).
        read: the predictions after each loop.
        far_read: the predictions after many loops.
    """

    step: Float[Tensor, "loop batch pos"]
    relative_step: Float[Tensor, "loop batch pos"]
    cosine: Float[Tensor, "loop batch pos"]
    distance: Float[Tensor, "loop batch pos"]
    read: Float[Tensor, "loop batch answer ..."]
    far_read: Float[Tensor, "batch answer ..."]


def follow(system: Map, n_loops: int, far: State) -> Moves:
    """Run a map and measure its motion, at least in float32; the states themselves are not stored.

    Args:
        system: the map.
        n_loops: the number of iterations.
        far: a state after many loops, such as 2,000.
    """
    rows: dict[str, list[Tensor]] = {"step": [], "relative_step": [], "cosine": [], "distance": [], "read": []}
    with torch.no_grad():
        far_read = at_least_single(system.read(far))
        far = at_least_single(far)
        far_norm = far.norm(dim=-1).clamp_min(TINY)
        state = system.initial
        z, before = at_least_single(state), None
        for _ in range(n_loops):
            state = system.step(state)
            new = at_least_single(state)
            update = new - z
            step = update.norm(dim=-1)
            rows["step"].append(step)
            rows["relative_step"].append(step / new.norm(dim=-1).clamp_min(TINY))
            rows["cosine"].append(
                torch.full_like(step, torch.nan)
                if before is None
                else torch.nn.functional.cosine_similarity(update, before, dim=-1)
            )
            rows["distance"].append((new - far).norm(dim=-1) / far_norm)
            rows["read"].append(at_least_single(system.read(state)))
            z, before = new, update
        return Moves(**{name: torch.stack(values) for name, values in rows.items()}, far_read=far_read)


def settled_after(distance: Float[ndarray, "loop ..."], tolerance: float) -> Float[ndarray, ...]:
    """Count the loops until the distance stays at or below the tolerance for good; NaN where it does not."""
    return for_good(distance <= tolerance)


def for_good(holds: Bool[ndarray, "time ..."]) -> Float[ndarray, ...]:
    """Count the times until a condition holds to the end, from 1; NaN where it does not hold at the end."""
    n_times = len(holds)
    last_broken = np.where(holds.all(0), 0, n_times - (~holds)[::-1].argmax(0))
    return np.where(last_broken < n_times, last_broken + 1.0, np.nan)


def decimal_places(distance: Float[ndarray, ...]) -> Float[ndarray, ...]:
    """Count correct decimal places, −log10 of the distance; infinite where it is zero."""
    with np.errstate(divide="ignore"):
        return -np.log10(distance)


def contraction_rate(distance: Float[ndarray, " loop"], floor: float, skip: int = 5) -> tuple[float, float, float]:
    """Fit the factor by which the distance to the end shrinks in a loop, with its 95 % interval.

    Least squares fit the slope of the distance's logarithm against the loop, from loop ``skip`` to where the
    distance first comes below ``floor``, which must lie above the noise; NaN where fewer than five loops are left.
    The interval is that of the regression.

    Args:
        distance: the relative distance of one series to its end.
        floor: the distance at which the fit ends.
        skip: the number of loops left out at the start.
    """
    from scipy.stats import linregress  # imported here: it takes half a second

    below = np.nonzero(distance < floor)[0]
    end = below[0] if len(below) else len(distance)
    loops, fitted = np.arange(skip, end), distance[skip:end]
    if len(fitted) < 5 or not np.isfinite(fitted).all() or (fitted <= 0).any():
        return np.nan, np.nan, np.nan
    fit = linregress(loops, np.log(fitted))
    ends = fit.slope + np.array([-1.96, 1.96]) * fit.stderr
    return float(np.exp(fit.slope)), float(np.exp(ends[0])), float(np.exp(ends[1]))
