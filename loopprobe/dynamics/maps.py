"""Maps that are iterated: the loop of a model on its prompts, and controls whose long run is known."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from loopprobe.model import LoopedTransformer
from loopprobe.tasks import Prompts

State = Float[Tensor, "batch pos width"]


@runtime_checkable
class Map(Protocol):
    """A map of states to states, and what is read from a state."""

    @property
    def initial(self) -> State:
        """The state that the loop starts from."""

    def step(self, z: State) -> State:
        """One iteration."""

    def read(self, z: State) -> Float[Tensor, "batch point"]:
        """The predictions that stand in a state."""

    def at(self, prompts: slice) -> Map:
        """The same map on some of the prompts."""


@dataclass(frozen=True)
class LoopMap:
    """The loop of a model with its input injected: the map whose fixed points it looks for.

    Attributes:
        model: the model; ``of`` gives it the dtype.
        e: the injected input of all tokens.
    """

    model: LoopedTransformer
    e: State

    @classmethod
    def of(cls, model: LoopedTransformer, prompts: Prompts, dtype: torch.dtype | None = None) -> LoopMap:
        """The map of a model on prompts, without gradient; in another dtype for the last digits."""
        if dtype is not None and dtype != next(model.parameters()).dtype:
            model = copy.deepcopy(model).to(dtype)
        own = next(model.parameters())
        model.check_prompts(prompts.xs, prompts.ys)
        with torch.no_grad():
            return cls(model, model.embed(prompts.xs.to(own), prompts.ys.to(own)))

    @property
    def initial(self) -> State:
        """The state that the loop starts from."""
        return self.model.initial_state(self.e)

    def step(self, z: State) -> State:
        """One iteration."""
        return self.model.step(z, self.e)

    def read(self, z: State) -> Float[Tensor, "batch point"]:
        """The model's predictions at the x positions, without gradient."""
        with torch.no_grad():
            return self.model.predict(z)

    def at(self, prompts: slice) -> LoopMap:
        """The same map on some of the prompts."""
        return LoopMap(self.model, self.e[prompts])


@dataclass(frozen=True)
class PointwiseMap:
    """A map that is the same for all prompts, such as the controls. What is read is the first coordinate.

    Attributes:
        initial: where it starts.
        function: the map, of states [batch, pos, width].
    """

    initial: State
    function: Callable[[Tensor], Tensor]

    def step(self, z: State) -> State:
        """One iteration."""
        return self.function(z)

    def read(self, z: State) -> Float[Tensor, "batch point"]:
        """The first coordinate of every position."""
        return z[..., 0]

    def at(self, prompts: slice) -> PointwiseMap:
        """The same map on some of the prompts."""
        return PointwiseMap(self.initial[prompts], self.function)


def linear_map(matrix: Float[Tensor, "width width"], offset: Tensor, initial: State) -> PointwiseMap:
    """z → matrix · z + offset."""
    return PointwiseMap(initial, lambda z: z @ matrix.mT + offset)


def contraction(rate: float, initial: State, generator: torch.Generator) -> PointwiseMap:
    """A contraction to a point at the given rate, turning as it goes: its limit is a fixed point."""
    width = initial.shape[-1]
    turn, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=initial.dtype))
    return linear_map(rate * turn, torch.randn(width, generator=generator, dtype=initial.dtype), initial)


def rotation(turns: float, initial: State, shrink: float = 1.0) -> PointwiseMap:
    """Every pair of coordinates turns by ``turns`` of a circle, around a circle of radius 1 that it is drawn to.

    With turns = 1 / k its limit is a cycle of period k; with an irrational number it never returns.

    Args:
        turns: a step's share of a circle.
        initial: where it starts; of even width.
        shrink: factor by which a step brings the radius nearer to 1.
    """
    angle = torch.tensor(2 * math.pi * turns, dtype=torch.float64)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    turn = turn.to(initial.dtype)

    def function(z: Tensor) -> Tensor:
        pairs = z.unflatten(-1, (-1, 2))
        radius = pairs.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        pairs = pairs / radius * (1 + shrink * (radius - 1))
        return (pairs @ turn.mT).flatten(-2)

    return PointwiseMap(initial, function)


def drift(speed: float, initial: State, generator: torch.Generator) -> PointwiseMap:
    """A straight motion at a constant speed."""
    direction = torch.randn(initial.shape[-1], generator=generator, dtype=initial.dtype)
    return PointwiseMap(initial, lambda z: z + speed * direction / direction.norm())


def logistic(initial: State, r: float = 3.99) -> PointwiseMap:
    """The logistic map z → r z (1 − z) in every coordinate; chaotic near r = 4, a cycle of period 3 at 3.83."""
    return PointwiseMap(initial, lambda z: r * z * (1 - z))


def expansion(rate: float, initial: State) -> PointwiseMap:
    """z → rate · z with a rate above 1: diverges, and in the end overflows."""
    return PointwiseMap(initial, lambda z: rate * z)
