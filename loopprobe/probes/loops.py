"""What probes share: the option of a loop count, and what they ask of loops and tokens."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import PositiveInt

from loopprobe.checkpoint import Checkpoint
from loopprobe.configuration import configuration
from loopprobe.errors import LoopprobeError


@configuration
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


def resolve_tokens(positions: Collection[int | str], n_points: int) -> tuple[int, ...]:
    """Tokens by number: negative ones count from the end, ``query`` is the query's.

    Args:
        positions: as a user gives them.
        n_points: of a prompt, the query's included; each has two tokens.

    Raises:
        LoopprobeError: there is no such token.
    """
    n_tokens, tokens = 2 * n_points, []
    for position in positions:
        number = n_tokens - 2 if position == "query" else position
        if not isinstance(number, int) or isinstance(number, bool) or not -n_tokens <= number < n_tokens:
            raise LoopprobeError(
                f"position {position} is no token of a prompt of {n_points} points: give 0 to {n_tokens - 1}, "
                f"-{n_tokens} to -1, or query, which is {n_tokens - 2}"
            )
        tokens.append(number % n_tokens)
    return tuple(dict.fromkeys(tokens))


def some_tokens(query: int) -> list[int]:
    """A few inputs, their labels, and the query's token: what is shown where nobody has chosen."""
    return sorted({*range(0, query, 20), *range(1, query, 20), query})
