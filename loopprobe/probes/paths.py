"""The paths that states take: principal components over the loops, and for several layers the limit of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from loopprobe.config.selection import Choice
from loopprobe.config.strict import configuration
from loopprobe.dynamics.calibration import calibrate, require_calibrated
from loopprobe.dynamics.limits import classify, features, limit_flags
from loopprobe.dynamics.trail import WINDOW, Trail
from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import stamp
from loopprobe.probes.declaration import Probe, Shown
from loopprobe.probes.loops import chosen_tokens, require_looped, some_tokens
from loopprobe.store.subject import Subject
from loopprobe.support.statistics import double, to_numpy
from loopprobe.tasks import PromptBatch
from loopprobe.types import Progress


@configuration
class PathsConfig:
    """The paths that are drawn.

    Attributes:
        loops: iterations; limits are judged by the last 128.
        positions: tokens, see ``config.selection``; None: some inputs, their labels, and the query's.
    """

    loops: PositiveInt = 300
    positions: Choice | None = None


def run(
    subject: Subject, prompts: PromptBatch, config: PathsConfig, progress: Progress = lambda steps: steps
) -> xr.Dataset:
    """Follow a few prompts and project their states on the three directions in which they vary most.

    Returns:
        A dataset with dims ``followed`` (the prompt), ``position`` (token), ``loop`` (from 1), ``component`` and
        ``layer``:

        * ``path [followed, position, loop, component]``: principal components of the state after the loop, the same
          axes for all (over prompts, tokens and loops), each with its largest entry positive
        * ``explained [component]``: their shares of the variance
        * ``layer_limit [followed, position, layer]``: the type of limit of the residual stream after each layer
        * ``layer_distance [layer, other_layer]``: ‖x − x'‖ / ‖x‖ between the residual streams of two layers in the
          last loop, mean over prompts and tokens: far from 0 where each layer has a limit of its own (arXiv
          2604.11791)
    """
    check(subject, config, prompts)
    model = subject.model
    prompts = prompts.to(subject.device)
    tokens = some_tokens(prompts.query)
    if config.positions is not None:
        tokens = chosen_tokens(config.positions, prompts, prompts.n_tokens - 1)
    names = ["hook_z", "resid_post"]
    _, cache = model.run_with_cache(
        *prompts.inputs, n_loops=config.loops, keep_loops=1, read_at=[prompts.query], names=names, positions=tokens
    )
    z = double(cache.stack("z"))  # loop followed position d_model
    components = principal_components(z)
    path = components.of(z).permute(1, 2, 0, 3)
    layers = [cache.stack("resid_post", layer) for layer in range(model.sizes.n_layers)]
    thresholds = calibrate(layers[0].dtype)
    limits = torch.stack([classify(features(Trail.of(x)), thresholds)[0] for x in layers], dim=-1)
    last = torch.stack([x[-1] for x in layers])
    apart = (last[:, None] - last[None]).norm(dim=-1) / last.norm(dim=-1)[:, None]
    data = xr.Dataset(
        {
            "path": (("followed", "position", "loop", "component"), to_numpy(path.float())),
            "explained": ("component", to_numpy(components.explained)),
            "layer_limit": (("followed", "position", "layer"), to_numpy(limits)),
            "layer_distance": (("layer", "other_layer"), to_numpy(apart.mean((-2, -1)))),
        },
        coords={"position": tokens, "loop": np.arange(1, config.loops + 1), "model": subject.label},
    )
    data.layer_limit.attrs |= limit_flags()
    data = data.assign_coords(layer=np.arange(len(layers)), other_layer=np.arange(len(layers)))
    return stamp(data, "paths", subject, prompts, config)


@dataclass(frozen=True)
class Components:
    """The directions in which states vary most.

    Attributes:
        mean: of the states.
        axes: at most three, each with its largest entry positive.
        explained: their shares of the variance.
    """

    mean: Float[Tensor, " d_model"]
    axes: Float[Tensor, "component d_model"]
    explained: Float[Tensor, " component"]

    def of(self, states: Float[Tensor, "*tokens d_model"]) -> Float[Tensor, "*tokens component"]:
        """Project states on the axes."""
        return (double(states) - self.mean) @ self.axes.mT


def principal_components(states: Float[Tensor, "*tokens d_model"]) -> Components:
    """Find the three directions in which states vary most, over all of them together."""
    flat = double(states).flatten(0, -2)
    mean = flat.mean(0)
    _, singular, axes = torch.linalg.svd(flat - mean, full_matrices=False)
    axes = axes[:3] * axes[:3].gather(1, axes[:3].abs().argmax(1, keepdim=True)).sign()
    return Components(mean, axes, singular[:3].square() / singular.square().sum())


def check(subject: Subject, config: PathsConfig, prompts: PromptBatch) -> None:
    """Raise LoopprobeError where there is no path, no such token, or limits of the states cannot be told."""
    require_looped(subject)
    require_calibrated(subject.model.dtype)
    if config.loops < WINDOW:
        raise LoopprobeError(f"loops ({config.loops}) must be at least {WINDOW}: raise it")
    if config.positions is not None:
        chosen_tokens(config.positions, prompts, prompts.n_tokens - 1)


PROBE = Probe(
    "paths",
    PathsConfig,
    run,
    check,
    Shown("paths:paths_figures", "inside:paths_table"),
    needs=frozenset({"map"}),
)
