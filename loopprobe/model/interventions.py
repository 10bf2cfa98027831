"""Edits of activations at chosen loops, layers, heads and positions; nothing stays attached, whatever is raised.

An edit is a small function of an activation and its hook point that returns what stands there instead; ``edited``
applies one at the chosen places while its block lasts:

    with edited(model, "mlp_out", zero, loops=[7]): ...                       # zero ablation
    with edited(model, "attn_z", resample(generator), heads=[2]): ...         # resample ablation of one head
    with edited(model, "z", replace(cache), loops=[4], positions=[-2]): ...   # patching from another run
    with edited(model, "pattern", freeze(10)): ...                            # attention of loop 10 from there on
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Bool
from torch import Tensor

from loopprobe.config.selection import Numbers, listed, parts_of, resolve
from loopprobe.errors import LoopprobeError
from loopprobe.model.cache import LoopCache
from loopprobe.model.hook_points import LoopHookPoint, dims, full_name, split_name
from loopprobe.model.hooked_root import LoopedRootModule
from loopprobe.model.protocol import LoopedModel, require
from loopprobe.model.selection import LoopChoice, Names, selector
from loopprobe.support.statistics import double
from loopprobe.tasks import PromptBatch
from loopprobe.tasks.places import named_tokens

Edit = Callable[[Tensor, LoopHookPoint], Tensor]


@contextmanager
def edited(
    model: LoopedRootModule,
    name: str,
    edit: Edit,
    *,
    loops: Numbers = None,
    layers: Numbers = None,
    heads: Numbers = None,
    positions: Numbers = None,
    prompts: PromptBatch | None = None,
) -> Iterator[LoopedRootModule]:
    """Let ``edit`` decide what stands at the chosen places of an activation.

    Args:
        model: the model to edit; use it inside the ``with`` block as usual.
        name: of the activation, as in ``run_with_cache`` (``"mlp_out"``, ``"attn_z"``, ``"z"`` for the state).
        edit: from the activation and its hook point to its replacement, of a shape that broadcasts.
        loops: iterations, from 0: a number, several, a slice, or text such as ``"0:4"``, see ``config.selection``;
            negative ones count from the end of each run. None: all.
        layers: layers, chosen as loops are.
        heads: heads, chosen as loops are.
        positions: tokens, chosen as loops are; of scores and patterns those of the query. With ``prompts`` also by
            their names, such as ``"query"`` and ``"labels"``.
        prompts: the prompts that the model is run on, which know the names of tokens.

    Raises:
        LoopprobeError: no such activation, or it has no heads or positions, or not these; at the end of the block, a
            loop was named that no run came to.
    """
    choice = LoopChoice(loops)
    matches = selector(name, choice.known, layers, model)
    _require_axes(model, name, {"loop": loops, "head": heads, "position": positions})
    heads = None if heads is None else resolve(heads, model.sizes.n_heads, "head")
    if prompts is not None:
        positions = resolve(positions, prompts.n_tokens, "position", names=named_tokens(prompts))
    positions = listed(positions)
    parts_of(positions, "position")

    def apply(x: Tensor, hook: LoopHookPoint) -> Tensor | None:
        if not choice.meant_at(hook, model.hook_trees.running):
            return None
        value = edit(x, hook)
        where = places(str(hook.name), x, heads, positions)
        return _fitted(value, x, hook) if where is None else torch.where(where, _fitted(value, x, hook), x)

    with model.hooks(fwd_hooks=[(matches, apply)]), model.hook_trees.watch() as runs:
        yield model
        choice.require_reached(runs.longest)


def places(name: str, activation: Tensor, heads: Numbers, positions: Numbers) -> Bool[Tensor, ...] | None:
    """A mask of the chosen heads and positions that broadcasts to an activation; None where all of it is chosen."""
    where = None
    for axis_name, wanted in (("head", heads), ("position", positions)):
        if wanted is None:
            continue
        axis = _axis(name, axis_name)
        assert axis is not None, "checked when the edit was attached"
        size = activation.shape[axis]
        chosen = torch.zeros(size, dtype=torch.bool, device=activation.device)
        chosen[resolve(wanted, size, axis_name)] = True
        chosen = chosen.reshape([size if i == axis else 1 for i in range(activation.ndim)])
        where = chosen if where is None else where & chosen
    return where


def _require_axes(model: LoopedRootModule, name: str, chosen: Mapping[str, Numbers]) -> None:
    """Raise LoopprobeError where loops, heads or positions are chosen of an activation that has none."""
    matches = selector(name, None, None, model)
    trees = model.hook_trees
    known = [*trees.once_names, *(full_name(0, local) for local in trees.local_names)]
    for point in filter(matches, known):
        for axis, wanted in chosen.items():
            has_axis = split_name(point)[0] is not None if axis == "loop" else _axis(point, axis) is not None
            if wanted is not None and not has_axis:
                raise LoopprobeError(f"{name} has no {axis}s: drop {axis}s={wanted!r}")


def zero(x: Tensor, hook: LoopHookPoint) -> Tensor:
    """Zero ablation."""
    return torch.zeros_like(x)


def hide(positions: Numbers) -> Edit:
    """Attention without some tokens: of ``"pattern"``, no other token attends to them, and the rest adds up to one.

    Args:
        positions: the tokens, from 0, or from the end where negative. Each still attends to itself.
    """

    def edit(pattern: Tensor, hook: LoopHookPoint) -> Tensor:
        n = pattern.shape[-1]
        seen = torch.ones(n, n, dtype=pattern.dtype, device=pattern.device)
        seen[:, resolve(positions, n, "position") or slice(None)] = 0
        left = pattern * seen.fill_diagonal_(1)
        return left / left.sum(-1, keepdim=True).clamp_min(torch.finfo(pattern.dtype).tiny)

    return edit


def resample(generator: torch.Generator | None = None) -> Edit:
    """Resample ablation: the activation of another prompt of the batch, the same one at every place.

    Prompts are shifted around a random order, so that none keeps its own.
    """
    order: dict[int, Tensor] = {}

    def edit(x: Tensor, hook: LoopHookPoint) -> Tensor:
        if len(x) < 2:
            raise LoopprobeError(f"resample ablation needs other prompts, and the batch has {len(x)}: give at least 2")
        if len(x) not in order:
            shuffled = torch.randperm(len(x), generator=generator)
            order[len(x)] = torch.empty_like(shuffled).scatter_(0, shuffled, shuffled.roll(1))
        return x[order[len(x)].to(x.device)]

    return edit


def replace(cache: LoopCache, loops: Mapping[int, int] | None = None) -> Edit:
    """The activations of another run, from its cache: patching; of ``mean_activations``: mean ablation.

    Args:
        cache: of a run with as many prompts of the same length, or with one prompt, which then serves all.
        loops: to the loop that is edited, the loop whose activation it gets; others are left as they are. None: the
            same loop.
    """

    def edit(x: Tensor, hook: LoopHookPoint) -> Tensor:
        loop, _, local = split_name(str(hook.name))
        loop = loop if loop is None else hook.loop()
        if loop is None or loops is None:
            return _fitted(cache[str(hook.name)], x, hook)
        return _fitted(cache[full_name(loops[loop], local)], x, hook) if loop in loops else x

    return edit


def swap(cache: LoopCache, first: int, second: int) -> Edit:
    """Exchange what two loops wrote: each gets the activation that the other had in the run of the cache."""
    return replace(cache, {first: second, second: first})


def add(direction: Tensor, scale: float = 1.0) -> Edit:
    """Add a direction, of a shape that broadcasts to the activation."""
    return lambda x, hook: x + scale * direction.to(x)


def freeze(loop: int) -> Edit:
    """Keep from ``loop`` on what the activation is there: of ``"pattern"`` the attention, of ``"z"`` the state."""
    held: dict[str, Tensor] = {}

    def edit(x: Tensor, hook: LoopHookPoint) -> Tensor:
        now, _, local = split_name(str(hook.name))
        if now is None or hook.loop() < loop:
            return x
        if now == loop:
            held[local] = x
        return held[local]

    return edit


def _fitted(value: Tensor, x: Tensor, hook: LoopHookPoint) -> Tensor:
    """Spread what an edit gives over the activation whose place it takes."""
    if not isinstance(value, Tensor):
        raise LoopprobeError(f"the edit of {hook.name} gave a {type(value).__name__}: return a tensor")
    try:
        return value.to(x).expand_as(x)
    except RuntimeError:
        raise LoopprobeError(
            f"the edit of {hook.name} gave shape {tuple(value.shape)} for an activation of shape {tuple(x.shape)}: "
            "give as many prompts and positions, or one prompt for all"
        ) from None


@contextmanager
def skipped(model: LoopedRootModule, loops: Numbers) -> Iterator[LoopedRootModule]:
    """Leave iterations out: the state passes them unchanged, and so does the prediction.

    Args:
        model: the model; use it inside the ``with`` block as usual.
        loops: the iterations, as in ``edited``.

    Raises:
        LoopprobeError: the model has no state, or nothing is chosen; at the end of the block, a loop was named that no
            run came to.
    """
    require(model, frozenset({"map"}), "the model", "skipped")
    choice = LoopChoice(loops)
    entered: list[Tensor] = []

    def note(z: Tensor, hook: LoopHookPoint) -> None:
        entered[:] = [z]

    def leave(z: Tensor, hook: LoopHookPoint) -> Tensor | None:
        return entered[0] if choice.meant_at(hook, model.hook_trees.running) else None

    pairs = [(selector(name, choice.known, None, model), hook) for name, hook in (("z_pre", note), ("z", leave))]
    with model.hooks(fwd_hooks=pairs), model.hook_trees.watch() as runs:
        yield model
        choice.require_reached(runs.longest)


def mean_activations(model: LoopedModel, batches: Iterable[PromptBatch], n_loops: int, names: Names) -> LoopCache:
    """The mean over prompts of activations in the clean run, as a cache of one prompt that ``replace`` takes.

    Args:
        model: the model to run.
        batches: prompts, in batches of any sizes (``prompts.split``).
        n_loops: loops to run.
        names: as in ``run_with_cache``.
    """
    means = LoopCache.choose(model, n_loops, names, None, None, None, n_pos=model.sizes.n_ctx)
    sums: dict[str, Tensor] = {}  # in float64, so that they do not depend on the batches
    dtypes: dict[str, torch.dtype] = {}

    def sum_up(x: Tensor, hook: LoopHookPoint) -> None:
        name = str(hook.name)
        dtypes[name] = x.dtype
        sums[name] = sums.get(name, 0) + double(x).sum(0, keepdim=True)

    n_prompts = 0
    with torch.no_grad(), model.hooks(fwd_hooks=[(means.holds, sum_up)]):
        for batch in batches:
            model(*batch.inputs, n_loops=n_loops, keep_loops=1)
            n_prompts += batch.n_prompts
    for name, total in sums.items():
        means.keep(name, (total / n_prompts).to(model.device, dtypes[name]))
    return means


def _axis(name: str, axis: str) -> int | None:
    axes = dims(name)
    wanted = "query" if axis == "position" and "query" in axes else axis
    return axes.index(wanted) if wanted in axes else None
