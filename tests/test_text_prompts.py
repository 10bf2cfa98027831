"""Prompts made of text: tokens, answers and their names against the tokenizer's own; windows; every refusal."""

import json
import pickle
import re
import subprocess
import sys

import pytest
import text_tokenizers as made
import torch
from text_tokenizers import CAPITALS, SENTENCES

from loopprobe.errors import LoopprobeError
from loopprobe.tasks import PromptBatch, TextPrompts
from loopprobe.tasks.text_lines import from_jsonl
from loopprobe.tasks.text_sources import from_texts
from loopprobe.tasks.text_windows import from_file
from loopprobe.tasks.tokenizer import token_texts

KINDS = {"byte": made.byte_level, "bare": made.bare, "metaspace": made.metaspace}
CAUSAL = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
QUESTIONS = [sentence.rsplit(" ", 1)[0] for sentence in SENTENCES]  # without their last word


def plain(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def refused(match, make, *args, **options):
    with pytest.raises(LoopprobeError, match=match) as error:
        make(*args, **options)
    assert "\n" not in str(error.value)


@CAUSAL
def test_the_last_token_of_a_text_is_its_answer(make):
    tokenizer = make()
    texts = [sentence[:-1] for sentence in SENTENCES]
    prompts = from_texts(texts, tokenizer)
    assert isinstance(prompts, TextPrompts)
    assert isinstance(prompts, PromptBatch)
    begin = [] if make is made.bare else [tokenizer.bos_token_id]
    for row, answer, text in zip(prompts.tokens, prompts.answers, texts, strict=True):
        assert [*row.tolist(), answer.item()] == begin + plain(tokenizer, text), "no end mark is the answer"
    assert prompts.n_tokens == 5 + len(begin)
    assert [prompts.name(token) for [token] in prompts.answers.tolist()] == [f"' {city}'" for city in CAPITALS.values()]
    assert (prompts.n_answers, prompts.query) == (1, prompts.n_tokens - 1)
    every = from_texts(texts, tokenizer, read="all")
    assert torch.equal(every.tokens, prompts.tokens)
    assert torch.equal(every.answers, torch.cat([every.tokens[:, 1:], prompts.answers], 1))
    assert (every.read_at, every.query) == (slice(0, every.n_tokens), prompts.query)
    cut = from_texts(texts, tokenizer, length=3)
    assert torch.equal(cut.tokens, prompts.tokens[:, :3])
    assert torch.equal(cut.answers[:, 0], prompts.tokens[:, 3])


def test_roles_are_the_tokens_that_all_prompts_share():
    prompts = from_texts(QUESTIONS, made.byte_level())
    assert prompts.roles == ["0 <s>", "1 'The'", "2 ' capital'", "3 ' of'", "4"]
    assert prompts[:1].roles[4] == "4 ' France'"
    assert prompts.origin["texts"] == QUESTIONS


@CAUSAL
def test_tokens_are_shown_as_they_read(make):
    tokenizer = make()
    text = 'of €5\n  it\'s "no" naïve 日'
    prompts = from_texts(text, tokenizer, cut=False)
    roles = prompts.roles if make is made.bare else prompts.roles[1:]
    shown = [re.sub(r"^\d+ ", "", role) for role in roles]
    bytes_shown = b"".join(eval(f"b{one}") if one.isascii() else eval(one).encode() for one in shown)
    assert bytes_shown.decode().removeprefix(" ") == text
    assert {"'\\xe2'", "'\\x82'", "'\\xac'"} <= set(shown), "the parts of €"
    assert "'\\n'" in shown
    assert not re.search("[ĠĊ▁\ufffd]|<0x", "".join(prompts.names))
    assert len(prompts.names) == len(tokenizer)


def test_word_pieces_are_shown_with_the_space_before_words():
    tokenizer = made.word_piece()
    texts = token_texts(tokenizer)
    ids = plain(tokenizer, "the capital")
    assert [texts[i] for i in ids] == ["' the'", "' capital'"]
    piece = next(i for i, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))) if token == "##s")
    assert texts[piece] == "'s'"


def test_prompts_are_light_and_hold_no_tokenizer():
    prompts = from_texts(QUESTIONS, made.byte_level())
    pickled = pickle.dumps(prompts)
    assert len(pickled) < 20_000
    assert b"tokenizers" not in pickled
    again = pickle.loads(pickled)
    assert again.roles == prompts.roles
    assert again.read_at == prompts.read_at


