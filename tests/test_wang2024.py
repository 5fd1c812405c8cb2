"""wang2024 on the real annotations, on photographs in the publisher's layout, and from the
committed records.
"""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from skinrepro import runs
from skinrepro.core import has_data, provenance
from skinrepro.grid import asked_for, read_grid
from skinrepro.papers.wang2024 import (
    AS_RELEASED,
    CONDITIONS,
    JPEG_QUALITY,
    METHODS,
    SEEDS,
    SPLIT_BY,
    STUDIES,
    WEIGHTS,
    load,
    read_weights,
    releases,
    scenario_split,
    split_of,
    statistics_of,
    study_of,
    token,
    whole_sizes,
)
from skinrepro.records import read_record, read_records
from skinrepro.tables import compare, incomplete, read_reported, save_table
from skinrepro.workflow import execute


def needs(name):
    return pytest.mark.skipif(
        not has_data(name),
        reason=(
            f"needs {name}: set SKINREPRO_DATA to a folder that holds it"
            f" (`skinrepro data list {name}`)"
        ),
    )


PRINTED = {
    (r.condition, r.fst): int(r.value)
    for r in (
        read_reported(ROOT / "nbs" / "papers" / "wang2024" / "reported.csv")
        .query('artefact == "table1"')
        .itertuples()
    )
}
ROMAN = {1: "I", 2: "II", 5: "V", 6: "VI"}
FITZ = STUDIES["fitzpatrick17k"]


def annotated():
    """The real annotations of the study as a manifest, in file order; the photographs are not
    needed for a split.
    """
    from skinrepro.fitzpatrick17k import read_annotations, to_manifest

    m = to_manifest(read_annotations(), "scale", labels=CONDITIONS)
    m = m[m.skin_type.isin(FITZ.majority + FITZ.minority)].reset_index(drop=True)
    return m.assign(group=m.skin_type.isin(FITZ.majority).map({True: "light", False: "dark"}))


@needs("fitzpatrick17k")
def test_table1_from_the_annotations():
    n = annotated().groupby(["label", "skin_type"]).size()
    ours = {(c, ROMAN[t]): int(v) for (c, t), v in n.items()}
    ours |= {(c, "total"): sum(v for (d, _), v in ours.items() if d == c) for c in CONDITIONS}
    ours |= {
        ("total", t): sum(v for (_, s), v in ours.items() if s == t)
        for t in [*ROMAN.values(), "total"]
    }
    assert len(PRINTED) == 40 and ours == PRINTED


@needs("fitzpatrick17k")
@pytest.mark.parametrize("reading", ["stratified", "union"])
def test_sizes_for_every_official_seed(reading):
    m = annotated()
    for seed in SEEDS:
        sizes = {
            s: scenario_split(m, FITZ, s, seed, reading).split.value_counts().to_dict()
            for s in ("i", "ii", "iii")
        }
        assert sizes == dict(
            i=dict(train=1519, test=56),
            ii=dict(train=1284, test=291),
            iii=dict(train=1228, test=291),
        )


