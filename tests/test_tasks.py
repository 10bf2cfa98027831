import hashlib
import math
import re

import numpy as np
import pytest
import torch

from loopprobe.config.schema import TaskConfig
from loopprobe.errors import LoopprobeError
from loopprobe.tasks import held_out, normal, sample

LINEAR = TaskConfig()
NOISY = TaskConfig(name="noisy_linear_regression", noise_std=0.5)


def test_labels_are_linear_in_the_inputs():
    prompts = sample(LINEAR, 16, 31, 10, torch.Generator().manual_seed(0))
    xs, ys = prompts.xs.double(), prompts.ys.double()
    weights = torch.linalg.lstsq(xs[:, :20], ys[:, :20, None]).solution
    torch.testing.assert_close((xs @ weights).squeeze(-1), ys, atol=1e-5, rtol=1e-5)


def test_noise_has_its_standard_deviation():
    clean = sample(LINEAR, 2000, 10, 4, torch.Generator().manual_seed(0))
    noisy = sample(NOISY, 2000, 10, 4, torch.Generator().manual_seed(0))
    assert torch.equal(clean.xs, noisy.xs)
    noise = (noisy.ys - clean.ys).flatten()
    assert abs(noise.std().item() - 0.5) < 4 * 0.5 / math.sqrt(2 * len(noise))


def test_labels_have_variance_n_dims():
    prompts = sample(LINEAR, 4000, 5, 10, torch.Generator().manual_seed(1))
    assert prompts.ys.square().mean().item() / 10 == pytest.approx(1, abs=0.05)


def test_inactive_dimensions_are_zero():
    prompts = sample(LINEAR, 4, 5, 10, torch.Generator().manual_seed(0), active_dims=3)
    assert prompts.xs[..., 3:].eq(0).all()
    assert prompts.xs[..., :3].ne(0).all()


def test_the_generator_alone_determines_the_prompts():
    torch.manual_seed(1)
    a = sample(LINEAR, 4, 5, 3, torch.Generator().manual_seed(7))
    torch.manual_seed(2)
    b = sample(LINEAR, 4, 5, 3, torch.Generator().manual_seed(7))
    c = sample(LINEAR, 4, 5, 3, torch.Generator().manual_seed(8))
    assert torch.equal(a.xs, b.xs)
    assert torch.equal(a.ys, b.ys)
    assert not torch.equal(a.xs, c.xs)


def test_normal_numbers_are_normal():
    scipy_free = normal((200_000,), torch.Generator().manual_seed(0))
    for moment, expected, error in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert scipy_free.pow(moment).mean().item() == pytest.approx(expected, abs=4 * math.sqrt(error / 200_000))


def test_held_out_prompts_are_the_same_on_every_machine():
    prompts = held_out(LINEAR, 64, 31, 10, seed=0)
    rounded = np.round(np.concatenate([prompts.xs.numpy().ravel(), prompts.ys.numpy().ravel()]).astype(float), 4) + 0.0
    assert hashlib.sha256(rounded.tobytes()).hexdigest()[:16] == "a73de754a77c27fb"
    assert torch.equal(held_out(LINEAR, 16, 31, 10, seed=0).xs, prompts.xs[:16])
    assert not torch.equal(held_out(LINEAR, 64, 31, 10, seed=1).xs, prompts.xs)


def test_held_out_prompts_are_not_those_of_training():
    held = held_out(LINEAR, 4, 5, 3, seed=0)
    trained = sample(LINEAR, 4, 5, 3, torch.Generator().manual_seed(0))
    assert not torch.equal(held.xs, trained.xs)


def test_bad_requests():
    with pytest.raises(LoopprobeError, match=r"prompts \(0\)"):
        held_out(LINEAR, 0, 5, 3)
    with pytest.raises(LoopprobeError, match=r"seed \(-1\)"):
        held_out(LINEAR, 1, 5, 3, seed=-1)


