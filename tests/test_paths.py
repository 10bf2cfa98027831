import numpy as np
import pytest
import torch
from conftest import TINY_CFG, make_model

from loopprobe.dynamics.limits import Limit
from loopprobe.errors import LoopprobeError
from loopprobe.model.interventions import add, edited
from loopprobe.probes import paths, recover
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.tasks import held_out


@pytest.fixture
def batch():
    return held_out(TINY_CFG.task, 70, 6, 3)


def test_a_push_is_the_state_with_a_direction_added(checkpoint, batch):
    config = recover.RecoverConfig(after=3, loops=4, sizes=(0.5,), positions=(2, 10))
    data = recover.run(checkpoint, batch, config)
    model = checkpoint.model
    predictions, cache = model.run_with_cache(batch.xs, batch.ys, 7, names="hook_z")
    z = cache[2, "z"]
    direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    direction *= z.norm(dim=-1, keepdim=True) / direction.norm(dim=-1, keepdim=True)
    clean = (predictions[2:, :, -1] - batch.ys[:, -1]).square().mean(1) / 3
    np.testing.assert_allclose(data.clean_mean, clean, rtol=1e-4)
    for tokens, name in (([2], 2), ([10], 10), (None, -1)):
        with torch.no_grad(), edited(model, "z", add(direction, 0.5), loops=[2], positions=tokens):
            pushed, other = model.run_with_cache(batch.xs, batch.ys, 7, names="hook_z")
        error = (pushed[2:, :, -1] - batch.ys[:, -1]).square().mean(1) / 3
        found = data.sel(size=0.5, position=name)
        np.testing.assert_allclose(found["mean"], error, rtol=1e-3)
        moved = (pushed[2:, :, -1] - predictions[2:, :, -1]).square().mean(1).sqrt() / 3**0.5
        np.testing.assert_allclose(found.prediction_moved, moved, atol=1e-5)
        away = (other[4, "z"] - cache[4, "z"]).flatten(1).norm(dim=1) / cache[4, "z"].flatten(1).norm(dim=1)
        assert float(found.distance.sel(after=2)) == pytest.approx(float(away.mean()), rel=1e-3)
    assert (data.prediction_moved.sel(position=2, after=0) == 0).all(), "the query's own state was not pushed"


def test_a_loop_that_contracts_comes_back(batch):
    model = make_model(torch.float32)
    with torch.no_grad():
        model.ln_final.weight *= 0.02
    data = recover.run(Checkpoint(TINY_CFG, model, name="runs/settled"), batch, recover.RecoverConfig(loops=15))
    assert (data.distance.sel(after=15, position=-1) < 1e-4 * data.distance.sel(after=0, position=-1)).all()


def test_paths_keep_the_distances_of_the_states(checkpoint, batch):
    few = type(batch)(batch.xs[:3], batch.ys[:3], batch.origin)
    data = paths.run(checkpoint, few, paths.PathsConfig(loops=150, positions=(0, 5, 10)))
    assert data.path.sizes == {"followed": 3, "position": 3, "loop": 150, "component": 3}
    assert (np.diff(data.explained) <= 0).all()
    _, cache = checkpoint.model.run_with_cache(few.xs, few.ys, 150, names=["hook_z"], positions=[0, 5, 10])
    z = cache.stack("z").double()
    total = (z - z.mean((0, 1, 2))).square().sum()
    drawn = ((data.path - data.path.mean(("followed", "position", "loop"))) ** 2).sum(("followed", "position", "loop"))
    np.testing.assert_allclose(drawn, data.explained * float(total), rtol=1e-3)
    assert data.layer_limit.isin([int(limit) for limit in Limit]).all()


def test_layers_of_a_block_have_limits_of_their_own(batch):
    model = make_model(torch.float32)
    with torch.no_grad():
        model.ln_final.weight *= 0.02
    few = type(batch)(batch.xs[:3], batch.ys[:3], batch.origin)
    data = paths.run(Checkpoint(TINY_CFG, model, name="runs/settled"), few, paths.PathsConfig(loops=150))
    assert (data.layer_limit == Limit.FIXED).all()
    np.testing.assert_allclose(np.diag(data.layer_distance), 0)
    assert data.layer_distance[0, 1] > 0.05
    with torch.no_grad():  # a second layer that writes nothing leaves the first one's stream as it is
        for projection in (model.blocks[1].attn.out, model.blocks[1].mlp.fc_out):
            projection.weight.zero_()
            projection.bias.zero_()
    same = paths.run(Checkpoint(TINY_CFG, model, name="runs/same"), few, paths.PathsConfig(loops=150))
    np.testing.assert_allclose(same.layer_distance, 0, atol=1e-6)


@pytest.mark.parametrize(
    ("probe", "config", "message"),
    [
        (recover, recover.RecoverConfig(positions=(11,)), "position 11 must be at most 10"),
        (recover, recover.RecoverConfig(sizes=()), "must not be empty"),
        (paths, paths.PathsConfig(loops=20), "loops \\(20\\) must be at least 128"),
        (paths, paths.PathsConfig(positions=(12,)), "0 to 11"),
    ],
)
def test_mistakes_are_named(probe, config, message, checkpoint):
    with pytest.raises(LoopprobeError, match=message):
        probe.check(checkpoint, config, checkpoint.held_out(2))
