import math

import numpy as np
import pytest
import torch
from conftest import make_model

from loopprobe.dynamics.maps import LoopMap, PointwiseMap, contraction, linear_map, logistic, rotation
from loopprobe.dynamics.solve import Status, distinct, solve
from loopprobe.dynamics.spectrum import (
    arnoldi_eigenvalues,
    diagonal_blocks,
    jvp,
    leading_eigenvalues,
    leading_singular_values,
    lyapunov_exponents,
    position_spectra,
    vjp,
)  # fmt: skip
from loopprobe.dynamics.trail import run_late
from loopprobe.dynamics.trajectory import contraction_rate, decimal_places, follow, settled_after
from loopprobe.errors import LoopprobeError


def start(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted():
    """A matrix with two complex pairs and real eigenvalues, not normal."""
    turn = lambda a: torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])  # noqa: E731
    blocks = [r * turn(a) for r, a in ((0.95, 0.7), (0.8, 2.0))]
    diagonal = torch.block_diag(*blocks, torch.diag(torch.tensor([0.9, -0.5, 0.3, 0.1, 0.05, 0.0]))).double()
    basis = start(10, 10, seed=1)
    expected = torch.linalg.eigvals(diagonal)
    return basis @ diagonal @ torch.linalg.inv(basis), expected[expected.abs().argsort(descending=True)]


def test_planted_complex_eigenvalues_are_recovered():
    matrix, expected = planted()
    system = linear_map(matrix, torch.zeros(10, dtype=torch.float64), start(2, 1, 10))
    found = leading_eigenvalues(system, system.initial, k=6)
    for row in found:
        distances = (row[:, None] - expected[:6][None]).abs()
        assert distances.amin(0).max() < 1e-6
        assert distances.amin(1).max() < 1e-6
    singular = leading_singular_values(system, system.initial, k=3)
    np.testing.assert_allclose(singular[0], torch.linalg.svdvals(matrix)[:3], rtol=1e-6)


def test_a_block_triangular_map_of_two_positions_has_the_spectrum_of_its_blocks():
    first, _ = planted()
    second = 0.5 * start(10, 10, seed=2) / math.sqrt(10)
    between = start(10, 10, seed=3)

    def function(z):
        return torch.stack([z[:, 0] @ first.mT, z[:, 1] @ second.mT + z[:, 0] @ between.mT], dim=1)

    system = PointwiseMap(start(1, 2, 10), function)
    expected = torch.cat([torch.linalg.eigvals(first), torch.linalg.eigvals(second)])
    expected = expected[expected.abs().argsort(descending=True)][:5]
    [found] = leading_eigenvalues(system, system.initial, k=5)
    assert (found[:, None] - expected[None]).abs().amin(0).max() < 1e-6


def test_jacobian_products_are_those_of_the_matrix():
    matrix, _ = planted()
    system = linear_map(matrix, torch.ones(10, dtype=torch.float64), start(2, 3, 10))
    tangent = start(2, 3, 10, seed=4)
    torch.testing.assert_close(jvp(system, system.initial, tangent), tangent @ matrix.mT)
    torch.testing.assert_close(vjp(system, system.initial, tangent), tangent @ matrix)


@pytest.mark.parametrize("injection", ["add", "multiply", "none"])
def test_the_spectrum_of_a_loop_is_that_of_its_whole_jacobian_split_by_position(injection, prompts):
    model = make_model(injection=injection)
    system = LoopMap.of(model, prompts).at(slice(0, 2))
    z = 0.5 * start(2, 12, 16)
    blocks = diagonal_blocks(system, z, chunk=5)
    whole = torch.autograd.functional.jacobian(lambda state: model.step(state, system.e[:1]), z[:1])[0, :, :, 0]
    for position in range(12):
        torch.testing.assert_close(blocks[0, position], whole[position, :, position], atol=1e-12, rtol=0)
        assert whole[position, :, position + 1 :].eq(0).all(), "causal: later tokens do not matter"
    every = torch.linalg.eigvals(whole.reshape(192, 192))
    found = position_spectra(system, z)[0].flatten()
    largest = every[every.abs().argsort(descending=True)][:12]
    assert (largest[:, None] - found[None]).abs().amin(1).max() < 1e-6
    for leading in (leading_eigenvalues(system, z, k=4), arnoldi_eigenvalues(system, z, k=4)):
        torch.testing.assert_close(leading[0].abs(), largest[:4].abs(), atol=1e-6, rtol=0)
        assert (leading[0][:, None] - found[None]).abs().amin(1).max() < 1e-6
    by_position = position_spectra(system, z).abs()
    assert (by_position.diff(dim=-1) <= 1e-12).all()


