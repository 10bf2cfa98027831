"""Prompts for a model: held out from training, further ones to fit on, or from a table of real data."""

from __future__ import annotations

import dataclasses

import torch

from loopprobe.config.schema import AnyConfig, Config
from loopprobe.errors import LoopprobeError
from loopprobe.store.subject import PromptSpec
from loopprobe.tasks import Prompts
from loopprobe.tasks import held_out as held_out_of_task
from loopprobe.tasks.seeds import HELD_OUT
from loopprobe.tasks.tables import from_tables, load_table


def draw(config: AnyConfig, label: str, spec: PromptSpec) -> Prompts:
    """Draw the prompts of a specification on the CPU.

    Raises:
        LoopprobeError: the shift does not fit the model, or the table cannot be used.
    """
    if spec.data is None:
        return held_out(config, label, spec.prompts, spec.seed, spec.shift)
    if spec.shift is not None:
        raise LoopprobeError(f"prompts from tables cannot be shifted ({spec.shift}): leave out one of the two")
    return from_table(config, spec.data, spec.target, spec.prompts, spec.seed)


def held_out(config: AnyConfig, label: str, n_prompts: int, seed: int, shift: str | None) -> Prompts:
    """Draw prompts like those at the end of a model's training, which no training saw.

    Args:
        config: the configuration of the model.
        label: the name of the model, for messages.
        n_prompts: the number of prompts.
        seed: the seed of the prompts.
        shift: the name of a distribution shift, see ``tasks.shifts``; None: the distribution of training.

    Raises:
        LoopprobeError: there is no such shift, or the model was trained on as many examples or dimensions as it can
            read.
    """
    model = config.model
    points, dims = model.n_points, model.n_dims
    if isinstance(config, Config):
        seen_points, seen_dims = config.train.points.last, config.train.dims.last
        unseen = {"more_examples": points > seen_points, "more_dims": dims > seen_dims}
        if not unseen.get(str(shift), True):
            raise LoopprobeError(
                f"{label} was trained with all the {points} points and {dims} dimensions that it can read: "
                f"shift {shift!r} needs a model that was trained with fewer"
            )
        points = points if shift == "more_examples" else seen_points
        dims = dims if shift == "more_dims" else seen_dims
    return held_out_of_task(config.task, n_prompts, points, model.n_dims, seed, active_dims=dims, shift=shift)


def more_like(config: AnyConfig, label: str, prompts: Prompts, n_prompts: int, seed: int) -> Prompts:
    """Draw prompts as in training, with as many points as these, to fit maps from states at every token."""
    longer = isinstance(config, Config) and prompts.n_answers > config.train.points.last
    return held_out(config, label, n_prompts, seed, "more_examples" if longer else None)


def from_table(config: AnyConfig, name: str, target: str | None, n_prompts: int, seed: int) -> Prompts:
    """Draw prompts from a table of real data, at the scale of the labels that the model was trained on.

    Args:
        config: the configuration of the model.
        name, target: the names of the table and of its label, see ``tasks.tables.load_table``.
        n_prompts: the number of prompts, drawn from the half of the rows that no training uses.
        seed: the seed of the prompts.

    Raises:
        LoopprobeError: the table cannot be used, or has too few rows.
    """
    model = config.model
    points = config.train.points.last if isinstance(config, Config) else model.n_points
    generator = torch.Generator().manual_seed(HELD_OUT + seed)
    scale = config.task.scale(model.n_dims)
    prompts = from_tables([load_table(name, target)], n_prompts, points, model.n_dims, generator, scale=scale)
    origin = prompts.origin | {"held_out_seed": seed, "n_prompts": n_prompts}
    return dataclasses.replace(prompts, origin=origin)