def test_a_text_that_is_not_cut_has_an_unknown_answer():
    whole = from_texts(QUESTIONS, made.byte_level(), cut=False, read="all")
    assert whole.tokens[0].tolist() == [0, *plain(made.byte_level(), QUESTIONS[0])]
    assert whole.answers[:, -1].tolist() == [-1] * 4
    assert torch.equal(whole.answers[:, :-1], whole.tokens[:, 1:])


def test_chat_is_the_template_up_to_the_reply():
    tokenizer = made.byte_level()
    prompts = from_texts(QUESTIONS[0], tokenizer, chat=True)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTIONS[0]}], add_generation_prompt=True, return_dict=False
    )
    assert prompts.tokens[0].tolist() == ids
    assert prompts.answers.tolist() == [[-1]]
    assert prompts.origin["chat"] is True
    assert prompts.roles[0] == "0 <s>", "once, by the template"
    refused("chat template.*leave out chat", from_texts, "a b", made.bare(), chat=True)
    refused("does not take.*no way", from_texts, "refused", tokenizer, chat=True)


def test_a_masked_model_answers_at_the_mask():
    tokenizer = made.word_piece()
    prompts = from_texts([sentence[:-1] for sentence in SENTENCES], tokenizer, masked=True)
    assert prompts.query == prompts.n_tokens - 2, "before [SEP]"
    assert prompts.read_at == slice(prompts.query, prompts.query + 1)
    assert (prompts.tokens[:, prompts.query] == tokenizer.mask_token_id).all()
    assert prompts.tokens[:, -1].tolist() == [tokenizer.sep_token_id] * 4
    assert [prompts.name(token) for [token] in prompts.answers.tolist()] == [
        f"' {c.lower()}'" for c in CAPITALS.values()
    ]
    early = from_texts("The [MASK] of France is Paris", tokenizer, masked=True)
    assert (early.query, early.answers.item()) == (2, -1)
    assert early.n_tokens == 8
    refused("2 masks", from_texts, "a [MASK] [MASK]", tokenizer, masked=True)
    refused("different tokens", from_texts, ["the [MASK] of", "[MASK] of the"], tokenizer, masked=True)
    refused("no mask token", from_texts, "a b", made.byte_level(), masked=True)
    refused("has no mask: put .MASK.", from_texts, "the capital", tokenizer, masked=True, cut=False)
    refused("mask alone", from_texts, "the capital", tokenizer, masked=True, read="all")


@pytest.mark.parametrize(
    ("texts", "options", "match"),
    [
        ([], {}, "no text"), ("", {}, "text 1 of 1 is empty"), (["a", 5], {}, "text 2 of 2 is of type int"),
        (["The capital of", "The capital"], {}, "prompts have 2, 3 tokens.*one text at a time, or cut.*--length 2"),
        (["The capital of", "The capital"], {"chat": True}, r"as many: give one text at a time$"),
        ("The capital", {"length": 9}, "text 1 of 1 has 3 tokens and needs 10, the last of which.*smaller --length"),
        ("The", {"length": 0}, r"length \(0\)"), ("The", {"length": 2, "chat": True}, "not of chat"),
        ("The", {"read": "some"}, r"'some'.*all or query"), ("The", {"chat": True, "masked": True}, "masked.*chat"),
    ],
)  # fmt: skip
def test_texts_that_do_not_go_together_are_refused(texts, options, match, unchecked):
    refused(match, from_texts, texts, made.byte_level(), **options)


def test_what_is_no_tokenizer_is_refused():
    refused(r"tokenizer \(str\) has no __call__", from_texts, "The", "gpt2")
    refused("tokenizer.*AutoTokenizer", from_texts, "The", made.byte_level().backend_tokenizer)
    refused("needs 2, the last of which is its answer", from_texts, "The", made.bare())


# JSONL


def written(tmp_path, *lines):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return path


def pairs(**fields):
    names = list(CAPITALS)
    for i, country in enumerate(names):
        other = names[i - 1]
        line = {"clean": f"The capital of {country} is", "corrupted": f"The capital of {other} is"}
        yield line | {"answer": f" {CAPITALS[country]}", "wrong": f" {CAPITALS[other]}"} | fields


