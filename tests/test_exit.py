import numpy as np
import pytest
import torch
from conftest import TINY_CFG, make_model

from loopprobe.config.sources import load_config
from loopprobe.errors import LoopprobeError
from loopprobe.probes import exit as probe
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.tasks import held_out


@pytest.fixture
def batch():
    return held_out(TINY_CFG.task, 70, 6, 3)


def test_loops_and_errors_are_those_of_the_run(checkpoint, batch):
    config = probe.ExitConfig(loops=30, state_steps=(0.5,), prediction_steps=(0.05,), repeats=(1, 2), same=0.05)
    data = probe.run(checkpoint, batch, config)
    predictions, cache = checkpoint.model.run_with_cache(batch.xs, batch.ys, 30, names="hook_z")
    z, answer = cache.stack("z")[:, :, 10], predictions[..., -1]
    error = ((answer - batch.ys[:, -1]) ** 2 / 3).numpy()
    np.testing.assert_allclose(data.budget_mean, error.mean(1), rtol=1e-5)
    for prompt in range(70):
        step = next(
            (t for t in range(1, 30) if (z[t, prompt] - z[t - 1, prompt]).norm() <= 0.5 * z[t, prompt].norm()), 29
        )
        move = (answer[1:, prompt] - answer[:-1, prompt]).abs() <= 0.05 * 3**0.5
        once = next((t for t in range(1, 30) if move[t - 1]), 29)
        twice = next((t for t in range(2, 30) if move[t - 1] and move[t - 2]), 29)
        assert data.loops_used[:, prompt].values.tolist() == [step + 1, once + 1, once + 1, twice + 1]
        np.testing.assert_allclose(data.error[:, prompt], error[[step, once, once, twice], prompt], rtol=1e-4)


def test_a_rule_that_never_holds_runs_all_loops(checkpoint, batch):
    data = probe.run(
        checkpoint, batch, probe.ExitConfig(loops=6, state_steps=(1e-12,), prediction_steps=(), repeats=())
    )
    assert (data.loops_used == 6).all()
    np.testing.assert_allclose(data["median"][0], data.budget_median[-1], rtol=1e-5)


def test_an_ordinary_transformer_has_nothing_to_stop():
    ordinary = load_config(overrides=["model.n_loops=1", "train.loop_window=1"])
    checkpoint = Checkpoint(ordinary, make_model(torch.float32, n_loops=1), name="runs/one")
    with pytest.raises(LoopprobeError, match="not looped"):
        probe.check(checkpoint, probe.ExitConfig(), held_out(ordinary.task, 2, 6, 3))
