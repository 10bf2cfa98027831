"""Direct effects between components, within a loop and from one loop to later ones.

An edge goes from the output of a sender (the injected input of a loop, a head, an MLP) to the input of a receiver: a
head's query, key or value, an MLP, or the read-out. Its direct effect is what the answer changes when the receiver
alone is told that the sender wrote what it writes in the corrupted run (path patching, Wang et al., arXiv 2211.00593).

Two passes give it exactly. In the first the sender writes its corrupted output and every other head and MLP what it
wrote in the clean run, so that the change goes along the residual stream alone, through the norms of all loops between:
what the receiver then computes is noted. In the second, an otherwise clean run, the receiver computes that. The first
pass of a sender serves all of its receivers; instead of the second, a gradient estimates all of them at once
(attribution patching, Syed et al., arXiv 2310.10348), as a mean over prompts between the corrupted and the clean ones
(Hanna et al., arXiv 2403.17806).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loopprobe.model.hook_points import LoopHookPoint, short_name, split_name
from loopprobe.model.interventions import edited
from loopprobe.model.protocol import LoopedModel
from loopprobe.model.selection import selector
from loopprobe.probes.ablate_runs import SITES, AblatedRuns, Component, Place, components_of
from loopprobe.probes.measures import Measure
from loopprobe.support.statistics import at_least_single
from loopprobe.tasks import PromptBatch

WRITTEN, READ = SITES, ("q", "k", "v", "mlp_out")
INPUT = "input"  # the sender that is the injected input of a loop, and with the first the state that it starts from
READ_OUT = "read-out"  # the receiver after the last loop
Senders = Sequence[Component | None]
Noted = Callable[[int, Component, Float[Tensor, "sender batch pos width"]], None]


def senders_of(model: LoopedModel) -> list[Component | None]:
    """The senders of a loop: the injected input (None), then heads and the MLP, layer by layer."""
    return [None, *components_of(model, WRITTEN)]


def receivers_of(model: LoopedModel) -> list[Component]:
    """The receivers of a loop but for the read-out: query, key and value of each head, and the MLP, layer by layer."""
    sizes, made = model.sizes, list[Component]()
    for layer in range(sizes.n_layers):
        made += [Component(part, layer, head) for head in range(sizes.n_heads) for part in "qkv"]
        made.append(Component("mlp_out", layer))
    return made


def sender_name(sender: Component | None) -> str:
    """``input``, ``head 0.1`` or ``MLP 0``."""
    return INPUT if sender is None else sender.name


def receiver_name(receiver: Component) -> str:
    """``head 0.1 q`` or ``MLP 0``."""
    return receiver.name if receiver.head is None else f"{receiver.name} {receiver.site}"


@dataclass(frozen=True)
class Edge:
    """An edge between loops, which count from 0; a receiver of None is the read-out."""

    from_loop: int
    sender: Component | None
    to_loop: int
    receiver: Component | None


class EdgeRuns:
    """The clean and the corrupted run of one batch, and the runs with direct effects.

    Args:
        model, n_loops: the model and its iterations.
        clean, corrupted: the prompts, as many of each.
        measure: what is measured of the answers; it is told the clean prompts.
        steps: prompts between the corrupted and the clean ones at which gradients are taken; 1: at the clean ones.
    """

    def __init__(
        self,
        model: LoopedModel,
        clean: PromptBatch,
        corrupted: PromptBatch,
        n_loops: int,
        measure: Measure,
        steps: int,
    ) -> None:
        self.model, self.prompts, self.n_loops, self.measure = model, clean, n_loops, measure
        reading: dict[str, Any] = {"n_loops": n_loops, "keep_loops": 1, "read_at": clean.read_at}
        self.runs = AblatedRuns(model, clean, n_loops, (*WRITTEN, "q", "k", "v"))
        self.clean, self.e = self.runs.cache, self.runs.cache["hook_embed"]
        outputs, self.corrupted = model.run_with_cache(*corrupted.inputs, **reading, names=["embed", *WRITTEN])
        self.before = self.measured(self.runs.clean)
        self.total = self.measured(outputs[-1]) - self.before
        self.slopes: dict[tuple[str, int], Float[Tensor, "loop batch pos ..."]] = {}
        for step in range(1, steps + 1):
            between = self.corrupted["hook_embed"] + step / steps * (self.e - self.corrupted["hook_embed"])
            self._add_slopes(reading, between, 1 / steps)

    def measured(self, outputs: Float[Tensor, "batch answer *value"]) -> Float[Tensor, " batch"]:
        """What is measured of the outputs after the last loop."""
        return at_least_single(self.measure(outputs, self.prompts))

    def _add_slopes(self, reading: dict[str, Any], e: Tensor, share: float) -> None:
        with edited(self.model, "embed", lambda x, hook: e):  # type: ignore[arg-type]
            _, cache = self.model.run_with_cache(
                *self.prompts.inputs,
                **reading,
                names=list(READ),
                loss=lambda outputs: self.measured(outputs[-1]).sum(),
            )
        for site in READ:
            for layer in range(self.model.sizes.n_layers):
                slope = share * cache.grads.stack(site, layer)
                key = site, layer
                self.slopes[key] = self.slopes[key] + slope if key in self.slopes else slope

    def first_pass(
        self, loop: int, senders: Senders, noted: Noted, until: int | None = None
    ) -> Float[Tensor, "sender batch"]:
        """Let a sender write its corrupted output and all else stay clean, and return the effect on the answer.

        Args:
            loop: of the senders, from 0.
            senders: one a copy of the prompts.
            noted: is told, in every loop from this one on, what each receiver computes.
            until: the last loop whose receivers are of interest; None: go on to the read-out.
        """
        copies, n_prompts = len(senders), self.prompts.n_prompts

        def hook(x: Tensor, hook: LoopHookPoint) -> Tensor | None:
            now, layer, _ = split_name(str(hook.name))
            assert now is not None
            assert layer is not None
            site = short_name(str(hook.name))
            x = x.unflatten(0, (copies, n_prompts))
            if site in READ:
                heads: list[int | None] = [None] if site == "mlp_out" else list(range(self.model.sizes.n_heads))
                for head in heads:
                    noted(now, Component(site, layer, head), x if head is None else x[:, :, :, head])
            if site not in WRITTEN:
                return None
            kept = self.clean[now, site, layer].expand_as(x).clone()
            for i, sender in enumerate(senders):
                if now == loop and sender is not None and (sender.site, sender.layer) == (site, layer):
                    at = kept[i] if sender.head is None else kept[i, :, :, sender.head]
                    at[:] = sender.of(self.corrupted, loop)
            return kept.flatten(0, 1)

        wrong = self.corrupted["hook_embed"]
        e, z = (x.expand(copies, *x.shape).clone() for x in (self.e, self.clean[loop, "z_pre"]))
        changed = e.clone()
        for i, sender in enumerate(senders):
            if sender is None:
                changed[i] = wrong
                z[i] = self.model.initial_state(wrong) if loop == 0 else z[i]
        e, z, changed = (x.flatten(0, 1) for x in (e, z, changed))
        last = self.n_loops - 1 if until is None else until
        wanted = selector([*WRITTEN, "q", "k", "v"], range(loop, last + 1), None, self.model)
        with torch.no_grad(), self.model.hooks(fwd_hooks=[(wanted, hook)]):
            for now in range(loop, last + 1):
                z = self.model.step(z, changed if now == loop else e, now)
            if until is not None:
                return self.before.new_zeros(copies, n_prompts)
            outputs = self.model.predict(z, e, last, read_at=self.prompts.read_at).unflatten(0, (copies, n_prompts))
        return torch.stack([self.measured(one) - self.before for one in outputs])

    def estimated(
        self, loop: int, senders: Senders
    ) -> tuple[Float[Tensor, "sender later receiver batch"], Float[Tensor, "sender batch"]]:
        """Estimate all edges out of a loop, to every receiver from this loop on; those to the read-out are exact.

        Nothing but one number for each edge and prompt is kept.
        """
        receivers = {receiver: i for i, receiver in enumerate(receivers_of(self.model))}
        shape = len(senders), self.n_loops - loop, len(receivers), self.prompts.n_prompts
        moves = torch.zeros(shape, device=self.e.device, dtype=self.before.dtype)

        def note(now: int, receiver: Component, x: Tensor) -> None:
            slope = self.slopes[receiver.site, receiver.layer][now]
            slope = slope if receiver.head is None else slope[:, :, receiver.head]
            change = at_least_single(x - receiver.of(self.clean, now))
            moves[:, now - loop, receivers[receiver]] = (change * at_least_single(slope)).sum((-1, -2))

        return moves, self.first_pass(loop, senders, note)

    def exact(self, edges: Sequence[Edge]) -> Float[Tensor, "edge batch"]:
        """The direct effects of edges, by two passes; edges with one sender share the first."""
        made = torch.zeros(len(edges), self.prompts.n_prompts, device=self.e.device, dtype=self.before.dtype)
        by_sender: dict[tuple[int, Component | None], list[int]] = {}
        for i, edge in enumerate(edges):
            by_sender.setdefault((edge.from_loop, edge.sender), []).append(i)
        for (loop, sender), places in by_sender.items():
            wanted = {(edges[i].to_loop, edges[i].receiver) for i in places}
            computed: dict[tuple[int, Component], Tensor] = {}

            def note(now: int, receiver: Component, x: Tensor, wanted: Any = wanted, computed: Any = computed) -> None:
                if (now, receiver) in wanted:
                    computed[now, receiver] = x[0].clone()

            to_read_out = any(edges[i].receiver is None for i in places)
            until = None if to_read_out else max(edges[i].to_loop for i in places)
            answer = self.first_pass(loop, [sender], note, until)[0]
            second = [i for i in places if edges[i].receiver is not None]
            runs = [(Place(edges[i].receiver, edges[i].to_loop),) for i in second]  # type: ignore[arg-type]

            def value(place: Place, computed: Any = computed) -> Tensor:
                return computed[place.loop, place.component]

            for group in self.runs.groups(runs):
                with torch.no_grad():
                    outputs = self.runs.outputs([runs[j] for j in group], [value] * len(group))
                for j, one in zip(group, outputs, strict=True):
                    made[second[j]] = self.measured(one) - self.before
            for i in set(places) - set(second):
                made[i] = answer
        return made


def memory_of(model: LoopedModel, prompts: PromptBatch, n_loops: int) -> int:
    """The bytes that the runs of one batch of prompts take: clean and corrupted outputs, and the graph of a gradient.

    Counted are five vectors of the width of a layer's heads and of its MLP's output for the caches, their gradients and
    their sum, and as much again for the graph.
    """
    sizes = model.sizes
    width = 4 * sizes.d_model + 2 * sizes.d_model
    of_loop = prompts.n_prompts * prompts.n_tokens * sizes.n_layers * (width * 4)
    graph = (
        prompts.n_prompts * prompts.n_tokens * sizes.n_layers * (12 * sizes.d_model + sizes.n_heads * prompts.n_tokens)
    )
    return int(model.dtype.itemsize * n_loops * (of_loop + graph))
