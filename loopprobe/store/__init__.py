"""Models on disk: our checkpoints, layouts of other libraries, and the error on held-out prompts that is recorded.

How weights come about is told in ``training``, what they do in ``probes``.
"""
