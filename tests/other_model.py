"""A looped model and prompts that share nothing with regression but the protocols: what probes may rely on.

Tokens in threes; attention sees both ways; the input is multiplied in; RMS norms; two numbers are answered at the last
token of every three, and their error is the sum of absolute differences.
"""

import dataclasses

import torch
import torch.nn.functional as F
from einops import einsum
from torch import nn

from loopprobe.config.schema import ModelConfig
from loopprobe.model.hooked_root import LoopedRootModule

SYMBOLS = 7


@dataclasses.dataclass(frozen=True)
class Triples:
    """Prompts of tokens: the answer of three tokens is their mean and their largest, over the number of symbols."""

    tokens: torch.Tensor
    origin: dict = dataclasses.field(default_factory=dict)

    unit = "absolute error"
    query_unit = "absolute error at the last three"
    failure_level = 0.1
    step_unit = "absolute difference"
    answer_unit = "the largest over the number of symbols"
    tokens_per_point = 3
    output_size = None

    @property
    def inputs(self):
        return (self.tokens,)

    @property
    def n_prompts(self):
        return len(self.tokens)

    @property
    def n_tokens(self):
        return self.tokens.shape[1]

    @property
    def n_answers(self):
        return self.n_tokens // 3

    @property
    def extent(self):
        return f"{self.n_tokens} tokens"

    @property
    def read_at(self):
        return list(range(2, self.n_tokens, 3))

    @property
    def query(self):
        return self.n_tokens - 1

    @property
    def roles(self):
        return ["a", "b", "c"] * self.n_answers

    @property
    def right(self):
        threes = self.tokens.unflatten(1, (-1, 3)).float() / SYMBOLS
        return torch.stack([threes.mean(-1), threes.amax(-1)], -1)

    measures = ("loss", "error")
    corruptions = ()

    @property
    def tensors(self):
        return (self.tokens,)

    def of(self, tokens):
        return dataclasses.replace(self, tokens=tokens)

    def correct(self, outputs):
        return None

    def ranks(self, outputs, final):
        return None

    def against(self, corrupted):
        return self

    def training_loss(self, outputs, kind):
        raise AssertionError("this model is not trained here")

    def __getitem__(self, chosen):
        return dataclasses.replace(self, tokens=self.tokens[chosen])

    def split(self, size):
        return [self[i : i + size] for i in range(0, self.n_prompts, size)]

    def to(self, target):
        return dataclasses.replace(self, tokens=self.tokens.to(target))

    def errors(self, outputs):
        return self.distance(outputs, self.right.to(outputs.device))

    def distance(self, one, other):
        return (one - other).abs().sum(-1)

    step = distance

    def answer(self, outputs):
        return outputs[..., -1, 1]

    def contrast(self, outputs):
        return "the largest", self.answer(outputs)

    def baseline(self):
        return None

    def targets(self):
        return {"first of three": (torch.arange(self.n_tokens) % 3 == 0).float().expand(self.n_prompts, -1)}

    def corrupted(self, kind, generator, **options):
        raise AssertionError("the tests give corrupted prompts")


class BothWays(LoopedRootModule):
    """The model, on LoopedRootModule's hook points."""

    supports = frozenset({"pattern", "linear_readout", "forward_mode", "map", "autonomous"})
    tokens_per_point = 3

    def __init__(self, n_layers=2, n_loops=4, seed=0):
        super().__init__()
        self.cfg = ModelConfig(n_layers=n_layers, d_model=12, n_heads=3, n_dims=1, n_points=9, n_loops=n_loops)
        d = self.cfg.d_model
        self.tokens = nn.Embedding(SYMBOLS, d)
        self.places = nn.Parameter(torch.empty(self.cfg.n_ctx, d))
        self.mix = nn.ParameterList(nn.Parameter(torch.empty(4, d, d)) for _ in range(n_layers))
        self.wide = nn.ParameterList(nn.Parameter(torch.empty(2, d, d)) for _ in range(n_layers))
        self.head = nn.Linear(d, 2)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
        self.setup()
        self.eval()

    def prepare(self, tokens):
        return (torch.as_tensor(tokens).to(self.device),)

    def n_tokens(self, tokens):
        return tokens.shape[1]

    def require_memory(self, inputs, kept):
        pass

    def embed(self, tokens):
        return self.points(None).hook_embed(1 + self.tokens(tokens))

    def initial_state(self, e):
        return torch.ones_like(e)

    def step(self, z, e, loop=0, past=None):
        assert past is None
        hooks = self.points(loop)
        x = hooks.hook_input(hooks.hook_z_pre(z) * e)
        x = x + hooks.hook_pos_embed(self.places[: x.shape[1]].expand_as(x).clone())
        for mix, wide, here in zip(self.mix, self.wide, hooks.blocks, strict=True):
            x = here.hook_resid_pre(x)
            q, k, v = (
                point((x @ w).unflatten(-1, (self.cfg.n_heads, -1)))
                for point, w in zip((here.attn.hook_q, here.attn.hook_k, here.attn.hook_v), mix[:3], strict=True)
            )
            scores = einsum(q, k, "b query h d, b key h d -> b h query key")
            pattern = here.attn.hook_pattern(here.attn.hook_attn_scores(scores).softmax(-1))
            mixed = here.attn.hook_z(einsum(pattern, v, "b h query key, b key h d -> b query h d"))
            x = here.hook_resid_mid(x + here.hook_attn_out(mixed.flatten(-2) @ mix[3]))
            x = here.hook_resid_post(x + here.hook_mlp_out(torch.tanh(x @ wide[0]) @ wide[1]))
        return hooks.hook_z(self.to_state(x))

    def to_state(self, resid):
        return F.rms_norm(resid, resid.shape[-1:])

    def unembed(self, states):
        return self.head(states)

    def predict(self, z, e=None, loop=0, first=0, read_at=None):
        read = slice(2, None, 3) if read_at is None else [token - first for token in read_at if token >= first]
        return self.points(loop).hook_readout(self.unembed(z[:, read]))

    def forward(self, tokens, n_loops=None, keep_loops=None, grad_loops=None, read_at=None):
        n_loops = n_loops or self.cfg.n_loops
        with self.hook_trees.run(n_loops):
            e = self.embed(*self.prepare(tokens))
            z, outputs = self.initial_state(e), []
            for loop in range(n_loops):
                z = self.step(z, e, loop)
                outputs.append(self.predict(z, e, loop, read_at=read_at))
        return torch.stack(outputs[-keep_loops:] if keep_loops else outputs)


def draw(n_prompts, seed=0, threes=4):
    """Prompts of a seed."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(SYMBOLS, (n_prompts, 3 * threes), generator=generator)
    return Triples(tokens, {"held_out_seed": seed, "n_prompts": n_prompts})


@dataclasses.dataclass
class OtherSubject:
    """The model with its task."""

    model: BothWays = dataclasses.field(default_factory=BothWays)
    name: str = "runs/both-ways"
    label: str = "both-ways"
    task_name: str = "triples"

    @property
    def device(self):
        return self.model.device

    def identity(self):
        return {"name": self.name, "weights": "none", "config": {"model": {"n_loops": self.model.cfg.n_loops}}}

    def draw(self, spec):
        return draw(spec.prompts, spec.seed)

    def more_like(self, prompts, n_prompts, seed):
        return draw(n_prompts, seed, prompts.n_answers)

    def is_of_task(self, prompts):
        return isinstance(prompts, Triples)

    def loops_of(self, prompts):
        return self.model.cfg.n_loops

    def optimum(self, prompts):
        return "unknown", torch.full_like(prompts.right, torch.nan)
