"""How far methods agree on which parts of a model matter: rank correlations with intervals."""

from __future__ import annotations

import numpy as np
import xarray as xr
from jaxtyping import Float
from numpy import ndarray

from loopprobe.probes.dataset import with_ends
from loopprobe.support.statistics import ranks

RESAMPLES = 400
ENDS = (0.025, 0.975)


def agreement(moved: xr.DataArray) -> xr.Dataset:
    """Compare ways by how they rank places.

    Args:
        moved: the change of the answer, or what stands for it, with the dimensions ``way``, ``example`` and others,
            which together are the places. Places that some way does not know (NaN) are left out for all.

    Returns:
        A dataset with ``importance [way, …]``, the median over prompts of the size of the change, and
        ``rank_correlation [way, other]`` with ``_low`` and ``_high``: Spearman's correlation of two ways over all
        places, with a 95 % percentile interval from a bootstrap over prompts, all ways with the same draws. It is
        NaN where a way has the same importance everywhere, and the ends are NaN for a single prompt.
    """
    places = [dim for dim in moved.dims if dim not in ("way", "example")]
    sizes = abs(moved.transpose("way", *places, "example"))
    flat = sizes.values.reshape(sizes.shape[0], -1, sizes.shape[-1])
    flat = flat[:, ~np.isnan(flat).any((0, 2))]
    estimate = _correlations(np.median(flat, -1))
    low = high = np.full_like(estimate, np.nan)
    n = flat.shape[-1]
    if n > 1 and flat.shape[1]:
        rng = np.random.default_rng(0)
        drawn = np.stack([_correlations(np.median(flat[..., rng.integers(n, size=n)], -1)) for _ in range(RESAMPLES)])
        low, high = np.quantile(drawn, ENDS, axis=0)
    data = xr.Dataset(with_ends("rank_correlation", ("way", "other"), (estimate, low, high)))
    data["importance"] = sizes.median("example")
    return data.assign_coords(way=moved.way.values, other=moved.way.values)


def _correlations(importance: Float[ndarray, "way place"]) -> Float[ndarray, "way way"]:
    """Spearman's correlation of every two ways; NaN where one does not vary."""
    ranked = ranks(importance)
    centred = ranked - ranked.mean(-1, keepdims=True)
    norms = np.sqrt((centred**2).sum(-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((centred @ centred.T) / norms / norms[:, None])
