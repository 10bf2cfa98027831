"""One call for an exploration in a session: ``explore(checkpoint)``, or ``explore(model, prompts)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from loopprobe.errors import LoopprobeError
from loopprobe.model.protocol import LoopedModel
from loopprobe.probes.dataset import read_dataset
from loopprobe.show.explore.exploration import EXAMPLE, SHOWN, Exploration
from loopprobe.show.explore.html import Html, Page
from loopprobe.show.explore.page import datasets_page, explorer_page, view_of
from loopprobe.store.checkpoint import load_checkpoint
from loopprobe.store.language import LanguageModel
from loopprobe.store.subject import PromptSpec, Subject
from loopprobe.tasks import PromptBatch, Prompts, TextPrompts
from loopprobe.tasks.logits import UNKNOWN
from loopprobe.tasks.protocol import Outputs

PROMPTS = 64  # that are drawn: the errors of so many take no time


def explore(what: Any, prompts: Any = None, *, loops: int | None = None, shown: int = SHOWN, **options: Any) -> Html:
    """Explore a model's runs, or datasets of a probe, on one page of linked views.

    In a notebook what is returned shows itself. ``save(path)`` writes a page that needs nothing else, ``show()`` opens
    it; of a model ``serve()`` opens it with live runs, in which tokens are masked and heads ablated by a click.

    Args:
        what: a checkpoint, a language model, or the name of one (``hf:NAME``); a model alone, with ``prompts``; a
            dataset of a probe or several of one, or the path of its netCDF file.
        prompts: a ``PromptBatch``; or how many held-out ones are drawn; of a language model a text or several of one
            length; of a model alone also its inputs, xs and ys as a pair or tokens [batch, pos].
        loops: iterations; None: as many as the training gives such prompts.
        shown: prompts whose runs a saved page holds.
        options: of ``load_checkpoint``, where a language model is named, such as ``trust_remote_code``.

    Raises:
        LoopprobeError: there is no such model or file, or the prompts do not fit.
    """
    if isinstance(what, xr.Dataset) or _is_datasets(what):
        return datasets(what)
    if isinstance(what, (str, Path)) and str(what).endswith(".nc"):
        return datasets(read_dataset(Path(what)))
    if isinstance(what, (str, Path)):
        what = load_checkpoint(what, **options)
    elif options:
        raise LoopprobeError(f"{next(iter(options))} is an option of loading, and the model is there: leave it out")
    if isinstance(what, Subject):
        return _of_subject(what, prompts, loops, shown)
    if not isinstance(what, LoopedModel):
        raise LoopprobeError(
            f"a {type(what).__name__} cannot be explored: give a checkpoint, its name, a looped model, or a dataset"
        )
    subject = ModelAlone(what)
    return Exploration(subject, _answered(what, _batch(what, prompts)), loops=loops, shown=shown)


def _is_datasets(what: Any) -> bool:
    return isinstance(what, (list, tuple)) and bool(what) and all(isinstance(one, xr.Dataset) for one in what)


def datasets(data: xr.Dataset | Sequence[xr.Dataset]) -> Page:
    """Return the page of datasets of one probe; of the explore probe, the page of linked views.

    Raises:
        LoopprobeError: no probe made them.
    """
    several = [data] if isinstance(data, xr.Dataset) else list(data)
    if len(several) > 1 or several[0].attrs.get("probe") != "explore":
        return Page("datasets of a probe", datasets_page(several))
    view, title = view_of(several[0]), f"{several[0].model.item()}, loop by loop"
    facts = {"live": False, "able": {}, "offers": {}, "layers": 0, "corruptions": [], "asked": {}}
    return Page(title, explorer_page(title, several[0].attrs["description"], {view["prompt"]: view}, facts))


def _of_subject(subject: Subject, prompts: Any, loops: int | None, shown: int) -> Exploration:
    if isinstance(prompts, PromptBatch):
        return Exploration(subject, prompts, loops=loops, shown=shown)
    if isinstance(subject, LanguageModel):
        texts = (EXAMPLE,) if prompts is None else (prompts,) if isinstance(prompts, str) else prompts
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise LoopprobeError(f"{subject.label} reads text: give a text or several as prompts, or leave them out")
        spec = PromptSpec(text=tuple(texts), read="all")
    elif prompts is None or (isinstance(prompts, int) and not isinstance(prompts, bool) and prompts > 0):
        spec = PromptSpec(prompts=prompts or PROMPTS)
    else:
        raise LoopprobeError(f"prompts ({type(prompts).__name__}) must be prompts of {subject.label}, or how many")
    return Exploration(subject, subject.draw(spec), spec, loops, shown)


def _batch(model: LoopedModel, prompts: Any) -> PromptBatch:
    """Return prompts of a model alone, from its inputs where these are given."""
    if isinstance(prompts, PromptBatch):
        return prompts
    if prompts is None:
        raise LoopprobeError("a model alone has no task to draw prompts from: give prompts, or explore its checkpoint")
    inputs = model.prepare(*(prompts if isinstance(prompts, (list, tuple)) else (prompts,)))
    if len(inputs) == 2 and inputs[0].ndim == 3:
        return Prompts(*inputs)
    if len(inputs) != 1 or inputs[0].ndim != 2:
        raise LoopprobeError("inputs must be xs and ys, or tokens [batch, pos]: give a PromptBatch for others")
    tokens = inputs[0]
    following = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], UNKNOWN)], 1)
    return TextPrompts(tokens, following.where(following < model.value_size, UNKNOWN))


def _answered(model: LoopedModel, prompts: PromptBatch) -> PromptBatch:
    """Return the same prompts, with the model's own answers where none is known."""
    if not isinstance(prompts, TextPrompts) or prompts.knows_answers:
        return prompts
    with torch.no_grad():
        return prompts.answered(model(*prompts.inputs, keep_loops=1, read_at=prompts.read_at))


@dataclass
class ModelAlone:
    """A model without a task, as a ``Subject`` that draws no prompts.

    Attributes:
        model: the model.
        name: the class of the model, which has no other name.
    """

    model: Any
    name: str = ""

    def __post_init__(self) -> None:
        self.name = self.name or type(getattr(self.model, "module", self.model)).__name__

    @property
    def label(self) -> str:
        """The name in figures."""
        return self.name

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        device: torch.device = self.model.device
        return device

    @property
    def task_name(self) -> str:
        """That the task is not known."""
        return "given prompts"

    def identity(self) -> dict[str, Any]:
        """Return a record of the model: its class and its loops."""
        return {"name": self.name, "weights": "", "config": {"model": {"n_loops": self.model.sizes.n_loops}}}

    def draw(self, spec: PromptSpec) -> Any:
        """Refuse: nothing tells what to draw."""
        raise LoopprobeError("a model alone has no task to draw prompts from: explore its checkpoint")

    def more_like(self, prompts: Any, n_prompts: int, seed: int) -> Any:
        """Refuse: nothing tells what to draw."""
        return self.draw(PromptSpec())

    def is_of_task(self, prompts: Any) -> bool:
        """Tell that no prompts are known to be of its task."""
        return False

    def loops_of(self, prompts: Any) -> int:
        """Return the number of loops that the model was trained with."""
        return int(self.model.sizes.n_loops)

    def optimum(self, prompts: Any) -> tuple[str, Outputs]:
        """Return that the best predictor is unknown."""
        shape = (prompts.n_prompts, prompts.n_answers, *([self.model.value_size] if self.model.value_size > 1 else []))
        return "unknown", torch.full(shape, torch.nan, device=self.device)
