"""The device that a computation runs on."""

from __future__ import annotations

import torch

from loopprobe.errors import LoopprobeError
from loopprobe.support.device_names import known_device


def pick_device(name: str = "auto") -> torch.device:
    """Return the torch device of this name, which must be available; ``auto`` is CUDA, else MPS, else CPU."""
    if known_device(name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise LoopprobeError(f"device {name!r} is not available here: use auto or cpu") from None
    return device
