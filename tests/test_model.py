from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import TINY, make_model
from safetensors.torch import load_file

from loopprobe.config.schema import ModelConfig
from loopprobe.errors import LoopprobeError
from loopprobe.model import blocks
from loopprobe.model.hook_points import split_name
from loopprobe.model.looped import LoopedTransformer
from loopprobe.store.foreign import from_nanogpt

GOLDEN = Path(__file__).parent / "data" / "looped_add_L2.safetensors"
SDPA = torch.nn.functional.scaled_dot_product_attention
INJECTIONS = ("add", "multiply", "none")


def golden_model():
    tensors = load_file(GOLDEN)
    weights = {name.removeprefix("param."): t for name, t in tensors.items() if name.startswith("param.")}
    model = LoopedTransformer(
        ModelConfig(n_layers=2, d_model=32, n_heads=4, n_dims=5, n_points=11, n_ctx=23, n_loops=6)
    )
    model.double().load_state_dict(from_nanogpt(weights, GOLDEN))
    return model, tensors


def test_an_independent_implementation_is_reproduced():
    model, tensors = golden_model()
    predictions = model(tensors["xs"], tensors["ys"])
    torch.testing.assert_close(predictions, tensors["predictions"], atol=1e-10, rtol=0)


@pytest.mark.parametrize("injection", INJECTIONS)
def test_the_recurrence_written_out(injection, prompts):
    model = make_model(injection=injection, n_layers=1)
    tokens = torch.zeros(8, 12, 3, dtype=torch.float64)
    tokens[:, 0::2] = prompts.xs
    tokens[:, 1::2, 0] = prompts.ys
    e = model.read_in(tokens)
    z = {"add": torch.zeros_like(e), "multiply": torch.ones_like(e), "none": e}[injection]
    block = model.blocks[0]
    for prediction in model(prompts.xs, prompts.ys, 3):
        x = {"add": z + e, "multiply": z * e, "none": z}[injection] + model.W_pos[:12]
        h = torch.nn.functional.layer_norm(x, (16,), block.ln1.weight, block.ln1.bias)
        attended = torch.zeros_like(x)
        for head in range(2):
            attn = block.attn
            q, k, v = h @ attn.W_Q[head], h @ attn.W_K[head], h @ attn.W_V[head]
            q, k, v = q + attn.b_Q[head], k + attn.b_K[head], v + attn.b_V[head]
            scores = (q @ k.mT / 8**0.5).masked_fill(torch.ones(12, 12).triu(1).bool(), -torch.inf)
            attended = attended + scores.softmax(-1) @ v @ block.attn.W_O[head]
        x = x + attended + block.attn.b_O
        h = torch.nn.functional.layer_norm(x, (16,), block.ln2.weight, block.ln2.bias)
        h = h @ block.mlp.W_in + block.mlp.b_in
        h = 0.5 * h * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)))
        x = x + h @ block.mlp.W_out + block.mlp.b_out
        z = torch.nn.functional.layer_norm(x, (16,), model.ln_final.weight, model.ln_final.bias)
        torch.testing.assert_close((z @ model.W_U + model.b_U)[:, ::2, 0], prediction, atol=1e-12, rtol=0)


def _identity(activation, hook):
    return activation.clone()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_fused_and_hooked_computation_agree_at_every_point(dtype, tolerance, prompts):
    model = make_model(dtype)
    xs, ys = prompts.xs.to(dtype), prompts.ys.to(dtype)
    plain = model(xs, ys)
    names = list(dict.fromkeys(split_name(name)[2] for name in model.hook_dict))
    assert len(names) == 1 + 5 + 2 + 2 * 18
    for name in names:
        hooked = model.run_with_hooks(xs, ys, fwd_hooks=[(name, _identity)])
        torch.testing.assert_close(hooked, plain, atol=tolerance, rtol=0, msg=name)
    together = model.run_with_hooks(xs, ys, fwd_hooks=[(lambda name: True, _identity)])
    torch.testing.assert_close(together, plain, atol=tolerance, rtol=0)


