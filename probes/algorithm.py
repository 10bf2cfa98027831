# %% [markdown]
# # Which algorithm does the loop run?
#
# The default checkpoint solves linear regression in its context. Its right answer is least squares; on the way there it
# could descend a gradient, invert a matrix, or do neither. Here its iterations stand beside those of known algorithms.

# %%
import numpy as np

from loopprobe import figure, figures, load_checkpoint, probe
from loopprobe.show.tables.common import with_ends

checkpoint = load_checkpoint("lr-b20-T10")

# %%
aligned = probe("align", checkpoint, 128, fit_prompts=128)
figure(aligned)  # similarity of errors, loop by step, algorithm by algorithm

# %% [markdown]
# ## How much does each algorithm explain?
#
# `explained` is the share of the predictions of all loops, each loop held against its nearest step. Since every
# algorithm here ends at least squares, so does mere interpolation towards it: `gain` is what one explains beyond that.

# %%
table = aligned[["explained", "explained_low", "explained_high", "gain", "gain_low", "gain_high", "steps_per_loop"]]
print(table.drop_vars("model").to_pandas().round(3).to_string())
print(aligned.attrs["constants"])

# %% [markdown]
# ## In which direction does it differ?
#
# At the query, the squared difference between the model and the nearest step of any algorithm, over the model's own
# squared error. One means that no algorithm makes the mistakes that the model makes.

# %%
nearest = aligned.sel(algorithm=aligned.best_distance.idxmin("algorithm"))
mistakes = nearest[["best_distance", "best_distance_low", "best_distance_high"]] / aligned.model_error
print(mistakes.sel(loop=[1, 3, 5, 7, 10, 15, 20]).to_dataframe().round(2))
figures([aligned])["align-best"]

# %% [markdown]
# ## Where in the state does its iterate live?
#
# Ridge regression at every token, and networks over all tokens, trained on other prompts.

# %%
decoded = probe("decode", checkpoint, 256, train_prompts=768, network_loops=3, network_steps=400)
figures([decoded])["decode"]

# %%
at_one_token = float(decoded.r2.sel(target="w, least squares", control="none").isel(position=slice(20, None)).max())
pooled = decoded.sel(network="at every token, then pooled", of="w, least squares")
over_tokens, shuffled = (pooled.network_r2.sel(control=control) for control in ("none", "shuffled"))
print(f"w at one token (of the last 41): R² {at_one_token:.2f}")
print("w from all tokens, by loop:")
print(over_tokens.to_series().round(2).to_string())
print("with shuffled targets:")
print(shuffled.to_series().round(2).to_string())
figures([decoded])["decode-networks"]

# %% [markdown]
# ## Is it used there?
#
# The state of the middle loop is edited along what was decoded. One: the prediction moves as the decoder says.

# %%
slope = decoded.slope.to_pandas().round(3)
print(slope)
figures([decoded])["decode-causal"]

# %% [markdown]
# ## Finding
#
# In brackets: 95 % intervals over prompts.

# %%
gains = aligned.gain.where(aligned.explained > 0, -np.inf)
closest = str(aligned.algorithm.values[gains.values.argmax()])
at = aligned.sel(algorithm=closest)
newton = aligned.sel(algorithm="Newton's iteration")
edited = decoded.sel(edit="w, at all tokens before it")
edited = edited.sel(after=edited.slope.idxmax("after"))
after_first, after_last = (pooled.sel(control="none").isel(iteration=i) for i in (0, -1))
print(
    f"{checkpoint.label} is none of the algorithms: the nearest, {closest}, explains {with_ends(at, 'explained')} of "
    f"its predictions, {with_ends(at, 'gain')} more than interpolation to least squares. It is as fast as a "
    f"second-order method ({float(newton.steps_per_loop):.2f} steps of Newton's iteration a loop), but from loop 7 on "
    f"its mistakes are its own: its squared difference from the nearest algorithm, over its squared error, is "
    f"{with_ends(mistakes.sel(loop=7), 'best_distance')} at loop 7 and "
    f"{with_ends(mistakes.sel(loop=20), 'best_distance')} at loop 20. No token holds w (R² at most "
    f"{at_one_token:.2f}); all tokens together do (R² {with_ends(after_first, 'network_r2')} after the first loop, "
    f"{with_ends(after_last, 'network_r2')} after the last), and yet the loop does not use it there: editing it moves "
    f"the prediction by at most {with_ends(edited, 'slope')} of what it should."
)
