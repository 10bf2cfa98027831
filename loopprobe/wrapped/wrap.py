"""Wrapping: a module of somebody else becomes a LoopedModel, once its parts have been checked."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from loopprobe.errors import LoopprobeError
from loopprobe.model.protocol import Capability
from loopprobe.wrapped.anatomy import Anatomy, Place, SetLoops, Start, layers_of, path_of, place_of, trained_loops
from loopprobe.wrapped.bridges import original_of, with_points_of
from loopprobe.wrapped.model import WrappedModel
from loopprobe.wrapped.passes import Pass, Plan
from loopprobe.wrapped.wiring import observe, tensor_of, watched

CHECKED_LOOPS = 3


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
        coda, head: layers that run once behind the loop, and what makes answers of their output.
        norm: the norm between the last layer and the state, where the state is its output.
        start: the state that the loop starts from: "input" (e), "zeros", "ones", or a function from the module, e and a
            seed. None: the one of the three that is right.
        n_loops: as trained; None: as many as ``set_loops`` names.
        sites: places within every layer, such as ``{"hook_attn_out": "attn", "hook_resid_mid": ("norm2", "in")}``.
        points: further places that a loop passes, by the paths of submodules.
        attention: the path within a layer of an attention that uses transformers' interface.
        n_heads, n_ctx: attention heads of a layer, and the most tokens that it reads.
        call: keywords of every call.

    Returns:
        The model, with hook points ``loops.{t}.blocks.{l}.hook_resid_post`` and so on: ``model.hook_dict`` lists them.

    Raises:
        LoopprobeError: something is not told, or told wrongly: a core that never runs, a loop count that changes
            nothing, a state that is not where it is said to be.
    """
    if isinstance(model, WrappedModel):
        return model
    from loopprobe.wrapped.architectures import anatomy_of

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
    _require_places(model, anatomy)
    if bridge is not model:
        anatomy = with_points_of(bridge, model, anatomy, inputs)
    return _checked(model, anatomy, inputs, may_search="start" not in told and known is None)


_ASKED = {
    "core": "the layers of a loop",
    "prelude": "what runs once before the loop, whose output is injected",
    "set_loops": "the attribute that holds the loop count, or a function from it to keywords of the call",
}


def _example(model: nn.Module, example: Any) -> tuple[Tensor, ...]:
    several = example if isinstance(example, tuple | list) and isinstance(example[0], Tensor) else (example,)
    weight = next(model.parameters())
    inputs = [torch.as_tensor(part).to(weight.device) for part in several]
    inputs = [part.to(weight.dtype) if part.is_floating_point() else part for part in inputs]
    if any(part.ndim < 2 or part.shape[1] < 2 for part in inputs):
        raise LoopprobeError(
            f"example {[tuple(part.shape) for part in inputs]} must be [batch, pos, …], pos at least 2: change it"
        )
    return tuple(inputs)


def _require_places(model: nn.Module, anatomy: Anatomy) -> None:
    for path in watched(anatomy):
        path_of(model, path, "a place")
    for place in [*anatomy.sites.values(), *anatomy.points.values()]:
        if place_of(place)[1] not in ("in", "out"):
            raise LoopprobeError(f"the side of {place!r} must be in or out: change it")
    if anatomy.attention is not None:
        for layer in anatomy.core:
            path_of(model, f"{layer}.{anatomy.attention}", "attention")


def _checked(model: nn.Module, anatomy: Anatomy, inputs: tuple[Tensor, ...], *, may_search: bool) -> WrappedModel:
    """Compare single steps and readings with runs of the module, and tell what it supports."""
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            wiring = observe(model, anatomy, inputs)
            _require_shapes(wiring.widths, anatomy)
            able: frozenset[Capability] = frozenset({"map"} if anatomy.state else ())
            wrapped = WrappedModel(model, anatomy, wiring, inputs, able)
            if anatomy.attention is not None and not _attention_passes(wrapped, inputs):
                anatomy = dataclasses.replace(anatomy, attention=None)
                wrapped = WrappedModel(model, anatomy, wiring, inputs, able)
            found = _found(wrapped, inputs, may_search)
        return WrappedModel(model, found.anatomy, wiring, inputs, _supports(found, inputs))
    finally:
        model.train(mode)


def _attention_passes(wrapped: WrappedModel, inputs: tuple[Tensor, ...]) -> bool:
    """Tell whether the attention of the core passes hook points: whether it uses transformers' interface."""
    seen: list[int] = []
    try:
        with wrapped.hooks([("blocks.0.attn.hook_pattern", lambda x, hook: seen.append(hook.loop()))]):
            wrapped(*inputs, n_loops=1, keep_loops=1)
    except LoopprobeError:  # it has something that our attention does not know
        return False
    return bool(seen)


