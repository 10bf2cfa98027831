"""A task of one's own, from training to every verb, in this process and in others."""

import json
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file

import loopprobe
from loopprobe import RegressionTask, TaskConfig, TokenTask
from loopprobe.config.sources import load_config
from loopprobe.errors import LoopprobeError
from loopprobe.probes import compare, converge, extrapolate, mask, patch, shift
from loopprobe.probes.questions import Question, answer, prepare
from loopprobe.reference.baselines.optimal import UNKNOWN
from loopprobe.store.checkpoint import load_checkpoint
from loopprobe.store.record import read_json
from loopprobe.support.cluster import Processes
from loopprobe.tasks import FunctionTask, held_out, held_out_tokens, registry, sample
from loopprobe.training.sweep import plan, read_grid, sweep
from loopprobe.training.train import start, train, train_runs

CODE = '''
from dataclasses import dataclass

import torch

from loopprobe import RegressionTask, TokenTask


@dataclass(frozen=True)
class AbsLinear(RegressionTask):
    slope: float = 1.0
    short = "abs"
    baselines = ("nearest", "averaging")

    def draw(self, n_prompts, n_points, n_dims, generator):
        xs = torch.randn(n_prompts, n_points, n_dims, generator=generator)
        w = torch.randn(n_prompts, n_dims, 1, generator=generator)
        return xs, self.slope * (xs @ w).squeeze(-1).abs()


class Middle(TokenTask):
    """The sum of two letters, read at a token in the middle."""

    inputs = "abc="
    outputs = "abc"
    length = 3

    def draw(self, n_prompts, length, generator):
        letters = torch.randint(3, (n_prompts, 2 * length), generator=generator)
        tokens = torch.cat([letters[:, :length], torch.full((n_prompts, 1), 3), letters[:, length:]], 1)
        return tokens, letters[:, :length].sum(1, keepdim=True) % 3, [length]
'''
SIZES = [f"model.{key}={value}" for key, value in TINY.items()] + ["train.loop_window=2", "train.steps=4"]
SIZES += ["train.batch_size=8", "train.checkpoint_every=2", "train.device=cpu", "train.log_every=1"]
TOKEN_SIZES = ["model.d_model=16", "model.n_heads=2", "model.n_loops=2", "train.loop_window=2", *SIZES[-5:]]


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    """The registry of a process that has seen no task."""
    forget(monkeypatch)


def forget(monkeypatch):
    """What a new process knows: nothing."""
    for name in ("_REGISTERED", "_SEEN", "_BROUGHT"):
        monkeypatch.setattr(registry, name, {})


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_tasks.py"
    path.write_text(CODE)
    return path


def config(*overrides):
    return load_config(
        overrides=["task.name=my_tasks.py:AbsLinear", *SIZES, "train.dims=3", "train.points=6", *overrides]
    )


def expected(n, points, dims, seed, slope=1.0):
    """Inputs and labels of AbsLinear, written out."""
    generator = torch.Generator().manual_seed(seed)
    xs = torch.randn(n, points, dims, generator=generator)
    w = torch.randn(n, dims, 1, generator=generator)
    return xs, slope * (xs @ w).squeeze(-1).abs()


def test_prompts_are_those_of_the_task(file):
    task = TaskConfig(name="my_tasks.py:AbsLinear", parameters={"slope": 2.0})
    assert (task.name, task.source, task.short) == ("AbsLinear", f"{file}:AbsLinear", "abs-slope2.0")
    prompts = sample(task, 5, 6, 3, torch.Generator().manual_seed(7))
    xs, ys = expected(5, 6, 3, 7, slope=2.0)
    assert torch.equal(prompts.xs, xs)
    assert torch.equal(prompts.ys, ys)
    held = held_out(task, 5, 6, 3, seed=1)
    assert torch.equal(held.ys, expected(5, 6, 3, 2**31 + 1, slope=2.0)[1])
    assert held.origin["parameters"] == {"slope": 2.0}
    narrow = sample(task, 5, 6, 3, torch.Generator().manual_seed(7), active_dims=2)
    assert torch.equal(narrow.xs[..., :2], expected(5, 6, 2, 7)[0])
    assert narrow.xs[..., 2].eq(0).all()
    assert prompts.scale == pytest.approx(4 * 3, rel=0.1), "E(y²) is measured"
    errors = prompts.errors(torch.zeros_like(ys))
    torch.testing.assert_close(errors, ys.square() / prompts.scale)


