"""Verbs that probe models: mask, converge, compare, shift, folds; run and report for saved questions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loopprobe.cli.options import (
    SHIFTS,
    Common,
    Cpus,
    Device,
    Engine,
    Gpus,
    Loops,
    Measure,
    OwnTask,
    Png,
    Quick,
    Workers,
    output_folder,
    pool_of,
    question_files,
    register,
    with_common,
)
from loopprobe.cli.output import say
from loopprobe.cli.parsing import at_least, one_of, parse_numbers, parse_words
from loopprobe.errors import LoopprobeError
from loopprobe.study.shipped import study_folder, toml_files
from loopprobe.support.extras import require_extra

if TYPE_CHECKING:
    import xarray as xr

    from loopprobe.show.group import Group


@with_common()
def mask(
    mode: Annotated[
        list[str] | None,
        typer.Option(
            help="Keep the first (default) or the last positions of the state, or first,last to compare them."
        ),
    ] = None,
    n: Annotated[str, typer.Option("--n", help="How many: 10, or 5,10,20, or 0:31 (both ends), or 0:30:5.")] = "10",
    loops: Annotated[
        str, typer.Option(help="Show the error after so many loops, such as 10,50; the largest is how far it runs.")
    ] = "50",
    fill: Annotated[
        str,
        typer.Option(help="What replaces the state: initial, zero, or mean (over these prompts, in the clean run)."),
    ] = "initial",
    every_loop: Annotated[bool, typer.Option("--every-loop/--once", help="Mask before every loop, or once.")] = True,
    at: Annotated[
        int | None, typer.Option(help="With --once: mask after this many loops; default: as many as in training.")
    ] = None,
    unit: Annotated[str, typer.Option(help="What n counts: point (two tokens) or token.")] = "point",
    invert: Annotated[bool, typer.Option("--invert", help="Mask the named positions and keep the others.")] = False,
    measure: Measure = "error",
    *,
    common: Common,
) -> None:
    """Mask the state between loops and see the error.

    The query is the last point: its own state is masked wherever the first n points are kept and n is not all.
    """
    modes = [one_of(word, ("first", "last"), "mode") for text in mode or ["first"] for word in parse_words(text)]
    if not modes or len(set(modes)) < len(modes):
        raise LoopprobeError(f"mode ({','.join(mode or [])!r}) must be first, last, or first,last: give each once")
    numbers, loop_counts = parse_numbers(n, "--n"), parse_numbers(loops, "--loops")
    at_least(loop_counts[0], 1, "loops")
    options = {
        "n": tuple(numbers), "loops": max(loop_counts), "unit": one_of(unit, ("point", "token"), "unit"),
        "invert": invert, "fill": one_of(fill, ("initial", "zero", "mean"), "fill"), "once": not every_loop, "at": at,
        "measure": measure,
    }  # fmt: skip
    at_least(at, 0, "at")
    if at is not None and every_loop:
        raise LoopprobeError(f"at ({at}) goes with once: add --once or drop --at")
    variants = {one: options | {"mode": one} for one in sorted(modes)}
    asked = loop_counts if len(loop_counts) > 1 else None
    show(*ask("mask", variants, f"mask-{'-'.join(sorted(modes))}", common, asked), common.png)


@with_common()
def converge(
    loops: Annotated[
        str, typer.Option(help="Show the error after so many loops, such as 20,500; the largest is how far it runs.")
    ] = "500",
    states: Annotated[int, typer.Option(help="Prompts whose states are followed, token by token; 0: none.")] = 32,
    far: Annotated[int, typer.Option(help="Loops after which a state counts as at its end.")] = 2000,
    tolerance: Annotated[float, typer.Option(help="Within which a state or prediction has settled.")] = 1e-3,
    *,
    common: Common,
) -> None:
    """Loop far beyond the training; does the error stay?"""
    loop_counts = parse_numbers(loops, "--loops")
    at_least(loop_counts[0], 1, "loops")
    at_least(states, 0, "states")
    options = {"loops": max(loop_counts), "states": states, "far": far, "tolerance": tolerance}
    asked = loop_counts if len(loop_counts) > 1 else None
    show(*ask("converge", options, "converge", common, asked), common.png)


@with_common()
def compare(
    loops: Loops = None,
    baselines: Annotated[
        str,
        typer.Option(
            help="Of least_squares, ridge, lasso, nearest, averaging, tree, boosting, network; or all that fit."
        ),
    ] = "",
    baseline_prompts: Annotated[int, typer.Option(help="Prompts for lasso, tree, boosting and network.")] = 128,
    *,
    common: Common,
) -> None:
    """Compare models by the number of examples."""
    at_least(loops, 1, "loops")
    at_least(baseline_prompts, 1, "baseline_prompts")
    options = {"loops": loops, "baselines": parse_words(baselines), "baseline_prompts": baseline_prompts}
    show(*ask("compare", options, "compare", common), common.png)


@with_common()
def shift(
    shifts: Annotated[str, typer.Option(help=f"Of {SHIFTS}; default: all that apply.")] = "",
    loops: Loops = None,
    *,
    common: Common,
) -> None:
    """Error out of distribution, shift by shift."""
    at_least(loops, 1, "loops")
    show(*ask("shift", {"shifts": parse_words(shifts), "loops": loops}, "shift", common), common.png)


@with_common()
def folds(
    tables: Annotated[
        str, typer.Option(help="Tables with classes: paths, or names; default: all that are bundled.")
    ] = "",
    loops: Loops = None,
    *,
    common: Common,
) -> None:
    """Accuracy on tables, trained on and left out."""
    at_least(loops, 1, "loops")
    options = {"loops": loops} | ({"tables": parse_words(tables)} if tables else {})
    show(*ask("folds", options, "folds", common), common.png)


ANSWERS = "Folder of the answers to saved questions, those of --quick in quick/; reused by run and report."


def run(
    questions: Annotated[
        list[str], typer.Argument(help="Saved questions: names such as r4_last_n, or TOML files of your own.")
    ],
    quick: Quick = False,
    out: Annotated[Path, typer.Option(help=f"{ANSWERS} Figures go there too.")] = Path("results"),
    png: Png = False,
    device: Device = "auto",
    workers: Workers = None,
    engine: Engine = "local",
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    task: OwnTask = None,
) -> None:
    """Answer saved questions."""
    files = question_files(questions)
    register(task)
    if png:
        require_extra("kaleido", "png", "PNG")
    from loopprobe.show.figures.pages import require_png, write_figures
    from loopprobe.show.present import figures_of, tables_of
    from loopprobe.study.saved import answer_saved, read_saved
    from loopprobe.support.device import pick_device
    from loopprobe.support.progress import track

    saved = {name: read_saved(path) for name, path in files.items()}
    where = pick_device("cpu" if engine == "ray" else device)
    if png:
        require_png()
    out = out / "quick" if quick else out
    with pool_of(workers, where, engine, cpus, gpus) as pool:
        answers = answer_saved(saved, out, quick=quick, device=where, progress=track, pool=pool)
    for name, answered in answers.items():
        question, folder = answered.saved, out / name
        if answered.missing:
            say(sentences=[f"not trained yet, and so left out: {', '.join(answered.missing)}"])
        if not answered.datasets:
            continue
        made = figures_of(question.probe, answered.datasets, question.title, question.by)
        paths = write_figures(made, folder, png=png, progress=track(f"figures of {name}"))
        say(tables_of(question.probe, answered.datasets), files=sorted(paths))


def report(
    questions: Annotated[
        Path | None, typer.Option(help="Folder of saved questions of your own; default: the study's.")
    ] = None,
    section: Annotated[
        list[str] | None,
        typer.Option(help="Judge the claims of this section alone, such as R5, and ask what they read. Repeatable."),
    ] = None,
    quick: Quick = False,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("report"),
    answers: Annotated[Path, typer.Option(help=ANSWERS)] = Path("results"),
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """Answer all saved questions, and judge the study's claims."""
    toml_files(questions or study_folder())
    from loopprobe.study.claims import check_questions, questions_of
    from loopprobe.study.report import write_report
    from loopprobe.study.saved import answer_saved, saved_questions
    from loopprobe.study.verdicts import verdict_table
    from loopprobe.support.device import pick_device
    from loopprobe.support.progress import track
    from loopprobe.support.storage import claim_shared, hold

    saved, where, sections = saved_questions(questions), pick_device(device), section or ()
    check_questions(saved, sections)
    if sections:
        read = questions_of(sections)
        saved = {name: one for name, one in saved.items() if name in read or one.section in sections}
    hold(claim_shared(out, "index.html", "findings.md", "report.json"))
    data = answers / "quick" if quick else answers
    with pool_of(workers, where) as pool:
        answered = answer_saved(saved, data, quick=quick, device=where, progress=track, pool=pool)
    files = [out / name for name in ("report.json", "findings.md", "index.html")]
    say([verdict_table(write_report(answered, out, sections, track))], files=files)


