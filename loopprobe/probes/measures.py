"""What a probe measures of the answers: a function of outputs and prompts, with a name and a unit.

The built-in ones are ``error`` (at the query), ``error:3`` (at answer 3, from 0, or -1 from the end) and ``answer``; of
tokens also ``logit_difference``, ``margin`` and ``probability``. Everybody may give a function of their own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loopprobe.errors import LoopprobeError
from loopprobe.support.statistics import at_least_single
from loopprobe.tasks import PromptBatch
from loopprobe.tasks.logits import LogitPrompts
from loopprobe.tasks.sources import attribute_of, module_of_file, named_module

Function = Callable[[Tensor, Any], Tensor]
OF_ALL = ("error", "answer")
OF_LOGITS = ("logit_difference", "margin", "probability")


@dataclass(frozen=True)
class Measure:
    """One number for each prompt, computed from the answers of a model.

    Attributes:
        name: what it is called in tables and figures.
        function: from outputs [batch, answer, *value] after one loop and their prompts to numbers [batch].
        unit: their unit, in words; empty where they have none.
        source: the file and the SHA-256 of what a user wrote; empty of built-in ones.
        key: the option that means it, such as ``logit_difference``; empty: its name. An answer is found again by it.
    """

    name: str
    function: Function = field(compare=False)
    unit: str = ""
    source: str = ""
    key: str = field(default="", compare=False)

    @property
    def option(self) -> str:
        """What stands in the options of a dataset."""
        return self.key or self.name

    @property
    def record(self) -> tuple[str, str, str] | None:
        """What ``dataset.stamp`` notes of it; None for the error at the query."""
        return None if self.name == "error" else (self.name, self.words, self.source)

    @property
    def words(self) -> str:
        """The name with the unit, for axes and captions."""
        words = self.name.replace("_", " ")
        return f"{words} ({self.unit})" if self.unit and self.unit not in words else words

    def __call__(self, outputs: Float[Tensor, "batch answer *value"], prompts: PromptBatch) -> Float[Tensor, " batch"]:
        """Compute the number of each prompt.

        Raises:
            LoopprobeError: a user's function fails, or does not return one number for each prompt.
        """
        try:
            values = self.function(outputs, prompts)
        except LoopprobeError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            raise LoopprobeError(
                f"measure {self.name} failed on outputs {tuple(outputs.shape)} ({type(error).__name__}: {reason}): "
                "mend it"
            ) from error
        n_prompts = len(outputs)
        if not isinstance(values, Tensor) or values.shape != (n_prompts,):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise LoopprobeError(
                f"measure {self.name} must return a tensor of one number for each of the {n_prompts} prompts, not "
                f"{shape}: leave out the mean over prompts"
            )
        if not values.is_floating_point():
            values = values.float()
        if outputs.requires_grad and not values.requires_grad:
            raise LoopprobeError(f"measure {self.name} must be differentiable here: compute it with torch alone")
        return at_least_single(values)


def find_measure(given: str | Function | Measure, prompts: PromptBatch) -> Measure:
    """The measure that a name, a function or a place in a file means.

    Args:
        given: the name of a built-in measure, ``FILE.py:NAME`` or ``package.module:NAME``, which runs that file, a
            function, or a Measure. A function's unit is its attribute ``unit``.
        prompts: those that it shall be computed on.

    Raises:
        LoopprobeError: there is none, or it has no meaning for these prompts.
    """
    if isinstance(given, Measure):
        return given
    if callable(given):
        name = getattr(given, "__name__", type(given).__name__)
        return Measure(name, given, str(getattr(given, "unit", "")), "a function of the session")
    if place := re.fullmatch(r"error:(-?\d{1,9})", given):
        return dataclasses.replace(_error_at(int(place[1]), prompts), key=given)
    if ":" in given:
        source = named_module(given, "measure")
        found = attribute_of(module_of_file(source), str(source.place))
        if not (callable(found) or isinstance(found, Measure)):
            raise LoopprobeError(f"measure {given!r} is a {type(found).__name__}: name a function")
        made = find_measure(found, prompts)
        return Measure(made.name, made.function, made.unit, f"{source.place} (SHA-256 {source.sha256})")
    known = OF_ALL + OF_LOGITS if isinstance(prompts, LogitPrompts) else OF_ALL
    if given not in known:
        hint = " of tokens alone" if given in OF_LOGITS else ""
        raise LoopprobeError(
            f"measure {given!r} is{hint or ' not known'}: choose from {', '.join(known)}, error:K, or give FILE.py:NAME"
        )
    return dataclasses.replace(_builtin(given, prompts), key=given)


def _builtin(name: str, prompts: PromptBatch) -> Measure:
    if name == "error":
        return Measure("error", lambda outputs, batch: batch.errors(outputs)[..., -1], prompts.query_unit)
    if name == "answer":
        return Measure("answer", lambda outputs, batch: batch.answer(outputs), prompts.answer_unit)
    if name == "logit_difference":
        return Measure("logit difference", lambda outputs, batch: batch.contrast(outputs)[1], "logits")
    if name == "margin":
        return Measure("margin", _margin, "logits")
    return Measure("probability", lambda outputs, batch: (-batch.errors(outputs)[..., -1]).exp(), "of the right answer")


def _margin(logits: Float[Tensor, "batch answer vocab"], prompts: Any) -> Float[Tensor, " batch"]:
    """The right answer's logit at the query minus the largest of all others."""
    at_query = at_least_single(logits[..., -1, :])
    right = prompts.answers[:, -1].to(logits.device)[:, None]
    own = at_query.gather(-1, right).squeeze(-1)
    return own - at_query.scatter(-1, right, -torch.inf).amax(-1)


def _error_at(place: int, prompts: PromptBatch) -> Measure:
    if not -prompts.n_answers <= place < prompts.n_answers:
        raise LoopprobeError(
            f"measure error:{place} names no answer: there are {prompts.n_answers}, 0 to {prompts.n_answers - 1}, or "
            f"-{prompts.n_answers} to -1 from the end"
        )
    return Measure(f"error at answer {place % prompts.n_answers}", _ErrorAt(place), prompts.unit)


@dataclass(frozen=True)
class _ErrorAt:
    """The error of one answer, as a function that other processes can be sent."""

    place: int

    def __call__(self, outputs: Tensor, prompts: PromptBatch) -> Tensor:
        return prompts.errors(outputs)[..., self.place]
