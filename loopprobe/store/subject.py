"""The subject of every probe: a model with its task, which gives prompts and the right answers."""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import PositiveInt

from loopprobe.config.strict import configuration
from loopprobe.model.protocol import LoopedModel
from loopprobe.tasks.protocol import Outputs


@configuration
class PromptSpec:
    """The specification of the prompts that a model is run on.

    Attributes:
        prompts: the number of prompts.
        seed: the seed of held-out prompts.
        shift: the name of a shift from the distribution of training, see ``tasks.shifts``.
        data: the name or path of a table that the prompts are drawn from instead, see ``tasks.tables``.
        target: the column of the table that is the label.
        length: the length of prompts of a token task, None: the longest of the training; of a language model the tokens
            that are read of every text, None: all, or 128 of a text file.
        text: the texts that a language model reads; the last token of each is the answer. Texts of other lengths are
            another batch.
        text_file: a long text that it reads in windows.
        text_pairs: a JSONL file of clean texts, and where wanted corrupted ones, right and wrong answers.
        chat: whether texts are put through the tokenizer's chat template.
        read: whether the answer at the query alone is read, or that at every token; of a text file always at every one.
    """

    prompts: int = 1280
    seed: int = 0
    shift: str | None = None
    data: str | None = None
    target: str | None = None
    length: PositiveInt | None = None
    text: tuple[str, ...] = ()
    text_file: str | None = None
    text_pairs: str | None = None
    chat: bool = False
    read: Literal["query", "all"] = "query"

    @property
    def of_text(self) -> bool:
        """Whether it names a text, which language models alone read."""
        return bool(self.text or self.text_file or self.text_pairs)


@runtime_checkable
class Subject(Protocol):
    """A model and its task; prompts (Any) are the kind of ``PromptBatch`` that belongs to the task.

    Attributes:
        name: the name or path that it was loaded by.
    """

    name: str

    @property
    def model(self) -> LoopedModel: ...

    @property
    def label(self) -> str:
        """The name in figures, tables and files."""

    @property
    def device(self) -> torch.device:
        """The device of the model."""

    @property
    def task_name(self) -> str: ...

    def identity(self) -> dict[str, Any]:
        """Return a record of the model: its name, a digest of its weights and its configuration."""

    def draw(self, spec: PromptSpec) -> Any:
        """Draw the prompts of a specification on the model's device.

        Raises:
            LoopprobeError: the specification does not fit the model.
        """

    def more_like(self, prompts: Any, n_prompts: int, seed: int) -> Any:
        """Draw further prompts from the task, with as many tokens as these, to fit on."""

    def is_of_task(self, prompts: Any) -> bool:
        """Check by their origin that prompts are from the task."""

    def loops_of(self, prompts: Any) -> int:
        """Return the number of loops that the training gives such prompts, or would."""

    def optimum(self, prompts: Any) -> tuple[str, Outputs]:
        """Return name and outputs of the best predictor that knows the task; NaN where it is unknown."""
