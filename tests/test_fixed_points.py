import dataclasses

import numpy as np
import torch
from conftest import TINY_CFG, make_model

from loopprobe.dynamics.maps import LoopMap
from loopprobe.dynamics.solve import Status
from loopprobe.probes import fixed_points as probe
from loopprobe.show.tables.inside import fixed_points_table
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.tasks import held_out

CONFIG = probe.FixedPointsConfig(far=200, random_starts=1, eigenvalues=4, lyapunov_steps=80)


def test_a_loop_at_rest_is_at_the_fixed_point_that_is_found():
    model = make_model(torch.float32)
    with torch.no_grad():
        model.ln_final.weight *= 0.2  # most of a loop comes from its input: it contracts
    checkpoint = Checkpoint(TINY_CFG, model, name="runs/settled")
    batch = held_out(TINY_CFG.task, 4, 6, 3)
    data = probe.run(checkpoint, batch, CONFIG)
    assert (data.status == "FOUND").all()
    assert data.limit_is_fixed.all()
    assert not data.moves.any()
    assert (data["distinct"] == 1).all()
    assert (data.residual < 1e-9).all()
    np.testing.assert_allclose(data.error[:, 0], data.loop_error, rtol=1e-6)
    np.testing.assert_allclose(data.error[:, 0], data.error[:, 1], rtol=1e-5)
    radius = np.hypot(data.eigenvalue_real, data.eigenvalue_imag).max("eigenvalue")
    assert (radius < 1).all()
    np.testing.assert_allclose(data.lyapunov, np.log(radius), atol=0.15)
    system = LoopMap.of(model, batch, torch.float64)
    z = system.initial
    for _ in range(200):
        with torch.no_grad():
            z = system.step(z)
    whole = torch.autograd.functional.jacobian(lambda s: system.model.step(s, system.e[:1]), z[:1]).reshape(192, 192)
    values = torch.linalg.eigvals(whole)
    assert abs(values.abs().max() - float(radius[0])) < 1e-6
    assert abs(torch.linalg.svdvals(whole)[0] - float(data.singular_value[0])) < 1e-4
    [first] = fixed_points_table(data).columns[0].cells
    assert first == "comes to rest"


def test_what_is_not_found_is_missing(checkpoint):
    data = probe.run(
        checkpoint, held_out(TINY_CFG.task, 2, 6, 3),
        probe.FixedPointsConfig(far=128, random_starts=1, max_iterations=1, lyapunov_steps=0, eigenvalues=4),
    )  # fmt: skip
    missed = data.status != "FOUND"
    assert missed.any()
    assert data.error.where(missed).isnull().all()
    assert data.lyapunov.isnull().all()


def test_a_search_without_an_end_says_what_to_do(checkpoint):
    config = dataclasses.replace(CONFIG, max_iterations=1, tolerance=1e-14, lyapunov_steps=0)
    data = probe.run(checkpoint, held_out(TINY_CFG.task, 2, 6, 3), config)
    assert (data.status != "FOUND").all()
    sentence = Status[data.status.values[0, 0]].value
    assert sentence in data.status.attrs["sentences"]
    assert sentence in fixed_points_table(data).caption
