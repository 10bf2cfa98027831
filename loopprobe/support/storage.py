"""Storage: files that are never written in part, lost, or overwritten without consent.

A folder that loopprobe makes has a manifest of the files that loopprobe wrote there. No other file in it is ever
deleted or replaced, and only one process works in it at a time.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from loopprobe.errors import LoopprobeError

MANIFEST, LOCK = ".loopprobe.json", ".loopprobe.lock"
PARTIAL = ".loopprobe-partial-"  # prefix of folders in which files are written before they get their names
_RUN = {"config.json", "model.safetensors", "metrics.jsonl", "state.safetensors"}  # files of a run older than manifests


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path, which is renamed to ``path`` once the block has ended without error.

    Raises:
        LoopprobeError: the folder has a manifest and holds a file of this name that loopprobe did not write.
    """
    require_ours(path.parent, path.name)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=path.parent) as folder:
        partial = Path(folder) / path.name  # some writers put temporary files beside it
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.chmod(0o644)  # some writers make it readable for its owner only
        claim(path.parent, path.name)  # claimed first: a kill in between must not leave it unclaimed
        partial.replace(path)


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """Write readable JSON, completely or not at all."""
    with atomic(path) as partial:
        partial.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


# The manifest


def owned(folder: Path) -> set[str]:
    """Return the names that loopprobe wrote in a folder, by its manifest or as a run that is older than manifests."""
    if (folder / MANIFEST).exists():
        return set(_manifest(folder)["files"])
    with suppress(OSError, ValueError, RecursionError):
        tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if isinstance(tree, dict) and {"format", "config", "provenance"} <= tree.keys():
            return _RUN
    return set()


def claim(folder: Path, *names: str) -> None:
    """Add names that loopprobe writes to the manifest of a folder, if it has one."""
    if (folder / MANIFEST).exists() and not set(names) <= set(_manifest(folder)["files"]):
        _write_manifest(folder, {"files": sorted({*_manifest(folder)["files"], *names})})


def require_ours(folder: Path, *names: str) -> None:
    """Raise LoopprobeError if a folder with a manifest holds one of the names and loopprobe did not write it."""
    if (folder / MANIFEST).exists():
        for name in names:
            if name not in owned(folder) and os.path.lexists(folder / name):
                raise _not_ours(folder / name)


def _not_ours(path: Path) -> LoopprobeError:
    return LoopprobeError(f"{path} is there and loopprobe did not write it: move it away or give another folder")


def _entries(folder: Path) -> list[str]:
    """List the names in a folder, without the manifest, the lock and partial files."""
    hidden = {MANIFEST, LOCK}
    return sorted(e.name for e in folder.iterdir() if e.name not in hidden and not e.name.startswith(PARTIAL))


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        tree = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if isinstance(tree.get("files"), list):
            return tree
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    return {"files": []}


def _write_manifest(folder: Path, changed: dict[str, Any]) -> None:
    partial = folder / f"{PARTIAL}{os.getpid()}.json"
    partial.write_text(json.dumps({**_manifest(folder), **changed}) + "\n", encoding="utf-8")
    partial.replace(folder / MANIFEST)


# Folders


