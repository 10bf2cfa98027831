"""Training on tokens: it learns, resumes bit for bit, and is the same in a stack as alone."""

import itertools
import json
import math
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from loopprobe.config.schema import Config, Schedule, TrainConfig, read_config
from loopprobe.config.sources import load_config, merge, preset_names
from loopprobe.config.strict import build
from loopprobe.model.looped import LoopedTransformer
from loopprobe.store.checkpoint import load_checkpoint
from loopprobe.tasks.registry import SHIPPED, find
from loopprobe.training.runs import Run
from loopprobe.training.stack import Stack
from loopprobe.training.steps import windowed_loss
from loopprobe.training.sweep import plan, read_grid, stacks
from loopprobe.training.train import draw, start, train, train_runs

TOKEN_TASKS = [name for name in SHIPPED if find(name).reads_tokens]
SMALL = [
    "model.d_model=16", "model.n_heads=2", "model.n_ctx=16", "train.batch_size=8", "train.device=cpu", "train.steps=20",
    "train.warmup_steps=5", "train.log_every=3", "train.checkpoint_every=7",
]  # fmt: skip
COPY = [
    "task.name=copy", "task.length=5", "task.symbols=3", "model.n_loops=3", "train.loop_window=2",
    "model.positional_embedding_type=standard", "train.length.kind=constant", "train.loss_loops=2",  # not its preset's
    "train.muon_lr=0.02", "train.adam_lr=3e-3",
]  # fmt: skip
CPU = torch.device("cpu")


def config(*overrides, base=SMALL):
    return load_config(overrides=[*base, *overrides])


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    [
        ["task.name=p_hop", "task.length=1", "task.context=12", "model.n_loops=2", "train.loop_window=2"],
        ["task.name=parity", "task.length=2", "train.loop_window=2"],
    ],
    ids=["p_hop", "parity"],
)
def test_a_tiny_training_learns(task, tmp_path):
    wide = ["model.d_model=32", "train.batch_size=32", "train.steps=200", "train.log_every=20", "train.warmup_steps=10"]
    folder = train(config(*task, *wide, "train.length={kind='constant'}"), tmp_path / "run")
    first, *_, last = rows(folder)
    assert first["loss"] > 0.4
    assert last["loss"] < 0.2
    assert last["accuracy"] > 0.93
    checkpoint = load_checkpoint(folder)
    assert checkpoint.evaluation["mean"][0] < 0.2
    prompts = checkpoint.held_out(200)
    answers = checkpoint.model(prompts.tokens, read_at=prompts.read_at)[-1]
    assert prompts.correct(answers).float().mean() > 0.93


def killed_at(step):
    real = Run.record

    def record(self, *arguments):
        real(self, *arguments)
        if self.step == step:
            raise RuntimeError("killed")

    return record


def test_a_run_killed_and_resumed_is_one_never_killed_with_the_length_it_had_mastered(tmp_path, monkeypatch):
    mastery = ["train.length={kind='mastery',start=1,rate=0.2}", "train.loops={kind='poisson'}", "train.loss_loops=1"]
    cfg = config(*COPY, *mastery)
    train(cfg, tmp_path / "whole")
    for resume, step in ((False, 11), (True, 18)):  # between states and between rows
        with monkeypatch.context() as patch:
            patch.setattr(Run, "record", killed_at(step))
            with pytest.raises(RuntimeError, match="killed"):
                train(None if resume else cfg, tmp_path / "killed", resume=resume)
    again = start(None, tmp_path / "killed", resume=True)
    assert (again.step, again.mastered) == (14, 1 + sum(row["accuracy"] >= 0.2 for row in rows(tmp_path / "whole")[:4]))
    assert 1 < again.mastered <= 5
    train_runs([again])
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_length_is_mastered_at_the_rate_and_never_beyond_the_last(tmp_path):
    for rate, last in ((1e-9, 5), (1.0, 2)):
        mastery = ["train.adam_lr=1e-9", "train.muon_lr=1e-9", f"train.length={{kind='mastery',start=2,rate={rate}}}"]
        folder = train(config(*COPY, *mastery), tmp_path / str(rate))
        assert [row["length"] for row in rows(folder)] == [min(last, 2 + i) for i in range(7)]


VARIANTS = [
    ["model.positional_embedding_type=rotary", "model.normalization_type=RMS"],
    ["model.positional_embedding_type=none", "model.n_prelude_layers=1", "model.n_coda_layers=1"],
    ["model.loop_embedding=true", "model.gated_mlp=true", "train.loss_loops=1"],
]


