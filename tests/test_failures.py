"""Failures beyond the training: courses of hand-made answers, and runs of a tiny model against its caches."""

import numpy as np
import pytest
import torch
from conftest import TINY_CFG, make_model
from sklearn.metrics import roc_auc_score

from loopprobe.dynamics.maps import LoopMap
from loopprobe.dynamics.spectrum import diagonal_blocks
from loopprobe.errors import LoopprobeError
from loopprobe.model.interventions import edited
from loopprobe.probes import failures
from loopprobe.probes.failures import BEFORE, BURST, LASTING, RECURRING, RIGHT, courses
from loopprobe.show import present, sentences
from loopprobe.store import evaluate
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.support.statistics import auc_interval
from loopprobe.tasks import held_out

LOOPS, TRAINED = 130, 4


@pytest.fixture
def batch():
    return held_out(TINY_CFG.task, 70, 6, 3)


def test_courses_are_told_from_the_loops_in_which_an_answer_is_wrong():
    wrong = np.array(
        [
            [0, 0, 0, 0, 0, 0],  # never
            [0, 0, 1, 1, 0, 0],  # in one run of loops
            [0, 1, 1, 1, 1, 1],  # from the first further loop to the end
            [0, 0, 0, 0, 0, 1],  # in the last one
            [0, 1, 0, 1, 0, 1],  # in every other one
            [0, 1, 1, 0, 0, 1],
            [1, 0, 0, 0, 0, 0],  # not right after the trained loops
            [1, 1, 0, 1, 1, 1],
        ],
        dtype=bool,
    ).T
    course, spells = courses(wrong)
    assert course.tolist() == [RIGHT, BURST, LASTING, LASTING, RECURRING, RECURRING, BEFORE, BEFORE]
    assert spells.tolist() == [0, 1, 1, 1, 3, 2, 0, 2]


def test_what_is_measured_is_that_of_the_cached_run(checkpoint, batch):
    data = failures.run(checkpoint, batch, failures.FailuresConfig(loops=LOOPS, before=3))
    outputs, cache = checkpoint.model.run_with_cache(batch.xs, batch.ys, LOOPS, names=["hook_z", "hook_embed"])
    error = batch.errors(outputs)[..., -1]
    np.testing.assert_allclose(data.error, error, rtol=1e-4)
    z = torch.stack([cache[loop, "z"] for loop in range(LOOPS)])
    query, moved = batch.query, z[1:] - z[:-1]
    step = moved[:, :, query].norm(dim=-1) / z[1:, :, query].norm(dim=-1)
    np.testing.assert_allclose(data.query_step[1:], step, rtol=2e-3, atol=1e-6)
    told = data.seen.sel
    np.testing.assert_allclose(told(sign="error"), error[TRAINED - 1], rtol=1e-4)
    np.testing.assert_allclose(told(sign="query's step"), step[TRAINED - 2], rtol=1e-3)
    whole = moved[TRAINED - 2].flatten(1).norm(dim=1) / z[TRAINED - 1].flatten(1).norm(dim=1)
    np.testing.assert_allclose(told(sign="state's step"), whole, rtol=1e-3)
    np.testing.assert_allclose(told(sign="query's input"), cache["embed"][:, query].norm(dim=-1), rtol=1e-4)
    np.testing.assert_allclose(
        told(sign="prediction's step"), batch.step(outputs[TRAINED - 1], outputs[TRAINED - 2])[:, -1], rtol=1e-3
    )
    few = batch[:2]
    blocks = diagonal_blocks(LoopMap.of(checkpoint.model, few), z[TRAINED - 1, :2])
    radii = torch.linalg.eigvals(blocks).abs().amax(-1)
    np.testing.assert_allclose(told(sign="query's radius")[:2], radii[:, query], rtol=1e-3)
    np.testing.assert_allclose(told(sign="largest radius")[:2], radii[:, : query + 1].amax(1), rtol=1e-3)


