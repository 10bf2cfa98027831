"""Options that users of TransformerLens type, under the names that they have here."""

from __future__ import annotations

from typing import Any

from loopprobe.errors import LoopprobeError

_OPTIONS = {  # of TransformerLens, and what they are here
    "stop_at_layer": "layers lie within a loop: give stop_at_loop to model(...), or edit with skipped()",
    "start_at_layer": "layers lie within a loop: go on from a state with model.step(z, e, loop)",
    "incl_bwd": "give loss=, a function from the predictions to one number; gradients come as cache.grads",
    "reset_hooks_end": "hooks of a run are always removed at its end: use model.hooks(..., reset_hooks_end=False)",
    "clear_contexts": "use model.clear_contexts()",
    "return_cache_object": "the cache is always a LoopCache: dict(cache) is a plain dict",
    "prepend_bos": "prompts here are tensors: give them as the first arguments",
    "tokens": "prompts here are tensors: give them as the first arguments",
    "loss_per_token": "compare the predictions with ys",
}


def refuse_options(options: dict[str, Any]) -> None:
    """Raise for keyword arguments that are not known here, with our name where TransformerLens has them.

    Raises:
        LoopprobeError: an option of TransformerLens that has another name here, or no meaning.
        TypeError: any other.
    """
    for name, value in options.items():
        if name == "return_type" and value in ("logits", "predictions"):
            continue
        if name == "return_type":
            raise LoopprobeError(f"return_type ({value!r}) must be 'predictions': compute a loss from them and ys")
        if name in _OPTIONS:
            raise LoopprobeError(f"{name} is not an option here: {_OPTIONS[name]}")
        raise TypeError(f"unexpected keyword argument {name!r}")


def one_of(ours: str, value: Any, theirs: str, other: Any) -> Any:
    if value is not None and other is not None:
        raise LoopprobeError(f"{ours} and {theirs} are the same option: give one of them")
    return other if value is None else value
