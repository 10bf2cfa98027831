"""Models trained as one stack are those trained alone, within rounding."""

import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file

from loopprobe.config.sources import load_config
from loopprobe.errors import LoopprobeError
from loopprobe.model.looped import LoopedTransformer
from loopprobe.store.checkpoint import load_checkpoint
from loopprobe.tasks import sample
from loopprobe.training.runs import Run
from loopprobe.training.stack import Stack, Trial, muon_together
from loopprobe.training.steps import windowed_loss
from loopprobe.training.sweep import plan, stacks, sweep
from loopprobe.training.train import start, train, train_runs

SMALL = [f"model.{key}={value}" for key, value in TINY.items() if key != "n_loops"] + [
    "train.dims=3", "train.points=6", "train.batch_size=4", "train.device=cpu", "train.steps=12",
    "train.warmup_steps=2", "train.log_every=3", "train.checkpoint_every=6",
]  # fmt: skip
DIFFERENT = [  # in all that may differ
    ["model.n_loops=3", "train.loop_window=2"],
    ["model.n_loops=5", "train.loop_window=5", "model.injection=multiply", "train.seed=1", "train.loss=log"],
    ["model.n_loops=4", "train.loop_window=3", "model.injection=none", "train.muon_lr=0.05", "train.grad_clip=0.0"],
    ["model.n_loops=5", "train.loop_window=1", "train.optimizer=adam", "train.loops={kind='linear',start=2,over=0.5}"],
    ["model.n_loops=2", "train.loop_window=2", "task.name=noisy_linear_regression", "train.weight_decay=0.1"],
]


@pytest.fixture(autouse=True)
def no_evaluation(monkeypatch):
    monkeypatch.setattr("loopprobe.training.runs.evaluate", lambda checkpoint, n_prompts: {})


def config(*overrides):
    return load_config(overrides=[*SMALL, *overrides])


def drawn(cfg, seed):
    return sample(cfg.task, 4, 6, 3, torch.Generator().manual_seed(seed))


def test_runs_that_stand_at_different_steps_are_not_trained_together(tmp_path):
    runs = [start(config(f"train.seed={seed}"), tmp_path / str(seed)) for seed in range(2)]
    runs[1].step = 3
    with pytest.raises(LoopprobeError, match=r"stand at steps 0, 3: train those of one step"):
        train_runs(runs)


@pytest.mark.parametrize("together", [False, True])
def test_weights_that_ran_without_gradient_have_one_in_half_precision(together):
    cfg = config("model.n_loops=5", "train.loop_window=2")
    gradients = []
    for half in (False, True):
        model, prompts = LoopedTransformer(cfg.model, torch.Generator().manual_seed(0)), drawn(cfg, 0)
        stack = Stack([model])
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            if together:
                [outputs] = stack.run_windows(prompts.inputs, [5], [2])
                loss = prompts.training_loss(outputs, "mse")[0]
            else:
                loss = windowed_loss(model, prompts, 5, 2, "mse")[0]
        loss.backward()
        if together:
            stack.pass_gradients_on()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, exact in gradients[0].items():
        if exact is not None:
            torch.testing.assert_close(gradients[1][name], exact, rtol=0.1, atol=0.02 * float(exact.abs().max()))


@pytest.mark.parametrize("chosen", [range(5), [0, 3, 4], [2]])
def test_predictions_and_gradients_are_those_of_each_model_alone(chosen):
    cfgs = [config(*DIFFERENT[i]) for i in chosen]
    models = [LoopedTransformer(cfg.model, torch.Generator().manual_seed(i)) for i, cfg in enumerate(cfgs)]
    prompts = [drawn(cfg, i) for i, cfg in enumerate(cfgs)]
    alone = []
    for model, part, cfg in zip(models, prompts, cfgs, strict=True):
        windowed_loss(model, part, cfg.model.n_loops, cfg.train.loop_window, "mse")[0].backward()
        alone.append({name: p.grad for name, p in model.named_parameters()})
        model.zero_grad(set_to_none=True)
    stack = Stack(models)
    xs, ys = (torch.cat(parts) for parts in zip(*prompts, strict=True))
    windows = [cfg.train.loop_window for cfg in cfgs]
    together = stack.run_windows((xs, ys), [cfg.model.n_loops for cfg in cfgs], windows)
    assert [len(part) for part in together] == windows
    sum((found - part.ys).square().mean() for found, part in zip(together, prompts, strict=True)).backward()
    stack.pass_gradients_on()
    for model, part, found, expected in zip(models, prompts, together, alone, strict=True):
        torch.testing.assert_close(found, model(*part)[-len(found) :])
        for name, parameter in model.named_parameters():
            grads = [torch.zeros_like(parameter) if grad is None else grad for grad in (parameter.grad, expected[name])]
            torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


def test_weights_of_the_models_are_views_of_the_stack():
    models = [LoopedTransformer(config().model, torch.Generator().manual_seed(i)) for i in range(2)]
    before = models[1].blocks[0].attn.qkv.weight.clone()
    stack = Stack(models)
    assert torch.equal(stack.blocks[0].attn.qkv.weight[1], before)
    with torch.no_grad():
        models[1].blocks[0].attn.qkv.weight.add_(1)
    assert torch.equal(stack.blocks[0].attn.qkv.weight[1], before + 1)


