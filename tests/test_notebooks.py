"""Every notebook runs from top to bottom, offline and with its default parameters, in a fresh
kernel and in another folder than its own.
"""

import json
import os

import pytest
from conftest import ROOT

NOTEBOOKS = sorted(
    p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_notebook_runs(path, executed):
    at = executed(path)
    done = [
        c for c in json.loads((at / "out.ipynb").read_text())["cells"] if c["cell_type"] == "code"
    ]
    assert all(c["execution_count"] for c in done if "".join(c["source"]).strip())
    assert json.loads((at / "changed.json").read_text()) == []
    assert os.listdir(at / "elsewhere") == []
