"""Nothing that loopprobe did not write is ever deleted or replaced, and nothing is half written."""

import errno
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, make_model
from safetensors.torch import save_file

from loopprobe.cli import main
from loopprobe.config.sources import load_config
from loopprobe.errors import LoopprobeError
from loopprobe.store.checkpoint import Checkpoint, save
from loopprobe.store.evaluate import evaluate
from loopprobe.store.foreign import to_transformer_lens
from loopprobe.support import storage
from loopprobe.support.storage import MANIFEST, atomic, claim_fresh, claim_new, claim_shared, new_folder, owned

SETTINGS = [
    *(f"model.{key}={value}" for key, value in TINY.items()),
    "train.loop_window=2", "train.dims=3", "train.points=6", "train.steps=6", "train.batch_size=4",
    "train.checkpoint_every=2", "train.log_every=2", "train.warmup_steps=1", "train.device=cpu",
]  # fmt: skip


def train_command(*settings):
    """A command that trains a tiny model, some settings changed."""
    changed = {setting.split("=")[0] for setting in settings}
    kept = [setting for setting in SETTINGS if setting.split("=")[0] not in changed]
    return ["train", *(part for setting in (*kept, *settings) for part in ("--set", setting))]


TRAIN = train_command()


@pytest.fixture
def command(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["loopprobe", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, capsys.readouterr().err

    return call


@pytest.fixture
def tiny():
    folder = Path("models/tiny")
    folder.mkdir(parents=True)
    checkpoint = Checkpoint(load_config(overrides=SETTINGS), make_model(torch.float32))
    checkpoint.evaluation = evaluate(checkpoint, n_prompts=16)
    save(checkpoint, folder)
    save_file(to_transformer_lens(checkpoint.model), "weights.safetensors")
    return folder


def snapshot(folder):
    """Every file below a folder with what is in it, but for what loopprobe keeps for itself."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".loopprobe")
    }  # fmt: skip


VERBS = {
    "train": TRAIN,
    "import": ["import", "weights.safetensors", "--n-heads", 2, "--n-loops", 4],
    "cache": ["cache", "--ckpt", "models/tiny", "--prompts", 2, "--loops", 1, "--device", "cpu"],
    "mask": ["mask", "--ckpt", "models/tiny", "--prompts", 4, "--n", 2, "--loops", 2, "--device", "cpu"],
    "exit": ["exit", "--ckpt", "models/tiny", "--prompts", 4, "--loops", 3, "--device", "cpu"],
    "paths": ["paths", "--ckpt", "models/tiny", "--prompts", 2, "--loops", 130, "--device", "cpu"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_overwriting_takes_what_loopprobe_wrote_and_nothing_else(verb, command, tiny):
    out = Path("mine")
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    (out / "data").mkdir()
    (out / "data/raw.csv").write_text("1,2")
    before = snapshot(out)
    for overwrite in ([], ["--overwrite"]):
        code, line = command(*VERBS[verb], "--out", out, *overwrite)
        assert code == 2
        assert line.count("\n") == 1
        assert snapshot(out) == before
        assert not list(out.glob(".loopprobe*"))
    assert "holds data, which loopprobe did not write" in line
    fresh = Path("fresh/deep")
    assert command(*VERBS[verb], "--out", fresh)[0] == 0
    assert command(*VERBS[verb], "--out", fresh)[0] == 2
    assert command(*VERBS[verb], "--out", fresh, "--overwrite")[0] == 0  # its own work may go
    (fresh / "notes.md").write_text("what I saw")
    before = snapshot(fresh)
    code, line = command(*VERBS[verb], "--out", fresh, "--overwrite")
    assert code == 2
    assert "holds notes.md, which loopprobe did not write" in line
    assert snapshot(fresh) == before


def test_what_the_manifest_lists_is_what_was_written(command, tiny):
    assert command(*VERBS["mask"], "--out", "out")[0] == 0
    files = {path.name for path in Path("out").iterdir() if not path.name.startswith(".")}
    assert files
    assert owned(Path("out")) == files
    assert command(*TRAIN, "--out", "run")[0] == 0
    assert owned(Path("run")) == {"config.json", "metrics.jsonl", "model.safetensors", "state.safetensors"}


def test_a_run_older_than_manifests_may_be_overwritten_and_evaluated(command, tiny):
    assert not (tiny / MANIFEST).exists()
    assert command("evaluate", tiny, "--prompts", 8, "--far", 6, "--device", "cpu")[0] == 0
    assert command(*TRAIN, "--out", tiny, "--overwrite")[0] == 0
    other = Path("models/other")
    other.mkdir()
    (other / "config.json").write_text('{"mine": true}')
    assert command(*TRAIN, "--out", other, "--overwrite")[0] == 2
    assert (other / "config.json").read_text() == '{"mine": true}'


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}', "null", "[" * 100_000])
def test_a_damaged_manifest_lists_nothing(content):
    folder = new_folder(Path("out"))
    (folder / MANIFEST).write_text(content)
    (folder / "a.txt").write_text("a")
    with pytest.raises(LoopprobeError, match=r"a\.txt, which loopprobe did not write"):
        new_folder(folder, overwrite=True)
    assert (folder / "a.txt").read_text() == "a"


def test_links_are_not_followed_when_things_are_deleted(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/kept.txt").write_text("kept")
    folder = new_folder(tmp_path / "out")
    (folder / "wandb").symlink_to(tmp_path / "elsewhere")
    (folder / "model.nc").symlink_to(tmp_path / "elsewhere/kept.txt")
    storage.claim(folder, "wandb", "model.nc")
    new_folder(folder, overwrite=True)
    assert (tmp_path / "elsewhere/kept.txt").read_text() == "kept"
    assert not list(folder.glob("[!.]*"))
    (tmp_path / "link").symlink_to(folder)
    (folder / "b.txt").write_text("b")
    with pytest.raises(LoopprobeError, match=r"b\.txt"):
        new_folder(tmp_path / "link", overwrite=True)


@pytest.mark.parametrize("verb", ["report", "run"])
def test_a_file_of_the_user_is_not_replaced_where_a_folder_is_used_again(verb, command, tiny):
    question = (
        'section = "R"\ntitle = "t"\nasks = "a"\nprobe = "exit"\ncheckpoints = ["models/tiny"]\nprompts = 4\n'
        "options = { loops = 3 }\n"
    )
    Path("questions").mkdir()
    Path("questions/q.toml").write_text(question)
    name = Path("out/index.html" if verb == "report" else "out/q/tiny.nc")
    name.parent.mkdir(parents=True)
    name.write_text("mine")
    options = ["--questions", "questions"] if verb == "report" else ["questions/q.toml"]
    code, line = command(verb, *options, "--out", "out", "--device", "cpu", "--workers", 1)
    assert code == 2
    assert f"{name} is there and loopprobe did not write it" in line
    assert name.read_text() == "mine"
    assert len(list(Path("out").rglob("*.*"))) == 1


def test_atomic_writes_leave_nothing_behind_whatever_happens(tmp_path):
    folder = new_folder(tmp_path / "out")

    def write(reason):
        with atomic(folder / "a.txt") as partial:
            partial.write_text("half")
            raise reason

    for reason in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(reason):
            write(reason)
    assert not list(folder.glob("[!.]*"))
    assert {path.name for path in folder.iterdir()} <= {MANIFEST, storage.LOCK}
    with atomic(folder / "a.txt") as partial:
        partial.write_text("whole")
    assert (folder / "a.txt").read_text() == "whole"
    (folder / "b.txt").write_text("the user's")
    with pytest.raises(LoopprobeError, match=r"b\.txt is there"), atomic(folder / "b.txt") as partial:
        partial.write_text("ours")
    assert (folder / "b.txt").read_text() == "the user's"
    with atomic(tmp_path / "free.txt") as partial:  # a folder without a manifest is nobody's: as asked
        partial.write_text("1")


def test_what_killed_writers_left_goes_at_the_next_start_and_nothing_else(tmp_path):
    folder = new_folder(tmp_path / "out")
    left = folder / f"{storage.PARTIAL}abc"
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    (folder / ".tmpXYZ").write_text("somebody's")
    claim_shared(folder).release()
    assert not left.exists()
    assert (folder / ".tmpXYZ").exists()


@pytest.mark.parametrize("verb", ["mask", "train", "cache", "import"])
def test_a_full_disk_is_one_line_and_leaves_nothing_torn(verb, command, tiny, monkeypatch):
    real = os.fsync

    def full(descriptor):
        if "out" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    code, line = command(*VERBS[verb], "--out", "out")
    assert (code, line.count("\n")) == (2, 1)
    assert "No space left on device" in line
    assert not [path for path in Path("out").rglob("*") if not path.name.startswith(".loopprobe")]


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/out", "/dev/null/x"])
def test_places_that_cannot_be_written_are_one_line(place, command, tiny):
    Path("file").write_text("mine")
    for verb in ("mask", "train", "cache"):
        code, line = command(*VERBS[verb], "--out", place)
        assert (code, line.count("\n")) == (2, 1), line
    assert Path("file").read_text() == "mine"


def test_a_fresh_folder_is_a_new_one_each_time():
    folders = [claim_fresh(Path("results"), "mask") for _ in range(3)]
    assert [claimed.path.name for claimed in folders] == ["mask", "mask-2", "mask-3"]


def test_one_at_a_time_in_a_folder(tmp_path):
    first = claim_new(tmp_path / "out")
    with pytest.raises(LoopprobeError, match=rf"in use by process {os.getpid()} on "):
        claim_shared(tmp_path / "out")
    with pytest.raises(LoopprobeError, match="in use"):
        claim_new(tmp_path / "out", overwrite=True)
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["process"]["pid"] == os.getpid()
    first.release()
    claim_shared(tmp_path / "out").release()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_refused_while_another_works_in_its_folder(verb, command, tiny):
    claimed = claim_new(Path("busy"))
    code, line = command(*VERBS[verb], "--out", "busy", "--overwrite")
    assert (code, line.count("\n")) == (2, 1)
    assert f"in use by process {os.getpid()} on " in line
    claimed.release()
    assert command(*VERBS[verb], "--out", "busy", "--overwrite")[0] == 0


def test_answers_are_not_written_where_another_writes_them(command, tiny):
    question = 'section = "R"\ntitle = "t"\nasks = "a"\nprobe = "exit"\ncheckpoints = ["models/tiny"]\nprompts = 4\n'
    Path("one.toml").write_text(question + "[options]\nloops = 4\n")
    run = ["run", "one.toml", "--out", "answers", "--workers", 1, "--device", "cpu"]
    assert command(*run)[0] == 0
    claimed = claim_shared(Path("answers/one"))
    code, line = command(*run)
    assert (code, line.count("\n")) == (2, 1)
    assert "in use by process" in line
    claimed.release()
