"""The one interface of tasks: of those that ship and of a researcher's own.

A task is a class that draws prompts: a ``RegressionTask`` labelled points, a ``TokenTask`` tokens with their answers.
The arguments of its constructor are its parameters, so a dataclass is the shortest way to write one. A task that only
draws is whole; every other method has a default, and what a task leaves out is refused where a probe asks for it.

The design. ``TaskConfig`` names a task and holds its parameters; it is plain data, that JSON and pickles hold. Its
``rules`` are the task itself, made by ``tasks.registry`` from the name, in the same way for all: a name that ships or
was registered, an entry point, a module or a file. The sampling, the probes and the verbs see the interface alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loopprobe.errors import LoopprobeError
from loopprobe.tasks.draws import checked_points, checked_tokens, require_reproducible
from loopprobe.tasks.prompts import FAILURE_LEVEL, UNIT, Prompts
from loopprobe.tasks.protocol import Outputs
from loopprobe.tasks.seeds import SCALE
from loopprobe.tasks.shifts import Shift

NUMBER = 8  # bytes
UNTRIED = "_untried"  # marks a task whose draws have not been checked yet
TRIED = 16  # prompts that are drawn to see whether they are reproducible
SCALE_PROMPTS, SCALE_POINTS = 4096, 8  # that E(y²) is measured on where a task does not tell it


@dataclass(frozen=True)
class Predictor:
    """A known predictor, which is the best one of a task.

    Attributes:
        name: a key of ``reference.baselines.optimal.PREDICTORS``.
        words: what it is called; empty: its name with spaces.
        options: what else it is given.
    """

    name: str
    words: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


Optimum = None | str | Predictor | Outputs | tuple[str, Outputs]


class Task:
    """What the two kinds of tasks share.

    Attributes:
        name: what the task is registered as; empty: the name of the class.
        short: the part of a model's name; empty: the name in lower case.
    """

    name: ClassVar[str] = ""
    short: ClassVar[str] = ""

    def optimum(self, prompts: Any) -> Optimum:
        """Return the best predictor that knows the task but not what a prompt was drawn with.

        Returns:
            Outputs as a model gives them, alone or with a name; a ``Predictor`` or its name, such as
            ``least_squares``; or None where it is not known.
        """
        return None


class RegressionTask(Task):
    """A task of labelled points: the query's label is predicted from the examples before it.

    Attributes:
        labels: ``real``; ``sign`` for labels that are +1 or -1, whose accuracy is told too.
        unit: the unit of ``error``, in words.
        failure_level: the error at the query above which a prompt counts as failed.
        baselines: the baselines that fit the task, of ``reference.baselines.BASELINES``; None: all.
    """

    baselines: ClassVar[tuple[str, ...] | None] = None
    labels: str = "real"
    unit: str = UNIT
    failure_level: float = FAILURE_LEVEL

    def draw(self, n_prompts: int, n_points: int, n_dims: int, generator: torch.Generator) -> Sequence[Tensor]:
        """Draw prompts on the CPU.

        Args:
            n_prompts: the number of prompts.
            n_points: the number of points of a prompt, with the query.
            n_dims: the width of an input; the curriculum of training begins with few.
            generator: it alone determines the result.

        Returns:
            Inputs [n_prompts, n_points, n_dims] and labels [n_prompts, n_points]; where the function has a vector of
            weights [n_prompts, n_dims] also these.
        """
        raise _without_draw(self, "n_prompts, n_points, n_dims, generator")

    def draw_held_out(self, n_prompts: int, n_points: int, n_dims: int, generator: torch.Generator) -> Sequence[Tensor]:
        """Draw prompts for evaluation: as ``draw``, unless a finite set of data is split."""
        return self.draw(n_prompts, n_points, n_dims, generator)

    def error(self, predictions: Float[Tensor, ...], labels: Float[Tensor, ...]) -> Float[Tensor, ...] | None:
        """Return the error of each prediction, in ``unit``; None stands for the squared error over E(y²)."""
        return None

    def scale(self, n_dims: int) -> float:
        """Return E(y²) without noise, which squared errors are divided by; here it is measured on prompts."""
        scales: dict[int, float] = self.__dict__.setdefault("_scales", {})
        if n_dims not in scales:
            generator = torch.Generator().manual_seed(SCALE)
            _, ys, _ = self._drawn(SCALE_PROMPTS, SCALE_POINTS, n_dims, generator, held_out=False)
            scales[n_dims] = ys.double().square().mean().item()
        if not scales[n_dims]:
            raise LoopprobeError(f"all labels of {name_of(self)} are zero, and errors are divided by E(y²): mend draw")
        return scales[n_dims]

    def covariance(self, xs: Float[Tensor, "batch point dim"]) -> Float[Tensor, "batch point point"] | None:
        """Return E[y y'] given the inputs, from which follows the best predictor that is linear in the labels."""
        return None

    def memory(self, n_prompts: int, n_points: int, n_dims: int) -> int:
        """Return the bytes of memory that drawing takes at its peak."""
        return NUMBER * n_prompts * n_points * 4 * (n_dims + 1)

    def sample(
        self,
        n_prompts: int,
        n_points: int,
        n_dims: int,
        generator: torch.Generator,
        *,
        active_dims: int,
        held_out: bool = False,
        shift: Shift | None = None,
        shift_generator: torch.Generator | None = None,
    ) -> Prompts:
        """Draw prompts as ``tasks.sampling`` wants them: the inputs beyond ``active_dims`` are zero.

        Raises:
            LoopprobeError: what was drawn is not what it must be, or a shift is asked for.
        """
        if shift is not None and shift != Shift(shift.words):  # not the shifts that only change the sizes
            raise LoopprobeError(
                f"prompts of {name_of(self)} cannot be shifted ({shift.words}), since inputs and labels are drawn at "
                "once: choose more_examples or more_dims, or derive the task from loopprobe.tasks.FunctionTask"
            )
        xs, ys, weights = self._drawn(n_prompts, n_points, active_dims, generator, held_out)
        pad = (0, n_dims - active_dims)
        weights = None if weights is None else torch.nn.functional.pad(weights, pad)
        return Prompts(torch.nn.functional.pad(xs, pad), ys, scale=self.scale(active_dims), weights=weights)

    def _drawn(
        self, n_prompts: int, n_points: int, n_dims: int, generator: torch.Generator, held_out: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        draw = self.draw_held_out if held_out else self.draw
        drawn = draw(n_prompts, n_points, n_dims, generator)
        checked = checked_points(name_of(self), drawn, n_prompts, n_points, n_dims)
        if UNTRIED in self.__dict__:
            require_reproducible(name_of(self), lambda chance: self.draw(TRIED, n_points, n_dims, chance))
            del self.__dict__[UNTRIED]
        return checked


class TokenTask(Task):
    """A task of tokens, whose answers are read at some of them.

    Attributes:
        inputs: the names of the tokens, in the order of their numbers.
        outputs: the names of the answers, in the order of their numbers; empty: those of the tokens.
        length: the greatest length in training, which draws prompts of each length from 1 to it.
        counts: what a length counts, in words.
        theory: what is known of the depth that the task needs, and where it is shown.
    """

    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    length: int = 16
    counts: ClassVar[str] = "tokens"
    theory: ClassVar[str] = ""

    @property
    def longest(self) -> int | None:
        """The greatest length that there is; None: any."""
        return None

    def draw(self, n_prompts: int, length: int, generator: torch.Generator) -> Sequence[Any]:
        """Draw prompts of a length on the CPU.

        Args:
            n_prompts: the number of prompts.
            length: of all of them; what it counts is the task's matter.
            generator: it alone determines the result.

        Returns:
            The numbers of the tokens [n_prompts, token], those of the answers [n_prompts, answer], and where wanted
            the places of the tokens that the answers are read at, in rising order, the same for all prompts of a
            length. Otherwise they are read at the last tokens.
        """
        raise _without_draw(self, "n_prompts, length, generator")

    def draw_held_out(self, n_prompts: int, length: int, generator: torch.Generator) -> Sequence[Any]:
        """Draw prompts for evaluation: as ``draw``, unless a finite set of data is split."""
        return self.draw(n_prompts, length, generator)

    def n_tokens(self, length: int) -> int:
        """Return how many tokens a prompt of a length has; here it is counted in one that is drawn."""
        counts: dict[int, int] = self.__dict__.setdefault("_counts", {})
        if length not in counts:
            counts[length] = self.sample(1, length, torch.Generator().manual_seed(0))[0].shape[1]
        return counts[length]

    def least_depth(self, length: int) -> int | None:
        """Return the least depth, in layers one after the other, that is known to suffice; None: no number is known."""
        return None

    def solve(self, tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch answer"] | None:
        """Return the right answers of any tokens, which a corruption of one token needs; None: that is not told."""
        return None

    def free(self, length: int) -> list[int]:
        """Return how many symbols may stand at each token, for corruptions: the first ones; 0 where none may change."""
        return [len(self.inputs)] * self.n_tokens(length)

    def results(self, tokens: Int[Tensor, "batch pos"]) -> dict[str, Int[Tensor, "batch pos"]]:
        """Return what a solver holds at each token, by name: whole numbers, -1 where there is none."""
        return {}

    def targets(self, tokens: Int[Tensor, "batch pos"]) -> dict[str, Bool[Tensor, "batch pos"]]:
        """Return the groups of tokens that the answer at the query depends on, by name."""
        return {}

    def memory(self, n_prompts: int, length: int) -> int:
        """Return the bytes of memory that drawing takes at its peak."""
        return NUMBER * n_prompts * self.n_tokens(length) * 4

    def sample(
        self, n_prompts: int, length: int, generator: torch.Generator, *, held_out: bool = False
    ) -> tuple[Tensor, Tensor, tuple[int, ...] | None]:
        """Draw tokens, answers and the places that are read as ``tasks.tokens`` wants them.

        Raises:
            LoopprobeError: there are no prompts of this length, or what was drawn is not what it must be.
        """
        if length < 1 or (self.longest is not None and length > self.longest):
            limit = f"from 1 to {self.longest}" if self.longest else "at least 1"
            raise LoopprobeError(f"length ({length} {self.counts}) must be {limit}: change it")
        draw = self.draw_held_out if held_out else self.draw
        sizes = len(self.inputs), len(self.outputs or self.inputs)
        checked = checked_tokens(name_of(self), draw(n_prompts, length, generator), n_prompts, *sizes)
        if UNTRIED in self.__dict__:
            require_reproducible(name_of(self), lambda chance: self.draw(TRIED, self.length, chance))
            del self.__dict__[UNTRIED]
        return checked


def name_of(task: Task) -> str:
    """Return what a task is called."""
    return task.name or type(task).__name__


def _without_draw(task: object, parameters: str) -> LoopprobeError:
    """The error of a task that draws nothing."""
    return LoopprobeError(f"{type(task).__name__} does not say how prompts are drawn: define draw(self, {parameters})")
