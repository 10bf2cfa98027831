"""Looped modules of others as models of the protocol: their loops made visible from outside, and text generated.

Where the parts of a module stand is declared, for known architectures in one table each; no module is rewritten here.
"""
