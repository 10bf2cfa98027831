"""What a run of a module shows of its parts: the order in which a loop passes its layers, and what they return."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
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
        returns: of each layer what it returns, with nothing in it: None for a tensor alone.
        takes: of each part the place or the keyword under which it is handed its hidden state.
        widths: the shapes of activations behind the axes of prompts and tokens, by the paths and sides of places.
        passes_on: the layers before the loop that map a hidden state to one of its shape, and so can be left out.
    """

    order: tuple[str, ...]
    state_calls: tuple[int, ...]
    opens: frozenset[str]
    returns: dict[str, Any]
    takes: dict[str, int | str]
    widths: dict[tuple[str, str], tuple[int, ...]]
    passes_on: frozenset[str]


@dataclass(frozen=True)
class _Call:
    path: str
    shape_in: tuple[int, ...] | None
    shape_out: tuple[int, ...] | None
    returned: Any
    taken: int | str | None


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
            "not change how often; name what holds the loop count, or the model does not loop"
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
    returns = {call.path: call.returned for call in three}
    takes = {call.path: call.taken for call in three if call.taken is not None}
    widths: dict[tuple[str, str], tuple[int, ...]] = {}
    for call in three:
        for side, shape in (("in", call.shape_in), ("out", call.shape_out)):
            if shape is not None:
                widths.setdefault((call.path, side), shape[2:])
    passes_on = {
        call.path for call in three if call.path in anatomy.prelude and call.shape_in == call.shape_out is not None
    }
    return Wiring(order, tuple(calls), frozenset(opens), returns, takes, widths, frozenset(passes_on))


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
    written: dict[str, Tensor] = {}  # what layers of the core and modules of the state have returned last

    def noting(path: str) -> tuple[Callable[..., None], Callable[..., None]]:
        begun: list[tuple[int, list[Tensor]]] = []
        earlier: list[Any] = []  # what the call before was handed

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            begun.append((len(calls), list(written.values())))
            calls.append(_Call(path, None, None, None, None))

        def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            value = returned_tensor(output)
            place, states = begun.pop()
            taken, given = _hidden_state(args, kwargs, value, states, earlier)
            shape_in, shape = (None if one is None else tuple(one.shape) for one in (given, value))
            calls[place] = _Call(path, shape_in, shape, _emptied(output), taken)
            earlier[:] = [*args, *kwargs.values()]
            if value is not None and path in (*anatomy.core, *anatomy.state):
                written[path] = value

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


def _hidden_state(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    returned: Tensor | None,
    states: Sequence[Tensor],
    earlier: Sequence[Any],
) -> tuple[int | str | None, Tensor | None]:
    """Find the hidden state among what a module is handed: a tensor of the shape that it returns.

    Of several it is the one that a layer or the state has returned, or else the first that is not handed to every call
    alike, as the injected input is. Where none has the shape, it is the first of floating-point numbers, or the first
    at all; masks and positions may come before.

    Args:
        args, kwargs: what the module is handed.
        returned: what it returns.
        states: what the layers of the core and the modules of the state have returned before.
        earlier: what it was handed before.
    """
    handed: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    tensors = {key: value for key, value in handed if isinstance(value, Tensor)}
    floating = [key for key, value in tensors.items() if value.is_floating_point()]
    like = [key for key in floating if returned is not None and tensors[key].shape == returned.shape]
    fed = [key for key in like if any(tensors[key] is state for state in states)]
    varied = [key for key in like if not any(tensors[key] is value for value in earlier)]
    key = next(iter((*fed, *varied, *like, *floating, *tensors)), None)
    return key, None if key is None else tensors[key]


def given_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any], taken: int | str | None) -> int | str | None:
    """Return the place or the keyword of the hidden state in this call: as observed, or the first tensor."""
    if isinstance(taken, int) and taken < len(args) and isinstance(args[taken], Tensor):
        return taken
    if isinstance(kwargs.get(str(taken)), Tensor):
        return taken
    handed: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    return next((key for key, value in handed if isinstance(value, Tensor)), None)


def returned_tensor(output: Any) -> Tensor | None:
    """Return the hidden state in what a layer returned: the tensor, or the first entry of several."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        output = output[0] if output else None
    return output if isinstance(output, Tensor) else None


def with_tensor(output: Any, x: Tensor) -> Any:
    """Return what a layer returned with another hidden state in it."""
    if output is None or isinstance(output, Tensor):
        return x
    if isinstance(output, Mapping):
        copied: Any = copy(output)
        copied[next(iter(output))] = x
        return copied
    values = (x, *output[1:])
    return output._make(values) if hasattr(output, "_make") else type(output)(values)


def _emptied(output: Any) -> Any:
    """What a layer returned, of which only the form is kept."""
    if isinstance(output, Mapping):
        empty: Any = copy(output)
        for key in output:
            empty[key] = None
        return empty
    if isinstance(output, tuple | list):
        nothing = [None] * len(output)
        return output._make(nothing) if hasattr(output, "_make") else type(output)(nothing)
    return None


def tensor_of(output: Any) -> Tensor:
    """The answers in what a module returned: a tensor, the field ``logits`` or ``last_hidden_state``, or the first.

    Raises:
        LoopprobeError: there is none.
    """
    names = ("logits", "last_hidden_state")
    fields = [output.get(name) if isinstance(output, Mapping) else getattr(output, name, None) for name in names]
    for candidate in (output, *fields, returned_tensor(output)):
        if isinstance(candidate, Tensor):
            return candidate
    raise LoopprobeError(f"the model returned a {type(output).__name__}: wrap one that returns a tensor or logits")
