"""fairskin2024: its counts from the real annotations, what each arm and each section asks for, and
a chain of all three levels in the smallest size.
"""

import json
import shutil
import tomllib
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from skinrepro import splits
from skinrepro.batches import row_sampler
from skinrepro.core import has_data
from skinrepro.fidelity import fid, fidelity_table
from skinrepro.grid import read_grid
from skinrepro.manifest import make, write
from skinrepro.papers import fairskin2024 as fair
from skinrepro.records import read_record, read_records
from skinrepro.workflow import execute

PAPER = ROOT / "nbs" / "papers" / "fairskin2024"
GRID = tomllib.loads((PAPER / "grid.toml").read_text(encoding="utf-8"))
PHANTOM = fair.STUDIES["phantom"]
COUNTS = (
    dict(  # of the protocol: contact dermatitis, basal cell, lichen planus, psoriasis, squamous
        African=(25, 12, 120, 87, 56),
        Asian=(108, 154, 183, 145, 166),
        Caucasian=(295, 302, 181, 412, 329),
    )
)
RARE = "African / basal cell carcinoma"


def needs(name):
    return pytest.mark.skipif(not has_data(name), reason=f"needs {name} below SKINREPRO_DATA")


def pool():
    "One row an image, as many of each cell as the paper has; nothing is rendered."
    of_group = {g: types[0] for g, types in fair.GROUPS.items()}
    rows = [
        dict(image_id=f"{g}-{label}-{i}", label=label, group=g, skin_type=of_group[g])
        for g, counts in COUNTS.items()
        for label, n in zip(fair.DISEASES, counts)
        for i in range(n)
    ]
    m = pd.DataFrame(rows).assign(source="phantom", path=lambda t: t.image_id + ".png")
    return make(m)


def parted(seed=0):
    train, val, test = splits.subgroup_split(pool(), seed, ("label", "group"))
    return splits.mark(train=train, val=val, test=test)


@pytest.fixture(scope="module")
def split():
    return parted()


def drawn(split, per_cell=600, **cells):
    "A manifest of generated images that nobody has drawn."
    m = fair.specs(PHANTOM, per_cell, 2.0, 4).drop(columns=["prompt", "guidance", "steps"])
    n = fair.cells_of(m).map(cells).fillna(per_cell)
    m = m[m.groupby(fair.cells_of(m)).cumcount() < n]
    m = m.drop(columns=["seed", "strength"]).assign(source="synthetic", path=m.image_id + ".png")
    return make(m.assign(split="train"))


ASKED = dict(
    joins="none",
    arm="FairSkin-C",
    images="images-x",
    seed=0,
    cells="all",
    ratio=0.0,
    guidance=0.0,
    added=500,
    proportions="",
    few="error",
    reweight="none",
    sampler="shuffle",
    steps_as="own",
)


# ---- data


@needs("fitzpatrick17k")
def test_counts_of_the_real_annotations():
    "By hand from the published table: the second column, and the first one where that is empty."
    from skinrepro.core import data_folder

    t = pd.read_csv(data_folder("fitzpatrick17k") / "fitzpatrick17k.csv")
    t = t[t.label.isin(fair.DISEASES)]
    skin = t.fitzpatrick_centaur.where(t.fitzpatrick_centaur > 0, t.fitzpatrick_scale)
    group = skin.map({k: g for g, types in fair.GROUPS.items() for k in types})
    by_hand = pd.crosstab(group, t.label)
    ours = fair.cell_counts().pivot(index="group", columns="label", values="n")
    for g, counts in COUNTS.items():
        assert tuple(ours.loc[g, list(fair.DISEASES)]) == counts
        assert tuple(by_hand.loc[g, list(fair.DISEASES)]) == counts
    assert (ours.sum(axis=1).to_dict(), ours.sum().sum()) == (
        dict(African=300, Asian=756, Caucasian=1519),
        2575,
    )
    assert by_hand.sum().sum() == 2575


