"""Runs of a circuit: edges outside it carry what they carry in the corrupted run, all at once.

The input of every receiver is assembled anew from its senders: from a sender whose edge is in the circuit comes what
this sender computes now, of its own assembled input; from every other sender what it wrote in the corrupted run (Conmy
et al., arXiv 2304.14997; Hanna et al., arXiv 2403.17806). So the empty circuit is the corrupted run, and the circuit of
all edges the clean one.

What senders of earlier loops wrote comes to a receiver through the norms of all loops between, so that every receiver
has a residual stream of its own. Streams are copies of the batch that go through the loop together; those that have the
same edges so far are one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from loopprobe.model.hook_points import LoopHookPoint, short_name, split_name
from loopprobe.model.protocol import LoopedModel
from loopprobe.model.selection import selector
from loopprobe.probes.ablate_runs import TOKENS_AT_ONCE, Component
from loopprobe.probes.edge_runs import WRITTEN, receivers_of, senders_of
from loopprobe.probes.measures import Measure
from loopprobe.store.evaluate import chunk_size
from loopprobe.support.statistics import at_least_single
from loopprobe.tasks import PromptBatch

Circuit = Bool[ndarray, "from_loop sender to_loop receiver"]  # loops from 0; the last receiver is the read-out


class Wiring:
    """The components of a model: which of their inputs are receivers, and which edges can be.

    Args:
        senders, receivers: as ``edge_runs`` lists them, the read-out aside.
        n_loops: the iterations.
    """

    def __init__(self, senders: Sequence[Component | None], receivers: Sequence[Component], n_loops: int) -> None:
        self.senders, self.receivers, self.n_loops = list(senders), list(receivers), n_loops
        self.inputs = [
            [i for i, one in enumerate(receivers) if sender is not None and _is_of(one, sender)] for sender in senders
        ]

    @classmethod
    def of(cls, model: LoopedModel, n_loops: int) -> Wiring:
        """Read the components of a model."""
        return cls(senders_of(model), receivers_of(model), n_loops)

    def pruned(self, circuit: Circuit) -> Circuit:
        """Return the circuit without the edges that change nothing.

        These are the edges from which no way leads to the read-out, and those out of components that no clean input
        comes to, whose output is that of the corrupted run anyway.
        """
        order = [(loop, i) for loop in range(self.n_loops) for i in range(len(self.senders))]
        needed = np.zeros(circuit.shape[2:], bool)
        needed[-1, -1] = True
        for loop, i in reversed(order):
            if (circuit[loop, i] & needed).any():
                needed[loop, self.inputs[i]] = True
        reached = np.zeros(circuit.shape[:2], bool)
        for loop, i in order:
            into = circuit[:, :, loop, self.inputs[i]].any(-1)
            reached[loop, i] = self.senders[i] is None or bool((into & reached).any())
        return np.asarray(circuit & reached[:, :, None, None] & needed)

    def stages(self, circuit: Circuit) -> list[Stage]:
        """Plan the copies of every loop for a pruned circuit: the receivers that matter, those with equal edges as one.

        A receiver matters where its component has an edge in the circuit.
        """
        rows = [
            (loop, receiver)
            for loop in range(self.n_loops)
            for i, inputs in enumerate(self.inputs)
            if circuit[loop, i].any()
            for receiver in inputs
        ]
        rows.append((self.n_loops - 1, len(self.receivers)))
        ends, places = np.array(rows).T
        edges = circuit[:, :, ends, places]
        copies, made = np.zeros(len(rows), int), list[Stage]()
        for loop in range(self.n_loops):
            left = ends >= loop
            keys = np.column_stack([copies[left], edges[loop][:, left].T])
            unique, inverse = np.unique(keys, axis=0, return_inverse=True)
            copies[left] = inverse.ravel()  # numpy 2.0 gives it an axis more
            here = {int(places[i]): int(copies[i]) for i in np.flatnonzero(ends == loop)}
            made.append(Stage(unique[:, 0], unique[:, 1:].astype(bool), here))
        return made


@dataclass(frozen=True)
class Stage:
    """What is run in one loop.

    Attributes:
        parents: for each copy, the copy of the loop before whose state it begins with.
        current: for each copy, from which senders of this loop it gets what they compute now.
        copy_of: the copies that the receivers of this loop read from, by the number of the receiver.
    """

    parents: ndarray
    current: Bool[ndarray, "copy sender"]
    copy_of: dict[int, int]


class CircuitRuns:
    """The clean and the corrupted run of some prompts, and the runs of circuits.

    Args:
        model, n_loops: the model and its iterations.
        clean, corrupted: the prompts, as many of each.
        measure: what is measured of the answers; it is told the clean prompts.

    Attributes:
        before: what is measured of the clean run.
        total: what is measured of the corrupted run minus ``before``.
    """

    def __init__(
        self, model: LoopedModel, clean: PromptBatch, corrupted: PromptBatch, n_loops: int, measure: Measure
    ) -> None:
        self.model, self.prompts, self.n_loops, self.measure = model, clean, n_loops, measure
        self.wiring = Wiring.of(model, n_loops)
        self.places = {one: i for i, one in enumerate(self.wiring.receivers)}
        self.writers = {one: i for i, one in enumerate(self.wiring.senders)}
        reading: dict[str, Any] = {"n_loops": n_loops, "keep_loops": 1, "read_at": clean.read_at}
        outputs, embedded = model.run_with_cache(*clean.inputs, **reading, names=["embed"])
        self.e = embedded["hook_embed"]
        self.before = self._measured(outputs[-1])
        outputs, self.corrupted = model.run_with_cache(*corrupted.inputs, **reading, names=["embed", *WRITTEN])
        self.total = self._measured(outputs[-1]) - self.before

    def moved(self, circuit: Circuit) -> Float[Tensor, " batch"]:
        """How far the measure of a circuit's run is from the clean run."""
        stages = self.wiring.stages(self.wiring.pruned(circuit))
        most = max(len(stage.parents) for stage in stages) * self.prompts.n_tokens
        size = max(1, chunk_size(self.model.device) * TOKENS_AT_ONCE // most)
        starts = range(0, self.prompts.n_prompts, size)
        with torch.no_grad():
            outputs = [self._outputs(stages, slice(start, start + size)) for start in starts]
        return self._measured(torch.cat(outputs)) - self.before

    def _measured(self, outputs: Float[Tensor, "batch answer *value"]) -> Float[Tensor, " batch"]:
        return at_least_single(self.measure(outputs, self.prompts))

    def _outputs(self, stages: Sequence[Stage], here: slice) -> Float[Tensor, "batch answer *value"]:
        """The answers of some prompts after the last loop."""
        clean, corrupted = self.e[here], self.corrupted["hook_embed"][here]
        z = e = clean
        for loop, stage in enumerate(stages):
            e = _chosen(stage.current[:, 0], clean, corrupted)
            z = self.model.initial_state(e.flatten(0, 1)).unflatten(0, e.shape[:2]) if loop == 0 else z[stage.parents]
            wanted = selector([*WRITTEN, "q", "k", "v"], [loop], None, self.model)
            with self.model.hooks(fwd_hooks=[(wanted, self._hook(stage, loop, here))]):
                z = self.model.step(z.flatten(0, 1), e.flatten(0, 1), loop).unflatten(0, e.shape[:2])
        last = stages[-1].copy_of[len(self.wiring.receivers)]
        return self.model.predict(z[last], e[last], self.n_loops - 1, read_at=self.prompts.read_at)

    def _hook(self, stage: Stage, loop: int, here: slice) -> Callable[[Tensor, LoopHookPoint], Tensor]:
        """Let all copies compute with what receivers read from theirs, and write on what they are to get of it."""

        def read(x: Tensor, receiver: Component) -> Tensor:
            copy = x[stage.copy_of.get(self.places[receiver], 0)]
            return copy if receiver.head is None else copy[:, :, receiver.head]

        def hook(x: Tensor, hook: LoopHookPoint) -> Tensor:
            _, layer, _ = split_name(str(hook.name))
            assert layer is not None
            site, whole = short_name(str(hook.name)), x.shape
            x = x.unflatten(0, (len(stage.parents), -1))
            if site in ("q", "k", "v"):
                heads = [read(x, Component(site, layer, head)) for head in range(x.shape[3])]
                return torch.stack(heads, 2).expand_as(x).reshape(whole)
            corrupted = self.corrupted[loop, site, layer][here]
            if site == "mlp_out":
                writer = Component(site, layer)
                return _chosen(stage.current[:, self.writers[writer]], read(x, writer), corrupted).reshape(whole)
            writers = [self.writers[Component(site, layer, head)] for head in range(x.shape[3])]
            current = torch.as_tensor(stage.current[:, writers], device=x.device)
            return torch.where(current[:, None, None, :, None], x, corrupted).reshape(whole)

        return hook


def _chosen(current: Bool[ndarray, " copy"], now: Tensor, corrupted: Tensor) -> Float[Tensor, "copy batch pos width"]:
    """For each copy what is computed now, or what the corrupted run has."""
    wanted = torch.as_tensor(current, device=now.device)[:, None, None, None]
    return torch.where(wanted, now, corrupted)


def _is_of(receiver: Component, sender: Component) -> bool:
    """Tell whether a receiver is an input of the component whose output the sender is."""
    return (receiver.layer, receiver.head) == (sender.layer, sender.head)


def memory_of(model: LoopedModel, prompts: PromptBatch, n_loops: int) -> int:
    """The bytes that circuits of some prompts take at most: the corrupted run, and all streams of a prompt at once."""
    sizes, wiring = model.sizes, Wiring.of(model, n_loops)
    held = prompts.n_prompts * prompts.n_tokens * sizes.d_model * (2 + 2 * n_loops * sizes.n_layers)
    streams = n_loops * len(wiring.receivers) + 1
    together = max(streams * prompts.n_tokens, chunk_size(model.device) * TOKENS_AT_ONCE)
    return int(model.dtype.itemsize * (held + together * (12 * sizes.d_model + sizes.n_heads * prompts.n_tokens)))
