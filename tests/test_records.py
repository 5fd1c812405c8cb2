"""A committed number leads back to what made it: a commit that everybody has, the list of its
inputs, the list of its images, and what was found for each image.
"""

import json
import subprocess

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from skinrepro import core
from skinrepro.claims import evaluate
from skinrepro.cli import app
from skinrepro.core import hash_rows, hash_text, history, provenance
from skinrepro.fairness import fairness
from skinrepro.fidelity import MEASURES
from skinrepro.graph import inputs_of
from skinrepro.manifest import content_hash
from skinrepro.papers import lopezperez2025
from skinrepro.phantom_radiograph import FINDINGS
from skinrepro.records import (
    gather,
    kept_images,
    number_rows,
    publishable,
    read_predictions,
    read_record,
    read_records,
    write_records,
)
from skinrepro.report import recomputed
from skinrepro.runs import Run, finish, inputs_hash, keep_table

VARIANCES = ("_variance", "_variance_sample", "_variance_cells", "_variance_cells_sample")
PAPERS = sorted(f.parent.name for f in (ROOT / "figures").glob("*/runs.csv"))


def committed(test):
    "A test of the committed records of each paper."
    return pytest.mark.parametrize("paper", PAPERS)(test)


@committed
def test_committed_records_can_be_traced(paper):
    runs = pd.read_csv(ROOT / "figures" / paper / "runs.csv", keep_default_na=False, dtype=str)
    assert len(runs)
    # without the history each commit is taken for known: all the rest is looked at
    assert publishable(runs, history() or tuple(runs.commit)) == []
    if not history():
        pytest.skip("no git history here (an archive, or a shallow clone): commits not looked up")


@committed
def test_committed_lists_of_images_give_the_hashes_of_the_records(paper):
    home = ROOT / "figures" / paper
    for wanted in pd.read_csv(home / "runs.csv", dtype=str).data_hash.unique():
        assert content_hash(kept_images(wanted, home)) == wanted


@committed
def test_committed_numbers_follow_from_single_images(paper):
    home = ROOT / "figures" / paper
    records = read_record(home / "records.csv")
    if paper == "ktena2023":  # toys and counts have tests of their own; classifiers see below
        records = records[records.notebook.eq("images") & records.reference.ne("ceiling")]
    predictions = read_predictions(home / "predictions.parquet")
    again = recomputed(records, predictions, intervals=False)
    assert again.again.any()
    assert np.allclose(again.value, records.value, rtol=1e-5, atol=1e-7, equal_nan=True)
    of_images = records.metric.isin(predictions.columns)
    for row in records[of_images & ~again.again].itertuples():  # a group within a site
        at = predictions[predictions.run_id == row.run_id]
        at = at[(at.group.astype(str) + " " + at.domain.astype(str) == row.group)]
        assert len(at) == row.n and np.isclose(at[row.metric].mean(), row.value, rtol=1e-5), row
    rest = set(records.metric[~of_images & ~again.again])
    sites = {"n_images", "n_without_angle", "n_light", "n_dark", "test_patient_id_that_train"}
    told = set(" ".join(COUNTED_OTHERWISE).split()) | sites | OF_SETS | of_predictions(rest)
    assert rest <= told, rest - told


def share_tied(y, p) -> float:  # of the pairs of a positive and a negative
    there, not_there = (p[y == v].value_counts() for v in (1, 0))
    return (there * not_there.reindex(there.index, fill_value=0)).sum() / (y.sum() * (1 - y).sum())


