"""The hook points of a looped transformer and their names: ``loops.{t}`` and one set of points for each loop.

No parameters live here and nothing of it enters the state dict. Shapes stand beside each point.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint, LensHandle

from loopprobe.config.schema import ModelConfig
from loopprobe.errors import LoopprobeError
from loopprobe.model.loop_numbers import require_numbers

Direction = Literal["fwd", "bwd"]
P = ParamSpec("P")
R = TypeVar("R")

_NAME = re.compile(r"(?:loops\.(?P<loop>\d+)\.)?(?P<local>(?:blocks\.(?P<layer>\d+)\.)?.*)")

_AROUND = re.compile(r"(prelude|coda)\.(\d+)\.(.*)")  # layers around the loop


@lru_cache(maxsize=2**14)  # a run asks for the names of its points again and again
def split_name(name: str) -> tuple[int | None, int | None, str]:
    """Loop, layer and the name within the loop: ``loops.3.blocks.0.hook_resid_post`` → (3, 0, "blocks.0.hook_…")."""
    match = _NAME.fullmatch(name)
    assert match is not None, "the pattern matches every string"
    loop, layer = match["loop"], match["layer"]
    return (
        None if loop is None else int(loop),
        None if layer is None else int(layer),
        match["local"],
    )


def full_name(loop: int | None, local: str) -> str:
    """The name of a hook point from its loop (None for a point that is passed once a run) and its name within it."""
    return local if loop is None else f"loops.{loop}.{local}"


@lru_cache(maxsize=2**14)
def short_name(name: str) -> str:
    """The name that selects and labels an activation: ``resid_post``, ``pattern``, ``z`` (the state), ``attn_z``."""
    _, _, local = split_name(name)
    if (around := _AROUND.fullmatch(local)) is not None:
        return f"{around[1]}{around[2]}_{short_name(around[3])}"
    *parents, last = re.sub(r"^blocks\.\d+\.", "", local).replace("hook_", "").split(".")
    return "_".join((*parents, last)) if last in ("z", "scale", "normalized") else last


@lru_cache(maxsize=2**14)
def dims(name: str) -> tuple[str, ...]:
    """The axes of an activation, the batch as ``example``; tokens are ``position``, of attention ``query``, ``key``.

    The last may be missing, where each of these things is one number.
    """
    last = split_name(name)[2].rsplit("hook_", 1)[-1]
    if last == "readout":
        return ("example", "point", "d_vocab_out")  # the last of token models alone
    if last in ("attn_scores", "pattern"):
        return ("example", "head", "query", "key")
    tokens = ("example", "position")
    if last in ("q", "k", "v", "rot_q", "rot_k", "result") or short_name(name).endswith("attn_z"):
        return (*tokens, "head", "d_model" if last == "result" else "d_head")
    if last == "scale":
        return (*tokens, "unit")
    return (*tokens, "d_mlp" if ".mlp." in name else "d_model")


def numbers_of(name: str, cfg: ModelConfig, n_pos: int, n_kept: int, n_points: int) -> int:
    """Count the numbers of one prompt's activation.

    Args:
        name: of its hook point.
        cfg: of the model.
        n_pos, n_kept: tokens of the prompt, and how many of them are kept.
        n_points: examples of the prompt, each with an answer.
    """
    sizes = {
        "example": 1, "unit": 1, "head": cfg.n_heads, "d_head": cfg.d_head, "d_model": cfg.d_model, "d_mlp": cfg.d_mlp,
        "position": n_kept, "query": n_kept, "key": n_pos, "point": n_points,
        "d_vocab_out": cfg.d_vocab_out or 1,
    }  # fmt: skip
    return math.prod(sizes[axis] for axis in dims(name))


class LoopHookPoint(HookPoint):
    """A HookPoint that knows its loop: the stock ``layer()`` would read the loop as the layer.

    What a hook returns must have the shape, the dtype and the device of the activation. Where a gradient is computed,
    hooks are handed a copy, so that they may write into it.

    Attributes:
        call: while text is generated, the number of the call of the model, from 0; each runs the tokens that are new.
    """

    call: int = 0

    def forward(self, x: Tensor) -> Tensor:
        return x.clone() if self._forward_hooks and torch.is_grad_enabled() and x.requires_grad else x

    def add_hook(self, hook: Callable[..., Any], dir: Direction = "fwd", *args: Any, **kwargs: Any) -> LensHandle:
        handle = super().add_hook(_checked(hook) if dir == "fwd" else hook, dir, *args, **kwargs)
        handle.user_hook = hook
        return handle

    def remove_handle(self, handle: LensHandle) -> None:
        """Detach one hook."""
        handle.hook.remove()
        for handles in (self.fwd_hooks, self.bwd_hooks):
            handles[:] = [other for other in handles if other is not handle]

    def loop(self) -> int:
        """The iteration that this point belongs to, from 0.

        Raises:
            LoopprobeError: the loop is followed as a map of its state.
        """
        require_numbers(self.name)
        loop, _, _ = split_name(self._name())
        if loop is None:
            raise ValueError(f"{self.name} belongs to no loop")
        return loop

    def layer(self) -> int:
        """The layer within the block, from 0."""
        _, layer, _ = split_name(self._name())
        if layer is None:
            raise ValueError(f"{self.name} belongs to no layer")
        return layer

    def _name(self) -> str:
        if self.name is None:
            raise ValueError("this hook point belongs to no model yet")
        return self.name


def _checked(user_hook: Callable[..., Any]) -> Callable[..., Any]:
    """The same hook, refused in one line where what it returns cannot stand in the activation's place."""

    def call(x: Tensor, *, hook: HookPoint) -> Any:
        value = user_hook(x, hook=hook)
        if value is None or value is x:
            return value
        if not isinstance(value, Tensor):
            raise LoopprobeError(
                f"the hook on {hook.name} returned a {type(value).__name__}: "
                f"return a tensor of shape {tuple(x.shape)}, or nothing to leave the activation as it is"
            )
        for what, expected, returned in (
            ("shape", tuple(x.shape), tuple(value.shape)),
            ("dtype", x.dtype, value.dtype),
            ("device", x.device, value.device),
        ):
            if expected != returned:
                raise LoopprobeError(
                    f"the hook on {hook.name} returned {what} {returned}: the activation has {what} {expected}; "
                    f"return a tensor of that {what}"
                )
        return value

    return call


