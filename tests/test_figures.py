"""What the notebook of figures cannot show: faults while drawing or writing, stamps whatever the
caller says, the committed figures.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from skinrepro import figures
from skinrepro.figures import (
    box,
    canvas,
    forest,
    gallery,
    picture,
    read_picture,
    save_figure,
    style,
)
from skinrepro.tables import PHANTOM_STAMP

NUMBERS = pd.DataFrame({"x": [0.0, 1.0], "y": [0.5, 0.7], "data": "phantom"})


def drawing():
    import matplotlib.pyplot as plt

    with style():
        fig, ax = plt.subplots(figsize=(2, 1.2))
        ax.plot(NUMBERS.x, NUMBERS.y, "o-")
    return fig


@pytest.fixture(autouse=True)
def closed():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def contents(folder):
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir())}


# --- three files or none


@pytest.mark.parametrize("fails_at", [".png", ".svg", ".csv"])
def test_a_fault_keeps_the_old_figure_whole(tmp_path, monkeypatch, fails_at):
    save_figure(drawing(), tmp_path / "fig", NUMBERS)
    old = contents(tmp_path)
    import matplotlib.figure

    whole = matplotlib.figure.Figure.savefig

    def savefig(self, name, **kw):
        whole(self, name, **kw)
        if str(name).endswith(fails_at):
            raise OSError(28, "No space left on device")

    if fails_at == ".csv":
        monkeypatch.setattr(figures, "csv_text", lambda t: 1 / 0)
    else:
        monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    with pytest.raises((OSError, ZeroDivisionError)):
        save_figure(drawing(), tmp_path / "fig", NUMBERS.assign(y=0.0))
    assert contents(tmp_path) == old


def test_same_input_same_bytes_in_another_process(tmp_path):
    "No date, no random ids, no memory addresses."
    code = (
        'import sys; sys.path.insert(0, "tests"); import pandas as pd; from test_figures import *; '
        "save_figure(drawing(), sys.argv[1], NUMBERS); save_figure(drawing(), sys.argv[1], NUMBERS)"
    )
    for name in ("a", "b"):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / name / "fig")],
            cwd=ROOT,
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        )
    assert (
        contents(tmp_path / "a") == contents(tmp_path / "b")
        and b"\r" not in contents(tmp_path / "a")["fig.csv"]
    )


def test_default_place_is_the_figures_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SKINREPRO_FIGURES", str(tmp_path))
    files = save_figure(drawing(), "paper/fig1.2", NUMBERS)
    assert [f.relative_to(tmp_path).as_posix() for f in files] == [
        "paper/fig1.2.png",
        "paper/fig1.2.svg",
        "paper/fig1.2.csv",
    ]


def test_unwritable_folder_is_named_with_the_remedy():
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    root = os.geteuid() == 0  # permissions do not bind root
    fig = drawing()
    try:
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(PermissionError) as e:
                save_figure(fig, folder / "fig", NUMBERS)
        finally:
            if root:
                os.seteuid(0)
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)
    assert str(folder) in str(e.value) and "SKINREPRO_FIGURES" in str(e.value)


# --- the stamp


@pytest.mark.parametrize("data", ["phantom", "Phantom-v2", "my_phantoms"])
def test_no_caller_talks_the_stamp_away(tmp_path, data):
    t = NUMBERS.assign(data=[data, "pad_ufes20"])
    with pytest.raises(ValueError, match="shows phantoms"):
        save_figure(drawing(), tmp_path / "fig", t, stamp="Data: pad_ufes20")
    assert not list(tmp_path.iterdir())
    svg = save_figure(drawing(), tmp_path / "fig", t)[1].read_text(encoding="utf-8")
    assert PHANTOM_STAMP in svg and "Data: pad_ufes20" in svg


def test_saving_twice_stamps_once_and_the_last_data_counts(tmp_path):
    fig = drawing()
    save_figure(fig, tmp_path / "fig", NUMBERS)
    svg = save_figure(fig, tmp_path / "fig", NUMBERS.assign(data="pad_ufes20"))[1].read_text(
        encoding="utf-8"
    )
    assert svg.count("Data: pad_ufes20") == 1 and "PHANTOM" not in svg


def test_the_stamp_is_inside_the_picture(tmp_path):
    "Red letters at the foot of the png, nowhere else; none for photographs."

    def red(t):
        return (
            read_picture(save_figure(drawing(), tmp_path / "fig", t)[0]).astype(int) @ [1, 0, -1]
            > 150
        ).any(1)

    on, off = red(NUMBERS), red(NUMBERS.assign(data="pad_ufes20"))
    assert on[-40:].any() and not on[:-40].any() and not off.any()


def test_what_has_no_numbers_or_no_weights_is_refused(tmp_path):
    random = NUMBERS.assign(weights="random weights, timing only")
    for t, says in [
        (NUMBERS.iloc[:0], "nothing is drawn"),
        (NUMBERS[["x"]], "no column `data`"),
        (random, "timing only"),
    ]:
        with pytest.raises(ValueError, match=says):
            save_figure(drawing(), tmp_path / "fig", t)
    assert not list(tmp_path.iterdir())


# --- galleries and drawings


def pictures(folder):
    from PIL import Image

    rows = []
    for i in range(4):
        Image.fromarray(np.full((10 + i, 20, 3), 60 * i, "uint8")).save(folder / f"{i}.png")
        rows.append(
            dict(
                row="ab"[i // 2],
                column="xy"[i % 2],
                path=str(folder / f"{i}.png"),
                image_id=f"image {i}",
                parent=i % 2 == 0,
                data="phantom",
            )
        )
    return pd.DataFrame(rows)


def test_each_picture_is_in_its_place(tmp_path):
    t = pictures(tmp_path)
    ax = gallery(t.sample(frac=1, random_state=1).sort_values("row", kind="stable")).axes[0]
    shown = {}
    for image in ax.images:
        left, right, bottom, top = image.get_extent()
        shown[int(image.get_array()[0, 0, 0])] = (left + right) / 2, (top + bottom) / 2
        # no picture is stretched
        high, wide = image.get_array().shape[:2]
        assert (bottom - top) / (right - left) == pytest.approx(high / wide)
    columns = {x.get_text(): at for x, at in zip(ax.get_xticklabels(), ax.get_xticks())}
    rows = {y.get_text(): at for y, at in zip(ax.get_yticklabels(), ax.get_yticks())}
    assert rows["a"] < rows["b"] and ax.get_ylim()[0] > ax.get_ylim()[1]  # downwards
    for i, r in enumerate(t.itertuples()):
        assert shown[60 * i] == pytest.approx((columns[r.column], rows[r.row]))
    framed = {tuple(p.get_center().round(6)) for p in gallery(t).axes[0].patches}
    assert framed == {tuple(np.round(shown[v], 6)) for v in (0, 120)}


def test_a_caption_stands_below_its_own_picture(tmp_path):
    ax = gallery(pictures(tmp_path).assign(caption=["", "one", "", "two"])).axes[0]
    rows = dict(zip("ab", ax.get_yticks()))
    for text, (row, column) in dict(one="ay", two="by").items():
        x, y = next(t for t in ax.texts if t.get_text() == text).get_position()
        assert x == ax.get_xticks()["xy".index(column)]
        assert rows[row] + 0.5 < y < rows[row] + 0.62  # a picture is 1 high
    apart = {}
    for caption in ("", "one", "one\ntwo\nthree"):
        a, b = gallery(pictures(tmp_path).assign(caption=caption)).axes[0].get_yticks()
        apart[caption.count("\n") + bool(caption)] = b - a
    assert apart[0] < apart[1] < apart[3] and apart[3] > 1.3  # each line has its room


def test_a_picture_missing_or_twice_is_named(tmp_path):
    t = pictures(tmp_path)
    Path(t.path[2]).unlink()
    with pytest.raises(FileNotFoundError, match="2.png for b, x"):
        gallery(t)
    with pytest.raises(ValueError, match="one picture per row and column"):
        gallery(pictures(tmp_path).assign(column="x"))


def test_the_csv_of_a_gallery_holds_no_folder(tmp_path):
    t = pictures(tmp_path)
    files = save_figure(gallery(t), tmp_path / "out" / "fig2", t)
    for f in files[1:]:
        assert str(tmp_path) not in f.read_text(encoding="utf-8")
    back = pd.read_csv(files[2])
    assert back.image_id.tolist() == t.image_id.tolist() and "path" not in back


def test_pictures_are_reduced_and_never_enlarged(tmp_path):
    t = pictures(tmp_path)
    assert read_picture(t.path[0], 10).shape == (5, 10, 3) and read_picture(
        t.path[0], 100
    ).shape == (10, 20, 3)


def test_forest_draws_what_there_is():
    nan = float("nan")
    t = pd.DataFrame(
        dict(
            group="g",
            label=["a", "b", "c"],
            effect=[3.0, 5.0, nan],
            low=[-60.0, nan, nan],
            high=[66.0, nan, nan],
            printed=[1.0, nan, 2.0],
            mde=[9.0, 9.0, nan],
            verdict=["inconclusive", "inconclusive", "not run"],
        )
    )
    (ax,) = forest(t, limit=30).axes
    markers = [line.get_marker() for line in ax.lines]
    assert (
        [markers.count(m) for m in "oD<>"] == [2, 2, 1, 1]
        and len(ax.patches) == 2
        and ax.get_xlim() == (-30, 30)
    )


def test_a_drawing_is_searchable_text(tmp_path):
    with style():
        fig, ax = canvas(3, 1)
        box(ax, 1, 0.5, "text encoder")
        picture(ax, 2.3, 0.5, np.zeros((8, 8, 3), "uint8"), text="an image")
    svg = save_figure(fig, tmp_path / "fig", NUMBERS)[1].read_text(encoding="utf-8")
    assert "text encoder" in svg and "an image" in svg and "<image" in svg


# --- the committed figures


def committed():
    return [
        f
        for f in sorted((ROOT / "figures").glob("*/*.csv"))
        if f.with_suffix(".svg").is_file() and f.with_suffix(".png").is_file()
    ]


@pytest.mark.parametrize(
    "table", committed() or [None], ids=lambda f: f and f"{f.parent.name}/{f.stem}"
)
def test_committed_figures_are_stamped_and_small(table):
    if table is None:
        pytest.skip("no committed figure")
    t = pd.read_csv(table, keep_default_na=False)
    svg = table.with_suffix(".svg").read_text(encoding="utf-8")
    if "data" in t and t.data.astype(str).str.contains("phantom", case=False).any():
        assert PHANTOM_STAMP in svg
    assert len(t) and "path" not in t and not re.search(r"(?<![\w.:/])/(home|root|tmp|Users)/", svg)
    assert all(table.with_suffix(s).stat().st_size < 1_500_000 for s in (".png", ".svg"))


def test_rows_of_a_label_grid_keep_their_order():
    "Many rows: an unstable sort by column once turned some of them around."
    labels = [f"label {i}" for i in range(7)]
    black = np.zeros((4, 4, 3), np.uint8)
    images = pd.DataFrame(dict(label=labels, path=[black] * 7))
    rows = {f"row {i}": images for i in range(12)}
    ax = figures.label_grid(rows, labels).axes[0]
    named = {
        y.get_text().replace("\n", " "): at for y, at in zip(ax.get_yticklabels(), ax.get_yticks())
    }
    assert sorted(named, key=named.get) == list(rows)
