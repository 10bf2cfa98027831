"""Masks of the state between loops, as context managers that leave nothing attached, whatever is raised inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loopprobe.config.selection import Numbers, resolve
from loopprobe.errors import LoopprobeError
from loopprobe.model.hook_points import LoopHookPoint
from loopprobe.model.hooked_root import LoopedRootModule
from loopprobe.model.interventions import mean_activations
from loopprobe.model.protocol import LoopedModel, require
from loopprobe.model.selection import LoopChoice, selector
from loopprobe.tasks import PromptBatch
from loopprobe.tasks.prompts import TOKENS_PER_POINT

Mode = Literal["first", "last"]
Unit = Literal["point", "token"]
Fill = Literal["initial", "zero"] | Float[Tensor, "... pos d_model"]


def kept_tokens(
    mode: Mode,
    n: int | Sequence[int],
    n_pos: int,
    *,
    unit: Unit = "point",
    invert: bool = False,
    tokens_per_point: int = TOKENS_PER_POINT,
) -> Bool[Tensor, "n pos"]:
    """Mark the tokens that keep their state: the first or the last ``n`` points or tokens.

    Args:
        mode: count from the ``first`` or from the ``last`` position.
        n: how many are kept; a sequence gives one row each.
        n_pos: tokens of the prompt.
        unit: what n counts.
        invert: mask the named positions and keep the others.
        tokens_per_point: of the prompts, or of the model.

    Raises:
        LoopprobeError: n is negative or above what the prompt has.
    """
    if mode not in ("first", "last"):
        raise LoopprobeError(f"mode ({mode!r}) must be first or last: choose one")
    if unit not in get_args(Unit):
        raise LoopprobeError(f"unit ({unit!r}) must be point or token: choose one")
    counts = [n] if isinstance(n, int) else list(n)
    each = tokens_per_point if unit == "point" else 1
    most = n_pos // each
    for count in counts:
        if not 0 <= count <= most:
            raise LoopprobeError(
                f"n ({count}) must be from 0 to the {most} {unit}s of the prompt: choose n in 0:{most}"
            )
    tokens = each * torch.tensor(counts)[:, None]
    position = torch.arange(n_pos)
    named = position < tokens if mode == "first" else position >= n_pos - tokens
    return named ^ invert


@contextmanager
def masked(
    model: LoopedRootModule,
    mode: Mode = "first",
    n: int | Sequence[int] = 10,
    *,
    unit: Unit = "point",
    invert: bool = False,
    fill: Fill = "initial",
    loops: Numbers = None,
) -> Iterator[LoopedRootModule]:
    """Keep only the first or last ``n`` points of the state: before each loop the rest is replaced by ``fill``.

    The injected input is not masked, and the predictions are read from the state before it is masked. With
    n = n_points nothing is masked; with n = 0 the whole state is reset each time.

    Args:
        model: the model to mask; use it inside the ``with`` block as usual.
        mode: keep the ``first`` or the ``last`` positions.
        n: how many are kept. A sequence masks the batch in equal blocks, the i-th block by the i-th n, so that many
            masks go through together.
        fill: ``initial`` (the state that the loop starts from), ``zero``, or a tensor [pos, d_model] or
            [loop, pos, d_model], such as ``mean_states`` gives.
        loops: the loops before which the state is masked, from 0: a number, several, a slice; negative ones count
            from the end of each run. None for every loop.
        unit: what n counts, ``point`` or ``token``.
        invert: mask the named positions and keep the others.

    Raises:
        LoopprobeError: the model has no state to mask, n does not fit the prompt, or the batch does not divide into the
            blocks of n; at the end of the block, a loop was named that no run came to.
    """
    kept = partial(kept_tokens, mode, n, unit=unit, invert=invert, tokens_per_point=model.tokens_per_point)
    kept(model.sizes.n_ctx)
    with _masking(model, kept, fill, loops, "masked"):
        yield model


@contextmanager
def reset(
    model: LoopedRootModule, positions: Numbers, *, fill: Fill = "initial", loops: Numbers = None
) -> Iterator[LoopedRootModule]:
    """Reset the state of chosen tokens before each loop, and keep that of all others.

    Args:
        model: the model to mask; use it inside the ``with`` block as usual.
        positions: the tokens, from 0: a number, several, a slice; negative ones count from the end. None for all.
        fill: what the state becomes, as in ``masked``.
        loops: the loops before which it is reset, as in ``masked``.

    Raises:
        LoopprobeError: the model has no state to mask, or a prompt has no such token; at the end of the block, a loop
            was named that no run came to.
    """

    def kept(n_pos: int) -> Bool[Tensor, "1 pos"]:
        chosen = resolve(positions, n_pos, "position")
        keep = torch.full((1, n_pos), chosen is not None)
        keep[:, chosen or []] = False
        return keep

    with _masking(model, kept, fill, loops, "reset"):
        yield model


@contextmanager
def _masking(
    model: LoopedRootModule, kept: Callable[[int], Bool[Tensor, "n pos"]], fill: Fill, loops: Numbers, what: str
) -> Iterator[None]:
    """Replace the state outside the tokens that are kept, before each of the chosen loops.

    Args:
        kept: from the number of tokens to a mask of those that are kept, one row for each equal block of the batch.
        what: the name of the mask, for messages.
    """
    if isinstance(fill, str) and fill not in ("initial", "zero"):
        raise LoopprobeError(f"fill ({fill!r}) must be initial, zero or a tensor: for the mean give mean_states(…)")
    require(model, frozenset({"map"}), "the model", what)
    choice, initial = LoopChoice(loops), list[Tensor]()

    def note_initial(e: Tensor, hook: LoopHookPoint) -> None:
        initial[:] = [model.initial_state(e)]

    def mask(z: Tensor, hook: LoopHookPoint) -> Tensor | None:
        if not choice.meant_at(hook, model.hook_trees.running):
            return None
        keep = kept(z.shape[1]).to(z.device)
        if len(z) % len(keep):
            raise LoopprobeError(
                f"the batch ({len(z)}) must divide into {len(keep)} equal blocks, one for each n: repeat the prompts"
            )
        keep = keep.repeat_interleave(len(z) // len(keep), dim=0)
        loop = hook.loop() if isinstance(fill, Tensor) and fill.ndim == 3 else 0
        return torch.where(keep[..., None], z, replacement(fill, initial[0], loop).to(z))

    at_loops = selector("z_pre", choice.known, None, model)
    with model.hooks(fwd_hooks=[("hook_embed", note_initial), (at_loops, mask)]), model.hook_trees.watch() as runs:
        yield
        choice.require_reached(runs.longest)


def replacement(fill: Fill, initial: Float[Tensor, "batch pos d_model"], loop: int) -> Float[Tensor, "... pos d_model"]:
    """Return what replaces a masked state before ``loop``, see ``masked``; ``initial`` is the initial state."""
    if isinstance(fill, Tensor):
        return (fill[loop] if fill.ndim == 3 else fill).to(initial)
    return initial if fill == "initial" else torch.zeros_like(initial)


def mean_states(model: LoopedModel, batches: Iterable[PromptBatch], n_loops: int) -> Float[Tensor, "loop pos d_model"]:
    """Mean over prompts of the state that enters each loop of the clean run: the fill of a mean ablation.

    Args:
        batches: prompts, in batches of any sizes (``prompts.split``).
        n_loops: loops to run.
    """
    return mean_activations(model, batches, n_loops, "z_pre").stack("z_pre")[:, 0]
