"""ktena2023: sentences about dermatology can be supported and contradicted, what is printed in
percent is recomputed, and nothing is said without a record.
"""

import json
import math

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from skinrepro.papers import ktena2023 as ktena
from skinrepro.papers import ktena2023_dermatology as derm
from skinrepro.papers import ktena2023_sentences as worded
from skinrepro.tables import read_reported

REPORTED = read_reported(ROOT / "nbs" / "papers" / "ktena2023" / "reported.csv")
ABOUT = dict(data="phantom_people", profile="mini", version="0", select_on="last")
GENERATED, HOME, AWAY, NEAR = worded.GENERATED, worded.HOME, worded.AWAY, worded.NEAR

# what each method adds to the baseline, in distribution, in OOD 1 and in OOD 2
NOTHING = dict.fromkeys((HOME, AWAY, NEAR), 0.0)
ADDS = {
    "sensitivity": {
        **{m: {HOME: 0.05, AWAY: 0.1, NEAR: 0.05} for m in GENERATED},
        "RandAugment": {HOME: 0.02, AWAY: -0.03, NEAR: 0.0},
        "RandAugment + IN augms": dict.fromkeys(NOTHING, 0.02),
        "Oversampling": dict.fromkeys(NOTHING, 0.01),
    },
    "sensitivity_gap": {
        **{m: {HOME: -0.05, AWAY: -0.1, NEAR: 0.0} for m in GENERATED},
        "RandAugment": {HOME: 0.0, AWAY: 0.03, NEAR: 0.0},
        "RandAugment + IN augms": dict.fromkeys(NOTHING, 0.03),
        "Oversampling": dict.fromkeys(NOTHING, -0.02),
        "Other pretraining": dict.fromkeys(NOTHING, 0.03),
    },
    "top3": {
        **{m: {HOME: 0.03, AWAY: 0.05, NEAR: 0.03} for m in GENERATED},
        "RandAugment": dict.fromkeys(NOTHING, 0.03),
        **{m: dict.fromkeys(NOTHING, 0.005) for m in ("Oversampling", "Focal loss")},
    },
    "balanced_top3": {
        **{m: {HOME: 0.03, AWAY: 0.09, NEAR: 0.03} for m in GENERATED},
        "RandAugment": dict.fromkeys(NOTHING, 0.03),
        **{m: dict.fromkeys(NOTHING, 0.005) for m in ("Oversampling", "Focal loss")},
    },
    "central_estimate": {m: {HOME: -0.03, AWAY: -0.09, NEAR: -0.03} for m in GENERATED},
    "top3_gap": {m: dict.fromkeys(NOTHING, -0.05) for m in GENERATED},
}
LOW = ("sensitivity_gap", "central_estimate", "top3_gap")


def added(metric, method, level, place):
    by = ADDS[metric].get(method, NOTHING)[place]
    if metric == "sensitivity" and method in GENERATED:
        by *= 1 + 0.5 * derm.LEVELS.index(level)
    if metric == "sensitivity" and method == "Other pretraining":
        by = 0.02 if level == "less" else -0.03
    return by


def trained(sign=1, seeds=3):
    "Records as classifier.ipynb leaves them; sign -1 turns every difference round."
    rng, rows = np.random.default_rng(0), []
    for name, m in derm.METHODS.items():
        p = dict(trains=m.trains, conditioning=m.conditioning, augment=m.augment, loss=m.loss)
        p |= dict(sampling=m.sampling, target="label")
        p |= dict(arch="efficientnet_lite0" if m.other else "resnet_plain")
        for a in derm.ATTRIBUTES:
            for i, level in enumerate(derm.LEVELS):
                for seed in range(seeds):
                    run = dict(p, labelled=f"{a}-{level}", seed=seed, **ABOUT)
                    run |= dict(run_id=f"{name} {a} {level} {seed}")
                    for part, place in derm.TESTED.items():
                        for metric in ADDS:
                            at = 0.3 if metric in LOW else 0.5 - 0.04 * i * sign
                            by = sign * added(metric, name, level, place)
                            value = at + by + rng.normal(0, 1e-4)
                            groups = ["all", *(["male"] if metric == "sensitivity" else [])]
                            rows += [
                                dict(run, metric=metric, part=part, group=g, value=value, n=9000)
                                for g in groups
                            ]
    return pd.DataFrame(rows)


