"""What follows from tokens, answers and the tokens that hold them, whatever task or text the tokens are of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loopprobe.support.statistics import at_least_single
from loopprobe.tasks.protocol import described

UNKNOWN = -1  # stands for an answer that nobody knows
Kind = TypeVar("Kind", bound="LogitPrompts")


class LogitPrompts:
    """The part of a ``PromptBatch`` that all prompts of tokens share: their answers are read from logits.

    A frozen dataclass with the fields ``tokens``, ``answers``, ``origin`` and ``instead`` makes it whole. It adds
    ``read_at``, the names of tokens, targets, corruptions, ``against`` and ``baseline``.

    An answer of -1 is unknown: its error is NaN, as are ``answer`` and ``contrast`` of its prompt.

    Attributes:
        tokens: the numbers of the tokens, [batch, pos].
        answers: the numbers of the right answers, [batch, answer].
        origin: a record of how they were drawn.
        instead: the answers at the query that ``answer`` compares the right ones with, [batch]; None: all others.
    """

    tokens: Int[Tensor, "batch pos"]
    answers: Int[Tensor, "batch answer"]
    origin: dict[str, Any]
    instead: Int[Tensor, " batch"] | None
    read_at: Any
    names: Any
    answer_names: Any

    unit: ClassVar[str] = "cross entropy, nats"
    query_unit: ClassVar[str] = "cross entropy at the query, nats"
    failure_level: ClassVar[float] = math.log(2)  # the right answer has less than half of the probability
    step_unit: ClassVar[str] = "KL divergence, nats"
    answer_unit: ClassVar[str] = "logits"
    tokens_per_point: ClassVar[int] = 1
    output_size: ClassVar[None] = None
    measures: ClassVar[tuple[str, ...]] = ("loss", "error", "accuracy")
    corruptions: ClassVar[tuple[str, ...]] = ("token", "prompt")

    def split(self: Kind, size: int) -> list[Kind]:
        """Split the prompts into batches of ``size``; the last batch may be smaller."""
        return [self[i : i + size] for i in range(0, self.n_prompts, size)]

    def __getitem__(self: Kind, chosen: Any) -> Kind:
        """Select prompts by a slice, indices or a mask."""
        instead = None if self.instead is None else self.instead[chosen]
        return self._with(tokens=self.tokens[chosen], answers=self.answers[chosen], instead=instead)

    def to(self: Kind, target: torch.device | str | torch.dtype) -> Kind:
        """Copy the prompts to another device; a precision leaves whole numbers as they are."""
        if isinstance(target, torch.dtype):
            return self
        instead = None if self.instead is None else self.instead.to(target)
        return self._with(tokens=self.tokens.to(target), answers=self.answers.to(target), instead=instead)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """What a training step needs of them: tokens and answers."""
        return self.tokens, self.answers

    def of(self: Kind, *tensors: Tensor) -> Kind:
        """Return prompts of the same kind with other ``tensors``."""
        tokens, answers = tensors
        return self._with(tokens=tokens, answers=answers, instead=None)

    @property
    def inputs(self) -> tuple[Tensor]:
        """The arguments of a call of the model: the tokens."""
        return (self.tokens,)

    @property
    def n_prompts(self) -> int:
        """The number of prompts."""
        return len(self.tokens)

    @property
    def n_tokens(self) -> int:
        """The number of tokens."""
        return self.tokens.shape[1]

    @property
    def n_answers(self) -> int:
        """The number of answers of a prompt."""
        return self.answers.shape[1]

    def __repr__(self) -> str:
        """Return a line: how many prompts, how long, of which task, and the seed where they are held out."""
        return described(self)

    @property
    def extent(self) -> str:
        """The number of tokens of a prompt, in words."""
        return f"{self.n_tokens} tokens"

    @property
    def query(self) -> int:
        """The token that holds the last answer."""
        at: slice | Sequence[int] = self.read_at
        return range(self.n_tokens)[at][-1] if isinstance(at, slice) else at[-1]

    def token_words(self, index: int) -> list[str]:
        """Return what stands at each token of one prompt."""
        return [name_in(self.names, token) for token in self.tokens[index].tolist()]

    def right_words(self, index: int) -> list[str]:
        """Return the right answers of one prompt, ``?`` where one is unknown."""
        return ["?" if n == UNKNOWN else self.answer_word(n) for n in self.answers[index].tolist()]

    def answer_word(self, number: int) -> str:
        """Return an answer by its number in words."""
        return name_in(self.answer_names, number)

    # Outputs are logits [*loop, batch, answer, d_vocab_out].

    def errors(self, logits: Float[Tensor, "*loop batch answer vocab"]) -> Float[Tensor, "*loop batch answer"]:
        """Return the cross entropy of each answer in nats, at least in float32; NaN where it is unknown."""
        logs = at_least_single(logits).log_softmax(-1)
        return 0 - _chosen(logs, self.answers)  # a certain answer is 0, not -0

    def correct(self, logits: Float[Tensor, "*loop batch answer vocab"]) -> Bool[Tensor, "*loop batch answer"] | None:
        """Return whether the answer with the largest logit is right."""
        return logits.argmax(-1) == self.answers.to(logits.device)

    def ranks(
        self, logits: Float[Tensor, "*loop batch answer vocab"], final: Float[Tensor, "batch answer vocab"]
    ) -> Float[Tensor, "*loop batch answer"]:
        """Return how many answers have a larger logit than the one that is largest in ``final``."""
        chosen = final.argmax(-1).to(logits.device).expand(logits.shape[:-1])[..., None]
        return (logits > logits.gather(-1, chosen)).sum(-1).float()

    def distance(
        self, one: Float[Tensor, "*loop batch answer vocab"], other: Float[Tensor, "*other batch answer vocab"]
    ) -> Float[Tensor, "*loop batch answer"]:
        """Return the Kullback-Leibler divergence KL(other ‖ one) of the answers' distributions, in nats.

        Where ``other`` is the best predictor, which is certain of the right answer, it is the cross entropy.
        """
        logs, reference = (at_least_single(part).log_softmax(-1) for part in (one, other))
        return (reference.exp() * (reference - logs)).sum(-1)

    step = distance

    def answer(self, logits: Float[Tensor, "*loop batch answer vocab"]) -> Float[Tensor, "*loop batch"]:
        """Return the logit difference at the query: the right answer's against ``instead``, or its log odds."""
        at_query, own = self._at_query(logits, self.answers[:, -1])
        if self.instead is not None:
            return own - self._at_query(logits, self.instead)[1]
        is_right = F.one_hot(self.answers[:, -1].to(logits.device).clamp_min(0), at_query.shape[-1]).bool()
        return own - at_query.masked_fill(is_right, -torch.inf).logsumexp(-1)

    def contrast(self, logits: Float[Tensor, "*loop batch answer vocab"]) -> tuple[str, Float[Tensor, "*loop batch"]]:
        """Return the logit difference at the query in words, and its values: a linear function of the logits.

        It is ``answer`` where the right answers are compared with ``instead``. Otherwise, log odds being no linear
        function, it is the right answer's logit minus the mean logit of all others.
        """
        if self.instead is not None:
            return "the logit difference (right answer − another)", self.answer(logits)
        at_query, own = self._at_query(logits, self.answers[:, -1])
        others = (at_query.sum(-1) - own) / (at_query.shape[-1] - 1)
        return "the logit difference (right answer − mean of all others)", own - others

    def training_loss(self, logits: Float[Tensor, "loop batch answer vocab"], kind: str) -> tuple[Tensor, Tensor]:
        """Return the mean cross entropy over loops and answers, and what is recorded of a step (``measures``).

        These are the loss, the error at the query and the share of right answers after the last loop.
        """
        errors = self.errors(logits)
        loss = errors.mean()
        last = logits[-1].detach()
        right = (last.argmax(-1) == self.answers.to(last.device)).float().mean()
        return loss, torch.stack([loss.detach(), errors[-1, :, -1].detach().mean(), right])

    def _at_query(
        self, logits: Float[Tensor, "*loop batch answer vocab"], chosen: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "*loop batch vocab"], Float[Tensor, "*loop batch"]]:
        """Return the logits at the query, at least in float32, and those of the chosen answers."""
        at_query = at_least_single(logits[..., -1, :])
        return at_query, _chosen(at_query, chosen)

    def _with(self: Kind, **fields: Any) -> Kind:
        changed: Kind = dataclasses.replace(self, **fields)  # type: ignore[type-var]  # its subclasses are dataclasses
        return changed


def name_in(names: Sequence[str], number: int) -> str:
    """Return a token's name by its number; models often have more tokens than have names."""
    return names[number] if 0 <= number < len(names) else f"#{number}"


def _chosen(values: Float[Tensor, "*loop vocab"], chosen: Int[Tensor, ...]) -> Float[Tensor, "*loop"]:
    """Pick one value of the vocabulary for each answer; NaN where the answer is unknown."""
    index = chosen.to(values.device).expand(values.shape[:-1])
    picked = values.gather(-1, index.clamp_min(0)[..., None]).squeeze(-1)
    return picked.masked_fill(index == UNKNOWN, torch.nan)
