"""What the notebook cannot show of skinrepro.generate: processes that are killed, disks that are
full, memory that is not enough, several processes. The drawer paints; it has neither prompts nor
weights.
"""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from skinrepro import generate as g
from skinrepro.core import atomic_path
from skinrepro.images import load_image

COLOURS = dict(psoriasis=(200, 80, 90), folliculitis=(220, 160, 140))


class Paint(g.Drawer):
    "A square in the colour of the label, with grain by the row's seed."

    def __init__(self, size=16, coat=1):
        self.size, self.coat, self.drawn = size, coat, []

    def settings(self):
        return dict(weights="no weights: painted", coat=self.coat)

    def draw(self, rows):
        self.drawn.append(rows.image_id.tolist())
        shape = (self.size, self.size, 3)
        grain = [np.random.default_rng(s).integers(-30, 30, shape) for s in rows.seed]
        colours = [COLOURS[label] for label in rows.label]
        return lambda i: np.uint8(colours[i] + grain[i])


def table(n=8, **options):
    labels = np.resize(list(COLOURS), n)
    ids = [f"i{i}" for i in range(n)]
    return pd.DataFrame(
        dict(image_id=ids, seed=range(100, 100 + n), label=labels, skin_type=5, method="paint")
    ).assign(**options)


def run(t, folder, drawer=None, files=None, **how):
    return g.generate(t, folder, drawer or Paint(), files, progress=False, **how)


def pixels(manifest):
    return np.stack([load_image(p) for p in manifest.path]).astype(int)


def written(folder):
    return {f.name: f.stat().st_mtime_ns for f in Path(folder).iterdir()}


def test_what_is_painted_is_what_is_saved(tmp_path):
    t, paint = table(5), Paint()
    m = run(t, tmp_path, paint, batch_size=2)
    assert paint.drawn == [["i0", "i1"], ["i2", "i3"], ["i4"]]
    grain = np.random.default_rng(103).integers(-30, 30, (16, 16, 3))
    assert (load_image(m.path[3]) == grain + COLOURS["folliculitis"]).all()
    assert m.source.eq("synthetic").all() and m.skin_type.eq(5).all()
    assert m.image_id.tolist() == t.image_id.tolist() and m.label.tolist() == t.label.tolist()
    again = run(t.iloc[::-1], tmp_path / "turned", batch_size=5)
    assert (pixels(again)[::-1] == pixels(m)).all()


