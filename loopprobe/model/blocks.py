"""One layer of the looped block: layer norm, attention and MLP, each passing its hook points.

Layer norm and attention are torch's, unless a hook sits on what they hide: then that one operation, in that one loop,
is written out. Attention is so, too, for prompts so short that torch's is slower.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from loopprobe.config.budget import SHORT
from loopprobe.config.schema import ModelConfig
from loopprobe.model.hook_points import AttentionHooks, BlockHooks, MLPHooks, NormHooks, hooked

Past = tuple[Float[Tensor, "batch past head d_head"], Float[Tensor, "batch past head d_head"]]  # keys and values
Keys = Float[Tensor, "batch key head d_head"]
Heads = tuple[Float[Tensor, "batch pos head d_head"], Keys, Keys]  # queries, keys and values; keys may hold the past
Only = slice | list[int] | None  # the tokens, among those at hand, whose residual stream goes on; None: all


class GeluNew(torch.autograd.Function):
    """The tanh form of GELU (Hendrycks and Gimpel, arXiv 1606.08415), written as x σ(2 √(2/π) (x + 0.044715 x³)).

    That is the same function; on a CPU the hyperbolic tangent within torch's takes longer than all of this.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        double = 2 * math.sqrt(2 / math.pi)
        y = torch.addcmul(x.new_full((), double), x, x, value=double * 0.044715)
        return y.mul_(x).sigmoid_().mul_(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.ops.aten.gelu_backward(grad, *ctx.saved_tensors, approximate="tanh")

    jvp = backward  # of a pointwise function both are products with its slope


def gelu_new(x: Tensor) -> Tensor:
    """The tanh form of GELU, by ``GeluNew`` where that is faster and as precise as torch's."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return F.gelu(x, approximate="tanh")
    return GeluNew.apply(x) if torch.is_grad_enabled() else GeluNew.forward(x)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": gelu_new,
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
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


class RMSNorm(nn.RMSNorm):
    """Division by the root mean square, written out only where a hook sits on its scale."""

    eps: float

    def forward(self, x: Tensor, hooks: NormHooks | None = None) -> Tensor:
        if hooks is None:
            return super().forward(x)
        if not hooked(hooks.hook_scale):
            return hooks.hook_normalized(super().forward(x))
        scale = hooks.hook_scale((x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
        return hooks.hook_normalized(x / scale * self.weight)

    @property
    def w(self) -> Float[Tensor, " d_model"]:
        """The gain, under TransformerLens's name."""
        return self.weight


def make_norm(cfg: ModelConfig) -> LayerNorm | RMSNorm:
    """Make a norm of the kind that the configuration names."""
    kind = LayerNorm if cfg.normalization_type == "LN" else RMSNorm
    return kind(cfg.d_model, eps=cfg.eps)


class Rotary(nn.Module):
    """Rotary positions (Su et al., arXiv 2104.09864): dimension i of a head is turned together with i + rotary_dim / 2.

    Dimensions beyond rotary_dim stay as they are.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.dim, self.base = cfg.rotary_dim or 0, cfg.rotary_base or 0
        self.tables: dict[tuple[torch.device, torch.dtype, int], Tensor] = {}

    def forward(self, x: Float[Tensor, "batch pos head d_head"], first: int = 0) -> Tensor:
        """Turn queries or keys of the tokens from ``first`` on."""
        cos, sin = self._table(first + x.shape[1], x)[:, first:, None]
        turned, rest = x[..., : self.dim], x[..., self.dim :]
        other = torch.cat([-turned[..., self.dim // 2 :], turned[..., : self.dim // 2]], -1)
        return torch.cat([turned * cos + other * sin, rest], -1)

    def _table(self, n: int, like: Tensor) -> Float[Tensor, "2 pos rotary_dim"]:
        key = like.device, like.dtype, n
        if key not in self.tables:
            place = like.device if like.device.type != "mps" else torch.device("cpu")
            exponents = torch.arange(0, self.dim, 2, dtype=torch.float64, device=place) / self.dim
            angles = torch.arange(n, dtype=torch.float64, device=place)[:, None] * self.base**-exponents
            angles = torch.cat([angles, angles], -1)
            with torch.inference_mode(False):  # later runs may need a gradient
                self.tables[key] = torch.stack([angles.cos(), angles.sin()]).to(like.device, like.dtype)
        return self.tables[key]


class Attention(nn.Module):
    """Self-attention with one fused QKV matrix, [q | k | v] by rows, each head after head."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.d_head, self.causal = cfg.n_heads, cfg.d_head, cfg.attention_dir == "causal"
        self.rotary = Rotary(cfg) if cfg.positional_embedding_type == "rotary" else None
        self.qkv = nn.Linear(cfg.d_model, 3 * cfg.n_heads * cfg.d_head)
        self.out = nn.Linear(cfg.n_heads * cfg.d_head, cfg.d_model)

    def heads(self, x: Float[Tensor, "batch pos d_model"], hooks: AttentionHooks) -> Heads:
        """The queries, keys and values of tokens."""
        parts = self.qkv(x).unflatten(-1, (3, self.n_heads, self.d_head)).unbind(-3)
        points = hooks.hook_q, hooks.hook_k, hooks.hook_v
        return tuple(point(part) for point, part in zip(points, parts, strict=True))

    def forward(self, heads: Heads, hooks: AttentionHooks, past: Past | None = None, only: Only = None) -> Tensor:
        """Attend to these tokens and, with ``past``, to the keys and values of the tokens before them.

        Args:
            heads: what ``heads`` returns of the tokens at hand.
            hooks: the points that are passed.
            past: keys and values of the tokens before.
            only: the tokens at hand whose result is returned.
        """
        q, k, v = heads
        if past is not None:
            k, v = _after(past[0], k), _after(past[1], v)
        if self.rotary is not None:
            q = hooks.hook_rot_q(self.rotary(q, k.shape[1] - q.shape[1]))
            k = hooks.hook_rot_k(self.rotary(k))
        short = k.device.type == "cpu" and k.shape[1] <= SHORT
        written_out = short or hooked(hooks.hook_attn_scores, hooks.hook_pattern)
        is_causal = self.causal and q.shape[1] == k.shape[1] and only is None and not written_out
        unseen = _unseen(q, k) if self.causal and not is_causal else None
        if only is not None:
            q, unseen = q[:, only], None if unseen is None else unseen[only]
        if written_out:
            z = _attend(q, k, v, unseen, hooks)
        else:
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            z = F.scaled_dot_product_attention(q, k, v, unseen, is_causal=is_causal).transpose(1, 2)
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


def _after(past: Tensor, now: Tensor) -> Float[Tensor, "batch pos head d_head"]:
    """Later tokens behind earlier ones, head after head in memory, as attention reads them."""
    return torch.cat([past.transpose(1, 2), now.transpose(1, 2)], 2).transpose(1, 2)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, unseen: Tensor | None, hooks: AttentionHooks
) -> Float[Tensor, "batch query head d_head"]:
    """Attention written out, heads as further batches."""
    batch, _, n_heads, d_head = q.shape
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))
    scores = torch.baddbmm(q.new_zeros(()) if unseen is None else unseen, q, k.mT, alpha=1 / math.sqrt(d_head))
    scores = hooks.hook_attn_scores(scores.unflatten(0, (batch, n_heads)))
    pattern = hooks.hook_pattern(scores.softmax(-1))
    return torch.bmm(pattern.flatten(0, 1), v).unflatten(0, (batch, n_heads)).transpose(1, 2)


