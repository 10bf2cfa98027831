"""Verbs that look inside the loop, from cache and lens to failures and paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from loopprobe.cli.options import (
    OF_PROMPTS,
    Common,
    Heads,
    Layers,
    Loops,
    Positions,
    output_folder,
    with_common,
)
from loopprobe.cli.output import say
from loopprobe.cli.parsing import at_least, one_of, parse_choice, parse_numbers, parse_words
from loopprobe.cli.probes import ask, show
from loopprobe.errors import LoopprobeError


@with_common(prompts=64)
def cache(
    names: Annotated[str, typer.Option(help="Activations, such as resid_post,pattern, or all.")] = "resid_post",
    loops: Annotated[
        str, typer.Option(help="Loops to keep by index, the first is loop 0: 0:49 (both ends), 7, or 0:500:10.")
    ] = "0:19",
    layers: Layers = None,
    positions: Positions = None,
    *,
    common: Common,
) -> None:
    """Write activations to a file, loop by loop."""
    wanted, chosen = parse_numbers(loops, "--loops"), parse_choice(positions, "--positions")
    parse_choice(layers, "--layers")
    if common.png:
        raise LoopprobeError("cache draws no figure: drop --png")
    if len(common.ckpt or []) > 1:
        raise LoopprobeError(f"cache takes one model and {len(common.ckpt or [])} are given: give one")
    from loopprobe.model.stream import CacheConfig, check_cache, stream_cache
    from loopprobe.probes.dataset import attributes
    from loopprobe.probes.loops import chosen_tokens
    from loopprobe.probes.questions import drawn
    from loopprobe.support.device import pick_device
    from loopprobe.support.progress import track

    checkpoint, prompts = drawn(common.question(), pick_device(common.device))
    config = CacheConfig(
        loops=tuple(wanted),
        names=None if names == "all" else parse_words(names),
        layers=layers,
        positions=None if chosen is None else tuple(chosen_tokens(chosen, prompts, prompts.n_tokens - 1)),
    )
    check_cache(checkpoint.model, config)
    path = output_folder(f"cache-{checkpoint.label}", common.out, common.overwrite) / "cache.nc"
    attrs = attributes("cache", checkpoint, prompts, config)
    try:
        stream_cache(checkpoint.model, prompts, path, config, attrs=attrs, progress=track(f"cache {checkpoint.label}"))
    except OSError as error:
        raise LoopprobeError(f"cannot write {path} ({error}): free the disk, or keep fewer loops or names") from None
    say(files=[path])


@with_common()
def lens(
    loops: Loops = None,
    train_prompts: Annotated[int, typer.Option(help="Other prompts that the tuned lens is fitted on.")] = 1024,
    *,
    common: Common,
) -> None:
    """Read the answer after every loop, layer and sublayer."""
    at_least(loops, 1, "loops")
    at_least(train_prompts, 1, "train_prompts")
    options = {"loops": loops, "train_prompts": train_prompts}
    show(*ask("lens", options, "lens", common), common.png)


@with_common(prompts=256)
def align(
    loops: Loops = None,
    steps: Annotated[int, typer.Option(help="Steps of the algorithms.")] = 60,
    fit_prompts: Annotated[int, typer.Option(help="Other prompts, on which their constants are fitted.")] = 256,
    *,
    common: Common,
) -> None:
    """Which algorithm does the loop resemble, step by step?"""
    for value, name in ((loops, "loops"), (steps, "steps"), (fit_prompts, "fit_prompts")):
        at_least(value, 1, name)
    show(*ask("align", {"loops": loops, "steps": steps, "fit_prompts": fit_prompts}, "align", common), common.png)


@with_common(prompts=512)
def decode(
    loops: Loops = None,
    train_prompts: Annotated[int, typer.Option(help="Other prompts, on which the decoders are trained.")] = 1024,
    network_loops: Annotated[int, typer.Option(help="Loops at which networks are trained; 0: none.")] = 8,
    *,
    common: Common,
) -> None:
    """What does the state hold, at every loop, layer and token?"""
    at_least(loops, 1, "loops")
    at_least(train_prompts, 1, "train_prompts")
    at_least(network_loops, 0, "network_loops")
    options = {"loops": loops, "train_prompts": train_prompts, "network_loops": network_loops}
    show(*ask("decode", options, "decode", common), common.png)


@with_common()
def attribute(
    loops: Loops = None,
    measure: Annotated[
        str | None, typer.Option(help="What is split: answer, logit_difference, or FILE.py:NAME, if it is linear.")
    ] = None,
    *,
    common: Common,
) -> None:
    """Split the prediction into what each head and MLP wrote."""
    at_least(loops, 1, "loops")
    show(*ask("attribute", {"loops": loops, "measure": measure}, "attribute", common), common.png)


@with_common(prompts=256)
def attention(loops: Loops = None, *, common: Common) -> None:
    """Where each head attends, loop by loop."""
    at_least(loops, 1, "loops")
    show(*ask("attention", {"loops": loops}, "attention", common), common.png)


@with_common(prompts=16)
def fixed_points(
    method: Annotated[str, typer.Option(help="Solver: newton_krylov or anderson.")] = "newton_krylov",
    random_starts: Annotated[int, typer.Option(help="Searches from random states, besides the loop's own end.")] = 2,
    far: Annotated[int, typer.Option(help="Loops after which the loop counts as at its own end.")] = 1000,
    tolerance: Annotated[float, typer.Option(help="Of |F(x) - x| / |x|.")] = 1e-9,
    max_iterations: Annotated[int, typer.Option(help="The most iterations of the solver.")] = 100,
    *,
    common: Common,
) -> None:
    """Find fixed points directly, stable or not."""
    one_of(method, ("newton_krylov", "anderson"), "method")
    at_least(random_starts, 0, "random_starts")
    at_least(far, 1, "far")
    at_least(max_iterations, 1, "max_iterations")
    options = {
        "method": method, "random_starts": random_starts, "far": far, "tolerance": tolerance,
        "max_iterations": max_iterations,
    }  # fmt: skip
    show(*ask("fixed_points", options, "fixed-points", common), common.png)


@with_common()
def exit_(
    loops: Annotated[int, typer.Option(help="The most loops that a rule may run.")] = 100,
    *,
    common: Common,
) -> None:
    """Compare rules of early exit."""
    at_least(loops, 1, "loops")
    show(*ask("exit", {"loops": loops}, "exit", common), common.png)


@with_common(prompts=256)
def extrapolate(
    lengths: Annotated[
        str | None,
        typer.Option(help="Lengths of the prompts, such as 4:32:4; default: evenly spread."),
    ] = None,
    reach: Annotated[float, typer.Option(help="Without --lengths: up to so many times the training's longest.")] = 2.0,
    loops: Annotated[int | None, typer.Option(help="The most loops; default: twice those of the longest.")] = None,
    works: Annotated[float, typer.Option(help="Share of prompts right as a whole that solves a length.")] = 0.9,
    *,
    common: Common,
) -> None:
    """Map what a token model solves: length by loops, beyond the training."""
    at_least(loops, 1, "loops")
    if not 0 < works <= 1:
        raise LoopprobeError(f"works ({works}) must be above 0 and at most 1: it is a share of the prompts")
    options = {
        "lengths": None if lengths is None else tuple(parse_numbers(lengths, "--lengths")),
        "reach": reach, "loops": loops, "works": works,
    }  # fmt: skip
    show(*ask("extrapolate", options, "extrapolate", common), common.png)


@with_common(prompts=64)
def recover(
    after: Annotated[
        int | None, typer.Option(help="Push the state after this many loops; default: as many as in training.")
    ] = None,
    loops: Annotated[int, typer.Option(help="Loops that follow the push.")] = 40,
    positions: Positions = None,
    *,
    common: Common,
) -> None:
    """Push the state at one token; does the loop come back?"""
    at_least(after, 1, "after")
    at_least(loops, 1, "loops")
    options = {"after": after, "loops": loops, "positions": parse_choice(positions, "--positions")}
    show(*ask("recover", options, "recover", common), common.png)


@with_common()
def failures(
    loops: Annotated[int, typer.Option(help="Loops in all; they go on beyond the training.")] = 500,
    before: Annotated[
        int, typer.Option(help="Loops before and after a first failure in which the motion is looked at.")
    ] = 30,
    spectra: Annotated[
        bool,
        typer.Option(
            "--spectra/--no-spectra", help="Whether the spectral radius is a sign too; as slow as some 200 loops."
        ),
    ] = True,
    *,
    common: Common,
) -> None:
    """Which prompts fail when the loop goes on, and what told so?"""
    at_least(loops, 1, "loops")
    at_least(before, 1, "before")
    show(*ask("failures", {"loops": loops, "before": before, "spectra": spectra}, "failures", common), common.png)


@with_common(prompts=6)
def paths(
    loops: Annotated[int, typer.Option(help="Loops to follow.")] = 300,
    positions: Positions = None,
    *,
    common: Common,
) -> None:
    """Draw the paths of states; the limit of each layer."""
    at_least(loops, 1, "loops")
    options = {"loops": loops, "positions": parse_choice(positions, "--positions")}
    show(*ask("paths", options, "paths", common), common.png)


@with_common(without=OF_PROMPTS)
def weights(
    layers: Layers = None,
    heads: Heads = None,
    fold: Annotated[
        bool | None,
        typer.Option("--fold/--raw", help="Put the gains of norms into the weights; default: where they are known."),
    ] = None,
    draws: Annotated[int, typer.Option(help="Random rotations and random weights that chance is told from.")] = 1000,
    *,
    common: Common,
) -> None:
    """Read heads from their weights: OV, QK, and composition."""
    at_least(draws, 100, "draws")
    options = {
        "layers": parse_choice(layers, "--layers"), "heads": parse_choice(heads, "--heads"), "fold": fold,
        "draws": draws,
    }  # fmt: skip
    show(*ask("weights", options, "weights", common), common.png)


VERBS: dict[str, Callable[..., None]] = {
    "cache": cache,
    "lens": lens,
    "align": align,
    "decode": decode,
    "attribute": attribute,
    "attention": attention,
    "fixed-points": fixed_points,
    "exit": exit_,
    "extrapolate": extrapolate,
    "failures": failures,
    "recover": recover,
    "paths": paths,
    "weights": weights,
}