def test_committed_numbers_of_several_parts_follow_from_single_images():
    "ktena2023's classifiers are tested in several places, some of them on several findings."
    home = ROOT / "figures" / "ktena2023"
    records = read_record(home / "records.csv")
    records = records[records.notebook.eq("classifier") & records.metric.isin(["accuracy", "auc"])]
    predictions = read_predictions(home / "predictions.parquet").dropna(subset=["part"])
    of_run = dict(list(predictions.groupby("run_id")))
    some = sorted(records.run_id.unique())[::7]
    assert len(some) > 9
    areas = 0
    for row in records[records.run_id.isin(some)].itertuples():
        t = of_run[row.run_id]
        t = t[t.part.eq(row.part) & t.select_on.eq(row.select_on)]
        parts = [t] if row.group == "all" else [u for _, u in t.groupby("group", observed=True)]
        if row.group != "all":
            t = t[t.domain.eq(row.group) | t.group.astype(object).eq(row.group)]
        assert row.n == len(t), row
        if row.metric == "accuracy":
            assert np.isclose((t.called == t.label).mean(), row.value, atol=1e-6), row
            continue
        named = row.finding in FINDINGS
        both = [  # the mean of a group is of findings that every group has, and lacks
            i for i in range(len(FINDINGS)) if all(u[f"y_{i}"].nunique() == 2 for u in parts)
        ]
        k = [FINDINGS.index(row.finding)] if named else both
        value = np.mean([roc_auc_score(t[f"y_{i}"], t[f"p_{i}"]) for i in k])
        # two images whose rounded logits tie move an area by half a pair
        tied = np.mean([share_tied(t[f"y_{i}"], t[f"p_{i}"]) for i in k])
        assert np.isclose(value, row.value, atol=1e-6 + tied / 2), row
        areas += 1
    assert areas > 20


# of all images together, which are not committed; and what is counted of drawing and copying
OF_SETS = {f"{m}{v}" for m in MEASURES for v in ("", *VARIANCES)} | set(
    "inception_score silhouette_disease silhouette_group copy_share copy_share_of_real loss n_drawn"
    " n_joined n_parents smallest_cell seconds_generate seconds_unet seconds_lora"
    " seconds_ti".split()
)


def of_predictions(metrics) -> set:  # those that the next test makes again
    return {m for m in metrics if m.startswith(("dp_", "essp_")) or m == "accuracy_worst"}


def test_committed_disparities_follow_from_predictions():
    home = ROOT / "figures" / "fairskin2024"
    records = read_record(home / "records.csv")
    records = records[records.metric.isin(of_predictions(records.metric))]
    predictions = read_predictions(home / "predictions.parquet")
    some = sorted(records.run_id.unique())[::6]
    assert len(some) > 9
    for run in some:
        mine = records[records.run_id == run].set_index("metric").value
        p = predictions[predictions.run_id == run].dropna(subset="p_0")
        labels = records[records.run_id == run].classes.iloc[0].split("|")
        y, called = (p[c].map(labels.index).to_numpy() for c in ("label", "called"))
        t = fairness(y, called, p.group.astype(str).to_numpy(), len(labels))
        again = t.set_index(["metric", "group"]).value
        for metric, value in mine.items():
            assert np.isclose(again[metric, "all"], value, atol=1e-6), (run, metric)


def test_committed_variances_are_those_of_the_groups_and_cells():
    records = read_record(ROOT / "figures" / "fairskin2024" / "records.csv")
    images = records[(records.notebook == "images") & records.reference.isin(["real", "truth"])]
    for (_, _), t in images.groupby(["run_id", "reference"]):
        told = t.set_index("metric").value
        every_cell = t.cells.iloc[0] == "all" and t.accept.iloc[0] == "all"
        fid = t[t.metric == "fid"].set_index("group").value.drop("all")
        of_cell = fid.index.str.contains(" / ")
        for values, over in ((fid[~of_cell], ""), (fid[of_cell], "_cells")):
            groups, diseases = dict(phantom=(3, 5), pad_ufes20=(2, 6))[t["data"].iloc[0]]
            assert len(values) == groups * (diseases if over else 1) or not every_cell
            if not every_cell and f"fid_variance{over}" not in told:
                continue  # a group or a cell was not drawn, or nothing of it was accepted
            assert np.isclose(told[f"fid_variance{over}"], values.var(ddof=0))
            assert np.isclose(told[f"fid_variance{over}_sample"], values.var(ddof=1))


