"""Error against the number of in-context examples, beside the attainable optimum."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
import xarray as xr
from pydantic import PositiveInt
from torch import Tensor

from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import error_summary, stamp, with_ends
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.reference.baselines import BASELINES, check_baselines
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.store.evaluate import over_batches
from loopprobe.support.statistics import at_least_single, share_interval, to_numpy
from loopprobe.tasks import Prompts
from loopprobe.types import Progress

Variables = dict[str, tuple[tuple[str, ...], np.ndarray]]


@configuration
class CompareConfig:
    """The length of the loop, and what it is compared with.

    Attributes:
        loops: iterations; None: as many as each model was trained with.
        baselines: names, of ``loopprobe.reference.baselines.BASELINES``; or ``all``: those that fit the task.
        baseline_prompts: prompts for those baselines that are fitted prefix by prefix.
    """

    loops: PositiveInt | None = None
    baselines: tuple[str, ...] = ()
    baseline_prompts: PositiveInt = 128


def run(
    checkpoint: Checkpoint, prompts: Prompts, config: CompareConfig, progress: Progress = lambda steps: steps
) -> xr.Dataset:
    """Squared error at every point of every prompt.

    Returns:
        A dataset with dims ``example`` (the prompt), ``point`` (in-context examples before it):

        * ``error [example, point]``: the error at every point
        * ``median``, ``failures [point]``, each with ``_low`` and ``_high``, and ``mean``: its summary
        * ``optimum [example, point]``, ``optimum_median`` …: the error of the best predictor that knows the task, in
          the precision of the model, named in ``attrs["optimum"]``; missing where the prompts do not say which task
          they are from
        * where labels are signs ``right [example, point]``: whether the sign is right, and ``accuracy``,
          ``accuracy_low``, ``accuracy_high [point]``: the share of right ones
        * for every baseline ``baseline_median [baseline, point]`` …, ``baseline_accuracy`` …, and the number of
          prompts that it was run on, ``baseline_prompts [baseline]``

    Raises:
        LoopprobeError: there is no such baseline, or the prompts do not fit the model.
    """
    check(checkpoint, config, prompts)
    model = checkpoint.model
    prompts = prompts.to(checkpoint.device)
    answers_of = lambda batch: model(*batch, config.loops, keep_loops=1)[0]  # noqa: E731
    predictions = torch.cat(list(progress(over_batches(model, prompts, answers_of))))
    signs = prompts.origin.get("labels") == "sign"
    name, best = checkpoint.optimum(prompts)
    precision = to_numpy(predictions).dtype
    variables: Variables = {}
    for prefix, answers in (("", predictions), ("optimum_", best)):
        errors = to_numpy(prompts.errors(answers)).astype(precision, copy=False)
        variables[prefix.rstrip("_") or "error"] = (("example", "point"), errors)
        variables |= _by_point(prefix, prompts, answers, signs)
    if signs:
        variables["right"] = (("example", "point"), _right(prompts, predictions))
    coords: dict[str, Any] = {"point": np.arange(predictions.shape[1]), "model": checkpoint.label}
    if baselines := _chosen(checkpoint, config, prompts):
        parts = [_baseline(one, prompts, config, signs, progress) for one in baselines]
        for key, (dims, _) in parts[0].items():
            variables[key] = (("baseline", *dims), np.stack([part[key][1] for part in parts]))
        coords["baseline"] = [BASELINES[one].words for one in baselines]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    data = xr.Dataset(
        variables,
        coords=coords,
        attrs={
            "loops": config.loops or model.cfg.n_loops,
            "optimum": name,
            "parameters": parameters,
        },
    )
    for variable in data:
        data[variable].attrs["units"] = "share" if "accuracy" in str(variable) else prompts.unit
    return stamp(data, "compare", checkpoint, prompts, config)


def check(checkpoint: Checkpoint, config: CompareConfig, prompts: Prompts) -> None:
    """Raise LoopprobeError where there is no such baseline, it does not fit the task, or it lacks a package."""
    check_baselines(_chosen(checkpoint, config, prompts))


def _chosen(checkpoint: Checkpoint, config: CompareConfig, prompts: Prompts) -> tuple[str, ...]:
    """The names of the baselines that are asked for.

    Raises:
        LoopprobeError: one does not fit the task that the prompts are of.
    """
    task = checkpoint.config.task
    fitting = task.rules.baselines if checkpoint.is_of_task(prompts) else None
    if config.baselines == ("all",):
        return tuple(BASELINES) if fitting is None else fitting
    if fitting is not None and (other := [name for name in config.baselines if name not in fitting]):
        raise LoopprobeError(
            f"baseline {other[0]!r} does not fit task {task.name}, which names those that do: choose from "
            f"{', '.join(fitting) or 'none'}"
        )
    return config.baselines


def _by_point(prefix: str, prompts: Prompts, answers: Tensor, signs: bool) -> Variables:
    """Errors at every point, summarised, and accuracy where labels are signs."""
    errors = to_numpy(prompts.errors(answers))
    variables: Variables = error_summary(("point",), errors.T, prompts.failure_level, prefix)
    if signs:
        variables |= with_ends(f"{prefix}accuracy", ("point",), share_interval(_right(prompts, answers).T))
    return variables


def _right(prompts: Prompts, answers: Tensor) -> np.ndarray:
    return to_numpy((answers > 0).cpu() == (prompts.ys > 0).cpu())


MOST_ANSWERS = 16  # answers of baselines that are remembered: those of every baseline on two sets of prompts
_ANSWERS: OrderedDict[tuple[str, str], Tensor] = OrderedDict()  # models of one task share them; the oldest goes first


def _baseline(name: str, prompts: Prompts, config: CompareConfig, signs: bool, progress: Progress) -> Variables:
    baseline = BASELINES[name]
    asked = prompts[: config.baseline_prompts] if baseline.slow else prompts
    content = b"".join(to_numpy(part).tobytes() for part in asked)
    key = name, hashlib.sha256(content + repr(asked.xs.shape).encode()).hexdigest()
    answers = _ANSWERS.pop(key) if key in _ANSWERS else baseline.predict(asked, progress).cpu()
    _ANSWERS[key] = answers
    answers = answers.to(at_least_single(asked.ys).dtype)
    while len(_ANSWERS) > MOST_ANSWERS:
        _ANSWERS.popitem(last=False)
    of_baseline = _by_point("baseline_", asked, answers, signs)
    return of_baseline | {"baseline_prompts": ((), np.array(len(asked.ys)))}


PROBE = Probe(
    "compare",
    CompareConfig,
    run,
    check,
    Shown(
        compare_figure="compare:compare_figure",
        compare_table="study:compare_table",
        further_figures="compare:accuracy_figures",
        panels=True,
        compared=True,
        quantities=(Quantity("median", "error", along=("point",), log=True),),
    ),
    of_points=True,
)
