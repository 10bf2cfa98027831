import numpy as np
import pytest
import torch
from conftest import TINY_CFG, make_model

from loopprobe.errors import LoopprobeError
from loopprobe.model.interventions import add, edited, freeze, mean_activations, replace, resample, skipped, swap, zero
from loopprobe.tasks import held_out


def everything(model, prompts, n_loops=4, **choice):
    return model.run_with_cache(*prompts, n_loops, **choice)


def test_ablating_all_that_is_written_leaves_the_embedding_path(model, prompts):
    with edited(model, "attn_out", zero), edited(model, "mlp_out", zero):
        predictions = model(*prompts, 3)
    e = model.embed(*prompts)
    z = torch.zeros_like(e)
    for loop in range(3):
        z = model.ln_final(z + e + model.W_pos)
        torch.testing.assert_close(predictions[loop], (z @ model.W_U + model.b_U)[:, ::2, 0], atol=1e-12, rtol=0)
    assert model.list_hooks() == {}


@pytest.mark.parametrize(
    ("name", "axes", "places", "choice"),
    [
        ("mlp_out", "batch pos", (slice(None), [1, 11]), {"positions": [1, -1]}),
        ("attn_z", "heads", (slice(None), slice(None), 1), {"heads": [1]}),
        ("result", "both", (slice(None), 3, 0), {"heads": [0], "positions": [3]}),
        ("pattern", "query", (slice(None), 1, 7), {"heads": [1], "positions": [7]}),
        ("z", "state", (slice(None), 2), {"positions": [2]}),
    ],
)
def test_an_edit_acts_at_the_chosen_places_and_nowhere_else(name, axes, places, choice, model, prompts):
    layers = {} if name == "z" else {"layers": [1]}
    short = "hook_z" if name == "z" else name
    _, clean = everything(model, prompts, names=short)
    with edited(model, name, zero, loops=[2], **layers, **choice):
        _, cache = everything(model, prompts, names=short)
    layer = None if name == "z" else 1
    for loop in (0, 1):
        assert torch.equal(cache[loop, name, layer], clean[loop, name, layer])
    expected = clean[2, name, layer].clone()
    expected[places] = 0
    assert torch.equal(cache[2, name, layer], expected)
    if layer:
        assert torch.equal(cache[2, name, 0], clean[2, name, 0])
    assert not torch.equal(cache[3, name, layer], clean[3, name, layer])
    assert model.list_hooks() == {}


def test_replacing_everything_by_another_run_gives_that_run(prompts):
    model = make_model()
    other = type(prompts)(prompts.xs.flip(0), prompts.ys.flip(0))
    predictions, cache = everything(model, other, 3)
    for name in ("z", "resid_post", "embed"):
        with edited(model, name, replace(cache)):
            patched = model(*prompts, 3)
        torch.testing.assert_close(patched, predictions, atol=1e-12, rtol=0)


def test_resampling_gives_every_prompt_the_activation_of_another(model, prompts):
    _, clean = everything(model, prompts, 2, names="mlp_out")
    with edited(model, "mlp_out", resample(torch.Generator().manual_seed(3)), loops=[0]):
        _, cache = everything(model, prompts, 2, names="mlp_out")
    match = (cache[0, "mlp_out", 0][:, None] == clean[0, "mlp_out", 0][None]).flatten(2).all(-1)
    assert match.sum(0).eq(1).all(), "every prompt is used once"
    assert match.sum(1).eq(1).all()
    assert not match.diagonal().any(), "no prompt keeps its own"
    with pytest.raises(LoopprobeError, match="at least 2"), edited(model, "mlp_out", resample()):
        model(prompts.xs[:1], prompts.ys[:1])
    assert model.list_hooks() == {}


def test_mean_ablation_puts_the_mean_over_prompts_of_every_loop(model, prompts):
    means = mean_activations(model, prompts.split(3), 4, ["mlp_out", "attn_z"])
    _, clean = everything(model, prompts)
    torch.testing.assert_close(means[2, "mlp_out", 1], clean[2, "mlp_out", 1].mean(0, keepdim=True))
    with edited(model, "attn_z", replace(means), heads=[0], loops=[1]):
        _, cache = everything(model, prompts)
    mean = clean[1, "attn_z", 0].mean(0, keepdim=True)
    torch.testing.assert_close(cache[1, "attn_z", 0][:, :, 0], mean[:, :, 0].expand(8, -1, -1))
    assert torch.equal(cache[1, "attn_z", 0][:, :, 1], clean[1, "attn_z", 0][:, :, 1])