def looked(sign=1, seeds=3):
    "Records as dermatology_analyses.ipynb leaves them."
    rng, rows = np.random.default_rng(1), []
    order = ("randaugment", "learned", "heuristic")[::sign]
    for seed in range(seeds):
        run = dict(seed=seed, run_id=f"looked {seed}", **ABOUT)
        for k, setup in enumerate(order):
            for pair in derm.PAIRS:
                rows += [
                    dict(run, metric="mmd2", setup=setup, group=" / ".join(pair), draw=d, n=300)
                    | dict(value=0.4 + 0.2 * k + rng.normal(0, 1e-3))
                    for d in range(3)
                ]
            for domain in derm.DOMAINS:
                rows += [
                    dict(run, metric="components", setup=setup, group=domain, share=s, n=300)
                    | dict(value=20 + 5 * k + rng.normal(0, 0.1))
                    for s in (0.6, 0.7, 0.8, 0.9, 0.95)
                ]
        for metric in ("sufficient quality", "top-1 accuracy", "top-3 accuracy"):
            for group, at in dict(generated=0.6 - 0.2 * (sign < 0), real=0.6).items():
                value = at + rng.normal(0, 1e-3)
                rows.append(dict(run, metric=metric, group=group, value=value, n=400))
    return pd.DataFrame(rows)


def schemes(sign=1, seeds=3):
    rng, rows = np.random.default_rng(2), []
    top = {  # sampling -> gains in distribution and in OOD 1, and of the gap
        "l0": (0, 0, 0),
        "l0.5": (0.02, 0.02, -0.02),
        "l1": (0.02, 0.02, -0.03),
        "l0+filtered": (0.06, 0.1, -0.05),
        "l0.5+filtered": (0.08, 0.08, -0.06),
        "l1+filtered": (0.08, 0.07, -0.07),
    }
    for sampling, (home, away, gap) in top.items():
        for seed in range(seeds):
            run = dict(sampling=sampling, seed=seed, run_id=f"{sampling} {seed}", group="all")
            for part, by in dict(id_test=home, test=away).items():
                for metric, v in dict(top3=by, top3_gap=gap).items():
                    value = 0.5 + sign * v + rng.normal(0, 1e-4)
                    rows.append(run | ABOUT | dict(part=part, metric=metric, value=value, n=9000))
    return pd.DataFrame(rows)


def verdicts(sign):
    t = worded.tested("phantom_people", trained(sign), looked(sign), schemes(sign))
    return t.set_index(t.claim + " | " + t.source)


AGAINST = "Adding generated data costs some performance"  # 3.3 against 3.2.3


@pytest.fixture(scope="module")
def both():
    return verdicts(1), verdicts(-1)


