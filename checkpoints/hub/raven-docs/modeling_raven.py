"""A recurrent-depth language model with the names and the call signature of Huginn (arXiv 2502.05171).

The prelude embeds the tokens; the core block runs in a loop, each time on the state and the embedded tokens, which the
adapter joins; the coda reads the last state. Submodules, weights and arguments are called as in the remote code of
``tomg-group-umd/huginn-0125``, so what drives that model drives this one. Three things differ:

- Attention goes through ``AttentionInterface`` of transformers, so that ``attn_implementation`` chooses it and tools
  can hook it; Huginn has an attention of its own.
- Keys and values go into a ``DynamicCache`` of transformers, with one layer for each application of a block; Huginn
  has a cache of its own.
- ``state_init="zero"`` starts without chance, beside Huginn's ``"like-init"``.

It needs transformers 5.24, or a later release of version 5.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class RavenConfig(PreTrainedConfig):
    """Sizes of a recurrent-depth model; the fields are those of Huginn's configuration."""

    model_type = "huginn_raven"
    attribute_map: ClassVar = {
        "num_attention_heads": "n_heads",
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layers",
    }

    def __init__(
        self,
        n_embd: int = 256,
        n_heads: int = 8,
        n_layers: int = 4,
        block_size: int = 1024,
        vocab_size: int = 4096,
        tie_embeddings: bool = True,
        intermediate_size: int = 512,
        bias: bool = False,
        norm_eps: float = 1e-6,
        state_init: str = "like-init",
        n_layers_in_prelude: int = 1,
        n_layers_in_recurrent_block: int = 2,
        n_layers_in_coda: int = 1,
        mean_recurrence: int = 8,
        mean_backprop_depth: int = 4,
        qk_bias: bool = True,
        rope_base: float = 10_000.0,
        **kwargs,
    ) -> None:
        self.n_embd, self.n_heads, self.n_layers = n_embd, n_heads, n_layers
        self.block_size, self.vocab_size, self.padded_vocab_size = block_size, vocab_size, vocab_size
        self.tie_embeddings, self.intermediate_size, self.bias, self.norm_eps = (
            tie_embeddings,
            intermediate_size,
            bias,
            norm_eps,
        )
        self.state_init, self.qk_bias, self.rope_base = state_init, qk_bias, rope_base
        self.n_layers_in_prelude, self.n_layers_in_coda = n_layers_in_prelude, n_layers_in_coda
        self.n_layers_in_recurrent_block = n_layers_in_recurrent_block
        self.mean_recurrence, self.mean_backprop_depth = mean_recurrence, mean_backprop_depth
        self.num_key_value_heads, self.head_dim = n_heads, n_embd // n_heads
        self.effective_expected_depth = (
            n_layers_in_prelude + n_layers_in_coda + n_layers_in_recurrent_block * mean_recurrence
        )
        std = math.sqrt(2 / (5 * n_embd))
        self.init_values = {
            "std": std,
            "out_proj": std / math.sqrt(2 * self.effective_expected_depth),
            "embedding": std,
            "embed_scale": math.sqrt(n_embd),
        }
        for derived in (
            "padded_vocab_size",
            "num_key_value_heads",
            "head_dim",
            "effective_expected_depth",
            "init_values",
        ):
            kwargs.pop(derived, None)  # what is derived is not read from a file
        super().__init__(**(kwargs | {"tie_word_embeddings": tie_embeddings}))


@dataclass
class CausalLMOutputRecurrentLatents(CausalLMOutputWithPast):
    """What a causal language model returns, and the state after the last loop (normed), ``[batch, pos, n_embd]``."""

    latent_states: Tensor | None = None


class CausalSelfAttention(nn.Module):
    """Causal attention with rotary positions, computed by the implementation that the configuration names."""

    is_causal = True
    num_key_value_groups = 1

    def __init__(self, config: RavenConfig) -> None:
        super().__init__()
        self.config, self.scaling = config, config.head_dim**-0.5
        self.Wqkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        if config.qk_bias:
            self.qk_bias = nn.Parameter(torch.zeros(2, 1, config.n_heads, config.head_dim))
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(
        self, x: Tensor, freqs_cis: Tensor, block_idx: int, mask: Tensor | None, past_key_values: Cache | None
    ) -> Tensor:
        q, k, v = self.Wqkv(x).unflatten(2, (3, self.config.n_heads, -1)).unbind(2)  # [batch, pos, head, head_dim]
        if self.config.qk_bias:
            q, k = q + self.qk_bias[0].to(q.dtype), k + self.qk_bias[1].to(k.dtype)
        q, k, v = rotate(q, freqs_cis).transpose(1, 2), rotate(k, freqs_cis).transpose(1, 2), v.transpose(1, 2)
        if past_key_values is not None:  # the coda counts from -1 down, so its blocks lie first
            k, v = past_key_values.update(k, v, block_idx + self.config.n_layers_in_coda)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        z, _ = attend(self, q, k, v, mask, dropout=0.0, scaling=self.scaling)
        return self.proj(z.flatten(2))