def test_only_one_reading_has_the_printed_ends():
    t = fair.readings().set_index("label_source")[["smallest", "largest", "total"]]
    assert t.loc["scale"].tolist() == [24, 345, 2517]
    assert t.loc["centaur"].tolist() == [12, 400, 2422]
    assert t.loc["centaur_else_scale"].tolist() == [12, 412, 2575]
    ends = t[["smallest", "largest"]].apply(tuple, axis=1)
    assert (ends == (12, 412)).sum() == 1


@pytest.mark.parametrize("seed", fair.SEEDS)
def test_an_eighth_of_each_cell_and_nothing_twice(seed):
    s = parted(seed)
    assert s.split.value_counts().to_dict() == dict(train=2061, val=257, test=257)
    assert s.image_id.is_unique and len(s) == 2575
    n = pd.crosstab(fair.cells_of(s), s.split)
    of_cell = {f"{g} / {d}": k for g, row in COUNTS.items() for d, k in zip(fair.DISEASES, row)}
    for cell, k in of_cell.items():
        tenth = max(1, round(k / 10))
        assert n.loc[cell, ["train", "val", "test"]].tolist() == [k - 2 * tenth, tenth, tenth]
    other = parted(seed + 1)
    assert set(s.image_id[s.split == "test"]) != set(other.image_id[other.split == "test"])


def test_cells_that_are_hardly_tested_are_said(split):
    with pytest.warns(UserWarning, match="fewer than 10 test images; African / basal.* has 1:"):
        t = fair.few_tested(split).set_index("cell")
    assert t.loc[RARE].tolist() == [10, 1, 1]


@needs("pad_ufes20")
@pytest.mark.parametrize("fraction, least", [(1.0, 3), (0.1, 1)])
@pytest.mark.parametrize("seed", fair.SEEDS)
def test_photographs_are_split_by_patient_and_every_cell_is_tested(seed, fraction, least):
    "However few are taken: three of each cell are then of three patients."
    study = fair.STUDIES["pad_ufes20"]
    m = fair.needed(dict(data="pad_ufes20", fraction=fraction))
    parts = splits.subgroup_split(m, seed, ("label", "group"), study.together)
    s = splits.mark(**dict(zip(("train", "val", "test"), parts)))
    assert len(study.labels) == 6 and set(study.groups) == {"light", "dark"}
    with pytest.warns(UserWarning, match="has 1: one image more or less"):
        t = fair.few_tested(s)
    assert len(t) == 12 and t[["train", "val", "test"]].min().tolist() == [least, 1, 1]
    patients = s.groupby("split").patient_id.apply(set)
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not patients[a] & patients[b]


# ---- prompts, arms, images


def test_prompts_name_each_cell_once():
    cells = [(g, d) for g in fair.GROUPS for d in fair.DISEASES]
    asked = {fair.prompt(*cell) for cell in cells}
    assert len(asked) == 15 and "Asian people basal cell carcinoma" in asked
    neutral = [fair.prompt(*cell, "neutral") for cell in cells]
    assert len(set(neutral)) == 15 and not any(g in p for g in fair.GROUPS for p in neutral)
    assert fair.prompt("African", "psoriasis", "neutral") == "psoriasis, dark skin"
    assert fair.prompt("dark", "NEV") == "dark skinned people NEV"


TAUGHT = {  # arm -> power of the sampling weights, None: none; the class diversity term
    "vanilla": (None, False),
    "CBRS": (1.0, False),
    "SQRS": (0.5, False),
    "CBDM": (None, True),
    "FairSkin-S": (0.5, True),
    "FairSkin-C": (1.0, True),
}


