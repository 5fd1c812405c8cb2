"""Committed tables change by one command: a made-up paper in a repository of its own, from the
first run to the second edition.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT, toy_notebook

PAPER = "jones2033"
GRID = """
[short]
notebook = "trial"
data = "phantom"
steps = 1
seed = [0, 1]

[long]
notebook = "trial"
data = "phantom"
steps = 9
seed = [0, 1]
"""
PARAMETERS = 'steps = 1\nseed = 0\ndata = "phantom"\nprofile = "mini"'
TRIAL = 'from skinrepro.runs import begin\n\nrun = begin("jones2033", "trial", globals())'
REPORT = """
from skinrepro.core import paths
from skinrepro.report import paper_records
from skinrepro.tables import save_table

every, outside = paper_records("jones2033")
t = every["trial"]
runs = t.groupby("steps").run_id.agg(lambda c: " ".join(sorted(set(c)))).rename("runs")
wide = t.groupby("steps").value.mean().rename("accuracy").to_frame().join(runs).reset_index()
wide = wide.assign(steps=wide.steps.astype(str), data="phantom")
save_table(wide, "jones2033/table1", "Table 1. By number of steps")
if not (paths().figures / "jones2033" / "note.md").is_file():  # as a gallery without its images
    save_table(wide, "jones2033/note", "Only where nothing is published")
"""
HELPERS = """
import json, sys
import pandas as pd
from typer.testing import CliRunner
from skinrepro.cli import app
from skinrepro.core import atomic_path, hash_rows, paths, provenance
from skinrepro.graph import inputs_of
from skinrepro.grid import read_grid
from skinrepro.runs import finish

def make(section=None, value=0.5):
    "Runs as if they had been executed."
    runs = read_grid(paths().papers / "jones2033", "mini", section)
    for r in runs:
        r.folder.mkdir(parents=True, exist_ok=True)
        inputs = inputs_of(r, {x.id: x for x in runs}, {})
        (r.folder / "inputs.json").write_text(json.dumps(inputs))
        number = pd.DataFrame(dict(metric=["accuracy"], group=["all"], value=[value], n=[4]))
        images = pd.DataFrame(dict(image_id=[f"i{r.parameters['seed']}"], label="psoriasis"))
        finish(r, number, provenance("phantom", hash_rows(images), profile="mini"), images=images)
    return [r.id for r in runs]

def told(*arguments):
    got = CliRunner().invoke(app, list(arguments))
    assert got.exception is None or isinstance(got.exception, SystemExit), repr(got.exception)
    return [got.exit_code, got.output]
