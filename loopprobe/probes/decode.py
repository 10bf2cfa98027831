"""What the state holds at every loop, layer and token: decoders trained on some prompts and scored on others.

Ridge regression at every place, and small networks over all tokens, each beside two controls: the targets of other
prompts (shuffled; Hewitt and Liang, arXiv 1909.03368), and training on prompts whose weights are all one (the
reference's control). Then the causal check: the state is edited along what was decoded, and the prediction moves as
the decoder says, or not.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from numpy import ndarray
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from loopprobe.checkpoint import Checkpoint
from loopprobe.configuration import configuration
from loopprobe.evaluate import chunk_size
from loopprobe.model import LoopedTransformer
from loopprobe.probes.causal import causal_check
from loopprobe.probes.decoders import NETWORKS, targets_of, train_network, with_ones
from loopprobe.probes.loops import require_loops_or_layers
from loopprobe.probes.ridge import Ridge, States, with_one
from loopprobe.results import stamp, with_ends
from loopprobe.statistics import bootstrap_ratio
from loopprobe.tasks import Prompts
from loopprobe.types import Progress

CONTROLS = ("none", "shuffled", "all weights one")
OF_NETWORKS = ("XᵀY", "w, least squares", "w, gradient descent", "w, true")


@configuration
class DecodeConfig:
    """How far the loop runs, and how the decoders are trained.

    Attributes:
        loops: iterations; None: as many as trained.
        train_prompts: prompts that decoders are trained on, of a seed of their own.
        ridge: its penalty, relative to the mean variance of the states.
        network_loops: iterations at which networks are trained, evenly spread; 0: none.
        network_steps: of their training.
    """

    loops: PositiveInt | None = None
    train_prompts: PositiveInt = 1024
    ridge: PositiveFloat = 1e-3
    network_loops: NonNegativeInt = 8
    network_steps: PositiveInt = 600


def run(
    checkpoint: Checkpoint, prompts: Prompts, config: DecodeConfig, progress: Progress = lambda steps: steps
) -> xr.Dataset:
    """Decode the residual stream after every layer of every loop.

    Returns:
        A dataset with dims ``target``, ``control`` (none, shuffled, all weights one), ``loop`` (iterations done, from
        1), ``layer`` and ``position`` (token, from 0, without the query's label):

        * ``r2 [control, target, loop, layer, position]``: of ridge regression at the place, on prompts that it was not
          trained on; missing where the target does not vary
        * ``loop_index_r2 [layer, position]``: of the number of the loop
        * with ``network_loops`` ``network_r2 [network, control, of, iteration]`` with ``_low`` and ``_high`` (95 %
          bootstrap intervals over prompts), of networks over all tokens for what all examples determine, ``of``; and
          ``network_error``: mean squared error a coordinate, ``network_zero [of]`` that of predicting zero;
          ``network_squared [network, of, iteration, example]``, ``network_spread [of, iteration, example]``: sums of
          squares, without control, that R² is one minus the ratio of
        * what ``causal_check`` finds, for a looped model

    Raises:
        LoopprobeError: the prompts have no example.
    """
    check(checkpoint, config)
    model = checkpoint.model
    prompts = prompts.to(checkpoint.device)
    seed = prompts.origin.get("held_out_seed", 0) + 1
    training = checkpoint.more_like(prompts, config.train_prompts, seed)
    n_loops = config.loops or model.cfg.n_loops
    n_layers = model.cfg.n_layers
    steps = [loop + 1 if model.cfg.n_loops > 1 else layer + 1 for loop in range(n_loops) for layer in range(n_layers)]
    fit, fit_ones = Ridge(config.ridge), Ridge(config.ridge)
    size = chunk_size(checkpoint.device)
    index = _LoopIndex(n_loops, n_layers, config.ridge)
    for batch in progress(training.split(size)):
        states = sites(model, batch, n_loops)
        targets = targets_of(batch, steps)
        shuffled = {name: target.roll(1, dims=1) for name, target in targets.items()}
        fit.add(states, _named("none", targets) | _named("shuffled", shuffled))
        ones = with_ones(batch)
        fit_ones.add(sites(model, ones, n_loops), _named("all weights one", targets_of(ones, steps)))
        index.add(states)
    maps = fit.solve() | fit_ones.solve()
    names = list(targets)
    left: dict[tuple[str, str], Any] = {}
    total: dict[str, Any] = {}
    index.solve()
    for batch in prompts.split(size):
        states = sites(model, batch, n_loops)
        x = with_one(states)
        index.score(states)
        for name, target in targets_of(batch, steps).items():
            spread = (target - fit.means(("none", name))[:, None]).square().sum((1, 3))
            total[name] = total.get(name, 0) + spread
            for control in CONTROLS:
                error = (torch.einsum("tbpi,tpij->tbpj", x, maps[control, name]) - target).square().sum((1, 3))
                left[control, name] = left.get((control, name), 0) + error
    shape = (n_loops, n_layers, states.shape[2])
    r2 = np.full((len(CONTROLS), len(names), *shape), np.nan)
    for i, control in enumerate(CONTROLS):
        for j, name in enumerate(names):
            varies = total[name] > 1e-6 * len(prompts.ys)
            value = torch.where(varies, 1 - left[control, name] / total[name].clamp_min(1e-12), torch.nan)
            r2[i, j] = value.reshape(shape).cpu().numpy()
    variables: dict[str, Any] = {"r2": (("control", "target", "loop", "layer", "position"), r2)}
    if n_loops > 1:
        variables["loop_index_r2"] = (("layer", "position"), index.r2())
    coords: dict[str, Any] = {
        "control": list(CONTROLS), "target": names, "loop": np.arange(1, n_loops + 1), "layer": np.arange(n_layers),
        "position": np.arange(shape[-1]), "model": checkpoint.label,
    }  # fmt: skip
    attrs: dict[str, Any] = {"trained_loops": model.cfg.n_loops, "iteration": "loop" if n_loops > 1 else "layer"}
    data = xr.Dataset(variables, coords=coords, attrs=attrs)
    if config.network_loops:
        data = data.merge(_networks(model, training, prompts, config, n_loops, steps, progress))
    if n_loops > 1:
        found = causal_check(model, training, prompts, maps["none", "prediction, least squares"], n_loops)
        data = data.merge(found, combine_attrs="no_conflicts")
    return stamp(data, "decode", checkpoint, prompts, config)


def check(checkpoint: Checkpoint, config: DecodeConfig) -> None:
    """Raise LoopprobeError where loops are asked of a model that is not looped."""
    require_loops_or_layers(checkpoint, config.loops)


def _named(control: str, targets: dict[str, Tensor]) -> dict[Hashable, Tensor]:
    return {(control, name): target for name, target in targets.items()}


def sites(model: LoopedTransformer, prompts: Prompts, n_loops: int) -> States:
    """The residual stream after every layer of every loop, layers fastest, at all tokens but the query's label."""
    _, cache = model.run_with_cache(prompts.xs, prompts.ys, n_loops, names="resid_post")
    layers = [cache.stack("resid_post", layer=layer)[:, :, :-1] for layer in range(model.cfg.n_layers)]
    return torch.stack(layers, dim=1).flatten(0, 1)


class _LoopIndex:
    """Ridge regression of the number of the loop, over the states of all loops."""

    def __init__(self, n_loops: int, n_layers: int, ridge: float) -> None:
        self.shape = n_loops, n_layers
        self.fit = Ridge(ridge)
        self.number = torch.linspace(-1, 1, n_loops, dtype=torch.float64) if n_loops > 1 else torch.zeros(1).double()
        self.left: Tensor | float = 0.0
        self.count = 0

    def _arranged(self, states: States) -> tuple[States, Tensor]:
        """[layer, loop and batch, pos, d_model], and the number of the loop beside it."""
        x = states.unflatten(0, self.shape).transpose(0, 1)
        number = self.number.to(x.device)[None, :, None, None, None].expand(*x.shape[:-1], 1)
        return x.flatten(1, 2), number.flatten(1, 2)

    def add(self, states: States) -> None:
        x, number = self._arranged(states)
        self.fit.add(x, {"loop": number})

    def solve(self) -> None:
        self.map = self.fit.solve()["loop"]

    def score(self, states: States) -> None:
        x, number = self._arranged(states)
        read = torch.einsum("lbpi,lpij->lbpj", with_one(x), self.map)
        self.left = self.left + (read - number).square().sum((1, 3))
        self.count += x.shape[1]

    def r2(self) -> Float[ndarray, "layer position"]:
        assert isinstance(self.left, Tensor)
        return (1 - self.left / self.count / self.number.square().mean().item()).cpu().numpy()


def _networks(
    model: LoopedTransformer, training: Prompts, prompts: Prompts, config: DecodeConfig, n_loops: int,
    steps: list[int], progress: Progress,
) -> xr.Dataset:  # fmt: skip
    n_layers = model.cfg.n_layers
    count = n_loops if n_loops > 1 else n_layers
    picked = np.unique(np.linspace(0, count - 1, min(count, config.network_loops)).round().astype(int))
    where = [int(i) * n_layers + n_layers - 1 for i in picked] if n_loops > 1 else [int(i) for i in picked]
    size = chunk_size(prompts.xs.device)

    def gathered(part: Prompts) -> tuple[States, Tensor, list[tuple[str, int]]]:
        states = torch.cat([sites(model, batch, n_loops)[where] for batch in part.split(size)], dim=1)
        last = {n: t[:, :, -1] for n, t in targets_of(part, [steps[i] for i in where]).items() if n in OF_NETWORKS}
        target = torch.cat([t.expand(len(where), -1, -1) for t in last.values()], dim=-1)
        return states, target, [(name, t.shape[-1]) for name, t in last.items()]

    states, target, widths = gathered(training)
    ones_states, ones_target, _ = gathered(with_ones(training))
    test_states, test_target, _ = gathered(prompts)
    names = [name for name, _ in widths]
    shape = (len(NETWORKS), len(CONTROLS), len(names), len(where))
    found = {part: np.full(shape, np.nan) for part in ("", "_low", "_high")}
    error = np.full(shape, np.nan)
    kept = np.zeros((len(NETWORKS), len(names), len(where), len(prompts.ys)), np.float32)
    zero = [part.square().mean().item() for part in test_target.split([width for _, width in widths], dim=-1)]
    data = {
        "none": (states, target), "shuffled": (states, target.roll(1, dims=1)),
        "all weights one": (ones_states, ones_target),
    }  # fmt: skip
    for i, j in progress([(i, j) for i in range(len(NETWORKS)) for j in range(len(CONTROLS))]):
        decode = train_network(*data[CONTROLS[j]], NETWORKS[i], steps=config.network_steps)
        with torch.no_grad():
            read = torch.cat([decode(part) for part in test_states.split(size, dim=1)], dim=1)
        squared = (read - test_target).square().split([width for _, width in widths], dim=-1)
        spread = (
            (test_target - target.mean((0, 1), keepdim=True)).square().split([width for _, width in widths], dim=-1)
        )
        for k in range(len(names)):
            error[i, j, k] = squared[k].mean((1, 2)).cpu().numpy()
            if CONTROLS[j] == "none":
                kept[i, k] = squared[k].sum(-1).cpu().numpy()
            for t in range(len(where)):
                ratio = bootstrap_ratio(squared[k][t].sum(-1).cpu().numpy(), spread[k][t].sum(-1).cpu().numpy())
                for part, value in zip(("", "_high", "_low"), ratio, strict=True):
                    found[part][i, j, k, t] = 1 - value
    dims = ("network", "control", "of", "iteration")
    variables: dict[str, Any] = with_ends("network_r2", dims, (found[""], found["_low"], found["_high"]))
    variables |= {"network_error": (dims, error), "network_zero": ("of", zero)}
    variables["network_squared"] = (("network", "of", "iteration", "example"), kept)
    variables["network_spread"] = ((*dims[2:], "example"), np.stack([part.sum(-1).cpu().numpy() for part in spread]))
    coords = {"network": list(NETWORKS), "control": list(CONTROLS), "of": names, "iteration": picked + 1}
    return xr.Dataset(variables, coords=coords)
