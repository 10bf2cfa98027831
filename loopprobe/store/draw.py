"""Prompts for a model: held out from training, further ones to fit on, or from a table of real data."""

from __future__ import annotations

import dataclasses

import torch

from loopprobe.config.schema import AnyConfig, Config
from loopprobe.errors import LoopprobeError
from loopprobe.store.subject import PromptSpec
from loopprobe.tasks import Prompts, TokenPrompts, held_out_tokens
from loopprobe.tasks import held_out as held_out_of_task
from loopprobe.tasks.seeds import HELD_OUT
from loopprobe.tasks.tables import from_tables, load_table

Drawn = Prompts | TokenPrompts


def draw(config: AnyConfig, label: str, spec: PromptSpec) -> Drawn:
    """Draw the prompts of a specification on the CPU.

    Raises:
        LoopprobeError: the specification does not fit the model, or the table cannot be used.
    """
    if spec.length is not None and not config.task.reads_tokens:
        raise LoopprobeError(f"length ({spec.length}) is of token tasks, and {label} has vectors: leave it out")
    if spec.of_text:
        raise LoopprobeError(f"{label} reads no text ({config.task.name}): give a language model, such as hf:NAME")
    if spec.data is None:
        return held_out(config, label, spec.prompts, spec.seed, spec.shift, spec.length)
    if spec.shift is not None:
        raise LoopprobeError(f"prompts from tables cannot be shifted ({spec.shift}): leave out one of the two")
    if config.task.reads_tokens:
        raise LoopprobeError(f"{label} reads tokens, and a table ({spec.data}) gives vectors: leave it out")
    return from_table(config, spec.data, spec.target, spec.prompts, spec.seed)


def held_out(
    config: AnyConfig, label: str, n_prompts: int, seed: int, shift: str | None, length: int | None = None
) -> Drawn:
    """Draw prompts like those at the end of a model's training, which no training saw.

    Args:
        config: the configuration of the model.
        label: the name of the model, for messages.
        n_prompts: the number of prompts.
        seed: the seed of the prompts.
        shift: the name of a distribution shift, see ``tasks.shifts``; None: the distribution of training.
        length: of prompts of a token task; None: the longest of the training.

    Raises:
        LoopprobeError: there is no such shift, the model was trained on as many examples or dimensions as it can
            read, or it cannot read so many tokens.
    """
    if config.task.reads_tokens:
        return _held_out_tokens(config, label, n_prompts, seed, shift, length)
    model = config.model
    points, dims = model.n_points, model.n_dims
    if isinstance(config, Config):
        seen = config.train.reached(config.train.steps)
        unseen = {"more_examples": points > seen["points"], "more_dims": dims > seen["dims"]}
        if not unseen.get(str(shift), True):
            raise LoopprobeError(
                f"{label} was trained with all the {points} points and {dims} dimensions that it can read: "
                f"shift {shift!r} needs a model that was trained with fewer"
            )
        points = points if shift == "more_examples" else seen["points"]
        dims = dims if shift == "more_dims" else seen["dims"]
    return held_out_of_task(config.task, n_prompts, points, model.n_dims, seed, active_dims=dims, shift=shift)


def _held_out_tokens(
    config: AnyConfig, label: str, n_prompts: int, seed: int, shift: str | None, length: int | None
) -> TokenPrompts:
    task = config.task
    assert task.length is not None
    if shift is not None:
        raise LoopprobeError(f"prompts of {task.name} have no shift ({shift}): give another length instead")
    length = length or task.length
    if (n_tokens := task.rules.n_tokens(length)) > config.model.n_ctx:
        raise LoopprobeError(
            f"prompts of length {length} have {n_tokens} tokens and {label} reads {config.model.n_ctx}: lower it"
        )
    return held_out_tokens(task, n_prompts, length, seed)


def more_like(config: AnyConfig, label: str, prompts: Drawn, n_prompts: int, seed: int) -> Drawn:
    """Draw further prompts as in training, with as many tokens as these, to fit maps from states at every token."""
    if isinstance(prompts, TokenPrompts):
        return held_out(config, label, n_prompts, seed, None, prompts.origin.get("length"))
    seen = config.train.reached(config.train.steps) if isinstance(config, Config) else {"points": prompts.n_answers}
    return held_out(config, label, n_prompts, seed, "more_examples" if prompts.n_answers > seen["points"] else None)


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
    points = config.train.reached(config.train.steps)["points"] if isinstance(config, Config) else model.n_points
    generator = torch.Generator().manual_seed(HELD_OUT + seed)
    scale = config.task.scale(model.n_dims)
    prompts = from_tables([load_table(name, target)], n_prompts, points, model.n_dims, generator, scale=scale)
    origin = prompts.origin | {"held_out_seed": seed, "n_prompts": n_prompts}
    return dataclasses.replace(prompts, origin=origin)
