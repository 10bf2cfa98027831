"""The loop as a dynamical system: z_{t+1} = F(z_t).

Everything here works on any map of the protocol in ``maps``, but for ``spectrum.position_spectra`` and
``spectrum.diagonal_blocks``: they need a ``LoopMap``, the loop of a model, whose attention is causal, and refuse any
other map in one line.
"""
