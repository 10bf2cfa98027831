"""Every model that is given stands in the tables, figures and files, each under a name and a title true of it."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import TINY, make_model, stamped
from hypothesis import given, settings
from hypothesis import strategies as st

from loopprobe import figure, load_checkpoint
from loopprobe.config.sources import load_config
from loopprobe.errors import LoopprobeError
from loopprobe.probes import compare, converge, mask
from loopprobe.probes.dataset import read_dataset
from loopprobe.probes.questions import Question, answer, prepare
from loopprobe.probes.session import probe
from loopprobe.show.arrange import by_name
from loopprobe.show.figures.mask import mask_figure, mask_models_figure
from loopprobe.show.figures.panels import panels
from loopprobe.show.present import figures, tables_for
from loopprobe.show.tables.plain import lines_of
from loopprobe.show.tables.study import compare_table, mask_models_table
from loopprobe.store.checkpoint import Checkpoint, save
from loopprobe.study.saved import answer_saved, saved_questions

SHAPE = [f"model.{key}={value}" for key, value in TINY.items()]


def checkpoint(name="m", *overrides, **fields):
    shape = TINY | fields
    cfg = load_config(
        overrides=[
            *(f"model.{key}={value}" for key, value in shape.items()),
            f"train.dims={shape['n_dims']}", f"train.points={shape['n_points']}", "train.loop_window=2", *overrides,
        ]
    )  # fmt: skip
    return Checkpoint(cfg, make_model(torch.float32, **shape), name=name)


def saved(folder, *overrides, **fields):
    Path(folder).mkdir(parents=True)
    save(checkpoint(str(folder), *overrides, **fields), Path(folder))
    return str(folder)


def described(name, task, loops, window, seed):
    """A dataset of which only the description of its model is known."""
    train = None if window is None else {"loop_window": min(window, loops), "seed": seed}
    config = {"model": {"n_loops": loops, "n_layers": 1}, "task": {"name": task}, "train": train}
    return xr.Dataset(coords={"model": name}, attrs=stamped(config))


models = st.lists(
    st.tuples(
        st.sampled_from(["linear_regression", "noisy_linear_regression", "decision_tree"]),
        st.sampled_from([1, 2, 5, 10, 20, 25]), st.none() | st.sampled_from([1, 5, 10, 15, 20]), st.integers(0, 2),
    ),
    min_size=1, max_size=7,
)  # fmt: skip


@pytest.mark.slow
@given(models)
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_every_model_stands_in_a_panel_whose_title_is_true_of_it(drawn):
    datasets = [described(f"m{i}", *model) for i, model in enumerate(drawn)]
    for by in ("window", "layers", "loss"):
        found = panels(datasets, by)
        placed = [data for lines in found.values() for line in lines for data in line.datasets]
        assert {str(data.model.item()) for data in placed} == {f"m{i}" for i in range(len(drawn))}
        for title, lines in found.items():
            assert lines
            for data in (data for line in lines for data in line.datasets):
                holds(title, drawn[int(data.model.item()[1:])], by)


def holds(title, model, by):
    task, loops, window, _ = model
    window = 0 if window is None else min(window, loops)
    if by != "window":
        assert title == f"b = {loops}, T = {window}"
        return
    words = {"noisy_linear_regression": "noisy", "decision_tree": "decision tree"}.get(task, "linear regression")
    assert title.startswith(f"{words}, ") or words == "linear regression"
    if "elsewhere" in title:
        assert window == 0
    elif title.endswith("ordinary"):
        assert loops == 1
        assert window
    elif exact := re.search(r"T = (\d+)$", title):
        assert window == int(exact[1]) or (loops == 1 and window)
    else:
        assert window == min(int(re.search(r"T = min\((\d+), b\)$", title)[1]), loops)


def test_seeds_stand_together_and_other_models_of_such_names_do_not():
    seeds = [described("x", "linear_regression", 5, 5, 0), described("x-s1", "linear_regression", 5, 5, 1)]
    assert {name: len(members) for name, members in by_name(seeds).items()} == {"x": 2}
    other = [seeds[0], described("x-s1", "linear_regression", 5, 1, 1)]
    assert {name: len(members) for name, members in by_name(other).items()} == {"x": 1, "x-s1": 1}


def test_checkpoints_of_one_last_part_have_files_and_answers_of_their_own(tmp_path):
    paths = [saved("runs/a/m"), saved("runs/b/m", n_loops=2)]
    prepared = prepare(Question(probe="compare", checkpoints=tuple(paths), prompts=4))
    assert [p.checkpoint.label for p in prepared] == ["a-m", "b-m"]
    assert [data.model.item() for data in answer(prepared)] == ["a-m", "b-m"]
    for text in ('section = "R1"\ntitle = "t"\nasks = "?"\nprobe = "compare"\nprompts = 4\n',):
        Path("q").mkdir()
        Path("q/q.toml").write_text(text + f"checkpoints = {json.dumps(paths)}\n")
    answered = answer_saved(saved_questions(Path("q")), Path("out"))["q"]
    assert sorted(path.name for path in Path("out/q").glob("*.nc")) == ["a-m.nc", "b-m.nc"]
    assert [data.attrs["loops"] for data in answered.datasets] == [4, 2]


@pytest.mark.parametrize("again", ["runs/a/m", "./runs/../runs/a/m", "link", "tiny"])
def test_a_folder_given_twice_is_refused(again):
    saved("runs/a/m")
    Path("link").symlink_to("runs/a/m")
    Path("runs/tiny").symlink_to("a/m")
    with pytest.raises(LoopprobeError, match="same folder as 'runs/a/m': give it once"):
        prepare(Question(probe="compare", checkpoints=("runs/a/m", again), prompts=4))


def test_datasets_of_one_label_are_told_apart_by_their_paths():
    paths = [saved("runs/a/m"), saved("runs/b/m", "train.seed=5")]
    datasets = [probe("converge", load_checkpoint(path), 4, loops=6, states=0) for path in paths]
    assert [data.model.item() for data in datasets] == ["m", "m"]
    drawn = figure(datasets)
    assert {"a-m", "b-m"} <= {trace.name for trace in drawn.data}
    assert list(tables_for(datasets)[0].columns[0].cells) == ["a-m", "b-m"]
    with pytest.raises(LoopprobeError, match="a-m comes twice"):
        figure([*datasets, datasets[0]])


def of_several(*checkpoints, config=None):
    return [compare.run(one, one.held_out(8), config or compare.CompareConfig()) for one in checkpoints]


def test_models_of_unlike_prompts_stand_in_one_table_with_empty_cells():
    small = checkpoint("small", n_points=4, n_dims=2)
    signs = checkpoint("signs", "task.labels=sign")
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        datasets = of_several(*(np.array([checkpoint("large"), small, signs], object)[list(order)]))
        table = compare_table(datasets)
        cells = {row[0]: row for row in zip(*(column.cells for column in table.columns), strict=True)}
        heads = [str(column.header) for column in table.columns]
        assert cells["small, 4 loops"][heads.index("5 examples")] == "–"
        assert cells["large, 4 loops"][heads.index("3 examples")].startswith(
            f"{float(next(d for d in datasets if d.model == 'large')['median'].sel(point=3)):.3g} ["
        )
        assert cells["large, 4 loops"][heads.index("accuracy")] == "–"
        assert cells["signs, 4 loops"][heads.index("accuracy")] != "–"
        assert len([name for name in cells if name.startswith("least squares")]) == 2
        names = {trace.name for trace in figures(datasets)["compare"].data}
        assert {"large", "small", "signs"} <= names


def test_positions_count_from_the_end_of_each_models_own_prompts():
    small = saved("small", n_points=4)
    options = {"positions": (0, -2, "query"), "sites": ("z",)}
    prepared = prepare(
        Question(probe="patch", checkpoints=(saved("large"), small), prompts=3, options=options), load=load_checkpoint
    )
    assert [data.position.values.tolist() for data in answer(prepared)] == [[0, 10], [0, 6]]
    for position in (7, -1, 10):
        with pytest.raises(LoopprobeError, match="position"):
            prepare(Question(probe="patch", checkpoints=(small,), prompts=3, options={"positions": (position,)}))
    data = probe("patch", load_checkpoint(small), 3, positions=["query"], sites=("z",))
    assert data.position.values.tolist() == [6]


@pytest.mark.parametrize("options", [{"loops": 10**7, "far": 10**7}, {"loops": 2 * 10**9, "states": 0}])
def test_an_answer_that_no_memory_holds_is_refused_at_once(options):
    path = saved("m")
    with pytest.raises(LoopprobeError, match="GB"):
        prepare(Question(probe="converge", checkpoints=(path,), prompts=64_000, options=options))
    with pytest.raises(LoopprobeError, match="GB"):
        prepare(Question(probe="compare", checkpoints=(path,), prompts=2 * 10**9))


def test_an_interrupted_run_keeps_the_answers_that_it_has(monkeypatch):
    saved("a"), saved("b", n_loops=2), saved("c", n_loops=3)
    Path("q").mkdir()
    Path("q/q.toml").write_text(
        'section = "R1"\ntitle = "t"\nasks = "?"\nprobe = "compare"\nprompts = 4\ncheckpoints = ["a", "b", "c"]\n'
    )
    asked = []

    def run(one, prompts, config, progress):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(one.label)
        return compare.run(one, prompts, config, progress)

    from loopprobe.probes import registry

    with monkeypatch.context() as patched:
        patched.setitem(registry.PROBES, "compare", dataclasses.replace(compare.PROBE, run=run))
        with pytest.raises(KeyboardInterrupt):
            answer_saved(saved_questions(Path("q")), Path("out"))
        assert sorted(path.name for path in Path("out/q").glob("*.nc")) == ["a.nc", "b.nc"]
        asked.clear()
        answer_saved(saved_questions(Path("q")), Path("out"))
    assert asked == ["c"]
    Path("out/q/b.nc").write_bytes(b"torn")
    again = answer_saved(saved_questions(Path("q")), Path("out"))["q"]
    assert [data.attrs["loops"] for data in again.datasets] == [4, 2, 3]


def test_datasets_joined_along_models_are_those_of_each():
    datasets = [
        converge.run(one, one.held_out(6), converge.ConvergeConfig(loops=5, states=0))
        for one in (checkpoint("four"), checkpoint("two", n_loops=2))
    ]
    together, joined = figure(datasets), figure(xr.concat(datasets, "model", coords="different", compat="equals"))
    assert joined.to_json() == together.to_json()
    without = [data.drop_vars("source") for data in datasets]
    with pytest.raises(LoopprobeError, match="as a list"):
        figure(xr.concat(without, "model", coords="different", compat="equals"))


MEDIANS = ("median", "median_low", "median_high")


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_drawn_is_refused_in_one_line():
    data = converge.run(checkpoint(), checkpoint().held_out(6), converge.ConvergeConfig(loops=5, states=0))
    masks = [mask.run(checkpoint(), checkpoint().held_out(6), mask.MaskConfig(n=(1, 2), loops=5))]
    bad = [[], [data, masks[0]], data["error"], data.isel(loop=0), data.drop_vars("median"), xr.Dataset(), "text"]
    bad += [data.assign({name: data[name] * np.nan for name in MEDIANS} | {"optimum": data.optimum * 0})]
    for one in bad:
        with pytest.raises(LoopprobeError) as refused:
            figure(one)
        assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("n", [(6,), (0,), (0, 6), (3,), tuple(range(7))])
def test_the_mask_figure_draws_every_n_or_says_which(n, invert):
    one = checkpoint()
    data = mask.run(one, one.held_out(6), mask.MaskConfig(n=n, loops=5, invert=invert))
    drawn = mask_figure(data)
    entries = {trace.name for trace in drawn.data}
    text = " ".join(note.text for note in drawn.layout.annotations)
    unmasked = 0 if invert else 6
    for value in n:
        assert f"n = {value}" in (entries if value != unmasked else text)
    assert all(np.isfinite(np.array(trace.y, float)).all() for trace in drawn.data)


def test_the_mask_figure_says_how_many_n_it_leaves_out():
    one = checkpoint(n_points=16)
    data = mask.run(one, one.held_out(4), mask.MaskConfig(n=tuple(range(16)), loops=3))
    assert "6 of 16 n" in " ".join(note.text for note in mask_figure(data).layout.annotations)


@pytest.mark.slow
def test_loops_that_are_named_stand_in_tables_figures_and_files(command, tmp_path):
    one = saved("runs/one")
    for mode, drawn in (
        ("first", lambda name: name.endswith(("loops", "loop"))),
        ("first,last", lambda name: "after" in name),
    ):
        out = tmp_path / mode.replace(",", "-")
        options = ["--ckpt", one, "--n", "0,1,2,3,4", "--loops", "2,3,7", "--prompts", "8", "--out", str(out)]
        assert command("mask", "--mode", mode, *options)[0] == 0
        read = [read_dataset(path) for path in sorted(out.glob("mask-[fl]*.nc")) or [out / "mask.nc"]]
        assert all(list(data.attrs["shown_loops"]) == [2, 3, 7] for data in read)
        names = [trace.name for trace in figures(read)["mask"].data if trace.name and drawn(trace.name)]
        assert {int(word) for name in names for word in re.findall(r"(\d+) loops?", name)} == {2, 3, 7}
        text = command("show", *sorted(map(str, out.glob("mask*.nc"))) if len(read) == 1 else [str(out)])[1]
        assert all(re.search(rf"\b{loop} loop|^ *\d +{loop} ", text, re.M) for loop in (2, 3, 7)), text
    assert command("converge", "--ckpt", one, "--loops", "2,6", "--states", "0", "--prompts", "4", "--out", "c")[0] == 0
    assert "6 loops" in command("show", "c/converge.nc")[1]


def test_no_loop_that_is_named_is_left_out_of_the_lines_of_several_models():
    named = [1, 2, 3, 4, 5, 6, 7]
    datasets = [
        mask.run(one, one.held_out(4), mask.MaskConfig(n=(0, 1, 2, 3), loops=7)).assign_attrs(shown_loops=named)
        for one in (checkpoint("a"), checkpoint("b"))
    ]
    names = [line.name or "" for line in mask_models_figure(datasets).data]
    assert {int(loop) for name in names for loop in re.findall(r"(\d+) loops", name)} == set(named)
    rows = lines_of(mask_models_table(datasets))[1:]
    assert [int(row[1]) for row in rows if row[0].endswith("a")] == named


def test_a_table_of_several_models_says_how_many_n_it_shows():
    config = mask.MaskConfig(n=tuple(range(9)), unit="token", loops=2)
    many = [mask.run(one, one.held_out(4), config) for one in (checkpoint("a"), checkpoint("b"))]
    assert str(mask_models_table(many).caption).endswith("; 8 of 9 n")
    assert " n" not in str(mask_models_table([one.isel(n=slice(8)) for one in many]).caption)[-6:]
