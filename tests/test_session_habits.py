"""What users of TransformerLens type works, or is answered in one line."""

import io

import numpy as np
import pytest
import torch
from conftest import make_model
from transformer_lens import ActivationCache

from loopprobe.errors import LoopprobeError
from loopprobe.model.cache import LoopCache
from loopprobe.model.interventions import add, edited, replace


@pytest.fixture
def run(model, prompts):
    return model.run_with_cache(*prompts, 5)


# Choices that are not there


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"positions": [99]}, "position 99 must be below 12"),
        ({"positions": -13}, "position -13 must be below 12"),
        ({"positions": slice(20, 30)}, "no position is chosen"),
        ({"positions": []}, "no position is chosen"),
        ({"positions": "query"}, "no position is called 'query'"),
        ({"loops": [5]}, "loop 5 must be below 5"),
        ({"loops": [-6]}, "loop -6 must be below 5"),
        ({"loops": range(4, 9)}, "loop 5 must be below 5"),
        ({"loops": slice(7, 9)}, "no loop is chosen"),
        ({"loops": ()}, "no loop is chosen"),
        ({"loops": "0:99999999999"}, "loop 99999999999 must be below 5"),
        ({"layers": 2}, "layer 2 must be below 2"),
        ({"layers": [0, -3]}, "layer -3 must be below 2"),
        ({"names": lambda name: False}, "nothing is chosen"),
        ({"names": []}, "nothing is chosen"),
        ({"names": "loops.7.hook_z"}, "nothing is chosen"),
        ({"names": "loops.1.hook_z", "loops": [2]}, "nothing is chosen"),
        ({"names": ["resid_post", "residpost"]}, "no hook point is called 'residpost'"),
    ],
)
def test_a_choice_that_is_not_there_is_refused_before_the_run(choice, message, model, prompts):
    seen = []
    model.add_hook("hook_embed", lambda x, hook: seen.append(x))
    with pytest.raises(LoopprobeError, match=message):
        model.run_with_cache(*prompts, 5, **choice)
    assert seen == []


@pytest.mark.parametrize(
    ("loops", "same"),
    [(3, [3]), (-1, [4]), (slice(2), [0, 1]), ((t for t in (1, 2)), [1, 2]), ({4, 0}, [0, 4]), (np.int64(2), [2])],
)
def test_loops_as_they_are_typed(loops, same, model, prompts):
    _, cache = model.run_with_cache(*prompts, 5, loops=loops)
    _, expected = model.run_with_cache(*prompts, 5, loops=same)
    assert list(cache) == list(expected)
    assert all(torch.equal(cache[name], expected[name]) for name in cache)


def test_positions_as_they_are_typed(model, prompts, run):
    _, everything = run
    for positions, same in ((-1, [11]), (0, [0]), ([3, -2], [3, 10]), (range(2, 4), [2, 3]), (torch.tensor([5]), [5])):
        _, cache = model.run_with_cache(*prompts, 5, positions=positions, layers=-1)
        expected = everything[2, "resid_post", 1][:, same]
        torch.testing.assert_close(cache[2, "resid_post", 1], expected, atol=1e-12, rtol=0)
        assert list(cache.to_xarray().position) == same


@pytest.mark.parametrize("count", ["keep_loops", "grad_loops"])
@pytest.mark.parametrize("with_grad", [False, True])
def test_more_loops_to_keep_than_are_run_is_refused(count, with_grad, model, prompts):
    with (
        torch.set_grad_enabled(with_grad),
        pytest.raises(LoopprobeError, match=rf"{count} \(7\).*at most n_loops \(3\)"),
    ):
        model(*prompts, 3, **{count: 7})
    for wrong in (0, -1, 2.0, True, "2"):
        with pytest.raises(LoopprobeError, match="n_loops"):
            model(*prompts, wrong)


# The names of options