@pytest.mark.parametrize("arm", fair.ARMS)
def test_what_an_arm_is_taught_with_on_the_real_counts(arm, split, monkeypatch):
    "Weights by hand from the counts of the training part; the term; nothing twice."
    from skinrepro import balance, taught
    from skinrepro.loop import Training

    given, terms = {}, {}

    def loss(base, prompts, **how):
        terms.update(how, prompts=prompts)
        return balance.BalancedLoss.__new__(balance.BalancedLoss)

    monkeypatch.setattr(balance.BalancedLoss, "about", {}, raising=False)
    monkeypatch.setattr(balance, "balanced_loss", loss)
    monkeypatch.setattr(taught, "teach_unet", lambda *a, **k: given.update(k))
    train = split[split.split == "train"]
    fair.tune(None, train, arm, Training(4, 2))
    power, diversity = TAUGHT[arm]
    n = fair.cells_of(train).map(fair.cells_of(train).value_counts()).to_numpy(float)
    if power is None:
        assert given["weights"] is None
    else:
        w = given["weights"] / given["weights"].sum()
        assert w == pytest.approx(n**-power / (n**-power).sum())
        rare = w[(fair.cells_of(train) == RARE).to_numpy()].sum()
        assert rare == pytest.approx(1 / 15) if power == 1 else 10 / 2061 < rare < 1 / 15
    assert terms["term"] == ("official" if diversity else None)
    assert terms["drop"] == "sample" and terms["others"] == "uniform" and terms["tau"] == 1.0
    assert set(terms["prompts"]) == {fair.prompt(g, d) for g in fair.GROUPS for d in fair.DISEASES}
    fair.tune(None, train, arm, Training(4, 2), fair.Balance(use="loss"))
    assert given["weights"] is None and len(terms["loss_weights"]) == 2061


def test_every_arm_draws_from_the_same_noise():
    "The seed of an image is of draw, cell and number: arms, guidance and numbers share it."
    few, many = (fair.specs(PHANTOM, n, g, 4) for n, g in ((3, 2.0), (7, 8.0)))
    both = few.merge(many, on="image_id")
    assert len(both) == 45 and (both.seed_x == both.seed_y).all()
    assert many.seed.is_unique and not set(many.seed) & set(fair.specs(PHANTOM, 7, 2.0, 4, 1).seed)
    runs = [r for r in read_grid(PAPER, "mini", "images", seed=0) if r.section == "images"]
    arms = {r.parameters["arm"]: r.parameters for r in runs}
    assert set(arms) == set(fair.ARMS)
    for p in arms.values():
        asked = {k: p[k] for k in ("seed", "per_cell", "guidance", "steps", "words", "cells")}
        assert asked == {k: arms["vanilla"][k] for k in asked}


# ---- the third level


def test_proportions_of_figure_5():
    "7500 images at 0.3:0.2:0.5, equally many of each disease within a group."
    wanted = pd.Series(fair.wanted_of(ASKED | dict(proportions="0.3:0.2:0.5"), PHANTOM, pool()))
    assert wanted.groupby(level=0).sum().to_dict() == dict(African=2250, Asian=1500, Caucasian=3750)
    assert set(wanted["African"]) == {450} and set(wanted["Caucasian"]) == {750}
    assert set(fair.wanted_of(ASKED, PHANTOM, pool()).values()) == {500}


@pytest.mark.parametrize("wrong", ["0.3:0.2:0.6", "0.5:0.5", "0.3,0.2,0.5", "-0.2:0.7:0.5"])
def test_proportions_that_are_none(wrong):
    with pytest.raises(ValueError, match="sum to 1"):
        fair.wanted_of(ASKED | dict(proportions=wrong), PHANTOM, pool())


def test_generated_images_join_the_training_part_alone(split, monkeypatch):
    made = drawn(split)
    monkeypatch.setattr(fair, "images_of", lambda *a: (made, "record"))
    m, record = fair.joined(split, PHANTOM, ASKED | dict(joins="images"))
    assert record == "record" and m.split.value_counts()["train"] == 2061 + 7500
    assert (m.source[m.split != "train"] == "phantom").all() and (m.split != "train").sum() == 514
    extra = m[m.source == "synthetic"]
    assert set(fair.cells_of(extra).value_counts()) == {500}
    assert set(extra.image_id) <= set(made.image_id)