class GatedMLP(nn.Module):
    """A feed-forward layer gated by a silu; ``fc`` holds the gate, then what is gated."""

    def __init__(self, config: RavenConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 2 * config.intermediate_size, bias=False)
        self.proj = nn.Linear(config.intermediate_size, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, x = self.fc(x).chunk(2, dim=-1)
        return self.proj(nn.functional.silu(gate) * x)


class SandwichBlock(nn.Module):
    """Attention and feed-forward, each with a norm before it and a norm after the sum."""

    def __init__(self, config: RavenConfig, layer_id: int) -> None:
        super().__init__()
        self.layer_id = layer_id
        self.norm_1 = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.attn = CausalSelfAttention(config)
        self.norm_2 = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.mlp = GatedMLP(config)
        self.norm_3 = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.norm_4 = nn.RMSNorm(config.n_embd, eps=config.norm_eps)

    def forward(
        self,
        x: Tensor,
        freqs_cis: Tensor,
        block_idx: int,
        mask: Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> Tensor:
        x = self.norm_2(self.attn(self.norm_1(x), freqs_cis, block_idx, mask, past_key_values) + x)
        return self.norm_4(self.mlp(self.norm_3(x)) + x)


class RavenPreTrainedModel(PreTrainedModel):
    config_class = RavenConfig
    base_model_prefix = "model"
    _no_split_modules: ClassVar = ["SandwichBlock"]
    _skip_keys_device_placement: ClassVar = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        scales = self.config.init_values
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=scales["std"])
        if isinstance(module, CausalSelfAttention | GatedMLP):
            nn.init.normal_(module.proj.weight, std=scales["out_proj"])
        if isinstance(module, CausalSelfAttention) and self.config.qk_bias:
            nn.init.zeros_(module.qk_bias)
        if isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, RavenForCausalLM):
            module.freqs_cis.copy_(frequencies(self.config))


