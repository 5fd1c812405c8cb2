"""The whole report of wang2024, on made-up records of every run of the grid (nothing of it is a
result).
"""

import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from skinrepro import runs
from skinrepro.core import paths, provenance
from skinrepro.grid import read_grid
from skinrepro.records import read_record

WANG = ROOT / "nbs" / "papers" / "wang2024"
SMALL = dict(vgg_small="VGG-16", resnet_small="ResNet-18", vit_small="ViT-B-16")


def numbers_of(run, rng):
    "Made-up numbers of the shape that the run's notebook records."
    p, kind = run.parameters, run.notebook.stem

    def row(metric, value, n, group="all", **more):
        return dict(metric=metric, group=group, value=value, n=n) | more

    if kind in ("scenario", "ablation"):
        equal = p.get("steps_as") == "real"
        both = 0.09 if equal else 0.12
        gain = {"real": 0, "syn": 0.06, "real+syn": both}[p.get("train", "syn")] + 0.1 * (
            p["scenario"] == "ii"
        )
        gain += dict(vanilla=0, ti=0.05, lora=0.08).get(p.get("method"), 0.2) - 0.2 * (
            p.get("pipeline") == "txt2img"
        )
        test = dict(source="light").get(p.get("target"), "dark")
        n = 56 if p["scenario"] == "i" else 291
        extra = dict(
            arch_paper=SMALL[p["arch"]],
            n_test=n,
        ) | (dict(test=test, train="syn") if kind == "ablation" else {})
        return [
            row(
                m,
                min(0.5 + gain + rng.normal(0, 0.004), 1.0),
                n,
                low=0.3,
                high=0.9,
                select_on=rule,
                **extra,
            )
            for m in ("accuracy", "precision", "recall", "f1")
            for rule in ("val", "test", "last")
        ] + [
            row(metric, n, 1284, select_on=rule, **extra)
            for rule in ("val", "test", "last")
            for metric, n in dict(
                train_size=1284,
                train_steps=774 if p.get("train") == "real+syn" and not equal else 387,
            ).items()
        ]
    if kind == "weights":
        return [
            row("loss", 0.3, 900, f"{p['method']} last"),
            row("seconds_lora", 60.0, 900),
            row("n_train", 900, 900),
        ]
    if kind == "generator":
        tones = dict(
            ita=-20.0, ita_parents=50.0, dark_share=0.9, dark_share_parents=0.0, structure=0.6
        )
        sizes = dict(n_images=50, n_parents=10, images_per_second=9.0)
        return [row(m, v, 50, g) for g in ("all", "light parents") for m, v in tones.items()] + [
            row(m, v, 50) for m, v in sizes.items()
        ]
    out = [row("judge_accuracy", 0.97, 200, g, what="judge") for g in ("all", "light", "dark")]
    for g in ("all", "known conditions", "psoriasis"):
        out += [
            row(m, v, 56, g, what="parents")
            for m, v in dict(ita=50.0, dark_share=0.0, called_asked=0.95).items()
        ]
        out += [
            row(m, v, 56, g, what="rendered dark")
            for m, v in dict(ita=-25.0, dark_share=1.0, kept=0.99, structure=0.8).items()
        ]
        for method in p["methods"].split(","):
            for named in ("right", "wrong"):
                for s in map(float, p["strengths"].split(",")):
                    out += [
                        row(m, v, 56, g, what="img2img", method=method, named=named, strength=s)
                        for m, v in dict(
                            ita=50 - 80 * s,
                            dark_share=s,
                            kept=1 - s / 5,
                            structure=1 - s / 2,
                            called_asked=1 - s / 5,
                        ).items()
                    ]
    return out


