"""Checkpoints: a folder with model.safetensors, config.json and metrics.jsonl; no pickle is ever written.

A name is looked up as a path, then in ./runs, then among the checkpoints that ship with the package.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from loopprobe.config.budget import require_model
from loopprobe.config.schema import AnyConfig, Config
from loopprobe.errors import LoopprobeError
from loopprobe.model.looped import LoopedTransformer
from loopprobe.reference.baselines.optimal import is_of, optimum
from loopprobe.store import draw
from loopprobe.store.language import load_language_model
from loopprobe.store.own import is_own, load_own
from loopprobe.store.record import FORMAT, read_json, recorded_errors
from loopprobe.store.shipped import CONFIG, find, whole_file
from loopprobe.store.subject import PromptSpec
from loopprobe.store.tensors import WEIGHTS, contiguous, fit, read_tensors
from loopprobe.support.device_names import known_device
from loopprobe.support.provenance import provenance
from loopprobe.support.storage import atomic, write_json
from loopprobe.tasks import PromptBatch, Prompts, TokenPrompts
from loopprobe.tasks.protocol import Outputs
from loopprobe.wrapped.loading import PREFIX

DEFAULT = "lr-b20-T10"
METRICS = "metrics.jsonl"


@dataclass(repr=False)
class Checkpoint:
    """A trained model with its configuration and its history.

    Attributes:
        config: the resolved configuration.
        model: the model, in eval mode.
        step: the number of training steps done.
        wall_time_s: the duration of the training in seconds.
        evaluation: the error on held-out prompts (see ``loopprobe.store.evaluate``); None during training.
        provenance: the versions, the commit and the device of the training.
        name: the name or path that it was loaded by.
        folder: the folder that it was loaded from.
        alias: the label to use where the last part of the name is not unique among the models shown.
    """

    config: AnyConfig
    model: LoopedTransformer
    step: int = 0
    wall_time_s: float = 0.0
    evaluation: dict[str, Any] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    folder: Path | None = None
    alias: str | None = None

    @property
    def label(self) -> str:
        """The name in figures and files: the alias, or the last part of ``name``."""
        return self.alias or Path(self.name).name or self.config.name

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    def __repr__(self) -> str:
        """Describe the model, its error and its weights in three lines."""
        model = self.config.model
        window = f"T = {self.config.train.loop_window}" if isinstance(self.config, Config) else "trained elsewhere"
        layers = f"{model.n_layers} layer{'s' * (model.n_layers > 1)}"
        errors = [f"{one.words} after {one.loops} loops" for one in recorded_errors(self.evaluation)]
        return "\n".join([
            f"{self.label}: {self.config.task.name.replace('_', ' ')}, {layers}, b = {model.n_loops}, {window}",
            f"{'cross entropy' if self.config.task.reads_tokens else 'error'} at the query "
            f"{', '.join(errors) or 'not measured'}; {self.step:,} steps",
            f"weights {self.digest()}, {self.model.dtype} on {self.device}".replace("torch.", ""),
        ])  # fmt: skip

    def digest(self) -> str:
        """Return the first 16 hexadecimal digits of the weights' SHA-256, which identify the model."""
        content = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            content.update(name.encode())
            content.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return content.hexdigest()[:16]

    @property
    def task_name(self) -> str:
        """The name of the task that the model was trained on."""
        return self.config.task.name

    def identity(self) -> dict[str, Any]:
        """Return a record of the model: its name, the digest of its weights and its configuration."""
        return {"name": self.name, "weights": self.digest(), "config": self.config.to_dict()}

    def draw(self, spec: PromptSpec) -> Any:
        """Draw the prompts of a specification on the model's device, see ``store.draw``."""
        return draw.draw(self.config, self.label, spec).to(self.device)

    def held_out(
        self, n_prompts: int = 1280, seed: int = 0, shift: str | None = None, length: int | None = None
    ) -> Any:
        """Draw prompts like those at the end of training, which no training saw, on the model's device.

        They are ``Prompts``, which unpack as ``xs, ys = …``, or of a token task ``TokenPrompts``.

        Args:
            n_prompts: the number of prompts.
            seed: the seed of the prompts.
            shift: the name of a distribution shift, see ``tasks.shifts``; None: the distribution of training.
            length: of prompts of a token task; None: the longest of the training.

        Raises:
            LoopprobeError: there is no such shift, the model was trained on as many examples or dimensions as it can
                read, or it cannot read so many tokens.
        """
        return draw.held_out(self.config, self.label, n_prompts, seed, shift, length).to(self.device)

    def more_like(self, prompts: Any, n_prompts: int, seed: int) -> Any:
        """Draw further prompts as in training, with as many tokens as these, on the model's device."""
        return draw.more_like(self.config, self.label, prompts, n_prompts, seed).to(self.device)

    def from_table(self, name: str, target: str | None = None, n_prompts: int = 1280, seed: int = 0) -> Prompts:
        """Draw prompts from a table of real data on the model's device, see ``store.draw.from_table``."""
        return draw.from_table(self.config, name, target, n_prompts, seed).to(self.device)

    def is_of_task(self, prompts: PromptBatch) -> bool:
        """Check by their origin that prompts are from the model's task, or from a table of real data."""
        return is_of(prompts, self.config.task)

    def loops_of(self, prompts: PromptBatch) -> int:
        """Return the number of loops that the training gives such prompts: where it is their length, as many."""
        by_length = isinstance(self.config, Config) and self.config.train.loops.kind == "length"
        return prompts.length if by_length and isinstance(prompts, TokenPrompts) else self.model.cfg.n_loops

    def optimum(self, prompts: PromptBatch) -> tuple[str, Outputs]:
        """Return name and outputs of the best predictor of the task, see ``reference.baselines.optimal``."""
        return optimum(prompts, self.config.task)


