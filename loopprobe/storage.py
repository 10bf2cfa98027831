"""Writing to disk so that nothing is ever half written or overwritten unasked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loopprobe.errors import LoopprobeError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes path's name once the block has ended without error."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.chmod(0o644)  # some writers leave it to its owner alone
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """Write readable JSON, whole or not at all."""
    with atomic(path) as partial:
        partial.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def fresh_folder(parent: Path, name: str) -> Path:
    """Make parent/name, or parent/name-2 and so on where that exists: no run replaces another unasked."""
    number = 1
    while (path := parent / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return new_folder(path)


def new_folder(path: Path, overwrite: bool = False) -> Path:
    """Make an empty output folder, with its parents.

    Raises:
        LoopprobeError: it exists with something in it and ``overwrite`` is not given, it is a file, or it
            cannot be written.
    """
    try:
        if path.is_dir() and any(path.iterdir()):
            if not overwrite:
                raise LoopprobeError(f"{path} exists: give another --out or add --overwrite")
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise LoopprobeError(f"cannot write to {path} ({error.strerror}): give another --out") from None
    return path