def test_options_of_transformer_lens_that_mean_something_are_taken(model, prompts, run):
    predictions, everything = run
    _, cache = model.run_with_cache(*prompts, 5, names_filter="blocks.0.hook_resid_post", pos_slice=slice(-3, None))
    expected = everything[4, "resid_post", 0][:, -3:]
    torch.testing.assert_close(cache[4, "resid_post", 0], expected, atol=1e-12, rtol=0)
    _, cache = model.run_with_cache(*prompts, 5, names_filter=lambda name: name.endswith("hook_pattern"))
    assert cache.names() == ["blocks.0.attn.hook_pattern", "blocks.1.attn.hook_pattern"]
    torch.testing.assert_close(model(*prompts, 5, return_type="logits"), predictions, atol=1e-12, rtol=0)
    for loop in range(5):
        torch.testing.assert_close(model(*prompts, 5, stop_at_loop=loop), everything[loop, "z_pre"])
    torch.testing.assert_close(model(*prompts, 5, stop_at_loop=-1), everything[4, "z_pre"])
    torch.testing.assert_close(model(*prompts, 5, stop_at_loop=5), everything[4, "z"])
    one, of_one = model.run_with_cache(prompts.xs[:1], prompts.ys[:1], 5, remove_batch_dim=True)
    torch.testing.assert_close(one, predictions[:, 0], atol=1e-12, rtol=0)
    torch.testing.assert_close(of_one["pattern", 1], everything["pattern", 1][:, 0], atol=1e-12, rtol=0)
    assert of_one.to_xarray().pattern.dims == ("loop", "layer", "head", "query", "key")
    assert not of_one.loop(2).has_batch_dim
    torch.testing.assert_close(of_one.loop(2).decompose_resid().sum(0), of_one[2, "resid_post", 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_at_layer": 1}, "stop_at_loop"),
        ({"return_type": "loss"}, "return_type"),
        ({"return_type": None}, "return_type"),
        ({"prepend_bos": True}, "tensors"),
    ],
)
def test_options_that_mean_nothing_are_answered(options, message, model, prompts):
    for call in (model, model.run_with_cache):
        with pytest.raises(LoopprobeError, match=message):
            call(*prompts, 2, **options)
        with pytest.raises(TypeError, match="n_lops"):
            call(*prompts, n_lops=3)
    with pytest.raises(LoopprobeError, match="loss="):
        model.run_with_cache(*prompts, 2, incl_bwd=True)
    with pytest.raises(LoopprobeError, match="same option"):
        model.run_with_cache(*prompts, 2, names="z", names_filter="z")
    with pytest.raises(LoopprobeError, match="one prompt and the batch has 8"):
        model.run_with_cache(*prompts, 2, remove_batch_dim=True)


# The cache


def test_a_cache_is_a_mapping(run):
    _, cache = run
    plain = dict(cache)
    assert list(plain) == list(cache.keys()) == list(cache)
    assert len(cache) == len(plain) == len(list(cache.values())) == 1 + 5 * 43
    assert all(torch.equal(value, cache[name]) for name, value in cache.items())
    for there in ("resid_post", "z", "embed", "blocks.1.attn.hook_pattern", "loops.4.hook_z", "hook_embed"):
        assert there in cache
    for missing in ("loops.5.hook_z", "nonsense", "loops.0.hook_embed", 3):
        assert missing not in cache
    assert cache.get("nonsense") is None
    assert cache == cache
    assert cache != LoopCache(cache.model, 5, list(cache))


def test_every_way_to_ask_for_the_same(run):
    _, cache = run
    stack = torch.stack([cache[f"loops.{t}.blocks.1.hook_resid_post"] for t in range(5)])
    for key in (("resid_post", 1), ("resid_post", -1), "blocks.1.hook_resid_post"):
        assert torch.equal(cache[key], stack)
    assert torch.equal(cache[1:3, "resid_post", 1], stack[1:3])
    assert torch.equal(cache[2:4]["resid_post", 1], stack[2:4])
    assert torch.equal(cache[::2]["resid_post", 1], stack[::2])
    assert cache[2:4].loops == [2, 3]
    assert torch.equal(cache[2:4][3, "resid_post", 1], stack[3])
    assert torch.equal(cache[-1]["resid_post", 1], stack[4])
    both = torch.stack([cache["resid_post", 0], stack], dim=1)
    assert torch.equal(cache["resid_post"], both)
    assert torch.equal(cache.stack("result"), torch.stack([cache["result", 0], cache["result", 1]], 1))
    assert torch.equal(cache[3, "resid_post"], both[3])
    for once in (cache["embed"], cache["hook_embed"], cache[1, "embed"], cache.stack("embed")):
        assert torch.equal(once, cache["hook_embed"])
    assert torch.equal(cache["z"], cache.stack("hook_z"))
    assert torch.equal(cache["attn_z", 0], cache["blocks.0.attn.hook_z"])
    assert torch.equal(cache["ln_final.hook_scale"], cache["ln_final_scale"])


