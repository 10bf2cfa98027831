# %% [markdown]
# # What does not settle, and does it matter
#
# Two shipped models with b = 20: one trained on the losses of its last 10 loops, one on all 20. Run on for 500 loops,
# the error of the first stays and that of the second rises. Where do their states go, does what moves touch the
# prediction, and is there a fixed point that the loop misses?

# %%
import numpy as np
import torch

from loopprobe import figure, figures, load_checkpoint, probe
from loopprobe.dynamics.limits import Limit
from loopprobe.dynamics.maps import LoopMap
from loopprobe.dynamics.solve import solve
from loopprobe.dynamics.spectrum import position_spectra
from loopprobe.dynamics.trail import run_late

names = ("lr-b20-T10", "lr-b20-T20")
models = {name: load_checkpoint(name) for name in names}
n_prompts, n_dims, query, FAR = 48, 10, 60, 600

# %% [markdown]
# ## Where states and predictions go
#
# `converge` follows the states of some prompts for 600 loops: fixed point, approaching (it moves less and less, and
# leads to a point), cycle with its period, slow drift, unsettled (it moves and does not return), told apart by
# thresholds that are calibrated on maps whose long run is known.

# %%
runs = {name: probe("converge", models[name], 64, loops=100, states=n_prompts, far=FAR) for name in names}
figure(runs[names[0]])

# %%
figures([runs[names[0]]])["converge-limits"]

# %% [markdown]
# With how many examples? Below n_dims there are many weights that fit, from n_dims on there is one.

# %%
settled = {}
for name, data in runs.items():
    fixed = data.limit == Limit.FIXED
    few, many = (float(fixed.isel(position=part).mean()) for part in (slice(0, 2 * n_dims), slice(2 * n_dims, None)))
    settled[name] = fixed.all("position").values
    print(f"{name}: tokens at a fixed point {few:.0%} below {n_dims} examples, {many:.0%} from there on")
    print(f"{name}: prompts with all tokens at one {settled[name].mean():.0%}")

# %% [markdown]
# ## Where the motion starts
#
# Attention is causal: what a token does can only come from itself or from tokens before it. So the first token of a
# prompt that does not come to rest is where its motion starts.

# %%
starts = {}
for name, data in runs.items():
    moving = (data.limit != Limit.FIXED).values[~settled[name]]
    starts[name] = moving.argmax(1)
    print(f"{name}: it starts at a label's token in {np.mean(starts[name] % 2 == 1):.0%}, at tokens", starts[name][:10])

# %% [markdown]
# ## Whether it touches the prediction
#
# The prediction is read from one direction of the query's state. If the motion there had no preferred direction, 1/64
# of its variance would lie along it.


# %%
def along_read_out(name):
    """Share of the variance of the query's late motion along the read-out, and the error with and without motion."""
    checkpoint = models[name]
    prompts = checkpoint.held_out(n_prompts)
    system = LoopMap.of(checkpoint.model, prompts)
    late, read = (trail.last for trail in run_late(system, FAR))
    motion = (late - late.mean(0))[:, ~settled[name], query]
    direction = checkpoint.model.W_U[:, 0].detach()
    along = (motion @ (direction / direction.norm())).square().mean(0) / motion.square().sum(-1).mean(0)
    error = (read[..., -1] - prompts.ys[:, -1]).square().mean(0) / n_dims
    return along.median().item(), error[~settled[name]].mean().item(), error[settled[name]].mean().item()


touched = {name: along_read_out(name) for name in names}
for name, (along, moving, resting) in touched.items():
    print(f"{name}: {along:.2%} of the motion along the read-out; error {moving:.4f} moving, {resting:.4f} at rest")

# %% [markdown]
# ## The fixed point that the loop misses
#
# Newton–Krylov finds fixed points whether they are stable or not, here from the middle of the late motion, in float64.


# %%
def missed(name, most=8):
    """Of prompts that do not settle: how many have a fixed point nearby, its spectral radius, and its error."""
    checkpoint = models[name]
    prompts = checkpoint.held_out(n_prompts)
    system = LoopMap.of(checkpoint.model, prompts, torch.float64)
    rows = np.nonzero(~settled[name])[0][:most]
    late, read = (trail.last for trail in run_late(system, 400))
    found, radii, errors, on_loop = 0, [], [], []
    for row in rows.tolist():
        one = system.at(slice(row, row + 1))
        solution = solve(one, late[:, row : row + 1].mean(0), tolerance=1e-9)
        if solution.found.all():
            found += 1
            radii.append(position_spectra(one, solution.state).abs().max().item())
            answer = one.read(solution.state)[0, -1]
            errors.append(((answer - prompts.ys[row, -1]).square() / n_dims).item())
            on_loop.append(((read[:, row, -1] - prompts.ys[row, -1]).square().mean() / n_dims).item())
    return len(rows), found, radii, float(np.mean(errors)), float(np.mean(on_loop))


with torch.no_grad():
    points = {name: missed(name) for name in names}
for name, (tried, found, radii, error, on_loop) in points.items():
    print(f"{name}: {found} of {tried} have one, of spectral radius {min(radii):.2f} to {max(radii):.2f}")
    print(f"{name}: error {error:.4f} there, {on_loop:.4f} on the loop")

# %% [markdown]
# ## Finding

# %%
first, second = names
at_labels = {name: float(np.mean(starts[name] % 2 == 1)) for name in names}
print(
    f"{first} comes to rest at all tokens in {settled[first].mean():.0%} of prompts only, yet its error stays: of "
    f"the query's motion {touched[first][0]:.2%} lies along the read-out, less than the {1 / 64:.2%} of a random "
    f"direction. {second} rests in {settled[second].mean():.0%}, but where it moves the read-out moves too "
    f"({touched[second][0]:.1%}), and the error is {touched[second][1]:.3f} against {touched[second][2]:.4f}: "
    f"these prompts are its rise. The motion starts at label tokens ({at_labels[first]:.0%} and "
    f"{at_labels[second]:.0%}), and "
    f"what it circles is a fixed point that has lost its stability (spectral radius up to {max(points[first][2]):.2f} "
    f"and {max(points[second][2]):.2f}): at it, {second} would have an error of {points[second][3]:.4f}."
)
