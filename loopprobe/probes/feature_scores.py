"""What dictionaries explain of states, where their features are active, and which features two dictionaries share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loopprobe.probes.dataset import with_ends
from loopprobe.probes.dictionaries import Dictionaries
from loopprobe.support.statistics import bootstrap_ratio, double, to_numpy

LIFETIMES = ("all loops", "a run of loops", "one loop", "loops apart", "dead")
FOUND = 0.7  # the cosine from which on a feature counts as found again, as in Paulo and Belrose, arXiv 2501.16615
ACTIVATIONS = 2**25  # that are held at once
States = Float[Tensor, "loop example token d_model"]
Fitting = Float[Tensor, "loop fitted token d_model"]


@dataclass(frozen=True)
class Scores:
    """What dictionaries make of held-out states.

    Attributes:
        left: the squared error of what is decoded, summed over the tokens of each prompt.
        rate: the share of states in which a feature is active, by loop and token.
        activation: its mean activation over all states, those in which it is not active included.
        one_a_loop: whether every loop has a dictionary of its own.
    """

    left: Float[np.ndarray, "loop example"]
    rate: Float[np.ndarray, "loop token feature"]
    activation: Float[np.ndarray, "loop token feature"]
    one_a_loop: bool

    @property
    def alive(self) -> Bool[np.ndarray, " feature"]:
        """Which features are active in any loop."""
        return np.asarray((self.rate > 0).any((0, 1)))

    @property
    def dead(self) -> float:
        """The share of features that are active in no state; of one dictionary a loop, of all features of all loops."""
        used = self.rate.sum(1) > 0
        return float(1 - (used if self.one_a_loop else self.alive).mean())

    @property
    def by_loop(self) -> Float[np.ndarray, "loop feature"]:
        """The mean activation over all tokens and prompts, loop by loop."""
        return self.activation.mean(1)


def score(dictionaries: Dictionaries, states: States) -> Scores:
    """Encode and decode held-out states, by one dictionary or by one for each loop."""
    n_loops, n_examples, n_tokens, _ = states.shape
    left = np.empty((n_loops, n_examples))
    sums = torch.zeros(2, n_loops, n_tokens, dictionaries.decoder.shape[1], device=states.device)
    at_once = max(1, ACTIVATIONS // (n_tokens * dictionaries.decoder.shape[1]))
    with torch.no_grad():
        for loop in range(n_loops):
            own, start = dictionaries[loop], 0
            for part in states[loop].split(at_once):
                codes = own.encode(part.flatten(0, 1)[None])
                error = double((own.decode(codes)[0] - part.flatten(0, 1)).square().sum(-1))
                left[loop, start : (start := start + len(part))] = to_numpy(error.unflatten(0, part.shape[:2]).sum(1))
                codes = codes[0].unflatten(0, part.shape[:2])
                sums[0, loop] += (codes > 0).sum(0)
                sums[1, loop] += codes.sum(0)
    rate, activation = to_numpy(sums / n_examples)
    return Scores(left, rate, activation, len(dictionaries) > 1)


def spread_of(states: States) -> Float[np.ndarray, "loop example"]:
    """The squared distance from the mean state of each loop, summed over the tokens of each prompt."""
    return to_numpy(double((states - states.mean((1, 2), keepdim=True)).square().sum(-1)).sum(-1))


def left_by_components(fitting: Fitting, held_out: States, k: int) -> Float[np.ndarray, "loop example"]:
    """What k principal components of each loop leave of held-out states: as many numbers a state, but dense."""
    left = []
    for own, other in zip(fitting.flatten(1, 2), held_out, strict=True):
        mean = own.mean(0)
        covariance = double((own - mean).mT @ (own - mean))
        basis = torch.linalg.eigh(covariance).eigenvectors[:, -k:].to(other)
        centred = other - mean
        left.append(
            to_numpy(double((centred.square().sum(-1) - (centred @ basis).square().sum(-1)).clamp_min(0)).sum(-1))
        )
    return np.stack(left)


def gaussian_like(states: Fitting, n_examples: int, generator: torch.Generator) -> States:
    """Normally distributed states with the mean and the covariance that states have in each loop, over all tokens."""
    drawn = []
    for own in states.flatten(1, 2):
        mean = own.mean(0)
        values, vectors = torch.linalg.eigh(double((own - mean).mT @ (own - mean)) / len(own))
        root = (vectors * values.clamp_min(0).sqrt()).to(own)
        noise = torch.randn(n_examples, states.shape[2], states.shape[3], generator=generator).to(own)
        drawn.append(mean + noise @ root.mT)
    return torch.stack(drawn)


def explained(
    lefts: list[Float[np.ndarray, "loop example"]], spreads: list[Float[np.ndarray, "loop example"]]
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """The explained variance of dictionaries with its interval, by loop and over all loops, which count alike.

    Args:
        lefts: of each dictionary, what it leaves of states.
        spreads: of the states that it was scored on.
    """
    by_loop = np.array(
        [[_share(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(lefts, spreads, strict=True)]
    )
    over_all = np.array([_share(*_alike(*pair)) for pair in zip(lefts, spreads, strict=True)])
    return {
        **with_ends("explained", ("dictionary", "loop"), (by_loop[..., 0], by_loop[..., 1], by_loop[..., 2])),
        **with_ends("explained_over_loops", ("dictionary",), (over_all[:, 0], over_all[:, 1], over_all[:, 2])),
    }


def gains(
    lefts: list[Float[np.ndarray, "loop example"]], spread: Float[np.ndarray, "loop example"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How much more the first dictionary explains over all loops than each one, with an interval, prompt by prompt.

    Args:
        lefts: of dictionaries that were scored on the same states, what each leaves of them.
        spread: of these states.
    """
    alike = [_alike(left, spread) for left in lefts]
    return bootstrap_ratio(np.stack([left for left, _ in alike]) - alike[0][0], alike[0][1])


