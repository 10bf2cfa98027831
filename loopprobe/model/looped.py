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
from contextlib import AbstractContextManager, nullcontext
from typing import Any, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from loopprobe.config.budget import require, require_model, run_bytes
from loopprobe.config.schema import ModelConfig
from loopprobe.errors import LoopprobeError
from loopprobe.model.blocks import Block, LayerNorm, Past
from loopprobe.model.cache import LoopCache
from loopprobe.model.hook_points import LoopHooks, hooked
from loopprobe.model.hooked_root import LoopedRootModule
from loopprobe.model.lens_options import refuse_options
from loopprobe.model.protocol import Capability
from loopprobe.model.weight_views import WeightViews
from loopprobe.tasks.prompts import INPUTS, TOKENS_PER_POINT


class LoopedTransformer(WeightViews, LoopedRootModule):
    """A looped transformer with TransformerLens's hook names, one set of hook points for each loop.

    Args:
        cfg: the model's configuration; a TransformerLens config or its dict is accepted too and then read by
            ``ModelConfig.from_transformer_lens``.
        generator: draws the initial weights; None draws them from torch's global generator.
    """

    blocks: Any  # ModuleList of Block
    supports: frozenset[Capability] = frozenset(get_args(Capability))  # all of them
    tokens_per_point = TOKENS_PER_POINT

    def __init__(self, cfg: ModelConfig | Any, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.cfg = cfg if isinstance(cfg, ModelConfig) else ModelConfig.from_transformer_lens(cfg)
        require_model(self.cfg)
        self.read_in = nn.Linear(self.cfg.n_dims, self.cfg.d_model)
        self.W_pos = nn.Parameter(torch.empty(self.cfg.n_ctx, self.cfg.d_model))
        self.blocks = nn.ModuleList(Block(self.cfg) for _ in range(self.cfg.n_layers))
        self.ln_final = LayerNorm(self.cfg.d_model, eps=self.cfg.eps)
        self.read_out = nn.Linear(self.cfg.d_model, 1)
        self._initialise(generator)
        self.setup()

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
        stop_at_loop: int | None = None,
        **options: Any,
    ) -> Float[Tensor, "loop batch n_points"]:
        """Predict every label from the points before it, after every loop.

        Args:
            xs: inputs, as a tensor or an array of any real dtype on any device; fewer points than the model has
                positions for, or fewer dimensions, are welcome.
            ys: labels; the label of a point is seen by later points only, so the query's own does not matter.
            n_loops: iterations; None: as many as the model was trained with.
            keep_loops: return the predictions of the last ``keep_loops`` iterations only; None: of all.
            grad_loops: the last ``grad_loops`` iterations carry gradient, the earlier run without; None: all.
            stop_at_loop: return the state that enters this loop instead, [batch, pos, d_model].

        Returns:
            Predictions [loop, batch, n_points], in the units of ys.

        Raises:
            LoopprobeError: prompts that do not fit the model or are not finite; loop counts below 1, or more loops to
                keep than are run; an option of TransformerLens that has no meaning here.
        """
        refuse_options(options)
        xs, ys = self.prepare(xs, ys)
        n_loops = self.cfg.n_loops if n_loops is None else n_loops
        if stop_at_loop is not None:
            return self._state_before(xs, ys, stop_at_loop, n_loops)
        self.check_loops(n_loops, keep_loops, grad_loops)
        self.require_memory((xs, ys), n_loops if keep_loops is None else keep_loops)
        run = self.run_loops
        if self.hook_trees.busy and torch.compiler.is_compiling():
            run = torch.compiler.disable(run)  # type: ignore[no-untyped-call]  # a compiled run would not see the hooks
        return run(xs, ys, n_loops, keep_loops=keep_loops, grad_loops=grad_loops)

    def run_with_cache(  # type: ignore[override]
        self, xs: Any, ys: Any, n_loops: int | None = None, **options: Any
    ) -> tuple[Float[Tensor, "loop batch n_points"], LoopCache]:
        """Run and keep the activations that were asked for; the options are those of ``LoopedRootModule``."""
        return super().run_with_cache(xs, ys, n_loops=n_loops, **options)

    def run_loops(
        self,
        xs: Tensor,
        ys: Tensor,
        n_loops: int,
        *,
        keep_loops: int | None = None,
        grad_loops: int | None = None,
    ) -> Float[Tensor, "loop batch n_points"]:
        """``forward`` for prompts and counts that are known to be good: no validation, so no device is waited for."""
        keep_loops = n_loops if keep_loops is None else keep_loops
        grad_loops = n_loops if grad_loops is None else grad_loops
        predictions: list[Tensor] = []
        with_grad = torch.is_grad_enabled()
        with self._running(n_loops):
            e = self.embed(xs, ys)
            z = self.initial_state(e)
            for loop in range(n_loops):
                with torch.set_grad_enabled(with_grad and loop >= n_loops - grad_loops):
                    z = self.step(z, e, loop)
                    if loop < n_loops - keep_loops:
                        continue
                    prediction = self.predict(z, loop=loop)
                    if with_grad:
                        predictions.append(prediction)
                        continue
                    if not predictions:  # one tensor for all: small ones would fragment the heap, by 0.3 MB a loop
                        predictions.append(prediction.new_empty(keep_loops, *prediction.shape))
                    predictions[0][loop - n_loops] = prediction
        return torch.stack(predictions) if with_grad else predictions[0]

    def _running(self, n_loops: int) -> AbstractContextManager[None]:
        return nullcontext() if torch.compiler.is_compiling() else self.hook_trees.run(n_loops)

    def _state_before(self, xs: Tensor, ys: Tensor, loop: int, n_loops: int) -> Float[Tensor, "batch pos d_model"]:
        """The state that enters a loop; negative loops count from the end of ``n_loops``, which may be entered too."""
        stop = loop + n_loops if loop < 0 else loop
        if not 0 <= stop <= n_loops:
            raise LoopprobeError(f"stop_at_loop ({loop}) must be from 0 to n_loops ({n_loops}): lower it")
        with self._running(max(stop, 1)):
            e = self.embed(xs, ys)
            z = self.initial_state(e)
            for now in range(stop):
                z = self.step(z, e, now)
        return z

    def embed(self, xs: Tensor, ys: Tensor) -> Float[Tensor, "batch pos d_model"]:
        """The injected input e: x and y tokens interleaved, y in coordinate 0, read in."""
        xs = F.pad(xs, (0, self.cfg.n_dims - xs.shape[-1]))
        labels = F.pad(ys[..., None], (0, self.cfg.n_dims - 1))
        tokens = rearrange([xs, labels], "kind batch point dim -> batch (point kind) dim")
        e: Tensor = self.points(None).hook_embed(self.read_in(tokens))
        return e

    def initial_state(self, e: Float[Tensor, "*tokens d_model"]) -> Float[Tensor, "*tokens d_model"]:
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
        hooks: LoopHooks = self.points(loop)
        z = hooks.hook_z_pre(z)
        x = hooks.hook_input(self.inject(z, e))
        positions = self.positions(x, 0 if past is None else past[0][0].shape[1])
        if hooked(hooks.hook_pos_embed):
            positions = positions.clone()  # a hook must not be handed the parameter itself
        x = x + hooks.hook_pos_embed(positions)
        for layer, (block, block_hooks) in enumerate(zip(self.blocks, hooks.blocks, strict=True)):
            x = block(x, block_hooks, None if past is None else past[layer])
        z_next: Tensor = hooks.hook_z(self.ln_final(x, hooks.ln_final))
        return z_next

    def predict(
        self, z: Float[Tensor, "batch pos d_model"], e: Tensor | None = None, loop: int = 0, first: int = 0
    ) -> Float[Tensor, "batch n_points"]:
        """Read the predictions out of a state, at the inputs.

        Args:
            z: the state.
            e: the injected input, which this read-out does not need.
            loop: whose hook is passed.
            first: the token that z begins with.
        """
        inputs = z[:, -first % TOKENS_PER_POINT :: TOKENS_PER_POINT] if first else z[:, INPUTS]
        prediction: Tensor = self.points(loop).hook_readout(self.unembed(inputs))
        return prediction

    def unembed(self, states: Float[Tensor, "*tokens d_model"]) -> Float[Tensor, "*tokens"]:
        """The predictions of states at inputs: the affine map that ``predict`` reads with."""
        predictions: Tensor = self.read_out(states).squeeze(-1)
        return predictions

    def to_state(self, resid: Float[Tensor, "*tokens d_model"]) -> Float[Tensor, "*tokens d_model"]:
        """The final norm of a residual stream, from which predictions can be read."""
        state: Tensor = self.ln_final(resid)
        return state

    def prepare(self, xs: Any, ys: Any) -> tuple[Tensor, Tensor]:
        """Prompts in the dtype and on the device of the model, from tensors or arrays.

        Raises:
            LoopprobeError: they are no real numbers, do not fit the model, or hold NaN or infinity.
        """
        own = self.W_pos
        parts = []
        for name, values in (("xs", xs), ("ys", ys)):
            try:
                tensor = torch.as_tensor(values)
            except (TypeError, ValueError, RuntimeError):
                raise LoopprobeError(
                    f"{name} ({type(values).__name__}) must be a tensor or an array of numbers"
                ) from None
            if tensor.is_complex():
                raise LoopprobeError(f"{name} has dtype {tensor.dtype}: give real numbers")
            parts.append(tensor)
        self.check_prompts(*parts)
        xs, ys = (part.to(own.device, own.dtype) for part in parts)
        return xs, ys

    def n_tokens(self, xs: Tensor, ys: Tensor) -> int:  # type: ignore[override]
        """Two a point."""
        return TOKENS_PER_POINT * xs.shape[1]

    def require_memory(self, inputs: tuple[Tensor, ...], kept: int) -> None:
        """Raise LoopprobeError where the memory cannot hold a run that keeps the predictions of so many loops."""
        xs = inputs[0]
        if not torch.compiler.is_compiling():
            what = f"a run of {len(xs):,} prompts that keeps {kept:,} loops"
            size = run_bytes(self.cfg, len(xs), xs.shape[1], kept)
            require(size, what, "give fewer prompts or keep_loops", self.W_pos.device)

    def check_prompts(self, xs: Tensor, ys: Tensor) -> None:
        """Raise LoopprobeError where prompts do not fit the model or hold NaN or infinity."""
        if xs.ndim != 3 or ys.shape != xs.shape[:2]:
            raise LoopprobeError(
                f"xs {tuple(xs.shape)} and ys {tuple(ys.shape)} must be [batch, n_points, n_dims] and "
                "[batch, n_points]: reshape them"
            )
        if not xs.shape[1]:
            raise LoopprobeError("the prompts have no points: give at least the query")
        if (n_tokens := self.n_tokens(xs, ys)) > self.cfg.n_ctx:
            raise LoopprobeError(
                f"the prompt has {xs.shape[1]} points ({n_tokens} tokens) but the model has "
                f"{self.cfg.n_ctx} positions: use at most {self.cfg.n_ctx // TOKENS_PER_POINT} points"
            )
        if xs.shape[2] > self.cfg.n_dims:
            raise LoopprobeError(
                f"the prompt has {xs.shape[2]} dimensions but the model reads {self.cfg.n_dims}: "
                f"use at most {self.cfg.n_dims}"
            )
        self.require_memory((xs, ys), 1)
        largest = torch.finfo(self.W_pos.dtype).max
        for name, values in (("xs", xs), ("ys", ys)):
            if not (values.abs() <= largest).all():
                bad = (~(values.abs() <= largest)).sum().item()
                raise LoopprobeError(f"{name} holds {bad} values that are NaN or infinite: remove these prompts")
