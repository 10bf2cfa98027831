"""The best predictor that knows the task but not the function: exact where that can be computed.

The task tells it (``tasks.interface``): for a linear function it is least squares or ridge, and for a sparse one the
posterior mean over all supports. For tasks that tell the covariance of their labels it is the best predictor that is
linear in the labels: the posterior mean of a Gaussian process (Rasmussen and Williams 2006, section 2.2).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from loopprobe.config.schema import TaskConfig
from loopprobe.errors import LoopprobeError
from loopprobe.reference.baselines.closed import Predictions, averaging, least_squares, nearest_neighbours, ridge
from loopprobe.support.statistics import double
from loopprobe.tasks import PromptBatch, Prompts, TokenPrompts
from loopprobe.tasks.interface import Predictor
from loopprobe.tasks.protocol import Outputs

PREDICTORS: dict[str, Callable[..., Predictions]] = {
    "least_squares": least_squares, "ridge": ridge, "averaging": averaging, "nearest": nearest_neighbours,
    "sparse_bayes": lambda prompts, sparsity: sparse_bayes(prompts, sparsity),
}  # fmt: skip
UNKNOWN = "unknown"  # the optimum's name where the prompts do not say which task they are from


def optimum(prompts: PromptBatch, task: TaskConfig) -> tuple[str, Outputs]:
    """Return the name and the outputs of the best predictor that knows the task but not its function.

    Of a token task it is the right answer, of which it is certain.

    Args:
        prompts: the prompts; their origin says which task they are from.
        task: the task of the model.

    Returns:
        The name, and predictions in float64. Where the prompts are not known to be from the task, or the task does not
        tell, the best predictor is not known: the name is ``UNKNOWN`` and the predictions are NaN.
    """
    if isinstance(prompts, TokenPrompts):
        best = prompts.task.rules.optimum(prompts)
        return ("the right answer", prompts.certain()) if best is None else _named(best, prompts)
    assert isinstance(prompts, Prompts), "no other prompts belong to a task"
    if is_of(prompts, task):
        if (best := task.rules.optimum(prompts)) is not None:
            return _named(best, prompts)
        if (covariance := task.rules.covariance(prompts.xs)) is not None:
            return "Gaussian process", gaussian_process(prompts, covariance)
    return UNKNOWN, torch.full_like(double(prompts.ys), torch.nan)


def _named(best: Any, prompts: PromptBatch) -> tuple[str, Outputs]:
    """Return the name and the outputs of what a task calls its best predictor.

    Raises:
        LoopprobeError: there is no such predictor, or its outputs do not fit the prompts.
    """
    if isinstance(best, Tensor):
        best = "the optimum of the task", best
    if isinstance(best, tuple):
        words, outputs = best
        shape = prompts.tensors[-1].shape
        if outputs.shape[:2] != shape:
            raise LoopprobeError(
                f"optimum of the task gave {list(outputs.shape)} for answers {list(shape)}: return one output for each"
            )
        return words, outputs
    predictor = Predictor(best) if isinstance(best, str) else best
    if predictor.name not in PREDICTORS:
        raise LoopprobeError(f"no predictor is called {predictor.name!r}: choose from {', '.join(PREDICTORS)}")
    words = predictor.words or predictor.name.replace("_", " ")
    return words, PREDICTORS[predictor.name](prompts, **predictor.options)


def is_of(prompts: PromptBatch, task: TaskConfig) -> bool:
    """Check the origin of prompts: it must name the task, with noise or without, or a table of real data.

    Prompts that were made by hand have an empty origin and do not pass.
    """
    origin = prompts.origin
    if "data" in origin:
        return True
    if isinstance(prompts, TokenPrompts):
        return prompts.task == task
    if origin.get("task", "").removeprefix("noisy_") != task.name.removeprefix("noisy_"):
        return False
    if task.sha256 is not None:
        return bool(origin.get("parameters", {}) == (task.parameters or {}))
    fields = [name for name in ("sparsity", "depth", "hidden", "labels") if name in origin]
    return all(origin[name] == getattr(task, name) for name in fields)


def gaussian_process(
    prompts: Prompts, covariance: Float[Tensor, "batch n_points n_points"], jitter: float = 1e-6
) -> Predictions:
    """Return the posterior mean of every label given those before it, from one Cholesky factor for all prefixes.

    With K = LLᵀ and c = L⁻¹y, the mean of y_k given y_1 … y_{k-1} is Σ_{j<k} L_kj c_j.

    Args:
        prompts: the prompts.
        covariance: the covariance of the labels.
        jitter: the number added to the diagonal, relative to its mean.
    """
    ys = double(prompts.ys)
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    extra = jitter * diagonal.mean(-1, keepdim=True).expand_as(diagonal)
    factor = torch.linalg.cholesky(covariance + torch.diag_embed(extra))
    whitened = torch.linalg.solve_triangular(factor, ys[..., None], upper=False)
    return (factor.tril(-1) @ whitened).squeeze(-1)


def sparse_bayes(prompts: Prompts, sparsity: int) -> Predictions:
    """Return the predictions of the Bayes-optimal predictor of noiseless sparse linear regression.

    The prior is uniform over supports of ``sparsity`` coordinates, with N(0, 1) weights there. The posterior of a
    support S is proportional to its evidence N(y; 0, X_S X_Sᵀ), and the mean given S is least squares on S. From
    sparsity + 1 examples on, only one support explains the labels, and it determines the weights. A variance of 1e-8
    stands for the rounding of the labels. All C(n_dims, sparsity) supports are tried.
    """
    xs, ys = double(prompts.xs), double(prompts.ys)
    n_dims = xs.shape[-1]
    supports = torch.tensor(list(itertools.combinations(range(n_dims), min(sparsity, n_dims))), device=xs.device)
    parts = [_sparse_bayes(*part, supports) for part in zip(xs.split(32), ys.split(32), strict=True)]
    return torch.cat(parts)


def _sparse_bayes(xs: Tensor, ys: Tensor, supports: Tensor) -> Tensor:
    predictions = torch.zeros_like(ys)
    chosen = xs[:, :, supports].transpose(1, 2)  # [batch, support, point, coordinate of the support]
    last = min(supports.shape[1] + 4, ys.shape[1] - 1)  # three more than needed, for ill-conditioned prompts
    best = torch.zeros(len(ys), dtype=torch.long, device=ys.device)
    for k in range(1, last + 1):
        seen, labels = chosen[:, :, :k], ys[:, None, :k, None]
        noise = 1e-8 * torch.eye(k, dtype=ys.dtype, device=ys.device)
        factor = torch.linalg.cholesky(seen @ seen.transpose(-1, -2) + noise)
        solved = torch.cholesky_solve(labels.expand(-1, len(supports), -1, -1), factor)
        spread = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        evidence = -0.5 * ((labels * solved).sum((-1, -2)) + spread)
        weights = (seen.transpose(-1, -2) @ solved).squeeze(-1)
        answers = einsum(chosen[:, :, k], weights, "batch support i, batch support i -> batch support")
        predictions[:, k] = (evidence.softmax(-1) * answers).sum(-1)
        best = evidence.argmax(-1)
    support = torch.zeros_like(xs[:, 0]).scatter(1, supports[best], 1.0)
    after = least_squares(Prompts(xs * support[:, None], ys))
    predictions[:, last + 1 :] = after[:, last + 1 :]
    return predictions
