"""An open TransformerBridge of TransformerLens, wrapped as it is: its hook points become points of every loop.

A bridge keeps the last loop alone, as each of its hook points is passed again in every loop. Here they keep their names
within a layer: ``L_blocks.0.attn.q.hook_out`` becomes ``loops.{t}.blocks.{l}.attn.q.hook_out``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from loopprobe.model.hook_points import dims
from loopprobe.wrapped.anatomy import Anatomy, loop_count


def original_of(model: Any) -> nn.Module | None:
    """Return the module that a bridge holds; None where the model is no bridge."""
    if any(kind.__name__ == "TransformerBridge" for kind in type(model).__mro__):
        original: nn.Module = model.original_model
        return original
    return None


def with_points_of(bridge: Any, module: nn.Module, anatomy: Anatomy, inputs: Sequence[Tensor]) -> Anatomy:
    """Return the anatomy with the bridge's hook points in the core layers as further sites.

    Only points that every layer of the core passes, with activations [batch, pos, …] or patterns, are sites. The bridge
    computes its attention itself, past transformers' interface.
    """
    names: dict[int, str] = {}
    for name, point in bridge.hook_dict.items():
        names.setdefault(id(point), name)  # aliases come behind
    passed = _passed(module, anatomy, inputs, names)
    every: list[dict[str, str]] = []
    for path in anatomy.core:
        layer = module.get_submodule(path)
        prefix = names.get(id(getattr(layer, "hook_in", None)), "").removesuffix("hook_in")
        if not prefix:
            return anatomy  # a layer that the bridge has left as it was
        inside = {names[id(part)]: at for at, part in layer.named_modules() if id(part) in passed}
        every.append({name.removeprefix(prefix): at for name, at in inside.items() if name.startswith(prefix)})
    common = {local: at for local, at in every[0].items() if all(sites.get(local) == at for sites in every)}
    return dataclasses.replace(anatomy, sites={**common, **anatomy.sites}, attention=None)


def _passed(module: nn.Module, anatomy: Anatomy, inputs: Sequence[Tensor], names: Mapping[int, str]) -> set[int]:
    """Return those of the hook points that a run passes with activations [batch, pos, …] or patterns."""
    passed: set[int] = set()
    twice = [torch.cat([part[:1]] * 2) for part in inputs]  # two prompts, which positions alone have no axis for

    def note(point: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim < 3 or len(output) != 2:
            return
        if output.shape[1] == twice[0].shape[1] or "key" in dims(names[id(point)]):
            passed.add(id(point))

    with ExitStack() as stack:
        for part in module.modules():
            if id(part) in names:
                stack.callback(part.register_forward_hook(note).remove)
        keywords = stack.enter_context(loop_count(module, anatomy, 1))
        stack.enter_context(torch.no_grad())
        module(*twice, **keywords)
    return passed
