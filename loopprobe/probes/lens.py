"""The answer in the residual stream, read after every loop, layer and sublayer.

Three lenses read it. With the final norm, the lens is the model's read-out (the logit lens: nostalgebraist 2020;
Belrose et al., arXiv 2303.08112, section 2). Without the norm, the read-out is applied to the residual stream as it is.
The tuned lens is an affine map for each site and point, fitted on other prompts to the model's final answer (the tuned
lens of the same paper, whose map here ends in the one number that is read).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import xarray as xr
from einops import einsum
from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from loopprobe.config.strict import configuration
from loopprobe.model.hook_points import LoopHookPoint
from loopprobe.model.protocol import LoopedModel
from loopprobe.probes.dataset import stamp, with_ends
from loopprobe.probes.declaration import Probe, Shown
from loopprobe.probes.loops import training_prompts
from loopprobe.probes.ridge import Ridge, with_one
from loopprobe.store.evaluate import chunk_size
from loopprobe.store.subject import Subject
from loopprobe.support.statistics import at_least_single, bootstrap_mean, double, to_numpy
from loopprobe.tasks import PromptBatch
from loopprobe.types import Progress

LENSES = ("final norm", "no norm", "tuned")
Sites = Float[Tensor, "site batch point d_model"]


@configuration
class LensConfig:
    """The length of the loop, and how the tuned lens is fitted.

    Attributes:
        loops: iterations; the answer after the last is the final answer. None: as many as trained.
        train_prompts: the number of further prompts that the tuned lens is fitted on, drawn from another seed.
        ridge: the penalty of the fit, relative to the mean variance of the residual stream.
    """

    loops: PositiveInt | None = None
    train_prompts: PositiveInt = 1024
    ridge: PositiveFloat = 1e-4


def run(
    subject: Subject,
    prompts: PromptBatch,
    config: LensConfig,
    progress: Progress = lambda steps: steps,
    *,
    training: PromptBatch | None = None,
) -> xr.Dataset:
    """Read the residual stream where answers stand, at every site of every loop.

    Args:
        subject, prompts, config: the model, the prompts, and the options.
        progress: wraps the batches.
        training: prompts that the tuned lens is fitted on, all of them; None: ``train_prompts`` more of the model's
            task, which the prompts must be of.

    Returns:
        A dataset with dims ``lens`` (final norm, no norm, tuned), ``loop`` (iterations done, from 1), ``site`` (input
        of the block, then after the attention and after the MLP of each layer) and ``point``, in the
        unit of the prompts, means over prompts:

        * ``error``: of the answer that is read; ``to_final``: its distance to the model's final answer, of the tuned
          lens on prompts that it was not fitted on; ``to_optimum``: to the attainable optimum,
          ``attrs["optimum"]``, missing where the prompts do not say which task they are from
        * ``query_error``, ``query_to_final``, ``query_to_optimum`` without ``point``, with ``_low`` and ``_high``:
          at the query, with 95 % bootstrap intervals

        Where answers are tokens, also ``accuracy`` (the share of right answers that are read) and ``rank`` (of the
        model's final answer in what is read, from 0), with the dims of ``error``.

        ``attrs["fitted_on"]`` says on which prompts the tuned lens is fitted.

    Raises:
        LoopprobeError: further prompts are neither given nor known how to draw, or prompts do not fit the model.
    """
    check(subject, config, prompts)
    model = subject.model
    device = subject.device
    prompts = prompts.to(device)
    n_loops = config.loops or subject.loops_of(prompts)
    seed = prompts.origin.get("held_out_seed", 0) + 1
    training, fitted_on = training_prompts(subject, prompts, config.train_prompts, seed, training)
    size = chunk_size(device)
    steps = [(part, batch) for part in (training, prompts) for batch in part.split(size)]
    fits = [Ridge(config.ridge) for _ in range(n_loops)]
    maps: Float[Tensor, "loop site point affine value"] | None = None
    distances: list[np.ndarray] = []  # [measure, lens, loop, site, batch, point] a chunk
    name, best = subject.optimum(prompts)
    targets = iter(best.split(size))
    with torch.no_grad():
        for part, batch in progress(steps):
            final = at_least_single(model(*batch.inputs, n_loops=n_loops, keep_loops=1, read_at=batch.read_at)[0])
            if part is training:
                _at_sites(model, batch, n_loops, partial(_fit, fits, final))
                continue
            maps = _maps(fits) if maps is None else maps
            read = _read(model, batch, n_loops, maps)
            optimal = next(targets).to(read)
            measures = [batch.errors(read), batch.distance(read, final), batch.distance(read, optimal)]
            if (right := batch.correct(read)) is not None and (rank := batch.ranks(read, final)) is not None:
                measures += [right.to(read), rank]
            distances.append(np.stack([to_numpy(values) for values in measures]))
    every = np.concatenate(distances, axis=4)
    dims = ("lens", "loop", "site")
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for measure, values in zip(("error", "to_final", "to_optimum"), every[:3], strict=True):
        variables[measure] = ((*dims, "point"), values.mean(axis=3))
        variables |= with_ends(f"query_{measure}", dims, bootstrap_mean(values[..., -1]))
    for measure, values in zip(("accuracy", "rank"), every[3:], strict=False):
        variables[measure] = ((*dims, "point"), values.mean(axis=3))
    sublayers = [f"{layer} {what}" for layer in range(model.sizes.n_layers) for what in ("attention", "MLP")]
    data = xr.Dataset(
        variables,
        coords={
            "lens": list(LENSES),
            "loop": np.arange(1, n_loops + 1),
            "site": ["input", *sublayers],
            "point": np.arange(every.shape[-1]),
            "model": subject.label,
        },
        attrs={"optimum": name} | {"train_prompts_seed": seed, "fitted_on": fitted_on},
    )
    for variable in data:
        data[variable].attrs["units"] = prompts.unit
    return stamp(data, "lens", subject, prompts, config)


def check(subject: Subject, config: LensConfig, prompts: PromptBatch) -> None:
    """Accept all prompts: further ones to fit on are asked for when the probe runs."""


def layer_readings(model: LoopedModel, training: PromptBatch, ridge: float = 1e-4) -> Callable[[PromptBatch], Tensor]:
    """Make a function from prompts to predictions [layer, batch, point], read after every layer of the only loop.

    Each layer has its own affine map, fitted on ``training`` to the model's answer (the tuned lens).
    """
    fits = [Ridge(ridge)]
    with torch.no_grad():
        for batch in training.split(chunk_size(model.device)):
            _at_sites(model, batch, 1, partial(_fit, fits, model(*batch.inputs, n_loops=1, read_at=batch.read_at)[0]))
    maps = _maps(fits)[0, 2::2, ..., 0]

    def read(batch: PromptBatch) -> Tensor:
        streams: list[Tensor] = []
        _at_sites(model, batch, 1, lambda loop, sites: streams.append(sites[2::2]))
        return einsum(with_one(streams[0]), maps, "layer batch point d, layer point d -> layer batch point")

    return read


def _fit(fits: list[Ridge], outputs: Float[Tensor, "batch point ..."], loop: int, sites: Sites) -> None:
    fits[loop].add(sites, {"answer": double(outputs).reshape(1, *outputs.shape[:2], -1)})


def _maps(fits: list[Ridge]) -> Float[Tensor, "loop site point affine value"]:
    return torch.stack([fit.solve()["answer"] for fit in fits])


def _at_sites(model: LoopedModel, batch: PromptBatch, n_loops: int, use: Callable[[int, Sites], None]) -> None:
    """Call ``use`` with the residual stream at all tokens that are read, loop by loop."""
    sites: list[Tensor] = []

    def note(x: Tensor, hook: LoopHookPoint) -> None:
        sites.append(x[:, batch.read_at])
        if len(sites) == 2 * model.sizes.n_layers + 1:
            use(hook.loop(), torch.stack(sites))
            sites.clear()

    names = ["blocks.0.hook_resid_pre"]
    names += [f"blocks.{i}.hook_resid_{part}" for i in range(model.sizes.n_layers) for part in ("mid", "post")]
    with model.hooks(fwd_hooks=[(name, note) for name in names]):
        model(*batch.inputs, n_loops=n_loops, keep_loops=1)


def _read(
    model: LoopedModel, batch: PromptBatch, n_loops: int, maps: Tensor
) -> Float[Tensor, "lens loop site batch point ..."]:
    read: list[Tensor] = []

    def use(loop: int, sites: Sites) -> None:
        plain = [at_least_single(model.unembed(x)) for x in (model.to_state(sites), sites)]
        tuned = einsum(with_one(sites), maps[loop], "site batch point d, site point d v -> site batch point v")
        read.append(torch.stack([*plain, tuned.reshape(plain[0].shape).to(plain[0])]))

    _at_sites(model, batch, n_loops, use)
    return torch.stack(read, dim=1)


PROBE = Probe(
    "lens",
    LensConfig,
    run,
    check,
    Shown("lens:lens_figures", "inside:lens_table"),
    needs=frozenset({"linear_readout"}),
    given=("training",),
)
