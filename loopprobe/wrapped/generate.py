"""Text from a wrapped module, by its own ``generate`` and its key-value cache, under hooks that act in every call.

A call runs the tokens that are new: the first one the whole prompt, each later one the token written last. A module
without a cache runs the whole text in every call.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from loopprobe.errors import LoopprobeError
from loopprobe.model.hook_points import hooked
from loopprobe.model.protocol import require
from loopprobe.wrapped.anatomy import loop_count
from loopprobe.wrapped.attention import hooked_attention
from loopprobe.wrapped.passes import Pass
from loopprobe.wrapped.plan import Plan, lock_of
from loopprobe.wrapped.precision import as_precise_as
from loopprobe.wrapped.wiring import tensor_of

if TYPE_CHECKING:
    from loopprobe.wrapped.model import WrappedModel


def generate(
    model: WrappedModel, tokens: Any, max_new_tokens: int, n_loops: int | None, options: dict[str, Any]
) -> Any:
    """Generate text; see ``WrappedModel.generate``."""
    module = model.module
    require(model, frozenset({"generate"}), type(module).__name__, "generate")
    (tokens,) = model.prepare(tokens)
    n_loops = model.n_loops if n_loops is None else n_loops
    model.check_loops(n_loops)
    _require_room(model, tokens, max_new_tokens)
    model.require_memory((tokens,), 1)
    _require_hooks_that_act(model, n_loops)
    run = Pass(module, model.anatomy, model.wiring, model.hook_trees, Plan(n_loops=n_loops, hooked=model.is_hooked))
    with ExitStack() as stack:
        stack.enter_context(lock_of(module))
        stack.enter_context(torch.no_grad())
        stack.enter_context(as_precise_as(module))
        keywords = dict(stack.enter_context(loop_count(module, model.anatomy, n_loops)))
        taken = _own_generate(module, keywords)
        if taken is not None:
            keywords = _defaults(model, tokens, keywords, taken) | options
        stack.enter_context(model.hook_trees.run(n_loops))
        if run.plan.hooked:
            stack.enter_context(hooked_attention(run))
            stack.enter_context(run.wired())
            stack.callback(module.register_forward_hook(partial(_read_out, run)).remove)
        if taken is None:
            return _by_whole_runs(module, tokens, max_new_tokens, keywords, **options)
        writes: Any = module.generate
        return writes(tokens, max_new_tokens=max_new_tokens, **keywords)


def _require_room(model: WrappedModel, tokens: Tensor, max_new_tokens: int) -> None:
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise LoopprobeError(f"max_new_tokens ({max_new_tokens!r}) must be a whole number and at least 1: change it")
    if (longest := tokens.shape[1] + max_new_tokens) > model.anatomy.n_ctx:
        raise LoopprobeError(
            f"the prompt and max_new_tokens are {longest} tokens but the model reads {model.anatomy.n_ctx}: lower "
            "max_new_tokens or shorten the prompt"
        )


def _require_hooks_that_act(model: WrappedModel, n_loops: int) -> None:
    """Raise LoopprobeError where a hook sits on a state that no hook of the module can change."""
    n_parts = len(model.anatomy.state)
    if not model.is_hooked or not n_parts:
        return
    names = [(0, "hook_z_pre")] + [(t, name) for t in range(n_loops) for name in ("hook_z_pre", "hook_z")]
    why = "the module makes the state that it starts from" if n_parts == 1 else f"its state is in {n_parts} parts"
    for loop, name in names if n_parts > 1 else names[:1]:
        if hooked(getattr(model.hook_trees.at(loop), name)):
            raise LoopprobeError(
                f"a hook on loops.{loop}.{name} cannot act while text is generated, where {why}: hook a layer, such as "
                f"loops.{loop}.blocks.0.hook_resid_{'pre' if name == 'hook_z_pre' else 'post'}"
            )


def _own_generate(module: nn.Module, keywords: Mapping[str, Any]) -> set[str] | None:
    """Return the keywords that the module's own ``generate`` takes, "**" for any; None where it cannot be used."""
    own = getattr(module, "generate", None)
    if own is None:
        return None
    parameters = inspect.signature(own).parameters.values()
    taken = {"**" if one.kind is one.VAR_KEYWORD else one.name for one in parameters}
    needed = {"max_new_tokens", *(keywords.keys() - {"use_cache"})}
    return taken if "**" in taken or needed <= taken else None


def _defaults(model: WrappedModel, tokens: Tensor, keywords: dict[str, Any], taken: set[str]) -> dict[str, Any]:
    """Return the keywords of ``generate`` that the user need not give: whole prompts, and a cache if there is one."""
    whole = {**keywords, "attention_mask": torch.ones_like(tokens)}
    if "use_cache" in keywords:
        if model.has_cache is None:
            model.has_cache = _has_cache(model, keywords)
        whole["use_cache"] = model.has_cache
    return {name: value for name, value in whole.items() if "**" in taken or name in taken}


def _has_cache(model: WrappedModel, keywords: dict[str, Any]) -> bool:
    """Tell whether the module writes into a key-value cache, by trying."""
    with suppress(Exception):  # whatever fails in code of others, such as remote code with another transformers
        output = model.module(*model.example, **{**keywords, "use_cache": True})
        caches = [getattr(output, name, None) for name in ("cache", "past_key_values")]
        cache = next(one for one in caches if one is not None)
        return not hasattr(cache, "get_seq_length") or cache.get_seq_length() > 0
    return False


def _by_whole_runs(
    module: nn.Module,
    tokens: Tensor,
    max_new_tokens: int,
    keywords: Mapping[str, Any],
    do_sample: bool = False,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    **unknown: Any,
) -> Tensor:
    if unknown:
        raise LoopprobeError(
            f"{next(iter(unknown))} is not known where a module has no generate of its own: give do_sample, "
            "temperature or generator"
        )
    for _ in range(max_new_tokens):
        logits = tensor_of(module(tokens, **keywords))[:, -1]
        if do_sample:
            following = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        else:
            following = logits.argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, following], 1)
    return tokens


def _read_out(run: Pass, module: nn.Module, args: Any, output: Any) -> Any:
    """Hand the answers of a call to the hooks of the last loop's ``hook_readout``."""
    answers = tensor_of(output)
    value = run.pass_point(run.plan.n_loops - 1, "hook_readout", answers)
    if value is answers:
        return output
    if isinstance(output, Tensor):
        return value
    if isinstance(getattr(output, "logits", None), Tensor):
        output.logits = value
        return output
    return type(output)((value, *output[1:]))