def _total(spread: Float[np.ndarray, "loop example"]) -> Float[np.ndarray, "loop 1"]:
    total = spread.sum(1, keepdims=True)
    return np.where(total > 0, total, np.nan)


def _alike(left: np.ndarray, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is left and what there is of each prompt, with every loop's total set to one."""
    return np.nansum(left / _total(spread), 0), np.nansum(spread / _total(spread), 0)


def _share(left: np.ndarray, spread: np.ndarray) -> tuple[float, float, float]:
    """One minus what is left over what there is, with its interval."""
    value, low, high = bootstrap_ratio(left, spread)
    return float(1 - value), float(1 - high), float(1 - low)


def lives(activation: Float[np.ndarray, "loop feature"], share: float) -> Bool[np.ndarray, "loop feature"]:
    """Where features live: where their mean activation is at least this share of their largest."""
    return (activation > 0) & (activation >= share * activation.max(0))


def lifetimes(alive: Bool[np.ndarray, "loop feature"]) -> Int[np.ndarray, " feature"]:
    """The place in ``LIFETIMES`` of each feature."""
    count, n_loops = alive.sum(0), len(alive)
    first, last = alive.argmax(0), n_loops - 1 - alive[::-1].argmax(0)
    kinds = np.where(last - first + 1 == count, 1, 3)
    kinds = np.where(count == 1, 2, kinds)
    kinds = np.where(count == n_loops, 0, kinds)
    return np.where(count == 0, 4, kinds)


def found_again(
    decoder: Float[Tensor, "feature d_model"],
    alive: Bool[np.ndarray, " feature"],
    other: Float[Tensor, "other d_model"],
    other_alive: Bool[np.ndarray, " other"],
) -> Float[np.ndarray, " feature"]:
    """The cosine of each feature's direction with that of its partner in another dictionary, missing where it has none.

    Partners are those features, active in both, whose cosines have the largest sum (the Hungarian algorithm).
    """
    from scipy.optimize import linear_sum_assignment  # imported here: it takes a while

    cosines = to_numpy(decoder)[alive] @ to_numpy(other)[other_alive].T
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    found = np.full(len(decoder), np.nan)
    found[np.flatnonzero(alive)[rows]] = cosines[rows, columns]
    return found
