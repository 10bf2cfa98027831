"""The configuration of a model. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from loopprobe.config.lens import USED, used_fields
from loopprobe.config.strict import build, configuration
from loopprobe.errors import LoopprobeError

TOKENS_PER_POINT = 2  # an input x, then its label y
CONTEXT = 256  # the most tokens of a prompt where nothing says more
if TYPE_CHECKING:
    OfVectors = int  # code that asks for it has a model of vectors
else:
    OfVectors = PositiveInt | None


@configuration
class ModelConfig:
    """A looped transformer, under the field names of TransformerLens's HookedTransformerConfig.

    The fields from ``n_layers`` to ``rotary_base`` are TransformerLens's; those from ``n_loops`` on describe the loop
    and the layers around it. With ``d_vocab`` the model reads tokens and answers with one of ``d_vocab_out``; without,
    it reads vectors of ``n_dims`` and answers with a number. An ordinary transformer is ``n_loops = 1``. Fields left at
    None are filled in where the model has them, so a config that was made is always complete.
    """

    n_layers: PositiveInt = 1  # of the loop
    d_model: PositiveInt = 64
    n_heads: PositiveInt = 4
    d_head: PositiveInt = None  # type: ignore[assignment]  # d_model // n_heads
    d_mlp: PositiveInt = None  # type: ignore[assignment]  # 4 * d_model
    n_ctx: PositiveInt = None  # type: ignore[assignment]  # most tokens: 2 * n_points, or 256 for tokens
    d_vocab: PositiveInt | None = None  # token models: how many tokens there are
    d_vocab_out: PositiveInt | None = None  # token models: how many answers there are, d_vocab
    act_fn: Literal["gelu_new", "gelu", "relu", "silu"] = "gelu_new"
    gated_mlp: bool = False
    normalization_type: Literal["LN", "RMS"] = "LN"
    attention_dir: Literal["causal", "bidirectional"] = "causal"
    positional_embedding_type: Literal["standard", "rotary", "none"] = "standard"
    rotary_dim: PositiveInt | None = None  # rotary: the dimensions of a head that are turned, d_head
    rotary_base: PositiveInt | None = None  # rotary: 10,000
    eps: PositiveFloat = 1e-5
    initializer_range: PositiveFloat | None = None  # std of initial weights; None: 1 / sqrt(fan_in)
    n_loops: PositiveInt = 20
    injection: Literal["add", "multiply", "none"] = "add"
    n_prelude_layers: NonNegativeInt = 0  # ordinary layers between the embedding and the loop
    n_coda_layers: NonNegativeInt = 0  # ordinary layers between the loop and the read-out
    loop_embedding: bool = False  # a learned vector for each loop, added to its input
    n_dims: OfVectors = None  # type: ignore[assignment]  # vectors: 10
    n_points: OfVectors = None  # type: ignore[assignment]  # vectors: 31
    copy_head: bool = False  # vectors: start with a head that copies the x of every point to its y

    attn_only: ClassVar[bool] = False  # asked for by TransformerLens's ActivationCache

    def __post_init__(self) -> None:
        if self.d_head is None:
            if self.d_model % self.n_heads:
                raise LoopprobeError(
                    f"d_model ({self.d_model}) must be divisible by n_heads ({self.n_heads}): "
                    "change one of them or set d_head"
                )
            self._fill("d_head", self.d_model // self.n_heads)
        self._fill("d_mlp", 4 * self.d_model)
        if self.d_vocab is None:
            self._fill_vectors()
        else:
            self._fill_tokens()
        if self.positional_embedding_type == "rotary":
            self._fill("rotary_dim", self.d_head)
            self._fill("rotary_base", 10_000)
            if self.rotary_dim % 2 or self.rotary_dim > self.d_head:  # type: ignore[operator]
                raise LoopprobeError(
                    f"rotary_dim ({self.rotary_dim}) must be even and at most d_head ({self.d_head}): change one"
                )
        for name, kind in {"rotary_dim": "rotary", "rotary_base": "rotary", "copy_head": "standard"}.items():
            if getattr(self, name) and self.positional_embedding_type != kind:
                raise LoopprobeError(
                    f"{name} ({getattr(self, name)}) is of {kind} positions, and positional_embedding_type is "
                    f"{self.positional_embedding_type}: drop it"
                )

    def _fill(self, name: str, value: int) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)

    def _fill_vectors(self) -> None:
        self._fill("n_dims", 10)
        self._fill("n_points", 31)
        self._fill("n_ctx", TOKENS_PER_POINT * self.n_points)
        if self.d_vocab_out is not None:
            raise LoopprobeError(f"d_vocab_out ({self.d_vocab_out}) is of token models: set d_vocab too, or drop it")
        if self.n_ctx < TOKENS_PER_POINT * self.n_points:
            raise LoopprobeError(
                f"n_ctx ({self.n_ctx}) must be at least 2 * n_points ({TOKENS_PER_POINT * self.n_points}): "
                "every point is two tokens; raise n_ctx or lower n_points"
            )
        needed = sum(self.copy_head_directions)
        if self.copy_head and (self.d_head < 2 or self.d_model < needed):
            raise LoopprobeError(
                f"copy_head needs a d_head of at least 2 (not {self.d_head}) and a d_model of at least {needed} (not "
                f"{self.d_model}), for it has directions of its own: drop it or raise them"
            )

    def _fill_tokens(self) -> None:
        for name in ("n_dims", "n_points", "copy_head"):
            if getattr(self, name):
                raise LoopprobeError(
                    f"{name} ({getattr(self, name)}) is of models that read vectors, and d_vocab ({self.d_vocab}) is "
                    "set: drop one of them"
                )
        self._fill("d_vocab_out", self.d_vocab or 0)
        self._fill("n_ctx", CONTEXT)

    @property
    def reads_tokens(self) -> bool:
        """Whether the model reads tokens; else it reads vectors."""
        return self.d_vocab is not None

    @property
    def tokens_per_point(self) -> int:
        """The number of tokens of one example: two for a labelled vector, one for a token."""
        return 1 if self.reads_tokens else TOKENS_PER_POINT

    @property
    def copy_head_directions(self) -> list[int]:
        """How many directions ``copy_head`` needs: read into, of a point's place, copied to, and of x or y."""
        return [self.n_dims, self.d_head - 1, min(self.n_dims, self.d_head), 1]

    @classmethod
    def from_transformer_lens(cls, cfg: Any, **loop_fields: Any) -> ModelConfig:
        """Make a config from a TransformerLens one: TransformerBridgeConfig, legacy HookedTransformerConfig, dict.

        Args:
            cfg: the TransformerLens config, or its ``to_dict()``. Its fields about files and devices have no meaning
                here and are passed over, see ``config.lens``. With its ``d_vocab`` the model reads tokens.
            loop_fields: ``n_loops``, ``injection``, or any field to override; with ``n_dims`` or ``n_points`` the model
                reads vectors, whatever ``d_vocab`` is.

        Raises:
            LoopprobeError: the config asks for something that a looped GPT-2 block does not have.
        """
        known = used_fields(cfg if isinstance(cfg, Mapping) else vars(cfg))
        if "d_vocab" not in known or {"n_dims", "n_points"} & loop_fields.keys():
            known.pop("d_vocab", None), known.pop("d_vocab_out", None)
            if "n_ctx" in known:
                known["n_points"] = known["n_ctx"] // TOKENS_PER_POINT
        if "initializer_range" in known:
            known["initializer_range"] = float(known["initializer_range"])
        model_cfg: ModelConfig = build(cls, known | loop_fields)
        return model_cfg

    def to_transformer_lens(self) -> Any:
        """The TransformerBridgeConfig of one pass through the block (imports transformer_lens)."""
        from transformer_lens.config import TransformerBridgeConfig

        shared = [name for name in sorted(USED) if getattr(self, name) is not None]
        return TransformerBridgeConfig(**{name: getattr(self, name) for name in shared}, attn_only=self.attn_only)
