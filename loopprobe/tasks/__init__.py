"""Tasks: prompts of labelled examples whose right answer is known, their shifts, corruptions and tables of real data.

Who answers them is told in ``reference`` and ``model``.
"""

from loopprobe.tasks.prompts import Prompts, normal, uniform
from loopprobe.tasks.protocol import PromptBatch
from loopprobe.tasks.sampling import held_out, sample

__all__ = ["PromptBatch", "Prompts", "held_out", "normal", "sample", "uniform"]
