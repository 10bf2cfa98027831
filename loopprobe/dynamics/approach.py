"""Whether a motion comes to an end, and where: shapes in time that are fitted to the stages of a trail.

The movement of a series at the stages of its last half is compared with functions φ of time that fall to zero: ρ^t and
(t + t_0)^−q. Least squares of relative errors fit a + b φ for every φ of a list, and the best is taken (variable
projection: Golub and Pereyra, SIAM J. Numer. Anal. 10, 1973, with a list in the place of the search); a is the movement
that will be left. Where a is zero and the sum of φ is finite, which for a power means q > 1, the series has a limit.
Its means are then regressed on the distance that is still to go, ρ^t or (t + t_0)^(1 − q). With as many means as
unknowns this is Aitken's Δ² process for the first, and Richardson's extrapolation in powers of 1 / t for the second
(Brezinski and Redivo Zaglia, Extrapolation Methods, 1991, chapter 2). Where one shape holds, the distance is right
within 15 %; where several modes of like speed are mixed, within a factor of about 4.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loopprobe.dynamics.trail import STAGES, Trail
from loopprobe.support.statistics import double

TINY = 1e-300  # stands for zero in a denominator
EXACT = 1e-14  # stands for zero in a share of variance, which rounding leaves
NODES = 32  # the number of times at which a shape is evaluated under a window
SLOWEST, FASTEST = 0.02, 40.0  # the fall of a geometric shape over the stages, as the logarithm of a factor
LIMITLESS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # exponents of powers whose sum is infinite
SUMMABLE = (1.3, 1.35, 1.4, 1.45, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.2, 2.5, 2.75, 3.0, 3.5, 4.0, 5.0)  # and is finite
OFFSETS = (-0.2, -0.1, -0.05, 0.0, *np.geomspace(0.02, 2.0, 24).tolist())  # t_0, in lengths of the run


@dataclass(frozen=True)
class Shapes:
    """Functions of time that fall to zero, at every stage.

    Attributes:
        fall: their values, root mean squares under the windows of the stages, about 1 at the last.
        left: the sum of what follows, but for a factor, means under the windows; 0 where it is infinite.
        factor: ρ of ρ^t, the factor of one loop; NaN for powers.
        exponent: q of t^−q; NaN for the others.
        ends: whether the sum is finite.
    """

    fall: Float[Tensor, "shape stage"]
    left: Float[Tensor, "shape stage"]
    factor: Float[Tensor, " shape"]
    exponent: Float[Tensor, " shape"]
    ends: Bool[Tensor, " shape"]


@functools.lru_cache(maxsize=16)
def shapes(n_values: int, start: int, part: int) -> Shapes:
    """List the shapes for a trail of ``n_values`` values, with its ``start`` and ``part``."""
    place = (torch.arange(NODES, dtype=torch.float64) + 0.5) / NODES
    hann = torch.sin(torch.pi * place).square() / (NODES / 2)
    time = start + 0.5 + (torch.arange(STAGES)[:, None] + 2 * place) * part  # under the window of every stage
    ago = time - time[-1].mean()
    span = -float(ago[0].mean())
    rows = []
    for rate in np.geomspace(SLOWEST, FASTEST, 400) / span:
        geometric = torch.exp(-rate * ago)
        rows.append((geometric, geometric, float(np.exp(-rate)), torch.nan, True))
    for offset in OFFSETS:
        since = (time + offset * n_values) / (time[-1].mean() + offset * n_values)
        if since.min() > 0:
            rows += [(since**-q, torch.zeros_like(since), torch.nan, q, False) for q in LIMITLESS]
            rows += [(since**-q, since ** (1 - q), torch.nan, q, True) for q in SUMMABLE]
    fall, left, factor, exponent, ends = zip(*rows, strict=True)
    numbers = (torch.tensor(column, dtype=torch.float64) for column in (factor, exponent))
    falls = (torch.stack(fall).square() @ hann).sqrt()
    return Shapes(falls, torch.stack(left) @ hann, next(numbers), next(numbers), torch.tensor(ends))


@dataclass(frozen=True)
class Approach:
    """What the last half of a run says about the end of a motion.

    Attributes:
        unexplained: the share of the change of the movement over each of ``LAGS`` that the best fall leaves.
        floor: the movement that this fall leaves in the end, over that at the last stage.
        plain: what is left unexplained by the best fall to zero, over what is by the best fall to any floor.
        swells: the logarithm of the movement at the last stage over that at the first.
        net: the distance between the means of the two quarters, over twice the spread about the last: near 0 where
            motion turns about a point, near 1 or above where it leads elsewhere.
        better: what the best fall to zero with an infinite sum leaves unexplained, over what the best with a finite
            one does: large where the motion has an end.
        centre: the mean of the last quarter, and ``ahead`` the limit of the means.
        factor, exponent: of the shapes that the distance falls by, where the motion turns and where it leads.
    """

    unexplained: Float[Tensor, "lag batch place"]
    floor: Float[Tensor, "lag batch place"]
    plain: Float[Tensor, "lag batch place"]
    swells: Float[Tensor, "lag batch place"]
    net: Float[Tensor, "batch place"]
    better: Float[Tensor, "batch place"]
    centre: Float[Tensor, "batch place width"]
    ahead: Float[Tensor, "batch place width"]
    factor: Float[Tensor, "2 batch place"]
    exponent: Float[Tensor, "2 batch place"]

    @classmethod
    def of(cls, trail: Trail) -> Approach:
        """Measure a trail that is complete, in float64; values that are not finite count as zero."""
        every = shapes(trail.n_values, trail.start, trail.part)
        means, movement, base = (finite(x) for x in (trail.means, trail.movement, trail.base))
        fall, ends = every.fall.to(means), every.ends.to(means.device)
        quarter = STAGES // 2
        smooth = torch.sin(torch.pi * (torch.arange(quarter).to(means) + 0.5) / quarter).square()
        before, centre = (
            torch.einsum("i,i...->...", smooth / smooth.sum(), x) for x in (means[:quarter], means[-quarter:])
        )
        spread = (means[-quarter:] - centre).square().sum(-1).mean(0) + (movement[0, -1] / 2).square()
        falls = [Falls.of(series, fall) for series in movement]
        lone = falls[0].lone
        turning, leading = lone.argmin(0), lone.where(ends[:, None, None], torch.inf).argmin(0)
        best_of = (lone.where(chosen[:, None, None], torch.inf).amin(0) for chosen in (~ends, ends))
        without, within = (best.clamp_min(EXACT) for best in best_of)
        factor, exponent = every.factor.to(means), every.exponent.to(means)
        return cls(
            unexplained=torch.stack([each.unexplained for each in falls]),
            floor=torch.stack([each.floor for each in falls]),
            plain=torch.stack([each.plain for each in falls]),
            swells=(movement[:, -1].clamp_min(TINY) / movement[:, 0].clamp_min(TINY)).log(),
            net=(centre - before).norm(dim=-1) / (2 * spread.sqrt()).clamp_min(TINY),
            better=without / within,
            centre=base + centre,
            ahead=base + _extrapolate(means, every.left.to(means)[leading]),
            factor=torch.stack([factor[turning], factor[leading]]),
            exponent=torch.stack([exponent[turning], exponent[leading] - 1]),
        )


def finite(values: Tensor) -> Tensor:
    """Convert to float64, with zero where values are not finite."""
    return torch.nan_to_num(double(values), 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Falls:
    """Falls fitted to the movement s of series by least squares of (a + b φ) / s − 1, so that late stages count.

    Attributes:
        unexplained: the sum of squares that the best shape leaves, over that a constant leaves.
        floor: its a, over the movement at the last stage.
        plain: what the best shape leaves with a = 0, over what the best leaves.
        lone: the sum of squares that each shape leaves with a = 0.
    """

    unexplained: Float[Tensor, "batch place"]
    floor: Float[Tensor, "batch place"]
    plain: Float[Tensor, "batch place"]
    lone: Float[Tensor, "shape batch place"]

    @classmethod
    def of(cls, series: Float[Tensor, "stage batch place"], fall: Float[Tensor, "shape stage"]) -> Falls:
        """Fit all shapes to all series; a and b solve the normal equations."""
        inverse = 1 / series.flatten(1).clamp_min(TINY)
        weight = inverse.square()
        pp, p, py = fall.square() @ weight, fall @ weight, fall @ inverse  # sums over the stages, [shape, series]
        one, y = weight.sum(0), inverse.sum(0)
        lone = (STAGES - py.square() / pp).clamp_min(0)
        floor = (pp * y - p * py) / (pp * one - p.square())
        slope = (py - floor * p) / pp
        rest = (STAGES - floor * y - slope * py).clamp_min(0)
        least, best = rest.min(0)
        constant = (STAGES - y.square() / one).clamp_min(EXACT)
        plain = lone.amin(0).clamp_min(EXACT) / least.clamp_min(EXACT)
        at_last = floor.gather(0, best[None])[0] * inverse[-1]
        shape = series.shape[1:]
        unexplained, at_last, plain = (values.unflatten(0, shape) for values in (least / constant, at_last, plain))
        return cls(unexplained, at_last, plain, lone.unflatten(1, shape))


def _extrapolate(
    means: Float[Tensor, "stage batch place width"], left: Float[Tensor, "batch place stage"]
) -> Float[Tensor, "batch place width"]:
    """Regress means on what is left, with errors relative to it; return them where nothing is left."""
    weight = left.square().clamp_min(TINY).reciprocal()
    weight = weight / weight.sum(-1, keepdim=True)
    mean = torch.einsum("...i,i...w->...w", weight, means)
    centre = (weight * left).sum(-1, keepdim=True)
    centred = weight * (left - centre)
    slope = torch.einsum("...i,i...w->...w", centred, means) / (centred * left).sum(-1, keepdim=True).clamp_min(TINY)
    return mean - slope * centre[..., 0, None]
