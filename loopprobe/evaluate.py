"""The error of a model on held-out prompts."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loopprobe.config import Config
from loopprobe.model import LoopedTransformer
from loopprobe.statistics import bootstrap_mean
from loopprobe.tasks import Prompts, held_out

FAR = 500  # a loop count far beyond any in training


def chunk_size(device: torch.device) -> int:
    """Prompts to run at once: on a CPU, more than these fall out of the cache and take twice as long each."""
    return 64 if device.type == "cpu" else 4096


def query_error(model: LoopedTransformer, prompts: Prompts, n_loops: int | None = None) -> Float[Tensor, "loop batch"]:
    """Squared error at the query, divided by n_dims, after every loop: 1 is the zero predictor's on average."""
    size = chunk_size(prompts.xs.device)
    with torch.no_grad():
        chunks = [
            (model(xs, ys, n_loops)[..., -1] - ys[:, -1]).square() / model.cfg.n_dims
            for xs, ys in zip(prompts.xs.split(size), prompts.ys.split(size), strict=True)
        ]
    return torch.cat(chunks, dim=1)


def evaluate(model: LoopedTransformer, cfg: Config, *, n_prompts: int = 1280, seed: int = 0) -> dict[str, Any]:
    """Query error / n_dims with its 95 % bootstrap interval, after the trained loop count and far beyond."""
    device = next(model.parameters()).device
    prompts = held_out(cfg.task, n_prompts, cfg.model.n_points, cfg.model.n_dims, seed).to(device)
    loops = [cfg.model.n_loops] if cfg.model.n_loops == 1 else [cfg.model.n_loops, FAR]
    errors = query_error(model, prompts, loops[-1])[[loop - 1 for loop in loops]]
    mean, low, high = bootstrap_mean(errors.cpu().numpy())
    return {
        "measure": "squared error at the query / n_dims",
        "n_prompts": n_prompts,
        "seed": seed,
        "loops": loops,
        "error": mean.tolist(),
        "error_low": low.tolist(),
        "error_high": high.tolist(),
    }