def test_fused_and_hooked_gradients_agree(model, prompts):
    def gradients(hooks):
        model.zero_grad()
        with model.hooks(fwd_hooks=hooks):
            model(prompts.xs, prompts.ys).square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    for plain, hooked in zip(gradients([]), gradients([(lambda name: True, _identity)]), strict=True):
        torch.testing.assert_close(hooked, plain, atol=1e-10, rtol=0)


@pytest.mark.parametrize("injection", INJECTIONS)
def test_fewer_loops_are_a_prefix_of_more(injection, prompts):
    model = make_model(injection=injection)
    assert torch.equal(model(prompts.xs, prompts.ys, 3), model(prompts.xs, prompts.ys, 9)[:3])


def test_the_last_m_predictions_are_the_end_of_all(model, prompts):
    everything = model(prompts.xs, prompts.ys, 6)
    assert torch.equal(model(prompts.xs, prompts.ys, 6, keep_loops=2), everything[-2:])


def test_gradient_flows_through_the_window_only(model, prompts):
    touched = []

    def note(grad, hook):
        touched.append(hook.loop())

    with model.hooks(bwd_hooks=[("blocks.0.hook_resid_post", note)]):
        model(prompts.xs, prompts.ys, 5, grad_loops=2).sum().backward()
    assert sorted(touched) == [3, 4]


def test_a_window_of_all_loops_is_the_whole_gradient(model, prompts):
    def gradient(**window):
        model.zero_grad()
        model(prompts.xs, prompts.ys, 3, keep_loops=1, **window).sum().backward()
        return model.W_pos.grad.clone()

    assert torch.equal(gradient(), gradient(grad_loops=3))
    assert not torch.allclose(gradient(), gradient(grad_loops=2))


def test_an_ordinary_transformer_is_one_loop(prompts):
    looped = make_model(n_layers=1, injection="none", n_loops=1)
    assert looped(prompts.xs, prompts.ys).shape == (1, 8, 6)


def test_a_label_is_seen_by_later_points_only(model, prompts):
    changed = prompts.ys.clone()
    changed[:, 3] += 1
    before, after = model(prompts.xs, prompts.ys), model(prompts.xs, changed)
    assert torch.equal(before[..., :4], after[..., :4])
    assert not torch.isclose(before[-1, :, 4:], after[-1, :, 4:]).any()


def test_a_permuted_batch_gives_permuted_predictions(model, prompts):
    order = torch.randperm(8)
    torch.testing.assert_close(
        model(prompts.xs[order], prompts.ys[order]), model(prompts.xs, prompts.ys)[:, order], atol=1e-12, rtol=0
    )


def test_shorter_and_narrower_prompts_are_welcome(model, prompts):
    full = model(prompts.xs, prompts.ys)
    torch.testing.assert_close(model(prompts.xs[:, :4], prompts.ys[:, :4]), full[..., :4], atol=1e-12, rtol=0)
    padded = prompts.xs.clone()
    padded[..., 2:] = 0
    assert torch.equal(model(prompts.xs[..., :2], prompts.ys), model(padded, prompts.ys))


def test_a_hook_acts_in_its_loop_only_and_a_name_without_loop_in_all(model, prompts):
    def seen(name, n_loops):
        loops = []
        model.run_with_hooks(
            prompts.xs, prompts.ys, n_loops, fwd_hooks=[(name, lambda x, hook: loops.append(hook.loop()))]
        )
        return loops

    assert seen("loops.3.blocks.0.attn.hook_z", 7) == [3]
    assert seen("blocks.0.attn.hook_z", 7) == list(range(7))
    assert seen("hook_z", 30) == list(range(30))  # grows while the hook is attached


def test_a_hook_in_one_loop_changes_that_loop_and_later_ones(model, prompts):
    plain = model(prompts.xs, prompts.ys, 5)
    hook = ("loops.2.blocks.1.hook_mlp_out", lambda x, hook: torch.zeros_like(x))
    edited = model.run_with_hooks(prompts.xs, prompts.ys, 5, fwd_hooks=[hook])
    assert torch.equal(edited[:2], plain[:2])
    assert not torch.isclose(edited[2:], plain[2:]).any()


