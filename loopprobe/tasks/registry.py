"""Tasks by name: those that ship, those that are registered, and those in modules and files.

Which code runs when. A file or module runs where a person names it: in a configuration, in ``--task``, or by
``register_task``. A checkpoint records the place of its task and the SHA-256 of the source file. Loading a checkpoint
runs nothing; when prompts are drawn, the recorded file runs only if it still has this hash, and what runs are the bytes
that were hashed. What has moved or changed has to be named again.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from loopprobe.config.schema import TaskConfig
from loopprobe.errors import LoopprobeError
from loopprobe.tasks.interface import UNTRIED, RegressionTask, Task, TokenTask, name_of
from loopprobe.tasks.sources import (
    Source,
    attribute_of,
    file_of_module,
    hash_of,
    module_of_file,
    named_module,
    source_of,
)

GROUP = "loopprobe.tasks"  # of the entry points of installed packages
SHIPPED = {
    "linear_regression": "regression:LinearRegression",
    "noisy_linear_regression": "regression:NoisyLinearRegression",
    "sparse_linear_regression": "regression:SparseLinearRegression",
    "decision_tree": "regression:DecisionTree",
    "relu_network": "regression:ReluNetwork",
    "tables": "regression:Tables",
    "parity": "algebra:Parity",
    "copy": "lookups:Copy",
    "reverse": "lookups:Reverse",
    "addition": "algebra:Addition",
    "modular_addition": "algebra:ModularAddition",
    "cyclic": "algebra:Cyclic",
    "s5": "algebra:SymmetricGroup",
    "p_hop": "lookups:PHop",
    "pointer": "lookups:Pointer",
    "dyck": "lookups:Dyck",
}


@dataclass(frozen=True)
class Entry:
    """A task that was found.

    Attributes:
        name: what it is called.
        make: makes the task from its parameters.
        source: where it is.
        defaults: its parameters with their defaults.
    """

    name: str
    make: Callable[..., Task]
    source: Source = field(default_factory=Source)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shipped(self) -> bool:
        """Whether it ships with loopprobe."""
        return self.name in SHIPPED

    @property
    def reads_tokens(self) -> bool:
        """Whether its prompts are tokens."""
        return isinstance(self.make, type) and issubclass(self.make, TokenTask)


_REGISTERED: dict[str, Entry] = {}  # by their names: those that a person has named for every checkpoint
_SEEN: dict[tuple[str, str], Entry] = {}  # by their names and hashes: all that were found in this process
_BROUGHT: dict[tuple[str, str], Source] = {}  # that another process has sent, by the name and hash of a configuration


def register_task(task: Any, name: str | None = None) -> TaskConfig:
    """Register a task under a name, for configurations, and for checkpoints whose task has moved or changed.

    Args:
        task: a class of ``RegressionTask`` or ``TokenTask``; a function from (n_prompts, n_points, n_dims, generator)
            to xs and ys; or where one is, as ``file.py:Name`` or ``package.module:Name``.
        name: what it is called; None: its own name.

    Returns:
        The configuration of the task with its defaults, as ``Config(task=…)`` takes it.

    Raises:
        LoopprobeError: it is no task, cannot be imported, or another one has the name.
    """
    entry = _located(task, name) if isinstance(task, str) else entry_of(task, name)
    known = _REGISTERED.get(entry.name)
    if known is not None and known.source.place != entry.source.place:
        raise LoopprobeError(
            f"another task is registered as {entry.name!r} ({known.source.place or 'of this session'}): give one of "
            "them another name"
        )
    _REGISTERED[entry.name] = _seen(entry)
    return _configuration(entry, {})


def task_config(task: Any) -> TaskConfig:
    """Return the configuration of a task that is given as such, by name or place, as a class, function or instance.

    Raises:
        LoopprobeError: see ``register_task``.
    """
    if isinstance(task, TaskConfig):
        return task
    if isinstance(task, str):
        return TaskConfig(name=task)
    instance = isinstance(task, Task)
    entry = _seen(entry_of(type(task) if instance else task))
    return _configuration(entry, {name: getattr(task, name) for name in entry.defaults} if instance else {})


def _configuration(entry: Entry, given: dict[str, Any]) -> TaskConfig:
    length = given.pop("length", None)
    source, sha256 = entry.source.place, entry.source.sha256
    return TaskConfig(name=entry.name, length=length, parameters=given or None, source=source, sha256=sha256)


def find(name: str) -> Entry:
    """Find a task that a person names.

    Args:
        name: of a task that ships, is registered or is an entry point; or ``file.py:Name``, ``package.module:Name``.

    Raises:
        LoopprobeError: there is none, or it cannot be imported.
    """
    if name in SHIPPED:
        return _shipped(name)
    if name in _REGISTERED:
        return _REGISTERED[name]
    if ":" in name:
        return _seen(_located(name))
    points = {point.name: point.value for point in entry_points(group=GROUP)}
    if name in points:
        return _seen(_located(points[name], name))
    known = [*SHIPPED, *_REGISTERED, *points]
    near = difflib.get_close_matches(name, known, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}, or give file.py:Name"
    raise LoopprobeError(f"no task is called {name[:60]!r}: {hint}")


def known(task: TaskConfig) -> Entry | None:
    """Return the entry of a task where no foreign code has to run for it, else None."""
    if task.sha256 is None:
        return find(task.name)
    return _SEEN.get((task.name, task.sha256)) or _REGISTERED.get(task.name)


def entry_for(task: TaskConfig) -> Entry:
    """Return the entry of a task, importing it from its recorded place if it is unchanged there.

    Raises:
        LoopprobeError: it is not there, it has changed, or it was defined in a session.
    """
    if (entry := known(task)) is not None:
        return entry
    key = task.name, str(task.sha256)
    if key in _BROUGHT:
        return _seen(_loaded(_BROUGHT[key], task.name), key)
    name = (task.source or task.name).rpartition(":")[2]
    again = f"name it again (--task FILE.py:{name}, or loopprobe.register_task)"
    if task.source is None:
        raise LoopprobeError(
            f"task {task.name} was defined in a session, and no file of it is recorded: {again}, or give prompts="
        )
    source = source_of(task.source)
    if source.content is None:
        raise LoopprobeError(f"task {task.name} is not at {task.source}: restore it, {again}, or give prompts=")
    if source.sha256 != task.sha256:
        raise LoopprobeError(
            f"task {task.name} has changed since the training: {source.path} has the hash {source.sha256[:8]} and "
            f"{key[1][:8]} is recorded; restore it, {again} if it still draws the same prompts, or give prompts="
        )
    return _seen(_loaded(source, task.name))


def rules_of(task: TaskConfig) -> Task:
    """Make the task of a configuration, see ``entry_for``."""
    entry = entry_for(task)
    return made(entry, task.arguments(entry.defaults))


def made(entry: Entry, arguments: Mapping[str, Any]) -> Task:
    """Make a task from its parameters.

    Raises:
        LoopprobeError: its constructor refuses them.
    """
    try:
        task = entry.make(**arguments)
    except (TypeError, ValueError) as error:
        raise LoopprobeError(f"task {entry.name} cannot be made ({error}): change task.parameters") from None
    if not entry.shipped:
        task.__dict__.update({"name": entry.name, UNTRIED: True})
        names = [list(getattr(task, part, ())) for part in ("inputs", "outputs")]
        if isinstance(task, TokenTask) and (
            not names[0]
            or any(len(set(part)) < len(part) or not all(isinstance(n, str) for n in part) for part in names)
        ):
            raise LoopprobeError(
                f"task {entry.name} must name its tokens: set inputs, such as ('a', 'b'), each a string and once; "
                "outputs where answers have other names"
            )
    return task


def sent(task: TaskConfig) -> Source | None:
    """Return what another process needs to make the same task; None where it ships or this process cannot either."""
    entry = None if task.sha256 is None else known(task)
    if entry is None:
        return _BROUGHT.get((task.name, str(task.sha256)))
    return entry.source


def bring(task: TaskConfig, source: Source) -> None:
    """Take what another process has sent: a pickle can run any code, so whoever reads one trusts it."""
    if source.place is not None:
        _BROUGHT[task.name, str(task.sha256)] = source


def entry_of(task: Any, name: str | None = None, source: Source | None = None) -> Entry:
    """Return the entry of a class or a function.

    Raises:
        LoopprobeError: it is neither, or its name is that of a task that ships.
    """
    make = task
    if isinstance(task, type) and issubclass(task, RegressionTask | TokenTask):
        called = name or task.name or task.__name__
    elif inspect.isfunction(task):
        called = name or task.__name__
        make = _task_of_function(task)
    else:
        raise LoopprobeError(
            f"{task!r:.60} is no task: give a class of loopprobe.RegressionTask or loopprobe.TokenTask, or a function "
            "from (n_prompts, n_points, n_dims, generator) to xs and ys"
        )
    if called in SHIPPED:
        raise LoopprobeError(f"{called!r} is the name of a task that ships with loopprobe: choose another name")
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", called):
        raise LoopprobeError(f"name of a task ({called!r}) must be of letters, digits, '_', '-' and '.': change it")
    return Entry(called, make, source or _source_of_object(task), parameters_of(make))


def parameters_of(make: Callable[..., Task]) -> dict[str, Any]:
    """Return the parameters of a task with their defaults.

    Raises:
        LoopprobeError: one has no default.
    """
    parameters = inspect.signature(make).parameters.values()
    if bare := [p.name for p in parameters if p.default is p.empty]:
        raise LoopprobeError(f"parameter {bare[0]} of {getattr(make, '__name__', make)} has no default: give it one")
    return {p.name: p.default for p in parameters}


def _task_of_function(function: Any) -> Callable[..., Task]:
    """A class of tasks whose parameters are the keyword-only ones of a function."""
    parameters = inspect.signature(function).parameters.values()
    further = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) != 4:
        raise LoopprobeError(
            f"function {function.__name__} must take (n_prompts, n_points, n_dims, generator), and further parameters "
            "by keyword alone: change it, or write a class of loopprobe.TokenTask for tokens"
        )

    class OfFunction(RegressionTask):
        __doc__ = function.__doc__

        def __init__(self, **given: Any) -> None:
            self.draw = functools.partial(function, **given)  # type: ignore[method-assign]

    OfFunction.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what parameters_of reads
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default) for name, default in further.items()]
    )
    return OfFunction


@functools.cache
def _shipped(name: str) -> Entry:
    module, _, attribute = SHIPPED[name].partition(":")
    make = getattr(import_module(f"loopprobe.tasks.{module}"), attribute)
    return Entry(name, make, Source(), parameters_of(make))


def _seen(entry: Entry, key: tuple[str, str] | None = None) -> Entry:
    _SEEN[key or (entry.name, entry.source.sha256)] = entry
    return entry


def _located(place: str, name: str | None = None) -> Entry:
    """Import a task from where a person says that it is."""
    return _loaded(named_module(place), name)


def _loaded(source: Source, name: str | None) -> Entry:
    assert source.place is not None
    return entry_of(attribute_of(module_of_file(source), source.place), name, source)


def _source_of_object(task: Any) -> Source:
    """Where a class or function of this process is; without a place where another process could not import it."""
    module = sys.modules.get(task.__module__)
    file = file_of_module(module)
    if file is None or task.__module__ == "__main__" or "<" in task.__qualname__:
        return Source(sha256=hash_of(task))
    package = task.__module__ if "." in task.__module__ else str(file)
    return Source(f"{package}:{task.__qualname__}", file.resolve(), file.read_bytes())


__all__ = ["Entry", "Source", "entry_for", "find", "known", "name_of", "register_task", "rules_of"]
