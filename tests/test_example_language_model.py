"""The looped language model of ``examples/language_model``: loops, states, cache, round trip, training, corpus."""

import importlib.util
import json
import math
import string
import sys
from pathlib import Path

import pytest
import torch
import transformers.dynamic_module_utils
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = Path(__file__).parents[1] / "examples" / "language_model"


def load_module(name):
    """A script of the example, under the name by which its neighbour imports it."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


corpus = load_module("corpus")
raven = load_module("modeling_raven")
SIZES = {"n_embd": 32, "n_heads": 4, "intermediate_size": 48, "vocab_size": 40, "block_size": 64, "mean_recurrence": 3}
WORDS = [a + b for a in "aeiou bcdfg hjklm npqrs tvwxy".replace(" ", "") for b in string.ascii_lowercase]
TOKENS = torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(1))


def make_raven(**fields):
    """A tiny model whose every parameter is random."""
    torch.manual_seed(0)
    model = raven.RavenForCausalLM(raven.RavenConfig(**(SIZES | fields))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def by_hand(model, tokens, state, n_loops):
    """The logits after so many loops, written out over the submodules."""
    parts, freqs = model.transformer, model.freqs_cis[:, : tokens.shape[1]]
    e = parts.wte(tokens) * model.config.n_embd**0.5
    for block in parts.prelude:
        e = block(e, freqs, 0)
    z = state
    for _ in range(n_loops):
        z = torch.cat([z, e], -1) @ parts.adapter.weight.T
        for block in parts.core_block:
            z = block(z, freqs, 0)
    z = parts.ln_f(z)
    for block in parts.coda:
        z = block(z, freqs, 0)
    return parts.ln_f(z) @ parts.wte.weight.T


@pytest.fixture
def states():
    return torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("num_steps", [1, 4, (0, 4), (2, 1)])
def test_logits_are_those_of_a_loop_by_hand(states, num_steps):
    model = make_raven()
    logits = model(TOKENS, input_states=states, num_steps=num_steps).logits
    n_loops = num_steps if isinstance(num_steps, int) else sum(num_steps)
    torch.testing.assert_close(logits, by_hand(model, TOKENS, states, n_loops), atol=1e-6, rtol=1e-6)
    assert logits.requires_grad


def test_a_block_is_attention_and_a_gated_layer_between_norms(states):
    model = make_raven()
    block, x = model.transformer.coda[0].double(), states.double()

    def norm(x, layer):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.weight

    q, k, v = (norm(x, block.norm_1) @ block.attn.Wqkv.weight.T).view(2, 9, 3, 4, 8).unbind(2)
    angles = torch.arange(9.0)[:, None] / 10_000 ** (torch.arange(0, 8, 2) / 8)
    turn = torch.polar(torch.ones_like(angles), angles).to(torch.complex128)[None, :, None]
    q, k = q + block.attn.qk_bias[0], k + block.attn.qk_bias[1]
    q, k = (torch.view_as_complex(y.unflatten(-1, (4, 2)).contiguous()) * turn for y in (q, k))
    q, k = torch.view_as_real(q).flatten(-2), torch.view_as_real(k).flatten(-2)
    scores = torch.einsum("bqhd, bkhd -> bhqk", q, k) / 8**0.5
    pattern = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), float("-inf")).softmax(-1)
    z = torch.einsum("bhqk, bkhd -> bqhd", pattern, v).flatten(2) @ block.attn.proj.weight.T
    mid = norm(x + z, block.norm_2)
    gate, up = (norm(mid, block.norm_3) @ block.mlp.fc.weight.T).chunk(2, -1)
    end = norm(mid + (torch.nn.functional.silu(gate) * up) @ block.mlp.proj.weight.T, block.norm_4)
    torch.testing.assert_close(block(x, model.freqs_cis[:, :9], 0), end, atol=1e-6, rtol=1e-6)


def test_loops_follow_the_configuration_in_evaluation_and_chance_in_training(states):
    model = make_raven()
    three = model(TOKENS, input_states=states, num_steps=3).logits
    assert torch.equal(model(TOKENS, input_states=states).logits, three)
    model.train()
    torch.manual_seed(0)
    drawn = torch.tensor([model.randomized_iteration_sampler() for _ in range(4000)], dtype=torch.float32)
    assert drawn.sum(1).mean() == pytest.approx(4, abs=0.15)  # a mean of 3, and one
    assert drawn[:, 1].max() == model.config.mean_backprop_depth
    assert drawn.sum(1).min() == 1


def test_the_first_loops_without_gradient_pass_none(states):
    model = make_raven()
    start = states.requires_grad_()
    logits = model(TOKENS, input_states=start, num_steps=(0, 2)).logits
    assert torch.autograd.grad(logits.sum(), start)[0].abs().sum() > 0
    logits = model(TOKENS, input_states=start, num_steps=(1, 1)).logits
    assert torch.autograd.grad(logits.sum(), start, allow_unused=True)[0] is None


def test_a_state_given_is_where_the_loops_go_on(states):
    model = make_raven()
    seen = []
    handle = model.transformer.core_block[-1].register_forward_hook(lambda _, __, out: seen.append(out))
    logits = model(TOKENS, input_states=states, num_steps=3).logits
    handle.remove()
    assert len(seen) == 3
    torch.testing.assert_close(model(TOKENS, input_states=seen[0], num_steps=2).logits, logits, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(model(TOKENS, input_states=states + 1, num_steps=3).logits, logits, atol=1e-3)


def test_states_at_the_start_are_drawn_cut_at_three_deviations_or_zero():
    embeds = torch.zeros(50, 50, 32)
    torch.manual_seed(0)
    drawn = make_raven().initialize_state(embeds)
    scale = (2 / (5 * 32)) ** 0.5 * 32**0.5
    assert drawn.std() == pytest.approx(0.9866 * scale, rel=0.01)  # a normal distribution cut at three deviations
    assert drawn.abs().max() <= 3 * scale
    assert not make_raven(state_init="zero").initialize_state(embeds).any()


@pytest.mark.parametrize("num_steps", [None, 5])
def test_generation_with_a_cache_equals_generation_without(num_steps):
    model = make_raven(state_init="zero")
    lengths = []
    model.transformer.wte.register_forward_hook(lambda _, args, __: lengths.append(args[0].shape[1]))
    options = {"max_new_tokens": 8, "do_sample": False, "num_steps": num_steps, "return_dict_in_generate": True,
               "output_logits": True, "attention_mask": torch.ones_like(TOKENS)}  # fmt: skip
    cached = model.generate(TOKENS, use_cache=True, **options)
    assert lengths == [9, *[1] * 7]
    plain = model.generate(TOKENS, use_cache=False, **options)
    assert lengths[8:] == list(range(9, 17))
    assert torch.equal(cached.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(plain.logits), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_on_the_left_changes_no_logits(states, attention):
    model = make_raven()
    model.set_attn_implementation(attention)
    logits = model(TOKENS, input_states=states).logits
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.int64), TOKENS], 1)
    mask = torch.cat([torch.zeros(2, 3), torch.ones(2, 9)], 1).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    longer = torch.cat([states[:, :3], states], 1)
    got = model(padded, input_states=longer, attention_mask=mask, position_ids=positions).logits[:, 3:]
    torch.testing.assert_close(got, logits, atol=1e-5, rtol=1e-5)


@pytest.fixture
def modules_in_tmp_path(tmp_path, monkeypatch):
    """Remote code is copied to, and imported from, a folder of the test."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "transformers_modules":
            del sys.modules[name]


