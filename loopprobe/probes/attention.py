"""Attention patterns, loop by loop and head by head: their targets, their shape, and their change between loops."""

from __future__ import annotations

import math

import numpy as np
import torch
import xarray as xr
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from loopprobe.probes.dataset import stamp, with_ends
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.probes.loops import LoopsConfig, last_token
from loopprobe.store.evaluate import chunk_size
from loopprobe.store.subject import Subject
from loopprobe.support.statistics import at_least_single, bootstrap_mean
from loopprobe.tasks import PromptBatch
from loopprobe.types import Progress

LAYERS_AT_ONCE = 20  # layers of all loops whose patterns of a full batch are held at once
SINK = 0.3  # mean mass on a token that makes it a sink, arXiv 2510.06477 and 2604.11791
Pattern = Float[Tensor, "... query key"]


def run(
    subject: Subject, prompts: PromptBatch, config: LoopsConfig, progress: Progress = lambda steps: steps
) -> xr.Dataset:
    """Measure the attention patterns of every loop, layer and head.

    Returns:
        A dataset with dims ``loop`` (from 1), ``layer``, ``head``, ``query``, ``key`` (tokens) and ``target``:

        * ``pattern [loop, layer, head, query, key]``: mean over prompts
        * ``mass [loop, layer, head, target]``: of the query's attention, on itself, on every group of tokens that the
          prompts name (``PromptBatch.targets``), and on the first token; ``uniform [target]``: what even attention
          would put there
        * ``mixing_score``, ``column_sum_concentration [loop, layer, head]``, ``sink_rate [loop, layer]``,
          ``matrix_entropy [loop, layer]`` of the residual stream after the layer: see the functions of these names
        * ``change [loop, layer, head]``: Frobenius norm of the pattern minus that of the loop before (missing in the
          first); ``distance [layer, head, loop, other_loop]``: of every pair of loops (arXiv 2604.11791)

        All but ``pattern``, ``distance`` and ``uniform`` with ``_low`` and ``_high``: 95 % bootstrap intervals over
        prompts; ``sink_rate``, a share of heads, is of the mean over prompts and has none.

    Raises:
        LoopprobeError: the prompts do not fit the model.
    """
    check(subject, config, prompts)
    model = subject.model
    device = subject.device
    prompts = prompts.to(device)
    n_loops = config.loops or subject.loops_of(prompts)
    size = max(1, min(chunk_size(device), chunk_size(device) * LAYERS_AT_ONCE // (n_loops * model.sizes.n_layers)))
    sums: dict[str, Tensor] = {}
    each: dict[str, list[Tensor]] = {}
    causal = "causal" in model.supports
    for batch in progress(prompts.split(size)):
        _, cache = model.run_with_cache(
            *batch.inputs, n_loops=n_loops, keep_loops=1, read_at=[batch.query], names=["pattern", "resid_post"]
        )
        layers = range(model.sizes.n_layers)
        patterns = torch.stack([cache.stack("pattern", layer) for layer in layers], 1)  # loop layer batch head q k
        patterns = at_least_single(patterns.transpose(2, 3))  # loop layer head batch query key
        measured = {"mixing_score": mixing_score(patterns, causal=causal)}
        measured["column_sum_concentration"] = column_sum_concentration(patterns)
        measured["mass"] = query_mass(patterns, batch)
        change = (patterns[1:] - patterns[:-1]).flatten(-2).norm(dim=-1)
        measured["change"] = torch.cat([torch.full_like(patterns[:1, ..., 0, 0], torch.nan), change])
        streams = [at_least_single(cache.stack("resid_post", layer)) for layer in layers]
        measured["matrix_entropy"] = torch.stack([matrix_entropy(stream) for stream in streams], 1)
        for name, values in measured.items():
            each.setdefault(name, []).append(values.cpu())
        flat = rearrange(patterns, "loop layer head batch query key -> (layer head batch) loop (query key)")
        distance = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
        distance = distance.unflatten(0, (len(layers), model.sizes.n_heads, batch.n_prompts)).sum(2)
        for name, total in (("pattern", patterns.sum(3)), ("distance", distance)):
            sums[name] = sums.get(name, 0) + total
    return _dataset(subject, prompts, config, n_loops, sums, {name: torch.cat(v, -1) for name, v in each.items()})


def check(subject: Subject, config: LoopsConfig, prompts: PromptBatch) -> None:
    """Accept all prompts: a model that has patterns has them for every prompt."""


def target_groups(prompts: PromptBatch) -> dict[str, Float[Tensor, "batch token"]]:
    """The groups of tokens whose mass is measured, by name; they may overlap."""
    token = torch.arange(prompts.n_tokens, device=prompts.inputs[0].device).expand(prompts.n_prompts, -1)
    ends = {name: (token == at).float() for name, at in (("itself", prompts.query), ("first token", 0))}
    return {"itself": ends["itself"], **prompts.targets(), "first token": ends["first token"]}


def query_mass(patterns: Float[Tensor, "... batch pos pos"], prompts: PromptBatch) -> Float[Tensor, "... target batch"]:
    """Measure the mass of the query's attention on each of ``target_groups``."""
    row = patterns[..., prompts.query, :]
    groups = torch.stack(list(target_groups(prompts).values())).to(row)
    return einsum(row, groups, "... batch key, target batch key -> ... target batch")


def mixing_score(patterns: Pattern, *, causal: bool = True) -> Float[Tensor, ...]:
    """Mean entropy of the rows, each over its largest possible: 0 attends to one token, 1 to all alike.

    Mean row entropy as in arXiv 2510.06477; a causal row sees 1 to n tokens, so it is divided by the logarithm of
    how many, and the first, which has no choice, is left out.
    """
    n = patterns.shape[-1]
    if not causal:
        return torch.special.entr(patterns).sum(-1).mean(-1) / math.log(n)
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


def sink_rate(mean_patterns: Float[Tensor, "... head query key"], *, causal: bool = True) -> Float[Tensor, ...]:
    """Share of heads that have a sink: a token with a mean mass of at least 0.3, over the rows that see it.

    arXiv 2510.06477 and 2604.11791, for patterns that are means over prompts. Tokens that fewer than half of the
    rows see are left out: the last one has all of one row.
    """
    n = mean_patterns.shape[-1]
    seen_by = torch.arange(n, 0, -1, device=mean_patterns.device) if causal else torch.full((n,), n).to(mean_patterns)
    mean = mean_patterns.sum(-2) / seen_by
    return (mean[..., seen_by >= n / 2] >= SINK).any(-1).to(mean.dtype).mean(-1)


def _dataset(
    subject: Subject,
    prompts: PromptBatch,
    config: LoopsConfig,
    n_loops: int,
    sums: dict[str, Tensor],
    each: dict[str, Tensor],
) -> xr.Dataset:
    sizes, n_pos = subject.model.sizes, prompts.n_tokens
    heads = ("loop", "layer", "head")
    pattern, distance = (sums[name].cpu() / prompts.n_prompts for name in ("pattern", "distance"))
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {
        "pattern": ((*heads, "query", "key"), pattern.numpy()),
        "distance": (("layer", "head", "loop", "other_loop"), distance.numpy()),
        "sink_rate": (heads[:2], sink_rate(pattern, causal="causal" in subject.model.supports).numpy()),
    }
    dims = {"mass": (*heads, "target"), "matrix_entropy": heads[:2]}
    for name, values in each.items():
        variables |= with_ends(name, dims.get(name, heads), bootstrap_mean(values.numpy()))
    groups = target_groups(prompts)
    seen = last_token(subject, prompts) + 1
    variables["uniform"] = (
        ("target",),
        torch.stack(list(groups.values())).cpu().double().sum(-1).mean(-1).numpy() / seen,
    )
    data = xr.Dataset(
        variables,
        coords={
            "loop": np.arange(1, n_loops + 1),
            "other_loop": np.arange(1, n_loops + 1),
            "layer": np.arange(sizes.n_layers),
            "head": np.arange(sizes.n_heads),
            "query": np.arange(n_pos),
            "key": np.arange(n_pos),
            "target": list(groups),
            "model": subject.label,
        },
    )
    return stamp(data, "attention", subject, prompts, config)


PROBE = Probe(
    "attention",
    LoopsConfig,
    run,
    check,
    Shown(
        "attention:attention_figures",
        "inside:attention_table",
        quantities=(Quantity("mass", unit="attention of the query"),),
    ),
    needs=frozenset({"pattern"}),
)
