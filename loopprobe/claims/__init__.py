"""The claims of the study, its reference and this project, each as a predicate on the answers of saved questions.

A claim reads the datasets of the saved questions by name (``r4_last_n``) and returns findings; with none, because
its models are not there, it is undecided.
"""

from loopprobe.claims import algorithm, loss, study
from loopprobe.claims.evidence import Evidence
from loopprobe.verdicts import Verdict, conclude

CLAIMS = (*study.CLAIMS, *algorithm.CLAIMS, *loss.CLAIMS)


def verdicts(evidence: Evidence) -> list[Verdict]:
    """Every claim decided on what there is."""
    return [conclude(section, claim, decided(evidence)) for section, claim, decided in CLAIMS]
