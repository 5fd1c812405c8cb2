"""The command line as a person uses it: exit codes, one-line errors, and that it calls the library
with what was typed.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

import skinrepro
from skinrepro import fitzpatrick17k, photographs
from skinrepro.cli import app

NAMES = ["phantom", "fitzpatrick17k", "pad_ufes20", "ham10000", "camelyon17", "pcam"]


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    monkeypatch.delenv("SKINREPRO_DATA", raising=False)


def run(*args):
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), (
        result.exception
    )  # no traceback reaches a person
    return result


def photograph(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype="uint8")).save(
        path
    )
    return hashlib.md5(path.read_bytes()).hexdigest()


def annotations(path, md5s):
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(
        {
            "md5hash": md5s,
            "fitzpatrick_scale": 1,
            "fitzpatrick_centaur": 2,
            "label": ["psoriasis", "folliculitis"][: len(md5s)],
            "nine_partition_label": "inflammatory",
            "three_partition_label": "non-neoplastic",
            "qc": "",
            "url": "http://127.0.0.1/x.jpg",
            "url_alphanum": "x",
        }
    ).to_csv(path, index=False)
    return path


@pytest.fixture
def pad(tmp_path):
    for i in (1, 2):
        photograph(tmp_path / "pad_ufes20" / "images" / f"PAT_{i}_1_1.png", i)
    (tmp_path / "pad_ufes20" / "metadata.csv").write_text(
        "patient_id,img_id,fitspatrick,diagnostic\nPAT_1,PAT_1_1_1.png,1.0,BCC\n"
        "PAT_2,PAT_2_1_1.png,,NEV\n"
    )
    return tmp_path / "pad_ufes20"


def test_help_is_fast_and_imports_nothing_heavy():
    """In a process of its own: what is imported decides, the clock only catches a disaster on a
    busy machine.
    """
    code = (
        "import sys, time; t = time.perf_counter(); from skinrepro.cli import app\ntry:"
        ' app(["--help"])\nexcept SystemExit as e: assert e.code == 0\nheavy = {"torch", "pandas",'
        ' "numpy", "matplotlib", "PIL", "requests", "sklearn"} & set(sys.modules)\nassert not'
        ' heavy, heavy\nprint("seconds", time.perf_counter() - t)'
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "data list" in done.stdout and float(done.stdout.split()[-1]) < 1


def test_the_installed_command():
    command = Path(sys.executable).with_name("skinrepro")
    if not command.exists():
        pytest.skip("the package is not installed beside this Python")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"skinrepro {skinrepro.__version__}\n")


@pytest.mark.parametrize(
    "args", [["data"], ["data", "list"], ["data", "fetch"], ["data", "verify"]]
)
def test_each_help_has_an_example_or_lists_commands(args):
    out = run(*args, "--help")
    assert out.exit_code == 0 and ("Example" in out.output or args == ["data"])


def test_list_tells_licences_and_places(pad, monkeypatch):
    out = run("data", "list").output
    for word in [
        *NAMES,
        "CC BY-NC-SA 3.0",
        "CC BY 4.0",
        "CC BY-NC 4.0",
        "arXiv:2104.09957",
        "SKINREPRO_DATA is not set",
    ]:
        assert word in out
    monkeypatch.setenv("SKINREPRO_DATA", str(pad.parent))
    out = run("data", "list").output
    assert f"yes, {pad}" in out and "is not set" not in out and out.count(" no\n") == 6
    one = run("data", "list", "ham10000").output
    assert "HAM10000" in one and "PAD-UFES" not in one


@pytest.mark.parametrize(
    "args,code,says",
    [
        ([], 2, "Usage"),
        (["data", "burn"], 2, "No such command"),
        (["data", "list", "ham1000"], 2, "Did you mean ham10000"),
        (["data", "fetch"], 2, "Missing argument"),
        (["data", "fetch", "imagenet"], 2, "no data set 'imagenet'"),
        (["data", "fetch", "fitzpatrick17k", "--jobs", "0"], 2, "--jobs"),
        (["data", "fetch", "fitzpatrick17k", "--jobs", "many"], 2, "--jobs"),
        (["data", "fetch", "fitzpatrick17k", "--force"], 2, "No such option"),
        (["data", "fetch", "fitzpatrick17k"], 2, "SKINREPRO_DATA is not set"),
        (["data", "fetch", "ham10000", "--dest", "x"], 2, "not fetched by this command. By hand"),
        (["data", "verify", "pad_ufes20"], 2, "SKINREPRO_DATA is not set"),
        (["data", "verify", "pad_ufes20", "--folder", "no/such"], 2, "data.mendeley.com"),
        (
            ["data", "verify", "fitzpatrick17k", "--folder", "no/such"],
            2,
            "skinrepro data fetch fitzpatrick17k",
        ),
    ],
)
def test_mistakes(args, code, says):
    result = run(*args)
    assert result.exit_code == code and says in result.output and "Traceback" not in result.output


def test_fetch_calls_the_library(tmp_path, monkeypatch):
    table = annotations(tmp_path / "made" / "fitzpatrick17k.csv", ["a" * 32, "b" * 32])
    calls = {}

    def fetch_annotations(dest):
        calls["dest"] = dest
        return table

    def fetch_images(ann, dest, **options):
        calls.update(options, images=dest, md5=ann.md5hash.tolist())
        return pd.DataFrame({"status": calls.get("answer", ["ok", "missing"])[: len(ann)]})

    monkeypatch.setattr(fitzpatrick17k, "fetch_annotations", fetch_annotations)
    monkeypatch.setattr(photographs, "fetch_images", fetch_images)

    out = run("data", "fetch", "fitzpatrick17k", "--dest", tmp_path / "d", "--annotations-only")
    assert (
        out.exit_code == 0 and calls == {"dest": tmp_path / "d"} and "CC BY-NC-SA 3.0" in out.output
    )
    monkeypatch.setenv(
        "SKINREPRO_DATA", str(tmp_path)
    )  # the folder of the data set need not exist yet
    out = run(
        "data", "fetch", "fitzpatrick17k", "--jobs", "3", "--label", "folliculitis", "--again"
    )
    assert out.exit_code == 0, out.output
    assert calls == dict(
        dest=tmp_path / "fitzpatrick17k",
        images=tmp_path / "fitzpatrick17k" / "images",
        md5=["b" * 32],
        jobs=3,
        again=True,
    )
    assert "1  100.0%  ok" in out.output
    out = run("data", "fetch", "fitzpatrick17k", "--label", "foliculitis")
    assert out.exit_code == 2 and "foliculitis" in out.output
    calls["answer"] = ["failed", "missing"]
    out = run("data", "fetch", "fitzpatrick17k")
    assert (
        out.exit_code == 1 and "Not one photograph" in out.output and "fetch_log.csv" in out.output
    )


def test_fetch_without_a_connection(tmp_path, monkeypatch):
    def refuse(dest):
        raise ConnectionError("Could not fetch it. Try again later.")

    monkeypatch.setattr(fitzpatrick17k, "fetch_annotations", refuse)
    out = run("data", "fetch", "fitzpatrick17k", "--dest", tmp_path)
    assert (
        out.exit_code == 1 and out.stderr.strip() == "Error: Could not fetch it. Try again later."
    )


@pytest.mark.parametrize("below", ["images", "."])
def test_verify_fitzpatrick17k(tmp_path, below):
    (tmp_path / below).mkdir(exist_ok=True)
    md5 = photograph(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").rename(tmp_path / below / f"{md5}.jpg")
    annotations(tmp_path / "fitzpatrick17k.csv", [md5, "b" * 32])
    out = run("data", "verify", "fitzpatrick17k", "--folder", tmp_path)
    assert out.exit_code == 0, out.output
    inventory = photographs.read_inventory(tmp_path / "inventory.csv")
    assert (
        inventory.status.tolist() == ["ok", "missing"]
        and photographs.inventory_hash(inventory) in out.output
    )
    assert run("data", "verify", "fitzpatrick17k", "--folder", tmp_path, "--strict").exit_code == 1


def test_verify_pad(pad, monkeypatch):
    monkeypatch.setenv("SKINREPRO_DATA", str(pad.parent))
    out = run("data", "verify", "pad_ufes20", "--strict")
    assert out.exit_code == 0 and "2  100.0%  ok" in out.output and "CC BY 4.0" in out.output
    (pad / "images" / "PAT_2_1_1.png").unlink()
    out = run("data", "verify", "pad_ufes20", "--out", pad / "sub" / "i.csv")
    assert (
        out.exit_code == 0
        and "PAT_2_1_1: missing" in out.output
        and len(pd.read_csv(pad / "sub" / "i.csv")) == 2
    )
    (pad / "images" / "PAT_1_1_1.png").unlink()
    assert (
        run("data", "verify", "pad_ufes20").exit_code == 2
    )  # nothing there: not a state of the data but a wrong folder
    (pad / "metadata.csv").write_text("patient_id,img_id\n")
    out = run("data", "verify", "pad_ufes20")
    assert out.exit_code == 1 and "metadata.csv: missing column(s)" in out.output


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="needs a folder that this user may not write"
)
def test_verify_in_a_folder_that_cannot_be_written(pad):
    pad.chmod(0o555)
    try:
        out = run("data", "verify", "pad_ufes20", "--folder", pad)
    finally:
        pad.chmod(0o755)
    assert out.exit_code == 1 and "Cannot write" in out.output


def test_an_inventory_that_cannot_be_written(pad):
    out = run(
        "data",
        "verify",
        "pad_ufes20",
        "--folder",
        pad,
        "--out",
        pad / "metadata.csv" / "inventory.csv",
    )  # below a file, also for root
    assert (
        out.exit_code == 1
        and "Cannot write" in out.output
        and "name another file with --out" in out.output
    )


# Runs
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "todo", "graph", "where", "doctor"])
def test_each_command_has_help_with_an_example(command):
    out = run(command, "--help")
    assert out.exit_code == 0 and "Example" in out.output


@pytest.mark.parametrize(
    "args,says",
    [
        (["run", "wang2042"], "Did you mean wang2024"),
        (["todo", "wang2024", "--section", "table9"], "scenario"),
        (["run", "wang2024", "--cores", "0"], "--cores"),
        (["run", "wang2024", "--slurm", "nowhere"], "config.yaml"),
        (["run", "wang2024", "--report", "report.pdf"], ".html or .zip"),
        (["graph", "wang2024", "--out", "graph.gif"], ".svg"),
        (["where", "wang2024", "table77"], "Table 1"),
        (["run", "wang2024", "--set", "seed=0", "--set", "seed=1"], "--set seed=0,1"),
        (["run", "wang2024", "--set", "data=phantom", "--data", "pad_ufes20"], "set twice"),
        (["run", "wang2024", "--data", "", "--dry-run"], "data = ''"),
        (["run", "wang2024", "--data", "phantom,pad_ufes20", "--dry-run"], "must be one of"),
        (["todo", "wang2024", "--set", "lr=1e999"], "lr = inf is not a finite number"),
        (["todo", "wang2024", "--set", "seed=[]"], "seed is given no value"),
        (["todo", "wang2024", "--set", "seed={1,[2]}"], "parameter seed = '{1' is a str"),
        (["todo", "wang2024", "--section", "scenario,"], "'scenario'"),
        (["todo", "wang2024", "--set", "seed=True"], "is a bool"),
        (["todo", "wang2024", "--set", "seed=007"], "seed = '007'"),
        (["where", "wang2024"], "ARTEFACT"),
        (["doctor", "now"], "unexpected extra argument"),
    ],
)
def test_bad_arguments_say_what_there_is(args, says, tmp_path, monkeypatch):
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path))
    out = run(*args)
    assert out.exit_code in (1, 2) and says in out.stderr, out.stderr


def test_a_missing_data_set_is_said_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    out = run(
        "run",
        "wang2024",
        "--profile",
        "paper",
        "--section",
        "scenario",
        "--set",
        "scenario=iii",
        "--set",
        "seed=0",
        "--set",
        "arch=vgg16",
    )
    assert (
        out.exit_code == 2
        and "fitzpatrick17k" in out.stderr
        and "SKINREPRO_DATA" in out.stderr
        and not (tmp_path / "runs").exists()
    )


def test_run_hands_on_a_report_after_the_runs(tmp_path, monkeypatch):
    from skinrepro import cli, workflow

    told = []
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(
        workflow, "execute", lambda runs, *a, **k: [workflow.Outcome(r, "ran") for r in runs]
    )
    monkeypatch.setattr(cli, "_report", lambda *a: told.append("tables"))
    monkeypatch.setattr(
        workflow, "write_report", lambda runs, file: told.append((len(runs), file)) or 2
    )
    narrowed = ["--section", "scenario", "--set", "scenario=iii", "--set", "seed=0"]
    out = run("run", "wang2024", *narrowed, "--report", tmp_path / "all.zip")
    assert out.exit_code == 0, out.stderr
    assert told == ["tables", (3, tmp_path / "all.zip")]
    assert "Report of 2 of 3 runs" in out.output and "all.zip" in out.output


def test_graph_draws_a_paper_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    out = run("graph", "wang2024")
    assert out.exit_code == 0, out.stderr
    assert {"wang2024_weights", "wang2024_generator", "wang2024_scenario"} <= set(
        out.output.replace("[", " ").replace("]", " ").split()
    )
    assert not (tmp_path / "runs").exists()
    out = run("graph", "wang2024", "--section", "scenario", "--out", tmp_path / "g.mmd")
    assert out.exit_code == 0 and "flowchart" in (tmp_path / "g.mmd").read_text()


def test_a_stale_lock_is_explained_and_cleared_on_request(tmp_path, monkeypatch):
    from skinrepro.core import paths
    from skinrepro.grid import read_grid
    from skinrepro.workflow import execute

    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path))
    lock = tmp_path / ".snakemake" / "locks" / "0.input.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("")
    out = run("run", "wang2024")
    assert (
        out.exit_code == 1 and "--unlock" in out.stderr and "locked" in out.stderr and lock.exists()
    ), out.stderr
    assert (
        execute(read_grid(paths().papers / "wang2024", "mini", "scenario")[:0], unlock=True) == []
        and not lock.exists()
    )


def test_where_names_notebook_heading_and_files():
    out = run("where", "wang2024", "Table 2").output
    for word in (
        "nbs/papers/wang2024/report.ipynb",
        "Tables 2, 3 and 4",
        "figures/wang2024/table2.md",
    ):
        assert word in out
    assert (
        run("where", "wang2024", "table2").output
        == out
        == run("where", "wang2024", "TABLE_2").output
    )


def test_todo_counts_states_and_shows_the_error(tmp_path, monkeypatch):
    from skinrepro.core import paths
    from skinrepro.grid import read_grid

    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path))
    first, second, *_ = read_grid(paths().papers / "wang2024", "mini", "scenario")
    for r in (first, second):
        r.folder.mkdir(parents=True)
    (first.folder / "records.csv").write_text("run_id\n")
    (second.folder / "error.txt").write_text("ValueError: the dog ate it")
    out = run("todo", "wang2024", "--section", "scenario", "--no-measure")
    assert out.exit_code == 0, out.stderr
    counts = next(x for x in out.output.splitlines() if x.strip().startswith("all")).split()
    assert (
        counts == ["all", "1", "-", "1", "-", "43"]
        and "the dog ate it" in out.output
        and second.id in out.output
    )
    # 3 scenarios x 3 networks x 5 draws, one is done
    assert "44 runs are left" in out.output
    assert "wang2024" in run("todo").output


def test_todo_estimates_from_rates_of_this_device(tmp_path, monkeypatch):
    """Rates are measured once, kept, and corrected by finished runs; a run that took twice as long
    doubles what is left.
    """
    import json

    from skinrepro.core import paths
    from skinrepro.estimate import estimate
    from skinrepro.grid import read_grid

    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("SKINREPRO_CACHE", str(tmp_path / "cache"))
    grid = read_grid(paths().papers / "wang2024", "mini", "scenario", arch="vit_small", seed=0)
    blank = estimate(grid, 1, measure=False)
    assert blank.hours == 0 and blank.unknown
    fresh = estimate(grid, 1)
    assert (
        fresh.runs == 3
        and fresh.hours > 0
        and not fresh.unknown
        and len(list((tmp_path / "cache" / "rates").glob("*.json"))) == 1
    )
    again = estimate(grid, 1)
    assert again.hours == fresh.hours and estimate(grid, 3).hours < fresh.hours
    took = 2 * next(iter(estimate(grid[:1], 1).hours * 3600 for _ in "1"))
    grid[0].folder.mkdir(parents=True)
    (grid[0].folder / ".done").write_text(str(took))
    left = estimate(grid, 1)
    assert (
        left.runs == 2
        and abs(left.corrected["scenario"] - 2) < 1e-6
        and left.hours > 1.2 * fresh.hours / 3 * 2 * 0.8
    )
    assert json.loads(next((tmp_path / "cache" / "rates").glob("*.json")).read_text()) and any(
        "corrected" in x.lower() for x in left.lines()
    )


def test_doctor_says_what_is_missing_and_how_to_mend_it(tmp_path, monkeypatch):
    out = run("doctor")
    assert out.exit_code == 0, out.output + out.stderr
    for word in (
        "Python",
        "CUDA",
        "disk for runs",
        "fitzpatrick17k",
        "base model miniature",
        "base model sd21-base",
        "hf download",
        "skinrepro data",
    ):
        assert word in out.output
