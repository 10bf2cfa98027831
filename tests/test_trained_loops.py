"""Probes of prompts of another length than the longest of the training know the loops that the training gives them."""

import numpy as np
import pytest
from test_dtypes_of_probes import OPTIONS, RUN

from loopprobe.probes import mask
from loopprobe.probes.questions import configured
from loopprobe.probes.registry import PROBES
from loopprobe.show import present


def name_of(param):
    return param if isinstance(param, str) else param.values[0]


ON_TOKENS = [param for param in RUN if not PROBES[name_of(param)].of_points]


@pytest.mark.parametrize("length", [2, 5])
def test_a_mask_comes_once_after_the_loops_of_the_length(token_checkpoint, length):
    prompts = token_checkpoint.held_out(6, length=length)
    one, other, wrong = (
        mask.run(token_checkpoint, prompts, mask.MaskConfig(n=(2,), loops=7, once=True, at=at))
        for at in (None, length, 3)
    )
    np.testing.assert_array_equal(one.error, other.error)
    assert not np.array_equal(one.error, wrong.error)
    assert f"once, after {length} loops" in one.attrs["description"]
    np.testing.assert_allclose(one.error.isel(n=0)[:length], one.clean_error[:length], rtol=1e-5)


@pytest.mark.parametrize("name", ON_TOKENS)
def test_every_probe_marks_the_loops_of_the_length(token_checkpoint, name):
    probe, config = configured(name, OPTIONS.get(name, {}) | ({"n": (2,)} if name == "mask" else {}))
    data = probe.run(token_checkpoint, token_checkpoint.held_out(4, length=2), config)
    assert data.attrs["trained_loops"] == 2 != token_checkpoint.model.cfg.n_loops


def test_a_figure_marks_the_loops_of_the_length(token_checkpoint):
    data = mask.run(token_checkpoint, token_checkpoint.held_out(4, length=2), mask.MaskConfig(n=(2,), loops=6))
    (figure,) = present.figures([data]).values()
    (line,) = (shape for shape in figure.layout.shapes if shape.x0 == shape.x1)
    assert line.x0 == 2
