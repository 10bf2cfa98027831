"""The causal check of a decoder: does the prediction move as the decoder says when the state is edited along it?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from loopprobe.model.hook_points import LoopHookPoint
from loopprobe.model.interventions import Edit, edited
from loopprobe.model.looped import LoopedTransformer
from loopprobe.probes.dataset import with_ends
from loopprobe.probes.decoders import NETWORKS, targets_of, train_network
from loopprobe.support.statistics import at_least_single, bootstrap_ratio, double, to_numpy
from loopprobe.tasks import Prompts
from loopprobe.types import Progress

BATCH = 64  # prompts at once
EDITS = ("prediction, at the query", "w, at all tokens before it")
Change = Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch pos d_model"]]


def causal_check(
    model: LoopedTransformer,
    training: Prompts,
    prompts: Prompts,
    maps: Float[Tensor, "site pos affine 1"],
    n_loops: int,
    size: float = 0.3,
    progress: Progress = lambda steps: steps,
) -> xr.Dataset:
    """Edit the residual stream after the last layer of the middle loop, and follow the prediction at the query.

    Two edits, each the least one (in units of the states' covariance for the first, of their length for the second)
    that moves what is decoded by a chosen amount: the prediction, as ridge regression decodes it at the query's token,
    by ± ``size`` times the size of a label; the weights, as a network decodes them from the tokens before the query,
    by a random vector of length ``size``, which moves the prediction by its product with the query.

    Args:
        model: a looped model.
        training: prompts for the covariance and the network.
        prompts: others, on which the edits are made.
        maps: the maps of ``Ridge`` from states to the prediction of least squares.
        n_loops: iterations.
        size: the size of the edits.
        progress: wraps the training of the network, then the edited runs.

    Returns:
        A dataset over ``after`` (loops since the edit) and ``edit``: ``slope`` with ``slope_low`` and ``slope_high``,
        the slope of the change of the prediction over the change that the decoder predicts: one where the prediction
        moves as predicted, zero where it does not move; ``slope_random``, the same for edits of the same length in
        random directions. ``attrs["edited_loop"]`` is the loop that is edited, from 1.
    """
    layer, n_layers = model.cfg.n_layers - 1, model.cfg.n_layers
    loop = max(0, n_loops // 2 - 1)
    query = prompts.query
    generator = torch.Generator().manual_seed(0)

    def states(part: Prompts) -> Tensor:
        parts = []
        for xs, ys in part.split(BATCH):
            _, cache = model.run_with_cache(xs, ys, loop + 1, names="resid_post", layers=[layer], loops=[loop])
            parts.append(at_least_single(cache[loop, "resid_post", layer]))
        return torch.cat(parts)

    trained, tested = states(training), states(prompts)
    signs = torch.where(torch.rand(len(tested), generator=generator) < 0.5, -1.0, 1.0).to(tested)
    wanted = size * prompts.scale**0.5 * signs
    weights = maps[loop * n_layers + layer, query, :-1, 0].to(tested)
    pattern = torch.cov(trained[:, query].mT) @ weights
    along = torch.zeros_like(tested)
    along[:, query] = wanted[:, None] * pattern / (weights @ pattern)

    targets = targets_of(training, [1])["w, least squares"][:, :, query]
    decode = train_network(trained[None, :, :query], targets, NETWORKS[1], progress=progress)
    shift = torch.randn(len(tested), prompts.xs.shape[-1], generator=generator).to(tested)
    shift *= size / shift.norm(dim=-1, keepdim=True)
    at_tokens = torch.zeros_like(tested)
    at_tokens[:, :query] = _least_edit(decode, tested[:, :query], shift)
    predicted = torch.stack([wanted, (shift * prompts.xs[:, -1].to(shift)).sum(-1)])

    clean = _answers(model, prompts, n_loops, None, loop, layer)
    changes: list[tuple[Tensor, Tensor]] = []  # of the states, and as predicted: each edit, then a random one
    for i, edit in enumerate((along, at_tokens)):
        noise = torch.randn(edit.shape, generator=generator).to(edit) * (edit != 0)
        noise *= edit.flatten(1).norm(dim=1)[:, None, None] / noise.flatten(1).norm(dim=1)[:, None, None]
        changes += [(edit, predicted[i]), (noise, predicted[i])]
    slopes: list[np.ndarray] = []
    for change, expected in progress(changes):
        moved = _answers(model, prompts, n_loops, change, loop, layer) - clean
        product, square = to_numpy(moved * expected.to(moved.device)), to_numpy(expected.square())
        slopes.append(np.array(bootstrap_ratio(product, square)))
    of_edits, null = np.stack(slopes[::2], axis=1), np.stack(slopes[1::2], axis=1)  # [estimate and ends, edit, after]
    data = xr.Dataset(
        with_ends("slope", ("edit", "after"), (of_edits[0], of_edits[1], of_edits[2]))
        | {"slope_random": (("edit", "after"), null[0])},
        coords={"edit": list(EDITS), "after": np.arange(of_edits.shape[-1])},
    )
    data.attrs["edited_loop"] = loop + 1
    return data


def _answers(
    model: LoopedTransformer, prompts: Prompts, n_loops: int, change: Tensor | None, loop: int, layer: int
) -> Float[Tensor, "after batch"]:
    """Predictions at the query from the edited loop on."""
    answers = []
    for start in range(0, len(prompts.ys), BATCH):
        batch = prompts[start : start + BATCH]
        part = None if change is None else change[start : start + BATCH]
        with torch.no_grad(), edited(model, "resid_post", _plus(part), loops=[loop], layers=[layer]):
            answers.append(model(*batch, n_loops)[loop:, :, -1])
    return double(torch.cat(answers, dim=1))


def _plus(change: Tensor | None) -> Edit:
    """An edit that adds a change to the first tokens; None changes nothing."""

    def edit(x: Tensor, hook: LoopHookPoint) -> Tensor:
        if change is None:
            return x
        return x + torch.nn.functional.pad(change, (0, 0, 0, x.shape[1] - change.shape[1])).to(x)

    return edit


def _least_edit(
    decode: Callable[[Tensor], Tensor], states: Float[Tensor, "batch pos d_model"], shift: Float[Tensor, "batch dim"]
) -> Float[Tensor, "batch pos d_model"]:
    """Compute the shortest edit that moves the decoded values by ``shift``, to first order: Jᵀ (J Jᵀ)⁻¹ shift."""
    leaf = states.clone().requires_grad_()
    with torch.enable_grad():
        read = decode(leaf[None])[0]
        rows = [torch.autograd.grad(read[:, j].sum(), leaf, retain_graph=True)[0] for j in range(read.shape[-1])]
    jacobian = double(torch.stack(rows, dim=1).flatten(2))  # [batch, dim, pos and d_model]
    solved = torch.linalg.solve(jacobian @ jacobian.mT, double(shift)[..., None])
    return (jacobian.mT @ solved).reshape(states.shape).to(states)
