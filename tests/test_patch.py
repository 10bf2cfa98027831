import numpy as np
import pytest
import torch
from conftest import TINY_CFG

from loopprobe.errors import LoopprobeError
from loopprobe.model.interventions import edited, replace
from loopprobe.probes import patch as probe
from loopprobe.show.tables.inside import patch_table
from loopprobe.tasks import held_out
from loopprobe.tasks.corruptions import corrupt

SITES = ("z", "z_pre", "resid_mid", "attn_out", "mlp_out", "q", "k", "v", "attn_z")


@pytest.fixture
def batch():
    return held_out(TINY_CFG.task, 9, 6, 3)


def corrupted_as_probe(batch, kind, **options):
    return corrupt(batch, kind, torch.Generator().manual_seed(2**33), **options)


@pytest.mark.parametrize("site", SITES)
def test_every_patch_is_that_of_a_whole_run(site, checkpoint, batch):
    data = probe.run(checkpoint, batch, probe.PatchConfig(sites=(site,), loops=3))
    model, other = checkpoint.model, corrupted_as_probe(batch, "weights")
    clean, cache = model.run_with_cache(batch.xs, batch.ys, 3)
    with torch.no_grad():
        corrupted = model(other.xs, other.ys, 3)[-1, :, -1]
    total = (clean[-1, :, -1] - corrupted).numpy()
    np.testing.assert_allclose(data.clean - data.corrupted, total, atol=1e-5)
    places = [(0, 0, 1), (1, 4, 0), (2, 10, 1), (1, 10, 1), (0, 3, 0)]  # loop, position, head
    for loop, position, head in places:
        layers = [None] if site in ("z", "z_pre") else [0, 1]
        for layer in layers:
            heads = {"heads": [head]} if site in probe.BY_HEAD else {}
            where = {"loops": [loop], "positions": [position]} | ({} if layer is None else {"layers": [layer]}) | heads
            with torch.no_grad(), edited(model, site, replace(cache), **where):
                moved = (model(other.xs, other.ys, 3)[-1, :, -1] - corrupted).numpy()
            found = data[f"{site}_moved"].sel(loop=loop + 1, position=position)
            found = found if layer is None else found.sel(layer=layer)
            found = found.sel(head=head) if heads else found
            np.testing.assert_allclose(found, moved, atol=2e-5)
            effect = data[site].sel(loop=loop + 1, position=position)
            effect = effect if layer is None else effect.sel(layer=layer)
            effect = effect.sel(head=head) if heads else effect
            np.testing.assert_allclose(effect, (moved * total).sum() / (total**2).sum(), atol=1e-4)
    assert model.list_hooks() == {}


def test_prompts_of_every_kind_are_corrupted_by_one_function(token_checkpoint):
    prompts = token_checkpoint.held_out(8)
    changed = corrupt(prompts, "token", torch.Generator().manual_seed(0))
    assert changed.tokens.ne(prompts.tokens).sum(1).eq(1).all()
    assert changed.answers[:, -1].ne(prompts.answers[:, -1]).all()
    with pytest.raises(LoopprobeError, match=r"corruption \('label'\) must be token or prompt"):
        corrupt(prompts, "label", torch.Generator())


def test_some_loops_are_patched_as_all_are(checkpoint, batch):
    options = {"sites": ("z", "attn_z"), "loops": 4, "positions": "8:10"}
    every = probe.run(checkpoint, batch, probe.PatchConfig(**options))
    some = probe.run(checkpoint, batch, probe.PatchConfig(**options, in_loops="2,last"))
    assert some.loop.values.tolist() == [2, 4]
    assert some.attrs["patches"] == every.attrs["patches"] / 2
    for name in ("z", "z_attribution", "attn_z", "attn_z_low", "attn_z_moved"):
        np.testing.assert_allclose(some[name], every[name].sel(loop=[2, 4]), atol=1e-6)
    assert str(some.loop.values[0]) in {cell for cell in patch_table(some).columns[1].cells}
    with pytest.raises(LoopprobeError, match="loop"):
        probe.check(checkpoint, probe.PatchConfig(corruption="label", loops=4, in_loops="5"), batch)


