"""Drawing prompts of a task, for training and for evaluation."""

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
    """Draw prompts of in-context learning on the CPU, in float32: x ~ N(0, I), y = f(x) with f of the task's class.

    Every prompt has its own f (``tasks.functions``). The noisy task adds N(0, noise_std²) to every label; with
    ``labels = "sign"`` a label is +1 or -1, the sign of what it would be.

    Args:
        task: the function class.
        n_prompts: number of prompts.
        n_points: points a prompt, the query included.
        n_dims: width of x.
        generator: a CPU generator; it alone determines the result.
        active_dims: the curriculum: coordinates from this one on are zero. None: all are active.
        shift: draws them otherwise, of the same numbers.
        shift_generator: determines what the shift draws besides.

    Raises:
        LoopprobeError: the memory cannot hold them.
    """
    require_prompts(task, n_prompts, n_points, n_dims)
    active = n_dims if active_dims is None else active_dims
    if task.name == "tables":
        return _from_tables(task, n_prompts, n_points, n_dims, generator, active, "train")
    kind = CLASSES[task.name]
    # One row a prompt, so that fewer prompts of a seed are the first of more.
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
    """The evaluation prompts of a seed, the same on every machine.

    They come from a stream that no training draws from: training seeds its generator below 2³¹, this one
    above. The first k prompts are the same however many are asked for.

    Args:
        task, n_prompts, n_points, n_dims, active_dims: as in ``sample``.
        seed: of the prompts.
        shift: name of one of ``tasks.shifts.SHIFTS``; None: as in training.

    Raises:
        LoopprobeError: no such shift, a number out of its range, or prompts that the memory cannot hold.
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
