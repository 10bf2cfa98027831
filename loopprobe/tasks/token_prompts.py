"""Prompts of a token task: what a model reads, and the right answers at the last tokens, which the task tells."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from loopprobe.config.schema import TaskConfig
from loopprobe.tasks.logits import LogitPrompts
from loopprobe.tasks.token_rules import corrupted_tokens, length_of, results_of, solve_tokens, targets_of

CERTAIN = 100.0  # logit of the right answer over all others, in the outputs of the best predictor


@dataclass(frozen=True)
class TokenPrompts(LogitPrompts):
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

    @property
    def length(self) -> int:
        """The length in what the task counts, such as digits."""
        return int(self.origin.get("length") or length_of(self.task, self.n_tokens))

    @property
    def read_at(self) -> slice:
        """The tokens that hold the answers: the last ones."""
        return slice(self.n_tokens - self.n_answers, self.n_tokens)

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
        """Return the predictor that knows how often each answer is right, and the median of its errors at the query."""
        answers = self.answers[:, -1].cpu()
        counts = torch.bincount(answers, minlength=len(self.answer_names)).double()
        return "guessing by frequency", float(np.median(-(counts / counts.sum()).log().numpy()[answers]))

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
