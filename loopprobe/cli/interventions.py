"""Verbs that change what a model computes: ablate, edges, circuit, patch, steer and features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from loopprobe.cli.options import (
    Common,
    Heads,
    InLoops,
    Layers,
    Loops,
    Measure,
    Positions,
    ReadLoop,
    with_common,
)
from loopprobe.cli.parsing import at_least, one_of, parse_choice, parse_floats, parse_words
from loopprobe.cli.probes import ask, show
from loopprobe.errors import LoopprobeError

Steps = Annotated[int, typer.Option(help="Gradients between the corrupted and the clean run; 1: plain.")]
Corruption = Annotated[str | None, typer.Option(help="What differs in the corrupted run, as in patch.")]


@with_common(prompts=32)
def ablate(
    methods: Annotated[
        str, typer.Option(help="What replaces an output: zero, mean, resample, optimal; several with commas.")
    ] = "mean",
    sites: Annotated[str, typer.Option(help="attn_z (heads), mlp_out (MLPs).")] = "attn_z,mlp_out",
    loops: Loops = None,
    in_loops: InLoops = None,
    read_loop: ReadLoop = None,
    layers: Layers = None,
    heads: Heads = None,
    positions: Positions = None,
    each_position: Annotated[bool, typer.Option("--each-position", help="Ablate each token by itself.")] = False,
    together: Annotated[bool, typer.Option("--together/--singles", help="Also ablate in all loops at once.")] = True,
    agreement: Annotated[
        bool, typer.Option("--agreement/--no-agreement", help="Also rank the places by patching and attribution.")
    ] = True,
    measure: Measure = "error",
    fit_prompts: Annotated[int, typer.Option(help="Other prompts that optimal constants are fitted on.")] = 64,
    *,
    common: Common,
) -> None:
    """Ablate heads and MLPs, loop by loop and in all loops."""
    chosen = tuple(one_of(word, ("zero", "mean", "resample", "optimal"), "by") for word in parse_words(methods))
    at_least(loops, 1, "loops")
    at_least(read_loop, 1, "read_loop")
    at_least(fit_prompts, 1, "fit_prompts")
    options = {
        "methods": chosen, "sites": parse_words(sites), "loops": loops, "read_loop": read_loop,
        "in_loops": parse_choice(in_loops, "--in-loops"), "layers": parse_choice(layers, "--layers"),
        "heads": parse_choice(heads, "--heads"), "positions": parse_choice(positions, "--positions"),
        "each_position": each_position, "together": together, "agreement": agreement, "measure": measure,
        "fit_prompts": fit_prompts,
    }  # fmt: skip
    show(*ask("ablate", options, "ablate", common), common.png)


@with_common(prompts=16)
def edges(
    loops: Loops = None,
    from_loops: Annotated[
        str | None, typer.Option(help="Loops of the senders, from 1 as in tables, such as 5:10 or last; default: all.")
    ] = None,
    steps: Steps = 5,
    exact: Annotated[
        int, typer.Option(help="Edges that are also computed exactly: so many largest and at random.")
    ] = 24,
    corruption: Corruption = None,
    measure: Measure = "answer",
    *,
    common: Common,
) -> None:
    """Direct effects between heads and MLPs, from loop to loop."""
    at_least(loops, 1, "loops")
    at_least(steps, 1, "steps")
    at_least(exact, 0, "exact")
    options = {
        "loops": loops, "from_loops": parse_choice(from_loops, "--from-loops"), "steps": steps, "exact": exact,
        "corruption": corruption, "measure": measure,
    }  # fmt: skip
    show(*ask("edges", options, "edges", common), common.png)


@with_common(prompts=16)
def circuit(
    keep: Annotated[float, typer.Option(help="Share of the behaviour that the circuit keeps, at most 1.")] = 0.9,
    loops: Loops = None,
    steps: Steps = 5,
    exact: Annotated[int, typer.Option(help="Rank so many of the largest edges by their exact effect.")] = 0,
    random: Annotated[int, typer.Option(help="Draws of as many edges at random.")] = 1,
    halves: Annotated[
        bool, typer.Option("--halves", help="Also find the circuit on the other half of the prompts, and compare.")
    ] = False,
    corruption: Corruption = None,
    measure: Measure = "answer",
    *,
    common: Common,
) -> None:
    """A small set of edges that keeps the behaviour."""
    if not 0 < keep <= 1:
        raise LoopprobeError(f"keep ({keep:g}) must be above 0 and at most 1, the whole behaviour: change it")
    at_least(loops, 1, "loops")
    at_least(steps, 1, "steps")
    at_least(exact, 0, "exact")
    at_least(random, 1, "random")
    options = {
        "keep": keep, "loops": loops, "steps": steps, "exact": exact, "random": random, "halves": halves,
        "corruption": corruption, "measure": measure,
    }  # fmt: skip
    show(*ask("circuit", options, "circuit", common), common.png)


@with_common(prompts=64)
def patch(
    corruption: Annotated[
        str | None,
        typer.Option(
            help="What differs: label, weights (all labels, the default), query, or noise; of tokens: token (one of "
            "them, the default) or prompt."
        ),
    ] = None,
    sites: Annotated[
        str, typer.Option(help="z (the state), attn_z (heads), mlp_out, attn_out, resid_mid, q, …")
    ] = "z,attn_z",
    loops: Loops = None,
    in_loops: InLoops = None,
    example: Annotated[
        int | None, typer.Option(help="Which example's label or which token differs, from 0; default: 0, or any token.")
    ] = None,
    noise_std: Annotated[float, typer.Option(help="With --corruption noise: its standard deviation.")] = 1.0,
    positions: Positions = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only estimate, from one gradient (attribution patching).")
    ] = False,
    measure: Measure = "answer",
    *,
    common: Common,
) -> None:
    """Patch a clean run into a corrupted one, place by place."""
    if corruption is not None:
        one_of(corruption, ("label", "weights", "query", "noise", "token", "prompt"), "corruption")
    at_least(loops, 1, "loops")
    at_least(example, 0, "example")
    if corruption == "noise" and not noise_std > 0:
        raise LoopprobeError(f"noise_std ({noise_std}) must be above 0: without noise nothing is corrupted")
    options = {
        "corruption": corruption, "sites": parse_words(sites), "loops": loops, "example": example,
        "noise_std": noise_std, "exact": not estimate, "in_loops": parse_choice(in_loops, "--in-loops"),
        "positions": parse_choice(positions, "--positions"), "measure": measure,
    }  # fmt: skip
    show(*ask("patch", options, f"patch-{corruption}" if corruption else "patch", common), common.png)


@with_common(prompts=64)
def steer(
    direction: Annotated[
        str,
        typer.Option(
            help="Where the direction comes from: answer, corrupted, a result of a token task, decoder:TARGET, or a "
            "file (.npy, .pt, or features.nc:3 for feature 3)."
        ),
    ] = "answer",
    values: Annotated[
        str | None, typer.Option(help="The two answers or values of a result that it tells apart, such as 1,0.")
    ] = None,
    strengths: Annotated[
        str, typer.Option(help="How much is added, with commas between; write --strengths=-2,0,2.")
    ] = "-4,-2,-1,0,1,2,4",
    unit: Annotated[
        str, typer.Option(help="Of strengths: std (of the states along the direction), or norm (of the states).")
    ] = "std",
    loops: Loops = None,
    in_loops: Annotated[
        str | None,
        typer.Option(help="Loops after which it is added, from 1, such as 5, 1:10 or last; default: the middle one."),
    ] = None,
    read_loop: ReadLoop = None,
    positions: Annotated[str, typer.Option(help="Tokens at which it is added, as in ablate.")] = "query",
    measure: Annotated[
        str | None,
        typer.Option(help="What is measured, as in ablate; default: the answer, or the logits of the two answers."),
    ] = None,
    corruption: Annotated[str | None, typer.Option(help="With --direction corrupted: as in patch.")] = None,
    fit_prompts: Annotated[int, typer.Option(help="Other prompts that the direction is taken from.")] = 256,
    controls: Annotated[int, typer.Option(help="Random directions to compare with.")] = 4,
    *,
    common: Common,
) -> None:
    """Add a direction to the state; what does the loop make of it?"""
    one_of(unit, ("std", "norm"), "unit")
    for value, name in (
        (loops, "loops"),
        (read_loop, "read_loop"),
        (fit_prompts, "fit_prompts"),
        (controls, "controls"),
    ):
        at_least(value, 1, name)
    options = {
        "direction": direction, "values": None if values is None else parse_words(values),
        "strengths": parse_floats(strengths, "--strengths"), "unit": unit, "loops": loops, "read_loop": read_loop,
        "in_loops": parse_choice(in_loops, "--in-loops"), "positions": parse_choice(positions, "--positions"),
        "measure": measure, "corruption": corruption, "fit_prompts": fit_prompts, "controls": controls,
    }  # fmt: skip
    show(*ask("steer", options, "steer", common), common.png)


@with_common(prompts=64)
def features(
    n_features: Annotated[
        int | None, typer.Option(help="Of the dictionary that all loops share; default: four times d_model or more.")
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Features that may be active in a state.")] = 8,
    feature: Annotated[
        str | None, typer.Option(help="Features to look at, from 0, such as 3 or 0:9; default: the most active.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many of the most active.")] = 6,
    dictionary: Annotated[
        str | None, typer.Option(help="The file features.nc of an earlier run, instead of a training.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Also train one a loop, another seed, and a control.")
    ] = True,
    loops: Loops = None,
    in_loops: InLoops = "all",
    read_loop: ReadLoop = None,
    positions: Annotated[str, typer.Option(help="Tokens at which a feature is ablated, as in ablate.")] = "all",
    measure: Measure = "error",
    fit_prompts: Annotated[int, typer.Option(help="Other prompts whose states dictionaries are trained on.")] = 256,
    steps: Annotated[int, typer.Option(help="Steps of each training.")] = 800,
    controls: Annotated[int, typer.Option(help="Random directions to compare ablations with.")] = 2,
    *,
    common: Common,
) -> None:
    """Sparse dictionaries of states; where features live, and what ablating one does."""
    for value, name in (
        (n_features, "n_features"), (k, "k"), (top, "top"), (loops, "loops"), (read_loop, "read_loop"),
        (fit_prompts, "fit_prompts"), (steps, "steps"), (controls, "controls"),
    ):  # fmt: skip
        at_least(value, 1, name)
    options = {
        "n_features": n_features, "k": k, "feature": parse_choice(feature, "--feature"), "top": top,
        "dictionary": dictionary, "compare": compare, "loops": loops, "read_loop": read_loop,
        "in_loops": parse_choice(in_loops, "--in-loops"), "positions": parse_choice(positions, "--positions"),
        "measure": measure, "fit_prompts": fit_prompts, "steps": steps, "controls": controls,
    }  # fmt: skip
    show(*ask("features", options, "features", common), common.png)


VERBS: dict[str, Callable[..., None]] = {
    "ablate": ablate,
    "edges": edges,
    "circuit": circuit,
    "patch": patch,
    "steer": steer,
    "features": features,
}