@pytest.mark.parametrize("ratio, each", [(0.5, 24), (1.0, 48), (2.0, 96), (8.0, 384)])
def test_a_ratio_is_of_the_real_images_of_the_rarest_group(split, monkeypatch, ratio, each):
    "240 African images train."
    monkeypatch.setattr(fair, "images_of", lambda *a: (drawn(split), None))
    asked = ASKED | dict(joins="images", cells="rarest", ratio=ratio)
    m, _ = fair.joined(split, PHANTOM, asked)
    extra = m[m.source == "synthetic"]
    assert set(extra.group) == {"African"} and len(extra) == ratio * 240
    assert set(extra.label.value_counts()) == {each}
    copied, _ = fair.joined(split, PHANTOM, asked | dict(joins="copies"))
    assert fair.cells_of(
        copied[~copied.image_id.isin(split.image_id)]
    ).value_counts().to_dict() == (fair.cells_of(extra).value_counts().to_dict())


def test_a_ratio_of_nothing_is_the_real_images(split):
    m, record = fair.joined(split, PHANTOM, ASKED | dict(joins="images", cells="rarest"))
    assert record is None and m is split


def test_copies_are_of_training_images_and_go_round(split):
    m, _ = fair.joined(split, PHANTOM, ASKED | dict(joins="copies", added=25))
    extra = m[~m.image_id.isin(split.image_id)]
    assert len(extra) == 15 * 25 and (extra.split == "train").all() and m.image_id.is_unique
    train = split[split.split == "train"].set_index("image_id")
    assert extra.parent_id.isin(train.index).all()
    assert (extra.path.to_numpy() == train.path[extra.parent_id].to_numpy()).all()
    of_rare = extra[fair.cells_of(extra) == RARE].parent_id.value_counts()
    assert len(of_rare) == 10 and of_rare.between(2, 3).all()  # 25 of ten


def test_steps_are_those_of_a_training_that_images_have_joined(split, monkeypatch):
    "Equal compute at any size, whatever has joined or is missing."
    monkeypatch.setattr(fair, "images_of", lambda *a: (drawn(split, **{RARE: 3}), None))
    sizes = {}
    for name, asked in dict(
        plain={},
        shuffled=dict(steps_as="added"),
        oversampled=dict(steps_as="added", sampler="cells"),
        copied=dict(joins="copies"),
        copied_as=dict(joins="copies", steps_as="added"),
        accepted=dict(joins="images", few="take", steps_as="added"),
    ).items():
        p = ASKED | dict(added=40) | asked
        m, _ = fair.joined(split, PHANTOM, p)
        draw, watch = fair.level_three(m, p)
        sizes[name] = len(draw(0)), int((m.split == "train").sum())
        assert watch is None and np.array_equal(draw(1), draw(1)) and len(draw(1)) == len(draw(0))
    assert sizes == dict(
        plain=(2061, 2061),
        shuffled=(2661, 2061),
        oversampled=(2661, 2061),
        copied=(2661, 2661),
        copied_as=(2661, 2661),
        accepted=(2661, 2661 - 37),
    )


def test_cells_are_drawn_alike_and_shuffled_ones_as_they_are(split):
    p = ASKED | dict(steps_as="added")
    cells = fair.cells_of(split[split.split == "train"]).reset_index(drop=True)
    for sampler, low, high in (("cells", 1 / 15, 1 / 15), ("shuffle", 10 / 2061, 330 / 2061)):
        draw, _ = fair.level_three(split, p | dict(sampler=sampler))
        shares = cells[draw(0)].value_counts(normalize=True)
        assert shares[RARE] == pytest.approx(low, abs=0.012)
        assert shares["Caucasian / psoriasis"] == pytest.approx(high, abs=0.012)


# ---- bad input


def test_a_class_without_an_image():
    from skinrepro.balance import cell_weights

    m = pool()
    gone = m[fair.cells_of(m) != RARE]
    every = fair.cells_of(m).unique()
    with pytest.raises(ValueError, match=f"No image of class '{RARE}'.*Leave it out"):
        cell_weights(fair.cells_of(gone), "cbrs", classes=every)
    with pytest.raises(ValueError, match=f"{RARE} has no training image to copy"):
        fair.copies_of(gone, fair.wanted_of(ASKED, PHANTOM, m))
    with pytest.raises(ValueError, match="two diseases"):
        few = m[(m.label == "psoriasis") | (m.group != "African")]
        fair.with_enough(few, replace(PHANTOM, data="fitzpatrick17k"))
    with pytest.warns(UserWarning, match=f"{RARE.split(' / ')[1]} / African has 0"):
        left = fair.with_enough(gone, replace(PHANTOM, data="fitzpatrick17k"))
    assert left.label.nunique() == 4


