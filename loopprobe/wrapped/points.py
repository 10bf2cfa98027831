"""The hook points of a wrapped module: whatever its parts are called, found by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loopprobe.model.hook_points import MakePoint, dims


class Points:
    """A place that holds hook points and further places: ``points.blocks[0].attn.hook_q``."""

    def __getitem__(self, number: int) -> Any:
        return getattr(self, str(number))

    def __len__(self) -> int:
        return len(vars(self))


@dataclass(frozen=True)
class WrappedLayout:
    """The hook points of a wrapped module.

    Attributes:
        n_loops: as trained.
        once_widths: of the points that are passed once a run, by their names, the shape of an activation
            behind the axes of prompts and tokens.
        widths: alike, of the points of one loop, in the order in which they are passed.
        n_heads: of a layer.
    """

    n_loops: int
    once_widths: Mapping[str, tuple[int, ...]]
    widths: Mapping[str, tuple[int, ...]]
    n_heads: int

    def once(self, point: MakePoint) -> Points:
        """Return the points that are passed once a run."""
        return _placed(self.once_widths, point)

    def in_loop(self, point: MakePoint) -> Points:
        """Return the points of one iteration."""
        return _placed(self.widths, point)

    def numbers_of(self, local: str, n_pos: int, n_kept: int, n_points: int) -> int:
        """Count the numbers of one prompt's activation, see ``model.hook_points.numbers_of``."""
        if "key" in dims(local):
            return self.n_heads * n_kept * n_pos
        tokens = n_points if local.endswith("hook_readout") else n_kept
        return tokens * math.prod(self.widths.get(local) or self.once_widths[local])


def _placed(names: Mapping[str, Any], point: MakePoint) -> Points:
    root = Points()
    for name in names:
        *parents, last = name.split(".")
        place = root
        for parent in parents:
            if not hasattr(place, parent):
                setattr(place, parent, Points())
            place = getattr(place, parent)
        setattr(place, last, point(name))
    return root
