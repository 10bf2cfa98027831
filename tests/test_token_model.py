"""Models of tokens against an independent computation, written out from the formulas in plain operations."""

import warnings
from functools import partial

import pytest
import torch
from conftest import random_model

from loopprobe.config.schema import ModelConfig
from loopprobe.dynamics.maps import PointwiseMap
from loopprobe.dynamics.spectrum import jvp
from loopprobe.errors import LoopprobeError
from loopprobe.model import blocks
from loopprobe.model.looped import LoopedTransformer
from loopprobe.model.reading import at_tokens

ROTARY = {"positional_embedding_type": "rotary"}
NONE = {"positional_embedding_type": "none"}
RMS = {"normalization_type": "RMS"}
AROUND = {"n_prelude_layers": 1, "n_coda_layers": 2}
VARIANTS = {
    "plain": {"d_vocab_out": 3},
    "rotary": ROTARY,
    "partly rotary": ROTARY | {"rotary_dim": 4, "rotary_base": 50, "n_layers": 2},
    "no positions": NONE | {"injection": "multiply"},
    "rms": RMS,
    "gated": {"gated_mlp": True, "act_fn": "silu"},
    "both ways": {"attention_dir": "bidirectional"},
    "around": AROUND,
    "loops told": {"loop_embedding": True, "injection": "none", "act_fn": "relu"},
    "all": ROTARY | RMS | AROUND | {"gated_mlp": True, "loop_embedding": True, "attention_dir": "bidirectional"},
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)
ACTS = {
    "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "relu": lambda x: x.clamp_min(0),
    "silu": lambda x: x / (1 + (-x).exp()),
}
TOKENS = torch.tensor([[6, 0, 3, 3, 1], [6, 5, 2, 0, 4], [6, 1, 1, 1, 1]])


def make(dtype=torch.float64, **fields):
    """A tiny model of tokens whose every parameter, biases and gains included, is random."""
    sizes = {"d_model": 16, "n_heads": 2, "d_vocab": 7, "n_ctx": 9, "n_loops": 3} | fields
    return random_model(ModelConfig(**sizes), dtype)


def norm(part, x):
    if isinstance(part, torch.nn.RMSNorm):
        return torch.nn.functional.rms_norm(x, (16,), part.weight, 1e-5)
    return torch.nn.functional.layer_norm(x, (16,), part.weight, part.bias, 1e-5)


def turned(x, cfg, first=0):
    """Rotary positions by complex numbers: dimension i with i + dim / 2, turned by position / base^(2i / dim)."""
    half = cfg.rotary_dim // 2
    pairs = torch.complex(x[..., :half], x[..., half : 2 * half])
    place = first + torch.arange(x.shape[-2], dtype=torch.float64)
    angles = place[:, None] / cfg.rotary_base ** (torch.arange(half, dtype=torch.float64) / half)
    pairs = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([pairs.real, pairs.imag, x[..., 2 * half :]], -1)


def layer(block, x, cfg):
    h, attn, mlp = norm(block.ln1, x), block.attn, block.mlp
    q, k, v = (torch.einsum("bpm,hmd->bhpd", h, W) for W in (attn.W_Q, attn.W_K, attn.W_V))
    q, k, v = q + attn.b_Q[:, None], k + attn.b_K[:, None], v + attn.b_V[:, None]
    if cfg.positional_embedding_type == "rotary":
        q, k = turned(q, cfg), turned(k, cfg)
    scores = q @ k.mT / cfg.d_head**0.5
    if cfg.attention_dir == "causal":
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    x = x + torch.einsum("bhpd,hdm->bpm", scores.softmax(-1) @ v, attn.W_O) + attn.b_O
    h = norm(block.ln2, x)
    if cfg.gated_mlp:
        return x + (ACTS[cfg.act_fn](h @ mlp.W_gate) * (h @ mlp.W_in)) @ mlp.W_out + mlp.b_out
    return x + ACTS[cfg.act_fn](h @ mlp.W_in + mlp.b_in) @ mlp.W_out + mlp.b_out


