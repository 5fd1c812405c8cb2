"""ktena2023, radiographs: what is known of a report, what is drawn, areas that are not defined,
judges of several labels, methods, and which modality a data set is of.
"""

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from skinrepro import runs
from skinrepro.core import has_data
from skinrepro.grid import read_grid
from skinrepro.papers import ktena2023 as ktena
from skinrepro.papers import ktena2023_radiology as radiology
from skinrepro.phantom_radiograph import FINDINGS, LABELS, NO_FINDING, co_occurrence, finding_shares

PAPER = ROOT / "nbs" / "papers" / "ktena2023"
EFFUSION, HEART = FINDINGS.index("pleural effusion"), FINDINGS.index("cardiomegaly")


def reports(labels, unknown=None, group=None):
    n = len(labels)
    return pd.DataFrame(
        dict(
            labels=pd.array(labels, "string"),
            unknown=unknown or [""] * n,
            group=pd.array(group or ["male"] * n, "string"),
        )
    )


@pytest.mark.parametrize("data", ["nih_chestxray14", "ham10000", "pcam"])
def test_a_record_names_the_photographs_that_publish_looks_at(data):
    "Else no run on them could ever be published: its photographs would count as changed."
    if not has_data(data):
        pytest.skip(f"needs $SKINREPRO_DATA/{data}")
    from skinrepro.photographs import hash_today

    labelled = "sex-less" if data == "ham10000" else "all"
    p = dict(data=data, fraction=1.0, unlabelled=0, missing="error", seed=0, labelled=labelled)
    _, inventory = ktena.modality_of(data).load(p, 64)
    assert inventory == hash_today(ktena.needed(p))


class TestModality:
    def test_data_sets_have_one_each(self):
        assert ktena.modality_of("camelyon17") is ktena.HISTOPATHOLOGY
        assert ktena.modality_of("phantom_radiograph") is radiology.RADIOLOGY
        with pytest.raises(ValueError, match="phantom_radiograph"):
            ktena.modality_of("mri")

    def test_every_data_set_that_a_parameter_may_name_has_one(self):
        for data in runs.ranges(PAPER)["data"]:
            assert data in ktena.modality_of(data).studies

    def test_histopathology_does_as_before(self):
        how = ktena.HISTOPATHOLOGY
        p = dict(conditioning="label_property", data="phantom_histology", seed=3)
        assert how.asked(p, 24).equals(ktena.specs(p["conditioning"], p["data"], 24, seed=3))
        train = pd.DataFrame(dict(label=["tumor"] * 3 + ["normal"] * 7))
        asked = how.asked(p | dict(guidance=1.5), 50, train)
        assert asked.equals(ktena.specs(p["conditioning"], p["data"], 50, 0.3, 1.5, 3))
        assert how.guided == ("label",) and how.tests == ("id_val", "test") and not how.several


class TestReports:
    def test_present_absent_and_unknown_are_three_things(self):
        m = reports(["cardiomegaly|edema", NO_FINDING, pd.NA], ["pleural effusion", "", ""])
        states = radiology.states_of(m)
        assert states[0].tolist() == [0, 0, 1, -1, 1]
        assert (states[1] == 0).all() and (states[2] == -1).all()
        vectors = radiology.conditions_of("label").encode(radiology.told(m))
        assert vectors[0].tolist() == [-1, -1, 1, 0, 1]
        assert (vectors[1] == -1).all() and (vectors[2] == 0).all()

    def test_sex_is_told_only_with_the_property(self):
        m = reports([NO_FINDING], group=["female"])
        with_sex = radiology.conditions_of("label_property").encode(radiology.told(m))
        assert with_sex[0, -2:].tolist() == [1, 0] and with_sex.shape[1] == 7
        assert radiology.conditions_of("label").size == 5

    def test_guidance_moves_away_from_nothing_known(self):
        conditions = radiology.conditions_of("label_property")
        told = conditions.encode(radiology.told(reports(["edema"], group=["female"])))
        left = conditions.hidden(told, radiology.RADIOLOGY.guided)
        assert left[0].tolist() == [0] * 7 and told[0].any()

    def test_open_reports_train_the_generator_alone(self):
        m = reports(["edema", NO_FINDING, "edema", NO_FINDING], ["", "edema", "edema", ""])
        m = m.assign(split=pd.array(["train", "train", "test", "val"], "string"))
        parts = radiology._parted(m)
        assert parts.split.tolist() == ["train", "uncertain", "val"]
        assert "uncertain" in radiology.RADIOLOGY.learns
        assert "uncertain" not in ("train", "val", *radiology.RADIOLOGY.tests)

    def test_labels_cannot_be_taken_away(self):
        m = reports([NO_FINDING])
        with pytest.raises(runs.ParameterError, match="labelled='all'"):
            radiology.skewed(m, dict(labelled="10"))
        assert radiology.skewed(m, dict(labelled="all")) is m

    def test_nobody_is_on_both_sides(self):
        n = 3000
        m = reports([NO_FINDING] * n).assign(
            patient_id=pd.array([f"p{i // 3}" for i in range(n)], "string"), sex="Male"
        )
        parts = radiology._dealt(m)
        assert (parts.groupby("patient_id").split.nunique() == 1).all()
        share = parts.split.value_counts(normalize=True)
        assert abs(share["train"] - 0.9) < 0.002 and abs(share["id_test"] - 0.06) < 0.002