class TestClaims:
    def test_all_but_the_one_that_contradicts_another_can_be_supported(self, both):
        t = both[0]
        against = t.index.str.startswith(AGAINST)
        assert against.sum() == 1 and t.verdict[against].tolist() == ["contradicted"]
        assert set(t.verdict[~against]) == {"supported"}, t[t.verdict != "supported"].rival

    def test_and_contradicted(self, both):
        t = both[1]
        within = t.index.str.contains("minimal|no consistent improvement")  # of nothing, or little
        against = t.index.str.startswith(AGAINST)
        assert set(t.verdict[within | against]) == {"supported"}
        assert set(t.verdict[~within & ~against]) == {"contradicted"}, t.verdict

    def test_effects_are_those_of_the_records(self, both):
        t = both[0]
        of = t[t.index.str.contains("by 63.5 %")].iloc[0]  # 0.1 * 1.5, more skewed
        assert abs(of.effect - 15) < 0.1 and of.draws == 3 and of.data == "phantom_people"
        of = t[t.index.str.contains("by 18.6 %")].iloc[0]
        assert abs(of.effect + 0.2) < 0.01 and of.unit == "metric"

    def test_one_initialisation_says_nothing(self):
        t = worded.tested("phantom_people", trained(seeds=1), looked(seeds=1), schemes(seeds=1))
        assert set(t.verdict) == {"inconclusive"}

    def test_a_method_that_nobody_ran_leaves_its_sentences_out(self):
        few = trained()
        few = few[few.loss.ne("focal")]
        t = worded.tested("phantom_people", few, pd.DataFrame(), pd.DataFrame())
        assert set(t.verdict[t.claim.str.contains("focal")]) == {"not run"}
        assert (t.verdict == "supported").sum() > 30

    def test_data_without_an_attribute_have_no_sentence_about_it(self):
        for data, has in (("ham10000", {"sex", "age"}), ("fitzpatrick17k", {"skin"})):
            sides = [s for c in worded.claims_of(data) for pair in c.pairs for s in pair]
            assert {s["attribute"] for s in sides if "attribute" in s} == has
        assert NEAR not in {c["place"] for c in worded.cells_of("fitzpatrick17k")}


class TestPercentages:
    def test_each_is_one_line_of_the_reported_numbers(self):
        for h in (*worded.HEADLINES, *worded.HEADLINES_OF_SKIN):
            assert worded.printed_of(h, REPORTED).metric == h.metric
        strange = worded.Headline("x", "3", "skin", "fig7", "no such metric")
        with pytest.raises(ValueError, match="there must be 1"):
            worded.printed_of(strange, REPORTED)

    def test_every_percentage_of_a_result_is_there(self):
        units = REPORTED.unit.isin(["percent", "times", "percentage points"])
        results = REPORTED[units & ~REPORTED.artefact.str.startswith("table_")]
        cited = results.cited.notna() if "cited" in results else False
        results = results[results.checkpoint.isna() & ~cited & results.metric.ne("context")]
        known = [worded.printed_of(h, REPORTED).name for h in worded.HEADLINES]
        known += [worded.printed_of(h, REPORTED).name for h in worded.HEADLINES_OF_SKIN]
        left = results[~results.index.isin(known)]
        assert left.empty, left[["artefact", "metric", "printed"]]

    def test_what_can_be_recomputed(self):
        none = [pd.DataFrame()] * 5
        t = worded.percentages(REPORTED, *none).set_index("what").recomputed
        assert "+32.4 points or +51.9 %" in t["accuracy, test hospital"]  # 94.8 and 62.4
        assert t["discrepancy of domains"].startswith("18.57 %")  # 1 - 2.4345 / 2.9897
        assert "100 to 1000 times" in t["label efficiency"]
        assert "86.7 % less" in " ".join(t["gap between the sexes in it"])  # 1 - 1 / 7.5

    def test_without_runs_nothing_is_beside(self):
        t = worded.percentages(REPORTED, *[pd.DataFrame()] * 5)
        assert not t.data.any() and t.points.isna().all() and len(t) == 20
        assert worded.told_percentages(t) == []

    def test_ours_in_both_readings(self):
        skin, seen = worded.prepared(trained()), worded.analysed(looked())
        none = pd.DataFrame()
        t = worded.percentages(REPORTED, none, none, none, skin, seen).set_index("what")
        away = t.loc["high-risk sensitivity, OOD 1, more skewed"]  # 0.46 and 0.15 more
        assert abs(away.points - 15) < 0.1 and abs(away.percent - 1500 / 46) < 0.1
        gap = t[t.modality.eq("skin")].loc["gap between the sexes in it"]  # 0.3 and 0.2
        assert abs(gap.points - 10) < 0.1 and abs(gap.times - 1.5) < 0.01
        mmd = t.loc["discrepancy of domains"]
        assert math.isnan(mmd.points) and abs(mmd.percent - 25) < 0.2  # 0.6 instead of 0.8
        experts = t.loc["top-1 accuracy, synthetic images"]
        assert abs(experts.after - 0.6) < 0.01 and math.isnan(experts.percent)
        said = worded.told_percentages(t.reset_index())
        assert all(s["data"] == "phantom_people" for s in said) and len(said) == 5
        assert "the paper prints 63.5 %" in " ".join(s["text"] for s in said)
        told = " ".join(s["text"] for s in said)
        assert "15.0 points, or 32.6 %, higher than" in told  # of 46 %
        assert "25.0 %, lower than" in told and "10.0 points, or 33.3 %, lower than" in told
        worse = t.assign(points=-t.points, percent=-t.percent).reset_index()
        told = " ".join(s["text"] for s in worded.told_percentages(worse))
        assert "15.0 points, or 32.6 %, lower than" in told  # of the baseline's sensitivity
        assert "10.0 points, or 33.3 %, higher than" in told  # a gap that has grown
        shown = worded.percentages_shown(t.reset_index())
        assert shown["ours are of"].isin(["", "phantom_people"]).all()

    def test_patches_and_label_efficiency(self):
        rows = []
        for method, gain in (
            ("Baseline", 0),
            ("L & P cond", 0.1),
            ("L & P cond + Color augm", 0.2),
        ):
            for labelled, more in {"1": 0, "10": 0.05, "100": 0.1, "all": 0.2}.items():
                for part in ("id_val", "test"):
                    row = dict(metric="accuracy", group="all", part=part, method=method)
                    row |= dict(labelled=labelled, value=0.5 + more + gain, seed=0, n=9)
                    rows.append(row | ABOUT | dict(run_id=f"{method} {labelled}"))
        t = pd.DataFrame(rows)
        t = pd.concat([t.assign(setting=t.labelled), t[t.labelled == "100"].assign(setting="less")])
        none = pd.DataFrame()
        out = worded.percentages(REPORTED, t, none, none, none, none).set_index("what")
        first = out.loc["accuracy, test hospital"]
        assert abs(first.points - 20) < 1e-9 and abs(first.percent - 100 * 0.2 / 0.7) < 1e-9
        assert out.loc["label efficiency"].times == 100  # one label is as good as a hundred
        many = out.loc[["accuracy, test hospital, many labels"]]
        assert many.here.tolist() == ["L & P cond + Color augm, N = 100"]


