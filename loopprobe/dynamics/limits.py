"""The limit of a series in the long run: a point, a cycle, a drift, or none.

A series is judged by its last ``WINDOW`` values. Its movement over a lag k is the root mean square of
x_{t+k} − x_t over the window, relative to its size. A series that moves less than the noise of the arithmetic is at a
fixed point. A series that returns after k steps, within a small part of its movement, is on a cycle of period k. A
series whose steps add up in one direction drifts. The thresholds are calibrated on maps whose limit is known
(``controls``): they lie where these maps are told apart, and the errors made on fresh controls are reported.
The types are those of arXiv 2604.11791 (fixed, orbit, slider, unknown), whose thresholds are set by hand.
Half precision is refused, because its rounding (a hundredth to a thousandth) hides slow motion and stops it.
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
from loopprobe.errors import LoopprobeError
from loopprobe.support.statistics import HALF, double

WINDOW = 128  # the number of values that a series is judged by
LONGEST = 64  # the longest period that is searched for
TINY = 1e-300  # stands for zero in a denominator
LEAST_MISTAKE = 1e-12  # stands for zero where the logarithm of controls without any error is needed


class Limit(IntEnum):
    """The type of limit that a series has in the long run."""

    FIXED = 0
    CYCLE = 1
    DRIFT = 2
    UNSETTLED = 3
    DIVERGED = 4
    NON_FINITE = 5

    @property
    def words(self) -> str:
        """The name of the type that tables and figures show."""
        return ("fixed point", "cycle", "slow drift", "unsettled", "diverged", "non-finite")[self]


@dataclass(frozen=True)
class Thresholds:
    """The thresholds that separate the types.

    Attributes:
        fixed: the relative movement of one step at or below which a series stands still.
        returns: the movement over a period at or below which a series returns, relative to its largest movement over
            any lag.
        straight: the displacement over the window at or above which a series drifts, relative to its path.
        grows: the growth of the size over the window at or above which a series diverges, as a factor.
    """

    fixed: float
    returns: float
    straight: float
    grows: float


@dataclass(frozen=True)
class Features:
    """Measurements of series, each of shape [...]: finiteness, growth, movement over each lag, and straightness."""

    finite: Tensor
    growth: Tensor
    lags: Float[Tensor, "lag ..."]
    straightness: Tensor


def features(series: Float[Tensor, "time ... width"], size: Tensor | float | None = None) -> Features:
    """Measure series by their last values, in float64.

    Args:
        series: the series, with at least WINDOW values in time.
        size: the unit of movement; None stands for the series' root mean square norm.
    """
    if len(series) < WINDOW:
        raise ValueError(f"a series of {len(series)} values is too short: give at least {WINDOW}")
    x = double(series[-WINDOW:])
    finite = torch.isfinite(x).all(-1).all(0)
    x = torch.where(finite[..., None], x, 0.0)
    norms = x.norm(dim=-1)
    unit = norms.square().mean(0).sqrt()
    if size is not None:
        unit = torch.as_tensor(size, dtype=x.dtype, device=x.device).expand_as(unit)
    scale = unit.clamp_min(TINY)
    quarter = WINDOW // 4
    growth = norms[-quarter:].mean(0) / norms[:quarter].mean(0).clamp_min(TINY)
    lags = torch.stack([(x[k:] - x[:-k]).square().sum(-1).mean(0).sqrt() / scale for k in range(1, LONGEST + 1)])
    path = (x[1:] - x[:-1]).norm(dim=-1).sum(0)
    straightness = (x[-1] - x[0]).norm(dim=-1) / path.clamp_min(TINY)
    return Features(finite, growth, lags, straightness)


def classify(measured: Features, thresholds: Thresholds) -> tuple[Tensor, Tensor]:
    """Classify the limit of each series, and give the period of those on a cycle (0 for the others).

    Returns:
        Limits and periods, each an integer tensor [...].
    """
    moves = measured.lags[0] > thresholds.fixed
    returns = measured.lags <= thresholds.returns * measured.lags.amax(0)
    returns |= measured.lags <= thresholds.fixed
    period = torch.where(returns.any(0), returns.int().argmax(0) + 1, 0)
    limit = torch.full_like(period, Limit.UNSETTLED)
    limit[measured.straightness >= thresholds.straight] = Limit.DRIFT
    limit[period > 1] = Limit.CYCLE
    limit[~moves] = Limit.FIXED
    limit[measured.growth >= thresholds.grows] = Limit.DIVERGED
    limit[~measured.finite] = Limit.NON_FINITE
    return limit, torch.where(limit == Limit.CYCLE, period, 0)


def run_late(
    system: Map,
    n_loops: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda steps: steps,
) -> tuple[Float[Tensor, "time ..."], Tensor]:
    """Run ``n_loops`` iterations and return the last WINDOW states with their predictions.

    Memory does not grow with the number of loops.
    """
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
    """Yield maps with their known limit and period; the seed draws their rates, angles and starts."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(8, 4, width, generator=generator, dtype=dtype)

    def uniform() -> float:
        return float(torch.rand((), generator=generator))

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


