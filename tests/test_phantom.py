"""The phantom against bad input, damage, kills and time; what reads well is shown in
nbs/12_phantom.ipynb instead.
"""

import hashlib
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from skinrepro import phantom
from skinrepro.colour import lab
from skinrepro.phantom import (
    CONDITIONS,
    PARTITIONS,
    phantom_manifest,
    render,
    seed_of,
    write_phantoms,
)

WANG = {  # Wang et al. 2024, Table 1: types I, II, V, VI
    "basal cell carcinoma": (85, 156, 24, 7),
    "folliculitis": (30, 97, 31, 9),
    "nematode infection": (15, 56, 32, 12),
    "neutrophilic dermatoses": (70, 115, 31, 15),
    "prurigo nodularis": (7, 28, 29, 9),
    "psoriasis": (113, 232, 64, 21),
    "squamous cell carcinoma": (100, 180, 40, 23),
}


def wang():
    return pd.DataFrame(
        [(label, t, n) for label, row in WANG.items() for t, n in zip((1, 2, 5, 6), row)],
        columns=["label", "skin_type", "n"],
    )


def few(n=6, label="psoriasis", skin_type=2):
    return phantom_manifest(pd.DataFrame(dict(label=[label], skin_type=[skin_type], n=[n])))


PINNED = [  # label, skin type, seed; mean of each quarter of the image, in levels of 0..255
    ("basal cell carcinoma", 2, 3, [124.2, 123.7, 141.5, 141.6]),
    ("psoriasis", 6, 52, [83.6, 84.1, 69.6, 68.3]),
    ("lichen planus", 4, 7, [106.3, 112.3, 119.1, 122.9]),
    ("keloid", 5, 11, [119.2, 111.4, 127.9, 117.0]),
]
PINNED_SHA256 = "d40868fcbad014ee22c058f9a3a678ca23b1633e81a80a3f76e18de71cb9a4a7"


def test_pixels_of_this_version_are_fixed():
    """Another order of the random draws changes every number. The hash says that not one bit
    differs; a processor that adds in another order may differ from it by single levels.
    """
    assert phantom.VERSION == "1", "pin the new pixels here, and let every record be made anew"
    drawn = [render(label, t, seed, 48, "benign dermal") for label, t, seed, _ in PINNED]
    for image, (*which, levels) in zip(drawn, PINNED):
        quarters = image.reshape(2, 24, 2, 24, 3).mean((1, 3, 4)).ravel()
        assert np.abs(quarters - levels).max() < 0.06, which
    found = hashlib.sha256(b"".join(i.tobytes() for i in drawn)).hexdigest()
    if found != PINNED_SHA256:
        warnings.warn(f"pixels differ in single levels on this machine ({found})", stacklevel=1)


def test_manifest_has_exactly_the_counts_of_table_1():
    m = phantom_manifest(wang())
    assert m.groupby(["label", "skin_type"]).size().to_dict() == {
        (r.label, r.skin_type): r.n for r in wang().itertuples()
    }
    assert len(m) == 1631 and m.skin_type.isin([1, 2]).sum() == 1284 and m.image_id.is_unique
    assert (m.source == "phantom").all() and m.image_id.map(seed_of).is_unique
    assert phantom_manifest(wang()).equals(m)


