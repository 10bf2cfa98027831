"""The meaning of every field of a TransformerLens config for a looped transformer. Imports no torch.

The fields are those of TransformerBridgeConfig and of HookedTransformerConfig, which it replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loopprobe.errors import LoopprobeError

USED = frozenset(
    {
        "act_fn", "attention_dir", "d_head", "d_mlp", "d_model", "d_vocab", "d_vocab_out", "eps", "gated_mlp",
        "initializer_range", "n_ctx", "n_heads", "n_layers", "normalization_type", "positional_embedding_type",
        "rotary_base", "rotary_dim",
    }
)  # fmt: skip
_CHOICES: dict[str, tuple[Any, ...]] = {  # of fields that are used, where TransformerLens has more
    "act_fn": ("gelu_new", "gelu", "relu", "silu"),
    "attention_dir": ("causal", "bidirectional"),
    "normalization_type": ("LN", "RMS"),
    "positional_embedding_type": ("standard", "rotary", "none"),
}

# What the looped block has one way of: a config that asks for another is refused, never silently changed.
FIXED: dict[str, tuple[Any, ...]] = {
    "attn_only": (False,),
    "attn_scale": (-1.0, None),  # and the root of d_head, see below
    "attn_scores_soft_cap": (-1.0, None),
    "attn_types": (None,),
    "dtype": ("float32",),
    "experts_per_token": (None,),
    "final_rms": (False,),
    "init_mode": ("gpt2",),
    "is_audio_model": (False,),
    "is_multimodal": (False,),
    "is_stateful": (False,),
    "is_visual_model": (False,),
    "layer_norm_folding": (False,),
    "load_in_4bit": (False,),
    "n_key_value_heads": (None,),  # and n_heads
    "num_experts": (None,),
    "output_logits_soft_cap": (-1.0, None),
    "parallel_attn_mlp": (False,),
    "per_layer_head_dim": (None,),
    "per_layer_num_key_value_heads": (None,),
    "post_embedding_ln": (False,),
    "qk_norm_after_rope": (False,),
    "relative_attention_max_distance": (None,),
    "relative_attention_num_buckets": (None,),
    "rmsnorm_uses_offset": (False,),
    "rotary_adjacent_pairs": (False,),
    "rotary_interleaved_cos_sin": (False,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_embedding": (None, False),
    "seed": (None,),
    "tie_word_embeddings": (False,),
    "use_NTK_by_parts_rope": (False,),
    "use_attn_scale": (True,),
    "use_local_attn": (False,),
    "use_normalization_before_and_after": (False,),
    "use_qk_norm": (False,),
    "uses_rms_norm": (False,),  # and True with normalization_type RMS
    "window_size": (None,),
}

# Of tokenizers, files, devices and hooks, which every model here has; parameters of what is in FIXED; and what is
# computed from other fields.
WITHOUT_EFFECT = frozenset(
    {
        "NTK_by_parts_factor", "NTK_by_parts_high_freq_factor", "NTK_by_parts_low_freq_factor", "NTK_original_ctx_len",
        "architecture", "attn_implementation", "checkpoint_index", "checkpoint_label_type", "checkpoint_value",
        "decoder_start_token_id", "default_padding_side", "default_prepend_bos", "device",
        "from_checkpoint", "init_weights", "mm_tokens_per_image", "model_name", "n_devices", "n_params",
        "original_architecture", "rotary_base_local", "split_attention_weights",
        "tokenizer_appends_eos", "tokenizer_name", "tokenizer_prepends_bos", "trust_remote_code",
        "ungroup_grouped_query_attention", "use_attn_in", "use_attn_result",
        "use_hook_mlp_in", "use_hook_tokens", "use_split_qkv_input", "vision_hidden_size", "vision_num_heads",
        "vision_num_layers",
    }
)  # fmt: skip


def used_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a TransformerLens config that a looped transformer takes over, without those that are unset.

    Raises:
        LoopprobeError: a field is not known, or asks for what a looped GPT-2 block does not have.
    """
    rms = fields.get("normalization_type") == "RMS"
    also = {
        "attn_scale": float(fields.get("d_head") or 0) ** 0.5,
        "n_key_value_heads": fields.get("n_heads"),
        "uses_rms_norm": rms or None,
    }
    for name, value in fields.items():
        if name in WITHOUT_EFFECT or (name in USED and value in _CHOICES.get(name, (value,))):
            continue
        if name not in USED and name not in FIXED:
            raise LoopprobeError(f"{name} ({value!r}) is no known field of a TransformerLens config: drop it")
        plain = str(value).removeprefix("torch.") if name == "dtype" else value
        choices = _CHOICES[name] if name in USED else FIXED[name]
        if plain not in choices and (name not in also or plain != also[name]):
            has = " or ".join(map(repr, choices if name in USED else choices[:1]))
            raise LoopprobeError(
                f"{name} ({value!r}) is not supported: a looped transformer here has {name} = {has}; "
                "change it in the TransformerLens config"
            )
    rotary = fields.get("positional_embedding_type") == "rotary"
    unused = set() if rotary else {"rotary_dim", "rotary_base"}
    used = {name: value for name, value in fields.items() if name in USED - unused and value not in (None, -1)}
    return used | ({"rotary_base": int(used["rotary_base"])} if "rotary_base" in used else {})
