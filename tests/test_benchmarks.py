"""The benchmark compares like with like: its plain model computes what ours does."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from loopprobe.config.sources import load_config
from loopprobe.model.looped import LoopedTransformer
from loopprobe.tasks import held_out
from loopprobe.training.train import start, train_runs

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
RENAMED = [
    ("ln_1", "ln1"), ("ln_2", "ln2"), ("c_attn", "attn.qkv"), ("c_proj", "attn.out"), ("c_fc", "mlp.fc_in"),
    ("c_out", "mlp.fc_out"), ("ln_f", "ln_final"), ("wpe.weight", "W_pos"),
]  # fmt: skip


def test_the_plain_model_of_the_benchmark_is_the_same_model(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    from train_step import PlainLooped

    plain, cfg = PlainLooped(10, 31, 64, 4, 1), load_config()
    weights = {}
    for name, tensor in plain.state_dict().items():
        for theirs, ours in RENAMED:
            name = name.replace(theirs, ours)
        weights[name] = tensor
    model = LoopedTransformer(cfg.model)
    model.load_state_dict(weights)
    prompts = held_out(cfg.task, 4, 31, 10)
    expected = torch.stack(plain(prompts.xs, prompts.ys, 20, 10))
    torch.testing.assert_close(model(prompts.xs, prompts.ys, keep_loops=10), expected, atol=1e-5, rtol=0)


def test_nothing_costs_more_operations_kernels_or_bytes_than_recorded(monkeypatch):
    """Counts that do not depend on the machine; a change that makes them differ says so by ``benchmarks/counts.py``."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    from counts import counts

    tree = json.loads((BENCHMARKS / "counts.json").read_text())
    if tree["torch"] != torch.__version__.split("+")[0]:
        pytest.skip(f"kernels were counted with torch {tree['torch']}, which cuts operations into its own")
    recorded, found = tree["counts"], counts()
    assert found.keys() == recorded.keys()
    for name, row in found.items():
        for unit, value in row.items():
            remedy = f"{name}: {value:,} {unit}, recorded {recorded[name][unit]:,}: run `python benchmarks/counts.py`"
            assert value <= recorded[name][unit], f"dearer than before: {remedy} if it must be so"
            assert value >= 0.98 * recorded[name][unit], f"cheaper than before: {remedy} to keep it so"


def test_every_row_of_the_probes_can_be_measured(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    from probes import ROWS, operations

    for name, work in ROWS.items():
        assert operations(work, loops=2, points=6, prompts=2, d_model=16) > 0, name


def test_the_counter_counts_what_torch_says_a_product_costs(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    from counts import Counter

    a, b = torch.ones(3, 5), torch.ones(5, 7)
    with Counter() as counter:
        (a @ b).reshape(21).relu()
    assert counter.flops == 2 * 3 * 5 * 7
    assert counter.kernels == 2  # the product and relu; reshape is a view
    q = torch.ones(2, 4, 6, 8, requires_grad=True)
    with Counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
    assert counter.flops == (2 + 5) * 2 * 2 * 4 * 6 * 6 * 8  # two products forwards, five backwards, one of them again


def test_the_cost_of_the_speed_run_is_in_full_steps_of_the_default(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    from speedrun import contestant, operations

    cfg, full = load_config(), {"points": 31, "loops": 20}
    unit = operations(cfg, full)
    assert operations(load_config(overrides=["train.batch_size=32"]), full) == pytest.approx(unit / 2)
    one_loop = {"points": 31, "loops": 1}  # 3 passes of one loop of 20 + 2 · 10
    assert operations(load_config(overrides=["train.loop_window=1"]), one_loop) == pytest.approx(unit * 3 / 40)
    small = ["model.n_loops=2", "train.loop_window=1", "train.batch_size=4", "train.dims=10", "train.points=31"]
    trained = contestant("default", 0, small, torch.device("cpu"))
    trained.train(3)
    assert trained.cost(3) == pytest.approx(3 * 4 / 64 * (2 + 2) / 40)
    assert trained.cost(0) == 0


@pytest.mark.parametrize(("level", "last"), [(1e9, 5), (1e-9, 2)])
def test_a_speed_run_adds_dimensions_as_a_training_does(monkeypatch, tmp_path, level, last):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    from speedrun import contestant

    changed = ["model.n_loops=2", "train.loop_window=1", "train.batch_size=4", "train.log_every=2", "train.steps=6",
               "train.loss_loops=1", "train.loops=2", "train.device=cpu",
               f"train.dims={{kind='mastery',start=2,error={level}}}"]  # fmt: skip
    raced = contestant("sprint", 0, changed, torch.device("cpu"))
    raced.train(6)
    run = start(raced.cfg, tmp_path / "run")
    train_runs([run])
    assert raced.mastered == run.mastered == last


def test_a_goal_that_one_seed_does_not_reach_is_missed(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    from goals import Goal, slowest

    def row(*after):
        rows = {str(seed): {"reached_after_s": {"0.02": seconds}} for seed, seconds in enumerate(after)}
        return Goal("", "speedrun", lambda _: slowest("sprint", "0.02")({"sprint": rows}), high=60).row()[2:]

    assert row(50.0, 59.0) == ("59.00", "met")
    assert row(50.0, 61.0) == ("61.00", "missed")
    assert row(50.0, None) == ("not reached", "missed")


def test_the_page_shows_what_was_measured(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    spec = importlib.util.spec_from_file_location("all_benchmarks", BENCHMARKS / "all.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.PAGE.read_text()
    assert page == module.page(), "run `python benchmarks/all.py --page`"
    for name, devices in module.RUNS.items():
        measured = [module.out_path(str(BENCHMARKS / f"{name}.py"), device).exists() for device in devices]
        assert page.count(f"--only {name}") == measured.count(False)
