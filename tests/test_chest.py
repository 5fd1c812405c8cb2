"""Chest radiographs: CheXpert and ChestX-ray14 as their publishers lay them out, their tables as
torchxrayvision has them, and what is counted of them for Figures 4a, 4b and A1 of ktena2023.
"""

import gzip
import warnings
from importlib.util import find_spec
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image

from skinrepro import phantom_radiograph, photographs, sources
from skinrepro.core import has_data
from skinrepro.manifest import ManifestError
from skinrepro.papers import ktena2023_counting as counting
from skinrepro.records import read_record
from skinrepro.tables import read_reported

FIVE = list(sources.CHEST_FINDINGS)
packaged = pytest.mark.skipif(
    find_spec("torchxrayvision") is None, reason="needs torchxrayvision: `make chest`"
)
FOURTEEN = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,"
    "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,"
    "Support Devices"
).split(",")
TRAIN = [  # path below the copy, sex, age, view, rays, findings
    ("train/patient00001/study1/view1_frontal.jpg", "Female", "68", "Frontal", "AP")
    + (dict(Atelectasis="1.0", Consolidation="-1.0", Edema="0.0", Fracture="1.0"),),
    ("train/patient00001/study1/view2_lateral.jpg", "Female", "68", "Lateral", "")
    + ({"Pleural Effusion": "1.0", "Edema": "1.0", "Cardiomegaly": "-1.0"},),
    ("train/patient00002/study3/view1_frontal.jpg", "Unknown", "0", "Frontal", "PA")
    + ({"No Finding": "1.0"},),
]
VALID = [
    ("valid/patient64541/study1/view1_frontal.jpg", "Male", "73", "Frontal", "AP")
    + (dict(zip(FOURTEEN, ["0.0"] * 14)) | dict(Cardiomegaly="1.0"),)
]


def picture(file, seed=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16), dtype="uint8")
    Image.fromarray(pixels).save(file)


