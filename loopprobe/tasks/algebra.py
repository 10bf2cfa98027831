"""Token tasks that add and compose: sums, addition by columns, and products in S5."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from loopprobe.errors import LoopprobeError
from loopprobe.tasks.started import Chance, Names, StartedTask, TokenIds, doubling, integers, number_names

S5 = tuple("".join(p) for p in itertools.permutations("12345"))  # what stands at places 1 to 5
SWAPS = tuple(f"({a}{b})" for a, b in itertools.combinations("12345", 2))
GENERATORS = ("(12)", "(12345)")
MOST_COLUMNS = 4096


class Sum(StartedTask):
    """A sum modulo a number, which is answered at a mark behind the summands, or with ``at_each`` at each of them."""

    theory = "constant depth suffices for solvable groups, with depth log n for all (Liu et al., arXiv 2210.10749)"
    at_each: ClassVar[bool] = False
    modulus: int = 2

    @property
    def symbols_of(self) -> Names:
        numbers = number_names(self.modulus)
        return numbers if self.at_each else (*numbers, "=")

    @property
    def outputs(self) -> Names:  # type: ignore[override]
        return number_names(self.modulus)

    def n_symbols(self, length: int) -> int:
        return length if self.at_each else length + 1

    def lay(self, chance: Chance, length: int) -> TokenIds:
        summands = integers(chance, self.modulus)
        mark = torch.full((len(chance), 1), self.modulus)
        return summands if self.at_each else torch.cat([summands, mark], 1)

    def so_far(self, tokens: TokenIds) -> TokenIds:
        """Return the sum of the tokens up to each; marks add nothing."""
        return torch.where(tokens < self.modulus, tokens, 0).cumsum(1) % self.modulus

    def answer(self, tokens: TokenIds) -> Tensor:
        sums = self.so_far(tokens)
        return sums if self.at_each else sums[:, -1:]

    def may_be(self, length: int) -> list[int]:
        return [self.modulus] * length + ([] if self.at_each else [0])

    def held(self, tokens: TokenIds) -> dict[str, Tensor]:
        return {"sum so far": self.so_far(tokens)}


@dataclass(frozen=True)
class Parity(Sum):
    """Whether the number of ones is even."""

    name = "parity"
    short = "parity"
    counts = "bits"

    length: int = 16


@dataclass(frozen=True)
class ModularAddition(Sum):
    """The sum of numbers modulo a number."""

    name = "modular_addition"
    short = "modadd"
    counts = "summands"

    length: int = 2
    modulus: int = 97


@dataclass(frozen=True)
class Cyclic(Sum):
    """The sum up to every element of a cyclic group."""

    name = "cyclic"
    short = "cyclic"
    counts = "elements"
    at_each = True

    length: int = 16
    modulus: int = 5


@dataclass(frozen=True)
class Addition(StartedTask):
    """The sum of numbers whose digits stand in columns, from the lowest on."""

    name = "addition"
    short = "add"
    counts = "digits"
    theory = "constant depth suffices, by looking ahead for carries; passing them on takes a loop a digit"

    length: int = 12
    base: int = 2
    numbers: int = 2

    def __post_init__(self) -> None:
        """Raise LoopprobeError where there are too many columns."""
        if (columns := self.base**self.numbers) > MOST_COLUMNS:
            raise LoopprobeError(
                f"{self.numbers} numbers in base {self.base} have {columns:,} columns, the most are {MOST_COLUMNS:,}: "
                "lower task.numbers or task.base"
            )

    @property
    def symbols_of(self) -> Names:
        digits = itertools.product(number_names(self.base), repeat=self.numbers)
        return (*("+".join(column) for column in digits), "=")

    @property
    def outputs(self) -> Names:  # type: ignore[override]
        return number_names(max(self.base, self.numbers))

    def n_symbols(self, length: int) -> int:
        return length + 1

    @property
    def digits(self) -> int:
        return self.numbers

    def chances(self, length: int) -> int:
        return 1 + length * (self.numbers + 1)

    def may_be(self, length: int) -> list[int]:
        return [self.base**self.numbers] * length + [0]

    def lay(self, chance: Chance, length: int) -> TokenIds:
        """Make columns of digits; each prompt has a rate of its own, from 0 to 1, of columns that pass a carry on."""
        base, numbers = self.base, self.numbers
        rate, chance = chance[:, :1], chance[:, 1:].reshape(-1, length, numbers + 1)
        digits = integers(chance[..., :numbers], base)
        passing = (base - 1 - digits[..., :-1].sum(-1)) % base
        digits[..., -1] = torch.where(chance[..., -1] < rate, passing, digits[..., -1])
        places = base ** torch.arange(numbers - 1, -1, -1)
        columns = (digits * places).sum(-1)
        return torch.cat([columns, torch.full((len(chance), 1), base**numbers)], 1)

    def added(self, tokens: TokenIds) -> tuple[Tensor, Tensor, Tensor]:
        """Return of each token the sum of its digits, the carry that comes in, and the digit of the result."""
        base, numbers = self.base, self.numbers
        places = base ** torch.arange(numbers, device=tokens.device)
        columns = (tokens[..., None] // places % base).sum(-1)
        columns = torch.where(tokens < base**numbers, columns, 0)
        carries, carry = [], torch.zeros_like(columns[:, 0])
        for column in columns.unbind(1):
            carries.append(carry)
            carry = (column + carry) // base
        incoming = torch.stack(carries, 1)
        is_last = tokens == base**numbers
        return columns, incoming, torch.where(is_last, incoming, (columns + incoming) % base)

    def answer(self, tokens: TokenIds) -> Tensor:
        return self.added(tokens)[2]

    def held(self, tokens: TokenIds) -> dict[str, Tensor]:
        columns, carries, digits = self.added(tokens)
        return {"sum of the column": columns, "carry": carries, "digit": digits}


@functools.cache
def moved(moves: str) -> Int[Tensor, "state move"]:
    """The arrangement after each move, from each arrangement; both by their numbers."""
    arrangements = {text: number for number, text in enumerate(S5)}
    sources = {
        "swaps": [_swap(name) for name in SWAPS],
        "generators": [_swap(GENERATORS[0]), [1, 2, 3, 4, 0]],
        "all": [[int(place) - 1 for place in text] for text in S5],
    }[moves]
    table = [[arrangements["".join(state[place] for place in source)] for source in sources] for state in S5]
    return torch.tensor(table)


def _swap(name: str) -> list[int]:
    """``(12)``: for each place the place that its content comes from."""
    one, other = (int(digit) - 1 for digit in name.strip("()"))
    places = list(range(5))
    places[one], places[other] = other, one
    return places


@dataclass(frozen=True)
class SymmetricGroup(StartedTask):
    """The product of moves in S5, as the arrangement after each."""

    name = "s5"
    short = "s5"
    counts = "moves"
    theory = (
        "depth log n suffices (Liu et al., arXiv 2210.10749) and constant depth does not unless TC0 = NC1 (Merrill and "
        "Sabharwal, arXiv 2207.00729)"
    )
    outputs: ClassVar[Names] = S5  # type: ignore[misc]

    length: int = 12
    moves: str = "swaps"

    @property
    def symbols_of(self) -> Names:
        return {"swaps": SWAPS, "generators": GENERATORS, "all": S5}[self.moves]

    def lay(self, chance: Chance, length: int) -> TokenIds:
        return integers(chance, len(self.symbols_of))

    def answer(self, tokens: TokenIds) -> Tensor:
        table = moved(self.moves).to(tokens.device)
        state, states = torch.zeros_like(tokens[:, 0]), []
        for move in tokens.unbind(1):
            state = table[state, move]
            states.append(state)
        return torch.stack(states, 1)

    def may_be(self, length: int) -> list[int]:
        return [len(self.symbols_of)] * length

    def held(self, tokens: TokenIds) -> dict[str, Tensor]:
        return {"product so far": self.answer(tokens)}

    def least_depth(self, length: int) -> int:
        return doubling(length)
