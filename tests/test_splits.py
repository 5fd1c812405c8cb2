"""Splits on the real annotations of Fitzpatrick17k (where SKINREPRO_DATA has them), and what a draw
must never do.
"""

import itertools

import numpy as np
import pandas as pd
import pytest

from skinrepro import manifest, splits
from skinrepro.core import data_folder, has_data

SEEDS = (0, 42, 123, 1111, 1234)  # of the official code
LABELS = [
    "basal cell carcinoma",
    "folliculitis",
    "nematode infection",
    "neutrophilic dermatoses",
    "prurigo nodularis",
    "psoriasis",
    "squamous cell carcinoma",
]
needs_annotations = pytest.mark.skipif(
    not has_data("fitzpatrick17k"), reason="needs $SKINREPRO_DATA/fitzpatrick17k/fitzpatrick17k.csv"
)


@pytest.fixture(scope="module")
def fitz():
    from skinrepro.fitzpatrick17k import read_annotations, to_manifest

    m = to_manifest(read_annotations(), labels=LABELS)
    return m[m.skin_type.isin([1, 2, 5, 6])]


@pytest.fixture(scope="module")
def twins(fitz):
    from skinrepro.fitzpatrick17k import add_twins, read_twins, twin_clusters

    return add_twins(
        fitz, twin_clusters(read_twins(data_folder("fitzpatrick17k") / "twins_wang2024.csv"))
    )


def images(*columns, **known):
    "A manifest of images a, b, c ...; each keyword is a column."
    n = len(next(iter(known.values())))
    rows = pd.DataFrame({"image_id": [chr(97 + i) for i in range(n)], "label": "x", **known})
    return manifest.make(rows.assign(path=rows.image_id + ".png"))


@needs_annotations
@pytest.mark.parametrize("seed,how", list(itertools.product(SEEDS, ("stratified", "union"))))
def test_sizes_of_wang2024(fitz, seed, how):
    s = splits.flexible_split(fitz, how=how, seed=seed)
    sizes = {name: len(part) for name, part in zip(s._fields, s)}
    assert sizes == dict(
        nonflexible_majority=1228,
        flexible_majority=56,
        nonflexible_minority=291,
        flexible_minority=56,
    )
    for flexible in (s.flexible_majority, s.flexible_minority):
        assert (flexible.groupby("label").size() == 8).all()
    splits.assert_disjoint(*s)
    assert set(pd.concat(s).image_id) == set(fitz.image_id)


@needs_annotations
@pytest.mark.parametrize(
    "seed,five,six", [(0, 41, 15), (42, 40, 16), (123, 39, 17), (1111, 40, 16), (1234, 33, 23)]
)
def test_union_is_the_official_sampler(seed, five, six):
    "Against pandas on the csv itself, with no manifest in between."
    from skinrepro.fitzpatrick17k import read_annotations, to_manifest

    csv = pd.read_csv(data_folder("fitzpatrick17k") / "fitzpatrick17k.csv")
    csv = csv[csv.label.isin(LABELS)]
    s = splits.flexible_split(
        to_manifest(read_annotations(), labels=LABELS), how="union", seed=seed
    )
    for types, part in (([1, 2], s.flexible_majority), ([5, 6], s.flexible_minority)):
        official = (
            csv[csv.fitzpatrick_scale.isin(types)].groupby("label").sample(n=8, random_state=seed)
        )
        assert set(part.image_id) == set(official.md5hash)
    assert s.flexible_minority.skin_type.value_counts().to_dict() == {5: five, 6: six}


