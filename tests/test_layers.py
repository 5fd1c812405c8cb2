"""Who may import whom (stages are the library, papers are the leaves). Read from the exported
modules, so a notebook cannot hide an import.
"""

import ast

import pytest
from conftest import ROOT

NOTEBOOKS = {p.stem[3:]: int(p.stem[:2]) for p in (ROOT / "nbs").glob("[0-9][0-9]_*.ipynb")}
MODULES = sorted(
    p for p in (ROOT / "skinrepro").rglob("*.py") if p.name not in ("__init__.py", "_modidx.py")
)
MAY = {
    0: {0},
    1: {0, 1},
    2: {0, 2},
    3: {0, 1, 2, 3},
    4: {0, 1, 4},
    5: {0, 5},
    6: {0, 5, 6},
    7: set(range(8)),
}  # stage -> stages it may import
HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "matplotlib",
    "seaborn",
    "sklearn",
    "scipy",
    "PIL",
    "requests",
    "papermill",
    "nbclient",
    "jupyterlab",
}


def name_of(path):
    return ".".join(path.relative_to(ROOT / "skinrepro").with_suffix("").parts)


def imports(path):
    "(imported module of this package, whether at module level) and top-level foreign packages."
    tree = ast.parse(path.read_text())
    here = ("skinrepro." + name_of(path)).split(".")
    own, foreign = set(), set()
    top = {id(n) for n in tree.body}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: -node.level]) if node.level else ""
            names = [".".join(filter(None, [base, node.module or ""]))]
            if names[0] == "skinrepro":
                names = [f"skinrepro.{a.name}" for a in node.names]
        for n in names:
            if n.startswith("skinrepro."):
                own.add(n.removeprefix("skinrepro."))
            elif id(node) in top:
                foreign.add(n.split(".")[0])
    return own - {"__version__"}, foreign


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_follow_the_stages(path):
    mine = name_of(path)
    own, _ = imports(path)
    papers = {o for o in own if o.startswith("papers.")}
    assert not papers - {mine}, (
        f"{mine} imports a paper: {papers}. Papers are leaves; move what is shared into a stage."
    )
    if mine.startswith("papers."):
        return
    own -= {mine}  # a module may name itself, e.g. for worker processes
    assert mine in NOTEBOOKS, f"skinrepro/{mine}.py has no numbered notebook"
    for o in own:
        assert o in NOTEBOOKS, f"{mine} imports {o}, which is not a module of a numbered notebook"
        a, b = NOTEBOOKS[mine], NOTEBOOKS[o]
        assert b // 10 in MAY[a // 10], (
            f"stage {a // 10} ({mine}) may not import stage {b // 10} ({o})"
        )
        assert b // 10 != a // 10 or b < a, (
            f"{mine} ({a:02d}) imports {o} ({b:02d}): within a stage only from a lower number"
        )


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_libraries_are_imported_where_they_are_used(path):
    assert not imports(path)[1] & HEAVY, (
        f"{name_of(path)} imports {imports(path)[1] & HEAVY} at module level, which makes every"
        " command wait for it"
    )


def test_every_module_is_exported_from_one_notebook():
    assert set(NOTEBOOKS) == {name_of(p) for p in MODULES if not name_of(p).startswith("papers.")}
    assert {p.parent.name for p in (ROOT / "nbs" / "papers").glob("*/protocol.ipynb")} == {
        p.stem for p in MODULES if p.parent.name == "papers"
    }


def test_import_is_light():
    import subprocess
    import sys

    code = (
        "import time; t = time.perf_counter(); import sys; before = set(sys.modules); import"
        ' skinrepro; print(sorted({m.split(".")[0] for m in set(sys.modules) - before}),'
        " time.perf_counter() - t)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.startswith("['skinrepro']"), out  # nothing else is loaded, so it takes milliseconds
