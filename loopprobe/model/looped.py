"""The looped transformer: one weight-tied block applied n_loops times, the input injected in every loop.

    e   = read_in(interleave(xs, ys)), or of tokens prelude(W_E[tokens])
    z_0 = 0 (injection "add"), 1 ("multiply") or e ("none")
    z_{t+1} = ln_final(blocks(inject(z_t, e) + W_pos))
    ŷ_t = read_out(z_{t+1}) at the x positions; of tokens the logits read_out(coda(z_{t+1})) at every token

after Yang, Lee, Nowak and Papailiopoulos, "Looped transformers are better at learning learning algorithms"
(arXiv 2311.12424, section 4). An ordinary transformer is the case of one loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loopprobe.config.budget import require, require_model, run_bytes
from loopprobe.config.schema import ModelConfig
from loopprobe.errors import LoopprobeError
from loopprobe.model.blocks import Block, Heads, Only, Past, make_norm
from loopprobe.model.hook_points import LoopHooks, OnceHooks, eager_with_hooks, hooked
from loopprobe.model.hooked_root import LoopedRootModule
from loopprobe.model.initial_weights import initialise
from loopprobe.model.lens_options import refuse_options
from loopprobe.model.protocol import Capability
from loopprobe.model.reading import ReadAt, Tokens, Vectors, at_tokens, read_places
from loopprobe.model.weight_views import WeightViews
from loopprobe.support.autocast import forget_casts
from loopprobe.support.threads import go_on


class LoopedTransformer(WeightViews, LoopedRootModule):
    """A looped transformer with TransformerLens's hook names, one set of hook points for each loop.

    Args:
        cfg: the model's configuration; a TransformerLens config or its dict is accepted too and then read by
            ``ModelConfig.from_transformer_lens``.
        generator: draws the initial weights; None draws them from torch's global generator.
    """

    blocks: Any  # ModuleList of Block

    def __init__(self, cfg: ModelConfig | Any, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.cfg = cfg if isinstance(cfg, ModelConfig) else ModelConfig.from_transformer_lens(cfg)
        require_model(self.cfg)
        self.reader = Tokens(self.cfg) if self.cfg.reads_tokens else Vectors(self.cfg)
        self.read_in = self.reader.make_read_in()
        if self.cfg.positional_embedding_type == "standard":
            self.W_pos = nn.Parameter(torch.empty(self.cfg.n_ctx, self.cfg.d_model))
        if self.cfg.loop_embedding:
            self.W_loop = nn.Parameter(torch.empty(self.cfg.n_loops, self.cfg.d_model))
        self.blocks = self._layers(self.cfg.n_layers)
        self.ln_final = make_norm(self.cfg)
        if self.cfg.n_prelude_layers:
            self.prelude = self._layers(self.cfg.n_prelude_layers)
        if self.cfg.n_coda_layers:
            self.coda, self.ln_coda = self._layers(self.cfg.n_coda_layers), make_norm(self.cfg)
        self.read_out = self.reader.make_read_out()
        initialise(self, generator)
        self.setup()

    def _layers(self, n: int) -> nn.ModuleList:
        return nn.ModuleList(Block(self.cfg) for _ in range(n))

    @property
    def supports(self) -> frozenset[Capability]:
        """The capabilities that it has besides the methods of ``LoopedModel``."""
        is_hooked = self.hook_trees.is_hooked or hooked(*self.modules())  # by hooks that expect to see every token
        lost = {
            "causal": self.cfg.attention_dir != "causal",
            "past": self.cfg.attention_dir != "causal" or self.cfg.n_coda_layers > 0 or is_hooked,
            "linear_readout": self.cfg.n_coda_layers > 0,
            "autonomous": self.cfg.loop_embedding or not self.hook_trees.are_alike,
            "generate": True,
            "gate": True,
            "threads": self.device.type != "cpu" or is_hooked,
        }
        return frozenset(name for name in get_args(Capability) if not lost.get(name))

    @property
    def tokens_per_point(self) -> int:
        """The number of tokens of one example."""
        return int(self.cfg.tokens_per_point)

    def forward(
        self,
        *inputs: Any,
        n_loops: int | None = None,
        keep_loops: int | None = None,
        grad_loops: int | None = None,
        stop_at_loop: int | None = None,
        read_at: Any = None,
        **options: Any,
    ) -> Float[Tensor, "loop batch answer *value"]:
        """Answer prompts after every loop.

        Args:
            inputs: of a model of vectors xs [batch, n_points, n_dims] and ys [batch, n_points], tensors or arrays of
                any real dtype on any device; fewer points than the model has positions for, or fewer dimensions, are
                welcome, and the label of a point is seen by later points only, so the query's own does not matter. Of
                a model of tokens [batch, pos], whole numbers. After them n_loops may stand.
            n_loops: iterations; None: as many as the model was trained with.
            keep_loops: return the answers of the last ``keep_loops`` iterations only; None: of all.
            grad_loops: the last ``grad_loops`` iterations carry gradient, the earlier run without; None: all.
            stop_at_loop: return the state that enters this loop instead, [batch, pos, d_model].
            read_at: the tokens whose states are read: a number, several, a slice, negative ones from the end. None: all
                inputs x of a model of vectors, all tokens of the other.

        Returns:
            Predictions [loop, batch, n_points] in the units of ys, or logits [loop, batch, pos, d_vocab_out].

        Raises:
            LoopprobeError: prompts that do not fit the model or are not finite; loop counts below 1, or more loops to
                keep than are run; an option of TransformerLens that has no meaning here.
        """
        refuse_options(options)
        inputs, n_loops = self.with_loops(inputs, n_loops)
        inputs = self.prepare(*inputs)
        read_at = read_places(read_at, self.n_tokens(*inputs))
        n_loops = self.cfg.n_loops if n_loops is None else n_loops
        if stop_at_loop is not None:
            return self._state_before(inputs, stop_at_loop, n_loops)
        self.check_loops(n_loops, keep_loops, grad_loops)
        self.require_memory(inputs, n_loops if keep_loops is None else keep_loops)
        return self.run_loops(*inputs, n_loops=n_loops, keep_loops=keep_loops, grad_loops=grad_loops, read_at=read_at)

    @eager_with_hooks
    def run_loops(
        self,
        *inputs: Tensor,
        n_loops: int,
        keep_loops: int | None = None,
        grad_loops: int | None = None,
        read_at: ReadAt = None,
    ) -> Float[Tensor, "loop batch answer *value"]:
        """``forward`` for prompts and counts that are known to be good: no validation, so no device is waited for."""
        keep_loops = n_loops if keep_loops is None else keep_loops
        grad_loops = n_loops if grad_loops is None else grad_loops
        outputs: list[Tensor] = []
        with_grad = torch.is_grad_enabled()
        with self._running(n_loops):
            e = self.embed(*inputs)
            z = self.initial_state(e)
            for loop in range(n_loops):
                if not torch.compiler.is_compiling():
                    go_on()
                    if with_grad and loop == n_loops - grad_loops:
                        forget_casts(z.device)
                with torch.set_grad_enabled(with_grad and loop >= n_loops - grad_loops):
                    z = self.step(z, e, loop)
                    if loop < n_loops - keep_loops:
                        continue
                    output = self.predict(z, loop=loop, read_at=read_at)
                    if with_grad:
                        outputs.append(output)
                        continue
                    if not outputs:  # one tensor for all: small ones would fragment the heap, by 0.3 MB a loop
                        outputs.append(output.new_empty(keep_loops, *output.shape))
                    outputs[0][loop - n_loops] = output
        return torch.stack(outputs) if with_grad else outputs[0]

    def _running(self, n_loops: int) -> AbstractContextManager[None]:
        return nullcontext() if torch.compiler.is_compiling() else self.hook_trees.run(n_loops)

    def _state_before(self, inputs: tuple[Tensor, ...], loop: int, n_loops: int) -> Float[Tensor, "batch pos d_model"]:
        """The state that enters a loop; negative loops count from the end of ``n_loops``, which may be entered too."""
        stop = loop + n_loops if loop < 0 else loop
        if not 0 <= stop <= n_loops:
            raise LoopprobeError(f"stop_at_loop ({loop}) must be from 0 to n_loops ({n_loops}): lower it")
        with self._running(max(stop, 1)):
            e = self.embed(*inputs)
            z = self.initial_state(e)
            for now in range(stop):
                z = self.step(z, e, now)
        return z

    @eager_with_hooks
    def embed(self, *inputs: Tensor) -> Float[Tensor, "batch pos d_model"]:
        """The injected input e: x and y tokens interleaved and read in, or tokens embedded, then the prelude."""
        hooks: OnceHooks = self.points(None)
        e = self.reader.embed(self.read_in, *inputs)
        if hooks.prelude:
            if self.cfg.positional_embedding_type == "standard":
                e = e + self.positions(e, 0)
            for block, block_hooks in zip(self.prelude, hooks.prelude, strict=True):
                e = block(e, block_hooks)
        injected: Tensor = hooks.hook_embed(e)
        return injected

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

    def loop_vector(self, x: Float[Tensor, "batch pos d_model"], loop: int) -> Float[Tensor, "batch pos d_model"]:
        """The embedding of a loop at every token; loops beyond those of the training have that of the last."""
        return self.W_loop[min(loop, self.cfg.n_loops - 1)].expand_as(x)

    @eager_with_hooks
    def step(
        self,
        z: Float[Tensor, "batch pos d_model"],
        e: Float[Tensor, "batch pos d_model"],
        loop: int = 0,
        past: Sequence[Past] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """One iteration, z_t → z_{t+1}: the map whose fixed points the loop looks for; passes loop's hooks.

        Args:
            z: the state of all tokens, or with ``past`` of the later ones.
            e: the injected input of the same tokens.
            loop: whose hooks are passed.
            past: keys and values of the tokens before, one pair a layer, as they were in this loop: attention is
                causal, so the earlier tokens do not depend on these and need not be computed again.
        """
        return self.run_layers(self.stream(z, e, loop, 0 if past is None else past[0][0].shape[1]), loop, past)

    def run_layers(
        self,
        x: Float[Tensor, "batch pos d_model"],
        loop: int,
        past: Sequence[Past | None] | None = None,
        heads: Heads | None = None,
        only: Only = None,
    ) -> Float[Tensor, "batch only d_model"]:
        """The rest of ``step`` behind ``stream``; ``heads`` and ``only`` as at the first and last layer's ``Block``."""
        hooks: LoopHooks = self.points(loop)
        for layer, (block, block_hooks) in enumerate(zip(self.blocks, hooks.blocks, strict=True)):
            is_last = layer == len(self.blocks) - 1
            x = block(x, block_hooks, past and past[layer], None if layer else heads, only if is_last else None)
        z_next: Tensor = hooks.hook_z(self.ln_final(x, hooks.ln_final))
        return z_next

    def stream(
        self, z: Float[Tensor, "batch pos d_model"], e: Float[Tensor, "batch pos d_model"], loop: int, first: int = 0
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream that enters a loop's first layer; z begins with the token ``first``."""
        hooks: LoopHooks = self.points(loop)
        x: Tensor = hooks.hook_input(self.inject(hooks.hook_z_pre(z), e))
        if self.cfg.positional_embedding_type == "standard":
            positions = self.positions(x, first)
            if hooked(hooks.hook_pos_embed):
                positions = positions.clone()  # a hook must not be handed the parameter itself
            x = x + hooks.hook_pos_embed(positions)
        if self.cfg.loop_embedding:
            vector = self.loop_vector(x, loop)
            x = x + hooks.hook_loop_embed(vector.clone() if hooked(hooks.hook_loop_embed) else vector)
        return x

    @eager_with_hooks
    def predict(
        self,
        z: Float[Tensor, "batch pos d_model"],
        e: Tensor | None = None,
        loop: int = 0,
        first: int = 0,
        read_at: ReadAt = None,
    ) -> Float[Tensor, "batch answer *value"]:
        """Read the answers out of a state.

        Args:
            z: the state.
            e: the injected input, which this read-out does not need.
            loop: whose hooks are passed.
            first: the token that z begins with.
            read_at: the tokens of the prompt that are read; None: as in ``forward``.
        """
        hooks: LoopHooks = self.points(loop)
        if self.cfg.n_coda_layers:
            for block, block_hooks in zip(self.coda, hooks.coda, strict=True):
                z = block(z, block_hooks)
            z = self.ln_coda(z, hooks.ln_coda)
        read = at_tokens(self.reader.read_at if read_at is None else read_at, first, z.shape[1])
        states = z[:, read]
        if isinstance(read, slice) and read.step == 1:
            states = states.contiguous()  # so that torch adds the bias within the product
        output: Tensor = hooks.hook_readout(self.unembed(states))
        return output

    def unembed(self, states: Float[Tensor, "*tokens d_model"]) -> Float[Tensor, "*outputs"]:
        """The answers of states: the affine map that ``predict`` reads with."""
        return self.reader.outputs(self.read_out(states))

    def to_state(self, resid: Float[Tensor, "*tokens d_model"]) -> Float[Tensor, "*tokens d_model"]:
        """The final norm of a residual stream, from which predictions can be read."""
        state: Tensor = self.ln_final(resid)
        return state

    def prepare(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Prompts in the dtype and on the device of the model, from tensors or arrays.

        Raises:
            LoopprobeError: they are no numbers, do not fit the model or the memory, hold NaN or infinity, or tokens
                that are not in the vocabulary.
        """
        parts = self.reader.parts(*inputs)
        self.require_memory(parts, 1)
        return self.reader.moved(self.read_out.weight, *parts)

    def n_tokens(self, *inputs: Tensor) -> int:
        """Count the positions of the state for prompts."""
        return self.reader.n_tokens(*inputs)

    def require_memory(self, inputs: tuple[Tensor, ...], kept: int) -> None:
        """Raise LoopprobeError where the memory cannot hold a run that keeps the answers of so many loops."""
        if not torch.compiler.is_compiling():
            n_prompts = len(inputs[0])
            what = f"a run of {n_prompts:,} prompts that keeps {kept:,} loops"
            size = run_bytes(self.cfg, n_prompts, self.n_tokens(*inputs), kept)
            require(size, what, "give fewer prompts or keep_loops", self.device)
