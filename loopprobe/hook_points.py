"""The tree of hook points of a looped transformer: ``loops.{t}`` holds HookPoints only, one set a loop.

No parameters live here and nothing of it enters the state dict. Shapes stand beside each point.
"""

from __future__ import annotations

import re

from torch import nn
from transformer_lens.hook_points import HookPoint

from loopprobe.config import ModelConfig

_NAME = re.compile(r"(?:loops\.(?P<loop>\d+)\.)?(?P<local>(?:blocks\.(?P<layer>\d+)\.)?.*)")


def split_name(name: str) -> tuple[int | None, int | None, str]:
    """Loop, layer and the name within the loop: ``loops.3.blocks.0.hook_resid_post`` → (3, 0, "blocks.0.hook_…")."""
    match = _NAME.fullmatch(name)
    assert match is not None, "the pattern matches every string"
    loop, layer = match["loop"], match["layer"]
    return (
        None if loop is None else int(loop),
        None if layer is None else int(layer),
        match["local"],
    )


def short_name(name: str) -> str:
    """The name that selects and labels an activation: ``resid_post``, ``pattern``, ``z`` (the state), ``attn_z``."""
    _, _, local = split_name(name)
    *parents, last = re.sub(r"^blocks\.\d+\.", "", local).replace("hook_", "").split(".")
    return "_".join((*parents, last)) if last in ("z", "scale", "normalized") else last


def dims(name: str) -> tuple[str, ...]:
    """The axes of an activation, the batch as ``example``; tokens are ``position``, of attention ``query``, ``key``."""
    last = split_name(name)[2].rsplit("hook_", 1)[-1]
    if last == "readout":
        return ("example", "point")
    if last in ("attn_scores", "pattern"):
        return ("example", "head", "query", "key")
    tokens = ("example", "position")
    if last in ("q", "k", "v", "result") or short_name(name) == "attn_z":
        return (*tokens, "head", "d_model" if last == "result" else "d_head")
    if last == "scale":
        return (*tokens, "unit")
    return (*tokens, "d_mlp" if ".mlp." in name else "d_model")


class LoopHookPoint(HookPoint):
    """A HookPoint that knows its loop: the stock ``layer()`` would read the loop as the layer."""

    def loop(self) -> int:
        """The iteration that this point belongs to, from 0."""
        loop, _, _ = split_name(self._name())
        if loop is None:
            raise ValueError(f"{self.name} belongs to no loop")
        return loop

    def layer(self) -> int:
        """The layer within the block, from 0."""
        _, layer, _ = split_name(self._name())
        if layer is None:
            raise ValueError(f"{self.name} belongs to no layer")
        return layer

    def _name(self) -> str:
        if self.name is None:
            raise ValueError("this hook point belongs to no model yet")
        return self.name


def hooked(*points: nn.Module) -> bool:
    """Whether a hook of any kind sits on one of the points."""
    return any(
        point._forward_hooks or point._forward_pre_hooks or point._backward_hooks or point._backward_pre_hooks
        for point in points
    )


class NormHooks(nn.Module):
    """Points of one layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_scale = LoopHookPoint()  # [batch, pos, 1]
        self.hook_normalized = LoopHookPoint()  # [batch, pos, d_model]


class AttentionHooks(nn.Module):
    """Points of one attention layer."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_q = LoopHookPoint()  # [batch, pos, head, d_head]
        self.hook_k = LoopHookPoint()  # [batch, pos, head, d_head]
        self.hook_v = LoopHookPoint()  # [batch, pos, head, d_head]
        self.hook_attn_scores = LoopHookPoint()  # [batch, head, query_pos, key_pos], -inf above the diagonal
        self.hook_pattern = LoopHookPoint()  # [batch, head, query_pos, key_pos]
        self.hook_z = LoopHookPoint()  # [batch, pos, head, d_head]
        self.hook_result = LoopHookPoint()  # [batch, pos, head, d_model]


class MLPHooks(nn.Module):
    """Points of one MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_pre = LoopHookPoint()  # [batch, pos, d_mlp]
        self.hook_post = LoopHookPoint()  # [batch, pos, d_mlp]


class BlockHooks(nn.Module):
    """Points of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_resid_pre = LoopHookPoint()  # [batch, pos, d_model]
        self.ln1 = NormHooks()
        self.attn = AttentionHooks()
        self.hook_attn_out = LoopHookPoint()  # [batch, pos, d_model]
        self.hook_resid_mid = LoopHookPoint()  # [batch, pos, d_model]
        self.ln2 = NormHooks()
        self.mlp = MLPHooks()
        self.hook_mlp_out = LoopHookPoint()  # [batch, pos, d_model]
        self.hook_resid_post = LoopHookPoint()  # [batch, pos, d_model]


class LoopHooks(nn.Module):
    """Points of one iteration of the loop, in the order in which they are passed."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.hook_z_pre = LoopHookPoint()  # [batch, pos, d_model]  the state that enters the loop
        self.hook_input = LoopHookPoint()  # [batch, pos, d_model]  state with the input injected
        self.hook_pos_embed = LoopHookPoint()  # [batch, pos, d_model]
        self.blocks = nn.ModuleList(BlockHooks() for _ in range(cfg.n_layers))
        self.ln_final = NormHooks()
        self.hook_z = LoopHookPoint()  # [batch, pos, d_model]  the state after the loop
        self.hook_readout = LoopHookPoint()  # [batch, n_points]  predictions at the x positions
