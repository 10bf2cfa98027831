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
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from loopprobe.blocks import Block, LayerNorm, Past
from loopprobe.config import ModelConfig
from loopprobe.errors import LoopprobeError
from loopprobe.hook_points import LoopHookPoint, LoopHooks
from loopprobe.hooked_root import LoopedRootModule


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
        predictions: list[Tensor] = []
        with_grad = torch.is_grad_enabled()
        for loop in range(n_loops):
            with torch.set_grad_enabled(with_grad and loop >= n_loops - grad_loops):
                z = self.step(z, e, loop)
                if loop < n_loops - keep_loops:
                    continue
                prediction = self.predict(z, loop)
                if with_grad:
                    predictions.append(prediction)
                    continue
                if not predictions:  # one tensor for all: many small ones would fragment the heap, by 0.3 MB a loop
                    predictions.append(prediction.new_empty(keep_loops, *prediction.shape))
                predictions[0][loop - n_loops] = prediction
        return torch.stack(predictions) if with_grad else predictions[0]

    def embed(self, xs: Tensor, ys: Tensor) -> Float[Tensor, "batch pos d_model"]:
        """The injected input e: x and y tokens interleaved, y in coordinate 0, read in."""
        xs, ys = xs.to(self.W_pos), ys.to(self.W_pos)
        xs = F.pad(xs, (0, self.cfg.n_dims - xs.shape[-1]))
        labels = F.pad(ys[..., None], (0, self.cfg.n_dims - 1))
        tokens = rearrange([xs, labels], "kind batch point dim -> batch (point kind) dim")
        return self.hook_embed(self.read_in(tokens))

    def initial_state(self, e: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """z_0: zero for additive injection, one for multiplicative, e itself without injection."""
        if self.cfg.injection == "none":
            return e
        return torch.zeros_like(e) if self.cfg.injection == "add" else torch.ones_like(e)

    def inject(
        self, z: Float[Tensor, "batch pos d_model"], e: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """The state with the input put in: their sum or product, or the state alone."""
        if self.cfg.injection == "none":
            return z
        return z + e if self.cfg.injection == "add" else z * e

    def positions(self, x: Float[Tensor, "batch pos d_model"], first: int) -> Float[Tensor, "batch pos d_model"]:
        """The position embeddings of the tokens from ``first`` on, as many as there are in x."""
        return self.W_pos[first : first + x.shape[1]].expand_as(x)

    def step(
        self,
        z: Float[Tensor, "batch pos d_model"],
        e: Float[Tensor, "batch pos d_model"],
        loop: int = 0,
        past: Sequence[Past] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """One iteration, z_t → z_{t+1}: the map whose fixed points the loop looks for; passes loop's hooks.

        Args:
            z, e: the state and the injected input, of all tokens, or with ``past`` of the later ones.
            loop: whose hooks are passed.
            past: keys and values of the tokens before, one pair a layer, as they were in this loop: attention is
                causal, so the earlier tokens do not depend on these and need not be computed again.
        """
        hooks: LoopHooks = self.loops[loop]
        z = hooks.hook_z_pre(z)
        x = hooks.hook_input(self.inject(z, e))
        x = x + hooks.hook_pos_embed(self.positions(x, 0 if past is None else past[0][0].shape[1]))
        for layer, (block, block_hooks) in enumerate(zip(self.blocks, hooks.blocks, strict=True)):
            x = block(x, block_hooks, None if past is None else past[layer])
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
