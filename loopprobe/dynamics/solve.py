"""Fixed points of the loop map found directly, whether the loop goes there or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.optimize import NoConvergence, anderson, newton_krylov
from torch import Tensor

from loopprobe.dynamics.maps import Map, State
from loopprobe.errors import LoopprobeError

Method = Literal["newton_krylov", "anderson"]


class Status(Enum):
    """How a search ended; the value says it to the reader."""

    FOUND = "a fixed point, to the tolerance"
    NOT_CONVERGED = "not converged: raise max_iterations, or start nearer"
    NON_FINITE = "left the finite numbers: start nearer, or use anderson"


@dataclass(frozen=True)
class Solution:
    """Where a search from each prompt's start ended.

    Attributes:
        state: x*, whatever its status.
        residual: ‖F(x*) − x*‖ / ‖x*‖.
        iterations, evaluations: of the solver, and of F, the Krylov solver's own included.
        status: how it ended.
    """

    state: State
    residual: Float[Tensor, " batch"]
    iterations: Int[Tensor, " batch"]
    evaluations: Int[Tensor, " batch"]
    status: list[Status]

    @property
    def found(self) -> Bool[Tensor, " batch"]:
        """Which of them are fixed points."""
        return torch.tensor([status is Status.FOUND for status in self.status])


def solve(
    system: Map,
    z: State,
    method: Method = "newton_krylov",
    *,
    tolerance: float = 1e-10,
    max_iterations: int = 100,
) -> Solution:
    """Search for a fixed point from each state, prompt by prompt, with scipy's solvers.

    Newton–Krylov (Knoll and Keyes 2004) finds unstable fixed points as well; Anderson acceleration (Anderson 1965)
    is cheaper where the map nearly contracts.

    Args:
        system: the map; in float64 for tolerances below 1e-6.
        z: where to start from.
        method: the solver.
        tolerance: of ‖F(x) − x‖ / ‖x‖.
        max_iterations: of the solver.

    Raises:
        LoopprobeError: the tolerance is at or below the noise of the dtype, or there is no such method.
    """
    noise = torch.finfo(z.dtype).eps
    if tolerance <= 10 * noise:
        raise LoopprobeError(
            f"tolerance ({tolerance:g}) must be above the noise of {str(z.dtype).removeprefix('torch.')} "
            f"({10 * noise:.1e}): raise it, or use float64"
        )
    solver = {"newton_krylov": newton_krylov, "anderson": anderson}.get(method)
    if solver is None:
        raise LoopprobeError(f"method ({method!r}) must be newton_krylov or anderson: choose one")
    ends = [_one(system.at(slice(i, i + 1)), z[i : i + 1], solver, tolerance, max_iterations) for i in range(len(z))]
    states, residuals, iterations, evaluations, status = zip(*ends, strict=True)
    return Solution(
        torch.cat(states), torch.tensor(residuals), torch.tensor(iterations), torch.tensor(evaluations), list(status)
    )


def distinct(states: Float[Tensor, "start ..."], tolerance: float = 1e-6) -> list[int]:
    """Indices of states of which no two are nearer than ``tolerance`` times their norm: the first of each."""
    kept: list[int] = []
    for i, state in enumerate(states):
        if all((state - states[j]).norm() > tolerance * state.norm().clamp_min(1e-300) for j in kept):
            kept.append(i)
    return kept


def _one(
    system: Map, z: State, solver: Callable[..., ndarray], tolerance: float, max_iterations: int
) -> tuple[State, float, int, int, Status]:
    counts = {"iterations": 0, "evaluations": 0}
    tensor = lambda x: torch.from_numpy(np.asarray(x)).to(z).reshape(z.shape)  # noqa: E731

    def residual(x: ndarray) -> ndarray:
        counts["evaluations"] += 1
        with torch.no_grad():
            return (system.step(tensor(x)) - tensor(x)).reshape(-1).double().cpu().numpy()

    def iterated(x: ndarray, f: ndarray) -> None:
        counts["iterations"] += 1

    start = z.reshape(-1).double().cpu().numpy()
    relative = lambda f: float(np.linalg.norm(f)) / max(float(np.linalg.norm(start)), 1e-300)  # noqa: E731
    status = Status.FOUND
    try:
        with np.errstate(all="ignore"):
            x = solver(residual, start, maxiter=max_iterations, f_tol=tolerance, tol_norm=relative, callback=iterated)
    except NoConvergence as error:
        x, status = np.asarray(error.args[0]), Status.NOT_CONVERGED
    except (ValueError, ZeroDivisionError, np.linalg.LinAlgError):
        x, status = np.full_like(start, np.nan), Status.NON_FINITE
    if not np.isfinite(x).all():
        return tensor(x), float("nan"), counts["iterations"], counts["evaluations"], Status.NON_FINITE
    left = float(np.linalg.norm(residual(x))) / max(float(np.linalg.norm(x)), 1e-300)
    return tensor(x), float(left), counts["iterations"], counts["evaluations"], status
