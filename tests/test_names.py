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
