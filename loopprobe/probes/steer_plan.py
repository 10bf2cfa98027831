"""The options of steering, and where it happens."""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from loopprobe.config.selection import Choice, resolve
from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.probes.loops import chosen_tokens, last_token
from loopprobe.store.subject import Subject
from loopprobe.tasks import PromptBatch

CORRUPTED = "corrupted"


@configuration
class SteerConfig:
    """Which direction, where it is added, and how much of it.

    Attributes:
        direction: where it comes from. ``answer``: the mean state of prompts with one answer minus that of others;
            ``corrupted``: of clean minus corrupted prompts; the name of a result that a solver of a token task holds:
            of tokens with one value of it minus another; ``decoder:TARGET``: the weights of ridge regression of a
            target, ``decoder:TARGET:1`` of its entry 1; or a file, .npy or .pt, or .nc:N for feature N of a dictionary.
        values: of an answer that is a token, and of a result, the two values. None: the two that are most frequent.
        strengths: how much is added; 0 is the run as it is, below 0 is against the direction.
        unit: what a strength of 1 is, at each loop and token: ``std``, the standard deviation over prompts of the
            states along the direction; or ``norm``, the mean norm of the states.
        loops: iterations that are run. None: as many as trained.
        in_loops: the loops after which it is added to the state, from 1, see ``config.selection``. None: the middle one
            of those that are run, so that the rest shows whether the loop brings the state back.
        read_loop: the loop after which the answer is read, from 1. None: the last.
        positions: tokens, see ``config.selection``.
        measure: what is measured of the answers, see ``probes.measures``. None: the logit difference of the two answers
            that the direction tells apart; of any other direction the answer.
        corruption: how prompts are corrupted, see the probe patch. None: the usual way.
        fit_prompts: the further prompts that the direction is taken from.
        ridge: the penalty of ridge regression, relative to the mean variance of the states.
        controls: random directions.
        seed: of these.
    """

    direction: str = "answer"
    values: tuple[str, ...] | None = None
    strengths: tuple[float, ...] = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
    unit: Literal["std", "norm"] = "std"
    loops: PositiveInt | None = None
    in_loops: Choice | None = None
    read_loop: PositiveInt | None = None
    positions: Choice = "query"
    measure: str | None = None
    corruption: str | None = None
    fit_prompts: PositiveInt = 256
    ridge: PositiveFloat = 1e-3
    controls: PositiveInt = 4
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        if not self.strengths or len(set(self.strengths)) < len(self.strengths):
            raise LoopprobeError(f"strengths ({self.strengths}) must name each once, and at least one: change it")
        if not np.isfinite(self.strengths).all():
            raise LoopprobeError(f"strengths ({self.strengths}) must be finite: change it")
        if self.values is not None and len(self.values) != 2:
            raise LoopprobeError(f"values ({','.join(self.values)}) must be two: one minus the other is the direction")


@runtime_checkable
class Places(Protocol):
    """Options that say where the state is edited and where the answer is read."""

    @property
    def loops(self) -> int | None: ...

    @property
    def in_loops(self) -> Choice | None: ...

    @property
    def read_loop(self) -> int | None: ...

    @property
    def positions(self) -> Choice: ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where the direction is added, and where the answer is read; loops are counted as they are done, from 1."""

    n_loops: int
    read_loop: int
    pushed: list[int]
    tokens: list[int]

    @classmethod
    def of(cls, subject: Subject, prompts: PromptBatch, config: Places) -> Plan:
        """Resolve the options.

        Raises:
            LoopprobeError: they name loops or tokens that are not there, or the answer is read before the first push.
        """
        n_loops = config.loops or max(subject.loops_of(prompts), config.read_loop or 1)
        read_loop = config.read_loop or n_loops
        if read_loop > n_loops:
            raise LoopprobeError(f"read_loop ({read_loop}) must be at most loops ({n_loops}): no answer is there later")
        chosen = resolve(config.in_loops, n_loops, "loop", first=1)
        if config.in_loops is None:
            pushed = [max(1, n_loops // 2)]
        else:
            pushed = sorted(loop + 1 for loop in (range(n_loops) if chosen is None else chosen))
        if read_loop < pushed[0]:
            raise LoopprobeError(
                f"the first push is after loop {pushed[0]} and the answer is read after read_loop ({read_loop}): lower "
                "in_loops or raise read_loop"
            )
        tokens = chosen_tokens(config.positions, prompts, last_token(subject, prompts))
        return cls(n_loops, read_loop, pushed, tokens)
