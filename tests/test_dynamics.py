import math

import numpy as np
import pytest
import torch
from conftest import make_model

from loopprobe.dynamics.limits import (
    Limit,
    calibrate,
    classify,
    confusion,
    controls,
    features,
    run_late,
)  # fmt: skip
from loopprobe.dynamics.maps import LoopMap, PointwiseMap, contraction, linear_map, logistic, rotation
from loopprobe.dynamics.spectrum import (
    diagonal_blocks,
    jvp,
    leading_eigenvalues,
    leading_singular_values,
    lyapunov_exponents,
    position_spectra,
    vjp,
)  # fmt: skip


def start(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_control_is_classified_as_what_it_is(dtype):
    thresholds = calibrate(dtype)
    for limit, period, system in controls(7, dtype):
        found, periods = classify(features(run_late(system, 1500)[0]), thresholds)
        assert found.eq(limit).all(), f"{limit.words}: {found.unique()}"
        assert periods.eq(period).all()


def test_the_error_rate_of_the_classifier_is_reported_by_true_type():
    table = confusion(calibrate())
    np.testing.assert_allclose(table.sum(1), 1)
    assert table.diagonal().min() > 0.95


def test_a_slow_contraction_is_not_yet_at_its_point():
    system = contraction(0.999, start(4, 2, 8).float(), torch.Generator().manual_seed(0))
    early, _ = classify(features(run_late(system, 300)[0]), calibrate())
    late, _ = classify(features(run_late(system, 30_000)[0]), calibrate())
    assert (early != Limit.FIXED).all()
    assert (late == Limit.FIXED).all()


def test_the_late_run_is_the_end_of_the_run():
    system = rotation(0.1, start(2, 3, 4))
    states, read = run_late(system, 200)
    z = system.initial
    for _ in range(200):
        z = system.step(z)
    assert torch.equal(states[-1], z)
    assert torch.equal(read[-1], z[..., 0])
    with pytest.raises(ValueError, match="too short"):
        features(states[:50])


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
    arnoldi = leading_eigenvalues(system, z, k=4)
    assert (arnoldi[0][:, None] - found[None]).abs().amin(1).max() < 1e-6
    by_position = position_spectra(system, z).abs()
    assert (by_position.diff(dim=-1) <= 1e-12).all()


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
