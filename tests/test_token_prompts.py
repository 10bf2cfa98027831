"""Token prompts: errors, answers and losses against plain formulas; and the rules of their configurations."""

import dataclasses
import math

import pytest
import torch

from loopprobe.config.schema import ModelConfig, Schedule, TaskConfig
from loopprobe.config.sources import load_config
from loopprobe.errors import LoopprobeError
from loopprobe.tasks import sample_tokens


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def cyclic(length, n):
    return sample_tokens(TaskConfig(name="cyclic"), n, length, seeded())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("loops", [(), (3,), (2, 3)])
def test_measures_of_outputs_are_the_formulas(dtype, loops):
    prompts = cyclic(4, 6)
    one, other = (3 * torch.randn(*loops, 6, 4, 5, generator=seeded(i)).to(dtype) for i in (1, 2))
    p, q = (logits.double().exp() / logits.double().exp().sum(-1, keepdim=True) for logits in (one, other))
    right = torch.nn.functional.one_hot(prompts.answers, 5)
    at_least = torch.float64 if dtype == torch.float64 else torch.float32
    errors, distance = prompts.errors(one), prompts.distance(one, other)
    assert errors.dtype == distance.dtype == at_least
    torch.testing.assert_close(errors.double(), -(p * right).sum(-1).log(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(distance.double(), (q * (q / p).log()).sum(-1), atol=1e-5, rtol=1e-5)
    assert torch.equal(prompts.correct(one), (one.double() * right).sum(-1) * right.sum(-1) == one.double().amax(-1))
    odds = (p * right).sum(-1) / (p * (1 - right)).sum(-1)
    rounding = 0.1 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(prompts.answer(one).double(), odds[..., -1].log(), atol=rounding, rtol=0)
    torch.testing.assert_close(prompts.distance(one, prompts.certain()), errors, atol=1e-6, rtol=1e-6)
    assert prompts.errors(prompts.certain()).max() < 1e-6


def test_answers_against_corrupted_prompts_are_differences_of_two_logits():
    clean = cyclic(4, 6)
    logits = torch.randn(2, 6, 4, 5, generator=seeded())
    corrupted = clean.corrupted("token", seeded())
    answer = clean.against(corrupted).answer(logits)
    for i in range(6):
        own, other = clean.answers[i, -1], corrupted.answers[i, -1]
        assert torch.equal(answer[:, i], logits[:, i, -1, own] - logits[:, i, -1, other])
    assert torch.equal(clean.against(clean).instead, (clean.answers[:, -1] + 1) % 5)
    assert torch.equal(clean.against(corrupted)[2:4].answer(logits[:, 2:4]), answer[:, 2:4])


def test_the_baseline_knows_how_often_each_answer_is_right():
    prompts = cyclic(1, 8)
    prompts = dataclasses.replace(prompts, answers=torch.tensor([0, 0, 0, 0, 1, 1, 2, 4])[:, None])
    _, error = prompts.baseline()
    assert error == pytest.approx(1.5 * math.log(2))  # four prompts have an error of log 2, and the next two of log 4
    frequencies = torch.tensor([4, 2, 1, 0, 1]) / 8
    logits = frequencies.log().clamp_min(-50).expand(8, 1, 5)
    assert error == pytest.approx(prompts.errors(logits).quantile(0.5).item(), abs=1e-6)


def test_the_training_loss_is_the_mean_over_loops_and_answers():
    prompts = cyclic(4, 6)
    logits = torch.randn(3, 6, 4, 5, generator=seeded(), requires_grad=True)
    loss, recorded = prompts.training_loss(logits, "cross_entropy")
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 2), prompts.answers.expand(3, 6, 4).flatten())
    torch.testing.assert_close(loss, expected)
    last = torch.nn.functional.cross_entropy(logits[-1, :, -1], prompts.answers[:, -1])
    right = (logits[-1].argmax(-1) == prompts.answers).float().mean()
    torch.testing.assert_close(recorded, torch.stack([expected, last, right]).detach())


