"""Checkpoints by name: those in ./runs and those that ship; imports no torch.

A clone has all files of the models that ship, an installed package the configuration of each, and the weights and
histories that are used most. The files that it leaves out stand in its ``registry.json`` with their SHA-256 and are
fetched when they are asked for, from where LOOPPROBE_CHECKPOINTS says.
"""

from __future__ import annotations

import difflib
import json
import os
from contextlib import suppress
from pathlib import Path

from loopprobe.errors import LoopprobeError

CONFIG = "config.json"  # of a checkpoint
SOURCE = "LOOPPROBE_CHECKPOINTS"
CACHE = "LOOPPROBE_CACHE"
REGISTRY = "registry.json"


def shipped_folder() -> Path:
    """Return the folder of the shipped checkpoints: in an installed wheel, or at the top of the clone."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_checkpoints"
    return installed if installed.is_dir() else package.parent / "checkpoints"


def names() -> dict[str, Path]:
    """Return the folder of every checkpoint by its name; one in ./runs takes precedence over a shipped one."""
    folders = {}
    for folder in (shipped_folder(), Path("runs")):
        for path in sorted(folder.glob(f"*/{CONFIG}")):
            folders[path.parent.name] = path.parent
    return folders


def find(name: str | Path) -> Path:
    """Find the folder of a checkpoint by its path or its name.

    Raises:
        LoopprobeError: there is none; the message gives the nearest names.
    """
    with suppress(OSError):  # a name may be too long for a path
        if (path := Path(name)).is_dir():
            return path
    known = names()
    if str(name) in known:
        return known[str(name)]
    near = difflib.get_close_matches(str(name), known, n=3) or list(known)
    hint = f"did you mean {' or '.join(near)}?" if near else "there is none here: train one with `loopprobe train`"
    raise LoopprobeError(f"no checkpoint is called {str(name)[:100]!r}: {hint}")


def shipped_language_models() -> dict[str, Path]:
    """Return the folders of the language models that ship with the package, by their names."""
    return {path.parent.name: path.parent for path in sorted((shipped_folder() / "hub").glob(f"*/{CONFIG}"))}


def whole_file(path: Path) -> Path:
    """Return where a file is: where it was looked for, or where it was fetched to.

    Args:
        path: a file of a checkpoint. One that is there, or that ships with no package, is returned as it is.

    Raises:
        LoopprobeError: the file is left out of the package, and cannot be had or is another one.
    """
    if path.exists() or not (name := _left_out(path)):
        return path
    return _fetched(name)


def whole_folder(folder: Path) -> Path:
    """Return a folder that holds all the files of a language model: its own, or one that they were fetched to.

    Raises:
        LoopprobeError: see ``whole_file``.
    """
    missing = [name for name in _registry() if (shipped_folder() / name).parent == folder]
    if not missing or all((shipped_folder() / name).exists() for name in missing):
        return folder
    places = [_fetched(name) for name in missing]
    return places[0].parent


def _registry() -> dict[str, str]:
    """The SHA-256 of the files that the package leaves out, by their path below the shipped folder; none in a clone."""
    path = shipped_folder() / REGISTRY
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _left_out(path: Path) -> str | None:
    """The name in the registry of a file, or None."""
    absolute = Path(os.path.abspath(path))
    folder = shipped_folder()
    name = absolute.relative_to(folder).as_posix() if absolute.is_relative_to(folder) else None
    return name if name in _registry() else None


def _fetched(name: str) -> Path:
    """Fetch a file that the package leaves out, or find it where it was fetched to before.

    A folder is read in place, an address through pooch, into its cache for the user or the folder of LOOPPROBE_CACHE.
    """
    import pooch

    source, sha256 = os.environ.get(SOURCE, ""), _registry()[name]
    cache = Path(os.environ.get(CACHE) or pooch.os_cache("loopprobe"))
    if "://" in source:
        try:
            url, folder = f"{source.rstrip('/')}/{name}", (cache / name).parent
            return Path(pooch.retrieve(url, f"sha256:{sha256}", Path(name).name, folder))
        except (OSError, ValueError) as error:  # of the network or the disk; another file than the package knows
            reason = str(error).splitlines()[0][:200]
            raise LoopprobeError(
                f"{name} cannot be fetched from {source} ({reason}): check {SOURCE} and the network"
            ) from None
    folders = [Path(source).expanduser(), cache] if source else [cache]
    for path in (folder / name for folder in folders):
        if path.is_file() and pooch.file_hash(str(path)) == sha256:
            return path
    raise LoopprobeError(
        f"{name} is not in this package, nor is that version in {' or '.join(map(str, folders))}: set {SOURCE} to "
        "the checkpoints folder of a clone of this version, or to an address that serves it"
    )