def test_one_short_name_is_one_thing(model, prompts):
    _, state = model.run_with_cache(*prompts, 5, names="z")
    assert list(state) == [f"loops.{t}.hook_z" for t in range(5)]
    _, heads = model.run_with_cache(*prompts, 5, names="attn_z")
    assert len(heads) == 10
    shorts = [short for short in state.model.hook_trees.local_names if short.endswith("hook_z")]
    assert len(shorts) == 3


def test_what_is_not_in_the_cache_is_said(model, prompts):
    _, cache = model.run_with_cache(*prompts, 3, names=["resid_post", "z"], loops=[0, 1])
    for key in ((2, "resid_post", 0), "pattern", ("pattern", 0), (0, "mlp_out", 1), "loops.2.hook_z", (0, "nonsense")):
        with pytest.raises(KeyError, match="it keeps loops 0–1"):
            cache[key]
    with pytest.raises(KeyError, match=r"z has no layer.*attn_z"):
        cache[0, "z", 0]
    with pytest.raises(KeyError, match=r"attn_out.*names=.*resid_post"):
        cache.loop(0).decompose_resid()


def test_a_cache_moves_and_is_saved_and_loaded(model, prompts, tmp_path):
    _, cache = model.run_with_cache(
        *prompts, 4, names=["resid_post", "pattern", "embed"], loops=[1, 3], positions=[2, -1]
    )
    cache.save(tmp_path / "cache.safetensors")
    again = LoopCache.load(tmp_path / "cache.safetensors", model)
    assert list(again) == list(cache)
    assert all(torch.equal(again[name], cache[name]) for name in cache)
    assert again.to_xarray().identical(cache.to_xarray())
    assert isinstance(again.loop(3), ActivationCache)
    file = io.BytesIO()
    torch.save(dict(cache), file)
    file.seek(0)
    assert set(torch.load(file, weights_only=True)) == set(cache)
    assert cache.to(torch.float32)[3, "pattern", 0].dtype == torch.float32
    assert cache.to("cpu") is cache
    with pytest.raises(LoopprobeError, match="no cache at"):
        LoopCache.load(tmp_path / "nothing", model)
    (tmp_path / "other").write_bytes(b"no tensors")
    with pytest.raises(LoopprobeError, match="is not a cache"):
        LoopCache.load(tmp_path / "other", model)


def test_the_graph_can_be_kept(model, prompts):
    predictions, cache = model.run_with_cache(*prompts, 3, names=["z", "resid_post"], detach=False)
    [grad] = torch.autograd.grad(predictions[-1].sum(), cache["loops.1.hook_z"], retain_graph=True)
    _, other = model.run_with_cache(*prompts, 3, names=["z"], loss=lambda predictions: predictions[-1].sum())
    torch.testing.assert_close(grad, other.grads["loops.1.hook_z"], atol=1e-12, rtol=0)
    assert cache.stack("resid_post", 1).shape == (3, 8, 12, 16)
    with pytest.raises(LoopprobeError, match="positions"):
        model.run_with_cache(*prompts, 3, names="z", detach=False, positions=[0])


def test_a_cache_of_another_batch_is_refused_and_of_one_prompt_serves_all(model, prompts):
    _, three = model.run_with_cache(prompts.xs[:3], prompts.ys[:3], 4, names="mlp_out")
    _, short = model.run_with_cache(prompts.xs[:, :4], prompts.ys[:, :4], 4, names="mlp_out")
    for cache, shape in ((three, r"\(3, 12, 16\)"), (short, r"\(8, 8, 16\)")):
        with (
            pytest.raises(LoopprobeError, match=rf"loops.2.blocks.0.hook_mlp_out gave shape {shape}.*\(8, 12, 16\)"),
            edited(model, "mlp_out", replace(cache), loops=2),
        ):
            model(*prompts)
    _, one = model.run_with_cache(prompts.xs[:1], prompts.ys[:1], 4, names="mlp_out")
    with edited(model, "mlp_out", replace(one), loops=[2], layers=[-1]):
        _, cache = model.run_with_cache(*prompts, 4, names="mlp_out")
    assert torch.equal(cache[2, "mlp_out", 1], one[2, "mlp_out", 1].expand(8, -1, -1))


