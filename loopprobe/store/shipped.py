"""Checkpoints by name: those that ship with the package, and those in ./runs; imports no torch."""

from __future__ import annotations

from pathlib import Path

CONFIG = "config.json"  # of a checkpoint


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


def shipped_language_models() -> dict[str, Path]:
    """Return the folders of the language models that ship with the package, by their names."""
    return {path.parent.name: path.parent for path in sorted((shipped_folder() / "hub").glob(f"*/{CONFIG}"))}
