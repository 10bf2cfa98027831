"""Sampling of prompts from a task, for training and for evaluation."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from loopprobe.config.budget import require_prompts
from loopprobe.config.schema import TaskConfig
from loopprobe.errors import LoopprobeError
from loopprobe.tasks.functions import CLASSES
from loopprobe.tasks.prompts import Prompts, normal
from loopprobe.tasks.seeds import HELD_OUT, SHIFTED
from loopprobe.tasks.shifts import Shift, find_shift
from loopprobe.tasks.tables import from_tables, load_table


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
    """Draw prompts for in-context learning on the CPU, in float32: x ~ N(0, I) and y = f(x), f from the task's class.

    Every prompt has its own f (``tasks.functions``). The noisy task adds N(0, noise_std²) to every label. With
    ``labels = "sign"`` every label is replaced by its sign, +1 or -1.

    Args:
        task: the function class.
        n_prompts: number of prompts.
        n_points: number of points in a prompt, with the query.
        n_dims: width of x.
        generator: a CPU generator; it alone determines the result.
        active_dims: number of active coordinates, set by the curriculum; the others are zero. None: all are active.
        shift: a change to the distribution; the prompts are made from the same random numbers.
        shift_generator: generator of the further numbers that the shift draws.

    Raises:
        LoopprobeError: the prompts do not fit into the memory.
    """
    require_prompts(task, n_prompts, n_points, n_dims)
    active = n_dims if active_dims is None else active_dims
    if task.name == "tables":
        return _from_tables(task, n_prompts, n_points, n_dims, generator, active, "train")
    kind = CLASSES[task.name]
    # Each prompt has one row, so that the first prompts of a seed do not depend on how many are drawn.
    sizes = [n_points * n_dims, kind.size(task, n_dims), n_points]
    inputs, numbers, noise = normal((n_prompts, sum(sizes)), generator).split(sizes, dim=1)  # type: ignore[no-untyped-call]
    xs = inputs.reshape(n_prompts, n_points, n_dims)
    xs[..., active:] = 0
    shift = shift or Shift("as in training")
    xs = shift.input_factor * shift.inputs(xs, active, shift_generator or generator)
    ys, weights = kind.label(task, xs, numbers, active)
    assert task.noise_std is not None, "noise_std is filled in when a TaskConfig is made"
    scale = task.scale(active)
    ys = shift.factor * ys + (task.noise_std + shift.noise_std * scale**0.5) * noise
    if task.labels == "sign":
        ys = torch.where(ys < 0, -1.0, 1.0)
    elif task.depth is None:
        scale *= shift.input_factor**2
    scale *= 1.0 if task.labels == "sign" else shift.factor**2
    weights = None if weights is None else (shift.factor * weights).float()
    return Prompts(xs.float(), ys.float(), scale=scale, weights=weights)


def _from_tables(
    task: TaskConfig, n_prompts: int, n_points: int, n_dims: int, generator: torch.Generator, active: int, part: str
) -> Prompts:
    tables = [load_table(name) for name in task.tables]
    prompts = from_tables(tables, n_prompts, n_points, active, generator, part=part)
    return dataclasses.replace(prompts, xs=F.pad(prompts.xs, (0, n_dims - active)))


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
    seeds its own above. The first k prompts do not depend on how many are drawn.

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
    if n_prompts < 1:
        raise LoopprobeError(f"the number of prompts ({n_prompts}) must be at least 1: raise it")
    if not 0 <= seed < HELD_OUT:
        raise LoopprobeError(f"seed ({seed}) must be at least 0 and below 2**31: choose another")
    generator = torch.Generator().manual_seed(HELD_OUT + seed)
    if task.name == "tables":
        if shift is not None:
            raise LoopprobeError(f"prompts from tables cannot be shifted ({shift}): leave out one of the two")
        require_prompts(task, n_prompts, n_points, n_dims)
        prompts = _from_tables(task, n_prompts, n_points, n_dims, generator, active_dims or n_dims, "test")
        return dataclasses.replace(
            prompts, origin=prompts.origin | {"task": task.name, "held_out_seed": seed, "n_prompts": n_prompts}
        )
    prompts = sample(
        task, n_prompts, n_points, n_dims, generator, active_dims=active_dims,
        shift=None if shift is None else find_shift(shift),
        shift_generator=torch.Generator().manual_seed(SHIFTED + seed),
    )  # fmt: skip
    fields = {name: value for name, value in dataclasses.asdict(task).items() if name != "name" and value is not None}
    origin = {"task": task.name, **fields, "held_out_seed": seed, "n_prompts": n_prompts}
    origin |= {} if shift is None else {"shift": shift}
    return dataclasses.replace(prompts, origin=origin)