# ------------------------------------------------------------------------------------------------
# The commit
# ------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path, monkeypatch):
    "A project of its own; what is cached about this one is put aside."
    root = tmp_path / "project"
    (root / "skinrepro").mkdir(parents=True)
    (root / "nbs").mkdir()
    (root / "skinrepro" / "core.py").write_text("a = 1\n")

    def git(*a, at=root):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *who, *a], cwd=at, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    fields = dict.fromkeys(core.Paths.__dataclass_fields__, root)
    monkeypatch.setattr(core, "paths", lambda: core.Paths(**fields))

    def ask(function):
        function.cache_clear()
        return function()

    yield root, git, ask
    for f in (core.commit, core.history):
        f.cache_clear()


def test_a_commit_is_clean_only_if_others_have_all_of_the_code(repository):
    root, git, ask = repository
    head = git("rev-parse", "--short=12", "HEAD")
    assert ask(core.commit) == head
    (root / "skinrepro" / "new.py").write_text("b = 2\n")  # never added
    assert ask(core.commit) == head + "+"
    (root / "skinrepro" / "new.py").unlink()
    (root / "README.md").write_text("no code\n")
    assert ask(core.commit) == head
    (root / "skinrepro" / "core.py").write_text("a = 2\n")
    assert ask(core.commit) == head + "+"


def test_another_repository_around_the_project_is_not_its_own(repository, tmp_path, monkeypatch):
    root, git, ask = repository
    inner = root / "unpacked"
    (inner / "skinrepro").mkdir(parents=True)
    fields = dict.fromkeys(core.Paths.__dataclass_fields__, inner)
    monkeypatch.setattr(core, "paths", lambda: core.Paths(**fields))
    assert ask(core.commit) == "" and ask(core.history) == ()


def test_git_asks_about_the_project_whatever_a_hook_has_left(repository, tmp_path, monkeypatch):
    root, git, ask = repository
    other = tmp_path / "other"
    other.mkdir()
    git("init", "-q", at=other)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert ask(core.commit)
    assert len(ask(core.history)) == 1


def test_a_commit_that_was_rewritten_or_cut_off_is_not_in_the_history(
    repository, tmp_path, monkeypatch
):
    root, git, ask = repository
    first = git("rev-parse", "--short=12", "HEAD")
    git("commit", "-q", "--amend", "--allow-empty", "-m", "first, rewritten")
    git("commit", "-q", "--allow-empty", "-m", "second")
    run = pd.DataFrame(dict(run_id=["a"], paper="x", commit=first, version="1", inputs_hash="1a"))
    assert len(ask(core.history)) == 2
    assert f"commit {first} is not in the history" in publishable(run, core.history())[0]
    here = git("rev-parse", "--short=12", "HEAD~1")
    assert publishable(run.assign(commit=here), core.history()) == []
    shallow = tmp_path / "shallow"
    git("clone", "-q", "--depth", "1", root.as_uri(), str(shallow), at=tmp_path)
    fields = dict.fromkeys(core.Paths.__dataclass_fields__, shallow)
    monkeypatch.setattr(core, "paths", lambda: core.Paths(**fields))
    assert ask(core.history) == ()
    assert "shallow clone" in publishable(run.assign(commit=here), core.history())[0]


# ------------------------------------------------------------------------------------------------
# The inputs, and what may be written where
# ------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


NUMBER = pd.DataFrame(dict(metric=["accuracy"], group="all", value=0.5, n=4))
IMAGES = pd.DataFrame(dict(image_id=list("abc"), label=list("xyx")))


