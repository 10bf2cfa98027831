"""How a trajectory moves, loop by loop; how fast it comes to its end, and when it stays there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.stats import linregress
from torch import Tensor

from loopprobe.dynamics.maps import Map, State


@dataclass(frozen=True)
class Moves:
    """What is measured of a trajectory in every loop.

    Attributes:
        step: ‖z_{t+1} − z_t‖.
        relative_step: the same over ‖z_{t+1}‖.
        cosine: of successive updates z_{t+1} − z_t and z_t − z_{t−1} (arXiv 2509.23314); missing in the first loop.
        distance: ‖z_{t+1} − z_far‖ / ‖z_far‖ to a state far out (arXiv 2604.11791).
        read: the predictions.
        far_read: the predictions far out.
    """

    step: Float[Tensor, "loop batch pos"]
    relative_step: Float[Tensor, "loop batch pos"]
    cosine: Float[Tensor, "loop batch pos"]
    distance: Float[Tensor, "loop batch pos"]
    read: Float[Tensor, "loop batch point"]
    far_read: Float[Tensor, "batch point"]


def follow(system: Map, n_loops: int, far: State) -> Moves:
    """Run and measure; the states themselves are not kept.

    Args:
        system: the map.
        n_loops: iterations.
        far: the state far out, such as after 2,000 loops.
    """
    rows: dict[str, list[Tensor]] = {"step": [], "relative_step": [], "cosine": [], "distance": [], "read": []}
    far_norm = far.norm(dim=-1).clamp_min(1e-30)
    with torch.no_grad():
        z, before = system.initial, None
        for _ in range(n_loops):
            new = system.step(z)
            update = new - z
            step = update.norm(dim=-1)
            rows["step"].append(step)
            rows["relative_step"].append(step / new.norm(dim=-1).clamp_min(1e-30))
            rows["cosine"].append(
                torch.full_like(step, torch.nan)
                if before is None
                else torch.nn.functional.cosine_similarity(update, before, dim=-1)
            )
            rows["distance"].append((new - far).norm(dim=-1) / far_norm)
            rows["read"].append(system.read(new))
            z, before = new, update
        return Moves(**{name: torch.stack(values) for name, values in rows.items()}, far_read=system.read(far))


def settled_after(distance: Float[ndarray, "loop ..."], tolerance: float) -> Float[ndarray, ...]:
    """Loops until the distance stays at or below the tolerance for good; NaN where it does not."""
    outside = ~(distance <= tolerance)
    n_loops = len(distance)
    last_outside = np.where(outside.any(0), n_loops - outside[::-1].argmax(0), 0)
    return np.where(last_outside < n_loops, last_outside + 1.0, np.nan)


def decimal_places(distance: Float[ndarray, ...]) -> Float[ndarray, ...]:
    """Correct decimal places: −log10 of the distance; infinite where it is zero."""
    with np.errstate(divide="ignore"):
        return -np.log10(distance)


def contraction_rate(distance: Float[ndarray, " loop"], floor: float, skip: int = 5) -> tuple[float, float, float]:
    """Factor by which the distance to the end shrinks in a loop, with its 95 % interval.

    The slope of the logarithm of the distance against the loop by least squares, from loop ``skip`` to where the
    distance first comes below ``floor``, which is to lie above the noise; NaN where fewer than five loops are left.
    The interval is that of the regression.

    Args:
        distance: of one series, relative.
        floor: where the fit ends.
        skip: loops left out at the start.
    """
    below = np.nonzero(distance < floor)[0]
    end = below[0] if len(below) else len(distance)
    loops, kept = np.arange(skip, end), distance[skip:end]
    if len(kept) < 5 or not np.isfinite(kept).all() or (kept <= 0).any():
        return np.nan, np.nan, np.nan
    fit = linregress(loops, np.log(kept))
    ends = fit.slope + np.array([-1.96, 1.96]) * fit.stderr
    return float(np.exp(fit.slope)), float(np.exp(ends[0])), float(np.exp(ends[1]))
