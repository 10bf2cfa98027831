"""The command line: one verb for each thing that people do, its options, and what it prints.

Heavy imports stand inside the verbs, so that --help answers at once, and nothing is computed here.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from concurrent.futures import BrokenExecutor
from typing import Annotated

import typer

from loopprobe._version import __version__
from loopprobe.cli import explore, inside, interventions, models, probes, results
from loopprobe.cli.options import Interrupted, OnceCommand
from loopprobe.cli.output import recording
from loopprobe.errors import LoopprobeError
from loopprobe.support.memory import keep_freed_memory
from loopprobe.support.storage import release_all

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train looped transformers and probe what happens in every loop.",
)
VERBS = models.VERBS | results.VERBS | explore.VERBS | probes.VERBS | inside.VERBS | interventions.VERBS
for name, verb in VERBS.items():
    app.command(name, cls=OnceCommand)(verb)

# The base of what typer raises for a wrong command line; typer itself exports only this child of it.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]


def main() -> None:
    """Entry point: a mistake of the user is one line and exit code 2; --debug shows the traceback."""
    keep_freed_memory()
    is_main = threading.current_thread() is threading.main_thread()
    before, hook = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    if is_main:
        signal.signal(signal.SIGTERM, _interrupt)  # ends as Ctrl-C does: what is done is kept
        sys.unraisablehook = _interrupt_again
    try:
        with recording("--json" in sys.argv):
            code = app(args=[arg for arg in sys.argv[1:] if arg not in ("--debug", "--json")], standalone_mode=False)
    except (LoopprobeError, _USAGE_ERROR) as error:
        if "--debug" in sys.argv:
            raise
        message = str(error)
        if isinstance(error, _USAGE_ERROR):
            message = f"{error.format_message()} (given: {' '.join(sys.argv[1:])}; see --help)"  # type: ignore[attr-defined]
        print(f"loopprobe: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, Interrupted, typer.Abort) as interrupt:
        print(f"loopprobe: interrupted; {str(interrupt) or _GO_ON.get(_verb(), 'run it again')}", file=sys.stderr)
        sys.exit(130)
    except BrokenExecutor:
        print("loopprobe: a worker was killed, perhaps for want of memory: what is done is kept; run it again with "
              "fewer --workers", file=sys.stderr)  # fmt: skip
        sys.exit(1)
    except OSError as error:
        if "--debug" in sys.argv:
            raise
        where = f" {error.filename}" if error.filename else ""
        print(f"loopprobe: cannot read or write{where} ({error.strerror or error}): free the disk, or choose another "
              "path", file=sys.stderr)  # fmt: skip
        sys.exit(2)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        print(f"loopprobe: unexpected {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
        sys.exit(1)
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
            sys.unraisablehook = hook
        release_all()
    sys.exit(code if isinstance(code, int) else 0)


_GO_ON = {  # after Ctrl-C
    "sweep": "finished models and last states are kept: the same command goes on",
    "report": "answers so far are kept: the same command goes on",
    "run": "answers so far are kept: the same command goes on",
    "cache": "the loops that were written can be read with loopprobe.open_cache",
    "evaluate": "checkpoints so far have their new errors",
}


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Interrupt once more where Ctrl-C came in a callback of a weak reference, which keeps exceptions to itself."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        later = threading.Timer(0.05, _thread.interrupt_main, [signal.SIGTERM])
        later.daemon = True
        later.start()
    else:
        sys.__unraisablehook__(unraisable)


def _verb() -> str:
    return next((arg for arg in sys.argv[1:] if not arg.startswith("-")), "")


def _version(show: bool) -> bool:
    if show:
        print(f"loopprobe {__version__}")
        raise typer.Exit
    return show


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback where an error would be one line.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object: tables, sentences, files.")] = False,
) -> None:
    pass
