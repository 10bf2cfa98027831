"""Direct search for fixed points of the loop map, whether the loop converges to them or not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.optimize import NoConvergence, anderson, newton_krylov
from torch import Tensor

from loopprobe.dynamics.maps import Map, State
from loopprobe.errors import LoopprobeError
from loopprobe.support.statistics import double, to_numpy

Method = Literal["newton_krylov", "anderson"]
TINY = 1e-300  # stands for zero in a denominator
VANISHED = 1e-150  # the norm of a state below which zero itself is tried
LEAST_SIZE, LARGEST_SIZE = 1e-3, 1e3  # root mean squares of states between which scipy's steps of differences are right


class Status(Enum):
    """The end of a search, decided by the residual of the state that is returned; the value says it to the reader."""

    FOUND = "a fixed point, to the tolerance"
    NOT_CONVERGED = "not converged: raise max_iterations, or start nearer"
    BROKE_DOWN = "the solver's linear system became singular: start elsewhere, or use the other method"
    NON_FINITE = "the map left the finite numbers: start nearer, or use anderson"


@dataclass(frozen=True)
class Solution:
    """The end of a search from each prompt's start.

    Attributes:
        state: x*, whatever its status: the state of least residual of those that the solver stepped to.
        residual: ‖F(x*) − x*‖ / ‖x*‖ of that state; 0 where F(x*) = x* = 0, infinite where x* = 0 alone.
        iterations, evaluations: the number of iterations of the solver, and of evaluations of F, with those that the
            Krylov solver needs for its derivatives.
        status: ``FOUND`` where the residual is within the tolerance, else what went wrong.
    """

    state: State
    residual: Float[Tensor, " batch"]
    iterations: Int[Tensor, " batch"]
    evaluations: Int[Tensor, " batch"]
    status: list[Status]

    @property
    def found(self) -> Bool[Tensor, " batch"]:
        """Whether each of them is a fixed point."""
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
    is cheaper where the map nearly contracts. The solver starts again from its end until that is a fixed point
    relative to its own size: a search from far away loses digits that a second one gets back. Where the map moves a
    state by less than the tolerance times its size, as z + 1 does from 10¹⁰ on, the state counts as a fixed point.

    Args:
        system: the map; in float64 for tolerances below 1e-6.
        z: the states to start from.
        method: the solver.
        tolerance: the largest ‖F(x) − x‖ / ‖x‖ of a fixed point.
        max_iterations: the most iterations of the solver, all searches from a start together.

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
        torch.cat(states),
        torch.tensor(residuals, dtype=torch.float64),
        torch.tensor(iterations),
        torch.tensor(evaluations),
        list(status),
    )


def distinct(states: Float[Tensor, "start ..."], tolerance: float = 1e-6) -> list[int]:
    """Choose states of which no two are nearer than ``tolerance`` times their norm; return their indices."""
    chosen: list[int] = []
    for i, state in enumerate(states):
        if all((state - states[j]).norm() > tolerance * state.norm().clamp_min(TINY) for j in chosen):
            chosen.append(i)
    return chosen


class _Search:
    """One prompt's search: it counts, and remembers the best state that the solver has been at.

    Attributes:
        best: the state with the least residual so far, in the precision of the map.
        residual: of that state.
        unit: the solver's states are in this unit, since it takes finite differences as if states were of size one.
    """

    def __init__(self, system: Map, z: State) -> None:
        self.system, self.like = system, z
        self.iterations = self.evaluations = 0
        self.overflowed = False
        self.unit = 1.0
        self.best, self.residual = to_numpy(double(z)).reshape(-1), float("inf")

    def tensor(self, x: ndarray) -> State:
        return torch.from_numpy(np.asarray(x)).to(self.like.dtype).to(self.like.device).reshape(self.like.shape)

    def difference(self, x: ndarray) -> ndarray:
        """F(x) − x, in the precision of the map."""
        z = self.tensor(self.unit * x)
        with torch.no_grad():
            difference = to_numpy(double(self.system.step(z) - z)).reshape(-1) / self.unit
        self.overflowed |= not np.isfinite(difference).all()
        return difference

    def asked(self, x: ndarray) -> ndarray:
        """F(x) − x for the solver, counted."""
        self.evaluations += 1
        return self.difference(x)

    def consider(self, x: ndarray, difference: ndarray | None = None) -> None:
        """Remember a state where it is better than the best."""
        difference = self.difference(x) if difference is None else difference
        if (residual := _relative(difference, x)) < self.residual:
            self.best, self.residual = to_numpy(double(self.tensor(self.unit * x))).reshape(-1), residual

    def after_iteration(self, x: ndarray, difference: ndarray) -> None:
        """Count an iteration of the solver, which calls this."""
        self.iterations += 1
        self.consider(x, difference)


def _one(
    system: Map, z: State, solver: Callable[..., ndarray], tolerance: float, max_iterations: int
) -> tuple[State, float, int, int, Status]:
    search = _Search(system, z)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # scipy's, of matrices that are ill-conditioned: the status says what came of it
        failure = _run(search, solver, tolerance, max_iterations)
        search.unit = 1.0
        residual = _relative(search.asked(search.best), search.best)
    status = Status.FOUND if residual <= tolerance else failure
    return search.tensor(search.best), residual, search.iterations, search.evaluations, status


def _run(search: _Search, solver: Callable[..., ndarray], tolerance: float, max_iterations: int) -> Status:
    """Run the solver, again from its end until a state is good enough; return what went wrong if none is."""
    end = search.best
    search.consider(end)
    while search.residual > tolerance and search.iterations < max_iterations:
        search.unit = 1.0
        size = max(_norm(end), _norm(search.difference(end)))
        if size < VANISHED:
            search.consider(np.zeros_like(end))  # the solver goes to zero, where the relative residual stays as it is
            break
        if not LEAST_SIZE < size / end.size**0.5 < LARGEST_SIZE:
            search.unit = size
        start, iterations = end / search.unit, search.iterations
        scale = _norm(start) or 1.0  # a start at zero has no size of its own
        options = {"maxiter": max_iterations - iterations, "f_tol": tolerance, "callback": search.after_iteration}
        try:
            end = solver(search.asked, start, tol_norm=partial(_share, scale), **options)
        except NoConvergence as error:
            end = np.asarray(error.args[0])
        except (ValueError, ArithmeticError, np.linalg.LinAlgError):
            return Status.NON_FINITE if search.overflowed else Status.BROKE_DOWN
        search.consider(end)
        end = search.unit * end
        if search.iterations == iterations or not np.isfinite(end).all():
            break
    return Status.NON_FINITE if search.overflowed else Status.NOT_CONVERGED


def _norm(x: ndarray) -> float:
    return float(np.linalg.norm(x))


def _share(scale: float, x: ndarray) -> float:
    return _norm(x) / scale


def _relative(difference: ndarray, x: ndarray) -> float:
    """‖F(x) − x‖ / ‖x‖."""
    change, size = _norm(difference), _norm(x)
    if change == 0 or np.isnan(change):
        return change
    return change / size if size > 0 else float("inf")
