"""What goes into the wheel and the sdist beside the code: models, and the study's questions and grids.

Of every model goes its configuration. Weights and histories are heavy: those of the models named in pyproject.toml go
too, the others are listed in a registry with their SHA-256, by which an installed loopprobe fetches them.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Shipped(BuildHookInterface):
    """Choose the files of a build, see the module."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files of the models and the questions; an editable install reads them from the clone."""
        if version == "editable":
            return
        root, in_wheel = Path(self.root), self.target_name == "wheel"
        included = build_data["force_include"]
        models = root / "checkpoints"
        folder = "loopprobe/_checkpoints" if in_wheel else "checkpoints"
        left_out: dict[str, str] = {}
        kept = set(self.config["weights"])
        for path in sorted(path for path in models.rglob("*") if path.is_file() and not path.name.startswith(".")):
            name = path.relative_to(models)
            if name.as_posix() == "registry.json":  # of the sdist that this wheel is built from
                left_out |= json.loads(path.read_text(encoding="utf-8"))
                continue
            heavy = name.suffix in {".safetensors", ".jsonl"} or name.parts[0] == "hub"
            missing = heavy and name.parent.as_posix() not in kept
            if missing:
                left_out[name.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
            if not missing or (name.parts[0] == "hub" and name.name == "config.json"):  # by which the model is listed
                included[str(path)] = f"{folder}/{name}"
        self.registry = tempfile.TemporaryDirectory()
        listed = Path(self.registry.name) / "registry.json"
        listed.write_text(json.dumps(left_out, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        included[str(listed)] = f"{folder}/registry.json"
        if in_wheel:
            for path in sorted((root / "probes").glob("*.toml")):
                included[str(path)] = f"loopprobe/_questions/{path.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the registry's temporary file."""
        if version != "editable":
            self.registry.cleanup()