def toy(seed=0, images=IMAGES, inputs=None, numbers=None, **how):
    "A run of a made-up notebook, finished."
    run = Run("toys2031", "", ROOT / "nbs" / "papers" / "toys2031" / "use.ipynb", dict(seed=seed))
    run.folder.mkdir(parents=True, exist_ok=True)
    if inputs is not None:
        (run.folder / "inputs.json").write_text(json.dumps(inputs, indent=1))
    stamp = provenance("toy", hash_rows(IMAGES if images is None else images))
    for k, v in (dict(commit=history()[0][:12] if history() else "") | how).items():
        setattr(stamp, k, v)
    finish(run, NUMBER if numbers is None else numbers, stamp, images=images)
    return run


def test_the_hash_of_the_inputs_is_that_by_which_other_runs_name_this_one(store):
    run = toy(inputs=dict(notebook="12ab", code="34cd"))
    user = Run("toys2031", "", ROOT / "nbs" / "index.ipynb", dict(seed=1), needs=(run.id,))
    named = inputs_of(user, {})[f"run {run.id}"]  # looked up in the store
    assert (
        named == inputs_hash(run.folder) == read_record(run.folder / "records.csv").inputs_hash[0]
    )
    assert named == hash_text('{"notebook": "12ab", "code": "34cd"}')[:16]


def test_only_what_can_be_traced_is_written_among_the_committed(store, tmp_path, monkeypatch):
    if not history():
        pytest.skip("no git history here")
    places = dict.fromkeys(core.Paths.__dataclass_fields__, tmp_path) | dict(runs=store)
    monkeypatch.setattr("skinrepro.records.paths", lambda: core.Paths(**places))
    file = tmp_path / "figures" / "toys2031" / "records.csv"
    toy(0, inputs=dict(notebook="12ab"))
    good = read_records("toys2031")
    assert publishable(good) == []
    write_records(good, file)
    lost = {
        "not committed": dict(commit=history()[0][:12] + "+"),
        "is not in the history": dict(commit="0123456789ab"),
        "outside a git checkout": dict(commit=""),
        "no version": dict(version=""),
        "what it depends on": dict(inputs_hash=""),
    }
    for why, change in lost.items():
        bad = good.assign(run_id="use-0", **change)
        with pytest.raises(ValueError, match=f"{why}.*use-0.*skinrepro run toys2031"):
            write_records(pd.concat([good, bad]), file)
        write_records(bad, tmp_path / "elsewhere" / "records.csv")  # of nobody's concern
    assert read_record(file).run_id.nunique() == 1
    # what stands there already, made by an older version, may stay beside new ones
    older = good.assign(run_id="use-0").drop(columns="inputs_hash")
    parts = dict(runs=older.drop(columns=list(NUMBER)), records=older[["run_id", *NUMBER]])
    for name, t in parts.items():
        t.to_csv(file.with_name(f"{name}.csv"), index=False)
    write_records(pd.concat([read_record(file), good]), file)
    assert read_record(file).inputs_hash.tolist() == ["", good.inputs_hash[0]]
    with pytest.raises(ValueError, match="not committed"):  # but not if it was made anew
        write_records(pd.concat([read_record(file), older.assign(commit="1a2b3c4d+")]), file)


def test_a_run_must_have_kept_what_its_record_says(store):
    everybody = ("1a2b3c4" * 5 + "12345",)
    run = toy(inputs=dict(notebook="12ab"), commit="1a2b3c4")
    record = read_record(run.folder / "records.csv")
    assert publishable(record, everybody) == []
    lists = pd.read_parquet(run.folder / "images.parquet")
    lists.assign(label="x").to_parquet(run.folder / "images.parquet")
    assert "not that of its record" in publishable(record, everybody)[0]
    (run.folder / "images.parquet").unlink()
    assert "no list of its images" in publishable(record, everybody)[0]
    lists.to_parquet(run.folder / "images.parquet")
    (run.folder / "inputs.json").write_text('{"notebook": "56ef"}')
    assert "inputs.json" in publishable(record, everybody)[0]