def test_annotations_keep_their_ids_order_and_extra_columns_do_not_matter():
    a = pd.DataFrame(
        dict(
            image_id=["b1", "a2"],
            label=["psoriasis", "lichen planus"],
            skin_type=[6, 1],
            qc=["x", None],
        ),
        index=[7, 3],
    )
    m = phantom_manifest(a)
    assert (
        m.image_id.tolist() == ["b1", "a2"]
        and m.skin_type.tolist() == [6, 1]
        and m.path.tolist() == ["b1.png", "a2.png"]
    )


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(drop="n"), ["n", "counts"]),
        (dict(skin_type=[2, 7]), ["Row 1", "skin_type", "7"]),
        (dict(skin_type=[2, None]), ["Row 1", "skin_type"]),
        (dict(skin_type=[2, 2.5]), ["Row 1", "2.5"]),
        (dict(n=[1, -1]), ["Row 1", "-1"]),
        (dict(n=[1, 1.5]), ["1.5"]),
        (dict(n=["a", 1]), ["Row 0", "a"]),
        (dict(label=["psoriasis", "psoriasis"], skin_type=[2, 2]), ["Row 1", "twice"]),
        (dict(n=[0, 0]), ["no rows"]),
        (dict(label=["psoriasis", None]), ["label"]),
    ],
)
def test_bad_counts_are_refused_by_row_and_column(change, words):
    table = pd.DataFrame(dict(label=["psoriasis", "folliculitis"], skin_type=[2, 5], n=[1, 2]))
    table = table.drop(columns=change["drop"]) if "drop" in change else table.assign(**change)
    with pytest.raises(ValueError) as e:
        phantom_manifest(table)
    assert all(w in str(e.value) for w in words), str(e.value)


@pytest.mark.parametrize("image_id", ["../x", "a/b", ".hidden", "a b", ""])
def test_an_image_id_cannot_leave_the_folder(image_id):
    with pytest.raises(ValueError, match="image_id"):
        phantom_manifest(
            pd.DataFrame(dict(image_id=[image_id], label=["psoriasis"], skin_type=[2]))
        )


@pytest.mark.parametrize(
    "change, word",
    [
        (dict(condition="gout"), "gout"),
        (dict(condition=""), "condition"),
        (dict(condition="gout", partition="joints"), "joints"),
        (dict(condition=None), "None"),
        (dict(skin_type=0), "skin_type"),
        (dict(skin_type=7), "skin_type"),
        (dict(skin_type=2.5), "skin_type"),
        (dict(skin_type=True), "skin_type"),
        (dict(skin_type=None), "skin_type"),
        (dict(skin_type=pd.NA), "skin_type"),
        (dict(seed=-1), "seed"),
        (dict(seed=1.5), "seed"),
        (dict(size=15), "size"),
        (dict(size=64.0), "size"),
        (dict(size=4096), "size"),
        (dict(difficulty=3), "difficulty"),
        (dict(difficulty=float("nan")), "difficulty"),
        (dict(gap=-0.1), "gap"),
        (dict(gap="1"), "gap"),
        (dict(clutter=9), "clutter"),
    ],
)
def test_render_refuses_bad_arguments_by_name(change, word):
    with pytest.raises(ValueError, match=word):
        render(**{**dict(condition="psoriasis", skin_type=2, seed=0), **change})


@pytest.mark.parametrize("size", [16, 33, 64, 224])
def test_every_condition_at_every_size_and_extreme_option(size):
    for condition in CONDITIONS:
        image = render(condition, 6, 4, size, difficulty=2, gap=1, clutter=1.5)
        assert image.shape == (size, size, 3) and image.dtype == np.uint8 and image.std() > 2


def test_every_partition_draws_a_visible_lesion():
    for partition in PARTITIONS:
        seen = [
            np.abs(
                render("some label", 2, s, partition=partition, difficulty=0, clutter=0).astype(int)
                - render("no lesion", 2, s, difficulty=0, clutter=0)
            ).max()
            for s in range(6)
        ]
        assert np.median(seen) > 15, (partition, seen)


def test_conditions_differ_where_the_mask_is_and_not_elsewhere():
    for condition in set(CONDITIONS) - {"no lesion"}:
        changed = []
        for seed in range(4):
            image, mask = render(condition, 2, seed, mask=True, difficulty=0.2, clutter=0)
            d = np.abs(
                image.astype(int) - render("no lesion", 2, seed, difficulty=0.2, clutter=0)
            ).mean(2)
            changed.append((d[mask > 0.8].mean(), d[mask < 0.01].mean()))
        inside, outside = np.mean(changed, 0)
        assert inside > 3 * outside, (condition, inside, outside)


