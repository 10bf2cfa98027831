"""What is wanted of a pass through a module, and whose turn it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock, RLock
from weakref import WeakKeyDictionary

from torch import Tensor, nn

_LOCKS: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()  # a pass changes its module while it lasts
_LOCKING = Lock()


def lock_of(module: nn.Module) -> RLock:
    """Return the lock of a module, in which one thread at a time runs passes."""
    with _LOCKING:
        return _LOCKS.setdefault(module, RLock())


@dataclass
class Plan:
    """What is wanted of a pass.

    Attributes:
        first: the number of its first loop.
        n_loops: the number of the loop behind its last.
        skip: how many of the first loops are left out, ``z`` standing where the last of them ended.
        z: a state, or a function from e to one.
        e: the injected input that stands for that of the inputs; None: it is computed.
        stop: "embed" once the injected input is known, "state" once the last state is, or None: run to the end.
        kept: the loops whose states are kept.
        read_at: the tokens whose states go into the head; None: all.
        hooked: whether anybody listens.
    """

    first: int = 0
    n_loops: int = 1
    skip: int = 0
    z: Tensor | Callable[[Tensor], Tensor] | None = None
    e: Tensor | None = None
    stop: str | None = None
    kept: frozenset[int] = frozenset()
    read_at: slice | Sequence[int] | None = None
    hooked: bool = False
