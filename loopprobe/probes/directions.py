"""Directions in the state at chosen loops and tokens: differences of means, decoders, and what a user gives."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from loopprobe.config.budget import require
from loopprobe.errors import LoopprobeError
from loopprobe.model.protocol import LoopedModel
from loopprobe.probes.decoders import targets_of
from loopprobe.probes.dictionaries import feature_direction
from loopprobe.probes.measures import Measure
from loopprobe.probes.ridge import Ridge
from loopprobe.store.evaluate import batches
from loopprobe.support.statistics import at_least_single, double
from loopprobe.tasks import PromptBatch, Prompts, TokenPrompts
from loopprobe.tasks.logits import LogitPrompts

FILE = re.compile(r".+(\.npy|\.pt|\.nc:\d{1,9})")
FILES = ".npy, .pt, or features.nc:3 for feature 3"
DECODER = "decoder:"
States = Float[Tensor, "loop batch token d_model"]
Vectors = Float[Tensor, "loop token d_model"]


@dataclass(frozen=True)
class Found:
    """A direction.

    Attributes:
        vectors: at every chosen loop and token, of any length.
        words: what it is.
        measure: what it should raise, where the answer of the prompts does not tell; None: that.
    """

    vectors: Vectors
    words: str
    measure: Measure | None = None

    def on(self, states: Tensor) -> Found:
        """The same, on the device and in the precision of states."""
        return replace(self, vectors=self.vectors.to(states))


def states_at(
    model: LoopedModel, prompts: PromptBatch, loops: Sequence[int], tokens: Sequence[int], *, single: bool = False
) -> States:
    """The states of prompts after so many loops, at some tokens.

    Args:
        model, prompts: the model and what it runs on.
        loops: loops that are done, in rising order.
        tokens: from 0.
        single: in float32; otherwise in float64.

    Raises:
        LoopprobeError: the memory cannot hold them.
    """
    size = (4 if single else 8) * len(loops) * prompts.n_prompts * len(tokens) * model.sizes.d_model
    what = f"the states of {prompts.n_prompts:,} prompts after {len(loops)} loops at {len(tokens)} tokens"
    require(2 * size, what, "name fewer loops or positions, or lower fit_prompts")
    made = []
    with torch.no_grad():
        for batch in batches(model, prompts):
            e = model.embed(*model.prepare(*batch.inputs))
            z, kept = model.initial_state(e), []
            for loop in range(loops[-1]):
                z = model.step(z, e, loop)
                if loop + 1 in loops:
                    kept.append(z[:, list(tokens)].float() if single else double(z[:, list(tokens)]))
            made.append(torch.stack(kept))
    return torch.cat(made, 1)


def of_groups(one: States, other: Float[Tensor, "loop other token d_model"], words: str) -> Found:
    """The mean of some states minus that of others."""
    return Found(one.mean(1) - other.mean(1), words)


def of_answers(
    model: LoopedModel, fitting: PromptBatch, states: States, values: Sequence[str] | None, n_loops: int
) -> Found:
    """The mean state of prompts with one answer minus that of prompts with another.

    Answers that are tokens are the right ones at the query: two that are named, or the two that are most frequent.
    Answers that are numbers are the model's own, above and below their median.

    Raises:
        LoopprobeError: values are named and answers are numbers, or an answer has no prompt.
    """
    if isinstance(fitting, LogitPrompts):
        known = fitting.answers[:, -1:].expand(-1, states.shape[2])
        pair = _pair(known, values, "answer", _names_of(fitting))
        words = [fitting.answer_word(number) for number in pair]
        return Found(
            _difference(states, known, pair, "answer"),
            f"mean state with answer {words[0]} minus that with answer {words[1]}",
            _towards(pair, words),
        )
    require_no_values(values, "answers that are numbers")
    with torch.no_grad():
        answers = torch.cat(
            [at_least_single(part.answer(model(*part.inputs, n_loops=n_loops, keep_loops=1, read_at=part.read_at)[-1]))
             for part in batches(model, fitting)]
        )  # fmt: skip
    above = (answers > answers.median()).to(states.device)
    if not bool(above.any()):
        raise LoopprobeError("the answers of all prompts to fit on are alike, so that none is larger: give others")
    return of_groups(
        states[:, above], states[:, ~above], "mean state with an answer above the median minus that with one below"
    )


def of_results(fitting: PromptBatch, states: States, tokens: Sequence[int], name: str, values: Any) -> Found:
    """The mean state of tokens where a solver would hold one value minus that where it would hold another."""
    known = results_of(fitting, name)[:, list(tokens)]
    pair = _pair(known, values, name, ())
    return Found(
        _difference(states, known, pair, name), f"mean state with {name} = {pair[0]} minus that with {name} = {pair[1]}"
    )


def of_decoder(
    fitting: PromptBatch, states: States, tokens: Sequence[int], target: str, values: Any, ridge: float, loops: Any
) -> Found:
    """The weights of ridge regression from states to a target, or to one value of a result minus another.

    Args:
        fitting, states, tokens: prompts, and their states at some tokens.
        target: of labelled points one of ``decoders.targets_of``, with ``:I`` for its entry I; of tokens ``answer`` or
            a result.
        values: of a result, the two values.
        ridge: the penalty, relative to the mean variance of the states.
        loops: loops that are done, which the target that follows gradient descent has a step each for.
    """
    fit = Ridge(ridge)
    if isinstance(fitting, Prompts):
        require_no_values(values, "targets that are numbers")
        name, entry = target_named(fitting, target, tokens)
        of_target = targets_of(fitting, list(loops))[name][:, :, list(tokens)]
        fit.add(states, {name: of_target[..., entry, None]})
        return Found(fit.solve()[name][..., :-1, 0], f"weights of a ridge regression of “{name}”, entry {entry}")
    known = fitting.answers[:, -1:] if target == "answer" else results_of(fitting, target)[:, list(tokens)]  # type: ignore[attr-defined]
    known = known.expand(-1, len(tokens))
    names = _names_of(fitting) if target == "answer" else ()
    pair = _pair(known, values, target, names)
    one_hot = F.one_hot(known.clamp_min(0), max(int(known.max()), *pair) + 1) * (known >= 0)[..., None]
    fit.add(states, {target: one_hot.double()[None]})
    weights = fit.solve()[target][..., :-1, :]
    words = [fitting.answer_word(number) if names else str(number) for number in pair]  # type: ignore[attr-defined]
    return Found(
        weights[..., pair[0]] - weights[..., pair[1]],
        f"weights of a ridge regression of {target} {words[0]} minus those of {words[1]}",
        _towards(pair, words) if target == "answer" else None,
    )


def target_named(prompts: Prompts, target: str, tokens: Sequence[int]) -> tuple[str, int]:
    """The name of a target of labelled points, and its entry.

    Raises:
        LoopprobeError: there is none, or it is not known at these tokens.
    """
    name, _, entry = target.partition(":")
    known = targets_of(prompts[:1], [1])
    if name not in known or not (entry or "0").isdecimal():
        raise LoopprobeError(
            f"direction {DECODER}{target} names no target: choose {' or '.join(map(repr, known))}, with :1 for its "
            "entry 1"
        )
    n_tokens, width = known[name].shape[2:]
    if int(entry or 0) >= width or max(tokens) >= n_tokens:
        raise LoopprobeError(
            f"direction {DECODER}{target} must be an entry from 0 to {width - 1}, at a token from 0 to {n_tokens - 1}: "
            "change it"
        )
    return name, int(entry or 0)


def results_of(prompts: PromptBatch, name: str) -> Int[Tensor, "batch pos"]:
    """A result that a solver of a token task holds at every token, -1 where there is none.

    Raises:
        LoopprobeError: there is none of this name.
    """
    known = prompts.results() if isinstance(prompts, TokenPrompts) else {}
    if name not in known:
        raise LoopprobeError(
            f"direction {name!r} is not known: choose {', '.join(['answer', 'corrupted', *known])}, {DECODER}TARGET, "
            f"or give a file ({FILES})"
        )
    return known[name]


def read_vectors(path: str) -> Tensor:
    """The direction in a file that numpy or torch has written; ``PATH.nc:3``: of feature 3, see the probe features.

    Raises:
        LoopprobeError: there is no such file, or it holds no array.
    """
    import numpy as np

    file, _, number = path.rpartition(":")
    if file.endswith(".nc"):
        return feature_direction(file, int(number))

    read: Callable[[str], Any] = (
        np.load if path.endswith(".npy") else lambda name: torch.load(name, map_location="cpu", weights_only=True)
    )
    try:
        return torch.as_tensor(read(path))
    except FileNotFoundError:
        raise LoopprobeError(f"there is no direction at {path}: check the path") from None
    except Exception as error:  # numpy and pickle raise many kinds
        reason = " ".join(str(error).split())[:120]
        raise LoopprobeError(f"{path} holds no array ({reason}): write it with numpy.save or torch.save") from None


def of_vector(given: Any, n_loops: int, n_tokens: int, d_model: int, words: str) -> Found:
    """A direction that is given: [d_model], [token, d_model] or [loop, token, d_model].

    Raises:
        LoopprobeError: it has another shape, or is not made of finite numbers.
    """
    try:
        vector = torch.as_tensor(given).detach().cpu().double()
        spread = vector.expand(n_loops, n_tokens, d_model)
    except (TypeError, ValueError, RuntimeError):
        shape = tuple(getattr(given, "shape", ())) or type(given).__name__
        raise LoopprobeError(
            f"the direction has shape {shape} and must be ({d_model},), ({n_tokens}, {d_model}) for {n_tokens} tokens, "
            f"or ({n_loops}, {n_tokens}, {d_model}) for as many loops besides: change it"
        ) from None
    if not bool(spread.isfinite().all()):
        raise LoopprobeError("the direction holds NaN or infinity: give finite numbers")
    return Found(spread, words)


def require_no_values(values: Sequence[str] | None, what: str) -> None:
    """Raise LoopprobeError where two values are named of what has none."""
    if values is not None:
        raise LoopprobeError(
            f"values ({','.join(values)}) tell two answers or results apart, not {what}: leave them out"
        )


def _names_of(prompts: Any) -> tuple[str, ...]:
    return tuple(prompts.answer_names) if isinstance(prompts, TokenPrompts) else ()


def _pair(
    known: Int[Tensor, "batch token"], values: Sequence[str] | None, name: str, names: Sequence[str]
) -> tuple[int, int]:
    """The two values that are told apart: those that are named, or the two that are most frequent."""
    counts = torch.bincount(known[known >= 0].flatten().cpu())
    there = [int(number) for number in counts.argsort(descending=True, stable=True) if counts[number]]
    if values is None:
        if len(there) < 2:
            raise LoopprobeError(f"direction {name!r} has fewer than two values in the prompts to fit on: give others")
        return there[0], there[1]
    words = [names[number] if names else str(number) for number in sorted(there)]
    chosen = [names.index(value) if value in names else int(value) if value.isdecimal() else -1 for value in values]
    if len(set(chosen)) != 2 or not set(chosen) <= set(there):
        raise LoopprobeError(f"values ({','.join(values)}) must be two of {name}: choose from {', '.join(words[:20])}")
    return chosen[0], chosen[1]


def _difference(states: States, known: Int[Tensor, "batch token"], pair: tuple[int, int], name: str) -> Vectors:
    """The mean state with one value minus that with another, token by token."""
    means = []
    for value in pair:
        has = (known == value).to(states)
        if not bool(has.any(0).all()):
            token = int((~has.bool().any(0)).nonzero()[0])
            raise LoopprobeError(
                f"no prompt to fit on has {name} = {value} at chosen token {token}: raise fit_prompts or choose others"
            )
        means.append(torch.einsum("lbtd,bt->ltd", states, has) / has.sum(0)[:, None])
    return means[0] - means[1]


def _towards(pair: tuple[int, int], words: Sequence[str]) -> Measure:
    def difference(logits: Tensor, prompts: Any) -> Tensor:
        return logits[..., -1, pair[0]] - logits[..., -1, pair[1]]

    return Measure(f"logit of {words[0]} minus that of {words[1]}", difference, "logits")
