"""The reading of residual streams: sites of a loop, lenses of a model, and what is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from loopprobe.model.hook_points import LoopHookPoint
from loopprobe.model.protocol import LoopedModel
from loopprobe.probes.ridge import with_one
from loopprobe.support.statistics import at_least_single, to_numpy
from loopprobe.tasks import PromptBatch

LENSES = ("final norm", "no norm", "tuned")
CODA = ("coda",)  # where layers stand between the state and the answer
AT_ONCE = 2**26  # numbers of answers that are measured in one go
TUNED_MOST = 4096  # values of an answer up to which a map to them is fitted
SHOWN, SHOWN_POINTS, TOP = 4, 64, 5  # prompts, answers and best answers that the dataset holds in words
Sites = Float[Tensor, "site batch point d_model"]


def lenses_of(model: LoopedModel) -> tuple[str, ...]:
    """Return the lenses that a model can be read with."""
    if "linear_readout" not in model.supports:
        return CODA
    return LENSES if model.value_size <= TUNED_MOST else LENSES[:2]


def sublayers(model: Any) -> list[tuple[str, str]]:
    """Return the sites behind the sublayers of a model in words, and the names of their hook points within a loop."""
    found = []
    for layer in range(model.sizes.n_layers):
        for words, point in (("attention", "mid"), ("MLP", "post")):
            name = f"blocks.{layer}.hook_resid_{point}"
            if name in model.hook_trees.local_names:
                found.append((f"{layer} {words}", name))
    return found


def n_sites(model: LoopedModel) -> int:
    """Count the sites of one loop."""
    return 1 + len(sublayers(model))


@dataclass
class Reading:
    """What is measured of the answers that are read.

    Attributes:
        batch: the prompts.
        final: the model's final answers.
        optimal: those of the best predictor.
        n_shown: how many prompts are told in words.
        measures: of every loop the measures [lens, site, batch, point].
        answers: of every loop the best answers at the query [batch], read with the first lens at the last site.
        top: of every loop the best answers and their probabilities [site, shown, point, top], with the first lens.
    """

    batch: PromptBatch
    final: Float[Tensor, "batch point ..."]
    optimal: Float[Tensor, "batch point ..."]
    n_shown: int
    measures: list[list[Tensor]] = field(default_factory=list)
    answers: list[Tensor] = field(default_factory=list)
    top: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def loop(self, groups: Iterable[Float[Tensor, "lens site batch point ..."]]) -> None:
        """Measure one loop, whose sites come in groups."""
        parts = [self._measured(read[:, None]) for read in groups]
        self.measures.append(
            [torch.cat(same, 2)[:, 0] for same in zip(*(measures for measures, _ in parts), strict=True)]
        )
        tops = [top for _, top in parts if top is not None]
        self._note([tuple(torch.cat(same, 1) for same in zip(*tops, strict=True))] if tops else [])

    def loops(self, read: Float[Tensor, "lens loop site batch point ..."]) -> None:
        """Measure all loops."""
        measures, top = self._measured(read)
        self.measures += [list(one) for one in zip(*(measure.unbind(1) for measure in measures), strict=True)]
        self._note([] if top is None else [top])

    def _measured(self, read: Tensor) -> tuple[list[Tensor], tuple[Tensor, Tensor, Tensor] | None]:
        """The measures [lens, loop, site, batch, point]; and where answers can be right, those of the first lens."""
        batch = self.batch
        measures = [batch.errors(read), batch.distance(read, self.final), batch.distance(read, self.optimal)]
        if (right := batch.correct(read)) is None or (rank := batch.ranks(read, self.final)) is None:
            return measures, None
        likely, best = read[0, :, :, : self.n_shown, -SHOWN_POINTS:].softmax(-1).topk(min(TOP, read.shape[-1]))
        return [*measures, right.to(read), rank], (likely, best, read[0, :, :, :, -1].argmax(-1))

    def _note(self, tops: list[Any]) -> None:
        """Keep the best answers of loops: probabilities, numbers, and the best at the query, by loop and site."""
        for likely, best, at_query in tops:
            self.top += list(zip(likely, best, strict=True))
            self.answers += [answers[-1].cpu() for answers in at_query]

    def words(self) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        """Return the best answers in words, and their probabilities, where the prompts can name them."""
        names = getattr(self.batch, "answer_names", None)
        if not names or not self.n_shown:
            return {}
        dims = ("loop", "site", "shown", "answer", "top")
        numbers = to_numpy(torch.stack([t for _, t in self.top]))
        said = np.array([str(name) for name in names], dtype=object)[numbers].astype(str)
        likely = to_numpy(torch.stack([t for t, _ in self.top]))
        return {"top_answer": (dims, said), "top_probability": (dims, likely)}


def settling(answers: Int[Tensor, "loop batch"]) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """The loops until the best answer is the final one for good, and how often it changes, of every prompt."""
    same = (answers == answers[-1]).flip(0).int().cumprod(0).sum(0)
    changes = (answers[1:] != answers[:-1]).sum(0)
    return {
        "settled": (("example",), to_numpy(len(answers) - same + 1)),
        "revisions": (("example",), to_numpy(changes)),
    }


def at_sites(
    model: LoopedModel, batch: PromptBatch, n_loops: int, use: Callable[[int, Sites], None], everywhere: bool = False
) -> None:
    """Call ``use`` with the residual stream at all tokens that are read, or at all there are, loop by loop."""
    sites: list[Tensor] = []
    names = ["blocks.0.hook_resid_pre", *(name for _, name in sublayers(model))]

    def note(x: Tensor, hook: LoopHookPoint) -> None:
        sites.append(x if everywhere else x[:, batch.read_at])
        if len(sites) == len(names):
            use(hook.loop(), torch.stack(sites))
            sites.clear()

    with model.hooks(fwd_hooks=[(name, note) for name in names]):
        model(*batch.inputs, n_loops=n_loops, keep_loops=1, read_at=[batch.query])


def read_sites(model: LoopedModel, batch: PromptBatch, n_loops: int, maps: Tensor | None, reading: Reading) -> None:
    """Read every site of every loop."""
    if "linear_readout" not in model.supports:
        streams: list[Sites] = []
        at_sites(model, batch, n_loops, lambda loop, sites: streams.append(sites), everywhere=True)
        e = model.embed(*model.prepare(*batch.inputs))
        for loop, sites in enumerate(streams):
            states = (model.to_state(x) for x in sites)
            reading.loop(at_least_single(model.predict(z, e, loop, read_at=batch.read_at))[None, None] for z in states)
        return

    several = len(sublayers(model)) + 1 if model.value_size <= TUNED_MOST else 1
    waiting: list[Tensor] = []  # of small vocabularies, so that all loops are measured in one go
    size = len(LENSES) * n_loops * n_sites(model) * batch.n_prompts * batch.n_answers * model.value_size

    def use(loop: int, sites: Sites) -> None:
        groups = [slice(i, i + several) for i in range(0, len(sites), several)]
        read = (_linear(model, sites[some], None if maps is None else maps[loop, some]) for some in groups)
        if size <= AT_ONCE:
            parts = list(read)
            waiting.append(torch.cat(parts, 1) if len(parts) > 1 else parts[0])
        else:
            reading.loop(read)

    at_sites(model, batch, n_loops, use)
    if waiting:
        reading.loops(torch.stack(waiting, 1))


def _linear(model: LoopedModel, sites: Sites, maps: Tensor | None) -> Float[Tensor, "lens site batch point ..."]:
    """Read sites with the affine map of the read-out, with and without the norm, and with maps of their own."""
    read = [at_least_single(model.unembed(x)) for x in (model.to_state(sites), sites)]
    if maps is not None:
        tuned = einsum(with_one(sites), maps, "site batch point d, site point d v -> site batch point v")
        read.append(tuned.reshape(read[0].shape).to(read[0]))
    return torch.stack(read)
