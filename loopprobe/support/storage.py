"""Writing to disk so that nothing is ever half written, lost, or overwritten unasked.

A folder that loopprobe makes carries a manifest of what loopprobe wrote there. Nothing else in it is ever deleted or
replaced, and while one process works in it no other does.
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
PARTIAL = ".loopprobe-partial-"  # of folders in which files are written before they get their names
_RUN = {"config.json", "model.safetensors", "metrics.jsonl", "state.safetensors"}  # of a run older than manifests


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path; it takes the name of ``path`` once the block has ended without error.

    Raises:
        LoopprobeError: the folder has a manifest, and a file of this name in it is not loopprobe's.
    """
    require_ours(path.parent, path.name)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=path.parent) as folder:
        partial = Path(folder) / path.name  # some writers put temporary files of their own beside it
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.chmod(0o644)  # some writers leave it to its owner alone
        claim(path.parent, path.name)  # before it is there: a kill in between must not leave it unclaimed
        partial.replace(path)


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """Write readable JSON, whole or not at all."""
    with atomic(path) as partial:
        partial.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


# What is loopprobe's


def owned(folder: Path) -> set[str]:
    """The names in a folder that loopprobe wrote: those of its manifest, or the files of a run older than manifests."""
    if (folder / MANIFEST).exists():
        return set(_manifest(folder)["files"])
    with suppress(OSError, ValueError, RecursionError):
        tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if isinstance(tree, dict) and {"format", "config", "provenance"} <= tree.keys():
            return _RUN
    return set()


def claim(folder: Path, *names: str) -> None:
    """Note in the manifest of a folder, where it has one, that loopprobe writes these names."""
    if (folder / MANIFEST).exists() and not set(names) <= set(_manifest(folder)["files"]):
        _write_manifest(folder, {"files": sorted({*_manifest(folder)["files"], *names})})


def require_ours(folder: Path, *names: str) -> None:
    """Raise LoopprobeError where a name in a folder with a manifest is a file that loopprobe did not write."""
    if (folder / MANIFEST).exists():
        for name in names:
            if name not in owned(folder) and os.path.lexists(folder / name):
                raise _not_ours(folder / name)


def _not_ours(path: Path) -> LoopprobeError:
    return LoopprobeError(f"{path} is there and loopprobe did not write it: move it away or give another folder")


def _entries(folder: Path) -> list[str]:
    """What stands in a folder, but for what loopprobe keeps for itself."""
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
    """A folder in which this process alone works until it is released.

    Args:
        path: of the folder, which is made with its parents.
        made: whether this claim counts as having made it; None: where it is not there yet.

    Raises:
        LoopprobeError: another process works in it, it is a file, or it cannot be written.
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
            for partial in path.glob(f"{PARTIAL}*"):  # of writers that were killed
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
            process = {"pid": os.getpid(), "host": socket.gethostname()}
            _write_manifest(path, {"files": sorted(owned(path)), "process": process})
        except OSError as error:
            self.release()
            raise LoopprobeError(f"cannot write to {path} ({error.strerror or error}): give another --out") from None

    def release(self) -> None:
        """Let others work in the folder."""
        self._lock.release()

    def empty(self, overwrite: bool) -> None:
        """Make sure that nothing is in the folder; with ``overwrite`` what loopprobe wrote is deleted.

        Raises:
            LoopprobeError: something is there that may not be deleted.
        """
        _require_empty(self.path, overwrite)
        for name in _entries(self.path):
            _delete(self.path / name)
        _write_manifest(self.path, {"files": []})

    def remove(self) -> None:
        """Delete what loopprobe wrote, and the folder where this claim has made it and nothing else is in it."""
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


_held: list[Claimed] = []  # by verbs of the command line, until they end


def hold(claimed: Claimed) -> Path:
    """Keep a folder claimed until ``release_all``, for a verb of the command line; return its path."""
    _held.append(claimed)
    return claimed.path


def release_all() -> None:
    """Release the folders that are held."""
    while _held:
        _held.pop().release()


def discard_empty(path: Path) -> None:
    """Delete a held folder in which nothing was written, where its claim has made it."""
    for claimed in [claimed for claimed in _held if claimed.path == path and not _entries(path)]:
        _held.remove(claimed)
        claimed.remove()


def claim_new(path: Path, overwrite: bool = False) -> Claimed:
    """Make an empty folder, with its parents, in which this process alone works.

    Args:
        path: of the folder.
        overwrite: delete what loopprobe wrote there.

    Raises:
        LoopprobeError: it exists with something in it and ``overwrite`` is not given or something is not loopprobe's,
            another process works in it, it is a file, or it cannot be written.
    """
    if path.is_dir():
        _require_empty(path, overwrite)  # before anything of ours is written into it
    claimed = Claimed(path)
    try:
        claimed.empty(overwrite)
    except BaseException:
        claimed.release()
        raise
    return claimed


def new_folder(path: Path, overwrite: bool = False) -> Path:
    """Make an empty output folder as ``claim_new`` does, and let others work in it."""
    claim_new(path, overwrite).release()
    return path


def claim_fresh(parent: Path, name: str) -> Claimed:
    """Make and claim parent/name, or parent/name-2 and so on where that exists: no run replaces another unasked."""
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
    """Make a folder, or use one that is there, in which files of loopprobe are written anew; this process works alone.

    Args:
        path: of the folder.
        names: that will be written.

    Raises:
        LoopprobeError: one of the names is there and not loopprobe's, or as for ``claim_new``.
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
