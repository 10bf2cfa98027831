"""Training: one update of the weights, runs from start to end, stacks of models, CUDA graphs, and sweeps.

Training draws prompts and writes checkpoints; it runs no probe.
"""