def leave_images(run):
    """Images of a generator: gradients of two parents for each condition, two images each, with
    their own records.
    """
    from skinrepro.generate import SYNTHETIC, write_image
    from skinrepro.manifest import make, write
    from skinrepro.papers.wang2024 import load

    pool, _ = load(
        run.parameters["data"], size=run.parameters["size"], fraction=run.parameters["fraction"]
    )
    rows = []
    for p in (
        pool[pool.skin_type.isin([1, 2])]
        .sort_values("image_id")
        .groupby("label")
        .head(2)
        .itertuples()
    ):
        for k in range(2):
            file = run.folder / "images" / f"{p.image_id}-syn{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            said = dict(what=SYNTHETIC, prompt=f"An image of {p.label}", seed=k, strength=0.6)
            write_image(np.full((64, 64, 3), (90, 60, 40 + 20 * k), "uint8"), file, said, 64)
            rows.append(
                dict(
                    image_id=file.stem,
                    path=str(file),
                    label=p.label,
                    skin_type=6,
                    group="dark",
                    parent_id=p.image_id,
                    split="train",
                )
            )
    write(make(pd.DataFrame(rows), source="synthetic"), run.folder / "manifest.parquet")


def execute_report(folder):
    runs.execute_notebook(WANG / "report.ipynb", folder / "report.ipynb")
    return json.loads((folder / "report.ipynb").read_text())


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The report from a made-up store, and again elsewhere from nothing but the records that the
    first one kept.
    """
    base = tmp_path_factory.mktemp("report")
    places = ("SKINREPRO_RUNS", "SKINREPRO_FIGURES", "SKINREPRO_COMMITTED")
    before = {k: os.environ.get(k) for k in places}
    try:
        os.environ |= {k: str(base / d) for k, d in zip(places, ("runs", "first", "nothing"))}
        rng = np.random.default_rng(0)
        for run in [
            *read_grid(WANG, "mini"),
            *read_grid(WANG, "mini", "pad_ufes20,pad_synthetic,pad_strength", seed=0),
        ]:
            p = run.parameters
            runs.finish(
                run,
                pd.DataFrame(numbers_of(run, rng)),
                provenance(p["data"], "0" * 16, "made up", "0" * 64, "mini", "cpu"),
            )
            if run.section == "generator" and (p["scenario"], p["seed"]) == ("iii", 0):
                leave_images(run)
        execute_report(base)
        (base / "published" / "wang2024").mkdir(parents=True)
        for f in ("records.csv", "runs.csv"):
            shutil.copy(base / "first" / "wang2024" / f, base / "published" / "wang2024")
        os.environ |= {k: str(base / d) for k, d in zip(places, ("none", "second", "published"))}
        execute_report(base)
    finally:
        for k, v in before.items():
            if v is None:
                os.environ.pop(k, None)
            else:
                os.environ[k] = v
    return base / "first" / "wang2024", base / "second" / "wang2024"


def test_the_report_makes_every_artefact(reports):
    names = {f.name for f in reports[0].iterdir()}
    own = (
        "claims",
        "generators",
        "strength",
        "pad_ufes20",
        "pad_ufes20_claims",
        "pad_ufes20_strength",
    )
    for stem in (*(f"table{i}" for i in range(1, 6)), *own):
        assert {f"{stem}.{s}" for s in ("md", "csv", "tex")} <= names
    for stem in (
        "fig1",
        "fig2",
        "tables2to4",
        "claims_effects",
        "strength_curves",
        "pad_ufes20_strength_curves",
    ):
        assert {f"{stem}.{s}" for s in ("png", "svg", "csv")} <= names


def test_every_row_of_the_tables_has_its_runs_and_none_is_comparable(reports):
    # nine printed rows of five numbers, and three of ours at equal steps
    for name, cells in dict(table2=60, table3=60, table4=60, table5=12).items():
        t = pd.read_csv(reports[0] / f"{name}.csv", keep_default_na=False)
        keys = [
            "arch",
            "train",
            "metric",
            *(["test", "pipeline", "strategy"] if name == "table5" else []),
        ]
        assert set(t.verdict) == {"not comparable"} and len(t.drop_duplicates(keys)) == cells
    t = pd.read_csv(reports[0] / "table2.csv", keep_default_na=False)
    assert set(t.train) == {"real", "syn", "real+syn", "real+syn, equal steps"}
    assert set(t.n_seeds) == {5}
    ours = t[t.train == "real+syn, equal steps"]
    assert set(ours.reported) == {""} and set(ours.note) == {"not in the paper"}
    text = (reports[0] / "table2.md").read_text()
    lines = [line.partition("VGG-16 | ")[2] for line in text.splitlines() if "VGG-16 | " in line]
    rows = [line.partition(" | ")[0] for line in lines]
    assert rows == ["real", "syn", "real+syn", "real+syn, equal steps"]
    assert "training steps: real 387; syn 387; real+syn 774; real+syn, equal steps 387." in text
    assert "ours, not the paper's" in text
    why = t[(t.train == "syn") & (t.metric == "accuracy")].reason.iloc[0]
    assert (
        "phantom data" in why
        and "generator with" in why
        and "strength 0.6" in why
        and "base miniature" in why
    )


def test_claims_of_the_report(reports):
    t = pd.read_csv(reports[0] / "claims.csv").set_index(["claim", "part"])
    syn = t.loc["Synthetic images train better classifiers than real ones"]
    assert syn.index.tolist() == [
        "over all",
        *(f"scenario {s}" for s in ("i", "ii", "iii")),
        *(f"network {small} in the place of {paper}" for small, paper in SMALL.items()),
    ]
    assert (
        syn.draws.eq(5).all()
        and syn.pairs.tolist() == [9, 3, 3, 3, 3, 3, 3]
        and syn.effect.between(4, 8).all()
    )
    assert syn.printed["over all"] == pytest.approx(3.7178, abs=1e-4)
    longer, level = (
        t.loc[f"Both together are better than either alone{end}"]
        for end in ("", ", at equal steps")
    )
    assert longer.effect["over all"] == pytest.approx(6, abs=0.5)  # against the nearer of the two
    assert level.effect["over all"] == pytest.approx(3, abs=0.5)
    assert level.draws.eq(5).all() and level.pairs.tolist() == syn.pairs.tolist()
    assert level.printed.isna().all() and level.source.str.startswith("ours").all()
    one = t.loc["Textual inversion with LoRA is the best of six"]
    assert (
        one.verdict.eq("supported").all()
        and one.draws.eq(5).all()
        and one.rival.eq("img2img lora").all()
        and set(one.n_test) == {"56"}
    )
    assert t.loc["Image-to-image is better than text-to-image"].pairs.tolist() == [4, 2, 2]
    few = t.loc["A few dark images help (scenario ii against iii)"]
    assert few.effect.between(8, 12).all() and few.mde.notna().all()


def test_no_small_network_goes_by_the_name_of_a_large_one(reports):
    "On phantoms and on photographs, in tables, claims and figures."
    for name in ("table2.md", "claims.md", "claims_effects.csv", "pad_ufes20_claims.md"):
        text = (reports[0] / name).read_text(encoding="utf-8")
        for small, paper in SMALL.items():
            assert f"{small} in the place of {paper}" in text, name
            assert not re.search(rf"(?<!in the place of ){paper}", text), name
    assert "vgg_small in the place of VGG-16" in (reports[0] / "table5.md").read_text("utf-8")
    picture = (reports[0] / "tables2to4.svg").read_text(encoding="utf-8")
    assert picture.count("in the place of") == 3 and "hollow: not comparable" in picture


def test_records_without_sizes_are_not_comparable_and_say_why(reports):
    t = pd.read_csv(reports[0] / "table2.csv", keep_default_na=False)
    assert t.reason.str.contains("training size not recorded").all()
    assert set(t.network) == set(SMALL) and set(t.classes) == {""}


def test_phantoms_are_nowhere_called_real_skin(reports):
    for name in ("fig1.svg", "fig2.svg", "fig2.csv"):
        text = (reports[0] / name).read_text(encoding="utf-8")
        assert not re.search(r"\breal\b|light-skinned parent|[Pp]hotograph", text), name
    assert "Phantoms of light skin (framed)" in (reports[0] / "fig2.svg").read_text("utf-8")
    assert "phantom, light" in (reports[0] / "fig1.svg").read_text(encoding="utf-8")


def test_strength_says_how_many_images_are_behind_it(reports):
    text = (reports[0] / "strength.md").read_text(encoding="utf-8")
    for part in ("| n |", "n_kept", "n = 200 held-out images", "n_train 900 images"):
        assert part in text, part


def test_records_of_another_profile_stay_out_of_all_sections():
    "All reading of records goes through `of_profile`, but for looking a run up by its id."
    notebook = json.loads((WANG / "report.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    (cell,) = [c for c in cells if "def of_profile(" in c]
    helper = cell[cell.index("def of_profile(") :].partition("\n\n\n")[0]
    rows = [(d, p) for d in ("phantom", "pad_ufes20") for p in ("mini", "paper")]
    t = pd.DataFrame(rows, columns=["data", "profile"])
    space = dict(pd=pd, every=dict(scenario=t, generator=t[:0]), profile="paper")
    exec(helper, space)
    of_profile = space["of_profile"]
    assert of_profile("scenario").index.tolist() == [1, 3]
    assert of_profile("scenario", "pad_ufes20").index.tolist() == [3]
    assert not len(of_profile("generator")) and not len(of_profile("strength", "phantom"))
    by_id = ('groupby("run_id")', "overview(every)", 'w = every.get("weights"')
    direct = [
        line
        for c in cells
        for line in c.splitlines()
        if re.search(r"\bevery\b[.\[]", line) and not any(k in line for k in by_id)
    ]
    allowed = ("t = every.get(notebook", "if len(every.get(notebook")
    assert [line for line in direct if not line.strip().startswith(allowed)] == []


def test_sentences_are_written_for_all_that_was_run(reports):
    text = (reports[0] / "summary.md").read_text(encoding="utf-8")
    assert "PHANTOM DATA" in text and "Data: pad_ufes20" in text
    assert "40 of 40 numbers are equal" in text and "printed +3.7, not comparable" in text
    tone = text.split("## Tone")[1].split("\n## ")[0]
    assert tone.count("mean ITA 50.0 degrees before, -20.0 after") == 6  # two data sets


def test_phantoms_are_stamped_wherever_they_are(reports):
    tables = [
        f"{t}.{s}"
        for t in ("table2", "table5", "claims", "generators", "strength")
        for s in ("md", "tex")
    ]
    for name in [
        *tables,
        "fig1.svg",
        "fig2.svg",
        "tables2to4.svg",
        "claims_effects.svg",
        "strength_curves.svg",
    ]:
        assert "PHANTOM DATA" in (reports[0] / name).read_text(encoding="utf-8"), name
    for name in ("pad_ufes20.md", "pad_ufes20_claims.md", "pad_ufes20_strength.md"):
        text = (reports[0] / name).read_text(encoding="utf-8")
        assert "PHANTOM" not in text and "Data: pad_ufes20" in text
        assert "CC BY 4.0" in text or "strength" in name


def test_galleries_name_their_images_and_no_folder(reports):
    t = pd.read_csv(reports[0] / "fig2.csv", keep_default_na=False)
    assert len(t) == 7 * 6 and t.groupby("row").size().eq(6).all() and t.parent.sum() == 14
    made = t[~t.parent]
    assert (
        set(made.parent_id) == set(t.image_id[t.parent])
        and made.prompt.str.startswith("An image of").all()
        and made.seed.astype(str).isin(["0", "1"]).all()
    )
    assert (
        set(t.skin_type[t.parent]) <= {1, 2}
        and "path" not in t
        and str(reports[0].parents[1]) not in (reports[0] / "fig2.svg").read_text(encoding="utf-8")
    )
    assert (
        pd.read_csv(reports[0] / "fig1.csv", keep_default_na=False).role.tolist()
        == ["training image"] * 2 + ["synthetic"] * 2
    )


def test_tables_and_figures_follow_from_the_records_alone(reports):
    "Byte by byte; the galleries need the images of the store (their csv has a column image_id)."
    first, second = reports
    same = 0
    for f in sorted(first.iterdir()):
        if f.suffix not in (".md", ".csv", ".tex", ".svg") or f.stem in ("fig1", "fig2"):
            continue
        assert (second / f.name).read_bytes() == f.read_bytes(), f.name
        same += 1
    assert same > 30 and not (second / "fig2.csv").exists() and (second / "fig1.png").exists()


def test_nothing_made_up_is_in_the_repository():
    committed = paths().figures / "wang2024" / "records.csv"
    assert "made up" not in set(read_record(committed).weights)
