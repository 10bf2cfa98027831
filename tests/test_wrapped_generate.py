"""Text from wrapped modules, with their caches and under edits, against whole runs of them."""

import threading

import pytest
import torch
from looped_others import VOCABULARY, WIDTH, draw, wrapped
from torch import nn
from transformers import LogitsProcessor

from loopprobe.errors import LoopprobeError
from loopprobe.model.interventions import edited, zero
from loopprobe.model.masks import masked
from loopprobe.wrapped.wiring import tensor_of
from loopprobe.wrapped.wrap import wrap

CACHED = ["dory", "hrm_text", "inkling"]
N_NEW = 6


class OwnText(nn.Module):
    """A language model of one's own, without a cache and without a ``generate``."""

    def __init__(self, n_loops=3):
        super().__init__()
        torch.manual_seed(0)
        self.n_loops = n_loops
        self.wte, self.mix = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens):
        e = self.wte(tokens)
        z = torch.zeros_like(e)
        for _ in range(self.n_loops):
            z = self.norm(z + e + torch.tanh(self.mix((z + e).cumsum(1))))
        return self.head(z)


class WithGenerate(OwnText):
    """The same with a ``generate`` as nanoGPT has it."""

    def generate(self, tokens, max_new_tokens, temperature=1.0):
        for _ in range(max_new_tokens):
            tokens = torch.cat([tokens, (self(tokens)[:, -1] / temperature).argmax(-1, keepdim=True)], 1)
        return tokens


def own(module=OwnText):
    return wrap(
        module(), core="mix", state="norm", prelude="wte", head="head", set_loops="n_loops", example=draw("ouro")
    )


def make(name):
    model = {"own": own, "with_generate": lambda: own(WithGenerate)}.get(name, lambda: wrapped(name))()
    if name in CACHED:
        model.module.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def models():
    return {name: make(name) for name in [*CACHED, "ouro", "own", "with_generate"]}


@pytest.fixture(autouse=True)
def without_gradient():
    with torch.no_grad():
        yield


EVERY = [*CACHED, "ouro", "own", "with_generate"]


def greedy(model, **options):
    """Options under which the most likely tokens are written."""
    return {"do_sample": False, **options} if hasattr(model.module, "generation_config") else options


def by_whole_runs(model, tokens, n_loops, n_new=N_NEW):
    """Tokens and logits [batch, new, vocabulary] by the most likely token of whole runs."""
    every = []
    for _ in range(n_new):
        every.append(model(tokens, n_loops=n_loops, keep_loops=1)[-1, :, -1])
        tokens = torch.cat([tokens, every[-1].argmax(-1, keepdim=True)], 1)
    return tokens, torch.stack(every, 1)


def hooks_on(module):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) + ("forward" in vars(part))
               for part in module.modules())  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("n_loops", [None, 2, 6])
def test_text_is_that_of_whole_runs(name, n_loops, models):
    model, tokens = models[name], draw("dory")
    expected, _ = by_whole_runs(model, tokens, n_loops)
    assert (model.generate(tokens, N_NEW, n_loops, **greedy(model)) == expected).all()


