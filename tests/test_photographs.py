"""The one loader of all papers on folders laid out as publishers lay them out: what is missing is
counted or refused, and an inventory and a run agree on every file.
"""

import hashlib
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from skinrepro import fitzpatrick17k, images, manifest, photographs
from skinrepro.core import data_folder, has_data
from skinrepro.images import ImageError, cache_images, load_image
from skinrepro.papers import lopezperez2025, wang2024
from skinrepro.photographs import READERS, inventory, inventory_hash, listed, rendered, summary
from skinrepro.sources import SOURCES, MissingImages

PAPERS = {"wang2024": wang2024, "lopezperez2025": lopezperez2025}


def picture(seed, size=(7, 6), format="PNG"):
    "Bytes of a small picture, different for each seed."
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype="uint8")
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def pad(tmp_path, monkeypatch):
    "PAD-UFES-20 in its publisher's layout; links to real photographs where they are here."
    home = tmp_path / "data" / "pad_ufes20"
    if not has_data("pad_ufes20"):
        pytest.skip("needs pad_ufes20: set SKINREPRO_DATA")
    real = data_folder("pad_ufes20")
    (home / "images").mkdir(parents=True)
    shutil.copy(real / "metadata.csv", home)
    for file in real.rglob("*.png"):
        os.symlink(file, home / "images" / file.name)
    monkeypatch.setenv("SKINREPRO_DATA", str(home.parent))
    return home


