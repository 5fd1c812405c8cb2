"""Bad tables, the real table where it is present, odd photographs, and the way from a link to a
manifest.
"""

import functools
import hashlib
import io
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
from PIL import Image

from skinrepro import fitzpatrick17k as fitz
from skinrepro import manifest, photographs
from skinrepro.core import data_folder, has_data

HEAD = ",".join(fitz.COLUMNS)
LABELLED = [
    (1, 2, "psoriasis"),
    (5, 5, "psoriasis"),
    (-1, 6, "folliculitis"),
    (6, -1, "folliculitis"),
]
ROWS = [
    f"{i:032x},{scale},{centaur},{label},inflammatory,non-neoplastic,,http://127.0.0.1:9/{i}.jpg,{i}.jpg"
    for i, (scale, centaur, label) in enumerate(LABELLED, start=1)
]


def table(tmp_path, rows=ROWS, head=HEAD, name="fitzpatrick17k.csv"):
    (tmp_path / name).write_text("\n".join([head, *rows]) + "\n")
    return tmp_path / name


@pytest.fixture(scope="module")
def real():
    "The annotations of the pinned commit."
    if not has_data("fitzpatrick17k"):
        pytest.skip("SKINREPRO_DATA has no fitzpatrick17k: the real annotations are not here")
    return fitz.read_annotations()


@pytest.fixture
def twins():
    "Verified near-duplicate pairs."
    path = (
        data_folder("fitzpatrick17k") / "twins_wang2024.csv" if has_data("fitzpatrick17k") else None
    )
    if path is None or not path.is_file():
        pytest.skip("SKINREPRO_DATA/fitzpatrick17k has no twins_wang2024.csv")
    return fitz.read_twins(path)


# ---- reading


def test_the_index_column_of_a_subset_and_a_byte_order_mark_are_tolerated(tmp_path):
    path = table(tmp_path, [f"{7 * i},{r}" for i, r in enumerate(ROWS)], head=f",{HEAD}")
    path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
    a = fitz.read_annotations(path)
    assert (
        list(a.columns) == fitz.COLUMNS
        and len(a) == 4
        and a.index.tolist() == [0, 1, 2, 3]
        and a.md5hash[0] == f"{1:032x}"
    )


def test_the_order_of_the_file_is_kept(tmp_path):
    assert fitz.read_annotations(table(tmp_path, ROWS[::-1])).md5hash.tolist() == [
        r[:32] for r in ROWS[::-1]
    ]


