"""Packages that are asked for by name: what needs one that is not installed says so before it is imported."""

from importlib.util import find_spec

from loopprobe.errors import LoopprobeError


def require_extra(package: str, extra: str, what: str) -> None:
    """Raise LoopprobeError where a package of an extra is not installed.

    Args:
        package: the name that is imported.
        extra: of loopprobe, which installs it.
        what: what needs it, in words.
    """
    if find_spec(package) is None:
        raise LoopprobeError(f"{what} needs {package}: pip install 'loopprobe[{extra}]'")
