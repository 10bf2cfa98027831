"""On a GPU: the same results as on a CPU, and recorded steps are those that are launched kernel by kernel.

Run with ``pytest -m cuda``.
"""

import json
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_CFG, make_model
from safetensors.torch import load_file

from loopprobe.config.sources import load_config
from loopprobe.probes.questions import configured
from loopprobe.store.checkpoint import Checkpoint, load_checkpoint
from loopprobe.training.replay import Replay
from loopprobe.training.steps import train_step
from loopprobe.training.train import draw, start, train, train_runs

pytestmark = pytest.mark.cuda

SMALL = [f"model.{key}={value}" for key, value in TINY.items() if key != "n_loops"] + [
    "model.n_loops=4", "train.loop_window=2", "train.batch_size=8", "train.steps=40", "train.warmup_steps=5",
    "train.dims={kind='linear',start=2,over=0.4}", "train.points={kind='linear',start=4,over=0.4}",
    "train.log_every=5", "train.checkpoint_every=7", "train.muon_lr=0.002", "train.adam_lr=0.0003",
]  # fmt: skip
DIFFERENT = [  # models of one stack
    [],
    ["model.n_loops=5", "train.loop_window=5", "model.injection=multiply", "train.seed=1", "train.loss=log"],
    ["train.optimizer=adam", "train.seed=2", "train.grad_clip=0.0", "train.loops={kind='linear',start=2,over=0.5}"],
]


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr("torch.set_float32_matmul_precision", lambda precision: None)  # so that starts do not lower it


def config(*overrides, device="cuda"):
    return load_config(overrides=[*SMALL, f"train.device={device}", *overrides])


def losses(folder):
    return [(row["loss"], row["error"]) for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]


def assert_close_weights(one, other, initial, within=0.05):
    """Apart by less than this share of what the training changed: Muon's bfloat16 makes a few % of a rounding."""
    for name, start_ in initial.items():
        changed = (one[name] - start_).norm()
        assert (one[name] - other[name]).norm() <= within * changed + 1e-5, name


def initial(cfg, tmp_path):
    return {k: v.cpu().clone() for k, v in start(cfg, tmp_path / "initial", overwrite=True).model.state_dict().items()}


def test_a_forward_pass_agrees_with_the_cpu(prompts):
    model = make_model(torch.float32)
    xs, ys = prompts.xs.float(), prompts.ys.float()
    there = model(xs, ys)
    torch.testing.assert_close(model.to("cuda")(xs.cuda(), ys.cuda()).cpu(), there, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changed", [*DIFFERENT, ["train.precision=bfloat16"]])
def test_recorded_steps_are_those_launched_one_by_one(tmp_path, changed):
    """Over 40 steps of a curriculum, so that shapes change, rates too."""
    ends = []
    for name, replay in (("recorded", Replay(torch.device("cuda"))), ("launched", Replay(torch.device("cpu")))):
        run = start(config(*changed), tmp_path / name)
        drawn = (draw(run.cfg, run.sizes(step), run.generator, run.device) for step in range(40))
        errors = [
            train_step(run.model, run.optimizers, part, step, run.train, replay) for step, part in enumerate(drawn)
        ]
        ends.append((torch.stack(errors).cpu(), {k: v.cpu() for k, v in run.model.state_dict().items()}))
        assert (replay.graph is not None) == (name == "recorded")
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=0.02, atol=1e-3)
    assert_close_weights(ends[0][1], ends[1][1], initial(config(*changed), tmp_path))


@pytest.mark.parametrize("changed", DIFFERENT)
def test_training_follows_the_cpu(tmp_path, changed):
    train(config(*changed), tmp_path / "cuda")
    train(config(*changed, device="cpu"), tmp_path / "cpu")
    here, there = losses(tmp_path / "cuda"), losses(tmp_path / "cpu")
    assert len(here) == len(there) == 8
    np.testing.assert_allclose(here, there, rtol=0.05)
    assert load_checkpoint(tmp_path / "cuda").evaluation["error"][0] == pytest.approx(
        load_checkpoint(tmp_path / "cpu").evaluation["error"][0], rel=0.05
    )


