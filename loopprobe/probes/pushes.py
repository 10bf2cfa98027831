"""Pushes: the loop run on from a state to which something is added, and how far that is from the run as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from loopprobe.support.statistics import at_least_single

State = Float[Tensor, "batch pos d_model"]
Step = Callable[[Tensor, int], Tensor]  # from a state and the number of the loop, from 0, to the next state
Push = Tensor | Callable[[Tensor], Tensor]  # what is added to a state, or how it is computed from the state


def follow(step: Step, z: State, first: int, last: int, pushes: Mapping[int, Push]) -> Iterator[State]:
    """Yield the states after ``first`` to ``last`` loops, each with its push in it.

    Args:
        step: one loop.
        z: the state after ``first`` loops.
        first, last: loops that are done.
        pushes: from loops that are done to what is added to the state then, of a shape that broadcasts, or to a
            function that computes it from the state.
    """
    for done in range(first, last + 1):
        if done > first:
            z = step(z, done - 1)
        if done in pushes:
            push = pushes[done]
            z = z + (push(z) if callable(push) else push)
        yield z


def at_tokens(
    vectors: Float[Tensor, "#batch token d_model"], z: State, tokens: Sequence[int]
) -> Float[Tensor, "#batch pos d_model"]:
    """What adds vectors to a state at some tokens, in its precision, and nothing at the others."""
    whole = z.new_zeros(len(vectors), *z.shape[1:])
    whole[:, list(tokens)] = vectors.to(z)
    return whole


def random_pushes(lengths: Float[Tensor, "*place"], width: int, generator: torch.Generator) -> Tensor:
    """Pushes of these lengths in random directions, another at every place: [*place, width]."""
    drawn = torch.randn(*lengths.shape, width, generator=generator, dtype=torch.float64).to(lengths)
    return drawn * (lengths / drawn.norm(dim=-1))[..., None]


def distance(state: State, clean: State) -> Float[Tensor, " batch"]:
    """‖z − z_clean‖ / ‖z_clean‖ of the whole state of each prompt, at least in float32."""
    clean = at_least_single(clean).flatten(1)
    return (at_least_single(state).flatten(1) - clean).norm(dim=1) / clean.norm(dim=1)
