"""Whether the memory of this machine holds what is about to be made."""

from __future__ import annotations

import psutil  # type: ignore[import-untyped]

from loopprobe.errors import LoopprobeError


def require(n_bytes: float, what: str, remedy: str) -> None:
    """Raise LoopprobeError where something needs more memory than this machine has free.

    Args:
        n_bytes: that it needs.
        what: it is, as the subject of a sentence.
        remedy: what the user can do.
    """
    free = psutil.virtual_memory().available
    if n_bytes > free:
        raise LoopprobeError(f"{what} needs {n_bytes / 1e9:,.0f} GB of memory, {free / 1e9:,.1f} GB are free: {remedy}")
