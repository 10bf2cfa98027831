"""Models on disk: checkpoints, the weight layouts of other libraries, and the recorded error on held-out prompts.

Weights are trained in ``training`` and examined in ``probes``.
"""
