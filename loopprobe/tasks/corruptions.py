"""Prompts that differ from others in one respect: the corrupted runs of activation patching."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from einops import einsum

from loopprobe.errors import LoopprobeError
from loopprobe.tasks import Prompts, normal

Corruption = Literal["label", "weights", "query", "noise"]


def corrupt(
    prompts: Prompts, kind: Corruption, generator: torch.Generator, *, example: int = 0, noise_std: float = 1.0
) -> Prompts:
    """The same prompts, but for one thing.

    Args:
        prompts: the clean ones.
        kind: ``label``: one example gets another label, N(0, |x|²) at the scale of the labels, or the other sign where
            labels are signs; ``weights``: all labels are those of another linear function; ``query``: another query
            input; ``noise``: noise on the labels of all examples.
        generator: on the CPU; it alone determines the result.
        example: which one, from 0, for ``label``.
        noise_std: in the units of y, for ``noise``.

    Returns:
        Prompts on the device of the clean ones.

    Raises:
        LoopprobeError: there is no such example, there are no examples, or the function has no weights to replace.
    """
    xs, ys = prompts.xs.clone(), prompts.ys.clone()
    n_prompts, n_points, n_dims = xs.shape
    if n_points < 2 and kind != "query":
        raise LoopprobeError(f"corruption {kind!r} changes examples and the prompts have none: choose query")
    if kind == "label":
        if not 0 <= example < n_points - 1:
            raise LoopprobeError(f"example ({example}) must be from 0 to {n_points - 2}: the last point is the query")
        spread = (prompts.scale / n_dims) ** 0.5 * xs[:, example].norm(dim=-1).cpu().double()
        other = (spread * normal((n_prompts,), generator)).to(ys)
        ys[:, example] = -ys[:, example] if prompts.origin.get("labels") == "sign" else other
    elif kind == "weights":
        if prompts.origin.get("task", "linear_regression") not in ("linear_regression", "noisy_linear_regression"):
            raise LoopprobeError(
                f"corruption 'weights' is for linear regression, not {prompts.origin['task']}: choose label"
            )
        ys = einsum(xs, normal((n_prompts, n_dims), generator).to(xs), "b point dim, b dim -> b point")
    elif kind == "query":
        xs[:, -1] = normal((n_prompts, n_dims), generator).to(xs)
    elif kind == "noise":
        ys[:, :-1] += noise_std * normal((n_prompts, n_points - 1), generator).to(ys)
    else:
        raise LoopprobeError(f"corruption ({kind!r}) must be label, weights, query or noise: choose one")
    return dataclasses.replace(prompts, xs=xs, ys=ys, origin=prompts.origin | {"corruption": kind})
