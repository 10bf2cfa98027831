"""What an ablated component writes instead: zero, a mean, another prompt's output, or the best constant."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from loopprobe.probes.ablate_runs import AblatedRuns, Component, Edited, Place, Values
from loopprobe.types import Progress

START = 0.5  # step size of Adam at its first step, in standard deviations of the output
GRADIENT_SHARE = 0.5  # of the runs that go through together without a gradient
Known = Callable[[Component, int], Float[Tensor, "#batch pos width"]]


def zero_of(runs: AblatedRuns) -> Values:
    """Zeros."""
    return lambda place: torch.zeros_like(place.component.of(runs.cache, place.loop)[:1])


def mean_of(means: Known) -> Values:
    """A mean that is known for each component and loop."""
    return lambda place: means(place.component, place.loop)


def resampled(runs: AblatedRuns, generator: torch.Generator) -> Values:
    """The output for another prompt of the batch, the same one at every place; none keeps its own."""
    n_prompts = runs.prompts.n_prompts
    shuffled = torch.randperm(n_prompts, generator=generator)
    order = torch.empty_like(shuffled).scatter_(0, shuffled, shuffled.roll(1))

    def values(place: Place) -> Tensor:
        own = place.component.of(runs.cache, place.loop)
        return own[order.to(own.device)]

    return values


def best_constants(
    fitting: AblatedRuns,
    edits: Sequence[Edited],
    means: Known,
    loss: Callable[[Float[Tensor, "batch answer *value"]], Float[Tensor, " batch"]],
    steps: int,
    progress: Progress = lambda steps: steps,
) -> list[dict[Place, Float[Tensor, "1 pos width"]]]:
    """The constants with the least mean loss, by Adam from the mean (Li and Janson, arXiv 2409.09951, section 2.3).

    The constant of a place is the mean of each token plus one vector, the same for all tokens, that is fitted: a vector
    for each token would fit the noise of a few prompts. All runs that start in the same loop are fitted at once: their
    losses are summed, and none depends on another's constants.

    Args:
        fitting: the run of the prompts that are fitted on.
        edits: what each run replaces.
        means: of each component and loop, where the search starts.
        loss: from the answers to the loss of each prompt.
        steps: of Adam; its step size falls to zero along a cosine.
        progress: wraps the steps of all groups of runs that are fitted at once.

    Returns:
        For each run the constants of its places: those of the step with the least loss, which is no more than the mean
        has on these prompts.
    """
    made: list[dict[Place, Tensor]] = [{} for _ in edits]
    groups = list(fitting.groups(edits, GRADIENT_SHARE))
    search: _Search | None = None
    for group, step in progress([(group, step) for group in groups for step in range(steps + 1)]):
        if step == 0 or search is None:
            search = _Search(fitting, [edits[i] for i in group], means, steps)
        search.step(loss)
        for i, constants in zip(group, search.best, strict=True):
            made[i] = constants
    return made


class _Search:
    """The search for the constants of some runs at once.

    Attributes:
        best: for each run the constants of its places with the least loss so far.
    """

    def __init__(self, fitting: AblatedRuns, some: Sequence[Edited], means: Known, steps: int) -> None:
        self.fitting, self.some = fitting, some
        self.starts = {place: means(place.component, place.loop).detach() for run in some for place in run}
        self.spread = {place: _spread(fitting, place) for place in self.starts}
        self.shifts = [
            {place: torch.zeros_like(self.starts[place][:, :1]).requires_grad_() for place in run} for run in some
        ]
        self.least = torch.full((len(some),), torch.inf, device=fitting.clean.device)
        self.best = [{place: self.starts[place] for place in run} for run in some]
        self.adam = torch.optim.Adam([shift for run in self.shifts for shift in run.values()], START)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.adam, steps + 1)

    def step(self, loss: Callable[[Float[Tensor, "batch answer *value"]], Float[Tensor, " batch"]]) -> None:
        """Run with the constants of now, keep those that are the best so far, and go on by one step of Adam."""
        now = [
            {place: self.starts[place] + self.spread[place] * shift for place, shift in run.items()}
            for run in self.shifts
        ]
        with torch.enable_grad():
            outputs = self.fitting.outputs(self.some, [run.__getitem__ for run in now])
            losses = torch.stack([loss(one).mean() for one in outputs])
        better = losses.detach() < self.least
        self.least = torch.where(better, losses.detach(), self.least)
        for i in better.nonzero().flatten().tolist():
            self.best[i] = {place: value.detach() for place, value in now[i].items()}
        self.adam.zero_grad()
        losses.where(losses.isfinite(), 0).sum().backward()
        self.adam.step()
        self.schedule.step()


def _spread(runs: AblatedRuns, place: Place) -> Tensor:
    """The standard deviation of an output over prompts, tokens and coordinates, which step sizes are told in."""
    output = place.component.of(runs.cache, place.loop)
    return (output - output.mean(0)).square().mean().sqrt().clamp_min(1e-6)
