"""Algorithms that a trained model is compared with, each on every prefix of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from loopprobe.errors import LoopprobeError
from loopprobe.reference.baselines import fitted
from loopprobe.reference.baselines.closed import Predictions, averaging, least_squares, nearest_neighbours, ridge
from loopprobe.tasks import Prompts
from loopprobe.types import Progress


@dataclass(frozen=True)
class Baseline:
    """An algorithm with the name that figures and tables show.

    Attributes:
        words: the name.
        predict: returns predictions [batch, n_points]. It is given prompts, and a wrapper that shows its progress.
        slow: True where it is fitted prefix by prefix, so that it is run on fewer prompts.
        sklearn: True where it needs scikit-learn.
    """

    words: str
    predict: Callable[[Prompts, Progress], Predictions]
    slow: bool = False
    sklearn: bool = False


BASELINES = {
    "least_squares": Baseline("least squares", lambda prompts, progress: least_squares(prompts)),
    "ridge": Baseline("ridge (1)", lambda prompts, progress: ridge(prompts, 1.0)),
    "lasso": Baseline("Lasso (0.01)", fitted.lasso, slow=True, sklearn=True),
    "nearest": Baseline("3 nearest neighbours", lambda prompts, progress: nearest_neighbours(prompts)),
    "averaging": Baseline("averaging", lambda prompts, progress: averaging(prompts)),
    "tree": Baseline("decision tree", fitted.decision_tree, slow=True, sklearn=True),
    "boosting": Baseline("gradient boosting", fitted.boosting, slow=True, sklearn=True),
    "network": Baseline("2-layer network", fitted.network, slow=True),
}


def check_baselines(names: Iterable[str]) -> None:
    """Raise LoopprobeError where there is no such baseline, or where it needs scikit-learn and lacks it."""
    for name in names:
        if name not in BASELINES:
            raise LoopprobeError(f"no baseline is called {name!r}: choose from {', '.join(BASELINES)}")
        if BASELINES[name].sklearn:
            fitted.require_sklearn()
