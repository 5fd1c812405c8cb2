"""ktena2023: hospitals, skewed sets, what is drawn, what trains, methods, claims, and the report on
made-up records.
"""

import re

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from skinrepro import runs
from skinrepro.core import provenance
from skinrepro.grid import read_grid
from skinrepro.manifest import make
from skinrepro.papers import ktena2023 as ktena
from skinrepro.papers import ktena2023_dermatology as skin
from skinrepro.papers import ktena2023_radiology as radiology
from skinrepro.papers import ktena2023_rivals as rivals
from skinrepro.records import number_rows

PAPER = ROOT / "nbs" / "papers" / "ktena2023"
N = {"hospital 0": 40, "hospital 3": 60, "hospital 4": 60, "hospital 1": 10, "hospital 2": 20}


@pytest.fixture
def patches():
    rows = []
    for domain, n in N.items():
        part = {"hospital 1": "val", "hospital 2": "test"}.get(domain, "train")
        rows += [
            dict(image_id=f"{domain[-1]}-{i}", label=ktena.LABELS[i % 2], domain=domain, split=part)
            for i in range(n)
        ]
    return make(pd.DataFrame(rows).assign(path="a.png"), source="phantom")


def labelled(m):
    return m[m.split.eq("train") & m.label.notna()].domain.value_counts().to_dict()


class TestSkew:
    def test_each_of_two_hospitals_keeps_n(self, patches):
        m = ktena.skew(patches, "10")
        assert labelled(m) == {"hospital 0": 40, "hospital 3": 10, "hospital 4": 10}
        bare = m[m.split == "unlabelled"]
        assert bare.label.isna().all() and len(bare) == 100 and len(m) == len(patches)
        assert m[m.split.isin(["val", "test"])].label.notna().all()

    def test_or_both_together(self, patches):
        m = ktena.skew(patches, "10", "together")
        assert sum(labelled(m).values()) - 40 == 10

    def test_all_and_none(self, patches):
        assert ktena.skew(patches, "all") is patches
        assert labelled(ktena.skew(patches, "none")) == {}

    def test_more_labels_are_the_same_ones_and_more(self, patches):
        few, more = (ktena.skew(patches, n) for n in ("5", "20"))
        ids = [set(m[m.split == "train"].image_id) for m in (few, more)]
        assert ids[0] < ids[1]

    @pytest.mark.parametrize("n", ["0", "-3", "some", "61"])
    def test_a_number_that_is_none_is_refused_and_the_remedy_works(self, patches, n):
        with pytest.raises(runs.ParameterError, match="a number from 1 to 60"):
            ktena.skew(patches, n)
        ktena.skew(patches, "1")


class TestMixture:
    def real(self):
        n = {"hospital 0": 12, "hospital 3": 6, "hospital 4": 4}
        rows = [dict(label=ktena.LABELS[i % 2], domain=h) for h, k in n.items() for i in range(k)]
        return pd.DataFrame(rows)

    def test_real_images_are_compared_in_the_mixture_that_was_drawn(self):
        made = ktena.specs("label_property", "phantom_histology", 12)
        n = ktena.as_drawn(self.real(), made).groupby(["label", "domain"]).size()
        assert len(n) == 6 and set(n) == {2}

    def test_or_as_they_are_where_no_hospital_was_asked(self):
        made = ktena.specs("label", "phantom_histology", 12)
        assert len(ktena.as_drawn(self.real(), made)) == 22


class TestWishes:
    def test_labels_as_they_are_hospitals_alike(self):
        t = ktena.specs("label_property", "phantom_histology", 600, share_tumor=1 / 3)
        n = pd.crosstab(t.label, t.domain)
        assert (n.loc["tumor"].between(66, 67)).all() and (n.loc["normal"].between(133, 134)).all()

    def test_a_label_alone_has_no_hospital(self):
        t = ktena.specs("label", "pcam", 10)
        assert t.domain.isna().all() and t.image_id.is_unique and t.seed.is_unique

    def test_real_patches_have_none_to_ask_for(self):
        with pytest.raises(runs.ParameterError, match="conditioning='label'"):
            ktena.conditions_of("label_property", "pcam")
        assert ktena.conditions_of("label", "pcam").size == 2


