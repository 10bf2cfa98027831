"""Sampling of prompts from a task, for training and for evaluation."""

from __future__ import annotations

import dataclasses

import torch

from loopprobe.config.budget import require_prompts
from loopprobe.config.schema import TaskConfig
from loopprobe.errors import LoopprobeError
from loopprobe.tasks.prompts import Prompts
from loopprobe.tasks.seeds import SHIFTED, held_out_generator
from loopprobe.tasks.shifts import Shift, find_shift


def sample(
    task: TaskConfig,
    n_prompts: int,
    n_points: int,
    n_dims: int,
    generator: torch.Generator,
    *,
    active_dims: int | None = None,
    shift: Shift | None = None,
    shift_generator: torch.Generator | None = None,
) -> Prompts:
    """Draw prompts for in-context learning on the CPU, in float32.

    Of the classes of functions that ship, x ~ N(0, I) and y = f(x), and every prompt has its own f
    (``tasks.regression``). The noisy task adds N(0, noise_std²) to every label. With ``labels = "sign"`` every label is
    replaced by its sign, +1 or -1.

    Args:
        task: the task, of regression.
        n_prompts: number of prompts.
        n_points: number of points in a prompt, with the query.
        n_dims: width of x.
        generator: a CPU generator; it alone determines the result.
        active_dims: number of active coordinates, set by the curriculum; the others are zero. None: all are active.
        shift: a change to the distribution; the prompts are made from the same random numbers.
        shift_generator: generator of the further numbers that the shift draws.

    Raises:
        LoopprobeError: a number is out of range, or the prompts do not fit into the memory.
    """
    active = _active(task, n_prompts, n_points, n_dims, active_dims)
    prompts: Prompts = task.rules.sample(
        n_prompts, n_points, n_dims, generator, active_dims=active, shift=shift,
        shift_generator=shift_generator,
    )  # fmt: skip
    return dataclasses.replace(prompts, task=task)


def held_out(
    task: TaskConfig,
    n_prompts: int,
    n_points: int,
    n_dims: int,
    seed: int = 0,
    *,
    active_dims: int | None = None,
    shift: str | None = None,
) -> Prompts:
    """Draw the evaluation prompts of a seed, the same on every machine.

    They come from a stream that no training draws from: training seeds its generator below 2³¹, and this function
    seeds its own above. Where a task that ships draws them, the first k prompts do not depend on how many are drawn.

    Args:
        task: the task, whose prompts ``sample`` draws.
        n_prompts: the number of prompts.
        n_points: points of a prompt, the query included.
        n_dims: dimensions of an input x.
        seed: the seed of the prompts.
        active_dims: as in ``sample``.
        shift: name of a shift in ``tasks.shifts.SHIFTS``; None: the distribution of training.

    Raises:
        LoopprobeError: there is no such shift, a number is out of range, or the prompts do not fit into the memory.
    """
    generator = held_out_generator(n_prompts, seed)
    active = _active(task, n_prompts, n_points, n_dims, active_dims)
    prompts: Prompts = task.rules.sample(
        n_prompts, n_points, n_dims, generator, active_dims=active, held_out=True,
        shift=None if shift is None else find_shift(shift),
        shift_generator=torch.Generator().manual_seed(SHIFTED + seed),
    )  # fmt: skip
    told = prompts.origin | {"task": task.name} if prompts.origin else task.origin  # tables tell where they are from
    origin = told | {"held_out_seed": seed, "n_prompts": n_prompts}
    origin |= {} if shift is None else {"shift": shift}
    return dataclasses.replace(prompts, origin=origin, task=task)


def _active(task: TaskConfig, n_prompts: int, n_points: int, n_dims: int, active_dims: int | None) -> int:
    """Return the number of active coordinates; raise LoopprobeError where such prompts cannot be drawn."""
    for name, number in {"n_prompts": n_prompts, "n_points": n_points, "n_dims": n_dims}.items():
        if number < 1:
            raise LoopprobeError(f"{name} ({number}) must be at least 1: raise it")
    if active_dims is not None and not 1 <= active_dims <= n_dims:
        raise LoopprobeError(f"active_dims ({active_dims}) must be from 1 to n_dims ({n_dims}): choose another")
    require_prompts(task, n_prompts, n_points, n_dims)
    return n_dims if active_dims is None else active_dims
