"""Weights in foreign layouts: nanoGPT's is read, and TransformerLens's is read and written."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor

from loopprobe.config.schema import ForeignConfig, ModelConfig, TaskConfig
from loopprobe.config.strict import build
from loopprobe.config.task import require_recorded
from loopprobe.errors import LoopprobeError
from loopprobe.model.looped import LoopedTransformer
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.store.tensors import fit
from loopprobe.support.storage import atomic

# How names begin in nanoGPT, in the reference's looped and ordinary models and in a GPT, and in this package.
_NANOGPT = {
    "_read_in.": "read_in.", "_read_out.": "read_out.", "_backbone.transformer.wpe.weight": "W_pos",
    "_backbone.transformer.ln_f.": "ln_final.", "_backbone.transformer.h.": "blocks.",
    "transformer.wte.": "read_in.", "lm_head.": "read_out.", "transformer.wpe.weight": "W_pos",
    "transformer.ln_f.": "ln_final.", "transformer.h.": "blocks.",
}  # fmt: skip
_IN_NANOGPT = {  # the parts of a layer, with the points around them
    ".ln_1.": ".ln1.", ".ln_2.": ".ln2.", ".attn.c_attn.": ".attn.qkv.", ".attn.c_proj.": ".attn.out.",
    ".mlp.c_fc.": ".mlp.fc_in.", ".mlp.c_proj.": ".mlp.fc_out.",
}  # fmt: skip
# Names in this package, of the model or within a layer, and TransformerLens's; attn.qkv and attn.out.weight are apart.
_LENS = {
    "read_in.weight": "embed.W_E", "read_in.bias": "embed.b_E", "W_pos": "pos_embed.W_pos", "W_loop": "W_loop",
    "ln_final.weight": "ln_final.w", "ln_final.bias": "ln_final.b",
    "ln_coda.weight": "ln_coda.w", "ln_coda.bias": "ln_coda.b",
    "read_out.weight": "unembed.W_U", "read_out.bias": "unembed.b_U",
    "ln1.weight": "ln1.w", "ln1.bias": "ln1.b", "ln2.weight": "ln2.w", "ln2.bias": "ln2.b", "attn.out.bias": "attn.b_O",
    "mlp.fc_in.weight": "mlp.W_in", "mlp.fc_in.bias": "mlp.b_in", "mlp.fc_gate.weight": "mlp.W_gate",
    "mlp.fc_out.weight": "mlp.W_out", "mlp.fc_out.bias": "mlp.b_out",
}  # fmt: skip
_FROM_LENS = {theirs: ours for ours, theirs in _LENS.items()}
_TRANSPOSED = {"unembed.W_U", "mlp.W_in", "mlp.W_gate", "mlp.W_out"}  # and embed.W_E of vectors, which is a linear map
_LAYER = re.compile(r"(blocks|prelude|coda)\.[0-9]+\.")
_BUFFERS = re.compile(
    r".*\.attn\.(bias|masked_bias|mask|IGNORE|rotary_sin|rotary_cos)"
)  # no weights, of both libraries
_RECORD = "loopprobe"  # the entry of a file's metadata that holds what its weights do not tell, as JSON


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Read a safetensors file or a PyTorch pickle, which is loaded with ``weights_only``.

    The state dict of a pickle may lie under ``model`` or ``model_state_dict``. Prefixes of wrappers are removed.

    Returns:
        The tensors by name, and the recorded fields of ``model`` and ``task``, where the file has them: from the
        metadata that ``write_transformer_lens`` writes, or from nanoGPT's ``model_args``.

    Raises:
        LoopprobeError: there is no file, it holds no plain tensors, or its metadata are damaged.
    """
    if not path.is_file():
        raise LoopprobeError(f"no file at {path}: check the path")
    recorded: Any = {}
    try:
        tree: Any = load_file(path)
        recorded = _recorded(path)
    except (safetensors.SafetensorError, OSError):
        try:
            with warnings.catch_warnings():  # torch warns of pickles that it did not write
                warnings.simplefilter("ignore")
                tree = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError):
            raise LoopprobeError(
                f"{path} is neither safetensors nor a pickle of plain tensors: save a state dict with "
                "torch.save(model.state_dict(), file)"
            ) from None
        if isinstance(tree, dict) and isinstance(args := tree.get("model_args"), dict) and "n_head" in args:
            recorded = {"model": {"n_heads": args["n_head"]}}
    if not isinstance(recorded, dict) or not all(isinstance(fields, dict) for fields in recorded.values()):
        raise LoopprobeError(f"{path} has damaged metadata ({_RECORD}): export it again")
    for key in ("model", "model_state_dict"):
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
    if not isinstance(tree, dict) or not tree or not all(isinstance(value, Tensor) for value in tree.values()):
        raise LoopprobeError(f"{path} holds no state dict of plain tensors: save model.state_dict()")
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", str(name)): tensor for name, tensor in tree.items()}, recorded


