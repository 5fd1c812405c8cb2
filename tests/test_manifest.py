"Several labels of one image: what is refused, what is kept, and the real table of ChestX-ray14."

import numpy as np
import pandas as pd
import pytest

from skinrepro import manifest, splits
from skinrepro.batches import encode_multi
from skinrepro.core import data_folder, has_data
from skinrepro.manifest import ManifestError, content_hash, make, validate

CLASSES = ["Effusion", "Edema", "Mass", "No Finding"]


def films(*findings):
    "A manifest of radiographs; the first finding is the label."
    return make(
        pd.DataFrame(
            dict(
                image_id=[f"r{i}" for i in range(len(findings))],
                path="x.png",
                label=[f.split("|")[0] if isinstance(f, str) else "Mass" for f in findings],
                labels=findings,
            )
        )
    )


def test_labels_are_optional_and_change_no_hash_of_those_who_have_none():
    m = films(None, None)
    assert validate(m, CLASSES) is m and m["labels"].isna().all()
    assert content_hash(m) == content_hash(m.drop(columns="labels"))
    # the hash that tables had before there was the column
    assert content_hash(m) == "4030504f3f967c81"
    assert content_hash(films("Mass|Edema", None)) != content_hash(films("Mass", None))


@pytest.mark.parametrize(
    "labels,why",
    [
        ("Mass|Pneumonia", "label list"),
        ("Mass|", "twice, or an empty one"),
        ("Mass| |Edema", "twice, or an empty one"),
        ("Mass|Mass", "twice, or an empty one"),
        ("Edema|Effusion", "does not name the image's label"),
        ("Massive", "label list"),
    ],
)
def test_bad_labels_are_named(labels, why):
    m = films("Edema", "Mass|Edema", None)
    m.loc[1, "labels"] = labels
    with pytest.raises(ManifestError, match=f"Row 1, image_id 'r1', column labels: .*{why}"):
        validate(m, CLASSES)
    if why == "label list" and labels != "Massive":
        assert validate(m) is m  # any name will do where there is no list


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_labels_survive_files_and_splits(tmp_path, name):
    m = films(*["Mass|Edema", "Edema", None, "Effusion|Mass"] * 10)
    back = manifest.read(manifest.write(m, tmp_path / name))
    assert back["labels"].equals(m["labels"])
    train, test = splits.group_split(back, 0.25, seed=1, together=())
    joined = splits.mark(train=train, test=test).set_index("image_id")
    assert joined["labels"].reindex(back.image_id).fillna("-").tolist() == (
        back["labels"].fillna("-").tolist()
    )
    half = splits.proportional(back, 0.5, by=["label"])
    assert set(half["labels"].dropna()) == set(m["labels"].dropna())


def test_an_older_table_without_the_column_is_read(tmp_path):
    films("Mass", "Edema").drop(columns="labels").to_csv(tmp_path / "old.csv", index=False)
    assert manifest.read(tmp_path / "old.csv")["labels"].isna().all()


def test_columns_of_zero_and_one():
    m = films("Mass|Edema", "Effusion", None, "No Finding")
    some = ["Effusion", "Mass"]
    with pytest.raises(ValueError, match="Row 2 has no labels"):
        encode_multi(m["labels"], CLASSES)
    with pytest.raises(ValueError, match="'Edema' is not one of the classes"):
        encode_multi(m["labels"][:1], some)
    y = encode_multi(m["labels"], some, ignore=["Edema", "No Finding"], unknown="nan")
    assert y.dtype == np.float32 and y[[0, 1, 3]].tolist() == [[0, 1], [1, 0], [0, 0]]
    assert np.isnan(y[2]).all()
    with pytest.raises(ValueError, match="unknown"):
        encode_multi(m["labels"], some, unknown="zero")


@pytest.mark.skipif(not has_data("nih_chestxray14"), reason="needs nih_chestxray14")
def test_the_table_of_chestxray14_fits():
    folder = data_folder("nih_chestxray14")
    table = pd.read_csv(next(folder.glob("Data_Entry*.csv")))
    found = table["Finding Labels"]
    m = make(
        pd.DataFrame(
            dict(
                image_id=table["Image Index"],
                path="images/" + table["Image Index"],
                label=found.str.split("|").str[0],
                labels=found,
                patient_id=table["Patient ID"].astype(str),
            )
        )
    )
    names = sorted(set("|".join(found).split("|")) - {"No Finding"})
    validate(m, [*names, "No Finding"])
    y = encode_multi(m["labels"], names, ignore=["No Finding"])
    # counted by pandas instead
    assert y.sum(0).tolist() == found.str.get_dummies()[names].sum().tolist()
    assert ((y.sum(1) == 0) == found.eq("No Finding").to_numpy()).all() and (y.sum(1) > 1).any()
