"""Where a series goes in the long run: to a point, to a cycle, on and on, or nowhere.

A series is judged by its last ``WINDOW`` values. Its movement over a lag k is the root mean square of
x_{t+k} − x_t over the window, relative to its size. A series that moves less than the noise of the arithmetic is at a
fixed point; one that comes back after k steps, within a small part of its movement, is on a cycle of period k; one
whose steps add up in one direction drifts. How small and how much is calibrated on maps whose long run is known
(``controls``): the thresholds lie where these are told apart, and the errors made on fresh controls are reported.
The types are those of arXiv 2604.11791 (fixed, orbit, slider, unknown), whose thresholds are set by hand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loopprobe.dynamics.maps import Map, contraction, drift, expansion, logistic, rotation

WINDOW = 128  # values that a series is judged by
LONGEST = 64  # the longest period that is looked for


class Limit(IntEnum):
    """What a series does in the long run."""

    FIXED = 0
    CYCLE = 1
    DRIFT = 2
    UNSETTLED = 3
    DIVERGED = 4
    NON_FINITE = 5

    @property
    def words(self) -> str:
        """For the reader."""
        return ("fixed point", "cycle", "slow drift", "unsettled", "diverged", "non-finite")[self]


@dataclass(frozen=True)
class Thresholds:
    """Where the types are told apart.

    Attributes:
        fixed: relative movement of one step, at or below which a series stands still.
        returns: movement over a period relative to the largest movement over any lag, at or below which it returns.
        straight: displacement over the window relative to the path, at or above which the series drifts.
        grows: growth of the size over the window, as a factor, at or above which it diverges.
    """

    fixed: float
    returns: float
    straight: float
    grows: float


@dataclass(frozen=True)
class Features:
    """What is measured of series, each [...]."""

    finite: Tensor
    growth: Tensor
    lags: Float[Tensor, "lag ..."]
    straightness: Tensor


def features(series: Float[Tensor, "time ... width"], size: Tensor | float | None = None) -> Features:
    """Measure series by their last values.

    Args:
        series: at least WINDOW values in time.
        size: what movement is relative to; None: the series' own root mean square norm.
    """
    if len(series) < WINDOW:
        raise ValueError(f"a series of {len(series)} values is too short: give at least {WINDOW}")
    x = series[-WINDOW:].double()
    finite = torch.isfinite(x).all(-1).all(0)
    x = torch.where(finite[..., None], x, 0.0)
    norms = x.norm(dim=-1)
    own = norms.square().mean(0).sqrt()
    given = own if size is None else torch.as_tensor(size, dtype=x.dtype, device=x.device).expand_as(own)
    scale = given.clamp_min(1e-300)
    quarter = WINDOW // 4
    growth = norms[-quarter:].mean(0) / norms[:quarter].mean(0).clamp_min(1e-300)
    lags = torch.stack([(x[k:] - x[:-k]).square().sum(-1).mean(0).sqrt() / scale for k in range(1, LONGEST + 1)])
    path = (x[1:] - x[:-1]).norm(dim=-1).sum(0)
    straightness = (x[-1] - x[0]).norm(dim=-1) / path.clamp_min(1e-300)
    return Features(finite, growth, lags, straightness)


def classify(found: Features, at: Thresholds) -> tuple[Tensor, Tensor]:
    """The limit of each series, and the period of those on a cycle (0 of others).

    Returns:
        Limits and periods, each an integer tensor [...].
    """
    moves = found.lags[0] > at.fixed
    returns = found.lags <= at.returns * found.lags.amax(0)
    returns |= found.lags <= at.fixed
    period = torch.where(returns.any(0), returns.int().argmax(0) + 1, 0)
    limit = torch.full_like(period, Limit.UNSETTLED)
    limit[found.straightness >= at.straight] = Limit.DRIFT
    limit[period > 1] = Limit.CYCLE
    limit[~moves] = Limit.FIXED
    limit[found.growth >= at.grows] = Limit.DIVERGED
    limit[~found.finite] = Limit.NON_FINITE
    return limit, torch.where(limit == Limit.CYCLE, period, 0)


def run_late(
    system: Map,
    n_loops: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda steps: steps,
) -> tuple[Float[Tensor, "time ..."], Tensor]:
    """The last WINDOW states of ``n_loops`` iterations, and what is read from them; memory does not grow with loops."""
    z = system.initial
    states, read = [], []
    with torch.no_grad():
        for loop in progress(range(n_loops)):
            z = system.step(z)
            if loop >= n_loops - WINDOW:
                states.append(z)
                read.append(system.read(z))
    return torch.stack(states), torch.stack(read)


def controls(seed: int, dtype: torch.dtype, width: int = 64) -> Iterator[tuple[Limit, int, Map]]:
    """Maps with their known limit and period, over rates, angles and starts drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda: torch.randn(8, 4, width, generator=generator, dtype=dtype)  # noqa: E731
    uniform = lambda: float(torch.rand((), generator=generator))  # noqa: E731
    for _ in range(8):
        yield Limit.FIXED, 0, contraction(0.5 + 0.49 * uniform(), normal(), generator)
        period = 2 + int(31 * uniform())
        yield Limit.CYCLE, period, rotation(1 / period, normal(), shrink=0.5 + 0.4 * uniform())
        yield Limit.UNSETTLED, 0, rotation((5**0.5 - 1) / 2 * (0.2 + 0.8 * uniform()), normal(), shrink=0.9)
        yield Limit.DRIFT, 0, drift(10 ** (-3 * uniform()), normal(), generator)
        yield Limit.UNSETTLED, 0, logistic(0.1 + 0.8 * torch.rand(8, 4, width, generator=generator, dtype=dtype))
        yield Limit.CYCLE, 3, logistic(0.1 + 0.8 * torch.rand(8, 4, 1, generator=generator, dtype=dtype), r=3.835)
        yield Limit.DIVERGED, 0, expansion(1.02 + 0.02 * uniform(), normal())
    yield Limit.NON_FINITE, 0, expansion(2.0, normal())


