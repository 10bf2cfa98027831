"""Attention patterns, loop by loop and head by head: their targets, their shape, and their change between loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from loopprobe.probes.dataset import stamp, with_ends
from loopprobe.probes.loops import LoopsConfig
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.store.evaluate import chunk_size
from loopprobe.support.statistics import at_least_single, bootstrap_mean
from loopprobe.tasks import Prompts
from loopprobe.types import Progress

LAYERS_AT_ONCE = 20  # layers of all loops whose patterns of a full batch are held at once
SINK = 0.3  # mean mass on a token that makes it a sink, arXiv 2510.06477 and 2604.11791
Pattern = Float[Tensor, "... query key"]


def run(
    checkpoint: Checkpoint, prompts: Prompts, config: LoopsConfig, progress: Progress = lambda steps: steps
) -> xr.Dataset:
    """Measure the attention patterns of every loop, layer and head.

    Returns:
        A dataset with dims ``loop`` (from 1), ``layer``, ``head``, ``query``, ``key`` (tokens) and ``target``:

        * ``pattern [loop, layer, head, query, key]``: mean over prompts
        * ``mass [loop, layer, head, target]``: of the query's attention, on itself, on the labels and on the inputs of
          the examples, on the example whose input has the largest inner product with the query's, by size (its input
          and its label), and on the first token; ``uniform [target]``: what even attention would put there
        * ``mixing_score``, ``column_sum_concentration [loop, layer, head]``, ``sink_rate [loop, layer]``,
          ``matrix_entropy [loop, layer]`` of the residual stream after the layer: see the functions of these names
        * ``change [loop, layer, head]``: Frobenius norm of the pattern minus that of the loop before (missing in the
          first); ``distance [layer, head, loop, other_loop]``: of every pair of loops (arXiv 2604.11791)

        All but ``pattern``, ``distance`` and ``uniform`` with ``_low`` and ``_high``: 95 % bootstrap intervals over
        prompts; ``sink_rate``, a share of heads, is of the mean over prompts and has none.

    Raises:
        LoopprobeError: the prompts do not fit the model.
    """
    check(checkpoint, config)
    model = checkpoint.model
    device = checkpoint.device
    prompts = prompts.to(device)
    n_loops = config.loops or model.cfg.n_loops
    size = max(1, min(chunk_size(device), chunk_size(device) * LAYERS_AT_ONCE // (n_loops * model.cfg.n_layers)))
    sums: dict[str, Tensor] = {}
    each: dict[str, list[Tensor]] = {}
    measures: dict[str, Callable[[Pattern], Tensor]] = {
        "mixing_score": mixing_score,
        "column_sum_concentration": column_sum_concentration,
    }
    for xs, ys in progress(prompts.split(size)):
        _, cache = model.run_with_cache(xs, ys, n_loops, names=["pattern", "resid_post"])
        layers = range(model.cfg.n_layers)
        patterns = torch.stack([cache.stack("pattern", layer) for layer in layers], 1)  # loop layer batch head q k
        patterns = at_least_single(patterns.transpose(2, 3))  # loop layer head batch query key
        measured = {name: measure(patterns) for name, measure in measures.items()}
        measured["mass"] = query_mass(patterns, xs)
        change = (patterns[1:] - patterns[:-1]).flatten(-2).norm(dim=-1)
        measured["change"] = torch.cat([torch.full_like(patterns[:1, ..., 0, 0], torch.nan), change])
        streams = [at_least_single(cache.stack("resid_post", layer)) for layer in layers]
        measured["matrix_entropy"] = torch.stack([matrix_entropy(stream) for stream in streams], 1)
        for name, values in measured.items():
            each.setdefault(name, []).append(values.cpu())
        flat = rearrange(patterns, "loop layer head batch query key -> (layer head batch) loop (query key)")
        distance = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
        distance = distance.unflatten(0, (len(layers), model.cfg.n_heads, len(xs))).sum(2)
        for name, total in (("pattern", patterns.sum(3)), ("distance", distance)):
            sums[name] = sums.get(name, 0) + total
    return _dataset(checkpoint, prompts, config, n_loops, sums, {name: torch.cat(v, -1) for name, v in each.items()})


def check(checkpoint: Checkpoint, config: LoopsConfig, prompts: Prompts | None = None) -> None:
    """Accept every checkpoint: every model has attention."""


TARGETS = ("itself", "labels", "inputs", "nearest input", "nearest label", "first token")


def query_mass(
    patterns: Float[Tensor, "... batch pos pos"], xs: Float[Tensor, "batch n_points n_dims"]
) -> Float[Tensor, "... target batch"]:
    """Measure the mass of the query's attention on each of ``TARGETS``; itself, labels and inputs sum to one."""
    query = 2 * xs.shape[1] - 2
    row = patterns[..., query, : query + 1]
    if query == 0:
        return torch.stack([row[..., 0], *[torch.zeros_like(row[..., 0])] * 4, row[..., 0]], dim=-2)
    nearest = (xs[:, :-1] @ xs[:, -1, :, None]).squeeze(-1).abs().argmax(-1)
    prompt = torch.arange(len(xs), device=xs.device)
    masses = (
        row[..., query],
        row[..., 1:query:2].sum(-1),
        row[..., 0:query:2].sum(-1),
        row[..., prompt, 2 * nearest],
        row[..., prompt, 2 * nearest + 1],
        row[..., 0],
    )
    return torch.stack(masses, dim=-2)


