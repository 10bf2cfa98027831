"""What every probe sees of prompts, whatever they are made of: labelled points, tokens of a task, or text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self, runtime_checkable

from jaxtyping import Float, Shaped
from torch import Tensor

Outputs = Shaped[Tensor, "..."]  # [*loop, batch, answer, *value]


@runtime_checkable
class PromptBatch(Protocol):
    """A batch of prompts: what a model is given, where its answers stand, and how good they are.

    A model returns outputs [*loop, batch, answer, *value]: one for each answer of a prompt, the last of which is the
    query's. ``value`` is empty for a number and the vocabulary for tokens; only the prompts know it.
    """

    @property
    def origin(self) -> dict[str, Any]:
        """How they were drawn, for the record; empty where nobody knows."""

    @property
    def unit(self) -> str:
        """The unit of ``errors`` and ``distance``, in words."""

    @property
    def query_unit(self) -> str:
        """The same at the query."""

    @property
    def step_unit(self) -> str:
        """The unit of ``step``, in words."""

    @property
    def output_size(self) -> float | None:
        """The typical size of an output, which motion of outputs is measured against; None: their own size."""

    @property
    def tokens_per_point(self) -> int:
        """How many tokens make one example."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the model is called with."""

    @property
    def n_prompts(self) -> int: ...

    @property
    def n_tokens(self) -> int:
        """Positions of the model's state, which all prompts of a batch have alike."""

    @property
    def n_answers(self) -> int: ...

    @property
    def extent(self) -> str:
        """The size of one prompt in words, such as "5 points of 3 dimensions", for messages."""

    @property
    def read_at(self) -> slice | Sequence[int]:
        """An index of the tokens at which answers stand, in their order."""

    @property
    def query(self) -> int:
        """The token at which the last answer stands."""

    @property
    def roles(self) -> Sequence[str]:
        """What each token is, for figures."""

    def __getitem__(self, chosen: Any) -> Self:
        """Some of the prompts: a slice, indices or a mask."""

    def split(self, size: int) -> list[Self]:
        """The same prompts in batches of ``size``, the last one perhaps smaller."""

    def to(self, target: Any) -> Self:
        """The same prompts on another device or in another precision."""

    def errors(self, outputs: Outputs) -> Float[Tensor, "*loop batch answer"]:
        """The error of each answer, in ``unit``."""

    def distance(self, one: Outputs, other: Outputs) -> Float[Tensor, "*loop batch answer"]:
        """How far two outputs are apart, in ``unit``."""

    def step(self, one: Outputs, other: Outputs) -> Float[Tensor, "*loop batch answer"]:
        """The size of the step between two outputs, in ``step_unit``: what is held against thresholds of steps."""

    def answer(self, outputs: Outputs) -> Float[Tensor, "*loop batch"]:
        """One number for each prompt, differentiable: what patching moves, and what is read at the query."""

    def baseline(self) -> tuple[str, float] | None:
        """What one gets by ignoring the prompt: in words, and its mean error at the query."""

    def targets(self) -> Mapping[str, Float[Tensor, "batch token"]]:
        """Groups of tokens whose attention is of interest, by name: 1 where a token is in the group, else 0."""

    def corrupted(self, kind: str, generator: Any, **options: Any) -> Self:
        """The same prompts with one thing changed, see ``tasks.corruptions``; LoopprobeError where that is unknown."""
