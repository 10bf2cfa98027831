"""The report from nothing: how long its answers take on two cores, by one of every kind.

    python benchmarks/report.py           # half an hour on two free cores

The full report answers hundreds of questions in hours. So one answer of every kind (question, task and number of
layers) is timed, two side by side as in a report, and multiplied by how many there are; an answer that several
questions share counts once. What comes before the answers and after them (the claims, figures and the page) is not
in it. The goal is two hours.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from common import table, write

from loopprobe import load_checkpoint
from loopprobe.probes.questions import Prepared, prepare
from loopprobe.probes.registry import PROBES
from loopprobe.store.shipped import names
from loopprobe.study.saved import saved_questions
from loopprobe.support.provenance import provenance

WORKERS = 2


def kinds(quick: bool) -> dict[tuple[Any, ...], list[Prepared]]:
    """The answers of the report, those that take about as long together."""
    load, shipped = functools.cache(load_checkpoint), set(names())
    found: dict[tuple[Any, ...], list[Prepared]] = {}
    seen = set()
    for name, saved in saved_questions().items():
        question = saved.question(quick)
        here = tuple(model for model in question.checkpoints if model in shipped)
        for p in prepare(dataclasses.replace(question, checkpoints=here), "cpu", load):
            if (once := json.dumps(p.asked)) not in seen:
                seen.add(once)
                model, task = p.checkpoint.config.model, p.checkpoint.config.task
                found.setdefault((name, task.name, model.n_layers, model.n_loops > 1), []).append(p)
    return found


def seconds(p: Prepared) -> float:
    """How long one answer takes in this process, which computes with one thread."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    PROBES[p.probe].run(p.checkpoint, p.prompts, p.config, **p.given)
    return time.perf_counter() - started


def measure(quick: bool) -> list[dict[str, Any]]:
    """A row for every question: its answers, and how long they take together."""
    found = kinds(quick)
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:
        timed = list(pool.map(seconds, [several[len(several) // 2] for several in found.values()]))
    rows: dict[str, dict[str, Any]] = {}
    for ((name, *_), several), once in zip(found.items(), timed, strict=True):
        row = rows.setdefault(name, {"question": name, "answers": 0, "timed": 0, "seconds": 0.0})
        row["answers"] += len(several)
        row["timed"] += 1
        row["seconds"] += once * len(several)
    return sorted(rows.values(), key=lambda row: -row["seconds"])


def page(found: dict[str, Any]) -> str:
    """The table of what was measured."""
    parts = []
    for form in ("full", "quick"):
        rows = found[form]
        total = {name: sum(row[name] for row in rows) for name in ("answers", "timed", "seconds")}
        cells = [
            (row["question"], row["answers"], row["timed"], f"{row['seconds'] / 60 / WORKERS:.2f}")
            for row in [*rows, {"question": "all", **total}]
        ]
        parts.append(table((f"{form} report", "answers", "of them timed", "minutes on two cores"), cells))
    return "\n\n".join(parts)


def main() -> None:
    """Measure, show and write."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found: dict[str, Any] = {"machine": provenance("cpu", torch.float32)}
    found |= {form: measure(form == "quick") for form in ("quick", "full")}
    found["machine"]["threads"] = WORKERS
    print(page(found))
    write(__file__, found)


if __name__ == "__main__":
    main()