class TestWords:
    def test_no_record_no_sentence(self):
        none = pd.DataFrame()
        assert worded.told_people(none, none) == worded.told_raters(none) == []
        assert worded.told_drawn(none) == worded.told_films(none, "x") == []
        assert worded.told_missed({}, "x") == []
        t = worded.tested("phantom_people", none, none, none)
        assert worded.told_claims(t, "h") == []

    def test_people(self):
        t = worded.prepared(trained())
        flipped = t[t.metric.eq("top3")].assign(metric="flips", value=0.25)
        said = [s["text"] for s in worded.told_people(t, flipped)]
        assert len(said) == 2 + len(derm.ATTRIBUTES)
        assert "OOD 1: baseline 46.0 %; the best of the generators 61.0 %" in said[1]
        assert "with another age" in said[-1] and "25.0 % (Baseline)" in said[-1]

    def test_images_by_condition_beside_the_ceiling(self):
        row = dict(metric="asked_label", conditioning="label", labelled="sex-less", seed=0)
        rows = [
            row | dict(group="all", value=0.9, n=700, reference=""),
            row | dict(group="alopecia areata", value=0.5, n=30, reference=""),
            row | dict(group="all", value=0.95, n=500, reference="ceiling"),
        ]
        said = worded.told_drawn(pd.DataFrame(rows).assign(data="phantom_people"))
        assert len(said) == 2 and "50.0 % of 30 images of those asked" in said[1]["text"]
        assert all(s["text"].endswith("of real ones 95.0 %.") for s in said)

    def test_films(self):
        t = pd.DataFrame(dict(part="test", method=["Baseline", *worded.SYNTHETIC, ktena.PERFECT]))
        t = t.assign(auc=[0.7, 0.72, 0.74, 0.8], gap=0.03)
        (said,) = worded.told_films(t, "phantom_radiograph")
        assert "a perfect generator 80.0 %; the best of the generators 74.0 %" in said["text"]

    def test_missed(self):
        t = pd.DataFrame([[True, False], [False, False]], ["a", "b"])
        (said,) = worded.told_missed({"OOD 1, male": t}, "x")
        assert said["text"] == "OOD 1, male: of 2 images of high risk all runs miss 1 (a), 0 (b)."


