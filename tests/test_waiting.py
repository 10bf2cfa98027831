"""What takes long says how far it is, and what need not take long does not."""

import subprocess
import sys
import threading
import time

import pytest
import torch
from conftest import TINY_CFG, make_model
from safetensors.torch import save_file

from loopprobe.cli import main
from loopprobe.config.sources import load_config
from loopprobe.store.checkpoint import Checkpoint, load_checkpoint, save
from loopprobe.store.evaluate import evaluate, prompts_after_training, query_error
from loopprobe.store.foreign import to_transformer_lens
from loopprobe.support import progress


class Clock:
    """A clock that goes on by itself."""

    def __init__(self, step):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now


class Slow:
    """Sixty steps that take some seconds each, the first one more."""

    def __init__(self, each, first=0.0):
        self.each, self.first = each, first

    def __len__(self):
        return 60

    def __iter__(self):
        for step in range(len(self)):
            time.sleep(self.each + (self.first if step == 0 else 0))
            yield step


def told(monkeypatch, capsys, steps):
    """The lines of a wrapped iterable of 60 steps, when a line is due after 0.05 s and then every 0.1 s."""
    for name, seconds in (("FIRST", 0.05), ("EVERY", 0.1), ("EACH", 0.005)):
        monkeypatch.setattr(progress, name, seconds)
    assert list(progress.track("a probe")(steps)) == list(range(60))
    return capsys.readouterr().err.splitlines()


def test_lines_come_early_and_then_every_so_often(monkeypatch, capsys):
    lines = told(monkeypatch, capsys, Slow(0.02))
    counts = [int(line.split()[2]) for line in lines]
    assert all(line.startswith(f"a probe: {count} of 60 after ") for line, count in zip(lines, counts, strict=True))
    assert 4 <= len(counts) <= 12  # 60 steps are 1.2 s, or more on a busy machine
    assert counts == sorted(counts)
    assert counts[0] <= 3 < counts[-1]


def test_a_single_long_step_prints_lines_too(monkeypatch, capsys):
    before = set(threading.enumerate())
    lines = told(monkeypatch, capsys, Slow(0, first=0.4))
    assert len(lines) >= 2
    assert all(line.startswith("a probe: 0 of 60 after ") for line in lines)
    assert set(threading.enumerate()) == before
    with pytest.raises(ZeroDivisionError):
        list(progress.track("fails")(1 / n for n in (1, 0)))
    next(iter(progress.track("left")(range(3))))
    assert set(threading.enumerate()) == before


def test_short_work_prints_nothing(monkeypatch, capsys):
    monkeypatch.setattr(progress.time, "monotonic", Clock(0.01))
    list(progress.track("a probe")(range(20)))
    list(progress.track("unsized")(iter(range(3))))
    assert capsys.readouterr().err == ""


def test_trainings_and_sweeps_print_lines_too(monkeypatch, capsys):
    monkeypatch.setattr(progress.time, "monotonic", Clock(10.0))
    with progress.training_progress(100, "training runs/a") as report:
        report({"step": 20, "loss": 0.5, "error": 0.25})
    assert capsys.readouterr().err == "training runs/a: 20 of 100 after 10 s, 40 s left, loss 0.5, error 0.25\n"
    with progress.training_progress(100, "training runs/a", before=80) as report:
        report({"step": 90, "loss": 0.5, "error": 0.25, "accuracy": 0.75, "length": 4})
    assert capsys.readouterr().err == (
        "training runs/a: 90 of 100 after 10 s, 10 s left, loss 0.5, error 0.25, accuracy 0.75, length 4\n"
    )
    with progress.sweep_progress({"a": 50, "b": 50}) as report:
        report({"a": {"step": 10, "error": 1.0}, "b": {"step": 15, "error": 1.0}})
    assert capsys.readouterr().err.startswith("2 models: 25 of 100 after 10 s, 30 s left")


@pytest.mark.parametrize(
    ("overrides", "prompts"),
    [([], 1280), (["train.steps=5"], 32), (["train.steps=1", "train.batch_size=2"], 16)],
)
def test_the_evaluation_after_a_training_is_a_small_part_of_it(overrides, prompts):
    config = load_config(overrides=overrides)
    assert prompts_after_training(config) == prompts
    trained_on = config.train.steps * config.train.batch_size  # each forward and backward: three times the work
    assert prompts <= max(0.15 * trained_on, 16)


def test_far_is_measured_on_request(checkpoint):
    short, long = evaluate(checkpoint, n_prompts=32), evaluate(checkpoint, n_prompts=32, far=30)
    assert short["loops"] == [4]
    assert long["loops"] == [4, 30]
    assert long["mean"][0] == short["mean"][0]
    errors = query_error(checkpoint.model, checkpoint.held_out(32), 30)
    assert long["mean"][1] == pytest.approx(errors[29].mean().item())
    assert long["median"][1] == pytest.approx(errors[29].quantile(0.5).item())
    assert long["failures"][1] == pytest.approx((errors[29] > long["failure_level"]).float().mean().item())


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["loopprobe", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def test_evaluate_records_what_it_measures_and_leaves_the_weights(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    tiny = Checkpoint(TINY_CFG, make_model(torch.float32))
    save(tiny, folder)
    assert call(monkeypatch, "evaluate", folder) == 2
    assert "is still in training" in capsys.readouterr().err
    tiny.evaluation = evaluate(tiny, n_prompts=16)
    save(tiny, folder)
    weights = (folder / "model.safetensors").stat().st_ino, (folder / "model.safetensors").stat().st_mtime_ns
    assert call(monkeypatch, "evaluate", folder, "--prompts", 24, "--far", 9, "--device", "cpu") == 0
    assert "error after 9 loops" in capsys.readouterr().out
    assert load_checkpoint(folder).evaluation == evaluate(tiny, n_prompts=24, far=9)
    after = (folder / "model.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == weights  # not its time of access: it was read


def test_an_import_takes_seconds(monkeypatch, capsys, tmp_path):
    model = make_model(torch.float32, n_layers=4, d_model=64, n_heads=4, n_points=31, n_dims=10)
    save_file(to_transformer_lens(model), tmp_path / "weights.safetensors")
    started = time.process_time()
    arguments = ("--n-heads", 4, "--n-loops", 20, "--out", tmp_path / "out")
    assert call(monkeypatch, "import", tmp_path / "weights.safetensors", *arguments) == 0
    assert time.process_time() - started < 5
    assert load_checkpoint(tmp_path / "out").evaluation["loops"] == [20]


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "loopprobe", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("loopprobe ")
