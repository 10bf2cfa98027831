"""What prompts of tokens share: measures of logits, selections and targets, of a task and of text alike."""

import math
import pickle

import pytest
import torch
import torch.nn.functional as F

from loopprobe.config.schema import TaskConfig
from loopprobe.errors import LoopprobeError
from loopprobe.tasks import PromptBatch, TextPrompts, sample_tokens
from loopprobe.tasks.logits import LogitPrompts

VOCABULARY = 11


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def text(n=6, length=7, **fields):
    """Prompts of random tokens, every one of which is read."""
    tokens = torch.randint(VOCABULARY, (n, length + 1), generator=seeded())
    return TextPrompts(tokens[:, :-1], tokens[:, 1:], **fields)


def of_a_task(n=6, length=7):
    return sample_tokens(TaskConfig(name="cyclic", modulus=VOCABULARY), n, length, seeded())


KINDS = pytest.mark.parametrize("make", [text, of_a_task])


def logits_of(prompts, *loops, seed=1):
    return 3 * torch.randn(*loops, prompts.n_prompts, prompts.n_answers, VOCABULARY, generator=seeded(seed))


@KINDS
def test_both_kinds_are_prompts_on_one_base(make):
    prompts = make()
    assert isinstance(prompts, PromptBatch)
    assert isinstance(prompts, LogitPrompts)
    assert prompts.query == prompts.n_tokens - 1
    assert prompts.extent == f"{prompts.n_tokens} tokens"
    assert prompts.tensors == (prompts.tokens, prompts.answers)


@KINDS
@pytest.mark.parametrize("loops", [(), (4,), (2, 3)])
def test_errors_are_the_cross_entropy_of_torch(make, loops):
    prompts = make()
    logits = logits_of(prompts, *loops)
    right = prompts.answers.expand(logits.shape[:-1])
    expected = F.cross_entropy(logits.flatten(0, -2), right.flatten(), reduction="none").unflatten(0, right.shape)
    torch.testing.assert_close(prompts.errors(logits), expected)
    torch.testing.assert_close(prompts.errors(logits.bfloat16()), expected, atol=0.1, rtol=0)
    assert prompts.errors(logits.bfloat16()).dtype == torch.float32
    loss, recorded = prompts.training_loss(logits if loops == (4,) else logits.reshape(-1, *logits.shape[-3:]), "")
    torch.testing.assert_close(loss, expected.mean())
    torch.testing.assert_close(recorded[0], loss)


