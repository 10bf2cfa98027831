"""Saved questions: TOML files under probes/ with a title, a probe, checkpoints and options each.

The answer to a question is a folder of datasets, one per model. It is reused until the question, the model, what the
prompts and files hold that it names, or the version of loopprobe changes. Of models whose weights do not ship some
answers do (probes/answers).
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
import xarray as xr
from pydantic import Field

from loopprobe._version import __version__
from loopprobe.config.schema import kind_of, without_seed
from loopprobe.config.sources import read_toml
from loopprobe.config.strict import build, configuration
from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import read_dataset, read_stamp, write_dataset
from loopprobe.probes.questions import Prepared, Question, as_answered, prepare
from loopprobe.probes.registry import PROBES
from loopprobe.store.checkpoint import load_checkpoint
from loopprobe.store.own import is_own
from loopprobe.store.shipped import names
from loopprobe.study.shipped import shipped_answer, study_folder, toml_files
from loopprobe.support.cluster import Processes, RayPool
from loopprobe.support.storage import claim_shared
from loopprobe.types import Progress
from loopprobe.wrapped.loading import PREFIX


@configuration
class Saved(Question):
    """A question as its file states it.

    Attributes:
        section: the section of the report; only the report needs it.
        title, asks: the title and the question in words, for the reader.
        checkpoints: the checkpoints that the probe runs on.
        by: what makes a panel of its figure (``figures.panels``).
        quick: the options and ``prompts`` that replace the others in a quick run, and of how many ``seeds`` of every
            kind of model it asks, the first of the list.
    """

    section: str
    title: str
    asks: str
    checkpoints: tuple[str, ...]
    by: Literal["window", "layers", "loss"] = "window"
    quick: dict[str, Any] = Field(default_factory=dict)

    def question(self, quick: bool = False) -> Question:
        """Return the question, or its quick form.

        Raises:
            LoopprobeError: the prompts or the seeds of the quick form are no whole number from 1 on.
        """
        options = dict(self.quick) if quick else {}
        prompts, seeds = options.pop("prompts", self.prompts), options.pop("seeds", None)
        checkpoints = self.checkpoints if seeds is None else _first_seeds(self.checkpoints, seeds)
        changed = {"options": self.options | options, "prompts": prompts, "checkpoints": checkpoints}
        tree = {field.name: getattr(self, field.name) for field in dataclasses.fields(Question)}
        return build(Question, tree | changed)


def _first_seeds(checkpoints: Sequence[str], seeds: int) -> tuple[str, ...]:
    """Return the checkpoints of which fewer than so many before them differ in their seed alone."""
    if type(seeds) is not int or seeds < 1:  # a boolean is none
        raise LoopprobeError(f"seeds of a quick run ({seeds!r}) must be a whole number from 1 on")
    kinds = [without_seed(name) for name in checkpoints]
    return tuple(name for i, name in enumerate(checkpoints) if kinds[:i].count(kinds[i]) < seeds)


def read_saved(path: Path) -> Saved:
    """Read and check a saved question.

    Raises:
        LoopprobeError: the file does not exist, a key is missing, or a key or the probe is unknown.
    """
    tree = read_toml(path, "saved question")
    needed = [
        field.name
        for field in dataclasses.fields(Saved)
        if field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in needed if name not in tree]:
        raise LoopprobeError(f"{path} has no {' and no '.join(missing)}: add {missing[0]} = … at its top")
    saved = build(Saved, tree)
    if saved.probe not in PROBES:
        raise LoopprobeError(f"{path} asks the probe {saved.probe!r}: choose from {', '.join(PROBES)}")
    return saved


def saved_questions(folder: Path | None = None) -> dict[str, Saved]:
    """Return all saved questions of a folder, by name and in the order of names; None: those of the study.

    Raises:
        LoopprobeError: there are none, or one cannot be read.
    """
    return {path.stem: read_saved(path) for path in toml_files(folder or study_folder())}


@dataclasses.dataclass(frozen=True)
class Answered:
    """A question with its answer.

    Attributes:
        saved: the question.
        datasets: one dataset per checkpoint that exists, or whose answer ships.
        missing: the other checkpoints.
        shipped: the checkpoints that do not exist and whose answer ships.
    """

    saved: Saved
    datasets: list[xr.Dataset]
    missing: tuple[str, ...]
    shipped: tuple[str, ...] = ()


def answer_saved(
    saved: Mapping[str, Saved],
    folder: Path,
    *,
    quick: bool = False,
    device: torch.device | str = "cpu",
    progress: Callable[[str], Progress] = lambda description: lambda steps: steps,
    pool: Processes | RayPool | None = None,
) -> dict[str, Answered]:
    """Answer questions for the checkpoints that exist, and reuse the answers that ``folder`` already holds.

    Of a checkpoint that does not exist, an answer that ships stands for it where one does, see ``_shipped``.

    Args:
        saved: the questions by name.
        folder: the folder of the answers, which has one folder per question.
        quick: whether to ask the quick forms.
        device: the device of the models, unless a pool has them elsewhere.
        progress, pool: see ``questions.answer``.

    Returns:
        The answers by the names of their questions.
    """
    load = functools.cache(load_checkpoint)  # each model is loaded once for all questions
    by_question: dict[str, dict[Path, Prepared]] = {}
    absent: dict[str, list[str]] = {}
    known = names()
    for name, one in saved.items():
        question = one.question(quick)
        absent[name] = [model for model in question.checkpoints if not _is_here(model, known)]
        here = tuple(model for model in question.checkpoints if model not in absent[name])
        prepared = prepare(dataclasses.replace(question, checkpoints=here), device, load)
        by_question[name] = {folder / name / f"{p.checkpoint.label}.nc": p for p in prepared}
    everything = {path: p for paths in by_question.values() for path, p in paths.items()}
    with ExitStack() as claims:
        for name, paths in by_question.items():
            claims.callback(claim_shared(folder / name, *(path.name for path in paths)).release)
        answers: dict[Path, xr.Dataset] = {}
        asks: dict[Path, dict[str, str]] = {}
        places: dict[str, list[Path]] = {}  # of one answer, which several questions may ask for
        for path, p in progress("answers to reuse")(everything.items()):
            asks[path] = p.asked
            places.setdefault(json.dumps(asks[path]), []).append(path)
            if (data := _reusable(path, asks[path])) is not None:
                answers[path] = data
        for same in places.values():
            if there := [path for path in same if path in answers]:
                for path in (path for path in same if path not in answers):
                    write_dataset(answers[there[0]], path)
                    answers[path] = answers[there[0]]
        todo = [same for same in places.values() if same[0] not in answers]
        for i, data in as_answered([everything[paths[0]] for paths in todo], progress, pool):
            for path in todo[i]:
                write_dataset(data, path)  # written at once, so that an interrupted run keeps it
                answers[path] = data
    answered = {}
    for name, one in saved.items():
        paths = by_question[name]
        found = {model: _shipped(name, model, [asks[path] for path in paths]) for model in absent[name]}
        shipped = {model: data for model, data in found.items() if data is not None}
        missing = tuple(model for model in absent[name] if model not in shipped)
        datasets = [*(answers[path] for path in paths), *shipped.values()]
        answered[name] = Answered(one, datasets, missing, tuple(shipped))
    return answered


def _is_here(model: str, known: Container[str]) -> bool:
    """Check whether a checkpoint is among those that are known by name, or anything else that can be loaded."""
    return model in known or model.startswith(PREFIX) or is_own(model) or Path(model).is_dir()


def _shipped(question: str, model: str, asks: Sequence[Mapping[str, str]]) -> xr.Dataset | None:
    """Return the answer of this version that ships of a model that is not here, if it answers what is asked now.

    It does where a model that is here was trained in the same way but for its seed, and is asked the same.

    Args:
        question, model: their names.
        asks: what is asked of every model of the question that is here, see ``dataset.asked``.
    """
    data = _reusable(shipped_answer(question, model), {"model": model})
    if data is None:
        return None
    kind = kind_of(read_stamp(data).config)
    for wanted in asks:
        is_same = all(data.attrs[key] == wanted[key] for key in ("probe", "config", "prompts"))
        if is_same and kind_of(json.loads(wanted["checkpoint"])["config"]) == kind:
            return data
    return None


def _reusable(path: Path, wanted: Mapping[str, str]) -> xr.Dataset | None:
    """Return the answer that a file holds if it is what is wanted, of this version; a damaged file holds none."""
    try:
        data = read_dataset(path)
        version = read_stamp(data).provenance["loopprobe"]
        found = {key: data.attrs.get(key) for key in wanted} | {"model": str(data.model.item())}
    except (LoopprobeError, KeyError, TypeError, ValueError):
        return None
    return data if found == wanted and version == __version__ else None
