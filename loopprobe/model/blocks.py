"""One layer of the looped block: layer norm, attention and MLP, each passing its hook points.

Layer norm and attention are torch's, unless a hook sits on what they hide: then that one operation, in that one loop,
is written out. Attention is so, too, for prompts so short that torch's is slower.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from loopprobe.config.budget import SHORT
from loopprobe.config.schema import ModelConfig
from loopprobe.model.hook_points import AttentionHooks, BlockHooks, MLPHooks, NormHooks, hooked

Past = tuple[Float[Tensor, "batch past head d_head"], Float[Tensor, "batch past head d_head"]]  # keys and values

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": functools.partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
}


class LayerNorm(nn.LayerNorm):
    """Layer norm that is written out only where a hook sits on its scale."""

    def forward(self, x: Tensor, hooks: NormHooks | None = None) -> Tensor:
        if hooks is None:  # as TransformerLens's helpers call it
            return super().forward(x)
        if not hooked(hooks.hook_scale):
            return hooks.hook_normalized(super().forward(x))
        x = x - x.mean(-1, keepdim=True)
        scale = hooks.hook_scale((x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
        return hooks.hook_normalized(x / scale * self.weight + self.bias)

    @property
    def w(self) -> Float[Tensor, " d_model"]:
        """The gain, under TransformerLens's name."""
        return self.weight

    @property
    def b(self) -> Float[Tensor, " d_model"]:
        """The offset, under TransformerLens's name."""
        return self.bias


class Attention(nn.Module):
    """Causal self-attention with one fused QKV matrix, [q | k | v] by rows, each head after head."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.d_head = cfg.n_heads, cfg.d_head
        self.qkv = nn.Linear(cfg.d_model, 3 * cfg.n_heads * cfg.d_head)
        self.out = nn.Linear(cfg.n_heads * cfg.d_head, cfg.d_model)

    def forward(self, x: Float[Tensor, "batch pos d_model"], hooks: AttentionHooks, past: Past | None = None) -> Tensor:
        """Attend to these tokens and, with ``past``, to the keys and values of the tokens before them."""
        parts = self.qkv(x).unflatten(-1, (3, self.n_heads, self.d_head)).unbind(-3)
        points = hooks.hook_q, hooks.hook_k, hooks.hook_v
        q, k, v = (point(part) for point, part in zip(points, parts, strict=True))
        if past is not None:
            k, v = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1)
        short = x.device.type == "cpu" and k.shape[1] <= SHORT
        if short or hooked(hooks.hook_attn_scores, hooks.hook_pattern):
            z = _attend(q, k, v, hooks)
        else:
            unseen = None if past is None else _unseen(q, k)
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            z = F.scaled_dot_product_attention(q, k, v, unseen, is_causal=past is None).transpose(1, 2)
        z = hooks.hook_z(z)
        if hooked(hooks.hook_result):
            result = hooks.hook_result(einsum(z, self.W_O, "b pos h d, h d m -> b pos h m"))
            return result.sum(-2) + self.out.bias
        return self.out(z.flatten(-2))

    def _split(self, which: int) -> Float[Tensor, "n_heads d_model d_head"]:
        return rearrange(self.qkv.weight.chunk(3)[which], "(h d) m -> h m d", h=self.n_heads)

    def _split_bias(self, which: int) -> Float[Tensor, "n_heads d_head"]:
        return rearrange(self.qkv.bias.chunk(3)[which], "(h d) -> h d", h=self.n_heads)

    W_Q = property(lambda self: self._split(0))
    W_K = property(lambda self: self._split(1))
    W_V = property(lambda self: self._split(2))
    b_Q = property(lambda self: self._split_bias(0))
    b_K = property(lambda self: self._split_bias(1))
    b_V = property(lambda self: self._split_bias(2))
    b_O = property(lambda self: self.out.bias)

    @property
    def W_O(self) -> Float[Tensor, "n_heads d_head d_model"]:
        return rearrange(self.out.weight, "m (h d) -> h d m", h=self.n_heads)


def _attend(q: Tensor, k: Tensor, v: Tensor, hooks: AttentionHooks) -> Float[Tensor, "batch query head d_head"]:
    """Attention written out, heads as further batches."""
    batch, _, n_heads, d_head = q.shape
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))
    scores = torch.baddbmm(_unseen(q, k), q, k.mT, alpha=1 / math.sqrt(d_head))
    scores = hooks.hook_attn_scores(scores.unflatten(0, (batch, n_heads)))
    pattern = hooks.hook_pattern(scores.softmax(-1))
    return torch.bmm(pattern.flatten(0, 1), v).unflatten(0, (batch, n_heads)).transpose(1, 2)


def _unseen(q: Tensor, k: Tensor) -> Float[Tensor, "query key"]:
    """0 where a token sees another, itself or one before, else -inf; the queries are the last tokens of the keys."""
    n_query, n_key = q.shape[1], k.shape[1]
    return q.new_full((n_query, n_key), -torch.inf).triu(n_key - n_query + 1)


class MLP(nn.Module):
    """Two linear maps with a pointwise non-linearity between."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.act = _ACTIVATIONS[cfg.act_fn]
        self.fc_in = nn.Linear(cfg.d_model, cfg.d_mlp)
        self.fc_out = nn.Linear(cfg.d_mlp, cfg.d_model)

    def forward(self, x: Float[Tensor, "batch pos d_model"], hooks: MLPHooks) -> Tensor:
        return self.fc_out(hooks.hook_post(self.act(hooks.hook_pre(self.fc_in(x)))))

    W_in = property(lambda self: self.fc_in.weight.T)  # [d_model, d_mlp]
    W_out = property(lambda self: self.fc_out.weight.T)  # [d_mlp, d_model]
    b_in = property(lambda self: self.fc_in.bias)
    b_out = property(lambda self: self.fc_out.bias)


class Block(nn.Module):
    """One layer: pre-norm attention, then pre-norm MLP, each added to the residual stream."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.ln1 = LayerNorm(cfg.d_model, eps=cfg.eps)
        self.attn = Attention(cfg)
        self.ln2 = LayerNorm(cfg.d_model, eps=cfg.eps)
        self.mlp = MLP(cfg)

    def forward(self, x: Float[Tensor, "batch pos d_model"], hooks: BlockHooks, past: Past | None = None) -> Tensor:
        x = hooks.hook_resid_pre(x)
        x = hooks.hook_resid_mid(x + hooks.hook_attn_out(self.attn(self.ln1(x, hooks.ln1), hooks.attn, past)))
        return hooks.hook_resid_post(x + hooks.hook_mlp_out(self.mlp(self.ln2(x, hooks.ln2), hooks.mlp)))
