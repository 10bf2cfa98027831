"""Probes on prompts of text: a token model with a tokenizer goes through all that need no regression."""

import json

import numpy as np
import pytest
import text_tokenizers as made
import torch
import torch.nn.functional as F
from conftest import make_token_model
from other_model import OtherSubject
from text_tokenizers import CAPITALS, SENTENCES

from loopprobe import figures, probe
from loopprobe.errors import LoopprobeError
from loopprobe.model.interventions import edited, replace
from loopprobe.probes.dataset import read_stamp
from loopprobe.show.present import table
from loopprobe.tasks.text_lines import from_jsonl
from loopprobe.tasks.text_sources import from_texts
from loopprobe.tasks.text_windows import from_file

D_VOCAB_OUT = 704  # more than the tokenizer has, as models often do
OPTIONS = {
    "mask": {"n": (0, 2, 4), "loops": 4}, "converge": {"loops": 6, "states": 1, "far": 160},
    "lens": {"train_prompts": 30}, "patch": {"sites": ("z", "attn_z"), "loops": 2}, "attention": {},
    "paths": {"loops": 130}, "fixed_points": {"far": 160, "random_starts": 1, "lyapunov_steps": 5},
    "recover": {"loops": 4}, "exit": {"loops": 5}, "failures": {"loops": 130, "spectra": False},
}  # fmt: skip


class TextSubject(OtherSubject):
    """A token model with a tokenizer; further prompts come from a file."""

    task_name = "text"
    path = None

    def more_like(self, prompts, n_prompts, seed):
        drawn = from_file(self.path, made.byte_level(), prompts.n_tokens, n_prompts, seed, part="train")
        return type(prompts)(drawn.tokens, drawn.answers[:, prompts.read_at], prompts.read_at, drawn.texts)

    def is_of_task(self, prompts):
        return True

    def optimum(self, prompts):
        unknown = torch.full((), torch.nan)
        return "unknown", unknown.expand(prompts.n_prompts, prompts.n_answers, D_VOCAB_OUT)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    subject = TextSubject(model=make_token_model(d_vocab=len(made.byte_level()), d_vocab_out=D_VOCAB_OUT, n_ctx=32))
    subject.path = tmp_path_factory.mktemp("text") / "text.txt"
    subject.path.write_text("\n".join(made.lines()), "utf-8")
    return subject


def sentences(read="query", n=4):
    return from_texts([sentence[:-1] for sentence in SENTENCES][:n], made.byte_level(), read=read)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(
    "prompts", [sentences("query"), sentences("all"), sentences("query", 1)], ids=["q", "all", "1"]
)
def test_every_probe_is_shown(name, prompts, subject):
    data = probe(name, subject, prompts, **OPTIONS[name])
    stamp = read_stamp(data)
    assert stamp.unit == "cross entropy, nats"
    assert json.loads(data.attrs["prompts"])["read"] == prompts.origin["read"]
    assert "' capital'" in json.loads(data.attrs["units"])[-1]
    assert figures([data])
    assert table(data).row_count


def test_errors_are_the_cross_entropy_of_the_next_token(subject):
    tokenizer, text = made.byte_level(), SENTENCES[0][:-1]
    ids = torch.tensor([tokenizer(text)["input_ids"][:-1]])
    data = probe("converge", subject, from_texts(text, tokenizer, read="all"), loops=3, states=0)
    with torch.no_grad():
        logits = subject.model(ids, n_loops=3)
    for loop in range(3):
        expected = F.cross_entropy(logits[loop, 0, :-1], ids[0, 1:], reduction="none")
        np.testing.assert_allclose(data.error[loop, 0], expected[-1], rtol=1e-5)
    query = probe("converge", subject, from_texts(text, tokenizer), loops=3, states=0)
    np.testing.assert_allclose(query.error, data.error, rtol=1e-5)


def test_the_perplexity_of_windows_is_that_of_the_file(subject):
    prompts = from_file(subject.path, made.byte_level(), 12, 8)
    with torch.no_grad():
        logits = subject.model(prompts.tokens, n_loops=2)[-1]
        expected = F.cross_entropy(logits.flatten(0, 1), prompts.answers.flatten())
        read = subject.model(*prompts.inputs, n_loops=2, read_at=prompts.read_at)[-1]
    torch.testing.assert_close(prompts.errors(read).mean(), expected)


def test_a_patch_of_a_pair_is_the_edit_by_hand(subject, tmp_path):
    names, path = list(CAPITALS), tmp_path / "pairs.jsonl"
    lines = [
        {"clean": f"The capital of {names[i]} is", "corrupted": f"The capital of {names[i - 1]} is",
         "answer": f" {CAPITALS[names[i]]}", "wrong": f" {CAPITALS[names[i - 1]]}"}
        for i in range(4)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)))
    clean, corrupted = from_jsonl(path, made.byte_level())
    data = probe("patch", subject, clean, corrupted=corrupted, sites=("z",), loops=2)
    model, rows = subject.model, torch.arange(4)

    def difference(tokens):
        with torch.no_grad():
            logits = model(tokens, n_loops=2)[-1, :, -1]
        return logits[rows, clean.answers[:, -1]] - logits[rows, corrupted.answers[:, -1]]

    np.testing.assert_allclose(data.clean, difference(clean.tokens), rtol=1e-4, atol=1e-5)
    _, donor = model.run_with_cache(clean.tokens, n_loops=2, names="z")
    before = difference(corrupted.tokens)
    for token in (4, 5):
        with edited(model, "z", replace(donor), loops=0, positions=[token]):
            moved = difference(corrupted.tokens) - before
        np.testing.assert_allclose(data.z_moved.sel(loop=1, position=token), moved, atol=1e-5)
    np.testing.assert_array_equal(data.z_moved.sel(position=[0, 1, 2, 3]), 0)


def test_a_reply_that_nobody_knows_is_the_one_of_the_model(subject):
    prompts = from_texts(["a", "b"], made.byte_level(), chat=True)
    with pytest.raises(LoopprobeError, match="answers at the query are unknown"):
        probe("patch", subject, prompts, sites=("z",), loops=2)
    assert probe("exit", subject, prompts, loops=4).error.isnull().all()
    with torch.no_grad():
        last = subject.model(*prompts.inputs, n_loops=4, read_at=prompts.read_at)
    answered = prompts.answered(last)
    data = probe("exit", subject, answered, loops=4)
    expected = F.cross_entropy(last[-1, :, -1], last[-1, :, -1].argmax(-1))
    np.testing.assert_allclose(data.budget_mean[-1], expected, rtol=1e-5)
    assert probe("converge", subject, answered, loops=4, states=0).accuracy.values[-1] == 1