@KINDS
def test_distances_ranks_and_differences_are_the_formulas(make):
    prompts = make()
    one, other = logits_of(prompts, 3), logits_of(prompts, seed=2)
    kl = F.kl_div(one.log_softmax(-1), other.log_softmax(-1).expand_as(one), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(prompts.distance(one, other), kl)
    torch.testing.assert_close(prompts.step(one, other), kl)
    order = one.argsort(-1, descending=True)
    assert torch.equal(prompts.ranks(one, other), (order == other.argmax(-1)[..., None]).int().argmax(-1).float())
    assert torch.equal(prompts.correct(one), one.argmax(-1) == prompts.answers)
    p = one[:, :, -1].softmax(-1).gather(-1, prompts.answers[:, -1].expand(3, -1)[..., None]).squeeze(-1)
    torch.testing.assert_close(prompts.answer(one), p.logit(), atol=1e-4, rtol=1e-4)
    words, values = prompts.contrast(one)
    double = prompts.contrast(2 * one)[1]
    torch.testing.assert_close(double, 2 * values)
    assert "mean of all others" in words


@KINDS
def test_parts_and_copies_keep_what_belongs_together(make):
    prompts = make()
    prompts = prompts.against(type(prompts)(prompts.tokens, (prompts.answers + 1) % VOCABULARY, prompts.read_at)
                              if make is text else prompts)  # fmt: skip
    logits = logits_of(prompts, 2)
    first, second = prompts.split(4)
    assert (first.n_prompts, second.n_prompts) == (4, 2)
    for at, part in ((slice(0, 4), first), (slice(4, 6), second), (torch.tensor([5, 0]), prompts[[5, 0]])):
        torch.testing.assert_close(part.answer(logits[:, at]), prompts.answer(logits)[:, at])
        torch.testing.assert_close(part.errors(logits[:, at]), prompts.errors(logits)[:, at])
    again = pickle.loads(pickle.dumps(prompts))
    assert torch.equal(again.answer(logits), prompts.answer(logits))
    assert again.roles == prompts.roles
    assert prompts.to(torch.float16) is prompts
    assert torch.equal(prompts.to("cpu").instead, prompts.instead)
    other = prompts.of(prompts.tokens + 1, prompts.answers)
    assert torch.equal(other.tokens, prompts.tokens + 1)
    assert other.instead is None


def test_an_unknown_answer_has_no_error_until_the_model_answers():
    known = text()
    unknown = known.of(known.tokens, torch.cat([known.answers[:, :-1], torch.full((6, 1), -1)], 1))
    logits = logits_of(known, 3)
    errors = unknown.errors(logits)
    assert errors[..., -1].isnan().all()
    assert torch.equal(errors[..., :-1], known.errors(logits)[..., :-1])
    assert unknown.answer(logits).isnan().all()
    assert unknown.contrast(logits)[1].isnan().all()
    assert unknown.correct(logits) is None
    assert not unknown.knows_answers
    with pytest.raises(LoopprobeError, match=r"answers at the query are unknown.*answered"):
        unknown.against(known)
    for outputs in (logits, logits[-1]):
        answered = unknown.answered(outputs)
        assert torch.equal(answered.answers[:, -1], logits[-1, :, -1].argmax(-1))
        assert torch.equal(answered.answers[:, :-1], known.answers[:, :-1])
        assert answered.correct(logits)[-1, :, -1].all()
        assert "model's own" in answered.origin["answers"]


def test_answers_stand_where_they_are_read(unchecked):
    tokens = torch.arange(10).reshape(1, 10)
    for read_at, query in ((slice(2, 9, 3), 8), ([0, 4, 7], 7), ((1, 2, 3), 3), (None, 9), (slice(-3, None), 9)):
        prompts = TextPrompts(tokens, torch.tensor([[4, 5, 6]]), read_at)
        assert prompts.query == query
        assert len(tokens[:, prompts.read_at].flatten()) == 3
    for read_at in (slice(0, 2), [0, 1], [3, 2, 1], [0, 1, 10], [1, 1, 2], slice(9, 2, -3)):
        with pytest.raises(LoopprobeError, match=r"read_at.*rising order") as error:
            TextPrompts(tokens, torch.tensor([[4, 5, 6]]), read_at)
        assert "\n" not in str(error.value)
    with pytest.raises(LoopprobeError, match=r"\[batch, pos\]"):
        TextPrompts(tokens[0], tokens)


def test_texts_are_told_from_corrupted_ones_by_answers_that_all_differ():
    clean = text()
    logits = logits_of(clean)
    other = clean.of(clean.tokens, (clean.answers + 3) % VOCABULARY)
    difference = clean.against(other).answer(logits)
    rows = torch.arange(6)
    at_query = logits[:, -1]
    expected = at_query[rows, clean.answers[:, -1]] - at_query[rows, other.answers[:, -1]]
    assert torch.equal(difference, expected)
    assert clean.against(clean) is clean
    for same in (0, -1):  # as the right one, or unknown
        answers = other.answers.clone()
        answers[2, -1] = clean.answers[2, -1] if same == 0 else -1
        assert clean.against(other.of(other.tokens, answers)).instead is None, "one measure for all prompts"
    given = clean.against(other)
    assert given.against(clean.of(clean.tokens, (clean.answers + 5) % VOCABULARY)) is given


def test_targets_are_what_an_induction_head_looks_for():
    tokens = torch.tensor([[0, 5, 6, 5, 7, 5], [0, 1, 2, 3, 4, 9], [5, 5, 5, 5, 5, 5]])
    targets = TextPrompts(tokens, torch.zeros(3, 1, dtype=torch.long)).targets()
    assert targets["token before"].tolist() == [[0, 0, 0, 0, 1, 0]] * 3
    assert targets["first token"].tolist() == [[1, 0, 0, 0, 0, 0]] * 3
    assert targets["same token earlier"].tolist() == [[0, 1, 0, 1, 0, 0], [0] * 6, [1, 1, 1, 1, 1, 0]]
    after = targets["token after the same token earlier"].tolist()
    assert after == [[0, 0, 1, 0, 1, 0], [0] * 6, [0, 1, 1, 1, 1, 0]]
    middle = TextPrompts(tokens[:1], torch.zeros(1, 1, dtype=torch.long), [3]).targets()
    assert middle["same token earlier"].tolist() == [[0, 1, 0, 0, 0, 0]], "what comes behind the query is not earlier"
    assert middle["token after the same token earlier"].tolist() == [[0, 0, 1, 0, 0, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_one_token_is_another_and_never_a_special_one_or_the_query(seed):
    prompts = text(n=40, special=frozenset({0, 3}))
    other = prompts.corrupted("token", seeded(seed))
    changed = other.tokens != prompts.tokens
    assert (changed.sum(1) == 1).all()
    assert not changed[:, prompts.query].any()
    assert not torch.isin(prompts.tokens[changed], torch.tensor([0, 3])).any()
    assert not torch.isin(other.tokens[changed], torch.tensor([0, 3])).any()
    assert torch.equal(other.answers, prompts.answers)
    assert other.origin["corruption"] == "token"
    assert torch.equal(other.tokens, prompts.corrupted("token", seeded(seed), noise_std=1.0).tokens)
    places = changed.int().argmax(1)
    assert len(places.unique()) > 3
    assert len(other.tokens[changed].unique()) > 5


def test_the_chosen_token_is_changed():
    prompts = text(special=frozenset())
    other = prompts.corrupted("token", seeded(), example=2)
    assert (other.tokens != prompts.tokens).nonzero()[:, 1].tolist() == [2] * 6


def test_another_prompt_of_the_batch_comes_with_its_answers():
    prompts = text()
    seen = set()
    for seed in range(30):
        other = prompts.corrupted("prompt", seeded(seed))
        shift = next(k for k in range(1, 6) if torch.equal(other.tokens, prompts.tokens.roll(k, 0)))
        assert torch.equal(other.answers, prompts.answers.roll(shift, 0))
        seen.add(shift)
    assert seen == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("make", "kind", "example", "match"),
    [
        (text, "label", None, r"'label'.*token or prompt"), (text, "token", 6, r"example \(6\).*query"),
        (text, "token", 9, r"example \(9\).*0 to 6"), (text, "token", -1, "example"),
        (lambda: text(n=1), "prompt", None, "one alone"),
        (lambda: text(special=frozenset(range(VOCABULARY))), "token", None, "longer prompts"),
        (lambda: TextPrompts(torch.tensor([[4]]), torch.tensor([[5]])), "token", None, "longer prompts"),
        (lambda: TextPrompts(torch.tensor([[4, 4]]), torch.tensor([[5]])), "token", None, "longer prompts"),
        (lambda: text(special=frozenset(text().tokens[:, 1].tolist())), "token", 1, "no special one"),
    ],
)  # fmt: skip
def test_what_cannot_be_corrupted_is_refused_in_one_line(make, kind, example, match):
    with pytest.raises(LoopprobeError, match=match) as error:
        make().corrupted(kind, seeded(), example=example)
    assert "\n" not in str(error.value)


def test_tokens_beyond_the_names_have_numbers():
    prompts = TextPrompts(torch.tensor([[0, 1, 9]]), torch.tensor([[1]]), texts=("<s>", "' a'"))
    assert prompts.roles == ["0 <s>", "1 ' a'", "2 #9"]
    assert prompts.names == prompts.answer_names == ("<s>", "' a'")
    two = TextPrompts(torch.tensor([[0, 1, 9], [0, 1, 8]]), torch.tensor([[1], [0]]), texts=("<s>", "' a'"))
    assert two.roles == ["0 <s>", "1 ' a'", "2"]
    assert two[:0].roles == ["0", "1", "2"]


def test_certainty_is_an_error_of_nothing():
    prompts = text()
    logits = 100 * F.one_hot(prompts.answers, VOCABULARY).float()
    assert prompts.errors(logits).max() < 1e-6
    assert prompts.correct(logits).all()
    even = torch.zeros(1, *logits.shape)
    torch.testing.assert_close(prompts.errors(even), torch.full((1, *prompts.answers.shape), math.log(VOCABULARY)))
    assert prompts.baseline() is None
