"""The function classes: how many random numbers determine a function, and the labels that it gives.

Linear, sparse linear, two-layer ReLU network and decision tree are those of Garg et al., "What can transformers
learn in-context?" (arXiv 2208.01066, sections 3 and 5), with its scales.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from loopprobe.config.schema import TaskConfig

Labels = Float[Tensor, "batch point"]
Weights = Float[Tensor, "batch dim"]


@dataclass(frozen=True)
class FunctionClass:
    """How functions are drawn and applied.

    Attributes:
        size: from the task and n_dims to how many standard normal numbers determine a function.
        label: from the task, inputs [batch, point, dim], these numbers [batch, size] and how many dimensions are
            active, to labels and, where the function is linear, its weights.
    """

    size: Callable[[TaskConfig, int], int]
    label: Callable[[TaskConfig, Tensor, Tensor, int], tuple[Labels, Weights | None]]


def _linear(task: TaskConfig, xs: Tensor, numbers: Tensor, active: int) -> tuple[Labels, Weights]:
    """y = w·x with w ~ N(0, I): E(y²) = n_dims."""
    return einsum(xs, numbers, "batch point dim, batch dim -> batch point"), numbers


def _sparse(task: TaskConfig, xs: Tensor, numbers: Tensor, active: int) -> tuple[Labels, Weights]:
    """Linear, with all but ``sparsity`` weights of the active dimensions set to zero: E(y²) = sparsity."""
    assert task.sparsity is not None
    weights, ranks = numbers.chunk(2, dim=1)
    chosen = ranks[:, :active].argsort(dim=1)[:, : task.sparsity]
    support = torch.zeros_like(weights).scatter(1, chosen, 1.0)
    return _linear(task, xs, weights * support, active)


def _tree(task: TaskConfig, xs: Tensor, numbers: Tensor, active: int) -> tuple[Labels, None]:
    """A full binary tree: every inner node asks whether one random coordinate is positive; leaves ~ N(0, 1)."""
    assert task.depth is not None
    inner = 2**task.depth - 1
    coordinates = (torch.special.ndtr(numbers[:, :inner]) * active).long().clamp_max(active - 1)
    node = torch.zeros(xs.shape[:2], dtype=torch.long)
    for _ in range(task.depth):
        asked = xs.gather(2, coordinates.gather(1, node)[..., None]).squeeze(2)
        node = 2 * node + 1 + (asked > 0).long()
    return numbers[:, inner:].gather(1, node - inner), None


def _relu(task: TaskConfig, xs: Tensor, numbers: Tensor, active: int) -> tuple[Labels, None]:
    """y = √(2 / hidden) · Σ_i v_i relu(u_i·x) with u_i, v_i ~ N(0, 1): E(y²) = n_dims."""
    assert task.hidden is not None
    inner, outer = numbers.split([task.hidden * xs.shape[-1], task.hidden], dim=1)  # type: ignore[no-untyped-call]
    inner = inner.reshape(len(inner), task.hidden, -1)
    before = einsum(xs, inner, "batch point dim, batch hidden dim -> batch point hidden")
    ys = einsum(before.relu(), outer, "batch point hidden, batch hidden -> batch point")
    return ys * (2 / task.hidden) ** 0.5, None


LINEAR = FunctionClass(lambda task, n_dims: n_dims, _linear)
CLASSES: dict[str, FunctionClass] = {
    "linear_regression": LINEAR,
    "noisy_linear_regression": LINEAR,
    "sparse_linear_regression": FunctionClass(lambda task, n_dims: 2 * n_dims, _sparse),
    "decision_tree": FunctionClass(lambda task, n_dims: 2 ** (cast(int, task.depth) + 1) - 1, _tree),
    "relu_network": FunctionClass(lambda task, n_dims: cast(int, task.hidden) * (n_dims + 1), _relu),
}
