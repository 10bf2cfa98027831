"""The dictionaries that are compared: one that all loops share, the same again, one for each loop, and two controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from loopprobe.probes.dictionaries import Dictionaries, train_dictionaries
from loopprobe.probes.feature_scores import Fitting, Scores, States, gaussian_like, left_by_components, score, spread_of
from loopprobe.probes.features_plan import FeaturesConfig, FeaturesPlan
from loopprobe.support.threads import Parallel
from loopprobe.types import Progress

SHARED, OTHER_SEED = "shared", "shared, another seed"
IN_TOTAL, IN_EACH = "one a loop, as many in total", "one a loop, as many in each"
COMPONENTS, GAUSSIAN = "principal components", "shared, on Gaussian states"
ORDER = (SHARED, OTHER_SEED, IN_TOTAL, IN_EACH, COMPONENTS, GAUSSIAN)  # in datasets; a seed further each


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
    states: Fitting, held_out: States, plan: FeaturesPlan, config: FeaturesConfig, progress: Progress
) -> dict[str, Fitted]:
    """Train the shared dictionary and, where they are compared, the others, all with the same recipe and steps.

    On a CPU several are trained at once, each in one thread: their operations are too small to be shared out.

    Args:
        states, held_out: those that dictionaries are trained on and those that they are scored on.
        plan, config: the options.
        progress: wraps the trainings, or the steps of a single one.
    """
    sizes = {SHARED: plan.n_features}
    seen = {name: (states, held_out) for name in (SHARED, OTHER_SEED, IN_TOTAL, IN_EACH)}
    if config.compare:
        sizes |= {OTHER_SEED: plan.n_features, IN_TOTAL: plan.by_loop, IN_EACH: plan.n_features}
        sizes |= {GAUSSIAN: plan.n_features}
        generator = torch.Generator().manual_seed(config.seed)
        normal = gaussian_like(states, states.shape[1] + held_out.shape[1], generator)
        seen[GAUSSIAN] = normal[:, : states.shape[1]], normal[:, states.shape[1] :]
    steps = progress if len(sizes) == 1 else _quiet

    def trained(name: str) -> Dictionaries:
        return train_dictionaries(
            seen[name][0].flatten(1, 2), sizes[name], plan.k, by_loop=name in (IN_TOTAL, IN_EACH), steps=config.steps,
            batch=config.batch, learning_rate=config.learning_rate, seed=config.seed + ORDER.index(name),
            progress=steps,
        )  # fmt: skip

    names = sorted(sizes, key=lambda name: name != IN_EACH)  # which takes longest
    trainings = Parallel(trained, names, torch.get_num_threads() if states.device.type == "cpu" else 1)
    made = dict(zip(names, trainings if len(sizes) == 1 else progress(trainings), strict=True))
    fitted = {name: Fitted.of(made[name], seen[name][1]) for name in sizes}
    if config.compare:
        fitted[COMPONENTS] = Fitted(left_by_components(states, held_out, plan.k), spread_of(held_out))
    return {name: fitted[name] for name in ORDER if name in fitted}


def _quiet(steps: Any) -> Any:
    return steps
