"""Claims of the study, of papers and of this project, each a predicate on the answers to saved questions.

A claim reads the datasets of saved questions by name (``claims.evidence.QUESTIONS``) and returns estimates. If its
models do not exist, it has none and is undecided.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace

from loopprobe.errors import LoopprobeError
from loopprobe.study.claims import algorithm, circuits, failures, layers, loss, recipe, study, tokens
from loopprobe.study.claims.evidence import CONTROLS, QUESTIONS, Claim, Evidence, MissingQuestionError
from loopprobe.study.estimates import Estimate
from loopprobe.study.verdicts import Verdict, conclude

_PARTS = (study, recipe, layers, algorithm, loss, tokens, failures, circuits)
CLAIMS = sorted(
    (claim for part in _PARTS for claim in part.CLAIMS), key=lambda claim: int(claim.section.removeprefix("R"))
)
CONTROLLED = study.CLAIMS  # what is asked of the study's own recipe too


def claims_of(sections: Collection[str] = ()) -> list[Claim]:
    """Return the claims of some sections, such as R5; of none named all.

    Raises:
        LoopprobeError: a section has no claims.
    """
    known = dict.fromkeys(claim.section for claim in CLAIMS)
    if unknown := [section for section in sections if section not in known]:
        raise LoopprobeError(f"section {unknown[0]!r} has no claims: choose from {', '.join(known)}")
    return [claim for claim in CLAIMS if not sections or claim.section in sections]


def verdicts(evidence: Evidence, sections: Collection[str] = ()) -> list[Verdict]:
    """Decide every claim on the evidence; without any question of the study, every claim is undecided.

    Args:
        evidence: the datasets of saved questions, by their names.
        sections: those whose claims are decided; empty: all.

    Raises:
        LoopprobeError: there is no such section, or the evidence has some questions of the study, but not all that the
            claims read.
    """
    asked = any(question in evidence for question in QUESTIONS)
    decided = []
    for claim in claims_of(sections):
        verdict = conclude(claim.section, claim.words, _estimates(claim, evidence) if asked else ())
        if claim in CONTROLLED:
            control = _estimates(claim, evidence, of_control=True) if asked else ()
            verdict = replace(verdict, control=conclude(claim.section, claim.words, control))
        decided.append(replace(verdict, by=claim.by))
    return decided


def check_questions(names: Iterable[str], sections: Collection[str] = ()) -> None:
    """Check, before any question is asked, that the names include every question that claims read.

    Raises:
        LoopprobeError: there is no such section, or a question is missing from the names.
    """
    verdicts(dict.fromkeys(names, ()), sections)


def questions_of(sections: Collection[str]) -> set[str]:
    """Return the names of the questions that the claims of some sections read.

    Raises:
        LoopprobeError: there is no such section.
    """
    controls = [(claim, of_control) for claim in claims_of(sections) for of_control in {False, claim in CONTROLLED}]
    return set().union(*(_read_by(claim, of_control) for claim, of_control in controls))


def _read_by(claim: Claim, of_control: bool) -> list[str]:
    """Return the names of the questions that a claim reads."""
    read: dict[str, tuple[()]] = {}
    while (missing := _missing(claim, read, of_control)) is not None:
        read[missing] = ()
    return list(read)


def _missing(claim: Claim, evidence: Evidence, of_control: bool) -> str | None:
    """Return the name of the first question that a claim reads and the evidence has not."""
    try:
        _decide(claim, evidence, of_control)
    except MissingQuestionError as error:
        return str(error.args[0])
    return None


def _estimates(claim: Claim, evidence: Evidence, of_control: bool = False) -> list[Estimate]:
    """Return the estimates of one claim, of our models or of those of the study's own recipe."""
    try:
        return _decide(claim, evidence, of_control)
    except MissingQuestionError as error:
        raise LoopprobeError(
            f"the claim {claim.words!r} ({claim.section}) reads the question {error.args[0]!r}, which is not among "
            f"{', '.join(evidence)}: restore its file, give it this name again, or name the sections to judge"
        ) from None
    except (AttributeError, LookupError, ValueError) as error:  # of options under which an answer has not what it reads
        raise LoopprobeError(
            f"the claim {claim.words!r} ({claim.section}) cannot be judged by these answers "
            f"({type(error).__name__}: {error}): ask {', '.join(_read_by(claim, of_control))} with the study's "
            "options, or name the sections to judge"
        ) from error


def _decide(claim: Claim, evidence: Evidence, of_control: bool) -> list[Estimate]:
    if not of_control:
        return list(claim.estimates(evidence))
    try:
        return list(
            claim.estimates({name: evidence[control] for name, control in CONTROLS.items() if control in evidence})
        )
    except MissingQuestionError as error:
        raise MissingQuestionError(CONTROLS[error.args[0]]) from None