@needs_annotations
def test_released_list_is_the_stratified_reading(fitz):
    released = (
        pd.read_csv(data_folder("fitzpatrick17k") / "wang2024_released_seed0.csv", dtype=str)
        .set_index("md5hash")
        .part
    )
    parts = splits.listed_parts(fitz, released)
    s = splits.flexible_split(fitz, how="stratified", seed=0)

    def count(part):
        return part.groupby(["label", "skin_type"]).size()

    pd.testing.assert_series_equal(count(parts["flexible_dark"]), count(s.flexible_minority))
    pd.testing.assert_series_equal(count(parts["nonflexible_light"]), count(s.nonflexible_majority))
    # and it can be used as it is: the light images that the list leaves out are the flexible ones
    light = fitz[fitz.skin_type <= 2]
    flexible = set(parts["flexible_dark"].image_id) | set(light.image_id) - set(
        parts["nonflexible_light"].image_id
    )
    assert [len(p) for p in splits.flexible_parts(fitz, (1, 2), (5, 6), flexible)] == [
        1228,
        56,
        291,
        56,
    ]


@needs_annotations
def test_twins_leak_as_published_and_not_when_kept_together(twins):
    leaking = []
    for seed in SEEDS:
        s = splits.flexible_split(twins, seed=seed)
        train = pd.concat([s.nonflexible_majority, s.nonflexible_minority])
        found = splits.leaks(train, s.flexible_minority)
        leaking.append(found.image_b.nunique())
        with pytest.raises(splits.SplitError, match="share twin_id"):
            splits.assert_disjoint(train, s.flexible_minority)
        clean = splits.drop_leaks(train, s.flexible_minority)
        splits.assert_disjoint(clean, s.flexible_minority)
        assert set(train.image_id) - set(clean.image_id) == set(found.image_a)

        s = splits.flexible_split(twins, seed=seed, together=splits.TOGETHER)
        assert [len(p) for p in s] == [1228, 56, 291, 56] and (
            s.flexible_minority.groupby(["label", "skin_type"]).size() == 4
        ).all()
        splits.assert_disjoint(
            pd.concat([s.nonflexible_majority, s.nonflexible_minority]), s.flexible_minority
        )
        # the same photograph under a light and a dark skin type: scenario iii needs drop_leaks even
        # so
        assert (
            splits.leaks(s.nonflexible_majority, s.nonflexible_minority).column.eq("twin_id").any()
        )
    print("images of 56 with a twin in training, per seed:", leaking)
    assert 3 <= np.mean(leaking) <= 12  # about 8 of 56 test images have a twin in training


def test_draw_depends_on_seed_and_order_only():
    m = images(skin_type=[5, 6] * 10)
    assert splits.draw(m, 3, seed=1).equals(splits.draw(m, 3, seed=1))
    assert (
        splits.draw(m.set_index(pd.Index(range(100, 120))), 3, seed=1).image_id.tolist()
        == splits.draw(m, 3, seed=1).image_id.tolist()
    )
    twice = pd.concat(
        [m, m.assign(image_id="z" + m.image_id)]
    )  # a repeated index, as pd.concat leaves it
    assert (
        len(splits.draw(twice, 3, seed=0)) == 6 and len(pd.concat(splits.holdout(twice, 0.2))) == 40
    )


@pytest.mark.parametrize(
    "call,match",
    [
        (lambda m: splits.draw(m, 0, 0), "at least 1"),
        (lambda m: splits.draw(m, 4, 0), r"x / 6 has 2"),
        (lambda m: splits.draw(m, 1, 0, by=["group"]), "have no group"),
        (lambda m: splits.flexible_split(m, how="half"), "'stratified', 'union'"),
        (
            lambda m: splits.flexible_split(m, (1, 2), (2, 5), n=2),
            r"\[2\] are in the majority and in the minority",
        ),
        (lambda m: splits.flexible_split(m, (1, 2), (3,), n=1), "No image of the minority"),
        (lambda m: splits.flexible_split(m, n=3), 'multiple of 2, or how="union"'),
        (lambda m: splits.flexible_parts(m, (1, 2), (5, 6), ["nobody"]), "neither group: nobody"),
        (lambda m: splits.group_split(m, 1.0), "between 0 and 1"),
        (lambda m: splits.group_folds(m, 40), "choose 2 .. 20"),
        (lambda m: splits.holdout(m, 0), "between 0 and 1"),
        (lambda m: splits.holdout(m.assign(patient_id="same")), "Nothing to hold out"),
        (lambda m: splits.subgroup_split(m, by=["label", "skin_type"]), "x / 6 has 2"),
        (lambda m: splits.listed_parts(m, pd.Series("a", index=["a", "a"])), "listed twice: a"),
        (
            lambda m: splits.listed_parts(m, pd.Series("a", index=["a", "nobody"])),
            "not in the manifest: nobody",
        ),
        (lambda m: splits.mark(train=m, test=m.head(1)), "in two parts: a"),
        (lambda m: splits.assert_disjoint(m), "two or more"),
    ],
)
def test_bad_requests_say_why(call, match):
    with pytest.raises(ValueError, match=match):
        call(images(skin_type=[1] * 6 + [2] * 6 + [5] * 6 + [6] * 2))


