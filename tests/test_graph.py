"""A change of what code does is seen, and a change of how it looks is not: otherwise a formatter
would make every finished run out of date.
"""

import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, experiments

from skinrepro import graph

# what plans are made of: experiments, not reports, indices or protocols
EXPERIMENTS = [
    f for paper in sorted((ROOT / "nbs" / "papers").iterdir()) for f in experiments(paper)
]
NAMED = (
    "skinrepro.phantom.render",
    "skinrepro.papers.wang2024.learn_lora",
    "skinrepro.images.measure_images",
)


def ruff_format(path, **settings):
    given = [f"--config={name.replace('_', '-')}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--no-cache", *given, path]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def copied(tmp_path):
    "The package's modules and the experiments in a folder of their own."
    for f in (ROOT / "skinrepro").rglob("*.py"):
        to = tmp_path / f.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, to)
    for f in EXPERIMENTS:
        to = tmp_path / f.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, to)
    return tmp_path


def depends_on(root):
    "What each experiment depends on, and the hashes of functions that are named."
    out = {name: graph.code_hash(name, root=root) for name in NAMED}
    for f in EXPERIMENTS:
        code = graph.code_of(root / f.relative_to(ROOT))
        out[f.parent.name, f.stem] = graph.reached(code, root=root)
    return out


def test_there_are_experiments_that_depend_on_code():
    assert len({f.parent for f in EXPERIMENTS}) >= 2
    assert all(len(found) > 20 for k, found in depends_on(ROOT).items() if k not in NAMED)


@pytest.mark.parametrize(
    "style",
    [
        {"line_length": 60},
        {"line_length": 140, "format.quote_style": "'single'", "format.indent_style": "'tab'"},
    ],
    ids=["narrow", "other quotes"],
)
def test_formatting_changes_no_hash(copied, style):
    looks = (copied / "skinrepro" / "graph.py").read_text()
    ruff_format(copied, **style)
    assert (copied / "skinrepro" / "graph.py").read_text() != looks
    assert depends_on(copied) == depends_on(ROOT)
    for f in EXPERIMENTS:
        mine, theirs = (graph.notebook_hash(r / f.relative_to(ROOT)) for r in (ROOT, copied))
        assert mine == theirs, f


def test_one_changed_constant_is_seen_by_what_reaches_it(copied):
    file = copied / "skinrepro" / "phantom.py"
    text = file.read_text()
    assert text.count("SURFACE = 0.04 ") == 1
    file.write_text(text.replace("SURFACE = 0.04 ", "SURFACE = 0.05 "))
    before, after = depends_on(ROOT), depends_on(copied)
    assert before["skinrepro.phantom.render"] != after["skinrepro.phantom.render"]
    assert before["skinrepro.papers.wang2024.learn_lora"] == after[NAMED[1]]  # draws no phantom
    constant = "skinrepro.phantom.SURFACE"
    for key in before.keys() - set(NAMED):
        changed = graph.differences(before[key], after[key])
        assert changed == ([constant] if constant in before[key] else []), key
    assert any(constant in before[key] for key in before.keys() - set(NAMED))


def test_a_changed_cell_is_seen_and_the_parameters_are_not(copied):
    f = copied / EXPERIMENTS[0].relative_to(ROOT)
    before = graph.notebook_hash(f)
    text = f.read_text()
    f.write_text(text.replace('profile = \\"smoke\\"', 'profile = \\"mini\\"'))
    assert f.read_text() != text and graph.notebook_hash(f) == before
    f.write_text(text.replace("seed_all(", "seed_all(1 + "))
    assert f.read_text() != text and graph.notebook_hash(f) != before
