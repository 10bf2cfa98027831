"""Runs in which features are taken out of the state, or in which what a dictionary decodes takes its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from loopprobe.model.protocol import LoopedModel
from loopprobe.probes.dictionaries import Dictionaries
from loopprobe.probes.measures import Measure
from loopprobe.probes.pushes import Push, at_tokens, follow, random_pushes
from loopprobe.probes.steer_plan import Plan
from loopprobe.store.evaluate import batches
from loopprobe.support.statistics import to_numpy
from loopprobe.support.threads import Parallel
from loopprobe.tasks import PromptBatch
from loopprobe.types import Progress


@dataclass(frozen=True)
class Effects:
    """The measure of edited runs minus that of the run as it is, prompt by prompt.

    Attributes:
        clean: the measure of the run as it is, [example].
        ablated: of runs without one feature, [feature, example].
        random: of runs from which as much is taken in random directions, [control, feature, example].
        replaced: of runs whose state is what a dictionary decodes, [dictionary, example].
    """

    clean: np.ndarray
    ablated: np.ndarray
    random: np.ndarray
    replaced: np.ndarray


def edited_runs(
    model: LoopedModel,
    prompts: PromptBatch,
    plan: Plan,
    dictionary: Dictionaries,
    features: list[int],
    replacing: list[Dictionaries],
    measure: Measure,
    controls: int,
    seed: int,
    progress: Progress,
) -> Effects:
    """Run without each feature, with random directions in its place, and on what dictionaries decode.

    Args:
        model, prompts: the model and what it runs on.
        plan: the loops and tokens that are edited, and the loop at which the answer is read.
        dictionary: the shared one, whose features are ablated.
        features: their numbers.
        replacing: dictionaries, each shared by all loops or one for each.
        measure: what is measured.
        controls: how many random directions there are for each feature.
        seed: of these.
        progress: wraps the features and dictionaries of all batches.
    """
    with torch.no_grad():
        runs = [_Run(model, batch, plan, measure) for batch in batches(model, prompts)]
        clean = [run({}) for run in runs]

    def answers(part: tuple[int, int | Dictionaries]) -> np.ndarray:
        number, job = part
        run = runs[number]
        with torch.no_grad():
            if isinstance(job, Dictionaries):
                return run(run.edits(_replaced(job)))[None] - clean[number]
            taken: dict[int, Tensor] = {}
            made = [run(run.edits(_without(dictionary, job, taken)))]
            generator = torch.Generator().manual_seed(seed + job + number * dictionary.decoder.shape[1])
            for _ in range(controls):
                drawn = {loop: random_pushes(one, model.sizes.d_model, generator) for loop, one in taken.items()}
                made.append(run(run.edits(lambda z, loop, drawn=drawn: -drawn[loop])))  # type: ignore[misc]
            return np.stack(made) - clean[number]

    jobs: list[int | Dictionaries] = [*features, *replacing]
    parts = [(number, job) for number in range(len(runs)) for job in jobs]
    threads = torch.get_num_threads() if "threads" in model.supports else 1
    done = list(progress(Parallel(answers, parts, threads)))
    whole = [np.concatenate(done[i :: len(jobs)], -1) for i in range(len(jobs))]  # [1 and controls, example] of each
    of_features, of_dictionaries = whole[: len(features)], whole[len(features) :]
    return Effects(
        np.concatenate(clean),
        np.stack([one[0] for one in of_features]),
        np.stack([one[1:] for one in of_features], axis=1),
        np.concatenate(of_dictionaries),
    )


Edit = Callable[[Tensor, int], Tensor]  # from the states at the edited tokens and the loops done to what is added there


class _Run:
    """One batch, run again and again with other edits."""

    def __init__(self, model: LoopedModel, batch: PromptBatch, plan: Plan, measure: Measure) -> None:
        self.model, self.batch, self.plan, self.measure = model, batch, plan, measure
        self.e = model.embed(*model.prepare(*batch.inputs))

    def edits(self, edit: Edit) -> dict[int, Push]:
        """The edit at every chosen loop and token."""
        tokens = self.plan.tokens

        def at(loop: int) -> Push:
            return lambda z: at_tokens(edit(z[:, tokens], loop), z, tokens)

        return {loop: at(loop) for loop in self.plan.pushed if loop <= self.plan.read_loop}

    def __call__(self, pushes: Mapping[int, Push]) -> np.ndarray:
        """The measure of the run with these pushes."""
        model, last = self.model, self.plan.read_loop
        start = model.initial_state(self.e)
        *_, z = follow(lambda z, loop: model.step(z, self.e, loop), start, 0, last, pushes)
        outputs = model.predict(z, self.e, last - 1, read_at=self.batch.read_at)
        return to_numpy(self.measure(outputs, self.batch))


def _without(dictionary: Dictionaries, feature: int, taken: dict[int, Tensor]) -> Edit:
    """Take a feature's contribution out of the state, and note how long it was."""

    def edit(z: Tensor, loop: int) -> Tensor:
        activations = dictionary.encode(z.float().flatten(0, 1)[None])[0, :, feature].unflatten(0, z.shape[:2])
        taken[loop] = activations
        return -activations[..., None] * dictionary.decoder[0, feature]

    return edit


def _replaced(dictionaries: Dictionaries) -> Edit:
    """Put what the dictionary of the loop decodes in the place of the state."""

    def edit(z: Tensor, loop: int) -> Tensor:
        own, flat = dictionaries[loop - 1], z.float().flatten(0, 1)[None]
        return (own.decode(own.encode(flat)) - flat)[0].unflatten(0, z.shape[:2])

    return edit
