"""Blanks around a name make two patients of one; a training part with one class teaches nothing."""

import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from skinrepro import manifest, splits
from skinrepro.classify import data_parts
from skinrepro.sources import read_ham10000, read_pad_ufes20


def table(n=12, **columns):
    ids = [f"i{i}" for i in range(n)]
    given = dict(image_id=ids, path=[f"{i}.png" for i in ids], label=["a", "b"] * (n // 2))
    return pd.DataFrame(given | columns)


BLANKS = [" ", "\t", "\u00a0", "\ufeff", "\n"]


@pytest.mark.parametrize("blank", BLANKS)
def test_a_patient_stays_one(blank):
    patients = [f"P{i // 4}" + blank * (i % 2) for i in range(12)]
    m = manifest.validate(manifest.make(table(patient_id=patients)))
    assert set(m.patient_id) == {"P0", "P1", "P2"}
    train, rest = splits.holdout(m, 0.34, seed=0, together=("patient_id",))
    assert not set(train.patient_id) & set(rest.patient_id)


@pytest.mark.parametrize("column", ["image_id", "label", "group", "patient_id", "twin_id", "split"])
@pytest.mark.parametrize("where", ["{} ", " {}", "  "])
def test_a_table_with_blanks_is_refused(column, where):
    m = manifest.make(table(group="g", patient_id="p", twin_id="t", split="train"))
    m.loc[3, column] = where.format(m[column][3])
    with pytest.raises(manifest.ManifestError, match=f"Row 3.*{column}"):
        manifest.validate(m)


def test_a_manifest_that_is_read_has_none(tmp_path):
    written = table(patient_id=["P ", "P"] * 6).assign(source="real")
    written.to_csv(tmp_path / "m.csv", index=False)
    assert set(manifest.read(tmp_path / "m.csv").patient_id) == {"P"}


def picture(file, value):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file)


def test_the_readers_of_data_sets_leave_none(tmp_path):
    for i in range(3):
        picture(tmp_path / "pad" / "images" / f"PAT_{i}.png", i)
        picture(tmp_path / "ham" / "images" / f"ISIC_{i}.jpg", i * 40)
    (tmp_path / "pad" / "metadata.csv").write_text(
        "img_id,patient_id,diagnostic,fitspatrick\n"
        "PAT_0.png,PAT_7 ,NEV,1\nPAT_1.png ,PAT_7,NEV ,2\nPAT_2.png, PAT_7,MEL,\n"
    )
    m = read_pad_ufes20(tmp_path / "pad")
    assert set(m.patient_id) == {"PAT_7"} and set(m.label) == {"NEV", "MEL"}
    (tmp_path / "ham" / "HAM10000_metadata.csv").write_text(
        "lesion_id,image_id,dx,dataset\nL ,ISIC_0,nv,d\nL,ISIC_1 ,nv,d\nL\u00a0,ISIC_2,mel,d\n"
    )
    assert set(read_ham10000(tmp_path / "ham").patient_id) == {"L"}


def parts_of(tmp_path, monkeypatch, labels, targets=None):
    monkeypatch.setenv("SKINREPRO_CACHE", str(tmp_path / "cache"))
    files = [tmp_path / f"{i}.png" for i in range(6)]
    for i, f in enumerate(files):
        picture(f, 20 * i)
    given = table(6, path=[str(f) for f in files], label=labels, split=["train"] * 3 + ["test"] * 3)
    m = manifest.make(given)
    return data_parts(m, ["a", "b", "c"], "vgg_small", 32, progress=False, targets=targets)


def test_one_class_is_no_training_part(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"All 3 images of the training part.*\(a\)"):
        parts_of(tmp_path, monkeypatch, list("aaaabc"))
    same = np.array([[1, 0, 0]] * 3 + [[0, 1, 1]] * 3, np.float32)
    with pytest.raises(ValueError, match="training part"):
        parts_of(tmp_path, monkeypatch, list("aaabbb"), same)


def test_a_class_that_a_part_lacks_is_said(tmp_path, monkeypatch):
    with pytest.warns(UserWarning) as said:
        parts_of(tmp_path, monkeypatch, list("abaaac"))
    texts = [str(w.message) for w in said]
    assert "The part train has no image of c." in texts
    assert any(re.search("part test has no image of b", t) for t in texts)


SPELLINGS = {  # one name, written in another way
    "two blanks": ("P  7", "P 7"),
    "a hard blank": ("P\u00a07", "P 7"),
    "a tab": ("P\t7", "P 7"),
    "a joiner inside": ("P\u200d7", "P7"),
    "a soft hyphen": ("P\u00ad7", "P7"),
    "letters in parts": ("Mu\u0308ller", "M\u00fcller"),
}


@pytest.mark.parametrize("kind", SPELLINGS)
def test_a_name_has_one_spelling(kind, tmp_path):
    "In tables that are made, read and in those of publishers: else a patient trains and tests."
    one, other = SPELLINGS[kind]
    m = manifest.make(table(patient_id=[one, other] * 6))
    assert set(m.patient_id) == {other}
    with pytest.raises(manifest.ManifestError, match="Row 0.*patient_id.*manifest.make"):
        manifest.validate(m.assign(patient_id=one))
    for i in range(2):
        picture(tmp_path / "images" / f"A{i}.png", i)
    lines = [
        "img_id,patient_id,diagnostic,fitspatrick",
        f"A0.png,{one},NEV,1",
        f"A1.png,{other},MEL,2",
    ]
    (tmp_path / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    assert set(read_pad_ufes20(tmp_path).patient_id) == {other}


def test_files_are_found_whatever_their_letters_are_made_of(tmp_path):
    "A Mac takes composed letters apart; endings come in capitals, in the folder and in the table."
    picture(tmp_path / "images" / "Mu\u0308ller.PNG", 1)
    picture(tmp_path / "images" / "B.png", 2)
    lines = ["img_id,patient_id,diagnostic,fitspatrick", "M\u00fcller.png,P,NEV,1", "B.PNG,Q,MEL,2"]
    (tmp_path / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    assert read_pad_ufes20(tmp_path).image_id.tolist() == ["M\u00fcller", "B"]


def test_numbers_as_names():
    "Zeros in front belong to a name; a gap in a column of numbers does not turn 7 into 7.0."
    assert manifest.make(table(patient_id=["007", "7"] * 6)).patient_id.nunique() == 2
    gaps = manifest.make(table(patient_id=[7.0, np.nan] * 6)).patient_id
    whole = manifest.make(table(patient_id=[7, 8] * 6)).patient_id
    assert set(gaps.dropna()) == {"7"} <= set(whole)


@pytest.mark.parametrize("hashed", ["0123456789012345", "12e4567890123456", "9999999999999999"])
def test_a_hash_of_digits_is_no_number(hashed, tmp_path):
    from skinrepro.records import read_record, write_records

    row = dict(run_id="a-1", metric="m", group="all", value=0.5, n=8, data_hash=hashed)
    t = pd.DataFrame([row | dict(inventory_hash=hashed, version="1.10", commit="1234567e10")])
    write_records(t, tmp_path / "records.csv")
    for c in ("data_hash", "inventory_hash", "version", "commit"):
        assert read_record(tmp_path / "records.csv")[c].tolist() == t[c].tolist()