def test_onset_lead_and_signs_of_prompts_that_are_made_to_fail(checkpoint, batch, monkeypatch):
    # What is right and wrong is told by hand: errors are 0, but for some prompts in some loops.
    n_loops = [0]

    def errors(self, outputs):
        error = torch.zeros(outputs.shape)
        loop = n_loops[0]
        n_loops[0] += 1
        if 20 <= loop < 25:
            error[:30] = 1.0
        if loop >= 40:
            error[:10] = 1.0
        return error

    monkeypatch.setattr(type(batch), "errors", errors)
    monkeypatch.setattr(evaluate, "chunk_size", lambda device: 60)
    data = failures.run(checkpoint, batch[:60], failures.FailuresConfig(loops=LOOPS, before=5, spectra=False))
    assert n_loops == [LOOPS], "one batch, read once a loop"
    course = data.prompt_course.values
    assert (course[:10] == RECURRING).all()
    assert (course[10:30] == BURST).all()
    assert (course[30:] == RIGHT).all()
    np.testing.assert_allclose(data.share, [30 / 60, 20 / 60, 10 / 60, 0, 0])
    assert (data.onset[:30] == 21).all(), "loops are counted from 1"
    assert data.onset[30:].isnull().all()
    assert data.failing_loops.values.tolist() == [5 + LOOPS - 40] * 10 + [5] * 20 + [0] * 30
    assert data.spells.values.tolist() == [2] * 10 + [1] * 20 + [0] * 30
    step = data.query_step.values
    for lag in (-5, 0, 5):
        ratio = step[20 + lag, :30] / np.median(step[20 + lag, 30:])
        assert float(data.lead.sel(lag=lag)) == pytest.approx(np.median(ratio), rel=1e-5)
    assert (data.lead_prompts == 30).all()
    for sign in ("query's step", "query's input"):
        seen = data.seen.sel(sign=sign).values
        assert float(data.auc.sel(sign=sign)) == pytest.approx(roc_auc_score(np.arange(60) < 30, seen))
    assert float(data.auc.sel(sign="error")) == 0.5, "all errors are 0 after the trained loops"
    assert data.auc.sel(sign=["query's radius", "largest radius"]).isnull().all()
    limits = data.limit.values
    for i, name in enumerate(data.limit_type.values):
        share = float(data.limit_share.sel(course="one burst", limit_type=name))
        assert share == pytest.approx((limits[10:30] == i).mean())
    assert sentences.failures(data).startswith(
        "tiny: of 60 prompts that are right after 4 loops 30 fail in the following ones, 0 of them for good; "
        "what tells most beforehand is "
    )
    assert list(present.figures([data])) == ["failures", "failures-before"]
    raster = present.figures([data])["failures"].data[-1]
    assert np.shape(raster.z) == (30, LOOPS)
    np.testing.assert_allclose(np.asarray(raster.z)[0][[0, 20, 24]], [-3, 1, 1], atol=1e-6)


def test_where_nothing_fails_there_is_nothing_to_foresee(batch, monkeypatch):
    monkeypatch.setattr(type(batch), "failure_level", property(lambda self: 1e9))
    checkpoint = Checkpoint(TINY_CFG, make_model(torch.float32), name="tiny")
    data = failures.run(checkpoint, batch[:5], failures.FailuresConfig(loops=LOOPS, spectra=False))
    assert data.share.values.tolist() == [1, 0, 0, 0, 0]
    assert data.lead.isnull().all()
    assert data.auc.isnull().all()
    assert list(present.figures([data])) == ["failures"]
    assert sentences.failures(data) == ("tiny: of 5 prompts that are right after 4 loops 0 fail in the following ones.")
    assert present.table(data).row_count == 5


def test_an_answer_that_is_not_finite_is_wrong(batch):
    checkpoint = Checkpoint(TINY_CFG, make_model(torch.float32), name="tiny")

    def broken(z, hook):
        return torch.full_like(z, torch.nan)

    with edited(checkpoint.model, "readout", broken):
        data = failures.run(checkpoint, batch[:3], failures.FailuresConfig(loops=LOOPS, spectra=False))
    assert (data.prompt_course == BEFORE).all()
    assert data["median"].isnull().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loops": 100}, r"loops \(100\) must be at least 128"),
        ({"loops": 10**9}, "must be at most"),
        ({"loops": 130, "before": 0}, "before"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(LoopprobeError, match=words):
        failures.FailuresConfig(**options)


def test_the_area_under_the_curve_is_that_of_all_pairs_and_its_interval_covers():
    generator = np.random.default_rng(0)
    one, other = generator.integers(0, 6, 40).astype(float), generator.integers(-1, 5, 70).astype(float)
    area, low, high = auc_interval(one, other)
    pairs = (one[:, None] > other) + 0.5 * (one[:, None] == other)
    assert area == pytest.approx(pairs.mean())
    assert 0 < low < area < high < 1
    covered = 0
    for _ in range(400):  # two normal distributions a unit apart: Φ(1 / √2)
        _, low, high = auc_interval(generator.normal(1, 1, 25), generator.normal(0, 1, 60))
        covered += low <= 0.7602499 <= high
    assert 0.92 < covered / 400 < 0.98
    assert np.isnan(auc_interval(np.ones(1), np.zeros(9))).all()
    assert auc_interval(np.ones(5), np.zeros(9))[0] == 1
    assert np.isnan(auc_interval(np.ones(5), np.zeros(9))[1:]).all()
