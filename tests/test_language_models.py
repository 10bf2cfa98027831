"""Language models from folders in transformers' layout, under every probe and verb that they support."""

import json
import re

import numpy as np
import pytest
import torch
from looped_others import albert, dory, hrm_text, save

from loopprobe import figures, load, probe
from loopprobe.errors import LoopprobeError
from loopprobe.model.interventions import edited, replace
from loopprobe.probes.dataset import read_dataset, write_dataset
from loopprobe.probes.questions import Question, answer, prepare
from loopprobe.probes.registry import PROBES
from loopprobe.show.present import tables_for
from loopprobe.store.checkpoint import load_checkpoint
from loopprobe.store.inspection import inspect
from loopprobe.store.subject import PromptSpec

MAKERS = {"dory": dory, "hrm_text": hrm_text, "albert": albert}
TEXTS = ("def step(model, z)", "def stop(model, z)")
OPTIONS = {
    "mask": {"n": (0, 1, 3), "loops": 4},
    "converge": {"loops": 6, "states": 1, "far": 140},
    "lens": {"loops": 3},
    "patch": {"loops": 2, "sites": ("z", "attn_z", "resid_mid")},
    "attention": {"loops": 3},
    "paths": {"loops": 130},
    "fixed_points": {"far": 130, "random_starts": 0, "lyapunov_steps": 5, "max_iterations": 5, "eigenvalues": 2},
    "recover": {"loops": 2},
    "failures": {"loops": 130, "spectra": False},
    "exit": {"loops": 4},
    "explore": {"loops": 3, "reset": (0,)},
    "ablate": {"loops": 2, "methods": ("zero",)},
    "edges": {"loops": 2, "exact": 2, "steps": 1},
    "steer": {"loops": 2, "unit": "norm", "strengths": (0, 1), "controls": 1, "direction": torch.ones(1)},
    "circuit": {"loops": 2, "steps": 1, "random": 1, "per_decade": 1},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    return {name: save(make(), root / name) for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def subjects(folders):
    return {name: load_checkpoint(f"hf:{folder}") for name, folder in folders.items()}


@pytest.mark.parametrize(
    "name", ["dory", *(pytest.param(name, marks=pytest.mark.slow) for name in MAKERS if name != "dory")]
)
@pytest.mark.parametrize("asked", OPTIONS)
def test_every_probe_takes_every_architecture(name, asked, subjects, tmp_path):
    subject = subjects[name]
    prompts = subject.draw(PromptSpec(text=TEXTS))
    data = probe(asked, subject, prompts, **OPTIONS[asked])
    write_dataset(data, tmp_path / "data.nc")
    data = read_dataset(tmp_path / "data.nc")
    assert figures([data])
    assert tables_for([data])
    module = subject.model.module
    assert not any(
        part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part) for part in module.modules()
    )
    logits = module(*prompts.inputs).logits[:, prompts.query]
    nats = -logits.log_softmax(-1).gather(-1, prompts.answers[:, -1:])[:, 0].detach()
    trained = subject.model.sizes.n_loops
    if asked == "converge":
        np.testing.assert_allclose(data.error.sel(loop=trained), nats, rtol=1e-4)
        assert float(data.to_last[-1]) == pytest.approx(0, abs=1e-6)
    if asked == "exit" and trained <= 4:
        np.testing.assert_allclose(data.budget_mean.sel(loop=trained), nats.mean(), rtol=1e-4)


@pytest.mark.parametrize("asked", sorted(PROBES.keys() - OPTIONS.keys() - {"curves"}))
def test_probes_of_other_models_are_refused_in_one_line(asked, subjects):
    subject = subjects["dory"]
    with pytest.raises(LoopprobeError) as error:
        probe(asked, subject, subject.draw(PromptSpec(text=TEXTS)))
    assert "\n" not in str(error.value)


def test_the_lens_reads_with_the_own_coda(subjects):
    """Read by hand: the coda put to the stream after the first layer of the second loop."""
    subject = subjects["dory"]
    prompts = subject.draw(PromptSpec(text=TEXTS))
    data = probe("lens", subject, prompts, loops=3)
    assert data.lens.values.tolist() == ["coda"]
    with torch.no_grad():
        _, cache = subject.model.run_with_cache(*prompts.inputs, n_loops=3, names=["resid_post", "embed"])
        read = subject.model.predict(cache[1, "resid_post", 0], cache["hook_embed"], read_at=prompts.read_at)
        final = subject.model(*prompts.inputs, n_loops=3)[-1][:, prompts.read_at]
    site = data.sel(loop=2, site="0 MLP", lens="coda")
    of_query = prompts.errors(read)[:, -1], prompts.distance(read, final)[:, -1]
    errors, distances = (np.median(values.numpy()) for values in of_query)
    assert float(site.query_error) == pytest.approx(errors, rel=1e-5)
    assert float(site.query_to_final) == pytest.approx(distances, rel=1e-3)
    best = [prompts.name(int(token)) for token in read[:, -1].argmax(-1)]
    assert data.top_answer.sel(loop=2, site="0 MLP").isel(answer=-1, top=0).values.tolist() == best
    assert (data.settled >= 1).all()


def test_pairs_are_patched_between_their_own_texts(folders, tmp_path):
    lines = [
        {"clean": "def step(model, z, e", "corrupted": "def stop(model, z, e", "answer": ",", "wrong": ")"},
        {"clean": "def step(model, e, z", "corrupted": "def stop(model, e, z", "answer": ",", "wrong": ")"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    name, options = f"hf:{folders['dory']}", {"loops": 2, "sites": ("z",)}
    question = Question(probe="patch", checkpoints=(name,), options=options, text_pairs=str(path))
    [prepared] = prepare(question)
    [data] = answer([prepared])
    model, prompts = prepared.checkpoint.model, prepared.prompts
    right, wrong = prompts.answers[:, -1], prompts.instead
    logits = model(*prompts.inputs, n_loops=2)[-1][:, prompts.query]
    clean = (logits.gather(-1, right[:, None]) - logits.gather(-1, wrong[:, None]))[:, 0].detach()
    np.testing.assert_allclose(data.clean, clean, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        _, donor = model.run_with_cache(*prompts.inputs, n_loops=2, names="z")
        with edited(model, "z", replace(donor), loops=1, positions=[prompts.query]):
            patched = prompts.answer(model(*prepared.given["corrupted"].inputs, n_loops=2)[-1][:, [prompts.query]])
    np.testing.assert_allclose(
        data.z_moved.sel(loop=2, position=prompts.query), patched.numpy() - data.corrupted.values, atol=1e-4
    )


def test_windows_of_a_file_have_the_perplexity_of_the_module(subjects, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("\n".join(f"def part_{i}(z): return z + {i * i}" for i in range(2000)))
    subject = subjects["dory"]
    prompts = subject.draw(PromptSpec(text_file=str(path), prompts=3, length=16))
    data = probe("converge", subject, prompts, loops=4, states=0)
    logits = subject.model.module(*prompts.inputs).logits
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), prompts.answers.flatten())
    assert float(data.error_by_point.sel(loop=4).mean()) == pytest.approx(nats.item(), rel=1e-4)
    subject = subjects["hrm_text"]
    prompts = subject.draw(PromptSpec(text_file=str(path), prompts=3, length=16))
    tuned = probe("lens", subject, prompts, loops=2, train_prompts=8)
    assert "tuned" in tuned.lens.values
    assert "8 held-out prompts" in tuned.attrs["fitted_on"]


def test_inspection_tells_what_was_declared(subjects):
    found = inspect(subjects["dory"], 32)
    assert dict(found.parts)["core"] == "model.layers.1–2"
    assert found.injection == "norm(z) + norm(e)"
    assert ("loops.{t}.blocks.{l}.hook_resid_post", "position, d_model", "32 × 32") in found.points
    assert found.bytes_of_loop["resid_post"] == 2 * 32 * 32 * 4
    _, cache = subjects["dory"].model.run_with_cache(torch.ones(1, 32, dtype=torch.int64))
    every = sum(cache[name].nbytes for name in cache if name.startswith("loops.0."))
    assert found.bytes_of_loop["all"] == every
    assert inspect(subjects["albert"]).injection == "z"


@pytest.mark.parametrize("verb", [["inspect"], ["cache", "--loops", "0:2", "--text", TEXTS[0]],
                                  ["lens", "--read", "all", "--text", TEXTS[0]]])  # fmt: skip
def test_verbs_take_language_models(verb, folders, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"hf:{folders['hrm_text']}"
    code, out, err = command(*verb, *([name] if verb == ["inspect"] else ["--ckpt", name]))
    assert code == 0, err
    assert "hrm_text" in out


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("hf:", {}, "names no model"),
        ("hf:{dory}", {"dtype": "int4"}, "dtype .'int4'. must be"),
        ("hf:{dory}@main", {}, "dory is a folder, which has no revisions .@main.: give hf:"),
        ("hf:{dory}", {"revision": "v1"}, "dory is a folder, which has no revisions .@v1.: give hf:"),
        ("hf:raven-docs@main", {}, "raven-docs ships with loopprobe, which has no revisions .@main.: give hf:raven"),
        ("hf:raven-docs", {"revision": "main"}, "raven-docs ships with loopprobe, which has no revisions"),
        ("hf:{empty}", {}, "cannot be read|is a model without a class"),
        ("hf:{other}", {}, "no looped architecture that is known"),
        ("lr-b20-T10", {"n_loops": 3}, "n_loops is of language models and lr-b20-T10 is none"),
    ],
)
def test_what_cannot_be_loaded_gets_one_line(name, options, said, folders, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    (tmp_path / "empty").mkdir()
    small = LlamaConfig(vocab_size=300, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    save(LlamaForCausalLM(small), tmp_path / "other")
    places = {"dory": folders["dory"], "empty": tmp_path / "empty", "other": tmp_path / "other"}
    with pytest.raises(LoopprobeError, match=said) as error:
        load(name.format(**places), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "reads text, and none is given"),
        ({"text": ("a b c",), "text_file": "x"}, "text and text_file is given"),
        ({"text": ("a b c",), "shift": "scale"}, "shift .scale. is of regression tasks"),
        ({"text": ("word " * 100,)}, "reads 64"),
    ],
)
def test_prompts_that_do_not_fit_get_one_line(fields, said, subjects):
    with pytest.raises(LoopprobeError, match=said) as error:
        subjects["dory"].draw(PromptSpec(**fields))
    assert "\n" not in str(error.value)


def test_text_is_refused_by_models_that_read_none():
    with pytest.raises(LoopprobeError, match=re.escape("reads no text (linear_regression)")):
        load_checkpoint("lr-b20-T10").draw(PromptSpec(text=("a",)))


def test_loops_and_precision_are_chosen(folders):
    model = load(f"hf:{folders['dory']}", n_loops=7, dtype="bfloat16")
    assert (model.sizes.n_loops, model.dtype) == (7, torch.bfloat16)
    assert model(torch.ones(1, 4, dtype=torch.int64)).shape == (7, 1, 4, 300)


def test_a_saved_question_is_asked_of_a_language_model(folders, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = ['section = "own"', 'title = "own"', 'asks = "what?"', 'probe = "exit"']
    lines += [f'checkpoints = ["hf:{folders["dory"]}"]', f'text = ["{TEXTS[0]}"]', "[options]", "loops = 4"]
    (tmp_path / "own.toml").write_text("\n".join(lines))
    code, out, err = command("run", "own.toml", "--workers", 1)
    assert code == 0, err
    assert "left out" not in out + err
    assert list(tmp_path.rglob("*.nc"))


def test_axes_of_tokens_carry_their_texts_where_prompts_share_them(subjects):
    def ticks(*texts):
        data = probe("patch", subjects["dory"], subjects["dory"].draw(PromptSpec(text=texts)), loops=1, sites=("z",))
        axis = figures([data])["patch-z"].layout.xaxis
        return axis.ticktext, axis.title.text

    texts, title = ticks("def step(model, z)", "def stop(model, z)")
    assert title == "token"
    assert texts[0].startswith("0 '")
    shared = [text for text in texts if " " in text]
    assert 0 < len(shared) < len(texts), "one token differs, and stands as its number"
    assert ticks("0123456", "7890123")[0] is None
