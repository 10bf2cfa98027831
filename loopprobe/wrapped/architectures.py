"""Known architectures, one table each, by the name of the class of a model."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from loopprobe.errors import LoopprobeError
from loopprobe.wrapped.anatomy import Anatomy

NO_CACHE = {"use_cache": False}


def ouro(model: Any) -> Anatomy:
    """Ouro, a looped language model (arXiv 2510.25741): remote code of ByteDance/Ouro-1.4B and others."""
    return Anatomy(
        core=_layers("model.layers", len(model.model.layers)),
        prelude=("model.embed_tokens",),
        state=("model.norm",),
        norm="model.norm",
        head="lm_head",
        set_loops="model.total_ut_steps",
        sites={
            "hook_attn_out": "input_layernorm_2",
            "hook_resid_mid": ("post_attention_layernorm", "in"),
            "hook_mlp_out": "post_attention_layernorm_2",
        },
        **_gate(model, "model.early_exit_gate"),
        **_common(model),
    )


def huginn(model: Any) -> Anatomy:
    """Huginn, a recurrent-depth language model (arXiv 2502.05171): remote code of tomg-group-umd/huginn-0125.

    Its state starts at random: the same for all prompts, drawn from ``start_seed``.
    """
    parts = model.transformer
    return Anatomy(
        core=_layers("transformer.core_block", len(parts.core_block)),
        prelude=("transformer.wte", *_layers("transformer.prelude", len(parts.prelude))),
        state=_layers("transformer.core_block", len(parts.core_block))[-1:],
        coda=_layers("transformer.coda", len(parts.coda)),
        head="lm_head",
        set_loops=_num_steps,
        start=_random_state,
        sites={"hook_attn_out": "attn", "hook_resid_mid": ("norm_3", "in"), "hook_mlp_out": "mlp"},
        points={"hook_adapter": ("transformer.adapter", "in"), "hook_input": "transformer.adapter"},
        n_loops=int(model.config.mean_recurrence),
        **{**_common(model), "attention": "attn"},
    )


def _num_steps(n: int) -> dict[str, Any]:
    return {"num_steps": (0, n)}  # none of them without gradient


def _random_state(model: Any, e: Tensor, seed: int) -> Tensor:
    """A normal state, truncated at three standard deviations, as Huginn draws it; the same for every prompt."""
    init = getattr(model.config, "init_values", None) or {}
    std = float(init.get("std", 1.0))
    generator = torch.Generator().manual_seed(seed)
    z = torch.empty(e.shape[1:])
    nn.init.trunc_normal_(z, 0.0, std, -3 * std, 3 * std, generator=generator)
    return (z * float(getattr(model, "emb_scale", 1.0))).to(e).expand_as(e)


def hrm_text(model: Any) -> Anatomy:
    """HRM-Text, a hierarchical reasoning model: a loop runs the low stack L_cycles times, and then the high one.

    The layers of a loop are those of the low stack, as often as it runs, and those of the high stack. The state is the
    low state and the high state, side by side; answers are read from the high one.
    """
    core = [f"model.{stack}.layers" for stack in ("L_module", "H_module")]
    per_loop = model.config.num_layers_per_stack * (model.config.L_cycles + 1)
    return Anatomy(
        core=tuple(path for stack in core for path in _layers(stack, len(model.get_submodule(stack)))),
        prelude=("model.embed_tokens",),
        state=("model.L_module", "model.H_module"),
        norm="model.H_module.final_norm",
        head="lm_head",
        set_loops="config.H_cycles",
        settings={
            "model.L_bp_cycles_padded": [model.config.L_cycles] * 4096,  # gradients of all cycles, not only the last
            "config.num_hidden_layers": partial(operator.mul, per_loop),  # of a key-value cache
        },
        start=_low_and_high,
        injection="z_low + z_high",
        sites={
            "hook_attn_out": "self_attn",
            "hook_resid_mid": ("post_attention_layernorm", "in"),
            "hook_mlp_out": "mlp",
        },
        **_common(model),
    )


def _low_and_high(model: Any, e: Tensor, seed: int) -> Tensor:
    scaled = e * model.model.embedding_scale
    return torch.cat([model.model.z_L_init.to(scaled).expand_as(scaled), scaled], -1)


def dory(model: Any) -> Anatomy:
    """Dory: the first layers of a stack run once, the next are looped, the last run once again."""
    cfg = model.config
    first, behind = cfg.n_input_layers, cfg.n_input_layers + cfg.n_recurrent_layers
    coda = range(cfg.num_hidden_layers - cfg.n_output_layers, cfg.num_hidden_layers)
    return Anatomy(
        core=tuple(f"model.layers.{i}" for i in range(first, behind)),
        prelude=("model.embed_tokens", *(f"model.layers.{i}" for i in range(first))),
        state=(f"model.layers.{behind - 1}",),
        coda=tuple(f"model.layers.{i}" for i in coda),
        head="lm_head",
        set_loops="config.n_recurrent_loops",
        injection="norm(z) + norm(e)",
        sites={
            "hook_attn_out": "post_attention_layernorm",
            "hook_resid_mid": ("pre_feedforward_layernorm", "in"),
            "hook_mlp_out": "post_feedforward_layernorm",
        },
        **_common(model),
    )


def inkling2_loop(model: Any) -> Anatomy:
    """Inkling2Loop: passes over the middle of a stack, each from the same start, with messages of the pass before.

    What goes from pass to pass is the residual stream of every block of layers, and no single tensor; so it has no map.
    """
    cfg = model.config
    first, behind = cfg.loop_layer_index_start, cfg.loop_layer_index_end
    common = _common(model)
    if cfg.layer_types[first:behind].count("hybrid") == 0:  # heads of layers that see a window
        common |= {"n_heads": cfg.swa_num_attention_heads, "d_head": cfg.swa_head_dim}
    return Anatomy(
        core=tuple(f"model.layers.{i}" for i in range(first, behind)),
        prelude=("model.embed_tokens", *(f"model.layers.{i}" for i in range(first))),
        coda=tuple(f"model.layers.{i}" for i in range(behind, cfg.num_hidden_layers)),
        head="lm_head",
        set_loops="config.loop_num_passes",
        sites={"hook_attn_out": "post_attention_convolution", "hook_mlp_out": "post_mlp_convolution"},
        **common,
    )


def albert(model: Any) -> Anatomy:
    """ALBERT: one group of layers, applied num_hidden_layers times; it sees both ways.

    Raises:
        LoopprobeError: the model has several groups, which run one after the other.
    """
    if (n_groups := model.config.num_hidden_groups) > 1:
        raise LoopprobeError(
            f"this ALBERT has {n_groups} groups of layers, each with a loop of its own: choose another"
        )
    base = "" if type(model).__name__ == "AlbertModel" else "albert."
    group = f"{base}encoder.albert_layer_groups.0"
    layers = _layers(f"{group}.albert_layers", model.config.inner_group_num)
    return Anatomy(
        core=layers,
        prelude=(f"{base}encoder.embedding_hidden_mapping_in",),
        state=layers[-1:],
        head=next((head for head in ("predictions", "classifier") if hasattr(model, head)), None),
        set_loops="config.num_hidden_layers",
        sites={"hook_resid_mid": "attention", "hook_mlp_out": "ffn_output"},
        **{**_common(model), "call": {}, "attention": "attention"},
    )


def _gate(model: nn.Module, path: str) -> dict[str, Any]:
    """The places of an exit gate, where the model has one."""
    there = any(name == path for name, _ in model.named_modules())
    return {"gate": path, "points": {"hook_gate": path}} if there else {}


def _layers(path: str, n: int) -> tuple[str, ...]:
    return tuple(f"{path}.{i}" for i in range(n))


def _common(model: Any) -> dict[str, Any]:
    cfg = model.config
    n_ctx = getattr(cfg, "max_position_embeddings", None) or getattr(cfg, "block_size", None)
    n_heads = getattr(cfg, "num_attention_heads", None) or getattr(cfg, "n_heads", None)
    sizes = {"n_heads": n_heads or 1, "d_head": getattr(cfg, "head_dim", None), "n_ctx": n_ctx or 1_000_000}
    return {**sizes, "attention": "self_attn", "call": NO_CACHE}


ARCHITECTURES: dict[str, Callable[[Any], Anatomy]] = {
    "OuroForCausalLM": ouro,
    "RavenForCausalLM": huginn,
    "HrmTextForCausalLM": hrm_text,
    "DoryForCausalLM": dory,
    "Inkling2LoopForCausalLM": inkling2_loop,
    "AlbertForMaskedLM": albert,
    "AlbertForTokenClassification": albert,
    "AlbertModel": albert,
}


def anatomy_of(model: nn.Module) -> Anatomy | None:
    """The table of a known architecture; None where the class of the model is not known."""
    table = next((ARCHITECTURES[c.__name__] for c in type(model).__mro__ if c.__name__ in ARCHITECTURES), None)
    return None if table is None else table(model)
