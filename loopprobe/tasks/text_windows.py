"""Prompts made of a long text file in windows, for perplexity and for maps that are fitted on further prompts.

A file is cut at line ends into blocks, which are those of fitting and of measuring in turn. The blocks depend on the
file alone, so that no window of the one kind ever shares a token with one of the other, whatever their lengths.
"""

from __future__ import annotations

import codecs
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from loopprobe.errors import LoopprobeError
from loopprobe.tasks.prompts import uniform
from loopprobe.tasks.seeds import HELD_OUT
from loopprobe.tasks.text import TextPrompts
from loopprobe.tasks.tokenizer import marks, mask_of, plain_ids, record_of, require_tokenizer, token_texts

BLOCK, MOST_BLOCKS = 2**16, 256  # bytes, and how many of them a file has at most
WINDOWS_AT_ONCE, BYTES_A_TOKEN = 8, 4  # a piece that is tokenised at once holds about so many windows
MASKED_SHARE = 0.15  # of the tokens of a window, as BERT was trained (Devlin et al., arXiv 1810.04805, section 3.1)
AT_ONCE = 2**20  # bytes that are checked at once

Span = tuple[int, int]  # the first byte, and the one behind the last


def from_file(
    path: str | Path,
    tokenizer: Any,
    length: int,
    n_prompts: int,
    seed: int = 0,
    *,
    part: Literal["train", "test"] = "test",
    masked: bool = False,
) -> TextPrompts:
    """Draw windows of a text file that do not overlap, on the CPU; the answer of every token is the next one.

    Each window begins with the tokens that the tokenizer puts before a text. Only as much of the file is tokenised as
    the windows need.

    Args:
        path: of the file, in UTF-8.
        tokenizer: see ``tasks.tokenizer``.
        length: the number of tokens of a window that the model reads.
        n_prompts: the number of windows.
        seed: it alone determines which windows are drawn, from 0.
        part: ``test``: the blocks to measure on; ``train``: those to fit on.
        masked: whether the model sees both ways. The same 15 % of the tokens, chosen at random, are then masked in
            every window; they alone are read, and they are the answers.

    Raises:
        LoopprobeError: the file cannot be read, has too few windows, or a number is out of range.
    """
    require_tokenizer(tokenizer)
    mask = mask_of(tokenizer) if masked else None
    before, behind = marks(tokenizer)
    behind = behind if masked else []
    least = max(1, len(before) + len(behind) + masked)
    if length < least:
        raise LoopprobeError(f"length ({length}) must be at least {least}: raise it")
    if n_prompts < 1:
        raise LoopprobeError(f"the number of prompts ({n_prompts}) must be at least 1: raise it")
    if not 0 <= seed < HELD_OUT:
        raise LoopprobeError(f"seed ({seed}) must be at least 0 and below 2**31: choose another")
    if part not in ("train", "test"):
        raise LoopprobeError(f"part ({part!r}) must be train or test: choose one")
    n_text = length + (not masked) - len(before) - len(behind)  # tokens of text in a window, with the last answer
    path, generator = Path(path), torch.Generator().manual_seed(HELD_OUT + seed)
    windows: list[list[int]] = []
    with _opened(path) as text:
        _require_utf8(path, text)
        pieces = _pieces(text, part, n_text)
        for i in uniform((len(pieces),), generator).argsort().tolist():
            ids = plain_ids(tokenizer, text[slice(*pieces[i])].decode())
            windows += [ids[k : k + n_text] for k in range(0, len(ids) - n_text + 1, n_text)]
            if len(windows) >= n_prompts:
                break
    if len(windows) < n_prompts:
        raise LoopprobeError(
            f"{path} gives {len(windows)} windows of {length} tokens to {'measure' if part == 'test' else 'fit'} on, "
            f"and {n_prompts} are asked for: give a longer text, shorter windows or fewer prompts"
        )
    tokens = torch.tensor([[*before, *window, *behind] for window in windows[:n_prompts]])
    origin = {"file": path.name, "part": part, "length": length, "held_out_seed": seed, "n_prompts": n_prompts}
    origin |= record_of(tokenizer)
    texts, special = token_texts(tokenizer), frozenset(tokenizer.all_special_ids)
    if mask is None:
        return TextPrompts(tokens[:, :-1], tokens[:, 1:], slice(0, length), texts, origin, special=special)
    order = uniform((n_text,), generator).argsort()[: max(1, round(MASKED_SHARE * n_text))]
    places = order.sort().values + len(before)
    answers = tokens[:, places]
    tokens[:, places] = mask
    return TextPrompts(tokens, answers, places.tolist(), texts, origin, special=special)


def _opened(path: Path) -> mmap.mmap:
    """Return a file as its bytes, which are read from the disk where they are looked at."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise LoopprobeError(f"no file at {path}: check the path") from None
    except OSError as error:
        raise LoopprobeError(f"{path} cannot be read ({error.strerror}): check the path") from None
    raise LoopprobeError(f"{path} is empty: give a text")


def _require_utf8(path: Path, text: mmap.mmap) -> None:
    """Raise LoopprobeError where the bytes are no text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(text), AT_ONCE):
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(text[start : start + AT_ONCE], final=start + AT_ONCE >= len(text))
        except UnicodeDecodeError as error:
            at = start - pending + error.start
            raise LoopprobeError(f"{path} is no UTF-8 (byte {at}): convert it to UTF-8") from None


def _pieces(text: mmap.mmap, part: str, n_text: int) -> list[Span]:
    """Cut the blocks of a part into pieces of several windows."""
    first = len(codecs.BOM_UTF8) if text[:3] == codecs.BOM_UTF8 else 0
    n_blocks = min(max((len(text) - first) // BLOCK, 2), MOST_BLOCKS)
    blocks = list(_cut(text, (first, len(text)), -(-(len(text) - first) // n_blocks)))
    size = WINDOWS_AT_ONCE * BYTES_A_TOKEN * n_text
    return [piece for block in blocks[part == "test" :: 2] for piece in _cut(text, block, size)]


def _cut(text: mmap.mmap, span: Span, size: int) -> Iterator[Span]:
    """Cut a span behind the first line end after every ``size`` bytes, or between characters where lines are long."""
    start, end = span
    while start < end:
        stop = start + size
        if stop < end:
            line = text.find(b"\n", stop - 1, min(stop + size // 4, end))
            if line >= 0:
                stop = line + 1
            while stop < end and text[stop] & 0xC0 == 0x80:  # within a character
                stop += 1
        yield start, min(stop, end)
        start = stop
