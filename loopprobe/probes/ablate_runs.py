"""Runs in which heads and MLPs write something else, at chosen loops and tokens, many of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from loopprobe.config.selection import Choice, resolve
from loopprobe.errors import LoopprobeError
from loopprobe.model.cache import LoopCache
from loopprobe.model.hook_points import LoopHookPoint
from loopprobe.model.protocol import LoopedModel
from loopprobe.model.selection import require_activations, selector
from loopprobe.store.evaluate import chunk_size
from loopprobe.tasks import PromptBatch

TOKENS_AT_ONCE = 128  # tokens of one prompt in all copies of it that run together
SITES = ("attn_z", "mlp_out")  # the output of a head before W_O, and that of an MLP


@dataclass(frozen=True)
class Component:
    """A head or an MLP of the block.

    Attributes:
        site: the name of its output, ``attn_z`` or ``mlp_out``.
        layer: from 0.
        head: from 0; None for an MLP.
    """

    site: str
    layer: int
    head: int | None = None

    @property
    def name(self) -> str:
        """The name that the probe attribute gives it too."""
        return f"MLP {self.layer}" if self.head is None else f"head {self.layer}.{self.head}"

    def of(self, cache: LoopCache, loop: int) -> Float[Tensor, "batch pos width"]:
        """Its output in a loop, from a cache."""
        values: Tensor = cache[loop, self.site, self.layer]
        return values if self.head is None else values[:, :, self.head]


def components_of(
    model: LoopedModel, sites: Sequence[str], layers: Choice | None = None, heads: Choice | None = None
) -> list[Component]:
    """The heads and MLPs that are chosen, layer by layer.

    Raises:
        LoopprobeError: the model has no such output, layer or head.
    """
    require_activations(model, sites, "what is edited", SITES)
    if heads is not None and "attn_z" not in sites:
        raise LoopprobeError(f"heads ({heads!r}) are chosen and no site has heads: add attn_z to the sites")
    sizes = model.sizes
    chosen_layers = resolve(layers, sizes.n_layers, "layer")
    chosen_heads = resolve(heads, sizes.n_heads, "head")
    made: list[Component] = []
    for layer in range(sizes.n_layers) if chosen_layers is None else chosen_layers:
        if "attn_z" in sites:
            of_layer = range(sizes.n_heads) if chosen_heads is None else chosen_heads
            made += [Component("attn_z", layer, head) for head in of_layer]
        if "mlp_out" in sites:
            made.append(Component("mlp_out", layer))
    return made


@dataclass(frozen=True)
class Place:
    """A component in one loop, from 0, at some tokens; None: at all of them."""

    component: Component
    loop: int
    tokens: tuple[int, ...] | None = None


Edited = tuple[Place, ...]  # what is replaced in one run
Values = Callable[[Place], Float[Tensor, "#batch pos width"]]  # what a component writes instead


class AblatedRuns:
    """The run of a batch of prompts as it is, and runs that differ from it at chosen places.

    Args:
        model: the model.
        prompts: one batch.
        n_loops: iterations; the answers are read after the last.
        sites: the outputs that may be replaced.
    """

    def __init__(self, model: LoopedModel, prompts: PromptBatch, n_loops: int, sites: Sequence[str]) -> None:
        self.model, self.prompts, self.n_loops = model, prompts, n_loops
        outputs, self.cache = model.run_with_cache(
            *prompts.inputs, n_loops=n_loops, keep_loops=1, read_at=prompts.read_at, names=["z_pre", "embed", *sites]
        )
        self.clean: Float[Tensor, "batch answer *value"] = outputs[-1]

    def groups(self, runs: Sequence[Edited], share: float = 1.0) -> Iterator[list[int]]:
        """Split runs, by their numbers, into those that go through together: they start in the same loop.

        Args:
            runs: what is replaced in each.
            share: of what is run at once where no gradient is needed.
        """
        budget = chunk_size(self.model.device) * TOKENS_AT_ONCE * share
        size = max(1, int(budget // (self.prompts.n_tokens * self.prompts.n_prompts)))
        starts = [min(place.loop for place in run) for run in runs]
        for start in sorted(set(starts)):
            same = [i for i, one in enumerate(starts) if one == start]
            yield from (same[i : i + size] for i in range(0, len(same), size))

    def outputs(self, runs: Sequence[Edited], values: Sequence[Values]) -> Float[Tensor, "run batch answer *value"]:
        """The answers after the last loop of runs that start in the same loop.

        Args:
            runs: what is replaced in each of them.
            values: of each run, by what.
        """
        copies, n_prompts = len(runs), self.prompts.n_prompts
        start = min(place.loop for run in runs for place in run)
        todo: dict[tuple[int, str, int], list[tuple[int, Place]]] = {}
        for i, run in enumerate(runs):
            for place in run:
                todo.setdefault((place.loop, place.component.site, place.component.layer), []).append((i, place))

        def hook(places: list[tuple[int, Place]]) -> Any:
            def edit(x: Tensor, hook: LoopHookPoint) -> Tensor:
                x = x.clone().unflatten(0, (copies, n_prompts))
                for i, place in places:
                    head = place.component.head
                    at = x[i] if head is None else x[i, :, :, head]
                    value = values[i](place).to(x)
                    if place.tokens is None:
                        at[:] = value
                    else:
                        at[:, list(place.tokens)] = value[:, list(place.tokens)]
                return x.flatten(0, 1)

            return edit

        hooks = [
            (selector(site, [loop], layer, self.model), hook(places)) for (loop, site, layer), places in todo.items()
        ]
        z, e = (self._tiled(x, copies) for x in (self.cache[start, "z_pre"], self.cache["hook_embed"]))
        with self.model.hooks(fwd_hooks=hooks):
            for loop in range(start, self.n_loops):
                z = self.model.step(z, e, loop)
        outputs = self.model.predict(z, e, self.n_loops - 1, read_at=self.prompts.read_at)
        return outputs.unflatten(0, (copies, n_prompts))

    @staticmethod
    def _tiled(x: Tensor, copies: int) -> Tensor:
        return x.repeat(copies, *[1] * (x.ndim - 1))
