"""LoopCache: the activations of a run, indexed by loop first and then as TransformerLens does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache, HookedRootModule
from transformer_lens.utilities import get_act_name

from loopprobe.errors import LoopprobeError
from loopprobe.hook_points import LoopHookPoint, dims, short_name, split_name

Names = str | Collection[str] | Callable[[str], bool] | None
Positions = slice | Collection[int] | None


class LoopCache:
    """Activations of a run by full hook name, with a loop axis.

    ``cache[7, "resid_post", 0]`` is one activation, ``cache["loops.7.hook_z"]`` too; ``cache.loop(7)`` is a
    TransformerLens ActivationCache of one iteration; ``cache.stack("resid_post", layer=0)`` has a loop axis;
    ``cache.to_xarray()`` is labelled. All of them are views: the loops of an activation lie in one tensor, made
    when the first of them comes, so that memory is what is kept, however many loops run (besides the hook points
    themselves, 80 kB a loop).

    Attributes:
        model: the model that ran.
        n_loops: iterations that were run.
        positions: token positions that are kept; None for all.
        grads: the gradients at the same points, where they were asked for.
    """

    def __init__(
        self,
        model: HookedRootModule,
        n_loops: int,
        names: Collection[str],
        positions: Positions = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.model, self.n_loops, self.positions, self.device = model, n_loops, positions, device
        self.grads: LoopCache | None = None
        self._loops: dict[str, list[int | None]] = {}  # of each name without its loop
        for name in names:
            loop, _, local = split_name(name)
            if loop is None or loop < n_loops:
                self._loops.setdefault(local, []).append(loop)
        self._row = {(loop, local): row for local, loops in self._loops.items() for row, loop in enumerate(loops)}
        self._stacks: dict[str, Tensor] = {}
        self._n_pos = 0

    @property
    def loops(self) -> list[int]:
        """The iterations that were kept, in order."""
        return sorted({loop for loops in self._loops.values() for loop in loops if loop is not None})

    def __getitem__(self, key: str | tuple[Any, ...]) -> Tensor:
        """One activation: by full name, or (loop, name[, layer[, layer_type]]) in TransformerLens's shorthand."""
        if isinstance(key, str):
            loop, _, local = split_name(key)
        else:
            loop, local = key[0] % self.n_loops if key[0] < 0 else key[0], self._local(*key[1:])
        row = self._row.get((loop, local))
        if row is None or local not in self._stacks:
            name = local if loop is None else f"loops.{loop}.{local}"
            raise KeyError(f"{name} is not in this cache: it keeps loops {_ranges(self.loops)}, names {self.names()}")
        return self._stacks[local][row]

    def _local(self, name: str, layer: int | None = None, layer_type: str | None = None) -> str:
        """The name within a loop of TransformerLens's shorthand, or of a short name such as ``attn_z``."""
        if layer is None:
            if f"hook_{name}" in self._loops:  # such as the state z, which has no layer
                return f"hook_{name}"
        else:
            layer = layer % self.model.cfg.n_layers if layer < 0 else layer
            for local in self._loops:
                if short_name(local) == name and split_name(local)[1] == layer:
                    return local
        return get_act_name(name, layer, layer_type)

    def names(self) -> list[str]:
        """The kept names without their loop, each once."""
        return list(self._loops)

    def __iter__(self) -> Iterator[str]:
        return (local if loop is None else f"loops.{loop}.{local}" for loop, local in self._row)

    def __len__(self) -> int:
        return len(self._row)

    def __contains__(self, name: str) -> bool:
        loop, _, local = split_name(name)
        return (loop, local) in self._row

    def __repr__(self) -> str:
        size = sum(stack.numel() * stack.element_size() for stack in self._stacks.values())
        return (
            f"LoopCache(loops {_ranges(self.loops)} of {self.n_loops}, {len(self.names())} names, {size / 1e6:.1f} MB)"
        )

    def stack(self, name: str, layer: int | None = None, layer_type: str | None = None) -> Float[Tensor, "loop ..."]:
        """One activation over all kept loops, such as [loop, batch, pos, d_model] for ``resid_post``."""
        local = self._local(name, layer, layer_type)
        if local not in self._stacks:
            raise KeyError(f"{local} is not in this cache: it keeps {self.names()}")
        return self._stacks[local]

    def loop(self, loop: int) -> ActivationCache:
        """The activations of one iteration as a TransformerLens ActivationCache, whose helpers work.

        Its ``hook_embed`` is this loop's input (the state with the input injected), so that embedding,
        positions and the outputs of the layers add up to the residual stream of this loop.
        """
        loop = loop % self.n_loops if loop < 0 else loop
        of_loop = {local: self._stacks[local][row] for (at, local), row in self._row.items() if at == loop}
        if not of_loop:
            raise KeyError(f"loop {loop} is not in this cache: it keeps loops {_ranges(self.loops)}")
        if "hook_input" in of_loop:
            of_loop["hook_embed"] = of_loop["hook_input"]
        return ActivationCache(of_loop, self.model)

    def to_xarray(self) -> xr.Dataset:
        """All activations, labelled: a variable a short name, with dims ``loop``, ``layer`` where there are several.

        Returns:
            A dataset with dims among ``loop`` (from 0), ``layer``, ``example``, ``position`` (of attention ``query``
            and ``key``), ``head``, ``point``, and unlabelled widths. It shares its memory with the cache.

        Raises:
            LoopprobeError: the names were kept for different loops.
        """
        found: dict[str, dict[int | None, str]] = {}
        for local in self._stacks:
            found.setdefault(short_name(local), {})[split_name(local)[1]] = local
        data = xr.Dataset()
        for short, layers in found.items():
            first = next(iter(layers.values()))
            stacks = [self._stacks[local] for local in layers.values()]
            axes = dims(first)
            if self._loops[first] == [None]:
                data[short] = axes, stacks[0][0].cpu().numpy()
                continue
            if any(self._loops[local] != self.loops for local in layers.values()):
                raise LoopprobeError(
                    f"{short} was kept for some of the loops {_ranges(self.loops)} only: keep it in all"
                )
            if list(layers) == [None]:
                data[short] = ("loop", *axes), stacks[0].cpu().numpy()
            elif len(layers) == 1:
                data[short] = ("loop", "layer", *axes), stacks[0].cpu().numpy()[:, None]
                data.coords["layer"] = list(layers)
            else:
                data[short] = ("loop", "layer", *axes), torch.stack(stacks, 1).cpu().numpy()
                data.coords["layer"] = list(layers)
        data.coords["loop"] = self.loops
        return data.assign_coords(labels(data.sizes, self.positions, self._n_pos))

    def record(self, tensor: Tensor, hook: LoopHookPoint) -> None:
        """A forward hook that keeps a detached copy of what was asked for."""
        assert hook.name is not None
        self.keep(hook.name, tensor)

    def keep(self, name: str, tensor: Tensor) -> None:
        """Copy one activation, or what ``positions`` says of it, to its place."""
        kept = at_positions(name, tensor.detach(), self.positions)
        loop, _, local = split_name(name)
        if (axis := _token_axis(name)) is not None:
            self._n_pos = tensor.shape[axis]
        if local not in self._stacks:
            shape = (len(self._loops[local]), *kept.shape)
            self._stacks[local] = torch.empty(shape, dtype=kept.dtype, device=self.device or kept.device)
        self._stacks[local][self._row[loop, local]].copy_(kept)


