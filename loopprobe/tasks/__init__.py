"""Tasks: prompts of labelled examples with a known right answer, and their shifts, corruptions and tables of real data.

The predictors that answer them are in ``reference`` and ``model``.
"""

from loopprobe.tasks.prompts import Prompts, normal, uniform
from loopprobe.tasks.protocol import PromptBatch
from loopprobe.tasks.sampling import held_out, sample

__all__ = ["PromptBatch", "Prompts", "held_out", "normal", "sample", "uniform"]
