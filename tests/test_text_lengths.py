"""Texts of several lengths: each is answered as it is alone, in a batch of those of its length."""

import json

import numpy as np
import pytest
from looped_others import albert, dory, hrm_text, save

from loopprobe import figures
from loopprobe.errors import LoopprobeError
from loopprobe.probes.questions import Question, answer, prepare
from loopprobe.show.present import tables_for
from loopprobe.store.checkpoint import load_checkpoint
from loopprobe.store.subject import PromptSpec

MAKERS = {"dory": dory, "hrm_text": hrm_text, "albert": albert}
TEXTS = ("def step(model, z)", "return z", "def stop(model, e)", "for x in z: yield x + 1")
OPTIONS = {
    "mask": {"n": (0, 1, 3), "loops": 3, "unit": "token"},
    "converge": {"loops": 5, "states": 0},
    "lens": {"loops": 3},
    "exit": {"loops": 4},
    "patch": {"loops": 2, "sites": ("z",), "positions": (-1, -2)},
}
PAIRS = [
    {"clean": "def step(model, z, e", "corrupted": "def stop(model, z, e", "answer": ",", "wrong": ")"},
    {"clean": "return step", "corrupted": "return stop", "answer": ",", "wrong": ")"},
    {"clean": "def step(model, e, z", "corrupted": "def stop(model, e, z", "answer": ",", "wrong": ")"},
]
PROMPTS = {"example", "shown"}  # axes


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    return {name: save(make(), root / name) for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def load(folders):
    loaded = {f"hf:{folder}": load_checkpoint(f"hf:{folder}") for folder in folders.values()}
    return lambda name, device, **options: loaded[name]


def written(path, lines):
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


def same_as_alone(together, i, alone):
    """Compare everything that is known of a prompt alone with what is known of it among others; count it."""
    compared = 0
    for name, values in alone.data_vars.items():
        axes = PROMPTS & set(values.dims)
        if axes and values.dtype.kind in "fi":
            several = together[name].isel(dict.fromkeys(axes, i))
            one = values.isel(dict.fromkeys(axes, 0))
            np.testing.assert_allclose(several, one, rtol=1e-5, atol=1e-5, err_msg=str(name))
            compared += 1
    return compared


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("probe", sorted(OPTIONS.keys() - {"patch"}))
def test_each_text_is_answered_as_it_is_alone(probe, name, folders, load):
    def asked(*texts):
        question = Question(probe=probe, checkpoints=(f"hf:{folders[name]}",), options=OPTIONS[probe], text=texts)
        return list(answer(prepare(question, load=load)))

    datasets = asked(*TEXTS)
    seen = [json.loads(data.attrs["prompts"])["texts"] for data in datasets]
    assert sorted(text for texts in seen for text in texts) == sorted(TEXTS)
    assert 1 < len(seen) < len(TEXTS), "two texts share a length"
    for data, texts in zip(datasets, seen, strict=True):
        for i, text in enumerate(texts):
            [alone] = asked(text)
            assert same_as_alone(data, i, alone)
    assert figures(datasets)
    assert tables_for(datasets)


@pytest.mark.parametrize("name", ["dory", "hrm_text"])
def test_pairs_are_patched_at_the_token_that_is_read(name, folders, load, tmp_path):
    def asked(*lines):
        pairs = written(tmp_path / "pairs.jsonl", lines)
        names = (f"hf:{folders[name]}",)
        question = Question(probe="patch", checkpoints=names, options=OPTIONS["patch"], text_pairs=pairs)
        return list(answer(prepare(question, load=load)))

    datasets = asked(*PAIRS)
    assert [json.loads(data.attrs["prompts"])["lines"] for data in datasets] == [[2], [1, 3]]
    for data in datasets:
        for i, number in enumerate(json.loads(data.attrs["prompts"])["lines"]):
            [alone] = asked(PAIRS[number - 1])
            assert int(alone.position[0]) == alone.attrs["query_token"]
            assert same_as_alone(data, i, alone) == 3
            assert (np.abs(alone.z_moved) > 1e-3).any()


def test_batches_hold_their_own_answers(folders, load, tmp_path):
    model = load(f"hf:{folders['dory']}", "cpu")
    lines = [line | {"answer": f" {word} more"} for line, word in zip(PAIRS, ("x", "z", "x"), strict=True)]
    batches = model.batches(PromptSpec(text_pairs=written(tmp_path / "pairs.jsonl", lines)))
    for clean, corrupted in batches:
        numbers = clean.origin["lines"]
        assert [told.split(":")[0] for told in clean.origin["firsts"]] == [f"line {number}" for number in numbers]
        assert clean.tokens.shape == corrupted.tokens.shape
        assert named(clean, [lines[number - 1]["answer"] for number in numbers], model)
        assert len(clean.instead) == len(numbers)


def named(clean, answers, model):
    names = [clean.name(token) for [token] in clean.answers.tolist()]
    return all(answer.startswith(name.strip("'")) for name, answer in zip(names, answers, strict=True))


def test_a_verb_writes_a_file_for_each_length(folders, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = [part for text in TEXTS for part in ("--text", text)]
    code, out, err = command("lens", "--loops", 2, *texts, "--ckpt", f"hf:{folders['dory']}")
    assert code == 0, err
    [folder] = tmp_path.glob("**/lens-dory-3-lengths*")
    sizes = sorted(int(path.stem.split("-")[2]) for path in folder.glob("lens-dory-*-tokens.nc"))
    assert sizes == sorted({len(ids) for ids in read_tokens(folders["dory"])})
    assert f"dory-{sizes[0]}-tokens" in out


def read_tokens(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer(text)["input_ids"][:-1] for text in TEXTS]


def test_one_batch_of_several_lengths_is_refused_in_one_line(folders, load):
    with pytest.raises(LoopprobeError, match=r"several lengths \(\d+, \d+, \d+ tokens\).*--length") as error:
        load(f"hf:{folders['dory']}", "cpu").draw(PromptSpec(text=TEXTS))
    assert "\n" not in str(error.value)


def test_what_does_not_fit_one_of_the_lengths_is_said_before_anything_runs(folders, load):
    names, options = (f"hf:{folders['dory']}",), {"n": (6,), "loops": 2, "unit": "token"}
    with pytest.raises(LoopprobeError, match="n"):
        prepare(Question(probe="mask", checkpoints=names, options=options, text=TEXTS), load=load)
