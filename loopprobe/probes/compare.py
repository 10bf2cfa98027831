"""Error against the number of in-context examples, beside the attainable optimum."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from loopprobe.baselines.optimal import optimum
from loopprobe.checkpoint import Checkpoint
from loopprobe.evaluate import chunk_size
from loopprobe.probes.loops import LoopsConfig
from loopprobe.results import Progress, stamp
from loopprobe.statistics import bootstrap_mean
from loopprobe.tasks import Prompts


def run(
    checkpoint: Checkpoint, prompts: Prompts, config: LoopsConfig, progress: Progress = lambda steps: steps
) -> xr.Dataset:
    """Squared error at every point of every prompt.

    Returns:
        A dataset with dims ``example`` (the prompt), ``point`` (in-context examples before it):

        * ``error [example, point]``: squared error / E[y²]
        * ``mean``, ``low``, ``high [point]``: its mean with a 95 % bootstrap interval
        * ``optimum [example, point]``, ``optimum_mean`` …: the error of the best predictor that knows the task,
          named in ``attrs["optimum"]``
    """
    model = checkpoint.model
    prompts = prompts.to(checkpoint.device)
    with torch.no_grad():
        chunks = [
            batch.errors(model(*batch, config.loops, keep_loops=1)[0])
            for batch in progress(prompts.split(chunk_size(prompts.xs.device)))
        ]
    errors = torch.cat(chunks).cpu().numpy()
    name, best = optimum(prompts, checkpoint.config.task)
    best_errors = prompts.errors(best).cpu().numpy()
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {
        "error": (("example", "point"), errors),
        "optimum": (("example", "point"), best_errors),
    }
    for prefix, values in (("", errors), ("optimum_", best_errors)):
        for part, value in zip(("mean", "low", "high"), bootstrap_mean(values.T), strict=True):
            variables[prefix + part] = (("point",), value)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    data = xr.Dataset(
        variables,
        coords={"point": np.arange(errors.shape[1]), "model": checkpoint.label},
        attrs={
            "loops": config.loops or model.cfg.n_loops,
            "trained_loops": model.cfg.n_loops,
            "optimum": name,
            "parameters": parameters,
        },
    )
    for variable in data:
        data[variable].attrs["units"] = "squared error / E[y²]"
    return stamp(data, "compare", checkpoint, prompts, config)


def check(checkpoint: Checkpoint, config: LoopsConfig) -> None:
    """Every checkpoint can be compared."""
