"""Token tasks that add and compose: sums, addition by columns, and products in S5."""

from __future__ import annotations

import functools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loopprobe.config.schema import TaskConfig
from loopprobe.config.token_tasks import GENERATORS, S5, SWAPS

TokenIds = Int[Tensor, "batch pos"]
Chance = Float[Tensor, "batch numbers"]  # uniform numbers, as many a prompt as a task asks for


def integers(chance: Tensor, n: int) -> Tensor:
    return (chance * n).long()


# Sums: parity, modular addition, cyclic groups


def _modulus(task: TaskConfig) -> int:
    return 2 if task.name == "parity" else int(task.modulus or 2)


def draw_sum(task: TaskConfig, chance: Chance, length: int) -> TokenIds:
    summands = integers(chance, _modulus(task))
    mark = torch.full((len(chance), 1), _modulus(task))
    return summands if task.name == "cyclic" else torch.cat([summands, mark], 1)


def sums(task: TaskConfig, tokens: TokenIds) -> TokenIds:
    """The sum of the tokens up to each, modulo m; marks add nothing."""
    m = _modulus(task)
    return torch.where(tokens < m, tokens, 0).cumsum(1) % m


def solve_sum(task: TaskConfig, tokens: TokenIds) -> Tensor:
    so_far = sums(task, tokens)
    return so_far if task.name == "cyclic" else so_far[:, -1:]


def free_sum(task: TaskConfig, length: int) -> list[int]:
    return [_modulus(task)] * length + ([] if task.name == "cyclic" else [0])


# Addition by columns


def draw_addition(task: TaskConfig, chance: Chance, length: int) -> TokenIds:
    """Columns of digits; each prompt has a rate of its own, from 0 to 1, of columns that pass a carry on."""
    base, numbers = task.base or 2, task.numbers or 2
    rate, chance = chance[:, :1], chance[:, 1:].reshape(-1, length, numbers + 1)
    digits = integers(chance[..., :numbers], base)
    passing = (base - 1 - digits[..., :-1].sum(-1)) % base
    digits[..., -1] = torch.where(chance[..., -1] < rate, passing, digits[..., -1])
    places = base ** torch.arange(numbers - 1, -1, -1)
    columns = (digits * places).sum(-1)
    return torch.cat([columns, torch.full((len(chance), 1), base**numbers)], 1)


def added(task: TaskConfig, tokens: TokenIds) -> tuple[Tensor, Tensor, Tensor]:
    """Of each token the sum of its digits, the carry that comes in, and the digit of the result."""
    base, numbers = task.base or 2, task.numbers or 2
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


def addition_results(task: TaskConfig, tokens: TokenIds) -> dict[str, Tensor]:
    columns, carries, digits = added(task, tokens)
    return {"sum of the column": columns, "carry": carries, "digit": digits}


# Composition in S5


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


def draw_s5(task: TaskConfig, chance: Chance, length: int) -> TokenIds:
    return integers(chance, moved(task.moves or "swaps").shape[1])


def solve_s5(task: TaskConfig, tokens: TokenIds) -> Tensor:
    table = moved(task.moves or "swaps").to(tokens.device)
    state, states = torch.zeros_like(tokens[:, 0]), []
    for move in tokens.unbind(1):
        state = table[state, move]
        states.append(state)
    return torch.stack(states, 1)
