"""One loop of a run as a TransformerLens ActivationCache, whose decompositions sum to the prediction.

TransformerLens expects models whose layer norms have been folded into the weights, and leaves gain and offset of a norm
out. Here the state that is fed back has both, so they cannot be folded: they are applied instead.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache

from loopprobe.model.in_hand import cache_html


class LoopActivationCache(ActivationCache):
    """The activations of one iteration under TransformerLens's names.

    Its ``hook_embed`` is the input of the loop (the state with the input injected), so that embedding, positions and
    the outputs of the layers add up to the residual stream of this loop. With ``apply_ln=True`` the components are
    multiplied by the gain of the norm, and its offset is one more component: through ``W_U`` and ``b_U`` they sum to
    the prediction.
    """

    def __getitem__(self, key: Any) -> Tensor:
        try:
            return super().__getitem__(key)
        except KeyError as error:
            names = sorted({name.rsplit("hook_", 1)[-1] for name in self.cache_dict})
            raise KeyError(
                f"{error.args[0]} is not in this cache: name it in run_with_cache(names=...), or leave names out to "
                f"keep everything; it keeps {', '.join(names)}"
            ) from None

    def _repr_html_(self) -> str:
        """Tell names, shapes and memory in a table, for a notebook."""
        return cache_html("activations of one loop", ((name, None, x) for name, x in self.cache_dict.items()))

    def decompose_resid(self, layer: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """Decompose as TransformerLens does; with ``apply_ln`` and all components, the norm's offset comes last."""
        wants_labels = kwargs.pop("return_labels", False)
        parts, labels = super().decompose_resid(layer, *args, return_labels=True, **kwargs)
        if kwargs.get("apply_ln") and kwargs.get("mode", "all") == "all" and kwargs.get("incl_embeds", True):
            offset = self._norm(layer, kwargs.get("mlp_input", False)).b
            parts, labels = torch.cat([parts, offset.expand_as(parts[:1])]), [*labels, "ln_bias"]
        return (parts, labels) if wants_labels else parts

    def stack_head_results(self, layer: int = -1, *args: Any, **kwargs: Any) -> Any:
        """Stack as TransformerLens does; with ``apply_ln``, the offset of the norm is in the remainder."""
        return self._with_offset(super().stack_head_results(layer, *args, **kwargs), layer, kwargs)

    def stack_neuron_results(self, layer: int, *args: Any, **kwargs: Any) -> Any:
        """Stack as TransformerLens does; with ``apply_ln``, the offset of the norm is in the remainder."""
        return self._with_offset(super().stack_neuron_results(layer, *args, **kwargs), layer, kwargs)

    def get_full_resid_decomposition(self, layer: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """Decompose as TransformerLens does; with ``apply_ln``, the last component, ``bias``, has the norm's offset."""
        result = super().get_full_resid_decomposition(layer, *args, **kwargs)
        return self._with_offset(result, layer, {**kwargs, "incl_remainder": True})

    def accumulated_resid(self, layer: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """Accumulate as TransformerLens does; with ``apply_ln`` every stage has passed the whole norm."""
        result = super().accumulated_resid(layer, *args, **kwargs)
        if not kwargs.get("apply_ln") or self._is_final(layer):
            return result
        offset = self._norm(layer, kwargs.get("mlp_input", False)).b
        return (result[0] + offset, result[1]) if kwargs.get("return_labels") else result + offset

    def apply_ln_to_stack(
        self,
        residual_stack: Float[Tensor, "component *batch_and_pos d_model"],
        layer: int | None = None,
        mlp_input: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> Float[Tensor, "component *batch_and_pos d_model"]:
        """Return what components add to the input of a layer or read-out: centred, scaled, times the gain.

        With ``recompute_ln`` each is normed by its own statistics instead, offset included, as the lens does.
        """
        result = super().apply_ln_to_stack(residual_stack, layer, mlp_input, *args, **kwargs)
        if kwargs.get("recompute_ln") and self._is_final(layer):
            return result
        return result * self._norm(layer, mlp_input).w

    def logit_attrs(
        self,
        residual_stack: Float[Tensor, "component *batch_and_pos d_model"],
        tokens: Any = None,
        incorrect_tokens: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Return what each component adds to the prediction, [component, batch, pos], along the read-out."""
        if tokens is not None or incorrect_tokens is not None:
            raise ValueError("predictions are numbers, not tokens: leave tokens out, the direction is the read-out's")
        return (self.apply_ln_to_stack(residual_stack, -1, *args, **kwargs) @ self.model.W_U)[..., 0]

    def logit_lens(self, **kwargs: Any) -> Any:
        """Refused: the lens over loops is a probe, ``probe("lens", checkpoint)``."""
        raise NotImplementedError('a lens on one loop has no vocabulary here: use probe("lens", checkpoint)')

    def _stack_neuron_results_apply_ln_projected(
        self, layer: int, pos_slice: Any, neuron_slice: Any, project_2d: Tensor, mlp_input: bool = False
    ) -> Tensor:
        gain = self._norm(layer, mlp_input).w[:, None]
        return super()._stack_neuron_results_apply_ln_projected(
            layer, pos_slice, neuron_slice, gain * project_2d, mlp_input
        )

    def _with_offset(self, result: Any, layer: int | None, options: dict[str, Any]) -> Any:
        """The same stack, the norm's offset added to its last component."""
        if not (options.get("apply_ln") and options.get("incl_remainder")):
            return result
        stack, *labels = result if options.get("return_labels") else (result,)
        offset = self._norm(layer, options.get("mlp_input", False)).b
        if (direction := options.get("project_output_onto")) is not None:
            offset = offset @ direction
        stack = torch.cat([stack[:-1], stack[-1:] + offset])
        return (stack, *labels) if labels else stack

    def _is_final(self, layer: int | None) -> bool:
        return layer in (None, -1, self.model.cfg.n_layers)

    def _norm(self, layer: int | None, mlp_input: bool) -> Any:
        """The norm that stands before a layer's attention or MLP, or before the read-out."""
        if self._is_final(layer):
            return self.model.ln_final
        block = self.model.blocks[layer]
        return block.ln2 if mlp_input else block.ln1
