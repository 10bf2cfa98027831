"""Token tasks: their answers, corruptions and results against solvers written from the definitions."""

import itertools

import pytest
import torch

from loopprobe.config.schema import TaskConfig
from loopprobe.errors import LoopprobeError
from loopprobe.tasks import held_out_tokens, sample_tokens

TASKS = [
    TaskConfig(name="parity"), TaskConfig(name="modular_addition", modulus=7), TaskConfig(name="cyclic", modulus=3),
    TaskConfig(name="copy"), TaskConfig(name="reverse", symbols=3), TaskConfig(name="addition"),
    TaskConfig(name="addition", base=10, numbers=3), TaskConfig(name="addition", base=2, numbers=5),
    TaskConfig(name="s5"), TaskConfig(name="s5", moves="generators"), TaskConfig(name="s5", moves="all"),
    TaskConfig(name="p_hop"), TaskConfig(name="p_hop", symbols=3, context=9), TaskConfig(name="pointer"),
    TaskConfig(name="pointer", context=5), TaskConfig(name="dyck"), TaskConfig(name="dyck", context=7, length=2),
]  # fmt: skip
each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.short)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(task, length=None, n=200, seed=0):
    return sample_tokens(task, n, length or task.length, seeded(seed))


def named(names, numbers):
    return [names[number] for number in numbers.tolist()]


# Solvers of the names of one prompt's tokens, start left out, in plain Python


def running_sums(task, tokens):
    modulus = 2 if task.name == "parity" else task.modulus
    return [total % modulus for total in itertools.accumulate(int(token) for token in tokens if token != "=")]


def last_sum(task, tokens):
    assert tokens.index("=") == len(tokens) - 1
    return [str(running_sums(task, tokens)[-1])]


def copied(task, tokens):
    n = tokens.index(">")
    assert tokens[n:] == [">"] * n
    return tokens[:n] if task.name == "copy" else tokens[:n][::-1]


