"""Loops without numbers: the loop followed as one map of its state, for which hooks must do the same in every loop."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from loopprobe.errors import LoopprobeError

if TYPE_CHECKING:
    from loopprobe.model.hook_trees import HookTrees

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


def are_alike(trees: HookTrees) -> bool:
    """Tell whether the hooks that act in this thread are on the same points in every loop."""
    attached = [*trees.shared, *trees.thread.attached]
    attached += [a for tree in trees.thread.trees.values() for a in tree.by_hand]
    loops = [*range(min(trees.n_loops, 1000)), trees.n_loops, sys.maxsize]
    for a in attached:
        found = {tuple(a.matches(loop, local) for local in trees.local_names) for loop in loops}
        if len(found) > 1:
            return False
        is_anywhere = any(next(iter(found))) or any(a.matches(None, name) for name in trees.once_names)
        if not is_anywhere:  # in a loop beyond those of the training
            return False
    return True
