"""Distribution shifts: prompts that are drawn from another distribution than in training.

The cases are those of Garg et al. (arXiv 2208.01066, section 4). A shift acts on the labels, or on the inputs before
they are labelled, so that the function itself stays the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loopprobe.errors import LoopprobeError
from loopprobe.tasks.prompts import normal, uniform

Inputs = Float[Tensor, "batch n_points n_dims"]


@dataclass(frozen=True)
class Shift:
    """A change to the distribution of prompts.

    Attributes:
        words: its name in figures and tables.
        inputs: returns the inputs of the prompts. It is given standard normal inputs, which are zero in the dimensions
            that are not active, the number of active dimensions, and a generator.
        input_factor, factor: the factors by which the inputs and the function's values are multiplied.
        noise_std: the standard deviation of noise on the labels, relative to √E(y²).
        at_query: True where only the query differs from training, so that only its error is of interest.
    """

    words: str
    inputs: Callable[[Inputs, int, torch.Generator], Inputs] = lambda xs, active, generator: xs
    input_factor: float = 1.0
    factor: float = 1.0
    noise_std: float = 0.0
    at_query: bool = False


def _orthogonal(n_prompts: int, size: int, generator: torch.Generator) -> Float[Tensor, "batch size size"]:
    """Draw random orthogonal matrices."""
    rotation: Tensor = torch.linalg.qr(normal((n_prompts, size, size), generator)).Q
    return rotation


def _skewed(xs: Inputs, active: int, generator: torch.Generator) -> Inputs:
    """Give the inputs a covariance with eigenvalues ∝ 1 / i² in random directions, and E|x|² as in training."""
    variances = torch.arange(1, active + 1, dtype=xs.dtype) ** -2.0
    scales = (variances * active / variances.sum()).sqrt()
    turned = (xs[..., :active] * scales) @ _orthogonal(len(xs), active, generator).mT
    return torch.nn.functional.pad(turned, (0, xs.shape[-1] - active))


def _subspace(xs: Inputs, active: int, generator: torch.Generator) -> Inputs:
    """Confine the inputs to a random subspace of half the dimensions, with E|x|² as in training."""
    half = max(1, active // 2)
    basis = _orthogonal(len(xs), active, generator)[..., :half]
    inside = (active / half) ** 0.5 * xs[..., :half] @ basis.mT
    return torch.nn.functional.pad(inside, (0, xs.shape[-1] - active))


def _orthants(xs: Inputs, active: int, generator: torch.Generator) -> Inputs:
    """Place all examples in one random orthant and the query in another."""
    signs = torch.where(uniform((len(xs), 2, xs.shape[-1]), generator) < 0.5, -1.0, 1.0).to(xs)
    return torch.cat([xs[:, :-1].abs() * signs[:, :1], xs[:, -1:].abs() * signs[:, 1:]], dim=1)


def _orthogonal_query(xs: Inputs, active: int, generator: torch.Generator) -> Inputs:
    """Confine the examples to a random subspace of half the dimensions, and the query to its complement.

    E|x|² is as in training for both.
    """
    half = max(1, active // 2)
    basis = _orthogonal(len(xs), active, generator)
    examples = (active / half) ** 0.5 * xs[:, :-1, :half] @ basis[..., :half].mT
    rest = active - half
    query = (active / rest) ** 0.5 * xs[:, -1:, :rest] @ basis[..., half:].mT if rest else xs[:, -1:, :active] * 0
    return torch.nn.functional.pad(torch.cat([examples, query], dim=1), (0, xs.shape[-1] - active))


def _repeated_query(xs: Inputs, active: int, generator: torch.Generator) -> Inputs:
    """Replace the query by one of the examples."""
    if xs.shape[1] == 1:
        return xs
    chosen = (uniform((len(xs),), generator) * (xs.shape[1] - 1)).long()
    return torch.cat([xs[:, :-1], xs[torch.arange(len(xs)), chosen][:, None]], dim=1)


SHIFTS = {
    "skewed": Shift("skewed covariance", _skewed),
    "subspace": Shift("inputs in half the dimensions", _subspace),
    "inputs_third": Shift("inputs × 1/3", input_factor=1 / 3),
    "inputs_double": Shift("inputs × 2", input_factor=2.0),
    "inputs_triple": Shift("inputs × 3", input_factor=3.0),
    "weights_third": Shift("weights × 1/3", factor=1 / 3),
    "weights_double": Shift("weights × 2", factor=2.0),
    "weights_triple": Shift("weights × 3", factor=3.0),
    "noise": Shift("noise of 0.3 √E(y²)", noise_std=0.3),
    "orthants": Shift("query in another orthant", _orthants, at_query=True),
    "orthogonal_query": Shift("query orthogonal to the examples", _orthogonal_query, at_query=True),
    "repeated_query": Shift("query is one of the examples", _repeated_query, at_query=True),
    "more_examples": Shift("more examples than in training"),
    "more_dims": Shift("more dimensions than in training"),
}


def find_shift(name: str) -> Shift:
    """Return the shift of this name, or raise LoopprobeError where there is none."""
    if name not in SHIFTS:
        raise LoopprobeError(f"no shift is called {name!r}: choose from {', '.join(SHIFTS)}")
    return SHIFTS[name]
