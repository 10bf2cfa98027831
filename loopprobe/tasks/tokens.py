"""Sampling of prompts from a token task, for training and for evaluation."""

from __future__ import annotations

import torch

from loopprobe.config.budget import require_tokens
from loopprobe.config.schema import TaskConfig
from loopprobe.tasks.seeds import held_out_generator
from loopprobe.tasks.token_prompts import TokenPrompts


def sample_tokens(task: TaskConfig, n_prompts: int, length: int, generator: torch.Generator) -> TokenPrompts:
    """Draw prompts of a token task on the CPU.

    Args:
        task: the task.
        n_prompts: the number of prompts; the first ones do not depend on it where a task that ships draws them.
        length: of all of them, in what the task counts.
        generator: a CPU generator; it alone determines the result.

    Raises:
        LoopprobeError: the prompts do not fit into the memory, or the task has none of this length.
    """
    require_tokens(task, n_prompts, length)
    tokens, answers, places = task.rules.sample(n_prompts, length, generator)
    return TokenPrompts(tokens, answers, task, {"task": task.name, "length": length}, places=places)


def held_out_tokens(task: TaskConfig, n_prompts: int, length: int, seed: int = 0) -> TokenPrompts:
    """Draw the evaluation prompts of a seed, which no training draws; the same on every machine.

    Raises:
        LoopprobeError: a number is out of range, or the prompts do not fit into the memory.
    """
    generator = held_out_generator(n_prompts, seed)
    require_tokens(task, n_prompts, length)
    tokens, answers, places = task.rules.sample(n_prompts, length, generator, held_out=True)
    origin = task.origin | {"length": length, "held_out_seed": seed, "n_prompts": n_prompts}
    return TokenPrompts(tokens, answers, task, origin, places=places)


def longest_length(task: TaskConfig, n_ctx: int, most: int) -> int:
    """Return the longest length, at most ``most``, that the task has and whose prompts fit into ``n_ctx`` tokens."""
    length = min(most, task.rules.longest or most)
    while length > 1 and task.rules.n_tokens(length) > n_ctx:
        length -= 1
    return length
