"""Pushes: the loop run on from a state to which something is added, and how far that is from the run as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from jaxtyping import Float
from torch import Tensor

from loopprobe.support.statistics import at_least_single

State = Float[Tensor, "batch pos d_model"]
Step = Callable[[Tensor, int], Tensor]  # from a state and the number of the loop, from 0, to the next state


def follow(step: Step, z: State, first: int, last: int, pushes: Mapping[int, Tensor]) -> Iterator[State]:
    """Yield the states after ``first`` to ``last`` loops, each with its push in it.

    Args:
        step: one loop.
        z: the state after ``first`` loops.
        first, last: loops that are done.
        pushes: from loops that are done to what is added to the state then, of a shape that broadcasts.
    """
    for done in range(first, last + 1):
        if done > first:
            z = step(z, done - 1)
        if done in pushes:
            z = z + pushes[done]
        yield z


def distance(state: State, clean: State) -> Float[Tensor, " batch"]:
    """‖z − z_clean‖ / ‖z_clean‖ of the whole state of each prompt, at least in float32."""
    clean = at_least_single(clean).flatten(1)
    return (at_least_single(state).flatten(1) - clean).norm(dim=1) / clean.norm(dim=1)
