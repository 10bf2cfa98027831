"""Thresholds between the types of limit, computed from maps whose limit is known, and how often those are mistaken.

Computing them takes ten seconds and more. They stand in ``calibrated.json``, which benchmarks/calibration.py writes.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loopprobe.dynamics import maps
from loopprobe.dynamics.limits import LONGEST, TINY, Features, Limit, Thresholds, classify, features
from loopprobe.dynamics.maps import Map
from loopprobe.dynamics.trail import Trail
from loopprobe.errors import LoopprobeError
from loopprobe.support.statistics import HALF

LEAST_MISTAKE = 1e-12  # stands for zero where the logarithm of controls without any error is needed
NOISIER = 30  # the rounding of a transformer against that of a linear map, at most
GOLDEN = (5**0.5 - 1) / 2
RECORD = Path(__file__).with_name("calibrated.json")


@dataclass(frozen=True)
class Control:
    """A map whose limit is known.

    Attributes:
        limit: its type.
        system: the map.
        period: of a cycle.
        trait: what else is known of it: its movement is ``wild``, ``swells``, ``shrinks`` to something, ``slows``
            without an end, or ``turns`` about the point that it approaches.
    """

    limit: Limit
    system: Map
    period: int = 0
    trait: Literal["", "wild", "swells", "shrinks", "slows", "turns"] = ""


def controls(seed: int, dtype: torch.dtype, width: int = 64, repeats: int = 4) -> Iterator[Control]:
    """Yield controls; the seed draws their rates, angles and starts."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*(shape or (5, 4, width)), generator=generator, dtype=dtype)

    def share(last: int = width) -> Tensor:
        return 0.1 + 0.8 * torch.rand(5, 4, last, generator=generator, dtype=dtype)

    def uniform(low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    for _ in range(repeats):
        yield Control(Limit.FIXED, maps.contraction(uniform(0.5, 0.975), normal(), generator))
        for period in (int(uniform(2, LONGEST)), int(uniform(LONGEST + 1, 450))):
            yield Control(Limit.CYCLE, maps.rotation(1 / period, normal(), shrink=uniform(0.5, 0.9)), period)
        yield Control(Limit.CYCLE, maps.logistic(share(1), r=3.835), 3)
        yield Control(Limit.UNSETTLED, maps.rotation(GOLDEN * uniform(0.2, 1), normal(), shrink=0.9))
        shrink = 1 - 10 ** uniform(-3, -2)
        yield Control(Limit.UNSETTLED, maps.rotation(GOLDEN * uniform(0.4, 1), 3 * normal(), shrink), 0, "shrinks")
        yield Control(Limit.UNSETTLED, maps.logistic(share()), 0, "wild")
        factor = 1 + 10 ** uniform(-4, -3)
        yield Control(Limit.UNSETTLED, maps.spiral(factor, 1 / int(uniform(2, 20)), normal()), 0, "swells")
        yield Control(Limit.DRIFT, maps.drift(10 ** uniform(-3, 0), normal(), generator))
        logarithm = 10 ** uniform(-1, 0), normal(), normal(width), 10 ** uniform(0, 3)
        yield Control(Limit.DRIFT, maps.logarithmic(*logarithm), 0, "slows")
        factor = 1 - 10 ** uniform(-4, -2.5)
        yield Control(Limit.APPROACHING, maps.contraction(factor, normal(), generator))
        yield Control(Limit.APPROACHING, maps.straight_contraction(factor, normal(), normal(width)))
        yield Control(Limit.APPROACHING, maps.straight_contraction(-factor, normal(), normal(width)), 0, "turns")
        yield Control(Limit.APPROACHING, maps.spiral(factor, 10 ** uniform(-1.5, -0.5), 3 * normal()), 0, "turns")
        power = uniform(0.4, 1.5), 10 ** uniform(-2, -1), normal(), normal(width)
        yield Control(Limit.APPROACHING, maps.algebraic(*power))
        yield Control(Limit.APPROACHING, maps.algebraic(*power, sign=-1.0), 0, "turns")
        yield Control(Limit.DIVERGED, maps.expansion(uniform(1.02, 1.04), normal()))
    yield Control(Limit.NON_FINITE, maps.expansion(2.0, normal()))


def _measured(seed: int, dtype: torch.dtype, n_loops: int) -> Iterator[tuple[Control, Features]]:
    for control in controls(seed, dtype):
        trail, z = Trail(n_loops), control.system.initial
        for loop in range(n_loops):
            z = control.system.step(z)
            trail.add(loop, z)
        yield control, features(trail)


def require_calibrated(dtype: torch.dtype) -> None:
    """Raise LoopprobeError where limits cannot be told apart in this precision."""
    if dtype in HALF:
        raise LoopprobeError(
            f"limits of states cannot be told apart in {str(dtype).removeprefix('torch.')}, whose rounding "
            f"({torch.finfo(dtype).eps:.1g}) hides slow motion: convert the model with checkpoint.model.float()"
        )


@functools.cache
def calibrate(dtype: torch.dtype = torch.float32) -> Thresholds:
    """Return the thresholds for states in float32 or float64, as ``compute_thresholds`` found them.

    Raises:
        LoopprobeError: the precision is half precision.
    """
    return Thresholds(**_recorded(dtype)["thresholds"])


def control_errors(dtype: torch.dtype = torch.float32) -> Float[np.ndarray, " limit"]:
    """Return which share of fresh controls of each type ``confusion`` found to be mistaken for another one.

    Raises:
        LoopprobeError: the precision is half precision.
    """
    return np.asarray(_recorded(dtype)["mistaken"])


def _recorded(dtype: torch.dtype) -> dict[str, Any]:
    require_calibrated(dtype)
    recorded: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))[str(dtype).removeprefix("torch.")]
    return recorded


