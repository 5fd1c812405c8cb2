"""A paper of sixty lines gets loader, split, classifier, table, claims and gallery from the stages:
what it would have to define itself is what the stages lack.
"""

import ast
import csv
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, toy_notebook

from skinrepro.core import has_data

START = 'from skinrepro.runs import begin, finish\n\nrun = begin("jones2032", "trial", globals())'
PARAMETERS = 'train = "light"\nseed = 0\ndata = "phantom"\nprofile = "smoke"\nepochs = 3'

GRID = """
[trial]
notebook = "trial"
rebuilds = ["table1"]
train = ["light", "both"]
seed = [0, 1]
data = "DATA"
"""

REPORTED = """
artefact,keys,metric,value,std,unit,source,note
table1,train=light,accuracy,60.0,,percent,p. 3,
table1,train=both,accuracy,80.0,,percent,p. 3,
"""

TRIAL = """
import pandas as pd
from skinrepro.classify import data_parts, predictions_table, train_classifier
from skinrepro.core import provenance
from skinrepro.loop import Training
from skinrepro.manifest import content_hash
from skinrepro.metrics import score
from skinrepro.networks import build
from skinrepro.photographs import photographs, rendered
from skinrepro.splits import assert_disjoint, group_split

labels = {"phantom": ["folliculitis", "psoriasis"], "pad_ufes20": ["BCC", "NEV"]}[data]
counts = pd.DataFrame([dict(label=a, skin_type=t, n=12) for a in labels for t in (1, 6)])
m = rendered(counts, "jones2032", 32) if data == "phantom" else photographs(data, labels)[0]
m = m[m.skin_type.notna()]
m = m.assign(group=m.skin_type.gt(2).map({True: "dark", False: "light"}).astype("string"))
fit, test = group_split(m, 0.4, seed)
assert_disjoint(fit, test)
fit = fit[fit.group.isin({"light": ["light"], "both": ["light", "dark"]}[train])]
m = pd.concat([fit.assign(split="train"), test.assign(split="test")])
batches, parts = data_parts(m, labels, "resnet_small", 32, 16, seed, progress=False)
model = build("resnet_small", len(labels), 32, seed=seed)
log, p = train_classifier(model, batches, parts, Training(epochs, lr=2e-3), progress=False)
predictions = predictions_table(m[m.split == "test"], p["test"], log, ["last"])
records = score(predictions, labels, "group")
size = dict(metric="train_size", group="all", value=len(fit), n=len(fit), select_on="last")
records = pd.concat([records, pd.DataFrame([size])], ignore_index=True)
finish(run, records, provenance(data, content_hash(m), profile=profile), predictions)
m.to_parquet(run.folder / "manifest.parquet")
"""

REPORT = """
import pandas as pd
from skinrepro.claims import Claim, against, claims_layout, evaluate
from skinrepro.core import paths
from skinrepro.records import read_records
from skinrepro.report import save_gallery
from skinrepro.tables import compare, layout, read_reported, save_table

records = read_records("jones2032")
printed = read_reported(paths().papers / "jones2032" / "reported.csv")
table = compare(records, printed, ["train"], dict(data="patients"), n_paper=3)
save_table(table, "jones2032/table1", "Table 1", shown=layout(table, ["train"]))
text = "Training on both tones is better than on light skin alone"
claims = evaluate([Claim(text, "p. 3", against(dict(train="both"), dict(train="light")))], records)
save_table(claims, "jones2032/claims", "Claims", shown=claims_layout(claims))
folder = paths().runs / "jones2032" / records.run_id[0]
m = pd.read_parquet(folder / "manifest.parquet").groupby(["label", "group"], as_index=False).first()
m = m.assign(row=m.label, column=m.group, data=records.data[0], parent=True)
save_gallery(m, "jones2032/fig1", "One image of each")
"""


def paper(folder, data):
    "The made-up paper as files."
    folder.mkdir(parents=True)
    toy_notebook(folder / "trial.ipynb", PARAMETERS, START, TRIAL)
    toy_notebook(folder / "report.ipynb", None, REPORT)
    (folder / "grid.toml").write_text(GRID.replace("DATA", data))
    (folder / "reported.csv").write_text(REPORTED.strip() + "\n")


RUN = """
from skinrepro.core import paths
from skinrepro.grid import read_grid
from skinrepro.runs import execute_notebook
from skinrepro.workflow import execute

folder = paths().papers / "jones2032"
done = execute(read_grid(folder), cores=2, progress=False)
assert [o.status for o in done] == ["ran"] * 4, done
execute_notebook(folder / "report.ipynb", paths().runs / "report.ipynb")
"""


def test_it_is_small_and_defines_nothing():
    lines = [
        s for t in (PARAMETERS, START, GRID, TRIAL, REPORT) for s in t.splitlines() if s.strip()
    ]
    assert len(lines) <= 60
    for source in (TRIAL, REPORT):
        kinds = (ast.FunctionDef, ast.ClassDef, ast.Lambda)
        assert not [n for n in ast.walk(ast.parse(source)) if isinstance(n, kinds)]


@pytest.mark.parametrize(
    "data",
    [
        "phantom",
        pytest.param(
            "pad_ufes20",
            marks=pytest.mark.skipif(
                not has_data("pad_ufes20"), reason="needs $SKINREPRO_DATA/pad_ufes20"
            ),
        ),
    ],
)
def test_a_paper_of_sixty_lines(tmp_path, data):
    at = tmp_path / "project"
    for name in ("skinrepro", "nbs", "workflow"):
        shutil.copytree(ROOT / name, at / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    shutil.copy(ROOT / "requirements.lock", at)
    paper(at / "nbs" / "papers" / "jones2032", data)
    env = dict(SKINREPRO_RUNS=str(tmp_path / "runs"), SKINREPRO_FIGURES=str(tmp_path / "figures"))
    # its kernels are copies of a process that has this package
    others = {k: v for k, v in os.environ.items() if k != "SKINREPRO_WARM"}
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=at,
        env={**others, **env, "PYTHONPATH": str(at)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = tmp_path / "figures" / "jones2032"
    made = {f.name for f in figures.iterdir()}
    assert made == {
        f"{stem}.{suffix}"
        for stem, suffixes in (
            ("table1", ("md", "csv", "tex")),
            ("claims", ("md", "csv", "tex")),
            ("fig1", ("png", "svg", "csv")),
        )
        for suffix in suffixes
    }
    rows = list(csv.DictReader((figures / "table1.csv").open(encoding="utf-8")))
    assert {r["train"] for r in rows} == {"light", "both"}
    assert all(0 <= float(r["reproduced"]) <= 100 and int(r["n_seeds"]) == 2 for r in rows)
    assert {r["verdict"] for r in rows} == {"not comparable"}  # other data than the paper's
    claim, *_ = csv.DictReader((figures / "claims.csv").open(encoding="utf-8"))
    assert claim["draws"] == "2" and claim["verdict"] in (
        "supported",
        "contradicted",
        "inconclusive",
    )
    lines = (figures / "table1.md").read_text(encoding="utf-8").splitlines()
    stamp = next(line for line in lines if line.startswith("**")).lower()
    assert ("phantom" in stamp) == (data == "phantom")
