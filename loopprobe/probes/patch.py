"""Activation patching between a clean and a corrupted run: the loops, sites and tokens that carry the difference.

One activation of the corrupted run, at one (loop, site, layer, head, position), is replaced by that of the clean run,
and the prediction at the query moves from the corrupted towards the clean one (Meng et al., arXiv 2202.05262; Wang
et al., arXiv 2211.00593; here in one loop at a time). Attribution patching (Nanda 2023; Syed et al., arXiv
2310.10348) estimates all of these moves from one gradient: (clean − corrupted) · gradient at the corrupted run.

Attention is causal, so that a patch at a token leaves the tokens before it as they were: they are not computed again,
only their keys and values of the corrupted run are used. Many patches are run at once, as copies of the batch.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from pydantic import ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from loopprobe.baselines.optimal import is_of
from loopprobe.checkpoint import Checkpoint
from loopprobe.corruptions import corrupt
from loopprobe.errors import LoopprobeError
from loopprobe.evaluate import chunk_size
from loopprobe.hook_points import LoopHookPoint
from loopprobe.model import LoopedTransformer
from loopprobe.probes.loops import chosen_tokens, points_of
from loopprobe.results import stamp, with_ends
from loopprobe.selection import selector
from loopprobe.statistics import at_least_single, bootstrap_ratio, correlation, double, to_numpy
from loopprobe.tasks import Prompts
from loopprobe.types import Progress

Site = Literal["z_pre", "z", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "attn_z"]
BY_HEAD = ("q", "k", "v", "attn_z")
GIVEN = "given"  # the corruption where the user gives the corrupted prompts
TOKENS_AT_ONCE = 128  # tokens of one prompt in all copies of it that run together
CORRUPTION_SEED = 2**33  # added to the seed of the prompts: no prompt is drawn from such a seed
Metric = Callable[[Float[Tensor, " batch"]], Float[Tensor, " batch"]]


@dataclass(config=ConfigDict(extra="forbid", frozen=True), kw_only=True)
class PatchConfig:
    """The difference between the runs, and the places that are patched.

    Attributes:
        corruption: ``label`` (of one example), ``weights`` (another task), ``query`` (another input) or ``noise``;
            ``given`` where the corrupted prompts are given to ``run``.
        example: the example whose label is corrupted, from 0.
        noise_std: the standard deviation of the noise, in the units of y.
        sites: names of activations; ``z`` is the state after a loop, ``attn_z`` the output of a head.
        loops: iterations; None: as many as trained.
        positions: tokens to patch, from 0, or from the end where negative; None: all up to the query's.
        exact: whether to run the patches; otherwise attribution patching estimates them.
    """

    corruption: Literal["label", "weights", "query", "noise", "given"] = "weights"
    example: NonNegativeInt = 0
    noise_std: NonNegativeFloat = 1.0
    sites: tuple[Site, ...] = ("z", "attn_z")
    loops: PositiveInt | None = None
    positions: tuple[int, ...] | None = None
    exact: bool = True


def run(
    checkpoint: Checkpoint,
    prompts: Prompts,
    config: PatchConfig,
    progress: Progress = lambda steps: steps,
    *,
    corrupted: Prompts | None = None,
    metric: Metric | None = None,
) -> xr.Dataset:
    """Patch every chosen place, and estimate every patch.

    Args:
        checkpoint, prompts, config: the model, the clean prompts, and the options.
        progress: wraps the sites and loops.
        corrupted: the corrupted prompts, as many as the clean ones and of the same shape; None: the clean ones are
            corrupted as the options say.
        metric: a differentiable function from the predictions at the query [batch] to one number for each prompt
            [batch], whose change is measured; None: the prediction itself.

    Returns:
        A dataset with dims ``loop`` (from 1), ``layer`` and ``head`` where a site has them, ``position`` (token) and
        ``example``. For every site, under its name:

        * ``{site}``, ``{site}_low``, ``{site}_high``: the effect: Σ moved · total / Σ total² over the prompts, moved
          being the change of the prediction by the patch and total the clean minus the corrupted prediction, so
          that 0 is the corrupted and 1 the clean run; 95 % bootstrap intervals, missing for a single prompt
        * ``{site}_moved [..., example]``, in the units of y
        * ``{site}_attribution``: the effect as attribution patching estimates it

        ``clean`` and ``corrupted [example]`` are the predictions; with a metric, all of these are its values. ``attrs``
        hold for each site the ``correlation`` of effect and estimate over all places, missing where one of the two
        does not vary, the number of ``patches``, their ``seconds`` and those of one ``clean_pass``.

    Raises:
        LoopprobeError: options, prompts, corrupted prompts or the metric do not fit.
    """
    if corrupted is not None:
        config = dataclasses.replace(config, corruption=GIVEN)
    check(checkpoint, config, prompts)
    model = checkpoint.model
    prompts = prompts.to(checkpoint.device)
    n_loops = config.loops or model.cfg.n_loops
    other = _corrupted(checkpoint, prompts, config) if corrupted is None else _fitting(prompts, corrupted)
    runs = _Runs(model, prompts, other, n_loops, config.sites, metric)
    tokens = list(range(runs.query + 1))
    if config.positions is not None:
        tokens = chosen_tokens(config.positions, prompts.ys.shape[1])
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
                        change = to_numpy(runs.measure(prediction) - runs.corrupted)
                        moved[site][(loop, *where, tokens.index(token))] = change
    seconds = time.perf_counter() - started
    return _dataset(checkpoint, prompts, config, runs, tokens, moved, {"patches": patches, "seconds": seconds})


def check(checkpoint: Checkpoint, config: PatchConfig, prompts: Prompts | None = None) -> None:
    """Raise LoopprobeError where the options do not fit the model or the prompts, before anything runs."""
    points = points_of(checkpoint, prompts)
    if not config.sites:
        raise LoopprobeError("sites must not be empty: name at least one")
    if config.example > points - 2 and (config.example or config.corruption == "label"):
        raise LoopprobeError(f"example ({config.example}) must be from 0 to {points - 2}: the last point is the query")
    if config.positions is not None:
        chosen_tokens(config.positions, points)
    if prompts is not None and config.corruption != GIVEN:
        _corrupted(checkpoint, prompts[:1], config)


def _corrupted(checkpoint: Checkpoint, prompts: Prompts, config: PatchConfig) -> Prompts:
    """Corrupt the prompts as the options say.

    Raises:
        LoopprobeError: the corruption does not suit the prompts, or needs to know what they are.
    """
    if config.corruption == GIVEN:
        raise LoopprobeError(f"corruption {GIVEN!r} takes its prompts from run(…, corrupted=): give them")
    if config.corruption == "weights" and not is_of(prompts, checkpoint.config.task):
        raise LoopprobeError(
            "corruption 'weights' gives the labels of another linear function, but these prompts do not say that they "
            "are of a linear task: give corrupted=, or choose label, query or noise"
        )
    generator = torch.Generator().manual_seed(CORRUPTION_SEED + prompts.origin.get("held_out_seed", 0))
    return corrupt(prompts, config.corruption, generator, example=config.example, noise_std=config.noise_std)


def _fitting(prompts: Prompts, corrupted: Prompts) -> Prompts:
    """The corrupted prompts on the device of the clean ones.

    Raises:
        LoopprobeError: they have another shape.
    """
    if corrupted.xs.shape != prompts.xs.shape:
        raise LoopprobeError(
            f"corrupted prompts are {tuple(corrupted.xs.shape)} but the clean ones are {tuple(prompts.xs.shape)} "
            "[prompt, point, dimension]: give as many, of the same shape"
        )
    return corrupted.to(prompts.xs.device)


class _Runs:
    """The clean and the corrupted run, and the patched ones between them.

    Args:
        model, n_loops, sites: the model, its iterations, and the activations that are patched.
        clean, corrupted: the prompts.
        metric: see ``run``.
    """

    def __init__(
        self,
        model: LoopedTransformer,
        clean: Prompts,
        corrupted: Prompts,
        n_loops: int,
        sites: tuple[Site, ...],
        metric: Metric | None = None,
    ) -> None:
        self.model, self.n_loops, self.metric = model, n_loops, metric
        self.query = 2 * clean.xs.shape[1] - 2
        until_query = slice(0, self.query + 1)
        started = time.perf_counter()
        with torch.no_grad():
            self.clean = self.measure(model(clean.xs, clean.ys, n_loops)[-1, :, -1])
        self.clean_pass = time.perf_counter() - started
        _, self.donor = model.run_with_cache(clean.xs, clean.ys, n_loops, names=sites, positions=until_query)
        names = [*sites, "z_pre", "k", "v", "embed"]
        xs, ys = corrupted
        predictions, self.base = model.run_with_cache(
            xs, ys, n_loops, names=names, positions=until_query,
            loss=lambda predictions: self.measure(predictions[-1, :, -1]).sum(),
        )  # fmt: skip
        self.corrupted = self.measure(predictions[-1, :, -1]).detach()
        same = (clean.xs == corrupted.xs).all(-1), clean.ys == corrupted.ys
        differs = ~torch.stack(same, -1).flatten(1).all(0)
        self.first = int(differs.int().argmax())  # token that differs; before it the runs are the same

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
        cfg = self.model.cfg
        if site in ("z", "z_pre"):
            return ()
        if site in BY_HEAD:
            return cfg.n_layers, cfg.n_heads
        return (cfg.n_layers,)

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
        estimates = []
        assert self.base.grads is not None, "they were asked for"
        for layer in layers:
            difference = at_least_single(self.donor.stack(site, layer)) - at_least_single(self.base.stack(site, layer))
            gradient = at_least_single(self.base.grads.stack(site, layer))
            product = (difference * gradient).sum(-1)[:, :, tokens]  # loop batch pos (head)
            estimates.append(product.permute(0, 3, 2, 1) if product.ndim == 4 else product.transpose(1, 2))
        return torch.stack(estimates, 1) if layers != [None] else estimates[0]


def _dataset(
    checkpoint: Checkpoint,
    prompts: Prompts,
    config: PatchConfig,
    runs: _Runs,
    tokens: list[int],
    moved: dict[str, np.ndarray],
    cost: dict[str, float],
) -> xr.Dataset:
    total = to_numpy(double(runs.clean - runs.corrupted))
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {
        "clean": (("example",), to_numpy(runs.clean)),
        "corrupted": (("example",), to_numpy(runs.corrupted)),
    }
    correlations = {}
    for site in config.sites:
        dims = ("loop", *("layer", "head")[: len(runs.places(site))], "position")
        estimate = bootstrap_ratio(to_numpy(double(runs.estimated(site, tokens))) * total, total**2)[0]
        variables[f"{site}_attribution"] = (dims, estimate)
        if site in moved:
            variables |= with_ends(site, dims, bootstrap_ratio(moved[site] * total, total**2))
            variables[f"{site}_moved"] = ((*dims, "example"), moved[site])
            correlations[site] = correlation(variables[site][1], estimate)
    cfg = runs.model.cfg
    data = xr.Dataset(
        variables,
        coords={"loop": np.arange(1, runs.n_loops + 1), "position": tokens, "model": checkpoint.label},
        attrs={"trained_loops": cfg.n_loops, "query_token": runs.query, "clean_pass": runs.clean_pass, **cost}
        | {f"correlation_{site}": value for site, value in correlations.items()},
    )
    data = data.assign_coords({axis: np.arange(data.sizes[axis]) for axis in ("layer", "head") if axis in data.sizes})
    return stamp(data, "patch", checkpoint, prompts, config)
