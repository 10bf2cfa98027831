"""Report of the study: one HTML page with figures, tables and verdicts, and the files findings.md and report.json."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import plotly.graph_objects as go
from markupsafe import Markup

from loopprobe._version import __version__
from loopprobe.probes.dataset import read_stamp, writing
from loopprobe.show.page import figure_html, render, table_parts
from loopprobe.show.present import figures_of, tables_of
from loopprobe.study.claims import verdicts
from loopprobe.study.claims.evidence import R2_CONVERGE, STUDY
from loopprobe.study.decisions import STATUSES, Outcome
from loopprobe.study.forest import forest
from loopprobe.study.methods import methods, stamps, thresholds
from loopprobe.study.saved import Answered
from loopprobe.study.verdicts import Verdict
from loopprobe.types import Progress

OUTCOMES = get_args(Outcome)
GOES_ON = {  # what happens when the loop goes on: of each claim its effect with its interval
    "trained with b > 5 the error stays at its minimum when the loop goes on":
        "When the loop goes on far beyond the b > 5 of its training, a looped transformer's typical error becomes "
        "{0:.3g} times as large (95 %: {1:.3g} to {2:.3g}; of kinds of models {3})",
    "it stays because the state has come to a fixed point":
        "Of the tokens of these models {0:.0%} come to a fixed point or approach one (95 %: {1:.0%} to {2:.0%})",
    "larger b is better":
        "The next larger b multiplies the error after many loops by {0:.3g} (95 %: {1:.3g} to {2:.3g}; of kinds {3})",
    "more layers give a better fixed point":
        "Twice the layers multiply the error after many loops by {0:.3g} (95 %: {1:.3g} to {2:.3g}; of kinds {3})",
}  # fmt: skip


def summarise(decided: Sequence[Verdict]) -> str:
    """Return the report in a paragraph: what happens when the loop goes on, and how the claims ended."""
    effects = {verdict.claim: verdict for verdict in decided if verdict.findings}
    told = [
        f"{words.format(*effects[claim].size, effects[claim].span)}: “{claim}” is {effects[claim].status}."
        for claim, words in GOES_ON.items()
        if claim in effects
    ]
    of_all = f"of all claims ({len(decided)}), {_ended(decided)}"
    if own := [verdict for verdict in decided if verdict.by == STUDY]:
        of_all = f"of the study's claims ({len(own)}), {_ended(own)}; {of_all}"
    return " ".join([*told, f"{of_all[0].upper()}{of_all[1:]}."])


def _ended(decided: Sequence[Verdict]) -> str:
    """Return how many claims ended in which way, in words."""
    counts = {name: sum(verdict.status == name for verdict in decided) for name in OUTCOMES}
    *most, last = (f"{count} {'is' if count == 1 else 'are'} {name}" for name, count in counts.items())
    return f"{', '.join(most)} and {last}"


def write_report(
    answers: Mapping[str, Answered],
    folder: Path,
    sections: Collection[str] = (),
    progress: Callable[[str], Progress] = lambda description: lambda steps: steps,
) -> list[Verdict]:
    """Write index.html, which can be sent by itself, and the verdicts as findings.md and report.json.

    Args:
        answers: the answers by the name of their question.
        folder: the folder to write to; it must exist.
        sections: those whose claims are judged; empty: all.
        progress: see ``questions.answer``.

    Returns:
        The verdicts on the claims of these sections, in the study's order.

    Raises:
        LoopprobeError: a file cannot be written.
    """
    decided = verdicts({name: answered.datasets for name, answered in answers.items()}, sections)
    asked = {name: answered for name, answered in answers.items() if answered.datasets}
    drawn = {
        name: figures_of(a.saved.probe, a.datasets, a.saved.title, a.saved.by)
        for name, a in progress("figures")(asked.items())
    }
    claims = [
        (verdict, _forest(f"claim-{i}", verdict), _forest(f"control-{i}", verdict.control))
        for i, verdict in enumerate(decided)
    ]
    shown = [
        {
            "name": section,
            "title": next(a for a in answers.values() if a.saved.section == section).saved.title.split(":")[0],
            "parts": [_part(n, a, drawn[n]) for n, a in asked.items() if a.saved.section == section],
            "claims": [claim for claim in claims if claim[0].section == section],
        }
        for section in dict.fromkeys(answered.saved.section for answered in answers.values())
    ]
    made = f"Made by loopprobe {__version__}."
    context = {
        "made": made, "summary": summarise(decided), "methods": methods(answers), "thresholds": thresholds(decided),
        "verdicts": decided, "statuses": STATUSES,
        "sections": shown, "lead": _lead(drawn[R2_CONVERGE]["figure"]) if R2_CONVERGE in drawn else None,
    }  # fmt: skip
    record = {
        "made": made,
        "models": {name: stamp.weights for name, stamp in sorted(stamps(answers).items())},
        "verdicts": [_finite(verdict.to_dict()) for verdict in decided],
    }
    texts = {
        "index.html": render("report.html", context, "study"),
        "findings.md": render("findings.md", context, "study"),
        "report.json": json.dumps(record, indent=2) + "\n",
    }
    for name, text in texts.items():
        with writing(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return decided


def _forest(name: str, verdict: Verdict | None) -> Markup | None:
    """Return the forest plot of a claim; None where it has no findings."""
    figure = None if verdict is None else forest(verdict)
    return None if figure is None else figure_html(figure, name)


def _lead(figure: go.Figure) -> Markup:
    """Return the figure of what happens when the loop goes on, for the top of the page."""
    title = "What looped transformers do when the loop goes on"
    return figure_html(go.Figure(figure).update_layout(title_text=title), "lead")


def _part(name: str, answered: Answered, figures: Mapping[str, go.Figure]) -> dict[str, Any]:
    """Return what the template shows of one question."""
    return {
        "name": name,
        "asks": answered.saved.asks,
        "figures": [figure_html(figure, f"{stem}-{name}") for stem, figure in figures.items()],
        "missing": answered.missing,
        "models": [data.model.item() for data in answered.datasets],
        "prompts": read_stamp(answered.datasets[0]).prompts["n_prompts"],
        "tables": [table_parts(table) for table in tables_of(answered.saved.probe, answered.datasets)],
    }


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
