"""Models whose weights are left out of the package: fetched from a folder or an address, and held to their SHA-256."""

import functools
import hashlib
import http.server
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from loopprobe.config.model import ModelConfig
from loopprobe.errors import LoopprobeError
from loopprobe.probes import curves
from loopprobe.store import checkpoint as cp
from loopprobe.store import language, shipped

ROOT = Path(__file__).resolve().parents[1]
NAME = "lr-b5-T5"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with the configurations of two models and without their weights and histories; its registry."""
    folder, registry = tmp_path / "site" / "_checkpoints", {}
    for path in [f"{NAME}/config.json", "hub/raven-docs/config.json"]:
        (folder / path).parent.mkdir(parents=True)
        shutil.copy(ROOT / "checkpoints" / path, folder / path)
    left_out = [Path(NAME, "model.safetensors"), Path(NAME, "metrics.jsonl")]
    left_out += [Path("hub/raven-docs", one) for one in ("config.json", "README.md")]
    for path in left_out:
        registry[path.as_posix()] = hashlib.sha256((ROOT / "checkpoints" / path).read_bytes()).hexdigest()
    registry["hub/raven-docs/model.safetensors"] = "0" * 64
    (folder / "registry.json").write_text(json.dumps(registry))
    monkeypatch.setattr(shipped, "shipped_folder", lambda: folder)
    monkeypatch.setenv("LOOPPROBE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LOOPPROBE_CHECKPOINTS", raising=False)
    return folder


@pytest.fixture
def served():
    """The address at which the clone's checkpoints are served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(ROOT / "checkpoints"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def digest_of_the_clone():
    return cp._read_checkpoint(ROOT / "checkpoints" / NAME, "cpu").digest()


def test_a_clone_has_every_file_itself():
    assert not (ROOT / "checkpoints" / "registry.json").exists()
    path = ROOT / "checkpoints" / NAME / "model.safetensors"
    assert shipped.whole_file(path) == path
    hub = ROOT / "checkpoints" / "hub" / "raven-docs"
    assert shipped.whole_folder(hub) == hub


def test_weights_are_read_from_the_folder_that_is_named(package, monkeypatch):
    with pytest.raises(
        LoopprobeError, match=rf"^{NAME}/model.safetensors is not in this package.*LOOPPROBE_CHECKPOINTS"
    ):
        cp.load_checkpoint(NAME)
    monkeypatch.setenv("LOOPPROBE_CHECKPOINTS", str(ROOT / "checkpoints"))
    assert cp.load_checkpoint(NAME).digest() == digest_of_the_clone()


def test_weights_are_fetched_once_and_then_found(package, served, monkeypatch, tmp_path):
    monkeypatch.setenv("LOOPPROBE_CHECKPOINTS", served + "/")
    assert cp.load_checkpoint(NAME).digest() == digest_of_the_clone()
    assert (tmp_path / "cache" / NAME / "model.safetensors").is_file()
    monkeypatch.delenv("LOOPPROBE_CHECKPOINTS")
    assert cp.load_checkpoint(NAME).digest() == digest_of_the_clone()


def test_a_history_is_fetched_as_the_weights_are(package, monkeypatch, prompts):
    known = [json.loads(line) for line in (ROOT / "checkpoints" / NAME / "metrics.jsonl").read_text().splitlines()]
    monkeypatch.setenv("LOOPPROBE_CHECKPOINTS", str(ROOT / "checkpoints"))
    checkpoint = cp.load_checkpoint(NAME)
    data = curves.run(checkpoint, prompts, curves.CurvesConfig())
    assert data["loss"].values.tolist() == [row["loss"] for row in known]
    monkeypatch.delenv("LOOPPROBE_CHECKPOINTS")
    with pytest.raises(LoopprobeError, match=rf"^{NAME}/metrics.jsonl is not in this package.*LOOPPROBE_CHECKPOINTS"):
        curves.check(checkpoint, curves.CurvesConfig(), prompts)