def test_patching_what_is_read_gives_the_clean_run_and_what_is_not_gives_nothing(checkpoint, batch):
    data = probe.run(checkpoint, batch, probe.PatchConfig(sites=("z", "resid_post"), loops=4))
    last = data.sel(loop=4)
    np.testing.assert_allclose(last.z.sel(position=10), 1, atol=1e-5)
    np.testing.assert_allclose(last.resid_post.sel(layer=1, position=10), 1, atol=1e-5)
    np.testing.assert_allclose(last.z.sel(position=slice(0, 9)), 0, atol=1e-6)


def test_attribution_patching_is_exact_where_the_rest_is_linear(checkpoint, batch):
    data = probe.run(checkpoint, batch, probe.PatchConfig(sites=("z",), loops=4))
    np.testing.assert_allclose(data.z_attribution.sel(loop=4), data.z.sel(loop=4), atol=1e-5)
    exact, estimate = (data[name].values.ravel() for name in ("z", "z_attribution"))
    assert data.attrs["correlation_z"] == pytest.approx(np.corrcoef(exact, estimate)[0, 1], abs=1e-6)
    assert data.attrs["correlation_z"] < 0.9999, "loops before the last are not linear"
    assert not np.allclose(data.z_attribution.sel(loop=1), data.z.sel(loop=1), atol=1e-3)


def test_attribution_alone_runs_no_patch(checkpoint, batch):
    options = {"sites": ("attn_z", "mlp_out"), "loops": 3, "positions": (4, 10)}
    quick = probe.run(checkpoint, batch, probe.PatchConfig(exact=False, **options))
    assert quick.attrs["patches"] == 0
    assert set(quick.data_vars) == {"clean", "corrupted", "attn_z_attribution", "mlp_out_attribution"}
    full = probe.run(checkpoint, batch, probe.PatchConfig(**options))
    np.testing.assert_allclose(quick.attn_z_attribution, full.attn_z_attribution, atol=1e-6)
    assert full.attrs["patches"] == 3 * 2 * (2 * 2 + 2)  # loops, layers, positions by heads and positions


def test_a_token_before_the_first_that_differs_moves_nothing(checkpoint, batch):
    data = probe.run(checkpoint, batch, probe.PatchConfig(corruption="label", example=2, sites=("z",), loops=3))
    assert data.attrs["patches"] == 3 * (11 - 5)  # from the label of the third example on
    assert (data.z_moved.sel(position=slice(0, 4)) == 0).all()
    assert (data.z_attribution.sel(position=slice(0, 4)) == 0).all()


def test_corruptions_change_one_thing(batch):
    label = corrupted_as_probe(batch, "label", example=2)
    assert torch.equal(label.xs, batch.xs)
    assert (label.ys != batch.ys).nonzero()[:, 1].unique().tolist() == [2]
    weights = corrupted_as_probe(batch, "weights")
    assert torch.equal(weights.xs, batch.xs)
    slopes = torch.linalg.lstsq(weights.xs.double(), weights.ys.double()[..., None]).solution
    torch.testing.assert_close((weights.xs.double() @ slopes)[..., 0], weights.ys.double(), atol=1e-5, rtol=0)
    query = corrupted_as_probe(batch, "query")
    assert (query.xs != batch.xs).any(-1).nonzero()[:, 1].unique().tolist() == [5]
    noise = corrupted_as_probe(batch, "noise", noise_std=0.1)
    assert 0.05 < (noise.ys - batch.ys)[:, :-1].std() < 0.2
    assert torch.equal(noise.ys[:, -1], batch.ys[:, -1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruption": "label", "example": 5}, "example \\(5\\) must be from 0 to 4"),
        ({"positions": (11,)}, "position 11 must be at most 10"),
        ({"sites": ()}, "must not be empty"),
    ],
)
def test_mistakes_are_named(options, message, checkpoint):
    with pytest.raises(LoopprobeError, match=message):
        probe.check(checkpoint, probe.PatchConfig(**options), checkpoint.held_out(2))
