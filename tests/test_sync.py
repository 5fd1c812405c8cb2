"Notebooks and package are in step, and notebooks are committed clean."

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

NOTEBOOKS = sorted(
    p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
)


def nbdev(name):
    return str(Path(sys.executable).with_name(name))


def test_export_changes_nothing(tmp_path):
    """Exporting all notebooks into a copy gives the package as it is, byte by byte, and no module
    without a notebook.
    """
    for name in ("nbs", "skinrepro", "settings.ini", "pyproject.toml", "README.md"):
        f = ROOT / name
        if f.is_dir():
            shutil.copytree(
                f,
                tmp_path / name,
                ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"),
            )
        else:
            shutil.copy(f, tmp_path / name)
    for f in (tmp_path / "skinrepro").rglob("*.py"):
        if f.name != "__init__.py":
            f.unlink()
    subprocess.run([nbdev("nbdev_export")], cwd=tmp_path, check=True, capture_output=True)
    ours = {f.relative_to(ROOT): f.read_text() for f in (ROOT / "skinrepro").rglob("*.py")}
    made = {f.relative_to(tmp_path): f.read_text() for f in (tmp_path / "skinrepro").rglob("*.py")}
    assert set(ours) == set(made)
    different = [str(f) for f in ours if ours[f] != made[f]]
    assert not different, (
        f"{different} differ from their notebooks: edit the notebook, then `make export`"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_notebook_is_clean(path):
    """No outputs (they change with the version of a library), no counts, no other metadata than
    tags; small.
    """
    nb = json.loads(path.read_text())
    for i, c in enumerate(nb["cells"]):
        assert set(c["metadata"]) <= {"tags"}, f"cell {i} has metadata {set(c['metadata'])}"
        if c["cell_type"] == "code":
            assert not c["outputs"] and c["execution_count"] is None, (
                f"cell {i} has outputs: `make export` strips them"
            )
    assert path.stat().st_size < 500_000 and len(nb["cells"]) <= 150
    assert nb["cells"][0]["cell_type"] == "markdown" and "".join(
        nb["cells"][0]["source"]
    ).startswith("# ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_every_export_is_followed_by_a_check(path):
    "Show, then assert: a notebook that exports also checks what it exports."
    code = [
        "".join(c["source"])
        for c in json.loads(path.read_text())["cells"]
        if c["cell_type"] == "code"
    ]
    if any(c.startswith("#| export") for c in code):
        assert any("assert" in c and not c.startswith("#| export") for c in code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_an_exported_cell_holds_one_definition(path):
    "One function or class a cell, so that each can be followed by its check."
    for i, c in enumerate(json.loads(path.read_text())["cells"]):
        source = "".join(c["source"])
        if c["cell_type"] == "code" and source.startswith("#| export"):
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            defined = [n.name for n in ast.parse(source).body if isinstance(n, kinds)]
            assert len(defined) < 2, f"cell {i} defines {defined}: give each a cell of its own"


def test_cleaning_keeps_the_parameters_tag(tmp_path):
    """nbdev_clean with our settings: an output of a cell may stay, the tag that papermill needs
    must.
    """
    for name in ("settings.ini", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(
        ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints")
    )
    shutil.copytree(ROOT / "skinrepro", tmp_path / "skinrepro")
    subprocess.run([nbdev("nbdev_clean")], cwd=tmp_path, check=True, capture_output=True)
    for f in NOTEBOOKS:
        assert (tmp_path / f.relative_to(ROOT)).read_text() == f.read_text(), (
            f"{f.name}: `make export` and commit"
        )
