"""The clean and the corrupted run of activation patching, and the patched runs between them."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from loopprobe.model.hook_points import LoopHookPoint
from loopprobe.model.protocol import LoopedModel
from loopprobe.model.selection import selector
from loopprobe.probes.measures import Measure, find_measure
from loopprobe.store.evaluate import chunk_size
from loopprobe.support.statistics import at_least_single
from loopprobe.tasks import PromptBatch
from loopprobe.tasks.places import answer_tokens

Site = Literal["z_pre", "z", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "attn_z"]
BY_HEAD = ("q", "k", "v", "attn_z")
TOKENS_AT_ONCE = 128  # tokens of one prompt in all copies of it that run together


def is_answer(measure: Measure) -> bool:
    """Tell whether a measure is that of ``PromptBatch.answer``, which needs the query's answer alone."""
    return measure.name == "answer" and not measure.source


class PatchedRuns:
    """The clean and the corrupted run, and the patched ones between them.

    Args:
        model, n_loops, sites: the model, its iterations, and the activations that are patched.
        clean, corrupted: the prompts.
        last: the last token that the answer at the query can depend on.
        measure: what is measured of the answers.
    """

    def __init__(
        self,
        model: LoopedModel,
        clean: PromptBatch,
        corrupted: PromptBatch,
        n_loops: int,
        sites: tuple[Site, ...],
        last: int,
        measure: Measure | None = None,
    ) -> None:
        self.model, self.n_loops = model, n_loops
        self.measure = find_measure("answer", clean) if measure is None else measure
        self.prompts, self.last = clean, last
        self.read_at = [clean.query] if is_answer(self.measure) else answer_tokens(clean)
        reading: dict[str, Any] = {
            "n_loops": n_loops,
            "keep_loops": 1,
            "read_at": self.read_at,
        }
        self.causal = {"causal", "past"} <= model.supports
        tokens = slice(0, last + 1)
        started = time.perf_counter()
        with torch.no_grad():
            outputs = model(*clean.inputs, **reading)
            self.clean = self.measured(outputs[-1])
        self.clean_pass = time.perf_counter() - started
        _, self.donor = model.run_with_cache(
            *clean.inputs, **reading, names=[*sites, "embed"], positions=tokens
        )  # fmt: skip
        outputs, self.base = model.run_with_cache(
            *corrupted.inputs, **reading, positions=tokens,
            names=[*sites, "z_pre", "embed", *(["k", "v"] if self.causal else [])],
            loss=lambda outputs: self.measured(outputs[-1]).sum(),
        )  # fmt: skip
        self.unpatched = outputs[-1].detach()
        self.corrupted = self.measured(self.unpatched)
        differs = (self.donor["hook_embed"] != self.base["hook_embed"]).any(-1).any(0)
        # the token from which the runs differ; where later tokens act on earlier ones, they differ everywhere
        self.first = int(differs.int().argmax()) if self.causal else 0

    def measured(self, outputs: Float[Tensor, "batch answer *value"]) -> Float[Tensor, " batch"]:
        """The measure of outputs at the tokens that are read.

        Raises:
            LoopprobeError: it fails, or cannot be differentiated where that is needed.
        """
        return self.prompts.answer(outputs) if is_answer(self.measure) else self.measure(outputs, self.prompts)

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
        """Patch the places (layer, head, token) of one loop and site, and yield them with what is measured."""
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
        outputs = self.model.predict(z, e, self.n_loops - 1, first, self.read_at).unflatten(0, (copies, n_prompts))
        if is_answer(self.measure):  # of all copies at once
            return self.prompts.answer(outputs)
        before = self.unpatched[:, : bisect_left(self.read_at, first)]
        return torch.stack([self.measured(torch.cat([before, one], dim=1)) for one in outputs])

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
