"""The rules of every token task: how prompts are drawn and solved, and what a solver holds on its way.

What the tasks are called, and how many tokens they have, stands in ``config.token_tasks``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from loopprobe.config.schema import TaskConfig
from loopprobe.config.token_tasks import BRACKETS
from loopprobe.errors import LoopprobeError
from loopprobe.tasks import algebra, lookups
from loopprobe.tasks.algebra import Chance, TokenIds
from loopprobe.tasks.prompts import uniform

_TRIES = 2000  # of a corruption that has to change an answer


def _nothing(task: TaskConfig, tokens: TokenIds) -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True)
class Rules:
    """The rules of a task.

    Attributes:
        numbers: how many uniform numbers a prompt of a length takes.
        draw: tokens of a length, from these numbers.
        solve: the right answers of tokens, [batch, answer].
        free: how many symbols may stand at each token, for corruptions; 0 at marks.
        results: what a solver holds at each token.
        targets: groups of tokens that the answer at the query depends on.
    """

    numbers: Callable[[TaskConfig, int], int]
    draw: Callable[[TaskConfig, Chance, int], TokenIds]
    solve: Callable[[TaskConfig, TokenIds], Int[Tensor, "batch answer"]]
    free: Callable[[TaskConfig, int], list[int]]
    results: Callable[[TaskConfig, TokenIds], dict[str, Int[Tensor, "batch pos"]]] = _nothing
    targets: Callable[[TaskConfig, TokenIds], dict[str, Bool[Tensor, "batch pos"]]] = _nothing


_SUM = Rules(
    numbers=lambda task, n: n, draw=algebra.draw_sum, solve=algebra.solve_sum, free=algebra.free_sum,
    results=lambda task, tokens: {"sum so far": algebra.sums(task, tokens)},
)  # fmt: skip
_COPY = Rules(
    numbers=lambda task, n: n, draw=lookups.draw_copy, solve=lookups.solve_copy,
    free=lambda task, n: [task.symbols or 2] * n + [0] * n, targets=lookups.source,
)  # fmt: skip
RULES: dict[str, Rules] = {
    "parity": _SUM, "modular_addition": _SUM, "cyclic": _SUM, "copy": _COPY, "reverse": _COPY,
    "addition": Rules(
        numbers=lambda task, n: 1 + n * ((task.numbers or 2) + 1), draw=algebra.draw_addition,
        solve=lambda task, tokens: algebra.added(task, tokens)[2],
        free=lambda task, n: [(task.base or 2) ** (task.numbers or 2)] * n + [0], results=algebra.addition_results,
    ),
    "s5": Rules(
        numbers=lambda task, n: n, draw=algebra.draw_s5, solve=algebra.solve_s5,
        free=lambda task, n: [algebra.moved(task.moves or "swaps").shape[1]] * n,
        results=lambda task, tokens: {"product so far": algebra.solve_s5(task, tokens)},
    ),
    "p_hop": Rules(
        numbers=lambda task, n: task.context or 2, draw=lookups.draw_hops, solve=lookups.solve_hops,
        free=lambda task, n: [0] + [task.symbols or 2] * (task.context or 2), results=lookups.hop_results,
        targets=lookups.hop_targets,
    ),
    "pointer": Rules(
        numbers=lambda task, n: 2 * (task.context or 2) + 1, draw=lookups.draw_pointer, solve=lookups.solve_pointer,
        free=lookups.free_pointer,
    ),
    "dyck": Rules(
        numbers=lambda task, n: 2 * (task.context or 2), draw=lookups.draw_dyck,
        solve=lambda task, tokens: lookups.walk(tokens)[1],
        free=lambda task, n: [len(BRACKETS)] * (task.context or 2),
        results=lambda task, tokens: {"depth": lookups.walk(tokens)[0], "innermost": lookups.walk(tokens)[1]},
    ),
}  # fmt: skip


# Prompts begin with the start, which the rules know nothing of.


def n_chances(task: TaskConfig, length: int) -> int:
    """Return how many uniform numbers a prompt of a length takes."""
    return RULES[task.name].numbers(task, length)


def draw_tokens(task: TaskConfig, chance: Chance, length: int) -> TokenIds:
    """Make tokens of a length from uniform numbers, [batch, ``n_chances``]."""
    assert task.tokens is not None
    start = torch.full((len(chance), 1), len(task.tokens.symbols(task)))
    return torch.cat([start, RULES[task.name].draw(task, chance, length)], 1)


def solve_tokens(task: TaskConfig, tokens: TokenIds) -> Int[Tensor, "batch answer"]:
    """Return the right answers of tokens."""
    return RULES[task.name].solve(task, tokens[:, 1:])


def results_of(task: TaskConfig, tokens: TokenIds) -> dict[str, Int[Tensor, "batch pos"]]:
    """Return what a solver holds at each token, by name: whole numbers, -1 where there is none."""
    found = RULES[task.name].results(task, tokens[:, 1:])
    return {name: F.pad(values, (1, 0), value=-1) for name, values in found.items()}


def targets_of(task: TaskConfig, tokens: TokenIds) -> dict[str, Bool[Tensor, "batch pos"]]:
    """Return the groups of tokens that the answer at the query depends on, by name."""
    found = RULES[task.name].targets(task, tokens[:, 1:])
    return {name: F.pad(places, (1, 0)) for name, places in found.items()}


def length_of(task: TaskConfig, n_tokens: int) -> int:
    """Return the length of prompts with so many tokens; the training's where their number does not depend on it.

    Raises:
        LoopprobeError: no prompts of the task have so many tokens.
    """
    assert task.tokens is not None
    usual = task.length or 1
    found: int | None = next(
        (n for n in (usual, *range(1, n_tokens + 1)) if task.tokens.n_tokens(task, n) == n_tokens), None
    )
    if found is None:
        raise LoopprobeError(f"no prompts of {task.name} have {n_tokens} tokens: give prompts as the task draws them")
    return found


def corrupted_tokens(
    task: TaskConfig, tokens: TokenIds, length: int, kind: str, generator: torch.Generator, example: int | None
) -> TokenIds:
    """Return tokens with one thing changed, so that the answer at the query is another, on the CPU.

    Args:
        task: the task.
        tokens: of the clean prompts.
        length: of the prompts.
        kind: the change. ``token`` gives one token another symbol. ``prompt`` replaces all tokens by those of another
            prompt of this length.
        generator: a CPU generator; it alone determines the result.
        example: the token that ``token`` changes, from 0; None: any at random.

    Raises:
        LoopprobeError: there is no such kind or token, or no change was found that changes the answer.
    """
    if kind not in ("token", "prompt"):
        raise LoopprobeError(f"corruption ({kind!r}) must be token or prompt: choose one")
    tokens, free = tokens.cpu().clone(), torch.tensor([0, *RULES[task.name].free(task, length)])
    places = free.gt(1).nonzero().flatten()
    if example is not None:
        if example not in places.tolist():
            raise LoopprobeError(
                f"example ({example}) must be a token that can be another: choose one of "
                f"{', '.join(map(str, places.tolist()[:8]))}{', …' if len(places) > 8 else ''}"
            )
        places = torch.tensor([example])
    wanted, left = solve_tokens(task, tokens)[:, -1], torch.arange(len(tokens))
    for _ in range(_TRIES):
        if not len(left):
            return tokens
        if kind == "prompt":
            changed = draw_tokens(task, uniform((len(left), n_chances(task, length)), generator), length)
        else:
            changed = _other_token(tokens[left], places, free, generator)
        differs = solve_tokens(task, changed)[:, -1] != wanted[left]
        tokens[left[differs]] = changed[differs]
        left = left[~differs]
    raise LoopprobeError(
        f"no change was found that changes the answer in {len(left)} of {len(tokens)} prompts: choose another "
        "corruption or example"
    )


def _other_token(tokens: TokenIds, places: Tensor, free: Tensor, generator: torch.Generator) -> TokenIds:
    """Give one token of each prompt, at one of the places, another symbol."""
    chance, rows = uniform((len(tokens), 2), generator), torch.arange(len(tokens))
    place = places[(chance[:, 0] * len(places)).long()]
    shift = 1 + (chance[:, 1] * (free[place] - 1)).long()
    changed = tokens.clone()
    changed[rows, place] = (changed[rows, place] + shift) % free[place]
    return changed
