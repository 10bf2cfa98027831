"""Every field of TransformerLens's config is used, refused unless it is the default, or without effect."""

import dataclasses

import pytest
import torch
from transformer_lens.config import TransformerBridgeConfig

from loopprobe.config.lens import FIXED, USED, WITHOUT_EFFECT
from loopprobe.config.schema import ModelConfig
from loopprobe.errors import LoopprobeError

SHAPE = {"n_layers": 1, "d_model": 16, "n_heads": 2, "n_ctx": 12, "d_head": 8, "act_fn": "gelu_new"}
FIELDS = {field.name for field in dataclasses.fields(TransformerBridgeConfig)}
FIELDS |= set(vars(TransformerBridgeConfig(**SHAPE)))


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_field_stands_in_exactly_one_list(name):
    assert [name in known for known in (USED, FIXED, WITHOUT_EFFECT)].count(True) == 1


@pytest.mark.parametrize("name", sorted(FIXED))
def test_a_fixed_field_is_taken_at_its_default_and_refused_otherwise(name):
    for allowed in FIXED[name]:
        assert ModelConfig.from_transformer_lens(SHAPE | {name: allowed}).d_model == 16
    for other in ("another", 3, 0.5, [1]):
        with pytest.raises(LoopprobeError, match=rf"^{name} \(.*not supported.*change it") as error:
            ModelConfig.from_transformer_lens(SHAPE | {name: other})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "field",
    [
        {"n_key_value_heads": 1}, {"output_logits_soft_cap": 30.0}, {"init_mode": "kaiming_normal"},
        {"dtype": torch.float64}, {"seed": 3}, {"attn_scale": 7.0},
    ],
    ids=str,
)  # fmt: skip
def test_what_would_make_another_model_is_refused(field):
    with pytest.raises(LoopprobeError, match=next(iter(field))):
        ModelConfig.from_transformer_lens(TransformerBridgeConfig(**SHAPE, **field))


def test_the_same_model_in_other_words_is_taken():
    same = {"n_key_value_heads": 2, "attn_scale": 8**0.5, "dtype": torch.float32, "scale_embedding": False}
    assert ModelConfig.from_transformer_lens(SHAPE | same) == ModelConfig.from_transformer_lens(SHAPE)


def test_a_field_that_nobody_knows_is_refused():
    with pytest.raises(LoopprobeError, match="n_layer "):
        ModelConfig.from_transformer_lens(SHAPE | {"n_layer": 3})