class Claimed:
    """A folder that only this process works in until it is released.

    Args:
        path: the path of the folder, which is made with its parents.
        made: True if ``remove`` may delete the folder; None stands for True where the folder does not exist yet.

    Raises:
        LoopprobeError: another process works in the folder, the path is a file, or it cannot be written.
    """

    def __init__(self, path: Path, *, made: bool | None = None) -> None:
        self.path = path
        self._made = not path.exists() if made is None else made
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / LOCK, timeout=0, thread_local=False)
            self._lock.acquire()
        except Timeout:
            holder = _manifest(path).get("process", {})
            who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
            raise LoopprobeError(
                f"{path} is in use by {who}: wait until it ends, end it, or give another folder"
            ) from None
        except OSError as error:
            raise LoopprobeError(f"cannot write to {path} ({error.strerror or error}): give another --out") from None
        try:
            for partial in path.glob(f"{PARTIAL}*"):  # left by writers that were killed
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
            process = {"pid": os.getpid(), "host": socket.gethostname()}
            _write_manifest(path, {"files": sorted(owned(path)), "process": process})
        except OSError as error:
            self.release()
            raise LoopprobeError(f"cannot write to {path} ({error.strerror or error}): give another --out") from None

    def release(self) -> None:
        """Release the folder to other processes."""
        self._lock.release()

    def empty(self, overwrite: bool) -> None:
        """Make sure that the folder is empty; with ``overwrite``, delete the files that loopprobe wrote.

        Raises:
            LoopprobeError: the folder holds something that may not be deleted.
        """
        _require_empty(self.path, overwrite)
        for name in _entries(self.path):
            _delete(self.path / name)
        _write_manifest(self.path, {"files": []})

    def remove(self) -> None:
        """Delete the files that loopprobe wrote, and the folder if this claim has made it and it is empty then."""
        for name in owned(self.path) & set(_entries(self.path)):
            _delete(self.path / name)
        if self._made and not _entries(self.path):
            shutil.rmtree(self.path)
        self.release()


def _require_empty(path: Path, overwrite: bool) -> None:
    entries = _entries(path)
    if entries and not overwrite:
        raise LoopprobeError(f"{path} exists: give another --out or add --overwrite")
    if foreign := [name for name in entries if name not in owned(path)]:
        raise LoopprobeError(
            f"{path} holds {foreign[0]}, which loopprobe did not write: move it away or give another --out"
        )


def _delete(place: Path) -> None:
    shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()


_held: list[Claimed] = []  # folders that commands hold until they end


def hold(claimed: Claimed) -> Path:
    """Hold a claimed folder until ``release_all``, for a command of the command line; return its path."""
    _held.append(claimed)
    return claimed.path


def release_all() -> None:
    """Release all folders that are held."""
    while _held:
        _held.pop().release()


def discard_empty(path: Path) -> None:
    """Delete a held folder if its claim has made it and nothing was written there."""
    for claimed in [claimed for claimed in _held if claimed.path == path and not _entries(path)]:
        _held.remove(claimed)
        claimed.remove()


def claim_new(path: Path, overwrite: bool = False) -> Claimed:
    """Make an empty folder, with its parents, that only this process works in.

    Args:
        path: the path of the folder.
        overwrite: True deletes the files that loopprobe wrote there.

    Raises:
        LoopprobeError: the folder is not empty, and ``overwrite`` is False or loopprobe did not write all of it;
            another process works in it; the path is a file; or it cannot be written.
    """
    if path.is_dir():
        _require_empty(path, overwrite)  # checked before loopprobe writes anything into it
    claimed = Claimed(path)
    try:
        claimed.empty(overwrite)
    except BaseException:
        claimed.release()
        raise
    return claimed


def new_folder(path: Path, overwrite: bool = False) -> Path:
    """Make an empty output folder as ``claim_new`` does, and release it to other processes."""
    claim_new(path, overwrite).release()
    return path


def claim_fresh(parent: Path, name: str) -> Claimed:
    """Make and claim parent/name, or parent/name-2 and so on where that exists, so that no run is replaced."""
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except FileExistsError:
            if not parent.is_dir():
                raise LoopprobeError(f"cannot write to {parent} (it is a file): give another --out") from None
            number += 1
            continue
        except OSError as error:
            raise LoopprobeError(f"cannot write to {path} ({error.strerror}): give another --out") from None
        return Claimed(path, made=True)


def claim_shared(path: Path, *names: str) -> Claimed:
    """Make a folder, or use an existing one, for files that loopprobe may replace; only this process works there.

    Args:
        path: the path of the folder.
        names: the names of the files that will be written.

    Raises:
        LoopprobeError: the folder holds one of the names and loopprobe did not write it, another process works in it,
            the path is a file, or it cannot be written.
    """
    if not (path / MANIFEST).exists():
        for name in names:
            if os.path.lexists(path / name):
                raise _not_ours(path / name)
    claimed = Claimed(path)
    try:
        require_ours(path, *names)
    except BaseException:
        claimed.release()
        raise
    return claimed
