"""Source files of tasks: found without running them, hashed, and run from the bytes that were hashed."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import sys
import traceback
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

from loopprobe.errors import LoopprobeError


@dataclass(frozen=True)
class Source:
    """The source file of a task.

    Attributes:
        place: the file with its whole path, or the module, and behind a colon what the task is called there; None where
            the task was defined in a session.
        path: the file.
        content: the bytes of the file; None where there is none.
        sha256: the hash of the content, or of what has no file.
    """

    place: str | None = None
    path: Path | None = None
    content: bytes | None = None
    sha256: str = ""

    def __post_init__(self) -> None:
        """Hash the content."""
        if self.content is not None:
            object.__setattr__(self, "sha256", hashlib.sha256(self.content).hexdigest())


def _is_file(where: str) -> bool:
    return where.endswith(".py") or "/" in where or "\\" in where


def named_module(place: str, what: str = "task") -> Source:
    """Find the source that a person names as ``file.py:Name`` or ``package.module:Name``.

    Args:
        place: as it was typed.
        what: what is looked for there, for messages.

    Raises:
        LoopprobeError: there is no such file or module.
    """
    where, _, name = place.rpartition(":")
    if not where or not name:
        raise LoopprobeError(f"{what} {place!r} must be FILE.py:NAME or package.module:NAME: give both parts")
    if _is_file(where):
        place = f"{Path(where).expanduser().resolve()}:{name}"
    source = source_of(place)
    if source.content is None:
        kind = "file" if _is_file(where) else "module"
        raise LoopprobeError(f"there is no {kind} {where} for {what} {name}: check the {kind}, or where you are")
    return source


def source_of(place: str) -> Source:
    """Read the source of a place, and run nothing: neither it nor the packages around it."""
    where = place.rpartition(":")[0]
    path = Path(where) if _is_file(where) else _path_of_module(where)
    try:
        return Source(place, path, None if path is None else path.read_bytes())
    except OSError:
        return Source(place, path)


def _path_of_module(name: str) -> Path | None:
    """The file of a module; importlib's find_spec would import the packages around it."""
    folders = None
    parts = name.split(".")
    for i in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: i + 1]), folders)
        if spec is None:
            return None
        folders = spec.submodule_search_locations
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def module_of_file(source: Source) -> ModuleType:
    """Import the source: a module by its name, and a file by running the bytes that were hashed.

    Raises:
        LoopprobeError: it raises an error.
    """
    assert source.place is not None
    assert source.content is not None
    where = source.place.rpartition(":")[0]
    try:
        if not _is_file(where):
            return import_module(where)
        return _run(source.content, Path(where))
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(frames) if frame.filename == where), None)
        at = f" at line {line}" if line else ""
        reason = " ".join(str(error).split())
        raise LoopprobeError(
            f"{where} cannot be imported ({type(error).__name__}{at}: {reason}): mend it, or what it imports"
        ) from error


def _run(content: bytes, path: Path) -> ModuleType:
    name = f"loopprobe_task_{hashlib.sha256(str(path).encode() + content).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_loader(name, loader=None, origin=str(path))
    assert spec is not None
    module = module_from_spec(spec)
    module.__file__ = str(path)
    code = compile(content, str(path), "exec")
    sys.modules[name] = module  # dataclasses look up their module
    try:
        exec(code, module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def attribute_of(module: ModuleType, place: str) -> Any:
    """Return what a place names in its module.

    Raises:
        LoopprobeError: there is nothing of this name.
    """
    where, _, name = place.rpartition(":")
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        names = [key for key in names if getattr(vars(module)[key], "__module__", "") == module.__name__] or names
        near = difflib.get_close_matches(name, names, n=2) or names[:4]
        hint = f"did you mean {' or '.join(near)}?" if near else "define it there"
        raise LoopprobeError(f"{where} has no {name}: {hint}")
    return found


def file_of_module(module: ModuleType | None) -> Path | None:
    """The source file of a module that is imported; None where there is none."""
    file = getattr(module, "__file__", None)
    return Path(file) if file and Path(file).suffix == ".py" and Path(file).is_file() else None


def hash_of(task: Any) -> str:
    """The hash of the source of a class or a function that has no file; "unknown" where there is no source."""
    try:
        return hashlib.sha256(inspect.getsource(task).encode()).hexdigest()
    except (OSError, TypeError):
        return "unknown"
