"""Direct attribution: the prediction at the query, split into what every part of every loop wrote towards it.

The residual stream of a token is a sum, and the final norm of a loop, its scale held at what it was in the run, is
linear; so is the injection of the next loop. What a head or an MLP wrote in loop t can be followed along this
direct path, through all later norms, to the read-out, and the contributions add up to the prediction exactly.
(Direct logit attribution, Elhage et al. 2021, "A mathematical framework for transformer circuits"; here through
the loops.) What a part does by way of later heads and MLPs is theirs in this account: for that, patch.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from loopprobe.model.cache import LoopCache
from loopprobe.model.looped import LoopedTransformer
from loopprobe.probes.dataset import stamp
from loopprobe.probes.declaration import Probe, Shown
from loopprobe.probes.loops import LoopsConfig
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.store.evaluate import chunk_size
from loopprobe.support.statistics import at_least_single, bootstrap_ratio, double, to_numpy
from loopprobe.tasks import Prompts
from loopprobe.types import Progress

NAMES = ("embed", "pos_embed", "result", "mlp_out", "ln_final_scale", "readout")


def run(
    checkpoint: Checkpoint, prompts: Prompts, config: LoopsConfig, progress: Progress = lambda steps: steps
) -> xr.Dataset:
    """Split the prediction at the query after the last loop.

    Returns:
        A dataset with dims ``loop`` (in which it was written, from 1), ``component`` (the injected input, the
        positions, each head, each layer's attention offset, each MLP, the norm's offset) and ``example``:

        * ``contribution [loop, component, example]``, in the units of y; with ``initial [example]`` (the initial state)
          and ``offset [example]`` (of the read-out) they sum to ``prediction [example]``
        * ``share``, ``low``, ``high [loop, component]``: Σ contribution · prediction / Σ prediction² over the
          prompts, with a 95 % bootstrap interval; the shares of all parts sum to 1
        * ``size [loop, component]``: root mean square of the contribution

    Raises:
        LoopprobeError: the prompts do not fit the model.
    """
    check(checkpoint, config, prompts)
    model = checkpoint.model
    device = checkpoint.device
    prompts = prompts.to(device)
    n_loops = config.loops or model.cfg.n_loops
    parts = [contributions(model, batch, n_loops) for batch in progress(prompts.split(max(1, chunk_size(device) // 2)))]
    contribution, initial, prediction = (
        to_numpy(double(torch.cat([part[i] for part in parts], dim=-1))) for i in range(3)
    )
    share, low, high = bootstrap_ratio(contribution * prediction, prediction**2)
    dims = ("loop", "component")
    data = xr.Dataset(
        {
            "contribution": ((*dims, "example"), contribution.astype(np.float32)),
            "share": (dims, share),
            "low": (dims, low),
            "high": (dims, high),
            "size": (dims, np.sqrt((contribution**2).mean(-1))),
            "initial": ("example", initial),
            "offset": ("example", np.full(len(prediction), model.b_U.item())),
            "prediction": ("example", prediction),
        },
        coords={"loop": np.arange(1, n_loops + 1), "component": components(model), "model": checkpoint.label},
        attrs={"trained_loops": model.cfg.n_loops},
    )
    for name in ("contribution", "size", "initial", "offset", "prediction"):
        data[name].attrs["units"] = "of y"
    return stamp(data, "attribute", checkpoint, prompts, config)


def check(checkpoint: Checkpoint, config: LoopsConfig, prompts: Prompts) -> None:
    """Accept every checkpoint: every prediction can be split."""


def components(model: LoopedTransformer) -> list[str]:
    """Name the parts that write towards the prediction in a loop, in the order of ``contribution``."""
    in_layers = [
        what
        for layer in range(model.cfg.n_layers)
        for what in (
            *(f"head {layer}.{head}" for head in range(model.cfg.n_heads)),
            f"attention offset {layer}",
            f"MLP {layer}",
        )
    ]
    return ["input", "positions", *in_layers, "norm offset"]


def contributions(
    model: LoopedTransformer, prompts: Prompts, n_loops: int
) -> tuple[Float[Tensor, "loop component batch"], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Compute the contributions of every loop and component and of the initial state, and the prediction they sum to.

    Works back from the read-out: ``g`` is the direction of the state that is read, per prompt; through a norm with
    scale s and gain w it is (w·g − mean(w·g)) / s on the residual stream, and the offset of the norm adds b·g.
    """
    _, cache = model.run_with_cache(prompts.xs, prompts.ys, n_loops, names=NAMES, positions=[prompts.query])
    with torch.no_grad():
        e = at_least_single(cache["hook_embed"][:, 0])
        g = at_least_single(model.W_U[:, 0]).expand_as(e)
        gain, bias = (at_least_single(weight) for weight in (model.ln_final.w, model.ln_final.b))
        rows = []
        for loop in reversed(range(n_loops)):
            offset = g @ bias
            g = g * gain
            g = (g - g.mean(-1, keepdim=True)) / at_least_single(cache[f"loops.{loop}.ln_final.hook_scale"][:, 0])
            injected = torch.zeros_like(offset) if model.cfg.injection != "add" else einsum(e, g, "b d, b d -> b")
            rows.append(torch.stack([injected, *_in_layers(model, cache, loop, g), offset]))
            if model.cfg.injection == "multiply":
                g = g * e
        initial = einsum(model.initial_state(e), g, "b d, b d -> b")
    return torch.stack(rows[::-1]), initial, cache[n_loops - 1, "readout"][:, -1]


def _in_layers(model: LoopedTransformer, cache: LoopCache, loop: int, g: Tensor) -> list[Float[Tensor, " batch"]]:
    """Contributions along g: the positions, then for each layer its heads, its attention's offset and its MLP."""

    def written(name: str, layer: int | None = None) -> Tensor:
        return at_least_single(cache[(loop, name) if layer is None else (loop, name, layer)][:, 0])

    parts = [einsum(written("pos_embed"), g, "b d, b d -> b")]
    for layer, block in enumerate(model.blocks):
        parts += list(einsum(written("result", layer), g, "b head d, b d -> head b"))
        parts.append(g @ at_least_single(block.attn.b_O))
        parts.append(einsum(written("mlp_out", layer), g, "b d, b d -> b"))
    return parts


PROBE = Probe(
    "attribute",
    LoopsConfig,
    run,
    check,
    Shown("attribute:attribute_figures", "inside:attribute_table"),
    needs=frozenset({"weights"}),
    of_points=True,
)
