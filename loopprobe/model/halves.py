"""A step in two halves: for runs that share the first, or need a few tokens of the second. No hook of torch's fires."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from loopprobe.model.blocks import Heads, Only, Past
from loopprobe.model.hook_points import LoopHooks
from loopprobe.model.looped import LoopedTransformer


def enter(
    model: LoopedTransformer, z: Float[Tensor, "batch pos d_model"], e: Float[Tensor, "batch pos d_model"], loop: int
) -> tuple[Float[Tensor, "batch pos d_model"], Heads]:
    """The first half of a model's ``step``: the stream at the first layer, and its queries, keys and values."""
    entered: tuple[Tensor, Heads] = model.blocks[0].enter(model.stream(z, e, loop), model.points(loop).blocks[0])
    return entered


def leave(
    model: LoopedTransformer,
    x: Float[Tensor, "batch pos d_model"],
    heads: Heads,
    loop: int,
    past: Sequence[Past | None],
    only: Only = None,
) -> Float[Tensor, "batch only d_model"]:
    """The second half: the next states of the tokens that ``enter`` was given.

    Args:
        model: the model.
        x, heads: from ``enter``; the heads may hold the past.
        loop: whose hooks are passed.
        past: keys and values of the tokens before, a layer each; None where there are none, or the heads hold them.
        only: some of the tokens: the others stop at the last layer's keys and values. None: all.
    """
    hooks: LoopHooks = model.points(loop)
    for layer, (block, block_hooks) in enumerate(zip(model.blocks, hooks.blocks, strict=True)):
        if layer:
            x, heads = block.enter(x, block_hooks)
        x = block.add(x, heads, block_hooks, past[layer], only if layer == len(model.blocks) - 1 else None)
    z_next: Tensor = hooks.hook_z(model.ln_final(x, hooks.ln_final))
    return z_next