@pytest.mark.parametrize("name", CACHED)
@pytest.mark.parametrize("n_loops", [3, 6])
def test_logits_with_a_cache_are_those_of_whole_runs(name, n_loops, models):
    model, tokens = models[name], draw("dory")
    expected, logits = by_whole_runs(model, tokens, n_loops)
    lengths = []

    def note(x, hook):
        lengths.append((hook.call, x.shape[1]))

    with model.hooks([("loops.2.blocks.0.hook_resid_post", note)]):
        written = model.generate(
            tokens, N_NEW, n_loops, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    assert (written.sequences == expected).all()
    off = 1e-3 if name == "inkling" else 1e-5  # its random layers enlarge what is rounded
    torch.testing.assert_close(torch.stack(written.logits, 1), logits, rtol=1e-4, atol=off)
    assert lengths == [(0, 7), *((call, 1) for call in range(1, N_NEW))], "the prompt, then one token a call"


@pytest.mark.parametrize("mode", ["per_loop", "last_loop"])
def test_either_cache_of_dory_is_that_of_the_bare_module(mode):
    model, tokens = make("dory"), draw("dory")
    model.module.config.recurrent_kv_cache_mode = mode
    options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    bare = model.module.generate(tokens, max_new_tokens=N_NEW, attention_mask=torch.ones_like(tokens), **options)
    with model.hooks([("blocks.1.attn.hook_pattern", lambda x, hook: None)]):
        written = model.generate(tokens, N_NEW, **options)
    assert (written.sequences == bare.sequences).all()
    torch.testing.assert_close(torch.stack(written.logits), torch.stack(bare.logits), rtol=1e-4, atol=1e-5)
    _, whole = by_whole_runs(model, tokens, None)
    close = torch.allclose(torch.stack(written.logits, 1), whole, rtol=1e-4, atol=1e-5)
    assert close == (mode == "per_loop"), "a cache of the last loop alone is no whole run"


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("place", ["resid_post", "embed", "readout"])
def test_an_edit_acts_on_the_prompt_and_on_what_is_written(name, place, models):
    model, tokens = models[name], draw("dory")
    width = VOCABULARY if place == "readout" else WIDTH
    push = 3 * torch.randn(width, generator=torch.Generator().manual_seed(3))
    loops = {"resid_post": 1, "readout": -1}.get(place)
    with edited(model, place, lambda x, hook: x + push, loops=loops):
        expected, _ = by_whole_runs(model, tokens, 4)
        written = model.generate(tokens, N_NEW, 4, **greedy(model))
    assert (written == expected).all()
    assert (written != by_whole_runs(model, tokens, 4)[0]).any()


@pytest.mark.parametrize("name", CACHED)
def test_a_head_is_ablated_in_every_call(name, models):
    model, tokens = models[name], draw("dory")
    with edited(model, "attn_z", zero, loops=[0, 2], heads=1):
        expected, logits = by_whole_runs(model, tokens, 3)
        written = model.generate(tokens, N_NEW, 3, do_sample=False, output_logits=True, return_dict_in_generate=True)
    assert (written.sequences == expected).all()
    torch.testing.assert_close(torch.stack(written.logits, 1), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CACHED)
def test_an_edit_behind_the_prompt_acts_on_new_tokens_alone(name, models):
    """The same by whole runs, edited at the positions behind the prompt."""
    model, tokens = models[name], draw("dory")
    push = 3 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))

    def behind(x, hook):
        return x + push if hook.call else None

    def at_positions(x, hook):
        return torch.cat([x[:, :7], x[:, 7:] + push], 1)

    name = "loops.1.blocks.1.hook_resid_post"
    with model.hooks([(name, at_positions)]):
        expected, logits = by_whole_runs(model, tokens, 3)
    with model.hooks([(name, behind)]):
        written = model.generate(tokens, N_NEW, 3, do_sample=False, output_logits=True, return_dict_in_generate=True)
    assert (written.sequences == expected).all()
    torch.testing.assert_close(torch.stack(written.logits, 1), logits, rtol=1e-4, atol=1e-5)
    first = by_whole_runs(model, tokens, 3, 1)[1]
    torch.testing.assert_close(written.logits[0], first[:, 0], rtol=1e-4, atol=1e-5)


def test_the_state_of_a_later_loop_is_masked(models):
    model, tokens = models["dory"], draw("dory")
    with model.hooks([("loops.1.hook_z_pre", lambda x, hook: torch.zeros_like(x))]):
        expected, _ = by_whole_runs(model, tokens, 3)
        assert (model.generate(tokens, N_NEW, 3, do_sample=False) == expected).all()


@pytest.mark.parametrize("name", EVERY)
def test_nothing_stays_after_an_exception(name, models):
    model, tokens = models[name], draw("dory")
    before = getattr(getattr(model.module, "config", None), "_attn_implementation", None)
    bare = model.module(tokens)

    def fail(x, hook):
        if hook.call == 2:
            raise ValueError("on purpose")

    for point in ("blocks.0.hook_resid_pre", "hook_embed", "hook_readout"):
        with pytest.raises(ValueError, match="on purpose"), model.hooks([(point, fail)]):
            model.generate(tokens, N_NEW, 5, **greedy(model))
    assert hooks_on(model.module) == 0
    assert getattr(getattr(model.module, "config", None), "_attn_implementation", None) == before != "loopprobe"
    torch.testing.assert_close(tensor_of(model.module(tokens)), tensor_of(bare))