def test_first_pictures_are_the_first_and_rows_that_are_missing_are_left_out():
    made = pd.DataFrame(dict(image_id=["c", "a", "b", "d"], path="x"))
    row = pd.Series(["skin female", "skin male", None, "skin female"], made.index)
    t = worded.first_pictures(made, row, pd.Series("", made.index), "phantom_people", 1)
    assert t.image_id.tolist() == ["c", "a"] and set(t.data) == {"phantom_people"}
    assert worded.first_pictures(made[:0], row[:0], row[:0], "x").empty


def test_no_experiment_reaches_the_sentences():
    "They may change without a run being out of date."
    folder = ROOT / "nbs" / "papers" / "ktena2023"
    for file in folder.glob("*.ipynb"):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        tagged = any("parameters" in c["metadata"].get("tags", []) for c in cells)
        text = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        if tagged and file.stem != "report":
            assert "ktena2023_sentences" not in text


@pytest.mark.parametrize("size, count, has", [(96, 5, (24, 12, 6)), (224, 6, (28, 14, 7))])
def test_printed_attention_stands_at_the_nearest_levels(size, count, has):
    from skinrepro.ddpm import nearest_levels

    assert nearest_levels(size, count, (32, 16, 8)) == has
    assert nearest_levels(64, 4, (32, 16, 8)) == nearest_levels(256, 6, (32, 16, 8)) == (32, 16, 8)


def test_what_the_printed_preprocessing_does_and_does_not():
    "Anti-aliasing changes nothing in enlarging; most widths of the blur vanish in rounding."
    import torch
    from torch.nn.functional import interpolate

    x = 255 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    a, b = (
        interpolate(x, size=(256, 256), mode="bilinear", antialias=f, align_corners=False)
        for f in (True, False)
    )
    assert (a - b).abs().max() < 0.01  # grey levels
    sigma = np.abs(np.random.default_rng(0).normal(0, 0.2, 10000))
    beside = np.exp(-1 / (2 * sigma**2))  # weight of a neighbour, of the centre's
    moved = 255 * beside / (1 + 2 * beside)  # of a step from black to white, grey levels
    assert 0.8 < (moved < 0.5).mean() < 0.9


def test_every_run_has_a_forecast():
    "Also of dermatology's cascade, whose section the modality does not name."
    from skinrepro.grid import read_grid

    folder, seen = ROOT / "nbs" / "papers" / "ktena2023", {}
    for run in read_grid(folder, "paper", "dermatology_images_other,dermatology_analyses"):
        if run.section not in seen:
            works, disk = ktena.cost(run)
            seen[run.section] = [w.kind for w in works]
            assert disk > 0 and len(works) > 1
    drawn = seen["dermatology_images_other"]
    assert len(drawn) == 3 and "DDPM of 64 px" in drawn[1] and "DDPM of 256 px" in drawn[2]
    assert "resnet152 at 224 px" in seen["dermatology_analyses"][1]
    run = next(
        r for r in read_grid(folder, "mini", "cascade_images") if r.section == "cascade_images"
    )
    assert "DDPM of 32 px" in ktena.cost(run)[0][1].kind  # what the grid names, not the modality
