"""Table files: parquet, and CSV with any separator and decimal mark, compressed or not."""

from __future__ import annotations

import collections
import csv
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopprobe.errors import LoopprobeError

if TYPE_CHECKING:
    import pandas as pd

BUNDLED = ("diabetes", "wine", "breast_cancer", "iris", "digits", "linnerud")  # scikit-learn's
TEXT, COMPRESSED = (".csv", ".tsv"), (".gz", ".bz2", ".xz", ".zip", ".zst")
SEPARATORS = ",;\t|"


def read_file(path: Path) -> pd.DataFrame:
    """Read the table in a file: .csv or .tsv, also compressed (.csv.gz), or .parquet.

    Separators (comma, semicolon, tab, bar) and decimal commas are recognised. Lines that begin with ``#`` are comments.
    A first column without a name that counts the rows, as pandas writes it, is left out with a warning.

    Raises:
        LoopprobeError: there is no such file, it is not a table, or two columns have the same name.
    """
    import pandas as pd

    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    kind = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] in COMPRESSED else suffixes[-1] if suffixes else ""
    if kind not in (*TEXT, ".parquet"):
        raise LoopprobeError(
            f"{path} is no table: give a .csv or .parquet file (or .tsv, .csv.gz), or one of {', '.join(BUNDLED)}"
        )
    separator = ""
    try:
        if kind == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame, separator = _read_text(path)
    except FileNotFoundError:
        raise LoopprobeError(f"no table at {path}: check the path") from None
    except ImportError as error:
        needed = "'loopprobe[tables]'" if kind == ".parquet" else "zstandard"
        raise LoopprobeError(f"{path} cannot be read ({error}): pip install {needed}".replace("\n", " ")) from None
    except (OSError, ValueError, EOFError, csv.Error) as error:
        raise LoopprobeError(f"{path} cannot be read ({' '.join(str(error).split())}): mend the file") from None
    if frame.shape[1] < 2 or not len(frame):
        split = f", split at {separator!r}" if separator else ""
        raise LoopprobeError(
            f"{path} holds {len(frame)} rows and {frame.shape[1]} columns{split}: it needs inputs and a label"
        )
    return frame


def _read_text(path: Path) -> tuple[pd.DataFrame, str]:
    """Read a text file as a table; return it with the separator of its columns."""
    import pandas as pd
    from pandas.io.common import get_handle

    with get_handle(path, "r", encoding="utf-8-sig", compression="infer", errors="strict") as opened:
        lines = (line.rstrip("\n") for line in opened.handle if line.strip() and not line.startswith("#"))
        first = [line for line, _ in zip(lines, range(20), strict=False)]
    separator = _separator(first)
    options: dict[str, Any] = {"sep": separator, "comment": "#" if _has_comments(path) else None}
    if separator != ",":  # a comma can then be a decimal mark
        options["decimal"] = (
            "," if not any("." in cell for line in first[1:] for cell in line.split(separator)) else "."
        )
    if first:
        names = next(csv.reader(first[:1], delimiter=separator))
        repeated = [name for name, count in collections.Counter(names).items() if count > 1]
        if repeated:
            raise LoopprobeError(f"{path}: several columns are called {repeated[0]!r}: rename or drop all but one")
    frame = pd.read_csv(path, encoding="utf-8-sig", **options)
    return _without_index(frame, path), separator


def _has_comments(path: Path) -> bool:
    """Check for lines that begin with ``#``; elsewhere in a line that character belongs to a value."""
    from pandas.io.common import get_handle

    with get_handle(path, "r", encoding="utf-8-sig", compression="infer", errors="strict") as opened:
        return any(line.startswith("#") for line, _ in zip(opened.handle, range(20), strict=False))


def _separator(lines: list[str]) -> str:
    """Choose the separator that splits the most lines into as many columns as the first line.

    The separator that gives more columns wins a tie. A comma is returned where no separator splits the lines.
    """

    def fit(separator: str) -> tuple[int, int]:
        counts = [len(row) for row in csv.reader(lines, delimiter=separator)]
        return (counts.count(counts[0]), counts[0]) if counts[0] > 1 else (0, 0)

    return max(SEPARATORS, key=fit) if lines else ","


def _without_index(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Drop the row numbers, which ``DataFrame.to_csv`` writes as a column without a name."""
    first = frame.columns[0]
    if not str(first).startswith("Unnamed: 0") or frame[first].dtype.kind not in "iu":
        return frame
    warnings.warn(f"{path}: the first column has no name and is left out: it is taken for the index", stacklevel=2)
    return frame.drop(columns=first)
