"""Modules that are built otherwise than known architectures: wrapped, and compared with their loops by hand."""

import copy
import pickle
import threading
from collections import namedtuple

import pytest
import torch
from torch import nn

import loopprobe
from loopprobe.errors import LoopprobeError

WIDTH, TOKENS = 16, 20
Several = namedtuple("Several", "hidden weights")


def returned(kind, x):
    return {"namedtuple": Several(x, None), "list": [x, None], "dict": {"hidden": x, "weights": None}}[kind]


class Layer(nn.Module):
    def __init__(self, mix):
        super().__init__()
        self.norm, self.mix, self.kind = nn.LayerNorm(WIDTH), mix, None

    def forward(self, mask=None, x=None):
        x = x + torch.tanh(self.mix(self.norm(x * mask[..., None]).cumsum(1)))
        return x if self.kind is None else returned(self.kind, x)


class Looped(nn.Module):
    """Layers whose mask comes first, a norm that stands before, in and behind the loop, a mixer that layers share."""

    def __init__(self, kind=None, normed=False, shared=False, named=True):
        super().__init__()
        torch.manual_seed(0)
        self.n_loops, self.normed, self.named = 3, normed, named
        self.embed, self.norm = nn.Embedding(TOKENS, WIDTH), nn.LayerNorm(WIDTH)
        mixers = [nn.Linear(WIDTH, WIDTH) for _ in range(2)]
        self.layers = nn.ModuleList(Layer(mixers[0 if shared else i]) for i in range(2))
        for layer in self.layers:
            layer.kind = kind
        self.out = nn.Linear(WIDTH, TOKENS)
        for parameter in self.norm.parameters():
            nn.init.normal_(parameter)
        self.eval()

    def forward(self, tokens, note=lambda loop, layer, x: x, hold=lambda loop, z: z):
        e = self.embed(tokens)
        e = self.norm(e) if self.normed else e
        z, mask = torch.zeros_like(e), torch.full(tokens.shape, 0.9)
        for loop in range(self.n_loops):
            x = z + e
            for i, layer in enumerate(self.layers):
                x = layer(mask=mask, x=x) if self.named else layer(mask, x)
                x = note(loop, i, x if layer.kind is None else x["hidden"] if layer.kind == "dict" else x[0])
            z = hold(loop, self.norm(x))
        return self.out(self.norm(z) if self.normed else z)


def draw():
    return torch.randint(TOKENS, (3, 7), generator=torch.Generator().manual_seed(1))


def wrapped(module, **told):
    prelude = ["embed", "norm"] if getattr(module, "normed", False) else "embed"
    usual = {"core": "layers", "state": "norm", "norm": "norm", "prelude": prelude, "head": "out",
             "set_loops": "n_loops", "example": draw()}  # fmt: skip
    return loopprobe.wrap(module, **usual | told)


def is_bare(module):
    parts = list(module.modules())
    return not any(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part) for part in parts)


@pytest.mark.parametrize("kind", ["namedtuple", "list", "dict"])
@pytest.mark.parametrize("named", [True, False])
def test_layers_may_return_several_things_and_be_handed_a_mask_first(kind, named):
    module, tokens = Looped(kind, named=named), draw()
    model = wrapped(module)
    with model.hooks([("loops.1.blocks.0.hook_resid_post", lambda x, hook: 2 * x)]):
        edited = model(tokens)
    assert torch.equal(edited[-1], module(tokens, lambda loop, layer, x: x * (1 + ((loop, layer) == (1, 0)))))
    _, cache = model.run_with_cache(tokens, names=["resid_pre", "resid_post"])
    assert torch.equal(cache[2, "resid_pre", 1], cache[2, "resid_post", 0])
    assert is_bare(module)


@pytest.mark.parametrize("loop", range(3))
def test_a_norm_shared_by_prelude_loop_and_coda_is_the_state_in_the_loop_alone(loop):
    module, tokens = Looped(normed=True), draw()
    model, calls = wrapped(module), []

    def double(z, hook):
        calls.append(hook.loop())
        return 2 * z

    with model.hooks([(f"loops.{loop}.hook_z", double)]):
        edited = model(tokens, keep_loops=1)[0]
    assert calls == [loop]
    assert torch.equal(edited, module(tokens, hold=lambda at, z: z * (1 + (at == loop))))
    every = model(tokens, n_loops=4)
    for n in range(1, 5):
        module.n_loops = n
        assert torch.equal(every[n - 1], module(tokens))


def test_a_part_that_layers_share_passes_the_hooks_of_the_layer_that_calls_it():
    model, passed = wrapped(Looped(shared=True), sites={"hook_mlp_out": "mix"}), []
    names = [f"loops.{loop}.blocks.{layer}.hook_mlp_out" for loop in range(3) for layer in range(2)]
    note = lambda x, hook: passed.append((hook.loop(), hook.layer()))  # noqa: E731
    with model.hooks([(name, note) for name in names]):
        model(draw(), keep_loops=1)
    assert passed == [(loop, layer) for loop in range(3) for layer in range(2)]


def test_threads_run_one_module_one_after_the_other():
    module, tokens = Looped(), draw()
    model = wrapped(module)
    right, wrong = {n: model(tokens, n_loops=n) for n in (2, 5, 8)}, []

    def work(n):
        for _ in range(8):
            try:
                if not torch.equal(model(tokens, n_loops=n), right[n]):
                    wrong.append(n)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in right]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert module.n_loops == 3
    assert is_bare(module)


