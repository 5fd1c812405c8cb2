"Runs in the real world: wrong questions, full stops, and places that cannot be written."

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from conftest import ROOT, toy_notebook
from typer.testing import CliRunner

from skinrepro import publish, runs
from skinrepro.cli import app
from skinrepro.core import paths
from skinrepro.grid import read_grid
from skinrepro.records import read_records
from skinrepro.workflow import WorkflowError, execute, states

WANG = ROOT / "nbs" / "papers" / "wang2024"
SMALL = dict(epochs=1, fraction=0.05, size=32, arch="resnet_small")


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def papermill(tmp_path, *parameters, env=None):
    "Plain papermill on the command line, as a user types it."
    out = tmp_path / "out.ipynb"
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(WANG / "scenario.ipynb"),
        str(out),
        "-k",
        "python3",
        "--no-progress-bar",
    ]
    for name, value in parameters:
        command += ["-p", name, str(value)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, **(env or {})}
    )
    return done, out


@pytest.mark.parametrize(
    "name, value, words",
    [
        (
            "scenaro",
            "ii",
            ["no parameter", "scenaro", "scenario"],
        ),  # a misspelt name, which papermill itself only warns about
        ("seed", "zero", ["seed", "str", "int"]),  # a wrong type
        (
            "scenario",
            "iv",
            ["scenario", "'iv'", "'i', 'ii', 'iii'"],
        ),  # a scenario that the paper does not have
        (
            "train",
            "syn",
            ["synthetic", "skinrepro run wang2024 --section generator"],
        ),  # without the images to train on
        ("data", "fitzpatrick17", ["data", "fitzpatrick17k"]),
    ],
)
def test_wrong_parameter_is_refused_with_what_there_is(tmp_path, store, name, value, words):
    "By plain papermill, which says what the kernel says; the other faults by the same in here."
    if name == "scenaro":
        done, _ = papermill(tmp_path, (name, value))
        assert done.returncode != 0
        said = done.stderr
    else:
        with pytest.raises(runs.import_papermill().PapermillExecutionError) as e:
            runs.execute_notebook(WANG / "scenario.ipynb", tmp_path / "out.ipynb", {name: value})
        said = str(e.value)
    for w in words:
        assert w in said, said[-2000:]
    assert not list(store.rglob("records.csv"))


def test_plain_papermill_leaves_a_record(tmp_path, store):
    done, out = papermill(
        tmp_path,
        ("scenario", "iii"),
        ("seed", 42),
        *{**SMALL, "epochs": 5, "fraction": 0.1}.items(),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    r = read_records("wang2024")
    assert (
        set(r.scenario) == {"iii"}
        and set(r.seed) == {42}
        and set(r.data) == {"phantom"}
        and set(r.profile) == {"smoke"}
    )
    assert {"accuracy", "precision", "recall", "f1", "train_size"} <= set(r.metric) and set(
        r.select_on
    ) == {"val", "test", "last"}
    accuracy = r[(r.metric == "accuracy") & (r.group == "all")]
    known = accuracy.dropna(
        subset=["low", "high"]
    )  # a classifier that gives one class only has no interval
    assert len(known) and ((known.low <= known.value) & (known.value <= known.high)).all()
    p = pd.read_parquet(next(store.rglob("predictions.parquet")))
    assert len(p) == 3 * r.n_test[0] and abs(p.filter(like="p_").sum(axis=1) - 1).max() < 1e-4
    for stamp in ("version", "commit", "data_hash", "libraries", "seconds", "device", "weights"):
        assert stamp in r.columns
    assert not list(store.rglob("checkpoint-*")), "checkpoints go when the record is there"


def grid_run(**parameters):
    return read_grid(WANG, "smoke", "scenario", seed=7, scenario="ii", **{**SMALL, **parameters})[0]


def test_same_command_same_record(tmp_path, monkeypatch):
    found = []
    for name in ("a", "b"):
        monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / name))
        run = grid_run()
        (outcome,) = execute([run], progress=False)
        assert outcome.status == "ran", outcome.error
        found.append(pd.read_csv(run.folder / "records.csv").drop(columns=["seconds"]))
    pd.testing.assert_frame_equal(*found)
    assert (run.folder / "executed.ipynb").is_file()


