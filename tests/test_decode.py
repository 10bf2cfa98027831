import numpy as np
import pytest
import torch
from conftest import make_model

from loopprobe.config.schema import TaskConfig
from loopprobe.config.sources import load_config
from loopprobe.errors import LoopprobeError
from loopprobe.probes import causal, decode
from loopprobe.probes.decoders import NETWORKS, targets_of, train_network, with_ones
from loopprobe.probes.ridge import Ridge
from loopprobe.reference.algorithms import Problem
from loopprobe.show.figures.decode import decode_figures
from loopprobe.show.tables.algorithms import decode_table
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.tasks import held_out

LINEAR = TaskConfig()


def score(maps, states, target):
    read = torch.nn.functional.pad(states.double(), (0, 1), value=1.0) @ maps
    return (1 - (read - target).square().sum() / (target - target.mean(0)).square().sum()).item()


def test_targets_are_those_of_the_examples_that_a_token_has_seen():
    prompts = held_out(LINEAR, 4, 6, 3)
    xs, ys = prompts.xs.double(), prompts.ys.double()
    targets = targets_of(prompts, [1, 3])
    assert targets["XᵀY"].shape == (1, 4, 11, 3)
    for token, seen in ((6, 3), (7, 4), (10, 5)):
        torch.testing.assert_close(targets["XᵀY"][0, :, token], (xs[:, :seen].mT @ ys[:, :seen, None])[..., 0] / seen)
    exact = torch.linalg.lstsq(xs[:, :5], ys[:, :5, None]).solution[..., 0]
    torch.testing.assert_close(targets["w, least squares"][0, :, 10], exact, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(targets["w, true"][0, :, 4], prompts.weights.double())
    torch.testing.assert_close(targets["prediction, least squares"][0, :, 10, 0], (exact * xs[:, 5]).sum(-1))
    torch.testing.assert_close(targets["label before"][0, :, 7, 0], ys[:, 2])
    problem = Problem.of(prompts)
    from loopprobe.reference import algorithms

    *_, third = algorithms.gradient_descent(problem, 3, algorithms.best_rate(problem))
    torch.testing.assert_close(targets["w, gradient descent"][1, :, 10], third[:, 5])


def test_the_control_has_weights_of_one():
    ones = with_ones(held_out(LINEAR, 4, 6, 3))
    torch.testing.assert_close(ones.ys, ones.xs.sum(-1))
    assert ones.weights.eq(1).all()


def planted(n, seed, width=3, noise=0.0):
    """States of 2 iterations and 5 tokens; the target stands linearly in token 2 of iteration 1, and nowhere else."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(2, n, 5, 16, generator=generator)
    target = torch.randn(n, width, generator=generator).double()
    code = torch.randn(width, 16, generator=torch.Generator().manual_seed(99))
    states[1, :, 2] = noise * states[1, :, 2] + (target.float() @ code)
    return states, target


def test_ridge_recovers_a_planted_code_and_finds_nothing_in_noise():
    states, target = planted(400, 0, noise=0.1)
    fit = Ridge(1e-3)
    for part, goal in zip(states.split(100, dim=1), target.split(100), strict=True):
        fit.add(part, {"code": goal[None, :, None].expand(1, -1, 5, -1)})
    maps = fit.solve()["code"]
    other, wanted = planted(400, 1, noise=0.1)
    assert score(maps[1, 2], other[1, :, 2], wanted) > 0.95
    for iteration, token in ((0, 2), (1, 0), (1, 4)):
        assert score(maps[iteration, token], other[iteration, :, token], wanted) < 0.05
    torch.testing.assert_close(fit.means("code")[0, 0], target.mean(0))


def test_ridge_is_its_closed_form():
    states, target = planted(50, 0, noise=1.0)
    fit = Ridge(0.1)
    fit.add(states, {"code": target[None, :, None].expand(1, -1, 5, -1)})
    x = states[1, :, 2].double()
    centred, goal = x - x.mean(0), target - target.mean(0)
    penalty = 0.1 * centred.square().sum(0).mean()
    expected = torch.linalg.solve(centred.T @ centred + penalty * torch.eye(16), centred.T @ goal)
    torch.testing.assert_close(fit.solve()["code"][1, 2, :-1], expected)


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_recover_a_planted_code_and_find_nothing_in_noise(kind):
    states, target = planted(600, 0)
    decoder = train_network(states, target[None], kind, hidden=32, steps=300)
    other, wanted = planted(300, 1)
    read = decoder(other)
    assert score_of(read[1], wanted) > 0.8
    assert score_of(read[0], wanted) < 0.05


def score_of(read, target):
    return (1 - (read - target).square().sum() / (target - target.mean(0)).square().sum()).item()


def test_only_the_network_at_every_token_forms_products_within_a_token():
    def product(n, seed):
        states = torch.randn(1, n, 4, 2, generator=torch.Generator().manual_seed(seed))
        return states, (states[..., 0] * states[..., 1]).sum(-1)[..., None].double()

    states, target = product(1500, 0)
    other, wanted = product(400, 1)
    pooled, each = (train_network(states, target, kind, hidden=64, steps=800)(other)[0] for kind in NETWORKS)
    assert score_of(each, wanted[0]) > 0.8
    assert score_of(pooled, wanted[0]) < 0.6


def test_the_probe_scores_on_other_prompts_than_it_trains_on(checkpoint):
    config = decode.DecodeConfig(train_prompts=200, network_loops=2, network_steps=20)
    data = decode.run(checkpoint, checkpoint.held_out(80), config)
    assert dict(data.r2.sizes) == {"control": 3, "target": 6, "loop": 4, "layer": 2, "position": 11}
    # what a token's own input determines is read from it: the query's prediction is not, by an untrained model
    assert data.r2.sel(control="shuffled").max().item() < 0.25
    assert data.r2.sel(target="w, true", control="all weights one").max().item() < 0.01
    assert data.r2.sel(target="label before", position=0).isnull().all()
    by_hand = 1 - data.network_squared.sum("example") / data.network_spread.sum("example")
    np.testing.assert_allclose(by_hand, data.network_r2.sel(control="none").transpose(*by_hand.dims), rtol=1e-4)
    assert (data.network_r2_low <= data.network_r2_high).all()
    assert data.sizes["after"] == 4 - data.attrs["edited_loop"] + 1
    assert set(decode_figures(data)) == {"decode", "decode-networks", "decode-causal"}
    *of_targets, of_loop = decode_table(data).columns[0].cells
    assert len(of_targets) == 6
    assert of_loop == "number of the loop"


def test_the_label_before_is_read_where_the_model_attends_to_it():
    """The residual stream of a model that copies: the first layer's output at an input is the label before it."""
    prompts = held_out(LINEAR, 300, 6, 3)
    states = torch.randn(1, 300, 11, 8, generator=torch.Generator().manual_seed(0))
    states[0, :, 4, 0] = prompts.ys[:, 1]
    fit = Ridge(1e-3)
    fit.add(states[:, :200], {name: t[:, :200] for name, t in targets_of(prompts, [1]).items()})
    target = targets_of(prompts, [1])["label before"][0, 200:, 4]
    assert score(fit.solve()["label before"][0, 4], states[0, 200:, 4], target) > 0.98


def test_an_ordinary_model_is_decoded_layer_by_layer():
    fields = {"d_model": 16, "n_heads": 2, "n_dims": 3, "n_points": 6, "n_layers": 3, "n_loops": 1}
    overrides = [f"model.{name}={value}" for name, value in fields.items()]
    config_of = load_config(overrides=[*overrides, "train.dims=3", "train.points=6", "train.loop_window=1"])
    ordinary = Checkpoint(config_of, make_model(torch.float32, n_layers=3, n_loops=1), name="ordinary")
    config = decode.DecodeConfig(train_prompts=60, network_loops=2, network_steps=5)
    data = decode.run(ordinary, ordinary.held_out(20), config)
    assert dict(data.r2.sizes)["layer"] == 3
    assert list(data.iteration.values) == [1, 3]
    assert "slope" not in data
    assert "loop_index_r2" not in data
    assert set(decode_figures(data)) == {"decode", "decode-networks"}
    with pytest.raises(LoopprobeError, match="ordinary is not looped"):
        decode.check(ordinary, decode.DecodeConfig(loops=5), ordinary.held_out(2))


def test_the_least_edit_moves_what_is_decoded_as_asked():
    generator = torch.Generator().manual_seed(0)
    code = torch.randn(5 * 8, 3, generator=generator)
    states, shift = torch.randn(4, 5, 8, generator=generator), torch.randn(4, 3, generator=generator)

    def read(x):
        return x.flatten(2) @ code

    edit = causal._least_edit(read, states, shift)
    torch.testing.assert_close(read((states + edit)[None])[0] - read(states[None])[0], shift, atol=1e-4, rtol=1e-4)
    null = edit.flatten(1) - edit.flatten(1) @ code @ torch.linalg.pinv(code)
    assert null.abs().max() < 1e-4  # nothing but what the decoder reads


def test_the_causal_check_follows_the_edit(checkpoint):
    training, prompts = checkpoint.held_out(100, 1), checkpoint.held_out(40)
    maps = torch.randn(8, 11, 17, 1, generator=torch.Generator().manual_seed(0)).double()
    data = causal.causal_check(checkpoint.model, training, prompts, maps, 4)
    assert data.attrs["edited_loop"] == 2
    assert list(data.after.values) == [0, 1, 2]
    at_tokens = data.sel(edit=causal.EDITS[1])
    assert at_tokens.slope.sel(after=0).item() == 0  # tokens before the query reach it in the next loop
    assert at_tokens.slope.sel(after=1).item() != 0
    with torch.no_grad():
        assert not any(hook.fwd_hooks for hook in checkpoint.model.hook_dict.values())