@pytest.mark.parametrize("heads", [1, [1], -1, slice(1, None)])
def test_heads_and_positions_of_edits_as_they_are_typed(heads, model, prompts):
    direction = torch.arange(8.0)
    with edited(model, "attn_z", add(direction), heads=[1], positions=[10, 11]):
        expected = model(*prompts)
    with edited(model, "attn_z", add(direction), heads=heads, positions=slice(-2, None)):
        assert torch.equal(model(*prompts), expected)


# Decompositions of one loop sum to its prediction


@pytest.mark.parametrize("loop", [0, 2])
def test_every_decomposition_sums_to_the_prediction(loop, model, prompts):
    predictions, cache = model.run_with_cache(*prompts, 3)
    one, read = cache.loop(loop), lambda parts: (parts.sum(0) @ model.W_U + model.b_U)[:, ::2, 0]
    sums = {
        "decompose_resid": one.decompose_resid(apply_ln=True),
        "stack_head_results": one.stack_head_results(apply_ln=True, incl_remainder=True),
        "stack_neuron_results": one.stack_neuron_results(-1, apply_ln=True, incl_remainder=True),
        "get_full_resid_decomposition": one.get_full_resid_decomposition(apply_ln=True),
        "of layers": one.get_full_resid_decomposition(apply_ln=True, expand_neurons=False),
    }
    for name, parts in sums.items():
        torch.testing.assert_close(read(parts), predictions[loop], atol=1e-9, rtol=0, msg=name)
    stages = one.accumulated_resid(apply_ln=True)
    torch.testing.assert_close(read(stages[-1:]), predictions[loop], atol=1e-9, rtol=0)
    parts, labels = one.decompose_resid(apply_ln=True, return_labels=True)
    assert labels[-1] == "ln_bias"
    assert len(parts) == len(labels)
    for project in (model.W_U, model.W_U[:, 0]):
        projected = one.get_full_resid_decomposition(apply_ln=True, project_output_onto=project)
        total = projected.sum(0) if project.ndim == 1 else projected.sum(0)[..., 0]
        torch.testing.assert_close((total + model.b_U)[:, ::2], predictions[loop], atol=1e-9, rtol=0)
    attributed = one.logit_attrs(one.decompose_resid())
    offset = model.ln_final.b @ model.W_U + model.b_U
    torch.testing.assert_close((attributed.sum(0) + offset)[:, ::2], predictions[loop], atol=1e-9, rtol=0)
    with pytest.raises(ValueError, match="not tokens"):
        one.logit_attrs(one.decompose_resid(), tokens=3)


@pytest.mark.parametrize("mlp_input", [False, True])
def test_components_at_the_input_of_a_layer_sum_to_its_normed_input(mlp_input, model, prompts):
    _, cache = model.run_with_cache(*prompts, 3)
    one = cache.loop(1)
    normed = one["blocks.1.ln2.hook_normalized" if mlp_input else "blocks.1.ln1.hook_normalized"]
    for parts in (
        one.decompose_resid(1, apply_ln=True, mlp_input=mlp_input),
        one.get_full_resid_decomposition(1, apply_ln=True, mlp_input=mlp_input),
    ):
        torch.testing.assert_close(parts.sum(0), normed, atol=1e-9, rtol=0)
    last = one.accumulated_resid(1, apply_ln=True, mlp_input=mlp_input)[-1]
    torch.testing.assert_close(last, normed, atol=1e-9, rtol=0)


# Weights


def test_circuits_and_their_composition():
    model = make_model(n_layers=3)
    assert model.all_head_labels() == ["L0H0", "L0H1", "L1H0", "L1H1", "L2H0", "L2H1"]
    ov, qk = model.OV.AB, model.QK.AB
    torch.testing.assert_close(ov[1, 0], model.W_V[1, 0] @ model.W_O[1, 0])
    torch.testing.assert_close(qk[2, 1], model.W_Q[2, 1] @ model.W_K[2, 1].T)
    for mode, right in (("Q", qk[2, 0]), ("K", qk[2, 0].T), ("V", ov[2, 0])):
        expected = (ov[0, 1] @ right).norm() / ov[0, 1].norm() / right.norm()
        scores = model.all_composition_scores(mode)
        torch.testing.assert_close(scores[0, 1, 2, 0], expected)
        assert scores[2, 0].eq(0).all()
        assert scores[1, 0, 1].eq(0).all()
        across = model.all_composition_scores(mode, next_loop=True)
        assert across.gt(0).all()
        torch.testing.assert_close(across[0, 1, 2, 0], expected)
    with pytest.raises(LoopprobeError, match="mode"):
        model.all_composition_scores("X")