@CAUSAL
@pytest.mark.parametrize("read", ["query", "all"])
def test_lines_give_clean_and_corrupted_prompts(make, read, tmp_path):
    tokenizer = make()
    clean, corrupted = from_jsonl(written(tmp_path, *pairs()), tokenizer, read=read)
    cities = [plain(tokenizer, f"is {city}")[-1] for city in CAPITALS.values()]
    assert clean.answers[:, -1].tolist() == cities
    assert clean.instead.tolist() == corrupted.answers[:, -1].tolist() == [cities[3], *cities[:3]]
    assert torch.equal(corrupted.tokens[1:], clean.tokens[:-1])
    assert clean.n_answers == (1 if read == "query" else clean.n_tokens)
    assert corrupted.instead is None
    assert clean.against(corrupted) is clean
    logits = torch.randn(4, clean.n_answers, len(tokenizer), generator=torch.Generator().manual_seed(0))
    at_query, rows = logits[:, -1], torch.arange(4)
    expected = at_query[rows, clean.answers[:, -1]] - at_query[rows, clean.instead]
    assert torch.equal(clean.answer(logits), expected)
    assert "firsts" not in clean.origin
    assert corrupted.origin["corruption"] == "given"


def test_lines_without_answers_end_with_them(tmp_path):
    tokenizer = made.byte_level()
    lines = [{"clean": sentence[:-1], "corrupted": "The capital of Spain is Berlin"} for sentence in SENTENCES]
    clean, corrupted = from_jsonl(written(tmp_path, *({"clean": line["clean"]} for line in lines)), tokenizer)
    assert corrupted is None
    assert torch.equal(clean.answers, from_texts([line["clean"] for line in lines], tokenizer).answers)
    clean, corrupted = from_jsonl(written(tmp_path, lines[0]), tokenizer)
    assert corrupted.name(corrupted.answers.item()) == "' Berlin'"
    assert clean.against(corrupted).instead.tolist() == corrupted.answers[:, 0].tolist()
    _, corrupted = from_jsonl(written(tmp_path, *({k: v for k, v in line.items() if k != "wrong"} for line in pairs())),
                              tokenizer)  # fmt: skip
    assert corrupted.answers.tolist() == [[-1]] * 4, "what follows the corrupted text is not known"


def test_of_several_tokens_the_first_stands_for_an_answer(tmp_path):
    tokenizer = made.byte_level()
    line = {"clean": QUESTIONS[0], "answer": " Paris by the sea", "wrong": " Berlin"}
    clean, _ = from_jsonl(written(tmp_path, line), tokenizer)
    assert clean.name(clean.answers.item()) == "' Paris'"
    [told] = clean.origin["firsts"]
    assert re.fullmatch(r"line 1: answer ' Paris by the sea' has \d tokens: ' Paris' stands for it", told)
    path = written(tmp_path, line | {"wrong": " Paris in Texas"})
    refused("line 1: the answer and 'wrong' ' Paris in Texas' begin with the same token", from_jsonl, path, tokenizer)


def test_the_space_of_an_answer_is_the_one_that_is_given(tmp_path):
    tokenizer = made.byte_level()
    clean, _ = from_jsonl(written(tmp_path, {"clean": "The capital", "answer": "of"}), tokenizer)
    assert clean.answers.item() == plain(tokenizer, "of")[0] != plain(tokenizer, " of")[0]


def test_an_answer_is_read_as_it_follows_the_text(tmp_path):
    tokenizer = made.metaspace()
    context, both = plain(tokenizer, "The capital €"), plain(tokenizer, "The capital €of")
    clean, _ = from_jsonl(written(tmp_path, {"clean": "The capital €", "answer": "of"}), tokenizer)
    assert [*clean.tokens[0].tolist(), clean.answers.item()] == [tokenizer.bos_token_id, *context, both[len(context)]]
    assert clean.name(clean.answers.item()).startswith("'o")
    assert clean.name(plain(tokenizer, "of")[0]) == "' of'", "alone it would begin a text"


def test_chat_lines_have_their_answer_behind_the_template(tmp_path):
    tokenizer = made.byte_level()
    clean, corrupted = from_jsonl(written(tmp_path, *pairs()), tokenizer, chat=True)
    assert [clean.name(t) for [t] in clean.answers.tolist()] == [f"' {city}'" for city in CAPITALS.values()]
    assert clean.tokens.shape == corrupted.tokens.shape
    unknown, _ = from_jsonl(written(tmp_path, {"clean": "Hi"}), tokenizer, chat=True)
    assert unknown.answers.item() == -1


