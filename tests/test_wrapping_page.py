"""The page on wrapping: its code runs, and says what is true."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "wrapping.md"


def test_the_code_of_the_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 5
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["settles"].sizes["loop"] == 30
    assert names["reset"].error.notnull().all()
    assert names["trained"]().task_name == "RunningSum"
    model = names["model"]
    assert {"causal", "forward_mode", "linear_readout", "map"} <= model.supports
    assert model.anatomy.start == "zeros", "it was found"


def test_every_known_architecture_stands_in_the_table():
    from loopprobe.wrapped.architectures import ARCHITECTURES

    text = PAGE.read_text()
    families = {name.split("For")[0].removesuffix("Model") for name in ARCHITECTURES}
    assert all(family in text for family in families), families
