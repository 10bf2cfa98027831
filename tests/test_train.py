import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file

from loopprobe.config.sources import load_config
from loopprobe.errors import LoopprobeError
from loopprobe.model.looped import LoopedTransformer
from loopprobe.reference.baselines.closed import averaging
from loopprobe.store.checkpoint import load_checkpoint
from loopprobe.support.device import pick_device
from loopprobe.tasks import sample
from loopprobe.training.runs import Run
from loopprobe.training.steps import make_optimizers, rate_factor, windowed_loss
from loopprobe.training.train import train

SMALL = [f"model.{key}={value}" for key, value in TINY.items()] + [
    "train.steps=40", "train.loop_window=2", "train.batch_size=8", "train.warmup_steps=5", "train.device=cpu",
    "train.checkpoint_every=7", "train.log_every=5", "train.dims={kind='linear',start=2,over=0.4}",
    "train.points={kind='linear',start=4,over=0.4}",
]  # fmt: skip


def config(*overrides):
    return load_config(overrides=[*SMALL, *overrides])


def rows(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def measured(folder):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows(folder)]


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def assert_same_weights(a, b):
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_dimensions_are_added_as_they_are_mastered_over_a_kill_too(tmp_path, monkeypatch):
    mastery = ["train.dims={kind='mastery',start=1,error=1.0}", "train.points={kind='dims',start=2}"]
    cfg = config(*mastery)
    train(cfg, tmp_path / "whole")
    whole = measured(tmp_path / "whole")
    assert [row["dims"] for row in whole] == [
        min(cfg.model.n_dims, 1 + sum(row["error"] <= 1 for row in whole[:i])) for i in range(len(whole))
    ]
    assert whole[-1]["dims"] > 1
    assert {(row["dims"], row["points"]) for row in whole} <= {(1, 2), (2, 4), (3, 6)}
    record = Run.record

    def killed(run, errors):
        record(run, errors)
        if run.step == 23:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "record", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train(cfg, tmp_path / "killed")
    train(None, tmp_path / "killed", resume=True)
    assert measured(tmp_path / "killed") == whole
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")


def test_a_run_leaves_a_complete_checkpoint(tmp_path):
    folder = train(config(), tmp_path / "run")
    assert sorted(path.name for path in folder.glob("[!.]*")) == ["config.json", "metrics.jsonl", "model.safetensors"]
    loaded = load_checkpoint(folder)
    assert loaded.step == 40
    assert loaded.evaluation["loops"] == [4]
    assert [row["step"] for row in rows(folder)] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert (rows(folder)[0]["dims"], rows(folder)[-1]["dims"]) == (2, 3)


@pytest.mark.slow
def test_training_lowers_the_error(tmp_path):
    easy = ["model.n_layers=1", "model.n_dims=1", "model.d_model=32", "train.dims=1", "train.points=6"]
    folder = train(
        config(*easy, "train.steps=300", "train.batch_size=32", "train.muon_lr=0.02", "train.adam_lr=3e-3"),
        tmp_path / "run",
    )
    assert rows(folder)[0]["loss"] > 0.8  # predicting zero
    assert rows(folder)[-1]["loss"] < 0.7
    assert load_checkpoint(folder).evaluation["median_high"][0] < 0.6


def test_training_is_reproducible_bit_for_bit(tmp_path):
    assert_same_weights(train(config(), tmp_path / "a"), train(config(), tmp_path / "b"))
    other = weights(train(config("train.seed=1"), tmp_path / "c"))
    assert not torch.equal(other["W_pos"], weights(tmp_path / "a")["W_pos"])


def test_metrics_come_as_they_are_measured(tmp_path):
    seen = []
    train(config(), tmp_path / "run", report=lambda row: seen.append((row, rows(tmp_path / "run")[-1])))
    assert all(reported == written for reported, written in seen)


SCRIPT = """
import sys, time, torch
torch.set_num_threads(1)
from loopprobe.config.sources import load_config
from loopprobe.training.train import train
resume, slow = "resume" in sys.argv, "slow" in sys.argv
train(None if resume else load_config(overrides=sys.argv[2].split(";")), __import__("pathlib").Path(sys.argv[1]),
      resume=resume, report=lambda row: time.sleep(0.1 * slow))
"""


