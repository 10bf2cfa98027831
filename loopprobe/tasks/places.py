"""The tokens of prompts by their names, for the language of ``config.selection``."""

from __future__ import annotations

from loopprobe.tasks.protocol import PromptBatch


def answer_tokens(prompts: PromptBatch) -> list[int]:
    """The tokens at which answers stand, in their order."""
    at = prompts.read_at
    return list(range(prompts.n_tokens)[at]) if isinstance(at, slice) else list(at)


def named_tokens(prompts: PromptBatch) -> dict[str, list[int]]:
    """The tokens that have a name in these prompts.

    Args:
        prompts: prompts of any kind.

    Returns:
        The places of tokens, from 0, by name: ``query``, where the last answer is read; ``answers``, where any is read;
        ``last``, the last token of a prompt; each group of ``prompts.targets`` that holds the same tokens in every
        prompt, such as ``labels`` and ``inputs``, which are those before the query; and ``inputs`` of prompts without
        such a group: the tokens at which no answer is read.
    """
    answers = answer_tokens(prompts)
    groups = {
        name: group[0].nonzero().flatten().tolist()
        for name, group in prompts.targets().items()
        if bool((group == group[:1]).all()) and bool(group[0].any())
    }
    inputs = [token for token in range(prompts.n_tokens) if token not in answers]
    named = {"query": [prompts.query], "last": [prompts.n_tokens - 1], "answers": answers}
    return named | ({"inputs": inputs} if inputs else {}) | groups
