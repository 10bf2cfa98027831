"""Mistakes in a task of one's own: one line each, with the value, the rule and the remedy."""

import re

import pytest
import torch
from test_own_task import CODE, SIZES, TOKEN_SIZES

import loopprobe
from loopprobe import RegressionTask, TaskConfig, TokenTask
from loopprobe.config.sources import load_config
from loopprobe.errors import LoopprobeError
from loopprobe.tasks import held_out, registry, sample, sample_tokens


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    for name in ("_REGISTERED", "_SEEN", "_BROUGHT"):
        monkeypatch.setattr(registry, name, {})


def one_line(match):
    """An error of the user's, of one line; ``match`` may hold characters of patterns."""
    return pytest.raises(LoopprobeError, match=rf"\A(?=.*{re.escape(match)})[^\n]+\Z")


FILES = {
    "nowhere.py:X": (None, "there is no file nowhere.py"),
    "no_such_module:X": (None, "there is no module no_such_module"),
    "my_tasks.py:AbsLinaer": (CODE, "has no AbsLinaer: did you mean AbsLinear"),
    "my_tasks.py:": (CODE, "give both parts"),
    "my_tasks.py:torch": (CODE, "is no task: give a class"),
    "my_tasks.py:dataclass": (CODE, "must take (n_prompts, n_points, n_dims, generator)"),
    "broken.py:X": ("import torch\n\nx = 1 / 0\n", "broken.py cannot be imported (ZeroDivisionError at line 3"),
    "syntax.py:X": ("def f(:\n", "syntax.py cannot be imported (SyntaxError"),
    "leaves.py:X": ("raise SystemExit(1)\n", "leaves.py cannot be imported (SystemExit at line 1"),
    "beside.py:X": ("import not_installed_anywhere\n", "ModuleNotFoundError at line 1"),
    "AbsLinear": (None, "no task is called 'AbsLinear'"),
    "parrity": (None, "did you mean parity"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_task_that_cannot_be_found(name, tmp_path):
    code, match = FILES[name]
    if code is not None:
        (tmp_path / name.partition(":")[0]).write_text(code)
    with one_line(match):
        TaskConfig(name=name)


def test_the_command_line_tells_a_missing_file_in_one_line(command):
    code, _, err = command("train", "--task", "nowhere.py:X")
    assert (code, err.count("\n")) == (2, 1)
    assert "nowhere.py" in err
    code, _, err = command("mask", "--task", "nowhere.py:X")
    assert (code, err.count("\n")) == (2, 1)


def points(**given):
    """A task of regression that draws something else."""

    class Wrong(RegressionTask):
        def draw(self, n_prompts, n_points, n_dims, generator):
            parts = {
                "xs": torch.randn(n_prompts, n_points, n_dims, generator=generator),
                "ys": torch.randn(n_prompts, n_points, generator=generator),
            }
            parts |= {name: change(parts.get(name)) for name, change in given.items()}
            return tuple(parts.values())

    return Wrong


def letters(read_at=None, names="abc", **given):
    """A task of tokens that draws something else."""

    class Wrong(TokenTask):
        inputs = names
        length = 3

        def draw(self, n_prompts, length, generator):
            tokens = torch.randint(3, (n_prompts, length), generator=generator)
            parts = {"tokens": tokens, "answers": tokens[:, :1]}
            parts |= {name: change(parts[name]) for name, change in given.items()}
            return (*parts.values(), *([] if read_at is None else [read_at]))

    return Wrong


def with_nan(ys):
    ys[0, 0] = torch.nan
    return ys


WRONG = {
    "xs too wide": (points(xs=lambda xs: torch.cat([xs, xs], 2)), "gave inputs [16, 4, 4]: they must be [16, 4, 2]"),
    "ys of one more axis": (points(ys=lambda ys: ys[..., None]), "gave labels [16, 4, 1]: they must be [16, 4]"),
    "whole labels": (points(ys=lambda ys: ys.long()), "gave labels of int64: they must be real"),
    "labels that are not finite": (points(ys=with_nan), "1 of 64 are NaN or infinite"),
    "no tensors": (points(ys=lambda ys: ys.tolist()), "must return tensors"),
    "weights of another width": (points(w=lambda _: torch.zeros(16, 3)), "gave weights [16, 3]"),
    "zeros": (points(ys=lambda ys: ys * 0), "all labels of Wrong are zero"),
    "the generator of torch": (points(ys=torch.randn_like), "is not reproducible: two generators of one seed"),
    "a name that is none": (letters(tokens=lambda t: t + 1), "tokens from 1 to 3: they must be from 0 to 2"),
    "real tokens": (letters(tokens=lambda t: t.float()), "tokens of float32: they must be whole numbers"),
    "answers of one axis": (letters(answers=lambda a: a[:, 0]), "gave answers [1]: they must be [1, …]"),
    "more answers than tokens": (letters(answers=lambda a: a.expand(-1, 4)), "gave 4 answers of 3 tokens"),
    "places beyond the prompt": (letters(read_at=[3]), "reads at [3]: it must name 1 of the tokens 0 to 2"),
    "two places": (letters(read_at=[1, 2]), "must name 1 of the tokens"),
    "no names": (letters(names=()), "must name its tokens"),
    "a name twice": (letters(names="aab"), "each a string and once"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_drawn_is_checked(name):
    task, match = WRONG[name]
    generator = torch.Generator().manual_seed(0)
    with one_line(match):
        config = loopprobe.register_task(task)
        if config.reads_tokens:
            sample_tokens(config, 16, 3, generator)
        else:
            sample(config, 16, 4, 2, generator)


def test_a_task_without_draw_says_what_to_define():
    class Misspelt(RegressionTask):
        def drew(self, n_prompts, n_points, n_dims, generator):
            raise AssertionError

    with one_line("Misspelt does not say how prompts are drawn: define draw(self, n_prompts, n_points, n_dims"):
        sample(loopprobe.register_task(Misspelt), 16, 4, 2, torch.Generator().manual_seed(0))


def test_draws_that_are_seeded_once_are_refused():
    class Seeded(RegressionTask):
        def draw(self, n_prompts, n_points, n_dims, generator):
            own = torch.Generator().manual_seed(generator.initial_seed())
            return torch.randn(n_prompts, n_points, n_dims, generator=own), torch.ones(n_prompts, n_points)

    task = loopprobe.register_task(Seeded)
    for _ in range(2):
        with one_line("draw of Seeded gave the same prompts twice"):
            held_out(task, 2, 3, 2)


def test_an_error_and_an_optimum_must_fit_the_predictions():
    class Summed(points()):
        def error(self, predictions, labels):
            return (predictions - labels).abs().sum(-1)

        def optimum(self, prompts):
            return prompts.ys[:, :1]

    task = loopprobe.register_task(Summed)
    prompts = held_out(task, 3, 4, 2)
    with one_line("error of Summed gave [3] for predictions [3, 4]"):
        prompts.errors(prompts.ys)
    optimum = loopprobe.reference.baselines.optimal.optimum
    with one_line("gave [3, 1] for answers [3, 4]"):
        optimum(prompts, task)
    Summed.optimum = lambda self, prompts: "oracle"
    with one_line("no predictor is called 'oracle': choose from least_squares"):
        optimum(prompts, task)


PARAMETERS = [
    ({"slope": torch.ones(2)}, "must be plain data"),
    ({"slope": float("nan")}, "must be plain data"),
    ({"slop": 2.0}, "has no parameter 'slop': choose slope"),
]


@pytest.mark.parametrize(("parameters", "match"), PARAMETERS)
def test_parameters_are_plain_and_known(parameters, match, tmp_path):
    (tmp_path / "my_tasks.py").write_text(CODE)
    with one_line(match):
        TaskConfig(name="my_tasks.py:AbsLinear", parameters=parameters)


def test_parameters_need_defaults_and_may_be_refused_by_the_task():
    class Picky(points()):
        def __init__(self, power=1):
            if power > 2:
                raise ValueError("power above 2")

    loopprobe.register_task(Picky)
    with one_line("task Picky cannot be made (power above 2): change task.parameters"):
        TaskConfig(name="Picky", parameters={"power": 3})

    class Bare(points()):
        def __init__(self, power):
            pass

    with one_line("parameter power of Bare has no default"):
        loopprobe.register_task(Bare)


def test_fields_of_tasks_that_ship_are_not_those_of_ones_own(tmp_path):
    (tmp_path / "my_tasks.py").write_text(CODE)
    with one_line("noise_std (0.1) is of tasks that ship, and AbsLinear is none"):
        TaskConfig(name="my_tasks.py:AbsLinear", noise_std=0.1)
    with one_line("length (3) is of tasks that ship"):
        TaskConfig(name="my_tasks.py:AbsLinear", length=3)
    with one_line("parameters and source are of a task of your own"):
        TaskConfig(parameters={"slope": 1.0})


def test_names_do_not_clash():
    one, other = points(), points()
    one.__name__ = "parity"
    with one_line("'parity' is the name of a task that ships"):
        loopprobe.register_task(one)
    with one_line("must be of letters, digits"):
        loopprobe.register_task(one, name="a task/of mine")
    loopprobe.register_task(one, name="mine")
    loopprobe.register_task(other, name="mine")  # defined again in the same session
    (file := __import__("pathlib").Path("my_tasks.py")).write_text(CODE)
    with one_line("another task is registered as 'mine' (of this session)"):
        loopprobe.register_task(f"{file}:AbsLinear", name="mine")
    for thing in (3, RegressionTask(), "no colon"):
        with pytest.raises(LoopprobeError):
            loopprobe.register_task(thing)


def test_sizes_that_do_not_fit_are_told_before_training(tmp_path):
    (tmp_path / "my_tasks.py").write_text(CODE)
    with one_line("model.d_vocab (9) must be 4 for task middle"):
        load_config(overrides=["task.name=my_tasks.py:Middle", *TOKEN_SIZES, "model.d_vocab=9"])
    with one_line("prompts of length 3 have 7 tokens and model.n_ctx is 5"):
        load_config(overrides=["task.name=my_tasks.py:Middle", *TOKEN_SIZES, "model.n_ctx=5"])
    with one_line("must be mse or log for task AbsLinear"):
        load_config(overrides=["task.name=my_tasks.py:AbsLinear", *SIZES, "train.loss=cross_entropy"])
    task = TaskConfig(name="my_tasks.py:Middle")
    with one_line("task Middle gives tokens and the model reads vectors"):
        loopprobe.Config(task=task)
    with one_line("length (0 tokens) must be at least 1"):
        sample_tokens(task, 2, 0, torch.Generator())
