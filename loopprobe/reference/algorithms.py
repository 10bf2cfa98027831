"""Iterative algorithms for linear regression in context, step by step and for every prefix of every prompt at once.

With S = XᵀX / k and m = Xᵀy / k of the k points of a prefix, all look for the w with S w = m from w = 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from loopprobe.support.statistics import double
from loopprobe.tasks import Prompts

Weights = Float[Tensor, "batch prefix dim"]


@dataclass(frozen=True)
class Problem:
    """The least-squares problem of every prefix; prefix k holds the k points before point k.

    Attributes:
        xs: the inputs, float64.
        first: Xᵀy / k; zero for the empty prefix.
    """

    xs: Float[Tensor, "batch prefix dim"]
    first: Weights

    @classmethod
    def of(cls, prompts: Prompts) -> Problem:
        """The problem of the prompts, in float64; on the CPU where their device has no float64."""
        xs, ys = double(prompts.xs), double(prompts.ys)
        return cls(xs, _of_prefixes(xs * ys[..., None]))

    @functools.cached_property
    def second(self) -> Float[Tensor, "batch prefix dim dim"]:
        """XᵀX / k; zero for the empty prefix."""
        return _of_prefixes(einsum(self.xs, self.xs, "batch point i, batch point j -> batch point i j"))

    def gradient(self, w: Weights) -> Weights:
        """The gradient of half the mean squared error with respect to the weights."""
        return einsum(self.second, w, "batch prefix i j, batch prefix j -> batch prefix i") - self.first

    def solution(self) -> Weights:
        """S⁺ m: least squares, of least norm where the points are too few."""
        return (torch.linalg.pinv(self.second, hermitian=True) @ self.first[..., None]).squeeze(-1)

    def predict(self, w: Weights) -> Float[Tensor, "batch prefix"]:
        """Predict the point after each prefix."""
        return (self.xs * w).sum(-1)


def _of_prefixes(values: Float[Tensor, "batch point *dims"]) -> Float[Tensor, "batch prefix *dims"]:
    """The mean of the values before each point; zero before the first."""
    counts = torch.arange(1, values.shape[1], dtype=values.dtype, device=values.device)
    means = torch.zeros_like(values)
    means[:, 1:] = values.cumsum(1)[:, :-1] / counts.reshape(-1, *[1] * (values.ndim - 2))
    return means


def gradient_descent(problem: Problem, steps: int, rate: float | Tensor) -> Iterator[Weights]:
    """w ← w − rate · ∇: the iterates from w = 0 on, steps + 1 of them.

    Args:
        problem: the problem.
        steps: how many.
        rate: a number, or one a prefix [batch, prefix, 1].
    """
    w = torch.zeros_like(problem.first)
    for _ in range(steps):
        yield w
        w = w - rate * problem.gradient(w)
    yield w


def best_rate(problem: Problem) -> Float[Tensor, "batch prefix 1"]:
    """2 / (largest + smallest eigenvalue that is not zero): the fixed rate of fastest worst-case convergence."""
    eigenvalues = torch.linalg.eigvalsh(problem.second)
    largest = eigenvalues[..., -1].clamp_min(1e-12)
    rank_deficient = eigenvalues < 1e-9 * largest[..., None]
    smallest = eigenvalues.masked_fill(rank_deficient, torch.inf).amin(-1)
    smallest = torch.where(smallest.isfinite(), smallest, largest)
    return (2 / (largest + smallest))[..., None]


def momentum(problem: Problem, steps: int, rate: float | Tensor, decay: float | Tensor) -> Iterator[Weights]:
    """Heavy ball (Polyak 1964): v ← decay · v − rate · ∇, w ← w + v."""
    w = torch.zeros_like(problem.first)
    velocity = torch.zeros_like(w)
    for _ in range(steps):
        yield w
        velocity = decay * velocity - rate * problem.gradient(w)
        w = w + velocity
    yield w


def preconditioned(problem: Problem, steps: int, matrix: Float[Tensor, "dim dim"]) -> Iterator[Weights]:
    """w ← w − P ∇ with one matrix for all prompts (Ahn et al. 2023; arXiv 2410.08292)."""
    w = torch.zeros_like(problem.first)
    for _ in range(steps):
        yield w
        w = w - problem.gradient(w) @ matrix.T
    yield w


def newton(problem: Problem, steps: int) -> Iterator[Weights]:
    """Newton's iteration for the inverse: M ← 2M − M S M from M = S / λ_max², w = M m (Fu et al., arXiv 2310.17086).

    It converges to the pseudoinverse, and doubles the correct digits of M in a step. The first iterate is w = 0.
    """
    yield torch.zeros_like(problem.first)
    largest = torch.linalg.eigvalsh(problem.second)[..., -1].clamp_min(1e-12)
    inverse = problem.second / largest[..., None, None] ** 2
    for _ in range(steps):
        yield einsum(inverse, problem.first, "batch prefix i j, batch prefix j -> batch prefix i")
        inverse = 2 * inverse - inverse @ problem.second @ inverse


def conjugate_gradients(problem: Problem, steps: int) -> Iterator[Weights]:
    """Conjugate gradients on S w = m (Hestenes and Stiefel 1952): exact after rank(S) steps, and then at rest."""
    w = torch.zeros_like(problem.first)
    residual = problem.first
    direction = residual
    size = residual.square().sum(-1, keepdim=True)
    floor = 1e-24 * size
    for _ in range(steps):
        yield w
        image = problem.gradient(direction) + problem.first
        curvature = (direction * image).sum(-1, keepdim=True)
        going = (size > floor) & (curvature > 0)
        rate = torch.where(going, size / curvature.clamp_min(1e-300), 0)
        w = w + rate * direction
        residual = residual - rate * image
        new = residual.square().sum(-1, keepdim=True)
        direction = torch.where(going, residual + new / size.clamp_min(1e-300) * direction, 0)
        size = new
    yield w


def ridge_path(problem: Problem, strengths: Float[Tensor, " step"]) -> Iterator[Weights]:
    """w = (XᵀX + strength · I)⁻¹ Xᵀy for strengths in the order given, after w = 0 (infinite strength)."""
    yield torch.zeros_like(problem.first)
    identity = torch.eye(problem.xs.shape[-1], dtype=problem.xs.dtype, device=problem.xs.device)
    counts = torch.arange(problem.xs.shape[1], dtype=problem.xs.dtype, device=problem.xs.device).clamp_min(1)
    for strength in strengths:
        yield torch.linalg.solve(problem.second + (strength / counts)[:, None, None] * identity, problem.first)


def scaled(problem: Problem, steps: int) -> Iterator[Weights]:
    """Least squares, scaled from 0 to 1 in equal steps: no algorithm, but the null that one must be told from."""
    solution = problem.solution()
    yield from (step / steps * solution for step in range(steps + 1))


def predictions(problem: Problem, iterates: Iterable[Weights]) -> Float[Tensor, "step batch prefix"]:
    """Predictions of every iterate."""
    return torch.stack([problem.predict(w) for w in iterates])


def fit(loss: Callable[[Tensor], Tensor], start: Float[Tensor, ...], iterations: int = 60) -> Float[Tensor, ...]:
    """Parameters of an algorithm with the least loss, by L-BFGS from ``start``; the best that was seen."""
    parameters = start.detach().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([parameters], max_iter=iterations, line_search_fn="strong_wolfe")
    best = (torch.inf, start.detach().clone())

    def closure() -> Tensor:
        nonlocal best
        optimizer.zero_grad()
        with torch.enable_grad():
            value = loss(parameters)
            value.backward()
        if value.item() < best[0]:
            best = (value.item(), parameters.detach().clone())
        return value

    optimizer.step(closure)
    return best[1]
