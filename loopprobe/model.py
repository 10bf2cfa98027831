"""The looped transformer: one weight-tied GPT-2 block applied n_loops times, the input injected in every loop.

    e   = read_in(interleave(xs, ys))
    z_0 = 0 (injection "add"), 1 ("multiply") or e ("none")
    z_{t+1} = ln_final(blocks(inject(z_t, e) + W_pos))
    ŷ_t = read_out(z_{t+1}) at the x positions

after Yang, Lee, Nowak and Papailiopoulos, "Looped transformers are better at learning learning algorithms"
(arXiv 2311.12424, section 4). An ordinary transformer is the case of one loop.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from loopprobe.config import ModelConfig
from loopprobe.errors import LoopprobeError
from loopprobe.hook_points import (
    AttentionHooks,
    BlockHooks,
    LoopHookPoint,
    LoopHooks,
    MLPHooks,
    NormHooks,
    hooked,
)
from loopprobe.hooked_root import LoopedRootModule

_ACTIVATIONS = {
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
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

    def forward(self, x: Float[Tensor, "batch pos d_model"], hooks: AttentionHooks) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.n_heads, self.d_head))
        q, k, v = (
            hooks.hook_q(qkv[..., 0, :, :]),
            hooks.hook_k(qkv[..., 1, :, :]),
            hooks.hook_v(qkv[..., 2, :, :]),
        )
        if hooked(hooks.hook_attn_scores, hooks.hook_pattern):
            scores = einsum(q, k, "b query h d, b key h d -> b h query key") / math.sqrt(self.d_head)
            above = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
            scores = hooks.hook_attn_scores(scores.masked_fill(above, -torch.inf))
            pattern = hooks.hook_pattern(scores.softmax(-1))
            z = einsum(pattern, v, "b h query key, b key h d -> b query h d")
        else:
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
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

    def forward(self, x: Float[Tensor, "batch pos d_model"], hooks: BlockHooks) -> Tensor:
        x = hooks.hook_resid_pre(x)
        x = hooks.hook_resid_mid(x + hooks.hook_attn_out(self.attn(self.ln1(x, hooks.ln1), hooks.attn)))
        return hooks.hook_resid_post(x + hooks.hook_mlp_out(self.mlp(self.ln2(x, hooks.ln2), hooks.mlp)))


class LoopedTransformer(LoopedRootModule):
    """A looped transformer with TransformerLens's hook names, one set of hook points a loop.

    Args:
        cfg: the model's configuration; a TransformerLens config or its dict is accepted too and then read by
            ``ModelConfig.from_transformer_lens``.
        generator: draws the initial weights; None draws them from torch's global generator.
    """

    blocks: Any  # ModuleList of Block
    loops: Any  # ModuleList of LoopHooks

    def __init__(self, cfg: ModelConfig | Any, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.cfg = cfg if isinstance(cfg, ModelConfig) else ModelConfig.from_transformer_lens(cfg)
        self.read_in = nn.Linear(self.cfg.n_dims, self.cfg.d_model)
        self.W_pos = nn.Parameter(torch.empty(self.cfg.n_ctx, self.cfg.d_model))
        self.blocks = nn.ModuleList(Block(self.cfg) for _ in range(self.cfg.n_layers))
        self.ln_final = LayerNorm(self.cfg.d_model, eps=self.cfg.eps)
        self.read_out = nn.Linear(self.cfg.d_model, 1)
        self.hook_embed = LoopHookPoint()  # [batch, pos, d_model]  the injected input e
        self.loops = nn.ModuleList()
        self._initialise(generator)
        self.setup()
        self.grow_loops(self.cfg.n_loops)

    def _initialise(self, generator: torch.Generator | None) -> None:
        """normal(0, initializer_range or 1/√fan_in), output projections divided by √(2 n_layers), biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                std = self.cfg.initializer_range or module.in_features**-0.5
                nn.init.normal_(module.weight, std=std, generator=generator)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.W_pos, std=self.cfg.initializer_range or 0.02, generator=generator)
        with torch.no_grad():
            for block in self.blocks:
                for projection in (block.attn.out, block.mlp.fc_out):
                    projection.weight /= math.sqrt(2 * self.cfg.n_layers)

    def forward(
        self,
        xs: Float[Tensor, "batch n_points n_dims"],
        ys: Float[Tensor, "batch n_points"],
        n_loops: int | None = None,
        *,
        keep_loops: int | None = None,
        grad_loops: int | None = None,
    ) -> Float[Tensor, "loop batch n_points"]:
        """Predict every label from the points before it, after every loop.

        Args:
            xs: inputs; fewer points than the model has positions for, or fewer dimensions, are welcome.
            ys: labels; the label of a point is seen by later points only, so the query's own does not matter.
            n_loops: iterations; None: as many as the model was trained with.
            keep_loops: return the predictions of the last ``keep_loops`` iterations only; None: of all.
            grad_loops: the last ``grad_loops`` iterations carry gradient, the earlier run without; None: all.

        Returns:
            Predictions [loop, batch, n_points], in the units of ys.

        Raises:
            LoopprobeError: prompts that do not fit the model or are not finite; loop counts below 1.
        """
        self.check_prompts(xs, ys)
        return self.run_loops(xs, ys, n_loops, keep_loops=keep_loops, grad_loops=grad_loops)

    def run_loops(
        self,
        xs: Tensor,
        ys: Tensor,
        n_loops: int | None = None,
        *,
        keep_loops: int | None = None,
        grad_loops: int | None = None,
    ) -> Float[Tensor, "loop batch n_points"]:
        """``forward`` for prompts that are known to be good: reads no number back from the device."""
        n_loops = self.cfg.n_loops if n_loops is None else n_loops
        keep_loops = n_loops if keep_loops is None else keep_loops
        grad_loops = n_loops if grad_loops is None else grad_loops
        for name, value in (("n_loops", n_loops), ("keep_loops", keep_loops), ("grad_loops", grad_loops)):
            if value < 1:
                raise LoopprobeError(f"{name} ({value}) must be at least 1: raise it")
        self.grow_loops(n_loops)
        e = self.embed(xs, ys)
        z = self.initial_state(e)
        predictions = []
        with_grad = torch.is_grad_enabled()
        for loop in range(n_loops):
            with torch.set_grad_enabled(with_grad and loop >= n_loops - grad_loops):
                z = self.step(z, e, loop)
                if loop >= n_loops - keep_loops:
                    predictions.append(self.predict(z, loop))
        return torch.stack(predictions)

    def embed(self, xs: Tensor, ys: Tensor) -> Float[Tensor, "batch pos d_model"]:
        """The injected input e: x and y tokens interleaved, y in coordinate 0, read in."""
        xs = F.pad(xs, (0, self.cfg.n_dims - xs.shape[-1]))
        labels = F.pad(ys[..., None], (0, self.cfg.n_dims - 1))
        tokens = rearrange([xs, labels], "kind batch point dim -> batch (point kind) dim")
        return self.hook_embed(self.read_in(tokens))

    def initial_state(self, e: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """z_0: zero for additive injection, one for multiplicative, e itself without injection."""
        if self.cfg.injection == "none":
            return e
        return torch.zeros_like(e) if self.cfg.injection == "add" else torch.ones_like(e)

    def step(
        self, z: Float[Tensor, "batch pos d_model"], e: Float[Tensor, "batch pos d_model"], loop: int = 0
    ) -> Float[Tensor, "batch pos d_model"]:
        """One iteration, z_t → z_{t+1}: the map whose fixed points the loop looks for; passes loop's hooks."""
        hooks: LoopHooks = self.loops[loop]
        z = hooks.hook_z_pre(z)
        if self.cfg.injection != "none":
            z = z + e if self.cfg.injection == "add" else z * e
        x = hooks.hook_input(z)
        x = x + hooks.hook_pos_embed(self.W_pos[: x.shape[1]].expand_as(x))
        for block, block_hooks in zip(self.blocks, hooks.blocks, strict=True):
            x = block(x, block_hooks)
        return hooks.hook_z(self.ln_final(x, hooks.ln_final))

    def predict(self, z: Float[Tensor, "batch pos d_model"], loop: int = 0) -> Float[Tensor, "batch n_points"]:
        """Read the predictions out of a state, at the x positions."""
        return self.loops[loop].hook_readout(self.read_out(z[:, ::2]).squeeze(-1))

    def check_prompts(self, xs: Tensor, ys: Tensor) -> None:
        """Raise LoopprobeError where prompts do not fit the model or hold NaN or infinity."""
        if xs.ndim != 3 or ys.shape != xs.shape[:2]:
            raise LoopprobeError(
                f"xs {tuple(xs.shape)} and ys {tuple(ys.shape)} must be [batch, n_points, n_dims] and "
                "[batch, n_points]: reshape them"
            )
        if 2 * xs.shape[1] > self.cfg.n_ctx:
            raise LoopprobeError(
                f"the prompt has {xs.shape[1]} points ({2 * xs.shape[1]} tokens) but the model has "
                f"{self.cfg.n_ctx} positions: use at most {self.cfg.n_ctx // 2} points"
            )
        if xs.shape[2] > self.cfg.n_dims:
            raise LoopprobeError(
                f"the prompt has {xs.shape[2]} dimensions but the model reads {self.cfg.n_dims}: "
                f"use at most {self.cfg.n_dims}"
            )
        for name, values in (("xs", xs), ("ys", ys)):
            if not torch.isfinite(values).all():
                bad = (~torch.isfinite(values)).sum().item()
                raise LoopprobeError(f"{name} holds {bad} values that are NaN or infinite: remove these prompts")

    # Weights under TransformerLens's names; the parameters themselves live once, fused.
    W_E = property(lambda self: self.read_in.weight.T)  # [n_dims, d_model]
    b_E = property(lambda self: self.read_in.bias)  # [d_model]
    W_U = property(lambda self: self.read_out.weight.T)  # [d_model, 1]
    b_U = property(lambda self: self.read_out.bias)  # [1]
    W_Q = property(
        lambda self: torch.stack([block.attn.W_Q for block in self.blocks])
    )  # [layer, head, d_model, d_head]
    W_K = property(lambda self: torch.stack([block.attn.W_K for block in self.blocks]))
    W_V = property(lambda self: torch.stack([block.attn.W_V for block in self.blocks]))
    W_O = property(
        lambda self: torch.stack([block.attn.W_O for block in self.blocks])
    )  # [layer, head, d_head, d_model]
    W_in = property(lambda self: torch.stack([block.mlp.W_in for block in self.blocks]))  # [layer, d_model, d_mlp]
    W_out = property(lambda self: torch.stack([block.mlp.W_out for block in self.blocks]))  # [layer, d_mlp, d_model]
    b_Q = property(lambda self: torch.stack([block.attn.b_Q for block in self.blocks]))
    b_K = property(lambda self: torch.stack([block.attn.b_K for block in self.blocks]))
    b_V = property(lambda self: torch.stack([block.attn.b_V for block in self.blocks]))
    b_O = property(lambda self: torch.stack([block.attn.b_O for block in self.blocks]))
    b_in = property(lambda self: torch.stack([block.mlp.b_in for block in self.blocks]))
    b_out = property(lambda self: torch.stack([block.mlp.b_out for block in self.blocks]))

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """Sum of the output biases below ``layer`` within one loop, as TransformerLens defines it."""
        bias = torch.zeros_like(self.ln_final.bias)
        for block in self.blocks[:layer]:
            bias = bias + block.attn.b_O + (block.mlp.b_out if include_mlp_biases else 0)
        return bias + self.blocks[layer].attn.b_O if mlp_input else bias
