"""The reports of the papers on made-up records of every run of the paper profile (nothing of it is
a result): each table has its file, no cell is lost, and no two different things become one number.
"""

import json
import os
import re

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from skinrepro import runs
from skinrepro.core import provenance
from skinrepro.grid import read_grid
from skinrepro.records import number_rows
from skinrepro.tables import read_reported

PAPERS = ROOT / "nbs" / "papers"
RULES = {0.0: ("test", "last"), 0.1: ("val", "test", "last")}  # of a run, by its validation part
NAMES = dict(vgg16="VGG-16", resnet18="ResNet-18", vit_b_16="ViT-B-16")
COUNTED = dict(i=1284, ii=1105, iii=1049)  # made up: real images that train
TIMES = {"real": 1, "syn": 5, "real+syn": 6}  # as many images train as there are real ones
OURS = ", equal steps"  # after the paper's train type: rows that the paper does not have


def counted(p) -> int:  # made up: images that train
    return COUNTED[p["scenario"]] * TIMES[p.get("train", "syn")]


def steps(p) -> int:  # made up: of training
    return 30 * (COUNTED[p["scenario"]] if p.get("steps_as") == "real" else counted(p)) // 256


def accuracy(p, rule) -> float:
    "A different number for each cell and rule, so that a mixture would be seen."
    at = 0.3 + 0.1 * ("i", "ii", "iii").index(p["scenario"])
    at += 0.05 * ("real", "syn", "real+syn").index(p.get("train", "syn"))
    at += 0.0025 * (p.get("steps_as") == "real")
    at += 0.02 * list(NAMES).index(p["arch"]) + 0.005 * ("val", "test", "last").index(rule)
    if "pipeline" in p:
        at += 0.1 * (p["pipeline"] == "img2img") + 0.03 * (p["target"] == "dark")
        at += 0.011 * ("vanilla", "ti", "lora", "ti+lora").index(p["method"])
    return at


def of_classifier(run, rng):
    p, n = run.parameters, 56 if run.parameters["scenario"] == "i" else 291
    rows = []
    for rule in RULES[p["val_fraction"]]:
        # what must not be in a table: the other rules of a run with a validation part
        wrong = 0.2 if p["val_fraction"] and rule != "val" else 0.0
        value = accuracy(p, rule) + wrong + rng.normal(0, 1e-4)
        for metric in ("accuracy", "precision", "recall", "f1"):
            rows.append(dict(metric=metric, value=value, n=n, low=0.1, high=0.9, select_on=rule))
        for metric, value in dict(train_size=counted(p), train_steps=steps(p)).items():
            rows.append(dict(metric=metric, value=value, n=n, select_on=rule))
    extra = dict(group="all", arch_paper=NAMES[p["arch"]], n_test=n, flexible_used="stratified")
    if run.notebook.stem == "ablation":
        extra |= dict(test=dict(source="light", dark="dark")[p["target"]], train="syn")
    return pd.DataFrame(rows).assign(**extra)


def of_generator(run, rng):
    share = run.parameters["val_fraction"]
    tones = dict(ita=-20.0 - 100 * share, ita_parents=50.0, dark_share=0.9, dark_share_parents=0.0)
    if run.parameters["base"] == "miniature":  # what must not be in a report at profile paper
        tones["ita"] = 40.0
    both = [number_rows(tones | dict(structure=0.6), 50, g) for g in ("all", "light parents")]
    sizes = dict(n_images=5000 * (1 - share), n_parents=1000 * (1 - share), images_per_second=9.0)
    return pd.concat([*both, number_rows(sizes, 50)], ignore_index=True)


def of_weights(run, rng):
    losses = number_rows(dict(loss=0.3), 900, "lora last")
    return pd.concat([losses, number_rows(dict(n_train=900, seconds_lora=60.0), 900)])


def of_strength(run, rng):
    p, seen = run.parameters, dict(ita=50.0, dark_share=0.0, called_asked=0.95)
    rows = [number_rows(dict(judge_accuracy=0.97), 200).assign(what="judge")]
    rows += [number_rows(seen, 56).assign(what="parents")]
    for method in p["methods"].split(","):
        for named in ("right", "wrong"):
            for s in map(float, p["strengths"].split(",")):
                found = dict(ita=50 - 80 * s, dark_share=s, kept=1 - s / 5, structure=1 - s / 2)
                about = dict(what="img2img", method=method, named=named, strength=s)
                rows.append(number_rows(found, 56).assign(**about))
    return pd.concat(rows, ignore_index=True)