def _measured(seed: int, dtype: torch.dtype, n_loops: int) -> Iterator[tuple[Limit, int, Features]]:
    for limit, period, system in controls(seed, dtype):
        yield limit, period, features(run_late(system, n_loops)[0])


@functools.cache
def calibrate(dtype: torch.dtype = torch.float32, n_loops: int = 1500, seed: int = 0) -> Thresholds:
    """Thresholds from controls in an arithmetic.

    ``fixed`` is ten times the largest movement of a contraction that has reached its point: what rounding leaves. The
    others are the geometric middle between the largest value of controls that are not of the type and the smallest of
    those that are (of ``returns``: between cycles over their period, and over all lags what never returns).
    """
    still: list[float] = []
    back: list[float] = []
    never: list[float] = []
    bent: list[float] = []
    straight: list[float] = []
    steady: list[float] = []
    grown: list[float] = []
    for limit, period, found in _measured(seed, dtype, n_loops):
        relative = found.lags / found.lags.amax(0).clamp_min(1e-300)
        if limit is Limit.FIXED:
            still.append(found.lags[0].max().item())
        elif limit is Limit.CYCLE:
            back.append(relative[period - 1].max().item())
        elif limit is Limit.UNSETTLED:
            never.append(relative.amin(0).min().item())
        if limit in (Limit.CYCLE, Limit.UNSETTLED):
            bent.append(found.straightness.max().item())
        elif limit is Limit.DRIFT:
            straight.append(found.straightness.min().item())
        if limit is Limit.DIVERGED:
            grown.append(found.growth.min().item())
        elif limit is not Limit.NON_FINITE:
            steady.append(found.growth.max().item())
    middle = lambda below, above: float(np.sqrt(max(*below, 1e-12) * min(above)))  # noqa: E731
    return Thresholds(10 * max(still), middle(back, never), middle(bent, straight), middle(steady, grown))


@functools.cache
def confusion(
    thresholds: Thresholds, dtype: torch.dtype = torch.float32, n_loops: int = 1500, seed: int = 1
) -> Float[np.ndarray, "true found"]:
    """How fresh controls are classified: shares of each true type, by the type that was found."""
    counts = np.zeros((len(Limit), len(Limit)))
    for limit, period, found in _measured(seed, dtype, n_loops):
        types, periods = classify(found, thresholds)
        right_period = (periods == period) | (types != Limit.CYCLE)
        types = torch.where(right_period, types, torch.full_like(types, Limit.UNSETTLED))
        counts[limit] += np.bincount(types.flatten().numpy(), minlength=len(Limit))
    return counts / counts.sum(1, keepdims=True)
