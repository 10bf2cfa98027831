"""Solvers and spectra on maps whose answers are known, from starts of all sizes."""

import itertools
import warnings

import numpy as np
import pytest
import torch

from loopprobe.dynamics.maps import LoopMap, PointwiseMap, linear_map
from loopprobe.dynamics.solve import Status, solve
from loopprobe.dynamics.spectrum import (
    arnoldi_eigenvalues,
    diagonal_blocks,
    leading_eigenvalues,
    leading_singular_values,
    lyapunov_exponents,
    position_spectra,
)
from loopprobe.errors import LoopprobeError

TOLERANCE = 1e-10
MAPS = {
    "affine": lambda z: 0.9 * z + 0.001,
    "linear": lambda z: 0.9 * z,
    "constant": lambda z: torch.full_like(z, 3.0),
    "identity": lambda z: z,
    "logistic": lambda z: 3.9 * z * (1 - z),
    "no fixed point": lambda z: z * z + 1,
    "shift": lambda z: z + 1,
    "exponential": torch.exp,
    "not a number": lambda z: z * float("nan"),
    "inverse": lambda z: 1 / z,
}
STARTS = (0.0, 1e-8, 0.3, 1e3, 1e8, 1e10)


def starting(size, width=4):
    return size * torch.linspace(1, 1.3, width, dtype=torch.float64).reshape(1, 1, width)


@pytest.mark.parametrize("method", ["newton_krylov", "anderson"])
@pytest.mark.parametrize("name", MAPS)
def test_the_status_is_that_of_the_residual_of_the_returned_state(name, method):
    function = MAPS[name]
    for size in STARTS:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            solution = solve(PointwiseMap(starting(size), function), starting(size), method, tolerance=TOLERANCE)
        change, norm = (function(solution.state) - solution.state).norm().item(), solution.state.norm().item()
        residual = change / norm if norm else (0.0 if change == 0 else np.inf if change > 0 else np.nan)
        np.testing.assert_allclose(solution.residual.item(), residual, rtol=1e-6, atol=1e-18)
        assert (solution.status[0] is Status.FOUND) == (residual <= TOLERANCE), (size, solution)
        assert solution.iterations.item() <= 100


@pytest.mark.parametrize("size", STARTS)
def test_newton_finds_the_fixed_point_of_an_affine_map_from_anywhere(size):
    solution = solve(PointwiseMap(starting(size), MAPS["affine"]), starting(size))
    assert solution.found.all()
    torch.testing.assert_close(solution.state, torch.full_like(solution.state, 0.01), rtol=1e-8, atol=0)


def test_a_map_without_a_fixed_point_has_none():
    for size, method in itertools.product(STARTS, ("newton_krylov", "anderson")):
        solution = solve(PointwiseMap(starting(size), MAPS["no fixed point"]), starting(size), method)
        assert solution.status[0] in (Status.NOT_CONVERGED, Status.BROKE_DOWN, Status.NON_FINITE)


def test_starts_and_maps_that_are_not_finite_are_named():
    nan = torch.full((1, 1, 4), torch.nan, dtype=torch.float64)
    assert solve(PointwiseMap(nan, MAPS["affine"]), nan).status == [Status.NON_FINITE]
    assert solve(PointwiseMap(starting(1.0), MAPS["not a number"]), starting(1.0)).status == [Status.NON_FINITE]


def small():
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return matrix, linear_map(matrix, torch.zeros(6, dtype=torch.float64), torch.zeros(2, 1, 6, dtype=torch.float64))


@pytest.mark.parametrize("k", [1, 4, 5, 6])
def test_a_small_map_has_as_many_eigenvalues_as_dimensions(k):
    matrix, system = small()
    expected = torch.linalg.eigvals(matrix).abs().sort(descending=True).values[:k]
    for values in (leading_eigenvalues(system, system.initial, k), arnoldi_eigenvalues(system, system.initial, k)):
        torch.testing.assert_close(values.abs(), expected.expand(2, k))
    singular = leading_singular_values(system, system.initial, k)
    torch.testing.assert_close(singular, torch.linalg.svdvals(matrix)[:k].expand(2, k))


@pytest.mark.parametrize("k", [0, -1, 7, 50])
def test_more_than_there_are_is_refused(k):
    _, system = small()
    for measure in (
        lambda: leading_eigenvalues(system, system.initial, k),
        lambda: leading_singular_values(system, system.initial, k),
        lambda: lyapunov_exponents(system, system.initial, 10, k),
    ):
        with pytest.raises(LoopprobeError, match=f"k \\({k}\\) must be from 1 to 6"):
            measure()


def test_a_wide_map_agrees_with_its_whole_jacobian():
    matrix = torch.randn(40, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    system = linear_map(matrix, torch.zeros(40, dtype=torch.float64), torch.zeros(1, 1, 40, dtype=torch.float64))
    expected = torch.linalg.eigvals(matrix).abs().sort(descending=True).values
    for k in (3, 39, 40):
        values = leading_eigenvalues(system, system.initial, k)[0].abs()
        torch.testing.assert_close(values, expected[:k], atol=1e-6, rtol=0)


def test_exponents_need_a_step_and_finite_states():
    _, system = small()
    with pytest.raises(LoopprobeError, match=r"n_steps \(0\)"):
        lyapunov_exponents(system, system.initial, 0)
    with pytest.raises(LoopprobeError, match="not finite"):
        lyapunov_exponents(system, system.initial + torch.nan, 10)
    with pytest.raises(LoopprobeError, match="float16"):
        leading_eigenvalues(system, system.initial.half(), 2)
    exponents, growth = lyapunov_exponents(system, system.initial, 1, k=6)
    assert growth.shape == (1, 2, 6)
    assert exponents.isfinite().all()


@pytest.mark.usefixtures("unchecked")
def test_spectra_by_position_need_the_loop_of_a_model(model, prompts):
    _, system = small()
    for measure in (position_spectra, diagonal_blocks):
        with pytest.raises(LoopprobeError, match="needs a LoopMap"):
            measure(system, system.initial)
    loop = LoopMap.of(model, prompts)
    assert position_spectra(loop, loop.initial).shape == (8, 12, 16)