def of_vae(run, rng):
    p = run.parameters
    share = dict(A=0.0, B=0.5, C=1.0).get(p["training_set"]) or 0.01 * float(
        p["training_set"].strip("ABCD") or 0
    )
    rows = []
    for group, far in (("light", share), ("dark", 1 - share)):
        measured = dict(mse=0.03 + 0.02 * far, mse01=0.01 * far, delta_e=8 + far)
        measured |= dict(perceptual=0.2 + far, latent_std=0.3)
        noisy = {k: v + rng.normal(0, 1e-4) for k, v in measured.items()}
        rows.append(number_rows(noisy, 500, group))
    rows.append(number_rows(dict(n_train=1668, parameters=50_439_619, seconds_train=60.0), 1668))
    return pd.concat(rows, ignore_index=True)


MADE = dict(
    scenario=of_classifier,
    ablation=of_classifier,
    generator=of_generator,
    weights=of_weights,
    strength=of_strength,
    vae=of_vae,
)


def report(paper, folder, beside=()):
    """Records of every run of the paper profile, and the report on them; `beside` them those of
    other runs that the store holds, as (profile, section).
    """
    places = dict(RUNS="runs", FIGURES="figs", COMMITTED="nothing")
    places = {f"SKINREPRO_{k}": str(folder / v) for k, v in places.items()}
    before = {k: os.environ.get(k) for k in places}
    os.environ |= places
    try:
        rng, about = np.random.default_rng(0), ("0" * 16, "made up", "0" * 64)
        asked = dict(data="fitzpatrick17k", profile="paper")
        found = [("paper", run) for run in read_grid(PAPERS / paper, "paper")]
        for profile, section in beside:
            more = read_grid(PAPERS / paper, profile, section, data=asked["data"])
            found += [(profile, run) for run in more]
        for profile, run in found:
            rows = MADE[run.notebook.stem](run, rng)
            stamp = provenance(asked["data"], *about, profile, "cpu")
            runs.finish(run, rows.assign(inventory_hash="0" * 16), stamp)
        runs.execute_notebook(PAPERS / paper / "report.ipynb", folder / "report.ipynb", asked)
    finally:
        for k, v in before.items():
            os.environ.pop(k) if v is None else os.environ.update({k: v})
    return folder / "figs" / paper


@pytest.fixture(scope="module")
def wang(tmp_path_factory):
    return report("wang2024", tmp_path_factory.mktemp("wang"), [("mini", "generator")])


@pytest.fixture(scope="module")
def lopez(tmp_path_factory):
    return report("lopezperez2025", tmp_path_factory.mktemp("lopez"))


def test_no_cell_of_the_paper_is_lost(wang):
    reported = read_reported(PAPERS / "wang2024" / "reported.csv")
    for name in ("table2", "table3", "table4", "table5"):
        cells = reported[(reported.artefact == name) & (reported.unit != "")]
        t = pd.read_csv(wang / f"{name}.csv", keep_default_na=False)
        keys = [k for k in ("arch", "train", "test", "pipeline", "strategy", "metric") if k in t]
        printed, ours = (set(c[keys].itertuples(index=False)) for c in (cells, cells[:0]))
        if name != "table5":  # below each row with synthetic images, one of ours
            more = cells[cells.train != "real"]
            ours = set(more.assign(train=more.train + OURS)[keys].itertuples(index=False))
            assert len(ours) == 2 * len(printed) / 3
        assert set(t[keys].itertuples(index=False)) == printed | ours
        mine = t[t.train.str.endswith(OURS)]
        assert set(mine.reported) <= {""} and set(mine.verdict) <= {"not comparable"}, name
        assert mine.reason.str.contains("the paper prints no number").all(), name
        assert set(t.n_seeds.astype(int)) == {5} and "not run" not in set(t.verdict)
        assert "REHEARSAL" not in (wang / f"{name}.md").read_text(encoding="utf-8")


