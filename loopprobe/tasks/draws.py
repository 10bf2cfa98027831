"""What a task has drawn, checked: shapes, types, numbers, and that the generator alone determines it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from loopprobe.errors import LoopprobeError

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def checked_points(
    name: str, drawn: Any, n_prompts: int, n_points: int, n_dims: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return inputs, labels and weights in float32 as a task of regression has drawn them.

    Raises:
        LoopprobeError: they are not tensors of these shapes, of real and finite numbers, on the CPU.
    """
    shapes = {
        "inputs": (n_prompts, n_points, n_dims),
        "labels": (n_prompts, n_points),
        "weights": (n_prompts, n_dims),
    }
    parts = _tensors(name, drawn, "xs, ys", 2)
    for part, (what, shape) in zip(parts, shapes.items(), strict=False):
        if tuple(part.shape) != shape:
            raise LoopprobeError(f"draw of {name} gave {what} {_shape(part)}: they must be {list(shape)}; reshape them")
        if not part.dtype.is_floating_point:
            raise LoopprobeError(f"draw of {name} gave {what} of {_dtype(part)}: they must be real; add .float()")
        if not bool(part.isfinite().all()):
            bad = int((~part.isfinite()).sum())
            raise LoopprobeError(
                f"draw of {name} gave {what} of which {bad} of {part.numel()} are NaN or infinite: all must be finite; "
                "mend draw"
            )
    xs, ys, *weights = (part.detach().float() for part in parts)
    return xs, ys, weights[0] if weights else None


def checked_tokens(
    name: str, drawn: Any, n_prompts: int, n_inputs: int, n_outputs: int
) -> tuple[Tensor, Tensor, tuple[int, ...] | None]:
    """Return tokens, answers and the places that are read as a token task has drawn them.

    Raises:
        LoopprobeError: they are not tensors of whole numbers that have a name, or the places are none of the prompts'.
    """
    rest = drawn[2:] if isinstance(drawn, Sequence) else ()
    tokens, answers = _tensors(name, drawn[:2] if rest else drawn, "tokens, answers", 2)[:2]
    limits = {"tokens": (tokens, n_inputs, "inputs"), "answers": (answers, n_outputs, "outputs")}
    for what, (part, n_names, names) in limits.items():
        if part.ndim != 2 or len(part) != n_prompts or not part.shape[1]:
            raise LoopprobeError(
                f"draw of {name} gave {what} {_shape(part)}: they must be [{n_prompts}, …], one row for each prompt; "
                "reshape them"
            )
        if part.dtype not in _WHOLE:
            raise LoopprobeError(
                f"draw of {name} gave {what} of {_dtype(part)}: they must be whole numbers; add .long()"
            )
        numbers = part.numpy()  # no kernels of torch
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high >= n_names:
            raise LoopprobeError(
                f"draw of {name} gave {what} from {low} to {high}: they must be from 0 to {n_names - 1}, since there "
                f"are {n_names} {names}; name more, or mend draw"
            )
    places = None if not rest or rest[0] is None else _places(name, rest[0], tokens.shape[1], answers.shape[1])
    if places is None and answers.shape[1] > tokens.shape[1]:
        raise LoopprobeError(
            f"draw of {name} gave {answers.shape[1]} answers of {tokens.shape[1]} tokens: each is read at a token of "
            "its own; drop some"
        )
    return tokens.long(), answers.long(), places


def _tensors(name: str, drawn: Any, what: str, least: int) -> Sequence[Tensor]:
    whole = isinstance(drawn, tuple | list) and least <= len(drawn) <= 3
    if not whole or not all(isinstance(part, Tensor) for part in drawn):
        kinds = ", ".join(type(part).__name__ for part in drawn) if isinstance(drawn, tuple | list) else ""
        raise LoopprobeError(
            f"draw of {name} gave {type(drawn).__name__}{f' of {kinds}' if kinds else ''}: it must return tensors "
            f"({what}); change it"
        )
    if elsewhere := next((part.device for part in drawn if part.device.type != "cpu"), None):
        raise LoopprobeError(f"draw of {name} gave tensors on {elsewhere}: prompts are drawn on the CPU; add .cpu()")
    return list(drawn)


def _places(name: str, read_at: Any, n_tokens: int, n_answers: int) -> tuple[int, ...]:
    try:
        places = [int(place) for place in read_at]
    except (TypeError, ValueError):
        places = []
    places = [place + n_tokens if place < 0 else place for place in places]
    if len(places) != n_answers or places != sorted(set(places)) or not set(places) <= set(range(n_tokens)):
        raise LoopprobeError(
            f"draw of {name} reads at {read_at}: it must name {n_answers} of the tokens 0 to {n_tokens - 1} in rising "
            "order, one for each answer; change it"
        )
    return tuple(places)


def require_reproducible(name: str, draw: Callable[[torch.Generator], Sequence[Any]]) -> None:
    """Draw a few prompts five times.

    Raises:
        LoopprobeError: generators of one state gave different prompts, or those of different states the same.
    """
    once, twice = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    first, second = (draw(once), draw(once)), (draw(twice), draw(twice))
    if not all(_same(one, other) for one, other in zip(first, second, strict=True)):
        raise LoopprobeError(
            f"draw of {name} is not reproducible: two generators of one seed gave different prompts; draw every number "
            "with generator=generator"
        )
    if _same(*first) or _same(first[0], draw(torch.Generator().manual_seed(1))):
        raise LoopprobeError(
            f"draw of {name} gave the same prompts twice: it must draw other ones each time; draw every number with "
            "generator=generator"
        )


def _same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Compare the tensors that were drawn."""
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor))


def _shape(part: Tensor) -> str:
    return str(list(part.shape))


def _dtype(part: Tensor) -> str:
    return str(part.dtype).removeprefix("torch.")