def test_a_function_an_instance_and_a_registered_name_are_tasks(file):
    def cubes(n_prompts, n_points, n_dims, generator, *, factor=2):
        xs = torch.randn(n_prompts, n_points, n_dims, generator=generator)
        return xs, factor * xs.sum(-1) ** 3

    task = loopprobe.register_task(cubes)
    assert (task.name, task.parameters, task.source) == ("cubes", {"factor": 2}, None)
    prompts = sample(TaskConfig(name="cubes", parameters={"factor": 5}), 4, 3, 2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(prompts.ys, 5 * prompts.xs.sum(-1) ** 3)
    registered = loopprobe.register_task("my_tasks.py:AbsLinear", name="folded")
    assert TaskConfig(name="folded") == registered
    assert registered.short == "abs"


def test_an_entry_point_of_an_installed_package_is_a_task(tmp_path, monkeypatch):
    package = tmp_path / "site" / "abs_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "tasks.py").write_text(CODE)
    about = tmp_path / "site" / "abs_package-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: abs-package\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[loopprobe.tasks]\nfolded = abs_package.tasks:AbsLinear\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    task = TaskConfig(name="folded")
    assert (task.name, task.source) == ("folded", "abs_package.tasks:AbsLinear")
    again = pickle.loads(pickle.dumps(task))
    forget(monkeypatch)
    assert torch.equal(held_out(again, 2, 3, 2).ys, held_out(task, 2, 3, 2).ys)
    for name in [name for name in sys.modules if name.startswith("abs_package")]:
        del sys.modules[name]
    read = loopprobe.config.schema.read_config({"train": None, "task": loopprobe.config.schema.plain(task)})
    assert "abs_package" not in sys.modules, "reading a configuration imports nothing"
    forget(monkeypatch)
    assert torch.equal(held_out(read.task, 2, 3, 2).ys, held_out(task, 2, 3, 2).ys)


def test_a_training_resumes_and_its_checkpoint_finds_its_task(file, tmp_path, monkeypatch):
    cfg = config("task.parameters.slope=2.0")
    train(cfg, tmp_path / "whole")

    def stop(row):
        if row["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cfg, tmp_path / "stopped", report=stop)
    forget(monkeypatch)
    monkeypatch.chdir("/")
    train(None, tmp_path / "stopped", resume=True)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    recorded = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert recorded["config"]["task"]["parameters"] == {"slope": 2.0}
    assert recorded["evaluation"]["optimum"] is None
    forget(monkeypatch)
    checkpoint = load_checkpoint(tmp_path / "whole")
    assert not registry._SEEN, "loading runs nothing"
    assert checkpoint.config == cfg
    assert torch.equal(checkpoint.held_out(4).ys, expected(4, 6, 3, 2**31, slope=2.0)[1])


def test_another_process_finds_the_task_of_a_checkpoint(file, tmp_path):
    train(config(), tmp_path / "run")
    code = f"""
from loopprobe import load_checkpoint
print(load_checkpoint({str(tmp_path / "run")!r}).held_out(3).ys.sum().item())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout
    assert float(out) == pytest.approx(expected(3, 6, 3, 2**31)[1].sum().item())


def trained(tmp_path, cfg):
    cfg_run = start(cfg, tmp_path / "run")
    train_runs([cfg_run])
    return load_checkpoint(tmp_path / "run")


def test_probes_of_a_regression_task(file, tmp_path):
    checkpoint = trained(tmp_path, config())
    prompts = checkpoint.held_out(6)
    assert checkpoint.is_of_task(prompts)
    data = converge.run(checkpoint, prompts, converge.ConvergeConfig(loops=5, states=0))
    assert data.attrs["optimum"] == UNKNOWN
    with torch.no_grad():
        last = checkpoint.model(*prompts, 5)[-1, :, -1]
    squared = (last - expected(6, 6, 3, 2**31)[1][:, -1]).square() / prompts.scale
    torch.testing.assert_close(torch.from_numpy(data.error.values[-1]), squared)
    assert mask.run(checkpoint, prompts, mask.MaskConfig(n=(2,), loops=2)).sizes["example"] == 6
    every = compare.run(checkpoint, prompts, compare.CompareConfig(baselines=("all",)))
    assert list(every.baseline.values) == ["3 nearest neighbours", "averaging"]
    with pytest.raises(LoopprobeError, match=r"'ridge' does not fit task AbsLinear.*nearest, averaging"):
        compare.check(checkpoint, compare.CompareConfig(baselines=("ridge",)), prompts)
    with pytest.raises(LoopprobeError, match="no shift applies to run"):
        shift.check(checkpoint, shift.ShiftConfig(), prompts)
    with pytest.raises(LoopprobeError, match="prompts of AbsLinear cannot be shifted"):
        checkpoint.held_out(2, shift="skewed")
    patched = patch.run(checkpoint, prompts, patch.PatchConfig(sites=("z",), loops=2))
    assert patched.attrs["corruption"] == json.loads(patched.source.item())["corruption"] == "label"
    with pytest.raises(LoopprobeError, match=r"corruption .weights"):
        patch.check(checkpoint, patch.PatchConfig(corruption="weights"), prompts)
    further = checkpoint.more_like(prompts, 3, 1)
    assert torch.equal(further.ys, expected(3, 6, 3, 2**31 + 1)[1])
    with pytest.raises(LoopprobeError, match="lengths of a token task"):
        loopprobe.probe("extrapolate", checkpoint, prompts)


def test_more_points_than_in_training_are_a_shift_of_any_task(file, tmp_path):
    checkpoint = trained(tmp_path, config("train.points=5"))
    assert shift.applicable(checkpoint) == ["more_examples"]
    assert torch.equal(checkpoint.held_out(2, shift="more_examples").ys, expected(2, 6, 3, 2**31)[1])


def test_probes_of_a_token_task_that_is_read_in_the_middle(file, tmp_path, monkeypatch):
    checkpoint = trained(tmp_path, load_config(overrides=["task.name=my_tasks.py:Middle", *TOKEN_SIZES]))
    assert (checkpoint.config.model.d_vocab, checkpoint.config.model.d_vocab_out) == (4, 3)
    prompts = checkpoint.held_out(6, length=2)
    assert (prompts.read_at, prompts.query, prompts.n_tokens) == ([2], 2, 5)
    assert torch.equal(prompts.answers[:, 0], prompts.tokens[:, :2].sum(1) % 3)
    data = converge.run(checkpoint, prompts, converge.ConvergeConfig(loops=3, states=0))
    with torch.no_grad():
        logits = checkpoint.model(prompts.tokens, n_loops=3, read_at=slice(None))[-1][:, 2]
    errors = torch.nn.functional.cross_entropy(logits, prompts.answers[:, 0], reduction="none")
    torch.testing.assert_close(torch.from_numpy(data.error.values[-1]), errors)
    lengths = extrapolate.run(checkpoint, prompts, extrapolate.ExtrapolateConfig(lengths=(1, 4), loops=2))
    assert lengths.enough_loops.isnull().all()
    with pytest.raises(LoopprobeError, match="labelled points"):
        loopprobe.probe("compare", checkpoint, prompts)
    forget(monkeypatch)
    again = load_checkpoint(tmp_path / "run")
    assert again.config == checkpoint.config
    assert not registry._SEEN
    assert torch.equal(again.held_out(6, length=2).tokens, prompts.tokens)
    with pytest.raises(LoopprobeError, match="Middle have no shift"):
        again.held_out(6, shift="skewed")
    config = patch.PatchConfig(sites=("z",), loops=2)
    corrupted = prompts.corrupted("prompt", torch.Generator().manual_seed(0))
    assert (corrupted.answers != prompts.answers).all()
    assert torch.equal(corrupted.answers[:, 0], corrupted.tokens[:, :2].sum(1) % 3)
    assert patch.run(checkpoint, prompts, config).sizes["position"] == 3, "tokens up to the query"
    with pytest.raises(LoopprobeError, match=r"corruption .token. must be prompt"):
        patch.check(checkpoint, patch.PatchConfig(corruption="token"), prompts)


@pytest.mark.slow
def test_a_sweep_trains_tasks_in_its_workers(file, tmp_path, monkeypatch):
    (tmp_path / "grid.toml").write_text(
        '[[grid]]\n"task.name" = "my_tasks.py:AbsLinear"\n"task.parameters.slope" = [1.0, 2.0]\n'
        + "".join(
            f'"{key}" = {value}\n' for key, value in (pair.split("=") for pair in SIZES[:-2] if "device" not in pair)
        )
        + '"train.device" = "cpu"\n"train.dims" = 3\n"train.points" = 6\n'
    )
    configs, _ = read_grid(tmp_path / "grid.toml")
    assert [cfg.task.parameters for cfg in configs] == [{"slope": 1.0}, {"slope": 2.0}]
    planned = plan(configs, tmp_path / "runs")
    file.rename(tmp_path / "gone.py")  # workers are sent the source
    sweep(planned, workers=2)
    assert {model.status for model in plan(configs, tmp_path / "runs")} == {"done"}
    steep = planned[1].folder
    assert steep.name.startswith("abs-slope2.0-L2-b4-T2-4steps")
    train(list(configs)[1], tmp_path / "here")
    one, other = (load_file(folder / "model.safetensors") for folder in (steep, tmp_path / "here"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_workers_of_a_question_draw_from_the_task(file, tmp_path, monkeypatch):
    for i in range(2):
        train(config(f"train.seed={i}"), tmp_path / f"run{i}")
    names = (str(tmp_path / "run0"), str(tmp_path / "run1"))
    question = Question(probe="lens", checkpoints=names, prompts=4, options={"loops": 2, "train_prompts": 40})
    prepared = prepare(question)
    file.rename(tmp_path / "gone.py")
    with Processes(2, device="cpu") as pool:
        far = list(answer(prepared, pool=pool))
    near = list(answer(prepared))
    for one, other in zip(far, near, strict=True):
        assert one.attrs["fitted_on"] == "40 held-out prompts of AbsLinear, seed 1"
        torch.testing.assert_close(torch.from_numpy(one.error.values), torch.from_numpy(other.error.values))


def test_what_has_changed_or_moved_is_told_and_named_again(file, tmp_path, monkeypatch, command):
    run = train(config(), tmp_path / "runs" / "folded")
    ask = ("mask", "--ckpt", run, "--n", 2, "--loops", 2, "--prompts", 4, "--overwrite", "--out", "out")
    file.write_text(CODE + "\n# mended\n")
    forget(monkeypatch)
    code, _, err = command(*ask)
    assert code == 2
    assert "task AbsLinear has changed since the training" in err
    assert "restore it, name it again (--task FILE.py:AbsLinear, or loopprobe.register_task)" in err
    assert err.count("\n") == 1
    file.rename(tmp_path / "moved.py")
    forget(monkeypatch)
    code, _, err = command(*ask)
    assert code == 2
    assert f"task AbsLinear is not at {file}:AbsLinear" in err
    for verb in (["list"], ["show", "folded"], ["export", "folded", "--out", "weights"]):
        code, out, _ = command(*verb)
        assert code == 0
        assert "AbsLinear" in out or verb[0] == "export"
    checkpoint = load_checkpoint(run)
    assert "AbsLinear" in repr(checkpoint)
    xs = torch.randn(4, 6, 3)
    by_hand = loopprobe.Prompts(xs, xs.sum(-1).abs())
    data = loopprobe.probe("converge", checkpoint, by_hand, loops=3, states=0)
    assert data.attrs["optimum"] == UNKNOWN
    with pytest.raises(LoopprobeError, match="training="):
        loopprobe.probe("lens", checkpoint, by_hand)
    assert command(*ask, "--task", "moved.py:AbsLinear")[0] == 0
    forget(monkeypatch)
    assert command("evaluate", run, "--prompts", 8, "--far", 0, "--task", "moved.py:AbsLinear")[0] == 0
    assert read_json(run)[1]["evaluation"]["n_prompts"] == 8
    forget(monkeypatch)
    assert command("train", "--resume", "--out", run, "--task", "moved.py:AbsLinear")[0] == 2, "it is done"


def test_a_foreign_checkpoint_runs_no_code(tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(marker)!r}, 'w').write('x')\n" + CODE)
    plain = {"train": None, "task": {"name": "evil.py:AbsLinear"}}
    with pytest.raises(LoopprobeError, match=r"task.name .'evil.py:AbsLinear'. is not valid"):
        loopprobe.config.schema.read_config(plain)
    task = {"name": "AbsLinear", "source": f"{evil}:AbsLinear", "sha256": "0" * 64, "parameters": {"slope": 1.0}}
    recorded = loopprobe.config.schema.read_config({"train": None, "task": task})
    with pytest.raises(LoopprobeError, match="has changed"):
        held_out(recorded.task, 2, 3, 2)
    assert not marker.exists()


def test_export_and_import_keep_the_task(file, tmp_path, command):
    train(config("task.parameters.slope=2.0"), tmp_path / "run")
    assert command("export", tmp_path / "run", "--out", "weights.safetensors")[0] == 0
    assert command("import", "weights.safetensors", "--out", "again")[0] == 0
    one, other = load_checkpoint(tmp_path / "run"), load_checkpoint("again")
    assert one.config.task == other.config.task
    assert one.digest() == other.digest()
    assert torch.equal(one.held_out(2).ys, other.held_out(2).ys)


def test_classes_of_a_session_are_told_to_be_registered_again(tmp_path, monkeypatch):
    class Session(RegressionTask):
        def draw(self, n_prompts, n_points, n_dims, generator):
            return expected(n_prompts, n_points, n_dims, generator.initial_seed())

    class Sound(Session):
        def draw(self, n_prompts, n_points, n_dims, generator):
            xs = torch.randn(n_prompts, n_points, n_dims, generator=generator)
            return xs, xs.sum(-1)

    cfg = load_config(overrides=SIZES)
    with pytest.raises(LoopprobeError, match="Session gave the same prompts twice"):
        train(cfg, tmp_path / "same", task=Session)
    assert not (tmp_path / "same").exists()
    train(cfg, tmp_path / "run", task=Sound())
    assert load_checkpoint(tmp_path / "run").config.task.source is None
    forget(monkeypatch)
    with pytest.raises(LoopprobeError, match=r"task Sound was defined in a session.*register_task"):
        load_checkpoint(tmp_path / "run").held_out(2)
    loopprobe.register_task(Sound)
    assert load_checkpoint(tmp_path / "run").held_out(2).n_prompts == 2
    with pytest.raises(LoopprobeError, match="does not fit a configuration of linear_regression"):
        train(cfg, tmp_path / "other", task="parity")


def test_an_error_a_unit_and_an_optimum_of_its_own(tmp_path):
    class Absolute(FunctionTask):
        """Linear functions, judged by absolute errors."""

        unit = "absolute error"
        failure_level = 0.5
        numbers = staticmethod(lambda n_dims: n_dims)

        def label(self, xs, numbers, active):
            return (xs * numbers[:, None]).sum(-1), numbers

        def error(self, predictions, labels):
            return (predictions - labels).abs()

        def optimum(self, prompts):
            return "least_squares"

    cfg = load_config(overrides=SIZES)
    train(cfg, tmp_path / "run", task=Absolute)
    checkpoint = load_checkpoint(tmp_path / "run")
    prompts = checkpoint.held_out(8)
    assert torch.equal(prompts.xs, held_out(TaskConfig(), 8, 6, 3).xs), "functions are drawn as those that ship"
    assert (prompts.unit, prompts.query_unit) == ("absolute error", "absolute error at the query")
    data = compare.run(checkpoint, prompts, compare.CompareConfig())
    assert data.attrs["optimum"] == "least squares"
    assert data.optimum.values[:, -1].max() < 1e-3, "five examples determine three weights"
    with torch.no_grad():
        last = checkpoint.model(*prompts)[-1]
    torch.testing.assert_close(torch.from_numpy(data.error.values), (last - prompts.ys).abs())
    assert data.error.attrs["units"] == "absolute error"
    recorded = checkpoint.evaluation
    assert (recorded["measure"], recorded["failure_level"]) == ("absolute error at the query", 0.5)
    assert recorded["optimum"]["name"] == "least squares"
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["error"] != pytest.approx(row["loss"])
    assert "skewed" in shift.applicable(checkpoint)


def test_labels_that_are_signs_have_an_accuracy(tmp_path):
    class Halfspace(RegressionTask):
        labels = "sign"

        def draw(self, n_prompts, n_points, n_dims, generator):
            xs = torch.randn(n_prompts, n_points, n_dims, generator=generator)
            return xs, (xs @ torch.randn(n_prompts, n_dims, 1, generator=generator)).squeeze(-1).sign()

    train(load_config(overrides=SIZES), tmp_path / "run", task=Halfspace)
    checkpoint = load_checkpoint(tmp_path / "run")
    prompts = checkpoint.held_out(6)
    assert prompts.scale == 1
    data = compare.run(checkpoint, prompts, compare.CompareConfig(baselines=("nearest",)))
    with torch.no_grad():
        right = (checkpoint.model(*prompts)[-1] > 0) == (prompts.ys > 0)
    torch.testing.assert_close(torch.from_numpy(data.accuracy.values), right.double().mean(0))


def test_held_out_prompts_may_be_others_than_those_of_training():
    class Halves(TokenTask):
        inputs = "abcd"
        length = 2

        def draw(self, n_prompts, length, generator, first=0):
            tokens = torch.randint(first, first + 2, (n_prompts, length), generator=generator)
            return tokens, tokens[:, :1]

        def draw_held_out(self, n_prompts, length, generator):
            return self.draw(n_prompts, length, generator, first=2)

        def solve(self, tokens):
            return tokens[:, :1]

        def optimum(self, prompts):
            return "even odds", torch.zeros(prompts.n_prompts, 1, 4)

    task = loopprobe.register_task(Halves)
    training = loopprobe.tasks.sample_tokens(task, 9, 2, torch.Generator().manual_seed(0))
    held = held_out_tokens(task, 9, 2)
    assert int(training.tokens.max()) == 1
    assert int(held.tokens.min()) == 2
    other = held.corrupted("token", torch.Generator().manual_seed(0))
    assert held.corruptions == ("token", "prompt")
    assert (other.tokens != held.tokens).sum(1).eq(1).all()
    assert (other.answers != held.answers).all()
    name, best = loopprobe.reference.baselines.optimal.optimum(held, task)
    assert name == "even odds"
    torch.testing.assert_close(held.errors(best), torch.full((9, 1), 4.0).log())


@dataclass(frozen=True)
class OfModule(RegressionTask):
    """A task of a module that another process imports from its file."""

    def draw(self, n_prompts, n_points, n_dims, generator):
        return expected(n_prompts, n_points, n_dims, int(torch.randint(1000, (), generator=generator)))


def test_a_class_that_is_given_as_such_is_recorded_with_its_file():
    task = loopprobe.register_task(OfModule)
    assert task.source == f"{Path(__file__).resolve()}:OfModule"


KEPT = [
    ({}, 41.8904), ({"name": "noisy_linear_regression"}, 40.7466),
    ({"name": "sparse_linear_regression", "sparsity": 2}, 3.5164), ({"name": "decision_tree", "depth": 3}, 3.2443),
    ({"name": "relu_network", "hidden": 7}, 12.6217), ({"labels": "sign"}, 9.0033),
]  # fmt: skip
KEPT_TOKENS = {
    "parity": "3329f99a2e8b", "copy": "2cbf8cb467a6", "reverse": "e27bd5648588", "addition": "b60bfea36012",
    "modular_addition": "1fa4c3a20296", "cyclic": "0a35471b4860", "s5": "756767de9f0d", "p_hop": "356db9111b86",
    "pointer": "57d52d329f47", "dyck": "aa6003e0f2e9",
}  # fmt: skip


def test_the_prompts_of_tasks_that_ship_are_those_that_models_were_measured_on():
    import hashlib

    weights = torch.arange(1, 109, dtype=torch.float64).reshape(12, 9).cos()
    for fields, total in KEPT:
        prompts = held_out(TaskConfig(**fields), 12, 9, 5, 3, active_dims=4)
        assert (prompts.ys.double() * weights).sum().item() == pytest.approx(total, abs=1e-4), fields
    for name, digest in KEPT_TOKENS.items():
        prompts = held_out_tokens(TaskConfig(name=name), 12, 3, 4)
        text = repr((prompts.tokens.tolist(), prompts.answers.tolist()))
        assert hashlib.sha256(text.encode()).hexdigest()[:12] == digest, name
    assert {fields.get("name", "linear_regression") for fields, _ in KEPT} | {*KEPT_TOKENS, "tables"} == {
        *registry.SHIPPED
    }
