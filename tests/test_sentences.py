"""Sentences and their sources: a result is computed where it is told, and what is cited exists."""

import csv
import json
import re
import tomllib

import pandas as pd
import pytest
from conftest import ROOT

from skinrepro.core import has_data
from skinrepro.records import read_record
from skinrepro.tables import read_reported

PAPERS = sorted(p for p in (ROOT / "nbs" / "papers").iterdir() if (p / "reported.csv").is_file())
WANG = ROOT / "nbs" / "papers" / "wang2024"
FIGURES = ROOT / "figures"

# --- results are not typed

COUNT = r"(?:\d+|one|two|three|four|five|six|seven|eight|nine|ten)"
MEASURED = re.compile(
    r"[-+]?\d[\d,]*(?:\.\d+)?\s?(?:%|points?\b|degrees\b)"  # 36 degrees, 29 %
    r"|\[[-+]?\d+(?:\.\d+)?, [-+]?\d+(?:\.\d+)?\]"  # an interval
    rf"|\b{COUNT} (?:of|in) (?:the )?{COUNT}\b"  # eight of nine
    r"|[-+]?\b\d+\.\d{2,}\b"  # 79.57
    r"|\b(?:third|quarter|tenth|fifths?) of\b"
    r"|\b(?:from|to) [-+]?\d+ after\b|, [-+]?\d+ after\b"
)
INDEX, REPORT, PROTOCOL = "index.ipynb", "report.ipynb", "protocol.ipynb"
# file, words of the sentence, where its number comes from
ALLOWED = [
    ("wang2024/index", "arXiv 2406.18375", "number of the paper"),
    ("wang2024/index", "a tenth of the training images chooses", "setting: val_fraction"),
    ("wang2024/index", "differ in eight of nine rows", "Table 2, counted in this file"),
    ("wang2024/index", "one image in one of five runs", "paper, section 3: five subsets"),
    ("wang2024/index", "A third of the images that it calls dark", "annotations, counted here"),
    ("wang2024/index", "four of the seven conditions", "setting: classes of the miniature"),
    ("wang2024/index", "conditions with 30 of 1100 images", "Table 1"),
    ("wang2024/index", "a fifth of the training images are parents", "setting: parents"),
    ("wang2024/index", "instead of 500 of 16 at", "official code, settings of textual inversion"),
    ("wang2024/index", "Table 5 prints 79.57", "paper, Tables 2 and 5, compared in this file"),
    (
        "wang2024/index",
        "0.7 cannot change skin colour and 0.75 can",
        "comment in the official code",
    ),
    ("wang2024/index", "dark is below 10 degrees", "Del Bino & Bernerd 2013: colour.ITA_CLASSES"),
    ("wang2024/report", "with the share below 10 degrees", "colour.ITA_CLASSES"),
    ("wang2024/report", "the share of images below 10 degrees", "colour.ITA_CLASSES"),
    ("wang2024/report", "0.7 cannot change skin colour while 0.75 can", "official code"),
    ("wang2024/protocol", "(arXiv 2406.18375,", "number of the paper"),
    ("wang2024/protocol", "8 of the two types together", "official code, newest notebook"),
    ("wang2024/protocol", "by one of four phrases", "official code, inference notebook"),
    ("wang2024/protocol", "so 1366 of 1519 train", "design; the cell below it computes both"),
    ("lopezperez2025/index", "arXiv 2501.11752", "number of the paper"),
    ("lopezperez2025/index", "goes from 0 to 100 %", "setting: training sets between A and C"),
    ("lopezperez2025/index", "would hold 63 % distinct images", "1 - 1/e, in this file"),
    ("lopezperez2025/index", "the image in [-1, 1]", "public code"),
    ("lopezperez2025/index", "pixels in [-1, 1]", "public code"),
    ("lopezperez2025/index", "and in [0, 1] (a quarter of it)", "half of the scale, squared"),
    ("lopezperez2025/index", "15 % of the images, 64 px", "setting: fraction at mini"),
    ("lopezperez2025/report", '"below 0.07"', "paper, section 4.1"),
    ("lopezperez2025/report", "one of the two test sets lacks", "a rule"),
    ("lopezperez2025/report", "Between 0 and 100 % dark images", "setting"),
    ("lopezperez2025/protocol", "(arXiv 2501.11752)", "number of the paper"),
    ("lopezperez2025/protocol", "only 63 % distinct images", "1 - 1/e, in this file"),
    ("lopezperez2025/protocol", "within a margin of 5 % of the mean", "setting: margin"),
    ("lopezperez2025/protocol", "at 95 % for all together (Bonferroni)", "setting: confidence"),
    ("lopezperez2025/index", "Its own split, 90 to 10 %", "public code"),
    ("lopezperez2025/protocol", "a third of the images the border", "counted in test_vae.py"),
    ("fairskin2024/index", "arXiv 2410.22551", "number of the paper"),
    ("fairskin2024/index", "arXiv 2606.14727", "number of the successor"),
    ("fairskin2024/protocol", "(arXiv 2410.22551)", "number of the paper"),
    ("fairskin2024/protocol", "A tenth of 12 images", "arithmetic"),
    ("fairskin2024/protocol", "at 95 % for all of them together", "setting: confidence"),
    ("ktena2023/index", "arXiv [2304.09218]", "number of the paper"),
    ("ktena2023/index", "a split by patients (90 %)", "setting of the selection, `counting`"),
    ("ktena2023/protocol", "(arXiv [2304.09218];", "number of the paper"),
    ("README", "Python 3.11 or 3.12", "requirement"),
    ("README", "Table 1 exact from the annotations", "table1.csv, compared in this file"),
    ("CHANGELOG", "100 % of 480 samples", "figures/miniature/card.json, compared in this file"),
    ("CHANGELOG", "(1.34 and 1.05 times", "benchmarks/runs.py"),
    ("CHANGELOG", "1.23 times the processor time", "benchmarks/runs.py"),
    ("CHANGELOG", "shares of dark images from 0 to 100 %", "setting"),
    ("CHANGELOG", "takes 0.88 of the time", "benchmarks/vae.py"),
    ("CHANGELOG", "LoRA 1.05 to 1.5 times", "benchmarks/results"),
    ("CHANGELOG", "On an H100 (torch 2.11", "benchmarks/results/rehearsal.csv"),
    ("CHANGELOG", "Table 1 regenerated exactly", "table1.csv, compared in this file"),
]


