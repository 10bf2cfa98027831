"""A hook with the points that it is meant for, and the runs that must come to one of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from loopprobe.errors import LoopprobeError
from loopprobe.model.hook_points import Direction

_order = itertools.count()


@dataclass(eq=False)
class Attached:
    """A hook and the points that it is meant for.

    Attributes:
        label: what the user gave, for messages.
        matches: whether a point, given by its loop (None for points outside the loop) and its name within the loop,
            is meant.
        hook, dir, is_permanent, level, prepend: as in TransformerLens.
        order: hooks act in the order in which they were attached.
        reached: whether a run has passed a point that is meant.
    """

    label: str
    matches: Callable[[int | None, str], bool]
    hook: Callable[..., Any]
    dir: Direction = "fwd"
    is_permanent: bool = False
    level: int | None = None
    prepend: bool = False
    order: int = field(default_factory=lambda: next(_order))
    reached: bool = False


@dataclass(eq=False)
class Runs:
    """The runs of a thread while a block lasts.

    Attributes:
        longest: loops of the longest; 0 where there was none.
    """

    longest: int = 0

    def require_reached(self, attached: Iterable[Attached]) -> None:
        """Raise LoopprobeError where runs have passed none of the points that a hook is meant for."""
        for a in attached:
            if self.longest and not a.reached:
                raise LoopprobeError(
                    f"the hook on {a.label} was never reached: no run passed such a point (the longest had loops 0 to "
                    f"{self.longest - 1}); name a loop of the run, or give the run more n_loops"
                )
