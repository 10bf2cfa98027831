import dataclasses

import numpy as np
import pytest
import torch
from conftest import TINY_CFG, make_model

from loopprobe import probe
from loopprobe.config.schema import ForeignConfig, ModelConfig, TaskConfig
from loopprobe.model.looped import LoopedTransformer
from loopprobe.probes import attribute
from loopprobe.show import present
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.tasks import held_out, held_out_tokens

TASK = TaskConfig(name="cyclic", length=5, modulus=4)
SIZES = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_vocab": 5, "d_vocab_out": 4, "n_ctx": 9, "n_loops": 3}
VARIANTS = {
    "plain": {},
    "multiplied in, RMS": {"injection": "multiply", "normalization_type": "RMS"},
    "rotary, gated": {"positional_embedding_type": "rotary", "gated_mlp": True, "act_fn": "silu"},
    "no positions, no injection": {"positional_embedding_type": "none", "injection": "none"},
    "loops": {"loop_embedding": True, "attention_dir": "bidirectional"},
    "around": {"n_prelude_layers": 1, "n_coda_layers": 2, "injection": "multiply"},
    "around, RMS": {"n_coda_layers": 1, "normalization_type": "RMS", "n_layers": 1},
}
WITHOUT = "the logit difference (right answer − mean of all others)"
AGAINST = "the logit difference (right answer − another)"


def token_model(dtype=torch.float64, **fields):
    generator = torch.Generator().manual_seed(0)
    model = LoopedTransformer(ModelConfig(**(SIZES | fields)), generator).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
    return model


def token_prompts(n=12):
    return held_out_tokens(TASK, n, 5)


def against_others(prompts):
    return prompts.against(dataclasses.replace(prompts, answers=prompts.answers.flip(0)))


def subject(model):
    return Checkpoint(ForeignConfig(model=model.cfg, task=TASK), model, name="runs/tokens")


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_parts_sum_to_the_answer(fields):
    model, prompts = token_model(**fields), against_others(token_prompts())
    with torch.no_grad():
        logits = model(prompts.tokens, n_loops=4, read_at=prompts.read_at)[-1]
    contribution, initial, prediction = attribute.contributions(model, prompts, 4)
    assert contribution.shape == (4, len(attribute.components(model)), 12)
    torch.testing.assert_close(prediction, prompts.answer(logits), atol=1e-12, rtol=0)
    right, other = prompts.answers[:, -1], prompts.instead
    offset = model.b_U[right] - model.b_U[other]
    torch.testing.assert_close(contribution.sum((0, 1)) + initial + offset, prediction, atol=1e-10, rtol=0)


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_without_another_answer_the_mean_of_all_others_is_subtracted(fields):
    model, prompts = token_model(**fields), token_prompts()
    with torch.no_grad():
        last = model(prompts.tokens, n_loops=2)[-1, :, -1]
    right = prompts.answers[:, -1]
    others = [
        [logit for place, logit in enumerate(row) if place != at] for row, at in zip(last.tolist(), right, strict=True)
    ]
    expected = last[range(12), right] - torch.tensor(others, dtype=torch.float64).mean(1)
    contribution, initial, prediction = attribute.contributions(model, prompts, 2)
    torch.testing.assert_close(prediction, expected, atol=1e-12, rtol=0)
    data = probe("attribute", subject(model), prompts, loops=2)
    total = contribution.sum((0, 1)) + initial
    np.testing.assert_allclose(total.numpy() + data.offset.values, expected, atol=1e-10)


def test_parts_are_named_as_far_as_the_model_has_them():
    of_layer = ["head 0.0", "head 0.1", "attention offset 0", "MLP 0"]
    bare = token_model(n_layers=1, normalization_type="RMS", positional_embedding_type="none")
    assert attribute.components(bare) == ["input", *of_layer]
    full = token_model(n_layers=1, n_coda_layers=1, loop_embedding=True)
    inside = ["input", "positions", "loop embedding", *of_layer, "norm offset"]
    assert attribute.components(full) == [*inside, *(f"coda {name}" for name in [*of_layer, "norm offset"])]


