"""The loop as a dynamical system: z_{t+1} = F(z_t). Everything here works on any map of the protocol in ``maps``."""
