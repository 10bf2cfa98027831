"""Prompts of a token task: what a model reads, and the right answers, which stand at tokens that the task names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from loopprobe.config.schema import TaskConfig
from loopprobe.errors import LoopprobeError
from loopprobe.tasks.logits import LogitPrompts
from loopprobe.tasks.token_corruptions import corrupted_tokens

CERTAIN = 100.0  # logit of the right answer over all others, in the outputs of the best predictor


@dataclass(frozen=True, repr=False)
class TokenPrompts(LogitPrompts):
    """A ``PromptBatch`` of tokens with known answers, which stand at the last tokens or at others that are named.

    Attributes:
        tokens: the numbers of the tokens, [batch, pos].
        answers: the numbers of the right answers, [batch, answer].
        task: the task that they are of, which tells the names of tokens and answers.
        origin: a record of how they were drawn.
        instead: the answers at the query that ``answer`` compares the right ones with, [batch]; None: all others.
        places: the tokens that hold the answers, in rising order; None: the last ones.
    """

    tokens: Int[Tensor, "batch pos"]
    answers: Int[Tensor, "batch answer"]
    task: TaskConfig
    origin: dict[str, Any] = field(default_factory=dict)
    instead: Int[Tensor, " batch"] | None = None
    places: tuple[int, ...] | None = None

    @property
    def length(self) -> int:
        """The length in what the task counts, such as digits."""
        return int(self.origin.get("length") or length_of(self.task, self.n_tokens))

    @property
    def read_at(self) -> slice | Sequence[int]:
        """The tokens that hold the answers."""
        return slice(self.n_tokens - self.n_answers, self.n_tokens) if self.places is None else list(self.places)

    @property
    def corruptions(self) -> tuple[str, ...]:  # type: ignore[override]
        """The kinds of ``corrupted``; one token can be another where the task solves any tokens."""
        solves = self.task.rules.solve(self.tokens[:1]) is not None
        return ("token", "prompt") if solves else ("prompt",)

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
        return tuple(self.task.rules.inputs)

    @property
    def answer_names(self) -> tuple[str, ...]:
        """The names of answers by their numbers."""
        return tuple(self.task.rules.outputs or self.task.rules.inputs)

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
        groups = self.task.rules.targets(self.tokens)
        token = torch.arange(self.n_tokens, device=self.tokens.device).expand(self.n_prompts, -1)
        return {"token before": (token == self.query - 1).float()} | {
            name: (places & (token < self.query)).float() for name, places in groups.items()
        }

    def results(self) -> dict[str, Int[Tensor, "batch pos"]]:
        """Return what a solver of the task would hold at each token, by name: whole numbers, -1 where there is none."""
        held: dict[str, Int[Tensor, "batch pos"]] = self.task.rules.results(self.tokens)
        return held

    def corrupted(
        self, kind: str, generator: torch.Generator, *, example: int | None = None, **options: Any
    ) -> TokenPrompts:
        """Return a copy of the prompts with one thing changed, see ``tasks.token_corruptions``."""
        rules = self.task.rules
        tokens, answers = corrupted_tokens(rules, self.tokens, self.answers, self.length, kind, generator, example)
        origin = self.origin | {"corruption": kind}
        return dataclasses.replace(self, tokens=tokens, answers=answers, origin=origin, instead=None).to(
            self.tokens.device
        )


def length_of(task: TaskConfig, n_tokens: int) -> int:
    """Return the length of prompts with so many tokens; the training's where their number does not depend on it.

    Raises:
        LoopprobeError: no prompts of the task have so many tokens.
    """
    lengths = (task.length or 1, *range(1, n_tokens + 1))
    if task.rules.longest is not None:
        lengths = tuple(length for length in lengths if length <= task.rules.longest)
    length: int | None = next((n for n in lengths if task.rules.n_tokens(n) == n_tokens), None)
    if length is None:
        raise LoopprobeError(f"no prompts of {task.name} have {n_tokens} tokens: give prompts as the task draws them")
    return length