@pytest.mark.parametrize("name", ["0123456789012345", "1234567890123e45", "0000000000000000"])
def test_a_hash_that_looks_like_a_number_stays_a_hash(tmp_path, name):
    record = NUMBER.assign(run_id="use-1", data_hash=name, inputs_hash=name, commit="12345678")
    write_records(record, tmp_path / "records.csv")
    record.to_csv(tmp_path / "one.csv", index=False)
    for t in (read_record(tmp_path / "records.csv"), pd.read_csv(tmp_path / "one.csv")):
        if "inputs_hash" in t and t.inputs_hash.dtype == record.inputs_hash.dtype:
            assert t.data_hash[0] == t.inputs_hash[0] == name and t.commit[0] == "12345678"
    assert read_record(tmp_path / "records.csv").data_hash[0] == name


# ------------------------------------------------------------------------------------------------
# Images and predictions
# ------------------------------------------------------------------------------------------------


def run_here(paper, notebook, **parameters):
    "The cells of an experiment notebook but for its pictures, in this process."
    cells = json.loads((ROOT / "nbs" / "papers" / paper / f"{notebook}.ipynb").read_text())["cells"]
    variables = {"display": lambda *a: None}
    for c in cells:
        if c["cell_type"] != "code":
            continue
        source = "".join(c["source"])
        if "label_grid(" in source or "gallery(" in source:
            continue
        exec(compile(source, f"{notebook}, {c['id']}", "exec"), variables)
        if "parameters" in c["metadata"].get("tags", []):
            variables |= parameters
    plt.close("all")
    return variables["run"]


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    "Toy runs of both papers, gathered; folders of their tables."
    base = tmp_path_factory.mktemp("toys")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKINREPRO_RUNS", str(base / "runs"))
        run_here("wang2024", "scenario", epochs=1)
        run_here("wang2024", "ablation", epochs=1)
        for repetition in (0, 1):
            for training_set in "ABC":
                how = dict(repetition=repetition, training_set=training_set, epochs=1, width=4)
                run_here("lopezperez2025", "vae", pairs=4, **how)
        for paper in ("wang2024", "lopezperez2025"):
            records = read_records(paper)
            write_records(records, base / paper / "records.csv")
            assert gather(records, base / paper) == []
        yield base


def kept(home):
    return read_record(home / "records.csv"), pd.read_parquet(home / "predictions.parquet")


COUNTED_OTHERWISE = {  # of a training and its parts, not means over test images
    "train_size train_steps n_train n_train_distinct n_train_dark n_test_light n_test_dark"
    " parameters dark_share test_images_that_train test_md5_that_train seconds_train"
    " images_per_second"
}


@pytest.mark.parametrize("paper", ["wang2024", "lopezperez2025"])
def test_every_number_of_test_images_follows_from_what_is_kept(toys, paper):
    records, predictions = kept(toys / paper)
    spoilt = records.assign(value=np.where(records.metric.isin(predictions), -1, records.value))
    if "low" in records:
        numbers = records.metric.isin(["accuracy", "precision", "recall", "f1"])
        spoilt = records.assign(
            **{c: records[c].where(~numbers, -1) for c in ("value", "low", "high")}
        )
    again = recomputed(spoilt, predictions)
    rest = set(again.metric[~again.again])
    assert rest <= set(" ".join(COUNTED_OTHERWISE).split()), rest
    for column in {"value", "low", "high"} & set(records):
        mine, theirs = again[column], records[column]
        assert np.allclose(mine, theirs, rtol=1e-6, atol=1e-9, equal_nan=True), column
    text = again.drop(columns="again").assign(value=again.value.map("{:.5g}".format))
    assert text.value.equals(records.value.map("{:.5g}".format))