# Prompts and models of other kinds


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_model_of_any_precision_takes_prompts_of_any_kind(dtype, prompts):
    model = make_model(torch.float64).to(dtype)
    xs, ys = prompts.xs.round(), prompts.ys.round()
    expected = make_model(torch.float64)(xs, ys)
    wide = torch.zeros(8, 12, 3, dtype=torch.float64)
    wide[:, ::2] = xs
    kinds = {
        "float64": (xs, ys), "float32": (xs.float(), ys.float()), "half": (xs.half(), ys.half()),
        "integers": (xs.long(), ys.int()), "numpy": (xs.numpy(), ys.numpy()), "lists": (xs.tolist(), ys.tolist()),
        "strided": (wide[:, ::2], ys), "transposed": (xs.transpose(1, 2).contiguous().transpose(1, 2), ys),
    }  # fmt: skip
    tolerance = {torch.float16: 0.2, torch.bfloat16: 1.0, torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
    for kind, (some_xs, some_ys) in kinds.items():
        predictions, cache = model.run_with_cache(some_xs, some_ys, 4)
        assert predictions.dtype == dtype
        assert {cache[name].dtype for name in cache} == {dtype}
        assert (predictions.double() - expected).abs().mean() < tolerance, kind
        data = cache.to_xarray()
        assert data.resid_post.dtype == (np.float64 if dtype == torch.float64 else np.float32)
        assert np.isfinite(data.resid_post).all()


def test_prompts_at_the_edge(model, prompts):
    assert model(prompts.xs[:0], prompts.ys[:0], 3).shape == (3, 0, 6)
    _, cache = model.run_with_cache(prompts.xs[:0], prompts.ys[:0], 3)
    assert cache["resid_post"].shape == (3, 2, 0, 12, 16)
    one = model(prompts.xs[:, :1], prompts.ys[:, :1], 3)
    torch.testing.assert_close(one, model(*prompts, 3)[:, :, :1], atol=1e-12, rtol=0)
    for xs, ys, message in (
        (prompts.xs[:, :0], prompts.ys[:, :0], "no points"),
        (prompts.xs.to(torch.complex64), prompts.ys, "real numbers"),
        (prompts, prompts.ys, "tensor or an array"),
        (None, prompts.ys, "tensor or an array"),
        ("text", prompts.ys, "tensor or an array"),
    ):
        with pytest.raises(LoopprobeError, match=message):
            model(xs, ys)
    large = prompts.xs.clone()
    large[0, 0, 0] = 1e30
    with pytest.raises(LoopprobeError, match="xs holds 1 values"):
        make_model(torch.float16)(large, prompts.ys)


def test_a_million_loops_need_no_memory(prompts):
    model = make_model(torch.float32, n_layers=1, d_model=4, n_heads=1)
    predictions = model(prompts.xs[:1, :1].float(), prompts.ys[:1, :1].float(), 3000, keep_loops=2)
    assert predictions.shape == (2, 1, 1)
    assert model.hook_points() == []


def test_what_no_memory_holds_is_refused_before_the_run(prompts):
    model = make_model(torch.float32)
    for call in (
        lambda: model(*prompts, 10**10),
        lambda: model(prompts.xs[:1].expand(10**9, -1, -1), prompts.ys[:1].expand(10**9, -1)),
        lambda: model.run_with_cache(*prompts, 10**10, names="z"),
        lambda: model.run_with_cache(prompts.xs[:1].expand(10**8, -1, -1), prompts.ys[:1].expand(10**8, -1), 4),
    ):
        with pytest.raises(LoopprobeError, match=r"needs .* GB of memory, .* free: "):
            call()


@pytest.mark.parametrize(
    "choice", [{}, {"names": ["q", "pattern", "mlp_pre"]}, {"positions": [1, -1], "loops": [0, 2]}]
)
def test_a_cache_knows_its_size_before_it_is_filled(choice, model, prompts):
    choice = {"names": None} | choice
    if choice["names"]:
        choice["names"] = ["q", "pattern", "pre", "ln1_scale", "readout", "result"]
    _, cache = model.run_with_cache(*prompts, 3, **choice)
    assert 8 * cache.numbers(12) == sum(value.numel() for value in cache.values())
