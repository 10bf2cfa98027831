"""Scores of small networks that decode the states of all tokens, beside their controls."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from loopprobe.probes.dataset import with_ends
from loopprobe.probes.decoders import NETWORKS, targets_of, train_network, with_ones
from loopprobe.probes.ridge import States
from loopprobe.store.evaluate import chunk_size
from loopprobe.support.statistics import bootstrap_ratio, to_numpy
from loopprobe.tasks import Prompts
from loopprobe.types import Progress

CONTROLS = ("none", "shuffled", "all weights one")
OF_NETWORKS = ("XᵀY", "w, least squares", "w, gradient descent", "w, true")


def network_scores(
    states: Mapping[str, States],
    training: Prompts,
    prompts: Prompts,
    iterations: list[int],
    names: Collection[str],
    n_steps: int,
    progress: Progress = lambda steps: steps,
) -> xr.Dataset:
    """Train networks over all tokens for what all examples determine, and score them on other prompts.

    Args:
        states: those of the ``training`` prompts, of the same inputs with weights of ``ones``, and of the ``test``
            prompts, at the iterations.
        training, prompts: the prompts that networks are trained and scored on.
        iterations: counted from 1; each is compared with as many steps of gradient descent.
        names: the targets that both kinds of prompts have.
        n_steps: the number of steps of training.
        progress: wraps the steps of all networks together.

    Returns:
        A dataset with dims ``network``, ``control``, ``of`` (the target), ``iteration`` and ``example``:

        * ``network_r2 [network, control, of, iteration]`` with ``_low`` and ``_high`` (95 % bootstrap intervals over
          prompts): R² = 1 − network_squared / network_spread, summed over prompts
        * ``network_squared [network, of, iteration, example]``, ``network_spread [of, iteration, example]``: these sums
          of squares, without control
        * ``network_error [network, control, of, iteration]``: mean squared error a coordinate, ``network_zero [of]``
          that of predicting zero
    """
    names = [name for name in OF_NETWORKS if name in names]
    target, widths = _at_the_query(training, iterations, names)
    ones_target, _ = _at_the_query(with_ones(training), iterations, names)
    test_target, _ = _at_the_query(prompts, iterations, names)
    shape = (len(NETWORKS), len(CONTROLS), len(names), len(iterations))
    r2 = {part: np.full(shape, np.nan) for part in ("", "_low", "_high")}
    error = np.full(shape, np.nan)
    squares = np.zeros((len(NETWORKS), len(names), len(iterations), len(prompts.ys)), np.float32)
    data = {
        "none": (states["training"], target), "shuffled": (states["training"], target.roll(1, dims=1)),
        "all weights one": (states["ones"], ones_target),
    }  # fmt: skip
    spread = (test_target - target.mean((0, 1), keepdim=True)).square().split(widths, dim=-1)
    size = chunk_size(prompts.xs.device)
    runs = [(i, j) for i in range(len(NETWORKS)) for j in range(len(CONTROLS))]
    all_steps = iter(progress(range(len(runs) * n_steps)))
    for i, j in runs:
        decode = train_network(*data[CONTROLS[j]], NETWORKS[i], steps=n_steps, progress=_within(all_steps))
        with torch.no_grad():
            read = torch.cat([decode(part) for part in states["test"].split(size, dim=1)], dim=1)
        squared = (read.to(test_target.device) - test_target).square().split(widths, dim=-1)
        for k in range(len(names)):
            error[i, j, k] = to_numpy(squared[k].mean((1, 2)))
            if CONTROLS[j] == "none":
                squares[i, k] = to_numpy(squared[k].sum(-1))
            for t in range(len(iterations)):
                ratio = bootstrap_ratio(to_numpy(squared[k][t].sum(-1)), to_numpy(spread[k][t].sum(-1)))
                for part, value in zip(("", "_high", "_low"), ratio, strict=True):
                    r2[part][i, j, k, t] = 1 - value
    next(all_steps, None)  # ends the bar
    dims = ("network", "control", "of", "iteration")
    variables: dict[str, Any] = with_ends("network_r2", dims, (r2[""], r2["_low"], r2["_high"]))
    zero = [part.square().mean().item() for part in test_target.split(widths, dim=-1)]
    variables |= {"network_error": (dims, error), "network_zero": ("of", zero)}
    variables["network_squared"] = (("network", "of", "iteration", "example"), squares)
    variables["network_spread"] = ((*dims[2:], "example"), np.stack([to_numpy(part.sum(-1)) for part in spread]))
    coords = {"network": list(NETWORKS), "control": list(CONTROLS), "of": names, "iteration": iterations}
    return xr.Dataset(variables, coords=coords)


def _at_the_query(prompts: Prompts, iterations: list[int], names: Collection[str]) -> tuple[Tensor, list[int]]:
    """The targets at the query's token side by side, [iteration, batch, width], and the width of each."""
    targets = targets_of(prompts, iterations)
    chosen = [targets[name][:, :, -1] for name in names]
    together = torch.cat([target.expand(len(iterations), -1, -1) for target in chosen], dim=-1)
    return together, [target.shape[-1] for target in chosen]


def _within(all_steps: Iterator[Any]) -> Progress:
    """A wrapper for the steps of one network that advances the bar of all of them."""

    def wrap(steps: Iterable[Any]) -> Iterator[Any]:
        for step in steps:
            next(all_steps, None)
            yield step

    return wrap
