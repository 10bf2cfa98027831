"""Configuration: which model, on which task, trained how. Imports no torch, so the command line starts fast.

A configuration is frozen and validated when it is made; an unknown key is an error.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from loopprobe.config.model import ModelConfig as ModelConfig
from loopprobe.config.strict import build, configuration
from loopprobe.config.task import TaskConfig as TaskConfig
from loopprobe.config.task import require_recorded
from loopprobe.config.train import Loss
from loopprobe.config.train import Schedule as Schedule
from loopprobe.config.train import TrainConfig as TrainConfig
from loopprobe.errors import LoopprobeError


@configuration
class ForeignConfig:
    """A model that was trained elsewhere, and the task that its prompts are of."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    task: TaskConfig = Field(default_factory=TaskConfig)

    def __post_init__(self) -> None:
        require_vocabulary(self.model, self.task)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, without the fields that are off (None); ``train`` is None."""
        return {"train": None} | plain(self)

    @property
    def name(self) -> str:
        """A short name: task, layers unless one, loops b (``lr-b20``)."""
        return "-".join(_parts(self.task, self.model))


@configuration
class Config:
    """Everything that determines a model that is trained here."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    task: TaskConfig = Field(default_factory=TaskConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        self._require_length()
        if self.train.loop_window > self.model.n_loops:
            raise LoopprobeError(
                f"loop_window ({self.train.loop_window}) must be at most n_loops ({self.model.n_loops}): "
                "lower train.loop_window or raise model.n_loops"
            )
        if (self.train.loss_loops or 1) > self.train.loop_window:
            raise LoopprobeError(
                f"loss_loops ({self.train.loss_loops}) must be at most loop_window ({self.train.loop_window}): loops "
                "without gradient learn nothing; lower train.loss_loops or raise train.loop_window"
            )
        require_vocabulary(self.model, self.task)
        limits, defaults = self._schedules()
        resolved: dict[str, Any] = {}
        for name in ("dims", "points", "length", "loops"):
            schedule: Schedule | None = getattr(self.train, name) or defaults.get(name)
            if name not in limits or schedule is None:
                if schedule is not None:
                    raise LoopprobeError(f"train.{name} is not of task {self.task.name}: drop it")
                continue
            limit, whose = limits[name]
            for part in ("start", "end"):
                if (getattr(schedule, part) or 0) > limit:
                    raise LoopprobeError(
                        f"train.{name}.{part} ({getattr(schedule, part)}) must be at most {whose} ({limit}): lower it "
                        f"or raise {whose}"
                    )
            resolved[name] = dataclasses.replace(schedule, end=schedule.end or limit)
        losses: tuple[Loss, ...] = ("cross_entropy",) if self.task.reads_tokens else ("mse", "log")
        if (loss := self.train.loss or losses[0]) not in losses:
            raise LoopprobeError(
                f"train.loss ({loss}) must be {' or '.join(losses)} for task {self.task.name}: change it"
            )
        object.__setattr__(self, "train", dataclasses.replace(self.train, **resolved, loss=loss))

    def _require_length(self) -> None:
        """Raise LoopprobeError where what belongs to longer prompts, such as a preset's, is above the task's length."""
        train, longest = self.train, self.task.length
        if longest is None:
            return
        sizes = {"train.loop_window": train.loop_window if train.loops.kind == "length" else 0}
        sizes |= {f"train.length.{part}": getattr(train.length, part, None) or 0 for part in ("start", "end")}
        if above := {name: size for name, size in sizes.items() if size > longest}:
            raise LoopprobeError(
                f"{' and '.join(f'{name} ({size})' for name, size in above.items())} must be at most task.length "
                f"({longest}): {' '.join(f'--set {name}={longest}' for name in above)}, or raise task.length"
            )

    def _schedules(self) -> tuple[dict[str, tuple[int, str]], dict[str, Schedule]]:
        """The limit of every schedule that the task has, and whose it is; and the schedules where none are given."""
        loops = {"loops": (self.model.n_loops, "model.n_loops")}
        if not self.task.reads_tokens:
            limits = {name: (getattr(self.model, f"n_{name}"), f"model.n_{name}") for name in ("dims", "points")}
            starts = {"dims": min(3, limits["dims"][0]), "points": min(10, limits["points"][0])}
            grown = {name: Schedule(kind="linear", start=start, over=0.4) for name, start in starts.items()}
            return limits | loops, grown
        assert self.task.length is not None
        if self.train.loops.kind == "length" and self.model.n_loops != self.task.length:
            raise LoopprobeError(
                f"model.n_loops ({self.model.n_loops}) must be task.length ({self.task.length}) where there are as "
                "many loops as the length: set it"
            )
        rules = self.task.known
        longest = 0 if rules is None else rules.n_tokens(self.task.length)
        if longest > self.model.n_ctx:
            raise LoopprobeError(
                f"prompts of length {self.task.length} have {longest} tokens and model.n_ctx is {self.model.n_ctx}: "
                "raise it, or lower task.length"
            )
        return {"length": (self.task.length, "task.length")} | loops, {"length": Schedule()}

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, without the fields that are off (None)."""
        return plain(self)

    @property
    def name(self) -> str:
        """A short name: task, layers unless one, loops b, window T, what else is special (``lr-b20-T10``)."""
        parts = _parts(self.task, self.model)
        if self.model.n_loops > 1:
            parts.append(f"T{self.train.loop_window}")
        if (kind := self.train.loops.kind) not in ("constant", "length"):
            parts.append("grown" if kind in ("linear", "step") else kind)
        for name, (limit, _) in self._schedules()[0].items():
            if name != "loops" and (end := getattr(self.train, name).end) != limit:
                parts.append(f"{end}{name}")
        if self.train.loss == "log":
            parts.append("log")
        if self.train.optimizer != TrainConfig.optimizer:
            parts.append(self.train.optimizer)
        if self.train.steps != TrainConfig.steps:
            parts.append(f"{self.train.steps}steps")
        if self.train.seed:
            parts.append(f"s{self.train.seed}")
        return "-".join(parts)


AnyConfig = Config | ForeignConfig


def without_seed(name: str) -> str:
    """Return the name of a model as all seeds have it: without its last part where that is a seed (``-s2``)."""
    return re.sub(r"-s\d+$", "", name)


def kind_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain form of a configuration without its seed: models that differ in their seed alone share it."""
    trained = tree.get("train") or {}
    return {**tree, "train": {name: value for name, value in trained.items() if name != "seed"}}


