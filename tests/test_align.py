import itertools

import numpy as np
import pytest
import torch
from conftest import TINY_CFG, make_model
from torch import nn

from loopprobe.config.schema import TaskConfig
from loopprobe.config.sources import load_config
from loopprobe.errors import LoopprobeError
from loopprobe.probes import align
from loopprobe.reference import algorithms
from loopprobe.reference.algorithms import Problem
from loopprobe.reference.baselines.closed import least_squares, ridge
from loopprobe.show.figures.align import align_figures
from loopprobe.show.tables.algorithms import align_table
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.tasks import Prompts, held_out

LINEAR = TaskConfig()


@pytest.fixture(scope="module")
def problem():
    return Problem.of(held_out(LINEAR, 6, 9, 4))


def last(iterates):
    *_, w = iterates
    return w


def test_a_problem_is_that_of_each_prefix(problem):
    prompts = held_out(LINEAR, 6, 9, 4)
    xs, ys = prompts.xs.double(), prompts.ys.double()
    torch.testing.assert_close(problem.second[:, 5], xs[:, :5].mT @ xs[:, :5] / 5)
    torch.testing.assert_close(problem.first[:, 5], (xs[:, :5].mT @ ys[:, :5, None] / 5).squeeze(-1))
    w = torch.ones_like(problem.first)
    leaf = w[0, 5].clone().requires_grad_()
    (0.5 * (xs[0, :5] @ leaf - ys[0, :5]).square().mean()).backward()
    torch.testing.assert_close(problem.gradient(w)[0, 5], leaf.grad)


@pytest.mark.slow
@pytest.mark.parametrize(
    "iterates",
    [
        lambda p: algorithms.newton(p, 60),
        lambda p: algorithms.conjugate_gradients(p, 12),
        lambda p: algorithms.gradient_descent(p, 200_000, algorithms.best_rate(p)),
    ],
    ids=["newton", "conjugate gradients", "gradient descent"],
)
def test_algorithms_end_at_least_squares_for_every_prefix(problem, iterates):
    expected = least_squares(held_out(LINEAR, 6, 9, 4))
    found = problem.predict(last(iterates(problem)))
    well = [0, 1, 2, 6, 7, 8]  # as many points as dimensions are too ill-conditioned for first-order methods
    torch.testing.assert_close(found[:, well], expected[:, well], atol=1e-5, rtol=1e-5)


def test_newton_doubles_the_correct_digits(problem):
    exact = torch.linalg.pinv(problem.second) @ problem.first[..., None]
    errors = [(w - exact[..., 0])[:, 8].norm(dim=-1).max().item() for w in algorithms.newton(problem, 40)]
    small = [e for e in errors if 1e-9 < e < 1e-2]
    assert any(after < 10 * before**1.8 for before, after in itertools.pairwise(small))


def test_conjugate_gradients_need_as_many_steps_as_dimensions(problem):
    *_, before, after = algorithms.conjugate_gradients(problem, 4)
    exact = (torch.linalg.pinv(problem.second) @ problem.first[..., None]).squeeze(-1)
    torch.testing.assert_close(after[:, 6:], exact[:, 6:], atol=1e-6, rtol=1e-6)
    assert (before - exact)[:, 6:].abs().max() > 1e-3


def test_momentum_and_preconditioning_contain_gradient_descent(problem):
    plain = list(algorithms.gradient_descent(problem, 7, 0.05))
    for other in (
        algorithms.momentum(problem, 7, 0.05, 0.0),
        algorithms.preconditioned(problem, 7, 0.05 * torch.eye(4).double()),
    ):
        torch.testing.assert_close(torch.stack(list(other)), torch.stack(plain))


def test_the_ridge_path_is_ridge(problem):
    prompts = held_out(LINEAR, 6, 9, 4)
    path = algorithms.predictions(problem, algorithms.ridge_path(problem, torch.tensor([3.0, 0.1]).double()))
    torch.testing.assert_close(path[1], ridge(prompts, 3.0))
    torch.testing.assert_close(path[2], ridge(prompts, 0.1))


class LinearAttention(nn.Module):
    """A looped layer of linear attention that is gradient descent (von Oswald et al., proposition 1).

    A token is (x, y − prediction). With queries and keys that read x and values that read the residual, every loop
    takes rate · mean over the examples of residual · (x · x') from each residual. Each prefix is a prompt of its own.
    """

    def __init__(self, n_dims, rate):
        super().__init__()
        read_x = torch.cat([torch.eye(n_dims), torch.zeros(n_dims, 1)], dim=1).double()
        self.W_Q, self.W_K = nn.Parameter(read_x), nn.Parameter(read_x.clone())
        self.W_V = nn.Parameter(torch.eye(n_dims + 1)[-1:].double())
        self.W_O = nn.Parameter(-rate * torch.eye(n_dims + 1)[:, -1:].double())

    def forward(self, xs, ys, n_loops):
        return torch.stack([self.one_prefix(xs[:, : k + 1], ys[:, : k + 1], n_loops) for k in range(ys.shape[1])], -1)

    def one_prefix(self, xs, ys, n_loops):
        hidden = torch.cat([ys[:, :-1], torch.zeros_like(ys[:, :1])], dim=1)
        tokens = torch.cat([xs, hidden[..., None]], dim=-1).double()
        answers = []
        for _ in range(n_loops):
            q, k, v = tokens @ self.W_Q.T, tokens[:, :-1] @ self.W_K.T, tokens[:, :-1] @ self.W_V.T
            tokens = tokens + (q @ k.mT) @ v @ self.W_O.T / max(1, k.shape[1])
            answers.append(-tokens[:, -1, -1])
        return torch.stack(answers)


