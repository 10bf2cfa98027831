"""Tiny seeded models; no network; nothing is written outside a temporary folder."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch

# Shapes and types in annotations are checked at every call of a function that has them (``.ci/run`` asks for it).
if os.environ.get("LOOPPROBE_CHECK_SHAPES"):
    jaxtyping.install_import_hook("loopprobe", "typecheck.check")

# ruff: isort: split
from loopprobe import cli
from loopprobe.config.schema import ModelConfig, TaskConfig
from loopprobe.config.sources import load_config
from loopprobe.model.looped import LoopedTransformer
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.tasks import held_out

# A shell ignores Ctrl-C for what it runs in the background, and processes that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tiny tensors, and a worker of pytest on every core: threads only cost. Processes that a test starts inherit it.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY = {"n_layers": 2, "d_model": 16, "n_heads": 2, "n_dims": 3, "n_points": 6, "n_loops": 4}


TINY_CFG = load_config(
    overrides=[f"model.{key}={value}" for key, value in TINY.items()]
    + ["train.loop_window=2", "train.dims=3", "train.points=6"]
)


PEAK = Path("/proc/self/status")


def peak_memory():
    """The peak memory of this process, in bytes."""
    lines = PEAK.read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def run_script(script, *arguments):
    """What a script prints, in a process of its own, whose peak is what it holds: large blocks that it frees go back.

    It may import from this file.
    """
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "MALLOC_TRIM_THRESHOLD_": str(2**17)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout


def stamped(config, **attributes):
    """The attributes of a dataset of a model with this configuration."""
    model = json.dumps({"name": "runs/model", "weights": "", "config": config})
    return {"probe": "converge", "config": "{}", "checkpoint": model, "prompts": "{}", "provenance": "{}"} | attributes


def pytest_collection_modifyitems(items):
    """The storms, which take minutes, begin first, so that no worker waits for another's at the end."""
    items.sort(key=lambda item: "test_storm" not in item.nodeid)


needs_peak = pytest.mark.skipif(not PEAK.exists(), reason="reads the peak memory from /proc")


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def unchecked():
    """A test that gives wrong shapes on purpose, to see what a user is told."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def make_model(dtype=torch.float64, **fields):
    """A tiny model whose every parameter, biases and gains included, is random."""
    return random_model(ModelConfig(**(TINY | fields)), dtype)


def random_model(cfg, dtype):
    """A model whose every parameter, biases and gains included, is random."""
    generator = torch.Generator().manual_seed(0)
    model = LoopedTransformer(cfg, generator).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return model


TOKEN_CFG = load_config(
    overrides=[
        "task.name=addition", "task.length=3", "model.d_model=8", "model.n_heads=2", "model.n_ctx=16",
        "train.length=3", "train.loop_window=3", "train.batch_size=4", "train.steps=2", "train.device=cpu",
    ]
)  # fmt: skip


def make_token_model(dtype=torch.float32, **fields):
    """A tiny model of the tokens of binary addition, whose every parameter is random."""
    return random_model(dataclasses.replace(TOKEN_CFG.model, **fields), dtype)


@pytest.fixture
def token_checkpoint():
    return Checkpoint(TOKEN_CFG, make_token_model(), name="runs/tiny-add")


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def checkpoint():
    return Checkpoint(TINY_CFG, make_model(torch.float32), name="runs/tiny")


@pytest.fixture
def prompts():
    batch = held_out(TaskConfig(), 8, TINY["n_points"], TINY["n_dims"])
    return type(batch)(batch.xs.double(), batch.ys.double(), batch.origin)


def run_command(monkeypatch, capsys, *arguments):
    """The command line in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["loopprobe", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    captured = capsys.readouterr()
    return stopped.value.code, captured.out, captured.err


@pytest.fixture
def command(monkeypatch, capsys):
    return lambda *arguments: run_command(monkeypatch, capsys, *arguments)