def test_a_class_with_one_image():
    "No covariance, no three parts."
    x = np.random.default_rng(0).normal(size=(9, 4))
    with pytest.raises(ValueError, match="covariance of one image is undefined"):
        fid(x, x[:1])
    cells = pd.DataFrame(dict(group=["a"] * 8 + ["b"], label="x"))
    with pytest.raises(ValueError, match="'b'.* has 1 real and 1 generated images; .* needs 2"):
        fidelity_table(x, x, cells, cells, ("fid",))
    m = pool()
    rest = m[(fair.cells_of(m) != RARE) | ~m.image_id.duplicated() & m.image_id.str.endswith("-0")]
    with pytest.raises(ValueError, match="basal cell carcinoma / African has 1"):
        splits.subgroup_split(rest, 0, ("label", "group"))


def test_weights_that_sum_to_nothing():
    import torch

    from skinrepro.latent import Latents, toy_base
    from skinrepro.loop import Training
    from skinrepro.personalise import fine_tune

    with pytest.raises(ValueError, match="sum to 0: nothing can be drawn"):
        row_sampler(np.zeros(9), 0, 0)
    base = toy_base()
    z = torch.zeros(2, 1, base.unet.config.in_channels, *[base.unet.config.sample_size] * 2)
    asked = base, Latents(z, z, 1.0, "x"), ["a", "b"], Training(1, 1)
    with pytest.raises(ValueError, match="not all 0"):
        fine_tune(*asked, weights=[0, 0], progress=False)


def test_a_judge_that_has_never_seen_the_groups():
    for data in ("fitzpatrick17k", "pad_ufes20"):
        with pytest.raises(fair.ParameterError, match=f"no judge has seen the groups of {data}"):
            fair.check_accept("asked_both", data)
    fair.check_accept("asked_both", "phantom")


@pytest.mark.parametrize("wrong", [dict(arm="CBDM"), dict(guidance=4.0), dict(seed=1)])
def test_images_of_another_arm_guidance_or_split_are_refused(wrong, tmp_path, monkeypatch):
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    run = next(r for r in of("images", seed=0) if r.parameters["arm"] == "FairSkin-C")
    run.folder.mkdir(parents=True)
    about = dict(paper="fairskin2024", notebook="images", parameters=run.parameters)
    (run.folder / "run.json").write_text(json.dumps(about))
    (run.folder / "records.csv").write_text("run_id\nx\n")
    write(drawn(None, 1).assign(path=str(run.folder / "run.json")), run.folder / "manifest.parquet")
    own = {k: v for k, v in run.parameters.items() if k in fair.SPLIT_BY}
    assert len(fair.images_of(run.id, own | dict(arm="FairSkin-C", guidance=0.0))[0]) == 15
    (name,) = wrong
    with pytest.raises(fair.ParameterError, match=f"made for something else: {name} = "):
        fair.images_of(run.id, own | dict(arm="FairSkin-C", guidance=0.0) | wrong)


def test_fewer_images_than_are_asked_for(split, monkeypatch):
    monkeypatch.setattr(fair, "images_of", lambda *a: (drawn(split, 60, **{RARE: 3}), None))
    asked = ASKED | dict(joins="images", added=40)
    with pytest.raises(fair.ParameterError, match=f"1 of 15 cells.*{RARE} has 3 of 40.*few='take'"):
        fair.joined(split, PHANTOM, asked)
    m, _ = fair.joined(split, PHANTOM, asked | dict(few="take"))
    n = fair.cells_of(m[m.source == "synthetic"]).value_counts()
    assert n[RARE] == 3 and set(n.drop(RARE)) == {40}