@pytest.mark.usefixtures("modules_in_tmp_path")
def test_a_folder_round_trips_as_remote_code(tmp_path, states):
    model = make_raven(mean_recurrence=5, rope_base=500.0)
    model.save_pretrained(tmp_path / "one")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "one", trust_remote_code=True)
    assert type(loaded).__module__.startswith("transformers_modules.")
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    logits = model(TOKENS, input_states=states).logits
    assert torch.equal(loaded(TOKENS, input_states=states).logits, logits)
    loaded.save_pretrained(tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "modeling_raven.py",
    ]  # fmt: skip
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two")]
    assert configs[0] == configs[1]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "two", trust_remote_code=True)
    assert torch.equal(again(TOKENS, input_states=states).logits, logits)


@pytest.mark.usefixtures("modules_in_tmp_path")
def test_weights_in_half_precision_load_in_single_precision(tmp_path):
    model = make_raven()
    model.save_pretrained(tmp_path / "half")
    file = tmp_path / "half" / "model.safetensors"
    halves = {name: w if name == "freqs_cis" else w.half() for name, w in load_file(file).items()}
    save_file(halves, file, metadata={"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "half", trust_remote_code=True)
    for name, weight in loaded.state_dict().items():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, model.state_dict()[name], atol=1e-3, rtol=1e-3)
    low = AutoModelForCausalLM.from_pretrained(tmp_path / "half", trust_remote_code=True, dtype=torch.bfloat16)
    assert low.freqs_cis.dtype == torch.float32
    assert torch.equal(low.freqs_cis, model.freqs_cis)


def test_steps_of_training_learn_a_batch():
    train = load_module("train")
    model = make_raven().train()
    optims = train.optimizers(model, 1e-2, 5e-3)
    trained = sum(len(optim.param_groups[0]["params"]) for optim in optims)
    assert trained == len(list(model.parameters()))
    torch.manual_seed(0)
    labels = TOKENS.roll(-1, 1)
    losses = []
    for _ in range(30):
        loss = model(TOKENS, labels=labels).loss
        losses.append(loss.item())
        loss.backward()
        for optim in optims:
            optim.step()
            optim.zero_grad()
    assert losses[-1] < losses[0] / 4


def test_labels_are_the_answers_at_their_positions(states):
    model = make_raven()
    labels = TOKENS.roll(-1, 1)
    out = model(TOKENS, input_states=states, labels=labels)
    expected = -out.logits.log_softmax(-1).gather(2, labels[..., None]).mean()
    torch.testing.assert_close(out.loss, expected)


def test_the_corpus_keeps_sentences_and_leaves_code():
    text = """Return the sum of a set of values.

    The values are added in the order in which they come, see :func:`~numpy.sum`.

    Parameters
    ----------
    values : array_like
        Numbers that are added, one after the other, from the left.

    >>> total([1, 2]) gives what one expects of it, namely three.
    """
    assert list(corpus.prose(text)) == [
        "Return the sum of a set of values.",
        "The values are added in the order in which they come, see numpy.sum.",
        "Numbers that are added, one after the other, from the left.",
    ]


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method:DeprecationWarning")  # torch.compile, when imported
@pytest.mark.usefixtures("modules_in_tmp_path")
def test_corpus_tokenizer_and_weights_become_a_folder_that_is_evaluated(tmp_path, monkeypatch, capsys):
    train, work, folder = load_module("train"), tmp_path / "work", tmp_path / "folder"
    texts = [f"The sum of {w} values is returned here.\n\n    The {w} values come first, then others." for w in WORDS]
    monkeypatch.setattr(corpus, "sources", lambda: [("torch", text) for text in [*texts, *texts]])
    monkeypatch.setattr(corpus, "PACKAGES", ["torch"])
    corpus.prepare(work)
    held_out = [json.loads(line)["text"] for line in (work / "held_out.jsonl").read_text().splitlines()]
    kept = [json.loads(line)["text"] for line in (work / "train.jsonl").read_text().splitlines()]
    assert len(held_out) == len(texts) // 50
    assert len({*held_out, *kept}) == len(held_out) + len(kept) == len(texts)  # what came twice is there once
    assert json.loads((work / "corpus.json").read_text())["packages"]["torch"]["version"] == torch.__version__

    train.train(work, minutes=0)
    train.export(work, folder)
    capsys.readouterr()
    train.evaluate(folder, n_windows=2)
    table = capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert tokenizer.decode(tokenizer(held_out[0])["input_ids"]) == held_out[0]
    stream = tokenizer("".join(f"<|endoftext|>{text}" for text in held_out), return_tensors="pt")["input_ids"][0]
    rows = torch.stack([stream[:129], stream[128:257]])
    torch.manual_seed(0)
    losses = torch.nn.functional.cross_entropy(model(rows[:, :-1], num_steps=3).logits.mT, rows[:, 1:])
    n_bytes = len("".join(tokenizer.batch_decode(rows[:, 1:])).replace("<|endoftext|>", "!"))
    bits = 256 * losses.item() / math.log(2) / n_bytes
    row = next(line for line in table.splitlines() if line.startswith("| 3 |"))
    assert [float(cell) for cell in row.split("|")[2:4]] == pytest.approx([losses.exp().item(), bits], rel=1e-3)


@pytest.mark.usefixtures("modules_in_tmp_path")
def test_the_weights_that_ship_read_text_that_they_never_saw_and_better_in_a_loop():
    train, folder = load_module("train"), FOLDER.parents[1] / "checkpoints" / "hub" / "raven-docs"
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert (folder / "modeling_raven.py").read_text() == (FOLDER / "modeling_raven.py").read_text()
    rows = train.windows(tokenizer, folder / "held_out.jsonl")[:8]
    once, thrice, often = (train.perplexity(model, rows, n) for n in (1, 3, 32))
    assert 1.05 * thrice < once < 60
    assert often == pytest.approx(thrice, rel=0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("modules_in_tmp_path")
def test_the_perplexity_by_loops_that_the_documentation_shows_is_that_of_the_command():
    """One and four loops are measured again, in full; the other columns are those of the example's own page."""
    train, folder = load_module("train"), FOLDER.parents[1] / "checkpoints" / "hub" / "raven-docs"
    lines = (FOLDER.parents[1] / "docs" / "howto" / "language_models.md").read_text().splitlines()
    top = next(i for i, line in enumerate(lines) if line.startswith("| loops | 1 |"))
    shown = list(
        zip(*([cell.strip() for cell in lines[i].split("|")[2:-1]] for i in (top, top + 2, top + 3)), strict=True)
    )
    page = (FOLDER / "README.md").read_text().splitlines()
    assert all(f"| {' | '.join(column)} |" in page for column in shown)
    assert f"{shown[0][0]} {shown[3][0]} {shown[-1][0]}" == "1 4 64"
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    rows = train.windows(tokenizer, folder / "held_out.jsonl")[:160]
    for loops, perplexity, _ in (shown[0], shown[3]):
        assert train.perplexity(model, rows, int(loops)) == pytest.approx(float(perplexity), abs=0.011)
