import math

import numpy as np
import pytest
import torch
from conftest import TINY_CFG, make_model

from loopprobe.probes import attention as probe
from loopprobe.probes.loops import LoopsConfig
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.tasks import Prompts, held_out


def even(n):
    return torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]


def test_measures_of_patterns_with_known_answers():
    n = 62
    first_only, own = torch.zeros(n, n), torch.eye(n)
    first_only[:, 0] = 1
    assert probe.mixing_score(even(n)) == pytest.approx(1, abs=1e-6)
    assert probe.mixing_score(own) == 0
    assert probe.mixing_score(first_only) == 0
    assert probe.column_sum_concentration(own) == pytest.approx(0, abs=1e-6)
    assert probe.column_sum_concentration(first_only) == pytest.approx(1, abs=1e-6)
    assert probe.column_sum_concentration(even(n)) == pytest.approx(0.098, abs=5e-4)  # as its docstring says
    assert probe.sink_rate(torch.stack([first_only, own, even(n)])) == pytest.approx(1 / 3)


def test_matrix_entropy_counts_directions():
    one_line = torch.outer(torch.arange(1.0, 6), torch.arange(1.0, 4))
    assert probe.matrix_entropy(one_line) == pytest.approx(0, abs=1e-5)
    assert probe.matrix_entropy(torch.eye(5, 3)) == pytest.approx(1, abs=1e-6)
    two_of_three = torch.eye(5, 3) * torch.tensor([1.0, 1, 0])
    assert probe.matrix_entropy(two_of_three) == pytest.approx(math.log(2) / math.log(3), abs=1e-6)


def test_the_mass_of_the_query_goes_where_it_is_put():
    xs = torch.tensor([[[1.0, 0], [0, 5], [2, 0], [0.1, 1]]])  # the second example is nearest to the query
    pattern = torch.zeros(1, 8, 8)
    pattern[0, 6] = torch.tensor([0.05, 0.1, 0.15, 0.2, 0.0, 0.25, 0.25, 0.0])
    prompts = Prompts(xs, torch.zeros(1, 4))
    masses = dict(zip(probe.target_groups(prompts), probe.query_mass(pattern, prompts)[:, 0].tolist(), strict=True))
    expected = {"itself": 0.25, "labels": 0.55, "inputs": 0.2, "nearest input": 0.15, "nearest label": 0.2}
    assert masses == pytest.approx(expected | {"first token": 0.05})


def test_a_model_without_keys_attends_to_all_alike():
    model = make_model(torch.float32)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[:32] = 0  # queries and keys
            block.attn.qkv.bias[:32] = 0
    checkpoint = Checkpoint(TINY_CFG, model, name="runs/even")
    data = probe.run(checkpoint, held_out(TINY_CFG.task, 70, 6, 3), LoopsConfig(loops=3))
    np.testing.assert_allclose(data.mixing_score, 1, atol=1e-6)
    masses = data.mass.transpose(..., "target").values
    np.testing.assert_allclose(masses, np.broadcast_to(data.uniform, masses.shape), atol=1e-6)
    np.testing.assert_allclose(data.pattern.isel(loop=0, layer=0, head=0), even(12), atol=1e-6)
    np.testing.assert_allclose(data.change.isel(loop=slice(1, None)), 0, atol=1e-5)
    np.testing.assert_allclose(data.distance, 0, atol=1e-5)


def test_every_number_is_that_of_the_cache(checkpoint):
    batch = held_out(TINY_CFG.task, 70, 6, 3)
    data = probe.run(checkpoint, batch, LoopsConfig(loops=4))
    _, cache = checkpoint.model.run_with_cache(batch.xs, batch.ys, 4, names="pattern")
    stack = cache.stack("pattern", 1).numpy()
    np.testing.assert_allclose(data.pattern.sel(layer=1), stack.mean(1), atol=1e-6)
    steps = np.linalg.norm(stack[1:] - stack[:-1], axis=(-2, -1)).mean(1)
    assert data.change.isel(loop=0).isnull().all()
    np.testing.assert_allclose(data.change.sel(layer=1)[1:], steps, rtol=1e-4)
    for i in range(3):  # the loop before is one of the others
        np.testing.assert_allclose(data.distance.sel(layer=1)[:, i, i + 1], steps[i], rtol=1e-4)
    np.testing.assert_allclose(data.distance, data.distance.transpose("layer", "head", "other_loop", "loop"), rtol=1e-5)
    total = data.mass.sel(target=["itself", "labels", "inputs"]).sum("target")
    np.testing.assert_allclose(total, 1, atol=1e-5)
    assert (data.mass_low <= data.mass + 1e-7).all()


def test_an_ordinary_transformer_has_one_loop():
    checkpoint = Checkpoint(TINY_CFG, make_model(torch.float32, n_loops=1), name="runs/ordinary")
    data = probe.run(checkpoint, held_out(TINY_CFG.task, 5, 6, 3), LoopsConfig())
    assert data.sizes["loop"] == 1
    assert data.change.isnull().all()