def chexpert(home, name="CheXpert-v1.0-small", **parts):
    "A copy of CheXpert in the published layout."
    root = home / name
    for part, rows in (dict(train=TRAIN, valid=VALID) | parts).items():
        lines = [",".join(["Path,Sex,Age,Frontal/Lateral,AP/PA", *FOURTEEN])]
        for place, *about, found in rows:
            picture(root / place, crc32(place.encode()))
            told = [found.get(f, "") for f in FOURTEEN]
            lines.append(",".join([f"{name}/{place}", *about, *told]))
        (root / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return home


def read(reader, *args, **kwargs):
    "What a reader returns, and what it warned of."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return reader(*args, **kwargs), [str(w.message) for w in caught]


@pytest.mark.parametrize("name", ["CheXpert-v1.0-small", "CheXpert-v1.0", "."])
def test_the_published_layouts_of_chexpert(name, tmp_path):
    m, said = read(sources.read_chexpert, chexpert(tmp_path, name))
    assert m.image_id.tolist()[:2] == [
        "patient00001_study1_view1_frontal",
        "patient00001_study1_view2_lateral",
    ]
    assert m["labels"].tolist() == [
        "atelectasis",
        "pleural effusion|edema",
        "no finding",
        "cardiomegaly",
    ]
    assert m.label.tolist() == ["atelectasis", "pleural effusion", "no finding", "cardiomegaly"]
    assert m.unknown.tolist() == ["consolidation", "cardiomegaly", "", ""]
    assert m.others.tolist() == ["Fracture", "", "", ""]
    assert m["view"].tolist() == ["AP", "lateral", "PA", "AP"]
    assert m["split"].tolist() == ["train"] * 3 + ["val"]
    assert m.patient_id.tolist() == ["patient00001"] * 2 + ["patient00002", "patient64541"]
    assert m.sex.fillna("?").tolist() == ["female", "female", "?", "male"]
    assert m.age.fillna(-1).tolist() == [68, 68, -1, 73] and m.md5.notna().all()
    assert said == [
        "chexpert: of 4 images, 1 have no age (none is written, or one that nobody has) and 1 no"
        " sex; these stay missing."
    ]


def test_what_is_uncertain_is_neither_present_nor_absent(tmp_path):
    m, _ = read(sources.read_chexpert, chexpert(tmp_path))
    states = phantom_radiograph.finding_states(m)  # the phantoms' reading of the same columns
    for i, (*_, found) in enumerate(TRAIN + VALID):
        for j, f in enumerate(FIVE):
            told = found.get(sources.CHEST_FINDINGS[f][0], "")  # not mentioned: absent
            assert states[i, j] == {"": 0, "0.0": 0, "1.0": 1, "-1.0": -1}[told]


def test_the_phantoms_names():
    assert phantom_radiograph.FINDINGS == tuple(FIVE)
    assert sources.CHEXPERT.labels == sources.CHESTXRAY14.labels == phantom_radiograph.LABELS


def test_an_absent_image_and_an_absent_table(tmp_path):
    chexpert(tmp_path)
    (tmp_path / "CheXpert-v1.0-small" / TRAIN[1][0]).unlink()
    with pytest.raises(sources.MissingImages, match="1 of 4") as e:
        sources.read_chexpert(tmp_path)
    assert e.value.names == ["view2_lateral.jpg"]
    m, _ = read(sources.read_chexpert, tmp_path, missing="drop")
    assert len(m) == 3 and m.unknown.tolist() == ["consolidation", "", ""]  # facts stay with rows
    m, _ = read(sources.read_chexpert, tmp_path, missing="keep", md5=False)
    assert len(m) == 4
    (tmp_path / "CheXpert-v1.0-small" / "valid.csv").unlink()
    m, said = read(sources.read_chexpert, tmp_path, missing="drop")
    assert set(m["split"]) == {"train"} and any("valid.csv" in s for s in said)
    chexpert(tmp_path, "CheXpert-v1.0")
    with pytest.raises(ValueError, match="holds CheXpert-v1.0-small and CheXpert-v1.0"):
        sources.read_chexpert(tmp_path)
    with pytest.raises(FileNotFoundError, match="No train.csv") as e:
        sources.read_chexpert(tmp_path / "CheXpert-v1.0" / "train")
    assert sources.CHEXPERT.how in str(e.value)


@pytest.mark.parametrize(
    "old,new,why",
    [
        (",Female,68,Frontal", ",Female,old,Frontal", "line 2, column Age: 'old' is not an age"),
        (",Female,68,Frontal", ",Female,-3,Frontal", "line 2, column Age: '-3' is not an age"),
        (",Female,68,Frontal", ",F,68,Frontal", "line 2, column Sex: 'F' is not one of Female"),
        (",Frontal,PA", ",Front,PA", "line 4, column Frontal/Lateral: 'Front' is neither"),
        (",Frontal,PA", ",Frontal,RAO", "line 4, column AP/PA: 'RAO' is not one of"),
        ("view2_lateral", "view2", "line 3, column Path: .* is not a path such as"),
        (",AP,,,,", ",AP,,,2.0,", "line 2, column Cardiomegaly: '2.0' is not 1, 0, -1 or empty"),
        ("Lung Opacity", "Opacity", r"missing column\(s\) \['Lung Opacity'\]"),
    ],
)
def test_a_bad_cell_of_chexpert(old, new, why, tmp_path):
    file = chexpert(tmp_path) / "CheXpert-v1.0-small" / "train.csv"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ManifestError, match=why):
        sources.read_chexpert(tmp_path)


def test_a_table_may_be_gzipped(tmp_path):
    file = chexpert(tmp_path) / "CheXpert-v1.0-small" / "train.csv"
    packed = tmp_path / "t.csv.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    one, other = (sources.chexpert_annotations(f) for f in (file, packed))
    pd.testing.assert_frame_equal(one, other)


