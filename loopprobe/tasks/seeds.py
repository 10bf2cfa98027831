"""Streams of random numbers that no training draws from: a training seeds its generator below all of these."""

HELD_OUT = 2**31  # added to the seed of held-out prompts
SHIFTED = 2**32  # … of what a shift draws besides
CORRUPTED = 2**33  # … of corruptions