def test_whole_runs_are_drawn_from_the_answers(models):
    model, tokens = models["own"], draw("dory")
    once, again = (
        model.generate(tokens, N_NEW, do_sample=True, temperature=0.7, generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    )
    assert (once == again).all()
    assert (once != model.generate(tokens, N_NEW)).any()
    assert (model.generate(tokens, N_NEW, do_sample=True, temperature=1e-4) == model.generate(tokens, N_NEW)).all()


class _Stop(LogitsProcessor):
    def __call__(self, input_ids, scores):
        raise KeyboardInterrupt


def test_an_interrupt_leaves_nothing(models):
    model = models["hrm_text"]
    layers = model.module.config.num_hidden_layers
    with pytest.raises(KeyboardInterrupt), model.hooks([("blocks.0.attn.hook_q", lambda x, hook: None)]):
        model.generate(draw("dory"), N_NEW, 7, logits_processor=[_Stop()])
    assert hooks_on(model.module) == 0
    assert (model.module.config.num_hidden_layers, model.module.config.H_cycles) == (layers, 3)


@pytest.mark.parametrize(
    ("name", "hook", "said"),
    [
        ("dory", "loops.0.hook_z_pre", "loops.0.hook_z_pre cannot act .* hook a layer, such as loops.0.blocks.0"),
        ("hrm_text", "loops.1.hook_z_pre", "loops.1.hook_z_pre cannot act while .* its state is in 2 parts"),
        ("hrm_text", "loops.2.hook_z", "loops.2.hook_z cannot act"),
    ],
)
def test_hooks_that_cannot_act_are_refused(name, hook, said, models):
    with pytest.raises(LoopprobeError, match=said) as error, models[name].hooks([(hook, zero)]):
        models[name].generate(draw("dory"), 2)
    assert "\n" not in str(error.value)
    with pytest.raises(LoopprobeError, match="cannot act"), masked(models[name], "first", 2):
        models[name].generate(draw("dory"), 2)


def test_what_cannot_be_written_gets_one_line(models):
    for name, arguments, said in (
        ("dory", (draw("dory"), 58), "are 65 tokens but the model reads 64: lower max_new_tokens"),
        ("dory", (draw("dory"), 0), "max_new_tokens .0. must be a whole number and at least 1"),
        ("dory", (draw("dory"), 2, 0), "n_loops .0. must be a whole number"),
        ("dory", (torch.full((1, 2), VOCABULARY), 2), f"token {VOCABULARY} is not in the vocabulary"),
    ):
        with pytest.raises(LoopprobeError, match=said):
            models[name].generate(*arguments)
    with pytest.raises(LoopprobeError, match="top_k is not known where a module has no generate"):
        models["own"].generate(draw("dory"), 2, top_k=3)
    with pytest.raises(LoopprobeError, match="generate needs generation of text, which AlbertForMaskedLM has not"):
        wrapped("albert").generate(draw("albert"), 2)


def test_threads_write_one_after_the_other():
    module = OwnText().eval()
    told = {"core": "mix", "state": "norm", "prelude": "wte", "head": "head", "set_loops": "n_loops"}
    model = wrap(module, **told, example=draw("own_text"))
    tokens, wrong = draw("own_text"), []
    right = {n: model.generate(tokens, max_new_tokens=N_NEW, n_loops=n) for n in (1, 4, 9)}

    def work(n):
        for _ in range(6):
            with model.hooks([("hook_z", lambda z, hook: None)]):  # so that the module is wired
                if not torch.equal(model.generate(tokens, max_new_tokens=N_NEW, n_loops=n), right[n]):
                    wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in right]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert module.n_loops == 3


@pytest.mark.parametrize("name", CACHED)
def test_a_cache_is_looked_for_once(name):
    model, tokens, lengths = make(name), draw("dory"), []
    with model.module.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append((args[0] if args else kwargs["input_ids"]).shape[1]),
        with_kwargs=True,
    ):
        first = model.generate(tokens, N_NEW, do_sample=False)
        tried, lengths[:] = lengths[:], []
        again = model.generate(tokens, N_NEW, do_sample=False)
    assert model.has_cache
    assert torch.equal(first, again)
    assert lengths == [7, *[1] * (N_NEW - 1)]
    assert tried == [model.example[0].shape[1], *lengths]
