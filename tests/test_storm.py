"""A storm of kills at random moments: nothing is lost, and the ends are those of runs that were never killed.

Ctrl-C ends every verb at once.

``LOOPPROBE_STORM=200 pytest -m slow tests/test_storm.py`` is the long one. Commands run in forks of one process that
has imported everything, so that kills hit the work and not the imports.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PATIENCE = 10  # seconds to the end; two where nothing else runs
KILLS = int(os.environ.get("LOOPPROBE_STORM", "15"))

HEAD = r"""
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import numpy as np, torch, xarray as xr
torch.set_num_threads(1)
import loopprobe.cli, loopprobe.training.train, loopprobe.study.saved, loopprobe.model.stream
import loopprobe.study.report, loopprobe.show.present, loopprobe.show.tables
from loopprobe import load_checkpoint, open_cache
from loopprobe.support.storage import PARTIAL
from test_storage import train_command

def fork(arguments):
    pid = os.fork()
    if pid:
        return pid
    os.setpgid(0, 0)  # as a terminal starts it
    null = os.open(os.devnull, os.O_WRONLY)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(null, 1); os.dup2(log, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["loopprobe", *map(str, arguments)]
    code = 1
    try:
        loopprobe.cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        os._exit(code)
"""

STORM = r"""
kills, seed, verb = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
chance = random.Random(seed)
TRAINED = train_command("train.steps=120", "train.checkpoint_every=3")

def finish(arguments):
    _, status = os.waitpid(fork(arguments), 0)
    assert os.waitstatus_to_exitcode(status) == 0, (arguments, Path("log.txt").read_text()[-500:])

def struck(arguments, longest):
    '''Run, kill at a random moment, and say whether it had come to its end.'''
    pid = fork(arguments)
    time.sleep(chance.uniform(0, longest))
    os.kill(pid, chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 0

def timed(arguments):
    started = time.monotonic()
    finish(arguments)
    return 1.2 * (time.monotonic() - started)

def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]

def storm_train():
    clean, run = Path("clean"), Path("run")
    longest, count = timed([*TRAINED, "--out", clean]), 0
    ends = 0
    while count < kills:
        if run.exists() and (run / "state.safetensors").exists():
            command = ["train", "--resume", "--out", run]
        else:
            command = [*TRAINED, "--out", run, "--overwrite"]
        count += 1
        struck(command, longest)
        ended = (run / "config.json").exists() and not (run / "state.safetensors").exists()
        if ended:
            same(clean, run)
            ends += 1
    if (run / "state.safetensors").exists():
        finish(["train", "--resume", "--out", run])
    else:
        finish([*TRAINED, "--out", run, "--overwrite"])
    same(clean, run)
    assert not [p for p in run.iterdir() if p.name.startswith(PARTIAL)]

def same(clean, run):
    assert load_checkpoint(clean).digest() == load_checkpoint(run).digest()
    assert rows(clean) == rows(run)
    assert load_checkpoint(clean).evaluation == load_checkpoint(run).evaluation

def model():
    finish([*train_command("train.steps=4"), "--out", "models/tiny"])
    return "models/tiny"

def storm_cache():
    command = ["cache", "--ckpt", model(), "--prompts", 32, "--loops", "0:120", "--names", "all", "--device", "cpu"]
    longest = timed([*command, "--out", "clean"])
    with open_cache("clean/cache.nc") as whole:
        whole.load()
    for count in range(kills):
        struck([*command, "--out", "struck", "--overwrite"], longest)
        path = Path("struck/cache.nc")
        if path.exists():
            with open_cache(path) as part:
                loops = part.sizes["loop"]
                assert loops <= whole.sizes["loop"]
                for name in ("resid_post", "pattern", "z"):
                    assert (part[name].values == whole[name].values[:loops]).all(), (name, loops)
    finish([*command, "--out", "struck", "--overwrite"])
    with open_cache("struck/cache.nc") as again:
        assert again.drop_attrs().identical(whole.drop_attrs()) or all(
            np.array_equal(again[name].values, whole[name].values) for name in whole)

def storm_report():
    tiny = model()
    Path("questions").mkdir()
    questions = ("a", "exit", "loops = 30"), ("b", "mask", "n = [0, 3]\nloops = 20"), ("c", "lens", "loops = 5")
    for name, probe, options in questions:
        about = f'section = "R"\ntitle = "t"\nasks = "a"\nprobe = "{probe}"\ncheckpoints = ["{tiny}"]\nprompts = 64'
        Path(f"questions/{name}.toml").write_text(f"{about}\n[options]\n{options}\n")
    verb_options = {"run": ["run", *sorted(map(str, Path("questions").glob("*.toml")))],
                    "report": ["report", "--questions", "questions"]}[verb]
    command = [*verb_options, "--device", "cpu", "--workers", 1]
    into = lambda folder: ["--out", folder] + (["--answers", folder] if verb == "report" else [])
    longest = timed([*command, *into("clean")])
    for count in range(kills):
        struck([*command, *into("struck")], longest)
        if chance.random() < 0.3:
            shutil.rmtree("struck", ignore_errors=True)
    finish([*command, *into("struck")])
    files = sorted(path.relative_to("clean") for path in Path("clean").rglob("*.nc"))
    assert files and files == sorted(path.relative_to("struck") for path in Path("struck").rglob("*.nc"))
    for file in files:
        with xr.open_dataset(Path("clean") / file) as one, xr.open_dataset(Path("struck") / file) as other:
            plain = [data.drop_vars("source").drop_attrs() for data in (one, other)]
            assert plain[0].equals(plain[1]), file
    assert not [p for p in Path("struck").rglob(f"{PARTIAL}*") if p.parent.name in "abc"]

{"train": storm_train, "cache": storm_cache, "run": storm_report, "report": storm_report}[verb]()
print("calm")
"""


def run(script, folder, *arguments):
    """A script behind the common head, in a process of its own that stands in a folder."""
    env = os.environ | {
        "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-W", "ignore", "-c", HEAD + script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("verb", ["train", "cache", "run", "report"])
def test_a_storm_of_kills_loses_nothing(verb, tmp_path):
    done = run(STORM, tmp_path, max(3, KILLS // 4), 1, verb)
    assert done.stdout.strip().endswith("calm"), done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_storm_over_a_sweep_loses_nothing(tmp_path):
    from test_processes import start
    from test_storage import SETTINGS

    from loopprobe.store.checkpoint import load_checkpoint

    lines = [
        f'"{key}" = {value}' for key, value in (setting.split("=") for setting in SETTINGS if "device" not in setting)
    ]
    lines = [line for line in lines if "train.steps" not in line] + ['"train.steps" = 400', '"train.device" = "cpu"']
    Path("grid.toml").write_text("\n".join(["[[grid]]", *lines, '"train.seed" = [0, 1]']) + "\n")

    def sweep(out, seconds=None, number=None):
        run = start("sweep", "grid.toml", "--out", out, "--workers", 2)
        try:
            run.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, number) if number == signal.SIGINT else run.send_signal(number)
            run.communicate(timeout=120)
        return run.returncode

    assert sweep("clean") == 0
    for i in range(max(2, KILLS // 10)):
        sweep("struck", 6 + 2 * i % 9, [signal.SIGINT, signal.SIGTERM, signal.SIGKILL][i % 3])
    assert sweep("struck") == 0
    for folder in Path("clean").iterdir():
        assert load_checkpoint(folder).digest() == load_checkpoint(Path("struck") / folder.name).digest()


CTRL_C = r"""
import transformers
chance = random.Random(int(sys.argv[1]))
Path("grid.toml").write_text('[[grid]]\n"train.device" = "cpu"\n"train.seed" = [0, 1]\n')
Path("long.toml").write_text('section = "R"\ntitle = "t"\nasks = "a"\nprobe = "converge"\n'
                             'checkpoints = ["lr-b20-T10", "lr-b5-T5"]\n[options]\nloops = 5000\nstates = 0\n')
Path("long.txt").write_text("the sum of the two arrays is an array\n" * 40_000)
many, cpu = ["--device", "cpu", "--prompts", 1280], ["--device", "cpu"]
text = ["--ckpt", "hf:raven-docs", "--trust-remote-code", "--text-file", "long.txt", "--prompts", 400, *cpu]
of_tokens = ["--ckpt", "s5-b12-T12", *many]
VERBS = [
    train_command("train.steps=100000"), ["sweep", "grid.toml", "--workers", 2],
    *(["run", "long.toml", "--device", "cpu", "--workers", workers] for workers in (1, 2)),
    ["report", "--device", "cpu", "--workers", 1], ["mask", *many, "--n", "0:31", "--loops", 300],
    ["converge", *many, "--far", 100_000], ["compare", *many, "--baselines", "all"], ["shift", *many, "--loops", 500],
    ["folds", "--ckpt", "tab-digits-iris-wine-b20-T10", *many, "--loops", 300], ["lens", *many], ["align", *many],
    ["decode", *of_tokens], ["attribute", *many, "--loops", 300], ["attention", *many, "--loops", 500],
    ["patch", *many], ["fixed-points", *many], ["exit", *many, "--loops", 1000], ["paths", *many, "--loops", 3000],
    ["extrapolate", *of_tokens], ["recover", *many, "--loops", 200], ["converge", *text, "--loops", 60],
    ["lens", *text], ["mask", *text],
    *[["cache", *cpu, "--prompts", 20, "--loops", "0:3000", "--names", "all"]] * 12,  # whose callbacks catch some
]
for i, arguments in enumerate(VERBS):
    pid, out = fork([*arguments, "--out", f"out-{i}"]), Path(f"out-{i}")
    time.sleep(chance.uniform(0.5, 4))
    stopped = time.monotonic()
    os.kill(-pid, signal.SIGINT)  # as a terminal sends it, to all processes of the command
    while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() - stopped < 60:
        time.sleep(0.01)
    took = time.monotonic() - stopped
    if not ended[0]:
        os.kill(-pid, signal.SIGKILL)
        ended = os.waitpid(pid, 0)
    code, said = os.waitstatus_to_exitcode(ended[1]), Path("log.txt").read_text()
    print(json.dumps([arguments[0], took, code, said]), flush=True)
    Path("log.txt").unlink()
    shutil.rmtree(out, ignore_errors=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_ctrl_c_ends_every_verb_at_once(tmp_path):
    done = run(CTRL_C, tmp_path, 1)
    struck = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(struck) == 36, done.stderr[-2000:]
    for verb, took, code, said in struck:
        assert took < PATIENCE, (verb, took)
        assert code == 130, (verb, code, said)
        assert "loopprobe: interrupted; " in said.splitlines()[-1], (verb, said)
