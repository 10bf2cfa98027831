"""LoopCache: the activations of a run, indexed by loop first and then as TransformerLens does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache, HookedRootModule
from transformer_lens.utilities import get_act_name

from loopprobe.errors import LoopprobeError
from loopprobe.hook_points import LoopHookPoint, split_name

Names = str | Collection[str] | Callable[[str], bool] | None


class LoopCache:
    """Activations of a run by full hook name, with a loop axis.

    ``cache[7, "resid_post", 0]`` is one activation, ``cache["loops.7.hook_z"]`` too; ``cache.loop(7)`` is a
    TransformerLens ActivationCache of one iteration; ``cache.stack("resid_post", layer=0)`` has a loop axis.

    Attributes:
        loops: the iterations that were kept, in order.
        n_loops: iterations that were run.
    """

    def __init__(self, model: HookedRootModule, n_loops: int) -> None:
        self.model = model
        self.n_loops = n_loops
        self._tensors: dict[str, Tensor] = {}

    @property
    def loops(self) -> list[int]:
        return sorted({loop for name in self._tensors if (loop := split_name(name)[0]) is not None})

    def __getitem__(self, key: str | tuple[Any, ...]) -> Tensor:
        """One activation: by full name, or (loop, name[, layer[, layer_type]]) in TransformerLens's shorthand."""
        if isinstance(key, str):
            name = key
        else:
            loop, *rest = key
            has_layer = len(rest) > 1 and rest[1] is not None
            if has_layer and rest[1] < 0:
                rest[1] += self.model.cfg.n_layers
            loop = loop % self.n_loops if loop < 0 else loop
            of_loop = f"loops.{loop}.hook_{rest[0]}"  # such as the state z, which has no layer
            name = of_loop if of_loop in self._tensors and not has_layer else f"loops.{loop}.{get_act_name(*rest)}"
        if name not in self._tensors:
            raise KeyError(f"{name} is not in this cache: it keeps loops {_ranges(self.loops)}, names {self.names()}")
        return self._tensors[name]

    def names(self) -> list[str]:
        """The kept names without their loop, each once."""
        return list(dict.fromkeys(split_name(name)[2] for name in self._tensors))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __repr__(self) -> str:
        size = sum(tensor.numel() * tensor.element_size() for tensor in self._tensors.values())
        return (
            f"LoopCache(loops {_ranges(self.loops)} of {self.n_loops}, {len(self.names())} names, {size / 1e6:.1f} MB)"
        )

    def stack(self, name: str, layer: int | None = None, layer_type: str | None = None) -> Float[Tensor, "loop ..."]:
        """One activation over all kept loops, such as [loop, batch, pos, d_model] for ``resid_post``."""
        return torch.stack([self[loop, name, layer, layer_type] for loop in self.loops])

    def loop(self, loop: int) -> ActivationCache:
        """The activations of one iteration as a TransformerLens ActivationCache, whose helpers work.

        Its ``hook_embed`` is this loop's input (the state with the input injected), so that embedding,
        positions and the outputs of the layers add up to the residual stream of this loop.
        """
        loop = loop % self.n_loops if loop < 0 else loop
        local = {split_name(name)[2]: t for name, t in self._tensors.items() if split_name(name)[0] == loop}
        if not local:
            raise KeyError(f"loop {loop} is not in this cache: it keeps loops {_ranges(self.loops)}")
        if "hook_input" in local:
            local["hook_embed"] = local["hook_input"]
        return ActivationCache(local, self.model)

    def record(self, tensor: Tensor, hook: LoopHookPoint, *, positions: Any, device: Any) -> None:
        """A forward hook that keeps a detached copy of what was asked for, and no larger storage behind it."""
        assert hook.name is not None
        kept = tensor.detach()
        if positions is not None and (axis := _position_axis(hook.name)) is not None:
            kept = kept.movedim(axis, 0)[positions].movedim(0, axis)
        if kept.untyped_storage().nbytes() > kept.numel() * kept.element_size():
            kept = kept.clone()
        self._tensors[hook.name] = kept if device is None else kept.to(device)


def selector(
    names: Names, loops: Collection[int] | None, layers: Collection[int] | None, known: Collection[str]
) -> Callable[[str], bool]:
    """A predicate on full hook names.

    Args:
        names: None for all; TransformerLens's short names (``"resid_post"``, ``"pattern"``), names without a
            loop (``"blocks.0.hook_resid_post"``), full names, or a predicate of your own.
        loops: iterations to keep; None for all.
        layers: layers to keep; points that belong to no layer are kept whatever it says.
        known: all hook names, to refuse a name that matches none.
    """
    if callable(names):
        wanted = names
    elif names is None:
        wanted = lambda name: True  # noqa: E731
    else:
        names = {names} if isinstance(names, str) else set(names)
        for asked in names:
            if not any(asked in _aliases(name) for name in known):
                short = sorted({name.rsplit("hook_", 1)[-1] for name in known})
                raise LoopprobeError(f"no hook point is called {asked!r}: choose from {', '.join(short)}")
        wanted = lambda name: not names.isdisjoint(_aliases(name))  # noqa: E731

    def matches(name: str) -> bool:
        loop, layer, _ = split_name(name)
        return (
            (loops is None or loop in loops) and (layers is None or layer is None or layer in layers) and wanted(name)
        )

    return matches


def _aliases(name: str) -> tuple[str, str, str]:
    _, _, local = split_name(name)
    return name, local, local.rsplit("hook_", 1)[-1]


def _position_axis(name: str) -> int | None:
    local = name.rsplit("hook_", 1)[-1]
    if local == "readout":
        return None
    return 2 if local in ("attn_scores", "pattern") else 1


def _ranges(numbers: list[int]) -> str:
    """0, 1, 2, 5 → "0–2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs) or "none"
