"""Prompts: labelled examples with a query, and the random numbers that they are drawn from.

Numbers are drawn as 53-bit uniforms and turned into normals by the inverse distribution function in float64,
then rounded: the prompts of a seed are the same on every machine, which ``torch.randn`` does not promise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Prompts:
    """Labelled examples; the last point is the query, the others are its context.

    Attributes:
        xs: inputs, [batch, n_points, n_dims].
        ys: labels, [batch, n_points].
        origin: how they were drawn, for the record.
        scale: E(y²) without noise, by which squared errors are divided, so that predicting zero has an error of
            one; None: n_dims, as in linear regression.
        weights: of the function, [batch, n_dims], where it has one vector of them; else None.
    """

    xs: Float[Tensor, "batch n_points n_dims"]
    ys: Float[Tensor, "batch n_points"]
    origin: dict[str, Any] = field(default_factory=dict)
    scale: float = None  # type: ignore[assignment]
    weights: Float[Tensor, "batch n_dims"] | None = None

    def __post_init__(self) -> None:
        if self.scale is None:
            object.__setattr__(self, "scale", float(self.xs.shape[-1]))

    def __iter__(self) -> Iterator[Tensor]:
        """``xs, ys = prompts``."""
        return iter((self.xs, self.ys))

    def split(self, size: int) -> list[Prompts]:
        """The same prompts in batches of ``size``, the last one perhaps smaller."""
        return [self[i : i + size] for i in range(0, len(self.ys), size)]

    def __getitem__(self, chosen: Any) -> Prompts:
        """Some of the prompts: a slice, indices or a mask."""
        weights = None if self.weights is None else self.weights[chosen]
        return dataclasses.replace(self, xs=self.xs[chosen], ys=self.ys[chosen], weights=weights)

    def to(self, target: torch.device | str | torch.dtype) -> Prompts:
        """The same prompts on another device or in another precision."""
        weights = None if self.weights is None else self.weights.to(target)
        return dataclasses.replace(self, xs=self.xs.to(target), ys=self.ys.to(target), weights=weights)

    def errors(self, predictions: Float[Tensor, "*loop batch n_points"]) -> Float[Tensor, "*loop batch n_points"]:
        """Squared errors of predictions, divided by E(y²), on their device and in float32 at least."""
        predictions = predictions.float() if predictions.itemsize < 4 else predictions
        return (predictions - self.ys.to(predictions.device)).square() / self.scale


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, ...]:
    """Uniform numbers in (0, 1) in float64, the same on every machine for one state of the generator."""
    return torch.rand(shape, dtype=torch.float64, generator=generator).clamp_min(2.0**-54)


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, ...]:
    """Standard normal numbers in float64, the same on every machine for one state of the generator."""
    numbers: Tensor = torch.special.ndtri(uniform(shape, generator))
    return numbers
