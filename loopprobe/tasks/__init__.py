"""Tasks: prompts of labelled examples whose right answer is known."""

from loopprobe.tasks.prompts import Prompts, normal, uniform
from loopprobe.tasks.sampling import held_out, sample

__all__ = ["Prompts", "held_out", "normal", "sample", "uniform"]
