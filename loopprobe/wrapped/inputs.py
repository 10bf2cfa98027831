"""The inputs of a wrapped module: checked to be like the example that it was wrapped with, or spread from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loopprobe.config.budget import require
from loopprobe.errors import LoopprobeError
from loopprobe.model.reading import ReadAt
from loopprobe.wrapped.anatomy import Anatomy


def prepared(
    module: nn.Module, anatomy: Anatomy, example: Sequence[Tensor], inputs: Sequence[Any]
) -> tuple[Tensor, ...]:
    """Return inputs as a module takes them, on its device and in its precision.

    Raises:
        LoopprobeError: they are unlike the example, or there are more tokens than the module reads.
    """
    if len(inputs) != len(example):
        raise LoopprobeError(f"the model reads {len(example)} inputs and {len(inputs)} are given: change that")
    weight, vocabulary = next(module.parameters()), _vocabulary(module, anatomy)
    parts = [_part(given, one, weight, vocabulary) for given, one in zip(inputs, example, strict=True)]
    if (n_tokens := parts[0].shape[1]) > anatomy.n_ctx:
        raise LoopprobeError(f"the prompt has {n_tokens} tokens but the model reads {anatomy.n_ctx}: shorten it")
    return tuple(parts)


def like(example: Sequence[Tensor], e: Tensor) -> tuple[Tensor, ...]:
    """Return inputs as many and as long as e, which stands in the place of what they would be embedded as."""
    return tuple(_spread(part, e).to(e.device, e.dtype if part.is_floating_point() else part.dtype) for part in example)


def require_answers(
    tokens: Tensor, kept: int, read_at: ReadAt, value_size: int, device: torch.device, dtype: torch.dtype
) -> None:
    """Raise LoopprobeError where the memory cannot hold the answers after so many loops at the tokens that are read."""
    n_prompts, n_tokens = tokens.shape[:2]
    read = len(range(n_tokens)[read_at]) if isinstance(read_at, slice) else len(read_at or range(n_tokens))
    what = f"the answers of {n_prompts:,} prompts at {read:,} tokens after {kept:,} loops"
    size = n_prompts * read * kept * value_size * dtype.itemsize
    require(size, what, "read fewer tokens, with read_at, or keep fewer loops", device)


def _part(values: Any, one: Tensor, weight: Tensor, vocabulary: int | None) -> Tensor:
    try:
        part = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise LoopprobeError(f"inputs ({type(values).__name__}) must be tensors or arrays of numbers") from None
    whole = not one.is_floating_point()
    if whole and (part.is_floating_point() or part.is_complex()):
        raise LoopprobeError(f"inputs have dtype {part.dtype}: give whole numbers, the numbers of tokens")
    if whole and part.ndim == 1:
        part = part[None]
    if part.ndim != one.ndim or not part.shape[1] or part.shape[2:] != one.shape[2:]:
        raise LoopprobeError(
            f"inputs {tuple(part.shape)} must be like the example, [batch, pos{', ' * (one.ndim > 2)}"
            f"{', '.join(map(str, one.shape[2:]))}], pos at least 1: reshape them"
        )
    if whole and vocabulary and part.numel():
        low, high = (int(end) for end in part.aminmax())
        if low < 0 or high >= vocabulary:
            raise LoopprobeError(
                f"token {low if low < 0 else high} is not in the vocabulary: choose from 0 to {vocabulary - 1}"
            )
    if not whole and not bool(torch.isfinite(part).all()):
        raise LoopprobeError("inputs hold values that are NaN or infinite: remove these prompts")
    return part.to(weight.device, one.dtype if whole else weight.dtype)


def _vocabulary(module: nn.Module, anatomy: Anatomy) -> int | None:
    """The number of tokens that a module knows; None where it is not told by an embedding at its start."""
    first = module.get_submodule(anatomy.prelude[0])
    found = next((part for part in first.modules() if isinstance(part, nn.Embedding)), None)
    embeddings: Any = getattr(module, "get_input_embeddings", None)
    found = embeddings() if found is None and embeddings is not None else found
    return found.num_embeddings if isinstance(found, nn.Embedding) else None


def _spread(part: Tensor, e: Tensor) -> Tensor:
    """Repeat the first prompt of an example until it has as many prompts and tokens as e."""
    n_tokens = e.shape[1]
    times = -(-n_tokens // part.shape[1])
    long = part[:1].repeat(1, times, *[1] * (part.ndim - 2))[:, :n_tokens]
    return long.expand(e.shape[0], *long.shape[1:])