def _recorded(path: Path) -> Any:
    """What the metadata of a safetensors file record; None where they are damaged."""
    with safetensors.safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(_RECORD, "{}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def read_model(path: Path, **fields: Any) -> LoopedTransformer:
    """Read a model from foreign weights in nanoGPT's or TransformerLens's layout, recognised by the keys.

    Args:
        path: the file.
        fields: fields of ModelConfig that neither the weights nor the file's metadata tell. A file of
            ``write_transformer_lens`` needs none. Others need ``n_loops``, unless it is an ordinary GPT of nanoGPT,
            which has 1, or has an embedding for each loop; those of nanoGPT ``n_heads``, unless its ``model_args`` are
            in the file; and those without learned positions ``positional_embedding_type``. What is left out is
            ModelConfig's default; but an ordinary GPT has ``act_fn = "gelu"``: older ones of nanoGPT have gelu_new.

    Raises:
        LoopprobeError: keys or shapes do not fit this architecture, weights are not finite, or fields are missing or
            contradict the weights; the message names them.
    """
    return _model(path, *read_file(path), fields)


def read_checkpoint(path: Path, given: Mapping[str, Any]) -> Checkpoint:
    """Read a model with its task from foreign weights.

    Args:
        path: the file.
        given: fields that the file does not tell, or tells otherwise: of ``model``, see ``read_model``, and of
            ``task``. Where neither gives a task, a model of vectors is of linear regression.

    Raises:
        LoopprobeError: as in ``read_model``; the task is missing or does not fit the model.
    """
    if other := [key for key, value in given.items() if key not in ("model", "task") or not isinstance(value, dict)]:
        raise LoopprobeError(f"{other[0]} cannot be set of a file of weights: choose fields of model and task")
    tensors, recorded = read_file(path)
    model = _model(path, tensors, recorded, given.get("model", {}))
    task, known = given.get("task", {}), recorded.get("task", {})
    require_recorded(known)
    if task.get("name", known.get("name")) == known.get("name"):
        task = known | task
    if model.cfg.reads_tokens and "name" not in task:
        raise LoopprobeError(f"{path} holds a model of tokens and does not say of which task: give the task")
    return Checkpoint(ForeignConfig(model=model.cfg, task=build(TaskConfig, task)), model)


def _model(
    path: Path, tensors: dict[str, Tensor], recorded: dict[str, dict[str, Any]], fields: dict[str, Any]
) -> LoopedTransformer:
    """Build the model of a file."""
    defaults: dict[str, Any] = {}
    nanogpt = "embed.W_E" not in tensors
    if not nanogpt:
        ours = from_transformer_lens(tensors, path)
    elif any(name.startswith(("_read_in", "_backbone", "transformer.wte")) for name in tensors):
        ours = from_nanogpt(tensors, path)
        defaults = {"n_loops": 1, "act_fn": "gelu"} if "transformer.wte.weight" in tensors else {}
    else:
        raise LoopprobeError(
            f"{path} is in no known layout: {_some(tensors)} are its keys; expected _read_in, _backbone.transformer, "
            "_read_out or transformer.wte (nanoGPT) or embed.W_E, blocks.0.attn.W_Q (TransformerLens)"
        )
    told = _told(path, tensors, ours)
    given = defaults | recorded.get("model", {}) | fields
    for name in sorted(told.keys() & given.keys()):
        if given[name] != told[name]:
            raise LoopprobeError(
                f"{path} does not fit: {name} is {told[name]} by its weights, not {given[name]}: change it or drop it"
            )
    if "n_ctx" in told and "n_dims" in told:
        given = {"n_points": told["n_ctx"] // 2} | given
    for name in ("n_heads", "n_loops", "positional_embedding_type"):
        if name not in told | given:
            raise LoopprobeError(f"{path} does not say what {name} is, and its weights cannot: give it")
    try:
        model = LoopedTransformer(build(ModelConfig, given | told))
    except LoopprobeError as error:
        raise LoopprobeError(f"{path}: {error}") from None
    if nanogpt:
        biases = {name: t.to(ours["read_in.weight"].dtype) for name, t in model.state_dict().items() if "bias" in name}
        ours = {name: torch.zeros_like(bias) for name, bias in biases.items()} | ours  # bias=False
    fit(model, ours, path, "it is not of this architecture")
    return model.eval()


def _told(path: Path, tensors: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the fields of ModelConfig that weights tell, as the file has them and under the names of this package."""
    required = ("read_in.weight", "read_out.weight", "blocks.0.mlp.fc_in.weight")
    for name in (*required, *sorted({"W_pos", "W_loop"} & ours.keys())):
        if name not in ours or ours[name].ndim != 2:
            raise LoopprobeError(f"{path} does not fit: {name} is missing or no matrix; it is not of this architecture")
    layers = {match[0] for name in ours if (match := _LAYER.match(name))}
    told: dict[str, Any] = {
        field: sum(layer.startswith(kind) for layer in layers)
        for field, kind in (("n_layers", "blocks"), ("n_prelude_layers", "prelude"), ("n_coda_layers", "coda"))
    }
    is_vectors = "_read_in.weight" in tensors or "embed.b_E" in tensors
    sizes = ours["read_in.weight"].shape
    told |= {"d_model": sizes[0] if is_vectors else sizes[1], "d_mlp": ours["blocks.0.mlp.fc_in.weight"].shape[0]}
    told |= {"gated_mlp": "blocks.0.mlp.fc_gate.weight" in ours, "loop_embedding": "W_loop" in ours}
    if is_vectors:
        told["n_dims"] = sizes[1]
    else:
        told |= {"d_vocab": sizes[0], "d_vocab_out": ours["read_out.weight"].shape[0]}
    if "W_pos" in ours:
        told |= {"positional_embedding_type": "standard", "n_ctx": len(ours["W_pos"])}
    if "W_loop" in ours:
        told["n_loops"] = len(ours["W_loop"])
    if "blocks.0.attn.W_Q" in tensors:
        told["n_heads"], _, told["d_head"] = tensors["blocks.0.attn.W_Q"].shape
        told["normalization_type"] = "LN" if "ln_final.bias" in ours else "RMS"
    return told


def from_nanogpt(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Rename nanoGPT's parameters to those of this package; a GPT without ``lm_head`` reads out what it reads in."""
    ours = {}
    for name, tensor in tensors.items():
        if _BUFFERS.fullmatch(name):
            continue
        start = next((start for start in _NANOGPT if name.startswith(start)), "")
        name = _NANOGPT.get(start, "") + name.removeprefix(start)
        for theirs, local in _IN_NANOGPT.items():
            name = name.replace(theirs, local)
        if name in ours:
            raise LoopprobeError(f"{path} has {name} of two models: save one of them")
        ours[name] = tensor
    if "transformer.wte.weight" in tensors:
        ours.setdefault("read_out.weight", ours["read_in.weight"])
    return ours


def to_transformer_lens(model: LoopedTransformer) -> dict[str, Tensor]:
    """Return the state dict in TransformerLens's layout (``blocks.0.attn.W_Q [n_heads, d_model, d_head]``).

    What TransformerLens has not keeps its own name: ``W_loop``, and the layers around the loop, such as
    ``prelude.0.attn.W_Q`` and ``coda.0.ln1.w``, with ``ln_coda.w``.
    """
    out: dict[str, Tensor] = {}
    n_heads, transposed = model.cfg.n_heads, _transposed(not model.cfg.reads_tokens)
    for name, tensor in model.state_dict().items():
        layer = _layer(name)
        local = name.removeprefix(layer)
        if local == "attn.out.weight":
            out[f"{layer}attn.W_O"] = rearrange(tensor, "m (h d) -> h d m", h=n_heads)
        elif local.startswith("attn.qkv"):
            pattern, kind = ("(h d) m -> h m d", "W") if local.endswith("weight") else ("(h d) -> h d", "b")
            for part, values in zip("QKV", tensor.chunk(3), strict=True):
                out[f"{layer}attn.{kind}_{part}"] = rearrange(values, pattern, h=n_heads)
        else:
            out[layer + _LENS[local]] = tensor.T if _LENS[local] in transposed else tensor
    return {name: tensor.detach().cpu().contiguous() for name, tensor in out.items()}


def from_transformer_lens(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Convert TransformerLens's parameters to the names and shapes of this package.

    Raises:
        LoopprobeError: a key is not known, or a tensor has too many axes or too few.
    """
    ours: dict[str, Tensor] = {}
    heads: dict[str, dict[str, Tensor]] = {}
    transposed = _transposed("embed.b_E" in tensors)
    for name, tensor in tensors.items():
        layer = _layer(name)
        local = name.removeprefix(layer)
        if _BUFFERS.fullmatch(name) or (local == "mlp.b_in" and _is_zero_beside_gate(tensors, layer)):
            continue
        try:
            if local in _FROM_LENS:
                ours[layer + _FROM_LENS[local]] = tensor.mT if local in transposed else tensor
            elif layer and local == "attn.W_O":
                ours[f"{layer}attn.out.weight"] = rearrange(tensor, "h d m -> m (h d)")
            elif layer and (match := re.fullmatch(r"attn\.([Wb])_([QKV])", local)):
                pattern, kind = ("h m d -> (h d) m", "weight") if match[1] == "W" else ("h d -> (h d)", "bias")
                heads.setdefault(f"{layer}attn.qkv.{kind}", {})[match[2]] = rearrange(tensor, pattern)
            else:
                raise LoopprobeError(f"{path} has the unexpected key {name}: it is not of this architecture")
        except RuntimeError:  # of torch, and of einops
            raise LoopprobeError(
                f"{path} does not fit: {name} is {tuple(tensor.shape)}, which has too many axes or too few"
            ) from None
    for name, parts in heads.items():
        kind = "W" if name.endswith("weight") else "b"
        if len(parts) < 3 or len({part.shape for part in parts.values()}) > 1:
            raise LoopprobeError(
                f"{path} lacks one of {kind}_Q, {kind}_K, {kind}_V in {name.split('.qkv')[0]}, or their shapes differ: "
                "export it again"
            )
        ours[name] = torch.cat([parts[part] for part in "QKV"])
    return ours


def write_transformer_lens(model: LoopedTransformer, path: Path, task: TaskConfig | None = None) -> None:
    """Write the weights in TransformerLens's layout as safetensors.

    The metadata record the configurations of the model and, where it is given, of its task.
    """
    record = {"model": _set(model.cfg)} | ({} if task is None else {"task": _set(task)})
    with atomic(path) as partial:
        save_file(to_transformer_lens(model), partial, metadata={_RECORD: json.dumps(record)})


def _layer(name: str) -> str:
    """The beginning of a name that tells its layer, such as ``blocks.0.``; empty where it is of none."""
    match = _LAYER.match(name)
    return "" if match is None else match[0]


def _transposed(is_vectors: bool) -> set[str]:
    return _TRANSPOSED | {"embed.W_E"} if is_vectors else _TRANSPOSED


def _is_zero_beside_gate(tensors: Mapping[str, Tensor], layer: str) -> bool:
    """Tell whether a layer has a gated MLP with input biases that are all zero: TransformerLens writes them."""
    return f"{layer}mlp.W_gate" in tensors and not bool(tensors[f"{layer}mlp.b_in"].any())


def _set(config: Any) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(config).items() if value is not None}


def _some(names: Any) -> str:
    names = sorted(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
