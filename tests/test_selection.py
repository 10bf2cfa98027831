"""The language of choices: what it means is told by Python's own indexing, and what it does not mean is one line."""

import pytest
import torch
from conftest import TINY, make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from other_model import draw

from loopprobe.cli.parsing import parse_choice
from loopprobe.config.selection import resolve
from loopprobe.errors import LoopprobeError
from loopprobe.model.interventions import edited, zero
from loopprobe.probes.loops import chosen_tokens
from loopprobe.tasks import Prompts
from loopprobe.tasks.places import named_tokens

quick = settings(derandomize=True, deadline=None, max_examples=150, database=None)


@given(st.integers(1, 9), st.integers(-12, 12), st.integers(-12, 12), st.integers(1, 4), st.sampled_from([0, 1]))
@quick
def test_a_range_holds_both_ends_counted_from_either_side(size, start, stop, step, first):
    names = [*range(first, size + first)]

    def place(number):
        return names.index(number) if number >= 0 else range(size)[number]

    try:
        begin, end = place(start), place(stop)
        if (start < 0) == (stop < 0) and start > stop:
            raise ValueError
        expected = [i for i in range(size) if begin <= i <= end and (i - begin) % step == 0]
    except (ValueError, IndexError):
        expected = []
    text = f"{start}:{stop}:{step}"
    if expected:
        assert resolve(text, size, "loop", first=first) == expected
        return
    with pytest.raises(LoopprobeError) as error:
        resolve(text, size, "loop", first=first)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("3", [3]), ("-1", [5]), ("last", [5]), ("4:", [4, 5]), (":1", [0, 1]), (":", [0, 1, 2, 3, 4, 5]),
        ("5, 0:2,last ,1", [5, 0, 1, 2]), ("-2:", [4, 5]), ("::2", [0, 2, 4]), (("last", 0), [5, 0]), ("all", None),
        ((0, "all"), None), (slice(0, 2), [0, 1]), ((2, "0:1"), [2, 0, 1]), (None, None),
    ],
)  # fmt: skip
def test_words_and_open_ends(choice, expected):
    assert resolve(choice, 6, "layer") == expected


@pytest.mark.parametrize("text", ["", "-", "--1", "3:1", "0:5:0", "1:2:3:4", "1,,2", "1.5", "-" + "1" * 40, "a:b"])
def test_what_is_no_choice_is_one_line_that_names_the_option(text):
    with pytest.raises(LoopprobeError, match="must be numbers such as 3") as error:
        parse_choice(text, "--heads")
    assert str(error.value).startswith("--heads (")
    assert "\n" not in str(error.value)
    assert parse_choice("0:,last", "--heads") == "0:,last"


def test_loops_of_probes_count_from_one():
    assert resolve("1,last", 4, "loop", first=1) == [0, 3]
    with pytest.raises(LoopprobeError, match="loop 0 must be from 1 and at most 4"):
        resolve("0", 4, "loop", first=1)
    with pytest.raises(LoopprobeError, match="no loop is called 'query': choose from last"):
        resolve("query", 4, "loop")


PROMPTS = Prompts(torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)), torch.ones(2, 4))


def test_tokens_have_names_in_regression_and_elsewhere(token_checkpoint):
    assert named_tokens(PROMPTS) | {} == {
        "query": [6], "last": [7], "answers": [0, 2, 4, 6], "labels": [1, 3, 5], "inputs": [0, 2, 4],
    }  # fmt: skip
    assert chosen_tokens("query,labels", PROMPTS, 6) == [6, 1, 3, 5]
    assert chosen_tokens("4:", PROMPTS, 6) == [4, 5, 6], "open ranges end at the last token that matters"
    assert chosen_tokens("all", PROMPTS, 6) == list(range(7))
    with pytest.raises(LoopprobeError, match="position 7 must be at most 6"):
        chosen_tokens("last", PROMPTS, 6)
    with pytest.raises(LoopprobeError, match="no position is called 'nearest label'"):
        chosen_tokens("nearest label", PROMPTS, 6)
    tokens = token_checkpoint.held_out(4)
    named = named_tokens(tokens)
    assert named["query"] == [tokens.query]
    assert sorted(named["answers"] + named["inputs"]) == list(range(tokens.n_tokens))
    assert named_tokens(draw(2))["answers"] == [2, 5, 8, 11]


def test_an_edit_knows_the_names_of_the_tokens_of_its_prompts():
    model = make_model(torch.float32)
    prompts = Prompts(torch.randn(2, 6, 3), torch.randn(2, 6))
    for choice, expected in (("query", [10]), ("labels,last", [1, 3, 5, 7, 9, 11]), ("2:4", [2, 3, 4])):
        with edited(model, "mlp_out", zero, loops="last", layers="-1", positions=choice, prompts=prompts):
            _, cache = model.run_with_cache(*prompts, names="mlp_out")
        zeros = (cache[-1, "mlp_out", -1] == 0).all(-1)[0].nonzero().flatten().tolist()
        assert zeros == expected
        assert not (cache[-2, "mlp_out", -1] == 0).any()
    with pytest.raises(LoopprobeError, match="where prompts are"), edited(model, "z", zero, positions="query"):
        model(*prompts)
    _, some = model.run_with_cache(*prompts, names="z", loops="0:1,last", positions=":3")
    assert some.loops == [0, 1, TINY["n_loops"] - 1]
    assert some["z"].shape[2] == 4
