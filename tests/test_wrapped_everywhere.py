"""What works on one wrapped architecture works on all: edits by number, mean fills, caches on disk, gradients, text."""

import pytest
import torch
from looped_others import BY_HAND, VOCABULARY, WIDTH, albert, dory, draw, hrm_text, save, wrapped
from test_example_language_model import make_raven
from test_wrapped import by_hand

from loopprobe import load_checkpoint, masked, probe, wrap
from loopprobe.errors import LoopprobeError
from loopprobe.model.cache import LoopCache
from loopprobe.model.interventions import edited, replace, zero
from loopprobe.model.masks import mean_states
from loopprobe.probes.registry import PROBES
from loopprobe.store.subject import PromptSpec
from loopprobe.tasks import TextPrompts

EVERY = sorted([*BY_HAND, "huginn"])
MAPS = [name for name in EVERY if name != "inkling"]
ATTENTIVE = [name for name in EVERY if name not in ("own", "huginn")]
WRITING = [name for name in EVERY if name not in ("own", "albert")]


def make(name):
    if name == "huginn":
        return wrap(make_raven(block_size=64, vocab_size=VOCABULARY, state_init="zero"))
    model = wrapped(name)
    if hasattr(model.module, "generation_config"):
        model.module.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def models():
    return {name: make(name) for name in EVERY}


def inputs_of(name):
    return draw("dory" if name == "huginn" else name)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(BY_HAND))
@pytest.mark.parametrize("positions", [2, -1, [1, -2], slice(3, None)])
def test_positions_by_number_are_those_of_the_loop_by_hand(name, positions, models):
    model, inputs = models[name], inputs_of(name)
    at = [positions] if isinstance(positions, int) else positions

    def by_number(loop, layer, x):
        if (loop, layer) != (1, 0):
            return x
        x = x.clone()
        x[:, at] = 0
        return x

    with torch.no_grad():
        _, _, expected = by_hand(name, model.module, inputs, 3, by_number)
        with edited(model, "resid_post", zero, loops=1, layers=0, positions=positions):
            found = model(inputs, n_loops=3)
        assert not torch.allclose(found, model(inputs, n_loops=3), atol=1e-3)
    close(found, expected)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_heads_and_positions_by_number_are_what_a_hook_says_of_them(name, models):
    """The output of two heads at one token is the sum of values under the pattern; there it is that of another."""
    model, inputs = models[name], inputs_of(name)
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs, n_loops=3, names=["attn_z", "resid_post"])

        def by_hand_there(x, hook):
            x = x.clone()
            x[:, 4, [1, 3]] = 0
            return x

        with model.hooks([("loops.2.blocks.0.attn.hook_z", by_hand_there)]):
            expected, there = model.run_with_cache(inputs, n_loops=3, names=["attn_z", "resid_post"])
        with edited(model, "attn_z", zero, loops=-1, layers=0, heads=[1, -1], positions=-3):
            found = model(inputs, n_loops=3)
    assert torch.equal(found, expected)
    changed = (there[2, "resid_post", 0] != cache[2, "resid_post", 0]).any(-1).any(0)
    assert changed.nonzero()[0].item() == 4, "that token first"
    assert torch.equal(there[1, "resid_post", 0], cache[1, "resid_post", 0]), "in that loop first"


@pytest.mark.parametrize("name", sorted(set(MAPS) & set(BY_HAND)))
def test_the_mean_fill_is_that_of_the_loop_by_hand(name, models):
    model, inputs, hand, keep = models[name], inputs_of(name), BY_HAND[name], 2
    prompts = TextPrompts(inputs, torch.zeros(3, 1, dtype=torch.int64)) if name != "own" else None
    with torch.no_grad():
        e = hand.embed(model.module, inputs)
        z, entering = hand.start(model.module, e), []
        for _ in range(3):
            entering.append(z.mean(0, keepdim=True))
            z = hand.step(model.module, z, e, lambda layer, x: x)
        z, expected = hand.start(model.module, e), []
        for loop in range(3):
            z = torch.cat([z[:, :keep], entering[loop][:, keep:].expand_as(z[:, keep:])], 1)
            z = hand.step(model.module, z, e, lambda layer, x: x)
            expected.append(hand.read(model.module, z))
        if prompts is None:
            fill = torch.cat(entering)
        else:
            fill = mean_states(model, prompts.split(2), 3)
            close(fill, torch.cat(entering))
        with masked(model, "first", keep, fill=fill):
            found = model(inputs, n_loops=3)
    close(found, torch.stack(expected))


