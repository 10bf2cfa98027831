# %% [markdown]
# # Inside the loop of a language model
#
# A looped language model applies the same layers again and again before it names the next token. Which loops does a
# token need, where do the states go, and what happens when one loop is changed? This session asks a small model that
# ships with loopprobe. For another one change one line, `NAME = "hf:raven-docs"`, to `"hf:ByteDance/Ouro-1.4B"` or
# `"hf:tomg-group-umd/huginn-0125"`: everything else stays as it is.

# %%
import pydoc_data.topics
import tempfile
from pathlib import Path

import torch
from torch import nn

from loopprobe import edited, figure, figures, load_checkpoint, probe, wrap
from loopprobe.show.tables.inspection import diagram
from loopprobe.store.inspection import inspect
from loopprobe.store.subject import PromptSpec

NAME = "hf:raven-docs"
checkpoint = load_checkpoint(NAME, trust_remote_code=True)  # code that comes with a model runs only where you say so
model, tokenizer = checkpoint.model, checkpoint.tokenizer
print(checkpoint)
print(diagram(inspect(checkpoint)))

# %% [markdown]
# ## What it would say after every loop
#
# The model's own coda reads the state after every loop, as if the loop had ended there.

# %%
prompts = checkpoint.draw(
    PromptSpec(text=("The function returns an array of the same shape as the input array.",), read="all")
)
read = probe("lens", checkpoint, prompts, loops=8)
figures([read])["lens-answers"]

# %%
for loop in (1, 2, 4, 8):
    row = read.sel(loop=loop).isel(site=-1, shown=0, top=0)
    print(f"after {loop} loops:", " ".join(row.top_answer.values.tolist()))
print(
    f"the answer at the query is settled after {int(read.settled[0])} loops, and changed {int(read.revisions[0])} times"
)

# %% [markdown]
# ## How many loops a token needs
#
# The Kullback-Leibler divergence of the answers after t loops to those after the last, on windows of a text that the
# training did not see: the help texts of Python's own language.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "topics.txt")
    path.write_text("\n".join(pydoc_data.topics.topics[topic] for topic in sorted(pydoc_data.topics.topics)))
    windows = checkpoint.draw(PromptSpec(text_file=str(path), prompts=16, length=64))
far = probe("converge", checkpoint, windows, loops=16, states=0)
for loop in (1, 2, 4, 8, 16):
    row = far.sel(loop=loop)
    nats = float(row.error_by_point.mean())
    print(f"after {loop:2} loops: {nats:.3f} nats a token, {float(row.accuracy):5.1%} right, "
          f"KL to the last {float(row.to_last):.1e}")  # fmt: skip
figure(far)

# %% [markdown]
# ## Where the states go
#
# States of single tokens on the three directions in which they vary most (arXiv 2502.05171, section 7): do they come to
# rest, circle, or slide?

# %%
paths = probe("paths", checkpoint, prompts, loops=300, positions=tuple(range(prompts.n_tokens)))
kinds = paths.layer_limit.attrs["types"].split(", ")
counts = {kind: int((paths.layer_limit == i).sum()) for i, kind in enumerate(kinds)}
print({kind: n for kind, n in counts.items() if n})  # tokens × layers
figure(paths)

# %% [markdown]
# ## Which loop carries the difference
#
# Two texts that differ in one word. The state of one token in one loop of the second run is replaced by that of the
# first; how much of the answer comes back?

# %%
pair = {"read": "query"}
clean = checkpoint.draw(PromptSpec(text=("The input array must have the same shape as the output array",), **pair))
other = checkpoint.draw(PromptSpec(text=("The input image must have the same shape as the output image",), **pair))
patched = probe("patch", checkpoint, clean, corrupted=other, sites=("z",), loops=6)
best = patched.z.argmax(("loop", "position"))
token = clean.roles[int(patched.position[best["position"]])]
print(f"the state that brings most back: token {token}, after loop {int(patched.loop[best['loop']])}")
figure(patched)

# %% [markdown]
# ## Changing one loop while it writes
#
# Every edit works while text is generated; each call of the model runs the tokens that are new.

# %%
start = tokenizer("Returns the sum of the", return_tensors="pt").input_ids
plain = model.generate(start, max_new_tokens=12)
print("as it is:      ", tokenizer.decode(plain[0]))
with edited(model, "mlp_out", lambda x, hook: torch.zeros_like(x), loops=5):
    changed = model.generate(start, max_new_tokens=12)
print("without the MLPs of the sixth loop:", tokenizer.decode(changed[0]))

# %% [markdown]
# ## Your own module
#
# Any module that loops can be wrapped, in memory, as it is. What is told wrongly is found: wrapping compares single
# steps and readings with runs of the module.


# %%
class Own(nn.Module):
    """A looped module of one's own."""

    def __init__(self, width: int = 32, n_loops: int = 6) -> None:
        super().__init__()
        self.n_loops = n_loops
        self.embed, self.out = nn.Embedding(50, width), nn.Linear(width, 50)
        self.block = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        e = self.embed(tokens)
        z = torch.zeros_like(e)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        for _ in range(self.n_loops):
            z = self.norm(self.block(z + e, src_mask=mask, is_causal=True))
        return self.out(z)


# %%
torch.manual_seed(0)
tokens = torch.randint(50, (2, 9))
mine = wrap(Own().eval(), core="block", state="norm", prelude="embed", head="out", set_loops="n_loops", example=tokens)
answers, cache = mine.run_with_cache(tokens, n_loops=20, names=["z", "resid_post"])
z = cache.stack("z")
print(f"{cache}\nsteps of the state: {[round((z[t + 1] - z[t]).norm().item(), 3) for t in (0, 4, 18)]}")

# %% [markdown]
# ## Finding

# %%
needed = int(far.loop[(far.to_last < 0.01).values][0])
rest = counts["fixed point"] / sum(counts.values())
print(f"{checkpoint.label}: the answers are within 0.01 nats of the last after {needed} of 16 loops, "
      f"and {rest:.0%} of the states come to rest")  # fmt: skip
