"""Sweeps: a grid file names many models, and those that are missing are trained, several at once.

A grid file holds one or more ``[[grid]]`` tables of dotted configuration keys. A list of values is an axis, and the
models of a table are the product of its axes:

    [[grid]]
    "model.n_loops" = [5, 10, 20]
    "train.loop_window" = [10, 20]

A table may start from a preset by ``preset = "reference"``.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loopprobe.config.schema import Config, without_seed
from loopprobe.config.sources import make_config, merge, nested, read_preset, read_toml
from loopprobe.errors import LoopprobeError
from loopprobe.store.checkpoint import METRICS
from loopprobe.store.record import read_json
from loopprobe.store.shipped import CONFIG
from loopprobe.store.tensors import STATE
from loopprobe.support.cluster import FreshProcesses, RayPool, kept
from loopprobe.support.device import pick_device
from loopprobe.training.runs import Row
from loopprobe.training.train import start, train_runs

STACK = 16  # the most models that a GPU trains as one

Status = Literal["new", "resume", "done", "differs"]


TOLD = ("train.seed", "train.steps", "train.optimizer", "train.loop_window")  # by the name of every configuration
NO_DIFFERENCE = ("train.device", "train.checkpoint_every", "train.log_every")  # to the model that is trained


@dataclass(frozen=True)
class Planned:
    """A model of the grid, with its folder and the status of that folder."""

    name: str
    config: Config
    folder: Path
    status: Status

    @property
    def todo(self) -> bool:
        """True where it is to be trained, from the start or from its saved state."""
        return self.status in ("new", "resume")

    @property
    def steps(self) -> int:
        """The number of training steps in all."""
        return self.config.train.steps


def read_grid(path: Path) -> tuple[dict[Config, str], list[str]]:
    """Read the models of a grid file, each once, with their names, and notes on what was changed.

    A window above the loop count is lowered to the loop count, since all loops carry the loss in both cases. A name is
    that of the configuration; a key of the grid that makes a difference which it does not tell is added
    (``lr-b20-T10-muon_lr0.01``).

    Raises:
        LoopprobeError: there is no such file, it is not TOML, it has no ``[[grid]]``, or it holds an invalid value.
    """
    tree = read_toml(path, "grid file")
    tables = tree.get("grid")
    if not isinstance(tables, list) or set(tree) - {"grid"}:
        raise LoopprobeError(f"{path} must hold [[grid]] tables and nothing else: see `loopprobe sweep --help`")
    configs: dict[Config, str] = {}
    notes: list[str] = []
    for table in tables:
        axes = [
            [(key, value) for value in (values if isinstance(values, list) else [values])]
            for key, values in table.items()
        ]
        for point in itertools.product(*axes):
            config = _config(dict(point), notes)
            configs[config] = _name(config, dict(point))
    return configs, notes


def _name(config: Config, point: dict[str, Any]) -> str:
    """Return the name of a model of the grid, with those of its keys that make a difference and are not told."""
    keys = [key for key in point if key.startswith("train.") and key not in (*TOLD, *NO_DIFFERENCE)]
    untold = [f"{key.removeprefix('train.')}{_words(point[key])}" for key in keys if _is_untold(key, point, config)]
    stem = without_seed(config.name)
    return "-".join([stem, *untold]) + config.name.removeprefix(stem)


def _is_untold(key: str, point: dict[str, Any], config: Config) -> bool:
    try:
        without = _config({other: value for other, value in point.items() if other != key}, [])
    except LoopprobeError:
        return False  # other keys need it, and tell it
    field = key.removeprefix("train.").split(".")[0]
    return getattr(without.train, field) != getattr(config.train, field) and without.name == config.name


def _words(value: Any) -> str:
    parts = value.values() if isinstance(value, dict) else [value]
    return "_".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts)


def _config(point: dict[str, Any], notes: list[str]) -> Config:
    loops = point.get("model.n_loops", Config().model.n_loops)
    window = point.get("train.loop_window", Config().train.loop_window)
    if isinstance(loops, int) and isinstance(window, int) and window > loops:
        if loops > 1:
            notes.append(f"window {window} is above {loops} loops: it is {loops}")
        point = point | {"train.loop_window": loops}
    preset = point.get("preset")
    tree: dict[str, Any] = {} if preset is None else read_preset(preset)
    for key, value in point.items():
        if key == "preset":
            continue
        tree = merge(tree, nested(key, value))
    return make_config(tree, preset)


def plan(configs: Iterable[Config] | Mapping[Config, str], out: Path) -> list[Planned]:
    """Find the status of each model in the folder ``out``; they have the names that come with them, or their own."""
    planned = []
    for config in configs:
        name = configs[config] if isinstance(configs, Mapping) else config.name
        planned.append(Planned(name, config, out / name, _status(config, out / name)))
    counts = Counter(model.name for model in planned)
    if repeated := {name for name, count in counts.items() if count > 1}:
        raise LoopprobeError(f"two different models of the grid are called {min(repeated)}: give them different seeds")
    return planned


def _status(config: Config, folder: Path) -> Status:
    if not (folder / CONFIG).exists():
        return "new"
    recorded, tree = read_json(folder)
    if recorded != config:
        return "differs"
    return "resume" if tree["evaluation"] is None else "done"


def stacks(todo: Iterable[Planned], size: int | None, workers: int = 1) -> list[list[Planned]]:
    """Group the models that can be trained as one (see ``training.stack``), at most ``size`` to a stack.

    A size of None stands for 16 on a GPU and 1 elsewhere. Stacks are made smaller so that every worker has one. They
    are in the order of their first models.
    """
    alike: dict[Any, list[Planned]] = {}
    place: dict[str, int] = {}
    for model in todo:
        place[model.name] = len(place)
        alike.setdefault(_shapes(model), []).append(model)
    groups = []
    for members in alike.values():
        most = size or (STACK if pick_device(members[0].config.train.device).type == "cuda" else 1)
        most = min(most, math.ceil(len(members) / workers))
        groups += [members[i : i + most] for i in range(0, len(members), most)]
    return sorted(groups, key=lambda members: place[members[0].name])


def _shapes(model: Planned) -> tuple[Any, ...]:
    """Return what models of one stack must have in common: their shapes, the shapes of their prompts, and the step."""
    cfg, train = model.config, model.config.train
    step = read_json(model.folder)[1]["step"] if model.status == "resume" else 0
    bare = dataclasses.asdict(cfg.model) | {"injection": None}
    if not cfg.model.loop_embedding:
        bare["n_loops"] = None
    return tuple(bare.items()), train.steps, train.batch_size, train.points, train.precision, train.device, step


def sweep(
    planned: Sequence[Planned],
    workers: int = 1,
    report: Callable[[dict[str, dict[str, Any]]], None] = lambda rows: None,
    *,
    stack: int | None = None,
    cluster: RayPool | None = None,
) -> None:
    """Train the models that are new or unfinished: ``workers`` at once, or as many as a cluster has room for.

    Args:
        planned: the result of ``plan``; models that are done or differ are skipped.
        workers: number of models trained at a time in processes of this machine, which share its threads.
        stack: number of models of the same shapes that are trained as one. None stands for up to 16 on a GPU, if a
            trial in their first steps finds that faster, and for 1 elsewhere; on a cluster a GPU is what its jobs ask
            for. A worker takes the next stack when it has ended one, so that a faster GPU trains more of them.
        cluster: the Ray cluster that trains them instead, see ``loopprobe.support.cluster``; it is left at the end.
        report: a function that is called every second with the last row of metrics of each model that has one.

    Raises:
        LoopprobeError: a model could not be trained; the others are finished first.
    """
    todo = [model for model in planned if model.todo]
    with cluster or FreshProcesses(workers) as pool:
        futures: dict[Future[None], list[Planned]] = {}
        rows: dict[str, dict[str, Any]] = {}
        together = None if stack is None else True
        if isinstance(pool, RayPool):
            keepers = {folder: pool.keeper(folder) for folder in {m.folder.parent for m in todo}}
            for members in stacks(todo, stack or (STACK if pool.gpus else 1), pool.room):
                kept_by = [keepers[m.folder.parent] for m in members]
                futures[pool.submit(_train_kept, kept_by, members, pool.threads, together)] = members
        else:
            for members in stacks(todo, stack, workers):
                folders = [m.folder for m in members]
                futures[pool.submit(_train, members, folders, pool.threads, together)] = members
        waiting = set(futures)
        try:
            while waiting:
                ended, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
                going = (model for future in ended | waiting for model in futures[future])
                rows |= {model.name: row for model in going if (row := last_row(model.folder)) is not None}
                report(rows)
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)  # the workers are interrupted too, and save
            raise
    failed = [(members, error) for future, members in futures.items() if (error := future.exception()) is not None]
    if failed:
        raise LoopprobeError("; ".join(f"{_names(members)}: {error}" for members, error in failed))


def last_row(folder: Path) -> dict[str, Any] | None:
    """Read the last complete row of a run's metrics."""
    path = folder / METRICS
    if not path.exists():
        return None
    lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    return json.loads(lines[-1]) if lines else None


def _names(members: Iterable[Planned]) -> str:
    return ", ".join(model.name for model in members)


def _train(
    members: Sequence[Planned],
    folders: Sequence[Path],
    threads: int,
    together: bool | None,
    reports: Sequence[Callable[[Row], None]] = (),
) -> None:
    import torch

    torch.set_num_threads(threads)
    runs = []
    for model, folder, report in zip(members, folders, reports or [_then(lambda: None)] * len(members), strict=True):
        resume = (folder / STATE).exists()
        runs.append(start(model.config, folder, resume=resume, overwrite=not resume, report=report))
    train_runs(runs, together)


def _then(act: Callable[[], None]) -> Callable[[Row], None]:
    return lambda row: act()


def _train_kept(keepers: Sequence[Any], members: Sequence[Planned], threads: int, together: bool | None) -> None:
    """Train models from the files that the keepers hold, and send new files back to them.

    This may run on another machine than the keepers.
    """
    with ExitStack() as opened:
        pairs = [opened.enter_context(kept(keeper, model.name)) for keeper, model in zip(keepers, members, strict=True)]
        _train(members, [folder for folder, _ in pairs], threads, together, [_then(send) for _, send in pairs])
