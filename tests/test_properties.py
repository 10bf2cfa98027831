"""Whatever the options allow gives a table, datasets and figures; whatever they do not, one line and nothing else."""

import itertools
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, make_model
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from loopprobe import cli
from loopprobe.config.schema import ForeignConfig
from loopprobe.config.sources import load_config
from loopprobe.model.stream import open_cache
from loopprobe.probes.dataset import read_dataset, unique_labels
from loopprobe.show import present
from loopprobe.store.checkpoint import Checkpoint, save

SHAPE = TINY | {"n_loops": 4}
MODELS = {  # settings of the model, and of task and training; all are unlike
    "tiny": ({}, {"train.loop_window": 2}),
    "a/m": ({"n_loops": 2}, {"train.loop_window": 2}),
    "b/m": ({}, {"train.loop_window": 4}),
    "seed-s1": ({}, {"train.loop_window": 2, "train.seed": 1}),
    "ordinary": ({"n_loops": 1}, {"train.loop_window": 1}),
    "noisy": ({"n_layers": 1}, {"task.name": "noisy_linear_regression", "train.loop_window": 3}),
    "fewer": ({}, {"train.loop_window": 3, "train.dims": 2, "train.points": 5}),
    "small": ({"n_dims": 2, "n_points": 4, "n_layers": 1, "n_heads": 1}, {"train.loop_window": 1}),
    "signs": ({}, {"task.labels": "sign", "train.loop_window": 2}),
    "relu": ({"n_loops": 5}, {"task.name": "relu_network", "task.hidden": 4, "train.loop_window": 2}),
    "elsewhere": ({}, None),
}


def save_models(folder):
    for name, (shape, rest) in MODELS.items():
        shape = SHAPE | shape
        overrides = [f"model.{key}={value}" for key, value in shape.items()]
        more = {"train.dims": shape["n_dims"], "train.points": shape["n_points"]} | (rest or {"train.loop_window": 1})
        cfg = load_config(overrides=[*overrides, *(f"{key}={value}" for key, value in more.items())])
        if rest is None:
            cfg = ForeignConfig(model=cfg.model, task=cfg.task)
        (folder / name).mkdir(parents=True)
        save(Checkpoint(cfg, make_model(torch.float32, **shape)), folder / name)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_models(folder)
    return folder


def numbers(most, least=0):
    one = st.integers(least, most).map(str)
    span = st.tuples(st.integers(least, most), st.integers(0, most), st.integers(1, 3)).map(
        lambda part: f"{part[0]}:{part[0] + part[1]}:{part[2]}"
    )
    return st.lists(one | span, min_size=1, max_size=3).map(",".join)


positions = st.lists(st.integers(-14, 13).map(str) | st.just("query"), min_size=1, max_size=3).map(",".join)
loops = st.sampled_from("1247" * 3 + "0")
few = st.integers(1, 9).map(str)
flag = st.just(None)  # an option without a value


def one(*values):
    return st.sampled_from(values)


OPTIONS = {
    "mask": {
        "--mode": one("first", "last", "first,last", "last,first"), "--n": numbers(7), "--loops": numbers(7),
        "--fill": one("initial", "zero", "mean"), "--once": flag, "--at": loops, "--unit": one("point", "token"),
        "--invert": flag,
    },
    "converge": {"--loops": numbers(9), "--states": st.integers(0, 3).map(str), "--far": one("128", "130", "200")},
    "compare": {"--loops": loops, "--baselines": one("nearest", "ridge,averaging", "least_squares"),
                "--baseline-prompts": few},
    "shift": {"--shifts": one("skewed", "noise,orthants", "more_examples", "more_dims"), "--loops": loops},
    "lens": {"--loops": loops, "--train-prompts": few},
    "align": {"--loops": loops, "--steps": few, "--fit-prompts": few},
    "decode": {"--loops": loops, "--train-prompts": one("20", "40"), "--network-loops": one("0", "1")},
    "attribute": {"--loops": loops},
    "attention": {"--loops": loops},
    "patch": {
        "--corruption": one("label", "weights", "query", "noise"), "--loops": loops, "--positions": positions,
        "--sites": one("z", "attn_z,mlp_out", "resid_mid,q", "k"), "--example": loops, "--estimate": flag,
        "--noise-std": one("0", "0.5"),
    },
    "fixed-points": {"--method": one("newton_krylov", "anderson"), "--random-starts": one("0", "1")},
    "exit": {"--loops": st.integers(0, 12).map(str)},
    "recover": {"--after": loops, "--loops": loops, "--positions": positions},
    "failures": {"--loops": st.integers(126, 140).map(str), "--before": few, "--no-spectra": flag},
    "paths": {"--loops": st.integers(126, 140).map(str), "--positions": positions},
    "cache": {"--loops": numbers(7), "--layers": numbers(2), "--positions": positions,
              "--names": one("z", "embed", "pattern,q", "readout", "resid_post,mlp_out")},
}  # fmt: skip
QUICK = {"fixed-points": {"--random-starts": "0", "--far": "128"},
         "decode": {"--train-prompts": "40", "--network-loops": "0"},
         "converge": {"--states": "0", "--loops": "9", "--far": "200"}, "mask": {"--loops": "5", "--n": "2"},
         "cache": {"--loops": "0:3"}, "paths": {"--loops": "130"}, "exit": {"--loops": "9"},
         "failures": {"--loops": "130"}}  # fmt: skip
