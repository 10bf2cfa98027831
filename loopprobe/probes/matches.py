"""Matches of an algorithm's steps with a model's iterations, and the dataset of several of these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from loopprobe.probes.dataset import with_ends
from loopprobe.reference.algorithms import Problem, predictions
from loopprobe.support.statistics import bootstrap_mean, bootstrap_ratio, to_numpy
from loopprobe.tasks import Prompts

SCALED = "least squares, scaled from 0 to 1"  # no algorithm, but what any of them must explain more than
DIVERGED = 1e30  # stands for the distance to an iterate that is not finite


@dataclass(frozen=True)
class Outcome:
    """The predictions of a model, and the prompts that they are of.

    Attributes:
        of_fitting, of_prompts: its predictions after every iteration.
        weights: that it induces at the query of the prompts.
        prompts: that similarities are scored on.
        on_fitting, on_prompts: the problems of the fitting prompts and of these.
        improving: the iterations in which the model still improves.
    """

    of_fitting: Float[Tensor, "loop fitted point"]
    of_prompts: Float[Tensor, "loop batch point"]
    weights: Float[Tensor, "loop batch dim"]
    prompts: Prompts
    on_fitting: Problem
    on_prompts: Problem
    improving: Bool[ndarray, " loop"]


@dataclass(frozen=True)
class Match:
    """The match of an algorithm's steps with a model's iterations.

    Attributes:
        similarities: of every iteration and step, means over prompts, in the order of ``MEASURES``.
        best_step: of every iteration, on the fitting prompts.
        at_best: the similarities there, prompt by prompt.
        left, total: per prompt, what the algorithm leaves of the model's predictions, and their squares.
        steps_per_loop: with the ends of its interval.
    """

    similarities: list[Float[ndarray, "loop step"]]
    best_step: Int[ndarray, " loop"]
    at_best: list[Float[ndarray, "loop batch"]]
    left: Float[ndarray, " batch"]
    total: Float[ndarray, " batch"]
    steps_per_loop: tuple[float, float, float]


MEASURES = ("error_similarity", "weight_similarity", "distance")


def match(outcome: Outcome, iterates: Callable[[Problem], Any]) -> Match:
    """Compare the iterations of a model with the steps of an algorithm."""
    of_model, prompts = outcome.of_prompts, outcome.prompts
    theirs = list(iterates(outcome.on_prompts))
    of_fitting = predictions(outcome.on_fitting, iterates(outcome.on_fitting))
    of_prompts = predictions(outcome.on_prompts, theirs)
    nearest = torch.stack([(other - outcome.of_fitting).square().mean((1, 2)) for other in of_fitting], dim=1)
    best = to_numpy(nearest.nan_to_num(torch.inf).argmin(1))
    matched = torch.from_numpy(best)
    parts = (  # each [loop, step, batch]
        _cosines(of_model - prompts.ys, of_prompts - prompts.ys),
        _cosines(outcome.weights, torch.stack([w[:, -1] for w in theirs])),
        (of_model[:, None, :, -1] - of_prompts[None, :, :, -1]).square() / prompts.scale,
    )
    each = torch.stack([(other - of_model).square().mean(-1) for other in of_prompts], dim=1)
    return Match(
        similarities=[to_numpy(values.mean(-1)) for values in parts],
        best_step=best,
        at_best=[to_numpy(values[torch.arange(len(best)), matched]) for values in parts],
        left=to_numpy((of_model - of_prompts[matched]).square().sum((0, 2))),
        total=to_numpy(of_model.square().sum((0, 2))),
        steps_per_loop=_rate(to_numpy(each.nan_to_num(DIVERGED)), outcome.improving),
    )


def labelled(matches: dict[str, Match], steps: int) -> xr.Dataset:
    """Label these matches, with intervals over prompts."""
    n_loops = len(next(iter(matches.values())).best_step)
    dims = ("algorithm", "loop")
    variables: dict[str, Any] = {}
    for i, measure in enumerate(MEASURES):
        values = np.full((len(matches), n_loops, steps + 1), np.nan)
        for row, one in zip(values, matches.values(), strict=True):
            row[:, : one.similarities[i].shape[1]] = one.similarities[i]
        variables[measure] = ((*dims, "step"), values)
        at_best = np.stack([one.at_best[i] for one in matches.values()])
        variables |= with_ends(f"best_{measure}", dims, bootstrap_mean(at_best))
    variables["best_step"] = (dims, np.stack([one.best_step for one in matches.values()]))
    null = matches[SCALED].left
    share = 1 - np.array([bootstrap_ratio(one.left, one.total) for one in matches.values()])
    gains = np.array([bootstrap_ratio(null - one.left, one.total) for one in matches.values()])
    diverges = share[:, 0] < -1
    share[diverges] = gains[diverges] = np.nan
    slopes = np.array([one.steps_per_loop for one in matches.values()])
    variables |= with_ends("gain", ("algorithm",), (gains[:, 0], gains[:, 1], gains[:, 2]))
    variables |= with_ends("explained", ("algorithm",), (share[:, 0], share[:, 2], share[:, 1]))
    variables |= with_ends("steps_per_loop", ("algorithm",), (slopes[:, 0], slopes[:, 1], slopes[:, 2]))
    coords = {"algorithm": list(matches), "loop": np.arange(1, n_loops + 1), "step": np.arange(steps + 1)}
    return xr.Dataset(variables, coords=coords)


def _cosines(
    a: Float[Tensor, "loop batch last"], b: Float[Tensor, "step batch last"]
) -> Float[Tensor, "loop step batch"]:
    """The cosines of all pairs; zero where one of the two vectors is zero."""
    a, b = (x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12) for x in (a, b))
    return torch.einsum("lbd,sbd->lsb", a, b.to(a))


def improving(prompts: Prompts, of_model: Tensor) -> np.ndarray:
    """Mark the iterations up to the one whose error is within a tenth of the way, in logarithms, to the least."""
    error = to_numpy(prompts.errors(of_model)[..., -1].mean(1).log())
    last = int(np.argmax(error <= error.min() + 0.1 * (error[0] - error.min())))
    return np.arange(len(error)) <= max(last, 1)


def _rate(
    distances: Float[np.ndarray, "loop step batch"], improving: np.ndarray, resamples: int = 200
) -> tuple[float, float, float]:
    """Fit steps per loop with their interval: the slope through zero of the best step, while the model improves."""
    n = distances.shape[-1]
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=resamples)
    counts = np.concatenate([np.ones((1, n)), counts])
    rows = distances[improving]
    steps = (rows @ counts.T).argmin(1)  # [loop, resample]
    loops = np.arange(1, len(distances) + 1)[improving]
    slopes = loops @ steps / (loops @ loops)
    low, high = np.quantile(slopes[1:], [0.025, 0.975])
    return float(slopes[0]), float(low), float(high)
