import pytest
import torch
from conftest import make_model
from transformer_lens import ActivationCache

from loopprobe.errors import LoopprobeError


def test_everything_is_kept_by_default(model, prompts):
    predictions, cache = model.run_with_cache(prompts.xs, prompts.ys, n_loops=5)
    torch.testing.assert_close(predictions, model(prompts.xs, prompts.ys, 5), atol=1e-10, rtol=0)
    assert set(cache) == {n for n in model.hook_dict if not n.startswith("loops.") or int(n.split(".")[1]) < 5}
    assert cache.loops == list(range(5))
    assert not predictions.requires_grad
    assert model.list_hooks() == {}


def test_indexing_in_every_form(model, prompts):
    _, cache = model.run_with_cache(prompts.xs, prompts.ys, n_loops=5)
    post = cache[3, "resid_post", 1]
    assert post.shape == (8, 12, 16)
    for same in (
        cache["loops.3.blocks.1.hook_resid_post"],
        cache[-2, "resid_post", -1],
        cache.loop(3)["resid_post", 1],
    ):
        assert torch.equal(same, post)
    assert cache[2, "z"].shape == (8, 12, 16)  # the state
    assert cache[2, "z", 0].shape == (8, 12, 2, 8)  # the heads' outputs
    stack = cache.stack("resid_post", layer=1)
    assert stack.shape == (5, 8, 12, 16)
    assert torch.equal(stack[3], post)
    with pytest.raises(KeyError, match="loops 0–4"):
        cache[7, "resid_post", 0]


def test_the_state_of_one_loop_enters_the_next(model, prompts):
    _, cache = model.run_with_cache(prompts.xs, prompts.ys, n_loops=4)
    assert cache[0, "z_pre"].eq(0).all()
    for loop in range(1, 4):
        assert torch.equal(cache[loop, "z_pre"], cache[loop - 1, "z"])
        assert torch.equal(cache[loop, "input"], cache[loop, "z_pre"] + cache["hook_embed"])


def test_transformer_lens_helpers_decompose_one_loop(model, prompts):
    _, cache = model.run_with_cache(prompts.xs, prompts.ys, n_loops=3)
    one = cache.loop(2)
    assert isinstance(one, ActivationCache)
    final = one["resid_post", 1]
    components, labels = one.decompose_resid(return_labels=True)
    assert labels == ["embed", "pos_embed", "0_attn_out", "0_mlp_out", "1_attn_out", "1_mlp_out"]
    torch.testing.assert_close(components.sum(0), final, atol=1e-12, rtol=0)
    heads = one.stack_head_results(layer=2)
    bias = model.blocks[0].attn.b_O + model.blocks[1].attn.b_O
    attention = one["attn_out", 0] + one["attn_out", 1]
    torch.testing.assert_close(heads.sum(0) + bias, attention, atol=1e-12, rtol=0)
    full = one.get_full_resid_decomposition(expand_neurons=True)
    torch.testing.assert_close(full.sum(0), final, atol=1e-12, rtol=0)
    residuals = one.accumulated_resid(apply_ln=True)
    expected = residuals[-1] @ model.W_U + model.b_U
    torch.testing.assert_close(expected[:, ::2, 0], one["readout"], atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("choice", "kept"),
    [
        (
            {"names": "pattern", "loops": [1, 3], "layers": [0]},
            {f"loops.{t}.blocks.0.attn.hook_pattern" for t in (1, 3)},
        ),
        ({"names": ["resid_post"], "loops": range(1)}, {f"loops.0.blocks.{layer}.hook_resid_post" for layer in (0, 1)}),
        ({"names": "blocks.0.hook_mlp_out", "loops": [2]}, {"loops.2.blocks.0.hook_mlp_out"}),
        ({"names": "loops.1.hook_z"}, {"loops.1.hook_z"}),
        ({"names": lambda name: name.endswith("hook_readout")}, {f"loops.{t}.hook_readout" for t in range(4)}),
    ],
)
def test_exactly_what_was_asked_for_is_kept(choice, kept, model, prompts):
    _, cache = model.run_with_cache(prompts.xs, prompts.ys, n_loops=4, **choice)
    assert set(cache) == kept


def test_positions_are_those_of_the_query(model, prompts):
    _, everything = model.run_with_cache(prompts.xs, prompts.ys, n_loops=2)
    for positions in (slice(-3, None), [0, 5, 11]):
        _, cache = model.run_with_cache(prompts.xs, prompts.ys, n_loops=2, positions=positions)
        assert torch.equal(cache[1, "resid_post", 0], everything[1, "resid_post", 0][:, positions])
        assert torch.equal(cache[1, "pattern", 0], everything[1, "pattern", 0][:, :, positions])
        assert torch.equal(cache[1, "q", 0], everything[1, "q", 0][:, positions])
        assert torch.equal(cache[1, "readout"], everything[1, "readout"])


def test_no_storage_larger_than_the_activation_stays_alive(model, prompts):
    _, cache = model.run_with_cache(prompts.xs, prompts.ys, n_loops=2, positions=slice(0, 1))
    for name in cache:
        tensor = cache[name]
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size(), name


def test_an_unknown_name_is_answered_with_the_choice(model, prompts):
    with pytest.raises(LoopprobeError, match=r"'residpost'.*resid_post"):
        model.run_with_cache(prompts.xs, prompts.ys, names="residpost")


def test_a_cache_says_what_it_holds():
    _, cache = make_model().run_with_cache(
        torch.zeros(1, 6, 3).double(), torch.zeros(1, 6).double(), 3, names="pattern"
    )
    assert repr(cache) == "LoopCache(loops 0–2 of 3, 2 names, 0.0 MB)"