def test_killed_run_resumes_and_gives_the_record_of_an_undisturbed_one(tmp_path, monkeypatch):
    """SIGKILL while training; what is there then is no record, and the rerun starts from the
    checkpoint.
    """
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "whole"))
    run = grid_run(epochs=20)
    assert execute([run], progress=False)[0].status == "ran"
    whole = pd.read_csv(run.folder / "records.csv").drop(columns=["seconds"])

    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "killed"))
    code = (
        "import test_runs\nfrom skinrepro.workflow import"
        " execute\nexecute([test_runs.grid_run(epochs=20)], progress=False)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT / "tests",
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
    )
    deadline = time.time() + 120
    while (
        not list((tmp_path / "killed").rglob("checkpoint-0000[2-9]/state.json"))
        and child.poll() is None
        and time.time() < deadline
    ):
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    subprocess.run(
        ["pkill", "-KILL", "-s", str(child.pid)]
    )  # the kernel has a group of its own in the same session
    run = grid_run(epochs=20)
    assert not run.done, "the run was finished before it could be killed: train for longer"
    checkpoint = sorted(run.folder.glob("checkpoint-*"))
    assert checkpoint, "a checkpoint survives the kill"
    (outcome,) = execute([run], progress=False)
    assert outcome.status == "ran", outcome.error
    pd.testing.assert_frame_equal(
        pd.read_csv(run.folder / "records.csv").drop(columns=["seconds"]), whole
    )
    assert not list(run.folder.glob(".tmp-*"))
    log = json.loads((run.folder / "executed.ipynb").read_text())
    assert (
        "records.csv" in {f.name for f in run.folder.iterdir()}
        and log["metadata"]["papermill"]["exception"] is None
    )


def test_read_only_store_is_explained(tmp_path, monkeypatch):
    closed = tmp_path / "file"
    closed.write_text("")  # a file where a folder should be: fails for root, too
    monkeypatch.setenv("SKINREPRO_RUNS", str(closed / "runs"))
    with pytest.raises(WorkflowError) as e:
        execute([grid_run()], progress=False)
    assert str(paths().runs) in str(e.value) and "SKINREPRO_RUNS" in str(e.value)


def test_failed_run_keeps_its_notebook_with_the_traceback(tmp_path, store, monkeypatch):
    monkeypatch.delenv("SKINREPRO_DATA", raising=False)
    run = grid_run(data="pad_ufes20")
    (outcome,) = execute([run], progress=False)
    assert outcome.status == "failed" and "SKINREPRO_DATA" in outcome.error
    assert "FileNotFoundError" in (run.folder / "failed.ipynb").read_text() and not run.done


def test_a_worker_that_is_killed_takes_only_its_own_run_with_it(tmp_path, store, monkeypatch):
    """Out of memory usually means SIGKILL: the run is reported as failed, and what comes after it
    still runs.
    """
    monkeypatch.setenv("SKINREPRO_WARM", "")  # the parent of a copy would be another process
    code = """
import os, signal, time
from pathlib import Path
if seed == 0: os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)
Path('records.csv').write_text('run_id\\n')
"""

    folder = tmp_path / "paper2031"
    folder.mkdir()
    toy_notebook(folder / "toy.ipynb", "seed = 0", code)
    (folder / "grid.toml").write_text("[toy]\nseed = [0, 1, 2]\n")
    grid = read_grid(folder)
    killed, *others = execute(grid, cores=2, progress=False)
    assert killed.status == "failed" and not killed.run.done
    assert "killed; out of memory?" in killed.error
    assert (killed.run.folder / "error.txt").read_text().strip() == killed.error
    assert all(o.status in ("ran", "done") and o.run.done for o in others), (
        others
    )  # also the one that ran beside it (its kernel may have lived on)
    assert [s.status for s in states(grid)] == ["failed", "done", "done"]


def test_a_grid_that_asks_for_nothing_that_exists(tmp_path):
    for body, words in {
        '[a]\nnotebook = "b"': ["grid.toml", "[a]", "b.ipynb"],
        "[a\n": ["grid.toml"],
    }.items():
        (tmp_path / "grid.toml").write_text(body)
        with pytest.raises(ValueError) as e:
            read_grid(tmp_path)
        assert all(w in str(e.value) for w in words)


