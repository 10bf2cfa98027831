import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, make_model

from loopprobe import cli
from loopprobe.config.sources import load_config
from loopprobe.model.stream import open_cache
from loopprobe.probes.dataset import read_dataset
from loopprobe.show import present
from loopprobe.store.checkpoint import Checkpoint, load, save

GOLDEN = Path(__file__).parent / "data" / "looped_add_L2.safetensors"
SETTINGS = [f"model.{key}={value}" for key, value in TINY.items()] + [
    "train.loop_window=2",
    "train.dims=3",
    "train.points=6",
]


@pytest.fixture
def tiny():
    folder = Path("runs/tiny")
    folder.mkdir(parents=True)
    save(Checkpoint(load_config(overrides=SETTINGS), make_model(torch.float32)), folder)
    return "tiny"


def test_mask_prints_table_and_sentence_and_paths_last(command, tiny):
    code, out, _ = command("mask", "--ckpt", tiny, "--mode", "last", "--n", "2", "--prompts", 70, "--loops", 6)
    assert code == 0
    assert "keeping the state of the last 2 of 6 points, 4 of 12 tokens" in " ".join(out.split())
    assert "6 loops" in out
    assert out.splitlines()[-2:] == ["results/mask-last-tiny/mask.html", "results/mask-last-tiny/mask.nc"]
    data = read_dataset(Path("results/mask-last-tiny/mask.nc"))
    assert data.sizes["example"] == 70
    assert command("mask", "--ckpt", tiny, "--mode", "last", "--n", "2", "--prompts", 3)[0] == 0
    assert Path("results/mask-last-tiny-2/mask.nc").exists()


def test_mask_takes_ranges_fills_and_several_checkpoints(command, tiny):
    shutil.copytree("runs/tiny", "other/tiny")
    options = ["--n", "0:6:2,5", "--loops", "2,4", "--fill", "mean", "--invert", "--once", "--unit", "token"]
    code, out, _ = command(
        "mask", "--ckpt", tiny, "--ckpt", "other/tiny", "--prompts", 5, "--at", 1, "--out", "o", *options
    )
    assert code == 0
    assert sorted(path.name for path in Path("o").glob("*.nc")) == [
        "mask-difference.nc", "mask-other-tiny.nc", "mask-tiny.nc",
    ]  # fmt: skip
    data = read_dataset(Path("o/mask-tiny.nc"))
    assert data.n.values.tolist() == [0, 2, 4, 5, 6]
    config = json.loads(data.attrs["config"])
    assert (config["fill"], config["invert"], config["at"], config["unit"]) == ("mean", True, 1, "token")
    assert data.attrs["shown_loops"].tolist() == [2, 4]
    heads = [line.split()[:2] for line in out.splitlines()]
    assert [head for head in heads if head[:1] == ["0"]] == [["0", "2"], ["0", "4"]], "n = 0 after 2 and after 4 loops"


@pytest.mark.parametrize(
    ("verb", "options", "figures"),
    [
        ("lens", ["--train-prompts", 20], ["lens", "lens-by-point"]),
        ("edges", ["--loops", 3, "--exact", 4], ["edges", "edges-estimates", "edges-lags"]),
        (
            "circuit",
            ["--loops", 2, "--exact", 4, "--random", 1, "--halves", "--keep", 0.5],
            ["circuit", "circuit-graph", "circuit-lags", "circuit-overlap"],
        ),
        ("ablate", ["--methods", "mean,zero", "--in-loops", "2,last"], ["ablate", "ablate-agreement"]),
        (
            "ablate",
            ["--each-position", "--positions", "query,labels", "--sites", "mlp_out", "--no-agreement"],
            ["ablate"],
        ),
        ("attribute", ["--loops", 3], ["attribute"]),
        ("attention", [], ["attention", "attention-distance", "attention-measures", "attention-query"]),
        ("patch", ["--sites", "z,attn_z,mlp_out", "--positions", "3,10"], ["patch-attn_z", "patch-mlp_out", "patch-z"]),
        ("exit", ["--loops", 12], ["exit"]),
        ("recover", ["--loops", 4], ["recover"]),
        ("steer", ["--loops", 4, "--in-loops", "1:2", "--strengths=-1,0,2", "--fit-prompts", 20], ["steer"]),
        ("steer", ["--direction", "decoder:w, least squares:1", "--unit", "norm", "--fit-prompts", 20], ["steer"]),
        (
            "features",
            ["--loops", 3, "--k", 2, "--fit-prompts", 8, "--steps", 20, "--in-loops", "2", "--positions", "query"],
            ["features", "features-ablated", "features-lives", "features-where"],
        ),
        ("failures", ["--loops", 130], ["failures"]),
        ("paths", ["--loops", 130, "--positions", "1,10"], ["paths", "paths-plane"]),
        pytest.param("fixed-points", ["--far", 128, "--random-starts", 1], ["fixed-points"], marks=pytest.mark.slow),
        (
            "converge",
            ["--loops", "3,20", "--states", 2, "--far", 150],
            ["converge", "converge-failures", "converge-limits", "converge-moves"],
        ),
        ("patch", ["--estimate", "--corruption", "label", "--example", 1], ["patch-attn_z", "patch-z"]),
    ],
)
def test_looking_inside_writes_table_dataset_and_figures(command, tiny, verb, options, figures):
    code, out, err = command(verb, "--ckpt", tiny, "--prompts", 6, "--out", "o", *options)
    assert code == 0, err
    [sentence] = [line for line in out.splitlines() if line.startswith("tiny: ") and line.endswith(".")]
    assert "nan" not in sentence
    assert sorted(path.stem for path in Path("o").glob("*.html")) == figures
    data = read_dataset(Path(f"o/{verb.replace('-', '_')}.nc"))
    assert data.attrs["probe"] == verb.replace("-", "_")
    for name, figure in present.figures([data]).items():
        traces = [
            trace for trace in figure.data if trace.type in ("heatmap", "scatter", "bar", "scatter3d") and len(trace.x)
        ]
        assert traces, name
        for trace in traces:
            values = np.array(trace.z if trace.type == "heatmap" else trace.y, float)
            assert np.isfinite(values).any(), name