def start(folder, *arguments):
    command = [sys.executable, "-c", SCRIPT, str(folder), ";".join(SMALL), *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def end(process):
    """Wait; returns the exit code and what it said."""
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def wait_for_step(folder, step):
    deadline = time.monotonic() + 120
    path = folder / "metrics.jsonl"
    while not path.exists() or f'"step": {step},' not in path.read_text():
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [(5,), (15, 30)])
def test_a_run_killed_at_any_step_ends_with_the_same_weights(tmp_path, steps):
    for i, step in enumerate(steps):
        process = start(tmp_path / "killed", "slow", *(["resume"] if i else []))
        wait_for_step(tmp_path / "killed", step)
        os.kill(process.pid, signal.SIGKILL)
        assert end(process)[0] == -signal.SIGKILL
        assert (tmp_path / "killed" / "state.safetensors").exists()
    assert end(start(tmp_path / "killed", "resume")) == (0, "")
    train(config(), tmp_path / "whole")
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
    assert measured(tmp_path / "killed") == measured(tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_saves_the_state(tmp_path):
    process = start(tmp_path / "stopped", "slow")
    wait_for_step(tmp_path / "stopped", 10)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in end(process)[1]
    stopped_at = load_checkpoint(tmp_path / "stopped").step
    assert stopped_at >= 10
    train(None, tmp_path / "stopped", resume=True)
    train(config(), tmp_path / "whole")
    assert_same_weights(tmp_path / "stopped", tmp_path / "whole")
    assert measured(tmp_path / "stopped") == measured(tmp_path / "whole")


def test_a_run_stopped_between_two_rows_writes_the_rows_of_one_that_never_was(tmp_path, monkeypatch):
    stops = iter(range(100))
    with monkeypatch.context() as patch:
        patch.setattr("loopprobe.training.train.deferred_interrupt", lambda: nullcontext(lambda: next(stops) == 7))
        with pytest.raises(KeyboardInterrupt):
            train(config(), tmp_path / "stopped")
    assert [row["step"] for row in rows(tmp_path / "stopped")] == [5]
    assert load_checkpoint(tmp_path / "stopped").step == 8
    train(None, tmp_path / "stopped", resume=True)
    train(config(), tmp_path / "whole")
    assert measured(tmp_path / "stopped") == measured(tmp_path / "whole")


def test_a_loss_that_is_not_finite_stops_with_step_checkpoint_and_advice(tmp_path, monkeypatch):
    real = windowed_loss
    calls = []

    def broken(*arguments):
        calls.append(1)
        loss, measured = real(*arguments)
        return loss, measured * (torch.nan if len(calls) > 17 else 1)

    monkeypatch.setattr("loopprobe.training.steps.windowed_loss", broken)
    with pytest.raises(LoopprobeError, match=r"nan at step 18 .*step 14.*lower train.muon_lr"):
        train(config(), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run").step == 14
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())


def test_folders_are_neither_overwritten_nor_resumed_by_mistake(tmp_path):
    train(config("train.steps=5"), tmp_path / "run")
    with pytest.raises(LoopprobeError, match="--overwrite"):
        train(config(), tmp_path / "run")
    with pytest.raises(LoopprobeError, match="nothing to resume"):
        train(None, tmp_path / "run", resume=True)
    with pytest.raises(LoopprobeError, match="configuration differs"):
        train(config(), tmp_path / "run", resume=True)
    with pytest.raises(LoopprobeError, match="no checkpoint"):
        train(None, tmp_path / "none", resume=True)
    train(config("train.steps=6"), tmp_path / "run", overwrite=True)
    assert load_checkpoint(tmp_path / "run").step == 6
    (tmp_path / "file").write_text("")
    with pytest.raises(LoopprobeError, match="cannot write"):
        train(config(), tmp_path / "file" / "run")


def test_the_window_alone_is_in_the_loss():
    cfg = config()
    generator = torch.Generator().manual_seed(0)
    model = LoopedTransformer(cfg.model, generator)
    prompts = sample(cfg.task, 8, 6, 3, generator)
    loss, (mean, error) = windowed_loss(model, prompts, 4, 2, "mse")
    squared = (model(prompts.xs, prompts.ys, 4) - prompts.ys).square()
    torch.testing.assert_close(loss, squared[2:].mean())
    torch.testing.assert_close(mean, squared[2:].mean())
    torch.testing.assert_close(error, squared[-1, :, -1].mean() / 3)
    log, (mean, _) = windowed_loss(model, prompts, 4, 2, "log")
    torch.testing.assert_close(log, (squared[2:].mean(1) / 3 + 1e-3).log().mean())
    torch.testing.assert_close(mean, squared[2:].mean())
    torch.testing.assert_close(windowed_loss(model, prompts, 1, 2, "mse")[0], squared[:1].mean())


def test_the_log_loss_lets_every_loop_and_point_weigh_the_same():
    """However large the error of a point, its part of the gradient is as large."""
    cfg = config()
    model = LoopedTransformer(cfg.model, torch.Generator().manual_seed(0))
    prompts = sample(cfg.task, 8, 6, 3, torch.Generator().manual_seed(0))
    louder = dataclasses.replace(prompts, ys=prompts.ys.clone())
    louder.ys[:, 5] *= 1000  # of the last label, which no other prediction sees
    grads = {}
    for name, part in (("quiet", prompts), ("loud", louder)):
        for kind in ("mse", "log"):
            loss = windowed_loss(model, part, 4, 2, kind)[0]
            [grad] = torch.autograd.grad(loss, [model.read_out.weight])
            grads[name, kind] = grad.norm().item()
    assert grads["loud", "mse"] > 20 * grads["quiet", "mse"]
    assert grads["loud", "log"] < 2 * grads["quiet", "log"]


def test_the_rate_warms_up_and_decays():
    cfg = load_config(overrides=["train.steps=1000", "train.warmup_steps=100", "train.decay=0.5"]).train
    factors = [rate_factor(step, cfg) for step in range(1000)]
    assert factors[0] == pytest.approx(0.01)
    assert factors[99:500] == [1.0] * 401
    assert factors[750] == pytest.approx(0.5)
    assert 0 < factors[-1] <= 0.002
    assert {rate_factor(step, load_config(preset="reference").train) for step in (0, 500, 19_999)} == {1.0}


def test_muon_moves_the_matrices_of_the_block_and_adam_the_rest():
    cfg = config()
    model = LoopedTransformer(cfg.model)
    adam, muon = make_optimizers(model, cfg.train)
    assert [tuple(p.shape) for p in muon.param_groups[0]["params"]] == [(48, 16), (16, 16), (64, 16), (16, 64)] * 2
    both = [p for optimizer in (adam, muon) for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in both} == {id(p) for p in model.parameters()}
    assert len(make_optimizers(model, config("train.optimizer=adam").train)) == 1


def test_bfloat16_autocast_trains(tmp_path):
    folder = train(config("train.precision=bfloat16", "train.steps=10"), tmp_path / "run")
    assert weights(folder)["W_pos"].dtype == torch.float32


def test_devices():
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(LoopprobeError, match=r"'nonsense'.*choose one of them"):
        pick_device("nonsense")
    if not torch.cuda.is_available():
        with pytest.raises(LoopprobeError, match="'cuda' is not available"):
            pick_device("cuda")


@pytest.mark.slow
def test_the_default_recipe_learns_in_context(tmp_path):
    """On prompts of five examples in two dimensions, where their average of x·y, which needs no learning, gives 0.6."""
    small = ["model.n_dims=2", "model.n_points=6", "model.n_loops=8", "train.loop_window=4", "train.dims=2"]
    cfg = load_config(overrides=[*small, "train.points=6", "train.steps=600"])
    checkpoint = load_checkpoint(train(cfg, tmp_path / "run"))
    prompts = checkpoint.held_out(1000)
    assert prompts.errors(averaging(prompts))[:, -1].mean() > 0.5
    assert checkpoint.evaluation["mean"][0] < 0.3