def test_the_judge_wants_disease_and_skin():
    "A true phantom of another group is none of the group that was asked."
    from skinrepro.phantom import render

    x = np.stack([render("psoriasis", t, 5 * 10**9 + i) for t in (1, 6) for i in range(6)])
    asked, label = pd.Series(["Caucasian"] * 12), pd.Series(["psoriasis"] * 12)
    seen = fair.judged(x, label, asked)
    assert seen.asked_group[:6].mean() > 0.6 and seen.asked_group[6:].max() == 0
    assert (seen.asked_both <= seen.asked_group).all()
    other = fair.judged(x[:6], label[:6].replace("psoriasis", "lichen planus"), asked[:6])
    assert other.asked_disease.mean() < 0.5


# ---- the grid


EXTRA = [name for name, body in GRID.items() if body.get("extra")]


def of(section, profile="mini", **asked):
    return [r for r in read_grid(PAPER, profile, section, **asked) if r.section == section]


def test_what_goes_beyond_the_paper_runs_by_name_alone():
    assert {"shuffled", "exchange", "unseen_images", "accepted", "pad_augmented"} <= set(EXTRA)
    for profile in ("mini", "paper"):
        default = {r.section for r in read_grid(PAPER, profile)}
        assert default == set(GRID) - set(EXTRA)
        for name in EXTRA:
            if profile == "mini" or not name.startswith("accepted"):  # nobody judges photographs
                assert of(name, profile), name
                assert {r.parameters["seed"] for r in of(name, profile)} == set(fair.SEEDS)


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_baselines_take_as_many_steps_as_the_runs_beside_which_they_stand(profile):
    added = {r.parameters["added"] for r in of("augmented", profile)}
    for name in ("shuffled", "oversampled", "strong", "copied", "untouched"):
        for r in of(name, profile):
            p = r.parameters
            assert {p["added"]} == added and p["proportions"] == "" and p["cells"] == "all"
            assert p["joins"] != "none" or p["steps_as"] == "added"
            same = {k: p[k] for k in ("arch", "epochs", "batch_size", "lr", "size")}
            assert same.items() <= of("augmented", profile)[0].parameters.items()


def by_id(*sections, profile="mini"):
    return {r.id: r for r in read_grid(PAPER, profile, ",".join(sections))}


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_images_of_the_rarest_group_are_enough_for_the_largest_ratio(profile):
    runs = by_id("exchange", "guided", "exchange_copied", profile=profile)
    for r in runs.values():
        p = r.parameters
        if r.section in ("exchange", "guided"):
            drawn_by = runs[p["images"]].parameters
            assert drawn_by["cells"] == p["cells"] == "rarest" and drawn_by["seed"] == p["seed"]
            assert drawn_by["per_cell"] * 5 >= p["ratio"] * 240 and drawn_by["arm"] == p["arm"]
            assert r.section == "exchange" or drawn_by["guidance"] == p["guidance"]
    ratios = {s: {r.parameters["ratio"] for r in of(s, profile)} for s in ("exchange", "guided")}
    assert ratios == dict(exchange={0, 0.5, 1, 2, 4, 8}, guided={2})
    assert {r.parameters["guidance"] for r in of("guided", profile)} == {1, 2, 4, 8}


def test_a_cell_that_was_held_out_is_drawn_beside_arms_that_have_seen_it():
    runs = by_id("unseen_images")
    for r in of("unseen_images"):
        p = r.parameters
        assert runs[p["tuned"]].parameters["held_out"] == p["held_out"] == "African / psoriasis"
        (beside,) = [runs[n] for n in r.needs if runs[n].section == "images"]
        q = beside.parameters
        same = "arm seed per_cell guidance steps words truth features".split()
        assert {k: p[k] for k in same} == {k: q[k] for k in same} and p["truth"] > 0
        assert runs[q["tuned"]].parameters["held_out"] == ""


def test_what_was_accepted_stands_beside_as_many_that_were_not_judged():
    for r in of("accepted"):
        p = r.parameters
        beside = [
            s.parameters
            for s in of("sizes", seed=p["seed"])
            if (s.parameters["arm"], s.parameters["added"]) == (p["arm"], p["added"])
        ]
        assert len(beside) == 1 and p["steps_as"] == "added" and p["few"] == "take"
        made = by_id("accepted")[p["images"]].parameters
        assert made["per_cell"] == p["added"] and made["candidates"] > 1


