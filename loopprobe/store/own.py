"""Wrapped modules of your own as subjects of probes: a model with a task, which draws the prompts."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loopprobe.config.schema import TaskConfig
from loopprobe.errors import LoopprobeError
from loopprobe.reference.baselines.optimal import is_of, optimum
from loopprobe.store.subject import PromptSpec
from loopprobe.store.wrapped_subject import WrappedSubject
from loopprobe.tasks import PromptBatch, Prompts, TokenPrompts, held_out, held_out_tokens
from loopprobe.tasks.protocol import Outputs
from loopprobe.tasks.registry import task_config
from loopprobe.tasks.sources import Source, attribute_of, hash_of, module_of_file, named_module
from loopprobe.wrapped.loading import PREFIX
from loopprobe.wrapped.model import WrappedModel

Drawn = Prompts | TokenPrompts
PLACE = re.compile(r"(?:.+\.py|[A-Za-z_][\w.]*):[A-Za-z_][\w.]*")  # FILE.py:NAME, or package.module:NAME


@dataclass(repr=False)
class OwnModel(WrappedSubject):
    """A wrapped module with its task, as ``with_task`` gives it: every probe takes it in place of a checkpoint.

    Attributes:
        model: the wrapped model.
        task: the task that it was trained on.
        name: what it is called.
        n_points, n_dims: the sizes of the prompts of a regression task; None of a token task.
        alias: the label to use where the last part of the name is not unique among the models shown.
        source: the file that ``load_checkpoint`` had it from, and its name there; None: it is of a session.
    """

    model: WrappedModel
    task: TaskConfig
    name: str
    n_points: int | None = None
    n_dims: int | None = None
    alias: str | None = None
    source: Source | None = None

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Send a model that comes from a file to another process as that file, which is run there."""
        if self.source is None:
            return super().__reduce__()
        return _made_again, (str(self.source.place), self.name, self.alias, str(self.device), self.identity())

    @property
    def label(self) -> str:
        """The name in figures and files: the alias, or the last part of ``name``."""
        return self.alias or Path(self.name.rpartition(":")[2]).name

    def identity(self) -> dict[str, Any]:
        """Return a record of the model: its name, the digest of its weights, its sizes, its task and its source."""
        source = hash_of(type(self.model.module)) if self.source is None else self.source.sha256
        return super().identity() | {"source": source}

    @property
    def task_name(self) -> str:
        """The name of the task."""
        return self.task.name

    @property
    def task_record(self) -> dict[str, Any]:
        """The task as plain data."""
        return dataclasses.asdict(self.task)

    def __repr__(self) -> str:
        """Describe the model in two lines."""
        return self.described(self.task_name.replace("_", " "))

    def draw(self, spec: PromptSpec) -> Drawn:
        """Draw the prompts of a specification on the model's device.

        Raises:
            LoopprobeError: the specification names a text, a table or a length that the task has not.
        """
        for name in ("data", "target"):
            if getattr(spec, name) is not None:
                raise LoopprobeError(f"{name} ({getattr(spec, name)}) is of trained checkpoints: leave it out")
        if spec.of_text:
            raise LoopprobeError(f"{self.label} reads no text ({self.task_name}): give prompts of its task")
        return self.held_out(spec.prompts, spec.seed, spec.shift, spec.length)

    def held_out(
        self, n_prompts: int = 1280, seed: int = 0, shift: str | None = None, length: int | None = None
    ) -> Drawn:
        """Draw prompts of the task that its ``draw_held_out`` gives, on the model's device.

        Args:
            n_prompts: the number of prompts.
            seed: the seed of the prompts.
            shift: the name of a distribution shift of a regression task, see ``tasks.shifts``.
            length: of prompts of a token task; None: that of the task.

        Raises:
            LoopprobeError: the task has no such shift or no lengths, or the module does not read so many tokens.
        """
        if self.task.reads_tokens:
            if shift is not None:
                raise LoopprobeError(
                    f"prompts of {self.task_name} have no shift ({shift}): give another length instead"
                )
            assert self.task.length is not None, "a token task has one"
            drawn = held_out_tokens(self.task, n_prompts, length or self.task.length, seed).to(self.device)
            if length not in (None, self.task.length):
                _require_answers(self, drawn[:1])
            return drawn
        if length is not None:
            raise LoopprobeError(f"length ({length}) is of token tasks, and {self.task_name} has vectors: leave it out")
        assert self.n_points is not None, "with_task has asked for it"
        assert self.n_dims is not None, "with_task has asked for it"
        return held_out(self.task, n_prompts, self.n_points, self.n_dims, seed, shift=shift).to(self.device)

    def more_like(self, prompts: Any, n_prompts: int, seed: int) -> Drawn:
        """Draw further prompts from the task, with as many tokens as these."""
        return self.held_out(n_prompts, seed, length=prompts.origin.get("length") if self.task.reads_tokens else None)

    def is_of_task(self, prompts: PromptBatch) -> bool:
        """Check by their origin that prompts are from the task."""
        return is_of(prompts, self.task)

    def loops_of(self, prompts: PromptBatch) -> int:
        """Return the number of loops that the model was trained with."""
        return self.model.sizes.n_loops

    def optimum(self, prompts: PromptBatch) -> tuple[str, Outputs]:
        """Return name and outputs of the best predictor of the task, see ``reference.baselines.optimal``."""
        return optimum(prompts, self.task)


