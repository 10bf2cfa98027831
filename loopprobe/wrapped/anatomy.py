"""The anatomy of a looped module: where its prelude, core, state and coda stand, by the paths of submodules."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from loopprobe.errors import LoopprobeError

Side = Literal["in", "out"]
Place = str | tuple[str, Side]  # the path of a module, and whether what it is handed or what it returns is meant
Start = Literal["input", "zeros", "ones"] | Callable[[nn.Module, Tensor, int], Tensor]
SetLoops = str | Callable[[int], Mapping[str, Any]]


@dataclass(frozen=True)
class Anatomy:
    """The parts of a looped module, which computes e = prelude(inputs), z = core(z, e) again and again, and coda(z).

    Attributes:
        core: the layers of a loop, each once; a ModuleList stands for all that it holds.
        prelude: what runs once before the loop, in order; the output of the last is the injected input e
            [batch, pos, d_model].
        set_loops: the attribute that holds the loop count, such as ``config.n_recurrent_loops``, or a function from a
            count to keywords of the call.
        state: the modules whose last outputs in a loop are together the state, joined along the width; the last is what
            the coda reads. Empty: no tensor is all that goes from loop to loop.
        coda: layers that run once behind the loop.
        head: what makes answers of states, such as an unembedding, in whose input every token has a row; None: unknown.
        norm: the norm between the residual stream of the last layer and the state; None: the stream is the state.
        start: the state that the loop starts from: the input e, zeros, ones, or a function from the module, e and a
            seed.
        sites: places within every layer by the names of their hook points, such as
            ``{"hook_attn_out": "self_attn", "hook_resid_mid": ("norm2", "in")}``.
        points: further places that a loop passes, alike, with paths from the module.
        attention: the path within a layer of an attention that uses transformers' interface.
        n_loops: as trained; None: as many as ``set_loops`` names.
        n_heads: of a layer; 1 where nobody asks for heads.
        d_head: the width of a head; None: that of the layer over n_heads.
        n_ctx: the most tokens that it reads.
        call: keywords of every call, such as ``{"use_cache": False}``.
        settings: attributes of the module, by their paths, and their values while it runs, or functions from the loop
            count to them.
        injection: what a loop begins with, as a formula of z and e in words, where no comparison would show it.
        gate: the module that tells in every loop how likely it would stop there; None: there is none.
    """

    core: tuple[str, ...]
    prelude: tuple[str, ...]
    set_loops: SetLoops
    state: tuple[str, ...] = ()
    coda: tuple[str, ...] = ()
    head: str | None = None
    norm: str | None = None
    start: Start = "input"
    sites: Mapping[str, Place] = field(default_factory=dict)
    points: Mapping[str, Place] = field(default_factory=dict)
    attention: str | None = None
    n_loops: int | None = None
    n_heads: int = 1
    d_head: int | None = None
    n_ctx: int = 1_000_000
    call: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    injection: str | None = None
    gate: str | None = None


def place_of(place: Place) -> tuple[str, Side]:
    """Return the path of a place, and its side."""
    return (place, "out") if isinstance(place, str) else place


def path_of(module: nn.Module, part: str | nn.Module, what: str) -> str:
    """Return the path of a submodule that is given by its path or itself.

    Raises:
        LoopprobeError: the module has no such submodule.
    """
    paths = {id(sub): path for path, sub in module.named_modules()}
    if isinstance(part, nn.Module):
        if id(part) not in paths:
            raise LoopprobeError(
                f"{what} ({type(part).__name__}) must be a submodule of the model: give one of its own"
            )
        return paths[id(part)]
    if part in paths.values():
        return part
    try:  # one module under two paths is named by the first alone
        return paths[id(module.get_submodule(part))]
    except AttributeError:
        near = difflib.get_close_matches(part, paths.values(), n=3) or [path for path in paths.values() if path][:6]
        raise LoopprobeError(f"{what} ({part!r}) must be the path of a submodule: choose {' or '.join(near)}") from None


def layers_of(module: nn.Module, parts: Any, what: str) -> tuple[str, ...]:
    """Return the paths of layers that are given one by one or as a ModuleList, by paths or themselves."""
    if parts is None:
        return ()
    several = [parts] if isinstance(parts, str | nn.Module) else list(parts)
    paths: list[str] = []
    for part in several:
        path = path_of(module, part, what)
        inside = module.get_submodule(path)
        if isinstance(inside, nn.ModuleList):
            paths += [f"{path}.{name}" for name, _ in inside.named_children()]
        else:
            paths.append(path)
    return tuple(paths)


@contextmanager
def loop_count(module: nn.Module, anatomy: Anatomy, n_loops: int) -> Iterator[Mapping[str, Any]]:
    """Let the module run so many loops, with its settings, while the block lasts; it yields keywords of the call."""
    values = {path: value(n_loops) if callable(value) else value for path, value in anatomy.settings.items()}
    keywords: Mapping[str, Any] = anatomy.call
    if callable(anatomy.set_loops):
        keywords = {**keywords, **anatomy.set_loops(n_loops)}
    else:
        values[anatomy.set_loops] = n_loops
    before = []
    try:
        for path, value in values.items():
            owner, name = _owner(module, path)
            before.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)
        yield keywords
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def trained_loops(module: nn.Module, set_loops: SetLoops) -> int | None:
    """Return the loop count that the module has now; None where a function sets it."""
    if callable(set_loops):
        return None
    owner, name = _owner(module, set_loops)
    value = getattr(owner, name)
    try:
        return int(value)
    except (TypeError, ValueError):
        raise LoopprobeError(
            f"set_loops ({set_loops!r}) holds a {type(value).__name__} and must hold a loop count: name another"
        ) from None


def _owner(module: nn.Module, path: str) -> tuple[Any, str]:
    """Return the object that holds an attribute, and its name.

    Raises:
        LoopprobeError: there is none.
    """
    *parents, name = path.split(".")
    owner: Any = module
    for parent in parents:
        owner = getattr(owner, parent, None)
    if owner is None or not hasattr(owner, name):
        raise LoopprobeError(
            f"set_loops ({path!r}) must be an attribute of the model, such as config.n_loops, or a function from a "
            "count to keywords of the call: change it"
        )
    return owner, name