def test_photographs_have_the_pretrained_network_and_their_own_models():
    runs = by_id("pad_augmented", "pad_copied", "pad_reweighted")
    assert {r.parameters["data"] for r in runs.values()} == {"pad_ufes20"}
    for r in runs.values():
        if r.notebook.stem == "classifier":
            p = r.parameters
            assert (p["arch"], p["recipe"], p["size"]) == ("efficientnet_lite0", "finetune", 128)


def test_a_classifier_is_named_by_what_tells_it_from_others():
    "Of the runs beside which one stands, no two have the same words and numbers."
    told = {}
    for name in ("plain", "augmented", "shuffled", "oversampled", "strong", "copied", "untouched"):
        for r in of(name, seed=0):
            told.setdefault(fair.training_of(r.parameters), []).append(r.id)
    assert len(told) == 6 + len(fair.ARMS) and all(len(ids) == 1 for ids in told.values())
    assert {fair.LONGER, fair.OVERSAMPLED, fair.STRONG, fair.COPIED, fair.UNTOUCHED} < set(told)
    (p,) = [r.parameters for r in of("accepted", seed=0, arm="vanilla")]
    assert fair.training_of(p | dict(images_accept="asked_both")) == f"vanilla, {fair.JUDGED}"
    p = [r.parameters for r in of("exchange", seed=0) + of("exchange_copied", seed=0)]
    t = fair.exchanged(pd.DataFrame(p))
    assert sorted(zip(t.source, t.ratio)) == sorted(
        [(fair.NOTHING, 0.0), *((s, r) for s in (fair.GENERATED, fair.AGAIN) for r in fair.RATIOS)]
    )


@pytest.mark.parametrize("gap, verdict", [(-0.03, "contradicted"), (-0.01, "supported")])
def test_doing_as_well_is_shown_by_the_whole_interval(gap, verdict):
    "Worse by less than the margin; with a wide interval nothing is shown."
    claims = [c for c in fair.BEYOND["equal_compute"] if c.text.startswith("Copies")]
    assert {c.margin for c in claims} == {-fair.AS_WELL} and len(claims) == len(fair.ANSWERS)

    def records(spread):
        mean = {fair.COPIED: 0.8 + gap} | dict.fromkeys(fair.OURS, 0.8)
        return pd.DataFrame(
            [
                dict(training=k, seed=s, metric=m, value=v + spread * (s - 1) * (k == fair.COPIED))
                | dict(run_id=f"{k}{s}", n=257, group="all")
                for k, v in mean.items()
                for s in range(3)
                for m in fair.ANSWERS
            ]
        )

    assert [c(records(1e-4)).verdict for c in claims] == [verdict] * len(claims)
    assert [c(records(0.05)).verdict for c in claims] == ["inconclusive"] * len(claims)


def test_what_a_run_is_said_to_cost():
    "By hand: cells times images times steps; images that are seen, epochs by what an epoch draws."

    def amounts(section, **asked):
        p = of(section, seed=0, **asked)[0]
        works, _ = fair.cost(p)
        return {w.kind.split(",")[0].split(" of ")[0]: w.amount for w in works}, p.parameters

    for section, cells in (("images", 15), ("exchange_images", 5), ("unseen_images", 1)):
        work, p = amounts(section)
        assert work["image and step"] == cells * p["per_cell"] * p["steps"]
    work, p = amounts("accepted_images")
    assert work["image and step"] == 15 * p["per_cell"] * p["candidates"] * p["steps"]
    looked_at = 0.35 * 0.2 * 2575
    for section, cells in dict(plain=0, shuffled=15, copied=15, exchange=0, accepted=15).items():
        work, p = amounts(section)
        drawn = 2060 + cells * p["added"]
        assert work["image"] == pytest.approx(p["epochs"] * (drawn + looked_at))
    p = of("exchange", seed=0)[-1]
    (_, work), _ = fair.cost(p)
    assert p.parameters["ratio"] == 8
    assert work.amount == pytest.approx(p.parameters["epochs"] * (2060 + 8 * 240 + looked_at))
    for r in of("finetune", seed=0):
        (_, training, _), _ = fair.cost(r)
        both = 2 if fair.ARMS[r.parameters["arm"]].diversity else 1  # prompts of a step
        assert training.amount == r.parameters["steps"] and training.images == 8 * both
        assert training.kind.startswith(f"step of fine-tuning, miniature, {8 * both} images")