def skinrepro(*arguments, **env):
    "The command as a user types it."
    command = [sys.executable, "-c", "from skinrepro.cli import app; app()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})


def test_the_command_of_the_demo_runs_reports_and_does_not_repeat(tmp_path, monkeypatch):
    """`skinrepro run`, which `make demo` calls: runs, tables, files; a second call recomputes
    nothing; a failed run gives exit code 1 and a traceback to read.
    """
    env = dict(SKINREPRO_RUNS=str(tmp_path / "runs"), SKINREPRO_FIGURES=str(tmp_path / "figures"))
    small = [
        x
        for k, v in {**SMALL, "scenario": "i,iii", "seed": 0}.items()
        for x in ("--set", f"{k}={v}")
    ]
    command = ("run", "wang2024", "--profile", "smoke", "--cores", "2", "--section", "scenario")
    first = skinrepro(*command, *small, **env)
    assert first.returncode == 0, first.stderr[-2000:]
    assert (
        "2 runs, 0 of them done" in first.stdout
        and "# Table 1" in first.stdout
        and "PHANTOM DATA" in first.stdout
    )
    files, _, page = first.stdout.partition("Files:")[2].partition("All of it on one page: ")
    for line in files.split():
        assert os.path.exists(line), line
    assert page.strip() == (tmp_path / "figures" / "wang2024" / "index.html").as_uri()
    stamps = {f: f.stat().st_mtime for f in (tmp_path / "runs").rglob("records.csv")}
    assert len(stamps) == 2
    # the rest in this process; reports are not made again
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    reports = []
    monkeypatch.setattr(publish, "execute_report", lambda *a: reports.append(a))
    again = CliRunner().invoke(app, [*command, *small])
    assert again.exit_code == 0 and "2 runs, 2 of them done" in again.output and len(reports) == 1
    assert {f: f.stat().st_mtime for f in stamps} == stamps
    # phantoms have no released split
    broken = CliRunner().invoke(app, [*command, *small, "--set", "flexible=released"])
    assert broken.exit_code == 1 and "failed.ipynb" in broken.stderr
    assert "exists for data=" in broken.stderr, broken.stderr[-2000:]
    assert "No run has finished" in broken.stdout and len(reports) == 1
    (tmp_path / "data" / "pad_ufes20").mkdir(parents=True)  # a folder, but nothing in it
    monkeypatch.setenv("SKINREPRO_DATA", str(tmp_path / "data"))
    lacking = CliRunner().invoke(app, [*command, *small, "--set", "data=pad_ufes20"])
    assert lacking.exit_code == 2 and "metadata.csv" in lacking.stderr, lacking.stderr[-2000:]
    assert "No run has finished" not in lacking.stdout  # it ends before anything starts


# A run that is made from another
# ------------------------------------------------------------------------------------------------


def toy_paper(tmp_path, grid):
    "Two notebooks: `make` writes a file, `use` reads it through the id that it is given."
    folder = tmp_path / "paper2032"
    folder.mkdir(exist_ok=True)
    head = "import json\nfrom pathlib import Path\n"
    record = (
        "Path('run.json').write_text(json.dumps(dict(paper='paper2032', notebook=NAME,"
        " parameters=P))); Path('records.csv').write_text('run_id\\n')"
    )
    make = (
        "NAME, P = 'make', dict(seed=seed, steps=steps)\nif steps < 0: raise"
        " ValueError('negative')\nPath('made').write_text(str(seed*steps))\n"
    )
    use = (
        "NAME, P = 'use', dict(seed=seed, images=images)\nfrom skinrepro.runs import find\n"
        "Path('seen').write_text((find('paper2032', images).folder/'made').read_text())\n"
    )
    for name, parameters, code in [
        ("make", "seed = 0\nsteps = 1", make),
        ("use", 'seed = 0\nimages = ""', use),
    ]:
        toy_notebook(folder / f"{name}.ipynb", parameters, head + code + record)
    (folder / "grid.toml").write_text(grid)
    return folder


def test_a_run_gets_what_another_has_made(tmp_path, store):
    folder = toy_paper(
        tmp_path, '[use]\nseed = [1, 2]\nimages = "@make"\n[make]\nseed = [1, 2]\nsteps = 10\n'
    )
    grid = read_grid(folder, section="use")
    assert [r.section for r in grid] == [
        "make",
        "make",
        "use",
        "use",
    ], "a needed section comes along, first"
    outcomes = execute(grid, cores=2, progress=False)
    assert {o.status for o in outcomes} == {"ran"}, [o.error for o in outcomes]
    assert {(r.folder / "seen").read_text() for r in grid if r.section == "use"} == {"10", "20"}
    other = read_grid(folder, section="use", steps=11)
    assert {r.id for r in other if r.section == "use"}.isdisjoint(r.id for r in grid), (
        "another maker, another run"
    )


def test_of_a_needed_section_only_the_runs_that_are_used_come_along(tmp_path):
    grid = (
        '[use]\nnotebook = "use"\nseed = 1\nimages = "@more"\n[make]\nnotebook = "make"\n'
        'seed = [1, 2, 3]\n[more]\nnotebook = "make"\nseed = [1, 2]\nsteps = 5\n'
    )
    folder = toy_paper(tmp_path, grid)
    of = [(r.section, r.parameters["seed"]) for r in read_grid(folder, section="use")]
    assert of == [("more", 1), ("use", 1)]
    assert len(read_grid(folder, section="use,more")) == 3  # asked for by name: all of it
    assert len(read_grid(folder)) == 6


def test_what_needs_a_failed_run_is_not_started(tmp_path, store):
    folder = toy_paper(
        tmp_path, '[use]\nseed = [1]\nimages = "@make"\n[make]\nseed = [1]\nsteps = -1\n'
    )
    made, used = execute(read_grid(folder), progress=False)
    assert (
        made.status == "failed"
        and used.status == "blocked"
        and made.run.id in used.error
        and not used.run.folder.exists()
    )


def test_a_run_computes_with_the_threads_of_its_section(tmp_path, store):
    """Two of two threads beside two of one on three cores: never more than the cores, and torch
    sees what was asked; on one core nobody gets two.
    """
    grid = (
        '[wide]\nnotebook = "make"\nthreads = 2\nseed = [1, 2]\n[narrow]\nnotebook = "make"\nseed ='
        " [3, 4]\n[narrow.mini]\nsteps = 2\n"
    )
    folder = toy_paper(tmp_path, grid)
    late = (
        "import time, torch\nstart = time.time(); time.sleep(.5)\n"
        "Path('threads').write_text(f'{torch.get_num_threads()} {start} {time.time()}')\n"
    )
    nb = json.loads((folder / "make.ipynb").read_text())
    nb["cells"][1]["source"] = [
        nb["cells"][1]["source"][0].replace("Path('run.json')", late + "Path('run.json')", 1)
    ]
    (folder / "make.ipynb").write_text(json.dumps(nb))
    grid = read_grid(folder)
    outcomes = execute(grid, cores=3, progress=False)
    assert {o.status for o in outcomes} == {"ran"}, [o.error for o in outcomes]
    seen = [[float(x) for x in (r.folder / "threads").read_text().split()] for r in grid]
    assert [s[0] for s in seen] == [2, 2, 1, 1]
    for _, at, _ in seen:
        assert sum(n for n, start, end in seen if start <= at < end) <= 3
    one = read_grid(folder, section="wide", seed=9)
    assert execute(one, cores=1, progress=False)[0].status == "ran"
    assert (one[0].folder / "threads").read_text().split()[0] == "1"


def test_find_wants_a_finished_run(tmp_path, store):
    for name in ("generator-0123456789ab", "nonsense"):
        with pytest.raises(runs.ParameterError, match="`skinrepro run wang2024 --section"):
            runs.find("wang2024", name)
    folder = store / "wang2024" / "generator-0123456789ab"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")  # killed before its record
    with pytest.raises(runs.ParameterError, match="no finished run"):
        runs.find("wang2024", folder.name)


def test_what_two_runs_ask_at_once_is_made_once(tmp_path, store):
    "Processes that start together: one makes it, the other waits and gets the same."
    code = (
        "import sys, time; from pathlib import Path\n"
        "import pandas as pd; from skinrepro.runs import made_once\n"
        "def make(folder):\n"
        "    time.sleep(1); (folder / f'by-{sys.argv[1]}').touch()\n"
        "    return pd.DataFrame(dict(step=[1]))\n"
        f"print(made_once(Path({str(store)!r}), 'ti', dict(steps=1), make, 'code'))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(i)], stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    said = {p.communicate(timeout=60)[0].strip() for p in started}
    assert [p.returncode for p in started] == [0, 0] and len(said) == 1
    (folder,) = store.iterdir()
    assert said == {str(folder)} and len(list(folder.glob("by-*"))) == 1


def test_a_maker_that_fails_leaves_nothing_that_looks_made(store):
    def make(folder):
        (folder / "half").touch()
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        runs.made_once(store, "ti", {}, make, "code")
    (folder,) = store.iterdir()
    assert (folder / "half").is_file() and not (folder / "asked.json").exists()
    again = runs.made_once(store, "ti", {}, lambda f: (f / "whole").touch(), "code")
    assert again == folder and (folder / "asked.json").is_file()


def test_overrides_reach_every_section_that_has_the_parameter(tmp_path):
    folder = toy_paper(tmp_path, '[use]\nseed = [1, 2]\nimages = "@make"\n[make]\nseed = [1, 2]\n')
    grid = read_grid(folder, seed=2, steps=7)  # `steps` is the maker's alone
    assert [r.parameters for r in grid if r.section == "make"] == [dict(seed=2, steps=7)] and len(
        grid
    ) == 2
    with pytest.raises(runs.ParameterError, match="no notebook.*stepz.*steps"):
        read_grid(folder, stepz=7)
    with pytest.raises(runs.ParameterError, match="steps.*str.*int"):
        read_grid(folder, steps="many")


@pytest.mark.parametrize("deep, transport", [(False, "ipc"), (True, "tcp")])
def test_kernels_share_no_port(tmp_path, monkeypatch, deep, transport):
    """Sockets are files of the kernel's own folder; where that folder's name is too long for a
    socket, they are ports as ever.
    """
    import tempfile

    folder = tmp_path / ("d" * (90 if deep else 1))
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder) if deep else None)
    cell = dict(
        cell_type="code",
        id="a",
        metadata={},
        outputs=[],
        execution_count=None,
        source=(
            "import json\nfrom ipykernel.connect import"
            ' get_connection_info\nprint(json.loads(get_connection_info())["transport"])\n1/0'
        ),
    )
    (tmp_path / "a.ipynb").write_text(
        json.dumps(
            dict(
                nbformat=4,
                nbformat_minor=5,
                cells=[cell],
                metadata=dict(kernelspec=dict(name="python3", language="python", display_name="")),
            )
        )
    )
    import papermill

    with pytest.raises(papermill.PapermillExecutionError, match="ZeroDivision"):
        runs.execute_notebook(tmp_path / "a.ipynb", tmp_path / "out.ipynb")
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    said = next(o for c in cells for o in c.get("outputs", []) if o.get("name") == "stdout")
    assert "".join(said["text"]) == f"{transport}\n" and not list(folder.iterdir())


