"""Wrapping: a module of somebody else becomes a LoopedModel, once its parts have been checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from loopprobe.errors import LoopprobeError
from loopprobe.wrapped.anatomy import Anatomy, Place, SetLoops, Start, layers_of, path_of, trained_loops
from loopprobe.wrapped.architectures import anatomy_of
from loopprobe.wrapped.bridges import original_of, with_points_of
from loopprobe.wrapped.checks import STARTS, checked
from loopprobe.wrapped.model import WrappedModel
from loopprobe.wrapped.wiring import watched


def wrap(
    model: nn.Module,
    *,
    core: Any = None,
    prelude: Any = None,
    set_loops: SetLoops | None = None,
    example: Any = None,
    state: Any = None,
    coda: Any = None,
    head: str | nn.Module | None = None,
    norm: str | nn.Module | None = None,
    start: Start | None = None,
    n_loops: int | None = None,
    sites: Mapping[str, Place] | None = None,
    points: Mapping[str, Place] | None = None,
    attention: str | None = None,
    n_heads: int | None = None,
    n_ctx: int | None = None,
    call: Mapping[str, Any] | None = None,
) -> WrappedModel:
    """Make the loop of a module visible: hooks, caches, edits and every probe at any of its loops.

    The module computes e = prelude(inputs), z_{t+1} = core(z_t, e) n_loops times, and head(coda(z)). It stays as it is:
    while it runs, hooks count the calls of its layers. Of known architectures nothing need be told; of others, parts
    are named by the paths of submodules (as in ``named_modules``) or given themselves.

    Args:
        model: the module, in eval mode, or a TransformerBridge of TransformerLens, whose hook points in the core become
            points of every loop under their names within a layer.
        core: the layers of a loop; a ModuleList stands for all of it.
        prelude: what runs once before; the output of the last is the injected input e [batch, pos, d_model].
        set_loops: the attribute that holds the loop count, such as ``"config.n_loops"``, or a function from a count to
            keywords of the call, such as ``lambda n: {"num_steps": n}``.
        example: inputs of a call, a tensor or several [batch, pos, …], that the check runs; a few tokens suffice.
        state: the module whose output the next loop reads, or several; None: the last layer of the core. False: no
            tensor is all that goes from loop to loop, so that no state can be stepped on or masked.
        coda: layers that run once behind the loop.
        head: what makes answers of the coda's output, or of the state.
        norm: the norm between the last layer and the state, where the state is its output.
        start: the state that the loop starts from: "input" (e), "zeros", "ones", or a function from the module, e and a
            seed. None: the one of the three that is right.
        n_loops: as trained; None: as many as ``set_loops`` names.
        sites: places within every layer, such as ``{"hook_attn_out": "attn", "hook_resid_mid": ("norm2", "in")}``;
            those of heads with ``n_heads``, such as ``{"attn.hook_z": ("attn.proj", "in")}``, also where all heads
            stand side by side there, [batch, pos, n_heads * d_head].
        points: further places that a loop passes, by the paths of submodules.
        attention: the path within a layer of an attention that uses transformers' interface.
        n_heads: attention heads of a layer.
        n_ctx: the most tokens that the model reads.
        call: keywords of every call.

    Returns:
        The model, with hook points ``loops.{t}.blocks.{l}.hook_resid_post`` and so on: ``model.hook_dict`` lists them.

    Raises:
        LoopprobeError: something is not told, or told wrongly: a core that never runs, a loop count that changes
            nothing, a state that is not where it is said to be; or it is told of a model that is wrapped already.
    """
    given = next((name for name, value in locals().items() if name != "model" and value is not None), None)
    if isinstance(model, WrappedModel):
        if given is not None:
            raise LoopprobeError(f"the model is wrapped already and {given}= is told: wrap its module, model.module")
        return model
    if not isinstance(model, nn.Module):
        raise LoopprobeError(f"model ({type(model).__name__}) must be a torch.nn.Module: load it first")
    bridge, model = model, original_of(model) or model
    known = anatomy_of(model)
    told: dict[str, Any] = {
        "core": layers_of(model, core, "core"), "prelude": layers_of(model, prelude, "prelude"), "set_loops": set_loops,
        "state": layers_of(model, state or None, "state"), "coda": layers_of(model, coda, "coda"),
        "head": None if head is None else path_of(model, head, "head"),
        "norm": None if norm is None else path_of(model, norm, "norm"),
        "start": start, "n_loops": n_loops, "sites": sites, "points": points, "attention": attention,
        "n_heads": n_heads, "n_ctx": n_ctx, "call": call,
    }  # fmt: skip
    told = {name: value for name, value in told.items() if value not in (None, ())}
    if known is None:
        for name, meaning in _ASKED.items():
            if name not in told:
                raise LoopprobeError(
                    f"{type(model).__name__} is no architecture that is known: tell {name}=, {meaning}"
                )
        anatomy = Anatomy(**told)
        if not anatomy.state and state is not False:
            anatomy = dataclasses.replace(anatomy, state=anatomy.core[-1:])
    else:
        anatomy = dataclasses.replace(known, **told)
    if example is None:
        if known is None:
            raise LoopprobeError("wrap needs an example to check with: tell example=, inputs of a call of the model")
        example = torch.arange(1, 7)[None]
    inputs = _example(model, example)
    if anatomy.n_loops is None:
        anatomy = dataclasses.replace(anatomy, n_loops=trained_loops(model, anatomy.set_loops))
    if anatomy.n_loops is None:
        raise LoopprobeError("set_loops is a function, which does not tell how many loops were trained: tell n_loops=")
    if not callable(anatomy.start) and anatomy.start not in STARTS:
        raise LoopprobeError(f"start ({anatomy.start!r}) must be {', '.join(STARTS)} or a function: change it")
    _require_places(model, anatomy)
    if bridge is not model:
        anatomy = with_points_of(bridge, model, anatomy, inputs)
    try:
        return checked(model, anatomy, inputs, may_search="start" not in told and known is None)
    except LoopprobeError:
        raise
    except Exception as error:
        if known is not None:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LoopprobeError(
            f"{type(model).__name__} does not run as it is told to ({reason}): check example=, set_loops=, start= and "
            "call="
        ) from error


_ASKED = {
    "core": "the layers of a loop",
    "prelude": "what runs once before the loop, whose output is injected",
    "set_loops": "the attribute that holds the loop count, or a function from it to keywords of the call",
}


def _example(model: nn.Module, example: Any) -> tuple[Tensor, ...]:
    several = (
        example if isinstance(example, tuple | list) and any(isinstance(x, Tensor) for x in example) else [example]
    )
    weight = next(model.parameters())
    try:
        inputs = [torch.as_tensor(part).to(weight.device) for part in several]
    except (TypeError, ValueError, RuntimeError):
        raise LoopprobeError(f"example ({type(example).__name__}) must be a tensor or several: change it") from None
    inputs = [part.to(weight.dtype) if part.is_floating_point() else part for part in inputs]
    if any(part.ndim < 2 or part.shape[1] < 2 for part in inputs):
        raise LoopprobeError(
            f"example {[tuple(part.shape) for part in inputs]} must be [batch, pos, …], pos at least 2: change it"
        )
    return tuple(inputs)


def _require_places(model: nn.Module, anatomy: Anatomy) -> None:
    for name in [*anatomy.sites, *anatomy.points]:
        *rooms, last = name.split(".")
        if not last.startswith("hook_"):
            called = ".".join([*rooms, f"hook_{last}"])
            raise LoopprobeError(f"the site {name!r} must be the name of a hook point: call it {called!r}")
    for place in [*anatomy.sites.values(), *anatomy.points.values()]:
        if not isinstance(place, str) and (len(place) != 2 or place[1] not in ("in", "out")):
            raise LoopprobeError(f"the place {place!r} must be a path, or a path and in or out: change it")
    for path in watched(anatomy):
        path_of(model, path, "a place")
    if anatomy.attention is not None:
        for layer in anatomy.core:
            path_of(model, f"{layer}.{anatomy.attention}", "attention")