def total(task, tokens):
    columns = [[int(digit) for digit in column.split("+")] for column in tokens[:-1]]
    value = sum(digit * task.base**i for i, column in enumerate(columns) for digit in column)
    return [str(value // task.base**i % task.base) for i in range(len(columns))] + [
        str(value // task.base ** len(columns))
    ]


def arrangements(task, tokens):
    places, found = list("12345"), []
    for move in tokens:
        if len(move) == 4:
            i, j = int(move[1]) - 1, int(move[2]) - 1
            places[i], places[j] = places[j], places[i]
        elif move == "(12345)":
            places.append(places.pop(0))
        else:
            places = [places[int(place) - 1] for place in move]
        found.append("".join(places))
    return found


def find(symbols, i, hops):
    """``find^hops(i)`` of arXiv 2402.09268, definition 4.1; places from 1, 0 where there is none."""
    for _ in range(hops):
        i = max([0, *(j for j in range(2, i + 1) if symbols[j - 2] == symbols[i - 1])]) if i else 0
    return i


def hop_symbols(task, tokens, hops):
    symbols = tokens[1:]
    places = [find(symbols, i, hops) for i in range(1, len(symbols) + 1)]
    return [symbols[place - 1] if place else "∅" for place in places]


def hopped(task, tokens):
    return hop_symbols(task, tokens, int(tokens[0]))[-(task.context // 2) :]


def chased(task, tokens):
    n = 2 * task.context
    leads, here, visited = dict(zip(tokens[:n:2], tokens[1:n:2], strict=True)), tokens[n], []
    assert len(leads) == task.context
    for _ in tokens[n:]:
        here = leads[here]
        visited.append(here)
    return visited


def brackets(task, tokens):
    stack, expected = [], []
    for token in tokens:
        if token in "([":
            stack.append({"(": ")", "[": "]"}[token])
        elif stack:
            stack.pop()
        expected.append(stack[-1] if stack else "∅")
    return expected


SOLVERS = {
    "parity": last_sum, "modular_addition": last_sum, "copy": copied, "reverse": copied, "addition": total,
    "cyclic": lambda task, tokens: list(map(str, running_sums(task, tokens))),
    "s5": arrangements, "p_hop": hopped, "pointer": chased, "dyck": brackets,
}  # fmt: skip


def assert_solved(prompts):
    for tokens, answers in zip(prompts.tokens, prompts.answers, strict=True):
        start, *rest = named(prompts.names, tokens)
        assert start == "^"
        assert named(prompts.answer_names, answers) == SOLVERS[prompts.task.name](prompts.task, rest)


@each_task
@pytest.mark.parametrize("length", [1, 3, None])
def test_answers_are_those_of_a_solver_in_plain_python(task, length):
    prompts = drawn(task, length)
    assert prompts.n_tokens == task.rules.n_tokens(length or task.length)
    assert_solved(prompts)


def test_hops_may_be_twice_as_many_as_in_training():
    assert_solved(drawn(TaskConfig(name="p_hop"), 8))
    with pytest.raises(LoopprobeError, match=r"length \(9 hops\) must be from 1 to 8"):
        drawn(TaskConfig(name="p_hop"), 9)
    with pytest.raises(LoopprobeError, match=r"length \(0 bits\) must be at least 1"):
        sample_tokens(TaskConfig(name="parity"), 1, 0, seeded())


@each_task
def test_the_first_prompts_do_not_depend_on_how_many_are_drawn(task):
    assert torch.equal(drawn(task, n=5).tokens, drawn(task, n=133).tokens[:5])
    assert torch.equal(held_out_tokens(task, 5, 3).tokens, held_out_tokens(task, 70, 3).tokens[:5])
    assert not torch.equal(drawn(task, n=5).tokens, drawn(task, n=5, seed=1).tokens)


@each_task
def test_held_out_prompts_are_not_those_of_the_training_of_any_seed(task):
    held = held_out_tokens(task, 20, task.length, 3).tokens
    assert not any(torch.equal(held, drawn(task, n=20, seed=seed).tokens) for seed in (0, 1, 2, 3, 2**31 - 1))
    for n, seed in ((0, 0), (1, -1), (1, 2**31)):
        with pytest.raises(LoopprobeError):
            held_out_tokens(task, n, 1, seed)


@pytest.mark.parametrize("task", [TASKS[i] for i in (0, 1, 2, 3, 8, 9, 10)], ids=lambda task: task.short)
def test_free_symbols_are_drawn_alike(task):
    n = len(set(task.rules.symbols_of) - {"=", ">"})
    counts = torch.bincount(drawn(task, n=4000).tokens[:, 1], minlength=n)
    assert len(counts) == n
    assert (counts - 4000 / n).abs().max() < 5 * (4000 / n) ** 0.5


def test_hops_never_stay_and_brackets_fit():
    symbols = drawn(TaskConfig(name="p_hop")).tokens[:, 2:]
    assert (symbols[:, 1:] != symbols[:, :-1]).all()
    for tokens in drawn(TaskConfig(name="dyck", length=2, context=20)).tokens[:, 1:]:
        text = "".join("()[]"[token] for token in tokens.tolist())
        depths = list(itertools.accumulate(1 if bracket in "([" else -1 for bracket in text))
        assert 0 <= min(depths) <= max(depths) <= 2
        while (shorter := text.replace("()", "").replace("[]", "")) != text:
            text = shorter
        assert set(text) <= set("([")  # nothing closes what is not open


def test_carries_of_an_addition_chain():
    carries = drawn(TaskConfig(name="addition"), 30, 500).results()["carry"][:, 1:]
    unbroken = (carries[:, 10:30] == 1).all(1).float().mean()
    assert unbroken > 0.005  # of independent digits it would be some 1e-6


@each_task
def test_a_corrupted_prompt_differs_in_one_token_and_in_its_answer(task):
    clean = drawn(task, n=100)
    corrupted = clean.corrupted("token", seeded(1))
    assert ((clean.tokens != corrupted.tokens).sum(1) == 1).all()
    assert (clean.answers[:, -1] != corrupted.answers[:, -1]).all()
    assert_solved(corrupted)
    assert torch.equal(corrupted.tokens, clean.corrupted("token", seeded(1)).tokens)
    other = clean.corrupted("prompt", seeded(1))
    assert (clean.answers[:, -1] != other.answers[:, -1]).all()
    assert_solved(other)
    assert other.origin["corruption"] == "prompt"


def test_the_token_that_is_corrupted_can_be_chosen():
    clean = drawn(TaskConfig(name="parity"))
    changed = (clean.tokens != clean.corrupted("token", seeded(), example=3).tokens).nonzero()[:, 1]
    assert (changed == 3).all()
    for arguments, match in (({"example": 0}, "example"), ({"example": 17}, r"choose one of 1, 2, .*…")):
        with pytest.raises(LoopprobeError, match=match):
            clean.corrupted("token", seeded(), **arguments)
    with pytest.raises(LoopprobeError, match="must be token or prompt"):
        clean.corrupted("label", seeded())
    with pytest.raises(LoopprobeError, match="no change was found"):  # all prompts have the same answer
        drawn(TaskConfig(name="dyck", context=2, length=1)).corrupted("prompt", seeded())


RESULTS = {
    "parity": {"sum so far": lambda task, tokens: [*running_sums(task, tokens), running_sums(task, tokens)[-1]]},
    "cyclic": {"sum so far": running_sums},
    "s5": {
        "product so far": lambda task, tokens: [task.rules.outputs.index(a) for a in arrangements(task, tokens)]
    },
    "addition": {
        "sum of the column": lambda task, tokens: [*(sum(map(int, c.split("+"))) for c in tokens[:-1]), 0],
        "digit": lambda task, tokens: list(map(int, total(task, tokens))),
        "carry": lambda task, tokens: [int(total(task, [*tokens[:i], "="])[-1]) for i in range(len(tokens))],
    },
    "dyck": {
        "innermost": lambda task, tokens: ["∅)]".index(bracket) for bracket in brackets(task, tokens)],
        "depth": lambda task, tokens: list(itertools.accumulate(1 if token in "([" else -1 for token in tokens)),
    },
    "p_hop": {
        f"after hop {hop}": lambda task, tokens, hop=hop: [
            -1, *("abcd".find(symbol) for symbol in hop_symbols(task, tokens, hop))
        ] for hop in (1, 2, 3, 4)
    },
    "copy": {}, "pointer": {},
}  # fmt: skip


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_what_a_solver_holds(name):
    prompts = drawn(TaskConfig(name=name), n=50)
    results = prompts.results()
    assert results.keys() == RESULTS[name].keys()
    for what, solve in RESULTS[name].items():
        for tokens, found in zip(prompts.tokens, results[what], strict=True):
            assert found.tolist() == [-1, *solve(prompts.task, named(prompts.names, tokens[1:]))], what


def test_targets_are_the_tokens_that_the_answer_depends_on():
    for name, source in (("copy", 5), ("reverse", 1)):
        targets = drawn(TaskConfig(name=name), 5).targets()
        assert targets.keys() == {"token before", "its source"}
        assert torch.equal(targets["its source"].nonzero()[:, 1], torch.full((200,), source))
        assert torch.equal(targets["token before"].nonzero()[:, 1], torch.full((200,), 9))
    prompts = drawn(TaskConfig(name="p_hop"), 3)
    for hop in (1, 2, 3):
        for tokens, group in zip(prompts.tokens, prompts.targets()[f"hop {hop}"], strict=True):
            place = find(named(prompts.names, tokens[2:]), 32, hop)
            assert group.nonzero().flatten().tolist() == ([place + 1] if place else [])
    stays = prompts.tokens.clone()
    stays[:, -1] = stays[:, -2]  # the first hop leads to the query itself, which is in no group
    assert prompts.of(stays, prompts.answers).targets()["hop 1"].sum() == 0
    assert drawn(TaskConfig(name="parity")).targets().keys() == {"token before"}


def test_tokens_are_named_by_their_places_or_by_the_mark_that_stands_there():
    assert drawn(TaskConfig(name="copy"), 2).roles == ["^", "x1", "x2", ">", ">"]