def test_masked_lines_have_their_answer_at_the_mask(tmp_path):
    tokenizer = made.word_piece()
    lines = [{key: f"{text} [MASK]." if "The" in text else text for key, text in line.items()} for line in pairs()]
    clean, corrupted = from_jsonl(written(tmp_path, *lines), tokenizer, masked=True)
    assert [clean.name(t) for [t] in clean.answers.tolist()] == [f"' {city.lower()}'" for city in CAPITALS.values()]
    assert torch.equal(corrupted.answers[:, 0], clean.instead)
    path = written(tmp_path, {"clean": "The capital is", "answer": "Rome"})
    refused("line 1: 'clean' has no mask", from_jsonl, path, tokenizer, masked=True)
    path = written(tmp_path, {"clean": "The capital is [MASK]", "answer": " "})
    refused("prompts.jsonl, line 1: 'answer' ' ' has no tokens", from_jsonl, path, tokenizer, masked=True)


LINE = {"clean": QUESTIONS[0], "answer": " Paris"}


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ([LINE, "{clean"], "line 3 is no JSON"), ([], "has no lines"), ([LINE, [1]], "line 3 has no 'clean'"),
        ([{"answer": "a"}], "line 1 has no 'clean'"), ([LINE | {"wrnog": "a"}], "line 1 has 'wrnog'"),
        ([LINE | {"answer": 5}], "line 1: 'answer' must be a text and is 5"), ([{"clean": ""}], "line 1: 'clean'"),
        ([LINE, {"clean": "a"}], "line 1 has 'answer' and line 3 has not"),
        ([{"clean": "a b"}, LINE], "line 3 has 'answer' and line 1 has not"),
        ([LINE | {"corrupted": "The capital"}], "line 1: 'clean' has 6 tokens and 'corrupted' 3"),
        ([LINE | {"corrupted": LINE["clean"]}], "line 1: 'clean' and 'corrupted' are the same"),
        ([LINE, LINE | {"clean": "The capital"}], "3, 6 tokens.*one line of .*prompts.jsonl"),
        ([LINE | {"wrong": " Paris"}], "same token"),
    ],
)  # fmt: skip
def test_lines_that_do_not_fit_are_named(lines, match, tmp_path):
    refused(match, from_jsonl, written(tmp_path, *lines), made.byte_level())


def test_wrong_answers_need_right_ones(tmp_path):
    path = written(tmp_path, {"clean": "Hi", "wrong": " a"})
    refused("line 1 has 'wrong' and no 'answer'", from_jsonl, path, made.byte_level(), chat=True)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"x" * 100 + "naïve".encode("latin-1"))
    (tmp_path / "none.txt").touch()
    for make, options in ((from_jsonl, {}), (from_file, {"length": 4, "n_prompts": 1})):
        refused("no file at", make, tmp_path / "nothing", made.bare(), **options)
        refused("cannot be read", make, tmp_path, made.bare(), **options)
        refused(r"latin.txt is no UTF-8 \(byte 102\)", make, tmp_path / "latin.txt", made.bare(), **options)
        refused("is empty|has no lines", make, tmp_path / "none.txt", made.bare(), **options)


# Windows


def numbered(path, n=3000):
    """A file whose every line says which it is."""
    path.write_text("".join(f"line {i:06d} of the text, ünd so on.\n" for i in range(n)), "utf-8")
    return path


def covered(path, prompts, tokenizer):
    """The stretch of the file that each window holds, its last answer included."""
    text, spans = path.read_text("utf-8"), []
    for tokens, answers in zip(prompts.tokens, prompts.answers, strict=True):
        ids = [token for token in [*tokens.tolist(), answers[-1].item()] if token not in tokenizer.all_special_ids]
        window = tokenizer.decode(ids).strip("\ufffd")
        assert text.count(window) == 1
        start = text.index(window)
        spans.append((start, start + len(window)))
    return sorted(spans)


@CAUSAL
def test_windows_do_not_overlap_nor_do_those_to_fit_and_to_measure(make, tmp_path):
    tokenizer, path = make(), numbered(tmp_path / "text.txt")
    spans = []
    for part, length, n in (("test", 24, 60), ("train", 24, 60), ("train", 61, 20)):
        prompts = from_file(path, tokenizer, length, n, part=part)
        assert prompts.tokens.shape == (n, length)
        assert torch.equal(prompts.answers[:, :-1], prompts.tokens[:, 1:])
        assert prompts.read_at == slice(0, length)
        if make is not made.bare:
            assert (prompts.tokens[:, 0] == tokenizer.bos_token_id).all()
            assert not torch.isin(prompts.answers, torch.tensor(tokenizer.all_special_ids)).any()
        spans.append(covered(path, prompts, tokenizer))
        assert all(end <= start for (_, end), (start, _) in zip(spans[-1], spans[-1][1:], strict=False))
    test, *train = spans
    assert not any(a < d and c < b for a, b in test for part in train for c, d in part)


