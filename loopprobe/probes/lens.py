"""The answer in the residual stream, read after every loop, layer and sublayer.

Three lenses read it. With the final norm, the lens is the model's read-out (the logit lens: nostalgebraist 2020;
Belrose et al., arXiv 2303.08112, section 2). Without the norm, the read-out is applied to the residual stream as it is.
The tuned lens is an affine map for each site and point, fitted on other prompts to the model's final answer (the tuned
lens of the same paper, whose map here ends in the one number that is read). A model whose answers are read by layers
of their own has one lens instead, this coda, put to the residual stream of every site (arXiv 2507.02199).
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
from loopprobe.model.protocol import LoopedModel
from loopprobe.probes.dataset import stamp, with_ends
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.probes.lens_reading import (
    CODA,
    SHOWN,
    Reading,
    Sites,
    at_sites,
    lenses_of,
    n_sites,
    read_sites,
    settling,
    sublayers,
)
from loopprobe.probes.loops import training_prompts
from loopprobe.probes.ridge import Ridge, with_one
from loopprobe.store.evaluate import batches, chunk_size
from loopprobe.store.subject import Subject
from loopprobe.support.statistics import at_least_single, double, median_interval, to_numpy
from loopprobe.tasks import PromptBatch, TextPrompts
from loopprobe.types import Progress


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
        A dataset with dims ``lens`` (final norm, no norm, tuned, the last only of answers with at most 4,096 values and
        not of single texts; or coda alone), ``loop`` (iterations done, from 1), ``site`` (input of the block, then
        after the attention, where that is a hook point, and after the MLP of each layer) and ``point``, in the unit of
        the prompts, means over prompts:

        * ``error``: of the answer that is read; ``to_final``: its distance to the model's final answer, of the tuned
          lens on prompts that it was not fitted on; ``to_optimum``: to the attainable optimum,
          ``attrs["optimum"]``, missing where the prompts do not say which task they are from
        * ``query_error``, ``query_to_final``, ``query_to_optimum`` without ``point``, with ``_low`` and ``_high``:
          medians at the query, with 95 % intervals

        Where answers are tokens, also ``accuracy`` (the share of right answers that are read) and ``rank`` (of the
        model's final answer in what is read, from 0), with the dims of ``error``; and with the first lens

        * ``settled``, ``revisions [example]``, of the state: the loops until the best answer at the query is the final
          one for good, and how often it changes
        * ``top_answer``, ``top_probability [loop, site, shown, answer, top]``: the best answers in words and their
          probabilities, of the first prompts

        ``attrs["fitted_on"]`` says on which prompts the tuned lens is fitted.

    Raises:
        LoopprobeError: further prompts are neither given nor known how to draw, or prompts do not fit the model.
    """
    check(subject, config, prompts)
    model = subject.model
    device = subject.device
    prompts = prompts.to(device)
    n_loops = config.loops or subject.loops_of(prompts)
    lenses = lenses_of(model)
    if isinstance(prompts, TextPrompts) and training is None and not subject.is_of_task(prompts):
        lenses = tuple(name for name in lenses if name != "tuned")  # single texts are no sample to fit on
    seed = prompts.origin.get("held_out_seed", 0) + 1
    at_once = n_loops * n_sites(model) if lenses == CODA else 1
    fits = [Ridge(config.ridge) for _ in range(n_loops)]
    steps = [(prompts, batch) for batch in batches(model, prompts, at_once, states=lenses == CODA)]
    fitted_on = "nothing"
    if "tuned" in lenses:
        training, fitted_on = training_prompts(subject, prompts, config.train_prompts, seed, training)
        steps = [(training, batch) for batch in batches(model, training)] + steps
    maps: Float[Tensor, "loop site point affine value"] | None = None
    measured: list[np.ndarray] = []  # [measure, lens, loop, site, batch, point] a chunk
    answers: list[Tensor] = []  # [loop, batch]
    name, best = subject.optimum(prompts)
    done, shown = 0, None
    with torch.no_grad():
        for part, batch in progress(steps):
            final = at_least_single(model(*batch.inputs, n_loops=n_loops, keep_loops=1, read_at=batch.read_at)[0])
            if part is not prompts:
                at_sites(model, batch, n_loops, partial(_fit, fits, final))
                continue
            maps = _maps(fits) if maps is None and "tuned" in lenses else maps
            reading = Reading(batch, final, best[done : done + batch.n_prompts].to(final), SHOWN if not done else 0)
            read_sites(model, batch, n_loops, maps, reading)
            measured.append(np.stack([to_numpy(torch.stack(one, 1)) for one in zip(*reading.measures, strict=True)]))
            answers += [torch.stack(reading.answers)] if reading.answers else []
            shown = reading if not done else shown
            done += batch.n_prompts
    every = np.concatenate(measured, axis=4)
    dims = ("lens", "loop", "site")
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for measure, values in zip(("error", "to_final", "to_optimum"), every[:3], strict=True):
        variables[measure] = ((*dims, "point"), values.mean(axis=3))
        variables |= with_ends(f"query_{measure}", dims, median_interval(values[..., -1]))
    for measure, values in zip(("accuracy", "rank"), every[3:], strict=False):
        variables[measure] = ((*dims, "point"), values.mean(axis=3))
    if "rank" in variables:
        assert shown is not None, "there is a prompt"
        variables |= settling(torch.cat(answers, 1)) | shown.words()
    data = xr.Dataset(
        variables,
        coords={
            "lens": list(lenses),
            "loop": np.arange(1, n_loops + 1),
            "site": ["input", *(words for words, _ in sublayers(model))],
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
            at_sites(model, batch, 1, partial(_fit, fits, model(*batch.inputs, n_loops=1, read_at=batch.read_at)[0]))
    maps = _maps(fits)[0, 2::2, ..., 0]

    def read(batch: PromptBatch) -> Tensor:
        streams: list[Tensor] = []
        at_sites(model, batch, 1, lambda loop, sites: streams.append(sites[2::2]))
        return einsum(with_one(streams[0]), maps, "layer batch point d, layer point d -> layer batch point")

    return read


def _fit(fits: list[Ridge], outputs: Float[Tensor, "batch point ..."], loop: int, sites: Sites) -> None:
    fits[loop].add(sites, {"answer": double(outputs).reshape(1, *outputs.shape[:2], -1)})


def _maps(fits: list[Ridge]) -> Float[Tensor, "loop site point affine value"]:
    return torch.stack([fit.solve()["answer"] for fit in fits])


PROBE = Probe(
    "lens",
    LensConfig,
    run,
    check,
    Shown(
        "lens:lens_figures",
        "inside:lens_table",
        quantities=(Quantity("query_error", along=("loop", "site"), first=("lens",), log=True),),
    ),
    needs=frozenset({"map"}),
    given=("training",),
)
