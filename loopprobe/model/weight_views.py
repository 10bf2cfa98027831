"""Weights under TransformerLens's names and shapes; the parameters themselves live once, fused."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.FactoredMatrix import FactoredMatrix
from transformer_lens.utilities.matrix import composition_scores

from loopprobe.errors import LoopprobeError
from loopprobe.model.head_weights import HeadWeights, folded


class WeightViews:
    """The views of their weights that TransformerLens's models offer, of a looped model's weights."""

    cfg: Any
    blocks: Any
    read_in: Any
    read_out: Any
    ln_final: Any

    b_E = property(lambda self: self.read_in.bias)  # [d_model], of models of vectors
    W_U = property(lambda self: self.read_out.weight.T)  # [d_model, d_vocab_out], 1 for vectors
    b_U = property(lambda self: self.read_out.bias)  # [d_vocab_out]
    W_Q = property(lambda self: self._stacked("attn", "W_Q"))  # [layer, head, d_model, d_head]
    W_K = property(lambda self: self._stacked("attn", "W_K"))  # [layer, head, d_model, d_head]
    W_V = property(lambda self: self._stacked("attn", "W_V"))  # [layer, head, d_model, d_head]
    W_O = property(lambda self: self._stacked("attn", "W_O"))  # [layer, head, d_head, d_model]
    W_in = property(lambda self: self._stacked("mlp", "W_in"))  # [layer, d_model, d_mlp]
    W_gate = property(lambda self: self._stacked("mlp", "W_gate"))  # [layer, d_model, d_mlp], of gated MLPs
    W_out = property(lambda self: self._stacked("mlp", "W_out"))  # [layer, d_mlp, d_model]
    b_Q = property(lambda self: self._stacked("attn", "b_Q"))  # [layer, head, d_head]
    b_K = property(lambda self: self._stacked("attn", "b_K"))  # [layer, head, d_head]
    b_V = property(lambda self: self._stacked("attn", "b_V"))  # [layer, head, d_head]
    b_O = property(lambda self: self._stacked("attn", "b_O"))  # [layer, d_model]
    b_in = property(lambda self: self._stacked("mlp", "b_in"))  # [layer, d_mlp]
    b_out = property(lambda self: self._stacked("mlp", "b_out"))  # [layer, d_model]
    OV = property(lambda self: FactoredMatrix(self.W_V, self.W_O))  # [layer, head, d_model, d_model]
    QK = property(lambda self: FactoredMatrix(self.W_Q, self.W_K.mT))  # [layer, head, d_model, d_model]

    @property
    def W_E(self) -> Float[Tensor, "n_inputs d_model"]:
        """The vectors of tokens, [d_vocab, d_model], or of the dimensions of inputs, [n_dims, d_model]."""
        weight: Tensor = self.read_in.weight
        return weight if isinstance(self.read_in, nn.Embedding) else weight.T

    def _stacked(self, part: str, name: str) -> Tensor:
        return torch.stack([getattr(getattr(block, part), name) for block in self.blocks])

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """Sum of the output biases below ``layer`` within one loop, as TransformerLens defines it."""
        bias = torch.zeros_like(self.ln_final.weight)
        for block in self.blocks[:layer]:
            bias = bias + block.attn.b_O + (block.mlp.b_out if include_mlp_biases else 0)
        return bias + self.blocks[layer].attn.b_O if mlp_input else bias

    def all_head_labels(self) -> list[str]:
        """``L0H0``, ``L0H1`` and so on, layer by layer."""
        return [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]

    def head_weights(self, fold: bool | None = None) -> HeadWeights:
        """Return what every head of the loop reads and writes with.

        Args:
            fold: put the gains of norms into the weights, see ``model.head_weights.folded``. None: do.
        """
        n_layers, n_heads, d_model = self.cfg.n_layers, self.cfg.n_heads, self.cfg.d_model
        weights = HeadWeights(
            layers=tuple(layer for layer in range(n_layers) for _ in range(n_heads)),
            numbers=tuple(range(n_heads)) * n_layers,
            **{name: getattr(self, name).flatten(0, 1) for name in ("W_Q", "W_K", "W_V", "W_O")},
            between=None,
            is_added=self.cfg.injection != "multiply",
            n_free=d_model,
            words="as they stand" + (", before rotary turns" if self.cfg.positional_embedding_type == "rotary" else ""),
        )
        if fold is False:
            return weights
        gains = torch.stack([block.ln1.weight for block in self.blocks]).repeat_interleave(n_heads, 0)
        return folded(weights, gains, self.ln_final.weight, centred=self.cfg.normalization_type == "LN")

    def all_composition_scores(
        self, mode: Literal["Q", "K", "V"], *, next_loop: bool = False
    ) -> Float[Tensor, "layer head later_layer later_head"]:
        """Measure how much of what a head writes the queries, keys or values of another read.

        ‖OV · R‖ / (‖OV‖ ‖R‖) with Frobenius norms and R the QK circuit, its transpose, or the OV circuit of the later
        head (Elhage et al. 2021, "A mathematical framework for transformer circuits").

        Args:
            mode: what the later head reads with.
            next_loop: whether the later head stands in the next loop, where it may be of any layer; within a loop it
                must be of a later layer, and all other scores are zero, as in TransformerLens.

        Raises:
            LoopprobeError: there is no such mode.
        """
        if mode not in ("Q", "K", "V"):
            raise LoopprobeError(f"mode ({mode!r}) must be Q, K or V: choose one")
        right = {"Q": self.QK, "K": self.QK.T, "V": self.OV}[mode]
        scores = composition_scores(self.OV, right, broadcast_dims=True)
        if next_loop:
            return scores
        layers = torch.arange(self.cfg.n_layers, device=scores.device)
        is_later = layers[:, None, None, None] < layers[None, None, :, None]
        return torch.where(is_later, scores, torch.zeros_like(scores))
