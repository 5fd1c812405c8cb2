"""The engine: what a change reruns, kills, several commands at once, full disks, GPUs, and a fifth
paper.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, toy_notebook

from skinrepro import workflow
from skinrepro.graph import inputs_of
from skinrepro.grid import read_grid
from skinrepro.workflow import execute

WRITE = """
from pathlib import Path
import os, time
Path(os.environ['SKINREPRO_RUNS'], 'order.txt').open('a').write(f'{NAME}{seed} ')
BODY
Path('records.csv').write_text(f'run_id,value\\n{Path.cwd().name},{seed}\\n')
"""


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def toy(tmp_path, grid, **bodies):
    "A paper of small notebooks: name = what it does before it writes its record."
    folder = tmp_path / "paper2033"
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in bodies.items():
        toy_notebook(
            folder / f"{name}.ipynb", "seed = 0", f"NAME = {name!r}\n" + WRITE.replace("BODY", body)
        )
    (folder / "grid.toml").write_text(grid)
    return folder


def order(store):
    return (store / "order.txt").read_text().split()


def project(tmp_path):
    "A copy of what a run depends on, to change."
    to = tmp_path / "project"
    for name in ("skinrepro", "nbs", "workflow"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("requirements.lock", "settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, to)
    return to


def within(project, code, input=None, **env):
    "Python in the copy."
    env = {**os.environ, "PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1", **env}
    told = dict(capture_output=True, text=True, input=input)
    done = subprocess.run([sys.executable, "-c", code], cwd=project, env=env, **told)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# A change reruns what it touches
# ------------------------------------------------------------------------------------------------

FINISHED = """
import json
from skinrepro.core import paths
from skinrepro.graph import inputs_of
from skinrepro.grid import read_grid
grid = read_grid(paths().papers/'wang2024'); known = {}
for r in grid:
    r.folder.mkdir(parents=True); (r.folder/'records.csv').write_text('run_id\\n')
    (r.folder/'inputs.json').write_text(json.dumps(inputs_of(r, {g.id: g for g in grid}, known)))
"""
AFTER_EDITS = """
import json, sys
from pathlib import Path
from skinrepro.core import paths
from skinrepro.grid import read_grid
from skinrepro.workflow import states

for file, old, new in json.load(sys.stdin):
    if file:  # an edit, which is then taken back
        before = Path(file).read_text()
        assert before.count(old) >= 1, old
        Path(file).write_text(before.replace(old, new, 1))
    found = states(read_grid(paths().papers/'wang2024'))
    print(json.dumps([[s.run.section, s.status, s.detail] for s in found]))
    if file:
        Path(file).write_text(before)
