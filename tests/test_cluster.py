"""On a real Ray cluster: two nodes of one machine, on the loopback address. ``pytest -m ray``."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from test_own_task import CODE
from test_sweep import grid

from loopprobe.errors import LoopprobeError
from loopprobe.store.record import read_json
from loopprobe.support.cluster import Keeper, RayPool
from loopprobe.training.sweep import last_row, plan, read_grid, sweep
from loopprobe.training.train import train

RAY = Path(sys.executable).with_name("ray")
LOOPPROBE = Path(sys.executable).with_name("loopprobe")
SHORT = ['"model.n_loops" = 2', '"train.loop_window" = 2', '"train.seed" = [0, 1]']


def test_a_keeper_writes_what_changed_and_deletes_what_is_gone(tmp_path):
    keeper = Keeper(str(tmp_path / "out"))
    assert keeper.get("m") == {}
    keeper.put("m", {"config.json": b"1", "state": b"2"}, ["config.json", "state"])
    keeper.put("m", {"config.json": b"3"}, ["config.json", "state"])
    assert keeper.get("m") == {"config.json": b"3", "state": b"2"}
    keeper.put("m", {}, ["config.json"])
    assert keeper.get("m") == {"config.json": b"3"}


def test_without_ray_the_remedy_is_named(monkeypatch):
    from loopprobe.cli.options import cluster_of

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LoopprobeError, match=r"pip install 'loopprobe\[ray\]'"):
        cluster_of("ray", 1, 0)
    with pytest.raises(LoopprobeError, match="no engine is called 'slurm': choose local or ray"):
        cluster_of("slurm", 1, 0)
    assert cluster_of("local", 1, 0) is None


class Room(RayPool):
    """Of a cluster without Ray: it notes the models of every job, and does none."""

    def __init__(self, gpus, room):
        self.gpus, self.room, self.threads = gpus, room, 1
        self.jobs = []

    def keeper(self, root):
        return root

    def submit(self, fn, keepers, members, threads, together):
        self.jobs.append((len(members), together))
        done = Future()
        done.set_result(None)
        return done

    def shutdown(self, wait=True, *, cancel_futures=False):
        pass


@pytest.mark.parametrize(
    ("gpus", "room", "stack", "jobs"),
    [
        (1, 2, None, [(10, None)] * 2),  # no larger than that every worker has one
        (0.25, 1, None, [(16, None), (4, None)]),  # whether a stack is faster is found by a trial
        (0, 2, None, [(1, None)] * 20),
        (0, 2, 5, [(5, True)] * 4),
    ],
)
def test_workers_with_a_gpu_are_given_stacks(tmp_path, gpus, room, stack, jobs):
    configs, _ = read_grid(grid(tmp_path / "g.toml", f'"train.seed" = {list(range(20))}'))
    pool = Room(gpus, room)
    sweep(plan(configs, tmp_path / "out"), stack=stack, cluster=pool)
    assert pool.jobs == jobs


nodes = []  # the processes of our own cluster


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with one processor each; the environment that finds them."""
    address = f"127.0.0.1:{free_port()}"
    environment = os.environ | {"RAY_ADDRESS": address, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    small = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    head = [RAY, "start", "--head", f"--port={address.split(':')[1]}", "--include-dashboard=false", *small]
    for node in (head, [RAY, "start", f"--address={address}", *small]):
        process = subprocess.Popen([*node, "--block"], env=environment, stdout=subprocess.DEVNULL)
        nodes.append(process)
        deadline = time.monotonic() + 60
        while not any("raylet" in child.name() for child in psutil.Process(process.pid).children(recursive=True)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    yield environment
    ours = [child for process in nodes for child in psutil.Process(process.pid).children(recursive=True)]
    for process in (*nodes, *ours):  # killed: a node that is asked to end drains for half a minute first
        with suppress(psutil.NoSuchProcess):
            process.kill()
    for process in nodes:
        process.wait(30)
    nodes.clear()


@pytest.fixture
def start(cluster, tmp_path):
    """Starts a verb on the cluster; what it prints is in the file ``log``."""
    processes = []

    def started(*arguments):
        with (tmp_path / "log").open("w") as log:
            command = [LOOPPROBE, *map(str, arguments), "--engine", "ray"]
            process = subprocess.Popen(command, env=cluster, start_new_session=True, stdout=log, stderr=log)
        processes.append(process)
        return process

    yield started
    for process in processes:
        process.kill()
        process.wait()


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def step_of(folder):
    row = last_row(folder)
    return row["step"] if row else 0


def workers():
    """Processes of our own cluster that run a training now."""
    ours = [child for process in nodes for child in psutil.Process(process.pid).children(recursive=True)]
    running = []
    for child in ours:
        with suppress(psutil.NoSuchProcess):
            if any("ray::_call" in part for part in child.cmdline()):
                running.append(child.pid)
    return running


def same_as_alone(configs, tmp_path):
    torch.set_num_threads(1)
    for config, folder in configs.items():
        train(config, tmp_path / "alone" / folder)
        there, alone = (load_file(tmp_path / f / folder / "model.safetensors") for f in ("out", "alone"))
        assert all(torch.equal(there[name], alone[name]) for name in alone)
        assert read_json(tmp_path / "out" / folder)[1]["evaluation"] is not None


@pytest.mark.ray
def test_a_sweep_on_two_nodes_survives_the_death_of_a_worker(start, tmp_path):
    path = grid(tmp_path / "g.toml", *SHORT, '"train.steps" = 200')
    configs, _ = read_grid(path)
    process = start("sweep", path, "--out", tmp_path / "out")
    names = list(configs.values())
    wait_for(lambda: sum(step_of(tmp_path / "out" / name) >= 20 for name in names) == 2, process)  # one on each node
    before = workers()
    os.kill(before[0], signal.SIGKILL)
    wait_for(lambda: set(workers()) - set(before), process)  # another takes over
    assert process.wait(timeout=180) == 0
    assert not any((tmp_path / "out" / name / "state.safetensors").exists() for name in names)
    same_as_alone(configs, tmp_path)


@pytest.mark.ray
def test_ctrl_c_leaves_a_state_from_which_the_same_command_goes_on(start, tmp_path):
    path = grid(tmp_path / "g.toml", *SHORT, '"train.steps" = 600')
    path.write_text(path.read_text().replace('"train.checkpoint_every" = 5', '"train.checkpoint_every" = 600'))
    configs, _ = read_grid(path)
    process = start("sweep", path, "--out", tmp_path / "out")
    wait_for(lambda: any(step_of(tmp_path / "out" / name) >= 20 for name in configs.values()), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130
    statuses = {model.status for model in plan(configs, tmp_path / "out")}
    assert "resume" in statuses
    assert not workers()
    saved = max(step_of(tmp_path / "out" / name) for name in configs.values())
    assert 20 <= saved < 600  # where it was stopped, not where a state was due
    again = start("sweep", path, "--out", tmp_path / "out")
    assert again.wait(timeout=180) == 0
    same_as_alone(configs, tmp_path)


@pytest.mark.ray
def test_questions_get_the_same_answers_as_here(start, tmp_path):
    from loopprobe.probes.dataset import read_dataset
    from loopprobe.study.saved import answer_saved, read_saved

    text = (Path(__file__).parents[1] / "probes" / "r2_converge.toml").read_text()
    few = re.sub(
        r"checkpoints = \[.*?\]", 'checkpoints = ["lr-b5-T5", "lr-b10-T10", "nlr-b5-T5"]', text, flags=re.DOTALL
    )
    (tmp_path / "few.toml").write_text(few)
    process = start("run", tmp_path / "few.toml", "--quick", "--out", tmp_path / "there")
    assert process.wait(timeout=400) == 0
    datasets = answer_saved({"few": read_saved(tmp_path / "few.toml")}, tmp_path / "here", quick=True)["few"].datasets
    assert len(datasets) == 3
    for data in datasets:
        there = read_dataset(tmp_path / "there" / "quick" / "few" / f"{data.model.item()}.nc")
        np.testing.assert_allclose(there["mean"], data["mean"], rtol=1e-3)


@pytest.mark.ray
def test_jobs_that_no_node_can_hold_are_refused(start, tmp_path):
    path = grid(tmp_path / "g.toml", *SHORT, '"train.steps" = 3')
    process = start("sweep", path, "--out", tmp_path / "out", "--gpus", "1")
    assert process.wait(timeout=60) == 2
    assert "no node of the Ray cluster has 1 CPU and 1 GPU" in (tmp_path / "log").read_text()


DRAWN = """
from pathlib import Path
from loopprobe import TaskConfig, held_out
from loopprobe.support.cluster import RayPool

task = TaskConfig(name="my_tasks.py:AbsLinear", parameters={"slope": 2.0})
Path("my_tasks.py").unlink()  # as on another machine, where it is not
with RayPool() as pool:
    assert pool.room == 2
    far = pool.submit(held_out, task, 4, 5, 3).result()
assert far.origin["parameters"] == {"slope": 2.0}
print((far.ys - held_out(task, 4, 5, 3).ys).abs().max().item(), far.ys.abs().sum().item() > 0)
"""


@pytest.mark.ray
def test_a_task_of_ones_own_travels_to_the_cluster(cluster, tmp_path):
    (tmp_path / "my_tasks.py").write_text(CODE)
    done = subprocess.run([sys.executable, "-c", DRAWN], env=cluster, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split()[-2:] == ["0.0", "True"], done.stderr
