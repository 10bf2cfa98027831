"""Prompts of text for language models: tokens, the tokens that follow, and where these are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loopprobe.errors import LoopprobeError
from loopprobe.tasks.logits import UNKNOWN, LogitPrompts, name_in
from loopprobe.tasks.prompts import uniform


@dataclass(frozen=True, repr=False)
class TextPrompts(LogitPrompts):
    """A ``PromptBatch`` of text for a causal or a masked language model; all prompts have the same number of tokens.

    ``tasks.text_sources`` makes them of texts, ``tasks.text_lines`` of JSONL, ``tasks.text_windows`` of a long text.

    An answer of -1 is unknown, as the reply to a chat prompt is: its error is NaN, and ``correct`` returns None.
    ``answered`` puts the model's own answers in such places.

    Attributes:
        tokens: the numbers of the tokens, [batch, pos].
        answers: the tokens that are right at ``read_at``, of a causal model the next ones, [batch, answer].
        read_at: the tokens that hold the answers, in rising order; the last of them is the query. None: the last ones.
            Logits of a large vocabulary are large: read where they are needed.
        texts: how the tokens of the vocabulary are shown, by their numbers; further ones are shown as ``#123``.
        origin: a record of how they were made.
        instead: the answers at the query that ``answer`` compares the right ones with, [batch]; None: all others.
        special: the tokens that are no text, such as the one that begins a prompt; corruptions leave them alone.
    """

    tokens: Int[Tensor, "batch pos"]
    answers: Int[Tensor, "batch answer"]
    read_at: slice | Sequence[int] = None  # type: ignore[assignment]
    texts: tuple[str, ...] = ()
    origin: dict[str, Any] = field(default_factory=dict)
    instead: Int[Tensor, " batch"] | None = None
    special: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.answers.ndim != 2 or len(self.tokens) != len(self.answers):
            raise LoopprobeError(
                f"tokens {tuple(self.tokens.shape)} and answers {tuple(self.answers.shape)} must be [batch, pos] and "
                "[batch, answer]: reshape them"
            )
        if self.read_at is None:
            object.__setattr__(self, "read_at", slice(self.n_tokens - self.n_answers, self.n_tokens))
        at, places = self.read_at, range(self.n_tokens)
        read = list(places[at]) if isinstance(at, slice) else list(at)
        if len(read) != self.n_answers or read != sorted(set(read)) or not set(read) <= set(places):
            raise LoopprobeError(
                f"read_at ({at}) must name {self.n_answers} of the tokens 0 to {self.n_tokens - 1} in rising order, "
                "one for each answer: change it"
            )

    @property
    def roles(self) -> list[str]:
        """The place of each token, with its text where all prompts share it: ``3 ' France'``."""
        if not self.n_prompts:
            return [str(place) for place in range(self.n_tokens)]
        shared = (self.tokens == self.tokens[:1]).all(0).tolist()
        first = enumerate(zip(self.tokens[0].tolist(), shared, strict=True))
        return [f"{place} {self.name(token)}" if alike else str(place) for place, (token, alike) in first]

    def name(self, token: int) -> str:
        """Return how a token is shown; models often have more tokens than their tokenizer has."""
        return name_in(self.texts, token)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of tokens by their numbers; a model may have further ones (``name``)."""
        return self.texts

    @property
    def answer_names(self) -> tuple[str, ...]:
        """The names of answers by their numbers; a model may have further ones (``name``)."""
        return self.texts

    @property
    def knows_answers(self) -> bool:
        """Whether every answer is known."""
        return not bool((self.answers == UNKNOWN).any())

    def answered(self, logits: Float[Tensor, "*loop batch answer vocab"]) -> TextPrompts:
        """Return the same prompts, with the most likely answer of these outputs where none is known.

        Args:
            logits: of the model that stands in; where they have loops, those of the last.
        """
        last = logits.flatten(0, -4)[-1] if logits.ndim > 3 else logits
        own = last.argmax(-1).to(self.answers.device)
        answers = torch.where(self.answers == UNKNOWN, own, self.answers)
        return self._with(answers=answers, origin=self.origin | {"answers": "the model's own where none is known"})

    def correct(self, logits: Float[Tensor, "*loop batch answer vocab"]) -> Bool[Tensor, "*loop batch answer"] | None:
        """Return whether the answer with the largest logit is right; None where an answer is unknown."""
        return super().correct(logits) if self.knows_answers else None

    def against(self, corrupted: TextPrompts) -> TextPrompts:
        """Return the same prompts, whose ``answer`` tells them from corrupted ones.

        It is the logit difference to ``instead`` where that is given, or else to the answers of the corrupted prompts
        where all of these are known and none is the right one. Otherwise it remains the log odds of the right answer.

        Raises:
            LoopprobeError: a right answer is unknown.
        """
        if bool((self.answers[:, -1] == UNKNOWN).any()):
            raise LoopprobeError(
                "the answers at the query are unknown, and patching moves the right one: give the answers, or let the "
                "model's own stand for them (TextPrompts.answered)"
            )
        if self.instead is not None:
            return self
        own, other = self.answers[:, -1], corrupted.answers[:, -1].to(self.answers.device)
        return self._with(instead=other) if bool(((own != other) & (other != UNKNOWN)).all()) else self

    def baseline(self) -> None:
        """Return None: how often each word is right in such texts is not known from a few of them."""

    def targets(self) -> dict[str, Float[Tensor, "batch token"]]:
        """Return the groups of tokens whose attention is of interest: 1 where a token is in the group, else 0.

        They are the token before the query; the first token, a usual sink (Xiao et al., arXiv 2309.17453); the earlier
        places of the query's own token; and the tokens that followed it there, which an induction head attends to
        (Olsson et al., arXiv 2209.11895). The query itself is in no group.
        """
        query = self.query
        place = torch.arange(self.n_tokens, device=self.tokens.device).expand(self.n_prompts, -1)
        earlier = place < query
        same = (self.tokens == self.tokens[:, query, None]) & earlier
        groups = {
            "token before": place == query - 1,
            "first token": (place == 0) & earlier,
            "same token earlier": same,
            "token after the same token earlier": same.roll(1, 1) & earlier,
        }
        return {name: group.float() for name, group in groups.items()}

    def corrupted(
        self, kind: str, generator: torch.Generator, *, example: int | None = None, **options: Any
    ) -> TextPrompts:
        """Return a copy of the prompts with one thing changed.

        Args:
            kind: the change. ``token`` gives one token, special tokens and the query's aside, the place of another one
                of the batch; the answers stay, since what would follow is not known. ``prompt`` puts another prompt of
                the batch, with its answers, in the place of each: the one that stands a random number further.
            generator: a CPU generator; it alone determines the result.
            example: the token that ``token`` changes, from 0; None: any at random.
            options: of other prompts; none of them changes anything.

        Raises:
            LoopprobeError: there is no such kind or token, or nothing to change it to.
        """
        if kind not in self.corruptions:
            raise LoopprobeError(f"corruption ({kind!r}) must be {' or '.join(self.corruptions)}: choose one")
        origin = self.origin | {"corruption": kind}
        if kind == "prompt":
            if self.n_prompts < 2:
                raise LoopprobeError("corruption 'prompt' takes another prompt of the batch and there is one alone: "
                                     "choose token, or give further prompts")  # fmt: skip
            shift = 1 + int(uniform((1,), generator) * (self.n_prompts - 1))
            return self._with(tokens=self.tokens.roll(shift, 0), answers=self.answers.roll(shift, 0), instead=None,
                              origin=origin)  # fmt: skip
        tokens = self._with_other_token(self.tokens.cpu().clone(), generator, example)
        return self._with(tokens=tokens.to(self.tokens.device), instead=None, origin=origin)

    def _with_other_token(
        self, tokens: Int[Tensor, "batch pos"], generator: torch.Generator, example: int | None
    ) -> Int[Tensor, "batch pos"]:
        """Give one token of each prompt the place of another one of the batch."""
        special = torch.tensor(sorted(self.special), dtype=tokens.dtype)
        free = ~torch.isin(tokens, special)
        others = torch.unique(tokens[free])
        free[:, self.query] = False
        if example is not None:
            if not 0 <= example < self.n_tokens or not free[:, example].all():
                raise LoopprobeError(
                    f"example ({example}) must be a token from 0 to {self.n_tokens - 1} that is no special one and not "
                    f"the query's ({self.query}): choose another"
                )
            free &= torch.arange(self.n_tokens) == example
        if len(others) < 2 or not free.any(1).all():
            raise LoopprobeError(
                "corruption 'token' needs a token besides the query's and another one to take its place: give longer "
                "prompts, or corrupted ones"
            )
        chance, rows = uniform((self.n_prompts, 2), generator), torch.arange(self.n_prompts)
        nth = (chance[:, 0] * free.sum(1)).long()
        place = (free.long().cumsum(1) == nth[:, None] + 1).int().argmax(1)
        own = torch.searchsorted(others, tokens[rows, place])
        shift = 1 + (chance[:, 1] * (len(others) - 1)).long()
        tokens[rows, place] = others[(own + shift) % len(others)]
        return tokens
