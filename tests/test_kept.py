"""What earlier runs have left is not trusted: files that are empty or break off count as absent and
are named; and looking needs no place to write.
"""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from typer.testing import CliRunner

from skinrepro import runs
from skinrepro.cli import app
from skinrepro.core import paths
from skinrepro.grid import read_grid
from skinrepro.records import read_record, read_records

BROKEN = dict(empty=b"", garbage=b"\xff\xfe\x00{", broken_off=b'{"a": [1, 2')


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def two_finished(paper="wang2024", section="scenario"):
    "Two runs with all that a run leaves."
    some = read_grid(paths().papers / paper, "mini", section)[:2]
    for r in some:
        r.folder.mkdir(parents=True)
        (r.folder / "run.json").write_text(
            f'{{"paper": "{paper}", "notebook": "{section}", "parameters": {{}}}}'
        )
        (r.folder / "records.csv").write_text(
            f"run_id,metric,group,value,n\n{r.id},accuracy,all,1.0,3\n"
        )
        (r.folder / ".done").write_text("12.0\n")
    return some


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", ["inputs.json", "run.json", "records.csv", ".done", "error.txt"])
def test_a_broken_file_of_state_stops_nothing_and_is_named(store, name, content):
    first, second = two_finished()
    (first.folder / name).write_bytes(content)
    told = CliRunner().invoke(
        app, ["todo", "wang2024", "--section", "scenario", "--no-measure"], env={"COLUMNS": "500"}
    )
    assert told.exit_code == 0, told.output
    counts = next(x for x in told.stdout.splitlines() if x.strip().startswith("all")).split()
    again = name in ("run.json", "records.csv")  # without these it has not finished
    assert counts[1] == ("1" if again else "2"), told.stdout
    if name not in (".done", "error.txt"):
        assert str(first.folder / name) in told.stderr and "absent" in told.stderr
    assert second.done and first.done is not again


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_report_leaves_a_broken_record_out_and_names_it(store, content):
    first, second = two_finished()
    (first.folder / "records.csv").write_bytes(content)
    with pytest.warns(UserWarning, match=re.escape(str(first.folder / "records.csv"))):
        found = read_records("wang2024")
    assert found.run_id.tolist() == [second.id]
    with pytest.raises(ValueError, match=re.escape(str(first.folder / "records.csv"))):
        read_record(first.folder / "records.csv")  # asked for by name


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_run_whose_note_is_broken_is_run_again(store, content):
    first, _ = two_finished()
    assert runs.find("wang2024", first.id).notebook.stem == "scenario"
    (first.folder / "run.json").write_bytes(content)
    with pytest.warns(UserWarning, match="run.json"), pytest.raises(runs.ParameterError):
        runs.find("wang2024", first.id)
    with pytest.warns(UserWarning, match="run.json"):
        assert not first.done


def make(folder):
    (folder / "weights.bin").write_bytes(b"w" * 100)


@pytest.mark.parametrize("name", ["asked.json", "weights.bin"])
def test_what_was_made_once_and_is_broken_is_made_again(store, name):
    folder = runs.made_once(store, "thing", {}, make, "code")
    (folder / "half").touch()
    (folder / name).write_bytes(b"w" * 50)
    with pytest.warns(UserWarning, match=name):
        assert runs.made_once(store, "thing", {}, make, "code") == folder
    assert (folder / "weights.bin").stat().st_size == 100 and not (folder / "half").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (folder / "mark").touch()
        runs.made_once(store, "thing", {}, make, "code")
    assert (folder / "mark").exists()


def train(folder, epochs):
    "A tiny training; its log."
    import torch

    from skinrepro.loop import fit

    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    log = fit(
        model,
        lambda epoch: [torch.ones(1, 2)],
        lambda m, b: m(b).square().sum(),
        torch.optim.Adam(model.parameters(), 0.1),
        epochs,
        folder=folder,
        progress=False,
    )
    return log.drop(columns="seconds")


@pytest.mark.parametrize(
    "name", ["state.json", "model.safetensors", "optimizer.safetensors", "random.safetensors"]
)
@pytest.mark.parametrize("keep", [0, 0.7])
def test_a_checkpoint_that_breaks_off_is_none(tmp_path, name, keep):
    whole = train(tmp_path / "whole", 3)
    train(tmp_path / "broken", 2)
    file = tmp_path / "broken" / "checkpoint-00001" / name
    file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])
    with pytest.warns(UserWarning, match=re.escape(str(file))):
        again = train(tmp_path / "broken", 3)
    pd.testing.assert_frame_equal(again, whole)
    assert [f.name for f in (tmp_path / "broken").glob("checkpoint-*")] == ["checkpoint-00002"]