HEAD = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
ROWS = [
    "00000001_000.png,Cardiomegaly|Effusion,0,1,057Y,M,PA",
    "00000002_000.png,No Finding,0,2,414,F,AP",
    "00000002_001.png,Hernia|Infiltration,1,2,18M,F,PA",
]


def chestxray14(home, rows=ROWS, head=HEAD, lists=True, name="Data_Entry_2017.csv"):
    "A copy of ChestX-ray14 in the published layout, images in two unpacked archives."
    for i, row in enumerate(rows):
        picture(home / f"images_{i % 2 + 1:03d}" / "images" / row.split(",")[0], i)
    (home / name).write_text("\n".join([head, *rows]) + "\n")
    if lists:
        (home / "train_val_list.txt").write_text("00000002_000.png\n00000002_001.png\n")
        (home / "test_list.txt").write_text("00000001_000.png\n")
    return home


@pytest.mark.parametrize("release", ["2017", "2020"])
def test_the_published_layout_of_chestxray14(release, tmp_path):
    head, name = HEAD, "Data_Entry_2017.csv"
    if release == "2020":  # with another name of a column
        head, name = HEAD.replace("Gender", "Sex"), "Data_Entry_2017_v2020.csv"
    m, said = read(sources.read_chestxray14, chestxray14(tmp_path, head=head, name=name))
    assert m["labels"].tolist() == ["cardiomegaly|pleural effusion", "no finding", "no finding"]
    assert m.others.tolist() == ["", "", "Infiltration|Hernia"] and set(m.unknown) == {""}
    assert m.sex.tolist() == ["male", "female", "female"] and m["view"].tolist() == [
        "PA",
        "AP",
        "PA",
    ]
    assert m.age.fillna(-1).tolist() == [57, -1, 1]  # 414 years are nobody's age, 18 months are one
    assert m["split"].tolist() == ["test", "train", "train"]
    assert m.patient_id.tolist() == ["00000001", "00000002", "00000002"]
    assert len(said) == 1 and "of 3 images, 1 have no age" in said[0] and "0 no sex" in said[0]
    found = photographs.inventory("nih_chestxray14", tmp_path)
    assert found.status.eq("ok").all() and len(found) == 3


@pytest.mark.parametrize(
    "old,new,why",
    [
        ("Effusion", "Pleural Effusion", "line 2, column Finding Labels: .* is not a list of"),
        ("No Finding", "No Finding|Mass", "line 3, column Finding Labels: .* says No Finding and"),
        ("414", "forty", "line 3, column Patient Age: 'forty' is not an age in whole years"),
        (",M,PA", ",X,PA", "line 2, column Patient Gender: 'X' is not one of F, M"),
        (",M,PA", ",M,LL", "line 2, column View Position: 'LL' is neither AP nor PA"),
        ("00000002_001", "00000002_000", "line 4, column Image Index: .* occurs twice"),
        (",1,057Y", ",x1,057Y", "line 2, column Patient ID: 'x1' is not a whole number"),
        ("Patient Gender", "Gender", "missing column 'Patient Gender'"),
        ("View Position", "View", r"missing column\(s\) \['View Position'\]"),
    ],
)
def test_a_bad_cell_of_chestxray14(old, new, why, tmp_path):
    file = chestxray14(tmp_path) / "Data_Entry_2017.csv"
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(ManifestError, match=why):
        sources.read_chestxray14(tmp_path)


@pytest.mark.parametrize(
    "file,text,why",
    [
        ("test_list.txt", "00000001_000.png\n00000009_000.png\n", "test_list.txt, line 2"),
        ("test_list.txt", "00000001_000.png\n00000002_000.png\n", "line 2: .* stands in train_val"),
        ("test_list.txt", "", "line 2, column Image Index: '00000001_000.png' is in neither"),
    ],
)
def test_lists_that_do_not_fit_the_table(file, text, why, tmp_path):
    (chestxray14(tmp_path) / file).write_text(text)
    with pytest.raises(ManifestError, match=why):
        sources.read_chestxray14(tmp_path)


