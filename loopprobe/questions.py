"""A question is a probe put to checkpoints: what a verb of the command line asks, or a file under probes/ saves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import xarray as xr
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from loopprobe.checkpoint import DEFAULT, Checkpoint, load_checkpoint
from loopprobe.cluster import Processes, RayPool
from loopprobe.config import build
from loopprobe.errors import LoopprobeError
from loopprobe.probes import (
    align,
    attention,
    attribute,
    compare,
    converge,
    curves,
    decode,
    exit,
    fixed_points,
    folds,
    lens,
    mask,
    patch,
    paths,
    recover,
    shift,
)
from loopprobe.probes.loops import LoopsConfig
from loopprobe.tasks import Prompts
from loopprobe.train import pick_device
from loopprobe.types import Progress


@dataclasses.dataclass(frozen=True)
class Probe:
    """A probe's configuration class, and its functions."""

    config: type
    run: Callable[..., xr.Dataset]
    check: Callable[..., None]  # of a checkpoint, a configuration, and prompts where there are some


PROBES = {
    "align": Probe(align.AlignConfig, align.run, align.check),
    "attention": Probe(LoopsConfig, attention.run, attention.check),
    "attribute": Probe(LoopsConfig, attribute.run, attribute.check),
    "compare": Probe(compare.CompareConfig, compare.run, compare.check),
    "converge": Probe(converge.ConvergeConfig, converge.run, converge.check),
    "curves": Probe(curves.CurvesConfig, curves.run, curves.check),
    "decode": Probe(decode.DecodeConfig, decode.run, decode.check),
    "exit": Probe(exit.ExitConfig, exit.run, exit.check),
    "fixed_points": Probe(fixed_points.FixedPointsConfig, fixed_points.run, fixed_points.check),
    "folds": Probe(folds.FoldsConfig, folds.run, folds.check),
    "lens": Probe(lens.LensConfig, lens.run, lens.check),
    "mask": Probe(mask.MaskConfig, mask.run, mask.check),
    "patch": Probe(patch.PatchConfig, patch.run, patch.check),
    "paths": Probe(paths.PathsConfig, paths.run, paths.check),
    "recover": Probe(recover.RecoverConfig, recover.run, recover.check),
    "shift": Probe(shift.ShiftConfig, shift.run, shift.check),
}


# What can be given to a probe's run besides its configuration: prompts and functions, which no file can hold.
GIVEN = {
    "align": ("training",),
    "decode": ("training",),
    "lens": ("training",),
    "patch": ("corrupted", "metric"),
}


@dataclass(config=ConfigDict(extra="forbid", frozen=True), kw_only=True)
class Question:
    """A probe, its options, and the checkpoints and prompts that it is put to.

    Attributes:
        probe: name of the probe.
        checkpoints: names or paths.
        options: fields of the probe's configuration.
        prompts: held-out prompts of each model's own task.
        seed: of these prompts.
        shift: draws them otherwise than in training, see ``tasks.shifts``.
        data: a table that they are taken from instead, by name or path, see ``tasks.tables``; ``target`` is its label.
    """

    probe: str
    checkpoints: tuple[str, ...] = (DEFAULT,)
    options: dict[str, Any] = Field(default_factory=dict)
    prompts: int = 1280
    seed: int = 0
    shift: str | None = None
    data: str | None = None
    target: str | None = None

    def prompts_for(self, checkpoint: Checkpoint) -> Prompts:
        """The prompts that are put to a model.

        Raises:
            LoopprobeError: the model cannot be put to the shift, or the table cannot be used.
        """
        if self.data is None:
            return checkpoint.held_out(self.prompts, self.seed, self.shift)
        if self.shift is not None:
            raise LoopprobeError(f"prompts from tables cannot be shifted ({self.shift}): leave out one of the two")
        return checkpoint.from_table(self.data, self.target, self.prompts, self.seed)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A probe, checked and ready to run on one checkpoint."""

    probe: str
    checkpoint: Checkpoint
    config: Any
    prompts: Prompts
    given: dict[str, Any] = dataclasses.field(default_factory=dict)  # keyword arguments of run, see ``GIVEN``


def configured(name: str, options: dict[str, Any]) -> tuple[Probe, Any]:
    """A probe by name, and its configuration from options.

    Raises:
        LoopprobeError: no such probe, or an option that it does not have.
    """
    if name not in PROBES:
        raise LoopprobeError(f"no probe is called {name!r}: choose from {', '.join(PROBES)}")
    return PROBES[name], build(PROBES[name].config, options)


def prepare(
    question: Question,
    device: torch.device | str = "cpu",
    load: Callable[[str, torch.device | str], Checkpoint] = load_checkpoint,
) -> list[Prepared]:
    """Load and check everything that a question needs.

    Args:
        question: what is asked.
        device: where the models are put.
        load: gets a checkpoint by its name, on the device.

    Raises:
        LoopprobeError: a checkpoint, an option or the prompts are not what the probe can use.
    """
    probe, config = configured(question.probe, question.options)
    checkpoints = [load(name, device) for name in question.checkpoints]
    for checkpoint in checkpoints:
        probe.check(checkpoint, config)
    prepared = [Prepared(question.probe, one, config, question.prompts_for(one)) for one in checkpoints]
    for one in prepared:
        probe.check(one.checkpoint, config, one.prompts)
    return prepared


def answer(
    prepared: Sequence[Prepared],
    progress: Callable[[str], Progress] = lambda description: lambda steps: steps,
    pool: Processes | RayPool | None = None,
) -> Iterator[xr.Dataset]:
    """One dataset a checkpoint, in their order, each as soon as it is there.

    Args:
        prepared: from ``prepare``.
        progress: makes, from a description, a wrapper for the steps of one run.
        pool: answers several at once, see ``loopprobe.cluster``; None: one after the other, in this process.
    """
    if pool is None or (isinstance(pool, Processes) and len(prepared) == 1):
        for p in prepared:
            bar = progress(f"{p.probe} {p.checkpoint.label}")
            yield PROBES[p.probe].run(p.checkpoint, p.prompts, p.config, bar, **p.given)
        return
    futures = [pool.submit(_answer_there, _on(p, "cpu"), pool.threads, pool.device) for p in prepared]
    for future in progress(f"{len(prepared)} answers")(futures) if futures else ():
        yield future.result()


def _on(p: Prepared, device: torch.device | str) -> Prepared:
    p.checkpoint.model.to(device)
    return dataclasses.replace(p, prompts=p.prompts.to(device))


def _answer_there(p: Prepared, threads: int, device: str) -> xr.Dataset:
    """In a worker."""
    torch.set_num_threads(threads)
    p = _on(p, pick_device(device))
    return PROBES[p.probe].run(p.checkpoint, p.prompts, p.config, **p.given)
