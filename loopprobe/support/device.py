"""Devices: the known names, and the choice of one for a computation. Importing this module does not import torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from loopprobe.errors import LoopprobeError

if TYPE_CHECKING:
    import torch


def known_device(name: str) -> str:
    """Return the name if models can run on this device; raise LoopprobeError for others, such as ``meta``."""
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d{1,3})?", name):
        raise LoopprobeError(f"device ({name[:60]!r}) must be auto, cpu, cuda, cuda:0, mps or xpu: choose one of them")
    return name


def pick_device(name: str = "auto") -> torch.device:
    """Return the torch device of this name, which must be available; ``auto`` is CUDA, else MPS, else CPU."""
    import torch

    if known_device(name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise LoopprobeError(f"device {name!r} is not available here: use auto or cpu") from None
    return device