def test_hook_points_know_their_loop_and_layer(model):
    point = model.hook_dict["loops.2.blocks.1.attn.hook_pattern"]
    assert (point.loop(), point.layer()) == (2, 1)
    with pytest.raises(ValueError, match="no loop"):
        model.hook_embed.loop()


def test_hooks_are_gone_after_an_exception(model, prompts):
    def fail(activation, hook):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        model.run_with_hooks(prompts.xs, prompts.ys, 6, fwd_hooks=[("blocks.0.hook_resid_post", fail)])
    assert model.list_hooks() == {}
    model(prompts.xs, prompts.ys, 12)  # loops grown later do not get it either
    assert model.list_hooks() == {}


def test_hooks_added_by_hand_reach_new_loops_until_reset(model, prompts):
    calls = []
    model.add_hook("hook_z", lambda x, hook: calls.append(hook.loop()))
    model(prompts.xs, prompts.ys, 8)
    assert calls == list(range(8))
    model.reset_hooks()
    model(prompts.xs, prompts.ys, 16)
    assert calls == list(range(8))


def test_an_unknown_hook_name_is_answered_with_near_ones(model):
    with pytest.raises(LoopprobeError, match=r"blocks\.0\.hook_resid_post"):
        model.add_hook("blocks.0.hook_resid_pst", print)
    with pytest.raises(LoopprobeError, match=r"did you mean loops\.1\.blocks\.0\.hook_resid_post or loops\.1\."):
        model.add_hook("loops.1.blocks.0.hook_resid_pst", print)  # the loop that was meant, not all of them


def test_hook_points_are_no_part_of_the_weights(model):
    assert not [name for name in model.state_dict() if name.startswith("loops")]


def test_initial_weights_have_the_promised_scale():
    cfg = ModelConfig(n_layers=2, d_model=256, n_heads=4, n_points=100, n_dims=100)
    model = LoopedTransformer(cfg, torch.Generator().manual_seed(0))
    assert model.blocks[0].mlp.fc_in.weight.std().item() == pytest.approx(256**-0.5, rel=0.02)
    assert model.blocks[1].attn.out.weight.std().item() == pytest.approx(256**-0.5 / 2, rel=0.02)
    gpt2 = LoopedTransformer(ModelConfig(d_model=256, initializer_range=0.02), torch.Generator().manual_seed(0))
    assert gpt2.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert gpt2.blocks[0].mlp.fc_out.weight.std().item() == pytest.approx(0.02 / 2**0.5, rel=0.02)