@pytest.mark.parametrize("variant", VARIANTS, ids=["rotary", "around", "loops told"])
def test_answers_and_gradients_of_a_stack_are_those_of_each_model_alone(variant):
    cfg = config(*COPY, *variant)
    models = [LoopedTransformer(cfg.model, torch.Generator().manual_seed(i)) for i in range(3)]
    prompts = [draw(cfg, {"length": 4}, torch.Generator().manual_seed(i), CPU) for i in range(3)]
    loops, alone = [3, 1, 2], []
    for model, part, n_loops in zip(models, prompts, loops, strict=True):
        windowed_loss(model, part, n_loops, 2, "cross_entropy")[0].backward()
        alone.append([parameter.grad for parameter in model.parameters()])
        model.zero_grad(set_to_none=True)
    stack, read_at = Stack(models), prompts[0].read_at
    tokens = torch.cat([part.tokens for part in prompts])
    together = stack.run_windows([tokens], loops, [2, 1, 2], read_at)
    sum(part.errors(found).mean() for part, found in zip(prompts, together, strict=True)).backward()
    stack.pass_gradients_on()
    for model, part, found, n_loops, grads in zip(models, prompts, together, loops, alone, strict=True):
        expected = model.run_loops(part.tokens, n_loops=n_loops, keep_loops=len(found), read_at=read_at)
        torch.testing.assert_close(found, expected)
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6)


def assert_trained_alike(cfgs, folder):
    """With Adam, as the orthogonal matrices of Muon are found in bfloat16; returns the lengths of the rows of each."""
    cfgs = [build(Config, merge(cfg.to_dict(), {"train": {"optimizer": "adam"}})) for cfg in cfgs]
    runs = [start(cfg, folder / "stack" / str(i)) for i, cfg in enumerate(cfgs)]
    prompts = [draw(cfg, {"length": 2}, torch.Generator().manual_seed(9), CPU) for cfg in cfgs]
    before = [run.model(part.tokens).detach() for run, part in zip(runs, prompts, strict=True)]
    train_runs(runs)
    lengths = []
    for i, (cfg, part) in enumerate(zip(cfgs, prompts, strict=True)):
        folders = folder / "stack" / str(i), train(cfg, folder / "alone" / str(i))
        stack, alone = (load_checkpoint(path).model(part.tokens) for path in folders)
        assert (alone - stack).norm() < 1e-5 * (alone - before[i]).norm(), i
        lengths.append([row["length"] for row in rows(folders[0])])
        assert lengths[-1] == [row["length"] for row in rows(folders[1])]
    return lengths


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=["rotary", "around", "loops told"])
def test_a_stack_trains_as_each_alone(variant, tmp_path):
    assert_trained_alike([config(*COPY, *variant, f"train.seed={seed}") for seed in range(2)], tmp_path)


def test_runs_that_have_mastered_different_lengths_train_as_alone(tmp_path):
    rates = (1e-9, 1.0, 1e-9)
    cfgs = [
        config(*COPY, f"train.seed={seed}", f"train.length={{kind='mastery',start=1,rate={rate}}}", "train.steps=16")
        for seed, rate in enumerate(rates)
    ]
    fast, slow, other = assert_trained_alike(cfgs, tmp_path)
    assert fast == other == [1, 2, 3, 4, 5, 5]
    assert slow[-1] < 5


def test_tasks_of_one_vocabulary_that_answer_at_other_tokens_train_together(tmp_path):
    shared = ["model.positional_embedding_type=rotary", "model.n_loops=2", "train.loop_window=2"]
    copies = config("task.name=copy", "task.length=2", "task.symbols=2", *shared)
    parity = config("task.name=parity", "task.length=4", "train.length=4", "train.loops={kind='constant'}", *shared)
    assert_trained_alike([copies, parity], tmp_path)


def test_models_of_token_tasks_are_stacked_where_their_weights_have_the_same_shapes(tmp_path):
    seeds = [config(*COPY, f"train.seed={seed}", f"model.n_loops={b}") for seed in (0, 1) for b in (2, 3)]
    told = [config(*COPY, "model.loop_embedding=true", "train.seed=2", f"model.n_loops={b}") for b in (2, 3)]
    reverse = config("task.name=reverse", *COPY[1:])
    sizes = [len(members) for members in stacks(plan([*seeds, *told, reverse], tmp_path), 16)]
    assert sizes == [5, 1, 1]


def test_a_grid_takes_what_it_does_not_say_from_the_preset_of_the_task(tmp_path):
    (tmp_path / "grid.toml").write_text('[[grid]]\n"task.name" = ["parity", "cyclic"]\n"train.seed" = 1\n')
    parity, cyclic = read_grid(tmp_path / "grid.toml")[0]
    assert parity == load_config(preset="parity", overrides=["train.seed=1"])
    assert cyclic == load_config(overrides=["task.name=cyclic", "train.seed=1"])