def test_means_of_half_precision_do_not_depend_on_the_batches(model):
    model.to(torch.bfloat16)
    many = held_out(TINY_CFG.task, 2000, 6, 3).to(torch.bfloat16)
    _, clean = model.run_with_cache(*many.inputs, n_loops=2, names="z")
    exact = clean[1, "z"].double().mean(0, keepdim=True)
    for size in (7, 2000):
        mean = mean_activations(model, many.split(size), 2, "z")[1, "z"]
        assert mean.dtype == torch.bfloat16
        torch.testing.assert_close(mean.double(), exact, rtol=2**-8, atol=2**-8)


def test_adding_a_direction(model, prompts):
    direction = torch.arange(16.0)
    _, clean = everything(model, prompts)
    with edited(model, "resid_mid", add(direction, 0.5), loops=[1], layers=[0], positions=[4]):
        _, cache = everything(model, prompts)
    change = cache[1, "resid_mid", 0] - clean[1, "resid_mid", 0]
    torch.testing.assert_close(change[:, 4], (0.5 * direction.double()).expand(8, -1))
    assert change[:, :4].eq(0).all()


def test_freezing_keeps_what_was_there(model, prompts):
    _, clean = everything(model, prompts, 5)
    with edited(model, "pattern", freeze(2), layers=[1]):
        _, cache = everything(model, prompts, 5)
        _, again = everything(model, prompts, 5)  # a second run freezes its own
    for loop in (3, 4):
        assert torch.equal(cache[loop, "pattern", 1], clean[2, "pattern", 1])
        assert not torch.equal(cache[loop, "pattern", 0], clean[2, "pattern", 0])
    assert torch.equal(again[4, "z"], cache[4, "z"])
    with edited(model, "z", freeze(1)):
        predictions = model(*prompts, 5)
    torch.testing.assert_close(predictions[1:], clean[1, "readout"].expand(4, -1, -1), atol=1e-12, rtol=0)


def test_skipping_iterations_is_running_fewer(model, prompts):
    with skipped(model, [1, 3]):
        predictions = model(*prompts, 5)
    plain = model(*prompts, 3)
    assert torch.equal(predictions[[0, 2, 4]], plain)
    assert torch.equal(predictions[1], predictions[0])
    with skipped(model, [0]):
        assert torch.equal(model(*prompts, 3)[1:], plain[:2])


def test_swapping_gives_each_loop_what_the_other_wrote(model, prompts):
    _, clean = everything(model, prompts)
    with edited(model, "mlp_out", swap(clean, 1, 3)):
        _, cache = everything(model, prompts)
    for loop, other in ((0, 0), (1, 3), (3, 1)):
        assert torch.equal(cache[loop, "mlp_out", 0], clean[other, "mlp_out", 0])
    assert not torch.equal(cache[2, "mlp_out", 0], clean[2, "mlp_out", 0])  # as it comes after the first swap


def test_nothing_stays_attached_whatever_is_raised(model, prompts):
    plain = model(*prompts)
    for block in (edited(model, "mlp_out", zero), skipped(model, [0]), edited(model, "pattern", freeze(0))):
        with pytest.raises(ZeroDivisionError), block:
            model(*prompts)[0, 0, 1 // 0]
        assert model.list_hooks() == {}
        assert torch.equal(model(*prompts), plain)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"name": "mlp_out", "heads": [0]}, "mlp_out has no heads"),
        ({"name": "readout", "positions": [0]}, "readout has no positions"),
        ({"name": "embed", "loops": [0]}, "embed has no loops"),
        ({"name": "mlpout"}, "no hook point is called 'mlpout'"),
        ({"name": "attn_z", "heads": [2]}, "head 2 must be below 2"),
        ({"name": "z", "positions": [12]}, "position 12 must be below 12"),
    ],
)
def test_places_that_are_not_there_are_named(choice, message, model, prompts):
    with pytest.raises(LoopprobeError, match=message), edited(model, edit=zero, **choice):
        model(*prompts)
    assert model.list_hooks() == {}


@pytest.mark.parametrize("loops", [np.array([1, 3]), torch.tensor([1, 3]), (1, 3), slice(1, 4, 2)])
def test_loops_are_named_in_any_way(loops, model, prompts, unchecked):
    with edited(model, "mlp_out", zero, loops=loops):
        _, cache = everything(model, prompts)
    is_zero = [bool((cache[loop, "mlp_out", 0] == 0).all()) for loop in range(4)]
    assert is_zero == [False, True, False, True]