"""


def test_a_change_reruns_what_it_touches_and_nothing_else(tmp_path):
    "Edits in the copy, one after the other, each taken back: what is to do after each."
    at = project(tmp_path)
    env = dict(SKINREPRO_RUNS=str(tmp_path / "runs"))
    within(at, FINISHED, **env)
    weights = "skinrepro/miniature_base/miniature.json"
    metrics, classify = "skinrepro/metrics.py", "skinrepro/classify.py"
    edits = dict(
        nothing=("", "", ""),
        a_comment=(classify, "    rates = ", "    # a remark\n    rates = "),
        a_function_that_nobody_calls=(metrics, "def ", "def never_called(): return 1\n\n\ndef "),
        another_rate=(classify, "epochs // 3), 0.1)", "epochs // 3), 0.2)"),
        another_lora=(
            "skinrepro/personalise.py",
            "adapter = dict(rank=rank, alpha=alpha or rank,",
            "adapter = dict(rank=rank, alpha=alpha or 2 * rank,",
        ),
        another_library=("requirements.lock", "torch==", "torch==9."),
        another_parameter=(
            "nbs/papers/wang2024/grid.toml",
            "per_image = 1\n",
            "per_image = 2\n",
        ),
        a_file_that_the_grid_says_it_reads=(weights, "{", "{ "),
    )
    said = within(at, AFTER_EDITS, input=json.dumps(list(edits.values())), **env)
    found = dict(zip(edits, map(json.loads, said.splitlines()), strict=True))
    todo = {
        name: {section for section, status, _ in rows if status != "done"}
        for name, rows in found.items()
    }
    every = {section for section, *_ in found["nothing"]}
    assert len(every) > 5 and not todo["nothing"]
    assert not todo["a_comment"] and not todo["a_function_that_nobody_calls"]
    classifiers = {"scenario", "synthetic", "equal_steps", "ablation", "strength"}
    assert todo["another_rate"] == classifiers
    assert todo["another_lora"] == every - {"scenario"}, "no classifier of real images"
    assert any(
        "skinrepro.personalise.lora" in detail
        for section, _, detail in found["another_lora"]
        if section == "weights"
    )
    assert todo["another_library"] == every
    assert todo["another_parameter"] == {
        "generator",
        "synthetic",
        "equal_steps",
        "ablation_images",
        "ablation",
    }
    assert todo["a_file_that_the_grid_says_it_reads"] == every - {"scenario"}


def test_old_checkpoints_do_not_survive_new_code(tmp_path, store):
    folder = toy(
        tmp_path,
        "[a]\n",
        a=(
            'assert not Path("checkpoint").exists(); Path("checkpoint").write_text("half"); assert'
            ' seed, "stop"'
        ),
    )
    grid = read_grid(folder, seed=0)
    (first,) = execute(grid, progress=False)
    assert (
        first.status == "failed"
        and "stop" in first.error
        and workflow.states(grid)[0].detail == first.error
    )
    toy(tmp_path, "[a]\n", a="pass")
    (again,) = execute(grid, progress=False)
    assert (
        again.status == "ran"
        and not (grid[0].folder / "checkpoint").exists()
        and not (grid[0].folder / "error.txt").exists()
    )


# Kills
# ------------------------------------------------------------------------------------------------


def start(code, **env):
    """Python in a session of its own, which can be interrupted even where these tests cannot. Its
    kernels are of its own family, not copies that the tests' own nursery makes.
    """
    code = f"import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n{code}"
    places = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    env = {**os.environ, "PYTHONPATH": places, "SKINREPRO_WARM": "", **env}
    env = {k: v for k, v in env.items() if v is not None}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT / "tests",
        start_new_session=True,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill(child):
    "SIGKILL to the command, as the kernel or a user would. What it has started must end by itself."
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


def wait_for(what, seconds=120):
    end = time.time() + seconds
    while not what():
        assert time.time() < end, "it never happened"
        time.sleep(0.02)


def run_of(folder, **narrowed):
    return (
        "from pathlib import Path\nfrom skinrepro import workflow\n"
        "from skinrepro.grid import read_grid\n"
        f"workflow.execute(read_grid(Path({str(folder)!r}), **{narrowed!r}), cores=2)"
    )


def test_killed_between_two_runs(tmp_path, store):
    folder = toy(
        tmp_path,
        '[a]\n[b]\nneeds = ["a"]\n',
        a="pass",
        b='if not Path("second").exists(): Path("second").write_text(""); time.sleep(60)',
    )
    child = start(run_of(folder))
    grid = read_grid(folder)
    wait_for(lambda: grid[0].done and (grid[1].folder / "second").exists())
    family = psutil.Process(child.pid).children(recursive=True)
    assert any("ipykernel" in " ".join(p.cmdline()) for p in family)
    kill(child)
    assert not psutil.wait_procs(family, 30)[1], "Snakemake, the run and its kernel end, too"
    assert workflow.states(grid)[1].status != "running"
    assert {o.run.section: o.status for o in execute(grid, progress=False)} == {
        "a": "done",
        "b": "ran",
    }
    assert order(store) == ["a0", "b0", "b0"], "only what was unfinished is done again"


BUSY = """
Path("busy").touch()
import re
re.match(r"(a+)+b", "a" * 99)  # takes for ever, and no other thread comes to its turn
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_kernels_end_with_the_command_whatever_they_do(tmp_path, store, how):
    "Two runs, so that their kernels are copies, of a nursery that this command has started."
    folder = toy(tmp_path, "[a]\nseed = [0, 1]\n", a=BUSY)
    few = "from skinrepro import job\njob.LOADED = ['ipykernel.kernelapp', 'torch']\n"
    with tempfile.TemporaryDirectory() as places:  # a short name, as a socket needs it
        child = start(few + run_of(folder), TMPDIR=places, SKINREPRO_WARM=None)
        grid = read_grid(folder)
        wait_for(lambda: all((r.folder / "busy").exists() for r in grid))
        family = psutil.Process(child.pid).children(recursive=True)
        (mother,) = [p for p in family if "nursery_main" in str(p.cmdline()) and p.children()]
        assert len(mother.children()) == 2 and list(Path(places).glob("skinrepro-*/warm"))
        child.send_signal(how)
        code = child.wait(30)
        assert not psutil.wait_procs(family, 10)[1]
        if how == signal.SIGTERM:  # it could clear up
            assert code == 128 + how and not list(Path(places).glob("skinrepro-*/warm"))
    assert {s.status for s in workflow.states(grid)} == {"missing"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the death of a parent")
def test_a_nursery_that_is_still_loading_ends_with_the_command(tmp_path):
    (tmp_path / "slow_module.py").write_text("import time; time.sleep(600)")
    code = (
        "import time\nfrom skinrepro import job\njob.LOADED = ['slow_module']\n"
        "with job.nursery():\n    print('started', flush=True); time.sleep(600)"
    )
    places = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "tests")))
    child = start(code, PYTHONPATH=places, SKINREPRO_WARM=None)
    assert child.stdout.readline() == "started\n"
    wait_for(lambda: psutil.Process(child.pid).children())
    (mother,) = psutil.Process(child.pid).children()
    time.sleep(1)  # it imports
    kill(child)
    assert not psutil.wait_procs([mother], 10)[1]


