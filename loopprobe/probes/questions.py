"""A question is a probe to run on checkpoints: what a verb of the command line asks, or a file under probes/ saves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from pydantic import Field, NonNegativeInt

from loopprobe.config.budget import require
from loopprobe.config.strict import build, configuration
from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import asked, unique_labels
from loopprobe.probes.declaration import Probe
from loopprobe.probes.registry import PROBES, find_probe
from loopprobe.store.checkpoint import DEFAULT, load_checkpoint
from loopprobe.store.language import LanguageModel, source_of
from loopprobe.store.own import is_own
from loopprobe.store.shipped import find
from loopprobe.store.subject import PromptSpec, Subject
from loopprobe.support.cluster import Processes, RayPool
from loopprobe.support.device import pick_device
from loopprobe.tasks import PromptBatch
from loopprobe.types import Progress
from loopprobe.wrapped.loading import PREFIX

ANY_TEXT = "any text"  # of a language model whose weights alone are read
RESAMPLES = 2000  # of the bootstrap, whose counts take a number a prompt and resample


@configuration
class Question(PromptSpec):
    """A probe, its options, and the checkpoints and prompts that it runs on.

    Attributes:
        probe: name of the probe.
        checkpoints: names or paths.
        options: fields of the probe's configuration; ``query`` among its ``positions`` is the query's token.
        dtype: the precision of language models; None: float32 on a CPU, elsewhere that of their files.
        trust_remote_code: whether code that comes with a language model may run.
        start_seed: the seed of a state that a language model's loop starts from at random.
        prompts, seed, shift, data, target, …: which prompts each model is run on, see ``PromptSpec``.
    """

    probe: str
    checkpoints: tuple[str, ...] = (DEFAULT,)
    options: dict[str, Any] = Field(default_factory=dict)
    dtype: str | None = None
    trust_remote_code: bool = False
    start_seed: NonNegativeInt = 0

    @property
    def spec(self) -> PromptSpec:
        """The prompts that are drawn."""
        return PromptSpec(**{field.name: getattr(self, field.name) for field in dataclasses.fields(PromptSpec)})


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A probe, checked and ready to run on one checkpoint."""

    probe: str
    checkpoint: Subject
    config: Any
    prompts: PromptBatch
    given: dict[str, Any] = dataclasses.field(default_factory=dict)  # keyword arguments of run, see ``Probe.given``

    @property
    def asked(self) -> dict[str, str]:
        """What is asked of which model; where it is equal, one answer serves."""
        return asked(self.probe, self.checkpoint, self.prompts, self.config) | {"model": self.checkpoint.label}


def configured(name: str, options: dict[str, Any]) -> tuple[Probe, Any]:
    """A probe by name, and its configuration from options.

    Raises:
        LoopprobeError: no such probe, or an option that it does not have.
    """
    probe = find_probe(name)
    return probe, build(probe.config, options)


def prepare(
    question: Question,
    device: torch.device | str = "cpu",
    load: Callable[..., Any] = load_checkpoint,
) -> list[Prepared]:
    """Load and check everything that a question needs.

    Args:
        question: what is asked.
        device: where the models are put.
        load: gets a checkpoint by its name, on the device.

    Returns:
        One a checkpoint, each with a label of its own; of a language model one for each length of its texts.

    Raises:
        LoopprobeError: a checkpoint, an option or the prompts are not what the probe can use, a checkpoint comes
            twice, or the memory cannot hold the answer.
    """
    probe, config = configured(question.probe, question.options)
    if probe.of_weights:
        question = dataclasses.replace(question, prompts=1)
    folders: dict[Path, str] = {}
    for name in question.checkpoints:
        if (folder := _folder(name)) in folders:
            raise LoopprobeError(f"checkpoint {name!r} is the same folder as {folders[folder]!r}: give it once")
        folders[folder] = name
    prepared = []
    labels = unique_labels([_path(name) for name in question.checkpoints])
    for name, label in zip(question.checkpoints, labels, strict=True):
        options = _language_options(question, name)
        checkpoint = dataclasses.replace(load(name, device, **options), alias=label)
        spec = question.spec
        if isinstance(checkpoint, LanguageModel):
            if probe.of_weights and not spec.of_text:
                spec = dataclasses.replace(spec, text=(ANY_TEXT,))
            batches = checkpoint.batches(spec)
        else:
            _require_memory(question, checkpoint, config)
            batches = [(checkpoint.draw(spec), None)]
        for prompts, corrupted in batches:
            given = {"corrupted": corrupted} if corrupted is not None and "corrupted" in probe.given else {}
            of_length = checkpoint
            if len(batches) > 1:
                of_length = dataclasses.replace(checkpoint, alias=f"{label}-{_length(prompts, batches)}")
            probe.require(of_length, prompts, config, given)
            prepared.append(Prepared(question.probe, of_length, config, prompts, given))
    return prepared


def _length(prompts: Any, batches: Sequence[Any]) -> str:
    """Say what tells a batch of text from others: its tokens, and where that is not enough the one that is read."""
    tokens = f"{prompts.n_tokens}-tokens"
    several = sum(other.n_tokens == prompts.n_tokens for other, _ in batches) > 1
    return f"{tokens}-at-{prompts.query}" if several else tokens


