"""Baselines that are fitted prefix by prefix: three from scikit-learn, and a small network."""

from __future__ import annotations

import importlib.util
import multiprocessing
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from einops import einsum, repeat
from torch import Tensor

from loopprobe.errors import LoopprobeError
from loopprobe.reference.baselines.closed import Predictions
from loopprobe.support.statistics import double, float64_device, to_numpy
from loopprobe.tasks import Prompts
from loopprobe.types import Progress


def lasso(prompts: Prompts, progress: Progress = lambda steps: steps, strength: float = 0.01) -> Predictions:
    """Predict by Lasso without an intercept, which minimises ‖y − Xw‖² / 2k + strength · ‖w‖₁ (as in scikit-learn)."""
    from sklearn.linear_model import Lasso

    return _fit_prefixes(prompts, lambda: Lasso(alpha=strength, fit_intercept=False), progress)


def decision_tree(prompts: Prompts, progress: Progress = lambda steps: steps) -> Predictions:
    """Predict by a regression tree, grown greedily until every leaf is pure (CART)."""
    from sklearn.tree import DecisionTreeRegressor

    return _fit_prefixes(prompts, lambda: DecisionTreeRegressor(random_state=0), progress)


def boosting(prompts: Prompts, progress: Progress = lambda steps: steps) -> Predictions:
    """Predict by gradient boosting with 100 trees of depth 3 (scikit-learn's defaults)."""
    from sklearn.ensemble import GradientBoostingRegressor

    return _fit_prefixes(prompts, lambda: GradientBoostingRegressor(random_state=0), progress)


def network(
    prompts: Prompts,
    progress: Progress = lambda steps: steps,
    hidden: int = 100,
    steps: int = 400,
    learning_rate: float = 5e-3,
) -> Predictions:
    """Predict by a two-layer ReLU network, which Adam fits to all points of a prefix.

    The networks of a batch are fitted at once. This is the baseline of Garg et al. (arXiv 2208.01066, section 5) for
    functions that are such networks.

    Args:
        prompts: the prompts.
        progress: a wrapper that shows the progress through the batches.
        hidden, steps, learning_rate: the width, training steps and learning rate of each network.
    """
    parts = prompts.to("cpu").to(torch.float32).split(16)
    predictions = torch.cat([_networks(part, hidden, steps, learning_rate) for part in progress(parts)])
    return predictions.to(prompts.ys.device, torch.promote_types(prompts.ys.dtype, torch.float32))


def _networks(prompts: Prompts, hidden: int, steps: int, learning_rate: float) -> Tensor:
    xs, ys = prompts
    n_prompts, n_points, n_dims = xs.shape
    seen = torch.ones(n_points, n_points).tril(-1)  # [prefix, point]
    weight = seen / seen.sum(-1, keepdim=True).clamp_min(1)
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(n_dims, hidden, generator=generator) * n_dims**-0.5
    last = torch.randn(hidden, generator=generator) * hidden**-0.5
    start = (first, torch.zeros(hidden), last, torch.zeros(()))
    parameters = [
        repeat(value, "... -> prompt prefix ...", prompt=n_prompts, prefix=n_points).clone().requires_grad_()
        for value in start
    ]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    with torch.enable_grad():
        for _ in range(steps):
            w, b, v, c = parameters
            inside = einsum(xs, w, "prompt point dim, prompt prefix dim hidden -> prompt prefix point hidden")
            inside = (inside + b[:, :, None]).relu()
            answers = einsum(inside, v, "prompt prefix point hidden, prompt prefix hidden -> prompt prefix point")
            answers = answers + c[..., None]
            loss = ((answers - ys[:, None]).square() * weight).sum()  # each network has its own parameters
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    predictions = answers.detach().diagonal(dim1=1, dim2=2).clone()
    predictions[:, 0] = 0
    return predictions


def _fit_prefixes(prompts: Prompts, make: Callable[[], Any], progress: Progress) -> Predictions:
    import joblib

    xs, ys = to_numpy(double(prompts.xs)), to_numpy(double(prompts.ys))
    tasks = (joblib.delayed(_fit_one)(x, y, make) for x, y in zip(xs, ys, strict=True))
    in_worker = multiprocessing.parent_process() is not None  # processes of its own would keep it for minutes
    fitted = joblib.Parallel(n_jobs=1 if in_worker else -1, return_as="generator", batch_size=8)(tasks)
    rows = [next(fitted) for _ in progress(range(len(xs)))]
    return torch.from_numpy(np.stack(rows)).to(float64_device(prompts.ys.device))


def _fit_one(xs: np.ndarray, ys: np.ndarray, make: Callable[[], Any]) -> np.ndarray:
    predictions = np.zeros_like(ys)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lasso warns where coordinate descent ends before its tolerance
        for k in range(1, len(ys)):
            predictions[k] = make().fit(xs[:k], ys[:k]).predict(xs[k : k + 1]).item()
    return predictions


def require_sklearn() -> None:
    """Raise LoopprobeError where scikit-learn is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise LoopprobeError("these baselines need scikit-learn: pip install 'loopprobe[baselines]'")