def test_killed_while_writing(tmp_path, store):
    "The kernel dies between the writing of a file and its renaming."
    body = (
        "from skinrepro.core import atomic_path\nwith atomic_path(Path('table.csv')) as tmp:\n   "
        " tmp.write_text('half'); first = not Path('tried').exists();"
        " Path('tried').write_text('')\n    if first: os.kill(os.getpid(), 9)\n   "
        " tmp.write_text('whole')"
    )
    grid = read_grid(toy(tmp_path, "[a]\n", a=body))
    (failed,) = execute(grid, progress=False)
    assert failed.status == "failed" and "killed; out of memory?" in failed.error
    assert not (grid[0].folder / "table.csv").exists() and not grid[0].done
    (again,) = execute(grid, progress=False)
    assert again.status == "ran" and (grid[0].folder / "table.csv").read_text() == "whole"


def test_an_engine_that_cannot_start_is_an_error_with_its_words(tmp_path, store, monkeypatch):
    monkeypatch.setattr(workflow, "_ARGUMENTS", ("--no-such-option",))
    with pytest.raises(workflow.WorkflowError, match="no-such-option"):
        execute(read_grid(toy(tmp_path, "[a]\n", a="pass")), progress=False)


def test_a_failed_run_is_tried_again_and_the_rest_is_kept(tmp_path, store):
    folder = toy(
        tmp_path,
        "[a]\nseed = [0, 1]\n",
        a='assert seed or Path(os.environ["SKINREPRO_RUNS"], "fixed").exists(), "not yet"',
    )
    grid = read_grid(folder)
    assert [o.status for o in execute(grid, progress=False)] == ["failed", "ran"]
    (store / "fixed").write_text("")
    assert [o.status for o in execute(grid, progress=False)] == ["ran", "done"]


# Several at once, full disks, GPUs
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["my runs #1", "it's {new}: a, b"])
def test_a_store_may_have_any_name_and_be_named_from_here(tmp_path, monkeypatch, name):
    """No parser on the way to the engine takes a part of the name for itself, places that are named
    from the current folder stay what they are, and nobody waits for ranks that are left over.
    """
    monkeypatch.chdir(tmp_path)
    left_over = dict(RANK="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    for k, v in dict(SKINREPRO_RUNS=name, SKINREPRO_DATA="data", **left_over).items():
        monkeypatch.setenv(k, v)
    body = (
        "from skinrepro.core import ranks, wait_for_everyone\nwait_for_everyone()\n"
        "Path('seen.txt').write_text(os.environ['SKINREPRO_DATA'] + str(ranks()))"
    )
    grid = read_grid(toy(tmp_path, '[a]\n[b]\nneeds = ["a"]\n', a="pass", b=body))
    assert [o.status for o in execute(grid, progress=False)] == ["ran", "ran"]
    seen = tmp_path / name / "paper2033" / grid[1].id / "seen.txt"
    assert seen.read_text() == str(tmp_path / "data") + "(0, 1)"
    assert workflow.write_report(grid, tmp_path / "report.zip") == 2
    assert "paper2033_a" in workflow.draw(grid)


def test_two_commands_at_once(tmp_path, store):
    folder = toy(tmp_path, "[a]\nseed = [0, 1, 2]\n", a="time.sleep(1)")
    both = [start(run_of(folder), SKINREPRO_RUNS=str(store)) for _ in range(2)]
    said = [c.communicate(timeout=120)[1] for c in both]
    assert [c.returncode for c in both] == [0, 0], said
    assert sorted(order(store)) == ["a0", "a1", "a2"], "no run is done twice"
    assert sum("waits for it" in s for s in said) == 1


def test_a_script_that_calls_the_engine_is_executed_once(tmp_path, store):
    """Runs are processes of their own, not copies of the caller: no `if __name__ == '__main__'` is
    needed.
    """
    folder = toy(tmp_path, "[a]\n", a="pass")
    script, count = tmp_path / "mine.py", tmp_path / "count"
    script.write_text(f'open({str(count)!r}, "a").write("x")\n{run_of(folder)}\n')
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and order(store) == ["a0"] and count.read_text() == "x", done.stderr


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path, monkeypatch):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4M", "tmpfs", small], capture_output=True
    ).returncode:
        pytest.skip("no right to mount a small file system")
    try:
        monkeypatch.setenv("SKINREPRO_RUNS", str(small / "runs"))
        body = (
            'from skinrepro.core import atomic_path\nwith atomic_path("big") as tmp:'
            " tmp.write_bytes(bytes(8*2**20*seed))"
        )
        grid = read_grid(toy(tmp_path, "[a]\nseed = [0, 1]\n", a=body))
        good, full = execute(grid, progress=False)
        assert (
            good.status == "ran"
            and full.status == "failed"
            and ("No space left" in full.error or "is full" in full.error)
        ), full.error
        assert grid[0].done and not grid[1].done
        subprocess.run(["mount", "-o", "remount,size=64M", small], check=True)
        assert [o.status for o in execute(grid, progress=False)] == ["done", "ran"]
    finally:
        subprocess.run(["umount", "-l", small])