def read_config(tree: dict[str, Any]) -> AnyConfig:
    """A configuration from its plain form, as ``to_dict`` gives it.

    Raises:
        LoopprobeError: a field is not known, or has a value that it cannot have.
    """
    require_recorded(tree.get("task"))
    config: AnyConfig
    if "train" in tree and tree["train"] is None:
        config = build(ForeignConfig, {key: value for key, value in tree.items() if key != "train"})
    else:
        config = build(Config, tree)
    return config


def require_vocabulary(model: ModelConfig, task: TaskConfig) -> None:
    """Raise LoopprobeError where a model does not read what a task gives, or answers otherwise."""
    if not task.reads_tokens:
        if model.reads_tokens:
            raise LoopprobeError(
                f"task {task.name} gives vectors and the model reads tokens (d_vocab = {model.d_vocab}): drop "
                "model.d_vocab, or choose a token task"
            )
        return
    if not model.reads_tokens:
        raise LoopprobeError(
            f"task {task.name} gives tokens and the model reads vectors: set model.d_vocab to the number of its tokens"
        )
    for name, size in () if task.known is None else vocabulary(task).items():
        if getattr(model, name) != size:
            raise LoopprobeError(
                f"model.{name} ({getattr(model, name) or 'none'}) must be {size} for task {task.short}: set it"
            )


def vocabulary(task: TaskConfig) -> dict[str, int]:
    """The fields of ModelConfig that tell how many tokens and answers a token task has."""
    rules = task.rules
    return {"d_vocab": len(rules.inputs), "d_vocab_out": len(rules.outputs or rules.inputs)}


def _parts(task: TaskConfig, model: ModelConfig) -> list[str]:
    parts = [task.short]
    if model.n_layers > 1 or model.n_loops == 1:
        parts.append(f"L{model.n_layers}")
    if model.n_loops > 1:
        parts.append(f"b{model.n_loops}")
    return parts


def plain(config: Any) -> dict[str, Any]:
    """The plain form of a configuration or of a part of one, without the fields that are off (None)."""
    return _drop_none(dataclasses.asdict(config))


def _drop_none(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree without what is None; the parameters of a task of one's own stay whole."""
    return {
        key: _drop_none(value) if isinstance(value, dict) and key != "parameters" else value
        for key, value in tree.items()
        if value is not None
    }
