"""Direct attribution: the prediction at the query, split into what every part of every loop wrote towards it.

The residual stream of a token is a sum, and the final norm of a loop, its scale held at what it was in the run, is
linear; so is the injection of the next loop. What a head or an MLP wrote in loop t can be followed along this
direct path, through all later norms, to the read-out, and the contributions add up to the prediction exactly.
(Direct logit attribution, Elhage et al. 2021, "A mathematical framework for transformer circuits"; here through
the loops.) What a part does by way of later heads and MLPs is theirs in this account: for that, patch.

Of tokens, what is split is a difference of logits: the right answer's minus that of the answer that the prompts compare
it with (``TokenPrompts.against``), or, where they name none, minus the mean logit of all others.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
import xarray as xr
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.model.blocks import LayerNorm, RMSNorm
from loopprobe.model.cache import LoopCache
from loopprobe.model.looped import LoopedTransformer
from loopprobe.probes.dataset import stamp
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.probes.loops import LoopsConfig
from loopprobe.probes.measures import Function, Measure, find_measure
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.store.evaluate import chunk_size
from loopprobe.support.statistics import at_least_single, bootstrap_ratio, double, to_numpy
from loopprobe.tasks import PromptBatch
from loopprobe.types import Progress


@configuration
class AttributeConfig(LoopsConfig):
    """The length of the loop, and what is split.

    Attributes:
        measure: a measure that is a linear function of the outputs at the query, see ``probes.measures``; None: the
            prediction, or of tokens the difference of logits.
    """

    measure: str | None = None


def run(
    checkpoint: Checkpoint,
    prompts: PromptBatch,
    config: AttributeConfig,
    progress: Progress = lambda steps: steps,
    *,
    measure: str | Function | Measure | None = None,
) -> xr.Dataset:
    """Split the prediction at the query after the last loop, or of tokens the difference of logits.

    Args:
        checkpoint, prompts, config: the model, the prompts and the options.
        progress: wraps the batches.
        measure: what is split instead, where it is no name, see ``probes.measures.find_measure``.

    Returns:
        A dataset with dims ``loop`` (in which it was written, from 1), ``component`` (what the model has of these: the
        injected input, the positions, the loop embedding, each head, each layer's attention offset, each MLP, the
        norm's offset, and the parts of the coda, which write in the last loop alone) and ``example``:

        * ``contribution [loop, component, example]``, in the units of y or in logits; with ``initial [example]`` (the
          initial state) and ``offset [example]`` (of the read-out) they sum to ``prediction [example]``
        * ``share``, ``low``, ``high [loop, component]``: Σ contribution · prediction / Σ prediction² over the
          prompts, with a 95 % bootstrap interval; the shares of all parts sum to 1
        * ``size [loop, component]``: root mean square of the contribution

        The attribute ``answer`` says in words what is split, such as "the prediction".

    Raises:
        LoopprobeError: the prompts do not fit the model, or the measure is no linear function of the answer.
    """
    check(checkpoint, config, prompts, measure=measure)
    given = config.measure if measure is None else measure
    chosen = None if given is None else find_measure(given, prompts)
    model = checkpoint.model
    device = checkpoint.device
    prompts = prompts.to(device)
    n_loops = config.loops or checkpoint.loops_of(prompts)
    parts = [
        contributions(model, batch, n_loops, chosen)
        for batch in progress(prompts.split(max(1, chunk_size(device) // 2)))
    ]
    contribution, initial, prediction = (
        to_numpy(double(torch.cat([part[i] for part in parts], dim=-1))) for i in range(3)
    )
    with torch.no_grad():
        unwritten = model.unembed(model.W_U.new_zeros(prompts.n_prompts, 1, model.cfg.d_model))
        answer, offset = _split_of(prompts, at_least_single(unwritten), chosen)
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
            "offset": ("example", to_numpy(double(offset))),
            "prediction": ("example", prediction),
        },
        coords={"loop": np.arange(1, n_loops + 1), "component": components(model), "model": checkpoint.label},
        attrs={"answer": answer},
    )
    for name in ("contribution", "size", "initial", "offset", "prediction"):
        data[name].attrs["units"] = prompts.answer_unit if chosen is None else chosen.unit
    config = config if chosen is None else dataclasses.replace(config, measure=chosen.option)
    return stamp(data, "attribute", checkpoint, prompts, config, None if chosen is None else chosen.record)


def check(
    checkpoint: Checkpoint,
    config: AttributeConfig,
    prompts: PromptBatch,
    *,
    measure: str | Function | Measure | None = None,
) -> None:
    """Accept every checkpoint and all prompts; LoopprobeError where a measure cannot be split."""
    given = config.measure if measure is None else measure
    if given is None:
        return
    chosen = find_measure(given, prompts)
    some = prompts[:2]
    with torch.no_grad():
        outputs = at_least_single(checkpoint.model(*some.inputs, n_loops=1, read_at=some.read_at)[-1])
    _prediction(some, outputs, chosen)


def _split_of(
    prompts: PromptBatch, outputs: Float[Tensor, "batch answer *value"], measure: Measure | None
) -> tuple[str, Float[Tensor, " batch"]]:
    """Return in words what is split, and its values. Outputs may hold the answer at the query alone."""
    if measure is None:
        return prompts.contrast(outputs)
    if outputs.shape[1] == 1:
        outputs = outputs.expand(-1, prompts.n_answers, *outputs.shape[2:])
    return measure.words, measure(outputs, prompts)


def components(model: LoopedTransformer) -> list[str]:
    """Name the parts that write towards the prediction in a loop, in the order of ``contribution``."""
    offset = ["norm offset"] if model.cfg.normalization_type == "LN" else []
    coda = [*_names_in_layers(model.cfg.n_coda_layers, model.cfg.n_heads), *offset] if model.cfg.n_coda_layers else []
    return [
        "input",
        *_added(model),
        *_names_in_layers(model.cfg.n_layers, model.cfg.n_heads),
        *offset,
        *(f"coda {name}" for name in coda),
    ]


def _added(model: LoopedTransformer) -> dict[str, str]:
    """The parts that are added to the input of a loop, and the short names of their hook points."""
    added = {"positions": "pos_embed"} if model.cfg.positional_embedding_type == "standard" else {}
    return added | ({"loop embedding": "loop_embed"} if model.cfg.loop_embedding else {})


def _names_in_layers(n_layers: int, n_heads: int) -> list[str]:
    return [
        what
        for layer in range(n_layers)
        for what in (
            *(f"head {layer}.{head}" for head in range(n_heads)),
            f"attention offset {layer}",
            f"MLP {layer}",
        )
    ]


def contributions(
    model: LoopedTransformer, prompts: PromptBatch, n_loops: int, measure: Measure | None = None
) -> tuple[Float[Tensor, "loop component batch"], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Compute the contributions of every loop and component and of the initial state, and the prediction they sum to.

    Works back from the read-out, whose offset is left out: ``g`` is the direction of the state that is read, per
    prompt; through a norm with scale s and gain w it is (w·g − mean(w·g)) / s on the residual stream, and the offset
    of the norm adds b·g. A norm by the root mean square subtracts no mean and has no offset.
    """
    added, last = _added(model).values(), f"loops.{n_loops - 1}"
    names = ["embed", *added, "result", "mlp_out", "ln_final_scale"]
    for layer in range(model.cfg.n_coda_layers):
        names += [f"{last}.coda.{layer}.attn.hook_result", f"{last}.coda.{layer}.hook_mlp_out"]
    if model.cfg.n_coda_layers:
        names.append(f"{last}.ln_coda.hook_scale")
    outputs, cache = model.run_with_cache(
        *prompts.inputs, n_loops=n_loops, read_at=prompts.read_at, names=names, positions=[prompts.query]
    )
    prediction, weights = _prediction(prompts, at_least_single(outputs[-1]), measure)
    with torch.no_grad():
        e = at_least_single(cache["hook_embed"][:, 0])
        g = weights @ at_least_single(model.W_U).T
        coda: list[Tensor] = []
        if model.cfg.n_coda_layers:
            g, offset = _before_norm(model.ln_coda, cache[f"{last}.ln_coda.hook_scale"], g)
            coda = [*_in_layers(model.coda, f"{last}.coda", cache, g), *offset]
        rows = []
        for loop in reversed(range(n_loops)):
            g, offset = _before_norm(model.ln_final, cache[f"loops.{loop}.ln_final.hook_scale"], g)
            injected = g.new_zeros(len(g)) if model.cfg.injection != "add" else einsum(e, g, "b d, b d -> b")
            parts = [einsum(at_least_single(cache[loop, name][:, 0]), g, "b d, b d -> b") for name in added]
            in_layers = _in_layers(model.blocks, f"loops.{loop}.blocks", cache, g)
            rows.append(torch.stack([injected, *parts, *in_layers, *offset, *coda]))
            coda = [torch.zeros_like(part) for part in coda]
            if model.cfg.injection == "multiply":
                g = g * e
        initial = einsum(model.initial_state(e), g, "b d, b d -> b")
    return torch.stack(rows[::-1]), initial, prediction


def _prediction(
    prompts: PromptBatch, outputs: Float[Tensor, "batch answer *value"], measure: Measure | None = None
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch value"]]:
    """Return what is split, and its weights on the outputs at the query: it is linear, so they are its gradient.

    Raises:
        LoopprobeError: it is not linear, or depends on other answers.
    """
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        prediction = _split_of(prompts, leaf, measure)[1]
        (weights,) = torch.autograd.grad(prediction.sum(), leaf)
    if measure is not None:
        linear = (weights[:, -1] * outputs[:, -1]).reshape(len(outputs), -1).sum(1)
        change = prediction.detach() - _split_of(prompts, torch.zeros_like(outputs), measure)[1]
        if not torch.allclose(change, linear, rtol=1e-3, atol=1e-4 * float(1 + change.abs().max())):
            raise LoopprobeError(
                f"attribute splits linear functions of the outputs at the query, and {measure.name} is none: choose "
                "answer, logit_difference or a linear function of your own, or the probe ablate or patch"
            )
    return prediction.detach(), weights[:, -1].reshape(len(weights), -1)


def _before_norm(norm: LayerNorm | RMSNorm, scale: Tensor, g: Tensor) -> tuple[Tensor, list[Float[Tensor, " batch"]]]:
    """Turn a direction behind a norm into that on the residual stream, and return what the norm's offset, if any, adds.

    Args:
        norm: the norm.
        scale: what it divided by in the run, [batch, 1, 1].
        g: the direction, [batch, d_model].
    """
    offset = [g @ at_least_single(norm.b)] if isinstance(norm, LayerNorm) else []
    g = g * at_least_single(norm.w)
    if isinstance(norm, LayerNorm):
        g = g - g.mean(-1, keepdim=True)
    return g / at_least_single(scale[:, 0]), offset


def _in_layers(layers: Any, prefix: str, cache: LoopCache, g: Tensor) -> list[Float[Tensor, " batch"]]:
    """Contributions along g of the blocks whose hook points begin with a prefix: heads, attention's offset and MLP."""
    parts: list[Tensor] = []
    for layer, block in enumerate(layers):
        result, mlp = (
            at_least_single(cache[f"{prefix}.{layer}.{point}"][:, 0]) for point in ("attn.hook_result", "hook_mlp_out")
        )
        parts += list(einsum(result, g, "b head d, b d -> head b"))
        parts.append(g @ at_least_single(block.attn.b_O))
        parts.append(einsum(mlp, g, "b d, b d -> b"))
    return parts


PROBE = Probe(
    "attribute",
    AttributeConfig,
    run,
    check,
    Shown(
        "attribute:attribute_figures",
        "inside:attribute_table",
        quantities=(
            Quantity(
                "share",
                "contribution",
                "ratio",
                ("prediction",),
                across="component",
                ends=("low", "high"),
                unit="share of the answer",
            ),
        ),
    ),
    needs=frozenset({"weights"}),
    given=("measure",),
)