def test_a_wrapped_model_is_copied_and_pickled():
    model, tokens = wrapped(Looped()), draw()
    model(tokens)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(tokens), model(tokens))
        with torch.no_grad():
            other.module.out.weight.zero_()
        assert model(tokens)[..., 1:].std() > 0.1


def test_a_hook_may_call_the_module_itself():
    module, tokens, seen = Looped(), draw(), []
    model = wrapped(module)
    right = model(tokens)
    with model.hooks([("loops.1.blocks.0.hook_resid_post", lambda x, hook: seen.append(module(tokens[:1])))]):
        hooked = model(tokens)
    assert torch.equal(hooked, right)
    assert torch.equal(seen[0], right[-1, :1])


class Masked(Looped):
    """A mask is an input of its own."""

    def forward(self, tokens, mask):
        e = self.embed(tokens)
        z = torch.zeros_like(e)
        for _ in range(self.n_loops):
            x = z + e
            for layer in self.layers:
                x = layer(mask, x)
            z = self.norm(x)
        return self.out(z)


class Padded(Looped):
    """Tokens that are 0 are padding, which is forgotten at the end."""

    def forward(self, tokens):
        return super().forward(tokens) * (tokens != 0)[..., None]


@pytest.mark.parametrize("ones", [True, False])
def test_a_loop_that_reads_a_mask_besides_has_no_state_alone(ones):
    module, tokens = Masked(), draw()
    mask = torch.ones(tokens.shape) if ones else torch.rand(tokens.shape)
    example = (tokens[:1], mask[:1])
    with pytest.raises(LoopprobeError, match="a loop reads more of the inputs than the injected input"):
        wrapped(module, example=example)
    model = wrapped(module, example=example, state=False, norm=None)
    mask[1, 4:], mask[2, 2:] = 0, 0
    answers = model(tokens, mask, n_loops=3)
    for n in (1, 2, 3):
        module.n_loops = n
        assert torch.equal(answers[n - 1], module(tokens, mask))


def test_a_coda_that_reads_padding_besides_is_named():
    with pytest.raises(LoopprobeError, match="the coda reads more of the inputs than the injected input"):
        wrapped(Padded(), example=torch.arange(1, 7)[None])


WRONG = [
    ({"example": "words"}, "example (str) must be a tensor"),
    ({"example": [[1, 2, TOKENS]]}, "does not run as it is told to (index out of range"),
    ({"set_loops": lambda n: {"stps": n}, "n_loops": 3}, "unexpected keyword argument 'stps'"),
    ({"set_loops": "embed"}, "must hold a loop count"),
    ({"n_loops": 0}, "n_loops (0) must be a whole number and at least 1"),
    ({"start": "zero"}, "start ('zero') must be input, zeros, ones or a function"),
    ({"start": lambda module, e, seed: e[..., :3]}, "check example=, set_loops=, start="),
    ({"sites": {"hook_x": ("mix", "in", "out")}}, "must be a path, or a path and in or out"),
    ({"head": "norm"}, f"gives {WIDTH} numbers a token and the model answers {TOKENS}"),
    ({"norm": "layers.0.norm"}, "of what the last layer gives is not the state (norm)"),
]


@pytest.mark.parametrize(("told", "said"), WRONG)
def test_what_is_told_wrongly_is_one_line(told, said):
    module = Looped()
    with pytest.raises(LoopprobeError) as error:
        wrapped(module, **told)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert is_bare(module)
    assert module.n_loops == 3


@pytest.mark.parametrize("told", [{"n_loops": 7}, {"state": False}, {"core": "layers"}, {"call": {}}])
def test_a_wrapped_model_is_told_nothing_more(told):
    model = wrapped(Looped())
    assert loopprobe.wrap(model) is model
    [name] = told
    with pytest.raises(LoopprobeError, match=f"^the model is wrapped already and {name}= is told: wrap its module"):
        loopprobe.wrap(model, **told)
    again = wrapped(model.module, n_loops=7)
    assert (again.n_loops, model.n_loops) == (7, 3)


def test_what_is_no_module_is_not_wrapped():
    with pytest.raises(LoopprobeError, match=r"model \(int\) must be a torch.nn.Module"):
        loopprobe.wrap(3)


class One(Looped):
    """One number a token, without an axis of its own."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, tokens):
        return {"logits": super().forward(tokens)[..., 0]}


def test_answers_may_be_one_number_a_token_and_stand_in_a_dict():
    module, tokens = One(), draw()
    answers = wrapped(module)(tokens, read_at=[1, 3])
    assert answers.shape == (3, 3, 2)
    torch.testing.assert_close(answers[-1], module(tokens)["logits"][:, [1, 3]])


@pytest.mark.parametrize(
    "options",
    [{"dtype": "bfloat16"}, {"trust_remote_code": True}, {"start_seed": 1}],
    ids=lambda given: next(iter(given)),
)
def test_options_of_language_models_do_not_go_with_a_checkpoint(options):
    from loopprobe.probes.questions import Question, prepare

    with pytest.raises(LoopprobeError, match=f"{next(iter(options))} is of language models and lr-b20-T10 is none"):
        prepare(Question(probe="mask", checkpoints=("lr-b20-T10",), prompts=4, **options))


@pytest.mark.parametrize("broken", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_damaged_folder_is_named_in_one_line(broken, tmp_path):
    import looped_others

    folder = looped_others.save(looped_others.dory(), tmp_path)
    content = (folder / broken).read_bytes()
    (folder / broken).write_bytes(content[: len(content) // 2])
    with pytest.raises(LoopprobeError, match="cannot be read") as error:
        loopprobe.load(f"hf:{folder}")
    assert len(str(error.value).splitlines()) == 1
