"""The first minute: a table that is exact, one phantom redrawn, and one page; without any run."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, committed_runs
from typer.testing import CliRunner

from skinrepro import first, page
from skinrepro.cli import app
from skinrepro.core import paths
from skinrepro.tables import PHANTOM_STAMP


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    "What `skinrepro first wang2024` says and leaves."
    at = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("SKINREPRO_RUNS", str(at / "runs"))
        m.delenv("SKINREPRO_FIGURES", raising=False)
        m.delenv("SKINREPRO_DATA", raising=False)
        out = CliRunner().invoke(app, ["first", "wang2024"])
    assert out.exit_code == 0, out.output
    return out.output, at / "runs" / "figures" / "wang2024"


def test_the_table_is_exact_and_beside_the_printed_one(seen):
    said, home = seen
    assert "40 of 40 numbers of Table 1 are equal" in said and "113 → 113 =" in said
    t = pd.read_csv(home / "table1.csv")
    assert len(t) == 40 and (t.reported == t.reproduced).all() and set(t.verdict) == {"equal"}


def test_the_picture_says_what_it_is(seen):
    said, home = seen
    t = pd.read_csv(home / "first.csv").set_index("what")
    assert t.ita["before"] > 28 and t.ita["after"] < 10  # light, dark: the thresholds of the card
    assert (t.judged == t.label).all() and (t.sure > 0.5).all() and set(t.data) == {"phantom"}
    assert (
        "no patient" in said and f"ITA {t.ita['after']:.0f}" in said and t.judged["after"] in said
    )
    svg = (home / "first.svg").read_text(encoding="utf-8")
    for words in (PHANTOM_STAMP, "no photographs of patients", f"ITA {t.ita['after']:.0f}°"):
        assert words in svg, words
    assert f"judge: {t.judged['after']}" in svg and "fresh ones" in svg


def test_one_page_holds_both_and_needs_nothing_else(seen):
    text = (seen[1] / "index.html").read_text(encoding="utf-8")
    assert text.index('id="first"') < text.index('id="table1"')  # the picture first
    assert "data:image/png;base64," in text and "113 → 113 =" in text
    assert PHANTOM_STAMP in text.partition("<nav>")[0]
    assert not re.search(r'(?:src|href)="(?:https?:|//)|<script', text)
    for link in re.findall(r'href="([^"#]+)"', text):
        assert (seen[1] / link).exists(), link
    assert "nbs/papers/wang2024: report.ipynb" in text  # where the table comes from
    assert "figures/wang2024/fig2.png" in text.partition("Not regenerated here")[2]


def test_the_page_says_what_nobody_has_made_yet(tmp_path, monkeypatch):
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path))
    made = paths().made / "ktena2023"
    made.mkdir(parents=True)
    shutil.copy(ROOT / "figures" / "ktena2023" / "tableE1a.md", made)
    listed = page.artefacts(ROOT / "nbs" / "papers" / "ktena2023")
    lacking = replace(listed[0], files="")
    monkeypatch.setattr(page, "artefacts", lambda folder: [lacking, *listed[1:]])
    text = page.write_page("ktena2023").read_text(encoding="utf-8")
    assert f"{lacking.name}: committed none" in text.partition("Not regenerated here")[2]


def test_the_judge_is_the_file_that_its_record_describes(tmp_path, monkeypatch):
    about = first.about_judge()
    assert (ROOT / "skinrepro" / "phantom_judge" / "judge.safetensors").stat().st_size < 1_000_000
    assert about["right_on_fresh_phantoms"]["all"] > 0.95 and "+" not in about["commit"]
    judge = first.load_judge()
    from skinrepro.phantom import render

    dark = np.stack([render(c, 6, 55 * 10**9 + i, 64) for i, c in enumerate(about["labels"] * 3)])
    assert (judge(dark)[0] == np.array(about["labels"] * 3)).mean() > 0.8
    shutil.copytree(ROOT / "skinrepro" / "phantom_judge", tmp_path / "judge")
    with open(tmp_path / "judge" / "judge.safetensors", "ab") as f:
        f.write(b"x")
    monkeypatch.setattr(first, "_home", lambda: tmp_path / "judge")
    with pytest.raises(ValueError, match="git checkout"):
        first.load_judge()


def test_a_page_is_opened_only_where_one_can_see_it(tmp_path, monkeypatch):
    import webbrowser

    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda uri: opened.append(uri) or True)
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION", "CI"):
        monkeypatch.delenv(name, raising=False)
    assert not page.open_page(tmp_path / "index.html") and not opened
    monkeypatch.setenv("DISPLAY", ":0")
    assert page.open_page(tmp_path / "index.html") and opened[0].startswith("file://")

    def fail(uri):
        raise webbrowser.Error("no browser")

    monkeypatch.setattr(webbrowser, "open", fail)
    assert not page.open_page(tmp_path / "index.html")


def test_a_page_without_anything_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path))
    monkeypatch.delenv("SKINREPRO_FIGURES", raising=False)
    out = CliRunner().invoke(app, ["page", "lopezperez2025"])
    assert out.exit_code == 2 and "skinrepro page lopezperez2025 --rebuild" in out.output
    for paper in ("wang2024", "lopezperez2025"):  # the index of each is understood
        listed = page.artefacts(ROOT / "nbs" / "papers" / paper)
        cells = json.loads((ROOT / "nbs" / "papers" / paper / "index.ipynb").read_text())["cells"]
        n = sum("".join(c["source"]).count("](report.ipynb), ") for c in cells)
        assert len(listed) == n > 5 and all(a.headings and a.notebooks for a in listed)


@pytest.mark.parametrize("of", ["made up", "committed"])
def test_the_page_of_any_paper_from_its_committed_records(of, tmp_path, monkeypatch):
    "The remedy that the message names."
    from test_vae import made_up

    from skinrepro.records import write_records

    paper, committed = "lopezperez2025", ROOT / "figures"
    if of == "made up":
        committed = tmp_path / "committed"
        monkeypatch.setenv("SKINREPRO_COMMITTED", str(committed))
        write_records(made_up(), committed / paper / "records.csv")
    elif not committed_runs(paper, "vae"):
        pytest.skip("the committed records are of an earlier version: skinrepro run lopezperez2025")
    before = {f: f.read_bytes() for f in (committed / paper).iterdir()}
    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("SKINREPRO_FIGURES", raising=False)
    out = CliRunner().invoke(app, ["page", paper, "--rebuild"])
    assert out.exit_code == 0, out.output
    page = tmp_path / "runs" / "figures" / paper / "index.html"
    text = page.read_text(encoding="utf-8")
    assert text.count("<h2") > 8 and PHANTOM_STAMP in text and "from the committed records" in text
    assert {f: f.read_bytes() for f in (committed / paper).iterdir()} == before
