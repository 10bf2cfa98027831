"""Prompts of tokens: what a model reads, the right answers at the last tokens, and how far an answer is from right."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loopprobe.config.schema import TaskConfig
from loopprobe.support.statistics import at_least_single
from loopprobe.tasks.token_rules import corrupted_tokens, length_of, results_of, solve_tokens, targets_of

CERTAIN = 100.0  # logit of the right answer over all others, in the outputs of the best predictor


@dataclass(frozen=True)
class TokenPrompts:
    """A ``PromptBatch`` of tokens with known answers, which stand at the last ``n_answers`` tokens.

    Attributes:
        tokens: the numbers of the tokens, [batch, pos].
        answers: the numbers of the right answers, [batch, answer].
        task: the task that they are of, which tells the names of tokens and answers.
        origin: a record of how they were drawn.
        instead: the answers at the query that ``answer`` compares the right ones with, [batch]; None: all others.
    """

    tokens: Int[Tensor, "batch pos"]
    answers: Int[Tensor, "batch answer"]
    task: TaskConfig
    origin: dict[str, Any] = field(default_factory=dict)
    instead: Int[Tensor, " batch"] | None = None

    unit: ClassVar[str] = "cross entropy, nats"
    query_unit: ClassVar[str] = "cross entropy at the query, nats"
    step_unit: ClassVar[str] = "KL divergence, nats"
    answer_unit: ClassVar[str] = "logits"
    tokens_per_point: ClassVar[int] = 1
    output_size: ClassVar[None] = None
    measures: ClassVar[tuple[str, ...]] = ("loss", "error", "accuracy")
    corruptions: ClassVar[tuple[str, ...]] = ("token", "prompt")

    def split(self, size: int) -> list[TokenPrompts]:
        """Split the prompts into batches of ``size``; the last batch may be smaller."""
        return [self[i : i + size] for i in range(0, self.n_prompts, size)]

    def __getitem__(self, chosen: Any) -> TokenPrompts:
        """Select prompts by a slice, indices or a mask."""
        instead = None if self.instead is None else self.instead[chosen]
        return dataclasses.replace(self, tokens=self.tokens[chosen], answers=self.answers[chosen], instead=instead)

    def to(self, target: torch.device | str | torch.dtype) -> TokenPrompts:
        """Copy the prompts to another device; a precision leaves whole numbers as they are."""
        if isinstance(target, torch.dtype):
            return self
        instead = None if self.instead is None else self.instead.to(target)
        return dataclasses.replace(
            self, tokens=self.tokens.to(target), answers=self.answers.to(target), instead=instead
        )

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """What a training step needs of them: tokens and answers."""
        return self.tokens, self.answers

    def of(self, *tensors: Tensor) -> TokenPrompts:
        """Return prompts of the same kind with other ``tensors``."""
        tokens, answers = tensors
        return dataclasses.replace(self, tokens=tokens, answers=answers, instead=None)

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
    def length(self) -> int:
        """The length in what the task counts, such as digits."""
        return int(self.origin.get("length") or length_of(self.task, self.n_tokens))

    @property
    def n_answers(self) -> int:
        """The number of answers, at the last tokens."""
        return self.answers.shape[1]

    @property
    def extent(self) -> str:
        """The number of tokens of a prompt, in words."""
        return f"{self.n_tokens} tokens"

    @property
    def read_at(self) -> slice:
        """The tokens that hold the answers: the last ones."""
        return slice(self.n_tokens - self.n_answers, self.n_tokens)

    @property
    def query(self) -> int:
        """The last token, which holds the last answer."""
        return self.n_tokens - 1

    @property
    def roles(self) -> list[str]:
        """The names of the tokens by their places, such as x3, or the mark that stands there in every prompt."""
        names = self.names
        same = (self.tokens == self.tokens[:1]).all(0).tolist() if self.n_prompts > 1 else [False] * self.n_tokens
        marks = [names[token] if alike else "" for token, alike in zip(self.tokens[0].tolist(), same, strict=True)]
        return [mark or f"x{place}" for place, mark in enumerate(marks)]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of tokens by their numbers."""
        assert self.task.tokens is not None
        return self.task.tokens.inputs(self.task)

    @property
    def answer_names(self) -> tuple[str, ...]:
        """The names of answers by their numbers."""
        assert self.task.tokens is not None
        return self.task.tokens.outputs(self.task)

    # Outputs are logits [*loop, batch, answer, d_vocab_out].

    def errors(self, logits: Float[Tensor, "*loop batch answer vocab"]) -> Float[Tensor, "*loop batch answer"]:
        """Return the cross entropy of each answer in nats, at least in float32."""
        logs = at_least_single(logits).log_softmax(-1)
        right = self.answers.to(logits.device).expand(logs.shape[:-1])
        return -logs.gather(-1, right[..., None]).squeeze(-1)

    def correct(self, logits: Float[Tensor, "*loop batch answer vocab"]) -> Bool[Tensor, "*loop batch answer"]:
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
        is_right = F.one_hot(self.answers[:, -1].to(logits.device), at_query.shape[-1]).bool()
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

    def _at_query(
        self, logits: Float[Tensor, "*loop batch answer vocab"], chosen: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "*loop batch vocab"], Float[Tensor, "*loop batch"]]:
        """Return the logits at the query, at least in float32, and those of the chosen answers."""
        at_query = at_least_single(logits[..., -1, :])
        chosen = chosen.to(logits.device).expand(at_query.shape[:-1])
        return at_query, at_query.gather(-1, chosen[..., None]).squeeze(-1)

    def against(self, corrupted: TokenPrompts) -> TokenPrompts:
        """Return the same prompts, whose ``answer`` is compared with that of corrupted ones where the two differ.

        Where they are the same, it is compared with the next answer in the order of their numbers.
        """
        own, other = self.answers[:, -1], corrupted.answers[:, -1].to(self.answers.device)
        following = (own + 1) % len(self.answer_names)
        return dataclasses.replace(self, instead=torch.where(own == other, following, other))

    def certain(self) -> Float[Tensor, "batch answer vocab"]:
        """Return the logits of the best predictor, which knows the answers."""
        return CERTAIN * F.one_hot(self.answers, len(self.answer_names)).float()

    def baseline(self) -> tuple[str, float]:
        """Return the predictor that knows how often each answer is right, and its mean error at the query."""
        counts = torch.bincount(self.answers[:, -1].cpu(), minlength=len(self.answer_names)).double()
        shares = counts[counts > 0] / counts.sum()
        return "guessing by frequency", -(shares * shares.log()).sum().item()

    def training_loss(self, logits: Float[Tensor, "loop batch answer vocab"], kind: str) -> tuple[Tensor, Tensor]:
        """Return the mean cross entropy over loops and answers, and what is recorded of a step (``measures``).

        These are the loss, the error at the query and the share of right answers after the last loop.
        """
        errors = self.errors(logits)
        loss = errors.mean()
        last = logits[-1].detach()
        right = self.correct(last).float().mean()
        return loss, torch.stack([loss.detach(), errors[-1, :, -1].detach().mean(), right])

    def targets(self) -> dict[str, Float[Tensor, "batch token"]]:
        """Return the groups of tokens whose attention is of interest: 1 where a token is in the group, else 0."""
        groups = targets_of(self.task, self.tokens)
        token = torch.arange(self.n_tokens, device=self.tokens.device).expand(self.n_prompts, -1)
        return {"token before": (token == self.query - 1).float()} | {
            name: (places & (token < self.query)).float() for name, places in groups.items()
        }

    def results(self) -> dict[str, Int[Tensor, "batch pos"]]:
        """Return what a solver of the task would hold at each token, by name: whole numbers, -1 where there is none."""
        return results_of(self.task, self.tokens)

    def corrupted(
        self, kind: str, generator: torch.Generator, *, example: int | None = None, **options: Any
    ) -> TokenPrompts:
        """Return a copy of the prompts with one thing changed, see ``tasks.token_rules.corrupted_tokens``."""
        tokens = corrupted_tokens(self.task, self.tokens, self.length, kind, generator, example)
        answers = solve_tokens(self.task, tokens)
        origin = self.origin | {"corruption": kind}
        return dataclasses.replace(self, tokens=tokens, answers=answers, origin=origin, instead=None).to(
            self.tokens.device
        )
