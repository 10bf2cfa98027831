"""What every probe is run on: a model with its task, which gives prompts and the right answers."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch

from loopprobe.config.strict import configuration
from loopprobe.model.protocol import LoopedModel
from loopprobe.tasks.protocol import Outputs


@configuration
class PromptSpec:
    """Which prompts a model is run on.

    Attributes:
        prompts: how many.
        seed: of held-out prompts.
        shift: draws them otherwise than in training, see ``tasks.shifts``.
        data: a table that they are taken from instead, by name or path, see ``tasks.tables``; ``target`` is its label.
    """

    prompts: int = 1280
    seed: int = 0
    shift: str | None = None
    data: str | None = None
    target: str | None = None


@runtime_checkable
class Subject(Protocol):
    """A model and its task; prompts (Any) are a ``PromptBatch`` of the kind that its task has.

    Attributes:
        name: the name or path that it was loaded under.
    """

    name: str

    @property
    def model(self) -> LoopedModel: ...

    @property
    def label(self) -> str:
        """What figures, tables and files call it."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""

    @property
    def task_name(self) -> str: ...

    def identity(self) -> dict[str, Any]:
        """What tells it from all others, for the record: its name, a digest of its weights, its configuration."""

    def draw(self, spec: PromptSpec) -> Any:
        """The prompts of a specification, on the model's device; LoopprobeError where it does not fit the model."""

    def more_like(self, prompts: Any, n_prompts: int, seed: int) -> Any:
        """Further prompts of the task, with as many tokens as these, to fit on."""

    def is_of_task(self, prompts: Any) -> bool:
        """Whether prompts say of themselves that they are of the task."""

    def optimum(self, prompts: Any) -> tuple[str, Outputs | None]:
        """The best predictor that knows the task: its name, and its outputs, or None where it is not known."""
