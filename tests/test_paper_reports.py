"""The reports of the papers on made-up records of every run of the paper profile (nothing of it is
a result): each table has its file, no cell is lost, and no two different things become one number.
"""

import json
import os
import re
import shutil
import tomllib

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


# of fairskin2024: what each arm is made to give. One sign turns every effect around
ARMS = ("vanilla", "CBRS", "SQRS", "CBDM", "FairSkin-S", "FairSkin-C")
GROUPS = {"African": 30, "Asian": 75, "Caucasian": 152, "all": 257}  # test images
DISEASES = (
    "allergic contact dermatitis",
    "basal cell carcinoma",
    "lichen planus",
    "psoriasis",
    "squamous cell carcinoma",
)
CELLS = [f"{g} / {d}" for g in list(GROUPS)[:3] for d in DISEASES]
VARIANCES = dict(zip(ARMS, (300.0, 200.0, 150.0, 42.0, 23.37, 23.37)))  # differences as printed
TURNED = ("mini",)  # profiles at which everything is the other way round


def sign(p) -> int:
    return -1 if p["profile"] in TURNED else 1


RATIOS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
UNSEEN = "African / psoriasis"


def beyond(p) -> float:
    "What a setting of a classifier that the paper does not have gains, each its own."
    if p["cells"] == "rarest":
        more = 0.55 * (p["joins"] == "copies" and p["ratio"] > 0) + 0.1 * p["guidance"]
        return 0.4 * RATIOS.index(p["ratio"]) + more
    copied = 1.6 * (p["joins"] == "copies") + 0.15 * (p["arm"] == "base")
    if p["joins"] == "images":
        return copied + 0.3 * (p["steps_as"] == "added") + 0.25 * (p["few"] == "take")
    longer, cells, strong = p["steps_as"] == "added", p["sampler"] == "cells", "strong"
    return copied + 0.04 * longer + 0.03 * cells + 0.05 * (p["augment"] == strong)


def gain(p) -> float:
    "Of an arm, in units of a tenth; each arm has its own."
    arm, more = p["arm"], beyond(p) if "joins" in p else 0.0
    return more + ((0.2, 0.3, 0.4, 0.5, 1.0, 1.2)[ARMS.index(arm)] if arm in ARMS else 0.0)


def amounts(profile) -> list:
    "Images of each cell that are tried."
    grid = tomllib.loads((PAPERS / "fairskin2024" / "grid.toml").read_text(encoding="utf-8"))
    main = grid["augmented"][profile]["added"]
    return sorted([main, *grid["sizes"][profile]["added"]])