TASK_RULES = [
    ({"name": "parity", "symbols": 3}, r"symbols \(3\) is not a field of task parity: set task.name to copy"),
    ({"name": "copy", "depth": 2}, "depth"), ({"name": "s5", "labels": "sign"}, "labels"),
    ({"length": 3}, r"length \(3\) is not a field of task linear_regression.*parity"),
    ({"name": "parity", "tables": ("wine",)}, "tables"), ({"name": "s5", "moves": "none"}, "moves"),
    ({"name": "p_hop", "symbols": 27}, "26"), ({"name": "cyclic", "modulus": 1}, "modulus"),
    ({"name": "addition", "base": 4, "numbers": 8}, "65,536 columns"), ({"name": "sorting"}, "sorting"),
    ({"name": "parity", "length": 0}, "length"), ({"name": "parity", "lenght": 5}, "lenght.*did you mean length"),
]  # fmt: skip
MODEL_RULES = [
    ({"d_vocab_out": 3}, "d_vocab_out.*d_vocab"), ({"d_vocab": 5, "n_dims": 3}, "n_dims"),
    ({"d_vocab": 5, "n_points": 3}, "n_points"), ({"d_vocab": 0}, "d_vocab"), ({"rotary_dim": 4}, "rotary_dim"),
    ({"positional_embedding_type": "rotary", "rotary_dim": 3}, r"rotary_dim \(3\) must be even"),
    ({"positional_embedding_type": "rotary", "rotary_dim": 18}, "at most d_head"),
    ({"positional_embedding_type": "none", "rotary_base": 9}, "rotary_base"),
    ({"positional_embedding_type": "rotary", "d_head": 5}, "even"), ({"n_coda_layers": -1}, "n_coda_layers"),
]  # fmt: skip
PARITY = ["task.name=parity", "task.length=4", "model.n_loops=4", "train.loop_window=4"]
CONFIG_RULES = [
    ([*PARITY, "model.d_vocab=9"], r"d_vocab \(9\) must be 4 for task parity"),
    ([*PARITY, "model.d_vocab_out=9"], r"d_vocab_out \(9\) must be 2"),
    (["model.d_vocab=9"], "linear_regression gives vectors.*reads tokens"),
    ([*PARITY, "model.n_ctx=5"], "prompts of length 4 have 6 tokens and model.n_ctx is 5"),
    ([*PARITY, "train.length=5"], r"train.length.end \(5\) must be at most task.length \(4\)"),
    ([*PARITY, "train.dims=2"], "train.dims is not of task parity"), (["train.length=2"], "train.length is not of"),
    ([*PARITY, "train.loss=mse"], "must be cross_entropy"), (["train.loss=cross_entropy"], "must be mse or log"),
    ([*PARITY, "train.loss_loops=5"], r"loss_loops \(5\)"),
    ([*PARITY, "model.n_loops=5"], r"model.n_loops \(5\) must be task.length \(4\)"),
    ([*PARITY, "train.loops={kind='mastery',start=1,rate=0.5}"], r"train.loops.kind \(mastery\)"),
    ([*PARITY, "train.length={kind='mastery',start=1,error=0.5}"], "start and rate"),
    ([*PARITY, "model.copy_head=true"], r"copy_head \(True\) is of models that read vectors"),
    ([*PARITY, "train.length={kind='poisson'}"], r"train.length.kind \(poisson\)"),
    ([*PARITY, "train.length={kind='length'}"], r"train.length.kind \(length\)"),
    (["train.points={kind='uniform',start=2}"], r"train.points.kind \(uniform\)"),
]  # fmt: skip
SCHEDULE_RULES = [
    ({"kind": "mastery", "start": 1}, "takes rate and start, or error and start"), ({"kind": "uniform"}, "takes start"),
    ({"kind": "poisson", "start": 2}, "takes only end"), ({"rate": 0.5}, "takes only end"),
    ({"kind": "mastery", "start": 1, "rate": 1.5}, "rate"), ({"kind": "uniform", "start": 3, "end": 2}, r"start \(3\)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "values", "match"),
    [(lambda values: TaskConfig(**values), *rule) for rule in TASK_RULES]
    + [(lambda values: ModelConfig(**values), *rule) for rule in MODEL_RULES]
    + [(lambda values: Schedule(**values), *rule) for rule in SCHEDULE_RULES]
    + [(lambda values: load_config(overrides=values), *rule) for rule in CONFIG_RULES],
)
def test_what_does_not_fit_gets_one_line(make, values, match):
    with pytest.raises(LoopprobeError, match=match) as error:
        make(values)
    assert "\n" not in str(error.value)
