"""What wrapped models have in common as subjects of probes, whatever their prompts: what tells one from another."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from loopprobe.wrapped.loading import PREFIX
from loopprobe.wrapped.model import WrappedModel

SAMPLED = 4096  # numbers of each tensor that the digest of weights is made of


class WrappedSubject:
    """A wrapped model with a name and a task.

    Attributes:
        model: the wrapped model, in eval mode.
        name: what it is called, or was loaded by.
        alias: the label to use where the last part of the name is not unique among the models shown.
    """

    model: WrappedModel
    name: str
    alias: str | None = None

    @property
    def label(self) -> str:
        """The name in figures and files: the alias, or the last part of ``name``."""
        return self.alias or Path(self.name.removeprefix(PREFIX)).name

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    @property
    def task_record(self) -> dict[str, Any]:
        """The task as plain data."""
        raise NotImplementedError

    @cached_property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of a SHA-256 of 4,096 numbers of every tensor, which identify the weights."""
        content = hashlib.sha256()
        for name, tensor in sorted(self.model.module.state_dict().items()):
            content.update(f"{name} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().reshape(-1)
            some = flat[:: max(1, flat.numel() // SAMPLED)][:SAMPLED]
            content.update(some.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return content.hexdigest()[:16]

    def identity(self) -> dict[str, Any]:
        """Return a record of the model: its name, the digest of its weights, its sizes and its task."""
        sizes = self.model.sizes
        model = {"architecture": type(self.model.module).__name__, "n_loops": sizes.n_loops, "n_layers": sizes.n_layers}
        model |= {"d_model": sizes.d_model, "n_heads": sizes.n_heads, "start_seed": self.model.start_seed}
        return {"name": self.name, "weights": self.digest, "config": {"model": model, "task": self.task_record}}

    def described(self, what: str) -> str:
        """Describe the model in two lines, the first with what it is."""
        sizes = self.model.sizes
        return (
            f"{self.label}: {what}, {sizes.n_layers} layer{'s' * (sizes.n_layers > 1)} in the loop, "
            f"b = {sizes.n_loops}, state of {sizes.d_model}\n"
            f"weights {self.digest}, {self.model.dtype} on {self.device}".replace("torch.", "")
        )