class RavenForCausalLM(RavenPreTrainedModel, GenerationMixin):
    """Prelude, a core that loops, and coda, with a tied head."""

    _tied_weights_keys: ClassVar = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config: RavenConfig) -> None:
        super().__init__(config)
        first, core = config.n_layers_in_prelude, config.n_layers_in_recurrent_block
        last = first + core * config.mean_recurrence
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.padded_vocab_size, config.n_embd),
                "prelude": nn.ModuleList(SandwichBlock(config, i) for i in range(first)),
                "adapter": nn.Linear(2 * config.n_embd, config.n_embd, bias=config.bias),
                "core_block": nn.ModuleList(SandwichBlock(config, first + i) for i in range(core)),
                "coda": nn.ModuleList(SandwichBlock(config, last + i) for i in range(config.n_layers_in_coda)),
                "ln_f": nn.RMSNorm(config.n_embd, eps=config.norm_eps),
            }
        )
        self.emb_scale = config.init_values["embed_scale"]
        self.lm_head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        self.register_buffer("freqs_cis", frequencies(config), persistent=True)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.transformer.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.transformer.wte = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        input_embeds: Tensor | None = None,
        input_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_steps: int | Tensor | tuple[int, int] | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        cache: Cache | None = None,
        **kwargs,
    ) -> CausalLMOutputRecurrentLatents:
        """Run prelude, loops and coda.

        ``num_steps`` is the number of loops: one number, or a pair (loops without gradient, loops with gradient); one
        number means loops without gradient. By default a model in training draws it, and in evaluation it is
        ``config.mean_recurrence``. ``input_states`` is the state at the start, drawn at random by default. ``labels``
        are the right answers at each position, not the tokens themselves: they are not shifted here. ``cache`` is
        what transformers calls ``past_key_values`` from version 5.24 on.
        """
        past_key_values = cache if past_key_values is None else past_key_values
        if input_embeds is None:
            input_embeds = self.transformer.wte(input_ids)
        input_embeds = input_embeds * self.emb_scale
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        if isinstance(past_key_values, DynamicCache):
            past_key_values.layer_class_to_replicate = DynamicLayer  # it grows with the loops
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(seen, seen + input_embeds.shape[1], device=input_embeds.device)[None]
        freqs_cis = self.freqs_cis[0, position_ids]
        mask = create_causal_mask(self.config, input_embeds, attention_mask, past_key_values, position_ids)

        for block_idx, block in enumerate(self.transformer.prelude):
            input_embeds = block(input_embeds, freqs_cis, block_idx, mask, past_key_values)
        x = self.iterate_forward(input_embeds, input_states, freqs_cis, block_idx, mask, past_key_values, num_steps)
        latent_states = x.clone().detach()
        for block_idx, block in enumerate(self.transformer.coda, start=1):
            x = block(x, freqs_cis, -block_idx, mask, past_key_values)
        logits, loss = self.predict(x, labels)
        return CausalLMOutputRecurrentLatents(loss, logits, past_key_values, latent_states=latent_states)

    def predict(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The logits that the coda's output gives, and their cross entropy to the labels."""
        logits = self.lm_head(self.transformer.ln_f(x)).float()
        return logits, None if labels is None else nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    def iterate_forward(
        self, input_embeds, input_states, freqs_cis, block_idx, mask, past_key_values=None, num_steps=None
    ):
        """The normed state after all loops."""
        x = self.initialize_state(input_embeds) if input_states is None else input_states.clone()
        if num_steps is None:
            without, with_gradient = self.randomized_iteration_sampler()
        elif hasattr(num_steps, "__len__") and len(num_steps) > 1:
            without, with_gradient = num_steps
        else:
            without, with_gradient = num_steps, 0
        with torch.no_grad():
            for _ in range(int(without)):
                x, block_idx = self.core_block_forward(x, input_embeds, freqs_cis, mask, past_key_values, block_idx)
        for _ in range(int(with_gradient)):
            x, block_idx = self.core_block_forward(x, input_embeds, freqs_cis, mask, past_key_values, block_idx)
        return self.transformer.ln_f(x)

    def core_block_forward(self, x, input_embeds, freqs_cis, mask, past_key_values, block_idx):
        """One loop: the state after it, and the index of its last block."""
        x = self.transformer.adapter(torch.cat([x, input_embeds], dim=-1))
        for block in self.transformer.core_block:
            block_idx += 1
            x = block(x, freqs_cis, block_idx, mask, past_key_values)
        return x, block_idx

    @torch.no_grad()
    def randomized_iteration_sampler(self) -> tuple[int, int]:
        """Loops without and with gradient: in training from a Poisson log-normal of mean ``mean_recurrence`` + 1."""
        mean, backprop = self.config.mean_recurrence, self.config.mean_backprop_depth
        if not self.training:
            return mean, 0
        rate = torch.zeros(1).log_normal_(mean=math.log(mean) - 0.5**2 / 2, std=0.5)
        loops = int(torch.poisson(rate)) + 1
        return max(loops - backprop, 0), min(loops, backprop)

    def initialize_state(self, input_embeds: Tensor, deterministic: bool = False) -> Tensor:
        """The state at the start: a normal distribution cut at three standard deviations, or zeros."""
        x = torch.zeros_like(input_embeds)
        if deterministic or self.config.state_init == "zero":
            return x
        std = self.config.init_values["std"]
        return nn.init.trunc_normal_(x, std=std, a=-3 * std, b=3 * std) * self.emb_scale


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention written out, as ``attn_implementation="eager"`` asks for; it returns its pattern too."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    pattern = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


def frequencies(config: RavenConfig) -> Tensor:
    """Cosine and sine of each position's angles, ``[1, block_size, 1, head_dim / 2, 2]``."""
    inverse = 1 / config.rope_base ** (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    angles = torch.outer(torch.arange(config.block_size, dtype=torch.float32), inverse)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)[None, :, None]


def rotate(x: Tensor, freqs_cis: Tensor) -> Tensor:
    """Turn neighbouring pairs of the last axis by the angles of their positions, in single precision or better."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = freqs_cis.unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).type_as(x)


RavenConfig.register_for_auto_class()
RavenForCausalLM.register_for_auto_class("AutoModelForCausalLM")
