"""The root module of a looped model: TransformerLens's HookedRootModule whose hook points are made when hooked.

A hook on ``loops.3.blocks.0.hook_resid_post`` acts in loop 3 only. A name without a loop acts in every loop, however
many a run has. Hooks of a ``with`` block act in the thread that opened it; those of ``add_hook`` act in all threads.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint, LensHandle

from loopprobe.config.budget import require
from loopprobe.config.schema import ModelConfig
from loopprobe.config.selection import Numbers
from loopprobe.errors import LoopprobeError
from loopprobe.model.attached import Attached
from loopprobe.model.cache import LoopCache
from loopprobe.model.hook_points import ConfigLayout, Direction, LoopHookPoint, full_name, split_name
from loopprobe.model.hook_trees import HookTrees, Loops
from loopprobe.model.in_hand import ShownModel
from loopprobe.model.lens_options import one_of, refuse_options
from loopprobe.model.protocol import Sizes
from loopprobe.model.selection import Names

Hooks = Sequence[tuple[str | Callable[[str], bool], Callable[..., Any]]]


class LoopedRootModule(ShownModel, HookedRootModule):
    """A HookedRootModule with hook points ``loops.{t}`` for loops of any number."""

    cfg: ModelConfig
    hook_trees: HookTrees

    def setup(self) -> None:
        """Give the modules their names, and the model its hook points."""
        super().setup()
        self.hook_trees = self.hook_dict = HookTrees(ConfigLayout(self.cfg))

    @property
    def loops(self) -> Loops:
        """The hook points of every loop: ``model.loops[3].blocks[0].attn.hook_q``."""
        return Loops(self.hook_trees)

    @property
    def hook_embed(self) -> LoopHookPoint:
        """The hook point of the injected input, which is passed once a run."""
        return self.hook_trees["hook_embed"]

    def points(self, loop: int | None) -> Any:
        """Return the points that are passed in a loop (LoopHooks), or before the first (None: OnceHooks)."""
        if torch.compiler.is_compiling():  # with hooks attached nothing is compiled, see ``eager_with_hooks``
            return self.hook_trees.idle_once if loop is None else self.hook_trees.idle
        return self.hook_trees.at(loop)

    # Attaching hooks

    def add_hook(
        self,
        name: str | Callable[[str], bool],
        hook: Callable[..., Any],
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Attach a hook until it is reset; prefer the ``hooks`` context manager, which always removes it.

        Args:
            name: a hook point's full name, a name without ``loops.{t}.`` for every loop, or a predicate.
            hook: ``hook(activation, hook=point)``; what it returns, if anything, replaces the activation.
            dir, is_permanent, level, prepend: as in TransformerLens.

        Raises:
            LoopprobeError: no hook point has this name.
        """
        self.hook_trees.attach(self._attached(name, hook, dir, is_permanent, level, prepend), every_thread=True)

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[Any]:
        """Attach hooks while a block lasts, in this thread.

        Args:
            fwd_hooks, bwd_hooks: pairs of a name and a function, as ``add_hook`` takes them.
            reset_hooks_end: whether they are detached at the end; else they stay until ``reset_hooks``.
            clear_contexts: whether the ``ctx`` of hook points is emptied at the end.

        Raises:
            LoopprobeError: no hook point has such a name; at the end, no run has passed a point that a hook is on.
        """
        trees = self.hook_trees
        pairs: list[tuple[Direction, Hooks]] = [("fwd", fwd_hooks), ("bwd", bwd_hooks)]
        level = len(trees.thread.watching) + 1
        attached = [self._attached(name, hook, dir, level=level) for dir, some in pairs for name, hook in some]
        with trees.watch() as runs:
            for one in attached:
                trees.attach(one)
            try:
                yield self
            finally:
                if reset_hooks_end:
                    trees.detach(attached.__contains__)
                    if clear_contexts:
                        self.clear_contexts()
        runs.require_reached(attached)

    def hook_points(self) -> list[LoopHookPoint]:
        """The hook points that exist: those that are hooked, or were asked for."""
        return self.hook_trees.made

    def remove_all_hook_fns(
        self,
        direction: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Detach the hooks of this thread and those of all threads; permanent ones only where asked for."""
        self.hook_trees.detach(
            lambda a: (
                direction in ("both", a.dir)
                and (including_permanent or not a.is_permanent)
                and (level is None or a.level == level)
            )
        )
        super().remove_all_hook_fns(direction, including_permanent, level)

    def list_hooks(self, *args: Any, **kwargs: Any) -> dict[str, list[LensHandle]]:
        """The attached hooks by the names of their points, as in TransformerLens."""
        return super().list_hooks(*args, **kwargs) if self.hook_trees.busy else {}

    def _attached(
        self, name: str | Callable[[str], bool], hook: Callable[..., Any], *rest: Any, **more: Any
    ) -> Attached:
        label = name if isinstance(name, str) else getattr(name, "label", "the points of a predicate")
        return Attached(label, self._matcher(name), hook, *rest, **more)

    def _matcher(self, name: str | Callable[[str], bool]) -> Callable[[int | None, str], bool]:
        if callable(name):
            return lambda loop, local: bool(name(full_name(loop, local)))
        wanted, _, wanted_local = split_name(name)
        if name in self.hook_trees:
            if wanted is not None and wanted >= self.hook_trees.n_loops:
                self.hook_trees[name]  # from now on it is listed
            return lambda loop, local: (loop, local) == (wanted, wanted_local)
        if wanted is None and name in self.hook_trees.local_names:
            return lambda loop, local: loop is not None and local == name
        known = [*self.hook_trees.once_names, *self.hook_trees.local_names]
        near = difflib.get_close_matches(wanted_local, known, n=3) or known
        near = [full_name(wanted, one) if one in self.hook_trees.local_names else one for one in near]
        raise LoopprobeError(f"no hook point is called {name!r}: did you mean {' or '.join(near)}?")

    # Caches

    def run_with_cache(
        self,
        *inputs: Any,
        n_loops: int | None = None,
        keep_loops: int | None = None,
        read_at: Any = None,
        names: Names = None,
        loops: Numbers = None,
        layers: Numbers = None,
        positions: Numbers = None,
        device: torch.device | str | None = None,
        loss: Callable[[Tensor], Tensor] | None = None,
        grad_loops: int | None = None,
        detach: bool = True,
        remove_batch_dim: bool = False,
        names_filter: Names = None,
        pos_slice: Numbers = None,
        **options: Any,
    ) -> tuple[Float[Tensor, "loop batch ..."], LoopCache]:
        """Run and keep the activations that were asked for, and nothing else; with ``loss``, its gradients too.

        Args:
            inputs, n_loops, keep_loops, read_at: as in ``forward``.
            names: None for all, short names (``"resid_post"``, or several), full names, or a predicate.
            loops: iterations to keep, from 0, see ``config.selection``; negative ones count from the end. None: all.
            layers, positions: layers and tokens to keep, alike (of the query, for scores and patterns); None: all.
            device: where to keep them; None: where they are computed.
            loss: from the outputs to one number, whose gradient at the same points is kept as ``cache.grads``.
            grad_loops: the last ``grad_loops`` iterations carry gradient; None: all.
            detach: False keeps the graph: outputs and activations can be differentiated by each other.
            remove_batch_dim: drop the batch axis of a single prompt.
            names_filter, pos_slice: TransformerLens's names for ``names`` and ``positions``.

        Returns:
            The outputs of the loops that are kept, and the LoopCache.

        Raises:
            LoopprobeError: a choice that matches nothing; a loss that is not one number; an option of TransformerLens
                that has no meaning here.
        """
        names = one_of("names", names, "names_filter", names_filter)
        positions = one_of("positions", positions, "pos_slice", pos_slice)
        refuse_options(options)
        inputs, n_loops = self.with_loops(inputs, n_loops)
        inputs = self.prepare(*inputs)
        asked = (("read_at", read_at), ("keep_loops", keep_loops))
        reading = {name: value for name, value in asked if value is not None}
        n_prompts, n_pos = len(inputs[0]), self.n_tokens(*inputs)
        if remove_batch_dim and n_prompts != 1:
            raise LoopprobeError(
                f"remove_batch_dim needs one prompt and the batch has {n_prompts}: give one, or drop it"
            )
        if loss is not None and not detach:
            raise LoopprobeError("loss and detach=False exclude each other: drop one of them")
        n_loops = self.sizes.n_loops if n_loops is None else n_loops
        self.check_loops(n_loops, keep_loops, grad_loops)
        self.require_memory(inputs, n_loops if keep_loops is None else keep_loops)
        cache = LoopCache.choose(
            self, n_loops, names, loops, layers, positions, n_pos=n_pos, device=device, detach=detach
        )
        size = n_prompts * cache.numbers(n_pos) * self.dtype.itemsize * (1 if loss is None else 2)
        remedy = "keep fewer names, loops, positions or prompts"
        require(size, "the cache", remedy, torch.device(device or self.device))
        if not detach:
            with self.hooks(fwd_hooks=[(cache.holds, cache.record)]):
                outputs = self(*inputs, n_loops=n_loops, grad_loops=grad_loops, **reading)
        elif loss is None:
            with torch.no_grad(), self.hooks(fwd_hooks=[(cache.holds, cache.record)]):
                outputs = self(*inputs, n_loops=n_loops, **reading)
        else:
            outputs = self._with_gradients(cache, inputs, n_loops, loss, grad_loops, reading)
        if remove_batch_dim:
            return outputs[:, 0], cache.remove_batch_dim()
        return outputs, cache

    def _with_gradients(
        self,
        cache: LoopCache,
        inputs: tuple[Tensor, ...],
        n_loops: int,
        loss: Callable[[Tensor], Tensor],
        grad_loops: int | None,
        reading: dict[str, Any],
    ) -> Tensor:
        """Run, fill the cache and its ``grads``, and return the outputs."""
        passed: dict[str, list[Tensor]] = {}  # one that has no map passes a point again for the answers of every loop

        def watch(x: Tensor, hook: HookPoint) -> Tensor:
            # A view is a place of its own in the graph: two hook points in a row have different gradients.
            x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_(torch.is_grad_enabled())
            if x.requires_grad:
                passed.setdefault(str(hook.name), []).append(x)
            return x

        with torch.enable_grad(), self.hooks(fwd_hooks=[(cache.holds, cache.record), (cache.holds, watch)]):
            outputs: Tensor = self(*inputs, n_loops=n_loops, grad_loops=grad_loops, **reading)
            value = loss(outputs)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise LoopprobeError(f"the loss has shape {shape}: return one number as a tensor, such as its sum")
        cache.grads = cache.like(list(passed))
        every = [x for times in passed.values() for x in times]
        grads = iter(torch.autograd.grad(value, every, materialize_grads=True, allow_unused=True))
        for name, times in passed.items():
            cache.grads.keep(name, sum((next(grads) for _ in times[1:]), next(grads)))
        return outputs.detach()

    @property
    def sizes(self) -> Sizes:
        """Layers, heads, width, loops as trained, and the most tokens."""
        cfg = self.cfg
        return Sizes(cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.n_loops, cfg.n_ctx)

    @property
    def value_size(self) -> int:
        """The numbers of one answer: the size of the vocabulary, or one."""
        return self.cfg.d_vocab_out or 1

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        device: torch.device = next(self.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its parameters."""
        dtype: torch.dtype = next(self.parameters()).dtype
        return dtype

    def prepare(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Inputs as this model takes them, in its precision and on its device."""
        raise NotImplementedError

    def n_tokens(self, *inputs: Tensor) -> int:
        """Count the positions of the state for prepared inputs."""
        raise NotImplementedError

    def require_memory(self, inputs: tuple[Tensor, ...], kept: int) -> None:
        """Raise LoopprobeError where the memory cannot hold a run that keeps the outputs of so many loops."""
        raise NotImplementedError

    @staticmethod
    def with_loops(inputs: tuple[Any, ...], n_loops: int | None) -> tuple[tuple[Any, ...], int | None]:
        """Split the loop count off, where it stands as the last of the inputs."""
        if len(inputs) > 1 and n_loops is None and isinstance(inputs[-1], int | float | str | None):
            return inputs[:-1], inputs[-1]  # type: ignore[return-value]  # checked with the other counts
        return inputs, n_loops

    def check_loops(self, n_loops: int, keep_loops: int | None = None, grad_loops: int | None = None) -> None:
        """Raise LoopprobeError where loop counts are below 1, or more loops are kept than run."""
        for name, value in (("n_loops", n_loops), ("keep_loops", keep_loops), ("grad_loops", grad_loops)):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise LoopprobeError(f"{name} ({value!r}) must be a whole number and at least 1: change it")
            if value > n_loops:
                raise LoopprobeError(f"{name} ({value}) must be at most n_loops ({n_loops}): lower it, or run more")
