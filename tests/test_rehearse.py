"""A rehearsal tries every kind of run, names what fails, and leaves nothing that could be taken for
a result. Sizes are small here; the code is that of the full ones.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
from itertools import islice

import pandas as pd
import pytest
from conftest import ROOT, toy_notebook
from typer.testing import CliRunner

from skinrepro import core, runs
from skinrepro.cli import app
from skinrepro.core import paths, provenance, rehearsing
from skinrepro.grid import read_grid
from skinrepro.rehearse import Rehearsed, rehearsal_data, rehearsal_runs, rehearsal_store, rehearse
from skinrepro.report import paper_records
from skinrepro.runs import Run

PAPERS = ROOT / "nbs" / "papers"
LOPEZ, WANG = PAPERS / "lopezperez2025", PAPERS / "wang2024"


@pytest.fixture
def store(tmp_path, monkeypatch):
    "A store of results, and within it the store of rehearsals."
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("SKINREPRO_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("SKINREPRO_COMMITTED", str(tmp_path / "committed"))  # nothing is there
    monkeypatch.delenv("SKINREPRO_DATA", raising=False)
    return tmp_path / "runs"


# Which runs
# -------------------------------------------------------------------------------------------------


def rehearsed_of(paper, gpu):
    from importlib import import_module

    protocol = import_module(f"skinrepro.papers.{paper.name}")
    instead = dict(fitzpatrick17k="phantom")
    return rehearsal_runs(read_grid(paper, "paper"), protocol.rehearsed, gpu, instead)


@pytest.mark.parametrize("gpu", [True, False])
def test_every_notebook_network_method_and_pipeline_is_rehearsed(gpu):
    full = read_grid(WANG, "paper")
    found = [f.run for f in rehearsed_of(WANG, gpu)]

    def kinds(runs, *keys):
        with_keys = [r for r in runs if all(k in r.parameters for k in keys)]
        return {(r.notebook.stem, *(r.parameters[k] for k in keys)) for r in with_keys}

    for keys in (("arch", "train"), ("pipeline", "method"), ("method",), ()):
        assert kinds(full, *keys) == kinds(found, *keys)
    real = [[r for r in runs if r.parameters.get("train") == "real"] for runs in (full, found)]
    assert kinds(real[0], "arch", "val_fraction") == kinds(real[1], "arch", "val_fraction")
    assert len(found) < len(full) / 10


def test_architecture_size_and_precision_stay_the_papers():
    for paper in (WANG, LOPEZ):
        for f in rehearsed_of(paper, gpu=True):
            changed = {k for k, v in f.run.parameters.items() if f.full.parameters[k] != v}
            shape = {"arch", "size", "base", "precision", "method", "recipe", "features", "width"}
            batch = {"batch_size", "ti_batch", "ti_accumulate", "lora_batch", "multipliers"}
            assert not changed & (shape | batch)
            assert f.run.parameters["profile"] == "rehearsal"


def test_a_run_is_made_from_rehearsals():
    found = rehearsed_of(WANG, gpu=False)
    ids = [f.run.id for f in found]
    assert len(set(ids)) == len(ids) and not set(ids) & {r.id for r in read_grid(WANG, "paper")}
    for i, f in enumerate(found):
        assert set(f.run.needs) <= set(ids[:i])
        assert all(f.run.parameters[k] == r.id for k, r in f.run.made_from.items())
        assert set(f.run.parameters) == set(f.full.parameters)
        assert f.run.parameters.get("batch_size", 8) == 8 or f.run.notebook.stem == "vae"


# Nothing of it is a result
# -------------------------------------------------------------------------------------------------


NUMBERS = pd.DataFrame(dict(metric=["mse"], group=["all"], value=[0.5], n=[4]))


def vae_run(profile):
    p = runs.check_parameters(dict(profile=profile), runs.declared(LOPEZ / "vae.ipynb"))
    return Run("lopezperez2025", "sets", LOPEZ / "vae.ipynb", p)


def stamp(profile, weights="random"):
    return provenance("phantom", "0" * 16, weights, "", profile, "cpu")


def test_a_rehearsal_is_recorded_in_its_own_store_and_nothing_else_is(store):
    with pytest.raises(ValueError, match="--rehearse"):
        runs.finish(vae_run("rehearsal"), NUMBERS, stamp("rehearsal"))
    with rehearsal_store() as own:
        assert own == store / "rehearsal" and rehearsing()
        runs.finish(vae_run("rehearsal"), NUMBERS, stamp("rehearsal", "x, timing only"))
        with pytest.raises(ValueError, match="another name"):
            runs.finish(vae_run("mini"), NUMBERS, stamp("mini"))
    assert not rehearsing() and paths().runs == store
    runs.finish(vae_run("mini"), NUMBERS, stamp("mini"))
    with pytest.raises(ValueError, match="timing only"):
        runs.finish(vae_run("mini"), NUMBERS, stamp("mini", "x, timing only"))


def test_no_report_of_results_takes_a_rehearsal(store):
    with rehearsal_store():
        runs.finish(vae_run("rehearsal"), NUMBERS, stamp("rehearsal"))
        folder = vae_run("rehearsal").folder
        every, _ = paper_records("lopezperez2025")
        assert set(every["vae"].profile) == {"rehearsal"}
    records, outside = paper_records("lopezperez2025")
    assert not len(records["vae"]) and not outside  # in another store: not even seen
    shutil.copytree(folder, store / "lopezperez2025" / folder.name)
    with pytest.raises(ValueError, match=f"{folder.name} is of a rehearsal.*Remove"):
        paper_records("lopezperez2025")
    assert not list(store.parent.rglob(f"figures/{LOPEZ.name}/*")) and not paths().figures.exists()
    shutil.rmtree(store / "lopezperez2025" / folder.name)  # the remedy
    paper_records("lopezperez2025")


def test_records_of_a_rehearsal_are_never_kept_beside_figures(store, tmp_path):
    from skinrepro.records import write_records

    bad = NUMBERS.assign(run_id="vae-1", profile="rehearsal")
    with pytest.raises(ValueError, match="no results"):
        write_records(bad, tmp_path / "records.csv")
    assert not (tmp_path / "records.csv").exists()


def test_tables_and_figures_of_a_rehearsal_say_so(store):
    import matplotlib.pyplot as plt

    from skinrepro.figures import save_figure
    from skinrepro.tables import save_table

    t = pd.DataFrame(dict(a=[1], data="phantom"))
    for given in (None, "PHANTOM DATA: as I say"):
        with rehearsal_store():
            md = save_table(t, "paper/table", "Table", stamp=given)[0].read_text()
            svg = save_figure(plt.figure(), "paper/fig", t, stamp=given)[1].read_text()
        for text in (md, svg):
            assert "REHEARSAL: random weights, two steps. PHANTOM DATA" in text
    md = save_table(t, "paper/table", "Table")[0].read_text()
    assert "REHEARSAL" not in md


def test_weights_are_random_in_a_rehearsal_alone(store):
    from skinrepro.networks import build

    with rehearsal_store():
        network = build("resnet18", 7, 224, pretrained=True, train_layers="head")
        assert "timing only" in network.weights and not network.weights_hash
        assert sum(p.requires_grad for p in network.parameters()) == 2
    with pytest.raises((RuntimeError, ValueError)):  # offline: they are asked for
        build("resnet18", 7, 224, pretrained=True, train_layers="head")


def test_the_vocabulary_of_clip_is_read_from_its_list_of_merges(tmp_path):
    "Counts of the file and of the vocabulary are those of the public one; its words are made up."
    from skinrepro.latent import clip_tokenizer

    letters = [chr(i) for i in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    more = (f"{a} {b}{end}" for end in ("", "</w>") for a in letters for b in letters)
    first = ["s k", "i n</w>", "sk in</w>"]
    merges = first + list(islice((m for m in more if m not in first), 48891))
    with gzip.open(tmp_path / "merges.txt.gz", "wt", encoding="utf-8") as f:
        f.write("\n".join(["#version", *merges, "one too many"]))
    tokenizer = clip_tokenizer(tmp_path / "merges.txt.gz")
    assert len(tokenizer) == 49408 and tokenizer.pad_token_id == 0
    assert tokenizer("skin").input_ids == [49406, 512 + 2, 49407]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands the mark of memory down")
def test_the_memory_of_a_run_is_not_that_of_the_process_that_started_it():
    held = b"x" * 400_000_000
    code = "from skinrepro.core import peak_memory; print(peak_memory()['rss'])"
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 1e7 < int(started.stdout) < len(held) < core.peak_memory()["rss"]


# The whole command, on sizes that take seconds
# -------------------------------------------------------------------------------------------------

SMALL = "features=none width=8 multipliers=1,2 size=32 latent_channels=8 precision=no".split()


def command(*more):
    small = [x for s in SMALL for x in ("--set", s)]
    asked = ["run", "lopezperez2025", "--profile", "paper", "--rehearse", "--cores", "1"]
    return CliRunner().invoke(app, [*asked, *small, *more])


def test_a_paper_is_rehearsed_and_measured(store):
    done = command("--section", "sets", "--set", "training_set=A")
    assert done.exit_code == 0, done.output
    home = store / "rehearsal" / "lopezperez2025"
    t = pd.read_csv(home / "rehearsal.csv", keep_default_na=False)
    assert t.status.tolist() == ["ran"] and t.what.tolist() == ["vae A"]
    assert (
        t.peak_gb.astype(float).between(0.1, 2).all() and t.seconds_per_image.str.match("VAE").all()
    )
    assert t.trained_million.astype(float).gt(0).all()
    hours = pd.read_csv(home / "forecast.csv").set_index("section")
    assert hours.runs["sets"] == 10 and hours.hours["sets"] > 0  # the repetitions of A
    assert "REHEARSAL" in (home / "rehearsal.md").read_text()
    notes = [json.loads(x) for x in next(home.glob("vae-*/rehearsal.jsonl")).open()]
    assert len([n for n in notes if n["what"] == "VAE"]) == 2  # two epochs of few batches
    tables = store / "rehearsal" / "figures" / "lopezperez2025"
    for f in tables.glob("*.md"):
        assert "**REHEARSAL: random weights, two steps" in f.read_text()
    assert (tables / "claims.md").is_file() and not (store.parent / "figures").exists()
    assert not list(store.glob("lopezperez2025/*"))  # the store of results is as it was
    again = command("--section", "sets", "--set", "training_set=A")
    assert again.exit_code == 0 and "done    vae-" in again.output


def test_a_rehearsal_takes_the_phantoms_of_each_modality(store):
    "And radiographs of 128 px where 96 are asked for: they come in sizes."
    few = "augment=none seed=0 size=96 arch=efficientnet_lite0".split()
    sections = "real,radiology_real,dermatology_real"
    asked = ["run", "ktena2023", "--profile", "paper", "--rehearse", "--section", sections]
    done = CliRunner().invoke(app, [*asked, *(x for s in few for x in ("--set", s))])
    assert done.exit_code == 0, done.output
    home = store / "rehearsal" / "ktena2023"
    records = pd.concat([pd.read_csv(f) for f in home.glob("classifier-*/records.csv")])
    made = {*zip(records.data, records.labelled.astype(str))}
    assert made == {
        ("phantom_histology", "2"),
        ("phantom_radiograph", "all"),
        ("phantom_people", "sex-less"),
        ("phantom_people", "skin-less"),
    }
    assert set(records.profile) == {"rehearsal"}
    assert "camelyon17 (" in done.output and "chexpert (" in done.output
    assert "ran     report.ipynb" in done.output


def test_a_forecast_asks_once_what_a_run_costs(store, monkeypatch):
    "And gives what runs take one by one, by section, with what is not known of them."
    from skinrepro import estimate
    from skinrepro.rehearse import forecast

    few = dict(scenario="i", seed=0)
    full = read_grid(WANG, "paper", "scenario,synthetic,ablation", **few)
    asked, own = [], estimate.works_of
    kinds = list(dict.fromkeys(w.kind for r in full for w in own(r)[0]))
    rates = {k: 0.5 + i for i, k in enumerate(kinds[1:])}
    alone = {r.id: estimate.estimate([r], 99, 99, left=[r], known=rates) for r in full}
    monkeypatch.setattr(estimate, "works_of", lambda run: asked.append(run.id) or own(run))
    t = forecast(full, rates, 8, 2).set_index("section")
    assert asked == [r.id for r in full]
    for section in {r.section for r in full}:
        of_it = [alone[r.id] for r in full if r.section == section]
        assert t.hours[section] == pytest.approx(sum(e.hours for e in of_it))
        assert t.runs[section] == len(of_it)
        lacks = any(kinds[0] in e.unknown for e in of_it)
        assert t.not_in_it[section] == (kinds[0] if lacks else "")
    assert t.hours["all"] == pytest.approx(sum(e.hours for e in alone.values()))
    assert t.not_in_it["all"] == kinds[0]
    assert 0 < t.hours["from start to end, 8 cores and 2 GPUs"] < 0.9 * t.hours["all"]


def test_only_the_paper_profile_is_rehearsed(store):
    done = CliRunner().invoke(app, ["run", "wang2024", "--rehearse"])
    assert done.exit_code == 2 and "--profile paper" in done.output
    done = CliRunner().invoke(
        app, ["run", "wang2024", "--profile", "paper", "--rehearse", "--dry-run"]
    )
    assert done.exit_code == 2 and "--dry-run" in done.output


# What fails is named
# -------------------------------------------------------------------------------------------------


def test_a_run_that_fails_is_named_and_what_needs_it_is_blocked(store, tmp_path, monkeypatch):
    folder = tmp_path / "toy"
    folder.mkdir()
    parameters = "profile = 'paper'\nnumber = 1\nmade = ''"
    end = (
        "import pandas as pd\nfrom skinrepro.core import provenance\n"
        "from skinrepro.runs import Run, check_parameters, declared, finish\n"
        "from pathlib import Path\n"
        f"file = Path({str(folder)!r}) / 'n.ipynb'\n"
        "p = check_parameters(dict(profile=profile, number=number, made=made), declared(file))\n"
        "assert number != 2, 'injected'\n"
        "rows = pd.DataFrame(dict(metric=['m'], group=['all'], value=[1.0], n=[1]))\n"
        "finish(Run('toy', '', file, p), rows, provenance('phantom', '', 'random', '', profile))"
    )
    toy_notebook(folder / "n.ipynb", parameters, end)

    def run(number, **more):
        made = dict(profile="rehearsal", number=number, made="")
        return Run("toy", "s", folder / "n.ipynb", made, **more)

    one, two = run(1), run(2)
    three = run(3, needs=(two.id,))
    monkeypatch.setattr("skinrepro.rehearse.works_of", lambda run: ([], 0.0))
    told = []
    with rehearsal_store():
        found = rehearse([Rehearsed(r, r) for r in (one, two, three)], tell=told.append)
    assert [f.status for f in found] == ["ran", "failed", "blocked"] == [f.status for f in told]
    assert "injected" in found[1].error and two.id in found[2].error
    assert found[0].noted("end")[0]["rss"] > 1e7


def test_a_failure_ends_the_command_with_its_name(store, monkeypatch):
    monkeypatch.setattr("skinrepro.rehearse.perform", lambda *a: ("failed", 1.0, "no memory"))
    done = command("--section", "sets", "--set", "training_set=B")
    assert done.exit_code == 1 and "vae-" in done.output and "no memory" in done.output
    t = pd.read_csv(store / "rehearsal" / "lopezperez2025" / "rehearsal.csv")
    assert t.status.tolist() == ["failed"] and t.error.tolist() == ["no memory"]
    assert core.paths().runs == store and "rehearsal" not in os.environ["SKINREPRO_RUNS"]


def test_phantoms_stand_in_only_where_photographs_of_the_runs_are_lacking(tmp_path, monkeypatch):
    "What counts is what the runs need, and what an inventory knows to be damaged is not there."
    if not core.has_data("pad_ufes20"):
        pytest.skip("needs pad_ufes20: set SKINREPRO_DATA")
    wanted = read_grid(LOPEZ, "mini", "pad_ufes20")
    assert rehearsal_data(wanted) == ({}, "")
    assert rehearsal_data(read_grid(LOPEZ, "mini", "sets")) == ({}, "")  # phantoms themselves
    monkeypatch.setenv("SKINREPRO_DATA", str(tmp_path))
    instead, why = rehearsal_data(wanted)
    assert instead == dict(pad_ufes20="phantom") and "pad_ufes20" in why and "0 %" in why