def third(p) -> float:
    "What number, shares and reweighting add, each its own."
    if p["joins"] != "images" or p["cells"] == "rarest" or p["profile"] == "rehearsal":
        return 0.0
    numbers = amounts(p["profile"])
    if p["added"] not in numbers:  # of other photographs
        return 0.5 * (p["reweight"] != "none")
    if p["reweight"] != "none":
        return 0.5
    shares = ("", "0.5:0.3:0.2", "0.3:0.2:0.5", "0.2:0.3:0.5").index(p["proportions"])
    if shares:
        return 0.2 + 0.05 * shares
    middle = numbers[len(numbers) // 2]
    from_middle = abs(numbers.index(p["added"]) - numbers.index(middle))
    return -0.05 * from_middle - 0.01 * (p["added"] > middle)


def of_answers(p, group) -> dict:
    "Numbers of a classifier, all different."
    s, where = sign(p), list(GROUPS).index(group)
    out = dict(accuracy=0.6 + 0.1 * s * gain(p) + 0.01 * third(p))
    if group != "all":  # the worst gains, the best loses a little
        return dict(accuracy=(0.5, 0.6, 0.75)[where] + s * gain(p) * (0.05, 0, -0.03)[where])
    numbers = amounts(p["profile"]) if p["profile"] != "rehearsal" else [p["added"]]
    many = p["joins"] == "images" and p["added"] > numbers[len(numbers) // 2]
    out |= dict(dp_accuracy=0.4 - 0.1 * s * (gain(p) + third(p)) + 0.1 * s * many)
    out |= dict(dp_classes=0.3 + out["dp_accuracy"], accuracy_worst=out["accuracy"] - 0.1)
    for reading, at in dict(accuracy=0.5, classes=0.4).items():
        out[f"essp_{reading}"] = at + 0.1 * s * (gain(p) + third(p))
        for given in ("", "_given_label"):
            out[f"dp_{reading}_by_chance{given}"] = 0.1
    return out


def named(p, group) -> str:
    "A group in the words of other photographs, of which there are two; '' for the third."
    other = dict(African="dark", Asian="", Caucasian="light", all="all")
    return other[group] if p["data"] == "pad_ufes20" else group


FEW = {"African / basal cell carcinoma": 6, "African / lichen planus": 0}  # accepted, of 60


def joining(p) -> dict:  # group or cell -> images that join
    if p["joins"] == "none" or (p["cells"] == "rarest" and not p["ratio"]):
        return {}
    if p["cells"] == "rarest":
        return dict(African=round(240 * p["ratio"]))
    of_cell = dict.fromkeys(CELLS, p["added"])
    if p["few"] == "take" and p["profile"] == "mini":
        of_cell |= FEW
    if p["data"] == "pad_ufes20":
        return dict.fromkeys(("dark", "light"), 6 * p["added"])
    out = {g: sum(n for c, n in of_cell.items() if c.startswith(g)) for g in list(GROUPS)[:3]}
    return out | {c: n for c, n in of_cell.items() if n}


def of_joined(run, rng):
    p, rows = run.parameters, []
    for group, n in GROUPS.items():
        if name := named(p, group):
            noisy = {k: v + rng.normal(0, 1e-4) for k, v in of_answers(p, group).items()}
            rows.append(number_rows(noisy, n, name))
    joined = joining(p)
    for name, n in joined.items():
        rows.append(number_rows(dict(n_joined=n), n, name))
    made = p["joins"] == "images"
    n_train = 2061 + sum(joined.get(g, 0) for g in (*GROUPS, "dark", "light"))
    drawn = n_train if p["steps_as"] == "own" else 2061 + 15 * p["added"]
    of_training = dict(train_size=n_train, train_steps=p["epochs"] * -(-drawn // p["batch_size"]))
    rows.append(number_rows(of_training, n_train))
    sizes = dict(n_train=2061, n_test=257, n_classes=5, n_classes_train=5, n_classes_test=5)
    judged = "asked_both" if p["few"] == "take" and p["profile"] == "mini" else "all"
    about = dict(images_accept=judged, images_words="paper") if made else {}
    about = dict(images_accept="", images_words="", images_held_out="") | about
    return pd.concat(rows).assign(select_on="last", epoch=9, **sizes, **about)


def fid_of(p, group) -> float:
    where = (*CELLS, *GROUPS).index(group)
    far = 20 * sign(p) * bool(p.get("held_out"))
    return 60.0 + where - 10 * sign(p) * gain(p) + far


def accepted_of(p, group) -> dict:
    "Share that a judge accepts: of two cells few or none, of the rarest group the most."
    if p["accept"] == "all":
        return {}
    where = 0.1 * ("African", "Asian", "Caucasian", "all").index(group.split(" / ")[0])
    return dict(asked_both=FEW[group] / 60 if group in FEW else 0.9 - 0.5 * where)


def of_pictures(run, rng):
    p, s, g, rows = run.parameters, sign(run.parameters), gain(run.parameters), []
    every = dict(all=CELLS, rarest=CELLS[:5], held_out=[UNSEEN])[p["cells"]]
    there = {*every, *(c.split(" / ")[0] for c in every), "all"}
    for reference, more in (("real", 0.0), ("truth", 1000.0)):  # never one number
        about = dict(reference=reference, described_by=p["features"], d=2048)
        for group in (g for g in (*GROUPS, *CELLS) if g in there):
            n_real = 12 if group in CELLS else 300
            found = {"fid": fid_of(p, group) + more, "kid": 0.01 * fid_of(p, group) + more}
            noisy = {k: v + rng.normal(0, 1e-4) for k, v in found.items()}
            few = number_rows(
                noisy,
                1000,
                named(p, group) if group in GROUPS else group,
                **{k: [v] for k, v in about.items()},
            )
            few = few.assign(n_real=n_real, below_floor=group in CELLS)
            rows.append(few[few.group.ne("")])
        if p["cells"] != "all":
            continue
        variance = VARIANCES.get(p["arm"], 250.0)
        variance = variance if s > 0 else 500 - variance
        kinds = {
            f"{m}_variance{k}": variance + i + more + 7 * (m == "kid")
            for m in ("fid", "kid")
            for i, k in enumerate(("", "_sample", "_cells", "_cells_sample"))
        }
        rows.append(
            number_rows(kinds, 3, **{k: [v] for k, v in about.items()}).assign(below_floor=3)
        )
    seen = dict(inception_score=2 + 0.1 * s * g, silhouette_disease=0.1 * s * g)
    seen |= dict(silhouette_group=0.5 - 0.1 * s * g, judge_agrees=0.5, n_images=15000)
    rows.append(number_rows({k: v + rng.normal(0, 1e-4) for k, v in seen.items()}, 15000))
    for i, name in enumerate(dict.fromkeys((p["features"], p["copies_features"]))):
        near = dict(copy_share=0.1 * (i + 1), copy_share_of_real=0.01 * (i + 1))
        rows.append(number_rows(near, 15000, described_by=[name]))
    if p["data"] == "phantom":
        for group in (g for g in (*GROUPS, *CELLS) if g in there):
            usual = dict(asked_disease=0.6, asked_group=0.7, asked_both=0.5)
            off = 0.1 * s * ((p["held_out"] != "") * -1 + 0.2 * g * (p["held_out"] != ""))
            asked = {k: v + off for k, v in usual.items()}
            rows.append(number_rows(asked | accepted_of(p, group), 60, group))
            if group in GROUPS:  # true images are judged by group
                top = {k: v + 0.25 for k, v in usual.items()}
                rows.append(number_rows(top, 60, group, reference=["ceiling"]))
    return pd.concat(rows, ignore_index=True)


def pictured(run):
    "What a run of images.ipynb keeps: images that say of themselves how they were made, and a map."
    from skinrepro import generate, manifest
    from skinrepro.papers import fairskin2024 as paper

    class Paint(generate.Drawer):
        size = 8

        def settings(self):
            return dict(weights=f"no weights: {run.parameters['arm']}")

        def draw(self, rows):
            return lambda i: np.full((8, 8, 3), int(rows.seed.iloc[i]) % 256, np.uint8)

    wanted = paper.specs(paper.STUDIES["phantom"], 2, 2.0, 2, run.parameters["seed"])
    made = generate.generate(wanted, run.folder / "images", Paint(), progress=False)
    manifest.write(made.assign(split="train"), run.folder / "manifest.parquet")
    x = np.arange(len(made), dtype=float)
    made = made.assign(group=wanted.group.to_numpy(), x=x, y=-x)
    made[["image_id", "group", "label", "x", "y"]].to_csv(run.folder / paper.MAP, index=False)


def of_tuning(run, rng):
    p, rows = run.parameters, []
    stops = (0, *(int(v) for v in p["points"].split(",") if v), p["steps"])
    for k, at in enumerate(stops if p["data"] == "phantom" else ()):
        for group in (*GROUPS, *CELLS):
            asked = dict(asked_disease=0.2 * (k + 1), asked_group=0.1 * (k + 1))
            rows.append(number_rows(asked, 4, group, at=[at]))
    losses = number_rows(dict(loss=0.3), 2061, "last")
    return pd.concat([*rows, losses, number_rows(dict(n_train=2061), 2061)], ignore_index=True)


MADE = dict(
    finetune=of_tuning,
    images=of_pictures,
    classifier=of_joined,
    scenario=of_classifier,
    ablation=of_classifier,
    generator=of_generator,
    weights=of_weights,
    strength=of_strength,
    vae=of_vae,
)


GRID_DATA = dict(pad="pad_ufes20")  # first word of sections that have data of their own


def report(
    paper,
    folder,
    beside=(),
    profile="paper",
    data="fitzpatrick17k",
    made=True,
    kept=None,
    extra=(),
):
    """Records of every run of a profile (or of none), and the report on them; `extra`: sections of
    it that run by name; `beside` them those of other runs that the store holds, as (profile,
    section), perhaps with other data; `kept`: folder of committed records.
    """
    places = dict(RUNS="runs", FIGURES="figs", COMMITTED=kept or "nothing")
    places = {f"SKINREPRO_{k}": str(folder / v) for k, v in places.items()}
    before = {k: os.environ.get(k) for k in places}
    os.environ |= places
    try:
        rng, about = np.random.default_rng(0), ("0" * 16, "made up", "0" * 64)
        asked = dict(data=data, profile=profile)
        found = [(profile, run) for run in read_grid(PAPERS / paper, profile)] if made else []
        for name in extra:  # sections of the same profile that run by name
            photographs = GRID_DATA.get(name.partition("_")[0], data)
            more = read_grid(PAPERS / paper, profile, name, data=photographs)
            found += [(profile, run) for run in more]
        for other, section, *photographs in beside:
            more = read_grid(PAPERS / paper, other, section, data=(photographs or [data])[0])
            found += [(other, run) for run in more]
        for of, run in {run.id: (of, run) for of, run in found}.values():
            rows = MADE[run.notebook.stem](run, rng)
            stamp = provenance(run.parameters.get("data", data), *about, of, "cpu")
            runs.finish(run, rows.assign(inventory_hash="0" * 16), stamp)
            if run.section == "images" and of == "mini" and run.parameters["seed"] == 0:
                pictured(run)
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
    alike = t.claim.str.contains("does not tell")
    assert t.margin[alike].to_list() == pytest.approx([0.05 * 0.3], rel=1e-3)
    assert t.margin[~alike].isna().all()
    rows = (lopez / "claims.md").read_text(encoding="utf-8").splitlines()
    (row,) = [r for r in rows if r.startswith("| The latent standard deviation does not tell")]
    assert "| ± 0.015 |" in row and sum("±" in r for r in rows) == 1


def sections(profile):
    "What goes beyond the paper at a profile; nobody judges photographs."
    grid = tomllib.loads((PAPERS / "fairskin2024" / "grid.toml").read_text(encoding="utf-8"))
    extra = [name for name, body in grid.items() if body.get("extra")]
    return [n for n in extra if profile == "mini" or not n.startswith("accepted")]


@pytest.fixture(scope="module")
def fair(tmp_path_factory):
    return report("fairskin2024", tmp_path_factory.mktemp("fair"), extra=sections("paper"))


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    "At mini, on phantoms: every effect is the other way round."
    base = tmp_path_factory.mktemp("turned")
    more = dict(profile="mini", data="phantom", extra=sections("mini"))
    return report("fairskin2024", base, [("mini", "plain", "pad_ufes20")], **more)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    base = tmp_path_factory.mktemp("bare")
    return report("fairskin2024", base, profile="mini", data="phantom", made=False)


NO_IMAGES = "no generated images"
BEYOND_FIGURES = "equal_compute_effects exchange_curves exchange_guidance_curves".split()
BEYOND_FIGURES += "unseen_measures rejection_rates pad_ufes20_groups".split()
OF_TABLE1 = "accuracy dp_accuracy dp_classes essp_accuracy essp_classes".split()


@pytest.mark.parametrize("which", ["fair", "turned"])
def test_every_table_of_fairskin_has_all_its_cells(which, request):
    at = request.getfixturevalue(which)
    phantom = which == "turned"
    references = ["real", "truth"] if phantom else ["real"]
    t = {f.stem: pd.read_csv(f, keep_default_na=False) for f in at.glob("*.csv")}
    first = t["table1"].set_index(["arm", "metric"])
    images = ["fid", "fid_variance", "inception_score"]
    wanted = {(a, m) for a in (NO_IMAGES, *ARMS) for m in OF_TABLE1}
    assert set(first.index) == wanted | {(a, m) for a in ARMS for m in images}
    what = [*GROUPS, *(f"variance{k}" for k in ("", " (sample)", " over cells"))]
    what = {*what, "variance over cells (sample)"}
    for r in references:
        two = t["table2" if r == "real" else "table2_truth"]
        assert len(two) == 2 * len(ARMS) * len(what) and set(two.what) == what
        assert set(two.reference) == {r} and set(two.below_floor[two.what == "variance"]) == {True}
        assert set(two.n_real[two.what == "African"].map(str)) == {"300"}
    assert ("table2_truth" in t) == phantom == ("asked" in t)
    assert len(t["cells"]) == len(references) * 2 * len(CELLS) * len(ARMS)
    assert set(t["cells"].below_floor) == {True} and set(t["cells"].n_real.map(str)) == {"12"}
    assert len(t["table3"]) == 4 * len(ARMS) and len(t["table4"]) >= len(CELLS)
    for name in ("table1", "cells", "table3", "settings", "copies"):
        assert set(t[name].draws) == {3}, name
        assert set(t[name].profile) == {"mini" if phantom else "paper"}
        assert ("PHANTOM" in (at / f"{name}.md").read_text(encoding="utf-8")) == phantom
    drawn = {"fig1", "fig2", "fig3a", "fig3b", "fig4", "fig5", "fig6", *BEYOND_FIGURES}
    drawn -= set() if phantom else {"rejection_rates"}  # nobody judges photographs
    drawn |= {"curves", "table3_maps", "table5"} if phantom else set()  # of images that are there
    assert {f.stem for f in at.glob("*.svg")} == drawn


def test_a_row_of_the_gallery_is_of_one_seed_and_prompt(turned):
    t = pd.read_csv(turned / "table5.csv")
    assert len(t) == len(CELLS) * len(ARMS) and set(t.column) == set(ARMS)
    rows = t.groupby("row").agg(seeds=("seed", "nunique"), prompts=("prompt", "nunique"))
    assert len(rows) == len(CELLS) and rows.eq(1).all(axis=None) and t.seed.nunique() == len(CELLS)
    assert t.image_id.str.endswith("-0000").all() and set(t.data) == {"phantom"}
    assert list(t.column[: len(ARMS)]) == list(ARMS)  # in their order
    t = pd.read_csv(turned / "table3_maps.csv")
    assert t.groupby("arm").size().to_dict() == dict.fromkeys(ARMS, 2 * len(CELLS))


def test_no_two_settings_of_fairskin_become_one_number(fair):
    "Numbers of images, shares, reweighting, references and feature spaces stay apart."
    t = pd.read_csv(fair / "settings.csv", keep_default_na=False)
    t = t[t.metric == "essp_accuracy"]
    assert not t.duplicated(["arm", "added", "third"]).any()
    assert len(t) == 1 + len(ARMS) * 5 + 2 * 3 + 2
    usual = runs.declared(PAPERS / "fairskin2024" / "classifier.ipynb")
    for r in t.itertuples():
        p = dict(profile="paper", joins="none" if r.arm == NO_IMAGES else "images", added=r.added)
        p = {**usual, **p}
        p |= dict(arm="" if r.arm == NO_IMAGES else r.arm, reweight="none", proportions="")
        p |= dict(reweight="loss") if r.third == "reweighted" else {}
        p |= dict(proportions=r.third) if ":" in r.third else {}
        expected = of_answers(p, "all")["essp_accuracy"]
        assert r.average == pytest.approx(expected, abs=5e-4), r
    runs_of = [set(s.split()) for s in t.runs]
    assert sum(map(len, runs_of)) == len(set.union(*runs_of)) == 3 * len(t)
    for name, n in dict(fig3a=7, fig3b=6 * 5, fig5=2 * 4, fig6=2 * 5).items():
        f = pd.read_csv(fair / f"{name}.csv", keep_default_na=False)
        assert (f[f.metric == "accuracy"].shape[0], set(f.draws)) == (n, {3}), name
    f = pd.read_csv(fair / "fig4.csv").set_index(["arm", "group"])
    assert len(f) == 7 * len(GROUPS) and f.n_min["vanilla", "African"] == GROUPS["African"]
    c = pd.read_csv(fair / "copies.csv").set_index(["described_by", "arm", "metric"]).average
    assert c["inception_v3", "CBRS", "copy_share"] == pytest.approx(0.1)
    assert c["vgg16", "CBRS", "copy_share"] == pytest.approx(0.2)


def test_against_real_and_against_true_images_are_two_tables(turned):
    p = dict(profile="mini", arm="CBDM")
    for name, more in dict(table2=0, table2_truth=1000).items():
        t = pd.read_csv(turned / f"{name}.csv").set_index(["measure", "arm", "what"]).average
        assert t["fid", "CBDM", "African"] == pytest.approx(fid_of(p, "African") + more, abs=1e-3)
        variance = 500 - VARIANCES["CBDM"] + more
        assert t["fid", "CBDM", "variance over cells"] == pytest.approx(variance + 2)
        assert t["kid", "CBDM", "variance"] == pytest.approx(variance + 7)
    t = pd.read_csv(turned / "asked.csv").set_index(["metric", "group", "arm"])
    assert t.average["asked_group", CELLS[0], "true images"] == pytest.approx(0.95)
    assert t.average["asked_group", CELLS[0], "CBRS"] == pytest.approx(0.7)
    assert set(t.draws) == {3}  # true images are counted once in a draw


def test_the_two_printed_differences_of_fid_variance(fair, turned):
    t = pd.read_csv(fair / "table1_printed.csv", keep_default_na=False)
    assert set(t.reported) == {-276.63, -18.63} and set(t.verdict) == {"agrees"}
    assert len(t) == 4 and set(t.variant) == {"FairSkin-S", "FairSkin-C"}
    assert t.reproduced.to_numpy() == pytest.approx(t.reported.to_numpy(), abs=1e-3)
    assert set(t.n_seeds) == {3} and t.runs.str.split().map(len).eq(6).all()
    t = pd.read_csv(turned / "table1_printed.csv", keep_default_na=False)
    assert set(t.verdict) == {"not comparable"} and t.reason.str.contains("phantom data").all()
    assert (t.reproduced > 0).all()


def test_claims_of_fairskin_can_be_supported_and_contradicted(fair, turned):
    from skinrepro.papers.fairskin2024 import CLAIMS

    t = pd.read_csv(fair / "claims.csv", keep_default_na=False)
    assert list(t.claim[: len(CLAIMS)]) == [c.text for c in CLAIMS]
    other = t.claim[len(CLAIMS) :].str.extract(r"\((over the cells|reading a)\)$")[0]
    assert other.value_counts().to_dict() == {"reading a": 7, "over the cells": 2}
    assert dict(zip(t.claim, t.verdict)) == dict.fromkeys(t.claim, "supported")
    assert set(t.draws) == {3}
    t = pd.read_csv(turned / "claims.csv", keep_default_na=False)
    assert sum("against true images" in c for c in t.claim) == sum(
        c.where.get("reference") == "real" for c in CLAIMS
    )
    assert dict(zip(t.claim, t.verdict)) == dict.fromkeys(t.claim, "contradicted")
    told = (turned / "claims.md").read_text(encoding="utf-8")
    assert "neither support nor contradict the paper" in told
    assert "The smallest group, African, has 30 test images" in told


def test_the_summary_of_fairskin_is_of_its_records(fair, turned):
    told = (fair / "summary.md").read_text(encoding="utf-8")
    assert "FairSkin minus CBDM: -18.63 over 3 draws, printed -18.63: agrees." in told
    assert "FID of single cells: 90 of 90 numbers lie below" in told
    assert "**Data: fitzpatrick17k**" in told and "PHANTOM" not in told
    told = (turned / "summary.md").read_text(encoding="utf-8")
    assert re.search(r"asked disease, from 0 to \d+ steps: rarest cell 20 % to 80 % \(4 im", told)
    assert "peak (ESSP, b) at different shares in 0 of 3 draws" in told


def test_a_section_has_its_own_runs_alone(turned):
    "Not those that it needs, nor those of another section of the same notebook."
    from skinrepro.records import read_record
    from skinrepro.report import of_sections, typed

    records = read_record(turned / "records.csv")
    t = typed(records, PAPERS / "fairskin2024" / "classifier.ipynb")
    t = t[t.data == "phantom"]
    plain, sizes = (of_sections(t, "fairskin2024", (name,)) for name in ("plain", "sizes"))
    assert set(plain.joins) == {"none"} and plain.run_id.nunique() == 3
    few, main, many = amounts("mini")
    assert set(sizes.added) == {few, many} and sizes.run_id.nunique() == 4 * 2 * 3
    both = of_sections(t, "fairskin2024", ("plain", "sizes"))
    assert set(both.run_id) == set(plain.run_id) | set(sizes.run_id)
    assert not len(of_sections(t.assign(run_id="classifier-0"), "fairskin2024", ("plain",)))


def test_a_reviewer_makes_the_same_of_the_records_alone(turned, tmp_path):
    at = tmp_path / "committed" / "fairskin2024"
    at.mkdir(parents=True)
    for name in ("records.csv", "runs.csv"):
        shutil.copy(turned / name, at)
    keep = dict(profile="mini", data="phantom", made=False, kept=tmp_path / "committed")
    again = report("fairskin2024", tmp_path, **keep)
    of_images = {"table3_maps.csv", "table5.csv"}  # need what only the runs have
    tables = {f.name for kind in ("csv", "md") for f in turned.glob(f"*.{kind}")} - of_images
    assert len(tables) > 30
    for name in sorted(tables):
        assert (again / name).read_bytes() == (turned / name).read_bytes(), name
    assert not of_images & {f.name for f in again.iterdir()}


# ---- beyond the paper


def table(at, name, *keys):
    t = pd.read_csv(at / f"{name}.csv", keep_default_na=False)
    t[["average", "effect", "low", "high"]] = t.reindex(
        columns=["average", "effect", "low", "high"]
    ).apply(pd.to_numeric)
    return t.set_index(list(keys)) if keys else t


def asked_like(at, section, **more):
    "Parameters of a run of a section, at the profile of a report."
    profile = "mini" if at.parents[1].name.startswith("turned") else "paper"
    found = read_grid(PAPERS / "fairskin2024", profile, section)
    own = [r.parameters for r in found if r.section == section]
    return next(p for p in own if more.items() <= p.items())


@pytest.mark.parametrize("which", ["fair", "turned"])
def test_baselines_stand_beside_arms_with_their_steps(which, request):
    from skinrepro.papers import fairskin2024 as paper

    at = request.getfixturevalue(which)
    t = table(at, "equal_compute", "training", "what")
    rows = dict(shuffled=paper.LONGER, oversampled=paper.OVERSAMPLED, strong=paper.STRONG)
    rows |= dict(plain=NO_IMAGES, copied=paper.COPIED, untouched=paper.UNTOUCHED)
    assert set(t.index.get_level_values("training")) == {*rows.values(), *ARMS}
    assert len(t) == 12 * 4 and set(t.draws) == {3}
    own, steps = dict(), t.training_steps.xs("accuracy", level="what")
    for section, name in rows.items():
        p = asked_like(at, section)
        own[name] = of_answers(p, "all")["accuracy"]
        assert t.average[name, "accuracy"] == pytest.approx(own[name], abs=5e-4), name
        joins = 15 * p["added"] if section in ("copied", "untouched") else 0
        assert int(t.joining[name, "accuracy"]) == joins
    assert len(set(steps.drop(NO_IMAGES))) == 1  # equal compute
    assert int(steps[NO_IMAGES]) < int(steps[paper.LONGER])
    effect = own[paper.COPIED] - own[paper.LONGER]
    assert t.effect[paper.COPIED, "accuracy"] == pytest.approx(effect, abs=5e-4)
    assert t.low[paper.COPIED, "accuracy"] < effect < t.high[paper.COPIED, "accuracy"]
    behind = [set(s.split()) for s in t.runs.xs("accuracy", level="what")]
    assert sum(map(len, behind)) == len(set.union(*behind)) == 3 * 12


@pytest.mark.parametrize("which", ["fair", "turned"])
def test_an_exchange_rate_has_every_ratio_beside_copies(which, request):
    at = request.getfixturevalue(which)
    t = table(at, "exchange", "source", "ratio", "what")
    own = dict(joins="images", arm="FairSkin-C", guidance=0.0)
    for source, section in dict(generated="exchange", copies="exchange_copied").items():
        for ratio in RATIOS[1:]:
            p = asked_like(at, section, ratio=ratio)
            r = t.loc[(source, ratio, "African")]
            expected = of_answers(p, "African")["accuracy"]
            assert r.average == pytest.approx(expected, abs=5e-4) and r.draws == 3
            assert int(r.joining) == 240 * ratio and r.n_min == GROUPS["African"]
    assert set(t.index.get_level_values("ratio")) == set(RATIOS)
    start = t.average["nothing", 0.0, "African"]
    gained = t.average["generated", 8.0, "African"] - start
    assert t.effect["generated", 8.0, "African"] == pytest.approx(gained, abs=1e-5)
    g = table(at, "exchange_guidance", "guidance", "what")
    assert (g.omega == g.index.get_level_values("guidance") - 1).all()
    for scale in (1.0, 2.0, 4.0, 8.0):
        p = asked_like(at, "guided", guidance=scale) | own | dict(guidance=scale)
        expected = of_answers(p, "African")["accuracy"]
        assert g.average[scale, "African"] == pytest.approx(expected, abs=5e-4)
        assert g.draws[scale, "kid real"] == 3
    told = (at / "exchange_guidance.md").read_text(encoding="utf-8")
    assert "| guidance scale (diffusers) | omega |" in told and "\n| 8.0 | 7 |" in told
    assert ("kid truth" in g.index.get_level_values("what")) == (which == "turned")


def test_a_cell_that_was_never_seen_stands_beside_itself(fair, turned):
    t = table(turned, "unseen", "arm", "seen", "what")
    seen = [(a, s) for a in ("vanilla", "FairSkin-C") for s in ("never seen", "seen")]
    assert set(t.index.droplevel("what")) == {
        *seen,
        ("base", "not fine-tuned"),
        ("true images", ""),
    }
    assert set(t.draws) == {3}
    for arm in ("vanilla", "FairSkin-C"):
        p = dict(profile="mini", arm=arm)
        never, ever = (fid_of(p | dict(held_out=h), UNSEEN) for h in (UNSEEN, ""))
        assert t.average[arm, "never seen", "fid truth"] == pytest.approx(never + 1000, abs=1e-3)
        assert t.average[arm, "seen", "fid real"] == pytest.approx(ever, abs=1e-3)
        assert t.effect[arm, "never seen", "fid real"] == pytest.approx(never - ever, abs=1e-3)
    assert t.average["vanilla", "seen", "asked_disease"] == pytest.approx(0.6)
    assert t.average["true images", "", "asked_disease"] == pytest.approx(0.85)
    assert ("true images", "", "fid truth") not in t.index
    assert "Images of the cell" not in (turned / "unseen.md").read_text(encoding="utf-8")
    t = table(fair, "unseen", "arm", "seen", "what")  # photographs: no judge, no truth
    assert set(t.index.get_level_values("what")) == {"fid real", "kid real"}
    assert "true images" not in t.index.get_level_values("arm")


def test_cells_of_which_few_are_accepted_are_shown(fair, turned):
    t = table(turned, "rejection", "group", "arm", "metric")
    for cell, n in FEW.items():
        assert t.average[cell, "vanilla", "accepted"] == pytest.approx(n / 60)
        assert t.average[cell, "vanilla", "kept"] == n and t.n_min[cell, "vanilla", "kept"] == 60
    plenty = "Caucasian / psoriasis"
    assert t.average[plenty, "vanilla", "accepted"] == pytest.approx(0.8)
    assert t.average[plenty, "vanilla", "kept"] == 15  # no more than were asked for
    of_group = [n / 60 for n in FEW.values()] + [0.9] * 3
    assert t.average["African", "FairSkin-C", "accepted"] == pytest.approx(np.mean(of_group))
    assert t.average["all", "FairSkin-C", "kept"] == 13 * 15 + sum(FEW.values())
    told = (turned / "rejection.md").read_text(encoding="utf-8")
    assert "African / lichen planus (vanilla: 0.0 on average)" in told
    assert "psoriasis (vanilla:" not in told
    t = table(turned, "rejection_classifiers", "arm", "images_are", "what")
    assert set(t.draws) == {3} and set(t.training_steps.map(int)) == {int(t.training_steps.iloc[0])}
    for arm in ("vanilla", "FairSkin-C"):
        after, before = (
            of_answers(asked_like(turned, s, arm=arm, added=15), "all")["accuracy"]
            for s in ("accepted", "sizes")
        )
        r = t.loc[(arm, "accepted by a judge", "accuracy")]
        assert r.effect == pytest.approx(after - before, abs=5e-4)
        assert int(r.joining) == 13 * 15 + sum(FEW.values())
        assert int(t.joining[arm, "none rejected", "accuracy"]) == 15 * 15
    told = (fair / "rejection.md").read_text(encoding="utf-8")
    assert "Nobody judges photographs" in told and "--section" not in told


@pytest.mark.parametrize("which", ["fair", "turned"])
def test_other_photographs_have_a_table_of_their_own(which, request):
    at = request.getfixturevalue(which)
    t = table(at, "pad_ufes20")
    assert set(t.data) == {"pad_ufes20"} and set(t.draws) == {3}
    kinds = {NO_IMAGES, "copies of real images", "vanilla", "FairSkin-C"}
    assert set(t.training) == kinds | {"FairSkin-C, weights 1 / accuracy (loss)"}
    nets = {"efficientnet_lite0", "resnet_small"} if which == "turned" else {"vit_b_16"}
    assert set(t.arch) == nets and (t.joining[t.training == NO_IMAGES].map(int) == 0).all()
    n = t.set_index("what").n_min
    assert set(n["dark"]) == {30} and set(n["light"]) == {152}
    told = (at / "pad_ufes20.md").read_text(encoding="utf-8")
    assert "PHANTOM" not in told and "The smallest group, dark, has 30 test images" in told
    assert "accuracy of dark, types 3-6 (30 test images)" in told
    assert "pad_ufes20" not in (at / "settings.csv").read_text(encoding="utf-8")
    t = table(at, "pad_ufes20_images", "what", "arm", "group")
    assert set(t.index.get_level_values("group")) == {"dark", "light", "all"}


def test_claims_beyond_the_paper_can_come_out_either_way(fair, turned):
    "All that was run; what is the same in both is said."
    from skinrepro.papers.fairskin2024 import BEYOND

    either = dict(supported="contradicted", contradicted="supported")
    for name, claims in BEYOND.items():
        one, other = (table(at, f"{name}_claims").set_index("claim") for at in (fair, turned))
        assert list(other.index) == [c.text for c in claims]
        assert set(other.verdict) <= set(either) and set(other.draws) == {3}, name
        ran = one[one.verdict != "not run"]
        for claim, r in ran.iterrows():
            assert r.verdict in either and other.verdict[claim] in either, claim
        if name == "equal_compute":
            assert set(one.verdict) == {"supported"} and set(other.verdict) == {"contradicted"}
        if name == "exchange":
            alike = one.index.str.startswith("Copies")
            assert set(one.verdict[~alike]) == {"supported"} != set(other.verdict[~alike])
        if name == "rejection":
            assert not len(ran)
        told = (turned / "summary.md").read_text(encoding="utf-8")
        assert all(claim in told for claim in other.index)


def test_the_whole_paper_profile_of_fairskin_is_rehearsed(tmp_path, monkeypatch):
    "One run of each kind in one store: where two of a kind met, a table would refuse them."
    from skinrepro.papers import fairskin2024 as paper
    from skinrepro.rehearse import rehearsal_runs, rehearsal_store, rehearse_report

    for name in ("RUNS", "FIGURES", "COMMITTED"):
        monkeypatch.setenv(f"SKINREPRO_{name}", str(tmp_path / name.lower()))
    grid = tomllib.loads((PAPERS / "fairskin2024" / "grid.toml").read_text(encoding="utf-8"))
    usual = [name for name, body in grid.items() if not body.get("extra")]
    full = read_grid(PAPERS / "fairskin2024", "paper", ",".join([*usual, *sections("paper")]))
    rehearsed = rehearsal_runs(full, paper.rehearsed, True, "phantom")
    rng, about = np.random.default_rng(0), ("0" * 16, "random", "")
    with rehearsal_store() as store:
        for r in rehearsed:
            rows = MADE[r.run.notebook.stem](r.run, rng)
            stamp = provenance("phantom", *about, "rehearsal", "cpu")
            runs.finish(r.run, rows.assign(inventory_hash="0" * 16), stamp)
        assert rehearse_report("fairskin2024", "phantom") == ""
    made = store / "figures" / "fairskin2024"
    for name in ("table1", "fig3a", *paper.EXTRA):
        if (made / f"{name}.md").is_file():
            assert "**REHEARSAL" in (made / f"{name}.md").read_text(encoding="utf-8"), name
        t = table(made, name)
        assert name in ("rejection", "pad_ufes20") or set(t.profile) >= {"rehearsal"}, name
    t = table(made, "exchange", "source", "ratio", "what")
    assert t.draws["generated", 0.5, "African"] == 1  # a ratio at which something joins


def test_what_was_not_run_says_how_to_run_it(bare):
    from skinrepro.papers.fairskin2024 import BEYOND, EXTRA

    for name in BEYOND:
        t = table(bare, name)
        assert len(t) and set(t.draws) == {0}, name
        told = (bare / f"{name}.md").read_text(encoding="utf-8")
        assert f"`skinrepro run fairskin2024 --section {EXTRA[name]}`" in told
        assert "Nothing was run" in told and "not run |" in told
        assert set(table(bare, f"{name}_claims").verdict) == {"not run"}
    grid = tomllib.loads((PAPERS / "fairskin2024" / "grid.toml").read_text(encoding="utf-8"))
    for name, asked in EXTRA.items():  # the commands run all that is listed for an artefact
        ran = {r.section for r in read_grid(PAPERS / "fairskin2024", "mini", asked)}
        assert {s for s, body in grid.items() if name in body["rebuilds"]} <= ran


def test_the_report_of_fairskin_without_any_run(bare):
    claims = pd.read_csv(bare / "claims.csv", keep_default_na=False)
    assert set(claims.verdict) == {"not run"}
    for name in ("table1", "table2", "table2_truth", "table3", "cells", "asked", "copies"):
        t = pd.read_csv(bare / f"{name}.csv", keep_default_na=False)
        assert len(t) and set(t.draws) == {0}, name
        told = (bare / f"{name}.md").read_text(encoding="utf-8")
        assert "Nothing was run" in told and "not run |" in told, name
    assert {f.stem for f in bare.glob("*.svg")} == {"fig1", "fig2"}
    counts = pd.read_csv(bare / "fig1.csv")
    assert counts.n.iloc[0] == 412 and counts.n.iloc[-1] == 12 and counts.n.sum() == 2575
    told = (bare / "summary.md").read_text(encoding="utf-8")
    assert "equal to the printed 12 and 412" in told and "%" not in told
