import json
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import make_model
from einops import einsum
from safetensors.torch import load_file, save_file

from loopprobe.cli import main
from loopprobe.config.schema import ForeignConfig, ModelConfig, TaskConfig
from loopprobe.errors import LoopprobeError
from loopprobe.model.looped import LoopedTransformer
from loopprobe.store.checkpoint import Checkpoint, load_checkpoint, save
from loopprobe.store.foreign import read_checkpoint, read_model, to_transformer_lens, write_transformer_lens

PARITY = TaskConfig(name="parity", length=5)
SIZES = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_vocab": 4, "d_vocab_out": 2, "n_ctx": 9, "n_loops": 4}
VARIANTS = {
    "plain": {},
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 4, "rotary_base": 500},
    "no positions, no injection": {"positional_embedding_type": "none", "injection": "none"},
    "RMS, gated": {"normalization_type": "RMS", "gated_mlp": True, "act_fn": "silu", "eps": 1e-6},
    "wide heads": {"d_head": 5, "d_mlp": 24, "attention_dir": "bidirectional"},
    "loops": {"loop_embedding": True, "injection": "multiply", "n_loops": 3},
    "around": {"n_prelude_layers": 2, "n_coda_layers": 1, "initializer_range": 0.02},
    "around, RMS": {"n_prelude_layers": 1, "n_coda_layers": 2, "normalization_type": "RMS", "gated_mlp": True},
}


def token_model(dtype=torch.float32, **fields):
    """A tiny model of tokens whose every parameter, biases and gains included, is random."""
    model = LoopedTransformer(ModelConfig(**(SIZES | fields))).to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
    return model


def same(one, other):
    """Whether two models have the same configuration, and bit for bit the same weights."""
    ours, theirs = one.state_dict(), other.state_dict()
    return one.cfg == other.cfg and ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_a_file_that_is_written_is_read_back_bit_by_bit_without_options(fields, dtype, tmp_path):
    model = token_model(dtype, **fields)
    write_transformer_lens(model, tmp_path / "file", PARITY)
    assert same(read_model(tmp_path / "file"), model)
    assert read_checkpoint(tmp_path / "file", {}).config == ForeignConfig(model=model.cfg, task=PARITY)


@pytest.mark.parametrize("fields", [{"normalization_type": "RMS"}, {"n_coda_layers": 1}, {"d_head": 5}])
def test_models_of_vectors_have_the_same_variants(fields, tmp_path):
    model = make_model(**fields)
    write_transformer_lens(model, tmp_path / "file")
    assert same(read_model(tmp_path / "file"), model)
    task = TaskConfig(name="noisy_linear_regression", noise_std=0.5)
    write_transformer_lens(model, tmp_path / "file", task)
    assert read_checkpoint(tmp_path / "file", {}).config.task == task


def test_weights_alone_tell_all_but_what_has_no_weight(tmp_path):
    model = token_model(d_head=5, normalization_type="RMS", gated_mlp=True, n_prelude_layers=1, n_coda_layers=1)
    save_file(to_transformer_lens(model), tmp_path / "file")
    with pytest.raises(LoopprobeError, match="does not say what n_loops is"):
        read_model(tmp_path / "file")
    assert same(read_model(tmp_path / "file", n_loops=4), model)
    loops = token_model(loop_embedding=True)
    save_file(to_transformer_lens(loops), tmp_path / "file")
    assert same(read_model(tmp_path / "file"), loops), "there is one vector for each loop"


def test_names_are_those_of_transformer_lens_and_else_its_own():
    names = set(to_transformer_lens(token_model(**VARIANTS["RMS, gated"], n_layers=1)))
    attention = {f"blocks.0.attn.{kind}_{part}" for kind in "Wb" for part in "QKVO"}
    mlp = {f"blocks.0.mlp.{name}" for name in ("W_in", "W_gate", "W_out", "b_out")}
    norms = {"blocks.0.ln1.w", "blocks.0.ln2.w", "ln_final.w"}
    assert names == {"embed.W_E", "pos_embed.W_pos", "unembed.W_U", "unembed.b_U"} | attention | mlp | norms
    names = set(to_transformer_lens(token_model(**VARIANTS["around"], positional_embedding_type="none")))
    assert {"prelude.1.attn.W_Q", "coda.0.mlp.W_in", "coda.0.ln1.b", "ln_coda.w", "ln_coda.b"} <= names
    assert "pos_embed.W_pos" not in names
    assert "W_loop" in to_transformer_lens(token_model(loop_embedding=True))