def test_each_run_has_a_gpu_of_its_own_or_none(tmp_path, store, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    body = (
        'Path("gpu").write_text(os.environ["CUDA_VISIBLE_DEVICES"]);'
        ' Path("at").write_text(str(time.time()));'
        ' time.sleep(1)\nPath("to").write_text(str(time.time()))'
    )
    grid = read_grid(
        toy(
            tmp_path,
            "[a]\ngpus = 1\nseed = [0, 1, 2]\n[b]\n[c]\ngpus = 2\n",
            a=body,
            b=body,
            c=body,
        )
    )
    outcomes = execute(grid, cores=4, progress=False)
    assert {o.status for o in outcomes} == {"ran"}, [o.error for o in outcomes]

    def read(r, f):
        return (r.folder / f).read_text()

    used = {(r.section, r.parameters["seed"]): read(r, "gpu") for r in grid}
    assert (
        used["b", 0] == ""
        and sorted(used["c", 0].split(",")) == ["4", "7"]
        and {used["a", s] for s in (0, 1, 2)} <= {"4", "7"}
    )
    times = [
        (float(read(r, "at")), float(read(r, "to")), set(read(r, "gpu").split(",")) - {""})
        for r in grid
    ]
    for i, (a, b, mine) in enumerate(times):
        for c, d, theirs in times[i + 1 :]:
            assert b <= c or d <= a or not mine & theirs, "two runs on one GPU"


def test_a_process_that_fails_ends_the_others(tmp_path, store, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    body = (
        "from skinrepro.core import ranks, wait_for_everyone\nassert ranks()[1] == 2\nassert not"
        ' ranks()[0], "rank 1 has bad luck"\nwait_for_everyone()'
    )
    (failed,) = execute(read_grid(toy(tmp_path, "[a]\ngpus = 2\n", a=body)), progress=False)
    assert failed.status == "failed" and "bad luck" in failed.error, failed


# What Snakemake makes of it: nothing twice, graphs, reports
# ------------------------------------------------------------------------------------------------


def dry(store, plan):
    "What Snakemake would do, called by hand."
    command = [*workflow._snakemake(plan, store), "--rerun-triggers", "mtime", "-n", "--cores", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=store)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def test_neither_paths_nor_measurements_make_a_run_out_of_date(tmp_path, store):
    grid = read_grid(toy(tmp_path, '[a]\n[b]\nneeds = ["a"]\n', a="pass", b="pass"))
    assert {o.status for o in execute(grid, progress=False)} == {"ran"}
    measured = sorted(store.glob(".plan/benchmarks/paper2033/*.tsv"))
    assert {f.stem for f in measured} == {r.id for r in grid}
    assert float(measured[0].read_text().splitlines()[1].split()[0]) > 0
    (plan,) = store.glob(".plan/*.json")
    moved = tmp_path / "elsewhere.json"
    shutil.copy(plan, moved)
    assert "Nothing to be done" in dry(store, moved), "the plan lies elsewhere"
    toy(tmp_path, '[a]\n[b]\nneeds = ["a"]\n', a="x = 1", b="pass")
    known = {}
    for r in grid:  # other code, and records that somebody has made with it and brought here
        made_by = inputs_of(r, {g.id: g for g in grid}, known)
        (r.folder / "inputs.json").write_text(json.dumps(made_by))
    workflow.plan(grid)
    assert "Nothing to be done" in dry(store, plan), "measurements are older than the inputs"
    measured[0].unlink()
    assert "Nothing to be done" in dry(store, plan), "a measurement that is gone is no output"


def test_the_graph_has_a_node_for_each_notebook_and_is_drawn_without_a_store(tmp_path, store):
    text = '[use]\nneeds = ["make"]\nseed = [0, 1]\n[make]\nseed = [0, 1]\n'
    grid = read_grid(toy(tmp_path, text, make="pass", use="pass"))
    drawn = workflow.draw(grid)
    names = dict(re.findall(r"(id\d+)\[(\w+)\]", drawn))
    assert sorted(names.values()) == ["all", "paper2033_make", "paper2033_use"]
    arrows = {(names[a], names[b]) for a, b in re.findall(r"(id\d+) --> (id\d+)", drawn)}
    assert ("paper2033_make", "paper2033_use") in arrows and not store.exists()


def test_a_graph_is_written_as_its_ending_says(tmp_path, store, monkeypatch):
    grid = read_grid(toy(tmp_path, "[a]\n", a="pass"))
    workflow.write_graph(grid, tmp_path / "g.md")
    assert (tmp_path / "g.md").read_text().startswith("```mermaid\n")
    with pytest.raises(ValueError, match=r"g\.gif must end with"):
        workflow.write_graph(grid, tmp_path / "g.gif")
    if shutil.which("dot"):
        workflow.write_graph(grid, tmp_path / "g.svg")
        assert "paper2033_a" in (tmp_path / "g.svg").read_text()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(workflow.WorkflowError, match="install graphviz"):
        workflow.write_graph(grid, tmp_path / "h.svg")
    assert not (tmp_path / "h.svg").exists()


def test_a_report_has_the_notebooks_of_what_has_finished(tmp_path, store):
    body = 'print("I am", seed); assert seed != 2, "bad luck"'
    grid = read_grid(toy(tmp_path, "[a]\nseed = [0, 1, 2]\n", a=body))
    assert [o.status for o in execute(grid, cores=2, progress=False)] == ["ran", "ran", "failed"]

    def times():
        return {f: f.stat().st_mtime_ns for r in grid for f in r.folder.glob("[!.]*")}

    before = times()
    assert workflow.write_report(grid, tmp_path / "out" / "mine.zip") == 2
    assert before == times(), "nothing of a run is touched"
    with zipfile.ZipFile(tmp_path / "out" / "mine.zip") as z:
        pages = {Path(n).stem: z.read(n).decode() for n in z.namelist() if "/data/" in n}
        index = z.read("mine/report.html").decode()
    assert set(pages) == {r.id for r in grid[:2]}
    assert all(f"I am {r.parameters['seed']}" in pages[r.id] for r in grid[:2])
    results = json.loads(re.search(r"var results = ({.*});", index)[1])
    assert sorted(r["labels"]["seed"] for r in results.values()) == ["0", "1"]
    assert {r["labels"]["notebook"] for r in results.values()} == {"a"}
    assert list(json.loads(re.search(r"var categories = ({.*});", index)[1])) == ["paper2033"]
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=.https?:", index), "it works offline"
    assert not (tmp_path / "out" / "mine").exists() and len(list((tmp_path / "out").iterdir())) == 1
    assert [o.status for o in execute(grid, progress=False)] == ["done", "done", "failed"]


def test_a_report_that_cannot_be_written_says_why(tmp_path, store):
    grid = read_grid(toy(tmp_path, "[a]\n", a="pass"))
    with pytest.raises(ValueError, match=r"\.html or \.zip"):
        workflow.write_report(grid, tmp_path / "mine.pdf")
    with pytest.raises(workflow.WorkflowError, match="No run has finished"):
        workflow.write_report(grid, tmp_path / "mine.html")


def test_only_stage_seven_looks_a_paper_up():
    numbers = {p.stem[3:]: int(p.stem[:2]) for p in (ROOT / "nbs").glob("[0-9][0-9]_*.ipynb")}
    for name, number in numbers.items():
        text = (ROOT / "skinrepro" / f"{name}.py").read_text()
        assert number >= 70 or not re.search(r"import_module|skinrepro\.papers|\.papers\.", text), (
            name
        )


# A fifth paper
# ------------------------------------------------------------------------------------------------


def test_a_fifth_paper_takes_part_without_another_edit(tmp_path):
    at = project(tmp_path)
    shutil.copytree(ROOT / "tests", at / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    new = at / "nbs" / "papers" / "smith2031"
    new.mkdir()
    toy(
        tmp_path,
        '[trial]\nnotebook = "trial"\nrebuilds = ["table1"]\nseed = [0, 1]\n',
        trial="pass",
    )
    for f in (tmp_path / "paper2033").iterdir():
        shutil.copy(f, new)
    env = dict(SKINREPRO_RUNS=str(tmp_path / "runs"))
    engine = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(at / "workflow" / "Snakefile"),
        "--directory",
        str(tmp_path / "runs"),
        "--cores",
        "2",
    ]
    full = {**os.environ, "PYTHONPATH": str(at), **env}
    mine = [
        f"smith2031/{i}/.done"
        for i in within(
            at,
            "from skinrepro.core import paths; from skinrepro.grid import read_grid\n"
            'print(*(r.id for r in read_grid(paths().papers/"smith2031")))',
            **env,
        ).split()
    ]
    done = subprocess.run([*engine, *mine], capture_output=True, text=True, env=full, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    everything = json.loads((tmp_path / "runs" / ".plan" / "all-mini.json").read_text())["runs"]
    assert {"smith2031", "wang2024"} <= {r["paper"] for r in everything}
    assert len(list((tmp_path / "runs" / "smith2031").glob("*/records.csv"))) == 2 and not list(
        (tmp_path / "runs").glob("wang2024/*/records.csv")
    )
    layers = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/test_layers.py",
    ]
    layers = subprocess.run(layers, cwd=at, capture_output=True, text=True, env=full)
    assert layers.returncode == 0, layers.stdout[-2000:]


def test_the_snakefile_is_generic():
    text = (ROOT / "workflow" / "Snakefile").read_text()
    code = "\n".join(line.partition("#")[0] for line in text.splitlines())
    for paper in (p.parent.name for p in (ROOT / "nbs" / "papers").glob("*/grid.toml")):
        assert paper not in code
    assert Path(workflow.__file__).is_file()


def test_the_examples_use_options_that_exist():
    import re

    import yaml
    from typer.testing import CliRunner

    from skinrepro.cli import app

    said = (
        CliRunner()
        .invoke(app, ["run", "--help"], env=dict(COLUMNS="200", NO_COLOR="1", TERM="dumb"))
        .output
    )
    job = [
        d
        for d in yaml.safe_load_all((ROOT / "workflow" / "kubernetes.yaml").read_text())
        if d["kind"] == "Job"
    ][0]["spec"]["template"]["spec"]["containers"][0]
    commands = [
        *job["args"],
        *re.findall(r"`(skinrepro run [^`]*)`", (ROOT / "workflow" / "README.md").read_text()),
    ]
    used = {
        o
        for c in commands
        for line in c.splitlines()
        if "skinrepro run" in line
        for o in re.findall(r"--[a-z]+", line)
    }
    assert {"--profile", "--gpus", "--slurm", "--set"} <= used and all(o in said for o in used), (
        used
    )


def test_the_engine_looks_at_what_is_ready_once_for_each_run_that_ends(tmp_path):
    """Snakemake's limit of starts orders a look a second after each look, and never forgets: after
    a hundred runs that took half a core from those that compute. Counted in Snakemake's own log.
    """
    (tmp_path / "Snakefile").write_text(
        "rule all:\n    input: [f'{i}.txt' for i in range(12)]\n"
        "rule one:\n    output: '{i}.txt'\n    shell: 'sleep 0.4; touch {output}'\n"
    )
    begins = "from skinrepro.workflow import engine_main; engine_main()"
    options = ["--cores", "1", "--scheduler", "greedy", "--nolock", "--verbose"]
    with open(tmp_path / "log", "w") as log:
        engine = subprocess.Popen(
            [sys.executable, "-P", "-c", begins, *options],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            start_new_session=True,
        )
        assert engine.wait(timeout=120) == 0
        engine.stdin.close()
    said = (tmp_path / "log").read_text()
    assert len(list(tmp_path.glob("*.txt"))) == 12
    assert said.count("Ready jobs") <= 12 + 3, said  # the last look is at the rule `all`