def test_loops_and_lengths_are_drawn_as_the_schedules_say():
    steps = range(4000)
    uniform = TrainConfig(loops=Schedule(kind="uniform", start=2, end=6), length=Schedule(end=5))
    drawn = [uniform.sizes(step) for step in steps]
    for name, values in (("loops", range(2, 7)), ("length", range(1, 6))):
        counts = Counter(sizes[name] for sizes in drawn)
        assert set(counts) == set(values)
        assert max(abs(count - 800) for count in counts.values()) < 5 * math.sqrt(800)
    together = Counter((sizes["loops"], sizes["length"]) for sizes in drawn)
    assert len(together) == 25  # independently
    assert max(abs(count - 160) for count in together.values()) < 5 * math.sqrt(160)
    assert drawn == [TrainConfig(loops=uniform.loops, length=uniform.length, seed=7).sizes(step) for step in steps]


@pytest.mark.parametrize("mean", [1, 2, 9])
def test_poisson_loops_have_their_mean_and_are_at_least_one(mean):
    cfg = TrainConfig(loops=Schedule(kind="poisson", end=mean))
    drawn = torch.tensor([cfg.sizes(step)["loops"] for step in range(4000)], dtype=torch.float64)
    variance = (mean - 1) + (mean - 1) ** 2 * (math.exp(0.25) - 1)  # of a Poisson number with a log-normal mean
    assert drawn.min() == 1
    assert drawn.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / 4000))
    assert drawn.var().item() == pytest.approx(variance, rel=0.2)


def test_there_are_as_many_loops_as_the_length_where_that_is_asked():
    cfg = load_config(preset="addition").train
    for step, mastered in itertools.product(range(200), (2, 5, None)):
        sizes = cfg.sizes(step, mastered)
        assert 1 <= sizes["loops"] == sizes["length"] <= (mastered or 12)
    assert cfg.reached(0, 2) == {"length": 2, "loops": 12}


def test_prompts_of_a_step_are_those_of_the_seed():
    cfg, sizes = config(*COPY), {"length": 3}
    one, same, other = (draw(cfg, sizes, torch.Generator().manual_seed(seed), CPU) for seed in (1, 1, 2))
    assert torch.equal(one.tokens, same.tokens)
    assert not torch.equal(one.tokens, other.tokens)
    assert (one.n_prompts, one.n_answers) == (8, 3)


def test_the_loss_is_on_the_last_loops_and_the_gradient_on_the_window():
    cfg = config(*COPY)
    model = LoopedTransformer(cfg.model, torch.Generator().manual_seed(0))
    prompts = draw(cfg, {"length": 4}, torch.Generator().manual_seed(0), CPU)
    logits = model(prompts.tokens, 5)[:, :, -4:]

    def gradient(loss):
        return torch.autograd.grad(loss, model.blocks[0].mlp.fc_in.weight, retain_graph=True)[0]

    for loss_loops in (None, 1, 2):
        loss, recorded = windowed_loss(model, prompts, 5, 3, "cross_entropy", loss_loops)
        expected = prompts.errors(logits[-(loss_loops or 3) :]).mean()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(recorded[1], prompts.errors(logits[-1])[:, -1].mean())
        torch.testing.assert_close(recorded[2], prompts.correct(logits[-1]).float().mean())
        kept = model(prompts.tokens, 5, grad_loops=3, keep_loops=loss_loops or 3)[:, :, -4:]
        torch.testing.assert_close(gradient(loss), gradient(prompts.errors(kept).mean()))
        if loss_loops:
            assert not torch.allclose(gradient(loss), gradient(windowed_loss(model, prompts, 5, 1, "", loss_loops)[0]))


def test_names_of_configs_tell_task_loops_and_what_is_special():
    names = {
        "copy-length5-symbols3-b3-T2-20steps": COPY,
        "copy-length5-symbols3-b3-T2-poisson-4length-20steps": [
            *COPY, "train.loops={kind='poisson'}", "train.length={kind='constant',end=4}",
        ],
        "parity-length4-b4-T4-20steps-s3": ["task.name=parity", "task.length=4", "train.loop_window=4", "train.seed=3"],
        "add-length3-base10-numbers3-b3-T1-20steps": [
            "task.name=addition", "task.length=3", "task.base=10", "task.numbers=3", "train.loop_window=1"
        ],
    }  # fmt: skip
    assert {config(*overrides).name: overrides for overrides in names.values()} == names
    assert load_config(preset="p_hop").name == "phop-b6-T6"


@pytest.mark.parametrize("name", TOKEN_TASKS)
def test_every_token_task_makes_a_config_with_its_vocabulary(name):
    cfg = load_config(overrides=[f"task.name={name}"])
    task = cfg.task
    assert (cfg.model.d_vocab, cfg.model.d_vocab_out) == (len(task.rules.inputs), len(task.rules.outputs))
    assert len(set(task.rules.inputs)) == cfg.model.d_vocab
    assert (cfg.train.loss, cfg.train.dims, cfg.train.points, task.noise_std) == ("cross_entropy", None, None, None)
    assert cfg.train.length.end == task.length
    assert read_config(cfg.to_dict()) == cfg
    if name in preset_names():
        assert load_config(preset=name) == cfg
        assert cfg.train.loss_loops == 1