@pytest.mark.parametrize(
    ("point", "loop", "component"),
    [
        ("blocks.0.attn.hook_result", 0, "head 0.1"),
        ("blocks.1.attn.hook_result", 2, "head 1.1"),
        ("blocks.1.hook_mlp_out", 1, "MLP 1"),
        ("hook_loop_embed", 1, "loop embedding"),
        ("hook_pos_embed", 0, "positions"),
        ("coda.0.attn.hook_result", 2, "coda head 0.1"),
        ("coda.1.hook_mlp_out", 2, "coda MLP 1"),
    ],
)
def test_a_contribution_is_what_the_answer_loses_where_all_other_parts_are_held(point, loop, component):
    model = token_model(loop_embedding=True, n_coda_layers=2, n_prelude_layers=1)
    prompts = against_others(token_prompts())
    logits, cache = model.run_with_cache(prompts.tokens, read_at=prompts.read_at)
    ends = (
        "hook_result",
        "hook_mlp_out",
        "hook_pos_embed",
        "hook_loop_embed",
        "ln_final.hook_scale",
        "ln_coda.hook_scale",
    )
    held = {name: cache[name].clone() for name in cache if name.startswith("loops.") and name.endswith(ends)}
    taken = held[f"loops.{loop}.{point}"]
    (taken[..., 1, :] if "result" in point else taken).zero_()
    hooks = [(name, lambda x, hook: held[hook.name]) for name in held]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        left = prompts.answer(model(prompts.tokens, read_at=prompts.read_at)[-1])
    contribution, _, _ = attribute.contributions(model, prompts, 3)
    lost = contribution[loop, attribute.components(model).index(component)]
    assert lost.abs().max() > 1e-3
    torch.testing.assert_close(prompts.answer(logits[-1]) - left, lost, atol=1e-10, rtol=0)


def test_the_coda_writes_after_the_last_loop_alone():
    data = probe("attribute", subject(token_model(n_coda_layers=1)), token_prompts(), loops=4)
    of_coda = data.contribution.sel(component=[name for name in data.component.values if name.startswith("coda")])
    assert (of_coda.sel(loop=[1, 2, 3]) == 0).all()
    assert (abs(of_coda.sel(loop=4)).max("example") > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("make", "answer"), [(token_prompts, WITHOUT), (lambda: against_others(token_prompts()), AGAINST)]
)
@pytest.mark.parametrize("loops", [1, 3])
def test_a_dataset_says_what_is_split_and_in_which_unit(dtype, make, answer, loops):
    data = probe("attribute", subject(token_model(dtype)), make(), loops=loops)
    assert data.attrs["answer"] == answer
    assert {data[name].attrs["units"] for name in ("contribution", "size", "initial", "offset", "prediction")} == {
        "logits"
    }
    total = data.contribution.sum(("loop", "component")) + data.initial + data.offset
    np.testing.assert_allclose(total, data.prediction, atol=1e-5 if dtype == torch.float32 else 0.3)
    with_ends = float(((data.initial + data.offset) * data.prediction).sum() / (data.prediction**2).sum())
    assert float(data.share.sum()) + with_ends == pytest.approx(1, abs=1e-5 if dtype == torch.float32 else 0.1)
    figure, table = present.figure(data), present.table(data)
    texts = [figure.layout.title.text.replace("<br>", " "), table.title, table.caption]
    assert all(answer in text for text in texts)
    axis = figure.layout.yaxis if loops == 1 else figure.layout.yaxis2
    assert axis.title.text == "share of the logit difference"
    assert not any("the prediction" in text for text in texts)


def test_regression_is_named_as_before():
    data = attribute.run(
        Checkpoint(TINY_CFG, make_model(torch.float32), name="runs/tiny"),
        held_out(TINY_CFG.task, 9, 6, 3),
        attribute.AttributeConfig(),
    )
    assert data.attrs["answer"] == "the prediction"
    assert data.offset.attrs["units"] == "of y"
    assert (data.offset == data.offset[0]).all()
    assert "tiny: the prediction at the query, split" in present.table(data).title
    del data.attrs["answer"]  # as datasets were before there were tokens
    assert "tiny: the prediction at the query, split" in present.table(data).title


def test_prompts_of_another_length_get_the_loops_of_their_length(token_checkpoint):
    data = probe("attribute", token_checkpoint, token_checkpoint.held_out(3, length=2))
    assert data.loop.values.tolist() == [1, 2]
