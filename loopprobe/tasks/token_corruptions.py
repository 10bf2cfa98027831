"""Corrupted tokens, whose answer at the query is another one."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from loopprobe.errors import LoopprobeError
from loopprobe.tasks.prompts import uniform

TokenIds = Int[Tensor, "batch pos"]
_TRIES = 2000  # of a corruption that has to change an answer


def corrupted_tokens(
    rules: Any,
    tokens: TokenIds,
    answers: Int[Tensor, "batch answer"],
    length: int,
    kind: str,
    generator: torch.Generator,
    example: int | None,
) -> tuple[TokenIds, Int[Tensor, "batch answer"]]:
    """Return tokens with one thing changed, so that the answer at the query is another, and the answers, on the CPU.

    Args:
        rules: the task, a ``TokenTask``.
        tokens, answers: of the clean prompts.
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
    tokens, answers = tokens.cpu().clone(), answers.cpu().clone()
    free = torch.tensor(rules.free(length) if kind == "token" else [])
    places = free.gt(1).nonzero().flatten()
    if kind == "token" and example is not None:
        if example not in places.tolist():
            raise LoopprobeError(
                f"example ({example}) must be a token that can be another: choose one of "
                f"{', '.join(map(str, places.tolist()[:8]))}{', …' if len(places) > 8 else ''}"
            )
        places = torch.tensor([example])
    wanted, left = answers[:, -1].clone(), torch.arange(len(tokens))
    for _ in range(_TRIES):
        if not len(left):
            return tokens, answers
        if kind == "prompt":
            changed, solved, _ = rules.sample(len(left), length, generator, held_out=True)
        else:
            changed = _other_token(tokens[left], places, free, generator)
            solved = rules.solve(changed)
            if solved is None:
                raise LoopprobeError(
                    f"task {rules.name} does not tell the answers of other tokens, which corruption 'token' needs: "
                    "choose prompt, or give the task solve(tokens)"
                )
        differs = solved[:, -1] != wanted[left]
        tokens[left[differs]], answers[left[differs]] = changed[differs], solved[differs]
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