def test_without_the_official_lists(tmp_path):
    chestxray14(tmp_path, lists=False)
    with pytest.raises(FileNotFoundError, match="train_val_list.txt") as e:
        sources.read_chestxray14(tmp_path)
    assert 'lists="optional"' in str(e.value) and sources.CHESTXRAY14.homepage in str(e.value)
    m, _ = read(sources.read_chestxray14, tmp_path, lists="optional")
    assert m["split"].isna().all() and len(m) == 3
    (tmp_path / "test_list.txt").write_text("00000001_000.png\n")  # one without the other
    with pytest.raises(FileNotFoundError, match="No .*train_val_list.txt"):
        sources.read_chestxray14(tmp_path, lists="optional")


@pytest.mark.skipif(not has_data("nih_chestxray14"), reason="needs $SKINREPRO_DATA/nih_chestxray14")
def test_real_radiographs():
    m, _ = read(sources.read_chestxray14, lists="optional")
    assert set(m.label) <= set(sources.CHESTXRAY14.labels) and m.sex.isin(["male", "female"]).all()
    assert m["view"].isin(["AP", "PA"]).all() and m.age.between(0, 120).all()
    file = sources.source_folder(sources.CHESTXRAY14) / "Data_Entry_2017.csv"
    told = pd.read_csv(file).set_index("Image Index")["Finding Labels"].str.get_dummies("|")
    told = told.reindex(m.image_id + ".png")
    for ours, (_, theirs) in sources.CHEST_FINDINGS.items():
        here = m["labels"].str.split("|").map(lambda names, f=ours: f in names)
        assert here.sum() == told.get(theirs, pd.Series(0, told.index)).sum()


# ---- the tables that come with torchxrayvision


@pytest.fixture(scope="module")
def tables():
    return {
        name: sources.packaged_annotations(counting.TABLES[name][0])
        for name in ("chexpert_table", "nih_table")
    }


@packaged
def test_the_totals_of_both_tables(tables):
    c, n = tables["chexpert_table"], tables["nih_table"]
    assert (len(c), c.patient_id.nunique(), c["view"].ne("lateral").sum()) == (
        223414,
        64540,
        191027,
    )
    assert c.sex.value_counts().to_dict() == dict(male=132636, female=90777)
    assert c.age.isna().sum() == 3 and c.sex.isna().sum() == 1
    assert (len(n), n.patient_id.nunique()) == (112120, 30805)
    assert n.sex.value_counts().to_dict() == dict(male=63340, female=48780)


@packaged
def test_findings_are_those_of_torchxrayvision(tables, tmp_path):
    xrv = pytest.importorskip("torchxrayvision")
    c, n = tables["chexpert_table"], tables["nih_table"]
    views = ["AP", "PA", "LL", "RL", "L"]
    theirs = xrv.datasets.CheX_Dataset(str(tmp_path), views=views, unique_patients=False)
    assert len(theirs.labels) == len(c)
    healthy = c.nothing.to_numpy()  # there it overrules what else a row says
    for ours, (_, name) in sources.CHEST_FINDINGS.items():
        column = theirs.labels[:, theirs.pathologies.index(name)]
        mine = c[ours].astype("float").to_numpy(copy=True)
        mine[mine == -1] = np.nan  # neither knows what is uncertain
        same = (column == mine) | (np.isnan(column) & np.isnan(mine))
        assert same[~healthy].all() and not (mine[healthy] == 1).any()
    theirs = xrv.datasets.NIH_Dataset(str(tmp_path), views=["PA", "AP"], unique_patients=False)
    for ours, (_, name) in sources.CHEST_FINDINGS.items():
        column = theirs.labels[:, theirs.pathologies.index(name)]
        assert (column == n[ours].eq(1).fillna(False).to_numpy(float)).all()


def test_without_torchxrayvision(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="make chest") as e:
        sources.packaged_annotations("chexpert")
    assert "pip install torchxrayvision==1.5.7" in str(e.value)
    assert "torchxrayvision==1.5.7" in (ROOT / "pyproject.toml").read_text()


