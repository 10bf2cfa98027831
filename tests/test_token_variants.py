"""Every variant of a model of tokens: its hook points, its copies, its configuration and its size."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_token_model import AROUND, TOKENS, VARIANTS, each_variant, make

from loopprobe.config.budget import n_parameters
from loopprobe.config.schema import ModelConfig
from loopprobe.model import blocks
from loopprobe.model.hook_points import dims, numbers_of, short_name, split_name
from loopprobe.model.looped import LoopedTransformer


def identity(activation, hook):
    return activation.clone()


@each_variant
@pytest.mark.parametrize("short", [0, blocks.SHORT])
def test_fused_and_hooked_computation_agree_at_every_point(variant, short, monkeypatch):
    monkeypatch.setattr(blocks, "SHORT", short)
    model = make(**VARIANTS[variant])
    cfg, plain = model.cfg, model(TOKENS)
    names = list(dict.fromkeys(split_name(name)[2] for name in model.hook_dict))
    layers = cfg.n_layers + cfg.n_prelude_layers + cfg.n_coda_layers
    of_layer = 18 + 2 * (cfg.positional_embedding_type == "rotary") + cfg.gated_mlp
    once = 7 + (cfg.positional_embedding_type == "standard") + cfg.loop_embedding + 2 * (cfg.n_coda_layers > 0)
    assert len(names) == layers * of_layer + once
    for name in names:
        hooked = model.run_with_hooks(TOKENS, fwd_hooks=[(name, identity)])
        torch.testing.assert_close(hooked, plain, atol=1e-10, rtol=0, msg=name)
    together = model.run_with_hooks(TOKENS, fwd_hooks=[(lambda name: True, identity)])
    torch.testing.assert_close(together, plain, atol=1e-10, rtol=0)


@each_variant
def test_activations_have_their_own_short_names_and_the_sizes_that_are_told(variant):
    model, seen = make(**VARIANTS[variant]), {}

    def note(activation, hook):
        seen[hook.name] = activation.shape

    model.run_with_hooks(TOKENS, fwd_hooks=[(lambda name: True, note)], n_loops=1)
    parts = [(split_name(name)[1], short_name(name)) for name in seen]
    assert len(set(parts)) == len(parts)
    for name, shape in seen.items():
        assert len(shape) == len(dims(name)), name
        assert shape.numel() == 3 * numbers_of(name, model.cfg, 5, 5, 5), name


@pytest.mark.parametrize("name", ["attn.hook_rot_q", "attn.hook_rot_k", "mlp.hook_pre_linear"])
def test_a_hook_in_one_loop_acts_there_alone(name):
    model, loops = make(**VARIANTS["all"]), []

    def zero(activation, hook):
        loops.append(hook.loop())
        return 0 * activation

    plain = model(TOKENS, 5)
    edited = model.run_with_hooks(TOKENS, 5, fwd_hooks=[(f"loops.2.blocks.0.{name}", zero)])
    assert loops == [2]
    assert torch.equal(edited[:2], plain[:2])
    assert not torch.isclose(edited[2:], plain[2:]).all(-1).any()


def test_layers_around_the_loop_are_passed_once_a_run_and_once_a_loop():
    model, seen = make(**AROUND), []
    hooks = [(name, lambda x, hook: seen.append(hook.name)) for name in ("prelude.0.hook_resid_post", "hook_embed")]
    model.run_with_hooks(TOKENS, fwd_hooks=[*hooks, ("coda.1.ln2.hook_scale", hooks[0][1])])
    assert seen == ["prelude.0.hook_resid_post", "hook_embed", *(f"loops.{i}.coda.1.ln2.hook_scale" for i in range(3))]


@pytest.mark.parametrize("name", ["hook_pos_embed", "hook_loop_embed"])
def test_a_hook_that_writes_in_place_leaves_the_weights_alone(name):
    model = make(loop_embedding=True)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        changed = model.run_with_hooks(TOKENS, fwd_hooks=[(name, lambda x, hook: x.zero_())])
    assert not torch.allclose(changed, model(TOKENS))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@each_variant
def test_copies_and_other_precisions_compute_the_same(variant):
    model = make(torch.float32, **VARIANTS[variant])
    logits = model(TOKENS)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(TOKENS), logits)
    precise = copy.deepcopy(model).double()(TOKENS)
    assert precise.dtype == torch.float64
    torch.testing.assert_close(precise, logits.double(), atol=1e-4, rtol=0)
    assert model.bfloat16()(TOKENS).dtype == torch.bfloat16


@each_variant
def test_a_transformer_lens_config_keeps_all_but_the_loop(variant):
    cfg = make(**VARIANTS[variant], initializer_range=0.5, eps=1e-6).cfg
    ours = ("n_loops", "injection", "n_prelude_layers", "n_coda_layers", "loop_embedding")
    loop = {name: getattr(cfg, name) for name in ours}
    for given_ in (cfg.to_transformer_lens(), cfg.to_transformer_lens().to_dict()):
        assert ModelConfig.from_transformer_lens(given_, **loop) == cfg
        vectors = ModelConfig.from_transformer_lens(given_, n_dims=3)
        assert (vectors.d_vocab, vectors.n_points, vectors.n_ctx) == (None, 4, 9)


few, flag = st.integers(1, 3), st.booleans()


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    fields=st.fixed_dictionaries(
        {
            "n_layers": few, "n_heads": few, "d_mlp": st.integers(1, 20), "n_prelude_layers": st.integers(0, 2),
            "n_coda_layers": st.integers(0, 2), "loop_embedding": flag, "gated_mlp": flag, "n_loops": few,
            "normalization_type": st.sampled_from(["LN", "RMS"]), "d_head": st.sampled_from([2, 4, 6]),
            "positional_embedding_type": st.sampled_from(["standard", "rotary", "none"]), "d_model": st.integers(1, 12),
        },
        optional={"d_vocab_out": few},
    ),
    reads=st.sampled_from([{"d_vocab": 5}, {"d_vocab": 5, "n_ctx": 7}, {"n_dims": 3, "n_points": 4}]),
)  # fmt: skip
def test_parameters_are_counted_exactly(fields, reads):
    fields = fields if "d_vocab" in reads else {key: value for key, value in fields.items() if key != "d_vocab_out"}
    cfg = ModelConfig(**fields, **reads)
    assert n_parameters(cfg) == sum(parameter.numel() for parameter in LoopedTransformer(cfg).parameters())