"""


def git(at, *arguments):
    who = ["-c", "user.name=A Tester", "-c", "user.email=a@tester"]
    done = subprocess.run(["git", "-C", at, *who, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commit(at):
    git(at, "add", "-A")
    git(at, "commit", "-q", "-m", "next")
    return git(at, "rev-parse", "--short=12", "HEAD").strip()


def python(at, code):
    "What code in the project says last; its folders are those of somebody who sets nothing."
    env = {k: v for k, v in os.environ.items() if not k.startswith("SKINREPRO_")}
    done = subprocess.run(
        [sys.executable, "-c", HELPERS + code],
        cwd=at,
        env=env | dict(PYTHONPATH=str(at)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    at = tmp_path_factory.mktemp("publish") / "project"
    for name in ("skinrepro", "nbs", "workflow"):
        shutil.copytree(ROOT / name, at / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("requirements.lock", ".gitignore"):
        shutil.copy(ROOT / name, at)
    folder = at / "nbs" / "papers" / PAPER
    folder.mkdir()
    toy_notebook(folder / "trial.ipynb", PARAMETERS, TRIAL)
    toy_notebook(folder / "report.ipynb", 'data = "phantom"\nprofile = "mini"', REPORT)
    (folder / "grid.toml").write_text(GRID)
    git(at.parent, "init", "-q", str(at))
    commit(at)
    return at


def published(at):
    return pd.read_csv(at / "figures" / PAPER / "runs.csv", dtype=str)


def test_what_nobody_could_trace_is_refused_and_each_remedy_works(project):
    at = project
    code, said = python(at, f"print(json.dumps(told('publish', '{PAPER}')))")
    assert code == 1 and "4 of 4 runs" in said and "short: 2 missing" in said
    assert f"skinrepro run {PAPER} --profile mini" in said  # the command that makes them

    grid = at / "nbs" / "papers" / PAPER / "grid.toml"
    grid.write_text(GRID + "\n")  # a change that is not committed
    out = python(at, f"make(); print(json.dumps(told('publish', '{PAPER}')))")
    assert out[0] == 1 and f"nbs/papers/{PAPER}/grid.toml" in out[1] and "git commit" in out[1]
    commit(at)  # as it says
    code, said = python(at, f"print(json.dumps(told('publish', '{PAPER}')))")
    assert code == 1 and "4 of 4 runs were made from a tree with changes" in said
    remove = next(x for x in said.splitlines() if "rm -r" in x).strip()
    assert shlex.split(remove.strip("()"))[1] == str(at / "runs" / PAPER)
    subprocess.run(remove, shell=True, check=True)  # as it says
    assert not list((at / "runs" / PAPER).glob("trial-*"))
    assert not (at / "figures").exists()


def test_two_editions(project):
    at, ids = project, "[t[1] for t in said]"
    first = git(at, "rev-parse", "--short=12", "HEAD").strip()
    said = python(
        at,
        f"make(); said = [told('publish', '{PAPER}', '--dry-run'), told('publish', '{PAPER}')];"
        f"assert [t[0] for t in said] == [0, 0], said; print(json.dumps({ids}))",
    )
    assert "Would publish" in said[0] and "table table1: new" in said[0]
    assert "4 added" in said[1] and "git add" in said[1]
    home = at / "figures" / PAPER
    assert {f.name for f in home.iterdir()} >= {
        "records.csv",
        "runs.csv",
        "images.parquet",
        *(f"table1.{s}" for s in ("md", "csv", "tex")),
    }
    assert set(published(at).commit) == {first}
    changed = git(at, "status", "--porcelain", "--untracked-files=all").split()[1::2]
    assert changed and all(f.startswith(f"figures/{PAPER}/") for f in changed)
    commit(at)
    before = {f.name: f.read_bytes() for f in home.iterdir()}

    # the same again changes nothing, and neither does a report that is executed by hand
    by_hand = (
        "from skinrepro.runs import execute_notebook\n"
        f"at = paths().papers / '{PAPER}'\n"
        "execute_notebook(at / 'report.ipynb', paths().runs / 'by_hand.ipynb', cwd=at)\n"
        f"code, said = told('publish', '{PAPER}')\nassert code == 0, said\n"
        f"page = told('page', '{PAPER}'); assert page[0] == 0, page\n"
        "print(json.dumps([said, page[1], str(paths().made)]))"
    )
    said, page, made = python(at, by_hand)
    assert "4 runs replaced, 0 added" in said and "table table1: same" in said
    assert "0 files" in said and git(at, "status", "--porcelain") == ""
    assert made == str(at / "runs" / "figures") and f"{made}/{PAPER}/index.html" in page
    assert {f.name: f.read_bytes() for f in home.iterdir()} == before

    # the second edition of one section; the other one keeps its runs and their commit
    (at / "nbs" / "papers" / PAPER / "grid.toml").write_text(GRID + "\n\n")
    second = commit(at)
    code = (
        f"make('long', 0.25); mixed = told('publish', '{PAPER}')\n"
        f"one = told('publish', '{PAPER}', '--section', 'long')\nprint(json.dumps([mixed, one]))"
    )
    (mixed, refused), (code, said) = python(at, code)
    assert mixed == 1 and "2 of 4 runs are of another commit than the others" in refused
    assert code == 0 and "2 runs replaced, 0 added, 2 kept" in said, said
    assert "table table1: 1 row changed (accuracy 1)" in said, said
    assert "note: not made by this report, stays as it is" in said
    assert (home / "note.md").read_bytes() == before["note.md"]
    assert dict(zip(published(at).steps, published(at).commit)) == {"1": first, "9": second}
    t = pd.read_csv(home / "table1.csv", dtype=str).set_index("steps").accuracy
    assert t.to_dict() == {"1": "0.5", "9": "0.25"}
    commit(at)
    code, said = python(at, f"print(json.dumps(told('publish', '{PAPER}', '--mixed')))")
    assert code == 0 and "0 files" in said  # both sections are as they were published


def test_partial_sections_and_lost_draws_are_told(project):
    at = project
    first = python(at, "print(json.dumps(make('short')[0]))")
    shutil.rmtree(at / "runs" / PAPER / first)
    code, said = python(at, f"print(json.dumps(told('publish', '{PAPER}', '--section', 'short')))")
    assert code == 1 and "1 of 2 runs" in said and first in said
    assert f"skinrepro run {PAPER} --profile mini --section short" in said
    grid = at / "nbs" / "papers" / PAPER / "grid.toml"
    grid.write_text(GRID.replace("seed = [0, 1]", "seed = [1]", 1))
    commit(at)
    code, said = python(
        at, f"make('short'); print(json.dumps(told('publish', '{PAPER}', '--section', 'short')))"
    )
    assert code == 0 and f"dropped, the grid has no such draw: {first}" in said, said
    assert first not in set(published(at).run_id) and len(published(at)) == 3


def test_draws_that_another_section_asks_for_stay(project):
    at = project
    grid = at / "nbs" / "papers" / PAPER / "grid.toml"
    again = '[again]\nnotebook = "trial"\ndata = "phantom"\nsteps = 1\nseed = 2\n'
    grid.write_text(GRID + again)  # steps = 1 as in short, and a seed of its own
    commit(at)
    before = set(published(at).run_id)
    code, said = python(
        at,
        "made = make('again');"
        f"print(json.dumps(told('publish', '{PAPER}', '--mixed', '--section', 'again')))",
    )
    assert code == 0 and "dropped" not in said, said
    after = set(published(at).run_id)
    assert before < after and len(after) == len(before) + 1


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A repository of its own, asked in this process without remembering the answers."
    from skinrepro import core, publish

    root = tmp_path / "project"
    (root / "nbs").mkdir(parents=True)
    (root / "nbs" / "a.txt").touch()
    git(tmp_path, "init", "-q", str(root))
    commit(root)
    places = dict.fromkeys(core.Paths.__dataclass_fields__, root)
    monkeypatch.setattr(core, "paths", lambda: core.Paths(**places))
    monkeypatch.setattr(publish, "paths", core.paths)
    monkeypatch.setattr(publish, "history", core.history.__wrapped__)
    return root, places


def test_publish_asks_about_the_project_whatever_a_hook_has_left(here, tmp_path, monkeypatch):
    from skinrepro.publish import changed_files, check_tree

    root, _ = here
    (root / "nbs" / "a.txt").write_text("changed")
    other = tmp_path / "other"
    git(tmp_path, "init", "-q", str(other))
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert changed_files() == ["nbs/a.txt"]
    (root / "nbs" / "a.txt").write_text("")
    check_tree()


def test_a_repository_around_the_project_is_not_its_own(here, monkeypatch):
    from skinrepro import core
    from skinrepro.publish import PublishError, check_tree

    root, places = here
    (root / "unpacked").mkdir()
    inner = core.Paths(**places | dict(root=root / "unpacked"))
    monkeypatch.setattr(core, "paths", lambda: inner)
    with pytest.raises(PublishError, match="clone the repository"):
        check_tree()


def test_the_newest_of_several_commits_is_the_one_that_stays(here):
    from skinrepro import __version__
    from skinrepro.publish import PublishError, check_commits

    root, _ = here
    (root / "b").touch()
    older = commit(root)
    (root / "c").touch()
    newest = commit(root)
    runs = pd.DataFrame(dict(run_id=["a", "b", "c"], commit=[older, newest, newest[:8]]))
    runs = runs.assign(version=__version__)
    with pytest.raises(PublishError, match=rf"1 of 3 runs .* \({newest}\)[^$]*rm -r a\)"):
        check_commits(runs, root, "")
    check_commits(runs, root, "", mixed=True)
    check_commits(runs[1:], root, "")  # two ways to name one commit
    with pytest.raises(PublishError, match="1 of 3 runs name a commit that is not in the history"):
        check_commits(runs.replace(older, "0123456789ab"), root, "", mixed=True)
