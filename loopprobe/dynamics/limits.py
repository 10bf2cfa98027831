"""The limit of a series in the long run: a point, reached or approached, a cycle, a drift, or none.

A series is judged by what its trail keeps. Its movement over a lag k is the root mean square of x_{t+k} − x_t over the
last ``WINDOW`` values, relative to its size.

* A series that moves less than the noise of the arithmetic, over any lag, is at a fixed point.
* A series approaches a point where its movement falls towards nothing over the last half of the run, geometrically or
  by a power of time, and where its means turn about a point or lead to one. The logarithm of time leads to none,
  although its steps fall: it drifts.
* A series that returns after k steps, within a small part of its movement, is on a cycle of period k, unless its
  movement grows and will grow by more than it did. Up to lag 64 that is told by the last values, and beyond by the
  distance from one earlier value. A period of which half, or a quarter, falls to nothing is halved, or quartered.
* A series whose steps add up in one direction drifts.
* A series that grows by a factor within the window diverges. An oscillation that grows slower is unsettled: whether
  its growth ends cannot be told.

The thresholds are calibrated on maps whose limit is known (``calibration``): they lie where these maps are told apart,
and the errors made on fresh controls are reported. The types are those of arXiv 2604.11791 (fixed, orbit, slider,
unknown), whose thresholds are set by hand, and the approach.

How much can be told depends on the length of the run, n loops. Below 256 loops the start of the run is part of what is
measured: a fixed point is what stands still in the last 64, nothing is said to drift, and hardly an approach is told
from what is unsettled. Beyond, a geometric approach is told from a drift where its factor is at most 1 − 0.1 / n, and
one that turns slowly where it turns about eight times. Periods are found up to 2 n / 3 and at most 1,000, and the
doubling of a period is seen to fall where it falls by a third over the last half. A power of time is told from the
logarithm where its exponent is at least 0.2 and its transient is over. 1 / log t is the limit of what can be told: it
looks like a power of exponent 0.3, and the distance to its limit is estimated at less than half. Half precision is
refused, because its rounding (a hundredth to a thousandth) hides slow motion and stops it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loopprobe.dynamics.approach import Approach, finite
from loopprobe.dynamics.trail import LAGS, WINDOW, Trail, vectors
from loopprobe.support.statistics import double

LONGEST = 64  # the longest period that is searched for in the last values alone
AS_GOOD = 2.0  # how much worse than with a floor a fall to zero may explain a movement, and is yet the simpler answer
REPEATED = 16  # the least number of values over which a period must be seen again
CACHED = 131_072  # numbers of series of which movements are measured at once on a CPU: a megabyte
TINY = 1e-300  # stands for zero in a denominator


class Limit(IntEnum):
    """The type of limit that a series has in the long run."""

    FIXED = 0
    CYCLE = 1
    DRIFT = 2
    UNSETTLED = 3
    DIVERGED = 4
    NON_FINITE = 5
    APPROACHING = 6

    @property
    def words(self) -> str:
        """The name of the type that tables and figures show."""
        return ("fixed point", "cycle", "slow drift", "unsettled", "diverged", "non-finite", "approaching")[self]


def limit_flags() -> dict[str, Any]:
    """Return the attributes that tell what the numbers of a variable of types mean, as in the CF conventions."""
    words = [limit.words for limit in Limit]
    meanings = " ".join(one.replace(" ", "_") for one in words)
    return {"types": ", ".join(words), "flag_values": [limit.value for limit in Limit], "flag_meanings": meanings}


AT_REST = (int(Limit.FIXED), int(Limit.APPROACHING))  # the types of limit of what comes to rest


@dataclass(frozen=True)
class Thresholds:
    """The thresholds that separate the types.

    Attributes:
        fixed: the relative movement, over any lag, at or below which a series stands still.
        returns: the movement over a period at or below which a series returns, relative to its largest movement over
            any lag.
        returns_far: the same for the distance from one earlier value, relative to the largest distance from it.
        straight: the displacement over the window at or above which a series drifts, relative to its path.
        grows: the growth of the size over the window at or above which a series diverges, as a factor.
        swells: the growth of the movement over the last half of the run above which no cycle is reached, a logarithm.
        unexplained: the share of the change of the movement that a fall may leave where a point is approached.
        floor: the movement that this fall may leave in the end, relative to that at the last stage.
        net: the net motion of the means at or below which a series turns about a point.
        better: how much better a fall with an end must explain the movement than one without.
    """

    fixed: float
    returns: float
    returns_far: float
    straight: float
    grows: float
    swells: float
    unexplained: float
    floor: float
    net: float
    better: float


@dataclass(frozen=True)
class Features:
    """Measurements of series.

    Attributes:
        finite: whether the last values are.
        short: whether the window reaches back to the start of the run, whose values are on their way.
        moved: the largest movement over any lag, relative to the unit; of a short run in the last half of the window.
        growth: the growth of the size over the window, as a factor.
        lags: the movement over lags from 1 to ``LONGEST``, relative to the unit.
        away: the distance from an earlier value, by the loops since, relative to the largest.
        straightness: the displacement over the window, relative to the path.
        approach: what the last half of the run says about the end of the motion.
        to_limit: the distance of the last value from where a motion that turns ends, and one that leads somewhere,
            relative to the unit.
    """

    finite: Tensor
    short: bool
    moved: Float[Tensor, "batch place"]
    growth: Tensor
    lags: Float[Tensor, "lag batch place"]
    away: Float[Tensor, "loop batch place"]
    straightness: Tensor
    approach: Approach
    to_limit: Float[Tensor, "2 batch place"]


def features(trail: Trail, size: Tensor | float | None = None) -> Features:
    """Measure series by their trail, in float64.

    Args:
        trail: the trail of the series, complete.
        size: the unit of movement; None stands for the series' root mean square norm.
    """
    x = double(vectors(trail.last, 3))
    is_finite = torch.isfinite(x).all(-1).all(0)
    x = torch.where(is_finite[..., None], x, 0.0)
    norms = x.norm(dim=-1)
    unit = norms.square().mean(0).sqrt()
    if size is not None:
        unit = torch.as_tensor(size, dtype=x.dtype, device=x.device).expand_as(unit)
    scale = unit.clamp_min(TINY)
    quarter = WINDOW // 4
    growth = norms[-quarter:].mean(0) / norms[:quarter].mean(0).clamp_min(TINY)
    lags = _moved(x, LONGEST) / scale
    short = trail.n_values < 2 * WINDOW
    moved = (_moved(x[WINDOW // 2 :], LONGEST // 2) / scale if short else lags).amax(0)
    path = (x[1:] - x[:-1]).norm(dim=-1).sum(0)
    straightness = (x[-1] - x[0]).norm(dim=-1) / path.clamp_min(TINY)
    away = finite(trail.away)
    approach = Approach.of(trail)
    to_limit = torch.stack([(x[-1] - end).norm(dim=-1) / scale for end in (approach.centre, approach.ahead)])
    return Features(
        is_finite, short, moved, growth, lags, away / away.amax(0).clamp_min(TINY), straightness, approach, to_limit
    )


def _moved(x: Float[Tensor, "time batch place width"], longest: int) -> Float[Tensor, "lag batch place"]:
    """The root mean square of the movement over lags from 1 to the longest, on a CPU by parts that its cache holds."""
    lags, (time, *places, width) = range(1, longest + 1), x.shape
    series = x.flatten(1, -2)
    at_once = CACHED // (time * width) if x.device.type == "cpu" else series.shape[1]  # a GPU waits for small ones
    parts = [
        torch.stack([(part[k:] - part[:-k]).square_().sum(-1).mean(0).sqrt() for k in lags])
        for part in map(torch.Tensor.contiguous, series.split(max(1, at_once), dim=1))
    ]
    return torch.cat(parts, dim=1).unflatten(1, places)


def classify(
    measured: Features, thresholds: Thresholds
) -> tuple[Int[Tensor, "batch place"], Int[Tensor, "batch place"]]:
    """Classify the limit of each series, and give the period of those on a cycle (0 for the others)."""
    approach = measured.approach
    moves = measured.moved > thresholds.fixed
    returns = measured.lags <= thresholds.returns * measured.lags.amax(0)
    returns |= measured.lags <= thresholds.fixed
    fits = approach.unexplained <= thresholds.unexplained
    swells, left = approach.swells[0], approach.floor[0] - 1
    grows = (swells > thresholds.swells) & ~(fits[0] & (left.abs() <= swells))
    period = torch.where(
        returns.any(0) & ~grows, returns.int().argmax(0) + 1, _period_seen_again(measured.away, thresholds)
    )
    to_zero = ((approach.floor >= -1) & (approach.floor <= thresholds.floor)) | (approach.plain <= AS_GOOD)
    falls = fits & to_zero & (approach.swells < 0)
    turns = approach.net <= thresholds.net
    leads = approach.better >= thresholds.better
    for row, lag in reversed(list(enumerate(LAGS))[1:]):  # what is left of a longer period falls, what moves does not
        falls_alone = falls[row] & (approach.swells[row] < 2 * approach.swells[0])
        period = torch.where(falls_alone & turns, lag, period)
    limit = torch.full_like(period, Limit.UNSETTLED)
    if not measured.short:  # on its way from the start a series moves straight, too
        limit[(measured.straightness >= thresholds.straight) & ~turns] = Limit.DRIFT
    limit[period > 1] = Limit.CYCLE
    limit[falls[0] & (turns | leads)] = Limit.APPROACHING
    limit[~moves] = Limit.FIXED
    limit[measured.growth >= thresholds.grows] = Limit.DIVERGED
    limit[~measured.finite] = Limit.NON_FINITE
    return limit, torch.where(limit == Limit.CYCLE, period, 0)


def to_limit(
    measured: Features, limit: Int[Tensor, "batch place"], thresholds: Thresholds
) -> tuple[Float[Tensor, "batch place"], Float[Tensor, "batch place"], Float[Tensor, "batch place"]]:
    """Estimate how far series that approach a point still have to go; NaN for the others.

    Returns:
        The distance, relative to the unit; the factor by which it shrinks in a loop, NaN where that is a power; and the
        exponent q of loops^−q, NaN where that is geometric.
    """
    approach, chosen = measured.approach, limit == Limit.APPROACHING
    turns = approach.net <= thresholds.net
    pairs = (measured.to_limit, approach.factor, approach.exponent)
    distance, factor, exponent = (torch.where(turns, pair[0], pair[1]).where(chosen, torch.nan) for pair in pairs)
    return distance, factor, exponent


def _period_seen_again(away: Float[Tensor, "loop batch place"], thresholds: Thresholds) -> Int[Tensor, "batch place"]:
    """The first lag after which the distances from an earlier value are again what they were, all of them, or 0."""
    reach = len(away)
    near = away <= thresholds.returns_far
    near[0] = False
    near[reach - REPEATED :] = False
    period = torch.where(near.any(0), near.int().argmax(0) + 1, 0)
    lags = torch.arange(reach, device=away.device).reshape(-1, 1, 1)
    again = away.gather(0, (lags + period).clamp_max(reach - 1))
    same = ((again - away).abs() <= 2 * thresholds.returns_far) | (lags + period >= reach)
    return torch.where(same.all(0), period, 0)