def told_by_a_kernel(tmp_path, code):
    "What a notebook prints."
    cells = [notebook_cell("a", "x = 1"), notebook_cell("b", code)]
    book = dict(nbformat=4, nbformat_minor=5, metadata={}, cells=cells)
    (tmp_path / "asks.ipynb").write_text(json.dumps(book))
    there = tmp_path / "elsewhere"
    there.mkdir()
    done = runs.execute_notebook(tmp_path / "asks.ipynb", tmp_path / "out.ipynb", cwd=there)
    return "".join(o["text"] for o in done.cells[-1].outputs)


def notebook_cell(name, source):
    return dict(
        cell_type="code", id=name, metadata={}, outputs=[], execution_count=None, source=source
    )


def test_a_kernel_has_an_environment_of_its_own(tmp_path, monkeypatch):
    """Relative places, ranks that a launcher has left, another `python3` on the Jupyter path and
    the user's start-up files do not reach a run.
    """
    monkeypatch.chdir(tmp_path)
    for name in ("SKINREPRO_RUNS", "SKINREPRO_CACHE", "SKINREPRO_DATA", "SKINREPRO_BASE"):
        monkeypatch.setenv(name, "my/" + name)
    left_over = dict(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", MASTER_ADDR="nowhere", PMI_SIZE="2")
    for name, value in left_over.items():
        monkeypatch.setenv(name, value)
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps(dict(argv=["false", "{connection_file}"], display_name="x", language="python"))
    )
    start = tmp_path / "ipython" / "profile_default" / "startup"
    start.mkdir(parents=True)
    (start / "00.py").write_text("strange = 1")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    said = told_by_a_kernel(
        tmp_path,
        "import os, sys, json\n"
        "print(json.dumps([sys.executable, dict(os.environ), 'strange' in globals()]))",
    )
    interpreter, there, strange = json.loads(said)
    assert interpreter == sys.executable and not strange
    assert there["SKINREPRO_RUNS"] == str(tmp_path / "my" / "SKINREPRO_RUNS")
    assert there["SKINREPRO_BASE"] == str(tmp_path / "my" / "SKINREPRO_BASE")
    assert not set(left_over) & set(there)


def test_long_in_bytes(tmp_path, monkeypatch):
    import tempfile

    folder = tmp_path / ("\N{BLACK CHESS KING}" * max(1, 58 - len(str(tmp_path))))
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert told_by_a_kernel(tmp_path, "print('here')") == "here\n"
