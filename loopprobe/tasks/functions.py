"""Function classes: each says how many random numbers determine a function, and which labels it gives.

The classes are linear functions, sparse linear functions, two-layer ReLU networks and decision trees. They and their
scales are from Garg et al., "What can transformers learn in-context?" (arXiv 2208.01066, sections 3 and 5).
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
    """A class of functions, with the rules by which they are drawn and applied.

    Attributes:
        size: returns the number of standard normal numbers that determine a function, given the task and n_dims.
        label: returns the labels and, where the function is linear, its weights. It is given the task, inputs
            [batch, point, dim], the random numbers [batch, size] and the number of active dimensions.
    """

    size: Callable[[TaskConfig, int], int]
    label: Callable[[TaskConfig, Tensor, Tensor, int], tuple[Labels, Weights | None]]


def _linear(task: TaskConfig, xs: Tensor, numbers: Tensor, active: int) -> tuple[Labels, Weights]:
    """Label the inputs with y = w·x, where w ~ N(0, I) and so E(y²) = n_dims."""
    return einsum(xs, numbers, "batch point dim, batch dim -> batch point"), numbers


def _sparse(task: TaskConfig, xs: Tensor, numbers: Tensor, active: int) -> tuple[Labels, Weights]:
    """Label the inputs with a linear function that has ``sparsity`` weights other than zero: E(y²) = sparsity."""
    assert task.sparsity is not None
    weights, ranks = numbers.chunk(2, dim=1)
    chosen = ranks[:, :active].argsort(dim=1)[:, : task.sparsity]
    support = torch.zeros_like(weights).scatter(1, chosen, 1.0)
    return _linear(task, xs, weights * support, active)


def _tree(task: TaskConfig, xs: Tensor, numbers: Tensor, active: int) -> tuple[Labels, None]:
    """Label the inputs with a full binary tree, whose leaves are drawn from N(0, 1).

    Every inner node asks for the sign of one random coordinate.
    """
    assert task.depth is not None
    inner = 2**task.depth - 1
    coordinates = (torch.special.ndtr(numbers[:, :inner]) * active).long().clamp_max(active - 1)
    node = torch.zeros(xs.shape[:2], dtype=torch.long)
    for _ in range(task.depth):
        asked = xs.gather(2, coordinates.gather(1, node)[..., None]).squeeze(2)
        node = 2 * node + 1 + (asked > 0).long()
    return numbers[:, inner:].gather(1, node - inner), None


def _relu(task: TaskConfig, xs: Tensor, numbers: Tensor, active: int) -> tuple[Labels, None]:
    """Label the inputs with y = √(2 / hidden) · Σ_i v_i relu(u_i·x), where u_i, v_i ~ N(0, 1): E(y²) = n_dims."""
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
