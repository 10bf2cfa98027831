"""Corrupted prompts for activation patching: each differs from a clean prompt in one respect."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeVar

import torch
from einops import einsum

from loopprobe.errors import LoopprobeError
from loopprobe.tasks import PromptBatch, Prompts, normal

Corruption = Literal["label", "weights", "query", "noise"]
Batch = TypeVar("Batch", bound=PromptBatch)


def corrupt(prompts: Batch, kind: str, generator: torch.Generator, **options: Any) -> Batch:
    """Return a copy of the prompts in which one thing is changed, of regression, tokens or text.

    Args:
        prompts: the clean prompts; their ``corruptions`` name the kinds that they have.
        kind: of labelled examples, ``label``, ``weights``, ``query`` or ``noise`` (see ``corrupted_examples``); of
            tokens and text ``token``, which changes one, or ``prompt``, which takes another prompt.
        generator: a CPU generator; it alone determines the result.
        options: ``example``, the example or token that is changed, from 0; of ``noise`` its ``noise_std``.

    Raises:
        LoopprobeError: the prompts have no such kind, or there is nothing to change.
    """
    return prompts.corrupted(kind, generator, **options)


def corrupted_examples(
    prompts: Prompts, kind: Corruption, generator: torch.Generator, *, example: int = 0, noise_std: float = 1.0
) -> Prompts:
    """Return a copy of the prompts in which one thing is changed.

    Args:
        prompts: the clean prompts.
        kind: the change. ``label`` gives one example another label: N(0, |x|²) at the scale of the labels, or the other
            sign where labels are signs. ``weights`` takes all labels from another linear function. ``query`` replaces
            the query input. ``noise`` adds noise to the labels of all examples.
        generator: a CPU generator; it alone determines the result.
        example: the index of the example that ``label`` changes, from 0.
        noise_std: the standard deviation of ``noise``, in the units of y.

    Returns:
        The corrupted prompts, on the device of the clean ones.

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
        if "weights" not in prompts.corruptions:
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