@pytest.mark.parametrize("how", ["folder", "address", "cache"])
def test_other_weights_than_the_package_knows_are_refused(package, served, monkeypatch, tmp_path, how):
    registry = json.loads((package / "registry.json").read_text())
    registry[f"{NAME}/model.safetensors"] = "1" * 64
    (package / "registry.json").write_text(json.dumps(registry))
    if how == "cache":
        (tmp_path / "cache" / NAME).mkdir(parents=True)
        shutil.copy(ROOT / "checkpoints" / NAME / "model.safetensors", tmp_path / "cache" / NAME)
    else:
        monkeypatch.setenv("LOOPPROBE_CHECKPOINTS", served if how == "address" else str(ROOT / "checkpoints"))
    with pytest.raises(LoopprobeError, match=f"^{NAME}/model.safetensors .*LOOPPROBE_CHECKPOINTS") as raised:
        cp.load_checkpoint(NAME)
    assert "\n" not in str(raised.value)
    if how == "address":
        assert not (tmp_path / "cache" / NAME / "model.safetensors").exists()


def test_an_address_that_nobody_serves_is_told_in_one_line(package, served, monkeypatch):
    monkeypatch.setenv("LOOPPROBE_CHECKPOINTS", served + "/elsewhere")
    with pytest.raises(LoopprobeError, match=r"^lr-b5-T5/model.safetensors cannot be fetched .*404") as raised:
        cp.load_checkpoint(NAME)
    assert "\n" not in str(raised.value)


def test_a_language_model_is_fetched_with_all_its_files(package, served, monkeypatch, tmp_path):
    monkeypatch.setenv("LOOPPROBE_CHECKPOINTS", served)
    with pytest.raises(LoopprobeError, match=r"^hub/raven-docs/model.safetensors cannot be fetched"):
        language.source_of("hf:raven-docs")  # the registry knows another one
    registry = json.loads((package / "registry.json").read_text())
    del registry["hub/raven-docs/model.safetensors"]
    (package / "registry.json").write_text(json.dumps(registry))
    assert language.source_of("hf:raven-docs") == (str(tmp_path / "cache" / "hub" / "raven-docs"), None)
    fetched = {path.name for path in (tmp_path / "cache" / "hub" / "raven-docs").iterdir()}
    assert fetched == {"config.json", "README.md"}


def test_a_file_of_another_place_is_left_to_its_reader(package, tmp_path):
    path = tmp_path / "own" / "model.safetensors"
    assert shipped.whole_file(path) == path
    shutil.copytree(package / NAME, tmp_path / "own")
    with pytest.raises(LoopprobeError, match=r"model.safetensors is missing: restore it"):
        cp.load_checkpoint(tmp_path / "own")


@pytest.mark.slow
def test_an_installed_package_has_its_models_and_questions(tmp_path, monkeypatch):
    def run(*command):
        return subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True).stdout

    def python(code):
        return run(sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, 'site'); {code}")

    monkeypatch.setenv("LOOPPROBE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LOOPPROBE_CHECKPOINTS", raising=False)
    run(sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT))  # the wheel is built from the sdist
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    assert wheel.stat().st_size < 4.5e6
    assert sdist.stat().st_size < 8e6
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel))
    place, loops = python("import loopprobe as l; print(l.__file__, l.load().cfg.n_loops)").split()
    assert place.startswith(str(tmp_path))
    assert loops == str(ModelConfig().n_loops)
    installed = tmp_path / "site" / "loopprobe"
    assert {path.name for path in (installed / "_questions").iterdir()} == {
        path.name for path in (ROOT / "probes").glob("*.toml")
    }
    listed = python("import loopprobe.store.shipped as s; print(*s.names())").split()
    assert listed == sorted(path.parent.name for path in (ROOT / "checkpoints").glob("*/config.json"))
    # what is not there is in the registry, and read from a clone
    package = installed / "_checkpoints"
    registry = json.loads((package / "registry.json").read_text())
    there = {path.relative_to(ROOT / "checkpoints").as_posix() for path in (ROOT / "checkpoints").rglob("*.*")}
    has = {
        path.relative_to(installed / "_checkpoints").as_posix() for path in (installed / "_checkpoints").rglob("*.*")
    }
    assert there == (has | registry.keys()) - {"registry.json"}
    with pytest.raises(subprocess.CalledProcessError) as raised:
        python("import loopprobe as l; l.load_checkpoint('lr-L12')")
    assert "lr-L12/model.safetensors is not in this package" in raised.value.stderr
    monkeypatch.setenv("LOOPPROBE_CHECKPOINTS", str(ROOT / "checkpoints"))
    known = cp.load_checkpoint(ROOT / "checkpoints" / "lr-L12").digest()
    assert python("import loopprobe as l; print(l.load_checkpoint('lr-L12').digest())").strip() == known
    assert int(python("import loopprobe as l; print(l.load('hf:raven-docs', trust_remote_code=True).sizes.n_layers)"))
