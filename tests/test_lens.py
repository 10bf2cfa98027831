import numpy as np
import pytest
import torch
from conftest import TINY_CFG, make_model, make_token_model

from loopprobe.probes import lens
from loopprobe.probes.lens_reading import AT_ONCE, TUNED_MOST, Reading, read_sites
from loopprobe.probes.ridge import Ridge
from loopprobe.reference.baselines.closed import least_squares
from loopprobe.show import present
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.tasks import TextPrompts, held_out


def test_the_last_site_with_the_final_norm_is_the_model_itself(checkpoint):
    batch = held_out(TINY_CFG.task, 70, 6, 3)  # more than one chunk
    data = lens.run(checkpoint, batch, lens.LensConfig(loops=5, train_prompts=100))
    assert data.sizes == {"lens": 3, "loop": 5, "site": 5, "point": 6}
    assert list(data.site.values) == ["input", "0 attention", "0 MLP", "1 attention", "1 MLP"]
    with torch.no_grad():
        predictions = checkpoint.model(batch.xs, batch.ys, 5)
    own = data.sel(lens="final norm", site="1 MLP")
    squared = (predictions - batch.ys).square().numpy() / 3
    np.testing.assert_allclose(own.error, squared.mean(1), rtol=1e-4)
    np.testing.assert_allclose(own.query_error, np.median(squared[..., -1], 1), rtol=1e-4)
    assert (own.query_error_low <= own.query_error).all()
    assert (own.query_error <= own.query_error_high).all()
    to_final = (predictions - predictions[-1]).square().numpy() / 3
    np.testing.assert_allclose(own.to_final, to_final.mean(1), rtol=1e-3, atol=1e-10)
    to_best = (predictions - least_squares(batch)).square().numpy() / 3
    np.testing.assert_allclose(own.query_to_optimum, np.median(to_best[..., -1], 1), rtol=1e-4)


def test_every_site_is_read_where_it_stands(checkpoint):
    batch = held_out(TINY_CFG.task, 10, 6, 3)
    data = lens.run(checkpoint, batch, lens.LensConfig(loops=3, train_prompts=100))
    model = checkpoint.model
    _, cache = model.run_with_cache(batch.xs, batch.ys, 3)
    for site, (name, layer) in {
        "input": ("resid_pre", 0),
        "0 MLP": ("resid_post", 0),
        "1 attention": ("resid_mid", 1),
    }.items():
        x = cache[1, name, layer]
        with torch.no_grad():
            for which, answer in (("final norm", model.read_out(model.ln_final(x))), ("no norm", model.read_out(x))):
                squared = (answer[:, ::2, 0] - batch.ys).square().mean(0) / 3
                np.testing.assert_allclose(data.error.sel(lens=which, loop=2, site=site), squared, rtol=1e-4)


@pytest.mark.parametrize("vocabulary", [TUNED_MOST, TUNED_MOST + 1])
def test_a_vocabulary_of_any_size_is_read_at_every_site(vocabulary, monkeypatch):
    model = make_token_model(d_vocab=vocabulary, d_vocab_out=vocabulary)
    tokens = torch.randint(0, vocabulary, (2, 6), generator=torch.Generator().manual_seed(0))
    prompts = TextPrompts(tokens, tokens[:, -1:])
    with torch.no_grad():
        final, cache = model.run_with_cache(*prompts.inputs, n_loops=3, read_at=prompts.read_at)
        readings = []
        for at_once in (AT_ONCE, 0):  # all loops in one go, and each by itself
            monkeypatch.setattr("loopprobe.probes.lens_reading.AT_ONCE", at_once)
            readings.append(Reading(prompts, final[-1], final[-1], 0))
            read_sites(model, prompts, 3, None, readings[-1])
        expected = prompts.errors(model.unembed(model.to_state(cache[1, "resid_mid", 0]))[:, prompts.read_at])
    for reading in readings:
        assert [measures[0].shape for measures in reading.measures] == [(2, 3, 2, 1)] * 3
        torch.testing.assert_close(reading.measures[1][0][0, 1], expected)


def test_the_tuned_lens_finds_an_answer_that_stands_there_linearly():
    generator = torch.Generator().manual_seed(0)
    sites = torch.randn(2, 200, 3, 8, generator=generator)
    weights, offset = torch.randn(2, 3, 8, generator=generator), torch.tensor([1.0, -2.0, 0.5])
    target = (sites[1] * weights[1]).sum(-1) + offset  # stands at the second site, not at the first
    fits = [Ridge(1e-9)]
    for batch, answer in zip(sites.split(64, dim=1), target.split(64), strict=True):
        lens._fit(fits, answer, 0, batch)
    maps = lens._maps(fits)[0, ..., 0]
    torch.testing.assert_close(maps[1, :, :-1].float(), weights[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(maps[1, :, -1].float(), offset, atol=1e-5, rtol=0)
    other = torch.randn(500, 3, 8, generator=generator)
    read = (other.double() * maps[0, :, :-1]).sum(-1) + maps[0, :, -1]
    assert (read - offset).square().mean() < 0.2 * target.var(), "nothing is there to be read at the first site"


def test_the_tuned_lens_is_judged_on_prompts_that_it_was_not_fitted_on(checkpoint):
    batch = held_out(TINY_CFG.task, 200, 6, 3)
    data = lens.run(checkpoint, batch, lens.LensConfig(loops=3, train_prompts=30))
    assert data.attrs["train_prompts_seed"] == 1
    few = data.query_to_final.sel(lens="tuned", loop=3, site="1 attention")
    more = lens.run(checkpoint, batch, lens.LensConfig(loops=3, train_prompts=2000))
    many = more.query_to_final.sel(lens="tuned", loop=3, site="1 attention")
    assert many < few, "17 numbers from 30 prompts do not carry over as those from 2,000 do"


def test_of_an_ordinary_transformer_the_curve_goes_over_the_sites():
    checkpoint = Checkpoint(TINY_CFG, make_model(torch.float32, n_loops=1), name="runs/ordinary")
    data = lens.run(checkpoint, held_out(TINY_CFG.task, 10, 6, 3), lens.LensConfig(train_prompts=50))
    figures = present.figures([data])
    line = next(trace for trace in figures["lens"].data if trace.mode == "lines+markers")
    assert list(line.x) == ["input", "after 0 attention", "after 0 MLP", "after 1 attention", "after 1 MLP"]
    np.testing.assert_allclose(line.y, data.query_error.sel(lens="final norm", loop=1))
    assert figures["lens-by-point"].data[0].z.shape == (5, 6)