def test_each_rule_is_read_from_the_runs_that_it_belongs_to(wang):
    """`test` and `last` from runs that train on all images, as released; `val` from those with a
    validation part.
    """
    for scenario, name in dict(i="table2", ii="table3", iii="table4").items():
        t = pd.read_csv(wang / f"{name}.csv", keep_default_na=False)
        a = t[t.metric == "accuracy"]
        assert a.groupby(["arch", "train"]).select_on.apply(set).map(len).eq(3).all()
        arch = {v: k for k, v in NAMES.items()}
        for r in a.itertuples():
            train, comma, _ = r.train.partition(",")
            p = dict(scenario=scenario, train=train, arch=arch[r.arch])
            p |= dict(steps_as="real") if comma else {}
            assert float(r.reproduced) == pytest.approx(100 * accuracy(p, r.select_on), abs=0.1)
        runs_of = a.groupby("select_on").runs.apply(lambda s: set(" ".join(s).split()))
        assert runs_of["test"] == runs_of["last"] and not runs_of["test"] & runs_of["val"]
        sizes = t[t.metric == "train_size"]
        assert len(sizes) == len(NAMES) * (3 + 2)
        for r in sizes.itertuples():
            p = dict(scenario=scenario, train=r.train.partition(",")[0])
            assert float(r.reproduced) == counted(p)
        told = (wang / f"{name}.md").read_text(encoding="utf-8")
        few, many = (30 * times * COUNTED[scenario] // 256 for times in (1, 6))
        assert f"real+syn {many}; real+syn, equal steps {few}." in told


def outputs_of(notebook, source) -> str:
    "Printed results of the one cell whose source holds these words."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    (cell,) = [c for c in cells if source in "".join(c["source"])]
    return "".join(line for o in cell["outputs"] for line in o["data"]["text/plain"])


def test_rules_are_compared_within_the_same_trainings(wang):
    """Those with a validation part record all three; here their other rules are 20 points above
    `val`, while those of the trainings on all images, in the tables, are not.
    """
    told = (wang / "summary.md").read_text(encoding="utf-8").split("## Choosing the epoch")[1]
    assert "Worth 20.5 to 20.5 points" in told and "above zero in 9 of 9 rows" in told
    assert "mean of 5 draws" in told.split("\n## ")[0]
    table = outputs_of(wang.parents[1] / "report.ipynb", "by_rule.round(2)")
    rows = re.findall(r"(\d+\.\d+) +(\d+\.\d+) +(\d+\.\d+)$", table, flags=re.MULTILINE)
    assert len(rows) == 3 * len(NAMES) * (3 + 2) and table.split()[1:4] == ["val", "test", "last"]
    for val, test, last in (map(float, r) for r in rows):
        assert (test - val, last - val) == pytest.approx((20.5, 21.0), abs=0.1)


def test_tone_is_told_of_one_profile_and_kind_of_training_at_a_time(wang):
    "With records of profile mini on the same photographs beside those of the report."
    assert set(pd.read_csv(wang / "runs.csv").profile) == {"mini", "paper"}
    told = (wang / "summary.md").read_text(encoding="utf-8").split("## Tone")[1].split("\n## ")[0]
    lines = [s for s in told.splitlines() if s.startswith("* Scenario") and ", ti+lora," in s]
    ends = [re.search(r"0\.5(.*): mean ITA 50\.0 degrees before, (\S+) after", s) for s in lines]
    found = sorted(m.groups() for m in ends)
    held_out = ", 10 % of the images held out"
    assert found == 3 * [(", 0 % of the images held out", "-20.0")] + 3 * [(held_out, "-30.0")]


def test_the_ablation_keeps_its_twelve_cells_and_three_rules(wang):
    t = pd.read_csv(wang / "table5.csv", keep_default_na=False)
    a = t[t.metric == "accuracy"]
    assert len(a) == 12 * 3
    for r in a.itertuples():
        target = dict(light="source", dark="dark")[r.test]
        p = dict(scenario="i", train="syn", arch="vgg16", pipeline=r.pipeline)
        expected = accuracy(p | dict(target=target, method=r.strategy), r.select_on)
        assert float(r.reproduced) == pytest.approx(100 * expected, abs=0.1)


def test_generators_with_and_without_a_validation_part_stand_apart(wang):
    t = pd.read_csv(wang / "generators.csv")
    assert set(t.n_images[t.val_fraction == 0.0]) == {5000.0}
    assert set(t.n_images[t.val_fraction == 0.1]) == {4500.0} and set(t.seeds) == {5}


def test_claims_of_wang_are_about_all_networks_and_draws(wang):
    t = pd.read_csv(wang / "claims.csv").set_index(["claim", "part"])
    one = t.loc["Synthetic images train better classifiers than real ones"].loc["over all"]
    assert one.draws == 5 and one.pairs == 9 and one.effect == pytest.approx(5, abs=0.1)


def test_every_figure_of_lopezperez_has_its_numbers(lopez):
    for name in ("fig3", "fig6", "metrics_boxes"):
        t = pd.read_csv(lopez / f"{name}.csv")
        per_metric = t.groupby(["metric"]).size() if "metric" in t else pd.Series([len(t)])
        assert (per_metric == 3 * 10 * 2).all(), name
    t = pd.read_csv(lopez / "sweep.csv")
    assert t.groupby(["share", "group"]).repetition.nunique().eq(10).all()
    assert sorted(set(t.share)) == [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]
    assert not t.duplicated(["share", "group", "repetition"]).any()


def test_claims_of_lopezperez_have_all_repetitions(lopez):
    t = pd.read_csv(lopez / "claims.csv")
    assert (t.repetitions == 10).all() and "not run" not in set(t.verdict)
    wanted = {f"{n}.{s}" for n in ("claims", "metrics", "gaps") for s in ("md", "csv", "tex")}
    assert wanted <= {f.name for f in lopez.iterdir()}