def test_whole_clusters_that_cannot_fill_a_quota():
    m = images(skin_type=[1] * 6, patient_id=["P", "P", "Q", "Q", "R", "R"])
    with pytest.raises(ValueError, match="cannot fill 1 strata"):
        splits.draw_clusters(m, pd.Series(3, index=pd.Index(["x"], name="label")), 0, ["label"])


@pytest.mark.parametrize(
    "column,value", [("image_id", "same"), ("md5", "f" * 32), ("patient_id", "P"), ("twin_id", "t")]
)
def test_each_link_is_found_and_named(column, value):
    a, b = images(skin_type=[1, 2, 5]), images(skin_type=[1, 2, 5])
    b["image_id"] = "other_" + b.image_id
    splits.assert_disjoint(a, b)
    a.loc[1, column] = value
    b.loc[2, column] = value
    with pytest.raises(splits.SplitError, match=f"parts 0 and 1 share {column} '{value}'") as e:
        splits.assert_disjoint(a, b)
    assert len(e.value.leaks) == 1
    assert splits.drop_leaks(a, b).index.tolist() == [0, 2]


def test_a_synthetic_image_goes_with_its_parent():
    real = images(skin_type=[1, 1, 5])
    made = images(skin_type=[5, 5], parent_id=["a", "c"]).assign(
        image_id=["s1", "s2"], source="synthetic"
    )
    train = pd.concat([real.iloc[:2], made], ignore_index=True)
    test = real.iloc[[2]]
    assert splits.leaks(train, test).image_a.tolist() == ["s2"]
    assert splits.drop_leaks(train, test).image_id.tolist() == ["a", "b", "s1"]
    assert splits.leaks(made.iloc[[0]], made.iloc[[0]].assign(image_id="s3")).value.tolist() == [
        "a"
    ]  # siblings


def test_linked_rows_match_a_brute_force_search():
    "Clusters against a plain flood fill on random graphs."
    rng = np.random.default_rng(0)
    n = 25
    for _ in range(20):
        m = images(
            **{
                c: [pd.NA if v == 0 else f"v{v}" for v in rng.integers(0, 18, n)]
                for c in ("patient_id", "twin_id")
            }
        )
        same = np.eye(n, dtype=bool)
        for c in ("patient_id", "twin_id"):
            v = m[c].fillna("").to_numpy(object)
            same |= (v[:, None] == v[None]) & (v != "")[:, None]
        for _ in range(n):
            same = (same.astype(int) @ same.astype(int)) > 0
        expected = pd.factorize(np.array([row.argmax() for row in same]))[0]
        assert splits.clusters(m).tolist() == expected.tolist()


@pytest.mark.parametrize("together", [(), splits.TOGETHER])
def test_single_images_are_drawn_uniformly(together):
    "Every image is drawn about equally often: no order of the file or of the strata shows."
    m = images(skin_type=[1] * 5 + [2] * 20)
    quota = pd.Series({1: 2, 2: 8})
    hits = np.zeros(25)
    for seed in range(600):
        hits[splits.draw_clusters(m, quota, seed, ["skin_type"], together).index] += 1
    assert np.abs(hits / 600 - 0.4).max() < 0.08  # 4 standard errors


