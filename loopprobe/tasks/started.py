"""Token tasks whose prompts begin with a start, and what those that ship share."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loopprobe.tasks.interface import NUMBER, TokenTask
from loopprobe.tasks.prompts import uniform

Names = tuple[str, ...]
TokenIds = Int[Tensor, "batch pos"]
Chance = Float[Tensor, "batch numbers"]  # uniform numbers, as many a prompt as a task asks for
START = "^"


class StartedTask(TokenTask):
    """A token task whose prompts begin with a start, which ``symbols_of``, ``lay`` and ``answer`` know nothing of.

    Without it attention over equal tokens gives the same at each of them, however many there are, so that "a" and
    "a a" could not be told apart where positions are rotary or none.
    """

    compares: ClassVar[bool] = False  # whether drawing compares all pairs of tokens

    @property
    def digits(self) -> int:
        """The numbers that stand in one token."""
        return 1

    @property
    def symbols_of(self) -> Names:
        """The names of the tokens but the start."""
        raise NotImplementedError

    @property
    def inputs(self) -> Names:  # type: ignore[override]
        """The names of the tokens; the last is the start of every prompt."""
        return (*self.symbols_of, START)

    def n_symbols(self, length: int) -> int:
        """Return how many tokens but the start a prompt has."""
        return length

    def chances(self, length: int) -> int:
        """Return how many uniform numbers a prompt takes."""
        return length

    def lay(self, chance: Chance, length: int) -> TokenIds:
        """Make tokens from uniform numbers, [batch, ``chances``]."""
        raise NotImplementedError

    def answer(self, tokens: TokenIds) -> Int[Tensor, "batch answer"]:
        """Return the right answers."""
        raise NotImplementedError

    def may_be(self, length: int) -> list[int]:
        """Return how many symbols may stand at each token; 0 at marks."""
        raise NotImplementedError

    def held(self, tokens: TokenIds) -> dict[str, Int[Tensor, "batch pos"]]:
        """Return what a solver holds at each token."""
        return {}

    def aims(self, tokens: TokenIds) -> dict[str, Bool[Tensor, "batch pos"]]:
        """Return the groups of tokens that the answer at the query depends on."""
        return {}

    def n_tokens(self, length: int) -> int:
        """Return how many tokens a prompt has, with its start."""
        return 1 + self.n_symbols(length)

    def draw(self, n_prompts: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw tokens and solve them; the first prompts of a seed do not depend on how many are drawn."""
        symbols = self.lay(uniform((n_prompts, self.chances(length)), generator), length)
        tokens = torch.cat([torch.full((n_prompts, 1), len(self.symbols_of)), symbols], 1)
        return tokens, self.solve(tokens)

    def solve(self, tokens: TokenIds) -> Int[Tensor, "batch answer"]:
        """Return the right answers of any tokens."""
        return self.answer(tokens[:, 1:])

    def free(self, length: int) -> list[int]:
        """Return how many symbols may stand at each token; 0 at the start and at marks."""
        return [0, *self.may_be(length)]

    def results(self, tokens: TokenIds) -> dict[str, Int[Tensor, "batch pos"]]:
        """Return what a solver holds at each token, by name: whole numbers, -1 where there is none."""
        return {name: F.pad(values, (1, 0), value=-1) for name, values in self.held(tokens[:, 1:]).items()}

    def targets(self, tokens: TokenIds) -> dict[str, Bool[Tensor, "batch pos"]]:
        """Return the groups of tokens that the answer at the query depends on, by name."""
        return {name: F.pad(places, (1, 0)) for name, places in self.aims(tokens[:, 1:]).items()}

    def memory(self, n_prompts: int, length: int) -> int:
        """Return the bytes of random numbers, tokens, and which tokens are alike."""
        n_tokens = self.n_tokens(length)
        return n_prompts * NUMBER * n_tokens * (4 + self.digits + (n_tokens if self.compares else 0))


def integers(chance: Tensor, n: int) -> Tensor:
    """Return whole numbers below n from uniform numbers."""
    return (chance * n).long()


def number_names(n: int) -> Names:
    """Return the numbers below n."""
    return tuple(map(str, range(n)))


def letters(n: int) -> Names:
    """Return the first letters."""
    return tuple("abcdefghijklmnopqrstuvwxyz"[:n])


def doubling(length: int) -> int:
    """Return the depth t after which 2^t things are joined: at least the length."""
    return max(1, math.ceil(math.log2(length)))
