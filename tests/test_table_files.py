"""Tables as people have them: separators, decimal marks, compression, comments, the index that pandas writes."""

import numpy as np
import pandas as pd
import pytest

from loopprobe.errors import LoopprobeError
from loopprobe.tasks.tables import load_table


def frame():
    return pd.DataFrame(np.random.default_rng(0).normal(size=(40, 3)), columns=["a", "b", "y"])


def assert_same(path):
    table = load_table(str(path))  # pandas before 3.1 rounds the last digit
    assert (table.columns, table.target, table.n_classes) == (("a", "b"), "y", 0)
    np.testing.assert_allclose(table.inputs, frame()[["a", "b"]].to_numpy(), rtol=1e-13)
    np.testing.assert_allclose(table.labels, frame()["y"].to_numpy(), rtol=1e-13)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".CSV", ".csv.bz2", ".tsv.xz"])
def test_separators_and_compression_are_recognised(tmp_path, separator, suffix):
    path = tmp_path / f"mine{suffix}"
    frame().to_csv(path, index=False, sep=separator)
    assert_same(path)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_decimal_commas_are_recognised(tmp_path, separator):
    frame().to_csv(tmp_path / "mine.csv", index=False, sep=separator, decimal=",")
    assert_same(tmp_path / "mine.csv")


def test_quoted_decimal_commas_are_numbers_or_named(tmp_path):
    frame().to_csv(tmp_path / "mine.csv", index=False, decimal=",")
    with pytest.raises(LoopprobeError, match="column 'a' holds text"):
        load_table(str(tmp_path / "mine.csv"))


@pytest.mark.parametrize("separator", [",", ";"])
def test_the_index_of_pandas_is_left_out_with_a_note(tmp_path, separator):
    frame().to_csv(tmp_path / "mine.csv", sep=separator)
    with pytest.warns(UserWarning, match="first column has no name and is left out"):
        assert_same(tmp_path / "mine.csv")


def test_comments_and_byte_order_marks_are_read(tmp_path):
    text = "# measured in May\n# by hand\n" + frame().to_csv(index=False)
    (tmp_path / "mine.csv").write_text(text, encoding="utf-8-sig")
    assert_same(tmp_path / "mine.csv")


def test_a_hash_within_values_is_no_comment(tmp_path):
    data = frame().assign(y=np.where(frame()["a"] > 0, "#1", "#2"))
    data.to_csv(tmp_path / "mine.csv", index=False)
    assert load_table(str(tmp_path / "mine.csv")).n_classes == 2


INFINITE = frame().assign(b=np.where(np.arange(40) < 5, np.inf, frame()["b"]))


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda folder: frame().to_csv(folder / "x.csv", index=False, header=["a", "a", "y"]), "called 'a'"),
        (lambda folder: frame().to_csv(folder / "x.csv", index=False, header=["a", "b", "b"]), "called 'b'"),
        (lambda folder: INFINITE.to_csv(folder / "x.csv", index=False), "column 'b' holds 5 infinite values"),
        (lambda folder: INFINITE[["a", "y", "b"]].to_csv(folder / "x.csv", index=False), "label 'b' holds 5 infinite"),
        (lambda folder: (folder / "x.csv").write_bytes(b"\xff\xfe\x00broken"), "cannot be read"),
        (lambda folder: (folder / "x.csv").write_text("a~b~y\n1~2~3\n4~5~6\n"), "1 columns, split at ','"),
        (lambda folder: (folder / "x.csv").write_text("a,b,y\n"), "0 rows"),
        (lambda folder: (folder / "x.csv").write_text("a,b,y\n1,2,3\n1,2,3,4,5\n"), "cannot be read"),
        (lambda folder: (folder / "x.csv").mkdir(), "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(tmp_path, write, match):
    write(tmp_path)
    with pytest.raises(LoopprobeError, match=match) as error:
        load_table(str(tmp_path / "x.csv"))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_compressed_as_it_says_is_refused(tmp_path):
    (tmp_path / "x.csv.gz").write_text("a,b,y\n1,2,3\n")
    with pytest.raises(LoopprobeError, match="cannot be read"):
        load_table(str(tmp_path / "x.csv.gz"))
