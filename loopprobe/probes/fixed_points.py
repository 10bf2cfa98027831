"""Direct search for fixed points of the loop, stable or not, and the loop map around them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import xarray as xr
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from loopprobe.config.strict import configuration
from loopprobe.dynamics.calibration import calibrate
from loopprobe.dynamics.limits import Limit, classify, features
from loopprobe.dynamics.maps import LoopMap
from loopprobe.dynamics.solve import Status, distinct, solve
from loopprobe.dynamics.spectrum import (
    has_blocks,
    leading_eigenvalues,
    leading_singular_values,
    lyapunov_exponents,
    position_spectra,
)
from loopprobe.dynamics.trail import WINDOW, run_late
from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import stamp
from loopprobe.probes.declaration import Probe, Shown
from loopprobe.probes.loops import require_far, require_looped
from loopprobe.store.subject import Subject
from loopprobe.support.statistics import to_numpy
from loopprobe.tasks import PromptBatch
from loopprobe.types import Progress


@configuration
class FixedPointsConfig:
    """The starts of the search for fixed points, and its solver.

    Attributes:
        method: the solver.
        random_starts: the number of searches from random states, besides the one from the end of the loop itself.
        far: the number of loops after which the loop itself counts as at its end.
        tolerance: the largest ‖F(x) − x‖ / ‖x‖ of a fixed point.
        same: the relative distance within which two states are one fixed point.
        max_iterations: the most iterations of the solver.
        eigenvalues: the number of the largest eigenvalues that the dataset holds.
        lyapunov_steps: the number of loops over which exponents are measured; 0 for none.
        seed: the seed of the random states.
    """

    method: Literal["newton_krylov", "anderson"] = "newton_krylov"
    random_starts: NonNegativeInt = 2
    far: PositiveInt = 1000
    tolerance: PositiveFloat = 1e-9
    same: PositiveFloat = 1e-5
    max_iterations: PositiveInt = 100
    eigenvalues: PositiveInt = 10
    lyapunov_steps: NonNegativeInt = 200
    seed: NonNegativeInt = 0


def run(
    subject: Subject, prompts: PromptBatch, config: FixedPointsConfig, progress: Progress = lambda steps: steps
) -> xr.Dataset:
    """Search from the end of every prompt's loop and from random states, in float64.

    Returns:
        A dataset with dims ``example``, ``start`` (0: the mean of the last 128 loops; the others random),
        ``eigenvalue`` and ``position``:

        * ``status [example, start]`` (a name of ``dynamics.solve.Status``; its attribute ``sentences`` says what each
          means), ``residual`` (‖F(x) − x‖ / ‖x‖), ``iterations``, ``evaluations``, and of fixed points ``distance``
          (to the last state of the loop, relative) and ``error`` (at the query); missing where the
          search ended without one
        * ``distinct [example]``: the number of fixed points, those within ``same`` counted once; ``limit_is_fixed
          [example]``: whether the end of the loop is one of them
        * ``eigenvalue_real``, ``eigenvalue_imag [example, eigenvalue]``: the largest of the Jacobian at the fixed point
          that the search from the end leads to, missing beyond those that it has; ``eigenvalue_position``: the token
          whose block each belongs to, -1 where tokens see later ones; ``singular_value [example]``: the largest growth
          in one loop there
        * ``moves [example]``: whether any token of the loop's end moves; ``lyapunov [example]``: its largest
          exponent, a loop; ``loop_error [example]``: mean error of the last 128 loops
    """
    check(subject, config, prompts)
    system = LoopMap.of(subject.model, prompts, torch.float64)
    n_prompts = prompts.n_prompts
    prompts = prompts.to(system.e.device)
    trail, outputs = run_late(system, config.far, progress)
    limit, _ = classify(features(trail), calibrate(torch.float32))
    late, read = trail.last, outputs.last
    generator = torch.Generator().manual_seed(config.seed)
    starts = [late.mean(0)]
    for _ in range(config.random_starts):
        noise = torch.randn(late[-1].shape, generator=generator, dtype=torch.float64).to(late)
        starts.append(noise * late[-1].square().mean().sqrt())
    shape = (n_prompts, len(starts))
    measured = {name: np.full(shape, np.nan) for name in ("residual", "iterations", "evaluations", "distance", "error")}
    status = np.full(shape, "", dtype=object)
    eigenvalues = np.full((n_prompts, config.eigenvalues), np.nan, dtype=complex)
    positions, singular = np.full(eigenvalues.shape, -1), np.full(n_prompts, np.nan)
    counts, is_fixed = np.zeros(n_prompts, int), np.zeros(n_prompts, bool)
    for i in progress(range(n_prompts)):
        one, end = system.at(slice(i, i + 1)), late[-1, i : i + 1]
        states: list[Tensor] = []
        for j, start in enumerate(starts):
            options = {"tolerance": config.tolerance, "max_iterations": config.max_iterations}
            solution = solve(one, start[i : i + 1], config.method, **options)  # type: ignore[arg-type]
            status[i, j] = solution.status[0].name
            for name in ("residual", "iterations", "evaluations"):
                measured[name][i, j] = getattr(solution, name)[0]
            if solution.status[0] is not Status.FOUND:
                continue
            states.append(solution.state[0])
            measured["distance"][i, j] = (solution.state - end).norm() / end.norm()
            measured["error"][i, j] = prompts[i : i + 1].errors(one.read(solution.state))[0, -1]
            if j == 0:
                largest, tokens = _largest(one, solution.state, config.eigenvalues)
                eigenvalues[i, : len(largest)], positions[i, : len(tokens)] = largest, tokens
                singular[i] = leading_singular_values(one, solution.state, 1)[0, 0]
        counts[i] = len(distinct(torch.stack(states), config.same)) if states else 0
        is_fixed[i] = bool((measured["distance"][i] <= config.same).any())
    moves = (limit != Limit.FIXED).any(1)
    exponents = np.full(n_prompts, np.nan)
    if config.lyapunov_steps:
        exponents = _largest_exponents(system, late[-1], config.lyapunov_steps)
    of_start, of_prompt = ("example", "start"), ("example",)
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {
        name: (of_start, values) for name, values in measured.items()
    }
    variables |= {
        "status": (of_start, status.astype(str)),
        "distinct": (of_prompt, counts),
        "limit_is_fixed": (of_prompt, is_fixed),
        "eigenvalue_real": (("example", "eigenvalue"), eigenvalues.real),
        "eigenvalue_imag": (("example", "eigenvalue"), eigenvalues.imag),
        "eigenvalue_position": (("example", "eigenvalue"), positions),
        "singular_value": (of_prompt, singular),
        "moves": (of_prompt, to_numpy(moves)),
        "lyapunov": (of_prompt, exponents),
        "loop_error": (of_prompt, to_numpy(prompts.errors(read)[..., -1].mean(0))),
    }
    sentences = "; ".join(f"{one.name}: {one.value}" for one in Status)
    data = xr.Dataset(variables, coords={"model": subject.label})
    data["status"].attrs["sentences"] = sentences
    return stamp(data, "fixed_points", subject, prompts, config)


def check(subject: Subject, config: FixedPointsConfig, prompts: PromptBatch) -> None:
    """Raise LoopprobeError where the model is not looped, or an option cannot be used."""
    require_looped(subject)
    noise = 10 * torch.finfo(torch.float64).eps
    if config.tolerance <= noise:
        raise LoopprobeError(
            f"tolerance ({config.tolerance:g}) must be above the noise of float64 ({noise:.1e}): raise it"
        )
    require_far(config.far)
    if config.far < WINDOW:
        raise LoopprobeError(f"far ({config.far}) must be at least {WINDOW}: raise it")


def _largest(system: LoopMap, z: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k eigenvalues of largest modulus at a state, and their tokens: -1 where tokens see later ones."""
    if not has_blocks(system):
        values = to_numpy(leading_eigenvalues(system, z, min(k, z[0].numel()))[0])
        return values, np.full(len(values), -1)
    spectra = position_spectra(system, z)[0]
    order = spectra.abs().flatten().argsort(descending=True)[:k]
    return to_numpy(spectra.flatten()[order]), to_numpy(order // spectra.shape[1])


def _largest_exponents(system: LoopMap, z: Tensor, n_steps: int) -> np.ndarray:
    """The largest Lyapunov exponent of every prompt's loop from z on; missing where the state is not finite."""
    exponents = np.full(len(z), np.nan)
    finite = torch.isfinite(z).flatten(1).all(1)
    if finite.any():
        some = system.at(finite)
        exponents[to_numpy(finite)] = to_numpy(lyapunov_exponents(some, z[finite], n_steps, k=1)[0][:, 0])
    return exponents


PROBE = Probe(
    "fixed_points",
    FixedPointsConfig,
    run,
    check,
    Shown("longrun:fixed_points_figures", "inside:fixed_points_table"),
    needs=frozenset({"map", "autonomous", "forward_mode"}),
)