def test_each_kind_of_run_is_rehearsed_with_few_images():
    "Few images of each cell are enough, also where a ratio asks for more."
    from skinrepro.rehearse import rehearsal_runs
    from skinrepro.runs import check_ranges, ranges

    names = [name for name in GRID if not name.startswith("accepted")]
    runs = read_grid(PAPER, "paper", ",".join(names))
    rehearsed = rehearsal_runs(runs, fair.rehearsed, False, dict(fitzpatrick17k="phantom"))
    assert len(rehearsed) < len(runs) / 4
    kinds = [fair.rehearsed(r.full, False)[0] for r in rehearsed]
    for asked in (
        dict(cells="held_out"),
        dict(cells="rarest", joins="images", some=True),
        dict(cells="rarest", joins="images", some=False),
        dict(augment="strong"),
        dict(joins="copies"),
        dict(held_out=True),
    ):
        assert any(asked.items() <= kind.items() for kind in kinds), asked
    for r in rehearsed:
        p = r.run.parameters
        check_ranges(p, ranges(PAPER))
        assert p["profile"] == "rehearsal" and p["fraction"] < 0.1
        assert (
            p.get("added", 0) <= 2 and p.get("per_cell", 0) <= 2 and p.get("few", "take") == "take"
        )


# ---- all three levels


SMALL = dict(
    section="augmented",
    arm="FairSkin-C",
    seed=0,
    judge="",
    steps=2,
    points="",
    look_steps=2,
    truth=0,
    features="efficientnet_lite0",  # a package; that of phantoms is first trained
    copies_features="efficientnet_lite0",
    fraction=0.05,
    reweight="loss",
    augment="strong",
)


def of_record(run):
    t = read_record(run.folder / "records.csv")
    return t[~t.metric.str.contains("second")].drop(columns=["seconds"]).reset_index(drop=True)


def test_three_levels_end_to_end_and_again(tmp_path, monkeypatch):
    """Fine-tuning, images, classifier, as the grid strings them together. What was killed is made
    again, to the same numbers; images that are there are kept.
    """
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    grid = read_grid(PAPER, "smoke", **SMALL)
    assert [r.notebook.stem for r in grid] == ["finetune", "images", "classifier"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = execute(grid, progress=False)
    assert {o.status for o in outcomes} == {"ran"}, [o.error for o in outcomes]
    tuned, images, classifier = grid
    r = read_records("fairskin2024", "classifier")
    assert set(r.images_arm) == {"FairSkin-C"} and set(r.n_synthetic) == {15}
    weights = pd.read_csv(classifier.folder / "reweighting.csv")
    assert set(weights.group) == set(fair.GROUPS) and len(weights) == 2 * 3  # epochs, groups
    joined = r[r.metric == "n_joined"].set_index("group").value
    assert joined["African"] == 5 and joined[RARE] == 1
    assert set(read_records("fairskin2024", "images").unet) == {
        p.name for p in (tmp_path / "runs" / "fairskin2024" / "weights").glob("unet-*")
    }
    before = {run.id: of_record(run) for run in grid}
    shutil.rmtree(classifier.folder)
    (images.folder / "records.csv").unlink()  # as if killed while it was drawing
    files = sorted((images.folder / "images").glob("*.png"))
    for f in files[::2]:
        f.unlink()
    kept = {f: f.stat().st_mtime_ns for f in files[1::2]}
    outcomes = execute(read_grid(PAPER, "smoke", **SMALL), progress=False)
    assert [o.status for o in outcomes] == ["done", "ran", "ran"], [o.error for o in outcomes]
    assert kept == {f: f.stat().st_mtime_ns for f in kept}
    for run in grid:
        pd.testing.assert_frame_equal(of_record(run), before[run.id])
