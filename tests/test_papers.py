"The shape of a paper folder: the same names in each, so that the file system is the registry."

import ast
import csv
import json
import re
import tomllib

import pytest
from conftest import ROOT

from skinrepro.core import PROFILES
from skinrepro.grid import RESERVED, read_grid
from skinrepro.runs import RESOURCES, declared

PAPERS = sorted(
    p for p in (ROOT / "nbs" / "papers").iterdir() if p.is_dir() and not p.name.startswith(".")
)
SECTIONS = [
    "What the paper claims",
    "What is run here",
    "Deviations",
    "Cost",
    "Artefacts",
]  # of index.ipynb


def cells(path, kind=None):
    return [c for c in json.loads(path.read_text())["cells"] if kind in (None, c["cell_type"])]


def text(path):
    return "\n\n".join("".join(c["source"]) for c in cells(path, "markdown"))


def headings(path):
    return re.findall(r"^#+ (.+)$", text(path), re.M)


def artefacts(paper):
    return list(
        dict.fromkeys(
            r["artefact"] for r in csv.DictReader((paper / "reported.csv").open(encoding="utf-8"))
        )
    )


def title(artefact):  # table1 -> Table 1, figA2 -> Figure A2
    kind, number = re.fullmatch(r"(table|fig)(.+)", artefact).groups()
    return f"{'Table' if kind == 'table' else 'Figure'} {number}"


def test_there_are_papers():
    assert PAPERS


@pytest.mark.parametrize("paper", PAPERS, ids=lambda p: p.name)
class TestPaper:
    def test_same_names_in_each(self, paper):
        for name in ("index.ipynb", "protocol.ipynb", "grid.toml", "reported.csv", "report.ipynb"):
            assert (paper / name).is_file(), f"{paper.name} lacks {name}"

    def test_index_has_its_sections(self, paper):
        found = headings(paper / "index.ipynb")
        assert [h for h in found if h in SECTIONS] == SECTIONS

    def test_index_lists_every_artefact_with_notebook_and_files(self, paper):
        table = text(paper / "index.ipynb")
        for a in artefacts(paper):
            if a == "text":
                continue
            line = next(
                (line for line in table.splitlines() if line.startswith(f"| {title(a)} ")), None
            )
            assert line, f"index.ipynb of {paper.name} has no line for {title(a)}"
            for notebook in re.findall(r"\]\((\w+\.ipynb)\)", line):
                assert (paper / notebook).is_file()
            for f in re.findall(r"`(figures/[^`]+)`", line):
                assert (ROOT / f).is_file(), f"{title(a)} names {f}, which is not there"

    def test_deviations_are_numbered(self, paper):
        part = text(paper / "index.ipynb").split("## Deviations")[1].split("\n## ")[0]
        numbers = [int(n) for n in re.findall(r"^(\d+)\. ", part, re.M)]
        assert numbers == list(range(1, len(numbers) + 1)) and numbers

    def test_report_has_a_heading_per_artefact(self, paper):
        found = {
            f"{m[1]} {n}"
            for h in headings(paper / "report.ipynb")
            if (m := re.match(r"(Table|Figure)s? ", h))
            for n in re.findall(r"[A-Z]?\d+[a-z]*", h)
        }
        for a in artefacts(paper):  # "Tables 2, 3 and 4" stands for three
            if a != "text":
                assert title(a) in found, f"report.ipynb has no heading for {title(a)}"

    def test_report_trains_nothing(self, paper):
        code = "\n".join("".join(c["source"]) for c in cells(paper / "report.ipynb", "code"))
        assert not re.search(r"\b(train_classifier|build|fit)\(", code)

    def test_grid_keys_exist_in_the_parameters_cell(self, paper):
        grid = tomllib.loads((paper / "grid.toml").read_text())
        for name, section in grid.items():
            assert "notebook" in section and section.get("rebuilds"), (
                f"[{name}] must name its notebook and what it rebuilds"
            )
            defaults = declared(paper / f"{section['notebook']}.ipynb")
            keys = {k for k in section if k not in RESERVED and k not in PROFILES} | {
                k for p in PROFILES for k in section.get(p, {})
            }
            assert keys <= {*defaults, *RESOURCES, "reads"}, f"[{name}] sets {keys - set(defaults)}"
            if not section.get("extra"):
                assert set(section["rebuilds"]) <= set(artefacts(paper))
        for profile in ("mini", "paper"):
            assert read_grid(paper, profile)

    @pytest.mark.parametrize("profile", ["smoke", "mini", "paper"])
    def test_grid_has_runs_at_every_profile(self, paper, profile):
        grid = read_grid(paper, profile)
        assert grid and {r.parameters.get("profile", profile) for r in grid} == {profile}

    def test_experiment_notebooks_keep_the_parameters_tag(self, paper):
        for name in {
            s["notebook"] for s in tomllib.loads((paper / "grid.toml").read_text()).values()
        } | {"report"}:
            assert declared(paper / f"{name}.ipynb")

    def test_parameters_cell_holds_the_smoke_values(self, paper):
        for s in tomllib.loads((paper / "grid.toml").read_text()).values():
            assert declared(paper / f"{s['notebook']}.ipynb").get("profile") == "smoke"


