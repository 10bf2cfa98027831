"""What is kept of a long series as it goes by, in memory that does not grow with its length.

A series is told apart by its last ``WINDOW`` values, and by how it got there. For the second, means of the series and
of its movement are kept at ``STAGES`` stages of the last half of the run, under Hann windows that overlap by half; and
one earlier value is kept, with the distance of later ones from it, so that periods beyond the last values are found.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loopprobe.dynamics.maps import Map
from loopprobe.support.statistics import at_least_single

WINDOW = 128  # the number of last values that are kept, and the least that a series can be judged by
STAGES = 15  # the number of stages of the last half of a run that means are taken at
LAGS = (1, 2, 4)  # the lags that movement is averaged over: the periods that a halving period leads to
CHUNK = 16  # the number of values that are counted at once
REACH = 1024  # the longest lag at which a return to an earlier value is looked for


class Trail:
    """A series of ``n_values`` values that are added one by one; what is kept of them is complete after the last.

    Values are of shape [batch, place, ...]; what follows the first two axes is the vector that moves.

    Attributes:
        n_values: the length of the series.
        part: the number of values from one stage to the next, half of those that the means of a stage are over.
        start: the index of the first value that the first stage is over; the last stage ends with the series.
        reach: the number of values after the one that their distance is measured from.
        first: the index of the first value that is needed; earlier ones need not be added.
        base: the value of index ``start``.
        means: the mean of the values at every stage, less ``base``.
    """

    def __init__(self, n_values: int) -> None:
        if n_values < WINDOW:
            raise ValueError(f"a series of {n_values} values is too short: give at least {WINDOW}")
        self.n_values = n_values
        self.part = max(n_values // 2, WINDOW) // (STAGES + 1)
        self.start = n_values - (STAGES + 1) * self.part
        self.reach = min(REACH, 2 * n_values // 3)
        self.first = max(min(self.start - max(LAGS), n_values - self.reach - 1), 0)
        hann = torch.sin(torch.pi * (torch.arange(2 * self.part, dtype=torch.float64) + 0.5) / (2 * self.part)).square()
        self._weights = (hann / hann.sum()).unflatten(0, (2, self.part)).flip(0)  # of the stage before, of the next one
        self._weight_moved = torch.zeros(len(LAGS), STAGES)
        self._pending: list[Tensor] = []  # added, not yet counted: tensors of some values are faster than single ones
        self._before: Tensor | None = None  # the values before them
        self._away: list[Tensor] = []
        self._last: deque[Tensor] = deque(maxlen=WINDOW)

    @classmethod
    def of(cls, series: Float[Tensor, "time batch place ..."]) -> Trail:
        """Make the trail of a series that is in memory."""
        trail = cls(len(series))
        for i in range(trail.first, len(series)):
            trail.add(i, series[i])
        return trail

    def add(self, i: int, value: Float[Tensor, "batch place ..."]) -> None:
        """Add the value of index i; indices from ``first`` on must come one after the other."""
        if i < self.first:
            return
        x = vectors(at_least_single(value), 2)
        self._pending.append(x)
        if i == self.start:
            self.base = x
            self.means = x.new_zeros(STAGES, *x.shape)
            self._moved = x.new_zeros(len(LAGS), STAGES, *x.shape[:-1])
        if i == self.n_values - self.reach - 1:
            self._origin = x
        if i >= self.n_values - WINDOW:
            self._last.append(value)
        ends = (i + 1 - self.start) % self.part == 0
        if ends or len(self._pending) == CHUNK:
            self._count(i + 1 - len(self._pending))

    def _count(self, i: int) -> None:
        """Count the values that are pending, the first of which has index i; they lie between two stages."""
        x = torch.stack(self._pending)
        self._pending.clear()
        late = max(self.n_values - self.reach - i, 0)
        if late < len(x):
            self._away.append((x[late:] - self._origin).norm(dim=-1))
        joined = x if self._before is None else torch.cat([self._before, x])
        self._before = joined[-max(LAGS) :]
        if i < self.start:
            return
        part, place = divmod(i - self.start, self.part)
        weights = self._weights[:, place : place + len(x)]
        stages = slice(max(part - 1, 0), min(part + 1, STAGES))
        weights = weights[stages.start - part + 1 : stages.stop - part + 1]
        self.means[stages] += torch.einsum("si,i...->s...", weights.to(x), x - self.base)
        for row, lag in enumerate(LAGS):
            new = min(len(x), len(joined) - lag)  # the first values of a series have none before them
            moved = (joined[len(joined) - new :] - joined[len(joined) - new - lag : -lag]).square().sum(-1)
            self._moved[row, stages] += torch.einsum("si,i...->s...", weights[:, len(x) - new :].to(x), moved)
            self._weight_moved[row, stages] += weights[:, len(x) - new :].sum(1)

    @property
    def last(self) -> Float[Tensor, "time batch place ..."]:
        """The last ``WINDOW`` values, as they came in."""
        return torch.stack(tuple(self._last))

    @property
    def away(self) -> Float[Tensor, "lag batch place"]:
        """The distance from an earlier value, 1 to ``reach`` values after it."""
        return torch.cat(self._away)

    @property
    def movement(self) -> Float[Tensor, "lag stage batch place"]:
        """The root mean square of the movement over each of ``LAGS`` at every stage."""
        weight = self._weight_moved.to(self._moved)
        return (self._moved / weight.reshape(*weight.shape, 1, 1)).sqrt()


def vectors(values: Float[Tensor, ...], n_axes: int) -> Float[Tensor, "... width"]:
    """Make one axis of all that follow the first ``n_axes``; where none follows it is of length one."""
    return values.flatten(n_axes) if values.ndim > n_axes else values[..., None]


def run_late(
    system: Map,
    n_loops: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda steps: steps,
) -> tuple[Trail, Trail]:
    """Run ``n_loops`` iterations and return the trails of the states and of their predictions.

    Memory does not grow with the number of loops.
    """
    z = system.initial
    states, read = Trail(n_loops), Trail(n_loops)
    with torch.no_grad():
        for loop in progress(range(n_loops)):
            z = system.step(z)
            states.add(loop, z)
            if loop >= read.first:
                read.add(loop, system.read(z))
    return states, read
