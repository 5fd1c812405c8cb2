"""How many photographs are here is told from a listing, once, in words of the command line; a run
that lacks some starts nothing; records of other photographs are out of date.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from skinrepro import fitzpatrick17k, graph, images, photographs, publish, stock, workflow
from skinrepro.cli import app
from skinrepro.core import md5_file, paths
from skinrepro.grid import read_grid
from skinrepro.job import _fresh
from skinrepro.papers import fairskin2024, lopezperez2025, wang2024

PAPERS = {"wang2024": wang2024, "lopezperez2025": lopezperez2025}
LABELS = ("ACK", "BCC", "MEL", "NEV")


def typed(*args):
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def photograph(file, seed, size=(7, 6)):
    file.parent.mkdir(parents=True, exist_ok=True)
    made = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype="uint8")
    Image.fromarray(made).save(file)


@pytest.fixture
def pad(tmp_path, monkeypatch):
    "Four conditions, twelve photographs of light and twelve of dark skin each."
    home = tmp_path / "data" / "pad_ufes20"
    lines = ["patient_id,img_id,fitspatrick,diagnostic,gender,age"]
    for i in range(96):
        photograph(home / "images" / f"PAT_{i}_1_1.png", i)
        skin, label = (1, 5)[i % 2], LABELS[i // 24]
        lines.append(f"PAT_{i},PAT_{i}_1_1.png,{skin}.0,{label},MALE,{20 + i % 60}")
    (home / "metadata.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("SKINREPRO_DATA", str(home.parent))
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("SKINREPRO_CACHE", str(tmp_path / "cache"))
    return home


def lose(home, numbers):
    for i in numbers:
        (home / "images" / f"PAT_{i}_1_1.png").unlink()


# ---- which data sets a paper studies


def test_what_a_paper_studies_is_of_all_its_modalities():
    "Histopathology, radiographs and photographs of one paper have their designs in three modules."
    found = set(stock.studied("ktena2023"))
    assert {"camelyon17", "pcam", "chexpert", "nih_chestxray14", "ham10000"} <= found
    assert not any(name.startswith("phantom") for name in found)
    for paper, module in PAPERS.items():
        assert set(stock.studied(paper)) == {d for d in module.STUDIES if d != "phantom"}


def test_photographs_of_another_modality_are_counted_in_the_list(pad):
    output = typed("data", "list", "pad_ufes20").output
    assert re.search(r"ktena2023: 96 of 96 \(100 %\)", output), output


# ---- what a design needs is what its loader looks at


@pytest.mark.parametrize("paper", PAPERS)
@pytest.mark.parametrize("fraction", [1.0, 0.8])
def test_what_is_needed_is_what_the_loader_looks_at(pad, paper, fraction):
    module, p = PAPERS[paper], dict(data="pad_ufes20", fraction=fraction)
    part = fraction if paper == "wang2024" else 1.0  # the other paper draws less of the same pool
    m, inventory = module.load("pad_ufes20", fraction=part)
    asked = module.needed(p)
    assert asked.image_id.tolist() == m.image_id.tolist() and asked.group.equals(m.group)
    assert photographs.hash_today(asked) == inventory
    lose(pad, [0, 30])
    with pytest.warns(UserWarning, match="2 missing"):
        rest, less = module.load("pad_ufes20", fraction=part, missing="drop")
    asked = module.needed(p | dict(missing="drop"))
    assert photographs.hash_today(asked) == less != inventory
    assert set(rest.image_id) <= set(asked.image_id[photographs.on_disk(asked)])
    if paper == "wang2024":  # thinned after all were looked at: 9 of 11 and 10 of 12
        assert len(asked) == 96 and len(rest) == (2 * 9 + 6 * 10 if fraction < 1 else 94)


def test_what_is_needed_of_fitzpatrick17k(tmp_path, monkeypatch):
    "Counts from the annotations alone: those that the package's own counts give."
    rows = [
        dict.fromkeys(fitzpatrick17k.COLUMNS, "x")
        | dict(md5hash=f"{i:032x}", label=label, url="")
        | dict(fitzpatrick_scale=1 + i % 6, fitzpatrick_centaur=2)
        for i, label in enumerate([*wang2024.CONDITIONS, "acne"] * 6)
    ]
    home = tmp_path / "fitzpatrick17k"
    home.mkdir()
    pd.DataFrame(rows).to_csv(home / "fitzpatrick17k.csv", index=False)
    monkeypatch.setenv("SKINREPRO_DATA", str(tmp_path))
    p = dict(data="fitzpatrick17k")
    t = pd.DataFrame(rows)
    chosen = t.fitzpatrick_scale.isin((1, 2, 5, 6))
    assert set(lopezperez2025.needed(p).image_id) == set(t.md5hash[chosen])
    assert set(wang2024.needed(p).image_id) == set(t.md5hash[chosen & t.label.ne("acne")])
    assert len(wang2024.needed(p | dict(label_source="centaur"))) == 6 * 7
    assert stock.stock_of("wang2024", p).says.endswith("(0 %)")


# ---- 0, 25 and 100 per cent


@pytest.mark.parametrize(
    "lost,percent,word", [(96, 0, "missing"), (72, 25, "partly"), (0, 100, "ok")]
)
def test_doctor_and_list_say_how_much_is_there(pad, lost, percent, word, monkeypatch):
    lose(pad, range(96 - lost, 96))
    study = fairskin2024.STUDIES["pad_ufes20"]  # asks for two diagnoses more
    monkeypatch.setitem(fairskin2024.STUDIES, "pad_ufes20", replace(study, labels=LABELS))

    def refuse(*a, **k):
        raise AssertionError("decoded")

    monkeypatch.setattr(images, "_decode", refuse)
    says = f"{96 - lost} of 96 ({percent} %)"
    for output in (typed("doctor").output, typed("data", "list", "pad_ufes20").output):
        assert all(f"{paper}: {says}" in output for paper in PAPERS), output
        conditions = re.findall(r"(\w+), (\w+): (\d+) of 12", output)
        assert bool(conditions) == (percent == 25)
    assert re.search(rf"^{word} +pad_ufes20", typed("doctor").output, re.M)
    if percent == 25:
        assert {c[:2] for c in conditions} == {
            (a, g) for a in LABELS[1:] for g in ("light", "dark")
        }
        assert {c[2] for c in conditions} == {"0"}


def test_one_of_many_is_not_everything(pad):
    lose(pad, [95])
    assert "95 of 96 (99 %)" in typed("doctor").output
    assert "NEV, dark: 11 of 12 (92 %)" in typed("data", "list", "pad_ufes20").output


def test_a_file_that_cannot_be_a_photograph_is_none(pad):
    "Empty files, folders and dangling links by the listing; what does not decode by the inventory."
    home, m = pad / "images", wang2024.needed(dict(data="pad_ufes20"))
    lose(pad, range(3))
    (home / "PAT_0_1_1.png").touch()
    (home / "PAT_1_1_1.png").mkdir()
    (home / "PAT_2_1_1.png").symlink_to(home / "nowhere.png")
    (home / "PAT_3_1_1.png").write_text("<html>404</html>")
    assert photographs.on_disk(m).tolist() == [False] * 3 + [True] * 93
    typed("data", "verify", "pad_ufes20")
    s = stock.stock_of("wang2024", dict(data="pad_ufes20"))
    assert s.there == 92 and "92 of 96" in typed("doctor").output
    (home / "PAT_3_1_1.png").unlink()
    photograph(home / "PAT_3_1_1.png", 3)  # mended after the inventory was made
    assert stock.stock_of("wang2024", dict(data="pad_ufes20")).there == 93


# ---- said once, before anything starts

SECTION = ["wang2024", "--section", "pad_ufes20"]


def section():
    return read_grid(paths().papers / "wang2024", "mini", "pad_ufes20")


def warned(result):
    return [line for line in result.stderr.splitlines() if "photographs" in line]


@pytest.mark.parametrize(
    "command",
    [["run", *SECTION], ["run", *SECTION, "--dry-run"], ["todo", *SECTION, "--no-measure"]],
)
def test_what_is_lacking_is_said_once_and_nothing_starts(pad, command, monkeypatch):
    started = []
    monkeypatch.setattr(workflow, "execute", lambda *a, **k: started.append(a) or [])
    lose(pad, range(48, 96))  # two of four conditions
    result = typed(*command)
    assert len(warned(result)) == 1, result.stderr
    said = warned(result)[0]
    for words in (
        f"{len(section())} runs of wang2024 (pad_ufes20) cannot start",
        "48 of 96 (50 %)",
        "data.mendeley.com",
    ):
        assert words in said
    assert said.count("--set missing=drop") == 1 and not started
    assert result.exit_code == (2 if command == ["run", *SECTION] else 0)
    assert not (pad.parents[1] / "runs").exists()
    remedy = re.search(r"`(--set missing=drop)`", said)[1].split()
    again = typed(*command, *remedy)
    assert again.exit_code == 0, again.stderr
    assert "cannot start" not in again.stderr and "go on with 48 of 96 (50 %)" in again.stderr
    assert bool(started) == (command == ["run", *SECTION])


@pytest.mark.parametrize("left", [range(24), [*range(24), *range(24, 40), *range(48, 64)]])
def test_one_condition_is_no_design(pad, left, monkeypatch):
    "None of the others, or eight photographs of each group: `run` says so before anything starts."
    monkeypatch.setattr(workflow, "execute", lambda *a, **k: pytest.fail("started"))
    lose(pad, set(range(96)) - set(left))
    for word, code in (("run", 2), ("todo", 0)):
        more = ["--dry-run"] * (word == "run") or ["--no-measure"]
        result = typed(word, *SECTION, *more, "--set", "missing=drop")
        assert result.exit_code == code and len(warned(result)) == 1, result.stderr
        assert f"cannot start with {len(left)} of 96" in result.stderr
        assert "more than 8 photographs of each group for at least two" in result.stderr
        assert "NEV has 0 light, 0 dark" in result.stderr and "go on" not in result.stderr
        assert "missing=drop" not in typed(word, *SECTION, *more).stderr  # it would not help
    result = typed("run", *SECTION, "--set", "missing=drop")
    assert result.exit_code == 2 and "at least two conditions" in result.stderr
    assert not (pad.parents[1] / "runs").exists()


def test_two_conditions_are_a_design(pad):
    "Nine of each group, and no more, of a second one."
    lose(pad, set(range(96)) - {*range(24), *range(24, 42)})
    result = typed("run", *SECTION, "--dry-run", "--set", "missing=drop")
    assert result.exit_code == 0 and "go on with 42 of 96" in result.stderr


def test_nothing_at_all_stops_also_those_who_go_on(pad):
    lose(pad, range(96))
    result = typed("run", *SECTION, "--set", "missing=drop")
    assert result.exit_code == 2 and "0 of 96 (0 %)" in result.stderr
    assert "missing=drop" not in result.stderr  # it would not help


def test_run_opens_what_a_listing_takes_for_a_photograph(pad, monkeypatch):
    monkeypatch.setattr(workflow, "execute", lambda *a, **k: pytest.fail("started"))
    (pad / "images" / "PAT_3_1_1.png").write_bytes(b"\x89PNG and no more")
    assert not warned(typed("run", *SECTION, "--dry-run"))
    result = typed("run", *SECTION)
    assert result.exit_code == 2 and "95 of 96 (99 %)" in result.stderr


def test_an_error_that_all_runs_share_is_told_once(pad, monkeypatch):
    runs = section()
    ended = [workflow.Outcome(r, "failed", error="ValueError: the dog ate it") for r in runs]
    monkeypatch.setattr(workflow, "execute", lambda *a, **k: ended)
    result = typed("run", *SECTION)
    assert result.exit_code == 1 and result.stderr.count("the dog ate it") == 1
    assert f"and {len(runs) - 3} more" in result.stderr and runs[0].id in result.stderr


# ---- records of other photographs


def finished(run, inventory):
    run.folder.mkdir(parents=True)
    row = dict(
        run_id=run.id, metric="accuracy", group="all", value=0.5, n=8, inventory_hash=inventory
    )
    pd.DataFrame([row]).to_csv(run.folder / "records.csv", index=False)
    return run


def counts(result):
    line = next(x for x in result.output.splitlines() if x.strip().startswith("all"))
    return dict(zip(("done", "running", "failed", "outdated", "missing"), line.split()[1:]))


def test_what_has_changed_is_named_in_a_line_that_can_be_read(pad):
    "A run may use hundreds of functions."
    run = finished(section()[0], wang2024.load("pad_ufes20")[1])
    (run.folder / "inputs.json").write_text(json.dumps({"notebook": "other"}))
    state = next(s for s in workflow.states(section()) if s.run.id == run.id)
    names = state.detail.split(", ")
    assert len(names) > 100
    (line,) = [
        x for x in typed("todo", *SECTION, "--no-measure").output.splitlines() if run.id in x
    ]
    assert line.endswith(f"({', '.join(names[:3])} and {len(names) - 3} more)")
    now = graph.inputs_of(run, {r.id: r for r in section()})
    few = dict(list(now.items())[:2])
    (run.folder / "inputs.json").write_text(json.dumps(now | dict.fromkeys(few, "other")))
    (line,) = [
        x for x in typed("todo", *SECTION, "--no-measure").output.splitlines() if run.id in x
    ]
    assert line.endswith(f"({', '.join(few)})")


def test_what_is_remembered_of_photographs_is_not_read_again(pad, monkeypatch):
    asked = wang2024.needed(dict(data="pad_ufes20"))
    for f in asked.path:
        os.utime(f, (1e9, 1e9))  # files of this second are not remembered: they may change in it
    first, seen = photographs.hash_today(asked, 10**6), []
    monkeypatch.setattr(images, "_read", lambda f: seen.append(f) or Path(f).read_bytes())
    monkeypatch.setattr(photographs, "md5_file", lambda f: seen.append(f) or md5_file(f))
    assert photographs.hash_today(asked, 0) == first and seen == []
    photograph(Path(asked.path[7]), 700)
    assert photographs.hash_today(asked) != first and seen == [asked.path[7]]


@pytest.mark.parametrize("trouble", ["no place", "no reading"])
def test_photographs_are_told_apart_without_a_memory(pad, monkeypatch, trouble):
    asked = wang2024.needed(dict(data="pad_ufes20"))
    _, inventory = wang2024.load("pad_ufes20")

    def refuse(*a, **k):
        raise PermissionError("read-only") if trouble == "no place" else images.ImageError("x")

    monkeypatch.setattr(photographs, "file_md5s", refuse)
    assert photographs.hash_today(asked) == inventory


def test_a_record_of_other_photographs_is_out_of_date(pad, monkeypatch):
    runs = read_grid(paths().papers / "wang2024", "mini", "pad_ufes20")
    _, inventory = wang2024.load("pad_ufes20")
    for r in runs[:2]:
        finished(r, inventory)
    todo = ["todo", *SECTION, "--no-measure"]
    assert counts(typed(*todo))["done"] == "2"
    file = pad / "images" / "PAT_7_1_1.png"
    photograph(file, 700)  # another picture under the same name
    result = typed(*todo)
    assert counts(result)["done"] == "-" and counts(result)["outdated"] == "2"
    assert result.output.count("photographs changed") == 2
    asked = {}
    monkeypatch.setattr(workflow, "execute", lambda *a, **k: asked.update(k) or [])
    typed("run", *SECTION)
    assert asked["again"] == {r.id for r in runs[:2]}
    photograph(file, 7)
    assert counts(typed(*todo))["done"] == "2"  # the same bytes again


def test_a_record_of_other_photographs_is_not_published(pad, monkeypatch):
    folder = paths().papers / "wang2024"
    runs = read_grid(folder, "mini", "pad_ufes20")
    _, inventory = wang2024.load("pad_ufes20")
    for r in runs:
        finished(r, inventory)
    monkeypatch.setattr(publish, "check_tree", lambda: None)
    passed = []
    monkeypatch.setattr(publish, "records_of", lambda runs: passed.append(runs) or 1 / 0)
    with pytest.raises(ZeroDivisionError):  # goes on to what comes next
        publish.publish(folder, runs, "skinrepro run")
    photograph(pad / "images" / "PAT_7_1_1.png", 700)
    with pytest.raises(publish.PublishError, match=f"{len(runs)} outdated") as e:
        publish.publish(folder, runs, "skinrepro run")
    assert "photographs changed" in str(e.value) and len(passed) == 1


def test_what_nobody_has_looked_at_is_not_judged(pad, monkeypatch, tmp_path):
    run = read_grid(paths().papers / "wang2024", "mini", "pad_ufes20")[0]
    finished(run, wang2024.load("pad_ufes20")[1])
    monkeypatch.setenv("SKINREPRO_CACHE", str(tmp_path / "another"))
    todo = ["todo", *SECTION, "--no-measure"]
    result = typed(*todo)
    assert counts(result)["done"] == "1"
    remedy = re.search(r"`skinrepro (data verify pad_ufes20)`", result.stderr)[1].split()
    assert typed(*remedy).exit_code == 0
    assert "Note" not in typed(*todo).stderr
    photograph(pad / "images" / "PAT_7_1_1.png", 700)
    assert counts(typed(*todo))["outdated"] == "1"


def test_data_that_are_not_here_now_take_no_record_away(pad, monkeypatch):
    finished(read_grid(paths().papers / "wang2024", "mini", "pad_ufes20")[0], "0" * 16)
    monkeypatch.delenv("SKINREPRO_DATA")
    result = typed("todo", *SECTION, "--no-measure")
    assert counts(result)["done"] == "1" and "SKINREPRO_DATA is not set" in result.stderr


def test_what_is_out_of_date_is_made_anew(pad):
    "The engine clears the folder of a run whose record is not true any more."
    run = finished(read_grid(paths().papers / "wang2024", "mini", "pad_ufes20")[0], "0" * 16)
    runs = read_grid(paths().papers / "wang2024", "mini", "pad_ufes20")
    workflow.plan(runs)
    assert (run.folder / ".done").is_file()
    (run.folder / "checkpoint").touch()
    workflow.plan(runs, again={run.id})
    assert not (run.folder / ".done").is_file()
    listed = paths().runs / ".plan" / "inputs" / "wang2024" / f"{run.id}.json"
    assert not _fresh(run.folder, json.loads(Path(listed).read_text()))
    assert {f.name for f in run.folder.iterdir()} == {"inputs.json"}
    assert workflow.states(runs)[0].status == "missing"
