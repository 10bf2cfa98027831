"""The configuration of a training: its schedules, its optimiser and its loss. Imports no torch."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.support.device_names import known_device

SPREAD = 0.5  # standard deviation of the logarithm of loop counts drawn as "poisson" (Huginn, arXiv 2502.05171)


@configuration
class Schedule:
    """A whole number that may change during training.

    constant: always ``end``. linear: from ``start`` in equal stages to ``end`` at the fraction ``over`` of the steps,
    after ``hold`` steps at ``start`` (at most half of the way). step: ``start``, raised by ``by`` every ``every``
    steps until ``end``. An ``end`` of None means the model's own number (n_dims, n_points or n_loops), or the task's
    length.

    mastery: of lengths and dimensions alone, ``start``, raised by one at each row of metrics whose answers were good
    enough: right at a rate of at least ``rate`` (lengths), or with an error at the query of at most ``error``
    (dimensions). dims: of points alone, as far between ``start`` and ``end`` as the dimensions are between theirs.

    Of loops alone, drawn anew in every step: uniform: from ``start`` to ``end``. poisson: one more than a Poisson
    number whose mean is log-normal, with a mean of ``end`` in all (Huginn, arXiv 2502.05171, section 3.3). length: as
    many as the length of the prompts (Fan et al., arXiv 2409.15647).
    """

    kind: Literal["constant", "linear", "step", "mastery", "dims", "uniform", "poisson", "length"] = "constant"
    start: PositiveInt | None = None
    end: PositiveInt | None = None
    over: float | None = Field(default=None, gt=0, le=1)
    hold: PositiveInt | None = None  # of linear alone; None: it grows from the first step
    by: PositiveInt | None = None
    every: PositiveInt | None = None
    rate: float | None = Field(default=None, gt=0, le=1)
    error: float | None = Field(default=None, gt=0)

    def __post_init__(self) -> None:
        needs = [set(names) for names in _NEEDS[self.kind]]
        named = ("start", "over", "by", "every", "rate", "error")
        given = {name for name in named if getattr(self, name) is not None}
        if given not in needs:
            words = ", or ".join(" and ".join(sorted(names)) or "only end" for names in needs)
            raise LoopprobeError(
                f"a {self.kind} schedule takes {words} "
                f"(given: {', '.join(sorted(given)) or 'none'}): change kind or these keys"
            )
        if self.hold is not None and self.kind != "linear":
            raise LoopprobeError(f"hold ({self.hold}) is of linear schedules only, not {self.kind}: drop it")
        if self.start is not None and self.end is not None and self.start > self.end:
            raise LoopprobeError(f"schedule start ({self.start}) must be at most end ({self.end}): lower start")

    @property
    def last(self) -> int:
        """The value at the end of the training; it is filled in when a Config is made."""
        assert self.end is not None
        return self.end

    def at(self, step: int, steps: int, mastered: int | None = None) -> int:
        """The value at ``step`` (from 0) of ``steps``, or the largest where it is drawn or follows the dimensions.

        Args:
            step, steps: of the training.
            mastered: of a mastery schedule, how far it has come; None: to its end.
        """
        if self.kind == "linear":
            assert self.start is not None
            assert self.over is not None
            whole = self.over * steps
            held = min(self.hold or 0, whole / 2)
            fraction = min(1.0, max(0.0, step - held) / (whole - held))
            return self.start + int(fraction * (self.last - self.start))
        if self.kind == "step":
            assert self.start is not None
            assert self.by is not None
            assert self.every is not None
            return min(self.last, self.start + self.by * (step // self.every))
        return self.last if self.kind != "mastery" or mastered is None else min(mastered, self.last)

    def between(self, value: int, whole: Schedule) -> int:
        """The value that is as far between ``start`` and ``end`` as ``value`` is between those of another schedule."""
        first, start = whole.start or whole.last, self.start or self.last
        if whole.last == first:
            return self.last
        return start + (value - first) * (self.last - start) // (whole.last - first)

    def drawn(self, step: int, steps: int, length: int, chance: random.Random) -> int:
        """The loop count of a step: drawn where the schedule says so, else as ``at`` gives it."""
        if self.kind == "length":
            return length
        if self.kind == "uniform":
            assert self.start is not None
            return self.start + int(chance.random() * (self.last - self.start + 1))
        if self.kind == "poisson":
            spread = chance.gauss(-(SPREAD**2) / 2, SPREAD)
            return 1 + _poisson((self.last - 1) * math.exp(spread), chance)
        return self.at(step, steps)


_NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "constant": ((),), "linear": (("start", "over"),), "step": (("start", "by", "every"),),
    "mastery": (("start", "rate"), ("start", "error")), "dims": (("start",),),
    "uniform": (("start",),), "poisson": ((),), "length": ((),),
}  # fmt: skip
_DETERMINED = ("constant", "linear", "step")
_KINDS = {
    "dims": (*_DETERMINED, "mastery"), "points": (*_DETERMINED, "dims"), "length": (*_DETERMINED, "mastery"),
    "loops": (*_DETERMINED, "uniform", "poisson", "length"),
}  # fmt: skip


def _poisson(mean: float, chance: random.Random) -> int:
    """A Poisson number: how many waiting times of mean 1 fit into ``mean``."""
    number, left = 0, mean
    while (left := left - chance.expovariate(1.0)) > 0:
        number += 1
    return number


def _schedule(value: Any) -> Any:
    """A bare number is a constant schedule."""
    return {"end": value} if isinstance(value, int) and not isinstance(value, bool) else value


Loss = Literal["mse", "log", "cross_entropy"]
Rate = Annotated[float, Field(gt=0, le=1e3)]
Beta = Annotated[float, Field(ge=0, lt=1)]


@configuration
class TrainConfig:
    """The recipe of a training. The defaults are the recipe of this project; presets hold others.

    Fields that are None are filled in by the Config, where its task has them.
    """

    steps: PositiveInt = 2000
    batch_size: PositiveInt = 64
    loop_window: PositiveInt = 10  # T: the last T loops carry gradient
    loss_loops: PositiveInt | None = None  # of them, the last that carry loss; None: all
    dims: Schedule | None = None  # of regression: linear from 3 over the first 0.4
    points: Schedule | None = None  # of regression: linear from 10 over the first 0.4
    length: Schedule | None = None  # of token tasks: the longest prompts; lengths are drawn from 1 to it
    loops: Schedule = Field(default_factory=Schedule)
    loss: Loss | None = None  # of regression: mse or log; of tokens: cross_entropy
    optimizer: Literal["muon", "adam"] = "muon"  # muon: Muon on the block's matrices, Adam on the rest
    muon_lr: Rate = 2e-2
    adam_lr: Rate = 3e-3
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    weight_decay: NonNegativeFloat = 0.0  # decoupled, of the matrices under Muon and of all under Adam
    grad_clip: NonNegativeFloat = 1.0  # largest global gradient norm; 0: no clipping
    warmup_steps: NonNegativeInt = 100
    decay: float = Field(default=0.5, ge=0, le=1)  # the last part of training in which rates fall to 0
    seed: NonNegativeInt = 0
    device: str = "auto"  # auto: CUDA, else MPS, else CPU
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast
    log_every: PositiveInt = 10
    checkpoint_every: PositiveInt = 100

    _schedules = pydantic.field_validator("dims", "points", "length", "loops", mode="before")(_schedule)
    _device = pydantic.field_validator("device")(known_device)

    def __post_init__(self) -> None:
        for name, kinds in _KINDS.items():
            schedule = getattr(self, name)
            if schedule is not None and schedule.kind not in kinds:
                raise LoopprobeError(
                    f"train.{name}.kind ({schedule.kind}) must be {', '.join(kinds[:-1])} or {kinds[-1]}: choose one"
                )
            measure = "rate" if name == "length" else "error"
            if schedule is not None and schedule.kind == "mastery" and getattr(schedule, measure) is None:
                raise LoopprobeError(
                    f"train.{name} of kind mastery takes start and {measure}: set train.{name}.{measure}"
                )

    def sizes(self, step: int, mastered: int | None = None) -> dict[str, int]:
        """The sizes of a step, counted from 0: dims and points, or the length, and loops.

        What is drawn depends on the step alone, so that all seeds have prompts of one length in a step.

        Args:
            step: the step.
            mastered: how far a mastery schedule has come; None: to its end.
        """
        chance = random.Random(step)
        sizes = self.reached(step, mastered)
        if "length" in sizes:
            sizes["length"] = 1 + int(chance.random() * sizes["length"])
        return sizes | {"loops": self.loops.drawn(step, self.steps, sizes.get("length", 0), chance)}

    def reached(self, step: int, mastered: int | None = None) -> dict[str, int]:
        """How far the schedules have come at a step: the largest where lengths or loops are drawn."""
        named = {"dims": self.dims, "points": self.points, "length": self.length, "loops": self.loops}
        sizes = {name: s.at(step, self.steps, mastered) for name, s in named.items() if s is not None}
        if self.dims is not None and self.points is not None and self.points.kind == "dims":
            sizes["points"] = self.points.between(sizes["dims"], self.dims)
        return sizes

    @property
    def mastery(self) -> Schedule | None:
        """The mastery schedule, if there is one."""
        return next((s for s in (self.dims, self.length) if s is not None and s.kind == "mastery"), None)

    def next_mastered(self, mastered: int | None, means: Mapping[str, float]) -> int | None:
        """How far the mastery schedule comes after a row of metrics; None without one.

        Args:
            mastered: how far it has come before the row.
            means: of the row: the error at the query, and the rate of right answers (``accuracy``).
        """
        if (schedule := self.mastery) is None or mastered is None:
            return None
        if schedule.error is not None:
            is_good = means["error"] <= schedule.error
        else:
            assert schedule.rate is not None
            is_good = means["accuracy"] >= schedule.rate
        return min(schedule.last, mastered + is_good)