def test_the_package_is_not_imported_for_its_tables():
    for file in (ROOT / "skinrepro").rglob("*.py"):
        assert "import torchxrayvision" not in file.read_text(encoding="utf-8"), file


# ---- what is counted

PRINTED = read_reported(ROOT / "nbs" / "papers" / "ktena2023" / "reported.csv")
RECORDS = ROOT / "figures" / "ktena2023" / "records.csv"


def recorded():
    "Committed numbers of the annotations, typed."
    r = read_record(RECORDS)
    r = r[r.notebook.eq("annotations")]
    words = [c for c in ("data", "selection", "metric", "row", "column", "group") if c in r]
    return r.assign(**{c: r[c].astype(object).where(r[c].notna(), "") for c in words})


def test_the_printed_sizes_are_those_that_are_reported():
    for artefact, data in (("figA1", "chexpert"), ("fig4b", "nih_chestxray14")):
        r = PRINTED[PRINTED.artefact.eq(artefact) & PRINTED.metric.eq("n_images")]
        assert dict(zip(r.sex, r.value.astype(int))) == counting.PRINTED[data]


@packaged
@pytest.mark.parametrize("table", ["chexpert_table", "nih_table"])
def test_committed_counts_are_those_of_the_tables(table, tables):
    r = recorded()
    r = r[r.data.eq(table)] if len(r) else r
    if not len(r):
        pytest.skip("no records of the annotations are committed yet")
    t = tables[table]
    whole = r[r.selection.eq(counting.WHOLE)]
    for sex, part in (("all", t), *((s, t[t.sex.eq(s)]) for s in counting.SEXES)):
        of = whole[whole.group.eq(sex)].set_index(["metric", "row", "column"]).value
        assert of["n_images", "", ""] == len(part)
        assert of["n_patients", "", ""] == part.patient_id.nunique()
        for f in FIVE:  # counted by another way: value_counts of the text
            n = part[f].astype("string").fillna("x").value_counts()
            for said, state in dict(
                positive="1", negative="0", uncertain="-1", unmentioned="x"
            ).items():
                assert of["n_said", f, said] == n.get(state, 0)
    for a in FIVE:
        for b in FIVE:
            with_a = t[t[a].eq(1).fillna(False)]
            share = with_a[b].eq(1).fillna(False).mean()
            of = whole[whole.metric.eq("co_occurrence") & whole.row.eq(a) & whole.column.eq(b)]
            assert of.value.item() == pytest.approx(share, rel=1e-6)  # seven digits are kept


