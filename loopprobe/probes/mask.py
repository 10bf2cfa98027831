"""Ablation of the state: the first or last n points are left, the rest is replaced, and the error is measured.

Before every application of the block the state outside the kept points is replaced; the injected input is not
masked. The models were trained without the mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.model.blocks import Past
from loopprobe.model.hook_points import LoopHookPoint
from loopprobe.model.looped import LoopedTransformer
from loopprobe.model.masks import TOKENS_PER, Fill, kept_tokens, mean_states, replacement
from loopprobe.probes.dataset import stamp
from loopprobe.probes.loops import points_of
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.store.evaluate import chunk_size
from loopprobe.support.statistics import at_least_single, bootstrap_mean, to_numpy
from loopprobe.tasks import Prompts
from loopprobe.types import Progress


@configuration
class MaskConfig:
    """The part of the state that the mask leaves, and what replaces the rest.

    Attributes:
        mode: keep the ``first`` or the ``last`` positions.
        n: the number of positions that are kept, one run each.
        loops: the number of iterations; the dataset has the errors after every one of them.
        unit: the unit of n.
        invert: mask the named positions and keep the others.
        fill: what replaces the state: its ``initial`` value, ``zero``, or its ``mean`` over the prompts in the
            clean run, loop by loop.
        once: mask once only, instead of before every loop.
        at: with ``once``, after how many loops; None: after as many as the model was trained with.
    """

    mode: Literal["first", "last"] = "first"
    n: tuple[NonNegativeInt, ...] = (10,)
    loops: PositiveInt = 50
    unit: Literal["point", "token"] = "point"
    invert: bool = False
    fill: Literal["initial", "zero", "mean"] = "initial"
    once: bool = False
    at: NonNegativeInt | None = None

    def __post_init__(self) -> None:
        if not self.n:
            raise LoopprobeError("n is empty: give a number, a list like 5,10 or a range like 0:31")
        if self.at is not None and not self.once:
            raise LoopprobeError(f"at ({self.at}) goes with once: add --once or drop --at")


def run(
    checkpoint: Checkpoint, prompts: Prompts, config: MaskConfig, progress: Progress = lambda steps: steps
) -> xr.Dataset:
    """Measure the error of the clean run and of every mask, after every loop.

    Attention is causal, so the tokens before the first masked one are those of the clean run, and those before the
    first kept one those of the run in which all are masked: each mask computes the tokens from there on alone.

    Returns:
        A dataset with dims ``n``, ``loop`` (iterations done, from 1), ``example`` (the prompt) and ``point``
        (in-context examples before it):

        * ``error [n, loop, example]``: squared error at the query / E(y²); ``clean_error [loop, example]``
        * ``mean``, ``low``, ``high [n, loop]`` and ``clean_mean`` …: its mean with a 95 % bootstrap interval
        * ``error_by_point [n, loop, point]``, ``clean_error_by_point [loop, point]``: means at every point

        A sentence in ``attrs["description"]`` says what was kept and what was masked.

    Raises:
        LoopprobeError: n is above what the prompts have, or the prompts do not fit the model.
    """
    model = checkpoint.model
    device = checkpoint.device
    prompts = prompts.to(device)
    n_prompts, n_points = prompts.ys.shape
    check(checkpoint, config, prompts)
    full = n_points * TOKENS_PER["point"] // TOKENS_PER[config.unit]
    counts = [*config.n, 0 if config.invert else full]  # the last one masks nothing: the clean run
    chunks = prompts.split(chunk_size(device))
    fill: Any = mean_states(model, chunks, config.loops) if config.fill == "mean" else config.fill
    at = _mask_at(config, model.cfg.n_loops)
    keep = kept_tokens(config.mode, counts, 2 * n_points, unit=config.unit, invert=config.invert)

    errors = np.empty((len(counts), config.loops, n_prompts), np.float32)
    by_point = np.zeros((len(counts), config.loops, n_points))
    done = 0
    with torch.no_grad():
        for batch in progress(chunks):
            here = slice(done, done + len(batch.ys))
            for loop, predictions in enumerate(_predictions(model, batch, keep, fill, config.loops, at)):
                squared = to_numpy(batch.errors(predictions))  # [n, example, point]
                errors[:, loop, here] = squared[..., -1]
                by_point[:, loop] += squared.sum(axis=1, dtype=np.float64)
            done += len(batch.ys)
    by_point /= n_prompts

    mean, low, high = bootstrap_mean(errors)
    dims = ("n", "loop")
    data = xr.Dataset(
        {
            "error": ((*dims, "example"), errors[:-1]),
            "mean": (dims, mean[:-1]),
            "low": (dims, low[:-1]),
            "high": (dims, high[:-1]),
            "error_by_point": ((*dims, "point"), by_point[:-1]),
            "clean_error": (("loop", "example"), errors[-1]),
            "clean_mean": ("loop", mean[-1]),
            "clean_low": ("loop", low[-1]),
            "clean_high": ("loop", high[-1]),
            "clean_error_by_point": (("loop", "point"), by_point[-1]),
        },
        coords={
            "n": list(config.n),
            "loop": np.arange(1, config.loops + 1),
            "point": np.arange(n_points),
            "model": checkpoint.label,
        },
        attrs={
            "description": describe(config, n_points, model.cfg.n_loops),
            "full": full,
            "trained_loops": model.cfg.n_loops,
            "zero_predictor": at_least_single(prompts.ys[:, -1]).square().mean().item() / prompts.scale,
        },
    )
    for name in data:
        data[name].attrs["units"] = "squared error / E(y²)"
    return stamp(data, "mask", checkpoint, prompts, config)


def _predictions(
    model: LoopedTransformer, batch: Prompts, keep: Bool[Tensor, "n pos"], fill: Fill, n_loops: int, at: int | None
) -> Iterator[Float[Tensor, "n batch point"]]:
    """Yield the predictions under every mask, loop by loop."""
    e = model.embed(*model.as_prompts(*batch))
    initial = model.initial_state(e)
    starts_kept = keep[:, 0].tolist()
    first = [int((row != row[0]).int().argmax()) or len(row) for row in keep]  # token from which it is the other way
    whole = dict.fromkeys({True, *starts_kept}, initial)  # all tokens kept, or all masked
    later = [initial[:, start:] for start in first]
    for loop in range(n_loops):
        masks = at is None or loop == at
        value = replacement(fill, initial, loop).expand_as(initial) if masks else initial
        past, read = {}, {}
        for kept, z in whole.items():
            whole[kept], past[kept] = _step_and_past(model, z if kept or not masks else value, e, loop)
            read[kept] = model.predict(whole[kept], loop)
        predictions = []
        for i, (start, kept) in enumerate(zip(first, starts_kept, strict=True)):
            predictions.append(read[kept])
            if start < e.shape[1]:
                z = value[:, start:] if kept and masks else later[i]
                before = [(k[:, :start], v[:, :start]) for k, v in past[kept]]
                later[i] = model.step(z, e[:, start:], loop, before)
                own = model.read_out(later[i][:, start % 2 :: 2]).squeeze(-1)
                predictions[-1] = torch.cat([read[kept][:, : (start + 1) // 2], own], dim=1)
        yield torch.stack(predictions)


def _step_and_past(model: LoopedTransformer, z: Tensor, e: Tensor, loop: int) -> tuple[Tensor, list[Past]]:
    """Run one iteration, and return the state with the keys and values of every layer."""
    past: dict[str | None, Tensor] = {}

    def note(x: Tensor, hook: LoopHookPoint) -> None:
        past[hook.name] = x

    names = [f"loops.{loop}.blocks.{layer}.attn.hook_{part}" for layer in range(model.cfg.n_layers) for part in "kv"]
    with model.hooks(fwd_hooks=[(name, note) for name in names]):
        z = model.step(z, e, loop)
    return z, [(past[k], past[v]) for k, v in zip(names[::2], names[1::2], strict=True)]


def check(checkpoint: Checkpoint, config: MaskConfig, prompts: Prompts | None = None) -> None:
    """Raise LoopprobeError where the mask does not fit the model or the prompts, before anything runs."""
    model = checkpoint.config.model
    kept_tokens(config.mode, config.n, 2 * points_of(checkpoint, prompts), unit=config.unit)
    at = _mask_at(config, model.n_loops)
    if at is not None and at >= config.loops:
        raise LoopprobeError(f"the mask comes after {at} loops but only {config.loops} are run: raise --loops")


def _mask_at(config: MaskConfig, trained: int) -> int | None:
    """Return the one loop (from 0) before which the state is masked; None for every loop."""
    if not config.once:
        return None
    return trained if config.at is None else config.at


def describe(config: MaskConfig, n_points: int, trained: int) -> str:
    """Describe a mask in words: which positions are kept and which are masked."""
    verb = "masking" if config.invert else "keeping"
    counts = ", ".join(map(str, config.n))
    if len(config.n) > 2 and config.n == tuple(range(config.n[0], config.n[-1] + 1)):
        counts = f"{config.n[0]} to {config.n[-1]}"
    one = len(config.n) == 1
    which = f"{config.mode} {config.n[0] if one else 'n'} of "
    if config.unit == "point":
        which += f"{n_points} points, {2 * config.n[0] if one else '2n'} of {2 * n_points} tokens"
    else:
        which += f"{2 * n_points} tokens"
    fill = {
        "initial": "reset to its initial value",
        "zero": "set to zero",
        "mean": "set to its mean over the prompts in the clean run",
    }[config.fill]
    at = _mask_at(config, trained)
    when = "before every loop" if at is None else f"once, after {at} loops"
    subject = "it is" if config.invert else "the rest is"
    series = "" if one else f" (n = {counts})"
    return f"{verb} the state of the {which}{series}; {subject} {fill} {when}; the injected input stays"
