"""Histology: the published folder, its copies in parquet files, PatchCamelyon, and training sets
with few labels of some hospitals.
"""

import hashlib
import io
import os
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pytest
from PIL import Image

from skinrepro import manifest, photographs, sources, splits
from skinrepro.batches import encode_labels
from skinrepro.core import has_data
from skinrepro.fairness import accuracy_gap
from skinrepro.manifest import UNLABELLED, ManifestError, content_hash

LABELS = list(sources.CAMELYON17.labels)
# patient, tumor, center, column split: a split of the two unseen hospitals says nothing
PATCHES = [
    ("004", 1, 0, 0),
    ("012", 0, 0, 1),
    ("073", 1, 3, 0),
    ("096", 0, 4, 0),
    ("024", 0, 1, 0),
    ("042", 1, 2, 1),
]
SPLITS = ["train", "id_val", "train", "train", "val", "test"]


def picture(seed, kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype="uint8")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def published(home, rows=PATCHES, start=0):
    "A folder as the package wilds unpacks it."
    lines = [",patient,node,x_coord,y_coord,tumor,slide,center,split"]
    for i, (patient, tumor, center, split) in enumerate(rows):
        name = f"patient_{patient}_node_{i % 5}"
        lines.append(f"{i},{patient},{i % 5},{32 * i},64,{tumor},{i},{center},{split}")
        file = home / "patches" / name / f"patch_{name}_x_{32 * i}_y_64.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(start + i))
    (home / "metadata.csv").write_text("\n".join(lines) + "\n")


def shard(file, rows, columns=(), kind="PNG", names=False, start=0):
    "A file of a parquet copy: the patches with these numbers, and what it states of them."
    patient, tumor, center, _ = zip(*(PATCHES[i] for i in rows))
    t = pd.DataFrame(dict(label=tumor, center=center, patient=[int(p) for p in patient]))
    t = t.assign(node=[i % 5 for i in rows], x_coord=[32 * i for i in rows], y_coord=64)
    path = [
        f"patch_patient_{p}_node_{i % 5}_x_{32 * i}_y_64.png" if names else None
        for i, p in zip(rows, patient)
    ]
    image = [dict(bytes=picture(start + i, kind), path=p) for i, p in zip(rows, path)]
    file.parent.mkdir(parents=True, exist_ok=True)
    t[list(columns)].assign(image=image).to_parquet(file, index=False)
    return file


STATED = ["label", "center", "patient", "node", "x_coord", "y_coord"]
SHARDS = {"train": [0, 2, 3], "validation": [1, 4], "test": [5]}
NAMED = {"id_train": [0, 2, 3], "id_val": [1], "ood_val": [4], "ood_test": [5]}


def copied(home, parts=SHARDS, **how):
    for part, rows in parts.items():
        shard(home / "data" / f"{part}-00000-of-00001.parquet", rows, **how)
    return home


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SKINREPRO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wilds(tmp_path):
    published(tmp_path / "camelyon17" / "camelyon17_v1.0")
    return tmp_path / "camelyon17"


def test_the_published_folder(wilds):
    m = sources.read_camelyon17(wilds)
    assert m["split"].tolist() == SPLITS
    assert m.domain.tolist() == [f"hospital {center}" for _, _, center, _ in PATCHES]
    assert m.label.tolist() == [LABELS[tumor] for _, tumor, _, _ in PATCHES]
    assert m.patient_id.tolist() == [f"patient_{p}" for p, *_ in PATCHES]
    assert [hashlib.md5(picture(i)).hexdigest() for i in range(6)] == m.md5.tolist()
    assert Path(m.path[0]).parent.name == "patient_004_node_0"
    inner = sources.read_camelyon17(wilds / "camelyon17_v1.0")
    pd.testing.assert_frame_equal(inner, m)  # the inner folder will do
    found = photographs.inventory("camelyon17", wilds)
    assert found.status.eq("ok").all() and found.image_id.tolist() == m.image_id.tolist()
    part, _ = photographs.photographs("camelyon17", ["tumor"], folder=wilds)
    assert set(part.label) == {"tumor"} and len(part) == 3


