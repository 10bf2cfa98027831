"""Weights in foreign layouts: nanoGPT's is read, and TransformerLens's is read and written."""

from __future__ import annotations

import dataclasses
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import safetensors
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor

from loopprobe.config.schema import ModelConfig
from loopprobe.config.strict import build
from loopprobe.errors import LoopprobeError
from loopprobe.model.looped import LoopedTransformer
from loopprobe.support.storage import atomic

# The names in nanoGPT, as in the reference's looped and ordinary models, and the names in this package.
_NANOGPT = [
    ("_read_in.", "read_in."),
    ("_read_out.", "read_out."),
    ("_backbone.transformer.wpe.weight", "W_pos"),
    ("_backbone.transformer.ln_f.", "ln_final."),
    ("_backbone.transformer.h.", "blocks."),
    (".ln_1.", ".ln1."),
    (".ln_2.", ".ln2."),
    (".attn.c_attn.", ".attn.qkv."),
    (".attn.c_proj.", ".attn.out."),
    (".mlp.c_fc.", ".mlp.fc_in."),
    (".mlp.c_proj.", ".mlp.fc_out."),
]
_IGNORED = re.compile(r".*\.attn\.(bias|masked_bias)")  # causal-mask buffers of older versions


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read plain tensors by name from a safetensors file or a PyTorch pickle, loaded with ``weights_only``.

    The state dict may lie under ``model`` or ``model_state_dict``. Prefixes of wrappers are removed.
    """
    if not path.is_file():
        raise LoopprobeError(f"no file at {path}: check the path")
    try:
        tree: Any = load_file(path)
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
    for key in ("model", "model_state_dict"):
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
    if not isinstance(tree, dict) or not tree or not all(isinstance(value, Tensor) for value in tree.values()):
        raise LoopprobeError(f"{path} holds no state dict of plain tensors: save model.state_dict()")
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", str(name)): tensor for name, tensor in tree.items()}


def read_model(path: Path, *, n_heads: int, **fields: Any) -> LoopedTransformer:
    """Read a model from foreign weights in nanoGPT's or TransformerLens's layout, recognised by the keys.

    Args:
        path: the file.
        n_heads: the number of heads, which the weights do not tell.
        fields: other fields of ModelConfig that the weights do not tell: ``n_loops``, ``injection``, ``act_fn``,
            ``n_points``.

    Raises:
        LoopprobeError: keys or shapes do not fit this architecture; the message names them.
    """
    tensors = read_tensors(path)
    if any(name.startswith(("_read_in", "_backbone")) for name in tensors):
        ours = from_nanogpt(tensors, path)
    elif "embed.W_E" in tensors:
        ours = from_transformer_lens(tensors, path)
    else:
        raise LoopprobeError(
            f"{path} is in no known layout: {_some(tensors)} are its keys; expected _read_in, _backbone.transformer, "
            "_read_out (nanoGPT) or embed.W_E, blocks.0.attn.W_Q (TransformerLens)"
        )
    layers = {int(name.split(".")[1]) for name in ours if name.startswith("blocks.")}
    for name, ndim in (("read_in.weight", 2), ("W_pos", 2), ("blocks.0.mlp.fc_in.weight", 2)):
        if name not in ours or ours[name].ndim != ndim:
            raise LoopprobeError(f"{path} does not fit: {name} is missing or no matrix; it is not of this architecture")
    n_ctx, d_model = ours["W_pos"].shape
    shape = {
        "n_layers": len(layers), "d_model": d_model, "n_heads": n_heads, "n_ctx": n_ctx, "n_points": n_ctx // 2,
        "d_mlp": ours["blocks.0.mlp.fc_in.weight"].shape[0], "n_dims": ours["read_in.weight"].shape[1],
    }  # fmt: skip
    cfg = build(ModelConfig, shape | fields)
    model = LoopedTransformer(cfg)
    expected = model.state_dict()
    for name in expected:
        if name.endswith(".bias") and name not in ours:
            ours[name] = torch.zeros_like(expected[name])  # nanoGPT's bias=False
    if extra := ours.keys() - expected.keys():
        raise LoopprobeError(f"{path} has unexpected keys {_some(extra)}: it is not of this architecture")
    if missing := expected.keys() - ours.keys():
        raise LoopprobeError(f"{path} lacks {_some(missing)}: it is not of this architecture")
    for name, tensor in ours.items():
        if tensor.shape != expected[name].shape:
            raise LoopprobeError(
                f"{path} does not fit: {name} is {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}; "
                "check n_heads"
            )
    model.to(ours["W_pos"].dtype).load_state_dict(ours)
    return model.eval()


def from_nanogpt(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Rename nanoGPT's parameters to those of this package."""
    ours = {}
    for name, tensor in tensors.items():
        if _IGNORED.fullmatch(name):
            continue
        for foreign, local in _NANOGPT:
            name = name.replace(foreign, local)
        ours[name] = tensor
    return ours


