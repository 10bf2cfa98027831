"""One prompt seen whole, clean and changed: its states, attention and answers after every loop.

A change is what a person clicks together: tokens whose state is reset before every loop, tokens that attention does
not see, heads and layers that write nothing. It acts in all loops or in those that are named.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from loopprobe.config.selection import ranges, resolve
from loopprobe.config.strict import configuration
from loopprobe.errors import LoopprobeError
from loopprobe.model.interventions import edited, hide, zero
from loopprobe.model.masks import reset
from loopprobe.model.protocol import LoopedModel
from loopprobe.model.selection import activations_of
from loopprobe.probes.dataset import error_summary, stamp
from loopprobe.probes.declaration import Probe, Quantity, Shown
from loopprobe.probes.loops import require_loops_or_layers
from loopprobe.probes.paths import Components, principal_components
from loopprobe.store.evaluate import query_error
from loopprobe.store.subject import Subject
from loopprobe.support.statistics import at_least_single, to_numpy
from loopprobe.tasks import PromptBatch
from loopprobe.tasks.logits import LogitPrompts
from loopprobe.tasks.places import answer_tokens
from loopprobe.tasks.protocol import right_words, token_words
from loopprobe.types import Progress

TOP = 5  # best answers that are told in words
NEEDS = {  # the hook point that a part of a change acts on
    "reset": "z_pre",
    "hide": "pattern",
    "heads": "attn_z",
    "attention": "attn_out",
    "mlps": "mlp_out",
}
Variables = dict[str, tuple[tuple[str, ...], np.ndarray]]


@configuration
class ExploreConfig:
    """The prompt that is seen whole, and what is changed; without a change there is the clean run alone.

    Attributes:
        loops: iterations; None: as many as the training gives such prompts.
        prompt: the prompt that is seen whole, from 0; errors are those of all prompts.
        reset: tokens whose state is reset to the initial one before every loop, from 0.
        hide: tokens that no other token attends to.
        heads: pairs of a layer and a head that write nothing.
        attention: layers whose attention writes nothing.
        mlps: layers whose MLP writes nothing.
        in_loops: the loops in which all this is changed, from 1; None: all.
    """

    loops: PositiveInt | None = None
    prompt: NonNegativeInt = 0
    reset: tuple[NonNegativeInt, ...] = ()
    hide: tuple[NonNegativeInt, ...] = ()
    heads: tuple[tuple[NonNegativeInt, NonNegativeInt], ...] = ()
    attention: tuple[NonNegativeInt, ...] = ()
    mlps: tuple[NonNegativeInt, ...] = ()
    in_loops: tuple[PositiveInt, ...] | None = None

    @property
    def changes(self) -> bool:
        """Whether anything is changed."""
        return any(getattr(self, part) for part in NEEDS)


def changeable(model: Any) -> dict[str, bool]:
    """Tell which parts of a change, the fields of ``ExploreConfig``, a model can take."""
    points = activations_of(model)
    return {part: point in points and (part != "reset" or "map" in model.supports) for part, point in NEEDS.items()}


@contextmanager
def changed(model: Any, config: ExploreConfig) -> Iterator[None]:
    """Change a model as a configuration says, while a block lasts."""
    where: dict[str, Any] = {"loops": config.in_loops and [loop - 1 for loop in config.in_loops]}
    with ExitStack() as stack:
        if config.reset:
            stack.enter_context(reset(model, config.reset, **where))
        if config.hide:
            stack.enter_context(edited(model, "pattern", hide(config.hide), **where))
        for layer in sorted({layer for layer, _ in config.heads}):
            heads = [head for of, head in config.heads if of == layer]
            stack.enter_context(edited(model, "attn_z", zero, layers=[layer], heads=heads, **where))
        for layers, name in ((config.attention, "attn_out"), (config.mlps, "mlp_out")):
            if layers:
                stack.enter_context(edited(model, name, zero, layers=layers, **where))
        yield


def describe(config: ExploreConfig) -> str:
    """Describe a change in words: ``the state of token 3 reset and head 0.1 off, in every loop``."""
    heads = tuple(f"{layer}.{head}" for layer, head in sorted(config.heads))
    parts = [
        _words("the state of token", config.reset, "reset"),
        _words("token", config.hide, "hidden from attention"),
        _words("head", heads, "off"),
        _words("attention of layer", config.attention, "off"),
        _words("MLP of layer", config.mlps, "off"),
    ]
    told = [part for part in parts if part]
    if not told:
        return "nothing changed"
    loops = "every loop" if config.in_loops is None else f"loop {ranges(sorted(config.in_loops))}"
    return f"{', '.join(told[:-1])}{' and ' if told[1:] else ''}{told[-1]}, in {loops}"


def _words(what: str, which: tuple[Any, ...], done: str) -> str:
    return f"{what}{'s' * (len(which) > 1)} {', '.join(map(str, which))} {done}" if which else ""


def run(
    subject: Subject, prompts: PromptBatch, config: ExploreConfig, progress: Progress = lambda steps: steps
) -> xr.Dataset:
    """Run the prompts clean and changed, and keep everything of one of them.

    Returns:
        A dataset with dims ``run`` (clean, and changed where something is), ``loop`` (iterations done, from 1),
        ``example`` (all prompts), ``answer`` and ``position`` (the answers and tokens of the prompt that is seen):

        * ``error [run, loop, example]``: at the query, in the unit of the prompts; ``median``, ``failures [run, loop]``
          with ``_low`` and ``_high``, ``mean [run, loop]``: see ``error_summary``
        * ``answer_error``, ``to_final [run, loop, answer]``: the error of every answer, and its distance to the answer
          that the clean run ends with: for tokens the Kullback-Leibler divergence in nats
        * ``prediction [run, loop, answer]`` where answers are numbers; ``top_answer``, ``top_probability [run, loop,
          answer, top]`` where they are tokens: the best five in words, and their probabilities
        * ``path [run, loop, position, component]``: the state after the loop in the principal components of the clean
          run of this prompt, which ``explained [component]`` of its variance; not of models that have no state
        * ``pattern [run, loop, layer, head, query, key]``: attention, not of models that do not show it
        * ``token [position]``, ``right [answer]``: what stands at the tokens, and the right answers, in words;
          ``read_at [answer]``: the tokens that hold them

        ``attrs["description"]`` tells the change in words, ``attrs["query_token"]`` which token holds the last answer.

    Raises:
        LoopprobeError: there is no such prompt, token, head, layer or loop, or the model cannot be changed there.
    """
    check(subject, config, prompts)
    model, prompts = subject.model, prompts.to(subject.device)
    one = prompts[config.prompt : config.prompt + 1]
    n_loops = config.loops or subject.loops_of(prompts)
    runs = ["clean", *(["changed"] if config.changes else [])]
    errors, seen = [], Seen(model, one, n_loops)
    with torch.no_grad():
        for name in progress(runs):
            with changed(model, config) if name == "changed" else nullcontext():
                errors.append(to_numpy(query_error(model, prompts, n_loops)))
                seen.look()
    variables: Variables = {"error": (("run", "loop", "example"), np.stack(errors))}
    variables |= error_summary(("run", "loop"), np.stack(errors), prompts.failure_level)
    variables |= seen.variables()
    coords: dict[str, Any] = {"run": runs, "loop": np.arange(1, n_loops + 1), "model": subject.label}
    coords |= {"position": np.arange(prompts.n_tokens)}
    data = xr.Dataset(variables, coords, {"description": describe(config), "query_token": prompts.query})
    for name in ("error", "answer_error"):
        data[name].attrs["units"] = prompts.unit
    return stamp(data, "explore", subject, prompts, config)


class Seen:
    """What is kept of the prompt that is seen whole, run by run.

    Args:
        model: the model, changed or not while ``look`` runs it.
        prompt: a batch of one prompt.
        n_loops: iterations.
    """

    def __init__(self, model: LoopedModel, prompt: PromptBatch, n_loops: int) -> None:
        self.model, self.prompt, self.n_loops = model, prompt, n_loops
        self.names = [name for name in ("z", "pattern") if name in activations_of(model)]
        self.components: Components | None = None
        self.final: Tensor | None = None
        self.kept: dict[str, list[np.ndarray]] = {}

    def look(self) -> None:
        """Run the prompt once; the first run, the clean one, gives the axes and the answers to compare with."""
        reading: dict[str, Any] = {"n_loops": self.n_loops, "read_at": self.prompt.read_at}
        if self.names:
            outputs, cache = self.model.run_with_cache(*self.prompt.inputs, **reading, names=self.names)
        else:
            outputs = self.model(*self.prompt.inputs, **reading)
        outputs = at_least_single(outputs)
        self.final = outputs[-1] if self.final is None else self.final
        self._keep("answer_error", self.prompt.errors(outputs)[:, 0])
        self._keep("to_final", self.prompt.distance(outputs, self.final)[:, 0])
        if isinstance(self.prompt, LogitPrompts):
            likely, best = outputs[:, 0].softmax(-1).topk(min(TOP, outputs.shape[-1]))
            word = np.vectorize(self.prompt.answer_word, otypes=[object])
            self.kept.setdefault("top_answer", []).append(word(to_numpy(best)).astype(str))
            self._keep("top_probability", likely)
        elif outputs.ndim == 3:
            self._keep("prediction", outputs[:, 0])
        if "z" in self.names:
            states = cache.stack("z")[:, 0]
            self.components = self.components or principal_components(states)
            self._keep("path", self.components.of(states).float())
        if "pattern" in self.names:
            layers = [cache.stack("pattern", layer)[:, 0] for layer in range(self.model.sizes.n_layers)]
            self._keep("pattern", at_least_single(torch.stack(layers, 1)))

    def _keep(self, name: str, values: Float[Tensor, "loop ..."]) -> None:
        self.kept.setdefault(name, []).append(to_numpy(values))

    def variables(self) -> Variables:
        """Return what was kept, with its dims, and the words of the prompt."""
        answers = ("run", "loop", "answer")
        dims = {
            "answer_error": answers, "to_final": answers, "prediction": answers,
            "top_answer": (*answers, "top"), "top_probability": (*answers, "top"),
            "path": ("run", "loop", "position", "component"),
            "pattern": ("run", "loop", "layer", "head", "query", "key"),
        }  # fmt: skip
        found: Variables = {name: (dims[name], np.stack(values)) for name, values in self.kept.items()}
        if self.components is not None:
            found["explained"] = ("component",), to_numpy(self.components.explained)
        return found | {
            "token": (("position",), np.array(token_words(self.prompt, 0), dtype=str)),
            "right": (("answer",), np.array(right_words(self.prompt, 0), dtype=str)),
            "read_at": (("answer",), np.array(answer_tokens(self.prompt))),
        }


def check(subject: Subject, config: ExploreConfig, prompts: PromptBatch) -> None:
    """Raise LoopprobeError where there is no such prompt, token, head, layer or loop, or the model has no such part."""
    require_loops_or_layers(subject, config.loops)
    if config.prompt >= prompts.n_prompts:
        raise LoopprobeError(
            f"prompt ({config.prompt}) must be below {prompts.n_prompts}, the number of prompts: lower it or draw more"
        )
    able = changeable(subject.model)
    for part in NEEDS:
        if getattr(config, part) and not able[part]:
            raise LoopprobeError(f"{subject.label} shows no {NEEDS[part]}, on which {part} acts: leave {part} out")
    sizes = subject.model.sizes
    places = {
        "position": (config.reset + config.hide, prompts.n_tokens),
        "layer": (config.attention + config.mlps + tuple(layer for layer, _ in config.heads), sizes.n_layers),
        "head": (tuple(head for _, head in config.heads), sizes.n_heads),
    }
    for what, (chosen, size) in places.items():
        resolve(chosen or None, size, what)
    resolve(config.in_loops or None, config.loops or subject.loops_of(prompts), "loop", first=1)
    if config.in_loops == ():
        raise LoopprobeError("in_loops is empty: name at least one loop, or leave it out for all")


PROBE = Probe(
    "explore",
    ExploreConfig,
    run,
    check,
    Shown("explore:explore_figures", "inside:explore_table", quantities=(Quantity("median", "error", log=True),)),
)
