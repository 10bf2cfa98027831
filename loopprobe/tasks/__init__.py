"""Tasks: prompts of labelled examples, tokens or text with their answers; their shifts, corruptions and real data.

Who answers them is told in ``reference`` and ``model``.
"""

from loopprobe.tasks.prompts import Prompts, normal, uniform
from loopprobe.tasks.protocol import PromptBatch
from loopprobe.tasks.sampling import held_out, sample
from loopprobe.tasks.text import TextPrompts
from loopprobe.tasks.token_prompts import TokenPrompts
from loopprobe.tasks.tokens import held_out_tokens, sample_tokens

__all__ = [
    "PromptBatch", "Prompts", "TextPrompts", "TokenPrompts", "held_out", "held_out_tokens", "normal", "sample",
    "sample_tokens", "uniform",
]  # fmt: skip