def test_the_camera_and_background_do_not_know_skin_type_or_condition():
    a, b = (render(c, 2, 9, clutter=1.0) for c in ("nematode infection", "no lesion"))
    assert (a == b).all(2).mean() > 0.3  # same noise, hair and light wherever the lesion is not
    assert (
        render("psoriasis", 2, 9).mean()
        > render("psoriasis", 4, 9).mean()
        > render("psoriasis", 6, 9).mean()
    )


def test_gap_takes_more_contrast_from_dark_skin_than_from_light():
    def contrast(t, gap):
        pairs = [
            render(
                "allergic contact dermatitis", t, s, mask=True, gap=gap, difficulty=0.2, clutter=0
            )
            for s in range(6)
        ]
        return np.mean(
            [np.linalg.norm(lab(x)[m > 0.8].mean(0) - lab(x)[m < 0.05].mean(0)) for x, m in pairs]
        )

    kept = {t: contrast(t, 1.0) / contrast(t, 0.0) for t in (1, 6)}
    assert kept[6] < 0.9 * kept[1] < 0.9 and kept[6] < 0.75, kept


@pytest.mark.parametrize("looked_through", [0, 1])
@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "other", "text", "jpeg"])
def test_damaged_files_are_rendered_again_and_only_they(tmp_path, damage, looked_through):
    m = few()
    written = write_phantoms(m, tmp_path, size=32)
    for _ in range(looked_through):  # files that are known by their bytes
        assert write_phantoms(m, tmp_path, size=32).equals(written)
    victim, *others = map(Path, written.path)
    data, times = victim.read_bytes(), [p.stat().st_mtime_ns for p in others]
    if damage == "truncate":
        victim.write_bytes(data[:-40])
    if damage == "empty":
        victim.write_bytes(b"")
    if damage == "flip":
        victim.write_bytes(
            data[: len(data) // 2]
            + bytes([data[len(data) // 2] ^ 255])
            + data[len(data) // 2 + 1 :]
        )
    if damage == "other":
        victim.write_bytes(others[0].read_bytes())  # a whole phantom, but not this one
    if damage == "text":
        victim.write_text("not an image")
    if damage == "jpeg":
        Image.open(others[0]).save(victim, "JPEG")
    assert write_phantoms(m, tmp_path, size=32).equals(written) and victim.read_bytes() == data
    assert [p.stat().st_mtime_ns for p in others] == times


def test_a_file_that_was_looked_through_is_not_decoded_again(tmp_path, monkeypatch):
    m = few()
    written = write_phantoms(m, tmp_path, size=32)
    write_phantoms(m, tmp_path, size=32)  # looks through what was written
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda *a, **k: pytest.fail("decoded"))
        assert write_phantoms(m, tmp_path, size=32).equals(written)
    known = Path(written.path[0]).parent / ".seen.json"
    known.write_text(known.read_text()[:-9])  # a list that is damaged costs time only
    assert write_phantoms(m, tmp_path, size=32).equals(written)
    assert known.read_text().endswith("}")


def test_a_file_known_for_one_image_is_not_trusted_for_another(tmp_path):
    "The same bytes under the same name, where the metadata asked for are others."
    path, drawn = tmp_path / "a.png", []

    def write(told):
        def draw():
            drawn.append(told)
            return np.zeros((8, 8, 3), np.uint8)

        return phantom.write_images([(path, dict(condition=told), draw)])

    first = write("psoriasis")
    assert write("psoriasis") == write("psoriasis") == first and drawn == ["psoriasis"]
    assert write("eczema") != first and drawn == ["psoriasis", "eczema"]
    assert write("psoriasis") == first and drawn == ["psoriasis", "eczema", "psoriasis"]


def test_files_that_are_there_start_no_process(tmp_path, monkeypatch):
    "Another image is needed, and the process that would draw it is the first one."
    import joblib

    def none(*args, **kwargs):
        raise AssertionError("a process was started")

    written = write_phantoms(few(), tmp_path, size=32)
    monkeypatch.setattr(joblib, "Parallel", none)
    assert write_phantoms(few(), tmp_path, size=32, jobs=2).equals(written)
    Path(written.path.iloc[0]).unlink()
    with pytest.raises(AssertionError, match="was started"):
        write_phantoms(few(), tmp_path, size=32, jobs=2)


def test_killed_halfway_the_rerun_completes(tmp_path):
    code = (
        "import sys, pandas as pd; from skinrepro.phantom import"
        ' *\nwrite_phantoms(phantom_manifest(pd.DataFrame(dict(label=["psoriasis"], skin_type=[2],'
        " n=[400]))), sys.argv[1], size=96)"
    )
    p = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.time() + 60
    while len(list(tmp_path.glob("*/*.png"))) < 20 and time.time() < deadline:
        time.sleep(0.01)
    p.kill()
    p.wait()
    done = [f for f in tmp_path.glob("*/*.png") if not f.name.startswith(".")]
    assert 20 <= len(done) < 400
    times = {f: f.stat().st_mtime_ns for f in done}
    written = write_phantoms(few(400), tmp_path, size=96)
    assert all(Path(f).is_file() for f in written.path) and written.md5.notna().all()
    assert all(f.stat().st_mtime_ns == times[f] for f in done)


def test_files_say_what_they_are_and_options_never_mix(tmp_path):
    m = few(2)
    one, two = (write_phantoms(m, tmp_path, size=32, **k) for k in ({}, dict(gap=1.0)))
    assert Path(one.path[0]).parent != Path(two.path[0]).parent and one.md5[0] != two.md5[0]
    text = Image.open(one.path[0]).text
    assert (
        text["Source"].startswith("phantom")
        and phantom.VERSION in text["Software"]
        and text["seed"] == str(seed_of(m.image_id[0]))
    )
    assert write_phantoms(m, tmp_path, size=32, gap=0.4).equals(one)  # the default, spelled out


def test_processes_give_the_same_files(tmp_path):
    m = phantom_manifest(wang().assign(n=1))
    a, b = (
        write_phantoms(m, tmp_path / "a", size=32),
        write_phantoms(m, tmp_path / "b", size=32, jobs=2),
    )
    assert a.md5.tolist() == b.md5.tolist()


def test_writer_refuses_before_it_writes(tmp_path):
    with pytest.raises(ValueError, match="keloid"):
        write_phantoms(few(2, label="keloid"), tmp_path)
    with pytest.raises(ValueError, match="colour"):
        write_phantoms(few(2), tmp_path, colour=1)
    with pytest.raises(ValueError, match="size"):
        write_phantoms(few(2), tmp_path, size=8)
    with pytest.raises(ValueError, match="not a phantom"):
        write_phantoms(few(2).assign(source="real"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_new_renderer_version_is_a_new_folder(tmp_path, monkeypatch):
    one = write_phantoms(few(1), tmp_path, size=32)
    monkeypatch.setattr(phantom, "VERSION", "next")
    two = write_phantoms(few(1), tmp_path, size=32)
    assert Path(one.path[0]).parent != Path(two.path[0]).parent and Path(one.path[0]).is_file()


def test_fast_enough():
    render("psoriasis", 2, 0)
    t = time.process_time()
    for seed in range(100):
        render(list(CONDITIONS)[seed % 10], 1 + seed % 6, seed)
    assert (
        100 / (time.process_time() - t) > 60
    )  # about 250 a second on an idle core; a stray float64 halves it


def test_pixels_are_those_of_this_version():
    """Fails when pixels change: raise phantom.VERSION, repeat benchmarks/phantom_difficulty.py,
    then store the new values.
    """
    means = [round(float(render(c, t, 1, 32).mean()), 1) for c in CONDITIONS for t in (1, 6)]
    assert phantom.VERSION == "1" and np.allclose(means, PIXEL_MEANS, atol=0.15), means


PIXEL_MEANS = [
    159.3,
    83.1,
    155.2,
    82.4,
    159.3,
    85.1,
    156.3,
    82.5,
    161.8,
    84.3,
    146.0,
    79.7,
    157.8,
    82.7,
    158.9,
    84.5,
    158.9,
    83.9,
    164.5,
    85.0,
]
