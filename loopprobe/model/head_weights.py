"""What every head of a loop reads and writes with, however its model stores it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.FactoredMatrix import FactoredMatrix

from loopprobe.support.statistics import double


@dataclass(frozen=True)
class HeadWeights:
    """The weights of heads, layer by layer, under TransformerLens's names.

    Attributes:
        layers, numbers: of each head its layer, and its number within it, from 0.
        W_Q, W_K, W_V: the maps from the residual stream to queries, keys and values; of keys and values that several
            heads share each head has a copy.
        W_O: the map from a head's output to the residual stream.
        between: the map of the norm that stands between two loops, from the stream that leaves one to that which enters
            the next, but for its division by the size of a token's state; None: it is left out.
        is_added: whether what a head writes is still in the stream of the next loop as it was written, but for
            ``between``; not where the state is multiplied by the input, or goes through an adapter.
        n_free: the dimensions of the stream that matter: one less than its width where norms take away the mean.
        words: how the weights are read, with or without norms.
    """

    layers: tuple[int, ...]
    numbers: tuple[int, ...]
    W_Q: Float[Tensor, "head d_model d_head"]
    W_K: Float[Tensor, "head d_model d_head"]
    W_V: Float[Tensor, "head d_model d_head"]
    W_O: Float[Tensor, "head d_head d_model"]
    between: Float[Tensor, "d_model d_model"] | None
    is_added: bool
    n_free: int
    words: str

    @property
    def names(self) -> list[str]:
        """The names that other probes give these heads too."""
        return [f"head {layer}.{head}" for layer, head in zip(self.layers, self.numbers, strict=True)]

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of every head: what it writes, for what it reads [head, d_model, d_model]."""
        return FactoredMatrix(self.W_V, self.W_O)

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_Kᵀ of every head: how well what asks goes with what is asked [head, d_model, d_model]."""
        return FactoredMatrix(self.W_Q, self.W_K.mT)

    def chosen(self, places: Sequence[int]) -> HeadWeights:
        """The weights of some of the heads, in float64 where the device has it."""
        at = list(places)
        parts: dict[str, Any] = {
            name: double(getattr(self, name)[at].detach()) for name in ("W_Q", "W_K", "W_V", "W_O")
        }
        return replace(
            self,
            layers=tuple(self.layers[i] for i in at),
            numbers=tuple(self.numbers[i] for i in at),
            between=None if self.between is None else double(self.between.detach()),
            **parts,
        )

    def reader(self, mode: str, *, next_loop: bool) -> FactoredMatrix:
        """What a head reads with, as the right factor of a composition [head, d_model, d_model].

        It is the QK circuit for the queries (Q), its transpose for the keys (K), and the OV circuit for the values (V).
        In the next loop the side that reads comes behind ``between``.
        """
        read, other = {"Q": (self.W_Q, self.W_K.mT), "K": (self.W_K, self.W_Q.mT), "V": (self.W_V, self.W_O)}[mode]
        return FactoredMatrix(self.between @ read if next_loop and self.between is not None else read, other)


def folded(
    weights: HeadWeights, gains: Float[Tensor, "head d_model"], between: Tensor, *, centred: bool
) -> HeadWeights:
    """Put the gains of norms into the weights that read behind them, as TransformerLens's ``fold_ln`` does.

    Where norms take away the mean, weights that read lose it, and so do weights that write
    (``center_writing_weights``): no norm sees the direction in which all dimensions are alike.

    Args:
        weights: the weights as they are.
        gains: of the norm in front of each head's attention.
        between: the gain of the norm between two loops [d_model].
        centred: whether the norms take away the mean.
    """

    def read(matrix: Tensor) -> Tensor:
        scaled = gains[:, :, None] * matrix
        return scaled - scaled.mean(1, keepdim=True) if centred else scaled

    gain = torch.diag(between)
    return replace(
        weights,
        W_Q=read(weights.W_Q),
        W_K=read(weights.W_K),
        W_V=read(weights.W_V),
        W_O=weights.W_O - weights.W_O.mean(-1, keepdim=True) if centred else weights.W_O,
        between=gain - gain.mean(0, keepdim=True) if centred else gain,
        n_free=weights.n_free - int(centred),
        words=f"{weights.words}, with gains of norms folded in" + (" and means taken away" if centred else ""),
    )