def at_positions(name: str, activation: Tensor, positions: Positions) -> Tensor:
    """The chosen token positions (of the query, for scores and patterns) of an activation."""
    axis = _token_axis(name)
    if positions is None or axis is None:
        return activation
    if isinstance(positions, slice):
        return activation[(slice(None),) * axis + (positions,)]
    index = torch.as_tensor(list(positions), device=activation.device) % activation.shape[axis]
    return activation.index_select(axis, index)


def labels(sizes: Mapping[Any, int], positions: Positions, n_pos: int) -> dict[str, Any]:
    """Coordinates of the axes that have some: tokens, by their number in the prompt of n_pos, heads and points."""
    kept = np.arange(n_pos)
    if positions is not None:
        kept = kept[positions if isinstance(positions, slice) else list(positions)]
    found: dict[str, Any] = {axis: kept for axis in ("position", "query") if axis in sizes}
    return found | {axis: np.arange(sizes[axis]) for axis in ("head", "point", "key") if axis in sizes}


def _token_axis(name: str) -> int | None:
    axes = dims(name)
    return next((axes.index(axis) for axis in ("query", "position") if axis in axes), None)


def selector(
    names: Names, loops: Collection[int] | None, layers: Collection[int] | None, known: Collection[str]
) -> Callable[[str], bool]:
    """A predicate on full hook names.

    Args:
        names: None for all; short names (``"resid_post"``, ``"pattern"``; ``"z"`` is the state and the heads'
            output, ``"attn_z"`` the latter alone), names without a loop (``"blocks.0.hook_resid_post"``), full
            names, or a predicate of your own.
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
                short = sorted({short_name(name) for name in known})
                raise LoopprobeError(f"no hook point is called {asked!r}: choose from {', '.join(short)}")
        wanted = lambda name: not names.isdisjoint(_aliases(name))  # noqa: E731

    def matches(name: str) -> bool:
        loop, layer, _ = split_name(name)
        return (
            (loops is None or loop in loops) and (layers is None or layer is None or layer in layers) and wanted(name)
        )

    return matches


def _aliases(name: str) -> tuple[str, str, str, str]:
    _, _, local = split_name(name)
    return name, local, local.rsplit("hook_", 1)[-1], short_name(name)


def _ranges(numbers: list[int]) -> str:
    """0, 1, 2, 5 → "0–2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs) or "none"