@pytest.mark.parametrize(
    "old,new,why",
    [
        ("center,split", "centre,split", r"missing column\(s\) \['center'\]"),
        ("0,004,0", "0,1004,0", "line 2, column patient: '1004'"),
        ("1,012,1,32", "1,012,1,-32", "line 3, column x_coord: '-32'"),
        ("0,64,1,0,0,0", "0,64,2,0,0,0", "line 2, column tumor: '2'"),
        ("64,1,0,0,0", "64,1,0,5,0", "line 2, column center: '5'"),
        ("64,1,0,0,0", "64,1,0,3,0", "line 2, column center: '3' is not the hospital of that"),
        ("64,1,0,0,0", "64,1,0,0,2", "line 2, column split: '2'"),
        ("1,012,1,32", "1,004,0,0", "line 3, column x_coord: '0' is of a patch that occurs twice"),
    ],
)
def test_a_bad_cell_is_named(wilds, old, new, why):
    file = wilds / "camelyon17_v1.0" / "metadata.csv"
    text = file.read_text()
    assert text.count(old) >= 1
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ManifestError, match=rf"metadata.csv.*{why}"):
        sources.read_camelyon17(wilds)


def test_patches_that_are_not_there(wilds):
    lost = Path(sources.read_camelyon17(wilds).path[4])
    lost.unlink()
    with pytest.raises(sources.MissingImages, match="1 of 6 .*CodaLab.* wltjr1007") as e:
        sources.read_camelyon17(wilds)
    assert e.value.names == [lost.name]
    with pytest.warns(UserWarning, match="Their rows are left out"):
        assert len(sources.read_camelyon17(wilds, missing="drop")) == 5
    m = sources.read_camelyon17(wilds, missing="keep")
    assert m.path[4] == str(lost) and m.md5.isna().tolist() == [i == 4 for i in range(6)]
    (wilds / "archive.tar.gz").write_bytes(b"")
    with pytest.raises(sources.MissingImages, match="Unpack archive.tar.gz"):
        sources.read_camelyon17(wilds)


def test_unlabelled_patches(wilds):
    with pytest.raises(FileNotFoundError, match='unlabelled="none"'):
        sources.read_camelyon17(wilds, unlabelled="train")
    more = [("005", -1, 0, 10), ("025", -1, 1, 10), ("045", -1, 2, 10), ("065", -1, 3, 10)]
    published(wilds / "camelyon17_unlabeled_v1.0", more, start=100)
    m = sources.read_camelyon17(wilds, unlabelled="train")
    rest = m[m["split"] == UNLABELLED]
    assert rest.domain.tolist() == ["hospital 0", "hospital 3"] and rest.label.isna().all()
    assert m.label.notna().sum() == 6 and rest.path.str.contains("unlabeled_v1.0").all()
    everything = sources.read_camelyon17(wilds / "camelyon17_v1.0", unlabelled="all")
    assert everything["split"].eq(UNLABELLED).sum() == 4
    with pytest.raises(ValueError, match="'none', 'train', 'all'"):
        sources.read_camelyon17(wilds, unlabelled="some")