@pytest.mark.parametrize(
    ("sizes", "active", "words"),
    [
        ((2, 0, 3), None, "n_points (0) must be at least 1"),
        ((2, 5, 0), None, "n_dims (0) must be at least 1"),
        ((2, 5, -1), None, "n_dims (-1) must be at least 1"),
        ((2, 5, 3), 0, "active_dims (0) must be from 1 to n_dims (3)"),
        ((2, 5, 3), 4, "active_dims (4) must be from 1 to n_dims (3)"),
    ],
)
def test_prompts_of_no_points_or_dimensions_are_refused(sizes, active, words):
    with pytest.raises(LoopprobeError, match=re.escape(words)):
        held_out(LINEAR, *sizes, active_dims=active)
    with pytest.raises(LoopprobeError, match=re.escape(words)):
        sample(LINEAR, *sizes, torch.Generator(), active_dims=active)


SPARSE = TaskConfig(name="sparse_linear_regression", sparsity=2)
TREE = TaskConfig(name="decision_tree", depth=3)
RELU = TaskConfig(name="relu_network", hidden=20)


@pytest.mark.parametrize("task", [SPARSE, TREE, RELU, TaskConfig(labels="sign"), LINEAR], ids=lambda task: task.short)
@pytest.mark.parametrize("active", [1, 4, 6])
def test_the_zero_predictor_has_an_error_of_one_in_every_class(task, active):
    prompts = sample(task, 6000, 3, 6, torch.Generator().manual_seed(0), active_dims=active)
    assert prompts.errors(torch.zeros_like(prompts.ys)).mean().item() == pytest.approx(1, abs=0.1)


def test_a_sparse_function_has_as_many_weights_as_it_says():
    prompts = sample(SPARSE, 200, 5, 6, torch.Generator().manual_seed(0), active_dims=4)
    assert (prompts.weights != 0).sum(1).eq(2).all()
    assert prompts.weights[:, 4:].eq(0).all()
    assert (prompts.weights != 0).any(0)[:4].all()
    torch.testing.assert_close(prompts.ys, (prompts.xs @ prompts.weights[..., None]).squeeze(-1), atol=1e-5, rtol=1e-5)


def test_a_tree_asks_for_signs_only():
    prompts = sample(TREE, 50, 40, 3, torch.Generator().manual_seed(0))
    for xs, ys in zip(*prompts, strict=True):
        assert len(ys.unique()) <= 2**3
        for signs in (xs > 0).unique(dim=0):
            assert len(ys[((xs > 0) == signs).all(1)].unique()) == 1
    same = torch.Generator().manual_seed(0)
    deeper = sample(TaskConfig(name="decision_tree", depth=1), 50, 40, 3, same)
    assert all(len(ys.unique()) == 2 for ys in deeper.ys)


def test_a_relu_network_is_homogeneous():
    xs, numbers = (
        normal((4, 3, 5), torch.Generator().manual_seed(0)),
        normal((4, 120), torch.Generator().manual_seed(1)),
    )
    once, _ = RELU.rules.label(xs, numbers, 5)
    twice, _ = RELU.rules.label(2 * xs, numbers, 5)
    back, _ = RELU.rules.label(-xs, numbers, 5)
    torch.testing.assert_close(twice, 2 * once)
    assert (once + back).abs().min() > 1e-3  # it is not linear


def test_signs_are_those_of_the_labels():
    real = sample(LINEAR, 20, 5, 3, torch.Generator().manual_seed(0))
    signs = sample(TaskConfig(labels="sign"), 20, 5, 3, torch.Generator().manual_seed(0))
    assert torch.equal(signs.ys, real.ys.sign())


def test_a_field_of_another_task_is_an_error():
    with pytest.raises(LoopprobeError, match=r"depth \(2\) is not a field of task linear_regression.*decision_tree"):
        TaskConfig(depth=2)
    assert TREE.short == "dt-depth3"
    assert TaskConfig(name="sparse_linear_regression", labels="sign").short == "slr-sign"