def by_hand(model, tokens, n_loops):
    cfg, n = model.cfg, tokens.shape[1]
    positions = model.W_pos[:n] if cfg.positional_embedding_type == "standard" else 0
    e = model.W_E[tokens]
    if cfg.n_prelude_layers:
        e = e + positions
        for block in model.prelude:
            e = layer(block, e, cfg)
    z, logits = {"add": 0 * e, "multiply": 0 * e + 1, "none": e}[cfg.injection], []
    for loop in range(n_loops):
        x = {"add": z + e, "multiply": z * e, "none": z}[cfg.injection] + positions
        if cfg.loop_embedding:
            x = x + model.W_loop[min(loop, cfg.n_loops - 1)]
        for block in model.blocks:
            x = layer(block, x, cfg)
        z = read = norm(model.ln_final, x)
        if cfg.n_coda_layers:
            for block in model.coda:
                read = layer(block, read, cfg)
            read = norm(model.ln_coda, read)
        logits.append(read @ model.W_U + model.b_U)
    return torch.stack(logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_gelu_new_is_one_function_with_and_without_gradient(dtype):
    x = torch.cat([torch.linspace(-12, 12, 4001, dtype=torch.float64), torch.tensor([-1e30, 1e30, 0.0])]).to(dtype)
    expected, eps = ACTS["gelu_new"](x.double()), torch.finfo(dtype).eps
    given = x.clone().requires_grad_()
    with torch.no_grad():
        found = blocks.gelu_new(given)
    torch.testing.assert_close(found.double(), expected, atol=4 * eps, rtol=4 * eps)
    assert torch.equal(given, x), "a hook may hold what goes in"
    assert torch.equal(blocks.gelu_new(given), found)
    assert torch.equal(torch.func.vmap(blocks.gelu_new)(x.unflatten(0, (4, -1))).flatten(), found)


def test_the_slope_of_gelu_new_is_that_of_its_formula():
    x = torch.linspace(-9, 9, 300, dtype=torch.float64).reshape(2, 50, 3).requires_grad_()
    [slope] = torch.autograd.grad(ACTS["gelu_new"](x).sum(), x, create_graph=True)
    [curve] = torch.autograd.grad(slope.sum(), x)
    [ours] = torch.autograd.grad(blocks.gelu_new(x).sum(), x, create_graph=True)
    torch.testing.assert_close(ours, slope, atol=1e-14, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(ours.sum(), x)[0], curve, atol=1e-13, rtol=0)
    pushed = partial(jvp, PointwiseMap(x.detach(), blocks.gelu_new), x.detach())
    tangents = torch.stack([torch.ones_like(x), x]).detach()
    torch.testing.assert_close(torch.func.vmap(pushed)(tangents), tangents * slope, atol=1e-13, rtol=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is ")
        _, with_gradient = torch.func.jvp(blocks.gelu_new, (x.detach(),), (tangents[1],))
    torch.testing.assert_close(with_gradient, tangents[1] * slope, atol=1e-13, rtol=0)


@each_variant
@pytest.mark.parametrize("short", [0, blocks.SHORT])
def test_logits_at_every_token_are_those_of_the_formulas(variant, short, monkeypatch):
    monkeypatch.setattr(blocks, "SHORT", short)
    model = make(**VARIANTS[variant])
    logits = model(TOKENS, 5)
    assert logits.shape == (5, 3, 5, VARIANTS[variant].get("d_vocab_out", 7))
    torch.testing.assert_close(logits, by_hand(model, TOKENS, 5), atol=1e-10, rtol=0)


def test_tokens_to_read_are_those_of_a_list_or_a_slice():
    model = make(**AROUND)
    logits = model(TOKENS)
    for read_at in ([4], [1, 3], slice(2, None), slice(-2, None), slice(0, None, 2), slice(1, 3)):
        torch.testing.assert_close(model(TOKENS, read_at=read_at), logits[:, :, read_at], atol=1e-12, rtol=0)


def test_every_slice_reads_the_tokens_of_the_prompt_in_a_state_that_begins_late():
    ends = [None, *range(-6, 7)]
    for first, n, start, stop in ((f, n, a, b) for f in range(4) for n in range(4) for a in ends for b in ends):
        for step in (None, 1, 2, 3):
            wanted = [token - first for token in range(first + n)[slice(start, stop, step)] if token >= first]
            assert list(range(n))[at_tokens(slice(start, stop, step), first, n)] == wanted
    assert at_tokens([0, 2, 3, 9], 2, 3) == [0, 1]


@pytest.mark.parametrize("fields", [{}, ROTARY, NONE, RMS | ROTARY | {"gated_mlp": True, "n_layers": 2}])
@pytest.mark.parametrize("short", [0, blocks.SHORT])
def test_later_tokens_go_on_from_the_keys_and_values_of_the_earlier(fields, short, monkeypatch):
    monkeypatch.setattr(blocks, "SHORT", short)
    model = make(**fields)
    logits, cache = model.run_with_cache(TOKENS, n_loops=3)
    for first in (1, 3):
        past = [(cache[2, "k", i][:, :first], cache[2, "v", i][:, :first]) for i in range(model.cfg.n_layers)]
        z = model.step(cache[2, "z_pre"][:, first:], cache["hook_embed"][:, first:], 2, past)
        torch.testing.assert_close(z, cache[2, "z"][:, first:], atol=1e-10, rtol=0)
        for read_at in (slice(-2, None), [3, 4]):
            read = model.predict(z, loop=2, first=first, read_at=read_at)
            torch.testing.assert_close(read, logits[2][:, read_at], atol=1e-10, rtol=0)


def test_rotary_positions_turn_by_complex_numbers_and_are_relative(monkeypatch):
    model = make(**VARIANTS["partly rotary"])
    turn = model.blocks[0].attn.rotary
    x = torch.randn(2, 4, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = turned(x.transpose(1, 2), model.cfg, 3).transpose(1, 2)
    torch.testing.assert_close(turn(x, 3), expected, atol=1e-12, rtol=0)
    plain, real = model(TOKENS), blocks.Rotary.forward
    monkeypatch.setattr(blocks.Rotary, "forward", lambda self, x, first=0: real(self, x, first + 11))
    torch.testing.assert_close(model(TOKENS), plain, atol=1e-10, rtol=0)
    torch.testing.assert_close(turn(x, 3), turned(x.transpose(1, 2), model.cfg, 14).transpose(1, 2), atol=1e-12, rtol=0)


def test_tables_of_rotary_positions_serve_later_runs_with_gradient():
    model = make(**ROTARY)
    with torch.inference_mode():
        model(TOKENS)
    model(TOKENS).sum().backward()
    assert model.W_E.grad.abs().sum() > 0


def test_without_positions_the_order_of_tokens_is_not_seen():
    order = torch.tensor([0, 3, 1, 4, 2])
    both_ways = make(**NONE, attention_dir="bidirectional", n_layers=2)
    torch.testing.assert_close(both_ways(TOKENS[:, order]), both_ways(TOKENS)[:, :, order], atol=1e-10, rtol=0)
    causal = make(**NONE, n_loops=1)
    order = torch.tensor([2, 0, 3, 1, 4])
    torch.testing.assert_close(causal(TOKENS[:, order])[..., 4, :], causal(TOKENS)[..., 4, :], atol=1e-10, rtol=0)
    for fields in ({}, ROTARY):
        other = make(**fields, n_loops=1)
        assert not torch.isclose(other(TOKENS[:2, order])[..., 4, :], other(TOKENS[:2])[..., 4, :]).all(-1).any()


@each_variant
def test_a_later_token_matters_where_attention_sees_both_ways(variant):
    model, changed = make(**VARIANTS[variant]), TOKENS.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 6
    before, after = model(TOKENS)[..., :3, :], model(changed)[..., :3, :]
    both_ways = model.cfg.attention_dir == "bidirectional"
    assert ("causal" in model.supports) != both_ways
    assert ("past" in model.supports) == ("linear_readout" in model.supports) & (not both_ways)
    assert ("linear_readout" in model.supports) == (model.cfg.n_coda_layers == 0)
    assert not torch.isclose(before, after).all(-1).any() if both_ways else torch.equal(before, after)


def test_prompts_may_be_lists_one_alone_or_arrays_of_any_whole_numbers():
    model = make(torch.float32)
    logits = model(TOKENS)
    assert torch.equal(model(TOKENS.tolist()), logits)
    for dtype in ("int8", "uint8", "int32", "uint16", "uint32", "uint64"):
        assert torch.equal(model(TOKENS.numpy().astype(dtype)), logits), dtype
    for alone in (TOKENS[1], TOKENS[1].tolist(), TOKENS[1].numpy()):
        torch.testing.assert_close(model(alone, 2), logits[:2, 1:2], atol=1e-6, rtol=0)
    assert model(TOKENS[:0]).shape == (3, 0, 5, 7)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ((torch.zeros(1, 3),), "dtype torch.float32: give whole numbers"),
        ((torch.ones(1, 3, dtype=torch.bool),), "dtype torch.bool"),
        ((torch.ones(1, 3, dtype=torch.complex64),), "real numbers"),
        (([7],), "token 7 is not in the vocabulary: choose from 0 to 6"),
        (([3, -1],), "token -1 is not in the vocabulary"),
        (([0] * 10,), "10 tokens but the model reads 9: shorten"),
        ((torch.zeros(2, 3, 4, dtype=torch.long),), r"\(2, 3, 4\) must be \[batch, pos\]"),
        ((torch.zeros(2, 0, dtype=torch.long),), "pos at least 1"),
        (([[1, 2], [3]],), r"tokens \(list\) must be a tensor"),
        (("abc",), r"tokens \(str\)"),
        ((TOKENS, TOKENS.float()), "2 inputs are given: give one"),
        ((), "0 inputs"),
    ],
)
def test_bad_prompts_get_one_line(inputs, match):
    with pytest.raises(LoopprobeError, match=match) as error:
        make(torch.float32)(*inputs)
    assert "\n" not in str(error.value)


def test_initial_weights_of_what_tokens_add_have_the_promised_scale():
    cfg = {"d_model": 256, "d_vocab": 300, "n_ctx": 100, "n_loops": 100, "loop_embedding": True, "n_coda_layers": 2}
    model = LoopedTransformer(ModelConfig(**cfg), torch.Generator().manual_seed(0))
    scales = {"W_E": 1, "W_pos": 0.02, "W_loop": 0.02}
    for name, scale in scales.items():
        assert getattr(model, name).std().item() == pytest.approx(scale, rel=0.02)
    assert model.coda[0].attn.out.weight.std().item() == pytest.approx(256**-0.5 / 2, rel=0.02)
