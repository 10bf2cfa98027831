"""The types of limit: controls of the calibration, and maps that it knows nothing of."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from conftest import needs_peak, run_script

from loopprobe.dynamics import limits
from loopprobe.dynamics.calibration import (
    RECORD,
    calibrate,
    code_digest,
    compute_thresholds,
    confusion,
    control_errors,
    controls,
)
from loopprobe.dynamics.limits import Limit, classify, features, to_limit
from loopprobe.dynamics.maps import PointwiseMap, contraction, linear_map, logistic, rotation, spiral
from loopprobe.dynamics.trail import LAGS, STAGES, WINDOW, Trail, run_late


def start(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def judged(trail, dtype=torch.float64):
    """The types and periods of a trail, and its distances from the limit, factors and exponents."""
    measured = features(trail)
    limit, period = classify(measured, calibrate(dtype))
    return limit, period, to_limit(measured, limit, calibrate(dtype))


def over_time(function, n_values):
    """A series that is a function of time from 1, of two places with the values f and −f."""
    values = function(torch.arange(1, n_values + 1, dtype=torch.float64))
    return Trail.of(values[:, None, None, None] * torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_control_is_classified_as_what_it_is(dtype):
    for control in controls(3, dtype):
        found, periods, _ = judged(run_late(control.system, 1500)[0], dtype)
        assert found.eq(control.limit).all(), f"{control.limit.words}: {found.unique()}"
        assert periods.eq(control.period).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_recorded_thresholds_and_mistakes_are_those_of_the_controls(dtype):
    recorded, computed = calibrate(dtype), compute_thresholds(dtype)
    for name, value in dataclasses.asdict(computed).items():
        # rounding, which differs between machines, is all that the first one is
        rtol = 1 if name == "fixed" else 0.05
        np.testing.assert_allclose(getattr(recorded, name), value, rtol=rtol, err_msg=name)
    table = confusion(recorded, dtype)
    assert table.shape == (len(Limit), len(Limit))
    np.testing.assert_allclose(table.sum(1), 1)
    np.testing.assert_allclose(control_errors(dtype), 1 - table.diagonal(), atol=0.02)
    assert table.diagonal().min() > 0.95


def test_the_record_is_of_the_code_that_is_here():
    assert json.loads(RECORD.read_text())["code"] == code_digest(), "run python benchmarks/calibration.py"


def test_a_slow_contraction_approaches_its_point_and_then_is_there():
    system = contraction(0.999, start(4, 2, 8).float(), torch.Generator().manual_seed(0))
    early, _, (distance, factor, _) = judged(run_late(system, 2000)[0], torch.float32)
    assert (early == Limit.APPROACHING).all()
    torch.testing.assert_close(factor, torch.full_like(factor, 0.999), atol=1e-4, rtol=0)
    assert ((distance > 0.01) & (distance < 1)).all()
    late, _, (distance, *_) = judged(run_late(system, 30_000)[0], torch.float32)
    assert (late == Limit.FIXED).all()
    assert distance.isnan().all()


def logistic_at(r):
    start = torch.linspace(0.2, 0.8, 6, dtype=torch.float64)[:, None, None]
    return logistic(start, r)


def not_normal(*eigenvalues):
    """A linear map with these eigenvalues, whose eigenvectors are far from orthogonal, and its fixed point."""
    n = len(eigenvalues)
    basis = start(n, n, seed=1) + 2
    matrix = basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ torch.linalg.inv(basis)
    offset = start(n, seed=2)
    point = torch.linalg.solve(torch.eye(n, dtype=torch.float64) - matrix, offset)
    return linear_map(matrix, offset, start(4, 2, n)), point


def turning(factor, angle):
    """A linear map that turns along an ellipse towards its fixed point."""
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    basis, offset = torch.tensor([[1.0, 0.4], [0.0, 0.6]], dtype=torch.float64), start(2, seed=2)
    matrix = factor * basis @ turn @ torch.linalg.inv(basis)
    point = torch.linalg.solve(torch.eye(2, dtype=torch.float64) - matrix, offset)
    return linear_map(matrix, offset, start(4, 2, 2)), point


ZERO = torch.tensor(0.0, dtype=torch.float64)
APPROACHES = {
    "logistic at 3": (logistic_at(3.0), torch.tensor(2 / 3, dtype=torch.float64), 0.02, 0.5),
    "logistic just below 3": (logistic_at(2.999), torch.tensor(1 - 1 / 2.999, dtype=torch.float64), 0.02, None),
    "logistic at 1": (logistic_at(1.0), ZERO, 0.02, 1.0),
    "not normal": (*not_normal(0.999, 0.9, 0.5, -0.3), 0.02, None),
    "not normal, near -1": (*not_normal(-0.9995, 0.9, 0.5, -0.3), 0.02, None),
    "two slow modes": (*not_normal(0.9995, 0.998, 0.5, -0.3), 0.65, None),
    "factor 0.9999": (*not_normal(0.9999, 0.9, 0.5, -0.3), 0.02, None),
    "slow turns": (*turning(0.9995, 0.1), 0.02, None),
    "fast turns": (*turning(0.999, 2.0), 0.02, None),
    "descent on a quartic": (PointwiseMap(start(4, 2, 1), lambda z: z - 0.05 * z**3), ZERO, 0.15, 0.5),
    "overshooting on a quartic": (PointwiseMap(start(4, 2, 6), lambda z: -z + 0.05 * z**3), ZERO, 0.02, 0.5),
    "saddle and node of a circle map": (
        PointwiseMap(
            start(4, 2, 1).sigmoid() / 4, lambda z: z + 0.02 * (1 - torch.cos(2 * math.pi * (z - 0.5))) / (2 * math.pi)
        ),
        torch.tensor(0.5, dtype=torch.float64), 0.15, 1.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", APPROACHES)
def test_maps_that_approach_a_point_do_so_and_the_distance_is_right(name):
    system, point, tolerance, exponent = APPROACHES[name]
    trail, _ = run_late(system, 2000)
    limit, period, (distance, factor, exponents) = judged(trail)
    assert (limit == Limit.APPROACHING).all()
    assert (period == 0).all()
    size = trail.last.square().sum(-1).mean(0).sqrt()
    torch.testing.assert_close(distance, (trail.last[-1] - point).norm(dim=-1) / size, rtol=tolerance, atol=0)
    if exponent is not None:
        torch.testing.assert_close(exponents, torch.full_like(exponents, exponent), rtol=0.25, atol=0)
    assert (factor.isnan() != exponents.isnan()).all(), "geometric or a power"


@pytest.mark.parametrize(("exponent", "tolerance"), [(0.3, 0.15), (0.5, 0.06), (1.0, 0.02), (3.0, 0.02)])
@pytest.mark.parametrize("n_values", [500, 2000, 20_000])
def test_powers_of_time_have_their_exponent_and_their_limit(exponent, tolerance, n_values):
    if exponent == 3.0 and n_values == 20_000:
        pytest.skip("it has arrived")
    limit, _, (distance, factor, found) = judged(over_time(lambda t: 1 + t**-exponent, n_values))
    assert (limit == Limit.APPROACHING).all()
    assert factor.isnan().all()
    torch.testing.assert_close(found, torch.full_like(found, exponent), atol=0.06, rtol=0)
    torch.testing.assert_close(distance, torch.full_like(distance, n_values**-exponent), rtol=tolerance, atol=0)


def test_what_grows_without_end_is_no_approach_however_slow():
    for function in (torch.log, torch.sqrt, lambda t: t**0.2, lambda t: (t + 1000).log(), lambda t: 1e-3 * t + 5):
        limit, *_ = judged(over_time(function, 2000))
        assert (limit == Limit.DRIFT).all()


def test_one_over_the_logarithm_is_where_it_can_no_longer_be_told():
    limit, _, (distance, _, exponent) = judged(over_time(lambda t: 1 + 1 / t.log().clamp_min(0.5), 20_000))
    assert (limit == Limit.APPROACHING).all()
    assert ((exponent >= 0.25) & (exponent <= 0.45)).all()
    true = 1 / math.log(20_000)
    assert ((distance > 0.25 * true) & (distance < 0.5 * true)).all(), "too near, as the documentation says"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("period", [77, 200, 509])
def test_cycles_that_are_longer_than_the_window_have_their_period(period, dtype):
    turned = rotation(1 / period, start(4, 2, 4).to(dtype), shrink=0.8)
    limit, periods, _ = judged(run_late(turned, 2000)[0], dtype)
    assert (limit == Limit.CYCLE).all()
    assert (periods == period).all()
    bent = PointwiseMap(turned.initial, lambda z: torch.sinh(turned.function(torch.asinh(z))))
    limit, periods, _ = judged(run_late(bent, 2000)[0], dtype)
    assert (limit == Limit.CYCLE).all()
    assert (periods == period).all()


def test_a_period_that_doubles_slowly_is_the_period_that_is_left():
    starts = torch.tensor([0.2, 0.3, 0.7, 0.8], dtype=torch.float64)[:, None, None]  # not too near to where it leads
    limit, period, _ = judged(run_late(logistic(starts, 1 + 6**0.5), 8000)[0])
    assert (limit == Limit.CYCLE).all()
    assert (period == 2).all()
    limit, period, _ = judged(run_late(logistic_at(3.5), 2000)[0])
    assert (limit == Limit.CYCLE).all()
    assert (period == 4).all()


def circle(turns, strength):
    angles = torch.linspace(0.05, 0.9, 6, dtype=torch.float64)[:, None, None]
    return PointwiseMap(angles, lambda z: (z + turns + strength / (2 * math.pi) * torch.sin(2 * math.pi * z)) % 1)


def test_circle_maps_lock_or_never_return():
    locked, period, _ = judged(run_late(circle(0.5, 0.9), 2000)[0])
    assert (locked == Limit.CYCLE).all()
    assert (period == 2).all()
    free, *_ = judged(run_late(circle((5**0.5 - 1) / 2 * 0.9, 0.5), 2000)[0])
    assert (free == Limit.UNSETTLED).all()


@pytest.mark.parametrize("factor", [1.0003, 1.00003, 1.000003])
def test_an_oscillation_that_grows_slowly_is_neither_a_cycle_nor_a_point(factor):
    limit, period, _ = judged(run_late(spiral(factor, 1 / 7, start(2, 2, 4)), 2000)[0])
    assert (limit == Limit.UNSETTLED).all()
    assert (period == 0).all()


def test_a_cycle_whose_growth_ends_is_a_cycle():
    growing = run_late(logistic_at(3.003), 1000)[0]
    assert (features(growing).approach.swells[0] > calibrate(torch.float64).swells).any(), "it grows yet"
    limit, *_ = judged(growing)
    assert (limit == Limit.CYCLE).all()


def test_chaos_is_unsettled_in_every_entry_alone():
    starts = torch.rand(20, 30, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for r in (3.6, 3.9):
        limit, *_ = judged(run_late(logistic(starts, r), 2000)[0])
        assert (limit == Limit.UNSETTLED).all()


def test_short_runs_are_judged_by_what_can_be_told():
    system, _ = not_normal(0.98, 0.5, 0.3, 0.1)
    for n_loops in (128, 200, 256, 400):
        limit, *_ = judged(run_late(system, n_loops)[0])
        assert not limit.eq(Limit.CYCLE).any()
    assert (limit == Limit.APPROACHING).all(), "from 256 loops on"
    limit, period, _ = judged(run_late(rotation(1 / 5, start(2, 2, 4), shrink=0.5), 128)[0])
    assert (limit == Limit.CYCLE).all()
    assert (period == 5).all()


@pytest.mark.parametrize("n_values", [128, 200, 300, 2000, 3001])
def test_a_trail_keeps_means_movement_and_distances(n_values):
    x = start(n_values, 2, 3, 4).cumsum(0)
    trail = Trail.of(x)
    assert torch.equal(trail.last, x[-128:])
    place = torch.arange(2 * trail.part, dtype=torch.float64) + 0.5
    weight = torch.sin(math.pi * place / (2 * trail.part)).square()
    for stage in range(STAGES):
        first = trail.start + stage * trail.part
        part = x[first : first + 2 * trail.part]
        mean = torch.einsum("i,i...->...", weight, part) / weight.sum()
        torch.testing.assert_close(trail.base + trail.means[stage], mean)
        for row, lag in enumerate(LAGS):
            skipped = max(lag - first, 0)
            moved = (part[skipped:] - x[first + skipped - lag : first + 2 * trail.part - lag]).square().sum(-1)
            mean = torch.einsum("i,i...->...", weight[skipped:], moved) / weight[skipped:].sum()
            torch.testing.assert_close(trail.movement[row, stage], mean.sqrt())
    origin = n_values - trail.reach - 1
    torch.testing.assert_close(trail.away, (x[origin + 1 :] - x[origin]).norm(dim=-1))
    with pytest.raises(ValueError, match="too short"):
        Trail(100)


def test_the_late_run_is_the_end_of_the_run():
    system = rotation(0.1, start(2, 3, 4))
    states, read = run_late(system, 200)
    z = system.initial
    for _ in range(200):
        z = system.step(z)
    assert torch.equal(states.last[-1], z)
    assert torch.equal(read.last[-1], z[..., 0])


SCRIPT = """
import sys
import torch
from conftest import peak_memory
from loopprobe.dynamics.maps import PointwiseMap
from loopprobe.dynamics.trail import run_late

