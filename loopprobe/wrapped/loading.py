"""Loading looped language models through transformers: from the hub, from its cache, or from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from loopprobe.errors import LoopprobeError
from loopprobe.types import PRECISIONS
from loopprobe.wrapped.architectures import ARCHITECTURES
from loopprobe.wrapped.model import WrappedModel
from loopprobe.wrapped.wrap import wrap

PREFIX = "hf:"


def read_language_model(
    source: str | Path,
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    n_loops: int | None = None,
    start_seed: int = 0,
    trust_remote_code: bool = False,
    device_map: Any = None,
) -> tuple[WrappedModel, Any]:
    """Load a language model and its tokenizer, and wrap the model.

    Args:
        source: a folder in transformers' layout, which needs no network, or a name on the hub.
        revision: the commit, branch or tag of the hub.
        device: where the model is put, whole.
        dtype: its precision; None: float32 on a CPU, elsewhere that of the file.
        n_loops: the loops that it runs by default; None: as many as it was trained with.
        start_seed: the seed of the state that the loop starts from, where it starts at random.
        trust_remote_code: whether code that comes with the model may run. Read it first.
        device_map: of accelerate, to spread the model over several devices instead.

    Raises:
        LoopprobeError: there is no such model or network, its architecture is not known, its code is not trusted, or
            does not run with this version of transformers.
    """
    import transformers

    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = _asked(source, lambda: transformers.AutoConfig.from_pretrained(source, **options))
    classes = [name for name in config.architectures or [] if name in ARCHITECTURES]
    if not classes:
        raise LoopprobeError(
            f"{source} is a {' or '.join(config.architectures or ['model without a class'])}, which is no looped "
            f"architecture that is known ({', '.join(ARCHITECTURES)}): load it with transformers and wrap it yourself, "
            "see loopprobe.wrap"
        )
    kind = transformers.AutoModelForMaskedLM if classes[0].endswith("MaskedLM") else transformers.AutoModelForCausalLM
    target = torch.device(device)
    chosen = torch.float32 if dtype is None and target.type == "cpu" else "auto" if dtype is None else _dtype(dtype)
    if device_map is not None:
        options["device_map"] = device_map
    module = _asked(source, lambda: kind.from_pretrained(source, dtype=chosen, **options)).eval()
    options.pop("device_map", None)
    tokenizer = _asked(source, lambda: transformers.AutoTokenizer.from_pretrained(source, **options))
    if device_map is None:
        module = module.to(target)
    try:
        model = wrap(module, n_loops=n_loops)
    except (AttributeError, TypeError, KeyError, ImportError) as error:
        written = getattr(config, "transformers_version", None)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LoopprobeError(
            f"the code of {source} does not run with transformers {transformers.__version__} ({reason})"
            f"{f'; it was saved with {written}' if written else ''}: give a revision whose code does, "
            "hf:NAME@REVISION, or another version of transformers"
        ) from None
    model.start_seed = start_seed
    return model, tokenizer


def _dtype(given: str | torch.dtype) -> torch.dtype:
    if isinstance(given, torch.dtype):
        return given
    if given not in PRECISIONS:
        raise LoopprobeError(f"dtype ({given!r}) must be {', '.join(PRECISIONS)}: choose one")
    dtype: torch.dtype = getattr(torch, given)
    return dtype


def _asked(source: str | Path, read: Any) -> Any:
    """What transformers reads; its errors in one line."""
    try:
        return read()
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise LoopprobeError(
                f"{source} comes with code of its own: read it, then allow it with trust_remote_code=True or "
                "--trust-remote-code"
            ) from None
        raise LoopprobeError(f"{source} cannot be read ({_line(error)}): check the name or the folder") from None
    except MemoryError:
        raise
    except Exception as error:  # of transformers, safetensors, tokenizers, and code that comes with a model
        raise LoopprobeError(
            f"{source} cannot be read ({_line(error)}): check the name, the folder or the network"
        ) from None


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