def test_cache_streams_to_a_file(command, tiny):
    options = ["--names", "resid_post,pattern", "--loops", "0:30:10", "--positions", "10", "--prompts", 5]
    code, out, err = command("cache", "--ckpt", tiny, *options)
    assert code == 0, err
    assert out.splitlines()[-1] == "results/cache-tiny/cache.nc"
    with open_cache(Path("results/cache-tiny/cache.nc")) as data:
        assert set(data) == {"resid_post", "pattern"}
        assert data.loop.values.tolist() == [0, 10, 20, 30]
        assert data.attrs["probe"] == "cache"
        assert "incomplete" not in data.attrs
    code, _, err = command("cache", "--ckpt", tiny, "--names", "all", "--loops", "2", "--prompts", 2, "--out", "all")
    assert code == 0, err
    assert "ln_final_scale" in open_cache("all/cache.nc")


def test_train_show_list_and_export(command):
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    code, out, err = command("train", *settings, "--set", "train.steps=12", "--out", "runs/mine")
    assert code == 0, err
    assert "error after 4 loops" in out
    code, out, _ = command("list")
    assert code == 0
    assert "mine" in out
    code, out, _ = command("show", "mine")
    assert "n_loops = 4" in out
    assert "git_commit" in out
    code, out, _ = command("export", "mine", "--out", "weights.safetensors")
    assert code == 0
    code, out, _ = command("import", "weights.safetensors", "--n-heads", 2, "--n-loops", 4, "--out", "runs/back")
    assert code == 0
    xs, ys = torch.ones(1, 6, 3), torch.ones(1, 6)
    assert torch.equal(load("back")(xs, ys), load("mine")(xs, ys))


def test_a_toml_file_trains(command):
    Path("mine.toml").write_text("\n".join([*SETTINGS, "train.steps = 4"]))
    code, _, err = command("train", "mine.toml", "--device", "cpu")
    assert code == 0, err
    assert Path("runs/lr-L2-b4-T2-4steps/model.safetensors").exists()


def test_wandb_is_offline(command, monkeypatch):
    pytest.importorskip("wandb")
    import wandb

    calls = []

    class Run:
        def log(self, row, step):
            calls.append((step, sorted(row)))

    def init(**options):
        calls.append(options["mode"])
        return Run()

    monkeypatch.setattr(wandb, "init", init)
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    code, _, err = command("train", *settings, "--set", "train.steps=10", "--out", "runs/mine", "--wandb")
    assert code == 0, err
    assert calls[0] == "offline"
    assert calls[1] == (10, ["dims", "error", "loops", "loss", "points", "seconds"])


