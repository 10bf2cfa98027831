"""The token tasks: what their tokens and answers are called, how many there are, and what theory says of the loops.

Imports no torch. The prompts themselves are drawn in ``tasks.tokens``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Names = tuple[str, ...]
S5 = tuple("".join(p) for p in itertools.permutations("12345"))  # what stands at places 1 to 5
SWAPS = tuple(f"({a}{b})" for a, b in itertools.combinations("12345", 2))
GENERATORS = ("(12)", "(12345)")
START = "^"
UNDEFINED = "∅"  # the answer where there is none
BRACKETS = ("(", ")", "[", "]")


@dataclass(frozen=True)
class TokenTask:
    """The facts of a token task; functions take its ``TaskConfig``.

    Attributes:
        short: the part of a model's name.
        counts: what ``length`` counts, in words.
        defaults: the fields of ``TaskConfig`` that it has, with their defaults.
        symbols, outputs: the names of its tokens but the start, and of its answers, in the order of their numbers.
        n_symbols, n_answers: how many tokens but the start a prompt of a length has, and how many answers, which stand
            at the last tokens.
        theory: what is known of the depth that the task needs, and where it is shown.
        least_depth: the least depth, in layers one after the other, that is known to suffice at a length; None where
            theory gives no number.
    """

    short: str
    counts: str
    defaults: Mapping[str, Any]
    symbols: Callable[[Any], Names]
    outputs: Callable[[Any], Names]
    n_symbols: Callable[[Any, int], int]
    n_answers: Callable[[Any, int], int]
    theory: str
    least_depth: Callable[[int], int] | None = None

    def inputs(self, task: Any) -> Names:
        """The names of its tokens, in the order of their numbers; the last is the start of every prompt.

        Without it attention over equal tokens gives the same at each of them, however many there are, so that "a" and
        "a a" could not be told apart where positions are rotary or none.
        """
        return (*self.symbols(task), START)

    def n_tokens(self, task: Any, length: int) -> int:
        """How many tokens a prompt of a length has."""
        return 1 + self.n_symbols(task, length)


def _numbers(n: int) -> Names:
    return tuple(map(str, range(n)))


def _doubling(length: int) -> int:
    """The depth t after which 2^t things are joined: at least the length."""
    return max(1, math.ceil(math.log2(length)))


def _letters(task: Any) -> Names:
    return tuple("abcdefghijklmnopqrstuvwxyz"[: task.symbols])


def _columns(task: Any) -> Names:
    digits = itertools.product(_numbers(task.base), repeat=task.numbers)
    return (*("+".join(column) for column in digits), "=")


def _moves(task: Any) -> Names:
    return {"swaps": SWAPS, "generators": GENERATORS, "all": S5}[task.moves]


_SOLVABLE = "constant depth suffices for solvable groups, with depth log n for all (Liu et al., arXiv 2210.10749)"
_COPYING = "two layers suffice with positions (Jelassi et al., arXiv 2402.01032)"

TOKEN_TASKS: dict[str, TokenTask] = {
    "parity": TokenTask(
        "parity", "bits", {"length": 16},
        lambda task: ("0", "1", "="), lambda task: ("0", "1"),
        lambda task, n: n + 1, lambda task, n: 1, _SOLVABLE,
    ),
    "copy": TokenTask(
        "copy", "symbols", {"length": 12, "symbols": 8},
        lambda task: (*_letters(task), ">"), _letters,
        lambda task, n: 2 * n, lambda task, n: n, _COPYING,
    ),
    "reverse": TokenTask(
        "reverse", "symbols", {"length": 12, "symbols": 8},
        lambda task: (*_letters(task), ">"), _letters,
        lambda task, n: 2 * n, lambda task, n: n, _COPYING,
    ),
    "addition": TokenTask(
        "add", "digits", {"length": 12, "base": 2, "numbers": 2},
        _columns, lambda task: _numbers(max(task.base, task.numbers)),
        lambda task, n: n + 1, lambda task, n: n + 1,
        "constant depth suffices, by looking ahead for carries; passing them on takes a loop a digit",
    ),
    "modular_addition": TokenTask(
        "modadd", "summands", {"length": 2, "modulus": 97},
        lambda task: (*_numbers(task.modulus), "="), lambda task: _numbers(task.modulus),
        lambda task, n: n + 1, lambda task, n: 1, _SOLVABLE,
    ),
    "cyclic": TokenTask(
        "cyclic", "elements", {"length": 16, "modulus": 5},
        lambda task: _numbers(task.modulus), lambda task: _numbers(task.modulus),
        lambda task, n: n, lambda task, n: n, _SOLVABLE,
    ),
    "s5": TokenTask(
        "s5", "moves", {"length": 12, "moves": "swaps"},
        _moves, lambda task: S5,
        lambda task, n: n, lambda task, n: n,
        "depth log n suffices (Liu et al., arXiv 2210.10749) and constant depth does not unless TC0 = NC1 (Merrill and "
        "Sabharwal, arXiv 2207.00729)",
        _doubling,
    ),
    "p_hop": TokenTask(
        "phop", "hops", {"length": 4, "symbols": 4, "context": 32},
        lambda task: (*_letters(task), *map(str, range(1, 2 * task.length + 1))),
        lambda task: (*_letters(task), UNDEFINED),
        lambda task, n: task.context + 1, lambda task, n: task.context // 2,
        "depth floor(log2 p) + 2 suffices, and less than order log p does not unless parallel computation is faster "
        "than believed (Sanford et al., arXiv 2402.09268)",
        lambda hops: math.floor(math.log2(hops)) + 2,
    ),
    "pointer": TokenTask(
        "pointer", "steps", {"length": 4, "context": 8},
        lambda task: (*_numbers(task.context), ">"), lambda task: _numbers(task.context),
        lambda task, n: 2 * task.context + n, lambda task, n: n,
        "depth 1 + log n suffices: edges are bound, then paths doubled (as p-hop, Sanford et al., arXiv 2402.09268)",
        lambda steps: 1 + _doubling(steps),
    ),
    "dyck": TokenTask(
        "dyck", "levels", {"length": 4, "context": 32},
        lambda task: BRACKETS, lambda task: (UNDEFINED, ")", "]"),
        lambda task, n: task.context, lambda task, n: task.context,
        "two layers suffice where the depth is bounded (Yao et al., arXiv 2105.11115)",
        lambda levels: 2,
    ),
}  # fmt: skip