class TestWishes:
    P = dict(conditioning="label_property", data="phantom_radiograph", seed=0)

    def train(self, n=4000):
        from skinrepro.phantom_radiograph import radiograph_table

        t = radiograph_table(n, "archive 0", name="wishes")
        return pd.DataFrame(dict(labels=t["labels"].replace("", NO_FINDING)))

    def test_findings_come_together_as_they_do(self):
        train = self.train()
        t = radiology.asked(self.P, 4000, train)
        asked, real = (co_occurrence(radiology.states_of(x.assign(group="x"))) for x in (t, train))
        assert (asked - real).abs().max().max() < 0.02
        told = co_occurrence(finding_shares("archive 0"))  # Figure 4a, in closed form
        assert (asked - told).abs().max().max() < 0.12  # 4000 people: a row has 280 at least

    def test_sexes_alike_within_each_combination(self):
        t = radiology.asked(self.P, 2000, self.train())
        n = pd.crosstab(t["labels"], t.group)
        assert (n.female - n.male).abs().max() <= 1
        assert (t.sex == t.group).all() and t.image_id.is_unique and t.seed.is_unique

    def test_findings_alone_ask_for_no_sex(self):
        t = radiology.asked(self.P | dict(conditioning="label"), 50, self.train())
        assert t.group.isna().all() and "sex" not in t
        both = radiology.asked(self.P, 50, self.train())
        assert (t.seed == both.seed).all() and (t["labels"] == both["labels"]).all()

    def test_without_a_training_set_each_finding_alone(self):
        t = radiology.asked(self.P, 60)
        assert set(t["labels"]) == set(LABELS)
        with pytest.raises(ValueError, match="at least one"):
            radiology.asked(self.P, 0)

    def test_a_drawer_can_be_told_so(self, tmp_path):
        from skinrepro.ddpm import Denoiser, Network, save_ddpm
        from skinrepro.generate import generate

        tiny = Network(8, 1, 8, (1, 2), 1, (), None)
        model = Denoiser(tiny, radiology.conditions_of("label_property"))
        folder = save_ddpm(tmp_path / "model", model)
        drawer = ktena.drawer_of(folder, "ddim", 2, guided=radiology.RADIOLOGY.guided)
        wanted = radiology.asked(self.P | dict(guidance=2.0), 5)
        made = generate(wanted, tmp_path / "images", drawer, progress=False)
        made = ktena.with_groups(made, wanted)
        assert made["labels"].tolist() == wanted["labels"].tolist()
        assert made.group.tolist() == wanted.group.tolist()

    def test_who_knows_of_sexes_draws_without_them_too(self, tmp_path):
        "The same image as that of the whole model, asked with an unknown sex."
        from skinrepro.ddpm import Denoiser, Network, save_ddpm
        from skinrepro.generate import generate
        from skinrepro.images import pixels

        tiny = Network(8, 1, 8, (1, 2), 1, (), None)
        model = Denoiser(tiny, radiology.conditions_of("label_property"))
        folder = save_ddpm(tmp_path / "model", model)
        wanted = radiology.asked(self.P | dict(conditioning="label", guidance=2.0), 5)
        told = radiology.conditions_of("label").slices
        drawers = [
            ktena.drawer_of(folder, "ddim", 2, guided=None, told=told),
            ktena.drawer_of(folder, "ddim", 2, guided=None),
        ]
        tables = [wanted, wanted.assign(sex=None)]
        a, b = (
            generate(t, tmp_path / str(i), d, progress=False)
            for i, (t, d) in enumerate(zip(tables, drawers, strict=True))
        )
        x, y = pixels(a.path, 8), pixels(b.path, 8)
        assert (x == y).all() and len({image.tobytes() for image in x}) == 5
        with pytest.raises(ValueError, match="lacks the column"):
            generate(wanted, tmp_path / "c", drawers[1], progress=False)


