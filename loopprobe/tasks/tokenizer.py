"""Text to tokens and back: the tokens of a text without closing marks, chat templates, and tokens as people read them.

A tokenizer is anything with the calls of one of transformers' (``transformers.AutoTokenizer``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from loopprobe.errors import LoopprobeError

LOST = "\ufffd"  # stands in decoded text for bytes that are no whole character
CALLS = ("__len__", "__call__", "batch_decode", "convert_ids_to_tokens", "all_special_ids")


def require_tokenizer(tokenizer: Any) -> None:
    """Raise LoopprobeError where a tokenizer lacks a call that is made of it."""
    missing = next((name for name in CALLS if not hasattr(tokenizer, name)), None)
    if missing is not None:
        raise LoopprobeError(
            f"tokenizer ({type(tokenizer).__name__}) has no {missing}: give one of transformers', such as "
            "AutoTokenizer.from_pretrained(…)"
        )


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text alone, without the marks that the tokenizer puts around it."""
    return [int(token) for token in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]


def marks(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens that the tokenizer itself puts before a text, and those that it puts behind it."""
    whole, plain = [int(token) for token in tokenizer("a")["input_ids"]], plain_ids(tokenizer, "a")
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return whole[:start], whole[start + len(plain) :]


def in_chat(tokenizer: Any, text: str) -> str:
    """Return a text as the user's message in the chat template, up to where the reply begins.

    Raises:
        LoopprobeError: the template does not take it.
    """
    try:
        return str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
            )
        )
    except Exception as error:  # a template is a program of its own
        reason = " ".join(str(error).split())
        raise LoopprobeError(
            f"the chat template does not take a message of the user ({reason}): leave out chat"
        ) from None


def require_template(tokenizer: Any) -> None:
    """Raise LoopprobeError where a tokenizer has no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise LoopprobeError(
            f"the tokenizer ({_name(tokenizer)}) has no chat template: leave out chat, or take a model that was tuned "
            "for chat"
        )


def mask_of(tokenizer: Any) -> int:
    """Return the token that stands for a masked one.

    Raises:
        LoopprobeError: the tokenizer has none.
    """
    mask = getattr(tokenizer, "mask_token_id", None)
    if mask is None:
        raise LoopprobeError(f"the tokenizer ({_name(tokenizer)}) has no mask token: leave out masked")
    return int(mask)


def record_of(tokenizer: Any) -> dict[str, str]:
    """Return the name of the tokenizer, for the record of how prompts were made; empty where it has none."""
    name = getattr(tokenizer, "name_or_path", "")
    return {"tokenizer": str(name)} if name else {}


def token_texts(tokenizer: Any) -> tuple[str, ...]:
    """Return how each token of the vocabulary is shown, by its number.

    A token of text stands in quotes as it reads behind another, with its space, and with what cannot be seen as Python
    writes it: ``' France'``, ``'\\n'``. Bytes that are a part of a character are shown as such: ``'\\xe2\\x82'``. A
    special token stands without quotes: ``<s>``.
    """
    special = set(tokenizer.all_special_ids)
    n_tokens = max([len(tokenizer), *(1 + token for token in special)])  # some stand behind a gap
    tokens: Sequence[Any] = tokenizer.convert_ids_to_tokens(list(range(n_tokens)))
    anchor = plain_ids(tokenizer, "a")[-1:]  # without a token before it, some tokenizers drop the space of a word
    decoded = tokenizer.batch_decode([[*anchor, i] for i in range(len(tokens))], clean_up_tokenization_spaces=False)
    before = tokenizer.batch_decode([anchor], clean_up_tokenization_spaces=False)[0]
    texts = []
    for i, (token, text) in enumerate(zip(tokens, decoded, strict=True)):
        if token is None:
            texts.append(f"#{i}")
        elif i in special:
            texts.append(str(token))
        else:
            text = text.removeprefix(before)
            texts.append(_quoted(text if LOST not in text else _whole_bytes(token, text)))
    return tuple(texts)


def _quoted(text: str) -> str:
    """Return a text in quotes as Python writes it, bytes that are no character among it."""
    return re.sub(r"(?<!\\)\\udc([89a-f][0-9a-f])", r"\\x\1", repr(text))


def _whole_bytes(token: Any, text: str) -> str:
    """Return the text of a token that holds a part of a character, its lone bytes as lone surrogates."""
    if isinstance(token, bytes):
        held = token
    elif single := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token):  # SentencePiece
        held = bytes.fromhex(single[1])
    elif all(char in _BYTES for char in token):  # GPT-2
        held = bytes(_BYTES[char] for char in token)
    else:
        return text
    return held.decode("utf-8", "surrogateescape")


def _byte_alphabet() -> dict[str, int]:
    """Return the bytes by the characters that stand for them in byte-level vocabularies (GPT-2's encoder.py)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def _name(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
