"""Claims on what keeps the error at its minimum when the loop goes on, section R2: another recipe, or another window.

The study's models lose it where all loops carry the loss. Each kind of model here changes one thing.
"""

from __future__ import annotations

from collections.abc import Iterator

import xarray as xr

from loopprobe.config.schema import without_seed
from loopprobe.probes.dataset import read_stamp
from loopprobe.study.claims.evidence import (
    OURS,
    R2_RECIPES,
    Claim,
    Evidence,
    answers,
    failed,
    far,
    own_difference,
    own_ratio,
)
from loopprobe.study.claims.thresholds import NO_MORE, STAYS
from loopprobe.study.estimates import Estimate

PLAIN = "lr-b5-T5"  # what every recipe is a change of; other claims of R2 are about it


def _kept(evidence: Evidence, beyond_window: bool) -> Iterator[Estimate]:
    """Estimate how the error grows, of kinds of models whose loops go beyond their window, or of those whose do not."""
    by_recipe: dict[str, list[xr.Dataset]] = {}
    for data in answers(evidence, R2_RECIPES):
        by_recipe.setdefault(without_seed(str(data.model.item())), []).append(data)
    for recipe, seeds in by_recipe.items():
        config = read_stamp(seeds[0]).config
        loops, last = config["model"]["n_loops"], int(seeds[0].loop[-1])
        if recipe != PLAIN and (loops > config["train"]["loop_window"]) == beyond_window:
            at_end, at_b = far(seeds), far(seeds, loops)
            yield own_ratio(f"{recipe}: error after {last} loops over that after {loops}", at_end, at_b, STAYS)
            what = f"{recipe}: share of failures after {last} loops minus that after {loops}"
            yield own_difference(what, failed(at_end), failed(at_b), NO_MORE)


def r2_by_recipe(evidence: Evidence) -> Iterator[Estimate]:
    yield from _kept(evidence, beyond_window=False)


def r2_by_window(evidence: Evidence) -> Iterator[Estimate]:
    yield from _kept(evidence, beyond_window=True)


CLAIMS: tuple[Claim, ...] = (
    Claim("R2", "for T = b = 5 another recipe keeps the error at its minimum", r2_by_recipe, OURS),
    Claim("R2", "for T = 5 loops beyond the window keep the error at its minimum", r2_by_window, OURS),
)