def mixing_score(patterns: Pattern) -> Float[Tensor, ...]:
    """Mean entropy of the rows, each over its largest possible: 0 attends to one token, 1 to all alike.

    Mean row entropy as in arXiv 2510.06477; a causal row sees 1 to n tokens, so it is divided by the logarithm of
    how many, and the first, which has no choice, is left out.
    """
    n = patterns.shape[-1]
    most = torch.arange(2, n + 1, device=patterns.device, dtype=patterns.dtype).log()
    return (torch.special.entr(patterns[..., 1:, :]).sum(-1) / most).mean(-1)


def column_sum_concentration(patterns: Pattern) -> Float[Tensor, ...]:
    """1 − H(c) / log n of the shares c of the column sums: 0: all tokens are attended to alike; 1: one is.

    After arXiv 2510.06477. Causal attention that is even in every row has 0.098 at n = 62, not 0.
    """
    columns = patterns.mean(-2)
    return 1 - torch.special.entr(columns).sum(-1) / math.log(columns.shape[-1])


def matrix_entropy(states: Float[Tensor, "... pos d_model"]) -> Float[Tensor, ...]:
    """Entropy of the squared singular values divided by their sum, over the logarithm of how many there can be.

    0: all tokens' states on one line; 1: spread evenly over all directions (arXiv 2510.06477, matrix-based entropy).
    """
    squares = torch.linalg.svdvals(states).square()
    shares = squares / squares.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1) / math.log(min(states.shape[-2:]))


def sink_rate(mean_patterns: Float[Tensor, "... head query key"]) -> Float[Tensor, ...]:
    """Share of heads that have a sink: a token with a mean mass of at least 0.3, over the rows that see it.

    arXiv 2510.06477 and 2604.11791, for patterns that are means over prompts. Tokens that fewer than half of the
    rows see are left out: the last one has all of one row.
    """
    n = mean_patterns.shape[-1]
    seen_by = torch.arange(n, 0, -1, device=mean_patterns.device)
    mean = mean_patterns.sum(-2) / seen_by
    return (mean[..., seen_by >= n / 2] >= SINK).any(-1).to(mean.dtype).mean(-1)


def _dataset(
    checkpoint: Checkpoint,
    prompts: Prompts,
    config: LoopsConfig,
    n_loops: int,
    sums: dict[str, Tensor],
    each: dict[str, Tensor],
) -> xr.Dataset:
    cfg, n_pos = checkpoint.model.cfg, 2 * prompts.xs.shape[1]
    heads = ("loop", "layer", "head")
    pattern, distance = (sums[name].cpu() / len(prompts.xs) for name in ("pattern", "distance"))
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {
        "pattern": ((*heads, "query", "key"), pattern.numpy()),
        "distance": (("layer", "head", "loop", "other_loop"), distance.numpy()),
        "sink_rate": (heads[:2], sink_rate(pattern).numpy()),
    }
    dims = {"mass": (*heads, "target"), "matrix_entropy": heads[:2]}
    for name, values in each.items():
        variables |= with_ends(name, dims.get(name, heads), bootstrap_mean(values.numpy()))
    examples = n_pos // 2 - 1
    uniform = np.array([1, examples, examples, min(1, examples), min(1, examples), 1]) / (n_pos - 1)
    variables["uniform"] = (("target",), uniform)
    data = xr.Dataset(
        variables,
        coords={
            "loop": np.arange(1, n_loops + 1),
            "other_loop": np.arange(1, n_loops + 1),
            "layer": np.arange(cfg.n_layers),
            "head": np.arange(cfg.n_heads),
            "query": np.arange(n_pos),
            "key": np.arange(n_pos),
            "target": list(TARGETS),
            "model": checkpoint.label,
        },
        attrs={"trained_loops": cfg.n_loops},
    )
    return stamp(data, "attention", checkpoint, prompts, config)
