"""Algorithms that a trained model is compared with, each on every prefix of a prompt."""

from __future__ import annotations

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from loopprobe.config import TaskConfig
from loopprobe.tasks import Prompts


def least_squares(prompts: Prompts) -> Float[Tensor, "batch n_points"]:
    """Predict every label by least squares on the points before it, of least norm where they are too few.

    w_k = X_k⁺ y_k with the pseudoinverse: the Bayes-optimal predictor of noiseless linear regression with
    w ~ N(0, I), since the posterior is then flat on the null space and centred at the least-norm solution
    (Garg et al., arXiv 2208.01066, section 3.1). Computed in float64.
    """
    xs, ys = prompts.xs.double(), prompts.ys.double()
    predictions = torch.zeros_like(ys)
    for k in range(1, xs.shape[1]):
        weights = torch.linalg.pinv(xs[:, :k]) @ ys[:, :k, None]
        predictions[:, k] = (xs[:, k, None] @ weights).flatten()
    return predictions


def ridge(prompts: Prompts, strength: float) -> Float[Tensor, "batch n_points"]:
    """Predict every label by ridge regression on the points before it.

    w_k = (X_kᵀX_k + strength · I)⁻¹ X_kᵀy_k; with strength = noise_std² this is the posterior mean, and so
    optimal, for w ~ N(0, I) and Gaussian noise (Hoerl and Kennard 1970; Bishop 2006, section 3.3.1).

    Args:
        prompts: the prompts.
        strength: above 0, in the units of x².
    """
    xs, ys = prompts.xs.double(), prompts.ys.double()
    outer = einsum(xs, xs, "batch point i, batch point j -> batch point i j").cumsum(1)
    moments = (xs * ys[..., None]).cumsum(1)
    identity = torch.eye(xs.shape[-1], dtype=xs.dtype, device=xs.device)
    weights = torch.linalg.solve(outer[:, :-1] + strength * identity, moments[:, :-1])
    later = einsum(xs[:, 1:], weights, "batch point dim, batch point dim -> batch point")
    return torch.cat([torch.zeros_like(ys[:, :1]), later], dim=1)


def optimum(prompts: Prompts, task: TaskConfig) -> tuple[str, Float[Tensor, "batch n_points"]]:
    """Name and predictions of the best predictor that knows the task but not its weights."""
    assert task.noise_std is not None
    if task.noise_std == 0:
        return "least squares", least_squares(prompts)
    return f"ridge ({task.noise_std:g}²)", ridge(prompts, task.noise_std**2)
