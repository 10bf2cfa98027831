"""The clean and the corrupted run of activation patching, and the patched runs between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from loopprobe.errors import LoopprobeError
from loopprobe.model.hook_points import LoopHookPoint
from loopprobe.model.protocol import LoopedModel
from loopprobe.model.selection import selector
from loopprobe.store.evaluate import chunk_size
from loopprobe.support.statistics import at_least_single
from loopprobe.tasks import PromptBatch

Site = Literal["z_pre", "z", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "attn_z"]
BY_HEAD = ("q", "k", "v", "attn_z")
TOKENS_AT_ONCE = 128  # tokens of one prompt in all copies of it that run together
Metric = Callable[[Float[Tensor, " batch"]], Float[Tensor, " batch"]]


class PatchedRuns:
    """The clean and the corrupted run, and the patched ones between them.

    Args:
        model, n_loops, sites: the model, its iterations, and the activations that are patched.
        clean, corrupted: the prompts.
        last: the last token that the answer at the query can depend on.
        metric: see ``run``.
    """

    def __init__(
        self,
        model: LoopedModel,
        clean: PromptBatch,
        corrupted: PromptBatch,
        n_loops: int,
        sites: tuple[Site, ...],
        last: int,
        metric: Metric | None = None,
    ) -> None:
        self.model, self.n_loops, self.metric = model, n_loops, metric
        self.prompts, self.last = clean, last
        reading: dict[str, Any] = {
            "n_loops": n_loops,
            "keep_loops": 1,
            "read_at": [clean.query],
        }  # the query's answer alone
        self.causal = {"causal", "past"} <= model.supports
        tokens = slice(0, last + 1)
        started = time.perf_counter()
        with torch.no_grad():
            outputs = model(*clean.inputs, **reading)
            self.clean = self.measure(clean.answer(outputs[-1]))
        self.clean_pass = time.perf_counter() - started
        _, self.donor = model.run_with_cache(
            *clean.inputs, **reading, names=[*sites, "embed"], positions=tokens
        )  # fmt: skip
        outputs, self.base = model.run_with_cache(
            *corrupted.inputs, **reading, positions=tokens,
            names=[*sites, "z_pre", "embed", *(["k", "v"] if self.causal else [])],
            loss=lambda outputs: self.measure(clean.answer(outputs[-1])).sum(),
        )  # fmt: skip
        self.corrupted = self.measure(clean.answer(outputs[-1])).detach()
        differs = (self.donor["hook_embed"] != self.base["hook_embed"]).any(-1).any(0)
        # the token from which the runs differ; where later tokens act on earlier ones, they differ everywhere
        self.first = int(differs.int().argmax()) if self.causal else 0

    def measure(self, predictions: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The metric of predictions at the query.

        Raises:
            LoopprobeError: it does not return one number for each prompt.
        """
        if self.metric is None:
            return predictions
        values = self.metric(predictions)
        if predictions.requires_grad and isinstance(values, Tensor) and not values.requires_grad:
            raise LoopprobeError("metric must be differentiable, for attribution patching: compute it with torch alone")
        if not isinstance(values, Tensor) or values.shape != predictions.shape:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise LoopprobeError(
                f"metric must return a tensor of one number for each of the {len(predictions)} prompts, not {shape}: "
                "leave out the mean over prompts"
            )
        return values

    def places(self, site: Site) -> tuple[int, ...]:
        """The numbers of layers and heads of a site."""
        sizes = self.model.sizes
        if site in ("z", "z_pre"):
            return ()
        if site in BY_HEAD:
            return sizes.n_layers, sizes.n_heads
        return (sizes.n_layers,)

    def patched(
        self, site: Site, loop: int, tokens: list[int]
    ) -> Iterator[tuple[list[tuple[int, ...]], Float[Tensor, "place batch"]]]:
        """Patch the places (layer, head, token) of one loop and site, and yield them with their predictions."""
        inner = self.places(site)
        for layer in range(inner[0]) if inner else [None]:
            heads = range(inner[1]) if len(inner) == 2 else [None]
            todo = [(head, token) for token in sorted(tokens) if token >= self.first for head in heads]
            budget = chunk_size(self.corrupted.device) * TOKENS_AT_ONCE
            while todo:
                suffix = self.last + 1 - (todo[0][1] if self.causal else 0)
                group = todo[: max(1, budget // (suffix * len(self.corrupted)))]
                todo = todo[len(group) :]
                places = [tuple(i for i in (layer, *place) if i is not None) for place in group]
                yield places, self._go_on(site, loop, layer, group)

    def _go_on(
        self, site: Site, loop: int, layer: int | None, group: list[tuple[int | None, int]]
    ) -> Float[Tensor, "place batch"]:
        """Run on from the state that enters ``loop``, the i-th copy of the prompts patched at the i-th place."""
        first = group[0][1] if self.causal else 0
        n_prompts, copies = len(self.corrupted), len(group)
        donor = self.donor[loop, site, layer]

        def patch(x: Tensor, hook: LoopHookPoint) -> Tensor:
            x = x.clone()
            for i, (head, token) in enumerate(group):
                rows = slice(i * n_prompts, (i + 1) * n_prompts)
                at = (token - first,) if head is None else (token - first, head)
                x[(rows, *at)] = donor[(slice(None), token, *at[1:])]
            return x

        def tiled(x: Tensor, tokens: slice) -> Tensor:
            return x[:, tokens].repeat(copies, *[1] * (x.ndim - 1))

        later, earlier = slice(first, None), slice(0, first)
        e = tiled(self.base["hook_embed"], later)
        z = tiled(self.base[loop, "z_pre"], later)
        wanted = selector(site, [loop], layer, self.model)
        with self.model.hooks(fwd_hooks=[(wanted, patch)]):
            for now in range(loop, self.n_loops):
                past = [
                    (tiled(self.base[now, "k", i], earlier), tiled(self.base[now, "v", i], earlier))
                    for i in range(self.model.sizes.n_layers)
                ] if first else None  # fmt: skip
                z = self.model.step(z, e, now, past)
        outputs = self.model.predict(z, e, self.n_loops - 1, first, [self.prompts.query])
        return self.prompts.answer(outputs.unflatten(0, (copies, n_prompts)))

    def estimated(self, site: Site, tokens: list[int]) -> Float[Tensor, "loop ... position batch"]:
        """The move of the prediction by each patch, to first order."""
        layers = range(self.places(site)[0]) if self.places(site) else [None]
        estimates = []
        for layer in layers:
            difference = at_least_single(self.donor.stack(site, layer)) - at_least_single(self.base.stack(site, layer))
            gradient = at_least_single(self.base.grads.stack(site, layer))
            product = (difference * gradient).sum(-1)[:, :, tokens]  # loop batch pos (head)
            estimates.append(product.permute(0, 3, 2, 1) if product.ndim == 4 else product.transpose(1, 2))
        return torch.stack(estimates, 1) if layers != [None] else estimates[0]