def hooked(*points: nn.Module) -> bool:
    """Tell whether a hook of any kind sits on one of the points."""
    return any(
        point._forward_hooks or point._forward_pre_hooks or point._backward_hooks or point._backward_pre_hooks
        for point in points
    )


def eager_with_hooks(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Make a method of a model leave a compiled run while the model has hooks, which the compiled one would not see."""

    @wraps(method)
    def call(model: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        run = method
        if model.hook_trees.busy and torch.compiler.is_compiling():
            run = torch.compiler.disable(method)
        return run(model, *args, **kwargs)

    return call


# What a layer and the model are handed: plain objects that hold points, so that a loop in which nobody hooks anything
# costs nothing. ``point`` makes or finds the point of a name within the loop.

MakePoint = Callable[[str], LoopHookPoint]


class NormHooks:
    """Points of one layer norm."""

    def __init__(self, point: MakePoint, prefix: str) -> None:
        self.hook_scale = point(f"{prefix}hook_scale")  # [batch, pos, 1]
        self.hook_normalized = point(f"{prefix}hook_normalized")  # [batch, pos, d_model]


class AttentionHooks:
    """Points of one attention layer."""

    def __init__(self, cfg: ModelConfig, point: MakePoint, prefix: str) -> None:
        self.hook_q = point(f"{prefix}hook_q")  # [batch, pos, head, d_head]
        self.hook_k = point(f"{prefix}hook_k")  # [batch, pos, head, d_head]
        self.hook_v = point(f"{prefix}hook_v")  # [batch, pos, head, d_head]
        if cfg.positional_embedding_type == "rotary":
            self.hook_rot_q = point(f"{prefix}hook_rot_q")  # [batch, pos, head, d_head]
            self.hook_rot_k = point(f"{prefix}hook_rot_k")  # [batch, pos, head, d_head]
        self.hook_attn_scores = point(f"{prefix}hook_attn_scores")  # [batch, head, query, key], -inf where not seen
        self.hook_pattern = point(f"{prefix}hook_pattern")  # [batch, head, query, key]
        self.hook_z = point(f"{prefix}hook_z")  # [batch, pos, head, d_head]
        self.hook_result = point(f"{prefix}hook_result")  # [batch, pos, head, d_model]


class MLPHooks:
    """Points of one MLP."""

    def __init__(self, cfg: ModelConfig, point: MakePoint, prefix: str) -> None:
        self.hook_pre = point(f"{prefix}hook_pre")  # [batch, pos, d_mlp]
        if cfg.gated_mlp:
            self.hook_pre_linear = point(f"{prefix}hook_pre_linear")  # [batch, pos, d_mlp]
        self.hook_post = point(f"{prefix}hook_post")  # [batch, pos, d_mlp]


class BlockHooks:
    """Points of one layer."""

    def __init__(self, cfg: ModelConfig, point: MakePoint, prefix: str) -> None:
        self.hook_resid_pre = point(f"{prefix}hook_resid_pre")  # [batch, pos, d_model]
        self.ln1 = NormHooks(point, f"{prefix}ln1.")
        self.attn = AttentionHooks(cfg, point, f"{prefix}attn.")
        self.hook_attn_out = point(f"{prefix}hook_attn_out")  # [batch, pos, d_model]
        self.hook_resid_mid = point(f"{prefix}hook_resid_mid")  # [batch, pos, d_model]
        self.ln2 = NormHooks(point, f"{prefix}ln2.")
        self.mlp = MLPHooks(cfg, point, f"{prefix}mlp.")
        self.hook_mlp_out = point(f"{prefix}hook_mlp_out")  # [batch, pos, d_model]
        self.hook_resid_post = point(f"{prefix}hook_resid_post")  # [batch, pos, d_model]


class LoopHooks:
    """Points of one iteration of the loop, in the order in which they are passed; only what the model has."""

    def __init__(self, cfg: ModelConfig, point: MakePoint) -> None:
        self.hook_z_pre = point("hook_z_pre")  # [batch, pos, d_model]  the state that enters the loop
        self.hook_input = point("hook_input")  # [batch, pos, d_model]  state with the input injected
        if cfg.positional_embedding_type == "standard":
            self.hook_pos_embed = point("hook_pos_embed")  # [batch, pos, d_model]
        if cfg.loop_embedding:
            self.hook_loop_embed = point("hook_loop_embed")  # [batch, pos, d_model]
        self.blocks = [BlockHooks(cfg, point, f"blocks.{layer}.") for layer in range(cfg.n_layers)]
        self.ln_final = NormHooks(point, "ln_final.")
        self.hook_z = point("hook_z")  # [batch, pos, d_model]  the state after the loop, and so after ln_final
        self.coda = [BlockHooks(cfg, point, f"coda.{layer}.") for layer in range(cfg.n_coda_layers)]
        if cfg.n_coda_layers:
            self.ln_coda = NormHooks(point, "ln_coda.")
        self.hook_readout = point(
            "hook_readout"
        )  # [batch, n_points] predictions, or [batch, answer, d_vocab_out] logits


class OnceHooks:
    """Points that are passed once a run, before the first loop."""

    def __init__(self, cfg: ModelConfig, point: MakePoint) -> None:
        self.prelude = [BlockHooks(cfg, point, f"prelude.{layer}.") for layer in range(cfg.n_prelude_layers)]
        self.hook_embed = point("hook_embed")  # [batch, pos, d_model]  the injected input e


@runtime_checkable
class HookLayout(Protocol):
    """Which hook points a model has."""

    @property
    def n_loops(self) -> int:
        """The loops as trained."""

    def once(self, point: MakePoint) -> Any:
        """Return an object that holds the points that are passed once a run."""

    def in_loop(self, point: MakePoint) -> Any:
        """Return an object that holds the points of one iteration, in the order in which they are passed."""

    def numbers_of(self, local: str, n_pos: int, n_kept: int, n_points: int) -> int:
        """Count the numbers of one prompt's activation, see the function ``numbers_of``."""


@dataclass
class ConfigLayout:
    """The hook points of a LoopedTransformer.

    Attributes:
        cfg: of the model.
    """

    cfg: ModelConfig

    @property
    def n_loops(self) -> int:
        """The loops as trained."""
        return self.cfg.n_loops

    def once(self, point: MakePoint) -> OnceHooks:
        """Return the points that are passed once a run."""
        return OnceHooks(self.cfg, point)

    def in_loop(self, point: MakePoint) -> LoopHooks:
        """Return the points of one iteration."""
        return LoopHooks(self.cfg, point)

    def numbers_of(self, local: str, n_pos: int, n_kept: int, n_points: int) -> int:
        """Count the numbers of one prompt's activation."""
        return numbers_of(local, self.cfg, n_pos, n_kept, n_points)