COMPARING = ("compare", "converge", "shift")  # draw all models in one figure


@st.composite
def command_lines(draw, verb):
    """Options of a verb, one to three checkpoints, and a few prompts."""
    chosen = draw(st.fixed_dictionaries({}, optional=OPTIONS[verb]))
    most = 1 if verb == "cache" else 3
    names = draw(st.lists(st.sampled_from(sorted(MODELS)), min_size=1, max_size=most, unique=True))
    chosen = QUICK.get(verb, {}) | {"--prompts": draw(one("2", "3", "5"))} | chosen
    arguments = [part for option, value in chosen.items() for part in (option, value) if part is not None]
    return arguments, names


def run(arguments, capsys):
    argv, sys.argv = sys.argv, ["loopprobe", *arguments]
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    finally:
        sys.argv = argv
    return stopped.value.code, *capsys.readouterr()


def check(verb, arguments, names, models, capsys):
    """Run a command line and hold what it leaves to the rule at the top."""
    out = Path("out")
    shutil.rmtree(out, ignore_errors=True)
    checkpoints = [part for name in names for part in ("--ckpt", os.path.relpath(models / name))]
    code, printed, error = run([verb, *checkpoints, "--out", str(out), *arguments], capsys)
    if code == 2:
        refused = [line for line in error.splitlines() if line.startswith("loopprobe: ")]
        assert len(refused) == 1, error
        assert error.strip().splitlines()[-1] == refused[0], error
        assert not out.exists()
        return
    assert code == 0, error
    if verb == "cache":
        with open_cache(out / "cache.nc") as data:
            assert data.sizes["loop"]
        return
    labels = unique_labels([str(Path(os.path.relpath(models / name))) for name in names])
    datasets = [read_dataset(path) for path in sorted(out.glob("*.nc"))]
    own = [data for data in datasets if data.attrs["probe"] == verb.replace("-", "_")]
    assert {str(data.model.item()) for data in own} == set(labels)
    assert all(label in printed for label in labels)
    figures = present.figures(own)
    assert {path.stem for path in out.glob("*.html")} == set(figures)
    for name, figure in figures.items():
        shows_numbers(figure, name)
        text = figure.to_json()
        wanted = labels if name in COMPARING else [label for label in labels if name.endswith(label)]
        for label in wanted:
            assert json.dumps(label.removesuffix("-s1") if name != "shift" else label)[1:-1] in text, (name, label)


def shows_numbers(figure, name):
    """Every trace and every panel of a figure holds at least one finite number."""
    panels, filled = set(), set()
    for trace in figure.data:
        values = np.array(trace.z if trace.type in ("heatmap", "scatter3d") else trace.y).ravel()
        panel = trace.scene if trace.type == "scatter3d" else (trace.xaxis, trace.yaxis)
        panels.add(panel)
        assert len(values), (name, trace.name)
        if values.dtype.kind != "f" or np.isfinite(values).any():
            filled.add(panel)
    assert panels == filled, name


def holds(verb, examples):
    """A test of a verb over so many command lines."""

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],  # shrinking takes minutes here
    )  # fmt: skip
    @given(line=command_lines(verb))
    def one_line(models, capsys, line):
        check(verb, *line, models, capsys)

    return one_line


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("verb", OPTIONS)
def test_every_allowed_command_line_gives_an_answer(verb, models, capsys):
    holds(verb, int(os.environ.get("LOOPPROBE_EXAMPLES", "4")))(models=models, capsys=capsys)


paths = st.lists(
    st.lists(st.text("abAB .-_<é", min_size=1, max_size=4).filter(lambda t: t.strip(". ")), min_size=1, max_size=3).map(
        "/".join
    ),
    min_size=1, max_size=5, unique=True,
)  # fmt: skip


@given(paths)
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_labels_are_unique_on_every_file_system_and_safe_in_file_names(names):
    labels = unique_labels(names)
    assert len({label.casefold() for label in labels}) == len(names)
    for name, label in zip(names, labels, strict=True):
        assert label
        assert not set(label) & set('<>:"/\\|?*')
        same_end = [n for n in names if Path(n).name.casefold() == Path(name).name.casefold()]
        if len(same_end) == 1 and "<" not in "".join(names) and not any("-" in other for other in names):
            assert label == Path(name).name
    assert unique_labels(names) == labels


def test_labels_are_the_shortest_paths_that_differ():
    for names, labels in [
        (["runs/a/m", "runs/b/m"], ["a-m", "b-m"]),
        (["a/x/m", "b/x/m", "other"], ["a-x-m", "b-x-m", "other"]),
        (["m", "old/m"], ["m", "old-m"]),
        (["a/M", "a/m"], ["M", "m-2"]),
        (["only/one"], ["one"]),
        (["a/<img onerror=1>"], ["_img onerror=1_"]),
    ]:
        assert unique_labels(names) == labels


def test_no_two_of_many_long_names_share_a_label():
    names = ["".join(part) * 90 for part in itertools.product("ab", repeat=2)]
    labels = unique_labels(names)
    assert len(set(labels)) == 4
    assert max(map(len, labels)) < 130
