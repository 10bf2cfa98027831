"""Rules: the range that a claim states for an estimate."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Rule:
    """A range that an estimate must lie in.

    Attributes:
        low, high: the ends of the range; -inf and inf stand for no end.
        neutral: the value that means no effect, from which the ends are measured where thresholds are varied.
        why: the reason for the ends, in words.
        each: whether every finding must obey; else their mean must, and none may break the rule.
    """

    low: float = -np.inf
    high: float = np.inf
    neutral: float = 1.0
    why: str = ""
    each: bool = False

    def __str__(self) -> str:
        if self.low == -np.inf:
            return f"below {self.high:.3g}"
        if self.high == np.inf:
            return f"above {self.low:.3g}"
        return f"between {self.low:.3g} and {self.high:.3g}"

    def scaled(self, factor: float) -> Rule:
        """Return the rule with its ends ``factor`` times as far from the neutral value."""
        low, high = (self.neutral + factor * (end - self.neutral) for end in (self.low, self.high))
        return replace(self, low=low, high=high)


def below(high: float, neutral: float = 1.0, why: str = "") -> Rule:
    """Return the rule that an estimate is at most ``high``."""
    return Rule(high=high, neutral=neutral, why=why)


def above(low: float, neutral: float = 1.0, why: str = "") -> Rule:
    """Return the rule that an estimate is at least ``low``."""
    return Rule(low=low, neutral=neutral, why=why)


def about_equal(factor: float, why: str = "") -> Rule:
    """Return the rule that every ratio differs from one by at most ``factor``: their mean would hide opposite ones."""
    return Rule(1 / factor, factor, why=why, each=True)
