"""The checks of a wrapping: single steps and readings compared with runs of the module, and what it supports tried."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from loopprobe.errors import LoopprobeError
from loopprobe.model.protocol import Capability
from loopprobe.wrapped.anatomy import Anatomy
from loopprobe.wrapped.model import WrappedModel
from loopprobe.wrapped.passes import Pass
from loopprobe.wrapped.plan import Plan
from loopprobe.wrapped.wiring import observe, tensor_of

LEAST_LOOPS, MOST_LOOPS = 3, 64  # that are checked; between them as many as were trained
STARTS = ("input", "zeros", "ones")  # that are tried


def checked(model: nn.Module, anatomy: Anatomy, inputs: tuple[Tensor, ...], *, may_search: bool) -> WrappedModel:
    """Compare single steps and readings with runs of the module, and tell what it supports."""
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            wiring = observe(model, anatomy, inputs)
            if isinstance(anatomy.n_loops, bool) or not isinstance(anatomy.n_loops, int) or anatomy.n_loops < 1:
                raise LoopprobeError(f"n_loops ({anatomy.n_loops!r}) must be a whole number and at least 1: change it")
            _require_shapes(wiring.widths, anatomy)
            able: frozenset[Capability] = frozenset({"map", "autonomous"} if anatomy.state else ())
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
    assert anatomy.n_loops is not None, "wrap() has set it"
    n = min(max(LEAST_LOOPS, anatomy.n_loops), MOST_LOOPS)  # a later loop may do something else
    early = callable(anatomy.start)
    plan = Plan(-1 if early else 0, n, skip=int(early), z=wrapped.initial_state, kept=frozenset(range(n)))
    run = Pass(wrapped.module, anatomy, wrapped.wiring, wrapped.hook_trees, plan)
    answers = tensor_of(run.run(*inputs))
    e, states = run.e, run.states
    assert e is not None, "the prelude has been seen before the core"
    for loop in range(1, n):
        off = _off(wrapped.step(states[loop - 1], e, loop), states[loop])
        if off > 1e-3:
            _require_same_loop(wrapped, inputs, states, loop)
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
    _require_head(wrapped, answers)
    _require_norm(wrapped, inputs)
    _require_enough(wrapped, _changed(inputs), plan)
    names: list[Any] = list(STARTS) if may_search else [anatomy.start]
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


def _require_same_loop(wrapped: WrappedModel, inputs: tuple[Tensor, ...], states: dict[int, Tensor], loop: int) -> None:
    """Raise LoopprobeError where a loop is right as the module counts it alone: where it reads its own number."""
    plan = Plan(0, loop + 1, skip=loop, z=states[loop - 1], stop="state", kept=frozenset({loop}))
    run = Pass(wrapped.module, wrapped.anatomy, wrapped.wiring, wrapped.hook_trees, plan)
    run.run(*inputs)
    if loop in run.states and _off(run.states[loop], states[loop]) <= 1e-3:
        raise LoopprobeError(
            f"loop {loop} from the same state gives something else than another loop: the module reads the number of "
            "the loop, as with a loop embedding, so that no state can be stepped on alone; give state=False"
        )


def _require_head(wrapped: WrappedModel, answers: Tensor) -> None:
    """Raise LoopprobeError where the head gives something else than the answers."""
    head, n = wrapped.anatomy.head, math.prod(answers.shape[2:])
    if head is not None and wrapped.value_size != n:
        raise LoopprobeError(
            f"the head ({head}) gives {wrapped.value_size} numbers a token and the model answers {n}: name what makes "
            "the answers, or leave head out"
        )


def _require_norm(wrapped: WrappedModel, inputs: tuple[Tensor, ...]) -> None:
    """Raise LoopprobeError where the norm of what the last layer gives is not the state."""
    if wrapped.anatomy.norm is None:
        return
    names = [f"loops.1.blocks.{len(wrapped.wiring.order) - 1}.hook_resid_post", "loops.1.hook_z"]
    seen: list[Tensor] = []
    with wrapped.hooks([(name, lambda x, hook: seen.append(x)) for name in names]):
        wrapped(*inputs, n_loops=2, keep_loops=1)
    width = seen[0].shape[-1]
    if _off(wrapped.to_state(seen[0])[..., -width:], seen[1][..., -width:]) > 1e-3:
        raise LoopprobeError(
            f"the norm ({wrapped.anatomy.norm}) of what the last layer gives is not the state "
            f"({wrapped.anatomy.state[-1]}): name another, or leave norm out"
        )


def _changed(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Other inputs: each in another order, and tokens and masks end with zero, as in padding."""
    changed = [part.roll(1, 1) for part in inputs]
    for i, part in enumerate(changed):
        if i or not part.is_floating_point():
            part[:, -1] = 0
    return tuple(changed)


def _require_enough(wrapped: WrappedModel, inputs: tuple[Tensor, ...], plan: Plan) -> None:
    """Raise LoopprobeError where the loop or the coda reads the inputs besides e, so that a state is not enough."""
    run = Pass(wrapped.module, wrapped.anatomy, wrapped.wiring, wrapped.hook_trees, plan)
    answers, e = tensor_of(run.run(*inputs)), run.e
    assert e is not None, "the prelude has been seen before the core"
    last = plan.n_loops - 1
    step, read = wrapped.step(run.states[last - 1], e, last), wrapped.predict(run.states[last], e, last)
    for what, off in (("a loop", _off(step, run.states[last])), ("the coda", _off(read, answers))):
        if off > 1e-3:
            raise LoopprobeError(
                f"{what} reads more of the inputs than the injected input ({wrapped.anatomy.prelude[-1]}), such as a "
                "mask, so that no state can be stepped on or read alone: give state=False"
            )


def _off(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the root mean square; infinite where numbers or shapes do not compare."""
    if one.shape != other.shape:
        return float("inf")
    size = other.float().square().mean().sqrt().clamp_min(1e-12)
    off = ((one.float() - other.float()).abs().amax() / size).item()
    return off if off == off else float("inf")


def _supports(wrapped: WrappedModel, inputs: tuple[Tensor, ...]) -> frozenset[Capability]:
    """Try what the model can do."""
    supports: set[Capability] = set()
    anatomy = wrapped.anatomy
    if anatomy.attention is not None or "attn.hook_pattern" in anatomy.sites:
        supports.add("pattern")
    try:
        wrapped.head_weights()
        supports.add("heads")
    except LoopprobeError:  # gates, or projections by other names
        pass
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
    supports |= {"map", "autonomous"}  # a loop that reads its own number has been refused
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
