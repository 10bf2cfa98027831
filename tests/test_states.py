import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_CFG, make_model
from other_model import OtherSubject, draw

from loopprobe import load_checkpoint
from loopprobe.dynamics.limits import Limit
from loopprobe.errors import LoopprobeError
from loopprobe.probes import converge as probe
from loopprobe.probes.states import follow_states
from loopprobe.show import present
from loopprobe.show.tables.inside import limits_models_table, limits_table
from loopprobe.show.tables.plain import lines_of
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.tasks import held_out

CONFIG = probe.ConvergeConfig(loops=40, states=5, far=400)


@pytest.fixture
def batch():
    return held_out(TINY_CFG.task, 70, 6, 3)


def settled_checkpoint():
    """A model whose loop contracts: nothing of the state comes through but a small part."""
    model = make_model(torch.float32)
    with torch.no_grad():
        model.ln_final.weight *= 0.02
        model.ln_final.bias *= 0.02
    return Checkpoint(TINY_CFG, model, name="runs/settled")


def test_a_loop_that_contracts_is_followed_to_its_fixed_point(batch):
    checkpoint = settled_checkpoint()
    data = probe.run(checkpoint, batch, CONFIG)
    assert data.sizes["example"] == 70
    assert data.sizes["followed"] == 5
    assert (data.limit == Limit.FIXED).all()
    assert (data.prediction_limit == Limit.FIXED).all()
    for name in ("to_limit", "approach_factor", "approach_exponent", "prediction_to_limit"):
        assert data[name].isnull().all(), "it has arrived"
    assert (data.spectral_radius < 1).all()
    assert (data.state_settled < 30).all()
    np.testing.assert_allclose(data.followed_error, data.error.isel(example=slice(0, 5)), rtol=1e-5)
    _, cache = checkpoint.model.run_with_cache(batch.xs[:5], batch.ys[:5], 40, names=["hook_z"])
    z = cache.stack("z")
    steps = (z[1:] - z[:-1]).norm(dim=-1)
    np.testing.assert_allclose(data.state_step[1:], steps, atol=1e-5)
    np.testing.assert_allclose(data.relative_step[1:], steps / z[1:].norm(dim=-1), atol=1e-5)
    assert (data.decimals_to_limit.isel(loop=-1) > 4).all()


def test_the_slowest_token_up_to_a_token_sets_its_rate(batch):
    checkpoint = settled_checkpoint()
    with torch.no_grad():
        checkpoint.model.ln_final.weight *= 20  # slow enough that a rate can be fitted
    data = probe.run(checkpoint, batch, CONFIG)
    known = data.rate.notnull()
    assert known.sum() > 10
    slowest = np.maximum.accumulate(data.spectral_radius.values, axis=1)
    np.testing.assert_allclose(data.rate.values[known], slowest[known.values], atol=0.12)


def at(point):
    """The points of a name in every loop."""
    return re.compile(rf"loops\.\d+\.hook_{point}").fullmatch


def test_a_loop_that_is_slowed_down_approaches_its_fixed_point(batch):
    checkpoint = settled_checkpoint()
    before = [torch.zeros(5, 12, 16)]
    note = lambda z, hook: before.__setitem__(0, z.detach())  # noqa: E731
    slow = lambda z, hook: before[0] + 0.005 * (z - before[0])  # noqa: E731  a damped iteration, of factor about 0.995
    few = type(batch)(batch.xs[:5], batch.ys[:5], batch.origin)
    with checkpoint.model.hooks(fwd_hooks=[(at("z_pre"), note), (at("z"), slow)]):
        data = probe.run(checkpoint, few, probe.ConvergeConfig(loops=20, states=5, far=600))
    assert (data.limit == Limit.APPROACHING).all()
    np.testing.assert_allclose(data.approach_factor, 0.995, atol=1e-3)
    assert ((data.to_limit > 0.01) & (data.to_limit < 0.2)).all(), "0.995 ** 600 is 0.05"
    assert "approach a point" in limits_table(data).caption


def test_a_loop_that_diverges_is_reported(batch):
    model = make_model(torch.float32)

    before = [torch.zeros(5, 12, 16)]
    note = lambda z, hook: before.__setitem__(0, z.detach())  # noqa: E731
    grow = lambda z, hook: z + 1.2 * before[0]  # noqa: E731  the norm of a loop bounds its state: grown from outside
    checkpoint = Checkpoint(TINY_CFG, model, name="runs/growing")
    few = type(batch)(batch.xs[:5], batch.ys[:5], batch.origin)
    with model.hooks(fwd_hooks=[(at("z_pre"), note), (at("z"), grow)]):
        data = follow_states(checkpoint, few, loops=20, far=200, tolerance=1e-3)
    assert (data.limit == Limit.DIVERGED).all()
    assert data.rate.isnull().all()


def test_figures_and_table_of_what_was_followed(batch):
    data = probe.run(settled_checkpoint(), batch, CONFIG)
    made = present.figures([data])
    assert set(made) == {"converge", "converge-failures", "converge-moves", "converge-limits"}
    for figure in made.values():
        assert any(np.isfinite(np.array(trace.y, float)).any() for trace in figure.data)
    [first, *_] = limits_table(data).columns[1].cells
    assert first.startswith(f"1 [{0.025 ** (1 / 5):.3g}")  # all of five prompts


def test_the_numbers_of_limits_have_their_words_beside_them(batch):
    data = probe.run(settled_checkpoint(), batch, CONFIG)
    for name in ("limit", "prediction_limit"):
        words = np.array(data[name].attrs["flag_meanings"].split())
        assert len(words) == len(data[name].attrs["flag_values"]) == len(Limit)
        assert (words[data[name]] == "fixed_point").all()
        assert [words[kind].replace("_", " ") for kind in Limit] == [kind.words for kind in Limit]


def test_a_radius_that_cannot_be_had_says_why_and_no_table_shows_nan(batch):
    both_ways = OtherSubject()
    uncached = load_checkpoint(f"{Path(__file__).with_name('own_models.py')}:made")
    for subject, prompts, why in (
        (both_ways, draw(4), "tokens see later ones"), (uncached, uncached.held_out(4), "keeps no keys and values"),
    ):  # fmt: skip
        data = probe.run(subject, prompts, probe.ConvergeConfig(loops=10, states=2, far=200))
        assert data.spectral_radius.isnull().all()
        assert why in data.spectral_radius.attrs["missing"]
        table = limits_models_table([data])
        assert why in table.caption
        assert "radius:" not in table.caption, "the column holds nothing"
        assert list(table.columns[-1].cells) == ["–"]
        shown = [limits_table(data), table, *present.tables_for([data])]
        assert "nan" not in " ".join(f"{one.caption} {lines_of(one)}" for one in shown)
        drawn = present.figures([data])["converge-limits"]
        assert [trace.opacity for trace in drawn.data if trace.xaxis == "x3"] == [0], (
            "a panel without a trace has no axes"
        )
        text = " ".join(one.text.replace("<br>", " ") for one in drawn.layout.annotations)
        assert data.spectral_radius.attrs["missing"] in text
    assert "missing" not in probe.run(settled_checkpoint(), batch, CONFIG).spectral_radius.attrs


@pytest.mark.parametrize(
    ("options", "message"),
    [({"tolerance": 1e-7}, "noise of float32"), ({"states": 2, "far": 100}, "far \\(100\\)")],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(LoopprobeError, match=message):
        probe.ConvergeConfig(loops=200, **options)
