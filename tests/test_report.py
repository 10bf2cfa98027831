"""The report on tiny models; and, in a browser, the page as a reader sees it."""

import dataclasses
import json
import os
import shutil
import time
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from browser import browsing
from conftest import TINY, make_model

from loopprobe.cli.options import pool_of
from loopprobe.config.sources import load_config
from loopprobe.errors import LoopprobeError
from loopprobe.probes.dataset import read_dataset
from loopprobe.probes.questions import Question, answer, as_answered, prepare
from loopprobe.store.checkpoint import Checkpoint, load_checkpoint, save
from loopprobe.study.claims import CLAIMS, verdicts
from loopprobe.study.claims.evidence import QUESTIONS
from loopprobe.study.report import summarise, write_report
from loopprobe.study.saved import answer_saved, read_saved, saved_questions
from loopprobe.study.verdicts import conclude
from loopprobe.support.cluster import Processes, threads_of

PROBES = Path(__file__).parents[1] / "probes"
SHAPE = [f"model.{key}={value}" for key, value in TINY.items() if key != "n_loops"] + ["train.dims=3", "train.points=6"]
MODELS = {
    "ordinary": ["model.n_loops=1", "train.loop_window=1"],
    "b2": ["model.n_loops=2", "train.loop_window=2"],
    "b4": ["model.n_loops=4", "train.loop_window=2"],
    "b4-s1": ["model.n_loops=4", "train.loop_window=2", "train.seed=1"],
}


