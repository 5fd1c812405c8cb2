"A generator that is killed, and one that has two processes, against the same one undisturbed."

import os
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from conftest import ROOT
from test_workflow import kill, start, wait_for

from skinrepro import workflow
from skinrepro.grid import read_grid
from skinrepro.images import load_image
from skinrepro.workflow import execute

NARROWED = dict(
    section="generator",
    scenario="iii",
    seed=0,
    fraction=0.1,
    parents=12.0,
    steps=30,
    strength=0.9,
    lora_steps=4,
    lora_batch=2,
    ti_batch=1,
    ti_steps=3,
    ti_accumulate=2,
)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "Words, LoRA and twelve images of wang2024 in the smallest size: folder, grid, records."
    before, folder = os.environ.get("SKINREPRO_RUNS"), tmp_path_factory.mktemp("whole")
    os.environ["SKINREPRO_RUNS"] = str(folder)
    try:
        grid = read_grid(ROOT / "nbs" / "papers" / "wang2024", "smoke", **NARROWED)
        outcomes = execute(grid, progress=False)
        assert {o.status for o in outcomes} == {"ran"}, [o.error for o in outcomes]
        return folder, pd.concat([pd.read_csv(r.folder / "records.csv") for r in grid])
    finally:
        if before is None:
            del os.environ["SKINREPRO_RUNS"]
        else:
            os.environ["SKINREPRO_RUNS"] = before


def test_killed_while_generating_gives_the_records_of_an_undisturbed_run(store, undisturbed):
    "Killed when the first images are there."
    folder, whole = undisturbed
    shutil.copytree(
        folder, store, ignore=shutil.ignore_patterns("generator-*")
    )  # words and LoRA are there already
    grid = read_grid(ROOT / "nbs" / "papers" / "wang2024", "smoke", **NARROWED)
    made = grid[-1].folder / "images"
    child = start(
        "from skinrepro import workflow\nfrom skinrepro.grid import read_grid\n"
        "from conftest import ROOT\n"
        f'workflow.execute(read_grid(ROOT/"nbs"/"papers"/"wang2024", "smoke", **{NARROWED!r}))'
    )
    wait_for(lambda: len(list(made.glob("*.*"))) > 2 or child.poll() is not None)
    kill(child)
    wait_for(lambda: workflow.states(grid)[-1].status != "running", 30)
    assert grid[0].done and not grid[-1].done, (
        "it was finished before it could be killed: make more images"
    )
    assert {o.status for o in execute(grid, progress=False)} == {"done", "ran"}

    def timed(t):
        return t[~t.metric.str.contains("second")].drop(columns=["seconds"]).reset_index(drop=True)

    pd.testing.assert_frame_equal(
        timed(pd.concat([pd.read_csv(r.folder / "records.csv") for r in grid])), timed(whole)
    )


def test_processes_of_one_run_share_its_work(store, monkeypatch, undisturbed):
    """Two processes, as for two GPUs (here on the CPU, through gloo): batches of a step and images
    are dealt out, and the result is that of one.
    """
    folder, one = undisturbed
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    grid = [
        replace(r, resources=r.resources | dict(gpus=2))
        for r in read_grid(ROOT / "nbs" / "papers" / "wang2024", "smoke", **NARROWED)
    ]
    outcomes = execute(grid, progress=False)
    assert {o.status for o in outcomes} == {"ran"}, outcomes
    two = pd.concat([pd.read_csv(r.folder / "records.csv") for r in grid])

    def same(t):
        return (
            t[~t.metric.str.contains("second")]
            .drop(columns=["seconds", "value", "tokens", "loras"], errors="ignore")
            .reset_index(drop=True)
        )

    pd.testing.assert_frame_equal(same(one), same(two))

    def numbers(t):
        return t.value[~t.metric.str.contains("second")].to_numpy()

    assert abs(numbers(one) - numbers(two)).max() < 0.05 * abs(numbers(one)).max()
    pictures = [
        {f.name: load_image(f).astype(int) for f in at.rglob("*-syn*.png")}
        for at in (folder, store)
    ]
    assert pictures[0].keys() == pictures[1].keys() and len(pictures[0]) == 12
    assert max(abs(pictures[0][k] - pictures[1][k]).mean() for k in pictures[0]) < 1, (
        "the same images"
    )
    assert not list(store.glob("*/*/executed-*")) and not list(store.glob("*/*/failed*"))
    assert list(store.glob("wang2024/weights/*/asked.json"))
