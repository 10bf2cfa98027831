"""Activations in a safetensors file: no pickle, and what they are of as metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from loopprobe.errors import LoopprobeError
from loopprobe.support.storage import atomic

KEY = "loopprobe_cache"  # of the metadata


def write_tensors(tensors: Mapping[str, Tensor], about: Mapping[str, Any], path: Path) -> None:
    """Write tensors, whole or not at all, with plain data about them."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as partial:
        save_file(plain, partial, metadata={KEY: json.dumps(about)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file and the data about them.

    Raises:
        LoopprobeError: there is no such file, or it is no cache.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except FileNotFoundError:
        raise LoopprobeError(f"no cache at {path}: check the path") from None
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise LoopprobeError(f"{path} is not a cache ({error}): give a file that LoopCache.save wrote") from None
