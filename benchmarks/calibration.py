"""The thresholds between the types of limit, from maps whose limit is known, and how often those are mistaken.

    python benchmarks/calibration.py

writes loopprobe/dynamics/calibrated.json, which the probes read.
"""

from __future__ import annotations

import dataclasses
import json

import torch

from loopprobe.dynamics.calibration import RECORD, code_digest, compute_thresholds, confusion
from loopprobe.support.storage import write_json


def main() -> None:
    """Compute for both precisions, and write the record."""
    record: dict[str, object] = {"code": code_digest()}
    for dtype in (torch.float32, torch.float64):
        thresholds = compute_thresholds(dtype)
        mistaken = 1 - confusion(thresholds, dtype).diagonal()
        name = str(dtype).removeprefix("torch.")
        record[name] = {"thresholds": dataclasses.asdict(thresholds), "mistaken": mistaken.tolist()}
        print(name, json.dumps(record[name], indent=1))
    write_json(RECORD, record)


if __name__ == "__main__":
    main()
