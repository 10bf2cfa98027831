"""Prompts made of texts: their tokens, and the last one or an unknown one as the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch

from loopprobe.errors import LoopprobeError
from loopprobe.tasks.logits import UNKNOWN
from loopprobe.tasks.text import TextPrompts
from loopprobe.tasks.tokenizer import (
    in_chat,
    marks,
    mask_of,
    plain_ids,
    record_of,
    require_template,
    require_tokenizer,
    token_texts,
)

Read = Literal["all", "query"]
Made = TypeVar("Made")
SHOWN = 200  # characters of a text that a record holds, and as many texts


@dataclass(frozen=True)
class Row:
    """One prompt: its tokens, the token of the answer at the query, and where the query is."""

    tokens: list[int]
    answer: int
    query: int


class Reader:
    """Turns texts into rows.

    Args:
        tokenizer: see ``tasks.tokenizer``.
        read: ``query``: the query alone; ``all``: every token.
        chat: whether a text is the user's message in the tokenizer's chat template.
        masked: whether the model sees both ways and answers where a token is masked.

    Raises:
        LoopprobeError: the tokenizer lacks what is asked for, or the options do not go together.
    """

    def __init__(self, tokenizer: Any, read: str, chat: bool, masked: bool) -> None:
        require_tokenizer(tokenizer)
        if read not in ("all", "query"):
            raise LoopprobeError(f"read ({read!r}) must be all or query: choose one")
        if masked and (chat or read == "all"):
            other = "chat" if chat else "read='all'"
            raise LoopprobeError(
                f"a masked model answers at its mask alone, and has no {other}: leave out one of the two"
            )
        if chat:
            require_template(tokenizer)
        self.tokenizer, self.read, self.chat = tokenizer, read, chat
        self.mask = mask_of(tokenizer) if masked else None
        self.before, self.behind = ([], []) if chat else marks(tokenizer)

    def row(self, text: str, where: str, cut: bool, length: int | None = None) -> Row:
        """Return the row of a text.

        Args:
            text: the text.
            where: its name in messages, such as "text 2".
            cut: whether its last token is cut off and is the answer; otherwise the answer is unknown. Where one token
                is the mask, nothing is cut off and the answer there is unknown.
            length: the number of tokens that the model reads; None: all.

        Raises:
            LoopprobeError: it has too few tokens, or several masks.
        """
        plain = plain_ids(self.tokenizer, self.framed(text))
        if self.mask is not None:
            return self._masked(plain, where, cut)
        tokens = self.before + plain
        n_read = len(tokens) - cut if length is None else length
        if n_read < 1 or len(tokens) < n_read + cut:
            needed = f"{max(n_read, 1) + cut}{', the last of which is its answer' if cut else ''}"
            remedy = "a longer text" if length is None else "a longer text, or a smaller --length"
            raise LoopprobeError(f"{where} has {len(tokens)} tokens and needs {needed}: give {remedy}")
        return Row(tokens[:n_read], tokens[n_read] if cut else UNKNOWN, n_read - 1)

    def framed(self, text: str) -> str:
        """Return a text in the chat template, or as it is."""
        return in_chat(self.tokenizer, text) if self.chat else text

    def _masked(self, plain: list[int], where: str, cut: bool) -> Row:
        assert self.mask is not None
        tokens, answer = self.before + plain + self.behind, UNKNOWN
        masks = [place for place, token in enumerate(tokens) if token == self.mask]
        if len(masks) > 1:
            raise LoopprobeError(f"{where} has {len(masks)} masks and the model is read at one: leave one")
        if masks:
            return Row(tokens, UNKNOWN, masks[0])
        if not cut or not plain:
            raise LoopprobeError(f"{where} has no mask: put {self.tokenizer.mask_token} where the answer belongs")
        query = len(self.before) + len(plain) - 1
        answer, tokens[query] = tokens[query], self.mask
        return Row(tokens, answer, query)

    def answer(self, text: str, prompt: str) -> list[int]:
        """Return the tokens of an answer, as they are behind the prompt where the two do not run together."""
        if self.mask is None:
            framed = self.framed(prompt)
            context, both = plain_ids(self.tokenizer, framed), plain_ids(self.tokenizer, framed + text)
            if both[: len(context)] == context and len(both) > len(context):
                return both[len(context) :]
        return plain_ids(self.tokenizer, text)

    def prompts(self, rows: Sequence[Row], texts: tuple[str, ...], origin: dict[str, Any]) -> TextPrompts:
        """Return the prompts of rows that are alike, see ``alike``."""
        tokens = torch.tensor([row.tokens for row in rows])
        answers, query = torch.tensor([[row.answer] for row in rows]), rows[0].query
        every = self.read == "all"
        return TextPrompts(
            tokens,
            torch.cat([tokens[:, 1:], answers], 1) if every else answers,
            slice(0, len(rows[0].tokens)) if every else slice(query, query + 1),
            texts,
            origin | {"read": self.read, "n_prompts": len(rows)} | record_of(self.tokenizer),
            special=frozenset(self.tokenizer.all_special_ids),
        )


def alike(rows: Sequence[Row]) -> list[list[int]]:
    """Return the places of rows that make one batch each: those of as many tokens, which are read at the same one.

    The shortest rows come first, and rows of a batch stay in their order.
    """
    batches: dict[tuple[int, int], list[int]] = {}
    for i, row in enumerate(rows):
        batches.setdefault((len(row.tokens), row.query), []).append(i)
    return [batches[key] for key in sorted(batches)]


def only(batches: Sequence[Made], rows: Sequence[Row], remedy: str) -> Made:
    """Return the one batch that there is.

    Raises:
        LoopprobeError: the rows do not have the same number of tokens, or their masks stand at different tokens.
    """
    if len(batches) == 1:
        return batches[0]
    sizes = sorted({len(row.tokens) for row in rows})
    if len(sizes) == 1:
        raise LoopprobeError("the masks of the prompts stand at different tokens: give one prompt at a time")
    some = ", ".join(map(str, sizes[:8])) + (", …" if len(sizes) > 8 else "")
    raise LoopprobeError(f"the prompts have {some} tokens and those of a batch must have as many: {remedy}")


def from_texts(
    texts: str | Sequence[str],
    tokenizer: Any,
    *,
    read: Read = "query",
    length: int | None = None,
    chat: bool = False,
    masked: bool = False,
    cut: bool = True,
) -> TextPrompts:
    """Make prompts of texts, on the CPU.

    The last token of each text is cut off and is the answer at the query, the token before it: a text of n tokens gives
    n - 1 that the model reads. The tokens that the tokenizer puts before a text come first; those behind it are left
    out, except for masked models.

    Args:
        texts: one text, or several of the same number of tokens.
        tokenizer: see ``tasks.tokenizer``.
        read: ``query``: the query alone is read; ``all``: every token, whose answer is the next one.
        length: the number of tokens that the model reads of each text, from its first, with those that the tokenizer
            puts before it; None: all.
        chat: whether each text is the user's message in the tokenizer's chat template. Nothing is cut off: the query is
            the last token of the template, and what follows is unknown.
        masked: whether the model sees both ways. Nothing is cut off where a text holds the tokenizer's mask: the query
            is the mask, and its answer is unknown. Elsewhere the last token of the text is masked and is the answer.
        cut: whether the last token is cut off; otherwise it is the query, and what follows is unknown.

    Raises:
        LoopprobeError: the texts, the tokenizer and the options do not go together.
    """
    batches, rows = _batches(texts, tokenizer, read, length, chat, masked, cut)
    shortest = min(len(row.tokens) for row in rows)
    remedy = "give one text at a time" + ("" if chat or masked else f", or cut them with --length {shortest}")
    return only(batches, rows, remedy)


def batches_of_texts(
    texts: str | Sequence[str],
    tokenizer: Any,
    *,
    read: Read = "query",
    length: int | None = None,
    chat: bool = False,
    masked: bool = False,
    cut: bool = True,
) -> list[TextPrompts]:
    """Make prompts of texts of any lengths: a batch for each number of tokens, see ``from_texts``."""
    return _batches(texts, tokenizer, read, length, chat, masked, cut)[0]


def _batches(
    texts: str | Sequence[str], tokenizer: Any, read: Read, length: int | None, chat: bool, masked: bool, cut: bool
) -> tuple[list[TextPrompts], list[Row]]:
    reader = Reader(tokenizer, read, chat, masked)
    given = [texts] if isinstance(texts, str) else list(texts)
    if not given:
        raise LoopprobeError("no text is given: give at least one")
    for i, text in enumerate(given):
        if not isinstance(text, str) or not text:
            what = "empty" if isinstance(text, str) else f"of type {type(text).__name__}"
            raise LoopprobeError(f"text {i + 1} of {len(given)} is {what}: give words")
    if length is not None and (chat or masked or length < 1):
        why = f"is not of {'chat' if chat else 'masked'} prompts" if chat or masked else "must be at least 1"
        raise LoopprobeError(f"length ({length}) {why}: {'leave it out' if chat or masked else 'raise it'}")
    rows = [reader.row(text, f"text {i + 1} of {len(given)}", cut and not chat, length) for i, text in enumerate(given)]
    names, chosen = token_texts(tokenizer), {"chat": True} if chat else {}
    batches = []
    for places in alike(rows):
        record = {"texts": [given[i][:SHOWN] for i in places[:SHOWN]]} | chosen
        batches.append(reader.prompts([rows[i] for i in places], names, record))
    return batches, rows
