"""Reading the weights of a checkpoint, with a clear message of one line where they are damaged."""

from __future__ import annotations

import functools
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from loopprobe.errors import LoopprobeError
from loopprobe.model.looped import LoopedTransformer

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # the dtypes that weights may have
WEIGHTS, STATE = "model.safetensors", "state.safetensors"


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise LoopprobeError(f"{path} is missing: restore it or train the model again") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise LoopprobeError(f"{path} is damaged ({error}): restore it or train the model again") from None


def fit(model: LoopedTransformer, tensors: dict[str, Tensor], path: Path, reason: str) -> None:
    """Load weights that must match the model's names and shapes exactly."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            raise LoopprobeError(
                f"{path} does not fit: {name} is {shapes.get(name, 'missing')} there and "
                f"{expected.get(name, 'not expected')} in the model; {reason}"
            )
    for name, tensor in sorted(tensors.items()):
        if tensor.dtype not in DTYPES:
            raise LoopprobeError(
                f"{path} does not fit: {name} holds {str(tensor.dtype).removeprefix('torch.')}, weights are float16, "
                "bfloat16, float32 or float64; convert it"
            )
        if bad := int((~tensor.isfinite()).sum()):
            raise LoopprobeError(
                f"{path} is damaged: {bad} of the {tensor.numel()} values of {name} are NaN or infinite; restore it or "
                "train the model again"
            )
    model.to(functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values())))
    model.load_state_dict(tensors)


def contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors on the CPU, as safetensors takes them."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
