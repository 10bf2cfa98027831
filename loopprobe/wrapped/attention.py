"""Attention with hook points, for every model that calls it through transformers' AttentionInterface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from loopprobe.errors import LoopprobeError
from loopprobe.model.hook_points import hooked
from loopprobe.wrapped.passes import ACTIVE, Pass, find_point
from loopprobe.wrapped.points import ATTENTION

NAME = "loopprobe"  # of the attention among those that transformers knows


@contextmanager
def hooked_attention(run: Pass) -> Iterator[None]:
    """Let the module's attention pass hook points while the block lasts, where anybody listens to it."""
    if run.anatomy.attention is None or not run.plan.hooked or not _is_hooked(run):
        yield
        return
    _register()
    configs = {id(config): config for config in map(_config, run.module.modules()) if config is not None}
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = NAME
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


def _config(module: nn.Module) -> Any:
    config = getattr(module, "config", None)
    return config if hasattr(config, "_attn_implementation") else None


def _is_hooked(run: Pass) -> bool:
    trees, layers = run.trees, range(len(run.wiring.order))
    for loop in range(run.plan.first, run.plan.n_loops):
        points = trees.at(loop)
        if points is trees.idle:
            continue
        if hooked(*(find_point(f"blocks.{layer}.{name}")(points) for layer in layers for name in ATTENTION)):
            return True
    return False


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    sinks: Tensor | None = None,
    **unused: Any,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention step by step, of tensors [batch, head, pos, d_head]; each passes a hook point.

    Keys and values that several heads share are repeated for each of them. A bias is added to the scores; sinks, one
    more score for each query [batch, head, pos, 1], take weight from the pattern. There is no dropout.

    Raises:
        LoopprobeError: the model hands it something besides, such as a cap on scores.
    """
    if further := [name for name in ("softcap", "s_aux") if unused.get(name) is not None]:
        raise LoopprobeError(f"attention with {further[0]} has no hook points yet: leave patterns, q, k, v and z out")
    run = ACTIVE.get()
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    query, key, value = (
        _pass(run, module, name, x.transpose(1, 2)).transpose(1, 2)
        for name, x in zip(ATTENTION[:3], (query, key, value), strict=True)
    )
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[-2]]
    elif query.shape[2] > 1 and (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        later = torch.full(scores.shape[-2:], -torch.inf, device=scores.device, dtype=scores.dtype)
        scores = scores + later.triu(1 + key.shape[2] - query.shape[2])
    scores = _pass(run, module, ATTENTION[3], scores)
    logits = scores if sinks is None else torch.cat([scores, sinks], -1)
    pattern = logits.softmax(-1, dtype=torch.float32)[..., : key.shape[2]].to(query.dtype)
    pattern = _pass(run, module, ATTENTION[4], pattern)
    return _pass(run, module, ATTENTION[5], (pattern @ value).transpose(1, 2)).contiguous(), pattern


def _pass(run: Pass | None, module: nn.Module, name: str, x: Tensor) -> Tensor:
    """Pass a hook point, where the attention is one of the loop that goes on."""
    layer = None if run is None else run.layer_with(module)
    if run is None or layer is None:
        return x
    return run.pass_point(run.current(), f"blocks.{layer}.{name}", x)