def test_a_seed_gives_the_same_windows_and_another_one_others(tmp_path):
    path, tokenizer = numbered(tmp_path / "text.txt"), made.byte_level()
    one, again, other = (from_file(path, tokenizer, 16, 20, seed) for seed in (0, 0, 1))
    assert torch.equal(one.tokens, again.tokens)
    assert not torch.equal(one.tokens, other.tokens)
    assert torch.equal(from_file(path, tokenizer, 16, 5).tokens, one.tokens[:5])
    expected = {"file": "text.txt", "part": "test", "length": 16, "held_out_seed": 0, "n_prompts": 20}
    assert expected.items() <= one.origin.items()


def test_masked_windows_are_read_where_they_are_masked(tmp_path):
    path, tokenizer = numbered(tmp_path / "text.txt"), made.word_piece()
    prompts = from_file(path, tokenizer, 40, 10, masked=True)
    assert prompts.tokens.shape == (10, 40)
    masked = prompts.tokens == tokenizer.mask_token_id
    assert masked.nonzero()[:, 1].reshape(10, -1).tolist() == [list(prompts.read_at)] * 10
    assert prompts.n_answers == round(0.15 * 38)
    whole = prompts.tokens.masked_scatter(masked, prompts.answers)
    text = " ".join(path.read_text("utf-8").lower().replace("ü", "u").split())
    for row in whole.tolist():
        assert row[0] == tokenizer.cls_token_id
        assert row[-1] == tokenizer.sep_token_id
        window = tokenizer.decode(row[1:-1], clean_up_tokenization_spaces=False).replace(" ", "")
        assert window.removeprefix("##") in text.replace(" ", "")


def test_any_file_gives_two_halves(tmp_path):
    """A single line, lines of many lengths, a byte order mark: nothing is lost or in both halves."""
    tokenizer = made.bare()
    texts = {
        "one line": "abcdefgh ü" * 300, "closed line": "abcdefgh ü" * 300 + "\n",
        "short then long": "a\n" + "b ü" * 999, "long then short": "bc ü" * 999 + "\n" + 9 * "a\n",
        "marked": "\ufeff" + "abc def\n" * 300, "other ends": "abc ü def\r\n" * 300,
    }  # fmt: skip
    for name, text in texts.items():
        path = tmp_path / name
        path.write_bytes(text.encode())
        for part in ("train", "test"):
            prompts = from_file(path, tokenizer, 8, 5, part=part)
            assert "\ufeff" not in tokenizer.decode(prompts.tokens[0].tolist()), name
            assert prompts.n_prompts == 5


def test_only_what_is_needed_of_a_large_file_is_tokenised(tmp_path):
    path, tokenizer = numbered(tmp_path / "large.txt", 200_000), made.byte_level()
    seen = 0

    class Counting(type(tokenizer)):
        def __call__(self, text, **options):
            nonlocal seen
            seen += len(text)
            return super().__call__(text, **options)

    counting = Counting(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>")
    assert path.stat().st_size > 7e6
    prompts = from_file(path, counting, 32, 40)
    assert prompts.n_prompts == 40
    assert seen < 20_000


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"length": 0}, r"length \(0\) must be at least 1"), ({"n_prompts": 0}, r"prompts \(0\)"),
        ({"seed": -1}, "seed"), ({"part": "half"}, "'half'"),
        ({"n_prompts": 10_000}, r"gives \d+ windows of 8 tokens to measure on, and 10000"),
        ({"length": 10**6, "part": "train"}, "gives 0 windows of 1000000 tokens to fit on"),
        ({"masked": True}, "no mask token"),
    ],
)  # fmt: skip
def test_windows_that_are_not_there_are_refused(options, match, tmp_path, unchecked):
    path = numbered(tmp_path / "text.txt", 100)
    refused(match, from_file, path, made.byte_level(), **({"length": 8, "n_prompts": 2} | options))


def test_the_room_of_tasks_imports_no_transformers():
    code = (
        "import sys, loopprobe.tasks, loopprobe.tasks.text_lines, loopprobe.tasks.text_windows;"
        "print({'transformers', 'tokenizers'} & sys.modules.keys())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