@pytest.mark.parametrize(
    "sizes", [{}, {"n_dims": 20, "n_points": 41, "d_model": 256, "n_heads": 8}, {"n_dims": 30}, {"n_points": 9}]
)
def test_a_copy_head_attends_to_the_inputs_of_points_and_moves_them_to_their_labels(sizes):
    model = LoopedTransformer(ModelConfig(**sizes, copy_head=True), torch.Generator().manual_seed(0)).eval()
    xs = torch.randn(16, model.cfg.n_points, model.cfg.n_dims, generator=torch.Generator().manual_seed(1))
    cache = model.run_with_cache(xs, xs.sum(-1), n_loops=1)[1]
    pattern = cache["pattern", 0][0].mean(0).detach()  # [head, query, key]
    tokens = torch.arange(2 * model.cfg.n_points)
    to_inputs = pattern[:, tokens, tokens // 2 * 2].mean(1)
    assert to_inputs[0] > 0.4
    assert to_inputs[1:].max() < 0.2
    # what it writes at a label tells the input, to a linear map
    written = (cache["attn_z", 0][0, ..., 0, :] @ model.W_O[0, 0]).detach()[:, 1::2].flatten(0, 1)
    inputs = xs[..., : model.cfg.d_head].flatten(0, 1)
    left = inputs - written @ torch.linalg.lstsq(written, inputs).solution
    assert left.square().mean() < 0.7 * inputs.square().mean()


def test_a_copy_head_leaves_all_other_weights_as_they_were():
    plain = LoopedTransformer(ModelConfig(n_layers=2), torch.Generator().manual_seed(0)).state_dict()
    copying = LoopedTransformer(ModelConfig(n_layers=2, copy_head=True), torch.Generator().manual_seed(0)).state_dict()
    changed = {name for name, value in plain.items() if not torch.equal(value, copying[name])}
    assert changed == {"W_pos", *(f"blocks.0.attn.{name}" for name in ("qkv.weight", "qkv.bias", "out.weight"))}
    for part in range(3):  # the queries, keys and values of the other heads
        assert torch.equal(*(t["blocks.0.attn.qkv.weight"].chunk(3)[part][16:] for t in (plain, copying)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("xs", "ys", "match"),
    [
        (torch.zeros(2, 7, 3), torch.zeros(2, 7), "7 points.*at most 6"),
        (torch.zeros(2, 6, 4), torch.zeros(2, 6), "4 dimensions.*at most 3"),
        (torch.zeros(2, 6, 3), torch.zeros(2, 5), "reshape"),
        (torch.zeros(6, 3), torch.zeros(6), "reshape"),
        (torch.full((2, 6, 3), torch.nan), torch.zeros(2, 6), "36 values that are NaN or infinite"),
        (torch.zeros(2, 6, 3), torch.full((2, 6), torch.inf), "ys holds 12"),
    ],
)
def test_bad_prompts_get_one_line(xs, ys, match):
    with pytest.raises(LoopprobeError, match=match):
        make_model(torch.float32)(xs, ys)


def test_bad_loop_counts(model, prompts):
    with pytest.raises(LoopprobeError, match=r"n_loops \(0\)"):
        model(prompts.xs, prompts.ys, 0)


def test_a_transformer_lens_config_makes_a_model():
    model = LoopedTransformer(ModelConfig(**TINY).to_transformer_lens())
    assert (model.cfg.d_model, model.cfg.n_layers) == (16, 2)


def _gradients(model, prompts):
    model.zero_grad()
    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", wraps=SDPA) as fused:
        (model(prompts.xs, prompts.ys, 3)[-1] - prompts.ys).square().mean().backward()
    return fused.call_count, {name: parameter.grad for name, parameter in model.named_parameters()}


def test_attention_written_out_has_the_gradients_of_torchs(model, prompts, monkeypatch):
    written, gradients = _gradients(model, prompts)
    monkeypatch.setattr(blocks, "SHORT", prompts.ys.shape[1] * 2 - 1)
    fused, same = _gradients(model, prompts)
    assert (written, fused) == (0, 3 * 2)
    torch.testing.assert_close(gradients, same, atol=1e-12, rtol=0)


@pytest.mark.parametrize("short", [0, blocks.SHORT])
@pytest.mark.parametrize("explicit", [False, True])
def test_later_tokens_go_on_from_the_keys_and_values_of_the_earlier(explicit, short, model, prompts, monkeypatch):
    monkeypatch.setattr(blocks, "SHORT", short)
    _, cache = model.run_with_cache(prompts.xs, prompts.ys, 3)
    e, first = cache["hook_embed"], 5
    past = [(cache[2, "k", layer][:, :first], cache[2, "v", layer][:, :first]) for layer in range(2)]
    seen = []
    hooks = [("blocks.1.attn.hook_pattern", lambda pattern, hook: seen.append(pattern))] if explicit else []
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        z = model.step(cache[2, "z_pre"][:, first:], e[:, first:], 2, past)
    torch.testing.assert_close(z, cache[2, "z"][:, first:], atol=1e-12, rtol=0)
    for pattern in seen:
        torch.testing.assert_close(pattern, cache[2, "pattern", 1][:, :, first:], atol=1e-12, rtol=0)
    assert len(seen) == explicit
