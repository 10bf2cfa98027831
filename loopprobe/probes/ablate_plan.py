"""The options of an ablation, and the runs that follow from them."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from loopprobe.config.selection import Choice, resolve
from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.probes.ablate_runs import Component, Edited, Place, components_of
from loopprobe.probes.loops import chosen_tokens, last_token
from loopprobe.store.subject import Subject
from loopprobe.tasks import PromptBatch

Method = Literal["zero", "mean", "resample", "optimal"]


@configuration
class AblateConfig:
    """What is ablated, where, and by what.

    Attributes:
        methods: what replaces an output: ``zero``; its ``mean`` over the prompts, token by token; that of another
            prompt (``resample``); or the ``optimal`` constant, fitted on further prompts, see ``probes.constants``.
        sites: ``attn_z``, the output of each head, and ``mlp_out``, that of each MLP.
        loops: iterations that are run; the answer is read after the last. None: as many as trained.
        read_loop: the loop after which the answer is read instead, from 1.
        in_loops: the loops in which something is ablated, from 1, see ``config.selection``. None: all.
        layers, heads, positions: those that are ablated, from 0. None: all.
        each_position: ablate each of the positions in a run of its own; otherwise all of them at once.
        together: also ablate each component in all of ``in_loops`` at once.
        agreement: also rank the same places by activation patching, by its estimate and by direct attribution, as far
            as the model and the prompts allow.
        measure: what is measured of the answers, see ``probes.measures``.
        corruption: how prompts are corrupted for activation patching, see the probe patch. None: the usual way.
        fit_prompts: the further prompts that optimal constants are fitted on.
        fit_steps: the steps of that.
        seed: of resampling.
    """

    methods: tuple[Method, ...] = ("mean",)
    sites: tuple[Literal["attn_z", "mlp_out"], ...] = ("attn_z", "mlp_out")
    loops: PositiveInt | None = None
    read_loop: PositiveInt | None = None
    in_loops: Choice | None = None
    layers: Choice | None = None
    heads: Choice | None = None
    positions: Choice | None = None
    each_position: bool = False
    together: bool = True
    agreement: bool = True
    measure: str = "error"
    corruption: str | None = None
    fit_prompts: PositiveInt = 64
    fit_steps: NonNegativeInt = 30
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        for name in ("methods", "sites"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise LoopprobeError(f"{name} ({','.join(values)}) must name each once, and at least one: change it")
        if self.loops is not None and self.read_loop is not None and self.read_loop > self.loops:
            raise LoopprobeError(
                f"read_loop ({self.read_loop}) must be at most loops ({self.loops}): no answer is there later"
            )


@dataclasses.dataclass(frozen=True)
class Plan:
    """The runs of an ablation.

    Attributes:
        n_loops: iterations up to the one after which the answer is read.
        components: what is ablated.
        loops: in which loops, from 0.
        tokens: at which tokens, each set in runs of its own; None stands for all tokens.
        singles: the runs with one component in one loop, [component, loop, token] in this order.
        together: the runs with one component in all loops, [component, token].
    """

    n_loops: int
    components: list[Component]
    loops: list[int]
    tokens: list[tuple[int, ...] | None]
    singles: list[Edited]
    together: list[Edited]

    @classmethod
    def of(cls, subject: Subject, prompts: PromptBatch, config: AblateConfig) -> Plan:
        """Make the plan of a configuration.

        Raises:
            LoopprobeError: it names something that is not there.
        """
        n_loops = config.loops or subject.loops_of(prompts)
        if (config.read_loop or 0) > n_loops:
            raise LoopprobeError(
                f"read_loop ({config.read_loop}) must be at most {n_loops}, the loops that are run: raise loops"
            )
        n_loops = config.read_loop or n_loops
        chosen = resolve(config.in_loops, n_loops, "loop", first=1)
        loops = list(range(n_loops)) if chosen is None else sorted(chosen)
        tokens: list[tuple[int, ...] | None] = [None]
        if config.positions is not None or config.each_position:
            last = last_token(subject, prompts)
            places = chosen_tokens("all" if config.positions is None else config.positions, prompts, last)
            tokens = [(place,) for place in places] if config.each_position else [tuple(places)]
        components = components_of(subject.model, config.sites, config.layers, config.heads)
        singles: list[Edited] = [(Place(one, loop, at),) for one in components for loop in loops for at in tokens]
        together: list[Edited] = [tuple(Place(one, loop, at) for loop in loops) for one in components for at in tokens]
        return cls(n_loops, components, loops, tokens, singles, together if config.together else [])