@needs("fitzpatrick17k")
def test_released_list_is_the_stratified_reading():
    m = annotated()
    released, drawn = (scenario_split(m, FITZ, "ii", 0, how) for how in ("released", "stratified"))

    def sizes(s):
        return s.groupby(["split", "group", "label", "skin_type"]).size().to_dict()

    assert sizes(released) == sizes(drawn)
    dark = released[(released.split == "train") & (released.group == "dark")]
    assert len(dark) == 56 and set(dark.groupby(["label", "skin_type"]).size()) == {4}
    with pytest.raises(ValueError, match="seed 0"):
        scenario_split(m, FITZ, "ii", 42, "released")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Fitzpatrick17k as its publisher lays it out, with made-up annotations and noise for
    photographs: 9 images of each condition and skin type.
    """
    from PIL import Image

    from skinrepro.fitzpatrick17k import COLUMNS

    home = tmp_path_factory.mktemp("data") / "fitzpatrick17k"
    (home / "images").mkdir(parents=True)
    rows = []
    for label in CONDITIONS:
        for skin in (1, 2, 5, 6):
            for i in range(9):
                buffer = io.BytesIO()
                Image.fromarray(
                    np.random.default_rng([CONDITIONS.index(label), skin, i]).integers(
                        0, 256, (24, 30, 3), dtype="uint8"
                    )
                ).save(buffer, "JPEG")
                md5 = hashlib.md5(buffer.getvalue()).hexdigest()
                (home / "images" / f"{md5}.jpg").write_bytes(buffer.getvalue())
                rows.append(
                    {
                        **dict.fromkeys(COLUMNS, ""),
                        "md5hash": md5,
                        "fitzpatrick_scale": skin,
                        "fitzpatrick_centaur": skin,
                        "label": label,
                        "nine_partition_label": "inflammatory",
                        "three_partition_label": "non-neoplastic",
                        "url": f"http://nowhere/{md5}.jpg",
                    }
                )
    pd.DataFrame(rows).to_csv(home / "fitzpatrick17k.csv", index=False)
    return home


def test_photographs_run_end_to_end(photographs, tmp_path, monkeypatch):
    "The paper's own data path: annotations, photographs, inventory, splits, training, record."
    monkeypatch.setenv("SKINREPRO_DATA", str(photographs.parent))
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    run = read_grid(
        ROOT / "nbs" / "papers" / "wang2024",
        "smoke",
        "scenario",
        data="fitzpatrick17k",
        scenario="iii",
        train="real",
        arch="resnet_small",
        epochs=1,
    )[0]
    (outcome,) = execute([run], progress=False)
    assert outcome.status == "ran", outcome.error
    r = read_records("wang2024")
    assert (
        set(r.data) == {"fitzpatrick17k"}
        and r.inventory_hash.str.len().eq(16).all()
        and set(r.n_test) == {7 * 9 * 2 - 56}
    )


@pytest.fixture(scope="module")
def partial(photographs, tmp_path_factory):
    "The record of a run on photographs of four of the seven conditions, in the paper's own layout."
    home = tmp_path_factory.mktemp("partial")
    shutil.copytree(photographs, home / "data" / "fitzpatrick17k")
    rows = pd.read_csv(photographs / "fitzpatrick17k.csv", dtype=str)
    for md5 in rows.md5hash[rows.label.isin(CONDITIONS[4:])]:
        (home / "data" / "fitzpatrick17k" / "images" / f"{md5}.jpg").unlink()
    asked = dict(data="fitzpatrick17k", scenario="ii", train="real", arch="resnet_small", epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKINREPRO_DATA", str(home / "data"))
        patch.setenv("SKINREPRO_RUNS", str(home / "runs"))
        (run,) = read_grid(
            ROOT / "nbs" / "papers" / "wang2024", "smoke", "scenario", **asked, missing="drop"
        )
        (outcome,) = execute([run], progress=False)
        assert outcome.status == "ran", outcome.error
        return read_records("wang2024", "scenario")


def test_a_run_on_part_of_the_photographs_says_so(partial):
    "Nine of each condition and type; of four conditions 18 light and 18 dark, 8 of each drawn."
    r = partial.iloc[0]
    assert (r.n_train, r.n_val, r.n_test) == (4 * (10 + 8) - 4 * 2, 4 * 2, 4 * 10)
    assert (r.n_classes, r.n_classes_train, r.n_classes_test) == (7, 4, 4)
    assert r.lacking == "prurigo nodularis, psoriasis, squamous cell carcinoma"
    sizes = partial[partial.metric == "train_size"].value
    assert set(sizes) == {r.n_train}  # without the validation part


def test_such_a_run_is_not_comparable_though_all_else_is_the_papers(partial, tmp_path):
    paper = ROOT / "nbs" / "papers" / "wang2024"
    cells = read_reported(paper / "reported.csv").query('artefact == "table3" and unit != ""')
    r = partial.assign(arch="resnet18", profile="paper")
    cells = cells[(cells.arch == "ResNet-18") & (cells.train == "real")]
    by = dict(scenario="scenario", arch="arch_paper", train="train")
    setting = dict(data="fitzpatrick17k", profile="paper", arch=["resnet18"])
    t = compare(r, cells, by, setting, sizes=whole_sizes)
    assert set(t.verdict) == {"not comparable"}
    for part in ("missing drop", "no images of prurigo", "training size 64 instead of 1156"):
        assert t.reason.str.contains(part).all(), part
    assert t.reason.str.contains("classes that train 4 instead of 7").all()
    md = save_table(t, tmp_path / "table3", "Table 3")[0].read_text(encoding="utf-8")
    assert md.startswith("# Table 3 (with 4 of 7 classes, chance 25 %)")


@pytest.mark.parametrize("scenario, n", [("i", 1519), ("ii", 1284), ("iii", 1228)])
@pytest.mark.parametrize("val_fraction", [0.0, 0.1])
def test_900_of_the_training_images_are_not_all(scenario, n, val_fraction):
    "Whole conditions or single images may lack: what counts is what the selection has."
    from skinrepro.papers.wang2024 import selection
    from skinrepro.phantom import phantom_manifest
    from skinrepro.splits import part_sizes

    m = STUDIES["phantom"].grouped(phantom_manifest(selection(), "wang2024"))
    asked = dict(scenario=scenario, train="real", val_fraction=val_fraction)

    def sizes(m):
        how = (scenario, 42, "union", val_fraction)
        return part_sizes(scenario_split(m, STUDIES["phantom"], *how), CONDITIONS)

    whole = sizes(m)
    assert whole["n_train"] + whole["n_val"] == n and incomplete(whole, whole_sizes(asked)) == []
    some = sizes(m.sample(frac=0.6, random_state=0))
    assert any(s.startswith("training size") for s in incomplete(some, whole_sizes(asked)))
    few = sizes(m[m.label.isin(CONDITIONS[:4])])
    assert "classes that train 4 instead of 7" in incomplete(few, whole_sizes(asked))


def test_missing_or_altered_photographs_are_never_silent(photographs, tmp_path, monkeypatch):
    home = tmp_path / "data" / "fitzpatrick17k"
    shutil.copytree(photographs, home)
    monkeypatch.setenv("SKINREPRO_DATA", str(home.parent))
    whole, stock = load("fitzpatrick17k")
    files = sorted((home / "images").iterdir())
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:200])
    shutil.copy(files[3], files[2])
    with pytest.raises(FileNotFoundError) as e:
        load("fitzpatrick17k")
    assert all(
        w in str(e.value)
        for w in ["3 of the 252", "missing", "corrupt", "skinrepro data verify", 'missing="drop"']
    )
    rest, less = load("fitzpatrick17k", missing="drop")
    assert (
        len(rest) == len(whole) - 3
        and less != stock
        and not set(rest.image_id) & {f.stem for f in files[:3]}
    )
    shutil.rmtree(home / "images")
    (home / "images").mkdir()
    with pytest.raises(FileNotFoundError, match="252 of the 252"):
        load("fitzpatrick17k", missing="drop")  # nothing is not a part


@needs("pad_ufes20")
def test_pad_ufes20_through_plain_papermill(tmp_path):
    out = tmp_path / "out.ipynb"
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(ROOT / "nbs" / "papers" / "wang2024" / "scenario.ipynb"),
        str(out),
        "-k",
        "python3",
    ]
    for name, value in dict(
        data="pad_ufes20", scenario="i", fraction="1.0", epochs=1, arch="resnet_small"
    ).items():
        command += ["-p", name, str(value)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "SKINREPRO_RUNS": str(tmp_path / "runs")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    r = read_record(next((tmp_path / "runs").rglob("records.csv")))
    assert (
        set(r.data) == {"pad_ufes20"}
        and set(r.n_test) == {32}
        and set(r.flexible_used) == {"union"}
    )


@needs("pad_ufes20")
def test_pad_ufes20_patients_stay_on_one_side():
    m, _ = load("pad_ufes20")
    study = STUDIES["pad_ufes20"]
    for s in ("i", "ii", "iii"):
        for seed in SEEDS[:3]:
            split = scenario_split(m, study, s, seed, val_fraction=0.1)
            assert (split.groupby("patient_id").split.nunique() == 1).all() and set(
                split.split
            ) == {"train", "val", "test"}


def report(tmp_path, **env):
    runs.execute_notebook(
        ROOT / "nbs" / "papers" / "wang2024" / "report.ipynb", tmp_path / "report.ipynb"
    )


@pytest.mark.parametrize("with_data", [True, False])
def test_tables_follow_from_the_committed_records(tmp_path, monkeypatch, with_data, executed):
    "A reviewer without data, runs or GPU rebuilds every table, byte by byte."
    if with_data and not has_data("fitzpatrick17k"):
        pytest.skip("needs fitzpatrick17k: set SKINREPRO_DATA")
    if with_data:
        made = executed(ROOT / "nbs" / "papers" / "wang2024" / "report.ipynb") / "figures"
    else:
        made = tmp_path / "figures"
        monkeypatch.delenv("SKINREPRO_DATA", raising=False)
        monkeypatch.setenv("SKINREPRO_FIGURES", str(made))
        monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
        report(tmp_path)
    committed = ROOT / "figures" / "wang2024"
    tables = sorted(f.name for f in committed.iterdir() if f.suffix in (".md", ".csv", ".tex"))
    assert "table1.md" in tables and "pad_ufes20.md" in tables
    galleries = [
        f
        for f in tables
        if f.endswith(".csv") and "image_id" in (committed / f).read_text().partition("\n")[0]
    ]  # need the images themselves
    for name in set(tables) - set(galleries):
        assert (made / "wang2024" / name).read_bytes() == (committed / name).read_bytes(), name


def test_own_runs_replace_the_committed_records_of_their_kind(tmp_path, monkeypatch):
    """One run of the grid in the store, and one trial with other parameters: the first is in the
    tables, the second nowhere.
    """
    monkeypatch.setenv("SKINREPRO_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    home = tmp_path / "figures" / "wang2024"
    committed = read_record(ROOT / "figures" / "wang2024" / "records.csv")
    mine = read_grid(ROOT / "nbs" / "papers" / "wang2024", "mini", "scenario")[0]
    trial = "scenario-000000000000"
    made = committed[committed.run_id == mine.id].assign(commit="mine")
    assert len(made)
    made.loc[made.metric == "accuracy", "value"] = 0.125
    partial = runs.run_id(
        "wang2024", "scenario", mine.parameters | {"missing": "drop", "seed": 7}
    )  # a further draw, on an incomplete data set
    for name, kind in {mine.id: {}, trial: {}, partial: dict(missing="drop", seed=7)}.items():
        (tmp_path / "runs" / "wang2024" / name).mkdir(parents=True)
        made.assign(run_id=name, **kind).to_csv(
            tmp_path / "runs" / "wang2024" / name / "records.csv", index=False
        )
    report(tmp_path)
    after = read_record(home / "records.csv")
    scenario = after[(after.data == "phantom") & (after.notebook == "scenario")]
    assert set(scenario.run_id) == {mine.id, partial} and trial not in set(after.run_id), (
        "scenario/phantom/mini is replaced, the trial stays out"
    )
    assert trial in (tmp_path / "report.ipynb").read_text(), "and the report says so"
    other = after.data != "phantom"
    assert set(after[other].run_id) == set(committed[committed.data != "phantom"].run_id), (
        "other data sets keep their records"
    )
    t = pd.read_csv(home / "table2.csv")
    assert (
        t[(t.arch == "VGG-16") & (t.train == "real") & (t.metric == "accuracy")].reproduced.tolist()
        == [12.5] * 3
    )


def test_committed_tables_are_stamped_and_honest():
    home = ROOT / "figures" / "wang2024"
    for name in ("table2", "table3", "table4"):
        t = pd.read_csv(home / f"{name}.csv", keep_default_na=False)
        assert (t.data == "phantom").any() and set(zip(t.data, t.verdict)) <= {
            ("phantom", "not comparable"),
            ("", "not run"),
        }
        assert (
            "PHANTOM DATA" in (home / f"{name}.md").read_text()
            and "PHANTOM DATA" in (home / f"{name}.tex").read_text()
        )
    t = pd.read_csv(home / "table1.csv")
    assert len(t) == 40 and set(t.verdict) == {"equal"}
    other = (home / "pad_ufes20.md").read_text()
    assert "CC BY 4.0" in other and "| n_train | n_test | draws |" in other
    r = read_record(home / "records.csv")
    assert set(r.profile) == {"mini"} and {
        "data_hash",
        "version",
        "commit",
        "device",
        "seconds",
        "weights",
    } <= set(r.columns)
    assert r.data_hash.str.len().eq(16).all()


def test_unwritable_figures_folder_is_explained(tmp_path, monkeypatch):
    closed = tmp_path / "file"
    closed.write_text("")
    monkeypatch.setenv("SKINREPRO_FIGURES", str(closed / "figures"))
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    with pytest.raises(Exception) as e:
        report(tmp_path)
    assert "SKINREPRO_FIGURES" in str(e.value) and str(closed) in str(e.value)
    assert json.loads((tmp_path / "report.ipynb").read_text())["cells"], (
        "the executed notebook is kept"
    )


# The generator
# ------------------------------------------------------------------------------------------------

WANG = ROOT / "nbs" / "papers" / "wang2024"


def of(grid, section):
    return [r for r in grid if r.section == section]


def test_the_paper_profile_has_the_settings_of_the_paper():
    for section in ("generator", "ablation_images"):
        for r in of(read_grid(WANG, "paper", section), section):
            asked = r.made_from["learned"].parameters | r.parameters
            assert (
                {k: asked[k] for k in AS_RELEASED} == AS_RELEASED
                and asked["base"] == "sd21-base"
                and asked["parents"] == 1
            )
    assert {r.parameters["seed"] for r in read_grid(WANG, "paper", "synthetic")} == set(SEEDS)


@pytest.mark.parametrize("profile", ["smoke", "mini", "paper"])
def test_classifiers_get_the_images_of_their_own_split(profile):
    "By scenario, draw and validation part; in Table 5 by strategy and target, too."
    grid = read_grid(WANG, profile, "synthetic,ablation")
    shared = [k for k in SPLIT_BY if k not in ("flexible", "label_source", "missing")]
    for section in ("generator", "ablation_images"):
        for r in of(grid, section):
            maker = r.made_from["learned"]
            keys = [*shared, "method", "base"]
            assert r.parameters["learned"] == maker.id and maker.id in r.needs
            assert {k: r.parameters[k] for k in keys} == {k: maker.parameters[k] for k in keys}
    for section in ("synthetic", "ablation"):
        assert of(grid, section)
        for r in of(grid, section):
            maker = r.made_from["images"]
            keys = shared + (["method", "pipeline", "target"] if section == "ablation" else [])
            assert r.parameters["images"] == maker.id and maker.id in r.needs
            assert {k: r.parameters[k] for k in keys} == {k: maker.parameters[k] for k in keys}
    cells = {
        (r.parameters["pipeline"], r.parameters["method"], r.parameters["target"])
        for r in of(grid, "ablation")
    }
    assert cells == {
        (p, m, t)
        for t in ("dark", "source")
        for p, m in [("txt2img", "vanilla"), ("txt2img", "ti"), *(("img2img", m) for m in METHODS)]
    }


def test_one_cell_of_table5_is_the_generator_of_table2():
    """Equal questions run once: with all parents, image-to-image with TI and LoRA for dark skin is
    what Table 2 has.
    """
    grid = read_grid(WANG, "paper", "generator,ablation")
    ours = dict(method="ti+lora", pipeline="img2img", target="dark")
    cell = next(r for r in of(grid, "ablation") if ours.items() <= r.parameters.items())
    assert cell.parameters["images"] in {r.id for r in of(grid, "generator")}


def test_the_demo_is_one_scenario_and_one_draw():
    first, demo = (ROOT / "Makefile").read_text().partition("demo:")[2].splitlines()[1:3]
    assert "skinrepro first wang2024" in first
    assert "--section scenario,synthetic --set scenario=ii --set seed=0" in demo
    grid = read_grid(WANG, "mini", "scenario,synthetic", scenario="ii", seed=0)
    assert {s: len(of(grid, s)) for s in {r.section for r in grid}} == dict(
        weights=1, generator=1, scenario=3, synthetic=6
    )
    assert {r.parameters["scenario"] for r in grid} == {"ii"} and {
        r.parameters["seed"] for r in grid
    } == {0}


def test_equal_steps_ask_for_the_images_and_settings_of_both_together():
    "Only `steps_as` differs; at paper synthetic images alone have five times the steps, too."
    for profile, trains in dict(mini={"real+syn"}, paper={"syn", "real+syn"}).items():
        grid = read_grid(WANG, profile, "synthetic,equal_steps")
        assert {r.parameters["train"] for r in of(grid, "equal_steps")} == trains
        assert {r.parameters["seed"] for r in of(grid, "equal_steps")} == set(SEEDS)
        other = {r.id for r in of(grid, "synthetic")}
        for r in of(grid, "equal_steps"):
            assert r.parameters["steps_as"] == "real" and r.id not in other
            asked = r.parameters | dict(steps_as=None)
            assert runs.run_id("wang2024", "scenario", asked) in other


def test_equal_steps_draw_as_many_images_as_real_ones_train(tmp_path, monkeypatch):
    """Counted: the images that each epoch has trained on, and what the record says of the steps.
    The generator's images are the training images themselves.
    """
    from skinrepro.batches import train_store_size
    from skinrepro.manifest import make, write

    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path))
    grid = read_grid(WANG, "smoke", "synthetic", scenario="iii", train="real+syn", epochs=3)
    run, maker = grid[-1], grid[-1].made_from["images"]
    asked = run.parameters | dict(steps_as="real", size=32, batch_size=50)
    _, split, _ = split_of(asked, train_store_size(32))
    train = split[split.split == "train"]
    copies = train[["path", "label"]].assign(
        image_id=train.image_id + "-syn0", parent_id=train.image_id, skin_type=6
    )
    write(make(copies, source="synthetic"), maker.folder / "manifest.parquet")
    number = pd.DataFrame([dict(metric="n_images", group="all", value=9.0, n=9, images_hash="0")])
    stamp = provenance("phantom", "0" * 16, "miniature", "0" * 64, "smoke", "cpu")
    runs.finish(maker, number, stamp)
    equal = runs.Run("wang2024", "", run.notebook, asked)
    (outcome,) = execute([equal], progress=False)
    assert outcome.status == "ran", outcome.error
    log = pd.read_csv(equal.folder / "log.csv")
    assert log.images.tolist() == [len(train)] * 3
    t = read_record(equal.folder / "records.csv").drop_duplicates("metric").set_index("metric")
    assert t.value["train_steps"] == 3 * -(-len(train) // 50)
    assert set(t.steps_as) == {"real"} and set(t.n_synthetic) == {len(train)}


def test_records_made_from_foreign_images_stay_out():
    """A further draw counts when its images are of that draw; images of other settings, or of
    another draw, do not.
    """
    grid = of(read_grid(WANG, "mini", "synthetic"), "synthetic")
    r = grid[0]

    def with_images(seed, maker):
        return runs.run_id("wang2024", "scenario", r.parameters | dict(seed=seed, images=maker))

    first = r.made_from["images"]

    def learned(seed):
        return runs.run_id(
            "wang2024", "weights", first.made_from["learned"].parameters | dict(seed=seed)
        )

    def maker(seed, weights, **other):
        return runs.run_id(
            "wang2024",
            "generator",
            first.parameters | dict(seed=seed, learned=learned(weights), **other),
        )

    made = [maker(7, 7), maker(0, 0), maker(7, 7, strength=0.9), maker(7, 0)]
    rows = pd.DataFrame(dict(seed=7, missing="error", run_id=[with_images(7, i) for i in made]))
    assert asked_for(rows, grid).tolist() == [True, False, False, False]


@needs("pad_ufes20")
def test_the_generator_runs_on_photographs(tmp_path, monkeypatch):
    """PAD-UFES-20: from photograph to classifier, the base model being the miniature; the split
    keeps patients together.
    """
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path))
    grid = read_grid(WANG, "smoke", "pad_synthetic", scenario="iii", train="syn", epochs=1)
    outcomes = execute(grid, progress=False)
    assert {o.status for o in outcomes} == {"ran"}, [o.error for o in outcomes]
    r = read_record(of(grid, "pad_generator")[0].folder / "records.csv")
    assert (
        set(r.data) == {"pad_ufes20"}
        and set(r.base) == {"miniature"}
        and r.inventory_hash.str.len().eq(16).all()
    )


def test_what_the_generator_is_not(tmp_path, monkeypatch):
    "Wrong values, and a base model that is not here, end with what there is."
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path))
    monkeypatch.delenv("SKINREPRO_DATA", raising=False)
    run = of(read_grid(WANG, "smoke", "generator", scenario="iii"), "generator")[0]
    run.parameters.update(method="vanilla", learned="")
    for change, words in [
        (dict(method="dreambooth"), ["'ti+lora'"]),
        (dict(base="sd3"), ["miniature", "sd21-base"]),
        (dict(parents=0.0), ["parents"]),
        (dict(strength=1.5), ["strength"]),
    ]:
        (outcome,) = execute(
            [runs.Run("wang2024", "", run.notebook, run.parameters | change)], progress=False
        )
        assert outcome.status == "failed" and all(w in outcome.error for w in words), outcome.error


# Photographs that are only there in part
# ------------------------------------------------------------------------------------------------


def without(photographs, tmp_path, gone):
    "A copy of the data set without the photographs whose annotation `gone` picks."
    home = tmp_path / "data" / "fitzpatrick17k"
    shutil.copytree(photographs, home)
    t = pd.read_csv(home / "fitzpatrick17k.csv")
    for name in t.md5hash[gone(t)]:
        (home / "images" / f"{name}.jpg").unlink()
    return home.parent


FOUR = ["basal cell carcinoma", "folliculitis", "psoriasis", "squamous cell carcinoma"]


def test_four_of_seven_conditions_from_words_to_strength(photographs, tmp_path, monkeypatch):
    "What is not there is not asked for: words, LoRA, images, classifiers, judge have four labels."
    data = without(photographs, tmp_path, lambda t: ~t.label.isin(FOUR))
    monkeypatch.setenv("SKINREPRO_DATA", str(data))
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    small = dict(scenario="iii", data="fitzpatrick17k", missing="drop", fraction=1.0)
    small |= dict(ti_steps=1, lora_steps=1, steps=2, parents=8.0, epochs=1, train="real+syn")
    small |= dict(strengths="0.5", methods="vanilla,ti+lora")
    grid = read_grid(WANG, "smoke", "synthetic,strength", **small, target="dark", arch="vgg_small")
    defaults = runs.declared(WANG / "ablation.ipynb")  # real images stand in
    asked = {k: small.get(k, v) for k, v in defaults.items()} | dict(scenario="i")
    cell = runs.Run("wang2024", "", WANG / "ablation.ipynb", asked)
    outcomes = execute([*grid, cell], progress=False)
    assert {o.status for o in outcomes} == {"ran"}, [o.error for o in outcomes]
    names = {r.notebook.stem for r in grid}
    assert names == {"weights", "generator", "scenario", "strength"}
    for r in [*of(grid, "synthetic"), cell]:
        p = pd.read_parquet(r.folder / "predictions.parquet")
        assert len([c for c in p if c.startswith("p_")]) == 4 and set(p.label) == set(FOUR)
        record = read_record(r.folder / "records.csv")
        assert record.inventory_hash.str.len().eq(16).all()
        steps = record.value[record.metric == "train_steps"]
        log = pd.read_csv(r.folder / "log.csv")
        assert set(steps) == {-(-int(log.images[0]) // r.parameters["batch_size"])}  # one epoch
    words = json.loads((of(grid, "weights")[0].folder / "weights.json").read_text())
    assert set(words["loras"]) == set(FOUR)
    looks = of(grid, "strength")[0].folder / "images" / "ti_lora"
    assert not list(looks.glob("nem*")) and list(looks.glob("bas*"))


@pytest.mark.parametrize(
    "gone, labels",
    [
        (lambda t: (t.label == "psoriasis") & (t.fitzpatrick_scale > 2), 6),  # dark ones of one
        (lambda t: t.label.eq("psoriasis") & (t.groupby("label").cumcount() > 0), 6),  # all but one
        (lambda t: t.fitzpatrick_scale.eq(6) & t.label.isin(FOUR), 7),  # types, not groups
    ],
)
def test_conditions_with_too_few_photographs_are_left_out_and_named(
    photographs, tmp_path, monkeypatch, gone, labels
):
    monkeypatch.setenv("SKINREPRO_DATA", str(without(photographs, tmp_path, gone)))
    with pytest.warns(UserWarning) as said:
        m, _ = load("fitzpatrick17k", missing="drop")
    assert any("Left out" in str(w.message) for w in said) == (labels == 6)
    assert study_of("fitzpatrick17k", m).labels == tuple(
        c for c in CONDITIONS if labels == 7 or c != "psoriasis"
    )
    if labels == 7:  # 9 of type V remain, none of type VI
        with pytest.raises(ValueError, match="0 images of skin type 6.*--set flexible=union"):
            scenario_split(m, FITZ, "i")
    flexible = "union" if labels == 7 else "stratified"
    for scenario in ("i", "ii", "iii"):
        split = scenario_split(m, FITZ, scenario, 0, flexible, val_fraction=0.1)
        assert set(split[split.split == "train"].label) == set(m.label)
        assert set(split[split.split == "test"].label) == set(m.label)


@pytest.mark.parametrize(
    "gone", [lambda t: t.fitzpatrick_scale > 2, lambda t: t.groupby("label").cumcount() > 0]
)
def test_an_absent_group_or_one_image_of_each_is_refused_with_the_remedy(
    photographs, tmp_path, monkeypatch, gone
):
    monkeypatch.setenv("SKINREPRO_DATA", str(without(photographs, tmp_path, gone)))
    with pytest.raises(ValueError, match="skinrepro data verify fitzpatrick17k"):
        load("fitzpatrick17k", missing="drop")


def test_weights_of_fewer_conditions_are_refused(tmp_path, monkeypatch):
    "Photographs came after the words were learned: named, with what to do."
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path))
    grid = read_grid(WANG, "smoke", "generator", scenario="iii", data="fitzpatrick17k")
    words, images = of(grid, "weights")[0], of(grid, "generator")[0]
    made = pd.DataFrame([dict(metric="n_train", group="all", value=9.0, n=9)])
    runs.finish(
        words, made, provenance("fitzpatrick17k", "0" * 16, "none", "0" * 64, "smoke", "cpu")
    )
    home = tmp_path / "wang2024" / "weights"
    (words.folder / WEIGHTS).write_text(
        json.dumps(dict(tokens="ti-1", loras=dict.fromkeys(FOUR, "lora-1")))
    )
    for name, files in {"ti-1": [token(c) for c in FOUR], "lora-1": ["pytorch_lora"]}.items():

        def make(folder, files=files):
            for f in files:
                (folder / f"{f}.safetensors").write_bytes(b"learned")
            return pd.DataFrame(dict(loss=[0.0]))

        runs.made_once(home, name[:-2], dict(of=name), make, "code").rename(home / name)
    asked = dict(images.parameters, learned=words.id)
    tokens, loras = read_weights(words.id, "ti+lora", asked, FOUR)
    assert tokens == home / "ti-1" and set(loras) == set(FOUR)
    with pytest.raises(runs.ParameterError) as e:
        read_weights(words.id, "ti+lora", asked, CONDITIONS)
    assert "nematode infection" in str(e.value) and str(words.folder) in str(e.value)
    assert "psoriasis" not in str(e.value)


def test_every_difference_from_the_release_is_numbered_in_the_index():
    "The table of settings beside the grid and the list of deviations; neither can change alone."
    cells = json.loads((WANG / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    text = text.partition("## Deviations")[2]
    numbered = re.findall(r"^(\d+)\. \*\*", text, re.M)
    assert numbered == [str(i) for i in range(1, len(numbered) + 1)]
    t = releases()
    assert set(t.deviation) - {""} <= set(numbered)
    here, there = t["profile paper"], t["release of 2024"]
    differs = t[(here != "same") & (here != there)]
    assert differs.deviation.ne("").all(), differs.setting[differs.deviation == ""].tolist()
    of_stage = dict(words="weights", lora="weights", images="generator", classifier="scenario")
    for r in t[t.parameter != ""].itertuples():
        section = of_stage.get(r.stage, "scenario")
        for run in of(read_grid(WANG, "paper", section), section):
            have = run.parameters[r.parameter]
            assert have == type(have)(r.value), (r.stage, r.setting)
    assert set(AS_RELEASED) <= set(t.parameter)


def test_images_are_saved_as_the_release_saves_them(tmp_path):
    "Quantisation tables of a JPEG that Pillow writes by default, which is what the release calls."
    from PIL import Image

    from skinrepro.generate import Files, write_image

    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype="uint8")
    Image.fromarray(pixels).save(tmp_path / "default.jpg")
    files = Files(64, "jpg", JPEG_QUALITY)
    write_image(pixels, tmp_path / "ours.jpg", dict(what="x"), 64, files.quality)
    with Image.open(tmp_path / "default.jpg") as a, Image.open(tmp_path / "ours.jpg") as b:
        assert a.quantization == b.quantization and a.layer == b.layer


def test_the_released_recipe_has_the_dropout_and_the_pixels_of_the_script():
    """Against torchvision's own VGG-16, which the script loads: where units are dropped; and
    ImageNet's statistics for every network.
    """
    torchvision, torch = pytest.importorskip("torchvision"), pytest.importorskip("torch")
    from skinrepro.networks import build

    def layers(net, kinds=("Conv2d", "Linear", "ReLU", "Dropout")):
        leaves = [m for m in net.modules() if not list(m.children())]
        named = [(type(m).__name__, getattr(m, "p", "")) for m in leaves]
        return [(k.replace("Conv2d", "Linear"), p) for k, p in named if k in kinds]

    ours = build("vgg16", 7, 224, head="mlp")
    script = torchvision.models.vgg16(weights=None)
    new = torch.nn.Linear(4096, 256), torch.nn.ReLU(), torch.nn.Dropout(0.4)
    script.classifier[6] = torch.nn.Sequential(*new, torch.nn.Linear(256, 7))
    assert layers(ours) == layers(script) and layers(ours).count(("Dropout", 0.5)) == 2
    assert not [kind for kind, _ in layers(build("resnet18", 7, 64)) if kind == "Dropout"]
    mean, std = statistics_of("released")
    assert np.allclose(mean, [0.485, 0.456, 0.406]) and np.allclose(std, [0.229, 0.224, 0.225])
    assert statistics_of("scratch") is None


def test_a_given_normalisation_reaches_the_network(tmp_path, monkeypatch):
    "White pixels under the statistics that were asked for, in training and in the test."
    from PIL import Image

    from skinrepro.classify import data_parts
    from skinrepro.manifest import make

    monkeypatch.setenv("SKINREPRO_CACHE", str(tmp_path / "cache"))
    rows = []
    for i in range(8):
        file = tmp_path / f"{i}.png"
        Image.new("RGB", (40, 40), (255, 255, 255)).save(file)
        rows.append(dict(image_id=f"i{i}", path=str(file), label="ab"[i % 2], skin_type=1))
    m = make(pd.DataFrame(rows)).assign(split=["train"] * 4 + ["test"] * 4)
    asked = dict(progress=False, draws=2, statistics=statistics_of("released"))
    train, parts = data_parts(m, ["a", "b"], "vit_small", 32, 4, **asked)
    white = (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225]
    (x, _, rows), (y, *_) = next(train(0)), next(parts["test"]())
    assert len(x) == len(rows) == 2 and len(list(train(0))) == 1
    for seen in (x, y):
        assert np.allclose(seen.numpy()[:, :, 16, 16], white, atol=1e-3)


def test_committed_runs_are_questions_of_the_grid():
    "A parameter that came later does not rename the runs that were there before."
    committed = read_record(ROOT / "figures" / "wang2024" / "records.csv")
    grid = tomllib.loads((WANG / "grid.toml").read_text(encoding="utf-8"))
    asked = {r.id for s, body in grid.items() if "mini" in body for r in read_grid(WANG, "mini", s)}
    assert set(committed.run_id) <= asked
