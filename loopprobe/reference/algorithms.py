"""Iterative algorithms for linear regression in context, step by step and for every prefix of every prompt at once.

For a prefix of k points let S = XᵀX / k and m = Xᵀy / k. All algorithms start at w = 0 and look for the w with S w = m.
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
        xs: the inputs, in float64.
        first: the first moment Xᵀy / k; zero for the empty prefix.
    """

    xs: Float[Tensor, "batch prefix dim"]
    first: Weights

    @classmethod
    def of(cls, prompts: Prompts) -> Problem:
        """Make the problem of the prompts in float64, on the CPU where their device has no float64."""
        xs, ys = double(prompts.xs), double(prompts.ys)
        return cls(xs, _prefix_means(xs * ys[..., None]))

    @functools.cached_property
    def second(self) -> Float[Tensor, "batch prefix dim dim"]:
        """The second moment XᵀX / k; zero for the empty prefix."""
        return _prefix_means(einsum(self.xs, self.xs, "batch point i, batch point j -> batch point i j"))

    def gradient(self, w: Weights) -> Weights:
        """Return the gradient of half the mean squared error with respect to the weights."""
        return einsum(self.second, w, "batch prefix i j, batch prefix j -> batch prefix i") - self.first

    def solution(self) -> Weights:
        """Return the least-squares solution S⁺ m, which has the least norm where there are too few points."""
        return (torch.linalg.pinv(self.second, hermitian=True) @ self.first[..., None]).squeeze(-1)

    def predict(self, w: Weights) -> Float[Tensor, "batch prefix"]:
        """Predict the point after each prefix."""
        return (self.xs * w).sum(-1)


def _prefix_means(values: Float[Tensor, "batch point *dims"]) -> Float[Tensor, "batch prefix *dims"]:
    """Return the mean of the values before each point; zero before the first."""
    counts = torch.arange(1, values.shape[1], dtype=values.dtype, device=values.device)
    means = torch.zeros_like(values)
    means[:, 1:] = values.cumsum(1)[:, :-1] / counts.reshape(-1, *[1] * (values.ndim - 2))
    return means


def gradient_descent(problem: Problem, steps: int, rate: float | Tensor) -> Iterator[Weights]:
    """Yield the steps + 1 iterates of gradient descent from w = 0: w ← w − rate · ∇.

    Args:
        problem: the problem.
        steps: the number of steps.
        rate: one number, or one for each prefix [batch, prefix, 1].
    """
    w = torch.zeros_like(problem.first)
    for _ in range(steps):
        yield w
        w = w - rate * problem.gradient(w)
    yield w


def best_rate(problem: Problem) -> Float[Tensor, "batch prefix 1"]:
    """Return the fixed rate of fastest convergence in the worst case: 2 / (largest + smallest eigenvalue).

    Eigenvalues that are zero do not count.
    """
    eigenvalues = torch.linalg.eigvalsh(problem.second)
    largest = eigenvalues[..., -1].clamp_min(1e-12)
    rank_deficient = eigenvalues < 1e-9 * largest[..., None]
    smallest = eigenvalues.masked_fill(rank_deficient, torch.inf).amin(-1)
    smallest = torch.where(smallest.isfinite(), smallest, largest)
    return (2 / (largest + smallest))[..., None]


def momentum(problem: Problem, steps: int, rate: float | Tensor, decay: float | Tensor) -> Iterator[Weights]:
    """Yield the iterates of the heavy-ball method (Polyak 1964): v ← decay · v − rate · ∇, w ← w + v."""
    w = torch.zeros_like(problem.first)
    velocity = torch.zeros_like(w)
    for _ in range(steps):
        yield w
        velocity = decay * velocity - rate * problem.gradient(w)
        w = w + velocity
    yield w


def preconditioned(problem: Problem, steps: int, matrix: Float[Tensor, "dim dim"]) -> Iterator[Weights]:
    """Yield the iterates of w ← w − P ∇ with one matrix P for all prompts (Ahn et al. 2023; arXiv 2410.08292)."""
    w = torch.zeros_like(problem.first)
    for _ in range(steps):
        yield w
        w = w - problem.gradient(w) @ matrix.T
    yield w


def newton(problem: Problem, steps: int) -> Iterator[Weights]:
    """Yield the iterates w = M m of Newton's iteration for the inverse (Fu et al., arXiv 2310.17086).

    M starts at S / λ_max² and is updated by M ← 2M − M S M. It converges to the pseudoinverse, and every step doubles
    its correct digits. The first iterate is w = 0.
    """
    yield torch.zeros_like(problem.first)
    largest = torch.linalg.eigvalsh(problem.second)[..., -1].clamp_min(1e-12)
    inverse = problem.second / largest[..., None, None] ** 2
    for _ in range(steps):
        yield einsum(inverse, problem.first, "batch prefix i j, batch prefix j -> batch prefix i")
        inverse = 2 * inverse - inverse @ problem.second @ inverse


def conjugate_gradients(problem: Problem, steps: int) -> Iterator[Weights]:
    """Yield the iterates of conjugate gradients on S w = m (Hestenes and Stiefel 1952).

    They are exact after rank(S) steps and then stay the same.
    """
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
    """Yield w = 0 (infinite strength), and then w = (XᵀX + strength · I)⁻¹ Xᵀy for each strength in turn."""
    yield torch.zeros_like(problem.first)
    identity = torch.eye(problem.xs.shape[-1], dtype=problem.xs.dtype, device=problem.xs.device)
    counts = torch.arange(problem.xs.shape[1], dtype=problem.xs.dtype, device=problem.xs.device).clamp_min(1)
    for strength in strengths:
        yield torch.linalg.solve(problem.second + (strength / counts)[:, None, None] * identity, problem.first)


def scaled(problem: Problem, steps: int) -> Iterator[Weights]:
    """Yield the least-squares solution, scaled from 0 to 1 in equal steps.

    This is not an algorithm but the null hypothesis: a model that runs an algorithm must be told apart from it.
    """
    solution = problem.solution()
    yield from (step / steps * solution for step in range(steps + 1))


def predictions(problem: Problem, iterates: Iterable[Weights]) -> Float[Tensor, "step batch prefix"]:
    """Return the predictions of every iterate."""
    return torch.stack([problem.predict(w) for w in iterates])


def fit(loss: Callable[[Tensor], Tensor], start: Float[Tensor, ...], iterations: int = 60) -> Float[Tensor, ...]:
    """Fit the parameters of an algorithm by L-BFGS from ``start``; return those with the least loss seen."""
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
