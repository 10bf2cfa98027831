"""Direct search for fixed points of the loop map, whether the loop converges to them or not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from loopprobe.dynamics.maps import Map, State
from loopprobe.errors import LoopprobeError
from loopprobe.support.statistics import double, to_numpy

Method = Literal["newton_krylov", "anderson"]
TINY = 1e-300  # stands for zero in a denominator
VANISHED = 1e-150  # the norm of a state below which zero is tried
LEAST_SIZE, LARGEST_SIZE = 1e-3, 1e3  # the states' root mean squares for which scipy's difference steps suit


class Status(Enum):
    """The outcome of a search, decided by the residual of the returned state; the value describes it in words."""

    FOUND = "a fixed point, to the tolerance"
    NOT_CONVERGED = "not converged: raise max_iterations, or start nearer"
    BROKE_DOWN = "the solver's linear system became singular: start elsewhere, or use the other method"
    NON_FINITE = "the map left the finite numbers: start nearer, or use anderson"


@dataclass(frozen=True)
class Solution:
    """The outcome of a search from each prompt's start.

    Attributes:
        state: the state x* with the least residual among those that the solver reached, whatever its status.
        residual: ‖F(x*) − x*‖ / ‖x*‖ of that state; 0 where F(x*) = x* = 0, and infinite where only x* is 0.
        iterations, evaluations: the numbers of solver iterations and of evaluations of F. The latter include those that
            the Krylov solver needs for its derivatives.
        status: ``FOUND`` where the residual is within the tolerance, else the reason of the failure.
    """

    state: State
    residual: Float[Tensor, " batch"]
    iterations: Int[Tensor, " batch"]
    evaluations: Int[Tensor, " batch"]
    status: list[Status]

    @property
    def found(self) -> Bool[Tensor, " batch"]:
        """True for each state that is a fixed point."""
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
    is cheaper where the map nearly contracts. The solver is run again from its last state until that is a fixed point
    relative to its size, because a search from far away loses digits that a second search recovers. A state that the
    map moves by less than the tolerance times its size counts as a fixed point; z + 1 moves states so from 10¹⁰ on.

    Args:
        system: the map; in float64 for tolerances below 1e-6.
        z: the states to start from.
        method: the solver.
        tolerance: the largest ‖F(x) − x‖ / ‖x‖ of a fixed point.
        max_iterations: the largest number of solver iterations, summed over all searches from a start.

    Raises:
        LoopprobeError: the tolerance is at or below the noise of the dtype, or there is no such method.
    """
    noise = torch.finfo(z.dtype).eps
    if tolerance <= 10 * noise:
        raise LoopprobeError(
            f"tolerance ({tolerance:g}) must be above the noise of {str(z.dtype).removeprefix('torch.')} "
            f"({10 * noise:.1e}): raise it, or use float64"
        )
    if method not in get_args(Method):
        raise LoopprobeError(f"method ({method!r}) must be newton_krylov or anderson: choose one")
    from scipy import optimize  # imported here: it takes a quarter of a second

    solver = getattr(optimize, method)
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
    """The search from one prompt's start: it counts evaluations and stores the best state so far.

    Attributes:
        best: the state with the least residual so far, in the precision of the map.
        residual: the residual of that state.
        unit: the unit of the solver's states; its finite differences suit states of size one.
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
        """Return F(x) − x in the precision of the map."""
        z = self.tensor(self.unit * x)
        with torch.no_grad():
            difference = to_numpy(double(self.system.step(z) - z)).reshape(-1) / self.unit
        self.overflowed |= not np.isfinite(difference).all()
        return difference

    def evaluate(self, x: ndarray) -> ndarray:
        """Return F(x) − x to the solver and count the evaluation."""
        self.evaluations += 1
        return self.difference(x)

    def consider(self, x: ndarray, difference: ndarray | None = None) -> None:
        """Store a state if it is better than the best so far."""
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
        warnings.simplefilter("ignore")  # scipy warns of ill-conditioned matrices; the status holds the outcome
        failure = _run(search, solver, tolerance, max_iterations)
        search.unit = 1.0
        residual = _relative(search.evaluate(search.best), search.best)
    status = Status.FOUND if residual <= tolerance else failure
    return search.tensor(search.best), residual, search.iterations, search.evaluations, status


def _run(search: _Search, solver: Callable[..., ndarray], tolerance: float, max_iterations: int) -> Status:
    """Run the solver repeatedly from its last state until a state is good enough; return the reason if none is."""
    from scipy.optimize import NoConvergence  # imported here, as in ``solve``

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
            end = solver(search.evaluate, start, tol_norm=partial(_share, scale), **options)
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
    """Return ‖F(x) − x‖ / ‖x‖."""
    change, size = _norm(difference), _norm(x)
    if change == 0 or np.isnan(change):
        return change
    return change / size if size > 0 else float("inf")
