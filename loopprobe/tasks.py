"""Function classes: prompts of labelled examples whose right answer is known.

Numbers are drawn as 53-bit uniforms and turned into normals by the inverse distribution function in float64,
then rounded: the prompts of a seed are the same on every machine, which ``torch.randn`` does not promise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from loopprobe.config import TaskConfig
from loopprobe.errors import LoopprobeError


@dataclass(frozen=True)
class Prompts:
    """Labelled examples; the last point is the query, the others are its context.

    Attributes:
        xs: inputs, [batch, n_points, n_dims].
        ys: labels, [batch, n_points].
        origin: how they were drawn, for the record.
    """

    xs: Float[Tensor, "batch n_points n_dims"]
    ys: Float[Tensor, "batch n_points"]
    origin: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Tensor]:
        """``xs, ys = prompts``."""
        return iter((self.xs, self.ys))

    def split(self, size: int) -> list[Prompts]:
        """The same prompts in batches of ``size``, the last one perhaps smaller."""
        batches = zip(self.xs.split(size), self.ys.split(size), strict=True)
        return [Prompts(xs, ys, self.origin) for xs, ys in batches]

    def to(self, device: torch.device | str) -> Prompts:
        """The same prompts on another device."""
        return Prompts(self.xs.to(device), self.ys.to(device), self.origin)


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, ...]:
    """Standard normal numbers in float64, the same on every machine for one state of the generator."""
    uniform = torch.rand(shape, dtype=torch.float64, generator=generator)
    return torch.special.ndtri(uniform.clamp_min(2.0**-54))


def sample(
    task: TaskConfig,
    n_prompts: int,
    n_points: int,
    n_dims: int,
    generator: torch.Generator,
    *,
    active_dims: int | None = None,
) -> Prompts:
    """Draw prompts of in-context regression on the CPU, in float32.

    Linear regression: x ~ N(0, I), w ~ N(0, I), y = w·x, so that E[y²] = n_dims and the zero predictor's
    squared error divided by n_dims is 1 (Garg et al., arXiv 2208.01066, section 3). The noisy task adds
    N(0, noise_std²) to every label.

    Args:
        task: the function class.
        n_prompts: number of prompts (each with its own w).
        n_points: points a prompt, the query included.
        n_dims: width of x.
        generator: a CPU generator; it alone determines the result.
        active_dims: the curriculum: coordinates from this one on are zero. None: all are active.
    """
    # One row a prompt, so that fewer prompts of a seed are the first of more.
    rows = normal((n_prompts, (n_points + 1) * n_dims + n_points), generator)
    inputs, weights, noise = rows.split([n_points * n_dims, n_dims, n_points], dim=1)
    xs = inputs.reshape(n_prompts, n_points, n_dims)
    if active_dims is not None:
        xs[..., active_dims:] = 0
    ys = einsum(xs, weights, "batch point dim, batch dim -> batch point")
    assert task.noise_std is not None, "noise_std is filled in when a TaskConfig is made"
    return Prompts(xs.float(), (ys + task.noise_std * noise).float())


def held_out(task: TaskConfig, n_prompts: int, n_points: int, n_dims: int, seed: int = 0) -> Prompts:
    """The evaluation prompts of a seed, the same on every machine.

    They come from a stream that no training draws from: training seeds its generator below 2³¹, this one
    above. The first k prompts are the same however many are asked for.
    """
    if n_prompts < 1:
        raise LoopprobeError(f"the number of prompts ({n_prompts}) must be at least 1: raise it")
    if not 0 <= seed < 2**31:
        raise LoopprobeError(f"seed ({seed}) must be at least 0 and below 2**31: choose another")
    prompts = sample(task, n_prompts, n_points, n_dims, torch.Generator().manual_seed(2**31 + seed))
    origin = {"task": task.name, "noise_std": task.noise_std, "held_out_seed": seed, "n_prompts": n_prompts}
    return Prompts(prompts.xs, prompts.ys, origin)
