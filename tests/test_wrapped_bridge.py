"""A TransformerBridge of TransformerLens, wrapped as it is: its names in every loop."""

import copy

import pytest
import torch
from looped_others import WIDTH, draw, hrm_text
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

from loopprobe.model.interventions import edited, zero
from loopprobe.wrapped.wrap import wrap


@pytest.fixture(scope="module")
def bridge():
    module = hrm_text()
    return build_bridge_from_module(module, "HrmTextForCausalLM", hf_config=module.config)


@pytest.fixture(scope="module")
def model(bridge):
    return wrap(bridge)


@pytest.fixture(scope="module")
def plain():
    return wrap(hrm_text())


@pytest.fixture(autouse=True)
def without_gradient():
    with torch.no_grad():
        yield


def test_every_loop_is_that_of_the_module_without_a_bridge(model, plain):
    tokens = draw("hrm_text")
    expected, by_hand = plain.run_with_cache(tokens, n_loops=5)
    outputs, cache = model.run_with_cache(tokens, n_loops=5)
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-5)
    for name in ("z", "resid_post", "attn_out", "resid_mid", "mlp_out", "pattern", "attn_scores"):
        torch.testing.assert_close(cache.stack(name), by_hand.stack(name), rtol=1e-4, atol=1e-5)
    assert model.supports == plain.supports
    assert model.sizes == plain.sizes


def test_the_points_of_the_bridge_keep_their_names(bridge, model):
    """The bridge's own cache has the last loop of each, of the low stack after its last cycle."""
    tokens = draw("hrm_text")
    _, cache = model.run_with_cache(tokens)
    _, theirs = bridge.run_with_cache(tokens)
    assert {"blocks.0.attn.q.hook_out", "blocks.5.mlp.in.hook_out", "blocks.2.ln1.hook_scale"} <= set(cache.names())
    assert "blocks.0.attn.hook_cos" not in cache.names(), "it is not of the prompts"
    n_compared = 0
    for layer, name in ((2, "L_blocks.0"), (3, "L_blocks.1"), (4, "H_blocks.0"), (5, "H_blocks.1")):
        for local in (name.removeprefix(f"blocks.{layer}.") for name in cache.names()):
            if f"{name}.{local}" in theirs and f"blocks.{layer}.{local}" in cache.names():
                last = cache[-1][f"blocks.{layer}.{local}"]
                torch.testing.assert_close(last, theirs[f"{name}.{local}"].reshape(last.shape), rtol=1e-5, atol=1e-6)
                n_compared += 1
    assert n_compared > 100


@pytest.mark.parametrize("local", ["attn.q.hook_out", "attn.o.hook_in", "mlp.in.hook_out", "ln2.hook_out"])
def test_an_edit_at_one_loop_leaves_earlier_loops_alone(local, bridge, model):
    """By hand: a hook of TransformerLens on the bridge, which acts in one of its calls."""
    tokens, calls = draw("hrm_text"), []

    def second_loop(x, hook):
        calls.append(0)
        return -x if len(calls) == 2 else x

    with bridge.hooks([(f"H_blocks.1.{local}", second_loop)]):
        expected = bridge(tokens)
    assert len(calls) == 3
    with model.hooks([(f"loops.1.blocks.5.{local}", lambda x, hook: -x)]):
        outputs, cache = model.run_with_cache(tokens, names="resid_post")
    torch.testing.assert_close(outputs[-1], expected, rtol=1e-5, atol=1e-5)
    clean_outputs, clean = model.run_with_cache(tokens, names="resid_post")
    assert (outputs[0] == clean_outputs[0]).all()
    assert (outputs[-1] != clean_outputs[-1]).any()
    assert (cache[0, "resid_post", 5] == clean[0, "resid_post", 5]).all()
    assert (cache[1, "resid_post", 5] != clean[1, "resid_post", 5]).any()


def test_it_is_a_map_that_is_masked_patched_and_written_with(model, plain):
    tokens = draw("hrm_text")
    e = model.embed(tokens)
    z = torch.randn(*e.shape[:2], 2 * WIDTH, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.step(z, e), plain.step(z, plain.embed(tokens)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.predict(z, e), plain.predict(z, e), rtol=1e-5, atol=1e-5)
    both = []
    for each in (model, plain):
        with edited(each, "pattern", zero, loops=1, heads=2):
            both.append(each(tokens))
    torch.testing.assert_close(*both, rtol=1e-5, atol=1e-5)
    options = {"do_sample": False, "min_new_tokens": 5}
    assert (model.generate(tokens, 5, **options) == plain.generate(tokens, 5, **options)).all()


def test_the_bridge_is_as_before(bridge, model):
    tokens = draw("hrm_text")
    before = bridge(tokens)

    def attached():
        return [(part._forward_hooks, part._forward_pre_hooks, "forward" in vars(part), getattr(part, "name", None))
                for part in bridge.original_model.modules()]  # fmt: skip

    hooks = copy.deepcopy(attached())
    with pytest.raises(ValueError, match="on purpose"), model.hooks([("blocks.5.mlp.in.hook_out", fail)]):
        model(tokens)
    model.step(model.initial_state(model.embed(tokens)), model.embed(tokens))
    assert attached() == hooks
    assert bridge.hook_dict["L_blocks.0.attn.hook_pattern"].name == "L_blocks.0.attn.hook_pattern"
    torch.testing.assert_close(bridge(tokens), before, rtol=0, atol=0)


def fail(x, hook):
    raise ValueError("on purpose")
