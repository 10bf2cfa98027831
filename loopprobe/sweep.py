"""Training many models: a grid file names them, those that are missing are trained, several at once.

A grid file holds one or more ``[[grid]]`` tables of dotted configuration keys; a list of values is an axis, and
the models of a table are the product of its axes:

    [[grid]]
    "model.n_loops" = [5, 10, 20]
    "train.loop_window" = [10, 20]
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from loopprobe.checkpoint import CONFIG, METRICS, STATE, read_json
from loopprobe.cluster import RayPool, kept
from loopprobe.config import Config, build
from loopprobe.errors import LoopprobeError
from loopprobe.runs import Row
from loopprobe.settings import merge, nested, read_toml
from loopprobe.train import train

Status = Literal["new", "resume", "done", "differs"]


@dataclass(frozen=True)
class Planned:
    """A model of the grid: its name, where it goes, and what is there."""

    name: str
    config: Config
    folder: Path
    status: Status

    @property
    def todo(self) -> bool:
        """Whether it is to be trained, from the start or from where it was."""
        return self.status in ("new", "resume")

    @property
    def steps(self) -> int:
        """Training steps in all."""
        assert self.config.train is not None, "a grid trains its models"
        return self.config.train.steps


def read_grid(path: Path) -> tuple[list[Config], list[str]]:
    """The models of a grid file, each once, and notes on what was changed.

    A window above the loop count is the loop count (all loops carry the loss), so such models are the same.

    Raises:
        LoopprobeError: no such file, not TOML, no ``[[grid]]``, or a value that a Config refuses.
    """
    tree = read_toml(path, "grid file")
    tables = tree.get("grid")
    if not isinstance(tables, list) or set(tree) - {"grid"}:
        raise LoopprobeError(f"{path} must hold [[grid]] tables and nothing else: see `loopprobe sweep --help`")
    configs: list[Config] = []
    notes: list[str] = []
    for table in tables:
        axes = [
            [(key, value) for value in (values if isinstance(values, list) else [values])]
            for key, values in table.items()
        ]
        for point in itertools.product(*axes):
            config = _config(dict(point), notes)
            if config not in configs:
                configs.append(config)
    return configs, notes


def _config(point: dict[str, Any], notes: list[str]) -> Config:
    loops = point.get("model.n_loops", Config().model.n_loops)
    window = point.get("train.loop_window", Config().train.loop_window)  # type: ignore[union-attr]
    if isinstance(loops, int) and isinstance(window, int) and window > loops:
        if loops > 1:
            notes.append(f"window {window} is above {loops} loops: it is {loops}")
        point = point | {"train.loop_window": loops}
    tree: dict[str, Any] = {}
    for key, value in point.items():
        tree = merge(tree, nested(key, value))
    return build(Config, tree)


def plan(configs: Iterable[Config], out: Path) -> list[Planned]:
    """What there is to do for each model in the folder ``out``."""
    planned = []
    for config in configs:
        folder = out / config.name
        planned.append(Planned(config.name, config, folder, _status(config, folder)))
    names = [model.name for model in planned]
    if twice := {name for name in names if names.count(name) > 1}:
        raise LoopprobeError(f"two different models of the grid are called {min(twice)}: give them different seeds")
    return planned


def _status(config: Config, folder: Path) -> Status:
    if not (folder / CONFIG).exists():
        return "new"
    recorded, tree = read_json(folder)
    if recorded != config:
        return "differs"
    return "resume" if tree["evaluation"] is None else "done"


def sweep(
    planned: Sequence[Planned],
    workers: int = 1,
    report: Callable[[dict[str, dict[str, Any]]], None] = lambda rows: None,
    *,
    cluster: RayPool | None = None,
) -> None:
    """Train the models that are new or unfinished: ``workers`` at once, or as many as a cluster has room for.

    Args:
        planned: from ``plan``; those that are done or differ are passed over.
        workers: models at a time in processes of this machine, whose threads are divided among them.
        cluster: trains them instead, see ``loopprobe.cluster``; it is left at the end.
        report: called every second with the last row of metrics of each model that has one.

    Raises:
        LoopprobeError: a model could not be trained; the others are finished first.
    """
    todo = [model for model in planned if model.todo]
    with cluster or _processes(workers) as pool:
        futures: dict[Future[None], Planned] = {}
        if isinstance(pool, RayPool):
            keepers = {folder: pool.keeper(folder) for folder in {m.folder.parent for m in todo}}
            for m in todo:
                futures[pool.submit(_train_kept, keepers[m.folder.parent], m.config, m.name, pool.threads)] = m
        else:
            threads = max(1, (os.cpu_count() or 1) // workers)
            for m in todo:
                futures[pool.submit(_train_one, m.config, m.folder, threads)] = m
        waiting = set(futures)
        try:
            while waiting:
                _, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
                report({model.name: row for model in todo if (row := last_row(model.folder)) is not None})
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)  # the workers were interrupted too, and save
            raise
    failed = [(futures[future].name, error) for future in futures if (error := future.exception()) is not None]
    if failed:
        raise LoopprobeError("; ".join(f"{name}: {error}" for name, error in failed))


def last_row(folder: Path) -> dict[str, Any] | None:
    """The last whole row of a run's metrics."""
    path = folder / METRICS
    if not path.exists():
        return None
    lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    return json.loads(lines[-1]) if lines else None


def _processes(workers: int) -> ProcessPoolExecutor:
    # spawn: a forked child would inherit torch's thread pool in an unusable state
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), max_tasks_per_child=1)


def _train_one(config: Config, folder: Path, threads: int, report: Callable[[Row], None] = lambda row: None) -> None:
    import torch

    torch.set_num_threads(threads)
    resume = (folder / STATE).exists()
    train(config, folder, resume=resume, overwrite=not resume, report=report)


def _train_kept(keeper: Any, config: Config, name: str, threads: int) -> None:
    """On another machine, perhaps: from what the keeper has of the run, and sending it what comes to that."""
    with kept(keeper, name) as (folder, send):
        _train_one(config, folder, threads, lambda row: send())
