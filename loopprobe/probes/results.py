"""Decoding of what a solver of a token task would hold: which result stands at which token, after which loop.

A linear classifier (least squares to one-hot targets) reads every result at every place, on other prompts than it was
fitted on. Its controls are the results of other prompts (Hewitt and Liang, arXiv 1909.03368), and the same classifiers
on a model of the same configuration that was never trained: what they read is in the tokens, not computed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from loopprobe.model.looped import LoopedTransformer
from loopprobe.probes.ridge import Ridge, States, states_after_layers, with_one
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.store.evaluate import chunk_size
from loopprobe.support.statistics import to_numpy
from loopprobe.tasks import TokenPrompts
from loopprobe.types import Progress

CONTROLS = ("none", "shuffled", "untrained")


def results_dataset(
    checkpoint: Checkpoint, fitting: TokenPrompts, prompts: TokenPrompts, n_loops: int, ridge: float, progress: Progress
) -> xr.Dataset:
    """Read every result that the task names, after every layer of every loop.

    Args:
        checkpoint: the model.
        fitting, prompts: those that classifiers are fitted on and those that they are scored on.
        n_loops: iterations.
        ridge: the penalty, relative to the mean variance of the states.
        progress: wraps the batches.

    Returns:
        A dataset with dims ``control`` (none, shuffled, untrained), ``target``, ``loop`` (from 1), ``layer`` and
        ``position``: ``accuracy``, the share of prompts whose result is read there, among those that have one; missing
        where fewer than a tenth have. ``right``, with ``example`` besides, is 1 where it is read, 0 where another is,
        and -1 where there is none. ``chance [target, position]`` is the share of the most frequent result.
    """
    held, fitted = _held(prompts), _held(fitting)
    targets = {name: held[name] for name in _names(held)}
    classes = {name: int(max(values.max(), fitted[name].max())) + 1 for name, values in targets.items()}
    untrained = LoopedTransformer(checkpoint.model.cfg, torch.Generator().manual_seed(0)).to(checkpoint.device)
    models = {"none": checkpoint.model, "untrained": untrained.eval()}
    fits = {name: Ridge(ridge) for name in models}
    size = chunk_size(checkpoint.device)
    parts = [
        *_batches(fitting, {name: fitted[name] for name in targets}, size, True),
        *_batches(prompts, targets, size, False),
    ]
    maps: dict[str, dict[Any, Tensor]] = {}
    right: dict[tuple[str, str], list[Tensor]] = {}  # [place, prompt, token] a batch
    for batch, known, is_fitted in progress(parts):
        states = {name: states_after_layers(model, batch, n_loops) for name, model in models.items()}
        if is_fitted:
            _add(fits, states, known, classes)
            continue
        maps = maps or {name: fit.solve() for name, fit in fits.items()}
        for name, values in known.items():
            for control, read in _read(maps, states, name):
                hits = torch.where(values >= 0, (read == values).to(torch.int8), -1)
                right.setdefault((control, name), []).append(hits.cpu())
    whole = {key: torch.cat(parts, dim=1) for key, parts in right.items()}
    return _dataset(checkpoint, targets, whole, n_loops)


def _answers(prompts: TokenPrompts) -> Int[Tensor, "batch pos"]:
    """The right answers at the tokens where they stand, -1 before."""
    return F.pad(prompts.answers, (prompts.n_tokens - prompts.n_answers, 0), value=-1)


def _held(prompts: TokenPrompts) -> dict[str, Int[Tensor, "batch pos"]]:
    """Everything that is asked for, by name: the results, and the answers."""
    return prompts.results() | {"answer": _answers(prompts)}


def _names(held: dict[str, Int[Tensor, "batch pos"]]) -> list[str]:
    """The names to read: that of the answers only where no result is the same at their tokens."""
    results, there = [name for name in held if name != "answer"], held["answer"] >= 0
    known = any(torch.equal(held[name][there], held["answer"][there]) for name in results)
    return results if known else list(held)


def _batches(
    prompts: TokenPrompts, targets: dict[str, Tensor], size: int, is_fitted: bool
) -> Iterator[tuple[TokenPrompts, dict[str, Tensor], bool]]:
    """Split prompts and their results alike, and say with each batch whether classifiers are fitted on it."""
    for i, batch in enumerate(prompts.split(size)):
        yield batch, {name: values[i * size : (i + 1) * size] for name, values in targets.items()}, is_fitted


def _add(fits: dict[str, Ridge], states: dict[str, States], known: dict[str, Tensor], classes: dict[str, int]) -> None:
    """Add a batch to the classifiers; a prompt without a result at a token counts for none there."""
    one_hot = {
        name: (F.one_hot(values.clamp_min(0), classes[name]) * (values >= 0)[..., None]).double()[None]
        for name, values in known.items()
    }
    for model, fit in fits.items():
        wanted: dict[Hashable, Tensor] = {("none", name): target for name, target in one_hot.items()}
        if model == "none":
            wanted |= {("shuffled", name): target.roll(1, dims=1) for name, target in one_hot.items()}
        fit.add(states[model], wanted)


def _read(
    maps: dict[str, dict[Any, Tensor]], states: dict[str, States], name: str
) -> Iterator[tuple[str, Int[Tensor, "place batch pos"]]]:
    """Yield what each control's classifier reads of a result."""
    for control in CONTROLS:
        model = "untrained" if control == "untrained" else "none"
        of_map = maps[model]["shuffled" if control == "shuffled" else "none", name]
        read = torch.einsum("tbpi,tpij->tbpj", with_one(states[model]), of_map)
        yield control, read.argmax(-1)


def _dataset(
    checkpoint: Checkpoint, targets: dict[str, Tensor], right: dict[tuple[str, str], Tensor], n_loops: int
) -> xr.Dataset:
    names, n_layers = list(targets), checkpoint.model.cfg.n_layers
    stacked = torch.stack([torch.stack([right[control, name] for name in names]) for control in CONTROLS])
    hits = to_numpy(stacked.permute(0, 1, 2, 4, 3).unflatten(2, (n_loops, n_layers)))
    count = (hits >= 0).sum(-1)
    enough = count >= 0.1 * hits.shape[-1]
    accuracy = np.where(enough, (hits == 1).sum(-1) / count.clip(1), np.nan)
    chance = np.stack([to_numpy(_most_frequent(values)) for values in targets.values()])
    dims = ("control", "target", "loop", "layer", "position")
    return xr.Dataset(
        {
            "right": ((*dims, "example"), hits),
            "accuracy": (dims, accuracy),
            "chance": (("target", "position"), np.where(enough[0, :, 0, 0], chance, np.nan)),
        },
        coords={
            "control": list(CONTROLS), "target": names, "loop": np.arange(1, n_loops + 1),
            "layer": np.arange(n_layers), "position": np.arange(hits.shape[-2]),
        },
    )  # fmt: skip


def _most_frequent(values: Int[Tensor, "batch pos"]) -> Float[Tensor, " pos"]:
    """The share of the most frequent result at each token, among the prompts that have one."""
    counts = F.one_hot(values.clamp_min(0), int(values.max()) + 1) * (values >= 0)[..., None]
    return (counts.sum(0).amax(-1) / (values >= 0).sum(0)).float().cpu()
