"""Phantom radiographs: who is drawn, what a finding and a sex change and what they do not, files,
bad input.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from skinrepro import phantom_radiograph as radiographs
from skinrepro.phantom_radiograph import (
    ABSENT,
    ARCHIVE,
    CO_OCCURRENCE,
    FINDINGS,
    LABELS,
    NO_FINDING,
    PEOPLE,
    PRESENT,
    SEX,
    SIZES,
    UNKNOWN,
    VIEW,
    cardiothoracic_ratio,
    co_occurrence,
    drawn_radiographs,
    finding_shares,
    finding_states,
    findings_of,
    radiograph_manifest,
    radiograph_table,
    render,
    seed_of,
    write_radiographs,
)

EFFUSION = "pleural effusion"


def shrunk(image, size):
    k = len(image) // size
    return image.reshape(size, k, size, k).mean((1, 3))


# ---------------------------------------------------------------- who is drawn


def test_half_of_three_findings_have_an_effusion_in_closed_form():
    "Ktena et al. 2023, 3.2.2: 50 % of atelectasis, consolidation and edema."
    p = finding_shares("archive 0")
    assert p.sum() == pytest.approx(1, abs=1e-12) and (p > 0).all()
    axis = FINDINGS.index(EFFUSION)
    for finding in ("atelectasis", "consolidation", "edema"):
        has = np.take(p, 1, FINDINGS.index(finding))  # the effusion's axis moves up by at most one
        both = np.take(has, 1, axis - (FINDINGS.index(finding) < axis)).sum()
        assert both / has.sum() == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("archive", CO_OCCURRENCE)
def test_rates_and_links_are_what_was_asked(archive):
    p = finding_shares(archive)
    y = np.indices(p.shape).reshape(5, -1)
    rates = dict(zip(FINDINGS, y @ p.ravel()))
    table = co_occurrence(p)
    for finding, (rate, parent, share) in CO_OCCURRENCE[archive].items():
        assert rates[finding] == pytest.approx(rate)
        assert parent is None or table.loc[finding, parent] == pytest.approx(share)


def test_findings_come_together_less_in_the_other_archive():
    first, second = (co_occurrence(finding_shares(a)).to_numpy() for a in CO_OCCURRENCE)
    apart = ~np.eye(5, dtype=bool)
    assert (second < first)[apart].mean() > 0.85 and second[apart].mean() < 0.7 * first[
        apart
    ].mean()


@pytest.mark.parametrize("archive", CO_OCCURRENCE)
@pytest.mark.parametrize("healthy", [None, 0.4])
def test_twenty_thousand_agree_with_the_closed_form(archive, healthy):
    t = radiograph_table(20_000, archive, 3, healthy=healthy)
    y = finding_states(t)
    exact, drawn = co_occurrence(finding_shares(archive)), co_occurrence(y)
    sd = np.sqrt(exact * (1 - exact) / y.sum(0)[:, None])
    assert (np.abs(exact - drawn) <= 4.5 * sd + 1e-9).all(axis=None)
    none = finding_shares(archive, healthy).flat[0]
    assert (y == 0).all(1).mean() == pytest.approx(none, abs=0.015)
    assert healthy is None or none == healthy
    assert t.sex.eq("male").mean() == pytest.approx(PEOPLE[archive]["male"], abs=0.015)
    assert t.age.between(18, 90).all()
    assert t.age.median() == pytest.approx(PEOPLE[archive]["age"][0], abs=1)
    upright = t.view[t.labels.eq("")].eq("PA").mean()
    assert upright == pytest.approx(PEOPLE[archive]["upright"], abs=0.02)
    assert t.view[t.labels.str.contains("edema")].eq("AP").mean() > 0.8


def test_real_rows_of_chestxray14_look_like_the_second_archive():
    "The two shares that a thousand rows tell well enough, against the committed real ones."
    from skinrepro.core import data_folder, has_data

    if not has_data("nih_chestxray14"):
        pytest.skip("no ChestX-ray14 here")
    t = pd.read_csv(data_folder("nih_chestxray14") / "Data_Entry_2017.csv")
    real = t["Finding Labels"].str.split("|")
    has = {f: real.map(lambda names, f=f: f in names) for f in ("Atelectasis", "Effusion")}
    share = has["Effusion"][has["Atelectasis"]].mean()
    asked = CO_OCCURRENCE["archive 1"]["atelectasis"][2]
    assert abs(share - asked) < 3 * (asked * (1 - asked) / has["Atelectasis"].sum()) ** 0.5


def test_present_absent_and_unknown_are_three_things():
    t = radiograph_table(4000, open_reports=True)
    states, truth = finding_states(t), finding_states(t.drop(columns="unknown"))
    assert {PRESENT, ABSENT, UNKNOWN} == set(np.unique(states)) and UNKNOWN not in truth
    for k, (finding, share) in enumerate(PEOPLE["archive 0"]["unknown"].items()):
        left_open = states[:, k] == UNKNOWN
        assert left_open.mean() == pytest.approx(share, abs=0.02)
        assert {0, 1} == set(truth[left_open, k]), finding  # either may be true
        assert (states[~left_open, k] == truth[~left_open, k]).all()
    m = radiograph_manifest(t)
    for text, row in zip(m["labels"], states):
        assert findings_of(text) == tuple(f for f, s in zip(FINDINGS, row) if s == PRESENT)
    same = radiograph_table(4000)  # open reports change neither people nor pictures
    assert same.drop(columns="unknown").equals(t.drop(columns="unknown"))
    assert same.unknown.eq("").all()


def test_tables_grow_at_their_end_and_names_are_independent_sets():
    t = radiograph_table(30, "archive 1", 2)
    assert radiograph_table(7, "archive 1", 2).equals(t.head(7)) and t.image_id.is_unique
    other = radiograph_table(30, "archive 1", 2, "fresh")
    assert set(other.image_id).isdisjoint(t.image_id) and not other.age.equals(t.age)
    assert len({seed_of(i) for i in [*t.image_id, *other.image_id]}) == 60


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("archive", ARCHIVE)
@pytest.mark.parametrize("view", VIEW)
def test_the_same_seed_is_the_same_person_at_every_size(archive, view):
    ask = ("atelectasis|edema", "female", 70, view, archive)
    large, m = render(*ask, seed=5, size=128, masks=True)
    assert large.dtype == np.uint8 and (render(*ask, seed=5, size=128) == large).all()
    assert (render(*ask, seed=6, size=128) != large).any()
    for size in SIZES[:-1]:
        small, small_m = render(*ask, seed=5, size=size, masks=True)
        assert small.shape == (size, size)
        assert np.abs(small - shrunk(large, size)).max() <= 1  # both are rounded
        for name in m:
            assert np.allclose(small_m[name], shrunk(m[name], size), atol=1e-5)


def test_the_sex_enters_through_its_table_alone(monkeypatch):
    "With a man's traits a woman is the man, to the bit; each trait alone changes its own place."
    man, where = render("edema", "male", 60, seed=9, size=128, masks=True)
    woman = render("edema", "female", 60, seed=9, size=128)
    assert (woman != man).mean() > 0.3
    for trait in SEX["male"]:
        monkeypatch.setitem(SEX, "other", {**SEX["male"], trait: SEX["female"][trait]})
        changed = np.abs(render("edema", "other", 60, seed=9, size=128).astype(int) - man) > 1
        assert changed.any(), trait
        if trait == "breast":  # the lower half of the chest, and nothing above it
            assert not changed[:30].any() and changed[40:100].mean() > 0.1
        if trait == "pectoral":
            assert not changed[100:].any()
    monkeypatch.setitem(SEX, "female", dict(SEX["male"]))
    assert (render("edema", "female", 60, seed=9, size=128) == man).all()


@pytest.mark.parametrize("finding", FINDINGS)
@pytest.mark.parametrize("archive", ARCHIVE)
def test_a_finding_brightens_its_own_place(finding, archive):
    inside, share = [], []
    for seed in range(16):
        ask = dict(view="PA", archive=archive, seed=seed, size=128, difficulty=0.5)
        after, m = render(finding, **ask, masks=True)
        change = after.astype(float) - render((), **ask)
        where = m[finding] > 0.1
        inside.append(change[where].mean())
        share.append(np.abs(change[where]).sum() / np.abs(change).sum())
        if finding in ("consolidation", EFFUSION, "edema"):
            assert m[finding][m["lungs"] < 0.01].max(initial=0) < 0.02
    assert np.mean(inside) > 5, np.mean(inside)
    floor = {"consolidation": 0.75, EFFUSION: 0.75, "edema": 0.7}.get(finding, 0.0)
    assert np.mean(share) > floor, np.mean(share)


def test_a_finding_changes_no_draw_of_the_person():
    "What is far from the finding stays the same to the bit: noise, marks, bones."
    for seed in range(6):
        ask = dict(seed=seed, size=128, view="PA")
        before, after = render((), **ask).astype(int), render("consolidation", **ask)
        assert (before[:8] == after[:8]).all() and (before[-8:] == after[-8:]).all()


def test_the_heart_in_numbers():
    "Textbook: at most half of the chest in a PA view; AP magnifies by what the table says."
    for seed in range(60):
        normal = cardiothoracic_ratio(seed=seed, age=40)
        large = cardiothoracic_ratio("cardiomegaly", seed=seed, age=40)
        assert 0.36 < normal <= 0.5 < large and large - normal > 0.015
        lying = cardiothoracic_ratio(seed=seed, age=40, view="AP")
        assert lying / normal == pytest.approx(VIEW["AP"]["heart"])
    _, m = render("cardiomegaly", seed=3, size=128, difficulty=0, masks=True)
    _, usual = render((), seed=3, size=128, difficulty=0, masks=True)
    assert m["heart"].sum() > 1.15 * usual["heart"].sum()


def test_the_measured_heart_is_the_drawn_one():
    "Measured on the masks as a radiologist does, the ratio is the number that was drawn."
    for seed in range(8):
        ask = dict(findings="cardiomegaly", seed=seed, difficulty=0)
        _, m = render(**ask, size=128, masks=True)
        heart, lungs = (np.flatnonzero((m[k] > 0.5).any(0)) for k in ("heart", "lungs"))
        measured = (np.ptp(heart) + 1) / (np.ptp(lungs) + 1)
        assert measured == pytest.approx(cardiothoracic_ratio(**ask), abs=0.04)


def test_age_thins_the_bones_and_bends_the_back():
    def chest(age):
        m = [render((), age=age, seed=s, size=128, masks=True)[1]["lungs"] for s in range(8)]
        return np.mean([np.flatnonzero((x > 0.5).any(1))[0] for x in m])

    assert chest(90) > chest(20) + 0.5  # the apex sinks

    def ribs(age):  # fine structure in the upper lung, where there is little else
        rows = [
            render((), age=age, seed=s, size=128, difficulty=0)[30:55, 88:105] for s in range(8)
        ]
        return np.mean([np.abs(np.diff(r.astype(float), 2, axis=0)).mean() for r in rows])

    old, young = ribs(85), ribs(20)
    assert old < young


def test_an_effusion_has_a_level_only_where_somebody_stands():
    "The mask's upper edge: a step of a few pixels standing, a long slope lying."

    def slope(view):
        found = []
        for seed in range(10):
            m = render(EFFUSION, view=view, seed=seed, size=128, difficulty=0.3, masks=True)[1]
            column = m[EFFUSION].max(1) / m[EFFUSION].max()
            found.append(((column > 0.1) & (column < 0.8))[: column.argmax()].sum())
        return np.mean(found)

    assert slope("AP") > 1.5 * slope("PA")


def test_archives_differ_in_every_way_that_is_said():
    first, second = (
        np.stack([render((), archive=a, seed=s, size=128) for s in range(24)]) for a in ARCHIVE
    )

    def rough(x):  # noise in the abdomen
        return np.abs(np.diff(x[:, 112:120, 40:90].astype(float), axis=2)).mean()

    assert second.std() > 1.15 * first.std() and rough(second) > 1.2 * rough(first)
    black = [(x[:, :3].max((1, 2)) == 0).mean() for x in (first, second)]  # the collimator
    assert black[1] > black[0]
    _, a = render((), seed=0, archive="archive 0", size=128, masks=True)
    _, b = render((), seed=0, archive="archive 1", size=128, masks=True)
    field = (b["lungs"].sum() / a["lungs"].sum()) ** 0.5
    assert field == pytest.approx(ARCHIVE["archive 1"]["zoom"], abs=0.01)


def test_every_extreme_can_be_drawn():
    for difficulty in (0, 1.5):
        for view in VIEW:
            for archive in ARCHIVE:
                for sex, age in (("female", 18), ("male", 100)):
                    ask = (FINDINGS, sex, age, view, archive)
                    image = render(*ask, seed=2**60 - 1, difficulty=difficulty)
                    assert 15 < image.std() < 110 and 40 < image.mean() < 220


PINNED = [
    ("", "male", 60, "PA", "archive 0"),
    ("edema|cardiomegaly", "female", 80, "AP", "archive 1"),
    ("consolidation", "male", 60, "PA", "archive 0"),
]


def test_pixels_of_this_version_are_fixed():
    "Means of quarters; raise VERSION when they change."
    found = [shrunk(render(*ask, seed=7, size=64).astype(float), 2).ravel() for ask in PINNED]
    expected = [[87.2, 96.1, 147.5, 181.6], [56.1, 66.9, 124.6, 157.1], [101.7, 96.1, 165.3, 181.6]]
    assert radiographs.VERSION == "2" and np.allclose(found, expected, atol=0.6), np.round(found, 1)


# ---------------------------------------------------------------- tables and files


def test_manifests_name_labels_sex_and_archive():
    t = radiograph_table(300, "archive 1", healthy=0.3)
    m = radiograph_manifest(t)
    assert list(m.image_id) == list(t.image_id) and (m.source == "phantom").all()
    assert (m.group == t.sex).all() and (m.domain == "archive 1").all()
    assert set(m.label) <= set(LABELS)
    assert (m["labels"].eq(NO_FINDING) == t.labels.eq("")).all()


def test_files_are_drawn_once_and_say_what_they_are(tmp_path):
    t = radiograph_table(5, healthy=0.0)
    m = drawn_radiographs(t, 32, jobs=1, folder=tmp_path)
    for path, r in zip(m.path, t.itertuples()):
        with Image.open(path) as image:
            drawn, text = np.asarray(image), image.text
        ask = (r.labels, r.sex, r.age, r.view, r.domain)
        assert (drawn == render(*ask, seed=seed_of(r.image_id), size=32)).all()
        assert text["Source"].startswith("phantom") and text["findings"] == r.labels
    times = [Path(p).stat().st_mtime_ns for p in m.path]
    assert drawn_radiographs(t, 32, jobs=1, folder=tmp_path).equals(m)
    assert [Path(p).stat().st_mtime_ns for p in m.path] == times
    Path(m.path[0]).write_bytes(b"")  # damaged, and another truth under a known name
    t.loc[1, "sex"] = "male" if t.sex[1] == "female" else "female"
    again = drawn_radiographs(t, 32, jobs=1, folder=tmp_path)
    assert again.md5[0] == m.md5[0] and again.md5[1] != m.md5[1]
    easy = write_radiographs(t.head(1), tmp_path, 32, difficulty=0.5)
    assert Path(easy.path[0]).parent.name == "radiographs-v2-32px-difficulty0.5"


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(findings="pneumonia"), "pneumonia"),
        (dict(findings=["edema", "oedema"]), "oedema"),
        (dict(sex="F"), "sex"),
        (dict(age=414), "age must lie in 18..100"),
        (dict(age=float("nan")), "age"),
        (dict(age=True), "age"),
        (dict(view="lateral"), "view"),
        (dict(archive="CheXpert"), "archive"),
        (dict(seed=-1), "seed"),
        (dict(seed=1.0), "seed"),
        (dict(size=96), "size"),
        (dict(difficulty=2), "difficulty"),
    ],
)
def test_render_refuses_by_name(change, words):
    with pytest.raises(ValueError, match=words):
        render(**{**dict(seed=0), **change})


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(n=0), "n must be"),
        (dict(seed=-1), "seed must be"),
        (dict(archive="archive 2"), "archive"),
        (dict(healthy=1.0), "healthy is a share"),
        (dict(healthy=-0.1), "healthy is a share"),
    ],
)
def test_tables_refuse_by_name(change, words):
    with pytest.raises(ValueError, match=words):
        radiograph_table(**{**dict(n=3), **change})


@pytest.mark.parametrize(
    "column, value, words",
    [
        ("age", 414, "Row 1, image_id 'radiograph-archive0-0-00001': age"),
        ("labels", "edema|asthma", "Row 1.*asthma"),
        ("unknown", "asthma", "Row 1.*asthma"),
        ("sex", "other", "Row 1.*sex"),
        ("view", None, "Row 1.*view"),
        ("domain", "hospital 0", "Row 1.*archive"),
        ("image_id", "../a", "cannot be a file name"),
    ],
)
def test_what_cannot_be_drawn_is_named_before_a_file_is_written(tmp_path, column, value, words):
    t = radiograph_table(3).astype({"age": object})
    t.loc[1, column] = value
    with pytest.raises(ValueError, match=words):
        write_radiographs(t, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_table_without_its_columns_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"Missing column\(s\) \['sex'\].*radiograph_table"):
        radiograph_manifest(radiograph_table(3).drop(columns="sex"))


def test_a_finding_that_nobody_has_is_missing_in_the_figure():
    table = co_occurrence(np.array([[1, 0, 0, 1, 0], [1, 0, 0, 0, 0]]))
    assert table.loc["consolidation"].isna().all() and table.loc["atelectasis", EFFUSION] == 0.5