BAD = [
    (["mask", "--n", "32", "--ckpt", "tiny"], "n (32)"),
    (["mask", "--n", "x"], "--n ('x')"),
    (["mask", "--n", "3:1"], "--n ('3:1')"),
    (["mask", "--loops", "0", "--ckpt", "tiny"], "loops (0)"),
    (["mask", "--mode", "middle", "--ckpt", "tiny"], "mode ('middle')"),
    (["mask", "--fill", "one", "--ckpt", "tiny"], "fill ('one')"),
    (["mask", "--unit", "word", "--ckpt", "tiny"], "unit ('word')"),
    (["mask", "--at", "3"], "--once"),
    (["mask", "--prompts", "0", "--n", "2", "--ckpt", "tiny"], "prompts (0)"),
    (["mask", "--seed", "-1", "--n", "2", "--ckpt", "tiny"], "seed (-1)"),
    (["mask", "--prompts", "many"], "many"),
    (["mask", "--ckpt", "tinny"], "did you mean tiny"),
    (["mask", "--device", "nonsense"], "'nonsense'"),
    (["mask", "--n", "2", "--ckpt", "tiny", "--out", "full"], "--overwrite"),
    (["mask", "--n", "2", "--ckpt", "tiny", "--out", "file/below"], "cannot write"),
    (["mask", "--nonsense"], "--nonsense"),
    (["nonsense"], "nonsense"),
    (["cache", "--names", "nope", "--ckpt", "tiny"], "'nope'"),
    (["cache", "--positions", "12", "--ckpt", "tiny"], "position 12"),
    (["cache", "--layers", "2", "--ckpt", "tiny"], "layer 2"),
    (["lens", "--loops", "0", "--ckpt", "tiny"], "loops (0)"),
    (["exit", "--loops", "1", "--ckpt", "tiny"], "loops (1)"),
    (["fixed-points", "--method", "guess", "--ckpt", "tiny"], "'guess'"),
    (["fixed-points", "--tolerance", "1e-16", "--ckpt", "tiny"], "noise of float64"),
    (["converge", "--tolerance", "1e-8", "--ckpt", "tiny"], "noise of float32"),
    (["converge", "--far", "100", "--ckpt", "tiny"], "far (100)"),
    (["patch", "--sites", "nope", "--ckpt", "tiny"], "'nope'"),
    (["patch", "--sites", ",", "--ckpt", "tiny"], "empty"),
    (["patch", "--positions", "11", "--ckpt", "tiny"], "position 11"),
    (["patch", "--corruption", "all", "--ckpt", "tiny"], "'all'"),
    (["patch", "--corruption", "label", "--example", "5", "--ckpt", "tiny"], "example (5)"),
    (["train", "--set", "train.stps=3"], "train.stps"),
    (["train", "--set", "train.loop_window=99"], "loop_window (99)"),
    (["train", "--set", "train.optimizer=sgd"], "train.optimizer ('sgd')"),
    (["train", "--preset", "nope"], "'nope'"),
    (["train", "none.toml"], "none.toml"),
    (["train", "--out", "full"], "--overwrite"),
    (["train", "--resume", "--out", "none"], "no checkpoint"),
    (["show", "nope"], "'nope'"),
    (["import", "none.pt", "--n-heads", "2", "--n-loops", "2"], "none.pt"),
    (["import", "file", "--n-heads", "2", "--n-loops", "2"], "neither safetensors nor"),
    (["export", "tiny", "--out", "file"], "--overwrite"),
]


@pytest.mark.parametrize(("arguments", "part"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_gets_one_line_and_code_2_and_leaves_nothing(command, tiny, arguments, part):
    Path("full").mkdir()
    Path("full/precious").write_text("keep me")
    Path("file").write_text("keep me")
    before = sorted(str(path) for path in Path().rglob("*"))
    code, _, err = command(*arguments)
    assert code == 2, err
    assert part in err
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("loopprobe: ")
    assert sorted(str(path) for path in Path().rglob("*")) == before
    assert Path("full/precious").read_text() == Path("file").read_text() == "keep me"


def test_png_without_kaleido_names_the_remedy(command, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    code, _, err = command("mask", "--ckpt", tiny, "--n", "2", "--prompts", 3, "--png")
    assert code == 2
    assert "loopprobe[png]" in err
    assert not Path("results").exists()


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["loopprobe", "show", "nope", "--debug"])
    with pytest.raises(cli.LoopprobeError):
        cli.main()


def test_help_imports_neither_torch_nor_other_heavy_packages():
    code = (
        "import sys; sys.argv = ['loopprobe', '--help']\n"
        "from loopprobe.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'pydantic', 'xarray', 'plotly', 'transformer_lens'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
    for verb in ("train", "list", "show", "import", "export", "mask", "cache", "patch", "attention"):
        assert f"  {verb} " in out


def test_version(command):
    import loopprobe

    assert command("--version") == (0, f"loopprobe {loopprobe.__version__}\n", "")
