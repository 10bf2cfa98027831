"""The other ways to tell which component of which loop matters: patching, its estimate, and direct attribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loopprobe.errors import LoopprobeError
from loopprobe.model.cache import LoopCache
from loopprobe.probes import attribute
from loopprobe.probes.ablate_runs import AblatedRuns, Edited, Place
from loopprobe.probes.measures import Measure
from loopprobe.probes.patch import with_corrupted
from loopprobe.store.subject import Subject
from loopprobe.support.statistics import at_least_single, to_numpy
from loopprobe.tasks import PromptBatch

ANSWER = "answer"  # the measure that attribute splits if it is told none
PATCHING, ESTIMATE, DIRECT = "patching", "attribution patching", "direct attribution"


@dataclass(frozen=True)
class Rankings:
    """The prompts with their corrupted counterparts, and the model that is asked.

    Attributes:
        subject: the model and its task.
        prompts: the clean prompts, which are told from the corrupted ones.
        corrupted: those; None: there are none, so nothing is patched.
        n_loops: iterations.
        measure: of the answers; what stands for the size of a place is how far it moves.
        words: what differs in the corrupted prompts.
    """

    subject: Subject
    prompts: PromptBatch
    corrupted: PromptBatch | None
    n_loops: int
    measure: Measure
    words: str = ""

    @classmethod
    def of(
        cls,
        subject: Subject,
        prompts: PromptBatch,
        corrupted: PromptBatch | None,
        corruption: str | None,
        n_loops: int,
        measure: Measure,
    ) -> Rankings:
        """Corrupt the prompts, where they can be, unless corrupted ones are given."""
        if corrupted is None and not prompts.corruptions:
            return cls(subject, prompts, None, n_loops, measure)
        usual = None if corrupted is not None else prompts.corruptions[0]
        if corruption is None and usual == "weights" and not subject.is_of_task(prompts):
            corruption = prompts.corruptions[1]
        clean, other, kind = with_corrupted(subject, prompts, corruption, corrupted)
        return cls(subject, clean, other, n_loops, measure, kind if corrupted is None else "prompts that were given")

    def moved(
        self, runs: Sequence[Edited], sites: Sequence[str], here: slice
    ) -> dict[str, Float[np.ndarray, "run example"]]:
        """How far the measure moves in each run with one component in one loop, as each way tells it.

        A measure that is not differentiable has no estimate, and one that is not linear is not split directly.

        Args:
            runs: the places, one a run.
            sites: the outputs that are replaced.
            here: the prompts of this batch.
        """
        made: dict[str, np.ndarray] = {}
        clean = self.prompts[here]
        if self.corrupted is not None:
            made |= self._patched(runs, sites, clean, self.corrupted[here])
        everywhere = all(place.tokens is None or clean.query in place.tokens for run in runs for place in run)
        if "weights" in self.subject.model.supports and everywhere and self._is_linear:
            made[DIRECT] = self._direct(runs, clean)
        return made

    def _patched(
        self, runs: Sequence[Edited], sites: Sequence[str], clean: PromptBatch, corrupted: PromptBatch
    ) -> dict[str, np.ndarray]:
        """Put the outputs of the clean run into the corrupted one, and estimate the same from one gradient."""
        model = self.subject.model
        base = AblatedRuns(model, corrupted, self.n_loops, sites)
        reading = {"n_loops": self.n_loops, "keep_loops": 1, "read_at": clean.read_at, "names": list(sites)}
        _, donor = model.run_with_cache(*clean.inputs, **reading)  # type: ignore[arg-type]
        before = self.measure(base.clean, clean)
        exact = np.empty((len(runs), clean.n_prompts), np.float32)

        def of_clean(place: Place) -> Tensor:
            return place.component.of(donor, place.loop)

        for group in base.groups(runs):
            with torch.no_grad():
                outputs = base.outputs([runs[i] for i in group], [of_clean] * len(group))
            exact[group] = to_numpy(torch.stack([self.measure(one, clean) - before for one in outputs]))
        if not self._is_differentiable:
            return {PATCHING: exact}
        _, slope = model.run_with_cache(
            *corrupted.inputs,
            **reading,  # type: ignore[arg-type]
            loss=lambda outputs: self.measure(outputs[-1], clean).sum(),
        )
        estimates = torch.stack([_estimate(place, donor, base.cache, slope.grads) for (place,) in runs])
        return {PATCHING: exact, ESTIMATE: to_numpy(estimates)}

    def _direct(self, runs: Sequence[Edited], clean: PromptBatch) -> Float[np.ndarray, "run example"]:
        """What each component writes towards the answer along the direct path, as the probe attribute splits it."""
        model = self.subject.model
        names = attribute.components(model)  # type: ignore[arg-type]
        measure = None if self.measure.name == ANSWER else self.measure
        parts, _, _ = attribute.contributions(model, clean, self.n_loops, measure)  # type: ignore[arg-type]
        return to_numpy(torch.stack([parts[place.loop, names.index(place.component.name)] for (place,) in runs]))

    @cached_property
    def _is_linear(self) -> bool:
        """Tell whether the probe attribute can split the measure."""
        try:
            attribute.check(
                self.subject,  # type: ignore[arg-type]
                attribute.AttributeConfig(),
                self.prompts,
                measure=None if self.measure.name == ANSWER else self.measure,
            )
        except LoopprobeError:
            return False
        return True

    @cached_property
    def _is_differentiable(self) -> bool:
        """Tell whether the measure has a gradient; it is computed of the answers of two prompts after a loop."""
        some = self.prompts[:2]
        with torch.no_grad():
            outputs = self.subject.model(*some.inputs, n_loops=1, read_at=some.read_at)[-1]
        try:
            self.measure(outputs.requires_grad_(), some)
        except LoopprobeError:
            return False
        return True


def _estimate(place: Place, donor: LoopCache, base: LoopCache, slope: LoopCache) -> Float[Tensor, " batch"]:
    """(clean − corrupted) · gradient at the corrupted run, over the tokens of a place."""
    clean, corrupted, gradient = (
        at_least_single(place.component.of(cache, place.loop)) for cache in (donor, base, slope)
    )
    product = ((clean - corrupted) * gradient).sum(-1)
    return product.sum(-1) if place.tokens is None else product[:, list(place.tokens)].sum(-1)