class TestTraining:
    def made(self, n=30):
        rows = dict(image_id=[f"s{i}" for i in range(n)], label=["tumor", "normal"] * (n // 2))
        return make(pd.DataFrame(rows).assign(path="s.png", parent_id="none"), source="synthetic")

    def sampled(self, train, **p):
        usual = dict(trains="mixed", share_real=0.25, steps=400, batch_size=10, looks=4, seed=0)
        sampler = ktena.sampler_of(train, usual | p)
        return [sampler(epoch) for epoch in range(4)]

    def test_a_mixture_has_its_share_whatever_the_numbers(self, patches):
        real = patches[patches.split == "train"]
        train = pd.concat([real, self.made()], ignore_index=True)
        drawn = np.concatenate(self.sampled(train))
        share = (drawn < len(real)).mean()  # 4000 draws: sd 0.0068
        assert len(drawn) == 4000 and abs(share - 0.25) < 0.03

    def test_generated_first_then_real(self, patches):
        real = patches[patches.split == "train"]
        train = pd.concat([real, self.made()], ignore_index=True)
        looks = self.sampled(train, trains="pretrain", share_real=0.5)
        assert [bool((k < len(real)).all()) for k in looks] == [False, False, True, True]
        assert all((k >= len(real)).all() for k in looks[:2])

    def test_every_method_trains_as_long(self, patches):
        real = patches[patches.split == "train"]
        alone = self.sampled(real, trains="real")
        assert sum(map(len, alone)) == 4000 and set(np.concatenate(alone)) <= set(range(len(real)))

    def test_the_truth_is_known_of_phantoms_only(self):
        with pytest.raises(runs.ParameterError, match="n_synthetic"):
            ktena.truth(dict(data="phantom_histology", n_synthetic=0))
        with pytest.raises(runs.ParameterError, match="phantom_histology"):
            ktena.truth(dict(data="camelyon17", n_synthetic=8))


def settings(**p):
    usual = dict(trains="real", conditioning="", augment="none", target="label", labelled="10")
    return usual | dict(seed=0, part="id_val", group="all", select_on="last") | p


class TestMethods:
    def test_the_six_of_figure_3_and_a_perfect_one(self):
        t = pd.DataFrame(
            [
                settings(trains=m.trains, conditioning=m.conditioning, augment=m.augment)
                for m in ktena.METHODS.values()
            ]
            + [settings(trains="truth"), settings(trains="mixed"), settings(target="cell")]
        )
        assert ktena.method_of(t).tolist() == [*ktena.METHODS, ktena.PERFECT, "", ""]

    def test_gain_is_over_the_baseline_of_the_same_labels_and_initialisation(self):
        rows = [
            settings(value=0.6, n=100, metric="accuracy", run_id="a"),
            settings(value=0.7, n=100, metric="accuracy", run_id="b", seed=1),
            settings(
                value=0.9,
                n=100,
                metric="accuracy",
                run_id="c",
                seed=1,
                trains="synthetic",
                conditioning="label",
            ),
        ]
        t = ktena.with_gain(ktena.with_settings(pd.DataFrame(rows), "mini"))
        gain = t[t.metric.eq("gain") & t.setting.eq("more") & t.method.eq("L cond")]
        assert np.allclose(gain.value, [0.2]) and gain.seed.tolist() == [1]

    def test_a_gap_needs_all_hospitals(self):
        t = pd.DataFrame(dict(label="tumor", called="tumor", domain=["hospital 0"] * 5))
        with pytest.raises(runs.ParameterError, match="hospital 3, hospital 4"):
            ktena.accuracy_rows({"id_val": t.assign(select_on="last", epoch=0)})
        alone = ktena.accuracy_rows({"id_val": t.assign(select_on="last", epoch=0)}, gaps=())
        assert alone.metric.tolist() == ["accuracy", "accuracy"]


# the report on made-up records: the more is generated and coloured, the better, or the worse
BETTER = {"Baseline": 0, "Color augm": 1, "L cond": 2, "L & P cond": 3}
BETTER |= {"L cond + Color augm": 4, "L & P cond + Color augm": 5, ktena.PERFECT: 6, "": 2}


def grid_of(profile):
    "Runs of the paper, of the rivals of generation and of HAM10000, where they have the profile."
    found = {r.id: r for r in read_grid(PAPER, profile)}
    others = [s for sections in rivals.SECTIONS.values() for s in sections]
    for section in (*others, "ham_real", "ham_mixed"):
        if profile == "mini" or section.endswith("_rivals"):
            found |= {r.id: r for r in read_grid(PAPER, profile, section)}
    return found.values()


def of_classifier(run, rng, sign):
    p = run.parameters
    if p["data"] in radiology.STUDIES:
        return of_films(p, rng, sign)
    if p["data"] in skin.STUDIES:
        return of_people(p, rng, sign)
    method = ktena.method_of(pd.DataFrame([p])).iloc[0]
    few = {"1": 0, "10": 1, "100": 2, "1000": 3, "10000": 4}.get(p["labelled"], 5)
    at = 0.7 + 0.01 * few + sign * 0.01 * BETTER[method] * (1.5 - 0.1 * few)
    rows = []
    for part, hospitals in ktena.TABLE_A1.items():
        for h in [*hospitals, "all"]:
            n = hospitals.get(h, sum(hospitals.values()))
            rows.append(dict(metric="n_images", part=part, group=h, value=n, n=n))
            if part in ktena.TESTED:
                value = at - 0.05 * (part == "test") + rng.normal(0, 1e-4)
                rows.append(dict(metric="accuracy", part=part, group=h, value=value, n=n))
    gap = 0.2 - sign * 0.02 * BETTER[method] + rng.normal(0, 1e-4)
    rows.append(dict(metric="accuracy_gap", part="id_val", group="all", value=gap, n=6011))
    sizes = number_rows(dict(n_generated=p["n_synthetic"] or 2000, train_steps=p["steps"]), 9)
    out = pd.concat([pd.DataFrame(rows), sizes], ignore_index=True)
    return out.assign(select_on=p["select_on"], images_guidance=p["guidance"] or "")


def of_people(p, rng, sign):
    "The more is generated, the more is right and the nearer are the groups."
    better = 0.01 * sign * ["", "label", "label_property"].index(p["conditioning"] or "")
    better *= p["trains"] != "real"
    right = ("top3", "balanced_top3", "sensitivity")
    apart = ("sensitivity_gap", "central_estimate", "flips", "top3_gap")
    rows = [
        dict(metric=m, part=part, group=group, value=at + by + rng.normal(0, 1e-4), n=9000)
        for part in skin.TESTED
        for of, at, by in ((right, 0.6, better), (apart, 0.2, -better))
        for m in of
        for group in ("all", *skin.ATTRIBUTES["sex"])
    ]
    return pd.DataFrame(rows).assign(select_on=p["select_on"])


def of_films(p, rng, sign):
    "Areas: the more is generated, the better; more so elsewhere; an atelectasis hardly."
    method = radiology.method_of(pd.DataFrame([p])).iloc[0]
    better = {"Label conditioning": 2, "Label & property conditioning": 3, ktena.PERFECT: 6}
    rows = []
    for part, printed in (("id_test", 13332), ("test", 17723)):
        away = part == "test"
        for f in (*radiology.FINDINGS, "mean"):
            by = 0.01 * sign * better.get(method, 0) * (1 + 0.5 * away)
            by *= 0.3 if f == "atelectasis" else 2 if f == "cardiomegaly" else 1
            where = dict(part=part, finding=f)
            for group in ("all", *radiology.SEXES):
                value = 0.8 - 0.1 * away + by + rng.normal(0, 1e-4)
                rows.append(dict(metric="auc", group=group, value=value, n=printed) | where)
            gap = 0.05 - 0.5 * by + rng.normal(0, 1e-4)
            rows.append(dict(metric="auc_gap", group="all", value=gap, n=5000) | where)
    return pd.DataFrame(rows).assign(select_on=p["select_on"])


def of_images(run, rng, sign):
    if run.parameters["data"] in radiology.STUDIES:
        asked = {f"{k}_{f}": 0.85 for k in ("found", "spared") for f in radiology.FINDINGS}
        asked |= dict(asked_label=0.9, asked_sex=0.95)
        ceiling = number_rows(asked, 1500).assign(reference="ceiling")
        return pd.concat([number_rows(asked, 2000), ceiling], ignore_index=True)
    asked = dict(asked_label=0.9, asked_hospital=0.95, asked_both=0.86)
    rows = [number_rows(asked, 2000), number_rows(asked, 600, "hospital 3")]
    rows += [number_rows({k: 0.99 for k in asked}, 800).assign(reference="ceiling")]
    rows += [number_rows(dict(red_off=0.5, green_off=-1.0, blue_off=2.0), 2000)]
    return pd.concat(rows, ignore_index=True)


def of_analyses(run, rng, sign):
    "Learned augmentations are between the others; generated images are as recognisable as real."
    rows = []
    for k, setup in enumerate(("randaugment", "learned", "heuristic")[::sign]):
        for pair in skin.PAIRS:
            group = " / ".join(pair)
            rows += [
                dict(metric="mmd2", setup=setup, group=group, draw=d, n=300)
                | dict(value=0.4 + 0.2 * k + rng.normal(0, 1e-3))
                for d in range(3)
            ]
        rows += [
            dict(metric="components", setup=setup, group=domain, share=share, n=300)
            | dict(value=20.0 + 5 * k + rng.normal(0, 0.1))
            for domain in skin.DOMAINS
            for share in (0.6, 0.7, 0.8, 0.9, 0.95)
        ]
    rows += [
        dict(metric=question, group=group, value=0.6 + rng.normal(0, 1e-3), sd=0.1, n=400)
        for question in ("sufficient quality", "confidence", "top-1 accuracy", "top-3 accuracy")
        for group in ("generated", "real")
    ]
    return pd.DataFrame(rows)


def of_generator(run, rng, sign):
    return number_rows(dict(loss=0.1, parameters=1e6), 100)


MADE = dict(classifier=of_classifier, images=of_images, generator=of_generator)
MADE |= dict(dermatology_analyses=of_analyses)
DATA = dict(paper="camelyon17", mini="phantom_histology")


def report(folder, monkeypatch, profile, sign=1, made=True):
    "Records of every run of a profile (or of none), and the report on them."
    for name, place in dict(RUNS="runs", FIGURES="figs", COMMITTED="nothing").items():
        monkeypatch.setenv(f"SKINREPRO_{name}", str(folder / place))
    rng, about = np.random.default_rng(0), ("0" * 16, "made up", "0" * 64)
    for run in grid_of(profile) if made else ():
        if run.notebook.stem not in MADE:
            continue
        rows = MADE[run.notebook.stem](run, rng, sign)
        stamp = provenance(run.parameters["data"], *about, profile, "cpu")
        runs.finish(run, rows.assign(inventory_hash="0" * 16), stamp)
    asked = dict(data=DATA[profile], profile=profile)
    runs.execute_notebook(PAPER / "report.ipynb", folder / "report.ipynb", asked)
    return folder / "figs" / "ktena2023"


@pytest.fixture(scope="module")
def better(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield report(tmp_path_factory.mktemp("better"), patch, "paper")


@pytest.fixture(scope="module")
def worse(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield report(tmp_path_factory.mktemp("worse"), patch, "mini", sign=-1)


def test_dermatology_is_of_the_data_of_its_profile(better, worse):
    for at, of in ((better, "ham10000"), (worse, "phantom_people")):
        for name in ("fig7", "figG4", "figG5a", "figG6a", "figG7a", "figG10a", "figG10b"):
            assert set(pd.read_csv(at / f"{name}.csv").data) == {of}, name
    said = (worse / "summary.md").read_text()
    assert "chestxray14" not in said and "ham10000" not in said


def test_real_dermatoscopy_is_told_by_site_and_sex(worse, better):
    t = pd.read_csv(worse / "ham10000.csv")
    assert set(t.data) == {"ham10000"} and set(t["where"]) == set(skin.TESTED.values())
    t = t[t.what.eq("sensitivity, male")].set_index(["trains", "augment", "where"]).average
    assert len(t) == 9  # two ways with real images and one mixed, at three places
    assert np.allclose(t["real"], 0.6, atol=1e-3) and np.allclose(t["mixed"], 0.58, atol=1e-3)
    assert "CC BY-NC 4.0" in (worse / "ham10000.md").read_text(encoding="utf-8")
    assert not (better / "ham10000.csv").exists()


def test_every_method_and_number_of_labels_has_its_point(better):
    t = pd.read_csv(better / "fig3a.csv")
    assert set(t.method) == {*ktena.METHODS, ktena.PERFECT}
    for setting in ("less", "more"):
        assert set(t.method[t.setting == setting]) == set(ktena.METHODS)
    t = pd.read_csv(better / "figG2a.csv", dtype=dict(labelled=str))
    n = t.groupby("method").labelled.nunique()
    assert n["Baseline"] == n["L cond"] == 6 and n["L & P cond + Color augm"] == 4
    assert (t.draws == 5).all()


def test_counts_of_the_paper_agree_with_its_table(better):
    t = pd.read_csv(better / "tableA1.csv", keep_default_na=False)
    assert len(t) == 16 and set(t.verdict) == {"equal"}, t[t.verdict != "equal"]
    assert t[t.split == "OOD test"].hospital.tolist() == ["2", "total"]


def test_printed_checkpoints_stand_beside(better):
    t = pd.read_csv(better / "fig3_printed.csv", keep_default_na=False)
    assert len(t) == 16 and "not run" not in set(t.verdict)


def test_claims_can_be_supported_and_contradicted(better, worse):
    first, second = (pd.read_csv(at / "claims.csv") for at in (better, worse))
    assert set(first.verdict) == {"supported"}, first[["claim", "verdict", "effect"]]
    compared = second[second.claim.str.contains("both baselines|the gap|generalizes")]
    assert set(compared.verdict) == {"contradicted"}, compared[["claim", "verdict"]]
    assert "PHANTOM" in (worse / "claims.md").read_text(encoding="utf-8").upper()


def test_every_method_for_radiographs_has_its_point(better, worse):
    for at, perfect in ((better, set()), (worse, {ktena.PERFECT})):
        t = pd.read_csv(at / "fig5.csv")
        assert set(t.method) == {*radiology.METHODS} | perfect
        assert len(t) == 2 * t.method.nunique() and (t.draws == 5).all()
        t = pd.read_csv(at / "figG3.csv")
        assert set(t.finding) == set(radiology.FINDINGS)
        assert (t.groupby(["part", "method"]).finding.nunique() == 5).all()


def test_what_is_printed_of_radiographs_stands_beside_both_readings(better):
    t = pd.read_csv(better / "radiology_printed.csv").set_index(["what", "method"])
    gain = t.loc["AUC gain, cardiomegaly", "Label conditioning"]
    assert gain.printed == "21.1 percent"  # made up: 2 * 0.01 * 2 * 1.5 on 0.7
    assert abs(gain.points - 6) < 0.1 and abs(gain.percent - 600 / 70) < 0.1
    gap = t.loc["fairness (AUC) gap reduction, mean", "Label conditioning"]
    assert abs(gap.points - 1.5) < 0.1 and abs(gap.percent - 30) < 1


def test_claims_about_radiographs_can_be_supported_and_contradicted(better, worse):
    first, second = (pd.read_csv(at / "radiology_claims.csv") for at in (better, worse))
    assert set(first.verdict) == {"supported"}, first[["claim", "verdict", "effect"]]
    marginal = second.claim.str.contains("marginally")
    assert second.verdict[marginal].tolist() == ["supported"]
    assert set(second.verdict[~marginal]) == {"contradicted"}, second[["claim", "verdict"]]


def test_claims_about_dermatology_can_be_supported_and_contradicted(better, worse):
    first, second = (pd.read_csv(at / "dermatology_claims.csv") for at in (better, worse))
    for t, verdict, data in ((first, "supported", "ham10000"), (second, "contradicted", "phantom")):
        t = t.set_index("claim")
        away = t[t.index.str.contains("the paper: by 18.6 %|fewer components, all|by 27.3 %")]
        assert len(away) == 3 and set(away.verdict) == {verdict}, away.verdict
        assert away.data.str.contains(data).all()
    assert (first.data == "fitzpatrick17k").sum() == 16  # of skin types: another data set
    assert "PHANTOM" in (worse / "dermatology_claims.md").read_text(encoding="utf-8")
    assert set(second.data) <= {"phantom_people"} | {np.nan}


def test_percentages_stand_beside_ours_in_both_readings(better, worse):
    for at, sign in ((better, 1), (worse, -1)):
        t = pd.read_csv(at / "printed_percentages.csv").set_index("what")
        gain = t.loc["high-risk sensitivity, OOD 1, more skewed"]
        assert gain.printed == "63.5 %" and gain.draws >= 2
        assert abs(gain.points - sign * 2) < 0.1 and abs(gain.percent - sign * 200 / 60) < 0.1
        assert t.loc["accuracy, test hospital"].recomputed.startswith("released checkpoints: +32.4")
        phantoms = t.data.dropna().str.contains("phantom").all()
        assert phantoms if sign < 0 else not t.data.dropna().str.contains("phantom").any()
    text = (worse / "printed_percentages.md").read_text(encoding="utf-8")
    assert "PHANTOM" in text.splitlines()[2].upper()


def test_every_sentence_of_the_summary_stands_below_its_data(better, worse):
    said = (worse / "summary.md").read_text(encoding="utf-8")
    for heading in ("Photographs of people", "The percentages in print", "Radiographs"):
        under = said.split(f"## {heading}\n")[1].split("\n## ")[0]
        assert under.strip().startswith("**PHANTOM"), heading
        assert "Data:" not in under
    assert "The paper's sentences about dermatology" in said
    short = said.split("## In short\n")[1].split("\n## ")[0]
    lines = [line for line in short.splitlines() if "sentences of the paper" in line]
    for name, line in zip(("claims", "radiology_claims", "dermatology_claims"), lines, strict=True):
        verdicts = pd.read_csv(worse / f"{name}.csv").verdict
        for verdict, n in verdicts[verdicts != "not run"].value_counts().items():
            assert f" {n} {verdict}" in line, name
    asked = said.split("## Are the patches what was asked?\n")[1].split("\n## ")[0]
    told = re.findall(r"Label conditioning, (\w+) labels?: asked label", asked)
    assert told and told == sorted(told, key=lambda n: float(n.replace("all", "inf")))
    assert "PHANTOM" not in (better / "summary.md").read_text(encoding="utf-8")


def test_a_judge_of_radiographs_is_quoted_beside_its_ceiling(worse):
    t = pd.read_csv(worse / "radiology_asked.csv")
    assert set(t.what) == {"generated", "ceiling"}
    text = (worse / "summary.md").read_text(encoding="utf-8")
    assert "asked sex in 95.0 % of 2000 images; of real ones 95.0 %" in text
    assert "The other archive costs the baseline 10.0 points" in text


def test_settings_of_radiographs_are_the_printed_ones(better):
    for name in "abc":
        t = pd.read_csv(better / f"tableE1{name}.csv", dtype=str, keep_default_na=False)
        differ = t.hyperparameter[t.radiology != t["radiology, here"]].tolist()
        assert differ == (["pretraining dataset"] if name == "a" else [])


def test_without_any_run_the_report_says_so(tmp_path, monkeypatch):
    at = report(tmp_path, monkeypatch, "mini", made=False)
    for name in ("radiology_claims", "dermatology_claims"):
        assert set(pd.read_csv(at / f"{name}.csv").verdict) == {"not run"}
    assert pd.read_csv(at / "printed_percentages.csv").points.isna().all()
    assert not (at / "fig1_patches.png").exists()
    assert pd.read_csv(at / "radiology_printed.csv").points.isna().all()
    assert set(pd.read_csv(at / "claims.csv").verdict) == {"not run"}
    assert "Nothing was run" in (at / "summary.md").read_text(encoding="utf-8")
    assert (at / "tableE1b.md").is_file() and (at / "fig2.png").is_file()
    for name in rivals.SECTIONS:
        assert set(pd.read_csv(at / f"{name}_rivals_claims.csv").verdict) == {"not run"}
        assert not (at / f"{name}_rivals.csv").exists()
    assert not (at / "fig3a.png").exists()


def test_generation_stands_beside_fairness_from_real_images(better, worse):
    for at, verdict in ((better, "supported"), (worse, "contradicted")):
        for name in rivals.SECTIONS:
            t = pd.read_csv(at / f"{name}_rivals_claims.csv").dropna(subset="effect")
            gaps = t[t.metric.str.contains("gap") | t.metric.eq("auc")]  # no shares of few images
            assert len(gaps) >= 4 and set(gaps.verdict) == {verdict}, gaps[["claim", "verdict"]]
            assert (at / f"{name}_rivals_plot.png").is_file()
    assert "than group DRO" in (worse / "summary.md").read_text(encoding="utf-8")


def test_each_method_has_as_many_initialisations_as_its_rivals(worse):
    t = pd.read_csv(worse / "dermatology_rivals.csv")
    n = t[t.method.ne("Oversampling")].groupby("labelled").draws.unique()
    assert set(n.index) == {"sex-more", "skin-most"} and all(v.tolist() == [5] for v in n)
    assert set(t.method) == set(rivals.COMPARED)
    films = pd.read_csv(worse / "radiology_rivals.csv")
    assert set(films.method) == set(rivals.COMPARED) - {"Oversampling"}
    assert (films.draws == 5).all()
    seven = pd.read_csv(worse / "fig7.csv").groupby("method").draws.unique().map(list)
    few = {"Other pretraining", "Oversampling", "Focal loss"}
    assert few < set(seven.index) and all(v == [2 if m in few else 5] for m, v in seven.items())


def test_draws_of_a_classifier_share_their_images():
    "Five initialisations on the images of one generator, whose seed is another: all belong to it."
    from skinrepro.grid import asked_for

    grid = [r for r in read_grid(PAPER, "mini", "synthetic") if r.notebook.stem == "classifier"]
    grid = [r for r in grid if r.parameters["trains"] == "synthetic"]
    records = pd.DataFrame([dict(run_id=r.id, seed=r.parameters["seed"]) for r in grid])
    assert set(records.seed) == {0, 1, 2, 3, 4} and asked_for(records, grid).all()
    stray = records.assign(run_id="classifier-000000000000")
    assert not asked_for(stray, grid).any()
