# %% [markdown]
# # What is written where, in which loop
#
# The shipped model `lr-b20-T10` solves linear regression in 10 dimensions from 30 examples by running one block 20
# times. Three ways to look at how its answer comes to stand in the residual stream: the cache (how much is written),
# the lens (what can be read), and direct attribution (what made the answer that is read).
#
# A notebook in percent format: open it in an editor that knows `# %%`, or run it as a script.

# %%
import numpy as np

from loopprobe import figure, load_checkpoint, probe

checkpoint = load_checkpoint("lr-b20-T10")
model, prompts = checkpoint.model, checkpoint.held_out(256)
n_loops, query = model.cfg.n_loops, 2 * model.cfg.n_points - 2

# %% [markdown]
# ## The cache
#
# Only what is asked for is kept: here the state and what attention and MLP add to it, at the query's token. The
# labelled form has a loop axis, on which numpy and xarray do the rest.

# %%
names = ["hook_z", "attn_out", "mlp_out", "resid_post"]
predictions, cache = model.run_with_cache(*prompts, n_loops, names=names, positions=[query])
data = cache.to_xarray().isel(position=0)
norms = np.sqrt((data**2).sum("d_model")).mean("example")
print(norms.round(1).sel(layer=0).to_dataframe()[["attn_out", "mlp_out", "resid_post"]].iloc[::3])

# %% [markdown]
# The state moves less and less, yet attention and MLP go on writing as much as in the middle of the run: what they
# write is undone by the final norm and written again in the next loop.

# %%
step = np.sqrt((data.z.diff("loop") ** 2).sum("d_model")).mean("example") / norms.z
print(step.round(3).values)

# %% [markdown]
# ## The lens
#
# The read-out put to the residual stream everywhere: with the final norm (the model's own), without it, and tuned, an
# affine map a site, fitted to the final answer on other prompts.

# %%
read = probe("lens", checkpoint, prompts)
figure(read)

# %%
last = read.sel(loop=n_loops, site="input")
own, tuned = (float(last.query_to_final.sel(lens=lens)) for lens in ("final norm", "tuned"))

# %% [markdown]
# ## Direct attribution
#
# The answer is a sum of what every head and MLP of every loop wrote towards the read-out, the norms' scales held as
# they were; the parts add up to the prediction exactly.

# %%
split = probe("attribute", checkpoint, prompts)
figure(split)

# %%
by_loop = split.share.sum("component")
parts = split.share.sel(loop=n_loops).to_series().drop(["input", "positions", "norm offset"]).sort_values()
ratio = float(by_loop.sel(loop=n_loops - 1) / by_loop.sel(loop=n_loops))

# %% [markdown]
# ## Finding

# %%
print(
    f"The last loop alone wrote {float(by_loop[-1]):.0%} of the prediction, and each loop before it {ratio:.2f} times "
    f"as much as the next: by the direct path the answer is written anew in every loop, most of it by "
    f"{parts.index[-1]} ({parts.iloc[-1]:.0%}) and {parts.index[-2]} ({parts.iloc[-2]:.0%}). "
    f"Yet it already stands in the state that enters the last loop: an affine map reads it "
    f"there with an error of {tuned:.1e} to the final answer, where the model's own read-out has {own:.1e} "
    f"(squared, / n_dims)."
)
