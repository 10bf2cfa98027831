"""The map of the house in CONTRIBUTING.md, drawn from the code: ``python tests/house.py`` writes it anew."""

import ast
import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "loopprobe"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- drawn by tests/house.py -->\n", "<!-- end -->\n"


def rooms():
    """The rooms from left to right, as the contract orders them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "rooms")
    return [name for name in reversed(layers) if (PACKAGE / name).is_dir()]


def says(room):
    """What the docstring of a room says, in one paragraph."""
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
    return " ".join(text.split())


def imports():
    """Which rooms a room imports from, whatever kind the import is."""
    graph = grimp.build_graph("loopprobe", exclude_type_checking_imports=True, cache_dir=None)
    found = {room: set() for room in rooms()}
    for room in found:
        for module in {f"loopprobe.{room}"} | graph.find_descendants(f"loopprobe.{room}"):
            for other in graph.find_modules_directly_imported_by(module):
                name = [*other.split("."), ""][1]
                if name in found and name != room:
                    found[room].add(name)
    return found


def drawn():
    """The map: a row a room with what lives there, and the picture of the imports."""
    names, arrows = rooms(), imports()
    width = max(map(len, names))
    lines = ["| room | what lives there, and what does not |", "|---|---|"]
    lines += [f"| `{room}/` | {says(room)} |" for room in names]
    lines += ["", f"A row imports from the columns that are marked ({sum(map(len, arrows.values()))} arrows):", ""]
    lines += ["    " + " " * width + "  " + "  ".join(names)]
    for room in names:
        marks = "  ".join(("●" if other in arrows[room] else "·" if other == room else " ").center(len(other))
                          for other in names)  # fmt: skip
        lines += [("    " + room.ljust(width) + "  " + marks).rstrip()]
    return "\n".join(lines) + "\n"


def written():
    """The map as CONTRIBUTING.md shows it."""
    return CONTRIBUTING.read_text().split(BEGIN)[1].split(END)[0]


if __name__ == "__main__":
    before, rest = CONTRIBUTING.read_text().split(BEGIN)
    CONTRIBUTING.write_text(before + BEGIN + drawn() + END + rest.split(END)[1])
