"""Ablations are the edits by hand, and the ways to rank places are those of the probes that they come from."""

import io

import numpy as np
import pytest
import torch
import xarray as xr
from hand_built import copier
from other_model import OtherSubject, draw
from rich.console import Console
from scipy.stats import spearmanr

from loopprobe import probe
from loopprobe.errors import LoopprobeError
from loopprobe.model.interventions import edited, mean_activations, replace, resample, zero
from loopprobe.probes import ablate, attribute, patch
from loopprobe.probes.rankings import Rankings
from loopprobe.show.tables.ablate import ablate_table
from loopprobe.support.statistics import median_interval, ranks

METHODS = ("zero", "mean", "resample")


@pytest.fixture
def batch(checkpoint):
    return checkpoint.held_out(8)


def by_hand(model, batch, method, site, n_loops, **where):
    edits = {
        "zero": lambda: zero,
        "mean": lambda: replace(mean_activations(model, [batch], n_loops, [site])),
        "resample": lambda: resample(torch.Generator().manual_seed(0)),
    }
    if where.get("heads") is None:
        where.pop("heads", None)
    other = replace(donor(model, batch, site, n_loops)) if method == "resample" else edits[method]()
    with torch.no_grad(), edited(model, site, other, **where):
        return batch.errors(model(*batch.inputs, n_loops=n_loops)[-1])[:, -1].numpy()


def donor(model, batch, site, n_loops):
    """The cache of the clean run with the prompts in the order that resampling gives them."""
    shuffled = torch.randperm(batch.n_prompts, generator=torch.Generator().manual_seed(0))
    order = torch.empty_like(shuffled).scatter_(0, shuffled, shuffled.roll(1))
    return model.run_with_cache(*batch[order].inputs, n_loops=n_loops, names=[site])[1]


@pytest.mark.parametrize("subject", ["checkpoint", "other"])
@pytest.mark.parametrize("method", METHODS)
def test_effects_are_those_of_edits_by_hand(subject, method, checkpoint):
    subject = checkpoint if subject == "checkpoint" else OtherSubject()
    batch = checkpoint.held_out(8) if subject is checkpoint else draw(8)
    model, loops = subject.model, 3
    config = ablate.AblateConfig(methods=(method,), loops=loops, in_loops="2:3", agreement=False)
    data = ablate.run(subject, batch, config).isel(replaced_by=0)
    with torch.no_grad():
        clean = batch.errors(model(*batch.inputs, n_loops=loops)[-1])[:, -1].numpy()
    np.testing.assert_allclose(data.clean, clean, rtol=1e-5)
    assert data.loop.values.tolist() == [2, 3]
    for name, site, layer, head in (
        ("head 1.0", "attn_z", 1, 0),
        ("head 0.1", "attn_z", 0, 1),
        ("MLP 1", "mlp_out", 1, None),
    ):
        where = {"layers": layer, "heads": head}
        for loop in (2, 3):
            found = data.effect.sel(component=name, loop=loop) + data.clean
            np.testing.assert_allclose(
                found, by_hand(model, batch, method, site, loops, loops=[loop - 1], **where), rtol=1e-3, atol=1e-5
            )
        together = by_hand(model, batch, method, site, loops, loops=[1, 2], **where)
        np.testing.assert_allclose(data.together.sel(component=name) + data.clean, together, rtol=1e-3, atol=1e-5)
    singles = data.effect.sum("loop")
    np.testing.assert_allclose(data.synergy_median, median_interval((data.together - singles).values)[0], atol=1e-6)
    assert model.list_hooks() == {}


def test_tokens_are_ablated_one_by_one_or_at_once(checkpoint, batch):
    options = {"methods": ("zero",), "sites": ("mlp_out",), "loops": 2, "agreement": False, "positions": "query,labels"}
    one = ablate.run(checkpoint, batch, ablate.AblateConfig(**options, each_position=True))
    assert one.position.values.tolist() == [10, 1, 3, 5, 7, 9]
    found = (one.effect.sel(component="MLP 0", loop=1, position=3) + one.clean).values[0]
    where = {"loops": [0], "layers": [0]}
    expected = by_hand(checkpoint.model, batch, "zero", "mlp_out", 2, positions=[3], **where)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    all_at_once = ablate.run(checkpoint, batch, ablate.AblateConfig(**options))
    found = (all_at_once.effect.sel(component="MLP 0", loop=1) + all_at_once.clean).values[0]
    expected = by_hand(checkpoint.model, batch, "zero", "mlp_out", 2, positions="query,labels", prompts=batch, **where)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    last = ablate.run(checkpoint, batch, ablate.AblateConfig(**options | {"positions": (1,)}))
    assert (last.effect.sel(loop=2, component="MLP 1") == 0).all(), (
        "nothing later carries what another token writes last"
    )