def test_the_interval_of_a_claim_follows_from_what_is_kept(toys):
    records, predictions = kept(toys / "lopezperez2025")
    again = recomputed(
        records.assign(value=records.value.where(~records.metric.isin(predictions), 9)), predictions
    )
    ours, theirs = (evaluate(lopezperez2025.CLAIMS, t) for t in (again, records))
    assert np.isfinite(theirs.low).all() and set(theirs.draws) == {2}
    numbers = ["effect", "low", "high"]
    # records keep seven digits; t of two draws, for several intervals, multiplies the last by 100
    assert np.allclose(ours[numbers], theirs[numbers], rtol=1e-4, atol=2e-5)
    assert ours.verdict.tolist() == theirs.verdict.tolist()


@pytest.mark.parametrize("paper", ["wang2024", "lopezperez2025"])
def test_lists_of_images_give_the_hashes_and_hold_no_place(toys, paper):
    records, predictions = kept(toys / paper)
    for wanted, runs in records.groupby("data_hash"):
        rows = kept_images(wanted, toys / paper)
        assert content_hash(rows) == wanted and {"train", "test"} <= set(rows.split)
        tested = predictions[predictions.run_id.isin(runs.run_id)]
        if "part" in tested:
            tested = tested[tested.part == "test"]
        assert set(tested.image_id) == set(rows.image_id[rows.split == "test"])
    for name in ("images", "predictions"):
        t = pd.read_parquet(toys / paper / f"{name}.parquet")
        text = t.select_dtypes(exclude="number").fillna("").astype(str)
        assert "path" not in t and not text.apply(lambda c: c.str.contains("/")).any().any()


@pytest.mark.parametrize("paper", ["wang2024", "lopezperez2025"])
def test_the_same_runs_give_the_same_bytes_however_they_were_published(toys, tmp_path, paper):
    records = read_record(toys / paper / "records.csv")
    last = records.run_id == max(records.run_id)
    at = tmp_path / paper
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKINREPRO_RUNS", str(toys / "runs"))
        assert gather(records[last], at) == []  # first the last, then all
        assert gather(records, at) == []
        patch.setenv("SKINREPRO_RUNS", str(tmp_path / "none"))
        assert gather(records, at) == []  # from what was gathered alone
    for name in ("images.parquet", "predictions.parquet"):
        assert (at / name).read_bytes() == (toys / paper / name).read_bytes(), name


@pytest.mark.parametrize("left", ["nothing", "unreadable"])
def test_numbers_of_an_earlier_commit_do_not_stay_beside_a_new_record(store, tmp_path, left):
    seen = pd.DataFrame(dict(image_id=list("abc"), ita=[1.0, 2.0, 3.0]))
    home = tmp_path / "published"
    runs = [toy(seed, inputs=dict(code="1"), commit="1a2b3c4") for seed in (0, 1)]
    for run in runs:
        keep_table(seen.assign(run_id=run.id), run.folder / "predictions.parquet")
    assert gather(read_records("toys2031"), home) == []
    toy(0, inputs=dict(code="2"), commit="5d6e7f8")
    file = runs[0].folder / "predictions.parquet"
    file.unlink() if left == "nothing" else file.write_text("cut off")
    new = read_records("toys2031")
    assert gather(new, home, anew={runs[0].id}) == [runs[0].id]
    assert set(pd.read_parquet(home / "predictions.parquet").run_id) == {runs[1].id}
    alone = new[new.run_id == runs[0].id]  # and no other run tells that there should be numbers
    keep_table(seen.assign(run_id=runs[0].id), tmp_path / "alone" / "predictions.parquet")
    assert gather(alone, tmp_path / "alone", anew={runs[0].id}) == [runs[0].id]
    assert not (tmp_path / "alone" / "predictions.parquet").exists()