def test_weights_are_in_the_shapes_that_transformer_lens_computes_with(tmp_path):
    write_transformer_lens(model := token_model(torch.float64, n_loops=1, d_head=5), tmp_path / "file")
    w = load_file(tmp_path / "file")
    tokens = torch.tensor([[3, 0, 1, 1, 2]])

    def norm(x, name):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() * w[
            f"{name}.w"
        ] + w[f"{name}.b"]

    x = w["embed.W_E"][tokens] + w["pos_embed.W_pos"][:5]
    for layer in ("blocks.0", "blocks.1"):
        q, k, v = (
            einsum(norm(x, f"{layer}.ln1"), w[f"{layer}.attn.W_{part}"], "b p m, h m d -> b p h d")
            + w[f"{layer}.attn.b_{part}"]
            for part in "QKV"
        )
        scores = einsum(q, k, "b q h d, b k h d -> b h q k") / math.sqrt(5)
        pattern = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf).softmax(-1)
        z = einsum(pattern, v, "b h q k, b k h d -> b q h d")
        x = x + einsum(z, w[f"{layer}.attn.W_O"], "b q h d, h d m -> b q m") + w[f"{layer}.attn.b_O"]
        hidden = F.gelu(norm(x, f"{layer}.ln2") @ w[f"{layer}.mlp.W_in"] + w[f"{layer}.mlp.b_in"], approximate="tanh")
        x = x + hidden @ w[f"{layer}.mlp.W_out"] + w[f"{layer}.mlp.b_out"]
    logits = norm(x, "ln_final") @ w["unembed.W_U"] + w["unembed.b_U"]
    torch.testing.assert_close(model(tokens)[0].detach(), logits, atol=1e-12, rtol=0)


def test_what_transformer_lens_writes_besides_is_passed_over(tmp_path):
    model = token_model(**VARIANTS["RMS, gated"])
    besides = {"attn.mask": torch.ones(9, 9), "attn.IGNORE": torch.tensor(-torch.inf), "attn.rotary_sin": torch.ones(9),
               "mlp.b_in": torch.zeros(64)}  # fmt: skip
    tensors = to_transformer_lens(model) | {f"blocks.1.{name}": tensor for name, tensor in besides.items()}
    save_file(tensors, tmp_path / "file")
    assert same(read_model(tmp_path / "file", n_loops=4, act_fn="silu", eps=1e-6), model)
    save_file(tensors | {"blocks.1.mlp.b_in": torch.ones(64)}, tmp_path / "file")
    with pytest.raises(LoopprobeError, match=r"fc_in.bias is \(64,\) there and not expected"):
        read_model(tmp_path / "file", n_loops=4)


# An ordinary GPT of nanoGPT


