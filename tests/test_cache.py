import copy

import pytest
import torch
from conftest import make_model, needs_peak, run_script
from transformer_lens import ActivationCache

from loopprobe.errors import LoopprobeError
from loopprobe.model.hook_points import short_name, split_name


def test_everything_is_kept_by_default(model, prompts):
    predictions, cache = model.run_with_cache(prompts.xs, prompts.ys, n_loops=5)
    torch.testing.assert_close(predictions, model(prompts.xs, prompts.ys, 5), atol=1e-10, rtol=0)
    locals_ = {split_name(name)[2] for name in model.hook_dict}
    assert set(cache) == {"hook_embed"} | {f"loops.{t}.{n}" for t in range(5) for n in locals_ - {"hook_embed"}}
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
    assert cache[2, "attn_z", 0].shape == (8, 12, 2, 8)  # the heads' outputs
    with pytest.raises(KeyError, match="heads is attn_z"):
        cache[2, "z", 0]
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


def test_what_is_kept_shares_one_storage_an_activation_and_nothing_more(model, prompts):
    _, cache = model.run_with_cache(prompts.xs, prompts.ys, n_loops=3, positions=slice(0, 1), loops=[0, 2])
    storages = {cache[name].untyped_storage().data_ptr(): cache[name].untyped_storage().nbytes() for name in cache}
    assert sum(storages.values()) == sum(cache[name].numel() * cache[name].element_size() for name in cache)
    stack = cache.stack("resid_post", 1)
    assert stack.shape[0] == 2
    assert stack.untyped_storage().data_ptr() == cache[2, "resid_post", 1].untyped_storage().data_ptr()


SCRIPT = """
import sys
import torch
from conftest import make_model, peak_memory

model = make_model(torch.float32, n_points=31, d_model=64)
xs, ys = torch.zeros(16, 31, 3), torch.zeros(16, 31)
n_loops = int(sys.argv[1])
model.run_with_cache(xs, ys, 2, names="resid_post", loops=[0])
before = peak_memory()
_, cache = model.run_with_cache(xs, ys, n_loops, names="resid_post", layers=[1], positions=[-1])
kept = cache.stack("resid_post", 1)
print(peak_memory() - before - kept.numel() * kept.element_size())
"""


@pytest.mark.slow
@needs_peak
def test_peak_memory_is_what_is_kept_however_many_loops_run():
    extra = [int(run_script(SCRIPT, n)) for n in (20, 400)]
    state = 16 * 62 * 64 * 4  # bytes of one state, of which 400 would be 100 MB; the heap varies by up to 8
    assert extra[1] - extra[0] < 60 * state, f"{extra} bytes beyond what is kept"


