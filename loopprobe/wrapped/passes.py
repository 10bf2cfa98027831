"""One pass through an unmodified module, whose loops are told apart by counting the calls of its layers.

A pass may begin with loops that are left out: their layers hand on what they get, and a state that is given stands
where they ended. So any state can be stepped on, or read by the module's own coda.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from loopprobe.errors import LoopprobeError
from loopprobe.model.hook_points import hooked
from loopprobe.model.hook_trees import HookTrees
from loopprobe.wrapped.anatomy import Anatomy, loop_count, place_of
from loopprobe.wrapped.plan import Plan, lock_of
from loopprobe.wrapped.points import of_heads
from loopprobe.wrapped.precision import as_precise_as
from loopprobe.wrapped.wiring import Wiring, given_tensor, returned_tensor, with_tensor

BEHIND = ("coda", "hook_readout")  # what stands behind the loop is passed when the loop itself is left out
ACTIVE: ContextVar[Pass | None] = ContextVar("pass", default=None)  # the pass that goes on, for attention functions


class _Stop(BaseException):
    """Ends a pass where nothing more is wanted; nothing in between may catch it."""


@dataclass
class Pass:
    """A pass that goes on.

    Attributes:
        module, anatomy, wiring, trees: the module, its parts, the order of its calls, and its hook points.
        plan: what is wanted.
        e: the injected input.
        states: those that are kept, by their loops.
        calls: how often the module was called, from 0: of a generation, the token.
    """

    module: nn.Module
    anatomy: Anatomy
    wiring: Wiring
    trees: HookTrees
    plan: Plan
    e: Tensor | None = None
    states: dict[int, Tensor] = field(default_factory=dict)
    calls: int = -1
    _hooks: dict[int | None, Any] = field(default_factory=dict)  # the hook points of the loops of this pass
    _position: int = 0  # layers that this call has entered
    _inside: dict[str, int] = field(default_factory=dict)  # the layers that go on, by their paths
    _embedded: bool = False
    _ended: bool = False  # whether the state of the last loop is whole
    _parts: list[Tensor | None] = field(default_factory=list)  # of the state of the loop that goes on
    _start: Tensor | None = None
    _counts: list[int] = field(default_factory=list)  # how often the loop that goes on has called each of their modules

    # Which loop it is

    def begin(self, *_: Any) -> None:
        """Note that the module is called."""
        if ACTIVE.get() is not self:
            return
        self.calls += 1
        self._position, self._embedded, self._ended = 0, False, False
        self._inside.clear()
        self._parts, self._counts = [None] * len(self.anatomy.state), [0] * len(self.anatomy.state)

    def upcoming(self) -> int:
        """The loop that the next layer belongs to."""
        return self.plan.first + self._position // len(self.wiring.order)

    def current(self) -> int:
        """The loop that the layer entered last belongs to."""
        return self.plan.first + max(0, self._position - 1) // len(self.wiring.order)

    def layer(self) -> int:
        """The layer that was entered last, in the order of a loop."""
        return (self._position - 1) % len(self.wiring.order)

    def layer_with(self, attention: nn.Module) -> int | None:
        """The layer that was entered last, where it holds an attention; None: it is one outside the core."""
        if not self._position:
            return None
        layer = self.layer()
        own = self.module.get_submodule(f"{self.wiring.order[layer]}.{self.anatomy.attention}")
        return layer if own is attention else None

    @property
    def leaves_out(self) -> bool:
        """Whether the layer that is entered is left out."""
        return self.current() < self.plan.first + self.plan.skip

    def pass_point(self, loop: int | None, name: str, x: Tensor) -> Tensor:
        """Hand an activation to the hooks of its point, and return what stands in its place."""
        left_out = loop is not None and loop < self.plan.first + self.plan.skip and not name.startswith(BEHIND)
        if not self.plan.hooked or left_out:
            return x
        if loop not in self._hooks:
            self._hooks[loop] = self.trees.at(loop)
        point = find_point(name)(self._hooks[loop])
        if not hooked(point):
            return x
        point.call = self.calls
        token = ACTIVE.set(None)  # a hook may call the module itself
        try:
            value: Tensor = point(x)
        finally:
            ACTIVE.reset(token)
        return value

    # The parts

    def entered(self, path: str, x: Tensor) -> Tensor:
        """A layer of the core is entered."""
        self._position += 1
        self._inside[path] = self.layer()
        return self.pass_point(self.current(), f"blocks.{self.layer()}.hook_resid_pre", x)

    def within(self, path: str, local: str, x: Tensor) -> Tensor:
        """A place within a layer is passed; of a module that others share only while the layer goes on."""
        layer = self._inside.get(path)
        if layer is None:
            return x
        side_by_side = x.ndim == 3 and of_heads(local)
        x = x.unflatten(-1, (self.anatomy.n_heads, -1)) if side_by_side else x
        x = self.pass_point(self.current(), f"blocks.{layer}.{local}", x)
        return x.flatten(2) if side_by_side else x

    def left(self, path: str, x: Tensor) -> Tensor:
        """A layer of the core is left."""
        return self.pass_point(self.current(), f"blocks.{self._inside.pop(path)}.hook_resid_post", x)

    def embedded(self, x: Tensor) -> Tensor:
        """The prelude has given the injected input."""
        if self._embedded:  # such as an embedding that is called again, for something else
            return x
        self._embedded = True
        if self.plan.e is not None:
            self.e = self.plan.e
        else:
            self.e = self.pass_point(None, "hook_embed", x)
        if self.plan.stop == "embed":
            raise _Stop
        return self.e

    def wrote(self, part: int, x: Tensor) -> Tensor:
        """A module of the state has returned; with the last of the loop the state is whole."""
        if not self._embedded or self._ended:  # such as a norm that the prelude and the coda share with the loop
            return x
        self._counts[part] += 1
        if self._counts[part] < self.wiring.state_calls[part]:
            return x
        loop, last = self.current(), len(self._parts) - 1
        if loop < self.plan.first + self.plan.skip:
            if part == last:
                self._counts, self._ended = [0] * (last + 1), loop + 1 == self.plan.n_loops
            sizes = [self.wiring.widths[path, "out"][-1] for path in self.anatomy.state]
            return self._given().split(sizes, -1)[part]
        self._parts[part] = x
        if part < last:
            return x
        z = x if last == 0 else torch.cat([one for one in self._parts if one is not None], -1)
        z = self.pass_point(loop, "hook_z", z)
        if loop in self.plan.kept:
            self.states[loop] = z
        self._counts = [0] * (last + 1)
        if loop + 1 == self.plan.n_loops and self.plan.stop == "state":
            raise _Stop
        self._ended = loop + 1 == self.plan.n_loops
        if not self._ended:
            z = self.pass_point(loop + 1, "hook_z_pre", z)
        return z[..., -x.shape[-1] :]

    def _given(self) -> Tensor:
        """The state that stands where the loops that are left out ended."""
        if self._start is None:
            z = self.plan.z
            if callable(z):
                assert self.e is not None, "the prelude comes before the loop"
                z = z(self.e)
            assert z is not None
            following = self.plan.first + self.plan.skip
            self._start = z if following == self.plan.n_loops else self.pass_point(following, "hook_z_pre", z)
        return self._start

    # Running

    def run(self, *inputs: Any, **keywords: Any) -> Any:
        """Call the module; what it returns, or None where the pass stopped before."""
        count = self.plan.n_loops - self.plan.first
        with (
            lock_of(self.module),
            self.wired(),
            as_precise_as(self.module),
            loop_count(self.module, self.anatomy, count) as further,
        ):
            try:
                return self.module(*inputs, **further, **keywords)
            except _Stop:
                return None

    @contextmanager
    def wired(self) -> Iterator[None]:
        """Attach everything to the module while the block lasts, and take it off again, whatever is raised."""
        get = self.module.get_submodule
        token = ACTIVE.set(self)
        with ExitStack() as stack:
            stack.callback(ACTIVE.reset, token)
            stack.callback(self.module.register_forward_pre_hook(self.begin).remove)
            for path in dict.fromkeys(self.wiring.order):
                self._on(stack, path, "in", partial(self.entered, path))
            for name, path, side in self._points():
                self._on(stack, path, side, self._passing(name, path))
            for path in dict.fromkeys(self.wiring.order):
                self._wire_layer(stack, path)
            for part, path in enumerate(self.anatomy.state):
                self._on(stack, path, "out", partial(self.wrote, part))
            self._on(stack, self.anatomy.prelude[-1], "out", self.embedded)
            for i, path in enumerate(self.anatomy.coda if self.plan.hooked else ()):
                name = f"coda.{i}.hook_resid_post"
                self._on(stack, path, "out", partial(self.pass_point, self.plan.n_loops - 1, name))
            if self.anatomy.head is not None and self.plan.read_at is not None:
                self._on(stack, self.anatomy.head, "in", lambda x: x[:, self.plan.read_at])
            if self.plan.e is not None:
                for path in self.wiring.passes_on:
                    self._replace(stack, get(path), path, lambda: not self._embedded)
            if self.plan.hooked:
                for inner in self.module.modules():
                    if getattr(inner, "gradient_checkpointing", False):  # runs layers again when no loop is known
                        stack.callback(setattr, inner, "gradient_checkpointing", True)
                        setattr(inner, "gradient_checkpointing", False)  # noqa: B010
            yield

    def _points(self) -> Iterator[tuple[str, str, str]]:
        """The further places of a loop, where anybody listens: names, paths and sides."""
        if self.plan.hooked:
            for name, place in self.anatomy.points.items():
                yield name, *place_of(place)

    def _passing(self, name: str, path: str) -> Callable[[Tensor], Tensor]:
        loop = self.upcoming if path in self.wiring.opens else self.current
        return lambda x: self.pass_point(loop(), name, x)

    def _wire_layer(self, stack: ExitStack, path: str) -> None:
        layer = self.module.get_submodule(path)
        if self.plan.skip:
            self._replace(stack, layer, path, lambda: self.leaves_out)
        if not self.plan.hooked:
            return
        for local, place in self.anatomy.sites.items():
            inner, side = place_of(place)
            self._on(stack, f"{path}.{inner}".rstrip("."), side, partial(self.within, path, local))
        self._on(stack, path, "out", partial(self.left, path))

    def _on(self, stack: ExitStack, path: str, side: str, act: Callable[[Tensor], Tensor]) -> None:
        """Let ``act`` decide what a module is handed, or what it returns, as its hidden state."""
        part, taken = self.module.get_submodule(path), self.wiring.takes.get(path)

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if ACTIVE.get() is not self:  # a hook runs another pass of the module
                return None
            key = given_tensor(args, kwargs, taken)
            if key is None:
                raise LoopprobeError(f"{path} is handed no tensor in this call: name another place")
            if isinstance(key, int):
                return (*args[:key], act(args[key]), *args[key + 1 :]), kwargs
            return args, {**kwargs, key: act(kwargs[key])}

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if ACTIVE.get() is not self:
                return None
            x = returned_tensor(output)
            if x is None:
                raise LoopprobeError(f"{path} returns no tensor in this call: name another place")
            return with_tensor(output, act(x))

        handle = (
            part.register_forward_pre_hook(before, with_kwargs=True)
            if side == "in"
            else part.register_forward_hook(after)
        )
        stack.callback(handle.remove)

    def _replace(self, stack: ExitStack, part: nn.Module, path: str, when: Callable[[], bool]) -> None:
        """Let a layer hand on what it gets, at times."""
        computed, empty, taken = part.forward, self.wiring.returns[path], self.wiring.takes.get(path)
        own = vars(part)  # attributes of some modules, such as a bridge's, are set elsewhere
        was = own.get("forward")

        def forward(*args: Any, **kwargs: Any) -> Any:
            if ACTIVE.get() is not self or not when():
                return computed(*args, **kwargs)
            key = given_tensor(args, kwargs, taken)
            return with_tensor(empty, args[key] if isinstance(key, int) else kwargs[str(key)])

        def restore() -> None:
            if was is None:
                del own["forward"]
            else:
                own["forward"] = was

        stack.callback(restore)
        own["forward"] = forward


_GETTERS: dict[str, attrgetter[Any]] = {}


def find_point(name: str) -> attrgetter[Any]:
    """Return what finds the point of a name within an object that holds points."""
    if name not in _GETTERS:
        _GETTERS[name] = attrgetter(name)
    return _GETTERS[name]
