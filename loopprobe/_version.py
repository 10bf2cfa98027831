"""The version of loopprobe, which pyproject.toml reads here."""

__version__ = "0.2.0"
