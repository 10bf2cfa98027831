"""One file a probe: ``run(checkpoint, prompts, config)`` returns an xarray dataset; no printing, no plots."""
