"""Baselines in closed form, batched over prompts: least squares, ridge, averaging, nearest neighbours.

Each predicts every label of a prompt from the points before it.
"""

from __future__ import annotations

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from loopprobe.tasks import Prompts

Predictions = Float[Tensor, "batch n_points"]


def least_squares(prompts: Prompts) -> Predictions:
    """Least squares, of least norm where the points are too few.

    w_k = X_k⁺ y_k with the pseudoinverse: the Bayes-optimal predictor of noiseless linear regression with
    w ~ N(0, I), since the posterior is then flat on the null space and centred at the least-norm solution
    (Garg et al., arXiv 2208.01066, section 3.1). Computed in float64 for prefixes of any rank; torch's faster
    ``lstsq(driver="gelsy")`` is wrong for batches with deficient ones (pytorch issue 187411).
    """
    xs, ys = prompts.xs.double(), prompts.ys.double()
    predictions = torch.zeros_like(ys)
    for k in range(1, xs.shape[1]):
        weights = torch.linalg.pinv(xs[:, :k]) @ ys[:, :k, None]
        predictions[:, k] = (xs[:, k, None] @ weights).flatten()
    return predictions


def ridge(prompts: Prompts, strength: float) -> Predictions:
    """Ridge regression.

    w_k = (X_kᵀX_k + strength · I)⁻¹ X_kᵀy_k; with strength = noise_std² this is the posterior mean, and so
    optimal, for w ~ N(0, I) and Gaussian noise (Hoerl and Kennard 1970; Bishop 2006, section 3.3.1).

    Args:
        prompts: the prompts.
        strength: above 0, in the units of x².
    """
    xs, ys = prompts.xs.double(), prompts.ys.double()
    outer = einsum(xs, xs, "batch point i, batch point j -> batch point i j").cumsum(1)
    identity = torch.eye(xs.shape[-1], dtype=xs.dtype, device=xs.device)
    weights = torch.linalg.solve(outer[:, :-1] + strength * identity, _moments(xs, ys))
    return _with_first(einsum(xs[:, 1:], weights, "batch point dim, batch point dim -> batch point"))


def averaging(prompts: Prompts) -> Predictions:
    """w_k = X_kᵀy_k / k: one step of gradient descent from zero (Garg et al., section 3.1)."""
    xs, ys = prompts.xs.double(), prompts.ys.double()
    weights = _moments(xs, ys) / torch.arange(1, xs.shape[1], device=xs.device)[:, None]
    return _with_first(einsum(xs[:, 1:], weights, "batch point dim, batch point dim -> batch point"))


def nearest_neighbours(prompts: Prompts, k: int = 3) -> Predictions:
    """The mean label of the k nearest points (of all, where there are fewer), by Euclidean distance."""
    xs, ys = prompts.xs.double(), prompts.ys.double()
    distances = torch.cdist(xs, xs)
    later = torch.ones_like(distances[0], dtype=torch.bool).triu()
    order = distances.masked_fill(later, torch.inf).argsort(dim=-1)[..., :k]  # [batch, point, k]
    labels = ys[:, None].expand_as(distances).gather(2, order)
    there = torch.arange(order.shape[-1], device=ys.device) < torch.arange(ys.shape[1], device=ys.device)[:, None]
    return (labels * there).sum(-1) / there.sum(-1).clamp_min(1)


def _moments(xs: Tensor, ys: Tensor) -> Float[Tensor, "batch n_points-1 n_dims"]:
    """X_kᵀy_k of every prefix with an example and a point after it."""
    return (xs * ys[..., None]).cumsum(1)[:, :-1]


def _with_first(later: Float[Tensor, "batch n_points-1"]) -> Predictions:
    """With zero for the first point, before which there is none."""
    return torch.nn.functional.pad(later, (1, 0))