def compute_thresholds(dtype: torch.dtype = torch.float32, n_loops: int = 1500, seed: int = 0) -> Thresholds:
    """Compute thresholds from controls in float32 or float64.

    ``fixed`` is thirty times the largest movement that rounding leaves to a contraction at its point. Each other
    threshold is the geometric middle between the largest value among controls that are to lie below it and the
    smallest among those above; of ``floor``, a share, the arithmetic one. For ``returns`` it lies between the movement
    of cycles over their period and the nearest return, over all lags, of controls that never return.

    Raises:
        LoopprobeError: the precision is half precision.
    """
    require_calibrated(dtype)
    below: dict[str, list[float]] = defaultdict(list)
    above: dict[str, list[float]] = defaultdict(list)
    for control, measured in _measured(seed, dtype, n_loops):
        limit, trait, approach = control.limit, control.trait, measured.approach
        relative = measured.lags / measured.lags.amax(0).clamp_min(TINY)
        if limit is Limit.FIXED:
            below["fixed"].append(measured.lags.max().item())
        elif limit is Limit.CYCLE and control.period <= LONGEST:
            below["returns"].append(relative[control.period - 1].max().item())
        elif limit is Limit.CYCLE:
            below["returns_far"].append(measured.away[control.period - 1].max().item())
        elif trait in ("", "wild") and limit is Limit.UNSETTLED:
            above["returns"].append(relative.amin(0).min().item())
            above["returns_far"].append(measured.away[LONGEST:].amin(0).min().item())
        elif limit is Limit.APPROACHING:
            below["unexplained"].append(approach.unexplained[0].max().item())
            below["floor"].append(approach.floor[0].abs().max().item())
            if trait == "turns":
                below["net"].append(approach.net.max().item())
            else:
                above["net"].append(approach.net.min().item())
                above["better"].append(approach.better.min().item())
        if trait == "wild":
            above["unexplained"].append(approach.unexplained[0].min().item())
        elif trait == "shrinks":
            above["floor"].append(approach.floor[0].min().item())
        elif trait == "slows":
            below["better"].append(approach.better.max().item())
        elif trait == "swells":
            above["swells"].append(approach.swells[0].min().item())
        if limit is Limit.DRIFT:
            above["straight"].append(measured.straightness.min().item())
        elif limit is Limit.UNSETTLED or (limit is Limit.CYCLE and control.period <= LONGEST):
            below["straight"].append(measured.straightness.max().item())
        if limit is Limit.CYCLE:
            below["swells"].append(approach.swells[0].max().item())
        if limit is Limit.DIVERGED:
            above["grows"].append(measured.growth.min().item())
        elif limit is not Limit.NON_FINITE:
            below["grows"].append(measured.growth.max().item())
    middles = {name: _middle(below[name], values) for name, values in above.items()}
    middles["floor"] = (max(below["floor"]) + min(above["floor"])) / 2
    return Thresholds(fixed=NOISIER * max(below["fixed"]), **middles)


def _middle(below: list[float], above: list[float]) -> float:
    """Return the geometric middle between the largest value below and the smallest value above."""
    return float(np.sqrt(max(*below, LEAST_MISTAKE) * max(min(above), LEAST_MISTAKE)))


def confusion(
    thresholds: Thresholds, dtype: torch.dtype = torch.float32, n_loops: int = 1500, seed: int = 1
) -> Float[np.ndarray, "true found"]:
    """Classify fresh controls; return the shares of each true type by the type that they are classified as."""
    counts = np.zeros((len(Limit), len(Limit)))
    for control, measured in _measured(seed, dtype, n_loops):
        types, periods = classify(measured, thresholds)
        right_period = (periods == control.period) | (types != Limit.CYCLE)
        types = torch.where(right_period, types, torch.full_like(types, Limit.UNSETTLED))
        counts[control.limit] += np.bincount(types.flatten().numpy(), minlength=len(Limit))
    return counts / counts.sum(1, keepdims=True)


def code_digest() -> str:
    """Return the SHA-256 of the code that the thresholds depend on, by which a record of other code is told."""
    content = hashlib.sha256()
    for name in ("approach", "calibration", "limits", "maps", "trail"):
        content.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return content.hexdigest()
