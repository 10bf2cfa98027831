import numpy as np
import pytest
import torch
from conftest import TINY_CFG, make_model

from loopprobe.model.interventions import edited, zero
from loopprobe.probes import attribute
from loopprobe.show import present
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.tasks import held_out


@pytest.mark.parametrize("injection", ["add", "multiply", "none"])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_contributions_sum_to_the_prediction(injection, n_layers, prompts):
    model = make_model(injection=injection, n_layers=n_layers)
    contribution, initial, prediction = attribute.contributions(model, prompts, 4)
    assert contribution.shape == (4, len(attribute.components(model)), 8)
    expected = model(*prompts, 4)[-1, :, -1].detach()
    torch.testing.assert_close(prediction, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(contribution.sum((0, 1)) + initial + model.b_U, expected, atol=1e-10, rtol=0)


def test_a_dataset_says_how_much_each_part_is(checkpoint):
    batch = held_out(TINY_CFG.task, 70, 6, 3)
    data = attribute.run(checkpoint, batch, attribute.AttributeConfig(loops=3))
    total = data.contribution.sum(("loop", "component")) + data.initial + data.offset
    np.testing.assert_allclose(total, data.prediction, atol=1e-5)
    with_ends = (data.initial + data.offset) * data.prediction
    share_of_ends = float(with_ends.sum() / (data.prediction**2).sum())
    assert float(data.share.sum()) + share_of_ends == pytest.approx(1, abs=1e-5)
    assert (data.low <= data.share).all()
    assert (data.share <= data.high).all()


def one_head_model():
    """One layer whose head 1 averages the labels before the query and writes them where they are read."""
    model = make_model(n_layers=1, n_dims=1, d_model=16, n_heads=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.read_in.weight[0, 0] = 1  # both kinds of token are read in at coordinate 0 …
        model.read_in.weight[14, 0] = -1  # … and balanced, so that the norm's mean does not see them
        model.W_pos[1::2, 1] = 1  # labels are marked in coordinate 1
        model.W_pos[:, 15] = (
            100  # nearly all of the variance, so that the norm's scale is nearly the same for all tokens
        )
        block = model.blocks[0]
        for norm in (block.ln1, block.ln2, model.ln_final):
            norm.weight.fill_(1)
        block.attn.qkv.weight[8, 15] = 0.6  # head 1 asks …
        block.attn.qkv.weight[16 + 8, 1] = 300  # … for the mark of labels
        block.attn.qkv.weight[32 + 9, 0] = 1  # and takes their coordinate 0
        block.attn.out.weight[2, 9] = 50  # to coordinate 2, which is read
        model.read_out.weight[0, [2, 13]] = torch.tensor([1.0, -1.0], dtype=torch.float64)  # against one never written
    return model


def test_a_head_that_does_everything_has_all_of_the_prediction():
    model = one_head_model()
    checkpoint = Checkpoint(TINY_CFG, model, name="runs/one-head")
    generator = torch.Generator().manual_seed(0)
    batch = type(held_out(TINY_CFG.task, 1, 6, 1))(
        torch.randn(40, 6, 1, generator=generator, dtype=torch.float64),
        torch.randn(40, 6, generator=generator, dtype=torch.float64),
    )
    predictions, cache = model.run_with_cache(batch.xs, batch.ys, 1, names=["pattern"])
    assert cache[0, "pattern", 0][:, 1, 10, 1:11:2].sum(-1).min() > 0.99  # it attends to the labels
    mean_label = batch.ys[:, :-1].mean(1)
    assert np.corrcoef(predictions[0, :, -1], mean_label)[0, 1] > 0.99
    data = attribute.run(checkpoint, batch, attribute.AttributeConfig(loops=1))
    [bars] = present.figure(data).data
    assert dict(zip(bars.x, bars.y, strict=True))["head 0.1"] == pytest.approx(1, abs=0.02)
    share = data.share.isel(loop=0)
    assert share.sel(component="head 0.1") == pytest.approx(1, abs=0.02)
    assert share.sel(component="head 0.0") == 0
    assert share.sel(component="MLP 0") == 0
    with torch.no_grad(), edited(model, "attn_z", zero, heads=[1]):
        silent = model(batch.xs, batch.ys, 1)[0, :, -1]
    assert silent.square().mean() < 1e-3 * predictions[0, :, -1].square().mean()
