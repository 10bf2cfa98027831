"""The sentence below a probe's tables says what its dataset holds: synthetic ones, of which it is known."""

import numpy as np
import xarray as xr
from conftest import stamped

from loopprobe.probes.declaration import Shown
from loopprobe.probes.registry import PROBES
from loopprobe.show import sentences
from loopprobe.show.tables.common import percent, two_digits

LOOPS = np.arange(1, 9)


def data(variables, coords=None, **attrs):
    made = xr.Dataset(variables, {"model": "m", **(coords or {})})
    return made.assign_attrs(stamped({"model": {}, "task": {}, "train": {}}, **attrs))


def test_every_probe_has_a_sentence():
    assert all(isinstance(probe.shown, Shown) for probe in PROBES.values())
    assert {name for name in PROBES if not callable(getattr(sentences, name, None))} == set()


def test_converge_tells_growth_and_failures():
    median = np.array([8, 4, 2, 1, 1, 1, 2, 3.0])
    made = data(
        {"median": ("loop", median), "failures": ("loop", np.linspace(0.7, 0, 8))}, {"loop": LOOPS}, trained_loops=4
    )
    assert sentences.converge(made) == (
        "m: after 8 loops the median error is 3, 3 times that after the 4 of training, and 0.0% of the prompts fail."
    )


def test_lens_tells_the_first_loop_that_is_near():
    error = np.array([9, 8, 7, 2.1, 1.9, 3, 1.2, 1])[:, None, None] * np.ones((1, 1, 2))
    made = data(
        {"query_error": (("loop", "lens", "site"), error)}, {"loop": LOOPS, "lens": ["own"], "site": ["input", "mlp"]}
    )
    assert "after mlp" in sentences.lens(made)
    assert sentences.lens(made).endswith("no more than twice its last error (1) after 5 loops.")


def test_recover_finds_the_token_that_matters_and_what_is_left():
    moved = np.zeros((1, 3, 5))
    moved[0, 2] = [4, 3, 2, 1, 1]
    made = data(
        {"prediction_moved": (("size", "position", "after"), moved)},
        {"size": [0.5], "position": [-1, 3, 7], "after": np.arange(5)},
    )
    assert sentences.recover(made) == (
        "m: a push of 0.5 at token 7 changes the prediction by 4, and 25% of it is left 4 loops later."
    )


def test_align_leaves_out_what_diverges():
    made = data(
        {
            "explained": ("algorithm", [np.nan, 0.4, 0.9]), "explained_low": ("algorithm", [np.nan, 0.3, 0.8]),
            "explained_high": ("algorithm", [np.nan, 0.5, 0.95]), "steps_per_loop": ("algorithm", [1, 2, 3.0]),
        },
        {"algorithm": ["a", "b", "c"]}, iteration="loop",
    )  # fmt: skip
    assert sentences.align(made).startswith("m: nearest is c, which explains 0.9 [0.8,")
    assert sentences.align(made.isel(algorithm=[0])) == "m: every algorithm diverges."


def test_fixed_points_counts_those_found_and_those_stable():
    made = data(
        {
            "status": (("example", "start"), [["FOUND"], ["FOUND"], ["FAILED"], ["FOUND"]]),
            "eigenvalue_real": (("example", "eigenvalue"), [[0.5, 0.1], [0.0, 0.0], [0.2, 0.1], [0.9, 0.3]]),
            "eigenvalue_imag": (("example", "eigenvalue"), [[0.0, 0.0], [1.2, 0.0], [0.0, 0.0], [0.1, 0.0]]),
            "moves": ("example", [False, True, True, False]),
        }
    )
    assert sentences.fixed_points(made) == (
        "m: the end of the loop leads to a fixed point for 75% of 4 prompts, and 67% of these are stable; the loop "
        "itself comes to rest for 50%."
    )


def test_all_prompts_are_100_percent_and_not_1e02():
    shares = {"failures": 1.0, "failures_low": 0.9951, "failures_high": 1.0}
    assert percent(xr.Dataset(shares), "failures") == "100 % [100,\u00a0100]"
    assert percent(xr.Dataset(shares | {"failures": 0.0031, "failures_low": 0.0}), "failures") == "0.31 % [0,\u00a0100]"
    assert percent(xr.Dataset(shares | {"failures": np.nan}), "failures") == "–"
    assert [two_digits(x) for x in (99.4, 99.5, -120.0, 0.123, 1234.0)] == ["99", "100", "-120", "0.12", "1234"]
