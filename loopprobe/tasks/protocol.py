"""The interface of prompts that every probe uses, whether they hold labelled points, tokens of a task, or text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self, runtime_checkable

from jaxtyping import Bool, Float, Shaped
from torch import Tensor

Outputs = Shaped[Tensor, "..."]  # [*loop, batch, answer, *value]


def described(prompts: Any) -> str:
    """Return prompts in a line, for ``repr``: how many, how long, of which task, and the seed of held-out ones."""
    origin = prompts.origin
    task = str(origin.get("task", "no task that is known")).replace("_", " ")
    seed = origin.get("held_out_seed")
    return (
        f"{type(prompts).__name__}({prompts.n_prompts:,} prompts of {task}, {prompts.extent}"
        f"{'' if seed is None else f', held out with seed {seed}'})"
    )


@runtime_checkable
class PromptBatch(Protocol):
    """A batch of prompts: the inputs of a model, the positions of its answers, and the errors of these answers.

    A model returns outputs [*loop, batch, answer, *value]: one for each answer of a prompt, the last of which is the
    query's. ``value`` is empty for a number and the vocabulary for tokens; only the prompts know it.
    """

    @property
    def origin(self) -> dict[str, Any]:
        """A record of how they were drawn; empty where that is not known."""

    @property
    def unit(self) -> str:
        """The unit of ``errors`` and ``distance``, in words."""

    @property
    def query_unit(self) -> str:
        """The unit of ``errors`` at the query, in words."""

    @property
    def failure_level(self) -> float:
        """The error at the query above which a prompt counts as failed, in ``unit``."""

    @property
    def step_unit(self) -> str:
        """The unit of ``step``, in words."""

    @property
    def output_size(self) -> float | None:
        """The typical size of an output, the unit of their motion; None stands for their own size."""

    @property
    def tokens_per_point(self) -> int:
        """The number of tokens in one example."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The arguments of a call of the model."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that ``training_loss`` and the model need of them."""

    def of(self, *tensors: Tensor) -> Self:
        """Return prompts of the same kind with other ``tensors``."""

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of what ``training_loss`` records; the first is the loss, the second the error at the query."""

    @property
    def n_prompts(self) -> int: ...

    @property
    def n_tokens(self) -> int:
        """The number of positions in the model's state, the same for all prompts of a batch."""

    @property
    def n_answers(self) -> int: ...

    @property
    def extent(self) -> str:
        """The size of one prompt in words, such as "5 points of 3 dimensions", for messages."""

    @property
    def read_at(self) -> slice | Sequence[int]:
        """The index of the tokens that hold the answers, in their order."""

    @property
    def query(self) -> int:
        """The token that holds the last answer."""

    @property
    def roles(self) -> Sequence[str]:
        """The name of each token, for figures."""

    def __getitem__(self, chosen: Any) -> Self:
        """Select prompts by a slice, indices or a mask."""

    def split(self, size: int) -> list[Self]:
        """Split the prompts into batches of ``size``; the last batch may be smaller."""

    def to(self, target: Any) -> Self:
        """Copy the prompts to another device or precision."""

    def errors(self, outputs: Outputs) -> Float[Tensor, "*loop batch answer"]:
        """Return the error of each answer, in ``unit``."""

    def correct(self, outputs: Outputs) -> Bool[Tensor, "*loop batch answer"] | None:
        """Return whether each answer is right; None where an answer is a number, which is never quite right."""

    def ranks(self, outputs: Outputs, final: Outputs) -> Float[Tensor, "*loop batch answer"] | None:
        """Return the rank in ``outputs`` of the answer that ``final`` gives, from 0; None where answers are numbers."""

    def distance(self, one: Outputs, other: Outputs) -> Float[Tensor, "*loop batch answer"]:
        """Return the distance between two outputs, in ``unit``."""

    def step(self, one: Outputs, other: Outputs) -> Float[Tensor, "*loop batch answer"]:
        """Return the size of the step between two outputs, in ``step_unit``; thresholds of steps are in this unit."""

    def answer(self, outputs: Outputs) -> Float[Tensor, "*loop batch"]:
        """Return one differentiable number for each prompt: the answer at the query, which patching moves."""

    @property
    def answer_unit(self) -> str:
        """The unit of ``answer`` and ``contrast``, in words."""

    def contrast(self, outputs: Outputs) -> tuple[str, Float[Tensor, "*loop batch"]]:
        """Return in words which linear function of the outputs at the query tells the answer, and its values.

        It is ``answer`` where that is linear.
        """

    def against(self, corrupted: Self) -> Self:
        """Return the same prompts, whose ``answer`` tells them from corrupted ones."""

    def training_loss(self, outputs: Outputs, kind: str) -> tuple[Tensor, Float[Tensor, " measure"]]:
        """Return the loss of a kind over all loops and answers, and what is recorded of it (``measures``)."""

    def baseline(self) -> tuple[str, float] | None:
        """Return the name of the predictor that ignores the prompt, and the median of its errors at the query."""

    def targets(self) -> Mapping[str, Float[Tensor, "batch token"]]:
        """Return the groups of tokens whose attention is of interest: 1 where a token is in the group, else 0."""

    @property
    def corruptions(self) -> tuple[str, ...]:
        """The kinds of ``corrupted``; the first is the usual one."""

    def corrupted(self, kind: str, generator: Any, **options: Any) -> Self:
        """Return a copy of the prompts with one thing changed, see ``tasks.corruptions``.

        Raises:
            LoopprobeError: the kind of corruption is not known.
        """


@runtime_checkable
class Worded(Protocol):
    """Prompts that can say in words what stands at their tokens; a ``PromptBatch`` need not."""

    def token_words(self, index: int) -> list[str]:
        """Return what stands at each token of one prompt."""

    def right_words(self, index: int) -> list[str]:
        """Return the right answers of one prompt."""


def token_words(prompts: PromptBatch, index: int) -> list[str]:
    """Return what stands at each token of one prompt, or the roles of the tokens where the prompts have no words."""
    return prompts.token_words(index) if isinstance(prompts, Worded) else list(prompts.roles)


def right_words(prompts: PromptBatch, index: int) -> list[str]:
    """Return the right answers of one prompt, empty words where the prompts have none."""
    return prompts.right_words(index) if isinstance(prompts, Worded) else [""] * prompts.n_answers
