"""Sampling of prompts from a token task, for training and for evaluation."""

from __future__ import annotations

import dataclasses

import torch

from loopprobe.config.budget import require_tokens
from loopprobe.config.schema import TaskConfig
from loopprobe.errors import LoopprobeError
from loopprobe.tasks.prompts import uniform
from loopprobe.tasks.seeds import HELD_OUT
from loopprobe.tasks.token_prompts import TokenPrompts
from loopprobe.tasks.token_rules import draw_tokens, n_chances, solve_tokens


def sample_tokens(task: TaskConfig, n_prompts: int, length: int, generator: torch.Generator) -> TokenPrompts:
    """Draw prompts of a token task on the CPU.

    Args:
        task: the task.
        n_prompts: the number of prompts; the first ones do not depend on it.
        length: of all of them, in what the task counts (``config.token_tasks``).
        generator: a CPU generator; it alone determines the result.

    Raises:
        LoopprobeError: the prompts do not fit into the memory, or the task has none of this length.
    """
    require_tokens(task, n_prompts, length)
    _require_length(task, length)
    tokens = draw_tokens(task, uniform((n_prompts, n_chances(task, length)), generator), length)
    return TokenPrompts(tokens, solve_tokens(task, tokens), task, {"task": task.name, "length": length})


def held_out_tokens(task: TaskConfig, n_prompts: int, length: int, seed: int = 0) -> TokenPrompts:
    """Draw the evaluation prompts of a seed, which no training draws; the same on every machine.

    Raises:
        LoopprobeError: a number is out of range, or the prompts do not fit into the memory.
    """
    if n_prompts < 1:
        raise LoopprobeError(f"the number of prompts ({n_prompts}) must be at least 1: raise it")
    if not 0 <= seed < HELD_OUT:
        raise LoopprobeError(f"seed ({seed}) must be at least 0 and below 2**31: choose another")
    prompts = sample_tokens(task, n_prompts, length, torch.Generator().manual_seed(HELD_OUT + seed))
    fields = {name: value for name, value in dataclasses.asdict(task).items() if name != "name" and value}
    origin = {"task": task.name, **fields, "length": length, "held_out_seed": seed, "n_prompts": n_prompts}
    return dataclasses.replace(prompts, origin=origin)


def longest_length(task: TaskConfig, n_ctx: int, most: int) -> int:
    """Return the longest length, at most ``most``, that the task has and whose prompts fit into ``n_ctx`` tokens."""
    assert task.tokens is not None
    length = min(most, _limit(task) or most)
    while length > 1 and task.tokens.n_tokens(task, length) > n_ctx:
        length -= 1
    return length


def _limit(task: TaskConfig) -> int | None:
    """The longest length that the task has a token for; None where any will do."""
    return 2 * (task.length or 1) if task.name == "p_hop" else None


def _require_length(task: TaskConfig, length: int) -> None:
    assert task.tokens is not None
    most = _limit(task)
    if length < 1 or (most is not None and length > most):
        limit = f"from 1 to {most}" if most else "at least 1"
        raise LoopprobeError(f"length ({length} {task.tokens.counts}) must be {limit}: change it")
