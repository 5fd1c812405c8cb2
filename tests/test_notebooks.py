"""Every notebook runs from top to bottom, offline and with its default parameters, in a fresh
kernel and in another folder than its own.
"""

import json
import os

import pytest
from conftest import ROOT

from skinrepro.runs import execute_notebook

NOTEBOOKS = sorted(
    p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("SKINREPRO_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    (tmp_path / "elsewhere").mkdir()
    kept = [*ROOT.glob("skinrepro/*.py"), *ROOT.glob("figures/*/*")]
    before = {f: f.stat().st_mtime for f in kept}
    execute_notebook(
        path, tmp_path / "out.ipynb", cwd=tmp_path / "elsewhere", execution_timeout=180
    )
    done = [
        c
        for c in json.loads((tmp_path / "out.ipynb").read_text())["cells"]
        if c["cell_type"] == "code"
    ]
    assert all(c["execution_count"] for c in done if "".join(c["source"]).strip())
    assert (
        before == {f: f.stat().st_mtime for f in kept} and os.listdir(tmp_path / "elsewhere") == []
    )
