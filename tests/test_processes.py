"""Processes: one at a time in a folder, none ended that was not started here, and what is interrupted goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
from test_storage import SETTINGS, TRAIN, train_command

from loopprobe.config.sources import load_config
from loopprobe.errors import LoopprobeError
from loopprobe.store.checkpoint import load_checkpoint
from loopprobe.support.cluster import FreshProcesses, Processes
from loopprobe.training.runs import deferred_interrupt
from loopprobe.training.sweep import plan, sweep
from loopprobe.training.train import train

LONG = train_command("train.steps=100000")


def start(*arguments):
    """A command in a process group of its own, as a terminal starts it."""
    command = [sys.executable, "-m", "loopprobe", *map(str, arguments)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
                            start_new_session=True)  # fmt: skip


def kill(process):
    process.kill()
    process.communicate()


def wait_for(condition, seconds=90):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.02)


def rows(folder):
    path = Path(folder) / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.slow
def test_the_second_process_is_refused_and_a_dead_one_holds_nothing():
    first = start(*LONG, "--out", "run")
    try:
        wait_for(lambda: rows("run") > 2)
        for arguments in (["train", "--resume"], [*TRAIN, "--overwrite"]):
            second = start(*arguments, "--out", "run")
            _, line = second.communicate(timeout=60)
            assert second.returncode == 2
            assert f"run is in use by process {first.pid} on " in line
            assert line.count("\n") == 1
        steps = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
        assert steps == sorted(set(steps))
    finally:
        kill(first)
    third = start(*LONG, "--out", "run", "--overwrite")  # nobody is asked to remove a lock
    try:
        wait_for(lambda: rows("run") > 0)
    finally:
        kill(third)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_saves_says_how_to_go_on_and_is_quick(number):
    run = start(*LONG, "--out", "run")
    wait_for(lambda: rows("run") > 2)
    stopped = time.monotonic()
    run.send_signal(number)
    _, line = run.communicate(timeout=30)
    assert time.monotonic() - stopped < 10  # two seconds where nothing else runs
    assert run.returncode == 130
    assert line == "loopprobe: interrupted; saved; go on with: loopprobe train --resume --out run\n"
    assert Path("run/state.safetensors").exists()
    last = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert load_checkpoint("run").step >= last


SWALLOWED = """
import os, signal, sys, time, weakref
import loopprobe.cli

class Thing:
    pass

@loopprobe.cli.app.command("forever", cls=loopprobe.cli.OnceCommand)
def forever(name: str):
    thing = Thing()
    kept = weakref.ref(thing, lambda _: (os.kill(os.getpid(), getattr(signal, name)), time.sleep(0.01)))
    del thing  # its callback is interrupted, and keeps that to itself
    while True:
        time.sleep(0.01)

loopprobe.cli.main()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_that_a_callback_keeps_to_itself_comes_again(name):
    command, started = [sys.executable, "-c", SWALLOWED, "forever", name], time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "loopprobe: interrupted; run it again\n")
    assert time.monotonic() - started < 50


def _sleep_forever():
    time.sleep(1000)


@pytest.mark.slow
def test_ending_a_pool_ends_its_own_processes_alone():
    other = get_context("spawn").Process(target=_sleep_forever)
    other.start()
    try:
        pool = Processes(1)
        pool.submit(_sleep_forever)
        wait_for(lambda: bool(pool._processes))
        own = list(pool._processes.values())
        pool.__exit__(ZeroDivisionError, None, None)
        for process in own:
            process.join(30)
            assert not process.is_alive()
        assert other.is_alive()
    finally:
        other.kill()
        other.join()


def _killed_at_first(path):
    if not os.path.exists(path):
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def _killed_always():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_job_is_tried_again_and_the_others_go_on(tmp_path):
    with FreshProcesses(2) as pool:
        jobs = [pool.submit(_killed_at_first, str(tmp_path / name)) for name in "ab"]
        hopeless = pool.submit(_killed_always)
        assert [job.result(60) for job in jobs] == ["done", "done"]
        assert "was killed 3 times" in str(hopeless.exception(60))
        assert isinstance(hopeless.exception(), LoopprobeError)


@pytest.mark.slow
def test_a_sweep_whose_worker_is_killed_ends_with_the_weights_of_one_that_was_not():
    configs = [load_config(overrides=[*SETTINGS, f"train.seed={seed}", "train.steps=300"]) for seed in (0, 1)]
    killed = []

    def kill_one(rows):
        if not killed and any(row["step"] > 20 for row in rows.values()):
            done = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "spawn_main"], capture_output=True, text=True)
            for pid in done.stdout.split()[:1]:
                os.kill(int(pid), signal.SIGKILL)
                killed.append(pid)

    sweep(plan(configs, Path("swept")), workers=2, report=kill_one)
    for config in configs:
        alone = train(config, Path("alone") / config.name)
        assert load_checkpoint(alone).digest() == load_checkpoint(Path("swept") / config.name).digest()


ORPHANS = """
import os, sys
from pathlib import Path
from test_processes import defers
from loopprobe.support.cluster import FreshProcesses, Processes
kind, folder = sys.argv[1:]
if __name__ == "__main__":
    with {"fresh": FreshProcesses, "shared": Processes}[kind](2) as pool:
        for name in "ab":
            pool.submit(defers, str(Path(folder) / name))
"""


def defers(path):
    """A job that notes SIGTERM, as a training does, and comes to its end some time after it."""
    with deferred_interrupt() as interrupted:
        Path(path).write_text(str(os.getpid()))
        wait_for(interrupted)
        time.sleep(0.2)
        raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fresh", "shared"])
def test_workers_that_defer_their_end_do_not_outlive_a_killed_parent(kind, tmp_path):
    Path("main.py").write_text(ORPHANS)
    env = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
    parent = subprocess.Popen([sys.executable, "main.py", kind, tmp_path], env=env)
    jobs = [tmp_path / name for name in "ab"]
    wait_for(lambda: all(job.exists() and job.read_text() for job in jobs))
    kill(parent)
    for job in jobs:
        wait_for(lambda job=job: not Path("/proc", job.read_text()).exists(), 30)


def test_a_batch_that_cannot_be_held_leaves_no_folder(monkeypatch):
    def full(*arguments, **options):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory")

    config = load_config(overrides=SETTINGS)
    monkeypatch.setattr("loopprobe.training.steps.windowed_loss", full)
    with pytest.raises(LoopprobeError, match=r"4 prompts and 2 loops .* memory of cpu \(nothing was written\)"):
        train(config, Path("out/run"))
    assert not Path("out/run").exists()
    Path("mine").mkdir()
    with pytest.raises(LoopprobeError):
        train(config, Path("mine"))
    assert Path("mine").is_dir()  # it was there before
    assert not list(Path("mine").glob("[!.]*"))
