"""Who may import whom (stages are the library, papers are the leaves). Read from the exported
modules, so a notebook cannot hide an import.
"""

import ast
import json
import re
import subprocess
import sys

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
NETWORKS = {"torch", "torchvision", "timm", "diffusers", "transformers", "peft", "accelerate"}
ELSEWHERE = {"matplotlib", "seaborn", "requests", "papermill", "nbclient", "jupyterlab"}
HEAVY = NETWORKS | ELSEWHERE | {"sklearn", "scipy", "PIL"}
WITH_NETWORKS = {2, 3, 4}  # stages that may load heavy libraries when they are imported
IMPORTERS = ("import_module", "__import__")


def name_of(path):
    return ".".join(path.relative_to(ROOT / "skinrepro").with_suffix("").parts)


def key_of(name):  # papers.wang2024 and papers.wang2024_more are of one paper
    return name.removeprefix("papers.").partition("_")[0] if name.startswith("papers.") else None


def stage(name):  # of a module; None for a paper
    return None if name.startswith("papers.") else NOTEBOOKS[name] // 10


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
    papers = {o for o in own if o.startswith("papers.") and key_of(o) != key_of(mine)}
    assert not papers, (
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
    mine = name_of(path)
    kept_out = ELSEWHERE if stage(mine) in WITH_NETWORKS else HEAVY
    found = imports(path)[1] & kept_out
    assert not found, (
        f"{mine} imports {found} at module level, which makes every command wait for it: import it"
        " in the function that needs it"
    )


# A paper that is named at run time
# -------------------------------------------------------------------------------------------------


def docstrings(tree):
    "Constants that document and do nothing."
    return {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}


def papers_named(source):
    "Lines of code that name a paper's module, or import what cannot be known to be none."
    tree = ast.parse(source)
    prose, found = docstrings(tree), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            what = node.args[0] if node.args else None
            known = isinstance(what, ast.Constant) and isinstance(what.value, str)
            if called in IMPORTERS and not (known and not re.search(r"(^|\.)papers\b", what.value)):
                found.append(node.lineno)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in prose and re.search(r"skinrepro[./]papers", node.value):
                found.append(node.lineno)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "skinrepro.papers":
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    "source",
    [
        "from importlib import import_module\nimport_module(f'skinrepro.papers.{x}')",
        "import importlib\nimportlib.import_module(name)",
        "import_module('skinrepro.papers.wang2024')",
        "import_module('.papers.wang2024', 'skinrepro')",
        "import_module(name='json')",  # not seen to be harmless
        "__import__('skinrepro' + '.papers')",
        "code = 'from skinrepro.papers import wang2024'",
        "code = f'skinrepro.papers.{x}'",
        "import skinrepro\nskinrepro.papers.wang2024.load()",
        "run('skinrepro/papers/wang2024.py')",
    ],
)
def test_a_paper_that_is_named_at_run_time_is_seen(source):
    assert papers_named(source)


@pytest.mark.parametrize(
    "source",
    [
        "import_module('json')",
        "from importlib.metadata import version",
        "def f():\n    'As in skinrepro.papers.'\n    return 1  # skinrepro.papers",
        "folder = root / 'nbs' / 'papers'",
    ],
)
def test_what_names_no_paper_passes(source):
    assert not papers_named(source)


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p.parent.name != "papers" and stage(name_of(p)) < 7], ids=name_of
)
def test_nothing_below_stage_7_names_a_paper(path):
    found = papers_named(path.read_text())
    assert not found, (
        f"{path.name}, line {found[0]}: a stage below 7 names a paper's module or imports a module"
        " whose name is put together. Pass the function or module in."
    )


def test_every_module_is_exported_from_one_notebook():
    assert set(NOTEBOOKS) == {name_of(p) for p in MODULES if not name_of(p).startswith("papers.")}
    exported = {
        f: re.search(r"#\| *default_exp papers\.(\w+)", f.read_text(encoding="utf-8"))
        for f in (ROOT / "nbs" / "papers").glob("*/*.ipynb")
    }
    of = {f: m[1] for f, m in exported.items() if m}
    assert sorted(of.values()) == sorted(p.stem for p in MODULES if p.parent.name == "papers")
    for f, module in of.items():  # the protocol has the paper's name, others go on from it
        paper = f.parent.name
        assert module == (paper if f.stem == "protocol" else f"{paper}_{f.stem}"), f
    assert {f.parent for f, m in of.items() if f.stem == "protocol"} == {f.parent for f in of}


# What an import loads
# -------------------------------------------------------------------------------------------------


def loaded_by(*modules):
    "Top-level packages that each module adds to a fresh process, in turn."
    code = (
        "import importlib, json, sys; out = {}\n"
        f"for m in {modules!r}:\n"
        "    before = set(sys.modules); importlib.import_module(m)\n"
        "    out[m] = sorted({k.split('.')[0] for k in set(sys.modules) - before})\n"
        "print(json.dumps(out))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_import_is_light():
    assert loaded_by("skinrepro") == {"skinrepro": ["skinrepro"]}  # so it takes milliseconds


LIGHT = [name_of(p) for p in MODULES if stage(name_of(p)) not in WITH_NETWORKS]


def test_commands_and_protocols_load_no_networks():
    "The command line, the papers and all stages but those of models, generation, classifiers."
    assert "cli" in LIGHT and any(m.startswith("papers.") for m in LIGHT)
    loaded = loaded_by(*(f"skinrepro.{m}" for m in LIGHT))
    heavy = {m: sorted(NETWORKS & set(packages)) for m, packages in loaded.items()}
    heavy = {m: h for m, h in heavy.items() if h}
    assert not heavy, f"{heavy}: import stages 2 to 4 in the functions that need them"
