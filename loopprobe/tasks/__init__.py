"""Tasks: prompts of labelled examples, tokens or text with their answers; their shifts, corruptions and real data.

Who answers them is told in ``reference`` and ``model``.
"""

from loopprobe.tasks.interface import Predictor, RegressionTask, TokenTask
from loopprobe.tasks.prompts import Prompts, normal, uniform
from loopprobe.tasks.protocol import PromptBatch
from loopprobe.tasks.registry import register_task
from loopprobe.tasks.regression import FunctionTask
from loopprobe.tasks.sampling import held_out, sample
from loopprobe.tasks.text import TextPrompts
from loopprobe.tasks.token_prompts import TokenPrompts
from loopprobe.tasks.tokens import held_out_tokens, sample_tokens

__all__ = [
    "FunctionTask", "Predictor", "PromptBatch", "Prompts", "RegressionTask", "TextPrompts", "TokenPrompts", "TokenTask",
    "held_out", "held_out_tokens", "normal", "register_task", "sample", "sample_tokens", "uniform",
]  # fmt: skip
