"""What a command need not import it does not: probes that nobody asks, and libraries for a function or two."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import run_script
from scipy.stats import beta, binom

from loopprobe.probes.registry import NAMES, PROBES, Registry
from loopprobe.store.record import RecordedErrors
from loopprobe.support.statistics import median_interval, share_interval, summarise_errors

ASK_MASK = """
import json, sys
from loopprobe.probes.questions import configured
from loopprobe.store.evaluate import evaluate
configured("mask", {})
print(json.dumps(sorted(sys.modules)))
"""


TELL = """
import contextlib, io, json, sys
from loopprobe.cli import main
with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
    main()
print(json.dumps([said.getvalue(), sorted(sys.modules)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("verb", [["list"], ["show", "lr-b5-T5"]])
def test_telling_of_models_imports_nothing_that_runs_them(verb):
    said, loaded = json.loads(run_script(TELL, *verb))
    assert "lr-b5-T5" in said
    assert not {"transformer_lens", "transformers", "xarray", "plotly", "loopprobe.model.looped"} & set(loaded)


@pytest.mark.slow
def test_asking_one_probe_imports_no_other_and_no_statistics_of_scipy():
    loaded = json.loads(run_script(ASK_MASK))
    assert {name for name in NAMES if f"loopprobe.probes.{name}" in loaded} == {"mask"}
    assert not {"scipy.stats", "scipy.optimize", "scipy.sparse.linalg", "plotly", "sklearn"} & set(loaded)


def test_what_a_checkpoint_records_is_read_by_the_names_it_is_written_with():
    assert (
        tuple(summarise_errors(np.ones((2, 8)), 0.1))
        == tuple(field.name for field in dataclasses.fields(RecordedErrors))[2:]
    )


def test_every_probe_is_found_by_its_name_and_lists_do_not_import():
    registry = Registry(NAMES)
    assert list(registry) == list(NAMES)
    assert len(registry) == len(NAMES)
    assert "mask" in registry
    assert not any(registry._probes.values())
    assert [probe.name for probe in registry.values()] == list(NAMES)
    assert registry["mask"] is PROBES["mask"]
    with pytest.raises(KeyError):
        registry["masks"]


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_ends_of_medians_are_at_the_ranks_of_the_binomial(level):
    for n in (1, 2, 5, 6, 7, 8, 9, 50, 101, 1280):
        rank = int(binom.ppf((1 - level) / 2, n, 0.5))
        _, low, high = median_interval(np.arange(1.0, n + 1), level=level)
        np.testing.assert_equal((low, high), (rank, n + 1 - rank) if rank else (np.nan, np.nan))


def test_ends_of_shares_are_the_quantiles_of_beta():
    for n in (1, 7, 128):
        right = np.arange(n + 1)[:, None] > np.arange(n)  # each number of right ones
        share, low, high = share_interval(right)
        k = np.arange(n + 1)
        np.testing.assert_allclose(low[1:], beta.ppf(0.025, k[1:], n - k[1:] + 1), rtol=1e-12)
        np.testing.assert_allclose(high[:-1], beta.ppf(0.975, k[:-1] + 1, n - k[:-1]), rtol=1e-12)
        assert (share[0], low[0], share[-1], high[-1]) == (0, 0, 1, 1)
