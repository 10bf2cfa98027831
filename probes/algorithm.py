# %% [markdown]
# # Which algorithm does the loop run?
#
# The default checkpoint solves linear regression in its context. Its right answer is least squares; on the way there it
# could descend a gradient, invert a matrix, or do neither. Here its iterations stand beside those of known algorithms.

# %%
import numpy as np

from loopprobe import figure, load_checkpoint, probe
from loopprobe.present import figures

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
nearest = aligned.best_distance.min("algorithm")
own_mistakes = nearest / aligned.model_error
print(own_mistakes.sel(loop=[1, 3, 5, 7, 10, 15, 20]).to_pandas().round(2))
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
over_tokens = decoded.network_r2.sel(network="at every token, then pooled", control="none", of="w, least squares")
shuffled = decoded.network_r2.sel(network="at every token, then pooled", control="shuffled", of="w, least squares")
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

# %%
gains = aligned.gain.where(aligned.explained > 0, -np.inf)
closest = str(aligned.algorithm.values[gains.values.argmax()])
at = aligned.sel(algorithm=closest)
newton = aligned.sel(algorithm="Newton's iteration")
moved = float(decoded.slope.sel(edit="w, at all tokens before it").max())
print(
    f"{checkpoint.label} is none of the algorithms: the nearest, {closest}, explains {float(at.explained):.1%} of its "
    f"predictions, {float(at.gain):.1%} more than interpolation to least squares [{float(at.gain_low):.1%}, "
    f"{float(at.gain_high):.1%}]. It is as fast as a second-order method ({float(newton.steps_per_loop):.2f} steps of "
    f"Newton's iteration a loop), but from loop 7 on its mistakes are its own: its squared difference from every "
    f"algorithm is at least {float(own_mistakes.sel(loop=7)):.0%} of its squared error at loop 7, and "
    f"{float(own_mistakes.sel(loop=20)):.0%} at loop 20. No token holds w (R² {at_one_token:.2f}); all tokens together "
    f"do (R² {float(over_tokens[0]):.2f} after the first "
    f"loop, {float(over_tokens[-1]):.2f} after the last), and yet the loop does not use it there: editing it moves the "
    f"prediction by at most {moved:.0%} of what it should."
)