def test_predictions_of_an_epoch_that_break_off_start_the_training_again(tmp_path):
    import torch

    from skinrepro.classify import train_classifier
    from skinrepro.loop import Training

    x, y = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 2

    def trained(folder, epochs):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
        batches = [(x, y, torch.arange(4))]
        settings = Training(epochs, lr=1e-2)
        return train_classifier(
            model, lambda e: batches, {"test": lambda: batches}, settings, folder=folder
        )[1]["test"]

    whole = trained(tmp_path / "a", 3)
    trained(tmp_path / "b", 2)
    file = tmp_path / "b" / "epochs" / "test-00000.npy"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.warns(UserWarning) as said:
        again = trained(tmp_path / "b", 3)
    assert str(file) in str(said[0].message) and again.shape == whole.shape
    assert [f.shape for f in again] == [f.shape for f in whole]


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_memory_of_checksums_that_is_broken_is_made_again(tmp_path, content):
    from skinrepro.images import file_md5s

    file, memory = tmp_path / "a.bin", tmp_path / "memory"
    file.write_bytes(b"a")
    os.utime(file, (1, 1))
    first = file_md5s([file], memory)
    (memory / "md5.csv").write_bytes(content)
    with pytest.warns(UserWarning, match=re.escape(str(memory / "md5.csv"))):
        assert file_md5s([file], memory) == first
    assert len(pd.read_csv(memory / "md5.csv")) == 1


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_rates_and_logs_that_are_broken_are_made_again(tmp_path, monkeypatch, content):
    from skinrepro.download import read_log
    from skinrepro.estimate import _Rates

    monkeypatch.setenv("SKINREPRO_CACHE", str(tmp_path))
    rates, log = _Rates(), tmp_path / "fetch_log.csv"
    rates.file.parent.mkdir(parents=True)
    rates.file.write_bytes(content)
    with pytest.warns(UserWarning, match=re.escape(str(rates.file))):
        assert _Rates().known == {}
    if content != BROKEN["broken_off"]:  # that one is a table of something else, and refused
        log.write_bytes(content)
        with pytest.warns(UserWarning, match=re.escape(str(log))):
            assert not len(read_log(log))


def test_decoded_images_that_break_off_are_decoded_again(tmp_path):
    from PIL import Image

    from skinrepro.images import cache_images

    Image.fromarray(np.full((20, 20, 3), 7, np.uint8)).save(tmp_path / "a.png")
    m = pd.DataFrame(dict(image_id=["a"], path=[str(tmp_path / "a.png")]))
    options = dict(folder=tmp_path / "cache", progress=False)
    first = cache_images(m, 16, "shorter", **options)
    (pixels,) = (tmp_path / "cache").rglob("pixels.npy")
    expected = first.take(first.rows(["a"]))
    del first
    pixels.chmod(0o644)
    pixels.write_bytes(pixels.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=re.escape(str(pixels.parent))):
        again = cache_images(m, 16, "shorter", **options)
    assert again.decoded == 1 and (np.asarray(again.take(again.rows(["a"]))) == expected).all()


LOOK = """
import os, sys
def watch(event, args):
    "Whatever Python opens for writing, makes, renames or removes."
    if event == 'open' and isinstance(args[0], (str, bytes, os.PathLike)):
        mode, flags = args[1] or '', args[2] or 0
        touched = any(c in mode for c in 'wax+') or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        touched = event in ('os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'os.utime')
    if touched and STORE in str(args[0]):
        raise PermissionError(13, 'Read-only file system', str(args[0]))
STORE = os.environ['WATCHED']
sys.addaudithook(watch)
from skinrepro.cli import app
app(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "command",
    [["todo"], ["todo", "wang2024", "--no-measure"], ["run", "wang2024", "--dry-run"]],
    ids=lambda c: " ".join(c),
)
@pytest.mark.parametrize("there", [True, False])
def test_looking_needs_no_place_to_write(tmp_path, store, command, there):
    "Neither in a store that is read-only, nor where there is none."
    if there:
        for r in two_finished():
            (r.folder / ".lock").touch()
    env = dict(os.environ, WATCHED=str(tmp_path), SKINREPRO_CACHE=str(tmp_path / "cache"))
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *command], capture_output=True, text=True, env=env, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "wang2024" in done.stdout and store.exists() == there
    assert not (Path(tmp_path) / "cache").exists()


def test_who_holds_a_lock_is_seen_without_writing(store):
    from filelock import FileLock

    from skinrepro.workflow import states

    first, second = two_finished()
    with FileLock(first.folder / ".lock"):
        assert [s.status for s in states([first, second])] == ["running", "done"]
    assert [s.status for s in states([first, second])] == ["done", "done"]
