"""Devices: which names are known, and which one a computation runs on. Importing this imports no torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from loopprobe.errors import LoopprobeError

if TYPE_CHECKING:
    import torch


def known_device(name: str) -> str:
    """The name of a device that models can run on; LoopprobeError for any other, such as torch's ``meta``."""
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d{1,3})?", name):
        raise LoopprobeError(f"device ({name[:60]!r}) must be auto, cpu, cuda, cuda:0, mps or xpu: choose one of them")
    return name


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is CUDA, else MPS, else CPU; anything else is a torch device that must be there."""
    import torch

    if known_device(name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise LoopprobeError(f"device {name!r} is not available here: use auto or cpu") from None
    return device