def code_lines(paper):
    "Lines of code of each notebook of a paper, without blank ones and indentation."
    for path in sorted(paper.glob("*.ipynb")):
        source = "\n".join("".join(c["source"]) for c in cells(path, "code"))
        yield path, [line.strip() for line in source.splitlines() if line.strip()]


def runs_of_lines(paper, n):
    "Every n lines in a row of a paper -> where they begin."
    return {
        tuple(lines[i : i + n]): f"{path.parent.name}/{path.name}, line {i + 1}: {lines[i]}"
        for path, lines in code_lines(paper)
        for i in range(len(lines) - n + 1)
    }


def test_no_two_papers_share_ten_lines():
    "What two papers have in common belongs to a stage."
    assert len(PAPERS) > 1
    for i, one in enumerate(PAPERS):
        theirs = runs_of_lines(one, 10)
        for other in PAPERS[i + 1 :]:
            shared = runs_of_lines(other, 10).keys() & theirs
            assert not shared, [theirs[s] for s in shared][:3]


def test_shared_lines_are_found(tmp_path):
    "The search sees ten lines that one paper has copied from another, in another indentation."
    body = [f"x{i} = {i}" for i in range(10)]
    for name, source in (
        ("one", "\n".join(body)),
        ("two", "if True:\n    " + "\n    ".join(body)),
        ("three", "\n".join(body[:9])),
    ):
        (tmp_path / name).mkdir()
        cell = dict(cell_type="code", source=source, metadata={})
        (tmp_path / name / "a.ipynb").write_text(json.dumps(dict(cells=[cell])))
    found = {n: set(runs_of_lines(tmp_path / n, 10)) for n in ("one", "two", "three")}
    assert found["one"] & found["two"] and not found["one"] & found["three"]


def loop_names(source):
    "Names that loops of a cell take, outside of functions and comprehensions."
    found, todo = set(), list(ast.parse(source).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.For):
            found |= {n.id for n in ast.walk(node.target) if isinstance(n, ast.Name)}
        if isinstance(node, (ast.For, ast.While, ast.If, ast.With, ast.Try)):
            todo += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]
    return found


@pytest.mark.parametrize("paper", PAPERS, ids=lambda p: p.name)
def test_no_loop_takes_the_name_of_a_parameter(paper):
    "All cells below would go on with its last value: with another data set, say."
    assert loop_names("if 1:\n    for a, (b, c) in x:\n        pass") == {"a", "b", "c"}
    with_parameters = [
        path
        for path in sorted(paper.glob("*.ipynb"))
        if any("parameters" in c["metadata"].get("tags", []) for c in cells(path))
    ]
    assert paper / "report.ipynb" in with_parameters
    for path in with_parameters:
        told = declared(path)
        for cell in cells(path, "code"):
            taken = loop_names("".join(cell["source"])) & set(told)
            assert not taken, f"{path.name}, cell {cell['id']}: {taken}"
