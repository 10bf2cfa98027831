"""The hook points of a wrapped module: whatever its parts are called, found by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loopprobe.errors import LoopprobeError
from loopprobe.model.hook_points import MakePoint, dims
from loopprobe.wrapped.anatomy import Anatomy, Place, Side, place_of
from loopprobe.wrapped.wiring import Wiring


class Points:
    """A place that holds hook points and further places: ``points.blocks[0].attn.hook_q``."""

    def __getitem__(self, number: int) -> Any:
        return getattr(self, str(number))

    def __len__(self) -> int:
        return len(vars(self))


ATTENTION = ("attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_z")


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


def layout_of(anatomy: Anatomy, wiring: Wiring, value_size: int) -> WrappedLayout:
    """Return which hook points a wrapped module has, whose answers have so many numbers."""
    widths = wiring.widths
    width = widths[wiring.order[0], "in"]
    state = (sum(widths[path, "out"][-1] for path in anatomy.state),)
    in_loop: dict[str, tuple[int, ...]] = {"hook_z_pre": state} if anatomy.state else {}
    further = {name: widths[place] for name, place in _places(anatomy.points)}
    opening = {name for name, (path, _) in _places(anatomy.points) if path in wiring.opens}
    in_loop |= {name: shape for name, shape in further.items() if name in opening}
    head = (anatomy.n_heads, anatomy.d_head or width[-1] // anatomy.n_heads)
    for layer, path in enumerate(wiring.order):
        inner = {
            local: _shape(local, widths[f"{path}.{at}".rstrip("."), side], *head)
            for local, (at, side) in _places(anatomy.sites)
        }
        if anatomy.attention is not None:
            inner = {name: head for name in ATTENTION} | inner
        in_loop |= {f"blocks.{layer}.{local}": shape for local, shape in {"hook_resid_pre": width, **inner}.items()}
        in_loop[f"blocks.{layer}.hook_resid_post"] = widths[path, "out"]
    in_loop |= {name: shape for name, shape in further.items() if name not in opening}
    in_loop |= {"hook_z": state} if anatomy.state else {}
    in_loop |= {f"coda.{i}.hook_resid_post": widths[path, "out"] for i, path in enumerate(anatomy.coda)}
    in_loop["hook_readout"] = (value_size,)
    return WrappedLayout(
        anatomy.n_loops or 1, {"hook_embed": widths[anatomy.prelude[-1], "out"]}, in_loop, anatomy.n_heads
    )


def of_heads(local: str) -> bool:
    """Return whether the activations of a point have an axis of heads behind that of tokens."""
    return dims(local)[2:3] == ("head",)


def _shape(local: str, shape: tuple[int, ...], n_heads: int, d_head: int) -> tuple[int, ...]:
    """Return the shape of an activation of a site behind the axes of prompts and tokens, where heads have their own.

    Raises:
        LoopprobeError: the place hands on all heads side by side, and they cannot be told apart.
    """
    if not of_heads(local) or len(shape) != 1:
        return shape
    shared = local.endswith(("hook_k", "hook_v", "hook_rot_k")) and shape[0] != n_heads * d_head
    if shared or shape[0] % n_heads:
        raise LoopprobeError(
            f"the site {local} has {shape[0]} numbers a token, which are not those of {n_heads} heads: tell n_heads=, "
            "or name a place whose activations are [batch, pos, head, d_head]"
        )
    return n_heads, shape[0] // n_heads


def _places(places: Mapping[str, Place]) -> list[tuple[str, tuple[str, Side]]]:
    return [(name, place_of(place)) for name, place in places.items()]