def to_transformer_lens(model: LoopedTransformer) -> dict[str, Tensor]:
    """Return the state dict in TransformerLens's layout (``blocks.0.attn.W_Q [n_heads, d_model, d_head]``)."""
    out = {
        "embed.W_E": model.W_E, "embed.b_E": model.b_E, "pos_embed.W_pos": model.W_pos,
        "ln_final.w": model.ln_final.w, "ln_final.b": model.ln_final.b,
        "unembed.W_U": model.W_U, "unembed.b_U": model.b_U,
    }  # fmt: skip
    for layer, block in enumerate(model.blocks):
        for norm in ("ln1", "ln2"):
            out |= {f"blocks.{layer}.{norm}.{part}": getattr(getattr(block, norm), part) for part in "wb"}
        for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
            out[f"blocks.{layer}.attn.{name}"] = getattr(block.attn, name)
        for name in ("W_in", "b_in", "W_out", "b_out"):
            out[f"blocks.{layer}.mlp.{name}"] = getattr(block.mlp, name)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in out.items()}


def from_transformer_lens(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Convert TransformerLens's parameters to the names and shapes of this package."""
    ours: dict[str, Tensor] = {}
    heads: dict[str, dict[str, Tensor]] = {}
    renamed = {
        "embed.W_E": "read_in.weight", "embed.b_E": "read_in.bias", "pos_embed.W_pos": "W_pos",
        "ln_final.w": "ln_final.weight", "ln_final.b": "ln_final.bias",
        "unembed.W_U": "read_out.weight", "unembed.b_U": "read_out.bias",
    }  # fmt: skip
    in_block = {
        "ln1.w": "ln1.weight", "ln1.b": "ln1.bias", "ln2.w": "ln2.weight", "ln2.b": "ln2.bias",
        "attn.b_O": "attn.out.bias", "mlp.W_in": "mlp.fc_in.weight", "mlp.b_in": "mlp.fc_in.bias",
        "mlp.W_out": "mlp.fc_out.weight", "mlp.b_out": "mlp.fc_out.bias",
    }  # fmt: skip
    transposed = {"embed.W_E", "unembed.W_U", "mlp.W_in", "mlp.W_out"}
    for name, tensor in tensors.items():
        block = "".join(re.findall(r"^blocks\.\d+\.", name))
        local = name.removeprefix(block)
        table = in_block if block else renamed
        if local in table:
            ours[block + table[local]] = tensor.T if local in transposed else tensor
        elif block and local == "attn.W_O":
            ours[f"{block}attn.out.weight"] = rearrange(tensor, "h d m -> m (h d)")
        elif block and (match := re.fullmatch(r"attn\.([Wb])_([QKV])", local)):
            heads.setdefault(f"{block}attn.{match[1]}", {})[match[2]] = tensor
        else:
            raise LoopprobeError(f"{path} has the unexpected key {name}: it is not of this architecture")
    for key, parts in heads.items():
        prefix, kind = key.rsplit(".", 1)
        if set(parts) != set("QKV"):
            raise LoopprobeError(f"{path} lacks one of {kind}_Q, {kind}_K, {kind}_V in {prefix}: export it again")
        pattern, name = ("h m d -> (h d) m", "weight") if kind == "W" else ("h d -> (h d)", "bias")
        ours[f"{prefix}.qkv.{name}"] = torch.cat([rearrange(parts[part], pattern) for part in "QKV"])
    return ours


def write_transformer_lens(model: LoopedTransformer, path: Path) -> None:
    """Write the weights in TransformerLens's layout as safetensors, with the configuration as metadata."""
    metadata = {key: str(value) for key, value in dataclasses.asdict(model.cfg).items() if value is not None}
    with atomic(path) as partial:
        save_file(to_transformer_lens(model), partial, metadata=metadata)


def _some(names: Any) -> str:
    names = sorted(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
