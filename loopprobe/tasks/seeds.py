"""Streams of random numbers that no training draws from: a training seeds its generator below all of these."""

from __future__ import annotations

import torch

from loopprobe.errors import LoopprobeError

HELD_OUT = 2**31  # added to the seed of held-out prompts
SHIFTED = 2**32  # … of what a shift draws besides
CORRUPTED = 2**33  # … of corruptions
SCALE = 2**34  # the seed of prompts that E(y²) is measured on


def held_out_generator(n_prompts: int, seed: int) -> torch.Generator:
    """Return the generator of held-out prompts of a seed.

    Raises:
        LoopprobeError: there are no prompts, or the seed is out of range.
    """
    if n_prompts < 1:
        raise LoopprobeError(f"the number of prompts ({n_prompts}) must be at least 1: raise it")
    if not 0 <= seed < HELD_OUT:
        raise LoopprobeError(f"seed ({seed}) must be at least 0 and below 2**31: choose another")
    return torch.Generator().manual_seed(HELD_OUT + seed)
