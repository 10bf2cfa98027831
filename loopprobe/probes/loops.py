"""What probes share: the option of a loop count, and their demands on loops, tokens and prompts."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import PositiveInt

from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.reference.baselines.optimal import is_of
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.tasks import Prompts

STRIDE = 20  # tokens between those that are shown where nobody has chosen


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


def points_of(checkpoint: Checkpoint, prompts: Prompts | None) -> int:
    """How many points the prompts have; where there are none yet, the most that the model can read."""
    return checkpoint.config.model.n_points if prompts is None else prompts.ys.shape[1]


def chosen_tokens(positions: Sequence[int], n_points: int, *, until_query: bool = True) -> list[int]:
    """Resolve positions to tokens, counted from 0, each once and in the order given.

    Args:
        positions: tokens of the prompt; a negative one counts from the end, so that -2 is the query's token.
        n_points: points of the prompt, of two tokens each.
        until_query: whether the query's token is the last that matters, since no prediction sees the query's label.

    Raises:
        LoopprobeError: the prompt has no such token, or it stands behind the query's.
    """
    n_tokens = 2 * n_points
    last, its_name = (n_tokens - 2, "the query's token") if until_query else (n_tokens - 1, "the last token")
    if not positions:
        raise LoopprobeError(f"positions must not be empty: name at least one token from 0 to {last}")
    for position in positions:
        if not -n_tokens <= position <= last or position % n_tokens > last:
            raise LoopprobeError(
                f"position {position} must be at most {last}, {its_name}: choose from 0 to {last}, or from the end "
                f"{last - n_tokens} to -{n_tokens}"
            )
    return list(dict.fromkeys(position % n_tokens for position in positions))


def some_tokens(query: int) -> list[int]:
    """A few inputs, their labels, and the query's token: what is shown where nobody has chosen."""
    return sorted({*range(0, query, STRIDE), *range(1, query, STRIDE), query})


def require_training(checkpoint: Checkpoint, prompts: Prompts, training: Prompts | None) -> None:
    """Raise LoopprobeError where a fit needs further prompts and nothing says how to draw them, or they do not match.

    Args:
        checkpoint: its task is that from which further prompts are drawn.
        prompts: those that the probe is run on.
        training: further prompts that the user gives; None: they are drawn.
    """
    if training is None:
        if not is_of(prompts, checkpoint.config.task):
            raise LoopprobeError(
                f"these prompts are not known to be of the task of {checkpoint.label} "
                f"({checkpoint.config.task.name}), so no further ones can be drawn to fit on: give training=, other "
                "prompts of the same kind"
            )
    elif training.xs.shape[1:] != prompts.xs.shape[1:]:
        raise LoopprobeError(
            f"training prompts have {training.xs.shape[1]} points of {training.xs.shape[2]} dimensions but the prompts "
            f"have {prompts.xs.shape[1]} of {prompts.xs.shape[2]}: give prompts of the same shape"
        )


def training_prompts(
    checkpoint: Checkpoint, prompts: Prompts, n_prompts: int, seed: int, training: Prompts | None
) -> tuple[Prompts, str]:
    """Further prompts to fit on, and where they come from, in words.

    Args:
        checkpoint, prompts, training: see ``require_training``.
        n_prompts: how many are drawn where none are given.
        seed: of those that are drawn.

    Raises:
        LoopprobeError: see ``require_training``.
    """
    require_training(checkpoint, prompts, training)
    if training is not None:
        return training.to(checkpoint.device), f"{len(training.ys)} given prompts"
    drawn = checkpoint.more_like(prompts, n_prompts, seed)
    return drawn, f"{n_prompts} held-out prompts of {checkpoint.config.task.name}, seed {seed}"