def test_the_best_constant_is_no_worse_than_the_mean_it_starts_from(checkpoint, batch):
    options = {"methods": ("mean", "optimal"), "loops": 2, "agreement": False}
    same = ablate.run(checkpoint, batch, ablate.AblateConfig(**options, fit_steps=0), training=batch)
    np.testing.assert_allclose(same.effect[0], same.effect[1], atol=1e-6)
    found = ablate.run(checkpoint, batch, ablate.AblateConfig(**options, fit_steps=40), training=batch)
    mean, best = found["mean"].sel(replaced_by="mean"), found["mean"].sel(replaced_by="optimal")
    assert (best <= mean + 1e-6).all()
    assert (best < mean - 1e-4).any()
    assert (found.together_mean[1] <= found.together_mean[0] + 1e-6).all()


def test_the_best_constant_of_the_last_layer_is_that_of_another_search(checkpoint, batch):
    """In the last layer of one loop the constant can be searched without the model's loop."""
    model = checkpoint.model
    config = ablate.AblateConfig(methods=("optimal",), sites=("mlp_out",), layers="last", loops=1, fit_steps=1000,
                                 agreement=False, together=False)  # fmt: skip
    data = ablate.run(checkpoint, batch, config, training=batch)
    reached = float((data.clean + data.effect).mean())
    _, cache = model.run_with_cache(*batch, n_loops=1, names=["resid_mid", "mlp_out"], layers=[1])
    rest, mean = cache[0, "resid_mid", 1][:, 10], cache[0, "mlp_out", 1][:, 10].mean(0)
    vector = torch.zeros(16, requires_grad=True)
    search = torch.optim.LBFGS([vector], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        search.zero_grad()
        answer = model.unembed(model.ln_final(rest + mean + vector))
        error = batch.errors(answer[:, None].expand(-1, 6))[:, -1].mean()
        error.backward()
        return error

    search.step(loss)
    assert reached == pytest.approx(loss().item(), rel=0.05)


def test_places_are_ranked_by_the_measure_that_is_asked_for(checkpoint, batch):
    cubed = lambda outputs, prompts: outputs[..., -1] ** 3  # noqa: E731
    asked = ablate.AblateConfig(methods=("zero",), loops=3)
    data = ablate.run(checkpoint, batch, asked, measure=cubed)
    assert data.way.values.tolist() == ["zero", "patching", "attribution patching"]  # it is not linear
    moved = abs(data.effect.isel(replaced_by=0)).median("example")
    xr.testing.assert_allclose(data.importance.sel(way="zero", drop=True), moved.drop_vars("replaced_by"), rtol=1e-4)
    stiff = lambda outputs, prompts: outputs[..., -1].detach()  # noqa: E731
    assert ablate.run(checkpoint, batch, asked, measure=stiff).way.values.tolist() == ["zero", "patching"]


def test_a_way_below_the_precision_of_the_answers_is_left_out(checkpoint, batch, monkeypatch):
    tiny = lambda self, runs, clean: np.full((len(runs), clean.n_prompts), 1e-20)  # noqa: E731
    monkeypatch.setattr(Rankings, "_direct", tiny)
    data = ablate.run(checkpoint, batch, ablate.AblateConfig(methods=("zero",), loops=3))
    assert (data.way.values.tolist(), data.attrs["too_small"]) == (
        ["zero", "patching", "attribution patching"], "direct attribution",
    )  # fmt: skip
    shown = io.StringIO()
    Console(file=shown, width=400).print(ablate_table(data))
    assert "direct attribution: below the precision of the answers" in shown.getvalue()


def test_ways_to_rank_places_are_those_of_their_probes(checkpoint, batch):
    data = ablate.run(checkpoint, batch, ablate.AblateConfig(methods=METHODS, loops=3))
    assert data.way.values.tolist() == [*METHODS, "patching", "attribution patching", "direct attribution"]
    model, other = checkpoint.model, patch.corrupted_prompts(checkpoint, batch, patch.PatchConfig(corruption="weights"))
    _, clean = model.run_with_cache(*batch, n_loops=3, names=["attn_z"])
    with torch.no_grad():
        corrupted = model(*other, 3)[-1, :, -1]
        with edited(model, "attn_z", replace(clean), heads=1, loops=[1], layers=[0]):
            moved = model(*other, 3)[-1, :, -1] - corrupted
    place = {"component": "head 0.1", "loop": 2}
    importance = data.importance.sel(place)
    np.testing.assert_allclose(importance.sel(way="patching"), np.median(moved.abs()), rtol=1e-3)
    runs = patch.PatchedRuns(model, batch, other, 3, ("attn_z",), 10)
    estimate = runs.estimated("attn_z", list(range(11)))[1, 0, 1].sum(0)
    np.testing.assert_allclose(importance.sel(way="attribution patching"), estimate.abs().quantile(0.5), rtol=1e-3)
    split = attribute.run(checkpoint, batch, attribute.AttributeConfig(loops=3)).contribution.sel(place)
    np.testing.assert_allclose(importance.sel(way="direct attribution"), abs(split).median(), rtol=1e-4)
    flat = data.importance.values.reshape(6, -1)
    for i, j in ((0, 1), (1, 3), (2, 5)):
        assert float(data.rank_correlation[i, j]) == pytest.approx(spearmanr(flat[i], flat[j]).statistic, abs=1e-6)
    low, high = data.rank_correlation_low, data.rank_correlation_high
    assert (low <= high).all()
    assert {data[f"rank_correlation{end}"].units for end in ("", "_low", "_high")} == {""}
    assert ((high - low).values[~np.eye(6, dtype=bool)] > 0).all()


def test_ranks_are_those_of_scipy():
    from scipy.stats import rankdata

    values = np.random.default_rng(0).integers(0, 5, (3, 40)).astype(float)
    np.testing.assert_array_equal(ranks(values), rankdata(values, axis=-1))


def test_a_hand_built_copier_needs_both_heads_in_every_loop_and_no_mlp():
    subject = copier()
    prompts = subject.held_out(16)
    data = ablate.run(subject, prompts, ablate.AblateConfig(methods=("zero",), agreement=False, measure="probability"))
    assert (data.clean > 0.999).all()
    assert (data.effect.sel(component="MLP 0") == 0).all()
    assert (data["median"].sel(component="head 0.0") < -0.5).all(), "without the move the content is lost"
    assert data.attrs["measure"] == "probability"


def test_mistakes_are_named(checkpoint, batch):
    for options, message in (
        ({"methods": ("zero", "zero")}, "each once"),
        ({"in_loops": "9"}, "loop 9 must be from 1 and at most 4"),
        ({"heads": "7"}, "head 7 must be below 2"),
        ({"sites": ("mlp_out",), "heads": "1"}, "no site has heads"),
        ({"read_loop": 9}, r"read_loop \(9\) must be at most 4"),
        ({"measure": "margin"}, "measure 'margin' is of tokens alone"),
        ({"corruption": "token"}, r"corruption \(token\) must be weights or"),
    ):
        with pytest.raises(LoopprobeError, match=message) as error:
            probe("ablate", checkpoint, batch, **options)
        assert "\n" not in str(error.value)
    with pytest.raises(LoopprobeError, match="needs another prompt"):
        probe("ablate", checkpoint, batch[:1], methods=("resample",))
    own = type(batch)(batch.xs, batch.ys)
    with pytest.raises(LoopprobeError, match="give training="):
        probe("ablate", checkpoint, own, methods=("optimal",), agreement=False)


def test_what_few_prompts_lose_shows_as_failures_and_in_no_median():
    effect = np.array([[0.0, 0.0, 0.0, 5.0, 0.0, 0.0], [-5.0, 0.0, 0.0, 5.0, 5.0, np.nan]], np.float32)
    clean = np.array([3.0, 0.1, 0.1, 0.1, 0.1, 0.1], np.float32)
    added, low, high = ablate._failures_added(effect, clean, 1.0)
    assert np.median(effect[0]) == 0
    assert added[0] == pytest.approx(1 / 6)
    assert low[0] < 0 < high[0]
    assert np.isnan(added[1])
    again = ablate._failures_added(effect[:, :5], clean[:5], 1.0)
    np.testing.assert_allclose(again[0], [1 / 5, 2 / 5 - 1 / 5])


def test_failures_are_counted_of_errors_alone_and_paired(checkpoint, batch):
    data = probe("ablate", checkpoint, batch, methods=("zero",), in_loops="1:2", agreement=False)
    level = batch.failure_level
    for name, effect in (("failures_added", data.effect), ("together_failures_added", data.together)):
        after = (data.clean + effect > level).mean("example") - (data.clean > level).mean("example")
        np.testing.assert_allclose(data[name], after, atol=1e-12)
        assert (data[f"{name}_low"] <= data[name]).all()
        assert (data[name] <= data[f"{name}_high"]).all()
    console = Console(width=250, file=io.StringIO())
    console.print(ablate_table(data))
    assert f"more prompts have an error above {level:.2g}" in " ".join(console.file.getvalue().split())
    other = probe("ablate", checkpoint, batch, methods=("zero",), in_loops="1", agreement=False, measure="answer")
    assert not [name for name in other if "failures" in str(name)]