def _unseen(q: Tensor, k: Tensor) -> Float[Tensor, "query key"]:
    """0 where a token sees another, itself or one before, else -inf; the queries are the last tokens of the keys."""
    n_query, n_key = q.shape[1], k.shape[1]
    return q.new_full((n_query, n_key), -torch.inf).triu(n_key - n_query + 1)


class MLP(nn.Module):
    """Two linear maps with a pointwise non-linearity between, whose result a third map may gate.

    A gated MLP has no input biases, and computes act(W_gate x) * W_in x (Shazeer, arXiv 2002.05202).
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.act = _ACTIVATIONS[cfg.act_fn]
        self.fc_gate = nn.Linear(cfg.d_model, cfg.d_mlp, bias=False) if cfg.gated_mlp else None
        self.fc_in = nn.Linear(cfg.d_model, cfg.d_mlp, bias=not cfg.gated_mlp)
        self.fc_out = nn.Linear(cfg.d_mlp, cfg.d_model)

    def forward(self, x: Float[Tensor, "batch pos d_model"], hooks: MLPHooks) -> Tensor:
        if self.fc_gate is None:
            return self.fc_out(hooks.hook_post(self.act(hooks.hook_pre(self.fc_in(x)))))
        gate, linear = self.act(hooks.hook_pre(self.fc_gate(x))), hooks.hook_pre_linear(self.fc_in(x))
        return self.fc_out(hooks.hook_post(gate * linear))

    W_in = property(lambda self: self.fc_in.weight.T)  # [d_model, d_mlp]
    W_out = property(lambda self: self.fc_out.weight.T)  # [d_mlp, d_model]
    W_gate = property(lambda self: self.fc_gate.weight.T)  # [d_model, d_mlp], of gated ones
    b_out = property(lambda self: self.fc_out.bias)

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        return self.fc_in.weight.new_zeros(len(self.fc_in.weight)) if self.fc_in.bias is None else self.fc_in.bias


class Block(nn.Module):
    """One layer: pre-norm attention, then pre-norm MLP, each added to the residual stream."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.ln1 = make_norm(cfg)
        self.attn = Attention(cfg)
        self.ln2 = make_norm(cfg)
        self.mlp = MLP(cfg)

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        hooks: BlockHooks,
        past: Past | None = None,
        heads: Heads | None = None,
        only: Only = None,
    ) -> Float[Tensor, "batch only d_model"]:
        """The residual streams behind the layer, of all tokens at hand or of ``only`` some.

        ``heads`` are those of ``enter`` where it was called before; its keys and values may hold the past.
        """
        if heads is None:
            x, heads = self.enter(x, hooks)
        return self.add(x, heads, hooks, past, only)

    def enter(
        self, x: Float[Tensor, "batch pos d_model"], hooks: BlockHooks
    ) -> tuple[Float[Tensor, "batch pos d_model"], Heads]:
        """The residual streams of tokens, and the queries, keys and values that are made of them."""
        x = hooks.hook_resid_pre(x)
        return x, self.attn.heads(self.ln1(x, hooks.ln1), hooks.attn)

    def add(
        self,
        x: Float[Tensor, "batch pos d_model"],
        heads: Heads,
        hooks: BlockHooks,
        past: Past | None = None,
        only: Only = None,
    ) -> Float[Tensor, "batch only d_model"]:
        """Add attention and MLP to the residual streams of all tokens at hand, or of some of them."""
        attended = hooks.hook_attn_out(self.attn(heads, hooks.attn, past, only))
        x = hooks.hook_resid_mid((x if only is None else x[:, only]) + attended)
        return hooks.hook_resid_post(x + hooks.hook_mlp_out(self.mlp(self.ln2(x, hooks.ln2), hooks.mlp)))
