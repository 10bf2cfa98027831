"""What a run of a module shows of its parts: the order in which a loop passes its layers, and what they return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loopprobe.errors import LoopprobeError
from loopprobe.wrapped.anatomy import Anatomy, loop_count, place_of


@dataclass(frozen=True)
class Wiring:
    """The parts of a module in the order of its calls.

    Attributes:
        order: the paths of the layers in the order of a loop; one that a loop passes several times stands as often.
        state_calls: how often a loop calls each module of the state.
        opens: the paths whose call stands before the first layer of its loop.
        returns: of each layer the number of things that it returns, 0 for a tensor alone.
        widths: the shapes of activations behind the axes of prompts and tokens, by the paths and sides of places.
        passes_on: the layers before the loop that map a hidden state to one of its shape, and so can be left out.
    """

    order: tuple[str, ...]
    state_calls: tuple[int, ...]
    opens: frozenset[str]
    returns: dict[str, int]
    widths: dict[tuple[str, str], tuple[int, ...]]
    passes_on: frozenset[str]


@dataclass(frozen=True)
class _Call:
    path: str
    shape_in: tuple[int, ...] | None
    shape_out: tuple[int, ...] | None
    n_returned: int


def observe(module: nn.Module, anatomy: Anatomy, inputs: Sequence[Tensor]) -> Wiring:
    """Run the module with two and with three loops and note the calls of its parts.

    Raises:
        LoopprobeError: the core does not run, or not once more in one loop more.
    """
    two, three = (_calls(module, anatomy, inputs, n) for n in (2, 3))
    core = set(anatomy.core)
    names = ", ".join(anatomy.core)
    in_two, in_three = ([call.path for call in calls if call.path in core] for calls in (two, three))
    if not in_three:
        raise LoopprobeError(f"the core ({names}) never ran in a call of the model: name the layers that loop")
    period = len(in_three) - len(in_two)
    if period <= 0:
        raise LoopprobeError(
            f"the core ({names}) ran {len(in_two)} times with two loops and {len(in_three)} with three: set_loops does "
            "not change how often; name what holds the loop count"
        )
    order = tuple(in_three[-period:])
    if in_three != 3 * list(order):
        raise LoopprobeError(
            f"with three loops the core ran as {', '.join(in_three)}, which is not three times the same: name the "
            "layers of the loop alone"
        )
    if missing := sorted(core - set(order)):
        raise LoopprobeError(f"the core's {missing[0]} is not passed in every loop: leave it out")
    calls = [
        sum(call.path == path for call in three) - sum(call.path == path for call in two) for path in anatomy.state
    ]
    for path, n in zip(anatomy.state, calls, strict=True):
        if n < 1:
            raise LoopprobeError(
                f"state ({path}) is not called in every loop: name the module whose output the next reads"
            )
    first_core = next(i for i, call in enumerate(three) if call.path in core)
    if anatomy.prelude[-1] not in [call.path for call in three[:first_core]]:
        raise LoopprobeError(f"the prelude ({anatomy.prelude[-1]}) is not called before the core: name what is")
    opens = {call.path for call in three[:first_core]} - {*anatomy.prelude}
    returns = {call.path: call.n_returned for call in three}
    widths: dict[tuple[str, str], tuple[int, ...]] = {}
    for call in three:
        for side, shape in (("in", call.shape_in), ("out", call.shape_out)):
            if shape is not None:
                widths.setdefault((call.path, side), shape[2:])
    passes_on = {
        call.path for call in three if call.path in anatomy.prelude and call.shape_in == call.shape_out is not None
    }
    return Wiring(order, tuple(calls), frozenset(opens), returns, widths, frozenset(passes_on))


def watched(anatomy: Anatomy) -> tuple[str, ...]:
    """Return the paths of all modules whose calls matter."""
    inside = [f"{layer}.{place_of(place)[0]}".rstrip(".") for layer in anatomy.core for place in anatomy.sites.values()]
    further = [place_of(place)[0] for place in anatomy.points.values()]
    single = [path for path in (anatomy.head, anatomy.norm, anatomy.gate) if path]
    return tuple(
        dict.fromkeys([*anatomy.prelude, *anatomy.core, *anatomy.state, *anatomy.coda, *inside, *further, *single])
    )


def _calls(module: nn.Module, anatomy: Anatomy, inputs: Sequence[Tensor], n_loops: int) -> list[_Call]:
    """List the calls of the parts in the order in which they begin."""
    calls: list[_Call] = []

    def noting(path: str) -> tuple[Callable[..., None], Callable[..., None]]:
        begun: list[tuple[int, Any]] = []

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            given = first_tensor(args, kwargs)
            begun.append((len(calls), None if given is None else tuple(given.shape)))
            calls.append(_Call(path, None, None, 0))

        def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            place, shape_in = begun.pop()
            value = output if isinstance(output, Tensor) else output[0] if isinstance(output, tuple | list) else None
            shape = tuple(value.shape) if isinstance(value, Tensor) else None
            calls[place] = _Call(path, shape_in, shape, len(output) if isinstance(output, tuple | list) else 0)

        return before, after

    with ExitStack() as stack:
        for path in watched(anatomy):
            before, after = noting(path)
            part = module.get_submodule(path)
            stack.callback(part.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(part.register_forward_hook(after, with_kwargs=True).remove)
        keywords = stack.enter_context(loop_count(module, anatomy, n_loops))
        stack.enter_context(torch.no_grad())
        module(*inputs, **keywords)
    return calls


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the first tensor that a module is handed."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def tensor_of(output: Any) -> Tensor:
    """The answers in what a module returned: a tensor, the field ``logits`` or ``last_hidden_state``, or the first.

    Raises:
        LoopprobeError: there is none.
    """
    first = output[0] if isinstance(output, tuple | list) else None
    for candidate in (output, *(getattr(output, name, None) for name in ("logits", "last_hidden_state")), first):
        if isinstance(candidate, Tensor):
            return candidate
    raise LoopprobeError(f"the model returned a {type(output).__name__}: wrap one that returns a tensor or logits")