def test_the_whole_data_set_is_recognised(tmp_path):
    "A table of full size with the numbers that are printed, without files."
    c = sources.CAMELYON17_COUNTS
    c = c[c["split"] != UNLABELLED]
    t = c.loc[c.index.repeat(c.n)].reset_index(drop=True)
    i, center = np.arange(len(t)), t.domain.str[-1].astype(int)
    assert len(t) == 455_954  # all that is labelled
    rows = dict(patient=(20 * center + i % 20).map("{:03d}".format), node=i % 5)
    rows |= dict(x_coord=32 * (i // 1000), y_coord=32 * (i % 1000), tumor=i % 2, slide=0)
    rows |= dict(center=center, split=t["split"].eq("id_val").astype(int))
    t = pa.Table.from_pandas(pd.DataFrame(rows).rename_axis("").reset_index(), preserve_index=False)
    pyarrow.csv.write_csv(t, tmp_path / "metadata.csv")
    m = sources.read_camelyon17(tmp_path, missing="keep", md5=False)
    found = sources.check_camelyon17(m)
    # Table A1 of the paper by rows, hospitals 1 and 2 under their right headings
    printed = dict(train=302_436, id_val=33_560, val=34_904, test=85_054)
    assert found.groupby("split").here.sum().to_dict() == printed
    assert found.set_index(["split", "domain"]).here["test", "hospital 2"] == 85_054
    with pytest.raises(ManifestError, match="train of hospital 0: 53,424 of 53,425"):
        sources.check_camelyon17(m[1:])
    with pytest.raises(ManifestError, match="unlabelled of hospital 4: 0 of 600,030"):
        sources.check_camelyon17(m, "train")
    t = sources.count_camelyon17(m, "train")
    assert t.published[t["split"] == UNLABELLED].sum() == 1_799_247  # Table A1, last row
    with pytest.raises(ManifestError, match="val of hospital 1: 0 of 34,904"):
        swapped = m.domain.replace({"hospital 1": "hospital 2", "hospital 2": "hospital 1"})
        sources.check_camelyon17(m.assign(domain=swapped))


def alike(a, b):
    "The same patches with the same facts and bytes, wherever they lie."
    a, b = (m.sort_values("image_id", ignore_index=True).drop(columns="path") for m in (a, b))
    pd.testing.assert_frame_equal(a, b)


@pytest.mark.parametrize("layout", ["names", "folders"])
def test_a_copy_in_parquet_files_is_the_same_manifest(wilds, tmp_path, layout):
    home = tmp_path / "copy"
    for part, rows in SHARDS.items():
        name = f"data/{part}-00000-of-00001" if layout == "names" else f"default/{part}/0000"
        shard(home / f"{name}.parquet", rows, STATED)
    alike(sources.read_camelyon17(home), sources.read_camelyon17(wilds))


def test_what_columns_do_not_say_the_names_of_files_may(wilds, tmp_path):
    home = copied(tmp_path / "copy", NAMED, columns=["label"], names=True)
    alike(sources.read_camelyon17(home), sources.read_camelyon17(wilds))


def test_hospitals_are_those_of_the_patients(tmp_path):
    copied(tmp_path / "copy", NAMED, columns=["label", "patient"])
    m = sources.read_camelyon17(tmp_path / "copy")
    assert sorted(m.domain) == sorted(f"hospital {c}" for _, _, c, _ in PATCHES)
    assert m.image_id.is_unique and m.image_id[0] == "id_train_00000_000000"


def test_a_parquet_copy_without_centres(tmp_path):
    home = copied(tmp_path / "copy", NAMED, columns=["label"], kind="JPEG")
    shard(home / "data" / "unlabeled_train-00000-of-00001.parquet", [0, 1], kind="JPEG", start=50)
    with pytest.raises(ManifestError, match="a parquet copy without centres.*wltjr1007"):
        sources.read_camelyon17(home)
    assert not (tmp_path / "cache").exists()  # refused before anything is written
    with pytest.warns(UserWarning, match="6 of 6 patches .* compressed them anew"):
        m = sources.read_camelyon17(home, without_centres="keep")
    of_split = m.drop_duplicates("split").set_index("split").domain
    assert of_split["val"] == "hospital 1" and of_split["test"] == "hospital 2"
    assert m.domain[m["split"].isin(["train", "id_val"])].isna().all() and m.patient_id.isna().all()
    assert m.path.str.endswith(".jpg").all() and m["split"].value_counts()["train"] == 3
    with pytest.warns(UserWarning, match="8 of 8"):
        more = sources.read_camelyon17(home, unlabelled="train", without_centres="keep")
    assert more["split"].eq(UNLABELLED).sum() == 2 and more.label.notna().sum() == 6
    # a part that mixes two hospitals stays useless without them
    other = copied(tmp_path / "other", columns=["label"])
    with pytest.raises(ManifestError, match="validation-.*without centres"):
        sources.read_camelyon17(other, without_centres="keep")


def test_shards_that_are_not_what_they_seem(tmp_path):
    home = tmp_path / "copy"
    file = shard(home / "test-00000-of-00001.parquet", [0], STATED)
    with pytest.raises(ManifestError, match="row 0, column center: '0' is a hospital that trains"):
        sources.read_camelyon17(home)
    file.rename(home / "patches.parquet")
    with pytest.raises(ManifestError, match="neither its name nor its folder"):
        sources.read_camelyon17(home)
    file = (home / "patches.parquet").rename(home / "train-00000-of-00001.parquet")
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(ManifestError, match="not a readable parquet file"):
        sources.read_camelyon17(home)
    pd.DataFrame(dict(label=[1])).to_parquet(file)
    with pytest.raises(ManifestError, match="no column image"):
        sources.read_camelyon17(home)
    for label, why in ((2, "row 0, column label: '2' is neither"), (None, "no column label")):
        t = pd.DataFrame(dict(center=[0], image=[dict(bytes=picture(0), path=None)]))
        (t if label is None else t.assign(label=label)).to_parquet(file)
        with pytest.raises(ManifestError, match=why):
            sources.read_camelyon17(home)
    image = [dict(bytes=None, path="x.png")]
    pd.DataFrame(dict(center=[0], label=[1], image=image)).to_parquet(file)
    with pytest.raises(ManifestError, match="row 0, column image"):
        sources.read_camelyon17(home)
    assert not [f for f in (tmp_path / "cache" / "parquet").iterdir() if f.suffix != ".lock"]
    shard(file, [0, 2], STATED)
    assert len(sources.read_camelyon17(home)) == 2


def test_files_of_a_copy_that_are_not_there(tmp_path):
    home = tmp_path / "copy"
    shard(home / "train-00001-of-00003.parquet", [0, 2], STATED)
    with pytest.raises(sources.MissingImages, match="2 of 3 parquet files") as e:
        sources.read_camelyon17(home)
    assert e.value.names == ["train-00000-of-00003", "train-00002-of-00003"]
    with pytest.warns(UserWarning, match="2 of 3 parquet files"):
        assert len(sources.read_camelyon17(home, missing="drop")) == 2


def test_images_of_shards_are_written_once(tmp_path, monkeypatch):
    home = copied(tmp_path / "copy", columns=STATED)
    m = sources.read_camelyon17(home)
    written, once = [], sources._shard_images
    monkeypatch.setattr(sources, "_shard_images", lambda f, s: written.append(f) or once(f, s))
    pd.testing.assert_frame_equal(sources.read_camelyon17(home), m)
    assert not written
    Path(m.path[0]).unlink()  # somebody cleans up
    pd.testing.assert_frame_equal(sources.read_camelyon17(home), m)
    assert len(written) == 1
    file = home / "data" / "test-00000-of-00001.parquet"
    shard(file, [5], STATED, start=7)
    os.utime(file, ns=(1, 1))
    changed = sources.read_camelyon17(home).md5 != m.md5
    assert changed.tolist() == [True] + [False] * 5  # `test` comes first
    assert len(written) == 2


# ---- PatchCamelyon


def test_pcam(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(3):
        (tmp_path / "images" / f"{i}.png").write_bytes(picture(i))
    table = "image,label,id\n0.png,normal,0\n1.png,tumor,1\n2.png,normal,2\n"
    (tmp_path / "labels.csv").write_text(table)
    m = sources.read_pcam(tmp_path)
    assert m.image_id.tolist() == ["0", "1", "2"] and m.label.tolist()[1] == "tumor"
    assert m[["domain", "split", "patient_id", "skin_type"]].isna().all(axis=None)
    assert photographs.inventory("pcam", tmp_path).status.eq("ok").all()
    (tmp_path / "images" / "2.png").write_bytes(picture(1))
    with pytest.warns(UserWarning, match=r"2 = 1 \(which disagree in label"):
        assert len(sources.read_pcam(tmp_path)) == 2
    (tmp_path / "labels.csv").write_text(table.replace("tumor", "tumour"))
    with pytest.raises(ManifestError, match="line 3, column label: 'tumour' is not one of normal"):
        sources.read_pcam(tmp_path)


@pytest.mark.skipif(not has_data("pcam"), reason="needs $SKINREPRO_DATA/pcam")
def test_real_pcam():
    m = sources.read_pcam()
    assert set(m.label) == set(LABELS) and m.md5.is_unique and m.domain.isna().all()


class ArraysOnly(types.ModuleType):
    "What export_pcam needs of h5py, with npz files in the place of HDF5."

    class File:
        def __init__(self, file, mode):
            self.arrays = np.load(file)

        def __enter__(self):
            return self.arrays

        def __exit__(self, *error):
            self.arrays.close()


def test_the_published_arrays_become_images(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype="uint8")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="pip install h5py"):
        sources.export_pcam(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", ArraysOnly("h5py"))
    with pytest.raises(FileNotFoundError, match="split_train_x.h5"):
        sources.export_pcam(tmp_path)
    for part in ("train", "valid"):
        tumor = np.array([0, 1, 1, 0], "uint8").reshape(4, 1, 1, 1)
        for kind, array in dict(x=pixels if part == "train" else 255 - pixels, y=tumor).items():
            with open(tmp_path / f"camelyonpatch_level_2_split_{part}_{kind}.h5", "wb") as f:
                np.savez(f, **{kind: array})
    wsi = pd.DataFrame(dict(wsi=[f"camelyon16_{i // 2}" for i in range(4)]))
    wsi.to_csv(tmp_path / "camelyonpatch_level_2_split_train_meta.csv")
    with pytest.raises(FileNotFoundError, match="must be exported first"):
        sources.read_pcam(tmp_path)
    sources.export_pcam(tmp_path)
    m = sources.read_pcam(tmp_path)
    assert m["split"].tolist() == ["train"] * 4 + ["val"] * 4
    assert m.label.tolist() == [LABELS[i] for i in (0, 1, 1, 0)] * 2
    assert m.patient_id.tolist()[:4] == [f"camelyon16_{i // 2}" for i in range(4)]
    assert m.patient_id[4:].isna().all()
    assert (np.asarray(Image.open(m.path[2])) == pixels[2]).all()


# ---- images without a label


def of_old():
    "Labelled rows with something in every column that a hash looks at."
    return manifest.make(
        pd.DataFrame(
            dict(
                image_id=["a", "b", "c", "d"],
                path="x.png",
                label=["mel", "nv", "mel", "bcc"],
                labels=[None, "nv|bcc", None, None],
                skin_type=[1, None, 6, 3],
                group=["light", None, "dark", "light"],
                domain=["hospital 0", "hospital 3", None, "hospital 0"],
                split=["train", "val", "test", None],
                md5=["0" * 32, None, "1" * 32, None],
            )
        )
    )


def test_hashes_of_labelled_images_are_what_they_were():
    # computed by the version that had no unlabelled rows
    assert content_hash(of_old()) == "7220de855e5e1b18"
    assert content_hash(of_old().assign(labels=pd.NA)) == "b2225e22369ba743"


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_unlabelled_rows(tmp_path, name):
    m = of_old()
    m.loc[0, ["label", "split"]] = [pd.NA, UNLABELLED]
    assert manifest.validate(m, ["mel", "nv", "bcc"]) is m
    back = manifest.read(manifest.write(m, tmp_path / name))
    assert back.label.isna().tolist() == [True, False, False, False]
    assert content_hash(back) == content_hash(m) != content_hash(of_old())
    for call, said in (
        (
            lambda: manifest.label_codes(m, ["mel", "nv", "bcc"]),
            "1 of 4 rows are unlabelled, first",
        ),
        (lambda: encode_labels(m.label, ["mel", "nv", "bcc"]), "1 of 4 rows are unlabelled"),
        (lambda: splits.draw(m, 1, 0, ["label"]), "1 of 4 images have no label"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    assert manifest.label_codes(m[m.label.notna()], ["mel", "nv", "bcc"]).tolist() == [1, 0, 2]
    assert len(splits.few_of_each(m, 1)) == 3


@pytest.mark.parametrize(
    "row,change,why",
    [
        (
            1,
            dict(label=pd.NA),
            "column label: <NA> is missing; .* unless its split is 'unlabelled'",
        ),
        (3, dict(label=pd.NA), "column label: <NA> is missing"),  # no split is not unlabelled
        (0, dict(split=UNLABELLED), "column label: 'mel' stands in a row whose split"),
        (0, dict(split=UNLABELLED, label=pd.NA, labels="mel"), "column labels: 'mel' stands in"),
    ],
)
def test_a_label_is_missing_exactly_where_it_was_meant_to(row, change, why):
    m = of_old()
    m.loc[row, list(change)] = list(change.values())
    with pytest.raises(ManifestError, match=f"Row {row}, .*{why}"):
        manifest.validate(m)


def test_names_are_spelt_as_one_by_one():
    "The short way for plain names is the long way."
    letters = list("aZ0~! \t\n\r\x00\x7f\u00a0\u200b\ufeffe\u0301é\u3000\x1c\x85ß中")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(letters, rng.integers(0, 6))) for _ in range(5000)]
    words = pd.Series([*words, None, "a\n", "a b", "a  b", " a", ""])
    slow = words.map(manifest.spelt, na_action="ignore").map(lambda w: w or None)
    assert manifest.stripped(words).fillna("-").tolist() == slow.fillna("-").tolist()


# ---- skewing


def people(women=8972, men=6000, other=50):
    "Training images of two sexes and some of none, and a test part."
    sex = ["female"] * women + ["male"] * men + [None] * other + ["male", "female"] * 10
    split = ["train"] * (women + men + other) + ["test"] * 20
    ids = [f"i{i}" for i in range(len(sex))]
    m = manifest.make(pd.DataFrame(dict(image_id=ids, path="x.png", label="nv", split=split)))
    return m.assign(sex=pd.array(sex, "string"))


def labelled(m):
    own = m[(m["split"] == "train") & m.label.notna()]
    return own.sex.fillna("none").value_counts().to_dict()


def test_the_three_settings_of_table_a2():
    m, before = people(), set()
    for men in (19, 115, 1157):  # most, more, less skewed
        s = splits.skewed(m, dict(male=men), seed=3, by="sex")
        assert labelled(s) == dict(female=8972, male=men, none=50)
        assert len(s) == len(m) and s.image_id.tolist() == m.image_id.tolist()
        assert s["split"].eq(UNLABELLED).sum() == 6000 - men and s["split"].eq("test").sum() == 20
        assert s.label[s["split"] == UNLABELLED].isna().all()
        kept = set(s.image_id[s.label.notna() & (s["split"] == "train")])
        assert before < kept  # the few are among the more
        before = kept
        manifest.validate(s, ["nv"])
    assert m.label.notna().all()  # nothing is changed in place


def test_skewing_is_random_and_repeatable():
    m = people(500, 500, 0)
    a, b, c = (splits.skewed(m, dict(male=50), seed, "sex") for seed in (0, 0, 1))
    assert a.equals(b) and not a.equals(c)
    rows = np.concatenate(
        [
            np.flatnonzero(splits.skewed(m, dict(male=50), seed, "sex").label.notna())[500:550]
            for seed in range(40)
        ]
    )
    assert abs(rows.mean() - 749.5) < 15  # the standard error of 2000 uniform draws is 3


def test_each_or_together_and_dropped():
    counts = {"hospital 0": 400, "hospital 3": 900, "hospital 4": 300}
    domain = [k for k, n in counts.items() for _ in range(n)]
    m = manifest.make(pd.DataFrame(dict(image_id=range(1600), path="x", label="nv", domain=domain)))
    keep = {"hospital 3": 120, "hospital 4": 120}
    each = splits.skewed(m, keep, unlabelled=False)
    assert each.domain.value_counts().to_dict() == {"hospital 0": 400} | keep
    both = splits.skewed(m, keep, reading="together", unlabelled=False).domain.value_counts()
    assert both["hospital 3"] + both["hospital 4"] == 120 and both["hospital 0"] == 400
    assert 70 < both["hospital 3"] < 110  # three quarters of the two are of hospital 3
    alone = splits.skewed(m, {"hospital 3": 120}, unlabelled=False)
    drawn = [set(s.image_id[s.domain == "hospital 3"]) for s in (each, alone)]
    assert drawn[0] == drawn[1]  # whatever else is skewed
    none = splits.skewed(m, {"hospital 4": 0})
    assert none.label[none.domain == "hospital 4"].isna().all()
    with pytest.raises(ValueError, match="wants the same for each"):
        splits.skewed(m, {"hospital 3": 1, "hospital 4": 2}, reading="together")
    with pytest.raises(ValueError, match="'each', 'together'"):
        splits.skewed(m, keep, reading="both")


@pytest.mark.parametrize(
    "keep,by,why",
    [
        (dict(real=1), "source", "source has only 'real' in the part 'train': skewing needs two"),
        (dict(x=1), "domain", "domain has no value"),
        (dict(x=1), "age", "No column 'age' to skew by"),
        (dict(other=1), "sex", "No image of sex 'other' in 'train'; there are female, male"),
        (dict(male=6001), "sex", "6001 images of sex male .* there are 6000: ask for fewer"),
        (dict(male=-1), "sex", "-1 images"),
        (dict(male=1.5), "sex", "1.5 images"),
        (dict(male=True), "sex", "True images"),
        ({}, "sex", "No value of sex is named"),
    ],
)
def test_skewing_that_makes_no_sense(keep, by, why):
    with pytest.raises(ValueError, match=why):
        splits.skewed(people(), keep, by=by)


# ---- the gap between hospitals


def test_a_hospital_that_is_not_tested_has_no_gap():
    hospital = ["hospital 0"] * 4 + ["hospital 3"] * 4 + ["hospital 4"] * 2
    y = np.zeros(10, int)
    p = np.array([0, 0, 0, 1, 0, 0, 1, 1, 0, 0])  # 3/4, 2/4, 2/2
    assert accuracy_gap(y, p, hospital) == 0.5
    three = ["hospital 0", "hospital 3", "hospital 4"]
    assert accuracy_gap(y, p, hospital, three) == 0.5
    with pytest.raises(ValueError, match=r"No image of \['hospital 3'\]"):
        keep = np.array(hospital) != "hospital 3"
        accuracy_gap(y[keep], p[keep], np.array(hospital)[keep], three)
    with pytest.raises(ValueError, match="needs two groups"):
        accuracy_gap(y[:4], p[:4], hospital[:4])
    with pytest.raises(ValueError, match="none of"):
        accuracy_gap(y, p, hospital, three[:2])
    with pytest.raises(ValueError, match="have no group"):
        accuracy_gap(y, p, [None, *hospital[1:]])
    with pytest.raises(ValueError, match=r"must be \(n,\)"):
        accuracy_gap(y, p[1:], hospital)


def test_sources_say_why_a_download_fails():
    how = sources.CAMELYON17.how
    assert "CodaLab" in how and "wltjr1007/Camelyon17-WILDS" in how
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(photographs.READERS) >= {"camelyon17", "pcam"}
