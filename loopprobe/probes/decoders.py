"""The targets that states are decoded into, and small networks that decode them from all tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from loopprobe.probes.ridge import States
from loopprobe.reference import algorithms
from loopprobe.reference.algorithms import Problem
from loopprobe.support.statistics import double
from loopprobe.tasks import Prompts
from loopprobe.tasks.prompts import TOKENS_PER_POINT
from loopprobe.types import Progress

BATCH = 64  # prompts in a step of training
NETWORKS = ("on the pooled state", "at every token, then pooled")


def targets_of(prompts: Prompts, steps: list[int]) -> dict[str, Float[Tensor, "iteration batch pos width"]]:
    """Compute what the state of a token might hold, by name: [1 or iteration, batch, pos, width], in float64.

    The query's label is left out. A token of point i has seen i examples at its input and i + 1 at its label; moments
    and weights are those of these examples. The prediction is that of least squares for the point itself, from the
    examples before it. ``w, true`` is there only where the prompts have weights.

    Args:
        prompts: the prompts.
        steps: for each iteration, the steps of gradient descent (with its best rate) that it is compared with.
    """
    problem = Problem.of(prompts)
    full = problem.solution()
    descent = torch.stack(list(algorithms.gradient_descent(problem, max(steps), algorithms.best_rate(problem))))[steps]
    tokens = torch.arange(prompts.query + 1, device=full.device)
    point, seen = tokens // TOKENS_PER_POINT, (tokens + 1) // TOKENS_PER_POINT
    previous = F.pad(double(prompts.ys), (1, 0))[:, :-1]
    targets = {
        "XᵀY": problem.first[:, seen][None],
        "w, least squares": full[:, seen][None],
        "w, gradient descent": descent[:, :, seen],
    }
    if prompts.weights is not None:
        targets["w, true"] = double(prompts.weights)[:, None].expand(-1, len(tokens), -1)[None]
    targets["prediction, least squares"] = problem.predict(full)[:, point, None][None]
    targets["label before"] = previous[:, point, None][None]
    return targets


def with_ones(prompts: Prompts) -> Prompts:
    """Replace the labels by those of weights that are all one: the reference's control (Yang et al., section 5.3)."""
    weights = torch.ones_like(prompts.xs[:, 0])
    return Prompts(prompts.xs, prompts.xs.sum(-1), prompts.origin | {"weights": "ones"}, prompts.scale, weights)


def train_network(
    states: States,
    target: Float[Tensor, "#iteration batch width"],
    kind: str,
    *,
    hidden: int = 128,
    steps: int = 600,
    learning_rate: float = 3e-3,
    progress: Progress = lambda steps: steps,
) -> Callable[[States], Float[Tensor, "iteration batch width"]]:
    """Train a network of two layers for each iteration, all at once, with learned weights of the positions.

    On the pooled state it reads the weighted mean of the states (Yang et al., section 5.3, after Akyürek et al.
    2022); at every token, its first layer comes before the mean, so that products within a token can be formed
    (Zaheer et al. 2017).

    Args:
        states: states of the training prompts.
        target: their targets, [1 or iteration, batch, width].
        kind: one of ``NETWORKS``.
        hidden: the width of the network.
        steps, learning_rate: its training, with AdamW in batches of 64.
        progress: wraps the steps.
    """
    generator = torch.Generator().manual_seed(0)
    states, target = states.float(), target.float().to(states.device)
    mean, std = states.mean((1, 2), keepdim=True), states.std((1, 2), keepdim=True)
    centre, size = target.mean(1, keepdim=True), target.std((1, 2), keepdim=True).clamp_min(1e-6)
    n_iterations, n_prompts, n_pos, d_model = states.shape

    def drawn(*shape: int) -> Tensor:
        values = torch.randn(n_iterations, *shape, generator=generator) * shape[0] ** -0.5
        return values.to(states.device).requires_grad_()

    first, last = drawn(d_model, hidden), drawn(hidden, target.shape[-1])
    bias, offset, places = (
        torch.zeros(n_iterations, width, device=states.device, requires_grad=True)
        for width in (hidden, target.shape[-1], n_pos)
    )
    parameters = [first, bias, last, offset, places]

    def raw(x: States) -> Tensor:
        share = places.softmax(-1)
        if kind == NETWORKS[0]:
            pooled = einsum(x, share, "t batch pos d, t pos -> t batch d")
            inside = F.gelu(einsum(pooled, first, "t batch d, t d h -> t batch h") + bias[:, None])
        else:
            each = F.gelu(einsum(x, first, "t batch pos d, t d h -> t batch pos h") + bias[:, None, None])
            inside = einsum(each, share, "t batch pos h, t pos -> t batch h")
        return einsum(inside, last, "t batch h, t h j -> t batch j") + offset[:, None]

    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    wanted = ((target - centre) / size).expand(n_iterations, -1, -1)
    with torch.enable_grad():
        for step in progress(range(steps)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(1.0, 2 * (steps - step) / steps)
            chosen = torch.randint(n_prompts, (BATCH,), generator=generator).to(states.device)
            x = (states[:, chosen] - mean) / std
            loss = (raw(x) - wanted[:, chosen]).square().mean((1, 2)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
    return lambda x: raw((x.float() - mean) / std) * size + centre
