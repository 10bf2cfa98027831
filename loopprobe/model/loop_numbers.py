"""Loops without numbers: the loop followed as one map of its state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from loopprobe.errors import LoopprobeError

_as_map: ContextVar[bool] = ContextVar("as_map", default=False)


@contextmanager
def as_map() -> Iterator[None]:
    """Step as a map of the state, while the block lasts: hooks that ask for the number of their loop raise."""
    before = _as_map.set(True)
    try:
        yield
    finally:
        _as_map.reset(before)


def require_numbers(name: str | None) -> None:
    """Raise LoopprobeError where loops have no numbers now, for the hook on a point."""
    if _as_map.get():
        raise LoopprobeError(
            f"the hook on {name} asks for the number of its loop, and the loop is followed as a map of its state, "
            "which has none: use an edit that is the same in every loop, or a probe that runs the model"
        )
