"""An answer is found again only where its model, its prompts and its files are the same, whatever they are called."""

import dataclasses

import numpy as np
import pytest
import xarray as xr
from conftest import TINY_CFG, make_model, make_token_model

from loopprobe.probes.dataset import asked
from loopprobe.probes.questions import Question, prepare
from loopprobe.store.checkpoint import Checkpoint, save
from loopprobe.study.saved import Saved, answer_saved
from loopprobe.tasks import held_out

WEIGHTS = {"a": (1, 2, 3), "b": (3, -1, 0)}


@pytest.fixture
def runs(tmp_path):
    """A model of numbers in ./runs."""
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    save(Checkpoint(TINY_CFG, make_model()), folder)
    return tmp_path


def write_table(path, weights):
    x = np.random.default_rng(0).normal(size=(60, 3))
    path.parent.mkdir(exist_ok=True)
    np.savetxt(path, np.column_stack([x, x @ weights]), delimiter=",", header="a,b,c,y", comments="")


def of_table(path):
    return Saved(
        section="R1", title="t", asks="?", probe="converge", checkpoints=("tiny",), data=str(path), target="y",
        prompts=4, options={"loops": 3, "states": 0},
    )  # fmt: skip


def test_tables_of_one_name_in_two_folders_have_an_answer_each(runs):
    questions = {}
    for name, weights in WEIGHTS.items():
        write_table(runs / name / "t.csv", weights)
        questions[name] = of_table(runs / name / "t.csv")
    both = answer_saved(questions, runs / "both")
    for name, question in questions.items():
        [alone] = answer_saved({name: question}, runs / f"alone-{name}")[name].datasets
        xr.testing.assert_equal(both[name].datasets[0].error, alone.error)
    assert not np.allclose(*(both[name].datasets[0].error for name in WEIGHTS))


def test_a_table_that_has_changed_is_asked_again(runs):
    found = []
    for weights in (*WEIGHTS.values(), WEIGHTS["b"]):
        write_table(runs / "a" / "t.csv", weights)
        found.append(answer_saved({"q": of_table(runs / "a" / "t.csv")}, runs / "out")["q"].datasets[0])
    assert not np.allclose(found[0].error, found[1].error)
    xr.testing.assert_identical(found[1], found[2])


@pytest.mark.parametrize("named", ["d.npy", "d.npy:3"])
def test_a_file_that_an_option_names_belongs_to_what_is_asked(named, tmp_path):
    @dataclasses.dataclass
    class Config:
        direction: str
        names: tuple[str, ...] = ("no file\0", "x" * 5000, "z")

    checkpoint = Checkpoint(TINY_CFG, make_model(), name="runs/tiny")
    prompts = held_out(TINY_CFG.task, 2, 6, 3)

    def ask():
        return asked("steer", checkpoint, prompts, Config(named))

    before = ask()
    assert "files" not in before
    np.save(tmp_path / "d.npy", np.ones(3))
    one = ask()
    assert one == ask() != before
    np.save(tmp_path / "d.npy", np.zeros(3))
    assert one != ask()


def test_prompts_that_differ_in_their_numbers_alone_are_others(runs):
    [one] = prepare(Question(probe="converge", checkpoints=("tiny",), prompts=4, options={"states": 0}))
    moved = dataclasses.replace(one.prompts, ys=one.prompts.ys + 1)
    other = dataclasses.replace(one, prompts=moved)
    assert one.prompts.origin == moved.origin
    assert one.asked != other.asked
    assert one.asked == dataclasses.replace(one).asked


def test_what_is_asked_of_tokens_is_the_same_twice(token_checkpoint):
    prompts = token_checkpoint.held_out(3)
    again = Checkpoint(token_checkpoint.config, make_token_model(), name=token_checkpoint.name).held_out(3)
    assert asked("mask", token_checkpoint, prompts, TINY_CFG) == asked("mask", token_checkpoint, again, TINY_CFG)