def _require_shapes(widths: dict[tuple[str, str], tuple[int, ...]], anatomy: Anatomy) -> None:
    for path in (anatomy.prelude[-1], *anatomy.core, *anatomy.state):
        if len(widths.get((path, "out"), ())) != 1:
            raise LoopprobeError(f"{path} must return a tensor [batch, pos, d_model]: name another module")


def _found(wrapped: WrappedModel, inputs: tuple[Tensor, ...], may_search: bool) -> WrappedModel:
    """The model with the state at its start found.

    Raises:
        LoopprobeError: a step from a state is not what the module does from there, or a state is read otherwise than by
            the module.
    """
    anatomy = wrapped.anatomy
    if not anatomy.state:
        return wrapped
    n = CHECKED_LOOPS
    early = callable(anatomy.start)
    plan = Plan(-1 if early else 0, n, skip=early, z=wrapped.initial_state, kept=frozenset(range(n)))
    run = Pass(wrapped.module, anatomy, wrapped.wiring, wrapped.hook_trees, plan)
    answers = tensor_of(run.run(*inputs))
    e, states = run.e, run.states
    assert e is not None, "the prelude has been seen before the core"
    for loop in range(1, n):
        off = _off(wrapped.step(states[loop - 1], e, loop), states[loop])
        if off > 1e-3:
            raise LoopprobeError(
                f"a step from the state ({', '.join(anatomy.state)}) after loop {loop - 1} differs from the run by "
                f"{off:.1g} of its size: the state stands elsewhere, or more goes on to the next loop; name all of it"
            )
    off = _off(wrapped.predict(states[n - 1], e, n - 1), answers)
    if off > 1e-3:
        raise LoopprobeError(
            f"the answer read from the state ({anatomy.state[-1]}) differs from the run's by {off:.1g} of its size: "
            "the coda reads something else; name what it reads as the last of state="
        )
    names: list[Any] = ["input", "zeros", "ones"] if may_search else [anatomy.start]
    for start in names:
        if start == "input" and wrapped.sizes.d_model != e.shape[-1]:
            continue
        wrapped.anatomy = dataclasses.replace(anatomy, start=start)
        if _off(wrapped.step(wrapped.initial_state(e), e, 0), states[0]) <= 1e-3:
            return wrapped
    tried = " or ".join(str(name) for name in names)
    raise LoopprobeError(
        f"the loop does not start from {tried if may_search else 'what start= says'}: tell start=, a function from the "
        "module, the injected input and a seed to the state"
    )


def _off(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the root mean square; infinite where one is not finite."""
    size = other.float().square().mean().sqrt().clamp_min(1e-12)
    off = ((one.float() - other.float()).abs().amax() / size).item()
    return off if off == off else float("inf")


def _supports(wrapped: WrappedModel, inputs: tuple[Tensor, ...]) -> frozenset[Capability]:
    """Try what the model can do."""
    supports: set[Capability] = set()
    anatomy = wrapped.anatomy
    if anatomy.attention is not None or "attn.hook_pattern" in anatomy.sites:
        supports.add("pattern")
    if anatomy.gate is not None:
        supports.add("gate")
    with torch.no_grad():
        other = tuple(torch.cat([part[:, :-1], part[:, :1]], 1) for part in inputs)
        whole, changed = (wrapped(*some, n_loops=2, keep_loops=1)[0] for some in (inputs, other))
        if _off(changed[:, :-1], whole[:, :-1]) <= 1e-3:
            supports.add("causal")
    tokens = len(inputs) == 1 and inputs[0].ndim == 2 and not inputs[0].is_floating_point()
    if hasattr(wrapped.module, "generate") or (tokens and "causal" in supports and anatomy.head is not None):
        supports.add("generate")
    if not anatomy.state:
        return frozenset(supports)
    supports.add("map")
    with torch.no_grad():
        e = wrapped.embed(*wrapped.prepare(*inputs))
        z = wrapped.initial_state(e)
        if anatomy.head is not None:
            state = wrapped.to_state(
                torch.randn(z.shape[:2] + e.shape[2:], generator=torch.Generator().manual_seed(0)).to(z)
            )
            if _off(wrapped.unembed(state), wrapped.predict(state, e)) <= 1e-3:
                supports.add("linear_readout")
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.func.jvp(lambda at: wrapped.step(at, e), (z,), (torch.ones_like(z),))
        supports.add("forward_mode")
    except (RuntimeError, NotImplementedError):
        pass
    return frozenset(supports)
