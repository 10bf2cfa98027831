"""Batches in several threads: the same results as in one, bit for bit, in their order; errors, hooks and interrupts."""

import dataclasses
import itertools
import threading
import time

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import TINY_CFG, make_model, make_token_model

from loopprobe.probes.questions import configured
from loopprobe.store import evaluate
from loopprobe.store.checkpoint import Checkpoint
from loopprobe.store.subject import PromptSpec
from loopprobe.support.threads import MOST, Parallel, go_on


@pytest.fixture
def threads():
    """Sets how many threads torch has, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_parts_however_long_each_takes():
    def late(part):
        time.sleep(0.02 * (part == 0))
        return part * part

    work = Parallel(late, range(9), 3)
    assert len(work) == 9
    assert list(work) == [part * part for part in range(9)]


def test_parts_are_done_at_the_same_time():
    meeting = threading.Barrier(3, timeout=10)  # three threads must stand here at once
    assert sorted(Parallel(lambda part: meeting.wait(), range(3), 3)) == [0, 1, 2]


@pytest.mark.parametrize(("threads", "parts"), [(1, 4), (4, 1), (0, 3)])
def test_one_thread_or_one_part_needs_no_other_thread(threads, parts):
    here = threading.get_ident()
    assert list(Parallel(lambda part: threading.get_ident(), range(parts), threads)) == [here] * parts


def test_no_more_is_done_ahead_than_there_are_threads_and_one():
    begun = []
    results = iter(Parallel(begun.append, range(50), 2))
    next(results)
    time.sleep(0.05)
    assert len(begun) <= 4
    results.close()


def test_threads_share_those_of_torch_which_has_them_all_again_at_the_end(threads):
    threads(4)
    seen = list(Parallel(lambda part: torch.get_num_threads(), range(6), 2))
    assert seen == [2] * 6
    assert torch.get_num_threads() == 4
    assert Parallel(print, range(100), 64).threads == MOST


def test_an_error_comes_in_its_place_and_the_other_parts_stop(threads):
    threads(2)

    def run(part):
        if part == 1:
            raise ZeroDivisionError("part 1")
        while part == 2:
            go_on()
        return part

    results = iter(Parallel(run, range(9), 3))
    assert next(results) == 0
    with pytest.raises(ZeroDivisionError, match="part 1"):
        next(results)
    assert torch.get_num_threads() == 2


def test_a_run_that_nobody_waits_for_ends_at_its_next_loop(prompts):
    model = make_model()

    def run(n_loops):
        with torch.no_grad():
            return model(*prompts.inputs, n_loops=n_loops, keep_loops=1)

    results = iter(Parallel(run, [1, 10**9, 10**9], 2))
    next(results)
    results.close()  # hours, did the runs not stop


def test_go_on_does_nothing_elsewhere():
    results = iter(Parallel(lambda part: part, range(9), 2))
    next(results)
    results.close()
    go_on()


def _answer(checkpoint, name, options, n_threads):
    torch.set_num_threads(n_threads)
    probe, config = configured(name, options)
    return probe.run(checkpoint, checkpoint.draw(PromptSpec(prompts=20)), config)


OF_POINTS = [
    ("mask", {"n": (0, 2, 6), "loops": 7}),
    ("mask", {"n": (2, 3), "loops": 5, "mode": "last", "fill": "mean"}),
    ("converge", {"loops": 9, "states": 0}),
    ("compare", {"loops": 5}),
    ("shift", {"loops": 5}),
]
OF_TOKENS = [
    ("mask", {"n": (1, 2), "loops": 5}),
    ("converge", {"loops": 9, "states": 0}),
    ("extrapolate", {"lengths": (2, 3)}),
]


@pytest.mark.parametrize(("probe", "options"), OF_POINTS)
def test_probes_answer_the_same_in_several_threads(checkpoint, threads, monkeypatch, probe, options):
    _require_same(checkpoint, monkeypatch, probe, options)


@pytest.mark.parametrize(("probe", "options"), OF_TOKENS)
def test_probes_of_tokens_answer_the_same_in_several_threads(token_checkpoint, threads, monkeypatch, probe, options):
    _require_same(token_checkpoint, monkeypatch, probe, options)


def _require_same(checkpoint, monkeypatch, probe, options):
    monkeypatch.setattr(evaluate, "chunk_size", lambda device: 3)  # seven batches, the last one shorter
    used: set[int] = set()
    run = type(checkpoint.model).step

    def step(self, *args, **kwargs):
        used.add(threading.get_ident())
        return run(self, *args, **kwargs)

    monkeypatch.setattr(type(checkpoint.model), "step", step)
    plain = _answer(checkpoint, probe, options, 1)
    assert used == {threading.get_ident()}
    several = _answer(checkpoint, probe, options, 3)
    assert len(used) > 1
    for data in (plain, several):
        data.attrs = {}
    xr.testing.assert_identical(plain.drop_vars("source"), several.drop_vars("source"))  # which has the time
    checkpoint.model(*checkpoint.draw(PromptSpec(prompts=2)).inputs).sum().backward()  # nothing is left that forbids it


def test_evaluation_is_the_same_in_several_threads(checkpoint, token_checkpoint, threads):
    for one in (checkpoint, token_checkpoint):
        records = []
        for n in (1, 2):
            threads(n)
            records.append(evaluate.evaluate(one, n_prompts=150, far=6))
        assert records[0] == records[1]


def test_batches_of_a_hooked_model_pass_its_hooks_one_after_the_other(checkpoint, threads, monkeypatch):
    monkeypatch.setattr(evaluate, "chunk_size", lambda device: 3)
    threads(3)
    prompts = checkpoint.held_out(8, 0)
    clean = evaluate.query_error(checkpoint.model, prompts)
    seen = []

    def halve(z, hook):
        seen.append((hook.loop(), len(z)))
        return z / 2

    with checkpoint.model.hooks([("hook_z", halve)]):
        assert "threads" not in checkpoint.model.supports
        errors = evaluate.query_error(checkpoint.model, prompts)
    assert seen == list(itertools.product(range(4), [3]))[:4] * 2 + [(loop, 2) for loop in range(4)]
    assert not torch.equal(errors, clean)
    assert "threads" in checkpoint.model.supports


@pytest.mark.parametrize("make", [make_model, make_token_model])
def test_a_hook_of_torch_on_any_part_keeps_a_model_to_one_thread(make):
    model = make()
    assert "threads" in model.supports
    handle = model.blocks[0].mlp.register_forward_hook(lambda *args: None)
    assert "threads" not in model.supports
    handle.remove()
    assert "threads" in model.supports


def test_threads_hold_no_more_answers_than_one_batch_may(checkpoint, threads, monkeypatch):
    threads(4)
    prompts = checkpoint.held_out(200, 0)
    assert evaluate.over_batches(checkpoint.model, prompts, print, 10).threads == 4
    monkeypatch.setattr(evaluate, "NUMBERS", 2 * 10 * evaluate.chunk_size(torch.device("cpu")) * prompts.n_answers)
    assert evaluate.over_batches(checkpoint.model, prompts, print, 10).threads == 2


def test_errors_of_a_run_without_hooks_are_those_of_a_run_with_gradient(checkpoint, threads):
    threads(2)
    prompts = checkpoint.held_out(130, 0)
    errors = evaluate.query_error(checkpoint.model, prompts, 6)
    plain = [batch.errors(checkpoint.model(*batch.inputs, n_loops=6))[..., -1] for batch in prompts.split(64)]
    assert torch.equal(errors, torch.cat(plain, 1).detach())


def test_a_checkpoint_of_another_precision_runs_in_threads(threads):
    one = Checkpoint(dataclasses.replace(TINY_CFG), make_model(torch.float64), name="runs/tiny")
    threads(2)
    several = evaluate.query_error(one.model, one.held_out(130, 0), 6)
    threads(1)
    assert np.array_equal(several.numpy(), evaluate.query_error(one.model, one.held_out(130, 0), 6).numpy())
