"""Drawing prompts of a task, for training and for evaluation."""

from __future__ import annotations

import dataclasses

import torch

from loopprobe.config import TaskConfig
from loopprobe.errors import LoopprobeError
from loopprobe.tasks.functions import CLASSES
from loopprobe.tasks.prompts import Prompts, normal


def sample(
    task: TaskConfig,
    n_prompts: int,
    n_points: int,
    n_dims: int,
    generator: torch.Generator,
    *,
    active_dims: int | None = None,
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
    """
    active = n_dims if active_dims is None else active_dims
    kind = CLASSES[task.name]
    # One row a prompt, so that fewer prompts of a seed are the first of more.
    sizes = [n_points * n_dims, kind.size(task, n_dims), n_points]
    inputs, numbers, noise = normal((n_prompts, sum(sizes)), generator).split(sizes, dim=1)
    xs = inputs.reshape(n_prompts, n_points, n_dims)
    xs[..., active:] = 0
    ys, weights = kind.label(task, xs, numbers, active)
    assert task.noise_std is not None, "noise_std is filled in when a TaskConfig is made"
    ys = ys + task.noise_std * noise
    if task.labels == "sign":
        ys = torch.where(ys < 0, -1.0, 1.0)
    weights = None if weights is None else weights.float()
    return Prompts(xs.float(), ys.float(), scale=task.scale(active), weights=weights)


def held_out(
    task: TaskConfig, n_prompts: int, n_points: int, n_dims: int, seed: int = 0, *, active_dims: int | None = None
) -> Prompts:
    """The evaluation prompts of a seed, the same on every machine.

    They come from a stream that no training draws from: training seeds its generator below 2³¹, this one
    above. The first k prompts are the same however many are asked for.
    """
    if n_prompts < 1:
        raise LoopprobeError(f"the number of prompts ({n_prompts}) must be at least 1: raise it")
    if not 0 <= seed < 2**31:
        raise LoopprobeError(f"seed ({seed}) must be at least 0 and below 2**31: choose another")
    prompts = sample(
        task, n_prompts, n_points, n_dims, torch.Generator().manual_seed(2**31 + seed), active_dims=active_dims
    )
    fields = {name: value for name, value in dataclasses.asdict(task).items() if name != "name" and value is not None}
    origin = {"task": task.name, **fields, "held_out_seed": seed, "n_prompts": n_prompts}
    return dataclasses.replace(prompts, origin=origin)