def test_gradients_are_kept_at_the_same_points(prompts):
    model = make_model()
    at_query = lambda predictions: predictions[-1, :, -1].sum()  # noqa: E731
    predictions, cache = model.run_with_cache(prompts.xs, prompts.ys, 3, names=["z_pre", "z", "attn_z"], loss=at_query)
    assert not predictions.requires_grad
    assert set(cache.grads) == set(cache)
    torch.testing.assert_close(predictions, model(prompts.xs, prompts.ys, 3).detach(), atol=1e-12, rtol=0)
    # The state after the last loop is read by the read-out alone; the state before it is by the whole loop.
    expected = torch.zeros_like(cache[2, "z"])
    expected[:, -2] = model.W_U[:, 0].detach()
    torch.testing.assert_close(cache.grads[2, "z"], expected, atol=1e-12, rtol=0)
    for name, loop in (("loops.1.hook_z_pre", 1), ("loops.0.hook_z_pre", 0), ("loops.2.blocks.1.attn.hook_z", 2)):
        direction = torch.randn(cache[name].shape, generator=torch.Generator().manual_seed(loop), dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            shift = sign * 1e-5 * direction
            with torch.no_grad(), model.hooks(fwd_hooks=[(name, lambda x, hook, shift=shift: x + shift)]):
                ends.append(at_query(model(prompts.xs, prompts.ys, 3)))
        slope = (ends[0] - ends[1]) / 2e-5
        torch.testing.assert_close((cache.grads[name] * direction).sum(), slope, rtol=1e-6, atol=1e-9)
    assert model.list_hooks() == {}


def test_a_point_with_two_readers_has_the_gradient_of_both(model, prompts):
    every = lambda predictions: predictions[:, :, -1].sum()  # noqa: E731
    _, cache = model.run_with_cache(prompts.xs, prompts.ys, 3, names=["z_pre", "z"], loss=every)
    read_out = torch.zeros_like(cache[1, "z"])
    read_out[:, -2] = model.W_U[:, 0].detach()
    torch.testing.assert_close(cache.grads[1, "z"], cache.grads[2, "z_pre"] + read_out, atol=1e-12, rtol=0)


def test_only_the_loops_that_carry_gradient_have_one(model, prompts):
    last = lambda predictions: predictions[-1].sum()  # noqa: E731
    _, cache = model.run_with_cache(prompts.xs, prompts.ys, 5, names="resid_post", loss=last, grad_loops=2)
    assert cache.loops == list(range(5))
    assert cache.grads.loops == [3, 4]
    with pytest.raises(LoopprobeError, match="one number"):
        model.run_with_cache(prompts.xs, prompts.ys, 2, names="z", loss=lambda predictions: predictions)
    assert model.list_hooks() == {}


def test_a_labelled_cache_has_an_axis_for_everything(model, prompts):
    _, everything = model.run_with_cache(prompts.xs, prompts.ys, 2)
    assert set(everything.to_xarray()) == {short_name(name) for name in model.hook_dict}
    assert everything.to_xarray().embed.dims == ("example", "position", "d_model")
    _, cache = model.run_with_cache(prompts.xs, prompts.ys, 4, loops=[1, 3], positions=[0, -1])
    data = cache.to_xarray()
    assert data.resid_post.dims == ("loop", "layer", "example", "position", "d_model")
    assert data.pattern.dims == ("loop", "layer", "example", "head", "query", "key")
    assert data.z.dims == ("loop", "example", "position", "d_model")
    assert data.readout.dims == ("loop", "example", "point")
    assert list(data.loop) == [1, 3]
    assert list(data.position) == [0, 11]
    assert list(data.key) == list(range(12))
    for short, layer in (("resid_post", 1), ("attn_z", 0), ("ln1_scale", 1), ("result", 0)):
        labelled = data[short].sel(loop=3, layer=layer).values
        assert (labelled == cache[3, short, layer].numpy()).all(), short
    assert (data.ln_final_normalized.sel(loop=1).values == cache["loops.1.ln_final.hook_normalized"].numpy()).all()


def test_an_unknown_name_is_answered_with_the_choice(model, prompts):
    with pytest.raises(LoopprobeError, match=r"'residpost'.*resid_post"):
        model.run_with_cache(prompts.xs, prompts.ys, names="residpost")


def test_a_cache_says_what_it_holds():
    _, cache = make_model().run_with_cache(
        torch.zeros(1, 6, 3).double(), torch.zeros(1, 6).double(), 3, names="pattern"
    )
    assert repr(cache) == "LoopCache(loops 0–2 of 3, 2 names, 0.0 MB)"


def test_gradients_that_nobody_asked_for_are_refused_with_both_ways_to_them(model, prompts):
    outputs, cache = model.run_with_cache(*prompts, 2, names="z")
    for one in (cache, cache[:1], copy.deepcopy(cache)):
        with pytest.raises(LoopprobeError, match=r"give run_with_cache loss=, or detach=False for torch.autograd.grad"):
            one.grads["loops.0.hook_z"]
    assert not outputs.requires_grad
    outputs, cache = model.run_with_cache(*prompts, 2, names="z", detach=False)
    [own] = torch.autograd.grad(outputs[-1].sum(), cache["loops.0.hook_z"])
    _, other = model.run_with_cache(*prompts, 2, names="z", loss=lambda outputs: outputs[-1].sum())
    torch.testing.assert_close(own, other.grads["loops.0.hook_z"])