# --------------------------------------------------------------------------------------------------
# resuming
SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_generate as T
from skinrepro import generate as g
def slow(*a, write=g.write_image, **k): time.sleep(.05); return write(*a, **k)
g.write_image = slow
T.run(T.table(24), Path({folder!r})/'out', batch_size=2)
"""


def test_a_killed_generation_makes_only_what_is_missing(tmp_path):
    out = tmp_path / "out"
    t = table(24)
    script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    p = subprocess.Popen([sys.executable, "-c", script], env=os.environ)
    try:
        until = time.time() + 240  # ends long before on a machine that is not busy
        while time.time() < until and p.poll() is None and len(list(out.glob("i*.png"))) < 5:
            time.sleep(0.01)
    finally:
        p.send_signal(signal.SIGKILL)
        p.wait()
    before = written(out)
    done = {n for n in before if n.startswith("i")}
    assert 5 <= len(done) < 24, "killed in the middle"
    paint = Paint()
    m = run(t, out, paint)
    after = written(out)
    assert set(after) == {f"{i}.png" for i in t.image_id}
    assert all(after[n] == before[n] for n in done)
    assert {i for b in paint.drawn for i in b} == set(t.image_id) - {n[:-4] for n in done}
    assert (pixels(m) == pixels(run(t, tmp_path / "at_once"))).all()


@pytest.mark.parametrize("format", ["png", "jpg"])
def test_damaged_and_foreign_files_are_made_again(tmp_path, format):
    t, out, files = table(6), tmp_path / "out", g.Files(format=format)
    m = run(t, out, files=files)
    before = written(out)
    data, first = [Path(p).read_bytes() for p in m.path], pixels(m)
    Path(m.path[0]).write_bytes(data[0][: len(data[0]) * 2 // 3])
    Path(m.path[1]).write_bytes(b"")
    Path(m.path[2]).write_bytes(data[3])
    Image.new("RGB", (16, 16)).save(m.path[3])
    Path(m.path[4]).write_bytes(data[4][:-5])
    again = run(t, out, files=files)
    after = written(out)
    assert (pixels(again) == first).all() and (again.md5 == m.md5).all()
    assert [before[Path(p).name] == after[Path(p).name] for p in m.path] == [False] * 5 + [True]


@pytest.mark.parametrize(
    "change", [dict(seed=7), dict(label="folliculitis"), dict(method="brush"), dict(skin_type=6)]
)
def test_another_wish_is_another_file(tmp_path, change):
    t = table(3)
    run(t, tmp_path)
    before = written(tmp_path)
    run(t, tmp_path)
    assert written(tmp_path) == before  # the control: nothing is made twice
    t.loc[0, list(change)] = list(change.values())
    run(t, tmp_path)
    after = written(tmp_path)
    assert [n for n in sorted(before) if before[n] != after[n]] == ["i0.png"]


def test_another_drawer_or_other_files_make_all_again(tmp_path):
    t = table(3)
    run(t, tmp_path)
    before = written(tmp_path)
    for how in (
        dict(drawer=Paint(coat=2)),
        dict(files=g.Files(size=24)),
        dict(files=g.Files(format="jpg")),
        dict(files=g.Files(format="jpg", quality=90)),
    ):
        m = run(t, tmp_path, **how)
        after = written(tmp_path)
        assert all(before.get(Path(p).name) != after[Path(p).name] for p in m.path), how
        before = after


def test_processes_deal_out_the_batches(tmp_path, monkeypatch):
    "Two processes, one after the other: each makes its own half, and the last one knows of all."
    t, waits, drawn = table(7), [], []
    monkeypatch.setattr(g, "wait_for_everyone", lambda: waits.append(1))
    monkeypatch.setattr(g._Images, "look", looked_as_first(g._Images.look))
    for rank in (0, 1):
        monkeypatch.setattr(g, "ranks", lambda rank=rank: (rank, 2))
        paint = Paint()
        m = run(t, tmp_path, paint, batch_size=2)
        drawn.append(paint.drawn)
    assert drawn == [[["i0", "i1"], ["i4", "i5"]], [["i2", "i3"], ["i6"]]]
    assert len(waits) == 4 and m.md5.notna().all()
    monkeypatch.undo()
    assert (pixels(m) == pixels(run(t, tmp_path / "alone"))).all()


def looked_as_first(look):
    "As if each process looked before any has written, which `wait_for_everyone` sees to."

    def empty(self, rows, run=map, progress=False):
        return list(rows) if run is not map else look(self, rows)

    return empty


# --------------------------------------------------------------------------------------------------
# provenance
@pytest.mark.parametrize("format", ["png", "jpg"])
def test_an_image_without_a_prompt_says_what_it_is(tmp_path, format):
    t = table(2, group="dark")
    m = run(t, tmp_path, files=g.Files(24, format, 90))
    says = g.read_provenance(m.path[1])
    assert says.pop("key") and says == dict(
        what="synthetic: not a photograph",
        image_id="i1",
        seed=101,
        label="folliculitis",
        skin_type=5,
        method="paint",
        weights="no weights: painted",
        coat=1,
        size=24,
        format=format,
        **(dict(quality=90) if format == "jpg" else {}),
    )
    image = Image.open(m.path[1])
    assert image.size == (24, 24) and m.group.isna().all()
    seen = image.text["Description"] if format == "png" else image.getexif()[0x010E]
    assert seen == "synthetic: not a photograph. folliculitis"


# --------------------------------------------------------------------------------------------------
# what fails
def test_bad_tables_are_refused_before_anything_is_drawn(tmp_path):
    t, paint = table(3), Paint()
    for specs, match in (
        (t.assign(image_id="same"), r"Row 1, image_id 'same'.*twice"),
        (t.assign(image_id=["a", "b/c", "d"]), r"Row 1, image_id 'b/c'.*file name"),
        (t.assign(skin_type=9.5), "skin_type"),
        (t.assign(seed=[1, 2.5, 3]), r"Row 1, .*column seed: 2.5 is not a whole number"),
        (t.assign(label=["psoriasis", None, None]), r"Row 1, .*label.*\(2 such rows\)"),
        (t[:0], "no rows"),
        (t.drop(columns=["seed", "label"]), r"\['seed', 'label'\]"),
    ):
        with pytest.raises(ValueError, match=match):
            run(specs, tmp_path / "out", paint)
    assert not (tmp_path / "out").exists() and not paint.drawn
    for how, match in ((dict(format="webp"), "format"), (dict(quality=0), "quality = 0")):
        with pytest.raises(ValueError, match=match):
            g.Files(**how)


def test_out_of_memory_names_the_batch_size_to_try(tmp_path):
    class Small(Paint):
        def draw(self, rows):
            if len(self.drawn) and len(rows) > 2:
                raise MemoryError
            return super().draw(rows)

    t = table(8)
    with pytest.raises(g.GenerationError, match="batch_size=2") as e:
        run(t, tmp_path, Small(), batch_size=4)
    assert "on cpu with 4 image(s) of 16 px" in str(e.value)
    first = written(tmp_path)
    assert len(first) == 4  # the first batch is kept
    paint = Small()
    run(t, tmp_path, paint, batch_size=2)
    after = written(tmp_path)
    assert len(after) == 8 and all(after[n] == first[n] for n in first)
    assert paint.drawn == [["i4", "i5"], ["i6", "i7"]]


def test_a_full_disk_and_a_folder_that_cannot_be_are_named(tmp_path, monkeypatch):
    t = table(4)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Cannot write"):
        run(t, tmp_path / "file" / "out")
    count = []

    def full(path):
        count.append(path)
        if len(count) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return atomic_path(path)

    monkeypatch.setattr(g, "atomic_path", full)
    with pytest.raises(
        OSError, match=r"Cannot write .*No space left on device.*whole images are kept"
    ) as e:
        run(t, tmp_path / "out", batch_size=2)
    assert e.value.errno == errno.ENOSPC and 1 <= len(written(tmp_path / "out")) < 4
    monkeypatch.undo()
    assert len(run(t, tmp_path / "out")) == 4


# --------------------------------------------------------------------------------------------------
# several drawers, and wishes
def test_one_drawer_after_the_other_in_the_order_of_the_table(tmp_path):
    t, alive = table(6), []

    def drawer_of(coat):
        alive.append(Paint(coat=coat))
        return alive[-1]

    m = g.generate_by(t, tmp_path, [2, 1, 1, 2, 2, 1], drawer_of, progress=False, batch_size=2)
    assert [(p.coat, p.drawn) for p in alive] == [
        (2, [["i0", "i3"], ["i4"]]),
        (1, [["i1", "i2"], ["i5"]]),
    ]
    assert m.image_id.tolist() == t.image_id.tolist()
    assert [g.read_provenance(p)["coat"] for p in m.path] == [2, 1, 1, 2, 2, 1]
    with pytest.raises(ValueError, match="twice"):  # of the whole table, before a drawer is made
        g.generate_by(t.assign(image_id=list("abcaef")), tmp_path, [1, 1, 1, 2, 2, 2], drawer_of)
    assert len(alive) == 2


def test_targets_follow_the_images_own_seed():
    seeds = np.arange(2000)
    types = np.tile([1, 2, 5, 6], 500)
    asked = g.targets(types, seeds)
    assert (asked == g.targets(types, seeds)).all() and (
        asked[::-1] == g.targets(types[::-1], seeds[::-1])
    ).all()
    assert (asked[np.isin(types, (5, 6))] == types[np.isin(types, (5, 6))]).all()
    light = asked[types < 3]
    assert set(light) == {5, 6} and abs((light == 5).mean() - 0.5) < 0.05
    assert set(g.targets([3, 4, 1], [0, 1, 2], minority=(6,))) == {6}
    for bad in ([7], [None], [float("nan")]):
        with pytest.raises(ValueError, match="Row 0"):
            g.targets(bad, [1])
    with pytest.raises(ValueError, match="seeds"):
        g.targets([1, 2], [1])


def test_an_image_is_read_without_loading_networks():
    "Reports read what images say of themselves."
    code = "import sys, skinrepro.generate; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
