"""Activation patching between a clean and a corrupted run: what carries the difference, in which loop, at which token.

One activation of the corrupted run, at one (loop, site, layer, head, position), is replaced by that of the clean run,
and the prediction at the query moves from the corrupted towards the clean one (Meng et al., arXiv 2202.05262; Wang
et al., arXiv 2211.00593; here in one loop at a time). Attribution patching (Nanda 2023; Syed et al., arXiv
2310.10348) estimates all of these moves from one gradient: (clean − corrupted) · gradient at the corrupted run.

Attention is causal, so that a patch at a token leaves the tokens before it as they were: they are not computed again,
only their keys and values of the corrupted run are used. Patches go through together, as many as suit the cache.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from loopprobe.checkpoint import Checkpoint
from loopprobe.configuration import configuration
from loopprobe.corruptions import corrupt
from loopprobe.errors import LoopprobeError
from loopprobe.evaluate import chunk_size
from loopprobe.hook_points import LoopHookPoint
from loopprobe.model import LoopedTransformer
from loopprobe.probes.loops import require_tokens
from loopprobe.results import stamp, with_ends
from loopprobe.selection import selector
from loopprobe.statistics import bootstrap_ratio
from loopprobe.tasks import Prompts
from loopprobe.types import Progress

Site = Literal["z_pre", "z", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "attn_z"]
BY_HEAD = ("q", "k", "v", "attn_z")


@configuration
class PatchConfig:
    """What differs between the runs, and what is patched.

    Attributes:
        corruption: ``label`` (of one example), ``weights`` (another task), ``query`` (another input) or ``noise``.
        example: whose label, from 0.
        noise_std: in the units of y.
        sites: names of activations; ``z`` is the state after a loop, ``attn_z`` the output of a head.
        loops: iterations; None: as many as trained.
        positions: tokens to patch; None: all up to the query's.
        exact: whether to patch; without, attribution patching alone.
    """

    corruption: Literal["label", "weights", "query", "noise"] = "weights"
    example: NonNegativeInt = 0
    noise_std: NonNegativeFloat = 1.0
    sites: tuple[Site, ...] = ("z", "attn_z")
    loops: PositiveInt | None = None
    positions: tuple[NonNegativeInt, ...] | None = None
    exact: bool = True


def run(
    checkpoint: Checkpoint, prompts: Prompts, config: PatchConfig, progress: Progress = lambda steps: steps
) -> xr.Dataset:
    """Patch every chosen place, and estimate every patch.

    Returns:
        A dataset with dims ``loop`` (from 1), ``layer`` and ``head`` where a site has them, ``position`` (token) and
        ``example``. For every site, under its name:

        * ``{site}``, ``{site}_low``, ``{site}_high``: the effect: Σ moved · total / Σ total² over the prompts, moved
          being the change of the prediction by the patch and total the clean minus the corrupted prediction, so
          that 0 is the corrupted and 1 the clean run; 95 % bootstrap intervals
        * ``{site}_moved [..., example]``, in the units of y
        * ``{site}_attribution``: the effect as attribution patching estimates it

        ``clean`` and ``corrupted [example]`` are the predictions; ``attrs`` hold for each site the ``correlation`` of
        effect and estimate over all places, how many ``patches`` were run, the ``seconds`` of them and of one
        ``clean_pass``.
    """
    check(checkpoint, config)
    model = checkpoint.model
    prompts = prompts.to(checkpoint.device)
    n_loops = config.loops or model.cfg.n_loops
    generator = torch.Generator().manual_seed(2**33 + prompts.origin.get("held_out_seed", 0))
    other = corrupt(prompts, config.corruption, generator, example=config.example, noise_std=config.noise_std)
    runs = _Runs(model, prompts, other, n_loops, config.sites)
    tokens = list(config.positions or range(runs.query + 1))
    started, patches = time.perf_counter(), 0
    moved: dict[str, np.ndarray] = {}
    if config.exact:
        steps = [(site, loop) for site in config.sites for loop in range(n_loops)]
        for site in config.sites:
            moved[site] = np.zeros((n_loops, *runs.places(site), len(tokens), len(prompts.xs)), np.float32)
        with torch.no_grad():
            for site, loop in progress(steps):
                for places, predictions in runs.patched(site, loop, tokens):
                    patches += len(places)
                    for (*where, token), prediction in zip(places, predictions, strict=True):
                        change = (prediction - runs.corrupted).cpu().numpy()
                        moved[site][(loop, *where, tokens.index(token))] = change
    seconds = time.perf_counter() - started
    return _dataset(checkpoint, prompts, config, runs, tokens, moved, {"patches": patches, "seconds": seconds})


def check(checkpoint: Checkpoint, config: PatchConfig) -> None:
    """Raise LoopprobeError where the options do not fit the model, before anything runs."""
    points = checkpoint.config.model.n_points
    if not config.sites or (config.positions is not None and not config.positions):
        raise LoopprobeError("sites and positions must not be empty: name at least one")
    if config.example > points - 2:
        raise LoopprobeError(f"example ({config.example}) must be from 0 to {points - 2}: the last point is the query")
    require_tokens(config.positions, 2 * points - 2)


class _Runs:
    """The clean and the corrupted run, and the patched ones between them."""

    def __init__(
        self, model: LoopedTransformer, clean: Prompts, corrupted: Prompts, n_loops: int, sites: tuple[Site, ...]
    ) -> None:
        self.model, self.n_loops = model, n_loops
        self.query = 2 * clean.xs.shape[1] - 2
        until_query = slice(0, self.query + 1)
        started = time.perf_counter()
        with torch.no_grad():
            self.clean = model(clean.xs, clean.ys, n_loops)[-1, :, -1]
        self.clean_pass = time.perf_counter() - started
        _, self.donor = model.run_with_cache(clean.xs, clean.ys, n_loops, names=sites, positions=until_query)
        names = [*sites, "z_pre", "k", "v", "embed"]
        xs, ys = corrupted
        predictions, self.base = model.run_with_cache(
            xs, ys, n_loops, names=names, positions=until_query, loss=lambda predictions: predictions[-1, :, -1].sum()
        )
        self.corrupted = predictions[-1, :, -1]
        same = (clean.xs == corrupted.xs).all(-1), clean.ys == corrupted.ys
        differs = ~torch.stack(same, -1).flatten(1).all(0)
        self.first = int(differs.int().argmax())  # token that differs; before it the runs are the same

    def places(self, site: Site) -> tuple[int, ...]:
        """Layers and heads of a site: how many."""
        cfg = self.model.cfg
        return () if site in ("z", "z_pre") else (cfg.n_layers, cfg.n_heads) if site in BY_HEAD else (cfg.n_layers,)

    def patched(
        self, site: Site, loop: int, tokens: list[int]
    ) -> Iterator[tuple[list[tuple[int, ...]], Float[Tensor, "place batch"]]]:
        """Places (layer, head, token) of one loop and site, with the predictions after patching each of them."""
        inner = self.places(site)
        for layer in range(inner[0]) if inner else [None]:
            heads = range(inner[1]) if len(inner) == 2 else [None]
            todo = [(head, token) for token in sorted(tokens) if token >= self.first for head in heads]
            budget = chunk_size(self.corrupted.device) * 128  # tokens at once
            while todo:
                suffix = self.query + 1 - todo[0][1]
                group = todo[: max(1, budget // (suffix * len(self.corrupted)))]
                todo = todo[len(group) :]
                places = [tuple(i for i in (layer, *place) if i is not None) for place in group]
                yield places, self._go_on(site, loop, layer, group)

    def _go_on(
        self, site: Site, loop: int, layer: int | None, group: list[tuple[int | None, int]]
    ) -> Float[Tensor, "place batch"]:
        """Run on from the state that enters ``loop``, the i-th copy of the prompts patched at the i-th place."""
        first, n_prompts, copies = group[0][1], len(self.corrupted), len(group)
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
                    for i in range(self.model.cfg.n_layers)
                ]
                z = self.model.step(z, e, now, past if first else None)
        return self.model.read_out(z[:, -1]).reshape(copies, n_prompts)

    def estimated(self, site: Site, tokens: list[int]) -> Float[Tensor, "loop ... position batch"]:
        """The move of the prediction by each patch, to first order."""
        layers = range(self.places(site)[0]) if self.places(site) else [None]
        found = []
        assert self.base.grads is not None, "they were asked for"
        for layer in layers:
            difference = self.donor.stack(site, layer) - self.base.stack(site, layer)
            product = (difference * self.base.grads.stack(site, layer)).sum(-1)[:, :, tokens]  # loop batch pos (head)
            found.append(product.permute(0, 3, 2, 1) if product.ndim == 4 else product.transpose(1, 2))
        return torch.stack(found, 1) if layers != [None] else found[0]


def _dataset(
    checkpoint: Checkpoint,
    prompts: Prompts,
    config: PatchConfig,
    runs: _Runs,
    tokens: list[int],
    moved: dict[str, np.ndarray],
    cost: dict[str, float],
) -> xr.Dataset:
    total = (runs.clean - runs.corrupted).double().cpu().numpy()
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {
        "clean": (("example",), runs.clean.cpu().numpy()),
        "corrupted": (("example",), runs.corrupted.cpu().numpy()),
    }
    correlation = {}
    for site in config.sites:
        dims = ("loop", *("layer", "head")[: len(runs.places(site))], "position")
        estimate = bootstrap_ratio(runs.estimated(site, tokens).double().cpu().numpy() * total, total**2)[0]
        variables[f"{site}_attribution"] = (dims, estimate)
        if site in moved:
            variables |= with_ends(site, dims, bootstrap_ratio(moved[site] * total, total**2))
            variables[f"{site}_moved"] = ((*dims, "example"), moved[site])
            correlation[site] = float(np.corrcoef(variables[site][1].ravel(), estimate.ravel())[0, 1])
    cfg = runs.model.cfg
    data = xr.Dataset(
        variables,
        coords={"loop": np.arange(1, runs.n_loops + 1), "position": tokens, "model": checkpoint.label},
        attrs={"trained_loops": cfg.n_loops, "query_token": runs.query, "clean_pass": runs.clean_pass, **cost}
        | {f"correlation_{site}": value for site, value in correlation.items()},
    )
    data = data.assign_coords({axis: np.arange(data.sizes[axis]) for axis in ("layer", "head") if axis in data.sizes})
    return stamp(data, "patch", checkpoint, prompts, config)
