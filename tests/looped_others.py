"""Small random looped models of others: transformers' own architectures, and modules built like remote code.

Ouro's and Huginn's remote code cannot be had without a network; what is here has their names and signatures.
"""

from types import SimpleNamespace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

VOCABULARY, WIDTH, HEADS = 300, 32, 4


def hrm_text():
    from transformers import HrmTextConfig, HrmTextForCausalLM

    torch.manual_seed(0)
    config = HrmTextConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=48, num_attention_heads=HEADS, head_dim=8,
        num_hidden_layers=2, H_cycles=3, L_cycles=2, max_position_embeddings=64, initializer_range=0.15,
        pad_token_id=0, L_bp_cycles=[1, 1, 1], bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = HrmTextForCausalLM(config).eval()
    nn.init.normal_(model.model.z_L_init)
    return model


def dory():
    from transformers import DoryConfig, DoryForCausalLM

    torch.manual_seed(0)
    config = DoryConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=48, num_attention_heads=HEADS, head_dim=8,
        num_key_value_heads=2, num_hidden_layers=4, n_input_layers=1, n_recurrent_layers=2, n_output_layers=1,
        n_recurrent_loops=4, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return DoryForCausalLM(config).eval()


def inkling():
    from transformers import Inkling2LoopForCausalLM
    from transformers.models.inkling2_loop import Inkling2LoopTextConfig

    torch.manual_seed(0)
    config = Inkling2LoopTextConfig(
        vocab_size=VOCABULARY, unpadded_vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=6,
        num_attention_heads=HEADS, num_key_value_heads=2, head_dim=8, swa_num_attention_heads=HEADS,
        swa_num_key_value_heads=2, swa_head_dim=8, sliding_window_size=16, d_rel=4, rel_extent=16,
        layer_types=["hybrid_sliding", "hybrid"] * 3, max_position_embeddings=64, moe_intermediate_size=48,
        n_routed_experts=4, num_experts_per_tok=2, n_layers_per_attn_res_block=2, loop_layer_index_start=2,
        loop_layer_index_end=4, loop_num_passes=3, loop_gate_rank=8, initializer_range=0.2, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = Inkling2LoopForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith((".query", "static_weight")):  # zero as they come
            nn.init.normal_(parameter, std=0.5)
    return model


def albert():
    from transformers import AlbertConfig, AlbertForMaskedLM

    torch.manual_seed(0)
    config = AlbertConfig(
        vocab_size=VOCABULARY, embedding_size=16, hidden_size=WIDTH, num_hidden_layers=5, num_attention_heads=HEADS,
        intermediate_size=48, max_position_embeddings=64, initializer_range=0.3, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return AlbertForMaskedLM(config).eval()


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight)


class SelfAttention(nn.Module):
    """Attention through transformers' interface, without positions."""

    is_causal = True

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.qkv, self.o_proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, hidden_states, attention_mask=None):
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
        from transformers.models.llama.modeling_llama import eager_attention_forward

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        heads = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in self.qkv(hidden_states).chunk(3, -1))
        out, _ = attend(self, *heads, attention_mask, scaling=(WIDTH // HEADS) ** -0.5)
        return self.o_proj(out.flatten(-2)), None


class OuroDecoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), nn.SiLU(), nn.Linear(64, WIDTH))
        names = ("input_layernorm", "input_layernorm_2", "post_attention_layernorm", "post_attention_layernorm_2")
        for name in names:
            setattr(self, name, RMSNorm(WIDTH))

    def forward(self, hidden_states, attention_mask=None, use_cache=False, **kwargs):
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), attention_mask=attention_mask)
        hidden_states = hidden_states + self.input_layernorm_2(attended)
        mixed = self.mlp(self.post_attention_layernorm(hidden_states))
        return (hidden_states + self.post_attention_layernorm_2(mixed),)


class OuroModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(OuroDecoderLayer(config) for _ in range(2))
        self.norm = RMSNorm(WIDTH)
        self.early_exit_gate = nn.Linear(WIDTH, 1)
        self.total_ut_steps = config.total_ut_steps

    def forward(self, input_ids, **kwargs):
        hidden_states = self.embed_tokens(input_ids)
        states, gates = [], []
        for _ in range(self.total_ut_steps):
            for layer in self.layers:
                hidden_states = layer(hidden_states, **kwargs)[0]
            hidden_states = self.norm(hidden_states)
            states.append(hidden_states)
            gates.append(self.early_exit_gate(hidden_states))
        return hidden_states, states, gates


class OuroForCausalLM(nn.Module):
    """Built like the remote code of Ouro: the norm stands in the loop, every loop has logits and an exit gate."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(
            _attn_implementation="sdpa", num_attention_heads=HEADS, max_position_embeddings=64, total_ut_steps=4,
            hidden_size=WIDTH, vocab_size=VOCABULARY,
        )  # fmt: skip
        self.model = OuroModel(self.config)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)
        self.eval()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def forward(self, input_ids, use_cache=True, **kwargs):
        _, states, _ = self.model(input_ids, use_cache=use_cache)
        every = [self.lm_head(state) for state in states]
        return SimpleNamespace(logits=every[-1], hidden_states_list=states)


class Own(nn.Module):
    """A module of one's own: vectors in, the input added in every loop, three numbers out for each token."""

    def __init__(self, n_loops=3):
        super().__init__()
        torch.manual_seed(0)
        self.n_loops = n_loops
        self.read_in = nn.Linear(5, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, xs):
        e = self.read_in(xs)
        z = torch.zeros_like(e)
        for _ in range(self.n_loops):
            x = z + e
            z = self.norm(x + torch.tanh(self.mix(x.cumsum(1))))
        return self.out(z)


