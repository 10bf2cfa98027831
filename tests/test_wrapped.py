"""Wrapped modules against their loops written out by hand, over the same submodules."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from looped_others import BY_HAND, WIDTH, draw, wrapped
from torch.nn.attention import SDPBackend, sdpa_kernel

from loopprobe.dynamics.maps import LoopMap
from loopprobe.dynamics.spectrum import jvp, leading_eigenvalues
from loopprobe.errors import LoopprobeError
from loopprobe.model.interventions import edited, skipped
from loopprobe.model.masks import masked
from loopprobe.model.protocol import LoopedModel
from loopprobe.wrapped.precision import as_precise_as

EVERY = sorted(BY_HAND)
MAPS = [name for name in EVERY if not hasattr(BY_HAND[name], "run")]  # a state is all that goes from loop to loop
LANGUAGE = [name for name in EVERY if name != "own"]


def by_hand(name, model, inputs, n_loops, edit=None, start=None):
    """States, residual streams [loop][layer], and answers after every loop."""
    hand = BY_HAND[name]
    if name not in MAPS:
        runs = [hand.run(model, inputs, n, edit) for n in range(1, n_loops + 1)]
        return None, torch.stack(runs[-1][0]), torch.stack([answers for _, answers in runs])
    e = hand.embed(model, inputs)
    z = hand.start(model, e) if start is None else start(hand.start(model, e))
    states, streams, answers = [], [], []
    for loop in range(n_loops):
        seen = []

        def note(layer, x, loop=loop, seen=seen):
            x = x if edit is None else edit(loop, layer, x)
            seen.append(x)
            return x

        z = hand.step(model, z, e, note)
        states.append(z)
        streams.append(torch.stack(seen))
        answers.append(hand.read(model, z))
    return torch.stack(states), torch.stack(streams), torch.stack(answers)


@pytest.fixture(scope="module")
def models():
    return {name: wrapped(name) for name in EVERY}


@pytest.fixture(autouse=True)
def without_gradient():
    with torch.no_grad():
        yield


def hooks_on(module):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) + ("forward" in vars(part))
               for part in module.modules())  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("n_loops", [1, 2, 6])
def test_every_loop_is_that_of_the_loop_by_hand(name, n_loops, models):
    model, inputs = models[name], draw(name)
    states, streams, answers = by_hand(name, model.module, inputs, n_loops)
    state = ["z", "z_pre"] if name in MAPS else []
    outputs, cache = model.run_with_cache(inputs, n_loops=n_loops, names=["resid_post", "embed", *state])
    torch.testing.assert_close(outputs, answers, rtol=1e-6, atol=1e-6)
    if state:
        torch.testing.assert_close(cache.stack("z"), states, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(cache.stack("z_pre")[1:], states[:-1], rtol=1e-6, atol=1e-6)
    for layer in range(model.sizes.n_layers):
        torch.testing.assert_close(cache.stack("resid_post", layer), streams[:, layer], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model(inputs, n_loops=n_loops, keep_loops=1), answers[-1:], rtol=1e-6, atol=1e-6)
    assert isinstance(model, LoopedModel)
    assert hooks_on(model.module) == 0


@pytest.mark.parametrize("name", EVERY)
def test_the_last_answers_are_those_of_the_bare_module(name, models):
    model, inputs = models[name], draw(name)
    bare = model.module(inputs)
    bare = getattr(bare, "logits", bare)
    torch.testing.assert_close(model(inputs)[-1], bare, rtol=0, atol=0)
    torch.testing.assert_close(model(inputs, read_at=[-1, 2])[-1], bare[:, [-1, 2]], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["AlbertModel", "AlbertForTokenClassification"])
def test_albert_is_known_with_other_heads_and_with_none(kind):
    import transformers

    torch.manual_seed(0)
    config = copy.deepcopy(BY_HAND["albert"].make().config)
    module = getattr(transformers, kind)(config).eval()
    model, tokens = wrapped("albert", module), draw("albert")
    outputs = model(tokens, n_loops=3, read_at=[-1, 2])
    for n in (1, 2, 3):
        config.num_hidden_layers = n
        bare = module(tokens)
        bare = bare.logits if kind == "AlbertForTokenClassification" else bare.last_hidden_state
        torch.testing.assert_close(outputs[n - 1], bare[:, [-1, 2]], rtol=1e-6, atol=1e-6)
    assert model.supports >= {"map", "forward_mode", "pattern"}
    config.num_hidden_groups = 2
    with pytest.raises(LoopprobeError, match="this ALBERT has 2 groups of layers"):
        wrapped("albert", module)


@pytest.mark.parametrize("name", EVERY)
def test_an_edit_of_one_layer_in_one_loop_acts_there(name, models):
    model, inputs = models[name], draw(name)
    layer = model.sizes.n_layers - 1
    push = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))
    edit = lambda loop, at, x: x + push if (loop, at) == (1, layer) else x  # noqa: E731
    _, streams, answers = by_hand(name, model.module, inputs, 4, edit)
    with model.hooks([(f"loops.1.blocks.{layer}.hook_resid_post", lambda x, hook: x + push)]):
        outputs, cache = model.run_with_cache(inputs, n_loops=4, names="resid_post")
    torch.testing.assert_close(outputs, answers, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cache.stack("resid_post", layer), streams[:, layer], rtol=1e-5, atol=1e-5)
    assert (outputs[0] == model(inputs, n_loops=1)[0]).all()


@pytest.mark.parametrize("name", MAPS)
def test_any_state_is_stepped_on_and_read(name, models):
    model, inputs, hand = models[name], draw(name), BY_HAND[name]
    e = model.embed(inputs)
    torch.testing.assert_close(e, hand.embed(model.module, inputs), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.initial_state(e), hand.start(model.module, e), rtol=1e-6, atol=1e-6)
    z = torch.randn(*e.shape[:2], model.sizes.d_model, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.step(z, e, 5), hand.step(model.module, z, e, lambda i, x: x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.predict(z, e, 2), hand.read(model.module, z), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        model.predict(z, e, read_at=[3]), hand.read(model.module, z)[:, [3]], rtol=1e-6, atol=1e-6
    )
    assert hooks_on(model.module) == 0


@pytest.mark.parametrize("name", MAPS)
def test_the_state_is_masked_before_loops_of_ones_choice(name, models):
    model, inputs, hand = models[name], draw(name), BY_HAND[name]
    fill = torch.randn(7, model.sizes.d_model, generator=torch.Generator().manual_seed(1))
    cut = lambda z: torch.cat([z[:, :4], fill[4:].expand_as(z[:, 4:])], 1)  # noqa: E731
    e = hand.embed(model.module, inputs)
    for loops in (None, 0, 2):
        z, answers = hand.start(model.module, e), []
        for loop in range(4):
            z = hand.step(model.module, cut(z) if loops in (None, loop) else z, e, lambda i, x: x)
            answers.append(hand.read(model.module, z))
        with masked(model, "first", 4, fill=fill, loops=loops):
            torch.testing.assert_close(model(inputs, n_loops=4), torch.stack(answers), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MAPS)
def test_a_loop_that_is_skipped_leaves_the_state_as_it_is(name, models):
    model, inputs = models[name], draw(name)
    _, _, answers = by_hand(name, model.module, inputs, 3)
    with skipped(model, 1):
        torch.testing.assert_close(model(inputs, n_loops=4), answers[[0, 0, 1, 2]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MAPS)
def test_derivatives_are_those_of_the_loop_by_hand(name, models):
    model, hand = copy.deepcopy(models[name]).double(), BY_HAND[name]
    inputs = draw(name, n_prompts=2, n_tokens=3)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    e = model.embed(inputs)
    z = torch.randn(2, 3, model.sizes.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    system = LoopMap(model, e)
    tangent = torch.randn(z.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    one = partial(hand.step, model.module, e=e, note=lambda i, x: x)
    with as_precise_as(model.module):
        moved = (one(z + 1e-6 * tangent) - one(z - 1e-6 * tangent)) / 2e-6
    torch.testing.assert_close(jvp(system, z, tangent), moved, rtol=1e-6, atol=1e-6)
    found = leading_eigenvalues(system, z, 4)
    for prompt in range(2):

        def here(x, prompt=prompt):
            return one(x.reshape(1, 3, -1), e=e[prompt : prompt + 1]).reshape(-1)

        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), as_precise_as(model.module):
            jacobian = torch.autograd.functional.jacobian(here, z[prompt].reshape(-1))
        largest = np.sort(np.abs(np.linalg.eigvals(jacobian.numpy())))[::-1][:4]
        np.testing.assert_allclose(np.sort(found[prompt].abs().numpy())[::-1], largest, rtol=1e-6)


@pytest.mark.parametrize("name", LANGUAGE)
def test_heads_are_patched_in_one_loop_alone(name, models):
    """What a head hands to the output projection is zeroed by hand, in the call that belongs to the loop."""
    model, inputs = models[name], draw(name)
    projections = {"ouro": "self_attn.o_proj", "hrm_text": "self_attn.o_proj", "albert": "attention.dense"}
    outputs, cache = model.run_with_cache(inputs, n_loops=3, names=["pattern", "v", "attn_z"])
    torch.testing.assert_close(outputs, model(inputs, n_loops=3), rtol=1e-5, atol=1e-5)
    for layer in range(model.sizes.n_layers):
        pattern, v = cache.stack("pattern", layer), cache.stack("v", layer)
        whole = pattern.sum(-1)
        assert (whole < 1).all() if name == "inkling" else torch.allclose(whole, torch.ones_like(whole)), "sinks"
        mixed = torch.einsum("lbhqk,lbkhd->lbqhd", pattern, v)
        torch.testing.assert_close(cache.stack("attn_z", layer), mixed, rtol=1e-5, atol=1e-5)
        assert (pattern.triu(1) == 0).all() == ("causal" in model.supports)
    if name not in projections:
        return
    layer = model.sizes.n_layers - 1
    part = model.module.get_submodule(f"{model.wiring.order[layer]}.{projections[name]}")
    gated = name == "hrm_text"
    per_loop, calls = model.wiring.order.count(model.wiring.order[layer]), []

    def zero_second(module, args):
        calls.append(0)
        if len(calls) == per_loop + 1:  # of the second loop
            x = args[0].clone().unflatten(-1, (4, 8))
            x[..., 2, :] = 0
            return (x.flatten(-2),)

    handle = part.register_forward_pre_hook(zero_second)
    expected = model(inputs, n_loops=3, keep_loops=1)
    handle.remove()
    with edited(model, "attn_z", lambda x, hook: torch.zeros_like(x), loops=1, layers=layer, heads=2):
        outputs = model(inputs, n_loops=3)
    torch.testing.assert_close(outputs[-1:], expected, rtol=1e-5, atol=1e-5)
    assert gated or not torch.allclose(expected, model(inputs, n_loops=3, keep_loops=1))


@pytest.mark.parametrize("name", LANGUAGE)
def test_the_attention_is_as_before_after_a_run(name, models):
    model = models[name]
    before = model.module.config._attn_implementation
    model.run_with_cache(draw(name), names="pattern")
    assert model.module.config._attn_implementation == before != "loopprobe"


@pytest.mark.parametrize("name", EVERY)
def test_gradients_are_those_of_the_loop_by_hand(name, models):
    model, inputs = models[name], draw(name)
    weight = torch.randn(7, generator=torch.Generator().manual_seed(0))
    loss = lambda outputs: (outputs[-1, ..., 1] * weight).sum()  # noqa: E731
    _, cache = model.run_with_cache(inputs, n_loops=3, names="resid_post", loss=loss)
    push = torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))
    for layer in range(model.sizes.n_layers):
        with torch.enable_grad():
            by = torch.zeros((), requires_grad=True)

            def edit(loop, at, x, by=by, layer=layer):
                return x + by * push if (loop, at) == (1, layer) else x

            slope = torch.autograd.grad(loss(by_hand(name, model.module, inputs, 3, edit)[2]), by)[0]
        grad = cache.grads[f"loops.1.blocks.{layer}.hook_resid_post"]
        torch.testing.assert_close((grad * push).sum(), slope, rtol=1e-4, atol=1e-5)


def test_gradients_of_the_answers_of_all_loops_are_those_by_hand(models):
    """Without a map the answers of every loop come from a run of their own."""
    for name in ("inkling", "hrm_text"):
        model, inputs = models[name], draw(name)
        loss = lambda outputs: outputs[..., 1].pow(2).sum()  # noqa: E731
        _, cache = model.run_with_cache(inputs, n_loops=3, names="resid_post", loss=loss)
        push = torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))
        with torch.enable_grad():
            by = torch.zeros((), requires_grad=True)
            edit = lambda loop, at, x, by=by, push=push: x + by * push if (loop, at) == (1, 1) else x  # noqa: E731
            slope = torch.autograd.grad(loss(by_hand(name, model.module, inputs, 3, edit)[2]), by)[0]
        grad = cache.grads["loops.1.blocks.1.hook_resid_post"]
        torch.testing.assert_close((grad * push).sum(), slope, rtol=1e-4, atol=1e-5)


def test_what_needs_a_map_is_refused_without_one(models):
    model, z = models["inkling"], torch.zeros(3, 7, WIDTH)
    assert model.supports == {"causal", "pattern", "generate"}
    assert not {"hook_z", "hook_z_pre"} & set(model.hook_trees.local_names)
    torch.testing.assert_close(model.embed(draw("inkling")).shape, z.shape)
    for what, act in (
        ("step", lambda: model.step(z, z)),
        ("predict", lambda: model.predict(z)),
        ("initial_state", lambda: model.initial_state(z)),
        ("to_state", lambda: model.to_state(z)),
        ("unembed", lambda: model.unembed(z)),
        ("masked", lambda: masked(model, "first", 2).__enter__()),
        ("skipped", lambda: skipped(model, 1).__enter__()),
        ("grad_loops", lambda: model(draw("inkling"), grad_loops=1)),
    ):
        said = f"{what} needs a state that is all that goes from loop to loop, which .* has not"
        with pytest.raises(LoopprobeError, match=said) as error:
            act()
        assert "\n" not in str(error.value)


def test_gradients_with_checkpointing_are_those_without(models):
    model = copy.deepcopy(models["dory"])
    model.module.train()
    model.module.activation_checkpointing_enable()
    inputs, loss = draw("dory"), lambda outputs: outputs[-1, :, -1, 0].sum()
    with torch.enable_grad():
        _, with_it = model.run_with_cache(inputs, names="resid_post", loss=loss)
    assert model.module.is_activation_checkpointing
    model.module.activation_checkpointing_disable()
    with torch.enable_grad():
        _, without = model.run_with_cache(inputs, names="resid_post", loss=loss)
    torch.testing.assert_close(with_it.grads.stack("resid_post"), without.grads.stack("resid_post"))


@pytest.mark.parametrize("name", EVERY)
def test_nothing_stays_after_an_exception(name, models):
    model, inputs = models[name], draw(name)

    def fail(x, hook):
        raise ValueError("on purpose")

    for point in (*["hook_z"] * (name in MAPS), "blocks.0.hook_resid_pre", "hook_readout", "hook_embed"):
        with pytest.raises(ValueError, match="on purpose"), model.hooks([(point, fail)]):
            model(inputs)
    assert hooks_on(model.module) == 0
    assert not model.list_hooks()
    bare = model.module(inputs)
    torch.testing.assert_close(model(inputs)[-1], getattr(bare, "logits", bare))


def test_a_copy_in_another_precision_has_its_own_parts(models):
    model = models["dory"]
    other = copy.deepcopy(model).double()
    assert other.module is not model.module
    assert (other(draw("dory")).dtype, model(draw("dory")).dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(other(draw("dory")).float(), model(draw("dory")), rtol=1e-4, atol=1e-4)
    e = other.embed(draw("dory"))
    z = torch.randn(e.shape, dtype=torch.float64)
    moved = other.step(z * (1 + 1e-12), e) - other.step(z, e)
    assert 0 < moved.abs().max() < 1e-10, "a step is in double precision, although its norms cast to single"


def test_few_loops_carry_gradient(models):
    model = models["dory"]
    weights = list(model.module.model.layers[1].parameters())
    grads = []
    for options in ({}, {"grad_loops": 1}):
        with torch.enable_grad():
            outputs = model(draw("dory"), n_loops=4, **options)
            grads.append(torch.autograd.grad(outputs[-1].square().sum(), weights))
    assert any(not torch.allclose(all_loops, last) for all_loops, last in zip(*grads, strict=True))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"core": "out"}, "core.*out.*ran|never ran|not three times"),
        ({"core": "nothing"}, "core .'nothing'. must be the path of a submodule: choose"),
        ({"set_loops": "training"}, "does not change how often"),
        ({"set_loops": "config.n"}, "set_loops .'config.n'. must be an attribute of the model"),
        ({"state": "mix"}, "a step from the state .mix. after loop 1 differs"),
        ({"state": "read_in"}, "state .read_in. is not called in every loop"),
        ({"start": "ones"}, "does not start from what start= says"),
        ({"prelude": "norm"}, "prelude .norm. is not called before the core"),
        ({"example": torch.zeros(3, 5)}, "read_in must return a tensor .batch, pos, d_model."),
        ({"core": None}, "tell core=, the layers of a loop"),
        ({"set_loops": None}, "tell set_loops="),
        ({"prelude": None}, "tell prelude="),
        ({"example": None}, "tell example="),
        ({"sites": {"hook_mlp_out": "inside"}}, "a place .'mix.inside'. must be the path"),
    ],
)
def test_what_is_told_wrongly_is_named(told, said):
    from loopprobe.wrapped.wrap import wrap

    right = {**BY_HAND["own"].told, "example": draw("own")}
    with pytest.raises(LoopprobeError, match=said) as error:
        wrap(BY_HAND["own"].make(), **{**right, **told})
    assert "\n" not in str(error.value)


def test_inputs_that_do_not_fit_get_one_line(models):
    for name, inputs, said in (
        ("ouro", torch.zeros(2, 3), "dtype torch.float32: give whole numbers"),
        ("ouro", torch.full((2, 3), 300), "token 300 is not in the vocabulary: choose from 0 to 299"),
        ("ouro", torch.zeros(2, 65, dtype=torch.int64), "65 tokens but the model reads 64"),
        ("own", torch.zeros(2, 3), "must be like the example"),
        ("own", torch.full((1, 2, 5), torch.nan), "NaN or infinite"),
    ):
        with pytest.raises(LoopprobeError, match=said):
            models[name](inputs)


def test_a_hook_may_run_the_model_itself(models):
    model, inputs = models["dory"], draw("dory")
    answers = []

    def read(z, hook):
        answers.append(model.predict(z, model.embed(inputs), hook.loop()))

    with model.hooks([("hook_z", read)]):
        outputs = model(inputs, n_loops=3)
    torch.testing.assert_close(torch.stack(answers), outputs, rtol=1e-5, atol=1e-5)
