"""What a model is made of: its parts around the loop, its hook points, what it can do, and the memory of its loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loopprobe.model.hook_points import dims, split_name
from loopprobe.model.looped import LoopedTransformer
from loopprobe.model.protocol import MEANS, Sizes
from loopprobe.wrapped.anatomy import place_of
from loopprobe.wrapped.model import WrappedModel

INJECTIONS = {"none": "z", "add": "z + e", "multiply": "z · e"}


@dataclass(frozen=True)
class Inspection:
    """What was found of a model.

    Attributes:
        label: what it is called.
        kind: the class of the module.
        n_parameters: the number of its weights, shared ones once.
        precision: of its weights, and the device.
        parts: what stands before, in and behind the loop: the role of each part, and what it is.
        injection: what a loop begins with, as a formula of the state z and the input e; f(z, e) where it is none that
            is known.
        sizes: of the model.
        points: hook points, without the number of the loop and for one layer: name, axes, shape of one prompt.
        supports: what it can do, in words, and whether it can.
        bytes_of_loop: of one loop of one prompt, what keeping an activation takes, by its short name.
        n_tokens: the length of the prompt that shapes and bytes are of.
    """

    label: str
    kind: str
    n_parameters: int
    precision: str
    parts: tuple[tuple[str, str], ...]
    injection: str
    sizes: Sizes
    points: tuple[tuple[str, str, str], ...]
    supports: tuple[tuple[str, bool], ...]
    bytes_of_loop: dict[str, int]
    n_tokens: int


def inspect(subject: Any, n_tokens: int = 128, *, run: bool = True) -> Inspection:
    """Look at the model of a subject.

    Args:
        subject: a checkpoint or a language model.
        n_tokens: the length of the prompt that shapes and memory are told for; at most what the model reads.
        run: whether a wrapped module may run, to tell what a loop begins with.
    """
    model = subject.model
    n_tokens = min(n_tokens, model.sizes.n_ctx)
    module = model.module if isinstance(model, WrappedModel) else model
    parts, injection = _of_wrapped(model, run) if isinstance(model, WrappedModel) else _of_own(model)
    layout, trees = model.hook_trees.layout, model.hook_trees
    n_points = n_tokens // model.tokens_per_point
    numbers = {local: layout.numbers_of(local, n_tokens, n_tokens, n_points) for local in trees.local_names}
    size = model.dtype.itemsize
    streams = [local for local in numbers if local.endswith("hook_resid_post") and local.startswith("blocks")]
    kept = {"all": sum(numbers.values()), "resid_post": sum(numbers[local] for local in streams)}
    kept |= {"z": numbers["hook_z"]} if "hook_z" in numbers else {}
    once = {local: layout.numbers_of(local, n_tokens, n_tokens, n_points) for local in trees.once_names}
    shown = [(local, n) for local, n in {**once, **numbers}.items() if split_name(local)[1] in (None, 0)]
    return Inspection(
        label=subject.label,
        kind=type(module).__name__,
        n_parameters=sum(parameter.numel() for parameter in module.parameters()),
        precision=f"{model.dtype} on {model.device}".replace("torch.", ""),
        parts=tuple(parts),
        injection=injection,
        sizes=model.sizes,
        points=tuple(_point(local, n, n_tokens, n_points, model) for local, n in shown),
        supports=tuple((words, name in model.supports) for name, words in MEANS.items()),
        bytes_of_loop={name: n * size for name, n in kept.items()},
        n_tokens=n_tokens,
    )


def _point(local: str, numbers: int, n_tokens: int, n_points: int, model: Any) -> tuple[str, str, str]:
    """The name of a hook point, its axes, and the shape of one prompt's activation."""
    axes = dims(local)[1:]
    sizes = {"position": n_tokens, "query": n_tokens, "key": n_tokens, "head": model.sizes.n_heads, "point": n_points}
    known = [sizes[axis] for axis in axes if axis in sizes]
    shape = [*known, *([numbers // math.prod(known)] if len(known) < len(axes) else [])]
    name = local.replace("blocks.0.", "blocks.{l}.")
    prefix = "" if local in model.hook_trees.once_names else "loops.{t}."
    return prefix + name, ", ".join(axes), " × ".join(f"{n:,}" for n in shape if n != 1 or len(shape) == 1)


def _of_own(model: LoopedTransformer) -> tuple[list[tuple[str, str]], str]:
    cfg = model.cfg
    blocks = lambda n: f"{n} layer{'s' * (n != 1)}"  # noqa: E731
    read = f"embedding of {cfg.d_vocab} tokens" if cfg.reads_tokens else f"vectors of {cfg.n_dims} dimensions"
    parts = [("prelude", read + (f", {blocks(cfg.n_prelude_layers)}" if cfg.n_prelude_layers else ""))]
    parts += [("core", blocks(cfg.n_layers)), ("state", "after ln_final")]
    start = {"none": "the input e", "add": "zeros", "multiply": "ones"}[cfg.injection]
    parts += [("start", start)]
    parts += [("coda", blocks(cfg.n_coda_layers))] if cfg.n_coda_layers else []
    parts += [("head", f"{cfg.d_vocab_out} logits a token" if cfg.reads_tokens else "one number a point")]
    return parts, INJECTIONS[cfg.injection]


def _of_wrapped(model: WrappedModel, run: bool) -> tuple[list[tuple[str, str]], str]:
    anatomy, order = model.anatomy, model.wiring.order
    start = anatomy.start if isinstance(anatomy.start, str) else f"{_words(anatomy.start)}, seed {model.start_seed}"
    set_loops = anatomy.set_loops if isinstance(anatomy.set_loops, str) else "keywords of the call"
    parts = [("prelude", _listed(anatomy.prelude)), ("core", _listed(order))]
    parts += [("state", ", ".join(anatomy.state) or "no tensor is all that goes from loop to loop")]
    parts += [("start", {"input": "the input e"}.get(start, start))] if anatomy.state else []
    parts += [("coda", _listed(anatomy.coda))] if anatomy.coda else []
    parts += [("head", anatomy.head)] if anatomy.head else []
    parts += [("gate", anatomy.gate)] if anatomy.gate else []
    injection = injection_of(model) if run else model.anatomy.injection or "f(z, e)"
    return [*parts, ("loop count", set_loops)], injection


def _words(function: Any) -> str:
    return str(getattr(function, "__name__", "a function")).strip("_").replace("_", " ")


def _listed(paths: Sequence[str]) -> str:
    """Paths in words, layers in a row as one: ``model.layers.0–23``."""
    runs: list[tuple[str, list[int]]] = []
    for path in paths:
        stem, _, last = path.rpartition(".")
        numbers = runs[-1][1] if runs else []
        if last.isdigit() and runs and runs[-1][0] == stem and numbers and int(last) == numbers[-1] + 1:
            numbers.append(int(last))
        else:
            runs.append((stem, [int(last)]) if last.isdigit() else (path, []))
    return ", ".join(
        stem if not of else f"{stem}.{of[0]}" if len(of) == 1 else f"{stem}.{of[0]}–{of[-1]}" for stem, of in runs
    )


def injection_of(model: WrappedModel) -> str:
    """Tell what a loop begins with, by comparing its input with the state and the injected input of a run."""
    if "map" not in model.supports:
        return model.anatomy.injection or "f"
    with torch.no_grad():
        points = [name for name, place in model.anatomy.points.items() if _opens(model, place)]
        names = ["hook_z", "hook_embed", "blocks.0.hook_resid_pre", *points]
        _, cache = model.run_with_cache(*model.example, n_loops=2, keep_loops=1, names=names)
    z, e = cache[0, "z"], cache["hook_embed"]
    candidates: dict[str, Tensor] = {"z": z, "[z, e]": torch.cat([z, e], -1), "[e, z]": torch.cat([e, z], -1)}
    if z.shape == e.shape:
        candidates |= {"z + e": z + e, "z · e": z * e}
    for name in [*points, "blocks.0.hook_resid_pre"]:
        x = cache[f"loops.1.{name}"]
        for words, value in candidates.items():
            if value.shape == x.shape and torch.allclose(x, value, rtol=1e-3, atol=1e-5):
                through = place_of(model.anatomy.points[name])[0] if name in model.anatomy.points else ""
                return f"{words} through {through}" if through else words
    return model.anatomy.injection or "f(z, e)"


def _opens(model: WrappedModel, place: Any) -> bool:
    path, side = place_of(place)
    return path in model.wiring.opens and side == "in"
