# %% [markdown]
# # What the loop remembers
#
# A looped model gets its input again in every loop. So what does it keep in its state, and for how long? Two runs that
# differ in their labels only, and activations of the one patched into the other; then ablations, to see what each
# part is needed for.

# %%
import torch

from loopprobe import (
    corrupt,
    edited,
    figure,
    load_checkpoint,
    mean_activations,
    probe,
    query_error,
    replace,
    resample,
    zero,
)

checkpoint = load_checkpoint("lr-b20-T10")
model, prompts = checkpoint.model, checkpoint.held_out(128)
n_loops, n_heads, query = model.cfg.n_loops, model.cfg.n_heads, 2 * model.cfg.n_points - 2

# %% [markdown]
# ## One place at a time
#
# `probe("patch")` replaces one activation of the corrupted run (labels of another task) by that of the clean run: the
# state after a loop, at one token. 0 is the corrupted answer, 1 the clean one. Here at the query's token and at some
# of the examples; `loopprobe patch` does all tokens and heads.

# %%
tokens = (1, 15, 31, 45, 59, 60)
patched = probe("patch", checkpoint, checkpoint.held_out(32), sites=("z",), positions=tokens)
figure(patched)

# %%
print(patched.z.sel(loop=[5, 10, 15, 17, 18, 19, 20]).round(2).to_pandas())

# %% [markdown]
# ## The whole state
#
# No single token carries the answer for more than a few loops. The whole state, of all tokens at once, is an
# intervention of a line: `replace` takes the activations of the clean run.

# %%
corrupted = corrupt(prompts, "weights", torch.Generator().manual_seed(0))
with torch.no_grad():
    clean_answer = model(*prompts)[-1, :, -1]
    corrupted_answer = model(*corrupted)[-1, :, -1]
total = clean_answer - corrupted_answer
_, clean = model.run_with_cache(*prompts, n_loops, names=["hook_z"])


def effect_of_state(loop):
    """Share of the way from the corrupted to the clean answer that the clean state after ``loop`` brings."""
    with torch.no_grad(), edited(model, "z", replace(clean), loops=[loop]):
        moved = model(*corrupted)[-1, :, -1] - corrupted_answer
    return float((moved * total).sum() / (total**2).sum())


effects = {n_loops - 1 - loop: effect_of_state(loop) for loop in range(n_loops)}  # by how many loops come after it
for loops_after in (0, 1, 2, 3, 4, 5, 8, 12):
    print(f"{loops_after:2d} loops later {effects[loops_after]:6.2f}")

# %% [markdown]
# ## Heads, ablated in three ways
#
# Zero, mean over prompts, and the activation of another prompt. They disagree where a head writes a constant.

# %%
means = mean_activations(model, prompts.split(64), n_loops, "attn_z")
ways = {"zero": zero, "mean": replace(means), "resample": resample(torch.Generator().manual_seed(0))}


def error(**where):
    """Error at the query / n_dims after the last loop, by way of ablation."""
    found = {}
    for name, way in ways.items():
        with edited(model, "attn_z", way, **where):
            found[name] = float(query_error(model, prompts)[-1].mean())
    return found


whole = {head: error(heads=[head]) for head in range(n_heads)}
for head, errors in whole.items():
    print(f"head {head}, in all loops: " + ", ".join(f"{name} {value:.3f}" for name, value in errors.items()))

# %%
once = {loop: error(heads=[1], loops=[loop])["mean"] for loop in (0, 5, 10, 15, 19)}
print("head 1 in one loop only:", {loop: round(value, 4) for loop, value in once.items()})

# %% [markdown]
# ## Finding

# %%
clean_error = float(query_error(model, prompts)[-1].mean())
half = min(loops_after for loops_after, value in effects.items() if value < 0.5)
gone = min(loops_after for loops_after, value in effects.items() if abs(value) < 0.1)
least = min(whole, key=lambda head: whole[head]["mean"])
print(
    f"The loop forgets: the clean state of all tokens is worth {effects[1]:.2f} of the answer one loop later, less "
    f"than half after {half} loops and less than a tenth after {gone}; what the state held in loop {n_loops - gone} or "
    f"before leaves next to no trace, since the input says it again. No head can be spared: without it (mean ablation "
    f"in all loops) the error goes from {clean_error:.4f} to at least {whole[least]['mean']:.3f} (head {least})."
)
