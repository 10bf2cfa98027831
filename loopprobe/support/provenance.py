"""Provenance: the versions, the commit and the device that are recorded with an artefact."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch

from loopprobe._version import __version__


def provenance(device: torch.device | str, dtype: torch.dtype) -> dict[str, str | int | None]:
    """Return version, git commit (None outside a checkout), torch, Python, device, dtype and threads."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "loopprobe": __version__,
        "git_commit": _git_commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
    }


def _git_commit() -> str | None:
    """Return the commit of the running source tree, with "-dirty" where the package has uncommitted changes."""
    package = Path(__file__).resolve().parents[1]
    if not (package.parent / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=package, capture_output=True, text=True, timeout=10, check=True
        )  # fmt: skip
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
