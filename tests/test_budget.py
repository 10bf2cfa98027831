"""The memory that something takes is estimated within a factor of two, and refused where there is less."""

import pytest
import torch
from conftest import needs_peak, run_script

from loopprobe.config import budget
from loopprobe.config.schema import Config, ModelConfig, TaskConfig
from loopprobe.config.sources import load_config
from loopprobe.errors import LoopprobeError
from loopprobe.model.looped import LoopedTransformer
from loopprobe.probes import questions
from loopprobe.probes.questions import Question, prepare
from loopprobe.store.checkpoint import load_checkpoint
from loopprobe.tasks import held_out
from loopprobe.training.train import train

SCRIPT = """
import sys
import torch
from conftest import peak_memory
from loopprobe.config import budget
from loopprobe.model.looped import LoopedTransformer
from loopprobe.training.replay import Replay
from loopprobe.config.sources import load_config
from loopprobe.training.steps import make_optimizers, train_step
from loopprobe.tasks import held_out

def measure(cfg, kind):
    model, size = LoopedTransformer(cfg.model), cfg.train.batch_size
    before = peak_memory()
    prompts = held_out(cfg.task, size, cfg.model.n_points, cfg.model.n_dims)
    if kind == "training":
        optimizers, replay = make_optimizers(model, cfg.train), Replay(torch.device("cpu"))
        train_step(model, optimizers, prompts, cfg.train.steps - 1, cfg.train, replay)
    elif kind == "run":
        before = peak_memory()
        with torch.no_grad():
            model(*prompts)
    return peak_memory() - before

torch.set_num_threads(1)
kind, *overrides = sys.argv[1:]
measure(load_config(overrides=["train.batch_size=2"]), kind)  # what is loaded once
cfg = load_config(overrides=overrides)
print(measure(cfg, kind))
"""


def estimate(cfg, kind):
    size, model = cfg.train.batch_size, cfg.model
    if kind == "training":
        return budget.training_bytes(cfg)
    if kind == "run":
        return budget.run_bytes(model, size, 2 * model.n_points, model.n_loops)
    return budget.prompt_bytes(cfg.task, size, model.n_points, model.n_dims)