def some(n=400, seed=0):
    "A made-up table of people with one to several images."
    rng = np.random.default_rng(seed)
    who = np.sort(rng.integers(0, n // 3, n))
    sex = np.where(rng.permutation(n // 3) % 2, "male", "female")[who]
    t = pd.DataFrame(dict(image_id=[f"i{i}" for i in range(n)], patient_id=[f"p{k}" for k in who]))
    t = t.assign(sex=sex, age=pd.array(rng.integers(1, 95, n), "Int64"), others="")
    t = t.assign(view=rng.choice(["PA", "AP"], n))
    t.loc[::7, "others"] = "Hernia"
    for f in FIVE:
        state = rng.choice([1, 0, -1, 9], n)
        t[f] = pd.array(np.where(state == 9, 0, state), "Int8")
        t.loc[state == 9, f] = pd.NA
    return t.assign(nothing=rng.random(n) < 0.2)


def test_co_occurrence_is_the_count_of_pairs():
    t = some()
    for r in counting.co_occurrences(t, "x"):
        a, b = (t[r[k]].eq(1).fillna(False) for k in ("row", "column"))
        assert r["value"] == (a & b).sum() / a.sum() and r["n"] == a.sum()
    t["edema"] = pd.array([0] * len(t), "Int8")  # nobody has it: no row, and no share of nothing
    rows = pd.DataFrame(counting.co_occurrences(t, "x"))
    assert "edema" not in set(rows.row) and rows.value.notna().all() and len(rows) == 20


def test_a_split_by_patients_keeps_people_together_and_has_its_share():
    t = some(900)
    mine = counting.by_patients(t, 0.9, 3)
    assert not set(t.patient_id[mine]) & set(t.patient_id[~mine])
    people = t.patient_id.nunique()
    assert t.patient_id[mine].nunique() == round(0.9 * people)
    assert (mine != counting.by_patients(t, 0.9, 4)).any()
    for share in (0, 1.2):
        with pytest.raises(ValueError, match="no share of patients"):
            counting.by_patients(t, share, 0)
    images = t.groupby("patient_id").size().to_numpy()
    spread = counting.split_spread(images, 0.9)
    sizes = [counting.by_patients(t, 0.9, s).sum() for s in range(400)]  # what is drawn agrees
    assert abs(np.mean(sizes) - spread.mean) < 4 * spread.sd / 20
    assert abs(np.std(sizes) / spread.sd - 1) < 0.15


def test_rules_are_counted_and_a_known_rule_is_found():
    t = some()
    rows = t["view"].eq("PA") & t.age.ge(18) & (t[FIVE].eq(1).fillna(False).sum(axis=1) > 0)
    printed = dict(all=rows.sum()) | {s: (rows & t.sex.eq(s)).sum() for s in counting.SEXES}
    best = counting.rules(t, printed).iloc[0]
    assert best.off == 0 and best[["view", "age", "content"]].tolist() == [
        "PA",
        "adults",
        "one of the five or more",
    ]
    first = t.drop_duplicates("patient_id")
    printed = {s: first.sex.eq(s).sum() for s in counting.SEXES}
    exact = counting.rules(t, printed).query("off == 0")
    assert {("first image", "images"), ("all images", "people")} <= set(
        zip(exact.series, exact.unit)
    )


def test_official_lists_are_rules_where_there_are_some():
    t = some().assign(split=lambda t: np.where(t.patient_id < "p5", "test", "train"))
    found = counting.rules(t, dict(male=0, female=0))
    one = found[found.list.eq("official test list") & found.restrictions.eq(1)]
    assert one["all"][one.unit.eq("images")].item() == t["split"].eq("test").sum()


@pytest.fixture(scope="module")
def phantoms():
    found = counting.counted(dict(table="phantom_radiograph", share=0.0, seed=0, count=300))
    facts = dict(table="phantom_radiograph", data="phantom_radiograph", run_id="r", profile="mini")
    return counting.of_table(found.rows.assign(**facts), "phantom_radiograph"), found.taken


def test_phantoms_are_counted_like_people(phantoms):
    t, taken = phantoms
    assert counting.images_in(t, "archive 0") == counting.images_in(t, "archive 1") == 300
    assert (
        len(taken) == 2
        and taken.md5.str.fullmatch("[0-9a-f]{32}").all()
        and taken.md5.nunique() == 2
    )
    assert not t.metric.isin(["rule", "split"]).any()  # nothing is printed of phantoms
    m = counting.matrix_of(t, "archive 0")
    assert m.shape == (5, 5) and (np.diag(m) == 1).all()


def test_the_pictures_say_what_they_show(phantoms):
    import matplotlib.pyplot as plt

    t, _ = phantoms
    fig, shown = counting.draw_co_occurrence(t)
    words = [x.get_text() for ax in fig.axes for x in ax.texts]
    assert len(words) == 50 and words[0] == "100.0" and len(shown) == 50
    assert "archive 0: 300 images" in fig.axes[0].get_title()
    fig, _ = counting.draw_labels(t, "archive 0")
    bars = sum(p.get_height() for p in fig.axes[0].patches)
    assert bars == 300 and "phantom" in fig.get_suptitle()
    plt.close("all")
    assert counting.credit_of(t) == "phantom radiographs: procedural, not patients"