@pytest.mark.parametrize("together", [True, None])
def test_a_stack_trains_as_each_alone(tmp_path, together):
    cfgs = [config(*changed) for changed in DIFFERENT]
    for i, cfg in enumerate(cfgs):
        train(cfg, tmp_path / "alone" / str(i))
    train_runs([start(cfg, tmp_path / "stack" / str(i)) for i, cfg in enumerate(cfgs)], together)
    for i, cfg in enumerate(cfgs):
        prompts = Checkpoint(cfg, start(cfg, tmp_path / "initial", overwrite=True).model).held_out(16)
        models = [load_checkpoint(tmp_path / kind / str(i), "cuda").model for kind in ("alone", "stack")]
        one, other = (model(*prompts) for model in models)
        assert (one - other).norm() < 0.02 * one.norm(), i
        np.testing.assert_allclose(losses(tmp_path / "alone" / str(i)), losses(tmp_path / "stack" / str(i)), rtol=0.05)


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    cfg, stops = config(), iter(range(100))
    with monkeypatch.context() as patched:
        patched.setattr(
            sys.modules["loopprobe.training.train"],
            "deferred_interrupt",
            lambda: nullcontext(lambda: next(stops) == 22),
        )
        with pytest.raises(KeyboardInterrupt):
            train(cfg, tmp_path / "stopped")
    assert load_checkpoint(tmp_path / "stopped").step == 23
    train(None, tmp_path / "stopped", resume=True)
    train(cfg, tmp_path / "whole")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("stopped", "whole"))
    assert_close_weights(one, other, initial(cfg, tmp_path))
    np.testing.assert_allclose(losses(tmp_path / "stopped"), losses(tmp_path / "whole"), rtol=0.02)


PROBES = {
    "align": dict(steps=5, fit_prompts=32),
    "attention": dict(loops=3),
    "attribute": dict(loops=3),
    "compare": dict(),
    "converge": dict(loops=12, states=2, far=130),
    "decode": dict(loops=3, train_prompts=64, network_loops=0),
    "exit": dict(loops=12),
    "explore": dict(loops=3, reset=(1,), hide=(0,), heads=((0, 1),)),
    "fixed_points": dict(random_starts=0, far=130, lyapunov_steps=5),
    "lens": dict(loops=3, train_prompts=64),
    "mask": dict(n=(1, 3), loops=4),
    "patch": dict(loops=2),
    "patch, linear": dict(loops=2, exact=False),
    "paths": dict(loops=130),
    "recover": dict(after=3, loops=5),
    "failures": dict(loops=130),
    "features": dict(loops=3, k=2, fit_prompts=16, steps=1, learning_rate=1e-4, compare=False),
    "shift": dict(shifts=("skewed", "noise")),
    "steer": dict(loops=5, fit_prompts=64),
    "weights": dict(draws=100),
}


@pytest.mark.parametrize("name", PROBES)
def test_probes_agree_with_the_cpu(name):
    probe, asked = configured(name.partition(",")[0], PROBES[name])
    found = []
    for device in ("cpu", "cuda"):
        checkpoint = Checkpoint(TINY_CFG, make_model(torch.float32).to(device), name="tiny")
        found.append(probe.run(checkpoint, checkpoint.held_out(16), asked))
    here, there = found
    assert set(here.data_vars) == set(there.data_vars)
    apart = {}
    for variable in here.data_vars:
        one, other = here[variable].values, there[variable].values
        if variable == "eigenvalue_imag":  # of a pair, either comes first
            one, other = abs(one), abs(other)
        if one.dtype.kind == "f" and not np.allclose(one, other, rtol=1e-2, atol=1e-3, equal_nan=True):
            apart[variable] = float(np.nanmax(np.abs(one - other)))
    assert not apart
