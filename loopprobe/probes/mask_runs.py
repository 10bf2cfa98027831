"""Runs under masks: each by itself, or from the first token on at which it differs from the clean run.

In a causal model the tokens before those that a mask changes are of the clean run, or of that in which all are masked.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from loopprobe.model.blocks import Heads, Past
from loopprobe.model.hook_points import LoopHookPoint
from loopprobe.model.masks import Fill, replacement
from loopprobe.model.protocol import LoopedModel
from loopprobe.model.reading import at_tokens
from loopprobe.tasks import PromptBatch
from loopprobe.tasks.places import answer_tokens


def one_by_one(
    model: LoopedModel, batch: PromptBatch, keep: Bool[Tensor, "n pos"], fill: Fill, n_loops: int, at: int | None
) -> Iterator[list[Tensor]]:
    """Yield the outputs under every mask, loop by loop, each from a run of its own."""
    e = model.embed(*model.prepare(*batch.inputs))
    initial = model.initial_state(e)
    kept = keep.to(initial.device)[:, None, :, None]
    states = [initial] * len(keep)
    for loop in range(n_loops):
        if at is None or loop == at:
            value = replacement(fill, initial, loop)
            states = [torch.where(mask, z, value) for mask, z in zip(kept, states, strict=True)]
        states = [model.step(z, e, loop) for z in states]
        yield [model.predict(z, e, loop, read_at=batch.read_at) for z in states]


def from_where_they_differ(
    model: Any, batch: PromptBatch, keep: Bool[Tensor, "n pos"], fill: Fill, n_loops: int, at: int | None
) -> Iterator[list[Tensor]]:
    """Yield the same of a LoopedTransformer: each mask computes the tokens from the first that it changes on."""
    e = model.embed(*model.prepare(*batch.inputs))
    answers = answer_tokens(batch)
    initial = model.initial_state(e)
    first = [int((row != row[0]).int().argmax()) or len(row) for row in keep]  # token from which it is the other way
    starts = list(zip(first, keep[:, 0].tolist(), strict=True))
    whole = dict.fromkeys({True, *(kept for _, kept in starts)}, initial)  # all tokens kept, or all masked
    later = [initial[:, start:] for start in first]
    by_start = sorted(range(len(first)), key=first.__getitem__)
    resets_later = at is None and any(kept and start <= answers[-1] for start, kept in starts)
    for loop in range(n_loops):
        masks = at is None or loop == at
        value = replacement(fill, initial, loop).expand_as(initial) if masks else initial
        past, read = {}, {}
        for kept, z in whole.items():
            whole[kept], past[kept] = _step_and_past(model, z if kept or not masks else value, e, loop)
            read[kept] = model.predict(whole[kept], e, loop, read_at=batch.read_at)
        entered = _Reset(entering(model, value, e, loop), past[True]) if resets_later else None  # alike for all masks
        outputs = [read[kept] for _, kept in starts]
        for i in by_start:
            start, kept = starts[i]
            if start > answers[-1]:
                continue
            if kept and entered is not None:
                only = at_tokens(batch.read_at, start, initial.shape[1] - start)  # others are reset, and never read
                x, heads, before = entered.at(start)
                changed = model.predict(model.run_layers(x, loop, before, heads, only), loop=loop, read_at=slice(None))
            else:
                earlier = [(k[:, :start], v[:, :start]) for k, v in past[kept]]
                later[i] = model.step(value[:, start:] if kept and masks else later[i], e[:, start:], loop, earlier)
                changed = model.predict(later[i], e[:, start:], loop, start, batch.read_at)
            outputs[i] = torch.cat([outputs[i][:, : bisect_left(answers, start)], changed], dim=1)
        yield outputs


def entering(model: Any, z: Tensor, e: Tensor, loop: int) -> tuple[Tensor, Heads]:
    """The streams at the first layer of a LoopedTransformer, and the queries, keys and values that are made of them."""
    entered: tuple[Tensor, Heads] = model.blocks[0].enter(model.stream(z, e, loop), model.points(loop).blocks[0])
    return entered


class _Reset:
    """What one iteration begins with where the states of all tokens from one on are reset.

    Keys and values of the first layer are those of the clean run before that token. They are kept in one place, into
    which those of the clean run are copied as the token goes up.
    """

    def __init__(self, entered: tuple[Tensor, Heads], past: list[Past]) -> None:
        self.x, (self.q, *parts) = entered
        self.past, self.filled = past, 0
        self.keys = [p.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2) for p in parts]

    def at(self, start: int) -> tuple[Tensor, Heads, list[Past | None]]:
        """Streams, heads and pasts for ``run_layers``; tokens must not go down from call to call."""
        for keys, clean in zip(self.keys, self.past[0], strict=True):
            keys[:, self.filled : start] = clean[:, self.filled : start]
        self.filled = start
        later = [(k[:, :start], v[:, :start]) for k, v in self.past[1:]]
        k, v = self.keys
        return self.x[:, start:], (self.q[:, start:], k, v), [None, *later]


def _step_and_past(model: LoopedModel, z: Tensor, e: Tensor, loop: int) -> tuple[Tensor, list[Past]]:
    """Run one iteration, and return the state with the keys and values of every layer."""
    past: dict[str | None, Tensor] = {}

    def note(x: Tensor, hook: LoopHookPoint) -> None:
        past[hook.name] = x

    names = [f"loops.{loop}.blocks.{layer}.attn.hook_{part}" for layer in range(model.sizes.n_layers) for part in "kv"]
    with model.hooks(fwd_hooks=[(name, note) for name in names]):
        z = model.step(z, e, loop)
    return z, [(past[k], past[v]) for k, v in zip(names[::2], names[1::2], strict=True)]
