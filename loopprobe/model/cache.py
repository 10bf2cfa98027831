"""LoopCache: the activations of a run, indexed by loop first and then as TransformerLens does."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedRootModule
from transformer_lens.utilities import get_act_name

from loopprobe.config.selection import Numbers, ranges, resolve
from loopprobe.errors import LoopprobeError
from loopprobe.model.activation_cache import LoopActivationCache
from loopprobe.model.cache_file import read_tensors, write_tensors
from loopprobe.model.cache_gradients import WithGradients
from loopprobe.model.hook_points import LoopHookPoint, full_name, short_name, split_name
from loopprobe.model.in_hand import ShownCache
from loopprobe.model.labels import Positions, at_positions, labelled, to_numpy, token_axis
from loopprobe.model.selection import Names, selector


class LoopCache(ShownCache, WithGradients, Mapping[str, Tensor]):
    """Activations of a run by full hook name, with a loop axis.

    ``cache[7, "resid_post", 0]`` is one activation, ``cache["loops.7.hook_z"]`` too; without a loop,
    ``cache["resid_post", 0]`` or ``cache["blocks.0.hook_resid_post"]``, all loops come stacked; ``cache[2:4]`` has
    these loops alone; ``cache.loop(7)`` is a TransformerLens ActivationCache of one iteration; ``cache.to_xarray()`` is
    labelled. All of them are views: the loops of an activation lie in one tensor, made when the first of them comes,
    so that memory is what is kept, however many loops run.

    Attributes:
        model: the model that ran.
        n_loops: iterations that were run.
        positions: token positions that are kept; None for all.
        detached: whether activations are copies without a graph.
    """

    def __init__(
        self,
        model: HookedRootModule,
        n_loops: int,
        names: Collection[str],
        positions: Positions = None,
        device: torch.device | str | None = None,
        *,
        detach: bool = True,
    ) -> None:
        self.model, self.n_loops, self.positions, self.device = model, n_loops, positions, device
        self.detached = detach
        self.has_batch_dim = True
        self._loops: dict[str, list[int | None]] = {}  # of each name without its loop
        for name in names:
            loop, _, local = split_name(name)
            if loop is None or loop < n_loops:
                self._loops.setdefault(local, []).append(loop)
        self._row = {(loop, local): row for local, loops in self._loops.items() for row, loop in enumerate(loops)}
        self._stacks: dict[str, Any] = {}  # a tensor with a loop axis; a list of tensors where the graph is kept
        self._n_pos = 0

    @classmethod
    def choose(
        cls,
        model: Any,
        n_loops: int,
        names: Names,
        loops: Numbers,
        layers: Numbers,
        positions: Numbers,
        *,
        n_pos: int,
        device: torch.device | str | None = None,
        detach: bool = True,
    ) -> LoopCache:
        """An empty cache for a choice of activations, see ``run_with_cache``.

        Raises:
            LoopprobeError: a part of the choice is not there, or nothing is chosen.
        """
        trees = model.hook_trees
        chosen_loops = resolve(loops, n_loops, "loop")
        places = resolve(positions, n_pos, "position")
        if not detach and positions is not None:
            raise LoopprobeError(
                "positions cannot be chosen with detach=False: keep all of them, and index what is kept"
            )
        wanted = selector(names, chosen_loops, layers, model)
        kept = [name for name in trees.once_names if wanted(name)]
        for loop in range(n_loops) if chosen_loops is None else sorted(chosen_loops):
            kept += [name for local in trees.local_names if wanted(name := full_name(loop, local))]
        if not kept:
            raise LoopprobeError(f"nothing is chosen by names={names!r}: name an activation of the {n_loops} loops")
        cache = cls(model, n_loops, kept, positions if isinstance(positions, slice) else places, device, detach=detach)
        cache._n_pos = n_pos
        return cache

    def like(self, names: Collection[str]) -> LoopCache:
        """An empty cache of the same run and positions for other names."""
        cache = LoopCache(self.model, self.n_loops, names, self.positions, self.device)
        cache._n_pos = self._n_pos
        return cache

    def numbers(self, n_pos: int) -> int:
        """Count the numbers that it holds of each prompt of ``n_pos`` tokens, once it is filled."""
        sizes = n_pos, len(self._places(n_pos)), n_pos // self.model.tokens_per_point
        count = self.model.hook_trees.layout.numbers_of
        return sum(len(loops) * count(local, *sizes) for local, loops in self._loops.items())

    @property
    def loops(self) -> list[int]:
        """The iterations that were kept, in order."""
        return sorted({loop for loops in self._loops.values() for loop in loops if loop is not None})

    def __getitem__(self, key: Any) -> Any:
        """One activation, or that of several loops or layers stacked.

        Args:
            key: a full name; a name without its loop, short or whole; (name, layer); (loop, name) or
                (loop, name, layer), where the loop is a number or a slice. A number alone is ``loop(key)``, a slice
                alone a LoopCache of these loops. Negative loops and layers count from the end.

        Raises:
            KeyError: it is not in this cache; the message says what is.
        """
        if isinstance(key, slice):
            return self._of_loops(key)
        if isinstance(key, int):
            return self.loop(key)
        if isinstance(key, str):
            loop, _, local = split_name(key)
            return self.stack(key) if loop is None else self._one(loop, local)
        if isinstance(key[0], slice):
            return self._of_loops(key[0]).stack(*key[1:])
        if isinstance(key[0], str):
            return self.stack(*key)
        loop = key[0] + self.n_loops if key[0] < 0 else key[0]
        parts = [self._one(loop, local) for local in self._locals(*key[1:])]
        return parts[0] if len(parts) == 1 else torch.stack(parts)

    def _one(self, loop: int, local: str) -> Tensor:
        at = None if local in self.model.hook_trees.once_names else loop
        row = self._row.get((at, local))
        if row is None or local not in self._stacks:
            raise self._missing(full_name(at, local))
        return self._stacks[local][row]  # type: ignore[no-any-return]

    def _missing(self, name: str) -> KeyError:
        return KeyError(f"{name} is not in this cache: it keeps loops {ranges(self.loops)}, names {self.names()}")

    def _locals(self, name: str, layer: int | None = None, layer_type: str | None = None) -> list[str]:
        """The names within a loop that a short name, a name without its loop, or TransformerLens's shorthand means."""
        if layer is not None and layer < 0:
            layer += self.model.sizes.n_layers
        named = [local for local in self._loops if name in (local, short_name(local))]
        if layer is not None:
            if named and all(split_name(local)[1] is None for local in named):
                hint = "; the output of the heads is attn_z" if name == "z" else ""
                raise KeyError(f"{name} has no layer, it is one of the whole loop{hint}")
            named = [local for local in named if split_name(local)[1] == layer]
        if not named:
            known = get_act_name(name, layer, layer_type)
            named = [known] if known in self._loops else []
        if not named:
            raise self._missing(name if layer is None else f"{name} of layer {layer}")
        return named

    def holds(self, name: str) -> bool:
        """Tell whether a full name is kept."""
        loop, _, local = split_name(name)
        return (loop, local) in self._row

    def __contains__(self, name: object) -> bool:
        return self.holds(str(name)) or any(name in (local, short_name(local)) for local in self._loops)

    def __iter__(self) -> Iterator[str]:
        return (full_name(loop, local) for loop, local in self._row if local in self._stacks)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    __eq__ = object.__eq__  # comparing all tensors is nobody's wish
    __hash__ = object.__hash__

    def names(self) -> list[str]:
        """The kept names without their loop, each once."""
        return list(self._loops)

    # Several loops, one loop

    def stack(self, name: str, layer: int | None = None, layer_type: str | None = None) -> Float[Tensor, "loop ..."]:
        """One activation over all kept loops, such as [loop, batch, pos, d_model] for ``resid_post`` of a layer.

        Without a layer, the layers that were kept are the second axis where there are several.
        """
        parts = []
        for local in self._locals(name, layer, layer_type):
            if local not in self._stacks:
                raise self._missing(local)
            once = self._loops[local] == [None]
            parts.append(self._stacks[local][0] if once else self._stack(local))
        return parts[0] if len(parts) == 1 else torch.stack(parts, dim=1)

    def _stack(self, local: str) -> Tensor:
        stack = self._stacks[local]
        return stack if isinstance(stack, Tensor) else torch.stack(stack)

    def _of_loops(self, chosen: slice) -> LoopCache:
        wanted = set(range(self.n_loops)[chosen])
        part = LoopCache(self.model, self.n_loops, [n for n in self if split_name(n)[0] in {None, *wanted}],
                         self.positions, self.device, detach=self.detached)  # fmt: skip
        part.has_batch_dim, part._n_pos = self.has_batch_dim, self._n_pos
        for local, loops in part._loops.items():
            if local in self._stacks:
                rows, stack = [self._row[loop, local] for loop in loops], self._stacks[local]
                in_a_row = slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] == len(rows) - 1 else rows
                part._stacks[local] = stack[in_a_row] if isinstance(stack, Tensor) else [stack[row] for row in rows]
        if self._grads is not None:
            part.grads = self._grads._of_loops(chosen)
        return part

    def loop(self, loop: int) -> LoopActivationCache:
        """The activations of one iteration as a TransformerLens ActivationCache, whose helpers work.

        Its ``hook_embed`` is this loop's input (the state with the input injected), so that embedding,
        positions and the outputs of the layers add up to the residual stream of this loop.
        """
        loop = loop + self.n_loops if loop < 0 else loop
        of_loop = {local: self._stacks[local][row] for (at, local), row in self._row.items() if at == loop}
        if not of_loop:
            raise KeyError(f"loop {loop} is not in this cache: it keeps loops {ranges(self.loops)}")
        if "hook_input" in of_loop:
            of_loop["hook_embed"] = of_loop["hook_input"]
        return LoopActivationCache(of_loop, self.model, has_batch_dim=self.has_batch_dim)

    # In other forms

    def to(self, target: torch.device | str | torch.dtype) -> LoopCache:
        """Move the activations to a device or into a dtype, in place."""
        for local, stack in self._stacks.items():
            self._stacks[local] = stack.to(target) if isinstance(stack, Tensor) else [x.to(target) for x in stack]
        if self._grads is not None:
            self._grads.to(target)
        return self

    def remove_batch_dim(self) -> LoopCache:
        """Drop the batch axis, which must be of one prompt, in place."""
        if self.has_batch_dim:
            sizes = {stack[0].shape[0] for stack in self._stacks.values()}
            if sizes != {1}:
                raise LoopprobeError(
                    f"the cache holds {max(sizes)} prompts: the batch axis can be dropped for one alone"
                )
            for local, stack in self._stacks.items():
                self._stacks[local] = stack[:, 0] if isinstance(stack, Tensor) else [x[0] for x in stack]
            self.has_batch_dim = False
            if self._grads is not None:
                self._grads.remove_batch_dim()
        return self

    def to_xarray(self) -> xr.Dataset:
        """All activations, labelled: a variable a short name, with dims ``loop``, ``layer`` where there are several.

        Returns:
            A dataset with dims among ``loop`` (from 0), ``layer``, ``example``, ``position`` (of attention ``query``
            and ``key``), ``head``, ``point``, and unlabelled widths. It shares its memory with the cache, but for
            half precision, which becomes float32.

        Raises:
            LoopprobeError: the names were kept for different loops.
        """
        stacks = {local: to_numpy(self._stack(local)) for local in self._stacks}
        return labelled(stacks, self._loops, self.loops, self._places(self._n_pos), has_batch_dim=self.has_batch_dim)

    def save(self, path: Path | str) -> None:
        """Write the activations to a safetensors file, which ``load`` reads; gradients are not written."""
        about: dict[str, Any] = {"n_loops": self.n_loops, "loops": self._loops, "positions": self._places(self._n_pos)}
        about |= {"n_pos": self._n_pos, "has_batch_dim": self.has_batch_dim}
        write_tensors({local: self._stack(local) for local in self._stacks}, about, Path(path))

    @classmethod
    def load(cls, path: Path | str, model: HookedRootModule) -> LoopCache:
        """Read a cache from the file that ``save`` wrote.

        Args:
            path: of the file.
            model: the model that ran, whose weights some helpers need.

        Raises:
            LoopprobeError: there is no such file, or it is no cache.
        """
        stacks, about = read_tensors(Path(path))
        names = [full_name(loop, local) for local, loops in about["loops"].items() for loop in loops]
        cache = cls(model, about["n_loops"], names, about["positions"])
        cache._stacks, cache._n_pos, cache.has_batch_dim = dict(stacks), about["n_pos"], about["has_batch_dim"]
        return cache

    def _places(self, n_pos: int) -> list[int]:
        return resolve(self.positions, n_pos, "position") or list(range(n_pos))

    # Filling

    def record(self, tensor: Tensor, hook: LoopHookPoint) -> None:
        """A forward hook that keeps what was asked for."""
        assert hook.name is not None
        self.keep(hook.name, tensor)

    def keep(self, name: str, tensor: Tensor) -> None:
        """Copy one activation, or what ``positions`` says of it, to its place; where the graph is kept, keep itself."""
        loop, _, local = split_name(name)
        if (axis := token_axis(name)) is not None:
            self._n_pos = tensor.shape[axis]
        row = self._row[loop, local]
        if not self.detached:
            self._stacks.setdefault(local, [torch.empty(0)] * len(self._loops[local]))[row] = tensor
            return
        kept = at_positions(name, tensor.detach(), self.positions)
        if local not in self._stacks:
            shape = (len(self._loops[local]), *kept.shape)
            self._stacks[local] = torch.empty(shape, dtype=kept.dtype, device=self.device or kept.device)
        self._stacks[local][row].copy_(kept)
