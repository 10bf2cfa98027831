"""The error of a model on held-out prompts."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loopprobe.baselines.optimal import optimum
from loopprobe.checkpoint import Checkpoint
from loopprobe.model import LoopedTransformer
from loopprobe.statistics import bootstrap_mean
from loopprobe.tasks import Prompts

FAR = 500  # a loop count far beyond any in training


def chunk_size(device: torch.device) -> int:
    """Prompts to run at once: on a CPU, more than these fall out of the cache and take twice as long each."""
    return 64 if device.type == "cpu" else 4096


def query_error(model: LoopedTransformer, prompts: Prompts, n_loops: int | None = None) -> Float[Tensor, "loop batch"]:
    """Squared error at the query, divided by E(y²), after every loop: 1 is the zero predictor's on average."""
    with torch.no_grad():
        chunks = [
            batch.errors(model(*batch, n_loops))[..., -1] for batch in prompts.split(chunk_size(prompts.xs.device))
        ]
    return torch.cat(chunks, dim=1)


def evaluate(checkpoint: Checkpoint, *, n_prompts: int = 1280, seed: int = 0) -> dict[str, Any]:
    """Query error / E(y²) with its 95 % bootstrap interval, after the trained loop count and far beyond.

    Beside it the error on the same prompts of the best predictor that knows the task (``baselines.optimal``).
    """
    trained = checkpoint.config.model.n_loops
    loops = [trained] if trained == 1 else [trained, FAR]
    prompts = checkpoint.held_out(n_prompts, seed)
    errors = query_error(checkpoint.model, prompts, loops[-1])[[loop - 1 for loop in loops]]
    mean, low, high = bootstrap_mean(errors.cpu().numpy())
    name, best = optimum(prompts, checkpoint.config.task)
    return {
        "measure": "squared error at the query / E(y²)",
        "n_prompts": n_prompts,
        "seed": seed,
        "loops": loops,
        "error": mean.tolist(),
        "error_low": low.tolist(),
        "error_high": high.tolist(),
        "optimum": {"name": name, "error": prompts.errors(best)[:, -1].mean().item()},
    }