def predictions(p, y, group):
    t = pd.DataFrame(dict(group=group, select_on="last", epoch=0))
    for k in range(len(FINDINGS)):
        t = t.assign(**{f"p_{k}": p[:, k], f"y_{k}": y[:, k]})
    return t


class TestAreas:
    def drawn(self, n=400, rate=0.3):
        rng = np.random.default_rng(1)
        y = (rng.random((n, 5)) < rate).astype("int8")
        p = 1 / (1 + np.exp(-(rng.standard_normal((n, 5)) + y)))
        return p, y, np.where(rng.random(n) < 0.5, "female", "male")

    def rows(self, *drawn):
        t = predictions(*drawn)
        rows = radiology.area_rows({"id_test": t}, dict(target="label"))
        return rows.set_index(["metric", "finding", "group"]).value

    def test_they_are_the_share_of_pairs_in_order(self):
        p, y, group = self.drawn()
        value = self.rows(p, y, group)
        with_it, without = p[y[:, 0] == 1, 0], p[y[:, 0] == 0, 0]
        share = (with_it[:, None] > without[None]).mean()
        assert np.isclose(value["auc", FINDINGS[0], "all"], share)
        each = [value["auc", f, "all"] for f in FINDINGS]
        assert np.isclose(value["auc", "mean", "all"], np.mean(each))

    def test_the_gap_is_of_the_means_of_men_and_women(self):
        value = self.rows(*self.drawn())
        man, woman = (np.mean([value["auc", f, s] for f in FINDINGS]) for s in ("male", "female"))
        assert np.isclose(value["auc_gap", "mean", "all"], abs(man - woman))

    def test_a_finding_without_images_is_said_counted_and_left_out(self, capsys):
        p, y, group = self.drawn()
        y[:, HEART] = 0
        value = self.rows(p, y, group)
        assert ("auc", "cardiomegaly", "all") not in value and value.notna().all()
        assert value["auc_left_out", "mean", "all"] == 1
        rest = [value["auc", f, "all"] for f in FINDINGS if f != "cardiomegaly"]
        assert np.isclose(value["auc", "mean", "all"], np.mean(rest))
        assert "no area in all and in each sex for cardiomegaly" in capsys.readouterr().out

    def test_one_that_no_woman_has_is_in_no_gap(self):
        p, y, group = self.drawn()
        y[group == "female", EFFUSION] = 0
        value = self.rows(p, y, group)
        assert ("auc_gap", "pleural effusion", "all") not in value
        assert ("auc", "pleural effusion", "all") in value
        rest = [f for f in FINDINGS if f != "pleural effusion"]
        man, woman = (np.mean([value["auc", f, s] for f in rest]) for s in ("male", "female"))
        assert np.isclose(value["auc_gap", "mean", "all"], abs(man - woman))

    def test_where_nothing_has_an_area_there_is_no_mean(self):
        p, y, group = self.drawn()
        value = self.rows(p, 0 * y, group)
        assert value.to_dict() == {("auc_left_out", "mean", "all"): 5}


class TestJudge:
    def test_answers_beside_questions(self):
        called = np.zeros((3, 6), bool)
        called[0, [HEART, 5]] = called[1, [HEART, EFFUSION]] = True
        asked = np.zeros((3, 6))
        asked[:2, HEART], asked[:, 5] = 1, [1, 1, np.nan]
        t = radiology._as_asked(called, asked)
        assert t.found_cardiomegaly.tolist()[:2] == [1, 1] and np.isnan(t.found_cardiomegaly[2])
        assert t["spared_pleural effusion"].tolist() == [1, 0, 1]
        assert t.asked_label.tolist() == [1, 0.8, 1] and t.asked_sex.tolist()[:2] == [1, 0]
        assert t.asked_both.tolist()[:2] == [1, 0] and np.isnan(t.asked_both[2])

    def test_thresholds_are_of_the_part_that_chooses(self):
        rng = np.random.default_rng(0)
        y = (rng.random((500, 5)) < 0.1).astype("int8")
        p = 0.05 * y + rng.random((500, 5)) * 0.1  # rare: never near a half
        group = ["male"] * 500
        found = ktena.thresholds_of({"val": predictions(p, y, group)})
        called = p >= found
        for k in range(5):
            found_share = called[y[:, k] == 1, k].mean()
            assert found_share > 0.5 and abs(found_share - (~called[y[:, k] == 0, k]).mean()) < 0.05
        y[:, 0] = 0
        assert ktena.thresholds_of({"val": predictions(p, y, group)})[0] == 0.5
        of_classes = pd.DataFrame(dict(p_0=[0.2], p_1=[0.8], called=["b"]))
        assert ktena.thresholds_of({"val": of_classes}) is None