@pytest.fixture
def questions(tmp_path):
    """A saved question of every probe, on tiny models in ./runs."""
    for name, overrides in MODELS.items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        cfg = load_config(overrides=[*SHAPE, *overrides])
        save(Checkpoint(cfg, make_model(torch.float32, n_loops=cfg.model.n_loops)), folder)
        rows = [{"step": s, "loss": 3 / s, "error": 1 / s, "seconds": 0.1 * s} for s in range(10, 200, 10)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "questions"
    folder.mkdir()
    for name, probe, options in (
        ("r1_compare", "compare", ""), ("r2_converge", "converge", "loops = 12\nstates = 0"),
        ("r7_curves", "curves", ""), ("r4_last_n", "mask", 'mode = "last"\nn = [0, 2, 4, 6]\nloops = 8'),
    ):  # fmt: skip
        models = '["b2", "b4", "b4-s1", "not-trained"]' if probe != "compare" else '["ordinary", "b2", "b4"]'
        head = f'section = "{name[:2].upper()}"\ntitle = "{name}"\nasks = "What?"\nprobe = "{probe}"\nprompts = 20\n'
        tail = f"checkpoints = {models}\n[options]\n{options}\n[quick]\nprompts = 5\n"
        (folder / f"{name}.toml").write_text(head + tail)
    for name in set(QUESTIONS) - {path.stem for path in folder.glob("*.toml")}:  # asked, but of no model that is there
        head = f'section = "{name[:2].upper()}"\ntitle = "{name}"\nasks = "What?"\nprobe = "compare"\n'
        (folder / f"{name}.toml").write_text(f'{head}checkpoints = ["not-trained"]\n')
    return folder


def answers(questions, folder="data", **options):
    return answer_saved(saved_questions(questions), Path(folder), **options)


@pytest.mark.slow
def test_answers_ship_for_weights_that_do_not(questions, tmp_path, monkeypatch):
    monkeypatch.setattr("loopprobe.study.shipped.study_folder", lambda: tmp_path / "study")
    whole = answers(questions)["r2_converge"].datasets
    kept = tmp_path / "study" / "answers" / "r2_converge"
    kept.mkdir(parents=True)
    shutil.copy(tmp_path / "data" / "r2_converge" / "b4-s1.nc", kept)
    shutil.copy(tmp_path / "data" / "r2_converge" / "b2.nc", kept / "not-trained.nc")
    shutil.move(tmp_path / "runs" / "b4-s1", tmp_path / "aside")

    def again(**options):
        return answers(questions, "again", **options)["r2_converge"]

    answered = again()
    assert (answered.shipped, answered.missing) == (("b4-s1",), ("not-trained",))
    by_model = {data.model.item(): data for data in answered.datasets}
    xr.testing.assert_identical(by_model["b4-s1"], next(d for d in whole if d.model.item() == "b4-s1"))
    assert again(quick=True).missing == ("b4-s1", "not-trained")  # other prompts were asked
    path = questions / "r2_converge.toml"
    path.write_text(path.read_text().replace("loops = 12", "loops = 10"))
    assert again().missing == ("b4-s1", "not-trained")  # other loops
    path.write_text(path.read_text().replace("loops = 10", "loops = 12").replace('"b4", ', ""))
    assert again().missing == ("b4-s1", "not-trained")  # no model of its kind is here
    shutil.move(tmp_path / "aside", tmp_path / "runs" / "b4-s1")
    assert (again().shipped, again().missing) == ((), ("not-trained",))  # a model that is here is asked itself


def test_a_quick_question_asks_the_first_seeds_of_every_kind(questions):
    path = questions / "r2_converge.toml"
    models = '["b4-s1", "b2", "b4", "runs/b4-s3", "runs/b4-s2", "b4-s2", "b2-s10"]'
    text = path.read_text().replace('["b2", "b4", "b4-s1", "not-trained"]', models)
    path.write_text(f"{text}seeds = 2\n")
    saved = read_saved(path)
    assert saved.question().checkpoints == saved.checkpoints
    assert saved.question(quick=True).checkpoints == ("b4-s1", "b2", "b4", "runs/b4-s3", "runs/b4-s2", "b2-s10")
    for wrong in ("0", "-1", "1.5", '"2"', "true"):
        path.write_text(f"{text}seeds = {wrong}\n")
        with pytest.raises(LoopprobeError, match=r"seeds of a quick run .* must be a whole number from 1 on"):
            read_saved(path).question(quick=True)


def test_a_report_holds_every_question_and_claim(questions, tmp_path):
    decided = write_report(answers(questions), tmp_path)
    assert [verdict.claim for verdict in decided] == [claim.words for claim in CLAIMS]
    page = (tmp_path / "index.html").read_text()
    for part in ("figure-r1_compare", "figure-r2_converge", "figure-r4_last_n", "figure-r7_curves", "not-trained"):
        assert part in page
    drawn = [i for i, verdict in enumerate(decided) if verdict.findings]
    assert drawn
    assert all(f'id="claim-{i}"' in page for i in drawn)
    assert 'id="lead"' in page
    assert "<script src" not in page
    assert '<link rel="stylesheet"' not in page
    record = json.loads((tmp_path / "report.json").read_text())
    assert [verdict["claim"] for verdict in record["verdicts"]] == [claim.words for claim in CLAIMS]
    assert any(verdict["findings"] for verdict in record["verdicts"])
    assert record["models"] == {name: load_checkpoint(tmp_path / "runs" / name).digest() for name in MODELS}
    findings = [finding for verdict in record["verdicts"] for finding in verdict["findings"]]
    for finding in findings:
        one, other = [np.mean(group) for group in [*finding["per_seed"], [0.0]][:2]]
        value = np.exp(one - other) if finding["scale"] == "ratio" else one - other
        assert value == pytest.approx(finding["estimate"])
    text = (tmp_path / "findings.md").read_text()
    assert "4 models of 3 kinds, 1 to 2 seeds a kind, of width 16, on linear regression, trained: 4 by Muon for" in text
    assert "**Prompts.** 20 held-out prompts a model" in text
    assert "Named by the questions and not trained yet: not-trained." in text
    for finding in findings:
        assert f"| {finding['rule']} | {finding['why']} | " in text
    rows = claims_in(tmp_path / "findings.md")
    assert rows == [(verdict.claim, verdict.status) for verdict in decided]


def test_the_summary_counts_the_claims_of_the_study_and_all():
    ours = dataclasses.replace(conclude("R9", "a", ()), by="this project")
    theirs = [dataclasses.replace(conclude("R1", name, ()), by="the study") for name in "bc"]
    nothing = "0 are supported, 0 are mixed, 0 are contradicted and {} undecided"
    both = f"Of the study's claims (2), {nothing.format('2 are')}; of all claims (3), {nothing.format('3 are')}."
    assert summarise([ours, *theirs]) == both
    assert summarise([ours]) == f"Of all claims (1), {nothing.format('1 is')}."


def claims_in(page):
    """The rows of the first table of a page of findings."""
    table = page.read_text().split("\n\n")[4].splitlines()[2:]
    return [tuple(row.split(" | ")[1:4:2]) for row in table]


def test_the_page_of_findings_has_every_claim():
    assert [claim for claim, _ in claims_in(PROBES.parent / "docs" / "findings.md")] == [
        claim.words for claim in CLAIMS
    ]


@pytest.mark.slow
def test_answers_are_reused_until_something_changes(questions, monkeypatch):
    first = answers(questions)
    assert first["r2_converge"].missing == ("not-trained",)

    def asked_nothing(prepared, *rest):
        assert not prepared
        return iter(())

    with monkeypatch.context() as patched:
        patched.setattr("loopprobe.study.saved.as_answered", asked_nothing)
        again = answers(questions)
    assert again["r4_last_n"].datasets[0].identical(first["r4_last_n"].datasets[0])
    changed = make_model(torch.float32, n_loops=4)
    with torch.no_grad():
        changed.W_pos += 1
    save(Checkpoint(load_config(overrides=[*SHAPE, *MODELS["b4"]]), changed), Path("runs/b4"))
    new = answers(questions)
    assert not new["r2_converge"].datasets[1].identical(first["r2_converge"].datasets[1])
    assert new["r2_converge"].datasets[0].identical(first["r2_converge"].datasets[0])
    assert answers(questions, quick=True)["r2_converge"].datasets[0].sizes["example"] == 5


@pytest.mark.slow
def test_what_two_questions_ask_of_a_model_is_answered_once(questions, monkeypatch):
    other = (questions / "r2_converge.toml").read_text().replace('"b2", ', "").replace("R2", "R6")
    (questions / "r6_converge.toml").write_text(other)
    counted = []

    def answered(prepared, *rest):
        counted.extend(p.checkpoint.label for p in prepared if p.probe == "converge")
        return as_answered(prepared, *rest)

    monkeypatch.setattr("loopprobe.study.saved.as_answered", answered)
    first = answers(questions)
    assert counted == ["b2", "b4", "b4-s1"]
    for one, shared in zip(first["r2_converge"].datasets[1:], first["r6_converge"].datasets, strict=True):
        assert one.identical(shared)
    for path in Path("data", "r6_converge").glob("*.nc"):
        assert read_dataset(path).identical(read_dataset(Path("data", "r2_converge", path.name)))
        path.unlink()  # what the other question has need not be computed
    answers(questions)
    assert counted == ["b2", "b4", "b4-s1"]
    assert len(list(Path("data", "r6_converge").glob("*.nc"))) == 2


def test_what_the_study_asks_in_several_sections_it_asks_alike():
    saved = saved_questions()
    asked = {
        (one.section, quick): json.dumps([one.question(quick).options, one.question(quick).prompts], sort_keys=True)
        for quick in (False, True)
        for one in saved.values()
        if one.probe == "converge"
    }
    of_layers = asked.pop(("R6", False))  # of fewer prompts: its models have up to four layers
    assert len(set(asked.values())) == 2
    assert of_layers not in asked.values()


def test_answers_without_what_a_claim_reads_are_told_in_one_line(questions):
    path = questions / "r4_last_n.toml"
    text = path.read_text()
    path.write_text(text.replace("loops = 8", "loops = 3"))  # fewer than b

    def judged():
        return verdicts({name: answered.datasets for name, answered in answers(questions).items()}, ["R4"])

    with pytest.raises(
        LoopprobeError, match=r"the claim '.*' \(R4\) cannot be judged .*: ask r4_last_n with the study"
    ):
        judged()
    path.write_text(text.replace("[0, 2, 4, 6]", "[2]"))  # of one n there is no correlation
    assert [len(verdict.findings) for verdict in judged()] == [0, 0]


@pytest.mark.slow
def test_processes_give_the_same_answers(questions):
    path = questions / "r1_compare.toml"
    path.write_text(path.read_text().replace("[options]", '[options]\nbaselines = ["tree"]\nbaseline_prompts = 2'))
    with Processes(2) as pool:
        there = answers(questions, "there", pool=pool)
        answered = time.monotonic()
    assert time.monotonic() - answered < 60  # baselines leave no process that a worker waits for
    for name, here in answers(questions).items():
        assert [data.model.item() for data in here.datasets] == [data.model.item() for data in there[name].datasets]
        for one, other in zip(here.datasets, there[name].datasets, strict=True):
            xr.testing.assert_allclose(one, other)


@pytest.mark.slow
def test_an_error_in_a_process_ends_the_others(questions, tmp_path):
    (prepared,) = prepare(Question(probe="compare", checkpoints=("runs/b4",), prompts=5))
    broken = dataclasses.replace(prepared, probe="nope")
    before = active_children()  # of other work, such as joblib's
    with pytest.raises(KeyError, match="nope"), Processes(2) as pool:
        list(answer([broken, *[prepared] * 20], pool=pool))
    assert not [child for child in active_children() if child not in before]


@pytest.mark.parametrize(("given", "found"), [(None, min(4, os.cpu_count())), (3, 3), (1, None)])
def test_workers(given, found):
    with pool_of(given, torch.device("cpu")) as pool:
        assert (pool and pool._max_workers) == (None if found == 1 else found)
        assert pool is None or pool.threads == threads_of(found)


def test_bad_numbers_of_workers_get_one_line():
    with pytest.raises(LoopprobeError, match=r"workers \(0\)"):
        pool_of(0, torch.device("cpu"))


def test_bad_questions_get_one_line(questions, tmp_path):
    for text, match in [("section = 3", "no title"), ("[", "not valid TOML"), ('probe = "x"', "no section")]:
        (tmp_path / "q.toml").write_text(text)
        with pytest.raises(LoopprobeError, match=match):
            read_saved(tmp_path / "q.toml")
    path = questions / "r1_compare.toml"
    path.write_text(path.read_text().replace('"compare"', '"nope"'))
    with pytest.raises(LoopprobeError, match="'nope'"):
        read_saved(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoopprobeError, match="no saved questions"):
        saved_questions(tmp_path / "empty")


def test_the_questions_have_the_seven_sections_of_the_study_and_seven_of_their_own():
    saved = saved_questions(PROBES)
    assert list(dict.fromkeys(question.section for question in saved.values())) == [f"R{i}" for i in range(1, 15)]
    assert {claim.section for claim in CLAIMS} == {question.section for question in saved.values()}


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_works_in_a_browser(questions, tmp_path, scheme):
    write_report(answers(questions), tmp_path)
    address = (tmp_path / "index.html").as_uri()
    with browsing(address, scheme=scheme, ready=".legendtoggle") as (page, errors, requests):
        drawn = page.evaluate(
            "() => Object.fromEntries([...document.querySelectorAll('.plotly-graph-div')].map(figure => [figure.id, "
            "figure._fullData.map(trace => [...trace.x].every(Number.isFinite) && trace.y.length > 0)]))"
        )
        asked = ("r1_compare", "r2_converge", "r4_last_n", "r7_curves")
        assert {"lead", *(f"figure-{name}" for name in asked)} <= drawn.keys()
        assert any(name.startswith("claim-") for name in drawn)
        assert all(traces and all(traces) for traces in drawn.values())
        paper = page.evaluate("() => document.querySelector('#lead').layout.paper_bgcolor")
        assert (paper == "#14171b") == (scheme == "dark")
        assert page.locator("#summary tbody tr").count() == len(CLAIMS)
        page.locator(".legendtoggle").first.dispatch_event("mousedown")
        page.locator(".legendtoggle").first.dispatch_event("mouseup")
        page.wait_for_function(
            "() => document.querySelector('.plotly-graph-div').data.some(trace => trace.visible === 'legendonly')"
        )
    assert errors == []
    assert all(url.startswith("file:") for url in requests)


def test_workers_share_the_threads_that_were_asked_for(monkeypatch):
    for asked, workers, threads in (("1", 2, 1), ("8", 2, 4), ("", 1, os.cpu_count()), ("none", 1, os.cpu_count())):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert threads_of(workers) == threads


def test_a_report_of_one_section_asks_what_its_claims_read_and_judges_no_other(questions, command, tmp_path):
    asked = ("--questions", questions, "--quick", "--workers", "1")
    code, out, _ = command("report", *asked, "--section", "R4", "--out", tmp_path / "one")
    assert code == 0
    assert "error grows as n shrinks (last n)" in out
    assert "larger b gives lower loss" not in out
    assert sorted(path.name for path in Path("results/quick").iterdir() if path.is_dir()) == [
        "r4_last_n", "r4_last_n_study",
    ]  # fmt: skip
    rows = claims_in(tmp_path / "one" / "findings.md")
    assert [claim for claim, _ in rows] == [claim.words for claim in CLAIMS if claim.section == "R4"]
    code, _, err = command("report", *asked, "--section", "R44", "--out", tmp_path / "none")
    assert (code, "R44" in err, (tmp_path / "none").exists()) == (2, True, False)