@needs_peak
@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("training", ["train.batch_size=128", "model.n_loops=3", "train.loop_window=3"]),
        ("run", ["train.batch_size=1000", "model.n_loops=2", "train.loop_window=2"]),
        ("prompts", ["train.batch_size=20000"]),
        pytest.param("training", ["train.batch_size=32", "model.n_loops=4", "train.loop_window=2", "model.n_points=80",
                                  "model.n_layers=3", "train.loss=log"], marks=pytest.mark.slow),
        pytest.param("run", ["train.batch_size=400", "model.n_loops=2", "train.loop_window=2", "model.n_points=90"],
                     marks=pytest.mark.slow),
        pytest.param("prompts", ["train.batch_size=2000", "task.name=relu_network"], marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_estimates_are_within_a_factor_of_two_of_the_peak(kind, overrides):
    measured = int(run_script(SCRIPT, kind, *overrides))
    assert 0.5 < estimate(load_config(overrides=overrides), kind) / measured < 2


@pytest.mark.parametrize("fields", [{}, {"n_layers": 3}, {"d_head": 5, "d_mlp": 7}, {"n_ctx": 100, "n_dims": 4}])
def test_parameters_are_counted_exactly(fields):
    cfg = ModelConfig(d_model=16, n_heads=2, n_points=5, **fields)
    assert budget.n_parameters(cfg) == sum(parameter.numel() for parameter in LoopedTransformer(cfg).parameters())


def test_what_is_larger_than_the_memory_is_refused_with_numbers_and_remedy():
    with pytest.raises(LoopprobeError, match=r"^this needs 1,000,000 GB of memory, [\d,.]+ GB are free: lower it$"):
        budget.require(1e15, "this", "lower it")
    budget.require(budget.LITTLE * 2, "this", "lower it")
    assert budget.available() <= 2**50


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: LoopedTransformer(ModelConfig(d_model=2**20)), "d_model 1,048,576.*lower model.d_model"),
        (lambda: LoopedTransformer(ModelConfig(n_dims=2**31 - 1, d_model=2**20)), "lower model.d_model"),
        (lambda: held_out(TaskConfig(), 10**10, 31, 10), "10,000,000,000 prompts.*lower the number"),
        (lambda: held_out(TaskConfig(), 64, 31, 10**8), "100,000,000 dimensions.*lower"),
        (lambda: held_out(TaskConfig(name="relu_network", hidden=10**8), 64, 31, 10), "lower"),
        (lambda: held_out(TaskConfig(name="decision_tree", depth=30), 64, 31, 10), "lower"),
    ],
)
def test_models_and_prompts_are_refused_before_they_are_made(make, match):
    with pytest.raises(LoopprobeError, match=match) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "override",
    ["train.batch_size=1000000", "model.n_dims=100000000", "model.n_points=1000000", "model.d_mlp=2000000000"],
)
def test_a_training_that_cannot_be_held_makes_no_folder(tmp_path, override):
    with pytest.raises(LoopprobeError, match=r"of memory.*lower"):
        train(load_config(overrides=[override]), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_training_of_the_defaults_is_not_refused():
    assert budget.training_bytes(Config()) < 2e9
    budget.require_training(Config(), torch.device("cpu"))


@pytest.mark.parametrize("version", [1, 2])
def test_the_limits_of_control_groups_count(tmp_path, version):
    root, listing = tmp_path / "cgroup", tmp_path / "listing"
    base = root / "memory" if version == 1 else root
    limit, used = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    )
    cache = "total_inactive_file" if version == 1 else "inactive_file"
    listing.write_text("4:memory:/outer/inner\n3:cpu:/\n" if version == 1 else "0::/outer/inner\n")
    for folder, most, held, cached in ((base / "outer", "1000", 300, 100), (base / "outer" / "inner", "500", 490, 20)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / limit).write_text(most)
        (folder / used).write_text(str(held))
        (folder / "memory.stat").write_text(f"{cache} {cached}\nanon 3\n")
    assert list(budget._left_in_groups(root, listing)) == [30, 800]
    (base / "outer" / "inner" / limit).write_text("max")
    assert list(budget._left_in_groups(root, listing)) == [800]
    assert list(budget._left_in_groups(root, tmp_path / "none")) == []


@pytest.mark.parametrize(("length", "loops"), [(None, 12), (5, 5), (200, 200)])
def test_a_question_is_estimated_with_the_loops_of_its_prompts(length, loops, monkeypatch):
    """Where loops are as many as moves, longer prompts run more of them than the training did."""
    monkeypatch.setattr(budget, "available", lambda device=None: 10**9)
    question = Question(probe="patch", checkpoints=("s5-b12-T12",), prompts=100_000, length=length)
    with pytest.raises(LoopprobeError, match=rf"^patch of s5-b12-T12 with 100,000 prompts and {loops} loops needs "):
        prepare(question)


def test_a_question_is_estimated_with_the_length_of_its_prompts(monkeypatch):
    asked = []
    monkeypatch.setattr(questions, "require", lambda n_bytes, *_: asked.append(n_bytes))
    for length in (5, 200):
        prepare(Question(probe="mask", checkpoints=("s5-b12-T12",), prompts=64, length=length, options={"n": (1,)}))
    checkpoint = load_checkpoint("s5-b12-T12")
    short, long = (checkpoint.held_out(64, length=length) for length in (5, 200))
    held = [sum(part.nbytes for part in prompts.tensors) for prompts in (short, long)]
    answers = [50 * 2 * 8 * prompts.n_answers for prompts in (short, long)]
    assert asked[1] - asked[0] == held[1] - held[0] + answers[1] - answers[0] > 0
