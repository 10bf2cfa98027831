# %% [markdown]
# # Does attention settle?
#
# Where each head looks, loop by loop, and whether the patterns of the middle of the run would do for the rest of it.

# %%
import torch

from loopprobe import edited, figure, figures, freeze, load_checkpoint, probe, query_error

checkpoint = load_checkpoint("lr-b20-T10")
model, prompts = checkpoint.model, checkpoint.held_out(128)
n_loops, n_heads = model.cfg.n_loops, model.cfg.n_heads

# %%
data = probe("attention", checkpoint, checkpoint.held_out(64))
figure(data)  # the mean patterns, with a slider over the loops

# %% [markdown]
# ## What the query attends to
#
# The masses on itself, on labels and on inputs sum to 1. `uniform` is what even attention would give.

# %%
figures([data])["attention-query"]

# %%
last = data.sel(loop=n_loops, layer=0)
print(last.mass.to_pandas().round(3))
print(data.uniform.to_series().round(3))

# %% [markdown]
# ## When it stops changing
#
# The Frobenius norm of the change of the pattern from one loop to the next, a head.

# %%
change = data.change.sel(layer=0)
print(change.sel(loop=[2, 5, 10, 15, 20]).to_pandas().round(2))
figures([data])["attention-measures"]

# %% [markdown]
# ## Frozen attention
#
# From some loop on, every head keeps the pattern that it has there. If attention had settled, this would cost nothing.


# %%
def frozen_error(loop, **where):
    """Error at the query / n_dims after the last loop, the patterns kept from ``loop`` on."""
    with torch.no_grad(), edited(model, "pattern", freeze(loop), **where):
        return float(query_error(model, prompts)[-1].mean())


clean = float(query_error(model, prompts)[-1].mean())
frozen = {loop: frozen_error(loop) for loop in (0, 4, 8, 10, 12, 15, 18)}
one_head = {head: frozen_error(10, heads=[head]) for head in range(n_heads)}
print(f"not frozen {clean:.4f};", {loop: round(value, 4) for loop, value in frozen.items()})
print("frozen from loop 10 on, one head:", {head: round(value, 4) for head, value in one_head.items()})

# %% [markdown]
# ## Finding

# %%
own = int(last.mass.sel(target="itself").argmax("head"))
others = [head for head in range(n_heads) if head != own]
labels = last.mass.sel(target="labels", head=others)
mixing = last.mixing_score.sel(head=others)
costly = max(one_head, key=one_head.get)
itself, spread = float(last.mass.sel(target="itself", head=own)), change.sel(loop=n_loops)
print(
    f"Head {own} attends to the query itself ({itself:.0%}); the other heads spread over everything (mixing score "
    f"{float(mixing.min()):.2f} to {float(mixing.max()):.2f}), {float(labels.min()):.0%} to {float(labels.max()):.0%} "
    f"of it on labels. In loop {n_loops} the patterns still change by {float(spread.min()):.2f} to "
    f"{float(spread.max()):.2f} (Frobenius norm), which looks settled and is not: keeping the patterns of loop 10 "
    f"costs a factor {frozen[10] / clean:.0f} in error, those of loop 15 a factor {frozen[15] / clean:.1f}; frozen "
    f"alone, head {costly} costs the most ({one_head[costly]:.3f})."
)
