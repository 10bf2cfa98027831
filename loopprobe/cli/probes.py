"""Verbs that probe models: mask, converge, compare; run and report for saved questions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loopprobe.cli.options import (
    Common,
    Cpus,
    Device,
    Engine,
    Gpus,
    Loops,
    Png,
    Quick,
    Workers,
    output_folder,
    parse_numbers,
    parse_words,
    pool_of,
    with_common,
)

if TYPE_CHECKING:
    import xarray as xr


@with_common()
def mask(
    mode: Annotated[str, typer.Option(help="Keep the first or the last positions of the state.")] = "first",
    n: Annotated[str, typer.Option("--n", help="How many: 10, or 5,10,20, or 0:31 (both ends), or 0:30:5.")] = "10",
    loops: Annotated[
        str, typer.Option(help="Loop counts to show, such as 10,50; the largest is how far it runs.")
    ] = "50",
    fill: Annotated[
        str, typer.Option(help="What replaces the state: initial, zero, or mean (of the clean run).")
    ] = "initial",
    every_loop: Annotated[bool, typer.Option("--every-loop/--once", help="Mask before every loop, or once.")] = True,
    at: Annotated[
        int | None, typer.Option(help="With --once: mask after this many loops; default: as trained.")
    ] = None,
    unit: Annotated[str, typer.Option(help="What n counts: point (two tokens) or token.")] = "point",
    invert: Annotated[bool, typer.Option("--invert", help="Mask the named positions and keep the others.")] = False,
    *,
    common: Common,
) -> None:
    """Mask the state between loops and see the error."""
    numbers, loop_counts = parse_numbers(n, "--n"), parse_numbers(loops, "--loops")
    options = {
        "mode": mode, "n": tuple(numbers), "loops": max(loop_counts), "unit": unit, "invert": invert, "fill": fill,
        "once": not every_loop, "at": at,
    }  # fmt: skip
    datasets, folder = ask("mask", options, f"mask-{mode}", common)
    from loopprobe.tables import mask_finding, mask_table, show_table

    for data in datasets:
        show_table(mask_table(data, loop_counts if len(loop_counts) > 1 else None))
        print(mask_finding(data))
    write(datasets, folder, common.png)


@with_common()
def converge(
    loops: Annotated[str, typer.Option(help="Loop counts to show; the largest is how far it runs.")] = "500",
    states: Annotated[int, typer.Option(help="Prompts whose states are followed, token by token; 0: none.")] = 32,
    far: Annotated[int, typer.Option(help="Loops after which a state counts as at its end.")] = 2000,
    tolerance: Annotated[float, typer.Option(help="Within which a state or prediction has settled.")] = 1e-3,
    *,
    common: Common,
) -> None:
    """Loop far beyond the training; does the error stay?"""
    loop_counts = parse_numbers(loops, "--loops")
    options = {"loops": max(loop_counts), "states": states, "far": far, "tolerance": tolerance}
    datasets, folder = ask("converge", options, "converge", common)
    from loopprobe.tables import converge_table, limits_table, show_table

    show_table(converge_table(datasets, loop_counts if len(loop_counts) > 1 else None))
    for data in datasets if states else []:
        show_table(limits_table(data))
    write(datasets, folder, common.png)


@with_common()
def compare(
    loops: Loops = None,
    baselines: Annotated[
        str, typer.Option(help="Of least_squares, ridge, lasso, nearest, averaging, tree, boosting, network; or all.")
    ] = "",
    baseline_prompts: Annotated[int, typer.Option(help="Prompts for lasso, tree, boosting and network.")] = 128,
    *,
    common: Common,
) -> None:
    """Compare models by the number of examples."""
    from loopprobe.baselines import BASELINES

    names = tuple(BASELINES) if baselines == "all" else parse_words(baselines)
    options = {"loops": loops, "baselines": names, "baseline_prompts": baseline_prompts}
    datasets, folder = ask("compare", options, "compare", common)
    from loopprobe.tables import compare_table, show_table

    show_table(compare_table(datasets))
    write(datasets, folder, common.png)


@with_common()
def shift(
    shifts: Annotated[
        str, typer.Option(help="Of skewed, subspace, inputs_double, noise, orthants, ...; default: all that apply.")
    ] = "",
    loops: Loops = None,
    *,
    common: Common,
) -> None:
    """Error out of distribution, shift by shift."""
    datasets, folder = ask("shift", {"shifts": parse_words(shifts), "loops": loops}, "shift", common)
    from loopprobe.tables import shift_table, show_table

    show_table(shift_table(datasets))
    write(datasets, folder, common.png)


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
    options = {"loops": loops} | ({"tables": parse_words(tables)} if tables else {})
    datasets, folder = ask("folds", options, "folds", common)
    from loopprobe.tables import folds_table, show_table

    show_table(folds_table(datasets))
    write(datasets, folder, common.png)


def run(
    files: Annotated[list[Path], typer.Argument(help="Saved questions, such as probes/r4_last_n.toml.")],
    quick: Quick = False,
    out: Annotated[Path, typer.Option(help="Folder of the answers, one folder a question; reused.")] = Path("results"),
    png: Png = False,
    device: Device = "auto",
    workers: Workers = None,
    engine: Engine = "local",
    cpus: Cpus = 1,
    gpus: Gpus = 0,
) -> None:
    """Answer saved questions."""
    from loopprobe.figures.style import require_png, write_html, write_png
    from loopprobe.present import figures_of, tables_of
    from loopprobe.progress import track
    from loopprobe.saved import answer_saved, read_saved
    from loopprobe.tables import show_table
    from loopprobe.train import pick_device

    saved = {path.stem: read_saved(path) for path in files}
    where = pick_device("cpu" if engine == "ray" else device)
    if png:
        require_png()
    with pool_of(workers, where, engine, cpus, gpus) as pool:
        answers = answer_saved(saved, out, quick=quick, device=where, progress=track, pool=pool)
    for name, answered in answers.items():
        question, folder = answered.saved, out / name
        if answered.missing:
            print(f"not trained yet, and so left out: {', '.join(answered.missing)}")
        if not answered.datasets:
            continue
        for table in tables_of(question.probe, answered.datasets):
            show_table(table)
        for stem, figure in figures_of(question.probe, answered.datasets, question.title, question.by).items():
            write_html(figure, folder / f"{stem}.html")
            if png:
                write_png(figure, folder / f"{stem}.png")
        for path in sorted(folder.glob("figure*")):
            print(path)


def report(
    questions: Annotated[Path, typer.Option(help="Folder of saved questions.")] = Path("probes"),
    quick: Quick = False,
    out: Annotated[Path, typer.Option(help="Folder of the report; answers in it are reused.")] = Path("report"),
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """Answer all saved questions, and judge the study's claims."""
    from loopprobe.claims import check_questions
    from loopprobe.progress import track
    from loopprobe.report import write_report
    from loopprobe.saved import answer_saved, saved_questions
    from loopprobe.tables import show_table, verdict_table
    from loopprobe.train import pick_device

    saved, where = saved_questions(questions), pick_device(device)
    check_questions(saved)
    data = out / ("data-quick" if quick else "data")
    with pool_of(workers, where) as pool:
        answers = answer_saved(saved, data, quick=quick, device=where, progress=track, pool=pool)
    show_table(verdict_table(write_report(answers, out)))
    for name in ("report.json", "findings.md", "index.html"):
        print(out / name)