@pytest.mark.slow
def test_lyapunov_exponents_of_known_maps():
    chaotic = logistic(torch.tensor([0.3, 0.31, 0.32], dtype=torch.float64)[:, None, None], r=4.0)
    exponents, _ = lyapunov_exponents(chaotic, chaotic.initial, 4000, k=1)
    np.testing.assert_allclose(exponents[:, 0], math.log(2), atol=0.02)
    shrinking = contraction(0.9, start(2, 1, 4), torch.Generator().manual_seed(0))
    exponents, growth = lyapunov_exponents(shrinking, shrinking.initial, 100, k=2)
    np.testing.assert_allclose(exponents, math.log(0.9), atol=1e-6)
    assert growth.shape == (75, 2, 2)
    circle = rotation(0.123, start(1, 1, 2), shrink=0.5)
    exponents, _ = lyapunov_exponents(circle, circle.initial, 400, k=2)
    np.testing.assert_allclose(exponents[0], [0, math.log(0.5)], atol=1e-3)


@pytest.mark.parametrize("method", ["newton_krylov", "anderson"])
def test_the_fixed_point_of_a_linear_map_is_found(method):
    matrix, offset = 0.5 * start(8, 8, seed=5) / math.sqrt(8), start(8, seed=6)
    system = linear_map(matrix, offset, start(3, 1, 8))
    solution = solve(system, system.initial, method)
    expected = torch.linalg.solve(torch.eye(8, dtype=torch.float64) - matrix, offset)
    assert solution.found.all(), solution.status
    torch.testing.assert_close(solution.state, expected.expand(3, 1, 8), atol=1e-8, rtol=0)
    assert (solution.residual < 1e-9).all()
    assert (solution.evaluations > solution.iterations).all()


def test_unstable_fixed_points_are_found_and_counted():
    system = logistic(torch.linspace(0.05, 0.95, 12, dtype=torch.float64)[:, None, None], r=3.9)
    solution = solve(system, system.initial)
    kept = distinct(solution.state[solution.found])
    values = sorted(solution.state[solution.found][kept].flatten().tolist())
    assert np.allclose([v for v in values if abs(v) > 1e-6], [1 - 1 / 3.9])
    late = run_late(system, 500)[0].last
    assert (late[-1].flatten() - (1 - 1 / 3.9)).abs().min() > 1e-6, "the loop itself does not go there"


@pytest.mark.usefixtures("unchecked")
def test_a_search_that_fails_says_so():
    system = PointwiseMap(start(2, 1, 4), lambda z: z + 1)  # no fixed point
    solution = solve(system, system.initial, max_iterations=5)
    assert not solution.found.any()
    assert all(status in (Status.NOT_CONVERGED, Status.BROKE_DOWN) for status in solution.status)
    with pytest.raises(LoopprobeError, match="noise of float32"):
        solve(system, system.initial.float(), tolerance=1e-7)
    with pytest.raises(LoopprobeError, match="'newton'"):
        solve(system, system.initial, "newton")


def test_a_contraction_comes_to_its_end_at_its_rate():
    system = contraction(0.8, start(4, 3, 8), torch.Generator().manual_seed(0))
    far = run_late(system, 500)[0].last[-1]
    moves = follow(system, 60, far)
    assert moves.step.shape == (60, 4, 3)
    assert moves.cosine[0].isnan().all()
    ratio = moves.distance[1:] / moves.distance[:-1]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.8), atol=1e-4, rtol=0)
    rate, low, high = contraction_rate(moves.distance[:, 0, 0].numpy(), floor=1e-5)
    assert rate == pytest.approx(0.8, abs=1e-6)
    assert low <= rate <= high
    after = settled_after(moves.distance.numpy(), 1e-3)
    expected = np.log(1e-3 / moves.distance[0].numpy()) / np.log(0.8)
    np.testing.assert_allclose(after, np.ceil(expected) + 1, atol=1)


def test_what_is_not_reached_is_missing():
    distance = np.array([[1, 1.0], [0.1, 0.01], [1, 0.01], [0.1, 0.01]])
    np.testing.assert_array_equal(settled_after(distance, 0.1), [4, 2])
    np.testing.assert_array_equal(settled_after(distance, 0.05), [np.nan, 2])
    assert all(np.isnan(contraction_rate(np.ones(6), floor=2.0)))
    np.testing.assert_array_equal(decimal_places(np.array([0.01, 0.0])), [2, np.inf])


def test_successive_updates_of_a_rotation_turn_by_its_angle():
    system = rotation(1 / 8, start(2, 1, 2), shrink=0.5)
    late = run_late(system, 300)[0].last[-1]
    moves = follow(PointwiseMap(late, system.function), 10, late)
    np.testing.assert_allclose(moves.cosine[1:], math.cos(2 * math.pi / 8), atol=1e-6)
