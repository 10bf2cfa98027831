"""The state of a training run on disk: all that the next step depends on."""

from __future__ import annotations

from pathlib import Path

import safetensors
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from loopprobe.errors import LoopprobeError
from loopprobe.model.looped import LoopedTransformer
from loopprobe.store.shipped import CONFIG
from loopprobe.store.tensors import STATE, contiguous, fit, read_tensors
from loopprobe.support.storage import atomic


def save_state(
    folder: Path,
    model: LoopedTransformer,
    optimizers: list[torch.optim.Optimizer],
    generator: torch.Generator,
    step: int,
    seconds: float,
    pending: Float[Tensor, "step measure"],
    mastered: int | None = None,
) -> None:
    """Write all that the next training step and the next row of metrics depend on, completely or not at all."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {"generator": generator.get_state(), "pending": pending}
    for i, optimizer in enumerate(optimizers):
        for parameter, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{parameter}.{key}": value for key, value in values.items()}
    with atomic(folder / STATE) as partial:
        metadata = {"step": str(step), "seconds": str(seconds)}
        metadata |= {} if mastered is None else {"mastered": str(mastered)}
        save_file(contiguous(tensors), partial, metadata=metadata)


def read_state(
    folder: Path,
    model: LoopedTransformer,
    optimizers: list[torch.optim.Optimizer],
    generator: torch.Generator,
) -> tuple[int, float, Float[Tensor, "step measure"], int | None] | None:
    """Restore a saved state; return its step, its seconds, what is pending and the mastered length, or None."""
    path = folder / STATE
    if not path.exists():
        return None
    tensors = read_tensors(path)
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    fit(model, weights, path, f"it is not of the model in {CONFIG}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata()
        generator.set_state(tensors["generator"])
        for i, optimizer in enumerate(optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                kind, *rest = name.split(".")
                if kind == "optimizer" and int(rest[0]) == i:
                    state.setdefault(int(rest[1]), {})[rest[2]] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        pending = tensors.get("pending", torch.empty(0, 2))  # earlier versions wrote it as a row
        mastered = int(metadata["mastered"]) if "mastered" in metadata else None
        return int(metadata["step"]), float(metadata["seconds"]), pending, mastered
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise LoopprobeError(f"{path} is damaged ({error!r}): train the model again with --overwrite") from None


def remove_state(folder: Path) -> None:
    """Delete the training state of a run that has ended."""
    (folder / STATE).unlink(missing_ok=True)
