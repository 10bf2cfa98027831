"""Maps to iterate: the loop of a model on its prompts, and controls whose limit is known."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from loopprobe.model.loop_numbers import as_map
from loopprobe.model.protocol import LoopedModel, require
from loopprobe.support.statistics import float64_device
from loopprobe.tasks import PromptBatch

State = Float[Tensor, "batch pos width"]


@runtime_checkable
class Map(Protocol):
    """A map of states to states, and the predictions that are read from a state."""

    @property
    def initial(self) -> State:
        """The state that the loop starts from."""

    def step(self, z: State) -> State:
        """Return the state after one iteration."""

    def read(self, z: State) -> Float[Tensor, "batch point"]:
        """Read the predictions from a state."""

    def at(self, prompts: slice | Tensor) -> Map:
        """Return the same map on a selection of the prompts."""


@dataclass(frozen=True)
class LoopMap:
    """One loop of a model on its prompts, with their input injected. Hooks act on it as on loop 0.

    Attributes:
        model: the model.
        e: the injected input of all tokens.
        read_at: the tokens that outputs are read at; None: all where the model answers.
    """

    model: LoopedModel
    e: State
    read_at: slice | Sequence[int] | None = None

    @classmethod
    def of(cls, model: LoopedModel, prompts: PromptBatch, dtype: torch.dtype | None = None) -> LoopMap:
        """Make the map of a model on prompts, without gradient.

        Args:
            model: the model; a copy of it is used where the precision is another.
            prompts: the prompts; they are converted to the precision and the device of the map.
            dtype: the precision of the map; None: the model's. In float64 it is on the CPU where the model's device
                has no float64.

        Raises:
            LoopprobeError: the model's loop reads its own number, or has hooks in some loops alone: it is no map of its
                state.
        """
        require(model, frozenset({"map", "autonomous"}), "the model", "a LoopMap")
        if dtype is not None and dtype != model.dtype:
            device = float64_device(model.device) if dtype == torch.float64 else model.device
            model = copy.deepcopy(model).to(device).to(dtype)
        inputs = model.prepare(*prompts.to(model.device).inputs)
        with torch.no_grad():
            return cls(model, model.embed(*inputs), prompts.read_at)

    @property
    def initial(self) -> State:
        """The state that the loop starts from."""
        return self.model.initial_state(self.e)

    def step(self, z: State) -> State:
        """Return the state after one iteration."""
        with as_map():
            return self.model.step(z, self.e)

    def read(self, z: State) -> Float[Tensor, "batch answer ..."]:
        """Read the model's outputs from a state, without gradient."""
        with torch.no_grad(), as_map():
            return self.model.predict(z, self.e, read_at=self.read_at)

    def at(self, prompts: slice | Tensor) -> LoopMap:
        """Return the same map on a selection of the prompts."""
        return LoopMap(self.model, self.e[prompts], self.read_at)


@dataclass(frozen=True)
class PointwiseMap:
    """A map that is the same for all prompts, such as the controls. Its predictions are the first coordinate.

    Attributes:
        initial: the state that it starts from.
        function: the map, of states [batch, pos, width].
    """

    initial: State
    function: Callable[[Tensor], Tensor]

    def step(self, z: State) -> State:
        """Return the state after one iteration."""
        return self.function(z)

    def read(self, z: State) -> Float[Tensor, "batch point"]:
        """Return the first coordinate of every position."""
        return z[..., 0]

    def at(self, prompts: slice | Tensor) -> PointwiseMap:
        """Return the same map on a selection of the prompts."""
        return PointwiseMap(self.initial[prompts], self.function)


def linear_map(matrix: Float[Tensor, "width width"], offset: Tensor, initial: State) -> PointwiseMap:
    """Make the map z → matrix · z + offset."""
    return PointwiseMap(initial, lambda z: z @ matrix.mT + offset)


def contraction(rate: float, initial: State, generator: torch.Generator) -> PointwiseMap:
    """Make a contraction to a fixed point at this rate, which also turns the states."""
    width = initial.shape[-1]
    turn, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=initial.dtype))
    return linear_map(rate * turn, torch.randn(width, generator=generator, dtype=initial.dtype), initial)


def rotation(turns: float, initial: State, shrink: float = 1.0) -> PointwiseMap:
    """Make a rotation of every pair of coordinates, which attracts states to the circle of radius 1.

    With turns = 1 / k its limit is a cycle of period k; with an irrational number it never returns.

    Args:
        turns: the share of a circle that a step turns by.
        initial: the state that it starts from, of even width.
        shrink: the factor by which a step brings the radius nearer to 1.
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
    """Make a straight motion at a constant speed."""
    direction = torch.randn(initial.shape[-1], generator=generator, dtype=initial.dtype)
    return PointwiseMap(initial, lambda z: z + speed * direction / direction.norm())


def logistic(initial: State, r: float = 3.99) -> PointwiseMap:
    """Make the logistic map z → r z (1 − z) in every coordinate; chaotic near r = 4, a cycle of period 3 at 3.83."""
    return PointwiseMap(initial, lambda z: r * z * (1 - z))


def expansion(rate: float, initial: State) -> PointwiseMap:
    """Make the map z → rate · z with a rate above 1, which diverges and in the end overflows."""
    return PointwiseMap(initial, lambda z: rate * z)


def straight_contraction(factor: float, initial: State, centre: Tensor) -> PointwiseMap:
    """Make the map z → centre + factor · (z − centre): straight to the centre, or with a factor below 0 alternately."""
    return PointwiseMap(initial, lambda z: centre + factor * (z - centre))


def algebraic(exponent: float, speed: float, initial: State, centre: Tensor, sign: float = 1.0) -> PointwiseMap:
    """Make a map whose distance to the centre falls as loops^−exponent, straight or, with sign −1, alternately."""

    def function(z: Tensor) -> Tensor:
        away = z - centre
        slower = speed * away.norm(dim=-1, keepdim=True) ** (1 / exponent)
        return centre + sign * (1 - slower.clamp(max=0.5)) * away

    return PointwiseMap(initial, function)


def logarithmic(speed: float, initial: State, direction: Tensor, origin: float = 1.0) -> PointwiseMap:
    """Make a straight motion by speed · log(loops + origin): its steps fall to nothing, and yet it has no end."""
    unit = direction / direction.norm()
    start = initial - (initial @ unit)[..., None] * unit + speed * math.log(origin) * unit
    return PointwiseMap(start, lambda z: z + speed * torch.exp(-(z @ unit) / speed)[..., None] * unit)


def spiral(factor: float, turns: float, initial: State) -> PointwiseMap:
    """Make a rotation of every pair of coordinates by a share of a circle, with a factor for their size."""
    turned = rotation(turns, initial).function
    return PointwiseMap(initial, lambda z: factor * turned(z))
