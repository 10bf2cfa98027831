"""The option that probes of one loop count share."""

from __future__ import annotations

from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass


@dataclass(config=ConfigDict(extra="forbid", frozen=True), kw_only=True)
class LoopsConfig:
    """How far the loop runs.

    Attributes:
        loops: iterations; None: as many as each model was trained with.
    """

    loops: PositiveInt | None = None
