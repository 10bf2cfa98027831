"""Claims of the study, its reference and this project, each a predicate on the answers to saved questions.

A claim reads the datasets of saved questions by name (``claims.evidence.QUESTIONS``) and returns estimates. If its
models do not exist, it has none and is undecided.
"""

from collections.abc import Iterable
from dataclasses import replace

from loopprobe.errors import LoopprobeError
from loopprobe.study.claims import algorithm, circuits, failures, loss, recipe, study, tokens
from loopprobe.study.claims.evidence import CONTROLS, QUESTIONS, Claim, Evidence, MissingQuestionError, answers
from loopprobe.study.estimates import Estimate
from loopprobe.study.verdicts import Verdict, conclude

_PARTS = (study, recipe, algorithm, loss, tokens, failures, circuits)
CLAIMS = sorted((claim for part in _PARTS for claim in part.CLAIMS), key=lambda claim: int(claim[0].removeprefix("R")))
CONTROLLED = [claim for claim in study.CLAIMS if claim[0] <= "R5"]  # what is asked of the study's own recipe too


def verdicts(evidence: Evidence) -> list[Verdict]:
    """Decide every claim on the evidence; without any question of the study, every claim is undecided.

    Raises:
        LoopprobeError: the evidence has some questions of the study, but not all that the claims read.
    """
    asked = any(question in evidence for question in QUESTIONS)
    decided = []
    for claim in CLAIMS:
        verdict = conclude(claim[0], claim[1], _estimates(claim, evidence) if asked else ())
        if claim in CONTROLLED:
            control = _estimates(claim, evidence, of_control=True) if asked else ()
            verdict = replace(verdict, control=conclude(claim[0], claim[1], control))
        decided.append(verdict)
    return decided


def check_questions(names: Iterable[str]) -> None:
    """Check, before any question is asked, that the names include every question that claims read.

    Raises:
        LoopprobeError: a question is missing from the names.
    """
    verdicts(dict.fromkeys(names, ()))


def _estimates(claim: Claim, evidence: Evidence, of_control: bool = False) -> list[Estimate]:
    """Return the estimates of one claim, of our models or of those of the study's own recipe."""
    section, words, decide = claim
    try:
        if of_control:
            evidence = {name: answers(evidence, control) for name, control in CONTROLS.items()}
        return list(decide(evidence))
    except MissingQuestionError as error:
        raise LoopprobeError(
            f"the claim {words!r} ({section}) reads the question {error.args[0]!r}, which is not among "
            f"{', '.join(evidence)}: restore its file, or give it this name again"
        ) from None