def prose(text):
    "Markdown without code, link targets and line breaks."
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    text = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "", text))
    return " ".join(text.split())


def typed(text):
    "Sentences that hold a number as results have them."
    parts = re.split(r"(?<=[.:;|])\s+", prose(text))
    return [s for s in parts if MEASURED.search(s)]


def markdown(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


TEXTS = [
    *(p / name for p in PAPERS for name in (INDEX, REPORT, PROTOCOL)),
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
]


def name_of(path):
    inside = path.parent.name + "/" if path.suffix == ".ipynb" else ""
    return f"{inside}{path.stem}"


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_no_result_is_typed(path):
    text = markdown(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    quotes = [quote for file, quote, _ in ALLOWED if file == name_of(path)]
    unknown = [s[:200] for s in typed(text) if not any(q in s for q in quotes)]
    assert not unknown, (
        f"{name_of(path)} holds numbers that no cell computes: {unknown}. Let a code cell write the"
        " sentence (report.save_summary); if the number is the paper's, a setting's or one that a"
        " test compares, quote it in ALLOWED with its source."
    )


@pytest.mark.parametrize(
    "sentence",
    [
        "Photographs keep their tone, with a mean ITA of 36 degrees before, 34 after.",
        "It calls only 29 % of the results the parent's.",
        "Above 0 in eight of nine rows.",
        "Better than either alone (13.7 points [-0.1, 27.4]).",
        "The error is smaller on dark skin (-0.012 [-0.021, -0.003]).",
        "In words, four fifths of the gap are gone.",
    ],
)
def test_typed_results_are_found(sentence):
    assert typed(f"A setting has 30 epochs. {sentence} And `0.55 %` is code.") == [sentence]


def test_numbers_that_may_be_typed_are_right():
    printed = read_reported(WANG / "reported.csv")
    two = printed[(printed.artefact == "table2") & printed.metric.isin(["accuracy", "recall"])]
    pairs = two.pivot(index=["arch", "train"], columns="metric", values="value")
    assert len(pairs) == 9 and (pairs.accuracy != pairs.recall).sum() == 8
    five = printed[(printed.artefact == "table5") & (printed.strategy == "ti+lora")]
    assert 79.57 in set(five.value)
    same = pairs.loc[("VGG-16", "syn")]
    assert same.accuracy == 75.0
    assert round(100 * (1 - (1 - 1 / 1668) ** 1668)) == 63  # draws with replacement
    table1 = pd.read_csv(FIGURES / "wang2024" / "table1.csv")
    equal = f"{(table1.verdict == 'equal').sum()} of {len(table1)}"
    for name in ("README.md", "CHANGELOG.md"):
        said = re.findall(
            r"\d+ of \d+(?= numbers\)|\]\(figures/wang2024/table1)", (ROOT / name).read_text()
        )
        assert said == [equal]
    card = json.loads((FIGURES / "miniature" / "card.json").read_text())
    assert card["condition"] == card["skin_group"] == 1.0
    assert sum(v["n"] for v in card["text_to_image"].values()) == 480


@pytest.mark.skipif(not has_data("fitzpatrick17k"), reason="needs the annotations")
def test_a_third_of_the_dark_images_is_not_dark_to_the_second_annotators():
    from skinrepro.fitzpatrick17k import read_annotations
    from skinrepro.papers.wang2024 import CONDITIONS

    a = read_annotations()
    dark = a[a.label.isin(CONDITIONS) & a.fitzpatrick_scale.astype(int).isin([5, 6])]
    assert (~dark.fitzpatrick_centaur.astype(int).isin([5, 6])).mean() == pytest.approx(
        1 / 3, abs=0.06
    )


# --- the sentences that are computed


def summary():
    return (FIGURES / "wang2024" / "summary.md").read_text(encoding="utf-8")


def test_every_scenario_is_told_of_the_photographs_that_were_redrawn():
    "As once it was not: one of three was picked."
    r = read_record(FIGURES / "wang2024" / "records.csv")
    r = r[(r.notebook == "generator") & (r.group == "light parents") & (r.target == "dark")]
    r = r[(r.pipeline == "img2img") & (pd.to_numeric(r.parents) == 1)]
    assert set(r.data) == {"phantom", "pad_ufes20"}
    for (data, scenario), of in r.groupby(["data", "scenario"]):
        v = of.groupby("metric").value.mean()
        sentence = f"mean ITA {v['ita_parents']:.1f} degrees before, {v['ita']:.1f} after"
        stamp = "PHANTOM DATA" if data == "phantom" else f"Data: {data}"
        tone = summary().split("## Tone")[1].split("\n## ")[0].split(stamp)[1].split("**\n\n")[1]
        (line,) = [s for s in tone.splitlines() if s.startswith(f"* Scenario {scenario}, ")]
        assert sentence in line


def test_shares_name_what_they_are_of():
    "29 % of the 52 parents that the judge calls right are 27 % of all 56 results."
    r = read_record(FIGURES / "wang2024" / "records.csv")
    r = r[(r.notebook == "strength") & (r.data == "phantom") & (r.group == "all")]
    r = r[(r.named == "wrong") & (r.method == "ti+lora")]
    r = r.assign(strength=pd.to_numeric(r.strength))
    for strength, t in r.groupby("strength"):
        v = t.set_index("metric")
        all_of, kept = v.loc["called_asked"], v.loc["kept"]
        sentence = (
            f"* ti+lora, strength {strength:g}, a prompt that names another condition: the judge"
            f" calls {100 * all_of.value:.0f} % of {all_of.n:.0f} results the parent's condition"
            f" ({100 * kept.value:.0f} % of {kept.n:.0f} whose parents it calls right)"
        )
        assert sentence in summary()


# --- what is cited exists


def contents(paper):
    return tomllib.loads((paper / "contents.toml").read_text(encoding="utf-8"))


def cited(text, words):
    "Numbers after a word: 'Tables 2 to 4' gives 2 and 4."
    number = r"\d+(?:\.\d+)*(?:[a-z]\b)?"
    found = re.findall(rf"\b(?:{words})s? ({number}(?:(?:, | and | to |-){number})*)", text, re.I)
    return {n for group in found for n in re.findall(number, group)}


KINDS = {
    "sections": "section",
    "tables": "table",
    "figures": "figure|fig\\.",
    "equations": "equation",
}


def own_texts(paper):
    for f in sorted(paper.glob("*.ipynb")):
        yield f.name, " ".join("".join(c["source"]) for c in json.loads(f.read_text())["cells"])
    for row in csv.DictReader((paper / "reported.csv").open(encoding="utf-8")):
        yield "reported.csv", f"{row['source']}; {row['note']}"


@pytest.mark.parametrize("paper", PAPERS, ids=lambda p: p.name)
def test_what_a_paper_folder_cites_is_in_the_paper(paper):
    has = {kind: {str(n) for n in contents(paper)[kind]} for kind in KINDS}
    has = {k: v | {re.sub("[a-z]$", "", n) for n in v} for k, v in has.items()}  # 3: of 3a and 3b
    assert has["sections"]
    for name, text in own_texts(paper):
        for kind, words in KINDS.items():
            strange = cited(text, words) - has[kind]
            assert not strange, f"{name} of {paper.name} cites {kind} {sorted(strange)}"


AUTHORS = {"wang2024": r"Wang et al\.", "lopezperez2025": r"L[oó]pez-P[eé]rez et al\."}


@pytest.mark.parametrize("key", AUTHORS)
def test_what_the_stages_cite_is_in_the_paper(key):
    paper = ROOT / "nbs" / "papers" / key
    has, seen = set(contents(paper)["sections"]), 0
    for f in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        cells = json.loads(f.read_text())["cells"]
        text = " ".join(" ".join("".join(c["source"]).split()) for c in cells)
        for after in re.findall(
            rf"{AUTHORS[key]},? \(?(?:\d{{4}}|arXiv [\d.]+)\)?(.{{0,40}})", text
        ):
            seen += 1
            strange = cited(after.split(";")[0], "section") - has
            assert not strange, f"{f.name} cites section {sorted(strange)} of {key}"
    assert seen


def test_claims_name_sections_of_their_paper():
    from skinrepro.papers.lopezperez2025 import CLAIMS

    has = set(contents(ROOT / "nbs" / "papers" / "lopezperez2025")["sections"])
    assert {n for c in CLAIMS for n in re.findall(r"\d(?:\.\d)?", c.source)} <= has


def test_a_section_that_is_not_there_is_seen():
    assert cited("Source: Wang et al. 2024, section 2.1.", "section") == {"2.1"}
    assert cited("sections 3.1 and 3.2; Tables 2 to 4", "section") == {"3.1", "3.2"}
    assert cited("Tables 2-4, Table 5", "table") == {"2", "4", "5"}
    assert cited("Figures 3a, 3b and 5", "figure") == {"3a", "3b", "5"}
    assert "2.1" not in contents(WANG)["sections"]
