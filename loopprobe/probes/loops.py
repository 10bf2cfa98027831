"""What probes share: the option of a loop count, and what they ask of loops and tokens."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass

from loopprobe.checkpoint import Checkpoint
from loopprobe.errors import LoopprobeError


@dataclass(config=ConfigDict(extra="forbid", frozen=True), kw_only=True)
class LoopsConfig:
    """How far the loop runs.

    Attributes:
        loops: iterations; None: as many as each model was trained with.
    """

    loops: PositiveInt | None = None


def require_looped(checkpoint: Checkpoint) -> None:
    """Raise LoopprobeError where the loop count of the model cannot vary."""
    if checkpoint.config.model.n_loops == 1:
        raise LoopprobeError(
            f"{checkpoint.label} is not looped (n_loops = 1): more loops mean nothing for it; give a looped checkpoint"
        )


def require_loops_or_layers(checkpoint: Checkpoint, loops: int | None) -> None:
    """Raise LoopprobeError where loops are asked of a model whose iterations are its layers."""
    if checkpoint.config.model.n_loops == 1 and loops not in (None, 1):
        raise LoopprobeError(f"{checkpoint.label} is not looped: its layers are its iterations; leave out loops")


def require_tokens(positions: Collection[int] | None, query: int) -> None:
    """Raise LoopprobeError where a token stands behind the query's, and so cannot matter to it."""
    if positions is not None and max(positions) > query:
        raise LoopprobeError(f"position {max(positions)} must be at most {query}, the query's token")


def some_tokens(query: int) -> list[int]:
    """A few inputs, their labels, and the query's token: what is shown where nobody has chosen."""
    return sorted({*range(0, query, 20), *range(1, query, 20), query})