def load(name: str | Path = DEFAULT, device: str | torch.device = "cpu", **options: Any) -> Any:
    """Load a model by name or path, ready to run.

    Args:
        name: of a checkpoint; ``hf:NAME``, ``hf:NAME@REVISION`` or ``hf:FOLDER`` of a looped language model; or
            ``FILE.py:NAME`` or ``package.module:NAME`` of a wrapped module of your own, see ``store.own``.
        device: where it is put.
        options: of language models: ``n_loops``, ``dtype``, ``trust_remote_code``, ``device_map``.

    Returns:
        A LoopedTransformer, or the wrapped model.

    Raises:
        LoopprobeError: see ``load_checkpoint``.
    """
    return load_checkpoint(name, device, **options).model


def load_checkpoint(name: str | Path = DEFAULT, device: str | torch.device = "cpu", **options: Any) -> Any:
    """Load a model with its configuration and history, a language model with its tokenizer, or a wrapped module's task.

    Args:
        name: the name or folder of a checkpoint, ``hf:…`` or ``FILE.py:NAME`` as in ``load``. The file is run.
        device: the device of the model.
        options: the options of language models, as in ``load``.

    Returns:
        A Checkpoint, a LanguageModel, or an OwnModel.

    Raises:
        LoopprobeError: the checkpoint is missing, damaged, too new or too large for the memory; its weights do not fit
            its configuration or are not finite; or there is no such device. Of language models see
            ``wrapped.loading.read_language_model``, of wrapped modules ``store.own.load_own``.
    """
    known_device(str(device))
    if str(name).startswith(PREFIX):
        return load_language_model(str(name), device, **options)
    if options:
        raise LoopprobeError(f"{next(iter(options))} is of language models and {name} is none: leave it out")
    if is_own(str(name)):
        return load_own(str(name), device)
    return _read_checkpoint(name, device)


def _read_checkpoint(name: str | Path, device: str | torch.device) -> Checkpoint:
    folder = find(name)
    config, tree = read_json(folder)
    require_model(config.model)
    tensors = read_tensors(whole_file(folder / WEIGHTS))
    reason = f"{CONFIG} and {WEIGHTS} are of different models"
    layers = {int(part[1]) for key in tensors if (part := key.split("."))[0] == "blocks" and part[1].isdecimal()}
    if len(layers) != config.model.n_layers:  # checked before the model is built, which may be large
        raise LoopprobeError(
            f"{folder / WEIGHTS} does not fit: it has {len(layers)} layers and {CONFIG} has n_layers = "
            f"{config.model.n_layers}; {reason}"
        )
    model = LoopedTransformer(config.model)
    fit(model, tensors, folder / WEIGHTS, reason)
    return Checkpoint(
        config,
        _moved(model, device).eval(),
        step=tree["step"],
        wall_time_s=tree["wall_time_s"],
        evaluation=tree["evaluation"],
        provenance=tree["provenance"],
        name=str(name),
        folder=folder,
    )


def save(checkpoint: Checkpoint, folder: Path, *, weights: bool = True) -> None:
    """Write model.safetensors and config.json into an existing folder, each completely or not at all.

    Args:
        checkpoint: the checkpoint.
        folder: the folder to write into.
        weights: False writes config.json alone and leaves the weights in the folder as they are.
    """
    model = checkpoint.model
    parameter = next(model.parameters())
    if weights:
        with atomic(folder / WEIGHTS) as partial:
            save_file(contiguous(model.state_dict()), partial)
    recorded = checkpoint.provenance or provenance(parameter.device, parameter.dtype)
    write_json(
        folder / CONFIG,
        {
            "format": FORMAT,
            "config": checkpoint.config.to_dict(),
            "step": checkpoint.step,
            "wall_time_s": checkpoint.wall_time_s,
            "evaluation": checkpoint.evaluation,
            "provenance": recorded,
        },
    )


def _moved(model: LoopedTransformer, device: str | torch.device) -> LoopedTransformer:
    try:
        moved: LoopedTransformer = model.to(device)
        return moved
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise LoopprobeError(f"device {str(device)!r} is not available here ({reason}): use cpu") from None
