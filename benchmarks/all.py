"""All benchmarks, and the page that shows them.

python benchmarks/all.py              # more than two hours on two free cores; --device cuda on a GPU
python benchmarks/all.py --only stack --only cache
python benchmarks/all.py --page       # writes docs/benchmarks.md anew from what was measured
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import out_path
from goals import goals
from speedrun import SHOWN

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER.parent / "docs" / "benchmarks.md"
SPEEDRUN = [*(f"--recipe={recipe}" for recipe in SHOWN), "--to-the-end"]
RUNS: dict[str, dict[str, list[str]]] = {  # a benchmark, the devices that it runs on, and its arguments there
    "commands": {"cpu": []},
    "train_step": {"cpu": ["--budget", "300"], "cuda": ["--budget", "60"]},
    "token_step": {"cpu": [], "cuda": []},
    "stack": {"cpu": [], "cuda": []},
    "speedrun": {"cpu": ["--recipe=sprint", "--seeds=0,1,2,3,4"], "cuda": SPEEDRUN},
    "probes": {"cpu": []},
    "memory": {"cpu": []},
    "cache": {"cpu": []},
    "wrapped": {"cpu": []},
    "session": {"cpu": []},
    "sweep": {"cpu": []},
    "report": {"cpu": []},
    "baselines": {"cpu": []},
    "intervals": {"cpu": []},
    "layer": {"cpu": []},
    "roofline": {"cpu": []},
    "counts": {"cpu": []},
}
HEAD = """# Benchmarks

Where a benchmark compares ways to do one thing, it takes them in turn in one run, so that what it says are ratios. This
page is written by `python benchmarks/all.py` from the JSON files in `benchmarks/`; a single benchmark has its own
command, and `benchmarks/SPEEDRUN.md` tells what was tried to make training faster.
"""


def section(name: str) -> str:
    """What a benchmark is, its command, and what it found on every kind of machine."""
    module = importlib.import_module(name)
    title, _, about = str(module.__doc__).strip().partition("\n\n")
    parts = [f"## {title.rstrip('.')}", about]
    if any(RUNS[name].values()):
        parts.append(f"The rows here are those of {_commands(name)}.")
    for kind in RUNS[name]:
        path = out_path(str(FOLDER / f"{name}.py"), kind)
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            parts += [_machine(found), module.page(found)]
        else:
            device = " --device cuda" if kind == "cuda" else ""
            parts.append(f"On {kind}: not measured. `python benchmarks/all.py --only {name}{device}` does it.")
    return "\n\n".join(parts)


def _commands(name: str) -> str:
    """The commands of a benchmark's rows in words, with the device where they differ by it."""
    lines = {kind: f"`{' '.join([f'python benchmarks/{name}.py', *given])}`" for kind, given in RUNS[name].items()}
    if len(set(lines.values())) == 1:
        return next(iter(lines.values()))
    return " and ".join(f"{line} ({kind})" for kind, line in lines.items())


def _machine(found: dict[str, Any]) -> str:
    if "torch" in found:
        return f"With torch {found['torch']}:"
    rows = [found] if "machine" in found else [row for seeds in found.values() for row in seeds.values()]
    machine, commits = rows[0]["machine"], dict.fromkeys(row["machine"]["git_commit"] for row in rows)
    parts = [machine["device"], machine.get("cpu", ""), f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"]
    return f"On {', '.join(filter(None, parts))}, torch {machine['torch']}, at {', '.join(commits)}:"


def page() -> str:
    """The whole page."""
    return "\n\n".join([HEAD.strip(), "## Goals", goals(), *map(section, RUNS)]) + "\n"


def main() -> None:
    """Run, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--only", action="append", choices=RUNS, help="may be given several times")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    args = parser.parse_args()
    for name in [] if args.page else args.only or RUNS:
        if args.device not in RUNS[name]:
            continue
        print(f"== {name}", flush=True)
        device = ["--device", args.device] if "cuda" in RUNS[name] else []
        subprocess.run([sys.executable, str(FOLDER / f"{name}.py"), *RUNS[name][args.device], *device], check=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
