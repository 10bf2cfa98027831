"""Activation patching between a clean and a corrupted run: the loops, sites and tokens that carry the difference.

One activation of the corrupted run, at one (loop, site, layer, head, position), is replaced by that of the clean run,
and the prediction at the query moves from the corrupted towards the clean one (Meng et al., arXiv 2202.05262; Wang
et al., arXiv 2211.00593; here in one loop at a time). Attribution patching (Nanda 2023; Syed et al., arXiv
2310.10348) estimates all of these moves from one gradient: (clean − corrupted) · gradient at the corrupted run.

Attention is causal, so that a patch at a token leaves the tokens before it as they were: they are not computed again,
only their keys and values of the corrupted run are used. Many patches are run at once, as copies of the batch.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Final, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from loopprobe.config.selection import Choice, resolve
from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.model.selection import require_activations
from loopprobe.probes.dataset import stamp, with_ends
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.probes.loops import chosen_tokens, last_token
from loopprobe.probes.measures import Function, Measure, find_measure
from loopprobe.probes.patch_runs import BY_HEAD as BY_HEAD
from loopprobe.probes.patch_runs import PatchedRuns, Site, is_answer
from loopprobe.store.subject import Subject
from loopprobe.support.statistics import bootstrap_ratio, correlation, double, to_numpy
from loopprobe.tasks import PromptBatch
from loopprobe.tasks.seeds import CORRUPTED
from loopprobe.types import Progress

GIVEN: Final = "given"  # the corruption where the user gives the corrupted prompts


@configuration
class PatchConfig:
    """The difference between the runs, and the places that are patched.

    Attributes:
        corruption: ``label`` (of one example), ``weights`` (another task), ``query`` (another input) or ``noise``; of
            tokens ``token`` or ``prompt``; ``given`` where the corrupted prompts are given to ``run``. None: the first
            that the prompts have.
        example: the example whose label is corrupted, or the token, from 0; None: the first example, or any token.
        noise_std: the standard deviation of the noise, in the units of y.
        sites: names of activations; ``z`` is the state after a loop, ``attn_z`` the output of a head.
        loops: iterations; None: as many as trained.
        in_loops: the loops in which something is patched, from 1, see ``config.selection``; None: all.
        positions: tokens to patch, see ``config.selection``; None: all up to the query's.
        exact: whether to run the patches; otherwise attribution patching estimates them.
        measure: what is measured of the answers, see ``probes.measures``; it must be differentiable.
    """

    corruption: Literal["label", "weights", "query", "noise", "token", "prompt", "given"] | None = None
    example: NonNegativeInt | None = None
    noise_std: NonNegativeFloat = 1.0
    sites: tuple[Site, ...] = ("z", "attn_z")
    loops: PositiveInt | None = None
    in_loops: Choice | None = None
    positions: Choice | None = None
    exact: bool = True
    measure: str = "answer"


def run(
    subject: Subject,
    prompts: PromptBatch,
    config: PatchConfig,
    progress: Progress = lambda steps: steps,
    *,
    corrupted: PromptBatch | None = None,
    measure: str | Function | Measure | None = None,
) -> xr.Dataset:
    """Patch every chosen place, and estimate every patch.

    Args:
        subject, prompts, config: the model, the clean prompts, and the options.
        progress: wraps the sites and loops.
        corrupted: the corrupted prompts, as many as the clean ones and of the same shape; None: the clean ones are
            corrupted as the options say.
        measure: what is measured, where it is no name, see ``probes.measures.find_measure``; of the patched runs it
            is told the clean prompts.

    Returns:
        A dataset with dims ``loop`` (those that are patched, from 1), ``layer`` and ``head`` where a site has them,
        ``position`` (token) and ``example``. For every site, under its name:

        * ``{site}``, ``{site}_low``, ``{site}_high``: the effect: Σ moved · total / Σ total² over the prompts, moved
          being the change of the prediction by the patch and total the clean minus the corrupted prediction, so
          that 0 is the corrupted and 1 the clean run; 95 % bootstrap intervals, missing for a single prompt
        * ``{site}_moved [..., example]``, in the units of y, or for tokens in those of logits
        * ``{site}_attribution``: the effect as attribution patching estimates it

        ``clean`` and ``corrupted [example]`` are the predictions; with a measure, all of these are its values.
        ``attrs`` hold for each site the ``correlation`` of effect and estimate over all places, missing where one of
        the two does not vary, the number of ``patches``, their ``seconds`` and those of one ``clean_pass``, and the
        ``corruption``.

    Raises:
        LoopprobeError: options, prompts, corrupted prompts or the measure do not fit.
    """
    recorded = config = config if corrupted is None else dataclasses.replace(config, corruption=GIVEN)
    if config.corruption is None:
        config = dataclasses.replace(config, corruption=prompts.corruptions[0])  # type: ignore[arg-type]  # checked next
    check(subject, config, prompts, measure=measure)
    model = subject.model
    prompts = prompts.to(subject.device)
    n_loops = config.loops or subject.loops_of(prompts)
    prompts, other = counterparts(subject, prompts, config, corrupted)
    chosen = find_measure(config.measure if measure is None else measure, prompts)
    kind, config = config.corruption, dataclasses.replace(recorded, measure=chosen.option)
    runs = PatchedRuns(model, prompts, other, n_loops, config.sites, last_token(subject, prompts), chosen)
    tokens = list(range(runs.last + 1))
    if config.positions is not None:
        tokens = chosen_tokens(config.positions, prompts, runs.last)
    chosen_loops = resolve(config.in_loops, n_loops, "loop", first=1)
    loops = list(range(n_loops)) if chosen_loops is None else sorted(chosen_loops)
    started, patches = time.perf_counter(), 0
    moved: dict[str, np.ndarray] = {}
    if config.exact:
        steps = [(site, loop) for site in config.sites for loop in loops]
        for site in config.sites:
            moved[site] = np.zeros((len(loops), *runs.places(site), len(tokens), prompts.n_prompts), np.float32)
        with torch.no_grad():
            for site, loop in progress(steps):
                for places, predictions in runs.patched(site, loop, tokens):
                    patches += len(places)
                    for (*where, token), prediction in zip(places, predictions, strict=True):
                        change = to_numpy(prediction - runs.corrupted)
                        moved[site][(loops.index(loop), *where, tokens.index(token))] = change
    seconds = time.perf_counter() - started
    facts = {"patches": patches, "seconds": seconds, "corruption": kind}
    return _dataset(subject, prompts, config, runs, loops, tokens, moved, facts)


def check(
    subject: Subject,
    config: PatchConfig,
    prompts: PromptBatch,
    *,
    measure: str | Function | Measure | None = None,
) -> None:
    """Raise LoopprobeError where the options do not fit the model or the prompts, before anything runs."""
    find_measure(config.measure if measure is None else measure, prompts)
    if not config.sites:
        raise LoopprobeError("sites must not be empty: name at least one")
    require_activations(subject.model, config.sites, "patch")
    if config.corruption != GIVEN:
        require_corruption(config.corruption, prompts)
    resolve(config.in_loops, config.loops or subject.loops_of(prompts), "loop", first=1)
    if config.positions is not None:
        chosen_tokens(config.positions, prompts, last_token(subject, prompts))
    if config.corruption != GIVEN:
        corrupted_prompts(subject, prompts[:1], config)


def require_corruption(kind: str | None, prompts: PromptBatch) -> None:
    """Raise LoopprobeError where prompts cannot be corrupted so; None stands for the usual way, if there is one."""
    if kind not in (None, *prompts.corruptions):
        kinds = " or ".join(prompts.corruptions) or "left out"
        raise LoopprobeError(f"corruption ({kind}) must be {kinds} for these prompts: choose one")


def counterparts(
    subject: Subject, prompts: PromptBatch, config: PatchConfig, corrupted: PromptBatch | None
) -> tuple[PromptBatch, PromptBatch]:
    """Return clean prompts, told from the corrupted ones, and these: those that are given, or as the options say.

    Raises:
        LoopprobeError: see ``corrupted_prompts`` and ``matched``.
    """
    other = corrupted_prompts(subject, prompts, config) if corrupted is None else matched(prompts, corrupted)
    return prompts.against(other), other


def with_corrupted(
    subject: Subject, prompts: PromptBatch, corruption: str | None, corrupted: PromptBatch | None
) -> tuple[PromptBatch, PromptBatch, str]:
    """Return clean and corrupted prompts as ``counterparts`` does, and what the corruption is called."""
    kind = GIVEN if corrupted is not None else corruption or prompts.corruptions[0]
    return *counterparts(subject, prompts, PatchConfig(corruption=kind), corrupted), kind  # type: ignore[arg-type]


def corrupted_prompts(subject: Subject, prompts: PromptBatch, config: PatchConfig) -> PromptBatch:
    """Corrupt the prompts as the options say.

    Raises:
        LoopprobeError: the corruption does not suit the prompts, or needs to know what they are.
    """
    if config.corruption == GIVEN:
        raise LoopprobeError(f"corruption {GIVEN!r} takes its prompts from run(…, corrupted=): give them")
    if (config.corruption or prompts.corruptions[0]) == "weights" and not subject.is_of_task(prompts):
        raise LoopprobeError(
            "corruption 'weights' gives the labels of another linear function, but these prompts do not say that they "
            "are of a linear task: give corrupted=, or choose label, query or noise"
        )
    generator = torch.Generator().manual_seed(CORRUPTED + prompts.origin.get("held_out_seed", 0))
    kind = config.corruption or prompts.corruptions[0]
    return prompts.corrupted(kind, generator, example=config.example, noise_std=config.noise_std)


def matched(prompts: PromptBatch, corrupted: PromptBatch) -> PromptBatch:
    """The corrupted prompts on the device of the clean ones.

    Raises:
        LoopprobeError: they have another shape.
    """
    if [part.shape for part in corrupted.inputs] != [part.shape for part in prompts.inputs]:
        sizes = [f"{batch.n_prompts} of {batch.extent}" for batch in (corrupted, prompts)]
        raise LoopprobeError(
            f"corrupted prompts are {sizes[0]} but the clean ones are {sizes[1]}: give as many, of the same shape"
        )
    return corrupted.to(prompts.inputs[0].device)


def _dataset(
    subject: Subject,
    prompts: PromptBatch,
    config: PatchConfig,
    runs: PatchedRuns,
    loops: list[int],
    tokens: list[int],
    moved: dict[str, np.ndarray],
    facts: dict[str, Any],
) -> xr.Dataset:
    total = to_numpy(double(runs.clean - runs.corrupted))
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {
        "clean": (("example",), to_numpy(runs.clean)),
        "corrupted": (("example",), to_numpy(runs.corrupted)),
    }
    correlations = {}
    for site in config.sites:
        dims = ("loop", *("layer", "head")[: len(runs.places(site))], "position")
        estimate = bootstrap_ratio(to_numpy(double(runs.estimated(site, tokens)))[loops] * total, total**2)[0]
        variables[f"{site}_attribution"] = (dims, estimate)
        if site in moved:
            variables |= with_ends(site, dims, bootstrap_ratio(moved[site] * total, total**2))
            variables[f"{site}_moved"] = ((*dims, "example"), moved[site])
            correlations[site] = correlation(variables[site][1], estimate)
    data = xr.Dataset(
        variables,
        coords={"loop": np.array(loops) + 1, "position": tokens, "model": subject.label},
        attrs={"query_token": prompts.query, "clean_pass": runs.clean_pass}
        | facts
        | {f"correlation_{site}": value for site, value in correlations.items()},
    )
    data = data.assign_coords({axis: np.arange(data.sizes[axis]) for axis in ("layer", "head") if axis in data.sizes})
    return stamp(data, "patch", subject, prompts, config, None if is_answer(runs.measure) else runs.measure.record)


PROBE = Probe(
    "patch",
    PatchConfig,
    run,
    check,
    Shown(
        "patch:patch_figures",
        "inside:patch_table",
        quantities=(
            Quantity(
                "{site}",
                "{site}_moved",
                "ratio",
                ("clean", "corrupted"),
                along=("position",),
                across="loop",
                unit="effect: 0 corrupted, 1 clean",
            ),
            Quantity(
                "{site}_attribution", along=("position",), across="loop", unit="estimated effect: 0 corrupted, 1 clean"
            ),
        ),
    ),
    given=("corrupted", "measure"),
    needs=frozenset({"map"}),
)
