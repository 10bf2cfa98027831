"""Recovery: the state is pushed at one loop and token, and the loop goes on. Does it come back, and how fast?"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from loopprobe.checkpoint import Checkpoint
from loopprobe.configuration import configuration
from loopprobe.dynamics.maps import LoopMap
from loopprobe.errors import LoopprobeError
from loopprobe.evaluate import chunk_size
from loopprobe.probes.loops import require_looped, require_tokens, some_tokens
from loopprobe.results import stamp, with_ends
from loopprobe.statistics import bootstrap_mean
from loopprobe.tasks import Prompts
from loopprobe.types import Progress


@configuration
class RecoverConfig:
    """Where and how hard the state is pushed.

    Attributes:
        after: loops before the push; None: as many as trained.
        loops: loops that follow it.
        sizes: of the push, relative to the norm of the token's state; the direction is random, a prompt and token.
        positions: tokens, each pushed in a run of its own; None: some inputs, their labels, and the query's.
        seed: of the directions.
    """

    after: PositiveInt | None = None
    loops: PositiveInt = 40
    sizes: tuple[PositiveFloat, ...] = (0.1, 0.3, 1.0)
    positions: tuple[NonNegativeInt, ...] | None = None
    seed: NonNegativeInt = 0


def run(
    checkpoint: Checkpoint, prompts: Prompts, config: RecoverConfig, progress: Progress = lambda steps: steps
) -> xr.Dataset:
    """Push the state and follow the error and the distance to the run that was not pushed.

    Returns:
        A dataset with dims ``size``, ``position`` (the token that was pushed; -1: all at once), ``after`` (loops
        since the push, from 0: right after it) and ``example``:

        * ``error``, ``error_low``, ``error_high [size, position, after]``: squared error at the query / E(y²), mean
          and 95 % bootstrap interval; ``clean_error [after]`` without a push
        * ``distance [size, position, after]``: ‖z − z_clean‖ / ‖z_clean‖ of the whole state, mean over prompts
        * ``prediction_moved [size, position, after]``: root mean square of what the push changed in the prediction at
          the query, in units of √E(y²)
    """
    check(checkpoint, config)
    model = checkpoint.model
    prompts = prompts.to(checkpoint.device)
    n_prompts, n_points = prompts.ys.shape
    query = 2 * n_points - 2
    tokens = [*(config.positions or some_tokens(query)), -1]
    generator = torch.Generator().manual_seed(config.seed)
    system = LoopMap.of(model, prompts)
    shape = (len(config.sizes), len(tokens), config.loops + 1, n_prompts)
    answers, distances = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    with torch.no_grad():
        z = system.initial
        for _ in range(config.after or model.cfg.n_loops):
            z = system.step(z)
        direction = torch.randn(z.shape, generator=generator).to(z)
        direction *= z.norm(dim=-1, keepdim=True) / direction.norm(dim=-1, keepdim=True)
        clean = [z]
        for _ in range(config.loops):
            clean.append(system.step(clean[-1]))
        clean_answers = np.stack([system.read(state)[:, -1].cpu().numpy() for state in clean])
        size = chunk_size(z.device)
        parts = [slice(start, start + size) for start in range(0, n_prompts, size)]
        for i, j in progress([(i, j) for i in range(len(config.sizes)) for j in range(len(tokens))]):
            pushed = z.clone()
            where = slice(None) if tokens[j] == -1 else slice(tokens[j], tokens[j] + 1)
            pushed[:, where] += config.sizes[i] * direction[:, where]
            for part in parts:
                one, state = system.at(part), pushed[part]
                for after in range(config.loops + 1):
                    if after:
                        state = one.step(state)
                    clean_part = clean[after][part].flatten(1)
                    away = (state.flatten(1) - clean_part).norm(dim=1) / clean_part.norm(dim=1)
                    distances[i, j, after, part] = away.cpu().numpy()
                    answers[i, j, after, part] = one.read(state)[:, -1].cpu().numpy()
    ys = prompts.ys[:, -1].cpu().numpy()
    dims = ("size", "position", "after")
    data = xr.Dataset(
        {
            **with_ends("error", dims, bootstrap_mean((answers - ys) ** 2 / prompts.scale)),
            "clean_error": ("after", ((clean_answers - ys) ** 2 / prompts.scale).mean(1)),
            "distance": (dims, distances.mean(-1)),
            "prediction_moved": (dims, np.sqrt(((answers - clean_answers) ** 2).mean(-1) / prompts.scale)),
        },
        coords={
            "size": list(config.sizes),
            "position": tokens,
            "after": np.arange(config.loops + 1),
            "model": checkpoint.label,
        },
        attrs={"trained_loops": model.cfg.n_loops, "pushed_after": config.after or model.cfg.n_loops},
    )
    return stamp(data, "recover", checkpoint, prompts, config)


def check(checkpoint: Checkpoint, config: RecoverConfig) -> None:
    """Raise LoopprobeError where there is no loop to go on, or no such token."""
    require_looped(checkpoint)
    if not config.sizes or (config.positions is not None and not config.positions):
        raise LoopprobeError("sizes and positions must not be empty: name at least one")
    require_tokens(config.positions, 2 * checkpoint.config.model.n_points - 2)
