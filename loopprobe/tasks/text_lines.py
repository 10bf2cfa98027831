"""Prompts made of the lines of a JSONL file: clean and corrupted texts, right answers and wrong ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from loopprobe.errors import LoopprobeError
from loopprobe.tasks.logits import UNKNOWN
from loopprobe.tasks.text import TextPrompts
from loopprobe.tasks.text_sources import Read, Reader, Row, alike, only
from loopprobe.tasks.tokenizer import token_texts

FIELDS = ("clean", "corrupted", "answer", "wrong")


def from_jsonl(
    path: str | Path, tokenizer: Any, *, read: Read = "query", chat: bool = False, masked: bool = False
) -> tuple[TextPrompts, TextPrompts | None]:
    """Make prompts of the lines of a JSONL file, clean ones and corrupted ones, on the CPU.

    A line is an object of texts: ``clean``, and where wanted ``corrupted``, ``answer`` and ``wrong``, each in all lines
    or in none. Where there is no ``answer``, the last token of ``clean`` and of ``corrupted`` is cut off and is the
    answer, except in chat, where it is unknown. ``answer`` and ``wrong`` are read as they follow the clean text, with
    the space that they begin with; of several tokens the first stands for them, which ``origin["firsts"]`` tells.
    ``wrong`` is what ``answer`` compares the right answer with, and the right answer of the corrupted prompts. Without
    it theirs is unknown where ``answer`` is given.

    Args:
        path: of the file, in UTF-8.
        tokenizer, read, chat, masked: as in ``from_texts``; with ``masked`` each text holds the mask where an answer is
            given.

    Returns:
        The clean prompts, and the corrupted ones or None.

    Raises:
        LoopprobeError: the file cannot be read, or a line of it does not fit; the message names the line.
    """
    batches, rows = _batches(Path(path), tokenizer, read, chat, masked)
    return only(batches, rows, f"give one line of {path} at a time, or make them alike")


def batches_of_jsonl(
    path: str | Path, tokenizer: Any, *, read: Read = "query", chat: bool = False, masked: bool = False
) -> list[tuple[TextPrompts, TextPrompts | None]]:
    """Make prompts of lines of any lengths: a batch for each number of tokens, see ``from_jsonl``."""
    return _batches(Path(path), tokenizer, read, chat, masked)[0]


def _batches(
    path: Path, tokenizer: Any, read: Read, chat: bool, masked: bool
) -> tuple[list[tuple[TextPrompts, TextPrompts | None]], list[Row]]:
    reader = Reader(tokenizer, read, chat, masked)
    lines = _lines(path)
    first_number, fields = lines[0][0], lines[0][1].keys()
    for number, line in lines:
        if differs := sorted(line.keys() ^ fields):
            has, lacks = (number, first_number) if differs[0] in line else (first_number, number)
            raise LoopprobeError(
                f"{path}, line {has} has {differs[0]!r} and line {lacks} has not: give all lines or none"
            )
    clean: list[Row] = []
    corrupted: list[Row] = []
    wrong: list[int] = []
    firsts: dict[int, dict[str, list[int]]] = {}  # of lines, answers of several tokens
    cut = "answer" not in fields and not chat
    for number, line in lines:
        where = f"{path}, line {number}"
        row = reader.row(line["clean"], f"{where}: 'clean'", cut)
        first: dict[str, int] = {}
        for name in ("answer", "wrong"):
            if name not in line:
                continue
            ids = reader.answer(line[name], line["clean"])
            if not ids:
                raise LoopprobeError(f"{where}: {name!r} {line[name]!r} has no tokens: give a word")
            if len(ids) > 1:
                firsts.setdefault(len(clean), {})[f"line {number}: {name} {line[name]!r}"] = ids
            first[name] = ids[0]
        row, other = Row(row.tokens, first.get("answer", row.answer), row.query), first.get("wrong")
        if other is not None:
            if row.answer == UNKNOWN:
                raise LoopprobeError(f"{where} has 'wrong' and no 'answer', which is not known otherwise: give both")
            if other == row.answer:
                raise LoopprobeError(
                    f"{where}: the answer and 'wrong' {line['wrong']!r} begin with the same token: choose others"
                )
            wrong.append(other)
        clean.append(row)
        if "corrupted" in line:
            against = reader.row(line["corrupted"], f"{where}: 'corrupted'", cut)
            if len(against.tokens) != len(row.tokens):
                raise LoopprobeError(
                    f"{where}: 'clean' has {len(row.tokens)} tokens and 'corrupted' {len(against.tokens)}: give as many"
                )
            if against.query != row.query:
                raise LoopprobeError(
                    f"{where}: 'clean' and 'corrupted' are masked at different tokens: make them alike"
                )
            if against.tokens == row.tokens:
                raise LoopprobeError(f"{where}: 'clean' and 'corrupted' are the same: change one")
            corrupted.append(Row(against.tokens, against.answer if other is None else other, against.query))
    texts, chosen = token_texts(tokenizer), {"file": path.name} | ({"chat": True} if chat else {})
    batches: list[tuple[TextPrompts, TextPrompts | None]] = []
    for places in alike(clean):
        origin: dict[str, Any] = dict(chosen)
        if len(places) < len(lines):
            origin["lines"] = [lines[i][0] for i in places]
        told = [f"{what} has {len(ids)} tokens: {texts[ids[0]]} stands for it"
                for i in places for what, ids in firsts.get(i, {}).items()]  # fmt: skip
        if told:
            origin["firsts"] = told
        prompts = reader.prompts([clean[i] for i in places], texts, origin)
        if wrong:
            prompts = dataclasses.replace(prompts, instead=torch.tensor([wrong[i] for i in places]))
        others = None
        if corrupted:
            others = reader.prompts([corrupted[i] for i in places], texts, origin | {"corruption": "given"})
        batches.append((prompts, others))
    return batches, clean


def _lines(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Read the lines of a file that are not blank, with their numbers."""
    lines = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise LoopprobeError(f"{where} is no JSON ({getattr(error, 'msg', error)}): mend it") from None
        if not isinstance(record, dict) or "clean" not in record:
            raise LoopprobeError(f"{where} has no 'clean': give objects with {', '.join(FIELDS)}")
        if unknown := sorted(record.keys() - set(FIELDS)):
            raise LoopprobeError(f"{where} has {unknown[0]!r}: it may have {', '.join(FIELDS)}")
        for name, text in record.items():
            if not isinstance(text, str) or not text:
                raise LoopprobeError(f"{where}: {name!r} must be a text and is {json.dumps(text)}: mend it")
        lines.append((number, record))
    if not lines:
        raise LoopprobeError(f"{path} has no lines: give objects with {', '.join(FIELDS)}, one a line")
    return lines


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8.

    Raises:
        LoopprobeError: there is no such file, or it is no text.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise LoopprobeError(f"no file at {path}: check the path") from None
    except OSError as error:
        raise LoopprobeError(f"{path} cannot be read ({error.strerror}): check the path") from None
    except UnicodeDecodeError as error:
        raise LoopprobeError(f"{path} is no UTF-8 (byte {error.start}): convert it to UTF-8") from None