def test_runs_that_have_no_judge_need_no_numbers_of_images(store, tmp_path):
    "As fine-tunings on photographs beside those on phantoms; lost numbers are told."
    seen = pd.DataFrame(dict(image_id=list("abc"), ita=[1.0, 2.0, 3.0]))
    judged = [toy(seed, numbers=number_rows(dict(loss=0.5, asked=0.8), 3)) for seed in (0, 1)]
    toy(2, numbers=number_rows(dict(loss=0.4), 3))
    for run in judged:
        keep_table(seen.assign(run_id=run.id), run.folder / "predictions.parquet")
    assert gather(read_records("toys2031"), tmp_path / "all") == []
    (judged[1].folder / "predictions.parquet").unlink()
    assert gather(read_records("toys2031"), tmp_path / "lost") == [judged[1].id]


def test_two_hundred_and_fifty_runs_take_less_than_three_megabytes(tmp_path, monkeypatch):
    "A tenth of them: 300 test images, seven classes, three rules of which two often agree."
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    rng, names, records = np.random.default_rng(0), [f"condition {i}" for i in range(7)], []
    ids = np.array([f"wang2024-condition_{i % 7}-fst{1 + i % 6}-{i:05d}" for i in range(1800)])
    for r in range(25):
        tested, y = rng.choice(ids, 300, replace=False), rng.integers(0, 7, 300)
        z = rng.normal(0, 2, (3, 300, 7)) + 2 * np.eye(7)[y]
        if r % 3 == 0:
            z[1] = z[0]
        p = np.exp(z) / np.exp(z).sum(2, keepdims=True)
        parts = [
            pd.DataFrame(p[k], columns=[f"p_{i}" for i in range(7)]).assign(
                image_id=tested,
                label=[names[i] for i in y],
                called=[names[i] for i in p[k].argmax(1)],
                grouping_0=[f"FST {5 + i % 2}" for i in y],
                group="dark",
                split="test",
                select_on=rule,
                run_id=f"scenario-{r:012x}",
            )
            for k, rule in enumerate(["val", "test", "last"])
        ]
        home = tmp_path / "runs" / "toys2031" / f"scenario-{r:012x}"
        keep_table(pd.concat(parts), home / "predictions.parquet")
        rows = pd.DataFrame(dict(image_id=ids, label="x", skin_type="5", group="dark", md5=None))
        rows = rows.assign(split=np.where(np.isin(ids, tested), "test", "train"))
        h = hash_rows(rows)
        keep_table(rows.assign(hash=h), home / "images.parquet")
        one = NUMBER.assign(run_id=home.name, paper="toys2031", notebook="scenario", data_hash=h)
        one = one.assign(commit="1a2b3c4", inputs_hash="1a")
        one.to_csv(home / "records.csv", index=False)
        records.append(one)
    assert gather(pd.concat(records), tmp_path / "out") == []
    sizes = {f.name: f.stat().st_size / 1e6 for f in (tmp_path / "out").iterdir()}
    assert sizes["predictions.parquet"] < 0.25, sizes
    assert sizes["images.parquet"] < 0.03, sizes  # each list another one, of 1800 images


# ------------------------------------------------------------------------------------------------
# From a cell to its runs
# ------------------------------------------------------------------------------------------------


def where(*args):
    return CliRunner().invoke(app, ["where", *args])


@pytest.fixture
def without_runs(tmp_path, monkeypatch):
    "A reviewer's machine."
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "none"))


def test_a_cell_of_one_table_alone_is_found(tmp_path, monkeypatch):
    "Of the committed table and the one made here, a new row is in the second."
    monkeypatch.setenv("SKINREPRO_FIGURES", str(tmp_path))
    made = pd.read_csv(ROOT / "figures" / "wang2024" / "table3.csv", dtype=str)
    (tmp_path / "wang2024").mkdir()
    new = made.iloc[:1].assign(train="imagined")
    pd.concat([made, new]).to_csv(tmp_path / "wang2024" / "table3.csv", index=False)
    ask = ["where", "wang2024", "table3", "--train"]
    found = CliRunner().invoke(app, [*ask, "imagined"])
    assert found.exit_code == 0 and "made here" in found.output, found.output
    assert "committed" not in found.output
    nowhere = CliRunner().invoke(app, [*ask, "dreamt"])
    assert nowhere.exit_code == 2 and "no such cell with 'dreamt'" in nowhere.output