def ask(
    probe: str, options: dict[str, Any], name: str, common: Common, loops: list[int] | None = None
) -> tuple[list[xr.Dataset], Path]:
    """Run a probe on checkpoints and write each dataset as soon as it is there.

    Everything is checked before the output folder is made, and that before the probe runs.

    Args:
        probe: its name.
        options: fields of its configuration; or several sets of them, by a word that tells their datasets apart.
        name: of the output folder, with the label of the model after it.
        common: the options of all such verbs.
        loops: loop counts that tables and figures show, which the datasets note as ``shown_loops``; None: some.

    Returns:
        The datasets, the variants of a checkpoint beside one another, and the folder that holds them.

    Raises:
        LoopprobeError: an option, a checkpoint or the output folder is not what it must be.
    """
    if common.png:
        require_extra("kaleido", "png", "PNG")  # before what takes seconds to import
    from loopprobe.config.strict import build
    from loopprobe.probes.dataset import write_dataset
    from loopprobe.probes.questions import Question, answer, prepare
    from loopprobe.show.figures.pages import require_png
    from loopprobe.store.checkpoint import load_checkpoint
    from loopprobe.support.device import pick_device
    from loopprobe.support.progress import track
    from loopprobe.support.storage import discard_empty

    if common.png:
        require_png()
    variants = options if options and all(isinstance(value, dict) for value in options.values()) else {"": options}
    load, device = functools.cache(load_checkpoint), pick_device(common.device)
    tree = {"probe": probe} | common.question()
    by_variant = [prepare(build(Question, tree | {"options": fields}), device, load) for fields in variants.values()]
    prepared = [p for of_checkpoint in zip(*by_variant, strict=True) for p in of_checkpoint]
    models = len(by_variant[0])  # and lengths of texts
    label = prepared[0].checkpoint.label if models == 1 else f"{models}-models"
    if models > 1 and len({p.checkpoint.name for p in prepared}) == 1:
        label = f"{dataclasses.replace(prepared[0].checkpoint, alias=None).label}-{models}-lengths"
    folder = output_folder(f"{name}-{label}", common.out, common.overwrite)
    words = [word if len(variants) > 1 else "" for _ in range(models) for word in variants]
    datasets = []
    try:
        for p, word, data in zip(prepared, words, answer(prepared, track), strict=True):
            stem = "-".join(part for part in (probe, p.checkpoint.label if models > 1 else "", word) if part)
            data.attrs |= {} if loops is None else {"shown_loops": loops}
            write_dataset(data, folder / f"{stem}.nc")
            datasets.append(data)
    finally:
        if not datasets:
            discard_empty(folder)
    return datasets, folder


def show(datasets: list[xr.Dataset] | Group, folder: Path, png: bool) -> None:
    """Print the tables of datasets, write their paired differences and figures beside them, and say where.

    Args:
        datasets: of one probe.
        folder: that holds them.
        png: write the figures as PNG too.
    """
    from loopprobe.probes.dataset import write_dataset
    from loopprobe.show.figures.pages import write_figures
    from loopprobe.show.group import grouped
    from loopprobe.show.present import differences_of, figures, findings, tables_for
    from loopprobe.support.progress import track

    group = grouped(datasets)  # once, with its differences
    for stem, data in differences_of(group).items():
        write_dataset(data, folder / f"{stem}.nc")
    say(tables_for(group), findings(group))
    write_figures(figures(group), folder, png=png, progress=track("figures"))
    say(files=sorted(path for path in folder.iterdir() if path.suffix in (".nc", ".html", ".png")))


VERBS: dict[str, Callable[..., None]] = {
    "mask": mask,
    "converge": converge,
    "compare": compare,
    "shift": shift,
    "folds": folds,
    "run": run,
    "report": report,
}