class TestTraining:
    def test_a_judge_learns_the_sex_of_those_whose_sex_is_known(self):
        m = reports(["edema", NO_FINDING, "edema"], group=["female", pd.NA, "male"])
        rows, names, y = radiology.targets_of(m, "cell")
        assert len(rows) == 2 and names == [*FINDINGS, "female"]
        assert y[:, FINDINGS.index("edema")].tolist() == [1, 1] and y[:, 5].tolist() == [1, 0]
        assert len(radiology.targets_of(m)[0]) == 3

    def test_a_judge_learns_each_finding_as_often(self, tmp_path, monkeypatch):
        "Natural shares of archive 0 run from 7 to 36 per cent; those of a judge are alike."
        drawn = []
        monkeypatch.setattr(radiology, "drawn_radiographs", lambda t, *a, **k: drawn.append(t) or t)
        for target in ("cell", "label"):
            radiology.truth(dict(data="phantom_radiograph", n_synthetic=2000, target=target), 64)
        share = [
            t["labels"].str.get_dummies().reindex(columns=radiology.FINDINGS).mean() for t in drawn
        ]
        assert share[0].between(0.30, 0.40).all() and share[1].min() < 0.12
        assert not set(drawn[0].image_id) & set(drawn[1].image_id)
        assert (
            drawn[0].groupby("labels").sex.agg(lambda s: abs(s.eq("male").mean() - 0.5)).max() < 0.3
        )

    def test_the_truth_is_known_of_phantoms_only(self):
        with pytest.raises(runs.ParameterError, match="n_synthetic"):
            radiology.truth(dict(data="phantom_radiograph", n_synthetic=0))
        with pytest.raises(runs.ParameterError, match="phantom_radiograph"):
            radiology.truth(dict(data="chexpert", n_synthetic=9))

    def test_the_methods_of_figure_5_and_a_perfect_one(self):
        usual = dict(target="label", arch="resnet_plain")
        rows = [
            usual
            | dict(trains=w.trains, conditioning=w.conditioning, augment=w.augment)
            | dict(loss="" if w.loss == "entropy" else w.loss)
            | (dict(arch="efficientnet_lite0") if w.other else {})
            for w in radiology.METHODS.values()
        ]
        plain = usual | dict(conditioning="", augment="none", loss="")
        rows += [plain | dict(trains="truth"), plain | dict(trains="real", target="cell")]
        found = radiology.method_of(pd.DataFrame(rows)).tolist()
        assert found == [*radiology.METHODS, ktena.PERFECT, ""]


class TestGrid:
    def test_what_a_run_takes_is_known_of_each_kind(self):
        kinds = set()
        for profile in ("mini", "paper"):
            for run in read_grid(PAPER, profile):
                if run.parameters.get("data") not in radiology.STUDIES or run.section in kinds:
                    continue
                kinds.add(run.section)
                work, disk = ktena.cost(run)
                assert len(work) > 1 and all(w.amount > 0 for w in work[1:]) and disk > 0
                about, short = ktena.rehearsed(run, True)
                of = about.get("data"), about.get("modality")  # a data set, or all of its modality
                assert of in ((run.parameters["data"], None), (None, "radiology"))
                assert set(short) <= set(run.parameters)
        assert len(kinds) == 9

    def test_a_cascade_draws_twice(self):
        grid = read_grid(PAPER, "mini", "cascade_images")
        twice = next(r for r in grid if r.section == "cascade_images")
        once = next(r for r in read_grid(PAPER, "mini") if r.section == "radiology_images")
        assert len(ktena.cost(twice)[0]) == len(ktena.cost(once)[0]) + 1

    def test_all_methods_train_as_long(self):
        for profile in ("mini", "paper"):
            for_film = [
                r.parameters
                for r in read_grid(PAPER, profile)
                if r.notebook.stem == "classifier"
                and r.parameters["data"] in radiology.STUDIES
                and r.parameters["target"] == "label"
            ]
            assert len({(p["steps"], p["batch_size"], p["lr"]) for p in for_film}) == 1
            assert {p["seed"] for p in for_film} == set(ktena.SEEDS)
            names = radiology.method_of(pd.DataFrame(for_film)).value_counts()
            assert set(names) == {5} and set(radiology.METHODS) <= set(names.index)


