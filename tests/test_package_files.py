"""The files around the package agree with it: one version in one place, workflows and citation that parse."""

import re
from pathlib import Path

import pytest
import yaml

from loopprobe import __version__

ROOT = Path(__file__).resolve().parents[1]


def parsed(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_the_citation_is_of_this_version_and_licence():
    citation = parsed("CITATION.cff")
    text = (ROOT / "pyproject.toml").read_text()
    assert citation["version"] == __version__
    assert f"version = {{{__version__}}}" in (ROOT / "README.md").read_text()
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f'license = "{citation["license"]}"' in text
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_the_workflow_tries_every_python_that_is_supported():
    jobs = parsed(".github/workflows/ci.yml")["jobs"]
    text = (ROOT / "pyproject.toml").read_text()
    tried = jobs["versions"]["strategy"]["matrix"]["python"]
    assert tried == re.findall(r"Programming Language :: Python :: (3\.\d+)", text)
    assert ".ci/run" in [step.get("run") for step in jobs["everything"]["steps"]]


@pytest.mark.parametrize("hook", parsed(".pre-commit-config.yaml")["repos"][0]["hooks"], ids=lambda hook: hook["id"])
def test_what_is_checked_before_a_commit_is_checked_in_ci(hook):
    command = " ".join(word for word in hook["entry"].split() if word != "--force-exclude")
    assert command in (ROOT / ".ci" / "run").read_text()