@pytest.mark.parametrize("name", EVERY)
def test_a_cache_comes_back_from_the_disk(name, models, tmp_path):
    model, inputs = models[name], inputs_of(name)
    _, cache = model.run_with_cache(inputs, n_loops=3)
    cache.save(tmp_path / "cache.safetensors")
    read = LoopCache.load(tmp_path / "cache.safetensors", model)
    assert list(read) == list(cache)
    assert all(torch.equal(read[point], cache[point]) for point in cache)
    layer = model.sizes.n_layers - 1
    assert torch.equal(read.stack("resid_post", layer), cache.stack("resid_post", layer))
    other = inputs.flip(0)
    with torch.no_grad(), edited(model, "resid_post", replace(read), loops=2, layers=layer):
        found = model(other, n_loops=3)
    if name not in ("own", "inkling"):  # in which more than the last stream goes on to the answer
        close(found[-1], model(inputs, n_loops=3)[-1].detach())


@pytest.mark.parametrize("name", sorted(set(MAPS) & set(BY_HAND)))
@pytest.mark.parametrize("point", ["hook_z", "hook_z_pre"])
def test_gradients_of_the_whole_state_are_those_of_the_loop_by_hand(name, point, models):
    """A state in several parts has a gradient in every part."""
    model, inputs, hand = models[name], inputs_of(name), BY_HAND[name]
    weight = torch.randn(7, generator=torch.Generator().manual_seed(0))
    _, cache = model.run_with_cache(
        inputs, n_loops=3, names=["z", "z_pre"], loss=lambda outputs: (outputs[-1, ..., 1] * weight).sum()
    )
    with torch.enable_grad():
        e = hand.embed(model.module, inputs)
        z = hand.start(model.module, e)
        for loop in range(3):
            if (point, loop) == ("hook_z_pre", 1):
                z = at = z.detach().requires_grad_()
            z = hand.step(model.module, z, e.detach(), lambda layer, x: x)
            if (point, loop) == ("hook_z", 1):
                z = at = z.detach().requires_grad_()
        [expected] = torch.autograd.grad((hand.read(model.module, z)[..., 1] * weight).sum(), at)
    found = cache.grads[f"loops.1.{point}"]
    close(found, expected)
    parts = len(model.anatomy.state)
    assert all(part.abs().max() > 0 for part in found.chunk(parts, -1))


@pytest.mark.parametrize("name", WRITING)
def test_texts_that_are_written_together_are_those_written_alone(name, models):
    model, tokens = models[name], inputs_of(name)
    push = 3 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))
    greedy = {"do_sample": False} if hasattr(model.module, "generation_config") else {}
    with edited(model, "resid_post", lambda x, hook: x + push, loops=1, layers=0):
        together = model.generate(tokens, 5, 3, **greedy)
        alone = torch.cat([model.generate(one[None], 5, 3, **greedy) for one in tokens])
    assert torch.equal(together, alone)
    assert together.shape == (3, 12)
    assert not torch.equal(together, model.generate(tokens, 5, 3, **greedy))


# Half precision

TEXTS = ("def step(model, z)", "def stop(model, z)")
OPTIONS = {
    "mask": {"n": (0, 1, 3), "loops": 3, "fill": "mean"},
    "converge": {"loops": 4, "states": 0},
    "lens": {"loops": 3},
    "patch": {"loops": 2, "sites": ("z", "resid_post")},
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
NAMED = {
    "converge": "mean",
    "mask": "mean",
    "lens": "query_error",
    "patch": "clean",
    "exit": "budget_mean",
    "explore": "mean",
}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    names = {name: f"hf:{save(make(), root / name)}" for name, make in
             (("dory", dory), ("hrm_text", hrm_text), ("albert", albert))}  # fmt: skip
    names["huginn"] = "hf:raven-docs"
    return {
        name: [load_checkpoint(source, dtype=dtype, trust_remote_code=True) for dtype in ("float32", "bfloat16")]
        for name, source in names.items()
    }


RUN = [
    pytest.param(asked, name, marks=pytest.mark.slow if asked == "fixed_points" and name != "albert" else ())
    for asked in OPTIONS
    for name in ("dory", "hrm_text", "albert", "huginn")
]


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "name"), RUN)
def test_every_probe_works_in_half_precision_or_says_that_it_does_not(asked, name, subjects):
    whole, half = subjects[name]
    assert half.model.dtype == torch.bfloat16
    prompts = half.draw(PromptSpec(text=TEXTS))
    if asked in ("failures", "paths"):
        with pytest.raises(LoopprobeError, match="limits of states cannot be told apart") as error:
            probe(asked, half, prompts, **OPTIONS[asked])
        assert "\n" not in str(error.value)
        return
    found = probe(asked, half, prompts, **OPTIONS[asked])
    data = probe(asked, whole, whole.draw(PromptSpec(text=TEXTS)), **OPTIONS[asked])
    assert set(found.data_vars) == set(data.data_vars)
    assert all(values.dtype.kind != "f" or values.dtype.itemsize >= 4 for values in found.variables.values())
    if asked in NAMED:
        one, other = (torch.as_tensor(d[NAMED[asked]].values).float() for d in (found, data))
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.1)


def test_options_name_every_probe_that_a_language_model_can_be_asked():
    from test_language_models import OPTIONS as asked

    assert OPTIONS.keys() == asked.keys() <= PROBES.keys()
