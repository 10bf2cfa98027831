"""Training: one update of the weights, a run from start to end, stacks of models, CUDA graphs, and sweeps.

It draws prompts and writes checkpoints; it runs no probe.
"""
