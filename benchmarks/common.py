"""What the benchmarks share."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch


def synchronise(device: torch.device) -> None:
    """Wait for what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def in_a_process(script: str, *arguments: str, **environment: str) -> Any:
    """What a benchmark prints as JSON when it is run with these arguments in a process of its own."""
    command, own = [sys.executable, script, *arguments], os.environ | environment
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=own).stdout)


def out_path(script: str, device: torch.device | str = "cpu") -> Path:
    """Where a benchmark writes: beside itself, ``name.json`` on a CPU and ``name-cuda.json`` on a GPU."""
    kind = torch.device(device).type
    path = Path(script)
    return path.with_name(path.stem + ("" if kind == "cpu" else f"-{kind}") + ".json")


def write(script: str, found: dict[str, Any], device: torch.device | str = "cpu") -> None:
    """Write what was measured, and say where."""
    if "machine" in found:
        found = {**found, "machine": found["machine"] | {"cpu": processor()}}
    path = out_path(script, device)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(path)


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