@pytest.mark.skipif(not has_data("pad_ufes20"), reason="needs $SKINREPRO_DATA/pad_ufes20")
@pytest.mark.filterwarnings("ignore:pad_ufes20 holds the same photograph")
def test_pad_ufes20_by_patient():
    from skinrepro.sources import read_pad_ufes20

    m = read_pad_ufes20()
    m = m[m.skin_type.notna() & m.label.isin(["ACK", "BCC", "NEV", "MEL", "SEK"])]
    s = splits.flexible_split(
        m, (1, 2), (3, 4, 5, 6), n=8, how="union", seed=0, together=splits.TOGETHER
    )
    assert (s.flexible_minority.groupby("label").size() == 8).all() and (
        s.flexible_majority.groupby("label").size() == 8
    ).all()
    rest, flexible = (
        pd.concat([s.nonflexible_majority, s.nonflexible_minority]),
        pd.concat([s.flexible_majority, s.flexible_minority]),
    )
    splits.assert_disjoint(rest, flexible)
    train, val = splits.holdout(s.nonflexible_majority, 0.1, seed=0)
    splits.assert_disjoint(train, val)
    assert set(val.label) == set(train.label)


# ---- a part of every stratum, and synthetic images


@needs_annotations
@pytest.mark.parametrize("amount", [0.1, 0.37, 100, 1e9])
def test_each_stratum_gives_its_share(fitz, amount):
    part = splits.proportional(fitz, amount, seed=3)
    n = min(len(fitz), round(len(fitz) * amount) if amount <= 1 else round(amount))
    assert len(part) == n and part.image_id.is_unique
    assert part.index.is_monotonic_increasing  # in the order of the table
    strata = ["label", "skin_type"]
    share = fitz.groupby(strata).size() * n / len(fitz)
    got = part.groupby(strata).size().reindex(share.index, fill_value=0)
    assert (got - share).abs().max() < 1
    assert splits.proportional(fitz, amount, seed=3).equals(part)
    if n < len(fitz):
        for other in (dict(seed=4), dict(seed=3, stream=7)):
            assert not splits.proportional(fitz, amount, **other).equals(part)


def test_a_share_of_few_images():
    m = images(label=list("xxxyy"), skin_type=[1, 1, 2, 2, 2])
    assert len(splits.proportional(m, 0.01)) == 1
    assert splits.proportional(m, 1.0) is m and splits.proportional(m, 5) is m
    for bad in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="neither a share"):
            splits.proportional(m, bad)
    with pytest.raises(ValueError, match="1 of 5 images have no group"):
        splits.proportional(m.assign(group=["a", "a", "b", "b", pd.NA]), 0.5, by=["group"])


def made_from(*parents, **columns):
    rows = dict(image_id=[f"s{i}" for i in range(len(parents))], label="x", path="s.png")
    rows |= dict(parent_id=list(parents), **columns)
    return manifest.make(pd.DataFrame(rows), source="synthetic")


def test_synthetic_images_train_and_nothing_else():
    real = images(split=["train", "train", "val", "test"], patient_id=["p", "q", "r", "s"])
    made = made_from("a", "b", "b")
    both, alone = splits.mix(real, made), splits.mix(real, made, both=False)
    assert both.image_id.tolist() == ["a", "b", "c", "d", "s0", "s1", "s2"]
    assert alone.image_id.tolist() == ["c", "d", "s0", "s1", "s2"]
    for m in (both, alone):
        new = m[m.source == "synthetic"]
        assert set(new.split) == {"train"} and m.image_id.is_unique
        assert set(m.split[m.source == "real"]) >= {"val", "test"}


