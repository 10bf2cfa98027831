"""Baselines in closed form, batched over prompts: least squares, ridge, averaging, nearest neighbours.

Each predicts every label of a prompt from the points before it.
"""

from __future__ import annotations

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from loopprobe.reference.algorithms import Problem, ridge_path
from loopprobe.support.statistics import double
from loopprobe.tasks import Prompts

Predictions = Float[Tensor, "batch n_points"]


def least_squares(prompts: Prompts) -> Predictions:
    """Predict by least squares, with the solution of least norm where there are too few points.

    The weights are w_k = X_k⁺ y_k with the pseudoinverse. This is the Bayes-optimal predictor of noiseless linear
    regression with w ~ N(0, I): the posterior is flat on the null space and centred at the least-norm solution
    (Garg et al., arXiv 2208.01066, section 3.1). It is computed in float64. Prompts whose prefixes all have full rank
    take one QR and one batch of Cholesky factors, and the others take the pseudoinverse. (torch's
    ``lstsq(driver="gelsy")`` is wrong for batches with deficient ranks: pytorch issue 187411.)
    """
    xs, ys = double(prompts.xs), double(prompts.ys)
    xs = xs[..., (xs != 0).any(1).any(0)]  # without the dimensions that are not filled
    if not xs.shape[-1]:
        return torch.zeros_like(ys)
    predictions, full_rank = _full_rank(xs, ys)
    if not full_rank.all():
        predictions[~full_rank] = _any_rank(xs[~full_rank], ys[~full_rank])
    return predictions


def _full_rank(xs: Tensor, ys: Tensor) -> tuple[Predictions, Bool[Tensor, " batch"]]:
    """Predict by least squares on every prefix; return the predictions and which prompts have full rank.

    The predictions of a prompt are right only where all of its prefixes have full rank.
    """
    n_points, n_dims = xs.shape[1:]
    few = min(n_points, n_dims)  # up to as many points as dimensions: X = RᵀQᵀ, w = Q (Rᵀ)⁻¹ y
    q, r = torch.linalg.qr(xs[:, :few].mT)
    diagonal = r.diagonal(dim1=-2, dim2=-1).abs()
    full_rank = diagonal.amin(-1) > 1e-9 * diagonal.amax(-1)
    safe = torch.where(full_rank[:, None, None], r, torch.eye(few, dtype=r.dtype, device=r.device))
    solved = torch.linalg.solve_triangular(safe.mT, ys[:, :few, None], upper=False)
    within = (q.mT @ xs.mT) * torch.ones(few, n_points, dtype=xs.dtype, device=xs.device).triu(1)
    predictions = (within.mT @ solved).squeeze(-1)
    if n_points > n_dims + 1:  # more points: the normal equations, solved again for their residual
        outer = einsum(xs, xs, "batch point i, batch point j -> batch point i j").cumsum(1)[:, n_dims:-1]
        factor, failed = torch.linalg.cholesky_ex(outer)
        full_rank &= (failed == 0).all(-1)
        seen = torch.ones(n_points, n_points, dtype=xs.dtype, device=xs.device).tril(-1)[n_dims + 1 :]
        weights = torch.zeros_like(factor[..., 0])
        for _ in range(2):
            left = (ys[:, None] - weights @ xs.mT) * seen  # [batch, prefix, point]
            weights = weights + torch.cholesky_solve((left @ xs)[..., None], factor).squeeze(-1)
        predictions[:, n_dims + 1 :] = (xs[:, n_dims + 1 :] * weights).sum(-1)
    return predictions, full_rank


def _any_rank(xs: Tensor, ys: Tensor) -> Predictions:
    predictions = torch.zeros_like(ys)
    for k in range(1, xs.shape[1]):
        weights = torch.linalg.pinv(xs[:, :k]) @ ys[:, :k, None]
        predictions[:, k] = (xs[:, k, None] @ weights).flatten()
    return predictions


def ridge(prompts: Prompts, strength: float) -> Predictions:
    """Predict by ridge regression.

    The weights are w_k = (X_kᵀX_k + strength · I)⁻¹ X_kᵀy_k. With strength = noise_std² they are the posterior mean for
    w ~ N(0, I) and Gaussian noise, and so optimal (Hoerl and Kennard 1970; Bishop 2006, section 3.3.1).

    Args:
        prompts: the prompts.
        strength: the strength of the penalty, above 0, in the units of x².
    """
    problem = Problem.of(prompts)
    *_, weights = ridge_path(problem, torch.tensor([strength]).to(problem.xs))
    return problem.predict(weights)


def averaging(prompts: Prompts) -> Predictions:
    """Predict with w_k = X_kᵀy_k / k, one step of gradient descent from zero (Garg et al., section 3.1)."""
    problem = Problem.of(prompts)
    return problem.predict(problem.first)


def nearest_neighbours(prompts: Prompts, k: int = 3) -> Predictions:
    """Predict the mean label of the k nearest points by Euclidean distance, or of all points where there are fewer."""
    xs, ys = double(prompts.xs), double(prompts.ys)
    distances = torch.cdist(xs, xs)
    later = torch.ones_like(distances[0], dtype=torch.bool).triu()
    order = distances.masked_fill(later, torch.inf).argsort(dim=-1)[..., :k]  # [batch, point, k]
    labels = ys[:, None].expand_as(distances).gather(2, order)
    exists = torch.arange(order.shape[-1], device=ys.device) < torch.arange(ys.shape[1], device=ys.device)[:, None]
    return (labels * exists).sum(-1) / exists.sum(-1).clamp_min(1)
