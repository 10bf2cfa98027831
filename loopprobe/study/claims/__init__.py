"""The claims of the study, its reference and this project, each as a predicate on the answers of saved questions.

A claim reads the datasets of the saved questions by name (``claims.evidence.QUESTIONS``) and returns findings; without
findings, because its models are not there, it is undecided.
"""

from collections.abc import Iterable

from loopprobe.errors import LoopprobeError
from loopprobe.study.claims import algorithm, loss, study
from loopprobe.study.claims.evidence import QUESTIONS, Claim, Evidence, MissingQuestionError
from loopprobe.study.verdicts import Finding, Verdict, conclude

CLAIMS = (*study.CLAIMS, *algorithm.CLAIMS, *loss.CLAIMS)


def verdicts(evidence: Evidence) -> list[Verdict]:
    """Decide every claim on the evidence; without any of the study's questions, every claim is undecided.

    Raises:
        LoopprobeError: the evidence has some of the study's questions, but not all that the claims read.
    """
    asked = any(question in evidence for question in QUESTIONS)
    return [conclude(claim[0], claim[1], _findings(claim, evidence) if asked else ()) for claim in CLAIMS]


def check_questions(names: Iterable[str]) -> None:
    """Raise LoopprobeError where claims read a question that is not among the names, before any question is asked."""
    verdicts(dict.fromkeys(names, ()))


def _findings(claim: Claim, evidence: Evidence) -> list[Finding]:
    section, words, decide = claim
    try:
        return list(decide(evidence))
    except MissingQuestionError as error:
        raise LoopprobeError(
            f"the claim {words!r} ({section}) reads the question {error.args[0]!r}, which is not among "
            f"{', '.join(evidence)}: restore its file, or give it this name again"
        ) from None
