"""Configuration: which model, on which task, trained how. Imports no torch, so the command line starts fast.

A configuration is frozen and validated when it is made; an unknown key is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from loopprobe.config.lens import used_fields
from loopprobe.config.strict import build, configuration
from loopprobe.config.task import TaskConfig as TaskConfig
from loopprobe.errors import LoopprobeError
from loopprobe.support.device_names import known_device


@configuration
class ModelConfig:
    """A looped transformer, under the field names of TransformerLens's HookedTransformerConfig.

    The fields from ``n_layers`` to ``initializer_range`` are TransformerLens's; ``n_loops`` and ``injection``
    describe the loop; ``n_dims`` and ``n_points`` the prompts. An ordinary transformer is ``n_loops = 1``.
    Fields left at None are filled in, so a config that was made is always complete.
    """

    n_layers: PositiveInt = 1
    d_model: PositiveInt = 64
    n_heads: PositiveInt = 4
    d_head: PositiveInt = None  # type: ignore[assignment]  # d_model // n_heads
    d_mlp: PositiveInt = None  # type: ignore[assignment]  # 4 * d_model
    n_ctx: PositiveInt = None  # type: ignore[assignment]  # tokens: 2 * n_points
    act_fn: Literal["gelu_new", "gelu", "relu"] = "gelu_new"
    eps: PositiveFloat = 1e-5
    initializer_range: PositiveFloat | None = None  # std of initial weights; None: 1 / sqrt(fan_in)
    n_loops: PositiveInt = 20
    injection: Literal["add", "multiply", "none"] = "add"
    n_dims: PositiveInt = 10
    n_points: PositiveInt = 31

    # Constants of the architecture that TransformerLens's ActivationCache asks its model for.
    normalization_type: ClassVar[str] = "LN"
    attn_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.d_head is None:
            if self.d_model % self.n_heads:
                raise LoopprobeError(
                    f"d_model ({self.d_model}) must be divisible by n_heads ({self.n_heads}): "
                    "change one of them or set d_head"
                )
            object.__setattr__(self, "d_head", self.d_model // self.n_heads)
        if self.d_mlp is None:
            object.__setattr__(self, "d_mlp", 4 * self.d_model)
        if self.n_ctx is None:
            object.__setattr__(self, "n_ctx", 2 * self.n_points)
        if self.n_ctx < 2 * self.n_points:
            raise LoopprobeError(
                f"n_ctx ({self.n_ctx}) must be at least 2 * n_points ({2 * self.n_points}): "
                "every point is two tokens; raise n_ctx or lower n_points"
            )

    @classmethod
    def from_transformer_lens(cls, cfg: Any, **loop_fields: Any) -> ModelConfig:
        """Make a config from a TransformerLens one: TransformerBridgeConfig, legacy HookedTransformerConfig, dict.

        Args:
            cfg: the TransformerLens config, or its ``to_dict()``. Fields about tokens, files and devices have no
                meaning here and are passed over, see ``lens_config``.
            loop_fields: ``n_loops``, ``injection``, ``n_dims``, ``n_points``, or any field to override.

        Raises:
            LoopprobeError: the config asks for something that a looped GPT-2 block does not have.
        """
        known = used_fields(cfg if isinstance(cfg, Mapping) else vars(cfg))
        if "n_ctx" in known:
            known["n_points"] = known["n_ctx"] // 2
        if "initializer_range" in known:
            known["initializer_range"] = float(known["initializer_range"])
        model_cfg: ModelConfig = build(cls, known | loop_fields)
        return model_cfg

    def to_transformer_lens(self) -> Any:
        """The TransformerBridgeConfig of one pass through the block (imports transformer_lens)."""
        from transformer_lens.config import TransformerBridgeConfig

        shared = ("n_layers", "d_model", "n_heads", "d_head", "d_mlp", "n_ctx", "act_fn", "eps")
        return TransformerBridgeConfig(
            **{name: getattr(self, name) for name in shared},
            normalization_type=self.normalization_type,
            attn_only=self.attn_only,
        )


@configuration
class Schedule:
    """A whole number that may grow during training.

    constant: always ``end``. linear: from ``start`` in equal stages to ``end`` at the fraction ``over`` of the steps,
    after ``hold`` steps at ``start`` (at most half of the way). step: ``start``, raised by ``by`` every ``every``
    steps until ``end``. An ``end`` of None means the model's own number (n_dims, n_points or n_loops).
    """

    kind: Literal["constant", "linear", "step"] = "constant"
    start: PositiveInt | None = None
    end: PositiveInt | None = None
    over: float | None = Field(default=None, gt=0, le=1)
    hold: PositiveInt | None = None  # of linear alone; None: it grows from the first step
    by: PositiveInt | None = None
    every: PositiveInt | None = None

    def __post_init__(self) -> None:
        needs = {"constant": set(), "linear": {"start", "over"}, "step": {"start", "by", "every"}}[self.kind]
        given = {name for name in ("start", "over", "by", "every") if getattr(self, name) is not None}
        if needs != given:
            raise LoopprobeError(
                f"a {self.kind} schedule takes {' and '.join(sorted(needs)) or 'only end'} "
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

    def at(self, step: int, steps: int) -> int:
        """The value at ``step`` (from 0) of ``steps``."""
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
        return self.last


def _schedule(value: Any) -> Any:
    """A bare number is a constant schedule."""
    return {"end": value} if isinstance(value, int) and not isinstance(value, bool) else value


Rate = Annotated[float, Field(gt=0, le=1e3)]
Beta = Annotated[float, Field(ge=0, lt=1)]


@configuration
class TrainConfig:
    """The recipe of a training. The defaults are the recipe of this project; presets hold others."""

    steps: PositiveInt = 2000
    batch_size: PositiveInt = 64
    loop_window: PositiveInt = 10  # T: the last T loops carry loss and gradient
    dims: Schedule = Field(default_factory=lambda: Schedule(kind="linear", start=3, over=0.4))
    points: Schedule = Field(default_factory=lambda: Schedule(kind="linear", start=10, over=0.4))
    loops: Schedule = Field(default_factory=Schedule)
    loss: Literal["mse", "log"] = "mse"  # mse: mean squared error; log: of the logarithms of its parts
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

    _schedules = pydantic.field_validator("dims", "points", "loops", mode="before")(_schedule)
    _device = pydantic.field_validator("device")(known_device)

    def lengths(self, step: int) -> dict[str, int]:
        """Return the numbers of dims, points and loops of a step, counted from 0."""
        schedules = {"dims": self.dims, "points": self.points, "loops": self.loops}
        return {name: schedule.at(step, self.steps) for name, schedule in schedules.items()}


@configuration
class ForeignConfig:
    """A model that was trained elsewhere, and the task that its prompts are of."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    task: TaskConfig = Field(default_factory=TaskConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, without the fields that are off (None); ``train`` is None."""
        return {"train": None} | _drop_none(dataclasses.asdict(self))

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
        if self.train.loop_window > self.model.n_loops:
            raise LoopprobeError(
                f"loop_window ({self.train.loop_window}) must be at most n_loops ({self.model.n_loops}): "
                "lower train.loop_window or raise model.n_loops"
            )
        resolved = {}
        for name, limit in (
            ("dims", self.model.n_dims), ("points", self.model.n_points), ("loops", self.model.n_loops),
        ):  # fmt: skip
            schedule = getattr(self.train, name)
            for part in ("start", "end"):
                if (getattr(schedule, part) or 0) > limit:
                    raise LoopprobeError(
                        f"train.{name}.{part} ({getattr(schedule, part)}) must be at most model.n_{name} "
                        f"({limit}): lower it or raise model.n_{name}"
                    )
            resolved[name] = dataclasses.replace(schedule, end=schedule.end or limit)
        object.__setattr__(self, "train", dataclasses.replace(self.train, **resolved))

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, without the fields that are off (None)."""
        return _drop_none(dataclasses.asdict(self))

    @property
    def name(self) -> str:
        """A short name: task, layers unless one, loops b, window T, what else is special (``lr-b20-T10``)."""
        parts = _parts(self.task, self.model)
        if self.model.n_loops > 1:
            parts.append(f"T{self.train.loop_window}")
        if self.train.loops.kind != "constant":
            parts.append("grown")
        for name, limit in (("dims", self.model.n_dims), ("points", self.model.n_points)):
            if (end := getattr(self.train, name).end) != limit:
                parts.append(f"{end}{name}")
        if self.train.loss != TrainConfig.loss:
            parts.append(self.train.loss)
        if self.train.steps != TrainConfig.steps:
            parts.append(f"{self.train.steps}steps")
        if self.train.seed:
            parts.append(f"s{self.train.seed}")
        return "-".join(parts)


AnyConfig = Config | ForeignConfig


def read_config(tree: dict[str, Any]) -> AnyConfig:
    """A configuration from its plain form, as ``to_dict`` gives it.

    Raises:
        LoopprobeError: a field is not known, or has a value that it cannot have.
    """
    config: AnyConfig
    if "train" in tree and tree["train"] is None:
        config = build(ForeignConfig, {key: value for key, value in tree.items() if key != "train"})
    else:
        config = build(Config, tree)
    return config


def _parts(task: TaskConfig, model: ModelConfig) -> list[str]:
    parts = [task.short]
    if model.n_layers > 1:
        parts.append(f"L{model.n_layers}")
    if model.n_loops > 1:
        parts.append(f"b{model.n_loops}")
    return parts


def _drop_none(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _drop_none(value) if isinstance(value, dict) else value for key, value in tree.items() if value is not None
    }
