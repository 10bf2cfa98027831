"""Prompts: labelled examples with a query, and the random numbers from which they are drawn.

Numbers are drawn as 53-bit uniforms, turned into normals by the inverse distribution function in float64, and then
rounded. A seed therefore gives the same prompts on every machine, which ``torch.randn`` does not promise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loopprobe.config.schema import TaskConfig
from loopprobe.errors import LoopprobeError
from loopprobe.support.statistics import at_least_single, to_numpy
from loopprobe.tasks.protocol import described

TOKENS_PER_POINT = 2  # an input x, then its label y
INPUTS = slice(0, None, TOKENS_PER_POINT)  # the tokens of inputs, at which the labels are predicted
UNIT = "squared error / E(y²)"
QUERY_UNIT = "squared error at the query / E(y²)"
STEP_UNIT = "√E(y²)"
FAILURE_LEVEL = 0.1  # of squared error / E(y²): a tenth of what predicting zero gives in the mean
LINEAR = ("linear_regression", "noisy_linear_regression")  # tasks whose labels are linear in the inputs
LOG_FLOOR = 1e-3  # added to a squared error over ``scale``: errors far below it weigh less


@dataclass(frozen=True, repr=False)
class Prompts:
    """A ``PromptBatch`` of labelled examples for regression: the last point is the query, the others are its context.

    A point is two tokens, its input and its label. The answers are numbers, predicted at the inputs.

    Attributes:
        xs: inputs, [batch, n_points, n_dims].
        ys: labels, [batch, n_points].
        origin: a record of how they were drawn.
        scale: E(y²) without noise. Squared errors are divided by it, so that predicting zero has an error of one.
            None stands for n_dims, as in linear regression.
        weights: the weights of the function, [batch, n_dims]; None where it has no such vector.
        task: the task that they are drawn from, which may have an error of its own; None: the squared error.
    """

    xs: Float[Tensor, "batch n_points n_dims"]
    ys: Float[Tensor, "batch n_points"]
    origin: dict[str, Any] = field(default_factory=dict)
    scale: float = None  # type: ignore[assignment]
    weights: Float[Tensor, "batch n_dims"] | None = None
    task: TaskConfig | None = None

    step_unit: ClassVar[str] = STEP_UNIT
    answer_unit: ClassVar[str] = "of y"
    tokens_per_point: ClassVar[int] = TOKENS_PER_POINT
    read_at: ClassVar[slice] = INPUTS
    measures: ClassVar[tuple[str, ...]] = ("loss", "error")

    def __post_init__(self) -> None:
        if self.scale is None:
            object.__setattr__(self, "scale", float(self.xs.shape[-1]))

    def __repr__(self) -> str:
        """Return a line: how many prompts, how long, of which task, and the seed where they are held out."""
        return described(self)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the inputs and then the labels, for ``xs, ys = prompts``."""
        return iter((self.xs, self.ys))

    def split(self, size: int) -> list[Prompts]:
        """Split the prompts into batches of ``size``; the last batch may be smaller."""
        return [self[i : i + size] for i in range(0, len(self.ys), size)]

    def __getitem__(self, chosen: Any) -> Prompts:
        """Select prompts by a slice, indices or a mask."""
        weights = None if self.weights is None else self.weights[chosen]
        return dataclasses.replace(self, xs=self.xs[chosen], ys=self.ys[chosen], weights=weights)

    def to(self, target: torch.device | str | torch.dtype) -> Prompts:
        """Copy the prompts to another device or precision."""
        weights = None if self.weights is None else self.weights.to(target)
        return dataclasses.replace(self, xs=self.xs.to(target), ys=self.ys.to(target), weights=weights)

    @property
    def unit(self) -> str:
        """The unit of ``errors`` and ``distance``, in words."""
        return UNIT if self.task is None else str(self.task.rules.unit)

    @property
    def query_unit(self) -> str:
        """The unit of ``errors`` at the query, in words."""
        return QUERY_UNIT if self.unit == UNIT else f"{self.unit} at the query"

    @property
    def failure_level(self) -> float:
        """The error at the query above which a prompt counts as failed, in ``unit``."""
        return FAILURE_LEVEL if self.task is None else float(self.task.rules.failure_level)

    @property
    def corruptions(self) -> tuple[str, ...]:
        """The kinds of ``corrupted``, the usual one first; other weights give labels of linear functions alone."""
        linear = self.origin.get("task", "linear_regression") in LINEAR
        return ("weights", "label", "query", "noise") if linear else ("label", "query", "noise")

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """What a training step needs of them: xs and ys."""
        return self.xs, self.ys

    def of(self, *tensors: Tensor) -> Prompts:
        """Return prompts of the same kind with other ``tensors``."""
        xs, ys = tensors
        return dataclasses.replace(self, xs=xs, ys=ys, weights=None)

    @property
    def inputs(self) -> tuple[Tensor, Tensor]:
        """The arguments of a call of the model: xs and ys."""
        return self.xs, self.ys

    @property
    def n_prompts(self) -> int:
        """The number of prompts."""
        return len(self.ys)

    @property
    def n_answers(self) -> int:
        """The number of answers, one at every point."""
        return self.ys.shape[1]

    @property
    def extent(self) -> str:
        """The number of points and dimensions of a prompt, in words."""
        return f"{self.xs.shape[1]} points of {self.xs.shape[2]} dimensions"

    @property
    def n_tokens(self) -> int:
        """The number of tokens, two for each point."""
        return TOKENS_PER_POINT * self.n_answers

    @property
    def query(self) -> int:
        """The token of the last input; no prediction sees the label that follows it."""
        return self.n_tokens - TOKENS_PER_POINT

    @property
    def roles(self) -> list[str]:
        """The names of the tokens: inputs and labels in turn."""
        return ["x", "y"] * self.n_answers

    def token_words(self, index: int) -> list[str]:
        """Return what stands at each token of one prompt: inputs by their number, labels with their value."""
        labels = [f"y{i + 1} = {y:.2f}" for i, y in enumerate(self.ys[index].tolist())]
        return [word for i, label in enumerate(labels) for word in (f"x{i + 1}", label)]

    def right_words(self, index: int) -> list[str]:
        """Return the labels of one prompt."""
        return [f"{y:.2f}" for y in self.ys[index].tolist()]

    @property
    def output_size(self) -> float:
        """The typical size of a label, √E(y²)."""
        return math.sqrt(self.scale)

    def errors(self, predictions: Float[Tensor, "*loop batch n_points"]) -> Float[Tensor, "*loop batch n_points"]:
        """Return the errors of predictions in ``unit``, on their device and at least in float32."""
        return self.distance(predictions, self.ys.to(predictions.device))

    def distance(
        self, one: Float[Tensor, "*loop batch n_points"], other: Float[Tensor, "*other batch n_points"]
    ) -> Float[Tensor, "*loop batch n_points"]:
        """Return the distance between predictions: their squared difference over E(y²), or the error of the task."""
        one = at_least_single(one)
        error: Tensor | None = None if self.task is None else self.task.rules.error(one, other)
        if error is None:
            return (one - other).square() / self.scale
        if error.shape != (shape := (one - other).shape):
            raise LoopprobeError(
                f"error of {self.task.name} gave {list(error.shape)} for predictions {list(shape)}: return one number "  # type: ignore[union-attr]
                "for each"
            )
        return error

    def step(
        self, one: Float[Tensor, "*loop batch n_points"], other: Float[Tensor, "*other batch n_points"]
    ) -> Float[Tensor, "*loop batch n_points"]:
        """Return the absolute differences between predictions, in units of √E(y²)."""
        return (at_least_single(one) - other).abs() / self.output_size

    def answer(self, predictions: Float[Tensor, "*loop batch n_points"]) -> Float[Tensor, "*loop batch"]:
        """Return the prediction at the query."""
        return predictions[..., -1]

    def contrast(self, predictions: Float[Tensor, "*loop batch n_points"]) -> tuple[str, Float[Tensor, "*loop batch"]]:
        """Return ``answer``, which is linear, and what it is."""
        return "the prediction", self.answer(predictions)

    def correct(self, predictions: Float[Tensor, "*loop batch n_points"]) -> None:
        """Return None: a number is never quite right."""

    def ranks(self, predictions: Any, final: Any) -> None:
        """Return None: a number has no rank."""

    def against(self, corrupted: Prompts) -> Prompts:
        """Return these prompts: their answers are numbers, which need nothing to be compared with."""
        return self

    def training_loss(self, predictions: Float[Tensor, "loop batch n_points"], kind: str) -> tuple[Tensor, Tensor]:
        """Return the loss over loops and points, and what is recorded of a step (``measures``).

        The loss ``mse`` is the mean squared error (Yang et al., arXiv 2311.12424, section 4.1). The loss ``log`` is the
        mean over loops and points of log(mean squared error of the prompts / scale + 0.001). It is the negative log
        likelihood of errors with a variance for each loop and point, at the best variances (Kendall et al., arXiv
        1705.07115). Points with few examples, whose error cannot fall, then do not drown the points whose error can.
        What is recorded is the mean squared error, and the error at the query after the last loop in ``unit``.
        """
        errors = (predictions - self.ys).square()
        squared = errors.mean()
        loss = squared if kind == "mse" else (errors.mean(1) / self.scale + LOG_FLOOR).log().mean()
        if self.unit == UNIT:
            at_query = errors[-1, :, -1].detach().mean() / self.scale
        else:
            at_query = self.errors(predictions[-1].detach())[:, -1].mean()
        return loss, torch.stack([squared.detach(), at_query])

    def baseline(self) -> tuple[str, float]:
        """Return the trivial predictor, which predicts zero, and the median of its errors at the query."""
        if self.unit == UNIT:
            return "predicting zero", float(np.median(to_numpy(self.ys[:, -1]) ** 2)) / self.scale
        return "predicting zero", float(np.median(to_numpy(self.errors(torch.zeros_like(self.ys))[:, -1])))

    def targets(self) -> dict[str, Float[Tensor, "batch token"]]:
        """Return the groups of tokens whose attention is of interest: 1 where a token is in the group, else 0.

        They are the labels, the inputs, and the input and the label of the nearest example. That is the example whose
        input has the inner product of largest size with the query. The query itself is in no group.
        """
        n_prompts, query = self.n_prompts, self.query
        token = torch.arange(self.n_tokens, device=self.xs.device).expand(n_prompts, -1)
        before, is_input = token < query, token % TOKENS_PER_POINT == 0
        nearest = torch.full((n_prompts, 1), self.n_tokens, device=self.xs.device)
        if query:
            products = (self.xs[:, :-1] @ self.xs[:, -1, :, None]).squeeze(-1)
            nearest = TOKENS_PER_POINT * products.abs().argmax(-1, keepdim=True)
        groups = {
            "labels": before & ~is_input,
            "inputs": before & is_input,
            "nearest input": token == nearest,
            "nearest label": token == nearest + 1,
        }
        return {name: group.float() for name, group in groups.items()}

    def corrupted(
        self, kind: str, generator: torch.Generator, *, example: int | None = None, **options: Any
    ) -> Prompts:
        """Return a copy of the prompts with one thing changed, see ``tasks.corruptions``."""
        from loopprobe.tasks.corruptions import corrupted_examples

        return corrupted_examples(self, kind, generator, example=example or 0, **options)  # type: ignore[arg-type]


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, ...]:
    """Draw uniform numbers in (0, 1) in float64; a state of the generator gives the same ones on every machine."""
    return torch.rand(shape, dtype=torch.float64, generator=generator).clamp_min(2.0**-54)


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, ...]:
    """Draw standard normal numbers in float64; a state of the generator gives the same ones on every machine."""
    numbers: Tensor = torch.special.ndtri(uniform(shape, generator))
    return numbers