def _path(name: str) -> str:
    """The path whose last part, or parts, a model is called by."""
    if not is_own(name):
        return name.removeprefix(PREFIX)
    where, _, what = name.rpartition(":")
    return f"{where.removesuffix('.py')}/{what}"


def _folder(name: str) -> Path:
    """The folder of a checkpoint, or what stands for it of another model."""
    if is_own(name):
        return Path(name).resolve()
    return Path(*filter(None, source_of(name))).resolve() if name.startswith(PREFIX) else find(name).resolve()


def drawn(fields: dict[str, Any], device: torch.device | str) -> tuple[Any, Any]:
    """Load one model and draw its prompts, for what is no probe.

    Args:
        fields: of a question, as far as they name a model and its prompts.
        device: where the model is put.

    Returns:
        The subject, and the prompts.

    Raises:
        LoopprobeError: there is no such model, or the prompts do not fit it or the memory.
    """
    question = build(Question, {"probe": "cache"} | fields)
    name = question.checkpoints[0]
    checkpoint = load_checkpoint(name, device, **_language_options(question, name))
    if not isinstance(checkpoint, LanguageModel):
        one = checkpoint.draw(dataclasses.replace(question.spec, prompts=1))
        activations = 16 * one.n_tokens * checkpoint.model.sizes.d_model  # of a loop
        needed = question.prompts * (sum(part.nbytes for part in one.tensors) + activations)
        require(needed, f"cache of {checkpoint.label} with {question.prompts:,} prompts", "lower --prompts")
    return checkpoint, checkpoint.draw(question.spec)


def _language_options(question: Question, checkpoint: str) -> dict[str, Any]:
    """The options of language models; of other checkpoints those that are set, which loading refuses."""
    options = {name: getattr(question, name) for name in ("dtype", "trust_remote_code", "start_seed")}
    return options if checkpoint.startswith(PREFIX) else {name: value for name, value in options.items() if value}


def _require_memory(question: Question, checkpoint: Subject, config: Any) -> None:
    """Raise LoopprobeError where the memory cannot hold the prompts, or the errors of every loop.

    One prompt tells how long they are and how many loops their length gets.
    """
    one = checkpoint.draw(dataclasses.replace(question.spec, prompts=1))
    loops = getattr(config, "loops", None) or checkpoint.loops_of(one)
    runs = len(getattr(config, "n", ())) + 1
    further = sum(getattr(config, name, 0) for name in ("train_prompts", "fit_prompts"))  # those that are fitted on
    prompts = (question.prompts + further) * (sum(part.nbytes for part in one.tensors) + 8 * RESAMPLES)
    errors = loops * runs * (4 * question.prompts + 8 * one.n_answers)
    require(
        prompts + errors,
        f"{question.probe} of {checkpoint.label} with {question.prompts + further:,} prompts and {loops:,} loops",
        "lower --prompts or --loops",
    )


def answer(
    prepared: Sequence[Prepared],
    progress: Callable[[str], Progress] = lambda description: lambda steps: steps,
    pool: Processes | RayPool | None = None,
) -> Iterator[xr.Dataset]:
    """One dataset a checkpoint, in their order, each as soon as it and those before it are there.

    Args:
        prepared: from ``prepare``.
        progress: makes, from a description, a wrapper for the steps of one run.
        pool: answers several at once, see ``loopprobe.support.cluster``; None: one after the other, in this process.
    """
    waiting: dict[int, xr.Dataset] = {}
    following = 0
    for i, data in as_answered(prepared, progress, pool):
        waiting[i] = data
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def as_answered(
    prepared: Sequence[Prepared],
    progress: Callable[[str], Progress] = lambda description: lambda steps: steps,
    pool: Processes | RayPool | None = None,
) -> Iterator[tuple[int, xr.Dataset]]:
    """Every answer with its place among the prepared, in the order in which they are done.

    Args:
        prepared, progress, pool: as in ``answer``.
    """
    if pool is None or (isinstance(pool, Processes) and len(prepared) == 1):
        for i, p in enumerate(prepared):
            bar = progress(f"{p.probe} {p.checkpoint.label}")
            yield i, PROBES[p.probe].run(p.checkpoint, p.prompts, p.config, bar, **p.given)
        return
    places = {pool.submit(_answer_there, _on(p, "cpu"), pool.threads, pool.device): i for i, p in enumerate(prepared)}
    if places:
        done = _Done(places)
        for future in progress(f"{len(prepared)} answers")(done):
            yield places[future], future.result()


class _Done:
    """Futures in the order in which they are done; it has a length, which progress bars ask for."""

    def __init__(self, futures: Collection[Future[Any]]) -> None:
        self.futures = futures

    def __len__(self) -> int:
        return len(self.futures)

    def __iter__(self) -> Iterator[Future[Any]]:
        return as_completed(self.futures)


def _on(p: Prepared, device: torch.device | str) -> Prepared:
    p.checkpoint.model.to(device)
    return dataclasses.replace(p, prompts=p.prompts.to(device))


def _answer_there(p: Prepared, threads: int, device: str) -> xr.Dataset:
    """Run one prepared probe in a worker process."""
    torch.set_num_threads(threads)
    p = _on(p, pick_device(device))
    return PROBES[p.probe].run(p.checkpoint, p.prompts, p.config, **p.given)