@pytest.mark.parametrize(
    "rows, head, says",
    [
        (
            ROWS,
            HEAD.replace("fitzpatrick_centaur", "centaur"),
            ["fitzpatrick_centaur", "no column"],
        ),
        (ROWS + ROWS[1:2], HEAD, ["line 6", "md5hash", "second time"]),
        (
            [ROWS[0], ROWS[1].replace(",5,5,", ",7,5,")],
            HEAD,
            ["line 3", "fitzpatrick_scale", "7'", "1..6, or -1"],
        ),
        ([ROWS[0].replace(",1,2,", ",1,0,")], HEAD, ["line 2", "fitzpatrick_centaur", "'0'"]),
        ([ROWS[0].replace(",1,2,", ",1.5,2,")], HEAD, ["line 2", "fitzpatrick_scale", "1.5"]),
        ([ROWS[0].replace(",1,2,", ",,2,")], HEAD, ["line 2", "fitzpatrick_scale", "''"]),
        ([ROWS[0].replace(",1,2,", ",III,2,")], HEAD, ["line 2", "fitzpatrick_scale", "III"]),
        ([ROWS[0].replace("0000", "xyz0", 1)], HEAD, ["line 2", "md5hash", "32"]),
        ([ROWS[0][1:]], HEAD, ["line 2", "md5hash", "32"]),
        ([ROWS[0].replace("psoriasis", "")], HEAD, ["line 2", "label", "empty"]),
        ([ROWS[0], ROWS[1][:40]], HEAD, ["line 3", "empty"]),  # the file breaks off
        ([], HEAD, ["no rows"]),
        ([ROWS[0] + ",more,fields", ROWS[1]], HEAD, ["not a readable csv"]),
    ],
)
def test_a_bad_table_is_refused_with_file_line_and_column(tmp_path, rows, head, says):
    path = table(tmp_path, rows, head)
    with pytest.raises(ValueError) as e:
        fitz.read_annotations(path)
    for word in [str(path), *says]:
        assert word in str(e.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x01"])
def test_what_is_no_csv_is_refused(tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match="a.csv is not a readable csv"):
        fitz.read_annotations(tmp_path / "a.csv")


def test_no_table_tells_where_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="skinrepro data fetch"):
        fitz.read_annotations(tmp_path / "none.csv")
    monkeypatch.delenv("SKINREPRO_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="SKINREPRO_DATA"):
        fitz.read_annotations()
    monkeypatch.setenv("SKINREPRO_DATA", str(tmp_path))
    (tmp_path / "fitzpatrick17k").mkdir()
    table(tmp_path / "fitzpatrick17k")
    assert len(fitz.read_annotations()) == 4


# ---- skin types, counts, manifest


def test_skin_types_by_source(tmp_path):
    a = fitz.read_annotations(table(tmp_path))
    got = {
        s: fitz.skin_type(a, s).astype(object).where(fitz.skin_type(a, s).notna(), None).tolist()
        for s in fitz.SKIN_TYPE_SOURCES
    }
    assert got["scale"] == [1, 5, None, 6] and got["centaur"] == [2, 5, 6, None]
    assert got["centaur_else_scale"] == [2, 5, 6, 6] and got["agreement"] == [None, 5, None, None]
    assert {str(fitz.skin_type(a, s).dtype) for s in fitz.SKIN_TYPE_SOURCES} == {"Int64"}
    with pytest.raises(ValueError, match="'centaur_else_scale'"):
        fitz.skin_type(a, "sclae")


def test_published_counts_hold_without_the_data(monkeypatch):
    monkeypatch.delenv("SKINREPRO_DATA", raising=False)
    c = fitz.annotation_counts()

    def of(s):
        return c.groupby(fitz.skin_type(c, s), dropna=False).n.sum().tolist()

    assert of("scale") == [2947, 4808, 3308, 2781, 1533, 635, 565] and of("centaur")[-1] == 1073
    assert (
        c.n.sum(),
        c.label.nunique(),
        c.nine_partition_label.nunique(),
        c.three_partition_label.nunique(),
    ) == (16577, 114, 9, 3)
    wang = [
        "basal cell carcinoma",
        "folliculitis",
        "nematode infection",
        "neutrophilic dermatoses",
        "prurigo nodularis",
        "psoriasis",
        "squamous cell carcinoma",
    ]
    seven = c[c.label.isin(wang)]
    assert seven.n.sum() == 2835
    fst = seven.groupby("fitzpatrick_scale").n.sum()
    assert (fst[1] + fst[2], fst[5] + fst[6], fst[3], fst[4], fst[-1]) == (1284, 347, 620, 456, 128)
    dark = seven[seven.fitzpatrick_scale >= 5].groupby("label").n.sum()
    assert dark[wang].tolist() == [31, 40, 44, 46, 38, 85, 63]


def test_groups_of_both_label_sources():
    c = fitz.annotation_counts()

    def group(s):
        return ((fitz.skin_type(c, s) + 1) // 2).fillna(0)  # 0 unknown, 1 I-II, 2 III-IV, 3 V-VI

    crossed = c.n.groupby([group("scale"), group("centaur")]).sum().unstack().to_numpy().tolist()
    assert crossed == [
        [291, 162, 67, 45],
        [414, 6711, 609, 21],
        [317, 1771, 3599, 402],
        [51, 97, 633, 1387],
    ]


def test_fairskin_selection():
    five = [
        "allergic contact dermatitis",
        "basal cell carcinoma",
        "lichen planus",
        "psoriasis",
        "squamous cell carcinoma",
    ]
    c = fitz.annotation_counts()
    c = c[c.label.isin(five)].assign(race=(fitz.skin_type(c, "centaur_else_scale") + 1) // 2)
    n = c.groupby(["race", "label"]).n.sum()
    assert n.loc[3].tolist() == [25, 12, 120, 87, 56] and n.loc[2].tolist() == [
        108,
        154,
        183,
        145,
        166,
    ]
    assert (n.max(), n.sum()) == (412, 2575)


def test_counts_of_the_package_are_those_of_the_real_table(real, tmp_path):
    pd.testing.assert_frame_equal(fitz.tabulate(real), fitz.annotation_counts(), check_dtype=False)
    path = data_folder("fitzpatrick17k") / "fitzpatrick17k.csv"
    made = fitz.write_counts(path, tmp_path / "counts.csv")
    assert made.read_text() == fitz._COUNTS.read_text()  # the committed file is what the code makes


def test_counts_are_made_from_no_other_table(tmp_path):
    with pytest.raises(ValueError, match="SHA-256"):
        fitz.write_counts(table(tmp_path), tmp_path / "counts.csv")
    assert not (tmp_path / "counts.csv").exists()


def test_the_real_table(real):
    assert (
        len(real) == 16577
        and real.url.isna().sum() == 41
        and real.url.dropna().is_unique
        and real.qc.notna().sum() == 504
    )
    m = manifest.validate(fitz.to_manifest(real))
    assert (
        m.md5.tolist() == m.image_id.tolist() == real.md5hash.tolist()
        and (m.skin_type.isna()).sum() == 565
    )


def test_manifest_takes_chosen_labels_and_sound_photographs_only(tmp_path):
    a = fitz.read_annotations(table(tmp_path))
    m = fitz.to_manifest(a, "scale", labels=["folliculitis"])
    assert m.image_id.tolist() == a.md5hash[2:].tolist() and m.skin_type.isna().tolist() == [
        True,
        False,
    ]
    inv = pd.DataFrame(dict(image_id=a.md5hash, status=["ok", "re-encoded", "missing", "ok"]))
    assert fitz.to_manifest(a, images=inv).image_id.tolist() == a.md5hash[[0, 3]].tolist()
    with pytest.raises(ValueError, match="'folliculitis'"):
        fitz.to_manifest(a, labels=["Folliculitis"])
    with pytest.raises(ValueError, match="1 of 4 images.*inventory"):
        fitz.to_manifest(a, images=inv[:3])


# ---- twins


def test_clusters_are_connected_components(tmp_path):
    h = [f"{i:032x}" for i in range(7)]
    c = fitz.twin_clusters(
        pd.DataFrame([(h[3], h[2]), (h[1], h[2]), (h[6], h[5])], columns=["md5hash_a", "md5hash_b"])
    )
    assert c.to_dict() == {h[1]: h[1], h[2]: h[1], h[3]: h[1], h[5]: h[5], h[6]: h[5]}
    assert len(fitz.twin_clusters(pd.DataFrame(columns=["md5hash_a", "md5hash_b"], dtype=str))) == 0


@pytest.mark.parametrize(
    "head, row, says",
    [
        ("a,b", "1,2", "no column"),
        ("md5hash_a,md5hash_b", f"{'0' * 32},{'0' * 31}", "line 2, column md5hash_b"),
        ("md5hash_a,md5hash_b", f"{'0' * 32},{'0' * 32}", "with itself"),
        ("md5hash_a,md5hash_b", "0" * 32, "line 2, column md5hash_b"),
    ],
)
def test_bad_twins_are_refused(tmp_path, head, row, says):
    (tmp_path / "t.csv").write_text(f"{head}\n{row}\n")
    with pytest.raises(ValueError, match=says):
        fitz.read_twins(tmp_path / "t.csv")
    with pytest.raises(FileNotFoundError):
        fitz.read_twins(tmp_path / "none.csv")


def test_the_real_twins_tie_images_of_the_real_table(real, twins):
    m = fitz.add_twins(fitz.to_manifest(real), fitz.twin_clusters(twins))
    tied = m[m.twin_id.notna()]
    assert (
        len(twins) == 30 and len(tied) == 60 and (tied.groupby("twin_id").size() == 2).all()
    )  # 30 separate pairs
    assert (tied.skin_type >= 5).sum() == 56 and manifest.validate(m) is m


# ---- inventory


def jpeg(level, quality=90):
    buffer = io.BytesIO()
    Image.linear_gradient("L").point(lambda v: (v + level) % 256).save(
        buffer, "JPEG", quality=quality
    )
    return buffer.getvalue()


def annotate(bodies, url="http://127.0.0.1:9"):
    "Annotations of made-up photographs."
    names = [hashlib.md5(b).hexdigest() for b in bodies]
    skin = [1 + i % 6 for i in range(len(names))]
    return pd.DataFrame(
        dict(
            md5hash=names,
            fitzpatrick_scale=skin,
            fitzpatrick_centaur=3,
            label="psoriasis",
            nine_partition_label="inflammatory",
            three_partition_label="non-neoplastic",
            qc=pd.NA,
            url=[f"{url}/{n}.jpg" for n in names],
            url_alphanum="",
        )
    )[fitz.COLUMNS]


def test_each_kind_of_file_is_told_apart(tmp_path):
    b = [jpeg(i) for i in range(10)]
    ann = annotate(b)
    name = ann.md5hash.tolist()
    here = dict(
        enumerate(
            [
                b[0],
                jpeg(1, quality=30),
                None,
                b"<html>gone</html>",
                b[4][:900],
                jpeg(200),
                jpeg(200),
                b[0],
                b"",
            ]
        )
    )
    for i, data in here.items():
        if data is not None:
            (tmp_path / f"{name[i]}.jpg").write_bytes(data)
    (tmp_path / f"{name[2].upper()}.JPEG").write_bytes(b[2])  # right bytes, wrong name
    (tmp_path / "re-encoded").mkdir()
    (tmp_path / "re-encoded" / f"{name[9]}.jpg").write_bytes(jpeg(9, quality=30))
    (tmp_path / "holiday.jpg").write_bytes(b"not ours")
    inv = photographs.verify(ann, tmp_path, out=tmp_path / "out" / "inventory.csv")
    assert inv.status.tolist() == [
        "ok",
        "re-encoded",
        "missing",
        "wrong",
        "corrupt",
        "duplicate",
        "duplicate",
        "wrong",
        "corrupt",
        "re-encoded",
    ]
    assert inv.image_id.tolist() == name and set(inv.status) == set(photographs.STATUS)
    assert "rename" in inv.detail[2] and "html" in inv.detail[3] and name[0] in inv.detail[7]
    assert inv.md5[0] == name[0] and pd.isna(inv.md5[2]) and inv.bytes[0] == len(b[0])
    s = photographs.summary(inv)
    assert s.n.tolist() == [1, 2, 1, 2, 2, 2] and s.share.sum() == pytest.approx(1)
    back = photographs.read_inventory(tmp_path / "out" / "inventory.csv")
    pd.testing.assert_frame_equal(back, inv)
    assert fitz.to_manifest(ann, images=back).image_id.tolist() == name[:1]


def test_the_hash_tells_which_photographs_there_are(tmp_path):
    b = [jpeg(i) for i in range(3)]
    ann = annotate(b)
    name = ann.md5hash.tolist()
    empty = photographs.inventory_hash(photographs.verify(ann, tmp_path))
    (tmp_path / f"{name[0]}.jpg").write_bytes(b[0])
    one = photographs.verify(ann, tmp_path)
    assert photographs.inventory_hash(one) != empty
    assert photographs.inventory_hash(one) == photographs.inventory_hash(
        one[::-1].assign(detail="other words")
    )
    (tmp_path / f"{name[1]}.jpg").write_bytes(jpeg(1, quality=40))
    two = photographs.inventory_hash(photographs.verify(ann, tmp_path))
    (tmp_path / f"{name[1]}.jpg").write_bytes(jpeg(1, quality=41))
    three = photographs.inventory_hash(photographs.verify(ann, tmp_path))
    assert two != three  # the same status with other bytes


def test_inventories_that_are_none(tmp_path):
    ann = annotate([jpeg(0)])
    with pytest.raises(FileNotFoundError, match="No folder"):
        photographs.verify(ann, tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="data verify"):
        photographs.read_inventory(tmp_path / "none.csv")
    (tmp_path / "i.csv").write_text("a\n1\n")
    with pytest.raises(ValueError, match="no inventory"):
        photographs.read_inventory(tmp_path / "i.csv")
    (tmp_path / "i.csv").write_text(",".join(photographs.INVENTORY) + "\nx,fine,1,,\n")
    with pytest.raises(ValueError, match="line 2, column status"):
        photographs.read_inventory(tmp_path / "i.csv")
    (tmp_path / f"{ann.md5hash[0]}.jpg").mkdir()  # a folder where a file should be
    assert photographs.verify(ann, tmp_path).status[0] == "corrupt"


# ---- from link to manifest (the bad answers of servers are in test_download.py)


@pytest.fixture
def site(tmp_path, monkeypatch):
    "A folder behind a web server; `asked` lists what was asked for."
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    asked, root = [], tmp_path / "www"
    root.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

        def log_error(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=root))
    threading.Thread(
        target=server.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True
    ).start()
    server.root, server.asked, server.url = root, asked, f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


def test_fetch_verify_manifest_and_a_rerun(site, tmp_path):
    b = [jpeg(i) for i in range(5)]
    ann = annotate(b, site.url)
    ann.loc[4, "url"] = pd.NA
    for i, n in enumerate(ann.md5hash[:3]):
        (site.root / f"{n}.jpg").write_bytes(b[i] if i != 1 else jpeg(1, quality=40))
    photos = tmp_path / "photos"
    quick = dict(delay=0, backoff=0.01, progress=False)
    got = photographs.fetch_images(ann, photos, **quick)
    assert got.image_id.tolist() == ann.md5hash.tolist() and got.status.tolist() == [
        "ok",
        "re-encoded",
        "ok",
        "missing",
        "no-url",
    ]
    inv = photographs.verify(ann, photos)
    assert inv.status.tolist() == ["ok", "re-encoded", "ok", "missing", "missing"]
    assert fitz.to_manifest(ann, images=inv).image_id.tolist() == [ann.md5hash[0], ann.md5hash[2]]
    site.asked.clear()
    (photos / f"{ann.md5hash[2]}.jpg").unlink()
    again = photographs.fetch_images(ann, photos, **quick)
    assert site.asked == [f"/{ann.md5hash[2]}.jpg"] and again.status.tolist() == got.status.tolist()


def test_annotations_are_fetched_once_and_checked(site, tmp_path):
    data = table(site.root).read_bytes()
    sha = hashlib.sha256(data).hexdigest()
    url = f"{site.url}/fitzpatrick17k.csv"
    for _ in range(2):
        path = fitz.fetch_annotations(tmp_path / "data", url, sha)
    assert (
        path == tmp_path / "data" / "fitzpatrick17k.csv"
        and path.read_bytes() == data
        and len(site.asked) == 1
    )
    with pytest.raises(ValueError, match="another file"):
        fitz.fetch_annotations(tmp_path / "other", url)
    assert not (tmp_path / "other").exists() or not list((tmp_path / "other").iterdir())
    with pytest.raises(ConnectionError, match="Try again later"):
        fitz.fetch_annotations(tmp_path / "gone", f"{site.url}/gone.csv", sha)


def test_the_pinned_table(real):
    from skinrepro.core import sha256_file

    path = data_folder("fitzpatrick17k") / "fitzpatrick17k.csv"
    assert sha256_file(path) == fitz.CSV_SHA256 and fitz.COMMIT in fitz.CSV_URL
    assert fitz.fetch_annotations(path.parent) == path  # already there and right: no request
