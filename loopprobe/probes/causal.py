"""The causal check of a decoder: does the prediction move as the decoder says when the state is edited along it?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from loopprobe.interventions import Edit, edited
from loopprobe.model import LoopedTransformer
from loopprobe.probes.decoders import NETWORKS, targets_of, train_network
from loopprobe.results import with_ends
from loopprobe.statistics import bootstrap_ratio
from loopprobe.tasks import Prompts

EDITS = ("prediction, at the query", "w, at all tokens before it")
Change = Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch pos d_model"]]


def causal_check(
    model: LoopedTransformer,
    training: Prompts,
    prompts: Prompts,
    maps: Float[Tensor, "site pos d_model_and_one 1"],
    n_loops: int,
    size: float = 0.3,
) -> xr.Dataset:
    """Edit the residual stream after the last layer of the middle loop, and follow the prediction at the query.

    Two edits, each the least one (in units of the states' covariance for the first, of their length for the second)
    that moves what is decoded by a chosen amount: the prediction, as ridge regression decodes it at the query's token,
    by ± ``size`` · √E(y²); the weights, as a network decodes them from the tokens before the query, by a random
    vector of length ``size``, which moves the prediction by its product with the query.

    Args:
        model: a looped model.
        training: prompts for the covariance and the network.
        prompts: others, on which the edits are made.
        maps: from ``Ridge``, of the prediction of least squares.
        n_loops: iterations.
        size: of the edits.

    Returns:
        Over ``after`` (loops since the edit) and ``edit``: ``slope`` with ``slope_low`` and ``slope_high``: of the
        change of the prediction over the change that the decoder says, one where it moves as predicted, zero where it
        does not move; ``slope_random``: of edits of the same length in random directions. ``attrs["edited_loop"]``.
    """
    layer, n_layers = model.cfg.n_layers - 1, model.cfg.n_layers
    loop = max(0, n_loops // 2 - 1)
    query = 2 * prompts.ys.shape[1] - 2
    generator = torch.Generator().manual_seed(0)

    def states(part: Prompts) -> Tensor:
        kept = []
        for xs, ys in part.split(64):
            _, cache = model.run_with_cache(xs, ys, loop + 1, names="resid_post", layers=[layer], loops=[loop])
            kept.append(cache[loop, "resid_post", layer])
        return torch.cat(kept)

    trained, own = states(training), states(prompts)
    signs = torch.where(torch.rand(len(own), generator=generator) < 0.5, -1.0, 1.0).to(own)
    wanted = size * prompts.scale**0.5 * signs
    weights = maps[loop * n_layers + layer, query, :-1, 0].to(own)
    pattern = torch.cov(trained[:, query].mT) @ weights
    along = torch.zeros_like(own)
    along[:, query] = wanted[:, None] * pattern / (weights @ pattern)

    targets = targets_of(training, [1])["w, least squares"][:, :, query]
    decode = train_network(trained[None, :, :query], targets, NETWORKS[1])
    shift = torch.randn(len(own), prompts.xs.shape[-1], generator=generator).to(own)
    shift *= size / shift.norm(dim=-1, keepdim=True)
    at_tokens = torch.zeros_like(own)
    at_tokens[:, :query] = _least_edit(decode, own[:, :query], shift)
    says = torch.stack([wanted, (shift * prompts.xs[:, -1]).sum(-1)])

    clean = _answers(model, prompts, n_loops, None, loop, layer)
    slopes: list[np.ndarray] = []
    random: list[np.ndarray] = []
    for i, edit in enumerate((along, at_tokens)):
        noise = torch.randn(edit.shape, generator=generator).to(edit) * (edit != 0)
        noise *= edit.flatten(1).norm(dim=1)[:, None, None] / noise.flatten(1).norm(dim=1)[:, None, None]
        for change, kept in ((edit, slopes), (noise, random)):
            moved = _answers(model, prompts, n_loops, change, loop, layer) - clean
            product, square = (moved * says[i]).cpu().numpy(), says[i].square().cpu().numpy()
            kept.append(np.array(bootstrap_ratio(product, square)))
    found, null = np.stack(slopes, axis=1), np.stack(random, axis=1)  # [estimate and ends, edit, after]
    data = xr.Dataset(
        with_ends("slope", ("edit", "after"), (found[0], found[1], found[2]))
        | {"slope_random": (("edit", "after"), null[0])},
        coords={"edit": list(EDITS), "after": np.arange(found.shape[-1])},
    )
    data.attrs["edited_loop"] = loop + 1
    return data


def _answers(
    model: LoopedTransformer, prompts: Prompts, n_loops: int, change: Tensor | None, loop: int, layer: int
) -> Float[Tensor, "after batch"]:
    """Predictions at the query from the edited loop on."""
    found = []
    for start in range(0, len(prompts.ys), 64):
        batch = prompts[start : start + 64]
        part = None if change is None else change[start : start + 64]
        with torch.no_grad(), edited(model, "resid_post", _plus(part), loops=[loop], layers=[layer]):
            found.append(model(*batch, n_loops)[loop:, :, -1])
    return torch.cat(found, dim=1).double()


def _plus(change: Tensor | None) -> Edit:
    return lambda x, hook: (
        x if change is None else x + torch.nn.functional.pad(change, (0, 0, 0, x.shape[1] - change.shape[1]))
    )


def _least_edit(
    decode: Callable[[Tensor], Tensor], states: Float[Tensor, "batch pos d_model"], shift: Float[Tensor, "batch dim"]
) -> Float[Tensor, "batch pos d_model"]:
    """The edit of least length that moves what is decoded by ``shift``, to first order: Jᵀ (J Jᵀ)⁻¹ shift."""
    leaf = states.clone().requires_grad_()
    with torch.enable_grad():
        read = decode(leaf[None])[0]
        rows = [torch.autograd.grad(read[:, j].sum(), leaf, retain_graph=True)[0] for j in range(read.shape[-1])]
    jacobian = torch.stack(rows, dim=1).flatten(2).double()  # [batch, dim, pos and d_model]
    solved = torch.linalg.solve(jacobian @ jacobian.mT, shift.double()[..., None])
    return (jacobian.mT @ solved).reshape(states.shape).to(states)
