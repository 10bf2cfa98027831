"""Looped modules of others under the protocol of models: their loops made visible from outside, their text generated.

Nothing of a wrapped module is rewritten. Where its parts stand is declared, for known architectures in one table each.
"""