def ask(probe: str, options: dict[str, Any], name: str, common: Common) -> tuple[list[xr.Dataset], Path]:
    """Put a probe to checkpoints; everything is checked before the output folder is made, and that before it runs."""
    from loopprobe.checkpoint import DEFAULT
    from loopprobe.config import build
    from loopprobe.figures.style import require_png
    from loopprobe.progress import track
    from loopprobe.questions import Question, answer, prepare
    from loopprobe.train import pick_device

    tree = {"probe": probe, "checkpoints": tuple(common.ckpt or [DEFAULT]), "options": options}
    if common.png:
        require_png()
    question = build(
        Question, tree | {name: getattr(common, name) for name in ("prompts", "seed", "shift", "data", "target")}
    )
    prepared = prepare(question, pick_device(common.device))
    label = prepared[0].checkpoint.label if len(prepared) == 1 else f"{len(prepared)}-models"
    folder = output_folder(f"{name}-{label}", common.out, common.overwrite)
    return list(answer(prepared, track)), folder


def write(datasets: list[xr.Dataset], folder: Path, png: bool) -> None:
    """Write datasets and figures, and say where."""
    from loopprobe.figures.style import write_html, write_png
    from loopprobe.present import figures
    from loopprobe.results import write_dataset

    probe = datasets[0].attrs["probe"]
    for data in datasets:
        write_dataset(data, folder / f"{probe if len(datasets) == 1 else f'{probe}-{data.model.item()}'}.nc")
    for stem, figure in figures(datasets).items():
        write_html(figure, folder / f"{stem}.html")
        if png:
            write_png(figure, folder / f"{stem}.png")
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".nc", ".html", ".png")):
        print(path)


VERBS: dict[str, Callable[..., None]] = {
    "mask": mask,
    "converge": converge,
    "compare": compare,
    "shift": shift,
    "folds": folds,
    "run": run,
    "report": report,
}
