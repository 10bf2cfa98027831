"""The root module of a looped model: TransformerLens's HookedRootModule with hook points that grow by the loop.

A hook on ``loops.3.blocks.0.hook_resid_post`` acts in loop 3 only. A name without a loop acts in every loop,
those included that the tree grows while the hook is attached.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from loopprobe.cache import LoopCache, Names, Positions, selector
from loopprobe.config import ModelConfig
from loopprobe.errors import LoopprobeError
from loopprobe.hook_points import LoopHooks, split_name

Direction = Literal["fwd", "bwd"]


@dataclass(frozen=True)
class _Attached:
    """A hook and the names that it wants, kept so that loops grown later get it too."""

    matches: Callable[[str], bool]
    hook: Callable[..., Any]
    dir: Direction
    is_permanent: bool
    level: int | None
    prepend: bool

    def attach(self, point: HookPoint) -> None:
        point.add_hook(self.hook, self.dir, self.is_permanent, self.level, self.prepend)


class LoopedRootModule(HookedRootModule):
    """A HookedRootModule whose hook points stand under ``loops.{t}`` and grow to the loop count of each call."""

    cfg: ModelConfig
    loops: Any  # ModuleList of LoopHooks, empty at first

    def __init__(self) -> None:
        super().__init__()
        self._attached: list[_Attached] = []

    def grow_loops(self, n_loops: int) -> None:
        """Make sure that loops 0 to n_loops - 1 have their hook points; attached hooks reach the new ones."""
        for loop in range(len(self.loops), n_loops):
            hooks = LoopHooks(self.cfg)
            self.loops.append(hooks)
            for local, module in hooks.named_modules(prefix=f"loops.{loop}"):
                module.name = local
                self.mod_dict[local] = module
                if isinstance(module, HookPoint):
                    self.hook_dict[local] = module
                    for attached in self._attached:
                        if attached.matches(local):
                            attached.attach(module)

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
        attached = _Attached(self._matcher(name), hook, dir, is_permanent, level, prepend)
        for known, point in self.hook_dict.items():
            if attached.matches(known):
                attached.attach(point)
        self._attached.append(attached)

    def _enable_hook(self, name: str | Callable[[str], bool], hook: Callable[..., Any], dir: Direction) -> None:
        self.add_hook(name, hook, dir, level=self.context_level)  # what ``hooks`` and ``run_with_hooks`` call

    def remove_all_hook_fns(
        self,
        direction: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        super().remove_all_hook_fns(direction, including_permanent, level)
        self._attached = [
            a
            for a in self._attached
            if direction not in ("both", a.dir)
            or (a.is_permanent and not including_permanent)
            or (level is not None and a.level != level)
        ]

    def run_with_cache(
        self,
        xs: Float[Tensor, "batch n_points n_dims"],
        ys: Float[Tensor, "batch n_points"],
        n_loops: int | None = None,
        *,
        names: Names = None,
        loops: Collection[int] | None = None,
        layers: Collection[int] | None = None,
        positions: Positions = None,
        device: torch.device | str | None = None,
        loss: Callable[[Float[Tensor, "loop batch n_points"]], Tensor] | None = None,
        grad_loops: int | None = None,
    ) -> tuple[Float[Tensor, "loop batch n_points"], LoopCache]:
        """Run and keep the activations that were asked for, and nothing else; with ``loss``, its gradients too.

        Args:
            xs, ys, n_loops: as in ``forward``.
            names: None for all, short names (``"resid_post"``, or several), full names, or a predicate.
            loops: iterations to keep, such as ``range(10)``; None for all.
            layers: layers to keep; None for all.
            positions: token positions to keep (of the query, for scores and patterns); None for all.
            device: where to keep them; None: where they are computed.
            loss: from the predictions to one number, whose gradient at the same points is kept as ``cache.grads``.
                Without it nothing is computed that a gradient would need.
            grad_loops: the last ``grad_loops`` iterations carry gradient; None: all.

        Returns:
            The predictions [loop, batch, n_points], without gradient, and the LoopCache.

        Raises:
            LoopprobeError: a name that no hook point has; a loss that is not one number.
        """
        n_loops = self.cfg.n_loops if n_loops is None else n_loops
        self.grow_loops(n_loops)
        wanted = selector(names, loops, layers, self.hook_dict)
        cache = LoopCache(self, n_loops, [name for name in self.hook_dict if wanted(name)], positions, device)
        hooks = [(cache.__contains__, cache.record)]
        if loss is None:
            with torch.no_grad(), self.hooks(fwd_hooks=hooks):
                return self(xs, ys, n_loops), cache
        points: dict[str, Tensor] = {}

        def watch(x: Tensor, hook: HookPoint) -> Tensor:
            # A view is a place of its own in the graph: two hook points in a row have different gradients.
            x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_(torch.is_grad_enabled())
            if x.requires_grad:
                points[str(hook.name)] = x
            return x

        with torch.enable_grad(), self.hooks(fwd_hooks=[*hooks, (cache.__contains__, watch)]):
            predictions = self(xs, ys, n_loops, grad_loops=grad_loops)
            value = loss(predictions)
        if value.numel() != 1:
            raise LoopprobeError(f"the loss has shape {tuple(value.shape)}: return one number, such as its sum")
        cache.grads = LoopCache(self, n_loops, list(points), positions, device)
        for name, grad in zip(
            points,
            torch.autograd.grad(value, list(points.values()), materialize_grads=True, allow_unused=True),
            strict=True,
        ):
            cache.grads.keep(name, grad)
        return predictions.detach(), cache

    def _matcher(self, name: str | Callable[[str], bool]) -> Callable[[str], bool]:
        if callable(name):
            return name
        loop, _, local = split_name(name)
        if loop is not None:
            self.grow_loops(loop + 1)
        if name in self.hook_dict:
            return lambda known: known == name
        if loop is None and f"loops.0.{local}" in self.hook_dict:
            return lambda known: split_name(known)[0] is not None and split_name(known)[2] == local
        locals_ = list(dict.fromkeys(split_name(known)[2] for known in self.hook_dict))
        near = difflib.get_close_matches(local, locals_, n=3) or locals_
        raise LoopprobeError(f"no hook point is called {name!r}: did you mean {' or '.join(near)}?")
