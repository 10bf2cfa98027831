"""The verb that opens the explorer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loopprobe.cli.options import Common, Loops, named, output_folder, with_common
from loopprobe.cli.output import as_json, say
from loopprobe.cli.parsing import at_least
from loopprobe.errors import LoopprobeError

if TYPE_CHECKING:
    from loopprobe.show.explore.exploration import Exploration


@with_common(prompts=64, read="all")
def explore(
    what: Annotated[
        str | None,
        typer.Argument(
            help="Checkpoint, as --ckpt takes it, or FILE.nc of a probe; by default lr-b20-T10.", autocompletion=named
        ),
    ] = None,
    static: Annotated[
        bool,
        typer.Option("--static/--serve", help="Write a page with clean runs (as --out does), or serve it, live."),
    ] = False,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
    port: Annotated[int, typer.Option(help="Port of the loopback address; 0: any that is free.")] = 0,
    loops: Loops = None,
    shown: Annotated[int, typer.Option(help="Prompts whose runs a written page holds.")] = 3,
    effects: Annotated[bool, typer.Option("--effects", help="Also patch the first prompts of a written page.")] = False,
    *,
    common: Common,
) -> None:
    """Explore a run on one page: states, attention, answers.

    The page is served on this machine alone, with live runs: a click masks a token or takes a head out.
    """
    for value, least, option in ((loops, 1, "loops"), (shown, 1, "shown"), (port, 0, "port")):
        at_least(value, least, option)
    written = static or common.out is not None
    if common.png:
        raise LoopprobeError("explore makes a page: drop --png")
    if effects and not written:
        raise LoopprobeError("effects goes with a written page, and a served one measures them: add --static")
    if as_json() and not written:
        raise LoopprobeError("json goes with a written page, and a served one has no end: add --static")
    name = _name(what, common)
    from loopprobe.show.explore.session import explore as explored

    if name.endswith(".nc"):
        page = explored(name)
        _write(page, f"explore-{Path(name).stem}", common, browser)
        return
    exploration = _exploration(name, common, loops, shown, effects)
    if written:
        _write(exploration, f"explore-{exploration.subject.label}", common, browser)
        return
    exploration.serve(port, browser=browser, told=lambda line: say(sentences=[line]))
    os._exit(0)  # at once: nothing is being written, and Python's own end would wait for a run that cannot be stopped


def _name(what: str | None, common: Common) -> str:
    """The one model or file that is named."""
    given = [*([what] if what else []), *(common.ckpt or [])]
    if len(given) > 1:
        raise LoopprobeError(f"explore takes one model and {len(given)} are given ({', '.join(given)}): give one")
    from loopprobe.store.checkpoint import DEFAULT

    return given[0] if given else DEFAULT


def _exploration(name: str, common: Common, loops: int | None, shown: int, effects: bool) -> Exploration:
    from loopprobe.config.strict import build
    from loopprobe.probes.questions import Question, drawn
    from loopprobe.show.explore.exploration import EXAMPLE, Exploration
    from loopprobe.support.device import pick_device
    from loopprobe.wrapped.loading import PREFIX

    fields = common.question() | {"checkpoints": (name,)}
    if name.startswith(PREFIX) and not (common.text or common.text_file or common.text_pairs):
        fields |= {"text": (EXAMPLE,)}
    subject, prompts = drawn(fields, pick_device(common.device))
    spec = build(Question, {"probe": "explore"} | fields).spec
    return Exploration(subject, prompts, spec, loops, shown, effects)


def _write(page: Any, name: str, common: Common, browser: bool) -> None:
    """Write a page into a folder of results."""
    path = page.save(output_folder(name, common.out, common.overwrite) / "explore.html")
    say(files=[path])
    if browser and common.out is None and not as_json():
        typer.launch(path.resolve().as_uri())


VERBS: dict[str, Callable[..., None]] = {"explore": explore}
