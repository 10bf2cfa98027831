"""An iteration from a state that was reset, for many masks at once: each resets the tokens from one of them on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from loopprobe.model.blocks import Only, Past
from loopprobe.model.hook_points import LoopHooks


class Resets:
    """What tokens that are reset before a loop need of the model: less than others, and some of it once for all masks.

    Their states are not those that the next loop starts from, so the last layer goes on with the tokens that are read
    alone, and what enters the first layer does not depend on the mask: nor do queries, keys and values there.
    """

    def __init__(
        self,
        model: Any,
        value: Float[Tensor, "batch pos d_model"],
        e: Float[Tensor, "batch pos d_model"],
        loop: int,
    ) -> None:
        """Take in all tokens.

        Args:
            model: a ``LoopedTransformer``, which all models are that step behind known keys and values.
            value: what their state is reset to.
            e: their injected input.
            loop: whose hooks are passed.
        """
        hooks: LoopHooks = model.points(loop)
        self.layers = list(zip(model.blocks, hooks.blocks, strict=True))
        self.end = lambda x: hooks.hook_z(model.ln_final(x, hooks.ln_final))
        block, hooks_of_first = self.layers[0]
        self.x = hooks_of_first.hook_resid_pre(model.enter(value, e, loop))
        self.heads = block.heads(self.x, hooks_of_first)

    def step(self, start: int, past: Sequence[Past], only: Only) -> Float[Tensor, "batch only d_model"]:
        """The next states of the tokens ``only``, counted from ``start``, the first one that is reset.

        Args:
            start: a token; those before it keep their state.
            past: their keys and values, one pair a layer.
            only: the tokens that are read.
        """
        x, heads = self.x[:, start:], tuple(part[:, start:] for part in self.heads)
        for layer, (block, hooks) in enumerate(self.layers):
            if layer:
                x = hooks.hook_resid_pre(x)
                heads = block.heads(x, hooks)
            x = block.add(x, heads, hooks, past[layer], only if layer == len(self.layers) - 1 else None)
        return self.end(x)
