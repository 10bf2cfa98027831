"""The notebooks under probes/ run from top to bottom, and what they find holds."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

SESSIONS = Path(__file__).parents[1] / "probes"


def run(name, capsys):
    found = runpy.run_path(str(SESSIONS / f"{name}.py"))
    models = found["models"].values() if "models" in found else [found["checkpoint"]]
    assert all(checkpoint.model.list_hooks() == {} for checkpoint in models), "nothing stays attached"
    return found, capsys.readouterr().out.strip().splitlines()[-1]


def test_every_session_is_in_percent_format_and_ends_in_a_finding():
    paths = sorted(SESSIONS.glob("*.py"))
    assert [path.stem for path in paths] == [
        "algorithm",
        "attention",
        "cache_and_lens",
        "fixed_points",
        "language_models",
        "patching",
        "tokens",
    ]
    for path in paths:
        cells = path.read_text().split("# %%")
        assert len(cells) > 8
        assert "## Finding" in cells[-2]


@pytest.mark.slow
def test_cache_and_lens(capsys):
    found, finding = run("cache_and_lens", capsys)
    split = found["split"]
    ends = ((split.initial + split.offset) * split.prediction).sum() / (split.prediction**2).sum()
    assert float(found["by_loop"].sum() + ends) == pytest.approx(1, abs=1e-3)
    assert found["by_loop"][-1] > 0.5
    assert found["tuned"] < found["own"] / 10
    assert f"{float(found['by_loop'][-1]):.0%}" in finding


@pytest.mark.slow
def test_patching(capsys):
    found, finding = run("patching", capsys)
    effects = found["effects"]
    assert effects[0] == pytest.approx(1, abs=1e-4)
    assert effects[1] > 0.5 > effects[found["half"]]
    assert all(abs(effects[loops_after]) < 0.1 for loops_after in range(found["gone"], 20))
    assert all(errors["mean"] > 2 * found["clean_error"] for errors in found["whole"].values())
    assert "The loop forgets" in finding


@pytest.mark.slow
def test_attention(capsys):
    found, finding = run("attention", capsys)
    assert found["frozen"][10] > 5 * found["clean"]
    assert np.all(np.diff(list(found["frozen"].values())[3:]) < 0), "the later it is frozen, the less it costs"
    assert float(found["last"].mass.sel(target="itself", head=found["own"])) > 0.5
    assert f"Head {found['own']}" in finding


@pytest.mark.slow
def test_fixed_points(capsys):
    found, finding = run("fixed_points", capsys)
    first, second = found["names"]
    assert found["settled"][first].mean() < found["settled"][second].mean()
    assert found["touched"][first][0] < 1 / 64 < found["touched"][second][0]
    assert found["touched"][second][1] > 10 * found["touched"][second][2]
    for name in (first, second):
        tried, points, radii, at_point, on_loop = found["points"][name]
        assert points >= tried / 2
        assert max(radii) > 1
    assert at_point < on_loop / 5
    assert second in finding


@pytest.mark.slow
def test_algorithm(capsys):
    found, finding = run("algorithm", capsys)
    aligned, decoded = found["aligned"], found["decoded"]
    assert aligned.attrs["identified"] == "none"
    assert aligned.null_explained.max() < 0.1
    gains = aligned.gain_low.sel(algorithm=["Newton's iteration", "conjugate gradients", "ridge, ever weaker"])
    assert (gains > 0).all(), "the loop is more like an algorithm than like an interpolation"
    assert found["mistakes"].best_distance.sel(loop=slice(7, None)).min() > 0.8
    assert found["at_one_token"] < 0.1
    assert found["over_tokens"][-1] > 0.8 > found["over_tokens"][0]
    assert abs(found["shuffled"]).max() < 0.3
    assert decoded.slope.sel(edit="prediction, at the query", after=0) > 0.8
    assert abs(decoded.slope.sel(edit="prediction, at the query").isel(after=-1)) < 0.05
    assert found["edited"].slope < 0.3
    assert "none of the algorithms" in finding


@pytest.mark.slow
def test_tokens(capsys):
    found, finding = run("tokens", capsys)
    assert "as one would with a pencil" in finding
    assert min(found["always"]) > 0.85 > max(found["once"])
    assert all(one > two for one, two in zip(found["both"], found["always"], strict=True))
    assert found["early"] < 0.2 < 0.95 < found["front"]
    assert found["lengths"].attrs["fails_at"] > found["lengths"].attrs["trained_length"]


@pytest.mark.slow
def test_language_models(capsys):
    found, finding = run("language_models", capsys)
    far, needed = found["far"], found["needed"]
    assert (far.to_last.sel(loop=slice(needed, None)) < 0.01).all(), "it stays there"
    assert found["rest"] > 0.9
    assert not torch.equal(found["plain"], found["changed"]), "a loop that is changed changes what is written"
    assert found["answers"].shape == (20, 2, 9, 50)
    assert f"after {needed} of 16 loops" in finding
