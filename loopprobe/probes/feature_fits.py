"""The dictionaries that are compared: one that all loops share, the same again, one for each loop, and two controls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from loopprobe.probes.dictionaries import Dictionaries, train_dictionaries
from loopprobe.probes.feature_scores import Scores, States, gaussian_like, left_by_components, score, spread_of
from loopprobe.probes.features_plan import FeaturesConfig, FeaturesPlan
from loopprobe.types import Progress

SHARED, OTHER_SEED = "shared", "shared, another seed"
IN_TOTAL, IN_EACH = "one a loop, as many in total", "one a loop, as many in each"
COMPONENTS, GAUSSIAN = "principal components", "shared, on Gaussian states"


@dataclass(frozen=True)
class Fitted:
    """Dictionaries, or what they are compared with, and what they leave of held-out states.

    Attributes:
        left, spread: of held-out states, see ``feature_scores``.
        dictionaries: one that all loops share, or one for each; None: principal components.
        scores: what the dictionaries make of held-out states.
    """

    left: Float[np.ndarray, "loop example"]
    spread: Float[np.ndarray, "loop example"]
    dictionaries: Dictionaries | None = None
    scores: Scores | None = None

    @property
    def known(self) -> tuple[Dictionaries, Scores]:
        """The dictionaries and their scores, of what is no principal components."""
        assert self.dictionaries is not None, "principal components have no dictionary"
        assert self.scores is not None, "principal components have no scores"
        return self.dictionaries, self.scores

    @classmethod
    def of(cls, dictionaries: Dictionaries, held_out: States) -> Fitted:
        """Score dictionaries on held-out states."""
        scores = score(dictionaries, held_out)
        return cls(scores.left, spread_of(held_out), dictionaries, scores)


def fit_all(
    states: States, held_out: States, plan: FeaturesPlan, config: FeaturesConfig, progress: Progress
) -> dict[str, Fitted]:
    """Train the shared dictionary and, where they are compared, the others, all with the same recipe and steps.

    Args:
        states, held_out: those that dictionaries are trained on and those that they are scored on.
        plan, config: the options.
        progress: wraps the steps of each training.
    """

    def trained(on: States, n_features: int, *, by_loop: bool = False, copies: int = 1, seed: int = 0) -> Dictionaries:
        return train_dictionaries(
            on.flatten(1, 2), n_features, plan.k, by_loop=by_loop, copies=copies, steps=config.steps,
            batch=config.batch, learning_rate=config.learning_rate, seed=config.seed + seed, progress=progress,
        )  # fmt: skip

    shared = trained(states, plan.n_features, copies=2 if config.compare else 1)
    fitted = {SHARED: Fitted.of(shared[0], held_out)}
    if not config.compare:
        return fitted
    fitted[OTHER_SEED] = Fitted.of(shared[1], held_out)
    fitted[IN_TOTAL] = Fitted.of(trained(states, plan.by_loop, by_loop=True), held_out)
    fitted[IN_EACH] = Fitted.of(trained(states, plan.n_features, by_loop=True), held_out)
    fitted[COMPONENTS] = Fitted(left_by_components(states, held_out, plan.k), spread_of(held_out))
    generator = torch.Generator().manual_seed(config.seed)
    normal = gaussian_like(states, states.shape[1] + held_out.shape[1], generator)
    fitting, scored = normal[:, : states.shape[1]], normal[:, states.shape[1] :]
    fitted[GAUSSIAN] = Fitted.of(trained(fitting, plan.n_features, seed=2), scored)
    return fitted
