"""Formulas whose every term is visible: each number below is computed by hand or by a second, independent way."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import TINY_CFG, make_model

from loopprobe.errors import LoopprobeError
from loopprobe.model.selection import LoopChoice
from loopprobe.reference import algorithms
from loopprobe.study.estimates import Group, estimate, intervals, log_median
from loopprobe.study.rules import below
from loopprobe.support.statistics import moving_mean
from loopprobe.tasks import Prompts, held_out
from loopprobe.training.replay import Replay
from loopprobe.training.steps import make_optimizers, train_step


def one_step(**fields):
    """A model after one update, with what the update returned and the predictions before it."""
    cfg = dataclasses.replace(TINY_CFG.train, **fields)
    model, prompts = make_model(torch.float32), held_out(TINY_CFG.task, 8, 6, 3)
    with torch.no_grad():
        before = model(*prompts)
    optimizers = make_optimizers(model, cfg)
    returned = train_step(model, optimizers, prompts, 0, cfg, Replay(torch.device("cpu")))
    return model, prompts, before, returned


def test_a_step_returns_the_squared_error_and_that_at_the_query_in_units_of_the_labels():
    _, prompts, before, (squared, error) = one_step(loop_window=1)
    assert prompts.scale == 3  # E(y²) of linear regression in three dimensions
    expected = (before[-1] - prompts.ys).square()
    torch.testing.assert_close(squared, expected.mean())
    torch.testing.assert_close(error, expected[:, -1].mean() / 3)


@pytest.mark.parametrize("largest", [0.01, 0.0])
def test_gradients_are_clipped_to_their_global_norm_unless_it_is_zero(largest):
    model, *_ = one_step(grad_clip=largest)
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    if largest:
        assert norm == pytest.approx(largest, rel=1e-3)
    else:
        assert norm > 0.1


def test_weight_decay_is_of_the_matrices_under_muon_and_of_all_under_adam():
    model = make_model(torch.float32)

    def decays(optimizer):
        cfg = dataclasses.replace(TINY_CFG.train, optimizer=optimizer, weight_decay=0.1)
        return [group["weight_decay"] for made in make_optimizers(model, cfg) for group in made.param_groups]

    assert decays("muon") == [0.0, 0.1]  # Adam on the rest, Muon on the matrices
    assert decays("adam") == [0.1]


def test_where_neither_prompts_nor_seeds_differ_an_interval_is_its_estimate():
    groups = [Group(np.full((seeds, 20), level), log_median) for seeds, level in ((3, 6.0), (4, 2.0))]
    one = estimate("x", below(1), "ratio", *groups)
    assert (np.exp(one.value), *intervals([one], together=True)[0]) == pytest.approx((3, 3, 3))


def test_a_moving_mean_is_over_the_steps_after_the_window_began():
    values, steps = np.array([1.0, 2.0, 4.0, 8.0, 16.0]), np.array([10, 20, 30, 40, 60])
    np.testing.assert_allclose(moving_mean(values, steps, width=20), [1, 1.5, 3, 6, 16])


@pytest.fixture
def problem():
    """Two inputs of two dimensions whose S is diag(½, 1/200) in the prefix of both."""
    xs = torch.tensor([[[1.0, 0.0], [0.0, 0.1], [1.0, 1.0]]])
    return algorithms.Problem.of(Prompts(xs, torch.tensor([[3.0, 0.2, 0.0]])))


def test_the_best_rate_counts_every_eigenvalue_that_is_not_zero(problem):
    rates = algorithms.best_rate(problem).squeeze().tolist()
    assert rates[1:] == pytest.approx([2 / (1 + 1), 2 / (0.5 + 0.005)])


def test_momentum_is_its_recursion(problem):
    _, first, second, third = (w[0, 2, 0].item() for w in algorithms.momentum(problem, 3, 0.1, 0.5))
    w, velocity, expected = 0.0, 0.0, []
    for _ in range(3):
        velocity = 0.5 * velocity - 0.1 * (0.5 * w - 1.5)  # S w − m along the first dimension
        w += velocity
        expected.append(w)
    assert [first, second, third] == pytest.approx(expected)


def test_a_preconditioner_acts_on_the_gradient_from_the_left(problem):
    matrix = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    first = list(algorithms.preconditioned(problem, 1, matrix))[1][0, 2]
    assert first.tolist() == pytest.approx([0.01, 0])  # P m, with m = (1.5, 0.01)


def test_the_first_loop_after_the_last_was_never_reached():
    LoopChoice([3]).require_reached(4)
    with pytest.raises(LoopprobeError, match="loop 4 was never reached: the longest run had 4 loops, 0 to 3"):
        LoopChoice([4]).require_reached(4)
