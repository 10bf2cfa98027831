"""The view that every probe has of a model, whoever made it: a prelude, a loop, a coda, and hook points in every loop.

e = embed(inputs);  z_0 = initial_state(e);  z_{t+1} = step(z_t, e);  outputs_t = predict(z_{t+1}, e)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from loopprobe.errors import LoopprobeError
from loopprobe.model.cache import LoopCache

Capability = Literal[
    "causal",  # a token's state depends on no later token
    "past",  # a LoopedTransformer, causal, without coda or hooks: step(…, past=…) goes on behind known keys and values
    "pattern",  # attn.hook_pattern exists
    "linear_readout",  # to_state and unembed exist: outputs are an affine map of the state of their token
    "forward_mode",  # step has a forward-mode derivative
    "map",  # step takes a state, which is all that goes from loop to loop
    "autonomous",  # step is the same map in every loop, so that it has fixed points
    "generate",  # the module generates text
    "gate",  # hook_gate exists: the logit, in every loop and at every token, that it stops there
    "threads",  # several threads can run it at once, each some prompts
    "weights",  # the weights of a LoopedTransformer, under TransformerLens's names
    "heads",  # head_weights exists: what every head of the loop reads and writes with
]
MEANS: dict[str, str] = {
    "causal": "causal attention",
    "past": "steps behind known keys and values",
    "pattern": "hook points on attention patterns",
    "linear_readout": "a read-out of the residual stream",
    "forward_mode": "forward-mode derivatives of its loop",
    "map": "a state that is all that goes from loop to loop",
    "autonomous": "a loop that does the same every time (no loop embedding, and no hook in some loops alone)",
    "generate": "generation of text",
    "gate": "a gate that tells when to stop",
    "threads": "runs in several threads at once",
    "weights": "the weights of a LoopedTransformer",
    "heads": "heads that are their projections alone",
}


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model.

    Attributes:
        n_layers: of its loop.
        n_heads: of a layer.
        d_model: the width of its state.
        n_loops: as trained.
        n_ctx: the most tokens that it reads.
    """

    n_layers: int
    n_heads: int
    d_model: int
    n_loops: int
    n_ctx: int


@runtime_checkable
class LoopedModel(Protocol):
    """A model whose core is applied again and again, with hook points ``loops.{t}.…`` that probes can use."""

    @property
    def supports(self) -> frozenset[Capability]:
        """The capabilities that it has besides the methods here; probes declare what they need."""

    @property
    def tokens_per_point(self) -> int:
        """The number of tokens of one example."""

    @property
    def sizes(self) -> Sizes:
        """Layers, heads, width, loops as trained, and the most tokens."""

    @property
    def value_size(self) -> int:
        """The numbers of one answer, such as the size of the vocabulary."""

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its state."""

    def __call__(
        self, *inputs: Any, n_loops: int | None = None, keep_loops: int | None = None, read_at: Any = None
    ) -> Tensor:
        """Outputs [loop, batch, answer, *value] after every loop, or the last ``keep_loops``.

        With ``n_loops`` None, as many loops as trained are run. Answers are read at the tokens ``read_at``; None stands
        for all where this model answers.

        Raises:
            LoopprobeError: inputs or counts that do not fit the model.
        """

    def run_with_cache(
        self,
        *inputs: Any,
        n_loops: int | None = None,
        keep_loops: int | None = None,
        read_at: Any = None,
        names: Any = None,
        loops: Any = None,
        layers: Any = None,
        positions: Any = None,
        loss: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, LoopCache]:
        """Outputs, and the activations that were asked for; with ``loss``, their gradients too."""

    def hooks(self, fwd_hooks: Any = (), bwd_hooks: Any = ()) -> AbstractContextManager[Any]:
        """Attach hooks while a block lasts."""

    def to(self, *target: Any) -> Any:
        """The same model, moved to another device or precision."""

    def prepare(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Inputs in the model's precision and on its device; LoopprobeError where they do not fit."""

    def embed(self, *inputs: Tensor) -> Tensor:
        """The injected input e [batch, pos, d_model], of prepared inputs."""

    def initial_state(self, e: Tensor) -> Tensor:
        """The state that the loop starts from, [batch, pos, d_model]."""

    def step(self, z: Tensor, e: Tensor, loop: int = 0, past: Sequence[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """One iteration; it passes the hooks of ``loop``. ``past`` is given only where the model supports it."""

    def predict(self, z: Tensor, e: Tensor | None = None, loop: int = 0, first: int = 0, read_at: Any = None) -> Tensor:
        """The outputs [batch, answer, *value] at the tokens ``read_at`` of a state whose first token is ``first``."""

    def to_state(self, resid: Tensor) -> Tensor:
        """The state that a residual stream would be, were its layer the last of the loop (the final norm)."""

    def unembed(self, states: Tensor) -> Tensor:
        """The outputs [..., *value] of states [..., d_model] at the tokens where answers stand."""


def require(
    model: LoopedModel, needs: frozenset[str], label: str, what: str, remedy: str = "choose another probe or model"
) -> None:
    """Raise LoopprobeError where a model lacks what a probe needs.

    Args:
        model: the model.
        needs: capabilities.
        label: what the model is called.
        what: what the probe is called.
        remedy: what can be done about it.
    """
    if missing := sorted(needs - model.supports):
        lacks = " and ".join(MEANS.get(one, one) for one in missing)
        raise LoopprobeError(f"{what} needs {lacks}, which {label} has not: {remedy}")
