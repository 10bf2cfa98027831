# %% [markdown]
# # A loop that multiplies
#
# Swaps of five things, one after the other: which arrangement comes out? The product of n moves in S5 is the textbook
# case of a problem that no fixed depth is believed to solve (arXiv 2207.00729). This model has one layer, looped as
# often as there are moves. How does it compute, and is that how?

# %%
import torch

from loopprobe import edited, figure, load_checkpoint, probe, replace

checkpoint = load_checkpoint("s5-b12-T12")
model, prompts = checkpoint.model, checkpoint.held_out(512)
n = prompts.n_answers
print(" ".join(prompts.names[token] for token in prompts.tokens[0]))
print(" ".join(prompts.answer_names[answer] for answer in prompts.answers[0]))

# %% [markdown]
# ## From prompts to answers, loop by loop
#
# Every token asks for the product of the moves up to it. Which tokens are right after which loop?

# %%
with torch.no_grad():
    logits = model(*prompts.inputs, n_loops=2 * n, read_at=prompts.read_at)
right = prompts.correct(logits).float().mean(1)  # [loop, answer]
for loop in (1, 2, 4, 8, 12, 24):
    print(f"after {loop:2} loops:", " ".join(f"{share:4.0%}" for share in right[loop - 1]))

# %% [markdown]
# A front moves one token a loop: after t loops the first t products are right, and stay right when the loop goes on.
# The loop does not halve the work each time, as a product tree would; it passes the product along.
#
# In front of it there is structure too. A swap is odd, so the product of k swaps has the sign of k. What is the sign
# of the answers one and two tokens ahead of the front?

# %%
signs = torch.tensor([
    sum(a > b for i, a in enumerate(name) for b in name[i + 1 :]) % 2 for name in prompts.answer_names
])  # fmt: skip
same_sign = (signs[logits.argmax(-1)] == signs[prompts.answers]).float().mean(1)
ahead = {}
for k in (1, 2, 3, 4):
    loops = range(2, n - k)
    ahead[k] = [torch.stack([share[t - 1, t + k - 1] for t in loops]).mean().item() for share in (same_sign, right)]
    print(f"{k} ahead of the front: sign right {ahead[k][0]:4.0%}, product right {ahead[k][1]:4.0%}")

# %% [markdown]
# ## What stands where
#
# A linear classifier reads the product so far at every loop and token, beside what it reads of other prompts' products
# and in a model that was never trained.

# %%
read = probe("decode", checkpoint, prompts, train_prompts=2048)
figure(read)

# %%
accuracy = read.accuracy.sel(target="product so far").isel(layer=0)
for control in accuracy.control.values:
    at_front = [float(accuracy.sel(control=control, loop=t, position=t)) for t in range(2, n + 1)]
    behind = [float(accuracy.sel(control=control, loop=n, position=t)) for t in range(2, n + 1)]
    print(
        f"{control}: at the front {sum(at_front) / len(at_front):.2f}, after all loops {sum(behind) / len(behind):.2f}"
    )

# %% [markdown]
# ## The causal check
#
# Does the product that stands at token t make the later answers? Then the state of another prompt there must turn them
# into that prompt's product times the moves that follow here. This prediction needs no probe: it is group theory.

# %%
other = checkpoint.held_out(512, seed=1)
_, donor = model.run_with_cache(*other.inputs, n_loops=n, names="hook_z")


def as_predicted(t, loops, tokens, where):
    """Swap the states of tokens; return the share of the answers from token t on that are then as predicted."""
    mixed = torch.cat([other.tokens[:, : t + 1], prompts.tokens[:, t + 1 :]], dim=1)
    predicted = prompts.task.rules.solve(mixed)[:, t:]
    with torch.no_grad(), edited(model, "z", replace(donor), loops=loops, positions=tokens):
        answered = model(*prompts.inputs, n_loops=n, read_at=prompts.read_at)[-1].argmax(-1)[:, t:]
    shares = (answered == predicted).float().mean().item(), (answered == prompts.answers[:, t:]).float().mean().item()
    print(f"{tokens} in {where}: {shares[0]:4.0%} as predicted, {shares[1]:4.0%} as without the swap")
    return shares[0]


once = [as_predicted(t, [t - 1], [t], f"loop {t} alone") for t in (2, 4, 6, 8, 10)]

# %% [markdown]
# Once is not enough: the input is injected in every loop, so the loop after the swap computes the token's own product
# anew. What one swap leaves behind runs ahead with the front, and most answers come back. So swap it in every loop.

# %%
always = [as_predicted(t, None, [t], "every loop") for t in (2, 4, 6, 8, 10)]
both = [as_predicted(t, None, [t - 1, t], "every loop") for t in (2, 4, 6, 8, 10)]

# %% [markdown]
# Whatever later tokens know of the first t moves, they have it almost all from token t, and what is missing from the
# one before it. The same from the side of the answer: one early move is changed, and the state of one token after one
# loop is taken from the clean run. How much of the last answer's logit difference comes back?

# %%
patched = probe("patch", checkpoint, prompts[:128], corruption="token", example=1, sites=("z",))
figure(patched)

# %%
effect = patched.z
print("token t after loop t:    ", " ".join(f"{float(effect.sel(loop=t, position=t)):5.2f}" for t in range(1, n + 1)))
print("token t + 1 after loop t:", " ".join(f"{float(effect.sel(loop=t, position=t + 1)):5.2f}" for t in range(1, n)))
print(
    "token t + 2 after loop t:", " ".join(f"{float(effect.sel(loop=t, position=t + 2)):5.2f}" for t in range(1, n - 1))
)

# %% [markdown]
# ## Where it ends
#
# Longer prompts, more loops: what stops the model?

# %%
lengths = probe("extrapolate", checkpoint, prompts[:128])
figure(lengths)

# %%
print(lengths.exact.sel(length=[12, 16, 18, 24], method="nearest").sel(loop=[12, 16, 18, 24, 48]).round(2).to_pandas())

# %% [markdown]
# Where the model is right, it is so after as many loops as moves, and no loop fewer; where it is not, no number of
# loops helps. What ends it is the length, not the loops.

# %% [markdown]
# ## Finding

# %%
front = min(right[t - 1, t - 1].item() for t in range(1, n + 1))
early = max(right[t - 1, t].item() for t in range(1, n))
trained, fails = lengths.attrs["trained_length"], lengths.attrs["fails_at"]
print(
    f"The loop multiplies as one would with a pencil: after t loops the product of the first t moves is right in "
    f"{front:.0%} of the prompts or more, that of t + 1 in {early:.0%} or less. The product so far stands at its token "
    f"and makes the answers: with another prompt's states there in every loop, {min(always):.0%} to {max(always):.0%} "
    f"of the later answers are what group theory says ({min(both):.0%} to {max(both):.0%} with the token before; at "
    f"most {max(once):.0%} after a swap in one loop, which the input undoes). Ahead of the front the sign of an answer "
    f"alternates: two tokens ahead it is right in {ahead[2][0]:.0%}, and the product already in {ahead[2][1]:.0%}. It "
    f"solves {trained} moves, as in training, and fails at {fails}, whatever the loops."
)