def test_the_joint_step_of_muon_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    shapes = [(48, 16), (16, 16), (16, 64), (48, 16)]
    rates = [dict(lr=0.02, weight_decay=0.0), dict(lr=0.05, weight_decay=0.1)]
    first = [[torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes] for _ in rates]
    second = [[torch.nn.Parameter(matrix.detach().clone()) for matrix in matrices] for matrices in first]
    ones, others = (
        [torch.optim.Muon(matrices, **rate) for matrices, rate in zip(all_, rates, strict=True)]
        for all_ in (first, second)
    )
    for _ in range(3):
        for mine, theirs in zip(itertools.chain(*first), itertools.chain(*second), strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            theirs.grad = mine.grad.clone()
        muon_together(ones)
        for optimizer in others:
            optimizer.step()
    for mine, theirs in zip(ones, others, strict=True):
        for one, other in zip(mine.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-3)  # bfloat16, of updates of some 0.3
            torch.testing.assert_close(mine.state[one]["momentum_buffer"], theirs.state[other]["momentum_buffer"])


def test_a_stack_trains_as_each_alone_and_goes_on_alone(tmp_path, monkeypatch):
    """Also from a kill in the middle, after which one is finished alone."""
    cfgs = [config(*changed) for changed in DIFFERENT]
    for i, cfg in enumerate(cfgs):
        train(cfg, tmp_path / "alone" / str(i))
    runs = [start(cfg, tmp_path / "stack" / str(i)) for i, cfg in enumerate(cfgs)]
    real = Run.record

    def killed(self, *arguments):
        real(self, *arguments)
        if self is runs[-1] and self.step == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "record", killed)
        with pytest.raises(KeyboardInterrupt):
            train_runs(runs)
    assert load_checkpoint(tmp_path / "stack" / "1").step == 6
    train(None, tmp_path / "stack" / "0", resume=True)
    train_runs([start(None, tmp_path / "stack" / str(i), resume=True) for i in range(1, 5)])
    for i, cfg in enumerate(cfgs):
        prompts = drawn(cfg, 9)
        before, *after = (
            model(*prompts, cfg.model.n_loops)
            for model in (
                LoopedTransformer(cfg.model, torch.Generator().manual_seed(cfg.train.seed)),
                *(load_checkpoint(tmp_path / kind / str(i)).model for kind in ("alone", "stack")),
            )
        )
        changed, apart = (after[0] - before).norm(), (after[0] - after[1]).norm()
        assert apart < 0.02 * changed, i  # of a rounding, Muon's bfloat16 makes some 1 % of its update
        rows = [(tmp_path / kind / str(i) / "metrics.jsonl").read_text().splitlines() for kind in ("alone", "stack")]
        assert len(rows[0]) == len(rows[1]) == 4


def test_a_model_whose_loss_breaks_leaves_the_others(tmp_path):
    runs = [start(config(f"train.seed={seed}"), tmp_path / str(seed)) for seed in range(3)]
    with torch.no_grad():
        runs[1].model.W_pos.fill_(torch.nan)
    with pytest.raises(LoopprobeError, match=r"nan at step 1 .*last good checkpoint: step 0"):
        train_runs(runs)
    assert [load_checkpoint(tmp_path / str(seed)).step for seed in range(3)] == [12, 0, 12]
    train(config("train.seed=2"), tmp_path / "alone")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "2"))
    torch.testing.assert_close(one["W_pos"], other["W_pos"], rtol=0, atol=5e-3)


def planned(tmp_path, *changes):
    return plan([config(*change) for change in changes], tmp_path)


def test_models_of_the_same_shapes_are_stacked(tmp_path):
    seeds = [[f"train.seed={seed}", f"model.n_loops={b}", "train.loop_window=2"] for seed in (0, 1, 2) for b in (2, 4)]
    others = [["train.seed=3", "model.n_layers=1"], ["train.seed=4", "train.steps=20"]]
    models = planned(tmp_path, *seeds, *others)

    def sizes(*arguments):
        return [len(members) for members in stacks(models, *arguments)]

    assert sizes(16) == [6, 1, 1]
    assert sizes(4) == [4, 2, 1, 1]
    assert sizes(16, 2) == [3, 3, 1, 1]
    assert sizes(None) == [1] * 8  # on a CPU
    mixed = [models[0], models[6], models[1]]
    assert [[model.name for model in members] for members in stacks(mixed, 1)] == [[m.name] for m in mixed]


class Threads(ThreadPoolExecutor):
    threads = 1

    def __init__(self, workers, **options):
        super().__init__(workers)


def test_a_sweep_trains_stacks_and_names_all_of_one_that_failed(tmp_path, monkeypatch):
    monkeypatch.setattr("loopprobe.training.sweep.FreshProcesses", Threads)
    models = planned(tmp_path, ["train.seed=0"], ["train.seed=1"], ["train.seed=2", "train.steps=5"])
    sweep(models, stack=4)
    assert {model.status for model in planned(tmp_path, ["train.seed=0"], ["train.seed=1"])} == {"done"}
    bad = [dataclasses.replace(model, folder=tmp_path / "no" / "such", status="new") for model in models[:2]]
    (tmp_path / "no").write_text("")
    with pytest.raises(LoopprobeError, match=f"{models[0].name}, {models[1].name}: "):
        sweep(bad, stack=4)


@pytest.mark.parametrize("faster", [True, False])
def test_the_trial_takes_the_faster_way(faster, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("loopprobe.training.stack.time.perf_counter", lambda: now[0])
    trial, done = Trial(None), []
    for step in range(25):
        with trial.step(torch.device("cpu")) as as_one:
            done.append(as_one)
            now[0] += 1 if as_one == faster else 2
            now[0] += 100 * (step in (0, 5))  # of warming up, which must not count
    assert done == ([False] * 5 + [True] * 5) * 2 + [faster] * 5