class GPT(torch.nn.Module):
    """The model whose state dict nanoGPT saves, from torch's own layers."""

    def __init__(self, bias=True):
        super().__init__()
        d, self.n_head = 16, 2
        linear = lambda a, b: torch.nn.Linear(a, b, bias=bias)  # noqa: E731
        norm = lambda: torch.nn.LayerNorm(d, bias=bias)  # noqa: E731
        parts = torch.nn.ModuleDict
        layers = [
            parts({
                "ln_1": norm(), "attn": parts({"c_attn": linear(d, 3 * d), "c_proj": linear(d, d)}),
                "ln_2": norm(), "mlp": parts({"c_fc": linear(d, 4 * d), "c_proj": linear(4 * d, d)}),
            })
            for _ in range(2)
        ]  # fmt: skip
        embed = torch.nn.Embedding
        self.transformer = parts({"wte": embed(7, d), "wpe": embed(9, d), "h": torch.nn.ModuleList(layers),
                                  "ln_f": norm()})  # fmt: skip
        self.lm_head = torch.nn.Linear(d, 7, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight
        generator = torch.Generator().manual_seed(0)
        for parameter in self.double().parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, tokens):
        t = self.transformer
        x = t["wte"](tokens) + t["wpe"].weight[: tokens.shape[1]]
        for layer in t["h"]:
            attn, mlp = layer["attn"], layer["mlp"]
            q, k, v = (
                part.unflatten(-1, (self.n_head, -1)).transpose(1, 2)
                for part in attn["c_attn"](layer["ln_1"](x)).chunk(3, -1)
            )
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
            x = x + attn["c_proj"](z)
            x = x + mlp["c_proj"](F.gelu(mlp["c_fc"](layer["ln_2"](x))))
        return self.lm_head(t["ln_f"](x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("head", ["tied", "left out", "its own"])
def test_a_gpt_of_nanogpt_is_a_model_of_tokens_with_one_loop(bias, head, tmp_path):
    gpt = GPT(bias)
    if head == "its own":
        gpt.lm_head.weight = torch.nn.Parameter(torch.randn(7, 16, generator=torch.Generator().manual_seed(1)).double())
    weights = {name: t for name, t in gpt.state_dict().items() if head != "left out" or name != "lm_head.weight"}
    torch.save({"model": weights, "model_args": {"n_head": 2, "dropout": 0.0}, "iter_num": 3}, tmp_path / "ckpt.pt")
    model = read_model(tmp_path / "ckpt.pt")
    assert (model.cfg.n_loops, model.cfg.d_vocab, model.cfg.n_ctx, model.dtype) == (1, 7, 9, torch.float64)
    tokens = torch.tensor([[6, 0, 1, 5], [2, 2, 3, 4]])
    torch.testing.assert_close(model(tokens)[0].detach(), gpt(tokens).detach(), atol=1e-12, rtol=0)


def test_what_a_gpt_does_not_tell_is_an_option(tmp_path):
    torch.save(GPT().half().state_dict(), tmp_path / "ckpt.pt")
    with pytest.raises(LoopprobeError, match="does not say what n_heads is"):
        read_model(tmp_path / "ckpt.pt")
    model = read_model(tmp_path / "ckpt.pt", n_heads=4, act_fn="relu", n_loops=3)
    assert (model.cfg.n_heads, model.cfg.act_fn, model.cfg.n_loops, model.dtype) == (4, "relu", 3, torch.float16)
    with pytest.raises(LoopprobeError, match="holds a model of tokens and does not say of which task"):
        read_checkpoint(tmp_path / "ckpt.pt", {"model": {"n_heads": 2}})
    task = {"name": "modular_addition", "modulus": 7, "length": 2}
    with pytest.raises(LoopprobeError, match=r"d_vocab \(7\) must be 9 for task modadd-modulus7"):
        read_checkpoint(tmp_path / "ckpt.pt", {"model": {"n_heads": 2}, "task": task})


# Bad files


def without(name):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def instead(name, tensor):
    return lambda tensors: tensors | {name: tensor}


def with_record(**record):
    """The good weights, with other metadata."""
    return lambda tensors: tensors, {"loopprobe": json.dumps(record)}


def with_text(text):
    return lambda tensors: tensors, {"loopprobe": text}


GOOD = {"n_loops": 4}
AXES = "too many axes or too few"
BAD_METADATA = {
    "no JSON": (with_text("{"), "damaged metadata"),
    "too deep": (with_text("[" * 100_000), "damaged metadata"),
    "a list": (with_text("[1]"), "damaged metadata"),
    "a model that is no table": (with_record(model=3), "damaged metadata"),
    "an unknown field": (with_record(model=GOOD | {"d_loop": 3}), "unknown config key 'd_loop'"),
    "a wrong type": (with_record(model=GOOD | {"eps": "small"}), "eps .'small'. is not valid"),
    "a million layers": (with_record(model=GOOD | {"n_layers": 10**6}), "n_layers is 2 by its weights, not 1000000"),
    "vectors": (with_record(model=GOOD | {"n_points": 5}), "n_points .5. is of models that read vectors"),
    "another task": (with_record(model=GOOD, task={"name": "copy"}), "must be 10 for task copy"),
    "an unknown task": (with_record(model=GOOD, task={"name": "poetry"}), "name .'poetry'. is not valid"),
}
BAD_WEIGHTS = {
    "no positions": (without("pos_embed.W_pos"), "does not say what positional_embedding_type is"),
    "no bias of keys": (without("blocks.1.attn.b_K"), "lacks one of b_Q, b_K, b_V in blocks.1.attn"),
    "no bias at the end": (without("unembed.b_U"), "read_out.bias is missing there"),
    "a norm without bias": (without("ln_final.b"), "ln1.bias is .16,. there and not expected"),
    "no heads": (without("blocks.0.attn.W_Q"), "lacks one of W_Q, W_K, W_V in blocks.0.attn"),
    "three heads": (instead("blocks.1.attn.W_Q", torch.ones(3, 16, 8)), "their shapes differ"),
    "heads that are one matrix": (instead("blocks.0.attn.W_Q", torch.ones(16, 16)), AXES),
    "an output that is a vector": (instead("blocks.0.attn.W_O", torch.ones(16)), AXES),
    "a matrix that is a vector": (instead("blocks.0.mlp.W_in", torch.ones(16)), AXES),
    "positions that are a number": (instead("pos_embed.W_pos", torch.ones(())), "W_pos is missing or no matrix"),
    "a layer x": (instead("blocks.x.ln1.w", torch.ones(16)), "has the unexpected key blocks.x.ln1.w"),
    "a layer too far": (instead("blocks.9.ln1.w", torch.ones(16)), "blocks.2.attn.out.bias is missing there"),
    "layers of nobody": (instead("coda.0.ln1.w", torch.ones(16)), "coda.0.attn.out.bias is missing there"),
    "whole numbers": (instead("ln_final.w", torch.ones(16).int()), "ln_final.weight holds int32"),
    "infinite numbers": (instead("ln_final.w", torch.ones(16) / 0), "16 of the 16 values of ln_final.weight"),
    "a read-in of vectors": (instead("embed.b_E", torch.ones(16)), "read_out.bias is .2,. there and .1,. in"),
}
BAD = BAD_METADATA | {
    name: ((change, {"loopprobe": json.dumps({"model": GOOD})}), match) for name, (change, match) in BAD_WEIGHTS.items()
}


@pytest.mark.parametrize(("made", "match"), BAD.values(), ids=BAD)
def test_a_bad_file_is_told_in_one_line(made, match, tmp_path):
    change, metadata = made
    save_file(change(to_transformer_lens(token_model())), tmp_path / "file", metadata=metadata)
    with pytest.raises(LoopprobeError, match=match) as error:
        read_checkpoint(tmp_path / "file", {})
    assert "\n" not in str(error.value)


def test_options_that_contradict_the_weights_are_refused(tmp_path):
    write_transformer_lens(token_model(), tmp_path / "file", PARITY)
    with pytest.raises(LoopprobeError, match="n_heads is 2 by its weights, not 4"):
        read_model(tmp_path / "file", n_heads=4)
    with pytest.raises(LoopprobeError, match="train cannot be set of a file of weights"):
        read_checkpoint(tmp_path / "file", {"train": {"steps": 3}})
    assert read_model(tmp_path / "file", n_loops=7).cfg.n_loops == 7, "the user knows better what no weight tells"


def test_weights_of_two_models_are_refused(tmp_path):
    torch.save(GPT().state_dict() | {"_read_in.weight": torch.ones(16, 3)}, tmp_path / "file")
    with pytest.raises(LoopprobeError, match=r"read_in\.weight of two models"):
        read_model(tmp_path / "file", n_heads=2)


# The verbs


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["loopprobe", *map(str, arguments)])
        code = 0
        try:
            code = main() or 0
        except SystemExit as stop:
            code = stop.code
        return code, "".join(capsys.readouterr())

    return call


def test_a_model_of_tokens_is_exported_and_imported(run, tmp_path):
    model = token_model(**VARIANTS["RMS, gated"], positional_embedding_type="rotary")
    (tmp_path / "runs/mine").mkdir(parents=True)
    checkpoint = Checkpoint(ForeignConfig(model=model.cfg, task=PARITY), model)
    save(checkpoint, tmp_path / "runs/mine")
    code, text = run("export", "mine", "--out", "file")
    assert code == 0, text
    code, text = run("import", "file", "--out", "runs/back")
    assert code == 0, text
    back = load_checkpoint("runs/back")
    assert back.config == checkpoint.config
    assert same(back.model, model)
    save_file(load_file("file"), "bare")
    code, text = run("import", "bare")
    assert (code, text.count("\n")) == (2, 1)
    assert "bare does not say what n_loops is" in text
    told = ("--n-loops", 4, "--task", "parity", "--set", "task.length=5", "--set", "model.act_fn=silu")
    told = (
        *told,
        "--set",
        "model.positional_embedding_type=rotary",
        "--set",
        "model.eps=1e-6",
        "--set",
        "model.n_ctx=9",
    )
    code, text = run("import", "bare", *told, "--out", "runs/told")
    assert code == 0, text
    assert same(load_checkpoint("runs/told").model, model)
    assert load_checkpoint("runs/told").config.task == PARITY
    code, text = run("import", "bare", *told, "--set", "model.n_loops=4")
    assert (code, text.count("\n")) == (2, 1)
    assert "set twice" in text