@pytest.fixture
def fitz(tmp_path, monkeypatch):
    "Fitzpatrick17k as `skinrepro data fetch` leaves it: the table, and images/ beside it."
    home = tmp_path / "data" / "fitzpatrick17k"
    (home / "images").mkdir(parents=True)
    rows = []
    for i in range(7 * 4 * 9):
        data = picture(i, format="JPEG")
        md5 = hashlib.md5(data).hexdigest()
        (home / "images" / f"{md5}.jpg").write_bytes(data)
        skin = (1, 2, 5, 6)[i % 4]
        rows.append(
            dict.fromkeys(fitzpatrick17k.COLUMNS, "x")
            | dict(md5hash=md5, label=wang2024.CONDITIONS[i // 36], url="")
            | dict(fitzpatrick_scale=skin, fitzpatrick_centaur=skin)
        )
    pd.DataFrame(rows).to_csv(home / "fitzpatrick17k.csv", index=False)
    monkeypatch.setenv("SKINREPRO_DATA", str(home.parent))
    return home


# ---- every paper reads them where they are, and misses what is not


@pytest.mark.parametrize("paper", PAPERS)
def test_fitzpatrick17k_is_read_where_fetch_puts_it(fitz, paper):
    m, stock = PAPERS[paper].load("fitzpatrick17k")
    assert len(m) == 252 and all(Path(p).parent == fitz / "images" for p in m.path)
    assert len(stock) == 16 and set(m.group) == {"light", "dark"}
    assert m.md5.tolist() == m.image_id.tolist()


@pytest.mark.parametrize("paper", PAPERS)
def test_missing_photographs_are_refused_or_counted(fitz, paper):
    load = PAPERS[paper].load
    _, stock = load("fitzpatrick17k")
    lost = sorted((fitz / "images").iterdir())[:3]
    for file in lost:
        file.unlink()
    with pytest.raises(FileNotFoundError) as e:
        load("fitzpatrick17k")
    said = str(e.value)
    assert (
        "3 of the 252" in said
        and "3 missing" in said
        and lost[0].stem in said + "".join(e.value.names)
    )
    assert "skinrepro data fetch fitzpatrick17k" in said and 'missing="drop"' in said
    with pytest.warns(UserWarning, match="3 of the 252"):
        m, less = load("fitzpatrick17k", missing="drop")
    assert len(m) == 249 and less != stock and not set(m.image_id) & {f.stem for f in lost}


def test_a_placeholder_under_several_names_is_no_photograph(fitz):
    "Bytes that are nobody's by their MD5 count as missing, however often they are there."
    lost = sorted((fitz / "images").iterdir())[:3]
    for file in lost:
        file.write_bytes(picture(10**6, format="JPEG"))
    with pytest.raises(MissingImages, match=r"3 of the 252 .*\(3 duplicate\)") as e:
        photographs.photographs("fitzpatrick17k")
    assert sorted(e.value.names) == [f.stem for f in lost]
    with pytest.warns(UserWarning, match="3 of the 252"):
        m, _ = photographs.photographs("fitzpatrick17k", missing="drop")
    assert len(m) == 249 and m.md5.tolist() == m.image_id.tolist()


@pytest.mark.parametrize("paper", PAPERS)
def test_pad_ufes20_counts_what_is_not_there(pad, paper):
    "A run on 75 test images must not look like one on 107."
    load = PAPERS[paper].load
    whole, stock = load("pad_ufes20")
    lost = whole[100:180]
    for path in lost.path:
        Path(path).unlink()
    with pytest.raises(MissingImages, match=r"80 of the \d+ photographs") as e:
        load("pad_ufes20")
    assert e.value.names == lost.image_id.tolist() and "data.mendeley.com" in str(e.value)
    with pytest.warns(UserWarning, match="80 missing"):
        rest, less = load("pad_ufes20", missing="drop")
    assert rest.image_id.tolist() == whole.image_id.drop(lost.index).tolist() and less != stock
    with pytest.raises(ValueError, match="missing"):
        load("pad_ufes20", missing="ignore")


def test_photographs_that_were_not_unpacked_are_said_so(pad):
    whole, _ = wang2024.load("pad_ufes20")
    Path(whole.path[0]).unlink()
    (pad / "images" / "imgs_part_3.zip").write_bytes(b"PK")
    with pytest.raises(MissingImages, match="Unpack imgs_part_3.zip"):
        wang2024.load("pad_ufes20")


def test_only_what_is_wanted_is_looked_at(pad):
    whole, stock = photographs.photographs("pad_ufes20", ["NEV"])
    other = listed("pad_ufes20", ["BCC"])
    Path(other.path[0]).unlink()
    again, same = photographs.photographs("pad_ufes20", ["NEV"])
    assert again.equals(whole) and same == stock and set(whole.label) == {"NEV"}
    with pytest.raises(ValueError, match="'XYZ'; it has 'ACK'"):
        photographs.photographs("pad_ufes20", ["NEV", "XYZ"])
    with pytest.raises(ValueError, match="no rows"):
        photographs.photographs("pad_ufes20", select=lambda m: m[:0])


def test_a_second_copy_stops_nothing_and_is_named(pad):
    m, _ = wang2024.load("pad_ufes20")
    one, two = m.path[:2]
    data = Path(one).read_bytes()
    Path(two).unlink()
    Path(two).write_bytes(data)
    with pytest.warns(UserWarning, match=f"{m.image_id[1]} = {m.image_id[0]}"):
        rest, _ = wang2024.load("pad_ufes20")
    assert rest.image_id.tolist() == m.image_id.drop(1).tolist()


@pytest.mark.skipif(not has_data("ham10000"), reason="needs ham10000: set SKINREPRO_DATA")
def test_groups_by_angle_are_made_of_whole_photographs(tmp_path, monkeypatch):
    real, home = data_folder("ham10000"), tmp_path / "ham10000"
    table = next(p for p in real.iterdir() if p.name.startswith("HAM10000_metadata"))
    lines = table.read_text().splitlines(keepends=True)[:61]
    home.mkdir()
    (home / table.name).write_text("".join(lines))
    files = {p.stem: p for p in real.rglob("*.jpg")}
    column = lines[0].strip().split(",").index("image_id")
    names = [line.split(",")[column] for line in lines[1:]]
    for name in names[1:]:
        os.symlink(files[name], home / f"{name}.jpg")
    monkeypatch.setenv("SKINREPRO_DATA", str(tmp_path))
    with pytest.raises(MissingImages, match="1 of the 60"):
        lopezperez2025.load("ham10000")
    with pytest.warns(UserWarning, match="1 missing"):
        m, stock = lopezperez2025.load("ham10000", missing="drop")
    assert len(stock) == 16
    of_site = pd.crosstab(m.domain, m.group)  # thirds of the images of a site that have an angle
    assert (of_site.light == of_site.dark).all() and 20 <= len(m) <= 40


# ---- one decoder


def grey16(seed):
    values = np.random.default_rng(seed).integers(0, 65536, (6, 7), dtype=np.uint16)
    return encoded(Image.fromarray(values), "PNG")


def turned(seed):
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.open(io.BytesIO(picture(seed, (9, 5)))), "JPEG", exif=exif)


def huge():
    "A file of some kilobytes that promises more pixels than a run takes."
    return encoded(Image.new("1", (9500, 9500)), "PNG")


FILES = {  # kind -> (bytes, status that it should have)
    "16-bit grey": (grey16(1), "ok"),
    "transparent": (encoded(Image.new("RGBA", (6, 5), (9, 9, 9, 0)), "PNG"), "ok"),
    "palette": (encoded(Image.new("P", (6, 5)), "PNG"), "ok"),
    "turned": (turned(2), "ok"),
    "float tiff": (encoded(Image.new("F", (6, 5)), "TIFF"), "corrupt"),
    "32-bit": (encoded(Image.new("I", (6, 5), 70000), "TIFF"), "corrupt"),
    "huge": (huge(), "corrupt"),
    "truncated": (picture(3, (60, 60))[:2000], "corrupt"),
    "truncated jpeg": (picture(4, (60, 60), "JPEG")[:700], "corrupt"),
    "empty": (b"", "corrupt"),
    "html": (b"<html>404</html>", "wrong"),
    "text": (b"see the other folder\n", "wrong"),
    "cmyk jpeg": (encoded(Image.new("CMYK", (6, 5), (9, 99, 9, 0)), "JPEG"), "ok"),
    "palette and transparency": (
        encoded(Image.new("P", (6, 5), 1), "PNG", transparency=1),
        "ok",
    ),
    "grey and transparency": (encoded(Image.new("LA", (6, 5), (9, 9)), "PNG"), "ok"),
    "black and white": (encoded(Image.new("1", (6, 5)), "PNG"), "ok"),
    "animation": (
        encoded(
            Image.new("P", (6, 5)),
            "GIF",
            save_all=True,
            append_images=[Image.new("P", (6, 5), 7)],
            duration=9,
        ),
        "ok",
    ),
    "pages": (
        encoded(
            Image.new("L", (6, 5)), "TIFF", save_all=True, append_images=[Image.new("F", (6, 5))]
        ),
        "ok",
    ),
    "webp": (encoded(Image.new("RGB", (6, 5)), "WEBP"), "ok"),
    "bmp": (encoded(Image.new("RGB", (6, 5)), "BMP"), "ok"),
    "more after the end": (picture(5, (20, 20), "JPEG") + b"comment of a camera", "ok"),
    "twice too huge": (encoded(Image.new("1", (14000, 14000)), "PNG"), "corrupt"),
    "beginning of a png": (b"\x89PNG\r\n\x1a\n", "wrong"),
    "damaged inside": (
        picture(6, (60, 60))[:900] + b"\0" * 400 + picture(6, (60, 60))[1300:],
        "corrupt",
    ),
    "pdf": (b"%PDF-1.4\n%%EOF", "wrong"),
    "svg": (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "wrong"),
}


def accepted(path, folder) -> bool:
    "Whether a run decodes the file, by both of its ways."
    m = pd.DataFrame(dict(image_id=["a"], path=[str(path)]))
    try:
        load_image(path)
        one = True
    except ImageError:
        one = False
    try:
        cache_images(m, 8, folder=folder, progress=False)
        two = True
    except ImageError:
        two = False
    assert one == two, path
    return one


@pytest.mark.parametrize("kind", FILES)
def test_inventory_and_run_agree(kind, pad, tmp_path):
    data, status = FILES[kind]
    m, _ = wang2024.load("pad_ufes20")
    file = Path(m.path[5])
    file.unlink()
    file.write_bytes(data)
    found = inventory("pad_ufes20", pad).set_index("image_id").loc[m.image_id[5]]
    assert found.status == status and (status == "ok") == (found.detail == "")
    assert accepted(file, tmp_path / "cache") == (status == "ok")
    if status == "ok":
        again, _ = wang2024.load("pad_ufes20")
        assert again.md5[5] == hashlib.md5(data).hexdigest()
    else:
        assert str(file) in found.detail
        with pytest.raises(MissingImages, match=f"1 {status}"):
            wang2024.load("pad_ufes20")


@pytest.mark.parametrize("kind", FILES)
def test_the_right_bytes_are_no_use_if_they_do_not_decode(kind, tmp_path):
    "The table states the MD5 of what its authors had; a run needs pixels."
    data, status = FILES[kind]
    md5 = hashlib.md5(data).hexdigest()
    ann = pd.DataFrame(
        dict.fromkeys(fitzpatrick17k.COLUMNS, "x")
        | dict(md5hash=[md5], fitzpatrick_scale=1, fitzpatrick_centaur=1)
    )
    (tmp_path / f"{md5}.jpg").write_bytes(data)
    assert photographs.verify(ann, tmp_path).status.tolist() == [status]
    assert accepted(tmp_path / f"{md5}.jpg", tmp_path / "cache") == (status == "ok")


def folder_instead(file):
    file.mkdir()


def circle(file):
    file.symlink_to(file)


def dangling(file):
    file.symlink_to(file.with_name("nowhere"))


def forbidden(file):
    file.write_bytes(picture(8))


NO_FILES = {folder_instead: "corrupt", circle: "corrupt", dangling: "missing", forbidden: "corrupt"}


@pytest.mark.parametrize("make", NO_FILES, ids=lambda f: f.__name__)
def test_what_cannot_be_read(make, pad, tmp_path, monkeypatch):
    m, _ = wang2024.load("pad_ufes20")
    file = Path(m.path[5])
    file.unlink()
    make(file)
    if make is forbidden:  # for whoever may read everything, too
        read = Path.read_bytes

        def refuse(path):
            if path == file:
                raise PermissionError(13, "Permission denied", str(path))
            return read(path)

        monkeypatch.setattr(Path, "read_bytes", refuse)
    status = inventory("pad_ufes20").set_index("image_id").status[m.image_id[5]]
    assert status == NO_FILES[make]
    with pytest.raises(MissingImages, match=f"1 {status}"):
        wang2024.load("pad_ufes20")
    for run in (
        lambda: load_image(file),
        lambda: cache_images(m[5:6].drop(columns="md5"), 8, folder=tmp_path / "c", progress=False),
    ):
        with pytest.raises((ImageError, FileNotFoundError), match=file.name):
            run()


def test_upper_case_endings(pad):
    m, stock = wang2024.load("pad_ufes20")
    for path in m.path[:4]:
        Path(path).rename(Path(path).with_suffix(".PNG"))
    again, same = wang2024.load("pad_ufes20")
    assert same == stock and again.path[0].endswith(".PNG")
    assert inventory("pad_ufes20", pad).status.isin(["ok", "duplicate"]).all()


def test_a_name_that_is_nearly_right_is_pointed_at(fitz):
    file = sorted((fitz / "images").iterdir())[0]
    file.rename(file.with_name(f"{file.stem.upper()}.JPEG"))
    found = inventory("fitzpatrick17k").set_index("image_id").loc[file.stem]
    assert found.status == "missing" and f"rename it to {file.name}" in found.detail
    with pytest.raises(MissingImages, match=f"rename it to {file.name}"):
        wang2024.load("fitzpatrick17k")


def test_what_was_whole_is_not_decoded_again(pad, monkeypatch, tmp_path):
    monkeypatch.setenv("SKINREPRO_CACHE", str(tmp_path / "cache"))
    decoded = []

    def describe(data, name):
        decoded.append(name)
        return images.describe(data, name)

    monkeypatch.setattr(photographs, "describe", describe)
    m, stock = wang2024.load("pad_ufes20")
    n = len(decoded)
    assert n >= len(m) - 1 and wang2024.load("pad_ufes20")[1] == stock and len(decoded) == n
    file = Path(m.path[0])
    file.unlink()
    file.write_bytes(picture(77)[:60])  # other bytes are another question, each time
    for _ in range(2):
        with pytest.raises(MissingImages, match="1 corrupt"):
            wang2024.load("pad_ufes20")
    assert len(decoded) == n + 2


def test_a_cache_that_cannot_be_written_stops_no_inventory(pad, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SKINREPRO_CACHE", str(tmp_path / "file"))
    assert len(inventory("pad_ufes20", pad)) == 686


# ---- inventories


def test_inventory_is_in_the_order_of_the_table(pad):
    m = listed("pad_ufes20")
    whole = inventory("pad_ufes20")
    a, b, c = (Path(m.path[i]) for i in (3, 4, 5))
    kept = a.read_bytes()
    for file, data in ((a, kept[:60]), (b, None), (c, b"<html>404")):
        file.unlink()
        if data is not None:
            file.write_bytes(data)
    t = inventory("pad_ufes20")
    assert t.image_id.equals(whole.image_id) and list(t.columns) == photographs.INVENTORY
    assert t.status[3:6].tolist() == ["corrupt", "missing", "wrong"]
    assert str(a) in t.detail[3] and str(b) in t.detail[4]
    assert inventory_hash(t) != inventory_hash(whole)
    n = summary(t).set_index("status").n
    assert n["wrong"] == n["missing"] == n["corrupt"] == 1


def test_nothing_at_all_is_a_wrong_folder(pad):
    for file in (pad / "images").iterdir():
        file.unlink()
    for ask in (inventory, photographs.photographs):
        with pytest.raises(MissingImages, match="686 of (the )?686"):
            ask("pad_ufes20")
    assert len(listed("pad_ufes20")) == 686  # the table is what it was


def test_each_data_set_but_the_phantoms_has_a_reader():
    assert set(READERS) == {s.name for s in SOURCES} - {"phantom"}
    with pytest.raises(ValueError, match="data"):
        listed("imagenet")


@pytest.mark.parametrize("label_source", ["scale", "centaur"])
def test_the_label_source_reaches_the_table(fitz, label_source):
    table = pd.read_csv(fitz / "fitzpatrick17k.csv").assign(fitzpatrick_centaur=3)
    table.to_csv(fitz / "fitzpatrick17k.csv", index=False)
    m = listed("fitzpatrick17k", label_source=label_source)
    assert set(m.skin_type) == ({1, 2, 5, 6} if label_source == "scale" else {3})


def test_twins_come_with_the_table(fitz):
    m = listed("fitzpatrick17k")
    assert m.twin_id.isna().all()
    pairs = pd.DataFrame(dict(md5hash_a=[m.image_id[0]], md5hash_b=[m.image_id[7]]))
    pairs.to_csv(fitz / fitzpatrick17k.TWINS, index=False)
    for paper in PAPERS.values():
        assert paper.load("fitzpatrick17k")[0].twin_id.notna().sum() == 2


# ---- phantoms


def test_phantoms_are_drawn_once(tmp_path):
    counts = pd.DataFrame(dict(label=["psoriasis", "keloid"], skin_type=[2, 6], n=[2, 2]))
    how = dict(size=24, partitions={"keloid": "benign dermal"}, jobs=1, folder=tmp_path)
    m = rendered(counts, "x", select=lambda m: m[m.skin_type == 2].assign(group="light"), **how)
    assert m.group.tolist() == ["light"] * 2 and all(Path(p).is_file() for p in m.path)
    before = {p: os.stat(p).st_mtime_ns for p in m.path}
    whole = rendered(counts, "x", **how)
    assert len(whole) == 4 and {p: os.stat(p).st_mtime_ns for p in m.path} == before
    with pytest.raises(ValueError, match="keloid"):
        rendered(counts, "x", 24, folder=tmp_path)
    assert set(rendered(counts, "y", **how).md5).isdisjoint(whole.md5)  # another name, another set


def test_an_inventory_of_another_state_has_another_hash():
    same = dict(image_id=["a", "b"], md5=["1" * 32, "2" * 32])
    states = (["ok", "ok"], ["ok", "corrupt"], ["corrupt", "ok"])
    hashes = {photographs.inventory_hash(pd.DataFrame(same | dict(status=s))) for s in states}
    assert len(hashes) == 3


def test_rows_are_chosen_after_groups_that_come_from_elsewhere(monkeypatch):
    rows = dict(image_id=list("abcd"), label="x", path=[f"{i}.png" for i in "abcd"])
    m = manifest.make(pd.DataFrame(rows))
    monkeypatch.setattr(photographs, "photographs", lambda *a, **k: (m, "hash"))
    found, _ = photographs.study_images(
        manifest.Study("ham10000", groups={}),
        counts=None,
        name="",
        keep=lambda t: t[t.group == "dark"],
        group=lambda t: pd.Series(["dark", None, "light", "dark"], t.index, dtype="string"),
    )
    assert found.image_id.tolist() == ["a", "d"]
