"""The names of devices that models can run on. Imports no torch."""

from __future__ import annotations

import re

from loopprobe.errors import LoopprobeError


def known_device(name: str) -> str:
    """Return the name if models can run on this device; raise LoopprobeError for others, such as ``meta``."""
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d{1,3})?", name):
        raise LoopprobeError(f"device ({name[:60]!r}) must be auto, cpu, cuda, cuda:0, mps or xpu: choose one of them")
    return name
