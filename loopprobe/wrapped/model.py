"""A looped module of somebody else as a LoopedModel: the module itself stays as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loopprobe.config.budget import require
from loopprobe.model.hook_points import hooked
from loopprobe.model.hook_trees import HookTrees
from loopprobe.model.hooked_root import LoopedRootModule
from loopprobe.model.lens_options import refuse_options
from loopprobe.model.protocol import Capability, Sizes
from loopprobe.model.protocol import require as require_support
from loopprobe.model.reading import ReadAt, at_tokens, read_places
from loopprobe.wrapped.anatomy import Anatomy
from loopprobe.wrapped.attention import hooked_attention
from loopprobe.wrapped.generate import generate
from loopprobe.wrapped.head_weights import read_heads
from loopprobe.wrapped.inputs import like, prepared, require_answers
from loopprobe.wrapped.passes import Pass
from loopprobe.wrapped.plan import Plan
from loopprobe.wrapped.points import layout_of
from loopprobe.wrapped.precision import as_precise_as
from loopprobe.wrapped.wiring import Wiring, tensor_of

START_SEED = 0  # of the states that a loop starts from at random


class WrappedModel(LoopedRootModule):
    """A looped module with TransformerLens's hook names, one set of hook points for each loop; see ``wrap``.

    Args:
        module: the module, in eval mode.
        anatomy: where its parts stand.
        wiring: the order of their calls.
        example: inputs of a call, of which other inputs are checked to be like.
        found: the capabilities that were found.

    Attributes:
        start_seed: the seed of the state that the loop starts from, where it starts at random.
        has_cache: whether the module writes into a key-value cache; None: not tried yet.
    """

    tokens_per_point = 1
    head_weights = read_heads

    def __init__(
        self,
        module: nn.Module,
        anatomy: Anatomy,
        wiring: Wiring,
        example: Sequence[Tensor],
        found: frozenset[Capability] = frozenset(),
    ) -> None:
        super().__init__()
        self.module, self.anatomy, self.wiring = module, anatomy, wiring
        self.example = tuple(part[:1] for part in example)
        self.found = found
        self.start_seed = START_SEED
        self.has_cache: bool | None = None
        self.setup()
        self.train(module.training)

    @property
    def supports(self) -> frozenset[Capability]:
        """The capabilities that were found, under the hooks that are attached now."""
        return self.found if self.hook_trees.are_alike else self.found - {"autonomous"}

    def setup(self) -> None:
        """Make the hook points; the module's own parts get no names, which a bridge's points have."""
        self.mod_dict = {name: part for name, part in self.named_modules() if name}
        self.hook_trees = self.hook_dict = HookTrees(layout_of(self.anatomy, self.wiring, self.value_size))

    @property
    def n_loops(self) -> int:
        """The loops as trained."""
        assert self.anatomy.n_loops is not None, "wrap() has set it"
        return self.anatomy.n_loops

    @property
    def value_size(self) -> int:
        """The numbers of one answer, such as the size of the vocabulary."""
        head = None if self.anatomy.head is None else self.wiring.widths.get((self.anatomy.head, "out"))
        return head[-1] if head else 1

    @property
    def sizes(self) -> Sizes:
        """Layers of a loop, heads, the width of the state, loops as trained, and the most tokens."""
        anatomy, widths = self.anatomy, self.wiring.widths
        width = sum(widths[path, "out"][-1] for path in anatomy.state) or widths[self.wiring.order[-1], "out"][-1]
        return Sizes(len(self.wiring.order), anatomy.n_heads, width, self.n_loops, anatomy.n_ctx)

    def forward(
        self,
        *inputs: Any,
        n_loops: int | None = None,
        keep_loops: int | None = None,
        grad_loops: int | None = None,
        read_at: Any = None,
        **options: Any,
    ) -> Float[Tensor, "loop batch answer *value"]:
        """Answer prompts after every loop: what the module would answer, were it stopped there.

        The answers after the last loop are those of the module's own run; those after earlier loops are read by its own
        coda, without running the loop again.

        Args:
            inputs: as the module takes them; after them n_loops may stand.
            n_loops: iterations; None: as many as it was trained with.
            keep_loops: return the answers of the last ``keep_loops`` iterations only; None: of all.
            grad_loops: the last ``grad_loops`` iterations carry gradient; None: all.
            read_at: the tokens whose answers are read: a number, several, a slice, negative from the end. None: all.

        Raises:
            LoopprobeError: inputs unlike the example, loop counts below 1, or more loops to keep than are run.
        """
        refuse_options(options)
        inputs, n_loops = self.with_loops(inputs, n_loops)
        inputs = self.prepare(*inputs)
        read_at = read_places(read_at, self.n_tokens(*inputs))
        n_loops = self.n_loops if n_loops is None else n_loops
        self.check_loops(n_loops, keep_loops, grad_loops)
        keep_loops = n_loops if keep_loops is None else keep_loops
        self.require_memory(inputs, keep_loops)
        require_answers(inputs[0], keep_loops, read_at, self.value_size, self.device, self.dtype)
        outputs: list[Tensor] = []
        with self.hook_trees.run(n_loops):
            for output in self._answers(inputs, n_loops, keep_loops, grad_loops or n_loops, read_at):
                if torch.is_grad_enabled():
                    outputs.append(output)
                    continue
                if not outputs:  # one tensor for all
                    outputs.append(output.new_empty(keep_loops, *output.shape))
                    place = 0
                outputs[0][place] = output
                place += 1
        return torch.stack(outputs) if torch.is_grad_enabled() else outputs[0]

    def _answers(
        self, inputs: tuple[Tensor, ...], n_loops: int, keep_loops: int, grad_loops: int, read_at: ReadAt
    ) -> Iterator[Tensor]:
        """Yield the answers after each of the last loops."""
        first = n_loops - keep_loops
        if "map" not in self.found:
            if grad_loops < n_loops:
                self._require_map("grad_loops")
            for loop in range(first, n_loops):
                yield self._read(self._pass(n_loops=loop + 1, read_at=read_at), loop, read_at, *inputs)
            return
        if grad_loops < n_loops or self._needs_steps(n_loops):
            e = self.embed(*inputs)
            z = self.initial_state(e)
            for loop in range(n_loops):
                with nullcontext() if loop >= n_loops - grad_loops else torch.no_grad():
                    z = self.step(z, e, loop)
                if loop >= first:
                    yield self.predict(z, e, loop, read_at=read_at)
            return
        early = callable(self.anatomy.start) or self._hooked(0, "hook_z_pre")
        run = self._pass(
            first=-1 if early else 0, skip=int(early), z=self.initial_state, n_loops=n_loops, read_at=read_at,
            kept=frozenset(range(first, n_loops - 1)),
        )  # fmt: skip
        answer = self._read(run, n_loops - 1, read_at, *inputs)
        assert run.e is not None
        for loop in range(first, n_loops - 1):
            yield self.predict(run.states.pop(loop), run.e, loop, read_at=read_at)
        yield answer

    def _needs_steps(self, n_loops: int) -> bool:
        """Tell whether a hook changes a state that is written in several parts, so that no single pass can have it."""
        several = len(self.anatomy.state) > 1
        return several and any(self._hooked(t, name) for t in range(n_loops) for name in ("hook_z", "hook_z_pre"))

    @property
    def is_hooked(self) -> bool:
        """Tell whether anybody listens."""
        return self.hook_trees.busy > 0

    def _hooked(self, loop: int, name: str) -> bool:
        return self.is_hooked and hooked(getattr(self.hook_trees.at(loop), name))

    def _pass(self, **wanted: Any) -> Pass:
        plan = Plan(**wanted, hooked=self.is_hooked)
        return Pass(self.module, self.anatomy, self.wiring, self.hook_trees, plan)

    def _read(self, run: Pass, loop: int, read_at: ReadAt, *inputs: Any) -> Tensor:
        """Run a pass to its end and return the answers that are asked for, their hooks passed."""
        with hooked_attention(run):
            answers = tensor_of(run.run(*inputs))
        if self.anatomy.head is None and read_at is not None:
            answers = answers[:, read_at]
        return run.pass_point(loop, "hook_readout", answers)

    def _stop(self, run: Pass, *inputs: Any) -> Pass:
        with hooked_attention(run):
            run.run(*inputs)
        return run

    def generate(self, tokens: Any, max_new_tokens: int = 20, n_loops: int | None = None, **options: Any) -> Any:
        """Go on with prompts by the module's own ``generate``, with its key-value cache where it has one.

        Hooks act in every call of the module, in which loops count from 0 again. ``hook.call`` tells calls apart: 0
        runs the whole prompt, each later one the token that was written last, and positions are those of the call. What
        an edit does to keys and values of a token stays in the cache. A module without a cache runs the whole text in
        every call, and positions are those of the text. ``hook_readout``, of the last loop, is passed by the answers
        that the module computes, which may be those of the last token alone. A state that starts at random is drawn by
        the module itself.

        Args:
            tokens: prompts of one length [batch, pos].
            max_new_tokens: how many tokens to write at most.
            n_loops: iterations for each token; None: as many as trained.
            options: of the module's own ``generate``, such as ``do_sample`` or ``use_cache=False``; of a module that
                has none, ``do_sample``, ``temperature`` and ``generator``.

        Returns:
            Prompts and what was written [batch, pos + new], or what the module's own ``generate`` returns instead.

        Raises:
            LoopprobeError: the model writes no text, the text gets longer than it reads, or a hook sits where it cannot
                act: on the state that the first loop starts from, or on a state in several parts.
        """
        return generate(self, tokens, max_new_tokens, n_loops, options)

    def embed(self, *inputs: Tensor) -> Float[Tensor, "batch pos d_model"]:
        """The injected input e: what the prelude gives."""
        e = self._stop(self._pass(stop="embed"), *inputs).e
        assert e is not None
        return e

    def initial_state(self, e: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos width"]:
        """z_0: the input, zeros or ones, or what ``start`` makes of the input and ``start_seed``."""
        self._require_map("initial_state")
        start = self.anatomy.start
        if callable(start):
            return start(self.module, e, self.start_seed)
        return {"input": lambda x: x, "zeros": torch.zeros_like, "ones": torch.ones_like}[start](e)

    def step(
        self,
        z: Float[Tensor, "batch pos width"],
        e: Float[Tensor, "batch pos d_model"],
        loop: int = 0,
        past: Any = None,
    ) -> Float[Tensor, "batch pos width"]:
        """One iteration, z_t → z_{t+1}; it passes the hooks of ``loop``."""
        assert past is None, "a wrapped module does not step behind known keys"
        self._require_map("step")
        run = self._pass(first=loop - 1, n_loops=loop + 1, skip=1, z=z, e=e, stop="state", kept=frozenset({loop}))
        return self._stop(run, *like(self.example, e)).states[loop]

    def predict(
        self,
        z: Float[Tensor, "batch pos width"],
        e: Tensor | None = None,
        loop: int = 0,
        first: int = 0,
        read_at: ReadAt = None,
    ) -> Float[Tensor, "batch answer *value"]:
        """Read the answers out of a state by the module's own coda and head.

        Args:
            z: the state.
            e: the injected input; None: of the example, for a coda that does not see it.
            loop: whose hooks are passed.
            first: the token that z begins with, which is the first here.
            read_at: the tokens that are read; None: all.
        """
        assert first == 0, "a wrapped module reads whole prompts"
        self._require_map("predict")
        read_at = None if read_at is None else at_tokens(read_at, 0, z.shape[1])
        if e is None:
            e = z.new_zeros(*z.shape[:2], self.wiring.widths[self.anatomy.prelude[-1], "out"][-1])
        run = self._pass(first=loop, n_loops=loop + 1, skip=1, z=z, e=e, read_at=read_at)
        return self._read(run, loop, read_at, *like(self.example, e))

    def to_state(self, resid: Float[Tensor, "*tokens d_model"]) -> Float[Tensor, "*tokens width"]:
        """The state that a residual stream would be, were its layer the last of the loop.

        Of a state in several parts it is the part that is read; the others are zero.
        """
        self._require_map("to_state")
        if self.anatomy.norm is not None:
            with as_precise_as(self.module):
                resid = self.module.get_submodule(self.anatomy.norm).forward(resid)  # past the hooks of a pass
        others = self.sizes.d_model - resid.shape[-1]
        return resid if not others else torch.cat([resid.new_zeros(*resid.shape[:-1], others), resid], -1)

    def unembed(self, states: Float[Tensor, "*tokens width"]) -> Float[Tensor, "*outputs"]:
        """The answers of states by the head alone."""
        self._require_map("unembed")
        assert self.anatomy.head is not None, "only with linear_readout"
        head = self.module.get_submodule(self.anatomy.head)
        width = self.wiring.widths[self.anatomy.head, "in"][-1]
        with as_precise_as(self.module):
            answers: Tensor = head.forward(states[..., -width:])  # past the hooks of a pass that goes on
        return answers

    def _require_map(self, what: str) -> None:
        """Raise LoopprobeError where no tensor is all that goes from loop to loop."""
        if "map" not in self.found:
            require_support(self, frozenset({"map"}), type(self.module).__name__, what)

    def prepare(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Inputs as the module takes them, on its device and in its precision.

        Raises:
            LoopprobeError: they are unlike the example, or there are more tokens than the module reads.
        """
        return prepared(self.module, self.anatomy, self.example, inputs)

    def n_tokens(self, *inputs: Tensor) -> int:
        """Count the positions of the state for inputs."""
        return inputs[0].shape[1]

    def require_memory(self, inputs: tuple[Tensor, ...], kept: int) -> None:
        """Raise LoopprobeError where the memory cannot hold a run that keeps the answers of so many loops."""
        n_prompts, n_tokens = inputs[0].shape[:2]
        widest = max((width[-1] for width in self.wiring.widths.values() if width), default=1)
        numbers = n_prompts * n_tokens * (4 * widest + self.sizes.d_model * kept)
        what = f"a run of {n_prompts:,} prompts that keeps {kept:,} loops"
        require(numbers * self.dtype.itemsize, what, "give fewer prompts or keep_loops", self.device)
