"""The report of fairskin2024 on made-up records of all its runs (see test_paper_reports): effects
are as the paper says at profile paper, and the other way round at mini, on phantoms.
"""

import re
import shutil
import tomllib

import numpy as np
import pandas as pd
import pytest
from test_paper_reports import (
    ARMS,
    CELLS,
    FEW,
    GROUPS,
    MADE,
    PAPERS,
    RATIOS,
    UNSEEN,
    VARIANCES,
    amounts,
    fid_of,
    of_answers,
    report,
)

from skinrepro import runs
from skinrepro.core import provenance
from skinrepro.grid import read_grid


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
    rehearsed = rehearsal_runs(full, paper.rehearsed, True, dict(fitzpatrick17k="phantom"))
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