def test_where_leads_from_a_cell_to_its_runs(without_runs):
    out = where("wang2024", "table3", "--row", "VGG-16", "--train", "syn", "--metric", "accuracy")
    assert out.exit_code == 0, out.output
    t = pd.read_csv(ROOT / "figures" / "wang2024" / "table3.csv", dtype=str, keep_default_na=False)
    t = t[(t.arch == "VGG-16") & (t.train == "syn") & (t.metric == "accuracy")]
    ids = {i for text in t.runs for i in text.split()}
    told = read_record(ROOT / "figures" / "wang2024" / "records.csv").drop_duplicates("run_id")
    told = told[told.run_id.isin(ids)]
    assert len(ids) == len(told) > 1
    for r in told.itertuples():
        maker = r.images
        for word in (
            r.run_id,
            r.commit,
            r.data_hash,
            r.generator_images_hash,
            maker,
            f"seed={r.seed}",
        ):
            assert str(word) in out.output, word
    for word in ("scenario.ipynb", "Tables 2, 3 and 4", "cell      ii, VGG-16, syn, accuracy, val"):
        assert word in out.output
    lines = [x.split()[1] for x in out.output.splitlines() if x.startswith("  run ")]
    assert set(lines) == ids and "ResNet" not in out.output
    assert (
        where("wang2024", "table3", "--row=vgg-16", "--train=syn", "--metric=accuracy").output
        == out.output
    )


@pytest.mark.parametrize(
    "args,says",
    [
        (
            ["lopezperez2025", "fig3", "--training-set", "B", "--repetition", "7.0"],
            ["repetition=7"],
        ),
        (["lopezperez2025", "claims", "--claim", "equal parts"], ["larger on dark skin", "vae-"]),
        (["wang2024", "claims", "--claim", "both together", "--part", "scenario i"], ["seed=42"]),
        (["wang2024", "table1", "--fst", "V"], ["annotations"]),
        (["wang2024", "table3"], ["--arch", "--row"]),
    ],
)
def test_where_works_for_any_table(args, says, without_runs):
    out = where(*args)
    assert out.exit_code == 0, out.output
    assert all(word in out.output for word in says), out.output
    if "scenario i" in args:
        assert "scenario=ii" not in out.output  # an equal value comes before a longer one


@pytest.mark.parametrize(
    "args,says",
    [
        (["wang2024", "table3", "--network", "x"], ["no --network", "--arch VGG-16", "--row"]),
        (["wang2024", "table3", "--train", "none"], ["'none'", "real, syn, real+syn"]),
        (["wang2024", "table3", "--train"], ["--LEVEL VALUE"]),
        (["wang2024", "table3", "syn"], ["--LEVEL VALUE"]),
        (["wang2024", "table33"], ["Table 1", "claims", "strength"]),
        (["lopezperez2025", "records"], ["Figure 1", "gaps"]),
    ],
)
def test_where_refuses_what_is_not_there_and_says_what_is(args, says, without_runs):
    out = where(*args)
    assert out.exit_code == 2, out.output
    assert all(word in out.stderr for word in says), out.stderr


def test_where_knows_a_run_by_its_first_digits_and_its_tables(without_runs):
    t = pd.read_csv(ROOT / "figures" / "wang2024" / "table3.csv", dtype=str, keep_default_na=False)
    run = next(i for text in t.runs for i in text.split())
    out = where("wang2024", run.rpartition("-")[2][:8]).output
    assert run in out and "figures/wang2024/table3.csv" in out and "table2.csv" not in out