def own():
    return Own().eval()


def save(model, folder):
    """Write a model of transformers with a tokenizer of its own into a folder, as models are published."""
    from pathlib import Path

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "[MASK]"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([Path(__file__).read_text()], trainer)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "mask_token": "[MASK]"}
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


# The same loops written out by hand: embed(model, tokens), start(model, e), read(model, z), step(model, z, e, note), in
# which note(layer, x) is called with what every layer returns and gives what stands in its place.


def rotated(model, x):
    """What transformers' own models hand to every layer."""
    positions = torch.arange(x.shape[1])[None]
    if hasattr(model.model.layers[0] if hasattr(model.model, "layers") else None, "attention_type"):
        kinds = {layer.attention_type for layer in model.model.layers}
        return {kind: model.model.rotary_emb(x, positions, kind) for kind in kinds}
    return model.model.rotary_emb(x, positions)


class OuroByHand:
    make = staticmethod(OuroForCausalLM)

    def embed(self, model, tokens):
        return model.model.embed_tokens(tokens)

    def start(self, model, e):
        return e

    def step(self, model, z, e, note):
        for i, layer in enumerate(model.model.layers):
            z = note(i, layer(z)[0])
        return model.model.norm(z)

    def read(self, model, z):
        return model.lm_head(z)


class HrmByHand:
    make = staticmethod(hrm_text)

    def embed(self, model, tokens):
        return model.model.embed_tokens(tokens)

    def start(self, model, e):
        scaled = e * model.config.embedding_scale
        return torch.cat([model.model.z_L_init.expand_as(scaled), scaled], -1)

    def step(self, model, z, e, note):
        low, high = z.chunk(2, -1)
        rotary = rotated(model, e)
        place = 0

        def stack(module, x):
            nonlocal place
            for layer in module.layers:
                x = note(place, layer(x, position_embeddings=rotary))
                place += 1
            return module.final_norm(x)

        for _ in range(model.config.L_cycles):
            low = stack(model.model.L_module, low + high)
        return torch.cat([low, stack(model.model.H_module, high + low)], -1)

    def read(self, model, z):
        return model.lm_head(z.chunk(2, -1)[1])


class DoryByHand:
    make = staticmethod(dory)

    def layer(self, model, i, x):
        part = model.model.layers[i]
        return part(x, position_embeddings=rotated(model, x)[part.attention_type])

    def embed(self, model, tokens):
        return self.layer(model, 0, model.model.embed_tokens(tokens))

    def start(self, model, e):
        return e

    def step(self, model, z, e, note):
        x = model.model.norm(z) + model.model.norm(e)
        for i in range(2):
            x = note(i, self.layer(model, 1 + i, x))
        return x

    def read(self, model, z):
        return model.lm_head(model.model.norm(self.layer(model, 3, z)))


class AlbertByHand:
    make = staticmethod(albert)

    def embed(self, model, tokens):
        return model.albert.encoder.embedding_hidden_mapping_in(model.albert.embeddings(tokens))

    def start(self, model, e):
        return e

    def step(self, model, z, e, note):
        return note(0, model.albert.encoder.albert_layer_groups[0].albert_layers[0](z))

    def read(self, model, z):
        return model.predictions(z)


class OwnByHand:
    """Its layer is a map within the loop, not the residual stream."""

    make = staticmethod(own)
    told: ClassVar = {"core": "mix", "state": "norm", "prelude": "read_in", "head": "out", "set_loops": "n_loops"}

    def embed(self, model, xs):
        return model.read_in(xs)

    def start(self, model, e):
        return torch.zeros_like(e)

    def step(self, model, z, e, note):
        x = z + e
        return model.norm(x + torch.tanh(note(0, model.mix(x.cumsum(1)))))

    def read(self, model, z):
        return model.out(z)


class InklingByHand:
    """No map: runs of the bare module, in which hooks count the calls of its layers."""

    make = staticmethod(inkling)

    def run(self, model, tokens, n_loops, edit):
        """The streams [layer, batch, pos, d_model] of every loop, and the answers."""
        config, calls, handles = model.config, [], []

        def after(module, args, output):
            loop, layer = divmod(len(calls), 2)
            assert module is model.model.layers[2 + layer]
            calls.append(output if edit is None else edit(loop, layer, output))
            return calls[-1]

        before, config.loop_num_passes = config.loop_num_passes, n_loops
        try:
            handles += [model.model.layers[i].register_forward_hook(after) for i in (2, 3)]
            answers = model(tokens).logits
        finally:
            config.loop_num_passes = before
            for handle in handles:
                handle.remove()
        return [torch.stack(calls[2 * loop :][:2]) for loop in range(n_loops)], answers


BY_HAND = {"ouro": OuroByHand(), "hrm_text": HrmByHand(), "dory": DoryByHand(), "albert": AlbertByHand(),
           "inkling": InklingByHand(), "own": OwnByHand()}  # fmt: skip


def draw(name, n_prompts=3, n_tokens=7, seed=0):
    """Inputs of a model."""
    generator = torch.Generator().manual_seed(seed)
    if name == "own":
        return torch.randn(n_prompts, n_tokens, 5, generator=generator)
    return torch.randint(3, VOCABULARY, (n_prompts, n_tokens), generator=generator)


def wrapped(name, model=None):
    """A model, wrapped."""
    from loopprobe.wrapped.wrap import wrap

    hand = BY_HAND[name]
    told = getattr(hand, "told", {})
    return wrap(hand.make() if model is None else model, **told, **({"example": draw(name)} if told else {}))