system = PointwiseMap(torch.randn(16, 62, 64), lambda z: 0.9 * z)
run_late(system, 200)
before = peak_memory()
run_late(system, int(sys.argv[1]))
print(peak_memory() - before)
"""


@pytest.mark.slow
@needs_peak
def test_memory_does_not_grow_with_the_loops():
    state = 16 * 62 * 64 * 4
    assert int(run_script(SCRIPT, 12_000)) - int(run_script(SCRIPT, 2000)) < 20 * state


def test_a_run_as_short_as_the_window_takes_no_start_for_a_drift():
    """A series that comes to rest within the window is at its point; one that still moves is not said to drift."""
    steps = torch.arange(WINDOW, dtype=torch.float64)[:, None, None, None]
    rests = torch.where(steps < 50, 1 - steps / 50, 0.0) + 1
    moves = 1 + steps / WINDOW
    for series, short, long in ((rests, Limit.FIXED, Limit.FIXED), (moves, Limit.UNSETTLED, Limit.DRIFT)):
        longer = torch.cat([series, series[-1] + (series[-1] - series[-2]) * (1 + steps)])
        found = [int(classify(features(Trail.of(one)), calibrate(torch.float64))[0]) for one in (series, longer)]
        assert found == [short, long]


@pytest.mark.parametrize("cached", [1, 300, 10**6])
def test_movements_are_the_same_in_parts_of_any_size(cached, monkeypatch):
    monkeypatch.setattr(limits, "CACHED", cached)
    x = torch.randn(20, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = [((x[k:] - x[:-k]) ** 2).sum(-1).mean(0) ** 0.5 for k in range(1, 8)]
    torch.testing.assert_close(limits._moved(x, 7), torch.stack(expected), rtol=1e-12, atol=0)