def test_a_hand_built_model_is_identified_as_gradient_descent_with_its_step():
    model = LinearAttention(4, rate=0.07)
    prompts, fitting = held_out(LINEAR, 24, 9, 4), held_out(LINEAR, 24, 9, 4, seed=1)
    data = align.align(lambda xs, ys: model(xs, ys, 8), prompts, fitting, steps=12)
    assert data.attrs["identified"] == "gradient descent, fitted step"
    assert "gradient descent: step 0.07;" in data.attrs["constants"]
    found = data.sel(algorithm="gradient descent, fitted step")
    assert found.explained.item() > 0.999999
    assert list(found.best_step.values) == list(range(1, 9))
    assert found.steps_per_loop.item() == pytest.approx(1)
    np.testing.assert_allclose(found.best_error_similarity, 1, atol=1e-6)
    np.testing.assert_allclose(found.best_weight_similarity, 1, atol=1e-6)
    np.testing.assert_allclose(found.best_distance, 0, atol=1e-10)
    for other in ("Newton's iteration", "conjugate gradients", "least squares, scaled from 0 to 1"):
        assert data.sel(algorithm=other).explained_high.item() < 0.999


def test_two_steps_a_loop_are_counted():
    model = LinearAttention(4, rate=0.07)
    prompts, fitting = held_out(LINEAR, 16, 9, 4), held_out(LINEAR, 16, 9, 4, seed=1)
    data = align.align(lambda xs, ys: model(xs, ys, 12)[1::2], prompts, fitting, steps=12)
    best = data.sel(algorithm="conjugate gradients")
    assert best.steps_per_loop_low.item() <= best.steps_per_loop.item() <= best.steps_per_loop_high.item()
    # gradient descent is fitted to one step a loop, which two steps are not
    assert data.sel(algorithm="gradient descent, fitted step").explained.item() < 0.9999


def test_a_random_model_is_none_of_them():
    torch.manual_seed(0)
    model = make_model(torch.float64, n_loops=6)
    prompts, fitting = (held_out(LINEAR, 20, 6, 3, seed=seed) for seed in (0, 1))
    data = align.align(lambda xs, ys: model(xs.double(), ys.double(), 6), prompts, fitting, steps=8)
    assert data.attrs["identified"] == "none"
    assert data.explained.max().item() < 0.5
    assert data.best_weight_similarity.mean("loop").max().item() < 0.7


def test_induced_weights_are_the_derivative_at_the_query(model):
    prompts = held_out(LINEAR, 5, 6, 3)
    weights = align.induced_weights(lambda xs, ys: model(xs.double(), ys.double(), 3), prompts, batch=2)
    step = 1e-6
    xs = prompts.xs.double()
    for dim in range(3):
        ahead, behind = xs.clone(), xs.clone()
        ahead[:, -1, dim] += step
        behind[:, -1, dim] -= step
        with torch.no_grad():
            slope = (model(ahead, prompts.ys.double(), 3) - model(behind, prompts.ys.double(), 3))[..., -1] / (2 * step)
        torch.testing.assert_close(weights[..., dim], slope, atol=1e-6, rtol=1e-4)


def test_the_probe_stands_beside_an_untrained_model_and_reads_layers(checkpoint):
    config = align.AlignConfig(steps=5, fit_prompts=16)
    looped = align.run(checkpoint, checkpoint.held_out(12), config)
    assert looped.sizes["loop"] == 4
    assert "null_explained" in looped
    assert "null_error_similarity" not in looped
    fields = {"d_model": 16, "n_heads": 2, "n_dims": 3, "n_points": 6, "n_layers": 3, "n_loops": 1}
    overrides = [f"model.{name}={value}" for name, value in fields.items()]
    config_of = load_config(overrides=[*overrides, "train.dims=3", "train.points=6", "train.loop_window=1"])
    ordinary = Checkpoint(config_of, make_model(torch.float32, n_layers=3, n_loops=1), name="ordinary")
    layers = align.run(ordinary, ordinary.held_out(12), config)
    assert layers.sizes["loop"] == 3
    assert layers.attrs["iteration"] == "layer"
    with pytest.raises(LoopprobeError, match="ordinary is not looped"):
        align.check(ordinary, align.AlignConfig(loops=5), ordinary.held_out(2))
    for data in (looped, layers):
        maps, best = align_figures(data).values()
        assert len(maps.data) == 2 * data.sizes["algorithm"]
        assert best.data
        assert len(align_table(data).rows) == data.sizes["algorithm"]
    assert TINY_CFG.model.n_loops == 4


def test_an_algorithm_that_diverges_explains_nothing_and_says_so():
    """A step that fits small inputs is too long for large ones: with it, gradient descent diverges there."""
    fitting, prompts = held_out(LINEAR, 40, 9, 4), held_out(LINEAR, 40, 9, 4, seed=1, shift="inputs_triple")

    def model(xs, ys):
        problem = Problem.of(Prompts(xs, ys))
        rate = 0.4 if problem.second[:, -1].diagonal(dim1=-2, dim2=-1).mean() < 3 else 0.04
        return algorithms.predictions(problem, list(algorithms.gradient_descent(problem, 12, rate)))[1:].float()

    data = align.align(model, prompts, fitting, steps=40).assign_coords(model="m")
    data = data.assign(null_explained=data.explained).assign_attrs(iteration="loop")
    at = data.sel(algorithm="gradient descent, fitted step")
    assert at[["explained", "explained_low", "explained_high", "gain"]].isnull().to_array().all()
    assert data.explained.sel(algorithm="Newton's iteration") > 0
    cells = dict(zip(align_table(data).columns[0].cells, align_table(data).columns[1].cells, strict=True))
    assert cells["gradient descent, fitted step"] == "diverges"
    assert cells["Newton's iteration"] != "diverges"
