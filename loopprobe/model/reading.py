"""How prompts enter a model and answers leave it: the one respect in which models of vectors and of tokens differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from loopprobe.config.schema import ModelConfig
from loopprobe.config.selection import resolve
from loopprobe.errors import LoopprobeError
from loopprobe.tasks.prompts import INPUTS, TOKENS_PER_POINT

ReadAt = slice | Sequence[int] | None


class Vectors:
    """Labelled vectors: two tokens a point, x and y, and a number as the answer at each x.

    Args:
        cfg: the configuration of the model.
    """

    read_at: slice = INPUTS

    def __init__(self, cfg: ModelConfig) -> None:
        self.cfg = cfg

    def make_read_in(self) -> nn.Module:
        """Make the map from vectors to the injected input."""
        return nn.Linear(self.cfg.n_dims, self.cfg.d_model)

    def make_read_out(self) -> nn.Linear:
        """Make the map from states to numbers."""
        return nn.Linear(self.cfg.d_model, 1)

    def parts(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        """Return xs and ys as tensors that fit the model.

        Raises:
            LoopprobeError: they are no real numbers, or their shapes do not fit.
        """
        if len(inputs) != 2:
            raise LoopprobeError(f"the model reads xs and ys, and {len(inputs)} inputs are given: give these two")
        xs, ys = (_tensor(name, values) for name, values in zip(("xs", "ys"), inputs, strict=True))
        self._check(xs, ys)
        return xs, ys

    def moved(self, like: Tensor, xs: Tensor, ys: Tensor) -> tuple[Tensor, Tensor]:
        """Move xs and ys to the dtype and the device of a weight; LoopprobeError where they are not finite there."""
        largest = torch.finfo(like.dtype).max
        for name, values in (("xs", xs), ("ys", ys)):
            if not (values.abs() <= largest).all():
                bad = (~(values.abs() <= largest)).sum().item()
                raise LoopprobeError(f"{name} holds {bad} values that are NaN or infinite: remove these prompts")
        return xs.to(like.device, like.dtype), ys.to(like.device, like.dtype)

    def n_tokens(self, xs: Tensor, ys: Tensor) -> int:
        """Count the tokens, two a point."""
        return TOKENS_PER_POINT * xs.shape[1]

    def embed(self, read_in: nn.Module, xs: Tensor, ys: Tensor) -> Float[Tensor, "batch pos d_model"]:
        """Interleave x and y tokens, y in coordinate 0, and read them in."""
        xs = F.pad(xs, (0, self.cfg.n_dims - xs.shape[-1]))
        labels = F.pad(ys[..., None], (0, self.cfg.n_dims - 1))
        e: Tensor = read_in(rearrange([xs, labels], "kind batch point dim -> batch (point kind) dim"))
        return e

    def outputs(self, read: Float[Tensor, "*tokens 1"]) -> Float[Tensor, "*tokens"]:
        """Drop the axis of the one number that is read out."""
        return read.squeeze(-1)

    def _check(self, xs: Tensor, ys: Tensor) -> None:
        if xs.ndim != 3 or ys.shape != xs.shape[:2]:
            raise LoopprobeError(
                f"xs {tuple(xs.shape)} and ys {tuple(ys.shape)} must be [batch, n_points, n_dims] and "
                "[batch, n_points]: reshape them"
            )
        if not xs.shape[1]:
            raise LoopprobeError("the prompts have no points: give at least the query")
        if (n_tokens := self.n_tokens(xs, ys)) > self.cfg.n_ctx:
            raise LoopprobeError(
                f"the prompt has {xs.shape[1]} points ({n_tokens} tokens) but the model has "
                f"{self.cfg.n_ctx} positions: use at most {self.cfg.n_ctx // TOKENS_PER_POINT} points"
            )
        if xs.shape[2] > self.cfg.n_dims:
            raise LoopprobeError(
                f"the prompt has {xs.shape[2]} dimensions but the model reads {self.cfg.n_dims}: "
                f"use at most {self.cfg.n_dims}"
            )


class Tokens:
    """Tokens, and as the answer at each token the logits of the vocabulary.

    Args:
        cfg: the configuration of the model.
    """

    read_at: slice = slice(0, None)

    def __init__(self, cfg: ModelConfig) -> None:
        self.cfg = cfg
        self.n_inputs, self.n_outputs = cfg.d_vocab or 0, cfg.d_vocab_out or 0

    def make_read_in(self) -> nn.Module:
        """Make the embedding."""
        return nn.Embedding(self.n_inputs, self.cfg.d_model)

    def make_read_out(self) -> nn.Linear:
        """Make the unembedding."""
        return nn.Linear(self.cfg.d_model, self.n_outputs)

    def parts(self, *inputs: Any) -> tuple[Int[Tensor, "batch pos"]]:
        """Return tokens as a tensor that fits the model; one prompt alone becomes a batch.

        Raises:
            LoopprobeError: they are no whole numbers, or their shape does not fit.
        """
        if len(inputs) != 1:
            raise LoopprobeError(f"the model reads tokens alone, and {len(inputs)} inputs are given: give one")
        tokens = _tensor("tokens", inputs[0])
        if tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise LoopprobeError(f"tokens have dtype {tokens.dtype}: give whole numbers, the numbers of tokens")
        tokens = tokens.to(torch.int64)  # torch finds no extremes of unsigned ones
        tokens = tokens[None] if tokens.ndim == 1 else tokens
        if tokens.ndim != 2 or not tokens.shape[1]:
            raise LoopprobeError(f"tokens {tuple(tokens.shape)} must be [batch, pos], pos at least 1: reshape them")
        if tokens.shape[1] > self.cfg.n_ctx:
            raise LoopprobeError(
                f"the prompt has {tokens.shape[1]} tokens but the model reads {self.cfg.n_ctx}: shorten it"
            )
        return (tokens,)

    def moved(self, like: Tensor, tokens: Tensor) -> tuple[Int[Tensor, "batch pos"]]:
        """Move tokens to the device of a weight; LoopprobeError where one is not in the vocabulary."""
        if tokens.numel() and not torch.compiler.is_compiling():
            low, high = (int(end) for end in tokens.aminmax())
            if low < 0 or high >= self.n_inputs:
                raise LoopprobeError(
                    f"token {low if low < 0 else high} is not in the vocabulary: choose from 0 to {self.n_inputs - 1}"
                )
        return (tokens.to(like.device),)

    def n_tokens(self, tokens: Tensor) -> int:
        """Count the tokens."""
        return tokens.shape[1]

    def embed(self, read_in: nn.Module, tokens: Tensor) -> Float[Tensor, "batch pos d_model"]:
        """Look the tokens up."""
        e: Tensor = read_in(tokens)
        return e

    def outputs(self, read: Float[Tensor, "*tokens d_vocab_out"]) -> Float[Tensor, "*tokens d_vocab_out"]:
        """Return the logits as they are."""
        return read


def read_places(read_at: Any, n_tokens: int) -> ReadAt:
    """Check the tokens to read, as people type them, and return them as ``at_tokens`` takes them.

    A rising slice stays one: numbers would be copied to the device in every loop.

    Raises:
        LoopprobeError: a token that is not there, or none is chosen.
    """
    numbers = resolve(read_at, n_tokens, "position")
    return read_at if isinstance(read_at, slice) and (read_at.step or 1) > 0 else numbers


def at_tokens(read_at: slice | Sequence[int], first: int, n: int) -> slice | list[int]:
    """Where the tokens to read stand in a state that begins at token ``first`` and holds ``n`` tokens."""
    end = first + n
    if isinstance(read_at, slice):
        tokens = range(end)[read_at]
        tokens = tokens[max(0, -((tokens.start - first) // tokens.step)) :]
        return slice(max(0, tokens.start - first), max(0, tokens.stop - first), tokens.step)
    return [token - first for token in read_at if first <= token < end]


def _tensor(name: str, values: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise LoopprobeError(f"{name} ({type(values).__name__}) must be a tensor or an array of numbers") from None
    if tensor.is_complex():
        raise LoopprobeError(f"{name} has dtype {tensor.dtype}: give real numbers")
    return tensor
