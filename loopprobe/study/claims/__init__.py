"""Claims of the study, its reference and this project, each a predicate on the answers to saved questions.

A claim reads the datasets of saved questions by name (``claims.evidence.QUESTIONS``) and returns estimates. If its
models do not exist, it has none and is undecided.
"""

from collections.abc import Iterable

from loopprobe.errors import LoopprobeError
from loopprobe.study.claims import algorithm, loss, study, tokens
from loopprobe.study.claims.evidence import QUESTIONS, Claim, Evidence, MissingQuestionError
from loopprobe.study.estimates import Estimate
from loopprobe.study.verdicts import Verdict, conclude

CLAIMS = (*study.CLAIMS, *algorithm.CLAIMS, *loss.CLAIMS, *tokens.CLAIMS)


def verdicts(evidence: Evidence) -> list[Verdict]:
    """Decide every claim on the evidence; without any question of the study, every claim is undecided.

    Raises:
        LoopprobeError: the evidence has some questions of the study, but not all that the claims read.
    """
    asked = any(question in evidence for question in QUESTIONS)
    return [conclude(claim[0], claim[1], _estimates(claim, evidence) if asked else ()) for claim in CLAIMS]


def check_questions(names: Iterable[str]) -> None:
    """Check, before any question is asked, that the names include every question that claims read.

    Raises:
        LoopprobeError: a question is missing from the names.
    """
    verdicts(dict.fromkeys(names, ()))


def _estimates(claim: Claim, evidence: Evidence) -> list[Estimate]:
    """Return the estimates of one claim."""
    section, words, decide = claim
    try:
        return list(decide(evidence))
    except MissingQuestionError as error:
        raise LoopprobeError(
            f"the claim {words!r} ({section}) reads the question {error.args[0]!r}, which is not among "
            f"{', '.join(evidence)}: restore its file, or give it this name again"
        ) from None
