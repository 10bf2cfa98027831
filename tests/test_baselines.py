import time

import pytest
import torch

from loopprobe.baselines.closed import least_squares, ridge
from loopprobe.baselines.optimal import optimum
from loopprobe.config import TaskConfig
from loopprobe.tasks import Prompts, held_out

LINEAR, NOISY = TaskConfig(), TaskConfig(name="noisy_linear_regression", noise_std=0.5)


def one_by_one(prompts, solve):
    out = torch.zeros_like(prompts.ys, dtype=torch.float64)
    for i, (xs, ys) in enumerate(zip(prompts.xs.double(), prompts.ys.double(), strict=True)):
        for k in range(1, len(ys)):
            out[i, k] = xs[k] @ solve(xs[:k], ys[:k])
    return out


def test_least_squares_is_that_of_lapack_on_every_prefix():
    prompts = held_out(LINEAR, 5, 8, 4)
    expected = one_by_one(prompts, lambda x, y: torch.linalg.lstsq(x, y[:, None], driver="gelsd").solution[:, 0])
    torch.testing.assert_close(least_squares(prompts), expected, atol=1e-10, rtol=0)


def test_least_squares_of_repeated_inputs_has_least_norm():
    prompts = held_out(LINEAR, 3, 6, 4)
    xs = prompts.xs.clone()
    xs[:, 1:5] = xs[:, :1]
    ys = prompts.ys.clone()
    ys[:, :5] = ys[:, :1]
    x, y = xs[:, 0].double(), ys[:, 0].double()
    expected = y * (xs[:, 5].double() * x).sum(-1) / x.square().sum(-1)
    torch.testing.assert_close(least_squares(Prompts(xs, ys))[:, 5], expected)


def test_least_squares_is_exact_with_enough_examples():
    prompts = held_out(LINEAR, 64, 31, 10)
    error = (least_squares(prompts) - prompts.ys).square() / 10
    assert error[:, 10].median() < 1e-8
    assert error[:, 30].max() < 1e-10
    assert error[:, 5].mean().item() == pytest.approx(0.5, abs=0.15)  # (d - k) / d


def test_ridge_is_its_closed_form():
    prompts = held_out(NOISY, 5, 8, 4)
    eye = torch.eye(4, dtype=torch.float64)
    expected = one_by_one(prompts, lambda x, y: torch.linalg.inv(x.T @ x + 0.25 * eye) @ x.T @ y)
    torch.testing.assert_close(ridge(prompts, 0.25), expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(ridge(prompts, 1e-10)[:, 5:], least_squares(prompts)[:, 5:], atol=1e-5, rtol=1e-5)


def test_ridge_at_the_known_noise_is_optimal():
    prompts = held_out(NOISY, 4000, 8, 4)

    def error(predictions):
        return (predictions - prompts.ys).square()[:, -1].mean().item()

    best = error(ridge(prompts, 0.25))
    assert best < min(error(ridge(prompts, strength)) for strength in (0.01, 0.05, 1.5, 4))
    assert best < error(least_squares(prompts))


def test_the_optimum_knows_the_noise():
    prompts = held_out(NOISY, 3, 6, 4)
    assert optimum(prompts, LINEAR)[0] == "least squares"
    name, predictions = optimum(prompts, NOISY)
    assert name == "ridge (0.5²)"
    assert torch.equal(predictions, ridge(prompts, 0.25))


def test_all_prefixes_of_many_prompts_take_seconds():
    started = time.monotonic()
    least_squares(held_out(LINEAR, 1280, 41, 10))
    assert time.monotonic() - started < 20