@pytest.mark.parametrize("parent", ["c", "d", "elsewhere"])
def test_a_parent_outside_the_training_part_is_refused(parent):
    real = images(split=["train", "train", "val", "test"])
    with pytest.raises(ValueError, match=f"1 synthetic .* first '{parent}'"):
        splits.mix(real, made_from("a", parent))
    assert len(splits.mix(real, made_from("a", pd.NA))) == 6  # of no parent: from a prompt alone


def test_mixed_parts_share_nothing():
    real = images(split=["train", "train", "val", "test"], patient_id=["p", "q", "r", "s"])
    for column, value in (("md5", "0" * 32), ("patient_id", "s")):
        real.loc[3, column] = value
        made = made_from("a", **{column: [value]})
        with pytest.raises(splits.SplitError, match=column):
            splits.mix(real, made, by=["image_id", "md5", "patient_id"])
    assert len(splits.mix(real, made_from("a", patient_id=["s"]))) == 5  # unless it is not asked
    with pytest.raises(splits.SplitError, match="image_id"):
        splits.mix(real, made_from("a").assign(image_id="d"))


def test_a_single_image_is_of_the_stratum_in_the_middle():
    "Places are the middles of equal shares, so that neither end of the order is preferred."
    m = images(6, label=list("aabbcc"), skin_type=1)
    assert {splits.proportional(m, 1 / 6, seed).label.item() for seed in range(9)} == {"b"}
    assert set(splits.proportional(m, 2).label) == {"a", "c"}


def test_what_test_and_training_images_share_is_counted_in_test_images():
    rows = [("a", "p", "train"), ("a", "p", "train"), ("b", "q", "train"), ("e", None, "val")]
    rows += [("a", "p", "test"), ("c", "p", "test"), ("d", "p", "test"), ("b", None, "test")]
    m = pd.DataFrame(rows, columns=["image_id", "patient_id", "split"]).assign(group="dark")
    tests = [r for r in rows if r[2] == "test"]
    trains = [r for r in rows if r[2] == "train"]
    found = splits.overlap(m, dict(train=["dark"], test=["dark", "light"]))
    assert found == dict(
        n_train=3,
        n_train_distinct=2,
        n_train_dark=3,
        n_test_dark=4,
        n_test_light=0,
        test_images_that_train=sum(any(r[0] == t[0] for t in trains) for r in tests),
        test_patient_id_that_train=sum(any(r[1] == t[1] for t in trains) for r in tests),
    )
    assert found["test_images_that_train"] == 2 and found["test_patient_id_that_train"] == 3


def test_a_study_says_what_its_parts_must_not_share():
    real = images(split=["train", "train", "val", "test"], patient_id=["p", "q", "r", "s"])
    made = made_from("a", patient_id=["s"])
    for together, refused in (((), False), (("patient_id",), True)):
        study = manifest.Study("toy", ("x",), together=together)
        if refused:
            with pytest.raises(splits.SplitError, match="patient_id"):
                splits.training_set(real, "real+syn", study, made)
        else:
            assert len(splits.training_set(real, "real+syn", study, made)) == 5


@pytest.mark.parametrize("absent", ["train", "test"])
def test_a_label_that_training_or_test_part_lacks_is_named(absent):
    "One that only the validation part lacks is not: it chooses the epoch and no more."
    rows = [(label, part) for label in "abc" for part in ("train", "train", "val", "test")]
    m = pd.DataFrame(rows, columns=["label", "split"])
    m = m[~((m.label == "b") & (m.split == absent)) & ~((m.label == "c") & (m.split == "val"))]
    sizes = splits.part_sizes(m, "abc")
    n = dict(n_train=6, n_val=2, n_test=3, n_classes_train=3, n_classes_test=3)
    n[f"n_{absent}"] -= {"train": 2, "test": 1}[absent]
    n[f"n_classes_{absent}"] = 2
    assert sizes == n | dict(n_classes=3, lacking="b")