def require_calibrated(dtype: torch.dtype) -> None:
    """Raise LoopprobeError where limits cannot be told apart in this precision."""
    if dtype in HALF:
        raise LoopprobeError(
            f"limits of states cannot be told apart in {str(dtype).removeprefix('torch.')}, whose rounding "
            f"({torch.finfo(dtype).eps:.1g}) hides slow motion: convert the model with checkpoint.model.float()"
        )


@functools.cache
def calibrate(dtype: torch.dtype = torch.float32, n_loops: int = 1500, seed: int = 0) -> Thresholds:
    """Compute thresholds from controls in float32 or float64.

    ``fixed`` is ten times the largest movement that rounding leaves to a contraction that has reached its point. Each
    other threshold is the geometric middle between the largest value among controls that are not of the type and the
    smallest among those that are. For ``returns`` it lies between the movement of cycles over their period and the
    nearest return, over all lags, of controls that never return.

    Raises:
        LoopprobeError: the precision is half precision.
    """
    require_calibrated(dtype)
    still: list[float] = []
    back: list[float] = []
    never: list[float] = []
    bent: list[float] = []
    straight: list[float] = []
    steady: list[float] = []
    grown: list[float] = []
    for limit, period, measured in _measured(seed, dtype, n_loops):
        relative = measured.lags / measured.lags.amax(0).clamp_min(TINY)
        if limit is Limit.FIXED:
            still.append(measured.lags[0].max().item())
        elif limit is Limit.CYCLE:
            back.append(relative[period - 1].max().item())
        elif limit is Limit.UNSETTLED:
            never.append(relative.amin(0).min().item())
        if limit in (Limit.CYCLE, Limit.UNSETTLED):
            bent.append(measured.straightness.max().item())
        elif limit is Limit.DRIFT:
            straight.append(measured.straightness.min().item())
        if limit is Limit.DIVERGED:
            grown.append(measured.growth.min().item())
        elif limit is not Limit.NON_FINITE:
            steady.append(measured.growth.max().item())
    return Thresholds(10 * max(still), _middle(back, never), _middle(bent, straight), _middle(steady, grown))


def _middle(below: list[float], above: list[float]) -> float:
    """Return the geometric middle between the largest value below and the smallest value above."""
    return float(np.sqrt(max(*below, LEAST_MISTAKE) * min(above)))


@functools.cache
def confusion(
    thresholds: Thresholds, dtype: torch.dtype = torch.float32, n_loops: int = 1500, seed: int = 1
) -> Float[np.ndarray, "true found"]:
    """Classify fresh controls; return the shares of each true type by the type that they are classified as."""
    counts = np.zeros((len(Limit), len(Limit)))
    for limit, period, measured in _measured(seed, dtype, n_loops):
        types, periods = classify(measured, thresholds)
        right_period = (periods == period) | (types != Limit.CYCLE)
        types = torch.where(right_period, types, torch.full_like(types, Limit.UNSETTLED))
        counts[limit] += np.bincount(types.flatten().numpy(), minlength=len(Limit))
    return counts / counts.sum(1, keepdims=True)
