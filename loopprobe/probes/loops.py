"""The parts that probes share: the option of a loop count, and their demands on loops, tokens and prompts."""

from __future__ import annotations

from typing import TypeVar

from pydantic import PositiveInt

from loopprobe.config.selection import Choice, resolve
from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.store.subject import Subject
from loopprobe.tasks import PromptBatch
from loopprobe.tasks.places import named_tokens

MOST_FAR = 10_000_000  # loops that are run to see where a loop ends: hours for the smallest models and prompts
STRIDE = 20  # tokens between those that are shown where nobody has chosen


@configuration
class LoopsConfig:
    """The length of the loop.

    Attributes:
        loops: iterations; None: as many as each model was trained with.
    """

    loops: PositiveInt | None = None


def require_looped(subject: Subject) -> None:
    """Raise LoopprobeError where the loop count of the model cannot vary."""
    if subject.model.sizes.n_loops == 1:
        raise LoopprobeError(
            f"{subject.label} is not looped (n_loops = 1): more loops mean nothing for it; give a looped checkpoint"
        )


def require_far(far: int) -> None:
    """Raise LoopprobeError where so many loops are asked for that no machine would come to their end."""
    if far > MOST_FAR:
        raise LoopprobeError(f"far ({far:,}) must be at most {MOST_FAR:,}, which take hours: lower it")


def require_loops_or_layers(subject: Subject, loops: int | None) -> None:
    """Raise LoopprobeError where loops are asked of a model whose iterations are its layers."""
    if subject.model.sizes.n_loops == 1 and loops not in (None, 1):
        raise LoopprobeError(f"{subject.label} is not looped: its layers are its iterations; leave out loops")


def last_token(subject: Subject, prompts: PromptBatch) -> int:
    """The last token that the answer at the query can depend on."""
    return prompts.query if "causal" in subject.model.supports else prompts.n_tokens - 1


def chosen_tokens(positions: Choice, prompts: PromptBatch, last: int) -> list[int]:
    """Resolve positions to tokens, counted from 0, each once and in the order given.

    Args:
        positions: tokens of a prompt, see ``config.selection``; names are those of ``tasks.places``.
        prompts: the prompts.
        last: the last token that matters, such as the query's where no answer sees a later one; ranges without an end
            stop there.

    Raises:
        LoopprobeError: the prompt has no such token, or it stands behind the last.
    """
    n_tokens = prompts.n_tokens
    its_name = "the query's token" if last == prompts.query else "the last token"
    if positions in ((), ""):
        raise LoopprobeError(f"positions must not be empty: name at least one token from 0 to {last}")
    tokens = resolve(positions, n_tokens, "position", names=named_tokens(prompts), end=last + 1)
    if tokens is None:
        return list(range(last + 1))
    if behind := [token for token in tokens if token > last]:
        raise LoopprobeError(
            f"position {behind[0]} must be at most {last}, {its_name}: choose from 0 to {last}, or from the end "
            f"{last - n_tokens} to -{n_tokens}"
        )
    return tokens


def some_tokens(query: int) -> list[int]:
    """A few inputs, their labels, and the query's token: what is shown where nobody has chosen."""
    return sorted({*range(0, query, STRIDE), *range(1, query, STRIDE), query})


Kind = TypeVar("Kind", bound=PromptBatch)


def require_training(subject: Subject, prompts: Kind, training: Kind | None) -> None:
    """Raise LoopprobeError where a fit needs further prompts and nothing says how to draw them, or they do not match.

    Args:
        subject: its task is that from which further prompts are drawn.
        prompts: those that the probe is run on.
        training: further prompts that the user gives; None: they are drawn.
    """
    if training is None:
        if not subject.is_of_task(prompts):
            raise LoopprobeError(
                f"these prompts are not known to be of the task of {subject.label} ({subject.task_name}), so no "
                "further ones can be drawn to fit on: give training=, other prompts of the same kind"
            )
        return
    if [part.shape[1:] for part in training.inputs] != [part.shape[1:] for part in prompts.inputs]:
        raise LoopprobeError(
            f"training prompts have {training.extent} but the prompts have {prompts.extent}: give prompts of the same "
            "shape"
        )


def training_prompts(
    subject: Subject, prompts: Kind, n_prompts: int, seed: int, training: Kind | None
) -> tuple[Kind, str]:
    """Further prompts to fit on, and where they come from, in words.

    Args:
        subject, prompts, training: see ``require_training``.
        n_prompts: how many are drawn where none are given.
        seed: of those that are drawn.

    Raises:
        LoopprobeError: see ``require_training``.
    """
    require_training(subject, prompts, training)
    if training is not None:
        return training.to(subject.device), f"{training.n_prompts} given prompts"
    drawn = subject.more_like(prompts, n_prompts, seed)
    return drawn, f"{n_prompts} held-out prompts of {subject.task_name}, seed {seed}"
