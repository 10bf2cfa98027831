"""Recovery: the state of a token is pushed after some loops, and the loop runs on: whether and how fast it returns."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from loopprobe.config.selection import Choice
from loopprobe.config.strict import configuration
from loopprobe.dynamics.maps import LoopMap
from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import error_summary, stamp
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.probes.loops import chosen_tokens, last_token, require_looped, some_tokens
from loopprobe.probes.pushes import distance, follow
from loopprobe.store.evaluate import chunk_size
from loopprobe.store.subject import Subject
from loopprobe.support.statistics import to_numpy
from loopprobe.tasks import PromptBatch
from loopprobe.types import Progress


@configuration
class RecoverConfig:
    """The place and the size of the push.

    Attributes:
        after: the number of loops before the push; None: as many as trained.
        loops: the number of loops after the push.
        sizes: sizes of the push, relative to the norm of the token's state; each prompt and token has a random
            direction.
        positions: tokens, see ``config.selection``, each pushed in a run of its own; None: some inputs, their labels,
            and the query's.
        seed: the seed of the directions.
    """

    after: PositiveInt | None = None
    loops: PositiveInt = 40
    sizes: tuple[PositiveFloat, ...] = (0.1, 0.3, 1.0)
    positions: Choice | None = None
    seed: NonNegativeInt = 0


def run(
    subject: Subject, prompts: PromptBatch, config: RecoverConfig, progress: Progress = lambda steps: steps
) -> xr.Dataset:
    """Push the state and follow the error and the distance to the run that was not pushed.

    Returns:
        A dataset with dims ``size``, ``position`` (the token that was pushed; -1: all at once), ``after`` (loops
        since the push, from 0: right after it) and ``example``:

        * ``median``, ``failures [size, position, after]`` with ``_low`` and ``_high``, and ``mean [size, position,
          after]`` of the error at the query, see ``error_summary``; ``clean_median [after]`` … without a push
        * ``distance [size, position, after]``: ‖z − z_clean‖ / ‖z_clean‖ of the whole state, mean over prompts
        * ``prediction_moved [size, position, after]``: root mean square of what the push changed in the prediction at
          the query, in the unit of steps of the prompts
    """
    check(subject, config, prompts)
    model = subject.model
    prompts = prompts.to(subject.device)
    n_prompts, last = prompts.n_prompts, last_token(subject, prompts)
    chosen = some_tokens(prompts.query)
    if config.positions is not None:
        chosen = chosen_tokens(config.positions, prompts, last)
    tokens = [*chosen, -1]
    generator = torch.Generator().manual_seed(config.seed)
    system = LoopMap.of(model, prompts)
    shape = (len(config.sizes), len(tokens), config.loops + 1, n_prompts)
    before = config.after or subject.loops_of(prompts)
    errors, moved, distances = (np.zeros(shape, np.float32) for _ in range(3))
    with torch.no_grad():
        z = system.initial
        for _ in range(before):
            z = system.step(z)
        direction = torch.randn(z.shape, generator=generator).to(z)
        direction *= z.norm(dim=-1, keepdim=True) / direction.norm(dim=-1, keepdim=True)
        clean = [z]
        for _ in range(config.loops):
            clean.append(system.step(clean[-1]))
        clean_outputs = [system.read(state) for state in clean]
        clean_errors = np.stack([to_numpy(prompts.errors(outputs)[:, -1]) for outputs in clean_outputs])
        size = chunk_size(z.device)
        parts = [slice(start, start + size) for start in range(0, n_prompts, size)]
        for i, j in progress([(i, j) for i in range(len(config.sizes)) for j in range(len(tokens))]):
            push = torch.zeros_like(z)
            where = slice(None) if tokens[j] == -1 else slice(tokens[j], tokens[j] + 1)
            push[:, where] = config.sizes[i] * direction[:, where]
            for part in parts:
                one, own = system.at(part), prompts[part]

                def step(state: Tensor, loop: int, one: LoopMap = one) -> Tensor:
                    return one.step(state)

                for after, state in enumerate(follow(step, z[part], 0, config.loops, {0: push[part]})):
                    distances[i, j, after, part] = to_numpy(distance(state, clean[after][part]))
                    outputs = one.read(state)
                    errors[i, j, after, part] = to_numpy(own.errors(outputs)[:, -1])
                    moved[i, j, after, part] = to_numpy(own.step(outputs, clean_outputs[after][part])[:, -1])
    dims = ("size", "position", "after")
    data = xr.Dataset(
        {
            **error_summary(dims, errors, prompts.failure_level),
            **error_summary(("after",), clean_errors, prompts.failure_level, "clean_"),
            "distance": (dims, distances.mean(-1)),
            "prediction_moved": (dims, np.sqrt((moved**2).mean(-1))),
        },
        coords={
            "size": list(config.sizes),
            "position": tokens,
            "after": np.arange(config.loops + 1),
            "model": subject.label,
        },
        attrs={"pushed_after": before},
    )
    return stamp(data, "recover", subject, prompts, config)


def check(subject: Subject, config: RecoverConfig, prompts: PromptBatch) -> None:
    """Raise LoopprobeError where the loop cannot run on, no size is named, or the prompts have no such token."""
    require_looped(subject)
    if not config.sizes:
        raise LoopprobeError("sizes must not be empty: name at least one")
    if config.positions is not None:
        chosen_tokens(config.positions, prompts, last_token(subject, prompts))


PROBE = Probe(
    "recover",
    RecoverConfig,
    run,
    check,
    Shown(
        "paths:recover_figures",
        "inside:recover_table",
        quantities=(Quantity("prediction_moved", along=("after",), unit="prediction moved ({step_unit})", log=True),),
    ),
    needs=frozenset({"map", "autonomous"}),
)