def with_task(
    model: WrappedModel, task: Any, *, name: str = "", n_points: int | None = None, n_dims: int | None = None
) -> OwnModel:
    """Give a wrapped model its task, so that every probe takes it as it takes a checkpoint.

    Two prompts are drawn and run, so that what does not fit is said here.

    Args:
        model: from ``wrap``.
        task: a class or an instance of ``TokenTask`` or ``RegressionTask``, or the name of one that ships or was
            registered. Its inputs are what the module is called with.
        name: what the model is called; empty: the name of the module's class.
        n_points: of a regression task, the points of a prompt, with the query.
        n_dims: of a regression task, the width of an input.

    Raises:
        LoopprobeError: the model is not wrapped, there is no such task, a size is missing, or the model does not read
            the prompts or answers something else than the task asks for.
    """
    if not isinstance(model, WrappedModel):
        raise LoopprobeError(f"model ({type(model).__name__}) must come from loopprobe.wrap: wrap the module first")
    config = task_config(task)
    if not config.reads_tokens and not (n_points and n_dims):
        raise LoopprobeError(
            f"{config.name} is a regression task: tell n_points= and n_dims=, the sizes of its prompts"
        )
    made = OwnModel(model, config, name or type(model.module).__name__, n_points, n_dims)
    _require_answers(made, made.held_out(2))
    return made


def _require_answers(made: OwnModel, prompts: Drawn) -> None:
    """Raise LoopprobeError where the model does not read the prompts, or answers what their task does not ask."""
    config, model = made.task, made.model
    shapes = ", ".join(str(list(part.shape)) for part in prompts.inputs)
    try:
        with torch.no_grad():
            outputs = model(*prompts.inputs, n_loops=1, read_at=prompts.read_at)
            n_tokens = model.embed(*model.prepare(*prompts.inputs)).shape[1]
            errors = prompts.errors(outputs)
    except LoopprobeError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LoopprobeError(
            f"{made.name} does not answer prompts of {config.name}, of shape {shapes} ({reason}): give the task whose "
            "inputs it is called with, and prompts of a length that it reads"
        ) from error
    if n_tokens != prompts.n_tokens or errors.shape[1:] != (prompts.n_prompts, prompts.n_answers):
        raise LoopprobeError(
            f"{made.name} has {n_tokens} tokens of state and answers {list(outputs.shape[1:])} for prompts of "
            f"{config.name}, which have {prompts.n_tokens} tokens and {prompts.n_answers} answers: give the task that "
            "it was trained on"
        )


def is_own(name: str) -> bool:
    """Check whether a name is the place of a model of one's own, FILE.py:NAME or package.module:NAME, and no folder."""
    return not name.startswith(PREFIX) and PLACE.fullmatch(name) is not None and not Path(name).is_dir()


def load_own(name: str, device: str | torch.device = "cpu") -> OwnModel:
    """Load a model of one's own from its place, which is run.

    Args:
        name: FILE.py:NAME or package.module:NAME of what ``with_task`` returned, or of a function without arguments
            that returns it.
        device: the device of the model.

    Raises:
        LoopprobeError: there is no such place, its file or the function raises an error, or it is something else.
    """
    source = named_module(name, "model")
    found = attribute_of(module_of_file(source), str(source.place))
    if callable(found) and not isinstance(found, (OwnModel, torch.nn.Module)):
        try:
            found = found()
        except LoopprobeError:
            raise
        except (Exception, SystemExit) as error:
            reason = " ".join(str(error).split())
            raise LoopprobeError(f"{name} raises {type(error).__name__} ({reason}): mend it") from error
    if not isinstance(found, OwnModel):
        raise LoopprobeError(
            f"{name} is a {type(found).__name__}: let it be, or return, loopprobe.with_task(loopprobe.wrap(module, …), "
            "task)"
        )
    found.model.to(device)
    return dataclasses.replace(found, name=name, source=source)


def _made_again(place: str, name: str, alias: str | None, device: str, identity: dict[str, Any]) -> OwnModel:
    """Make the model of a place in another process, the same one."""
    made = dataclasses.replace(load_own(place, device), name=name, alias=alias)
    if made.identity() != identity:
        raise LoopprobeError(
            f"{name} is another one each time that it is made: load its weights from a file or seed them, and leave "
            "the file as it is while a probe runs"
        )
    return made
