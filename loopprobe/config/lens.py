"""The meaning of every field of a TransformerLens config for a looped transformer. Imports no torch.

The fields are those of TransformerBridgeConfig and of HookedTransformerConfig, which it replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loopprobe.errors import LoopprobeError

USED = frozenset(
    {"n_layers", "d_model", "n_heads", "d_head", "d_mlp", "n_ctx", "act_fn", "eps", "initializer_range"},
)  # fmt: skip

# What a looped GPT-2 block has one way of: a config that asks for another is refused, never silently changed.
FIXED: dict[str, tuple[Any, ...]] = {
    "attention_dir": ("causal",),
    "attn_only": (False,),
    "attn_scale": (-1.0, None),  # and the root of d_head, see below
    "attn_scores_soft_cap": (-1.0, None),
    "attn_types": (None,),
    "dtype": ("float32",),
    "experts_per_token": (None,),
    "final_rms": (False,),
    "gated_mlp": (False,),
    "init_mode": ("gpt2",),
    "is_audio_model": (False,),
    "is_multimodal": (False,),
    "is_stateful": (False,),
    "is_visual_model": (False,),
    "layer_norm_folding": (False,),
    "load_in_4bit": (False,),
    "n_key_value_heads": (None,),  # and n_heads
    "normalization_type": ("LN",),
    "num_experts": (None,),
    "output_logits_soft_cap": (-1.0, None),
    "parallel_attn_mlp": (False,),
    "per_layer_head_dim": (None,),
    "per_layer_num_key_value_heads": (None,),
    "positional_embedding_type": ("standard",),
    "post_embedding_ln": (False,),
    "relative_attention_max_distance": (None,),
    "relative_attention_num_buckets": (None,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_embedding": (None, False),
    "seed": (None,),
    "tie_word_embeddings": (False,),
    "use_attn_scale": (True,),
    "use_local_attn": (False,),
    "use_normalization_before_and_after": (False,),
    "use_qk_norm": (False,),
    "uses_rms_norm": (False,),
    "window_size": (None,),
}

# Of tokens, files, devices and hooks, which every model here has; of rotary positions and RMS norms, whose own field
# is in FIXED; and what is computed from other fields.
WITHOUT_EFFECT = frozenset(
    {
        "NTK_by_parts_factor", "NTK_by_parts_high_freq_factor", "NTK_by_parts_low_freq_factor", "NTK_original_ctx_len",
        "architecture", "attn_implementation", "checkpoint_index", "checkpoint_label_type", "checkpoint_value",
        "d_vocab", "d_vocab_out", "decoder_start_token_id", "default_padding_side", "default_prepend_bos", "device",
        "from_checkpoint", "init_weights", "mm_tokens_per_image", "model_name", "n_devices", "n_params",
        "original_architecture", "qk_norm_after_rope", "rmsnorm_uses_offset", "rotary_adjacent_pairs", "rotary_base",
        "rotary_base_local", "rotary_dim", "rotary_interleaved_cos_sin", "split_attention_weights",
        "tokenizer_appends_eos", "tokenizer_name", "tokenizer_prepends_bos", "trust_remote_code",
        "ungroup_grouped_query_attention", "use_NTK_by_parts_rope", "use_attn_in", "use_attn_result",
        "use_hook_mlp_in", "use_hook_tokens", "use_split_qkv_input", "vision_hidden_size", "vision_num_heads",
        "vision_num_layers",
    }
)  # fmt: skip


def used_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a TransformerLens config that a looped transformer takes over, without those that are unset.

    Raises:
        LoopprobeError: a field is not known, or asks for what a looped GPT-2 block does not have.
    """
    also = {
        "attn_scale": float(fields.get("d_head") or 0) ** 0.5,
        "n_key_value_heads": fields.get("n_heads"),
    }
    for name, value in fields.items():
        if name in USED or name in WITHOUT_EFFECT:
            continue
        if name not in FIXED:
            raise LoopprobeError(f"{name} ({value!r}) is no known field of a TransformerLens config: drop it")
        plain = str(value).removeprefix("torch.") if name == "dtype" else value
        if plain not in FIXED[name] and (name not in also or plain != also[name]):
            raise LoopprobeError(
                f"{name} ({value!r}) is not supported: a looped transformer here has {name} = {FIXED[name][0]!r}; "
                "change it in the TransformerLens config"
            )
    return {name: value for name, value in fields.items() if name in USED and value not in (None, -1)}
