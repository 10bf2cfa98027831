"""The memory that something takes, known before it is made, and the memory there is. Imports torch for GPUs alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]

from loopprobe.config.model import TOKENS_PER_POINT
from loopprobe.config.schema import Config, ModelConfig, TaskConfig
from loopprobe.errors import LoopprobeError

if TYPE_CHECKING:
    import torch

FLOAT = 4  # bytes of float32
LITTLE = 2**26  # bytes that are there anyway: training draws prompts in every step, and asks for no more
SHORT = 64  # tokens, up to which attention is written out, which is faster on a CPU, and its patterns are held


def require(n_bytes: float, what: str, remedy: str, device: torch.device | None = None) -> None:
    """Raise LoopprobeError where something needs more memory than is free.

    Args:
        n_bytes: that it needs.
        what: it is, as the subject of a sentence.
        remedy: what the user can do.
        device: where it will lie; None: in the memory of this machine.
    """
    if n_bytes <= LITTLE:
        return
    free = available(device)
    if n_bytes > free:
        raise LoopprobeError(f"{what} needs {_size(n_bytes)} of memory, {_size(free)} are free: {remedy}")


def available(device: torch.device | None = None) -> int:
    """The bytes that are free on a device; of this machine, where it is a CPU or shares its memory.

    A limit of the control groups that this process is in, as containers and clusters set, counts where it is lower.
    """
    if device is not None and device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([psutil.virtual_memory().available, *_left_in_groups()])


def _left_in_groups(root: Path = Path("/sys/fs/cgroup"), listing: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """List what each control group of this process leaves it, versions 1 and 2; nothing where none limits memory."""
    try:
        lines = listing.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            base, limit, used, cache = root, "memory.max", "memory.current", "inactive_file"
        elif controllers == "memory":
            base, cache = root / "memory", "total_inactive_file"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = base / name.lstrip("/")
        for folder in (group, *group.parents):
            try:
                statistics = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                held = int((folder / used).read_text()) - int(statistics.get(cache, 0))
                yield max(0, int((folder / limit).read_text()) - held)
            except (OSError, ValueError):  # not there, or without a limit
                pass
            if folder == base:
                break


def _size(n_bytes: float) -> str:
    """``3.2 GB``, ``12,345 GB`` or ``5 MB``."""
    if n_bytes < 1e9:
        return f"{n_bytes / 1e6:,.0f} MB"
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes < 1e11 else f"{n_bytes / 1e9:,.0f} GB"


def n_parameters(cfg: ModelConfig) -> int:
    """The weights of a model of this configuration."""
    width, inner = cfg.d_model, cfg.n_heads * cfg.d_head
    attention = 3 * inner * (width + 1) + width * (inner + 1)
    mlp = cfg.d_mlp * (3 * width if cfg.gated_mlp else 2 * width + 1) + width
    norm = width if cfg.normalization_type == "RMS" else 2 * width
    layers = cfg.n_prelude_layers + cfg.n_layers + cfg.n_coda_layers
    read = width * cfg.d_vocab if cfg.d_vocab is not None else width * (cfg.n_dims + 1)
    read += (width + 1) * (cfg.d_vocab_out or 1)
    positions = cfg.n_ctx * width if cfg.positional_embedding_type == "standard" else 0
    loops = cfg.n_loops * width if cfg.loop_embedding else 0
    finals = norm * (2 if cfg.n_coda_layers else 1)
    return layers * (attention + mlp + 2 * norm) + finals + read + positions + loops


def prompt_bytes(task: TaskConfig, n_prompts: int, n_points: int, n_dims: int) -> int:
    """The peak memory of drawing prompts of regression: random numbers in float64, inputs and labels made of them."""
    return int(task.rules.memory(n_prompts, n_points, n_dims))


def token_bytes(task: TaskConfig, n_prompts: int, length: int) -> int:
    """The peak memory of drawing prompts of a token task: random numbers, tokens, and which tokens are alike."""
    return int(task.rules.memory(n_prompts, length))


def run_bytes(cfg: ModelConfig, n_prompts: int, n_tokens: int, loops_kept: int = 1) -> int:
    """The peak memory of a run without gradient: the largest stage of one layer, and the outputs that are kept."""
    widest = max(4 * cfg.n_heads * cfg.d_head, 2 * cfg.d_mlp) + 4 * cfg.d_model
    outputs = loops_kept * (cfg.d_vocab_out or 1) / cfg.tokens_per_point
    return int(FLOAT * n_prompts * n_tokens * (widest + _pattern_width(cfg, n_tokens) + outputs))


def _pattern_width(cfg: ModelConfig, tokens: int) -> int:
    """Numbers of the scores and patterns of one token in one layer."""
    return 2 * cfg.n_heads * tokens if tokens <= SHORT else 0


def training_bytes(cfg: Config) -> int:
    """The peak memory of a training: weights with their optimiser, prompts, and what gradients need of every loop."""
    train, model = cfg.train, cfg.model
    tokens, inner = longest_training(cfg), model.n_heads * model.d_head
    of_layer = 4 * model.d_model + 4 * inner + (3 if model.gated_mlp else 2) * model.d_mlp
    of_layer += _pattern_width(model, tokens)
    outputs = 4 * (model.d_vocab_out or 0)  # with their logarithms and gradients
    of_loop = (model.n_layers + model.n_coda_layers) * of_layer + 3 * model.d_model + outputs
    window = min(train.loop_window, model.n_loops)
    states = FLOAT * train.batch_size * tokens * (of_loop * window + model.n_prelude_layers * of_layer)
    if train.points is not None:
        drawn = prompt_bytes(cfg.task, train.batch_size, train.points.last, model.n_dims)
    else:
        drawn = token_bytes(cfg.task, train.batch_size, train.length.last)  # type: ignore[union-attr]
    return 5 * FLOAT * n_parameters(model) + states + drawn + run_bytes(model, train.batch_size, tokens, window)


def longest_training(cfg: Config) -> int:
    """The tokens of the longest prompts of a training."""
    if cfg.train.points is not None:
        return TOKENS_PER_POINT * cfg.train.points.last
    assert cfg.train.length is not None
    return int(cfg.task.rules.n_tokens(cfg.train.length.last))


def require_model(cfg: ModelConfig) -> None:
    """Raise LoopprobeError where the memory cannot hold a model."""
    what = f"a model of {cfg.n_layers:,} layers, d_model {cfg.d_model:,} and d_mlp {cfg.d_mlp:,}"
    inputs = "d_vocab" if cfg.reads_tokens else "n_dims"
    require(FLOAT * n_parameters(cfg), what, f"lower model.d_model, n_layers, d_mlp, {inputs} or n_ctx")


def require_prompts(task: TaskConfig, n_prompts: int, n_points: int, n_dims: int) -> None:
    """Raise LoopprobeError where the memory cannot hold prompts while they are drawn."""
    what = f"drawing {n_prompts:,} prompts of {n_points:,} points and {n_dims:,} dimensions"
    require(prompt_bytes(task, n_prompts, n_points, n_dims), what, "lower the number of prompts, points or dimensions")


def require_tokens(task: TaskConfig, n_prompts: int, length: int) -> None:
    """Raise LoopprobeError where the memory cannot hold prompts of a token task while they are drawn."""
    what = f"drawing {n_prompts:,} prompts of length {length:,}"
    require(token_bytes(task, n_prompts, length), what, "lower the number of prompts or their length")


def require_training(cfg: Config, device: torch.device) -> None:
    """Raise LoopprobeError where the memory cannot hold a training: before anything of it is made."""
    require_model(cfg.model)
    size = f"{longest_training(cfg):,} tokens" if cfg.task.reads_tokens else f"{cfg.model.n_points:,} points"
    what = f"training with a batch of {cfg.train.batch_size:,}, a window of {cfg.train.loop_window:,} loops and {size}"
    require(training_bytes(cfg), what, "lower train.batch_size, train.loop_window or the sizes of the model", device)