def test_from_reports_to_areas_with_a_cascade_and_a_judge(tmp_path, monkeypatch):
    "Four notebooks at their smallest, one on the other."
    from skinrepro.core import device
    from skinrepro.loop import precision_on

    for name in ("RUNS", "FIGURES"):
        monkeypatch.setenv(f"SKINREPRO_{name}", str(tmp_path / name.lower()))

    def made(notebook, **p):
        p = dict(data="phantom_radiograph", unlabelled=0) | p
        runs.execute_notebook(PAPER / f"{notebook}.ipynb", tmp_path / "out.ipynb", p)
        folders = (tmp_path / "runs" / "ktena2023").glob(f"{notebook}-*")
        return max(folders, key=lambda f: f.stat().st_mtime)

    judge = made("classifier", target="cell")
    assert (judge / "judge.json").is_file()
    generator = made("generator", unlabelled=3)
    told = pd.read_csv(generator / "records.csv").set_index("metric").value
    assert told["n_unlabelled"] == 3 and told["n_labelled"] == radiology.LEAST
    generator = made("generator")
    asked = dict(generator=generator.name, judge=judge.name, upsampler="", count=14)
    images = made("images", **asked)
    t = pd.read_csv(images / "records.csv")
    assert {"asked_sex", "asked_label"} <= set(t.metric[t.reference.eq("ceiling")])
    m = pd.read_parquet(images / "manifest.parquet")
    assert set(m.group) == set(radiology.SEXES) and m["labels"].notna().all()
    alone = dict(judge="", upsampler=None, conditioning="label", precision="auto")
    less = made("images", **asked | alone)
    assert pd.read_parquet(less / "manifest.parquet").group.isna().all()
    said = pd.read_csv(less / "records.csv").computed_in
    assert set(said) == {precision_on("auto", device())} and "computed_in" not in t
    how = dict(trains="synthetic", conditioning="label_property", loss="focal")
    classifier = made("classifier", images=images.name, **how)
    t = pd.read_csv(classifier / "records.csv")
    assert set(t.part[t.metric.eq("auc")]) == {"id_test", "test", "val"}
    seen = pd.read_parquet(classifier / "predictions.parquet")
    assert {"y_4", "p_4", "group"} <= set(seen) and "called" not in seen


def test_what_runs_by_name_alone():
    "A rehearsal is not of it, and its report must not take other runs for it."
    from skinrepro.report import extra_sections

    extra = extra_sections("ktena2023")
    assert {"mixed", "cascade_synthetic", "ham_real", "dermatology_rivals_truth"} <= extra
    usual = {"real", "radiology_synthetic", "dermatology_truth", "toys"}
    assert not extra & usual


def test_a_striking_improvement_is_one_beside_the_others():
    (claim,) = [c for c in radiology.CLAIMS if "striking for cardiomegaly" in c.text]
    rows = []
    for method in ("Baseline", *radiology.SYNTHETIC):
        for seed in range(5):
            for finding in (*FINDINGS, "mean"):
                value = 0.7 + (method != "Baseline") * (0.1 + 0.001 * seed)
                row = dict(metric="auc", finding=finding, method=method, seed=seed, value=value)
                rows.append(row | dict(part="test", group="all", select_on="last", n=1500))
    t = pd.DataFrame(rows).assign(data="x", profile="mini", n_train=9, run_id="r")
    t["run_id"] = t.method + t.seed.astype(str)

    def verdict(of):
        gain = of.value - 0.7
        return claim(pd.concat([of, of.assign(metric="gain", value=gain)])).verdict

    assert verdict(t) != "supported"  # all findings gain alike
    heart = t.finding.eq("cardiomegaly") & t.method.ne("Baseline")
    assert verdict(t.assign(value=t.value + 0.1 * heart)) == "supported"
