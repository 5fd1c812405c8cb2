"Claims: properties on random records, and the printed numbers through the same functions."

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, committed_runs

from skinrepro.claims import (
    Claim,
    Rule,
    against,
    claim_rule,
    claims_layout,
    detectable,
    effect_interval,
    evaluate,
    gap_records,
    margins,
    pairs,
    printed_records,
)
from skinrepro.tables import read_reported, save_table
from skinrepro.uncertainty import minimum_detectable_effect, paired_difference, smallest_spread

WANG = ROOT / "nbs" / "papers" / "wang2024"
SYN = Claim(
    "syn beats real",
    "made up",
    against(dict(train="syn"), dict(train="real")),
    ("scenario", "arch"),
    dict(scenario=("i", "ii")),
)
BOTH = Claim(
    "both beat either",
    "made up",
    against(dict(train="both"), dict(train="real"), dict(train="syn")),
    ("scenario", "arch"),
)


def made_up(effects, seeds=range(5), n=56, noise=0.01, rng=0, sizes=None, **more):
    "Made-up records of two scenarios and two networks; `effects`: train type -> what it adds."
    rng = np.random.default_rng(rng)
    out = []
    for scenario in ("i", "ii"):
        for arch in ("small", "large"):
            for seed in seeds:
                for train, plus in effects.items():
                    base = (
                        dict(
                            run_id=f"{scenario}-{arch}-{train}-{seed}",
                            scenario=scenario,
                            arch=arch,
                            train=train,
                            seed=seed,
                            group="all",
                            data="phantom",
                            profile="mini",
                            version="1",
                        )
                        | more
                    )
                    out.append(
                        base | dict(metric="accuracy", value=0.6 + plus + rng.normal(0, noise), n=n)
                    )
                    if sizes:
                        out.append(
                            base | dict(metric="train_size", value=sizes[train], n=sizes[train])
                        )
    return pd.DataFrame(out)


# --- the interval


def test_interval_is_the_paired_t_interval_where_there_is_spread():
    rng = np.random.default_rng(0)
    for _ in range(50):
        d = rng.normal(0.02, 0.05, rng.integers(3, 8))
        overlap = rng.choice([0.0, 0.04, 0.2])
        r = paired_difference(d, np.zeros(len(d)), overlap=overlap)
        if r.sd > smallest_spread(56, len(d))["sample"] / 100:
            assert effect_interval(d, 56, overlap) == pytest.approx((r.mean, r.low, r.high))


@pytest.mark.parametrize("n_draws", [2, 3, 5])
def test_equal_draws_are_no_certainty(n_draws):
    """All draws give the same difference: the interval has the width that a single image more in a
    single draw would give.
    """
    from scipy import stats

    for n, images in ((56, 1), (291, 1)):
        mean, low, high = effect_interval([images / n] * n_draws, n)
        half = (
            stats.t.ppf(0.975, n_draws - 1)
            * np.std([1 / n] + [0] * (n_draws - 1), ddof=1)
            / n_draws**0.5
        )
        assert (high - low) / 2 == pytest.approx(half) and (low < 0) == (n_draws < 5) and high > 0


def test_several_test_sets_count_by_their_harmonic_mean():
    from scipy import stats

    t = made_up(dict(real=0, syn=0.03), noise=0)
    t.loc[t.scenario == "ii", "n"] = 291
    n = stats.hmean([56, 291])
    half = stats.t.ppf(0.975, 4) * np.std([1 / n, 0, 0, 0, 0], ddof=1) / 5**0.5
    f = SYN(t)
    assert (f.effect - f.low, f.high - f.effect) == pytest.approx((half, half))


def test_overlapping_draws_widen_the_interval_as_the_records_say():
    plain, sized = (
        made_up(dict(real=0, syn=0.03)),
        made_up(dict(real=0, syn=0.03), sizes=dict(real=1519, syn=7595)),
    )
    a, b = SYN(plain), SYN(sized)
    assert a.effect == b.effect and (b.high - b.low) / (a.high - a.low) == pytest.approx(
        ((1 / 5 + 56 / 1519) / (1 / 5)) ** 0.5
    ), "by photographs, not by synthetic images"


# --- the verdict


def test_verdicts_follow_the_printed_rule():
    rng = np.random.default_rng(1)
    seen = set()
    for i in range(30):
        t = made_up(
            dict(real=0, syn=rng.normal(0, 0.03), both=rng.normal(0.02, 0.03)),
            seeds=range(rng.integers(1, 6)),
            noise=rng.uniform(0.002, 0.04),
            rng=i,
        )
        for claim in (SYN, BOTH):
            f = claim(t)
            k = len(claim.pairs)
            seen.add((k, f.verdict))
            sides = {
                rival["train"]: pairs(t, first, rival, claim.within) for first, rival in claim.pairs
            }
            d = {w: (p.a - p.b).groupby(p.seed).mean() for w, p in sides.items()}
            low = {w: effect_interval(v, 56)[1] for w, v in d.items()}
            top = {w: effect_interval(v, 56, 0.0, 1 - 0.05 / k)[2] for w, v in d.items()}
            expected = (
                "supported"
                if all(v > 0 for v in low.values())
                else "contradicted"
                if any(v < 0 for v in top.values())
                else "inconclusive"
            )
            assert (
                f.verdict == expected
                and f.effect == pytest.approx(min(v.mean() for v in d.values()))
                and f.rival == min(d, key=lambda w: d[w].mean())
            )
    assert seen == {
        (k, v) for k in (1, 2) for v in ("supported", "contradicted", "inconclusive")
    }, "every branch was taken"


def test_one_draw_decides_nothing_however_large_the_effect():
    f = SYN(made_up(dict(real=0, syn=0.3), seeds=[0]))
    assert f.verdict == "inconclusive" and f.draws == 1 and f.effect > 0.2 and np.isnan(f.low)


def test_a_rival_that_was_not_run_forbids_support_but_not_contradiction():
    t = made_up(dict(real=0, both=0.1))
    f = BOTH(t)
    assert f.verdict == "inconclusive" and f.low > 0 and f.note == "no runs of syn"
    assert BOTH(made_up(dict(real=0, both=-0.1))).verdict == "contradicted"
    assert BOTH(made_up(dict(real=0, syn=0))).verdict == "not run"


def test_parts_are_tested_alone():
    t = made_up(dict(real=0, syn=0.05))
    t.loc[(t.scenario == "ii") & (t.train == "syn"), "value"] -= 0.1
    found = evaluate([SYN], t).set_index("part")
    assert found.verdict.to_dict() == {
        "over all": "inconclusive",
        "scenario i": "supported",
        "scenario ii": "contradicted",
    }
    assert found.effect["over all"] == pytest.approx(
        (found.effect["scenario i"] + found.effect["scenario ii"]) / 2
    )


@pytest.mark.parametrize("n", [56, 291])
def test_the_detectable_effect_stands_beside_each_claim(n):
    t = evaluate([SYN], made_up(dict(real=0, syn=0.05), n=n))
    assert t.mde.tolist() == pytest.approx(
        [100 * minimum_detectable_effect(n, discordance=0.25)] * 3
    ) and set(t.n_test) == {str(n)}
    mixed = made_up(dict(real=0, syn=0.05))
    mixed.loc[mixed.scenario == "ii", "n"] = 291
    f = SYN(mixed)
    assert f.n_test == "56-291" and f.mde == detectable(56, 0.25), "of the smallest test set"


# --- what is refused, and what is left out


@pytest.mark.parametrize(
    "column, value", [("data", "fitzpatrick17k"), ("profile", "paper"), ("version", "2")]
)
def test_what_does_not_belong_together_is_refused(column, value):
    t = made_up(dict(real=0, syn=0.05))
    t.loc[t.train == "syn", column] = value
    with pytest.raises(ValueError, match=f"mix {column}"):
        SYN(t)
    assert SYN(t[t[column] == value]).verdict == "not run"


def test_two_records_for_one_place_are_refused():
    t = made_up(dict(real=0, syn=0.05))
    with pytest.raises(ValueError, match="some other parameter varies"):
        SYN(pd.concat([t, t.assign(run_id="x" + t.run_id)]))
    t.loc[3, "value"] = np.nan
    with pytest.raises(ValueError, match="recorded no accuracy"):
        SYN(t)


def test_incomplete_draws_are_left_out_and_named():
    t = made_up(dict(real=0, syn=0.05))
    t = t[~((t.seed == 3) & (t.scenario == "i") & (t.arch == "small") & (t.train == "syn"))]
    f = SYN(t)
    assert (
        f.draws == 4
        and "draw 3 incomplete" in f.note
        and not any(i.endswith("-3") for i in f.runs.split())
    )


def test_the_order_of_records_does_not_matter():
    t = made_up(dict(real=0, syn=0.01, both=0.02), sizes=dict(real=100, syn=500, both=600))
    for claim in (SYN, BOTH):
        assert asdict(claim(t)) == asdict(claim(t.sample(frac=1, random_state=0)))


def test_text_numbers_and_numbers_select_alike():
    "A csv may give back a seed or a parameter as text."
    t = made_up(dict(real=0, syn=0.05)).assign(size=64)
    c = Claim(
        "x",
        "x",
        against(dict(train="syn"), dict(train="real")),
        ("scenario", "arch"),
        where=dict(size=64),
    )
    assert (
        c(t).verdict == c(t.assign(size="64")).verdict == "supported"
        and c(t.assign(size=32)).verdict == "not run"
    )


# --- the paper's own numbers


def test_printed_numbers_through_the_same_function():
    "Means of Table 2 by hand: synthetic minus real accuracy 4.76, 0.60 and 3.81 points."
    reported = read_reported(WANG / "reported.csv")
    printed = printed_records(reported[reported.artefact == "table2"])
    f = SYN(printed)
    assert (
        f.effect == pytest.approx((75 - 70.24 + 69.05 - 68.45 + 74.19 - 70.38) / 300)
        and f.verdict == "inconclusive"
        and f.draws == 1
    )
    t = evaluate([SYN], pd.DataFrame(), printed)
    assert (
        t.verdict.tolist() == ["not run"] * 3
        and round(t.printed[0], 2) == 3.06
        and t.mde[0] == pytest.approx(100 * detectable(56, 0.25))
    )


def test_units_other_than_percent_stay_as_they_are():
    cells = pd.DataFrame(
        dict(unit=["percent", "distance"], value=[64.0, 61.5], metric=["f1", "fid"])
    )
    assert printed_records(cells, units=("percent", "distance")).value.tolist() == [0.64, 61.5]
    t = levels(dict(A=3, B=1))
    shown, found = evaluate([sets("AB")], t), sets("AB")(t)
    assert (shown.effect[0], shown.low[0]) == (found.effect, found.low) and found.effect > 1.9


def test_a_gap_has_as_many_images_as_its_smallest_group():
    rows = [("a", 0.9, 300), ("b", 0.6, 40), ("c", 0.7, 80), ("d", 0.1, 5)]
    t = pd.DataFrame([dict(run_id="r", metric="f1", group=g, value=v, n=n) for g, v, n in rows])
    (gap,) = gap_records(t, "f1", "abc").itertuples()
    assert (gap.metric, gap.group, gap.n) == ("f1 gap", "all", 40)
    assert gap.value == pytest.approx(0.3)


def test_a_table_of_claims_is_stamped_and_carries_its_rule(tmp_path):
    t = evaluate([SYN, BOTH], made_up(dict(real=0, syn=0.05)))
    md, _, tex = (
        f.read_text(encoding="utf-8")
        for f in save_table(t, tmp_path / "claims", "Claims", shown=claims_layout(t))
    )
    assert (
        "PHANTOM DATA" in md
        and "PHANTOM DATA" in tex
        and claim_rule([SYN, BOTH]) in md
        and "| not run |" in md
    )


def test_claims_say_how_many_images_train_and_what_is_lacking():
    records = made_up(dict(real=0, syn=0.05), sizes=dict(real=1519, syn=6830))
    old = evaluate([SYN], records)
    assert set(old.n_train) == {"1519-6830"} and set(old.reason) == {""}
    part = records.assign(n_train=810, n_classes_train=4, n_classes=7, missing="drop")
    setting, whole = dict(data="fitzpatrick17k"), dict(n_train=1366)
    t = evaluate([SYN], part, None, setting, lambda record: whole)
    assert set(t.n_train) == {"810"} and set(t.classes) == {"4 of 7"}
    why = "phantom data; missing drop instead of error; training size 810 instead of 1366"
    assert set(t.reason) == {why}
    assert claims_layout(t)["our effect [interval]"].str.endswith(" †").all()
    assert set(claims_layout(t)["training images"]) == {"810"}


def test_a_table_of_claims_says_why_it_stands_beside_no_printed_number(tmp_path):
    part = made_up(dict(real=0, syn=0.05), n_train=810, n_classes_train=4, n_classes=7)
    t = evaluate([SYN], part, None, dict(data="fitzpatrick17k"))
    md = save_table(t, tmp_path / "c", "Claims", shown=claims_layout(t))[0].read_text("utf-8")
    assert md.startswith("# Claims (with 4 of 7 classes, chance 25 %)")
    assert "† Not comparable because: phantom data (3 claims)." in md


def test_every_paper_corrects_for_the_number_of_its_intervals():
    "Rivals and orderings alike: a rule that does not is nowhere."
    for file in (ROOT / "nbs" / "papers").glob("*/*.ipynb"):
        assert "corrected=False" not in file.read_text(encoding="utf-8"), file


# --- orders, and the other directions


ORDER = Rule("repetition", "metric", False, False, together=True, corrected=False, train_size="")


def levels(means, repetitions=range(10), spread=0.05, rng=0):
    "Made-up errors of training sets on one test group."
    rng = np.random.default_rng(rng)
    return pd.DataFrame(
        [
            dict(run_id=f"{s}{r}", training_set=s, repetition=r, group="dark", metric="mse")
            | dict(value=mean + rng.normal(0, spread), n=75, data="phantom", version="1")
            for s, mean in means.items()
            for r in repetitions
        ]
    )


def sets(*pairs, **more):
    sides = tuple(tuple(dict(training_set=s, group="dark") for s in p) for p in pairs)
    return Claim("an order", "made up", sides, metric="mse", **dict(rule=ORDER) | more)


def differences(t, a, b):
    wide = t.pivot(index="repetition", columns="training_set", values="value")
    return wide[a], wide[b]


def test_orders_have_the_intervals_of_a_paired_t_test():
    from scipy import stats

    seen = set()
    for i in range(20):
        t = levels(dict(A=3, B=3 - 0.1 * (i % 3 - 1), C=2.7), spread=0.08, rng=i)
        f = sets("AB", "BC")(t)
        tests = {
            f"{a} dark - {b} dark": stats.ttest_rel(*differences(t, a, b)) for a, b in ("AB", "BC")
        }
        bounds = {k: r.confidence_interval() for k, r in tests.items()}
        assert (f.low, f.high) == pytest.approx(tuple(bounds[f.rival]))
        assert f.rival == min(bounds, key=lambda k: sum(bounds[k])), "the smallest mean"
        expected = (
            "supported"
            if all(b.low > 0 for b in bounds.values())
            else "contradicted"
            if any(b.high < 0 for b in bounds.values())
            else "inconclusive"
        )
        assert f.verdict == expected
        seen.add(expected)
    assert len(seen) == 3, "every branch was taken"


def test_lower_is_higher_with_the_sides_exchanged():
    for i in range(10):
        t = levels(dict(A=3, B=3.05), rng=i)
        up, down = sets("AB")(t), sets("BA", direction="lower")(t)
        assert up.verdict == down.verdict and up.effect == -down.effect
        assert (up.low, up.high) == pytest.approx((-down.high, -down.low))


@pytest.mark.parametrize(
    "margin, verdict", [(-0.2, "supported"), (0.0, "contradicted"), (-0.1, "inconclusive")]
)
def test_a_negative_margin_says_not_lower_by_more(margin, verdict):
    assert sets("AB", margin=margin)(levels(dict(A=3, B=3.1), spread=0.03)).verdict == verdict


@pytest.mark.parametrize(
    "margin, verdict",
    [(0.05, "supported"), (0.1, "inconclusive"), (0.2, "contradicted"), (-0.2, "supported")],
)
def test_lower_by_more_than_a_margin(margin, verdict):
    "A lies .1 below B, give or take .02."
    t = levels(dict(A=3, B=3.1), spread=0.02)
    assert sets("AB", direction="lower", margin=margin)(t).verdict == verdict
    assert sets("BA", margin=margin)(t).verdict == verdict


def test_a_relative_margin_is_a_share_of_the_mean_with_each_side_once():
    "Sides 16, 12, 12, 12 have the mean 13: 4 is more than 30 % of it, and of their maximum less."
    t = levels(dict(A=16, B=12, C=12, D=12), spread=0.001)
    for margin, verdict in ((0.30, "supported"), (0.31, "contradicted")):
        claim = sets("AB", "AC", "AD", margin=margin, relative=True)
        assert claim(t).verdict == verdict


def test_the_pair_shown_is_the_one_least_in_favour():
    t = levels(dict(A=1, B=2, C=4))
    assert sets("AB", "AC", direction="lower")(t).rival == "A dark - B dark"
    assert sets("BA", "CA")(t).rival == "B dark - A dark"
    alike = sets("BA", "BC", direction="same", margin=9)
    assert alike(t).effect == pytest.approx(-2, abs=0.1)
    assert alike(t.assign(value=-t.value)).effect == pytest.approx(2, abs=0.1)


def test_the_pair_shown_is_the_one_that_decides():
    """A wide interval with the larger effect decides nothing beside a narrow one that contradicts;
    beside one that supports it is what keeps the verdict open.
    """
    narrow = levels(dict(A=0, B=1))
    above, below = (levels(dict(C=mean), spread=20, rng=1) for mean in (4, -9))
    against_it = sets("AB", "AC")(pd.concat([narrow, above]))
    assert against_it.verdict == "contradicted" and against_it.rival == "A dark - B dark"
    assert sets("AC")(pd.concat([narrow, above])).effect < against_it.effect < against_it.high < 0
    undecided = sets("BA", "BC")(pd.concat([narrow, below]))
    assert undecided.verdict == "inconclusive" and undecided.rival == "B dark - C dark"
    assert undecided.low < 0 < sets("BA")(narrow).effect < undecided.effect


def test_correction_is_for_contradictions_alone_and_is_an_option():
    """Two pairs: with the confidence for both together the upper end moves from t(.975) to
    t(.9875); a difference between the two is contradicted only without correction.
    """
    from scipy import stats

    half = 0.5 * (stats.t.ppf(0.975, 4) + stats.t.ppf(0.9875, 4)) / 5**0.5  # of a spread of 1
    d = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    d = d / d.std(ddof=1) - half
    t = pd.concat(
        [
            levels(dict(B=0, C=-10), range(5), spread=0),
            levels(dict(A=0), range(5), spread=0).assign(value=d),
        ]
    )
    corrected = sets("AB", "BC", rule=Rule(**vars(ORDER) | dict(corrected=True)))
    assert sets("AB", "BC")(t).verdict == "contradicted"
    assert corrected(t).verdict == "inconclusive"


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_contradiction_is_one_for_all_pairs_together(k):
    "One-sided .05 / k / 2 of Student's t, just below and just above."
    from scipy import stats

    for beyond, verdict in ((0.98, "inconclusive"), (1.02, "contradicted")):
        half = stats.t.ppf(1 - 0.025 / k, 4) / 5**0.5
        d = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
        first = levels(dict(A=0), range(5)).assign(value=d / d.std(ddof=1) - beyond * half)
        others = {s: -10.0 * i for i, s in enumerate("BCDE")}
        t = pd.concat([first, levels(others, range(5), spread=0)])
        rule = Rule(**vars(ORDER) | dict(corrected=True))
        assert sets(*("AB", "BC", "CD", "DE")[:k], rule=rule)(t).verdict == verdict


def test_the_same_needs_a_margin_and_its_interval_within():
    with pytest.raises(ValueError, match="Give a margin"):
        sets("AB", direction="same")
    alike = sets("AB", direction="same", margin=0.05, relative=True)
    assert alike(levels(dict(A=3, B=3))).verdict == "supported"
    assert alike(levels(dict(A=3, B=3.5))).verdict == "contradicted"
    assert alike(levels(dict(A=3, B=3.15))).verdict == "inconclusive"


def test_the_margin_is_that_of_the_verdict():
    alike = sets("AB", direction="same", margin=0.05, relative=True)
    t = levels(dict(A=3, B=3.1), spread=1e-6)
    own, other = margins([alike, sets("AB", margin=9)], t)
    assert own == pytest.approx(0.05 * 3.05, rel=1e-4) and np.isnan(other)
    assert alike(t).verdict == "supported" and alike(t).high < own
    assert alike(levels(dict(A=3, B=3.2), spread=1e-6)).verdict == "contradicted"  # .2 > .155
    assert margins([sets("AB", direction="same", margin=0.2)], t) == [0.2]
    assert np.isnan(margins([alike], t[:0])).all()


def test_the_printed_rule_is_that_of_the_committed_tables():
    from skinrepro.papers import lopezperez2025

    said = claim_rule(lopezperez2025.CLAIMS)
    if committed_runs("lopezperez2025", "vae"):
        for name in ("claims", "metrics", "pad_ufes20_claims", "ham10000_claims"):
            assert said in (ROOT / "figures" / "lopezperez2025" / f"{name}.md").read_text("utf-8")
    for name in ("claims", "pad_ufes20_claims"):
        text = (ROOT / "figures" / "wang2024" / f"{name}.md").read_text("utf-8")
        assert claim_rule([SYN, BOTH]) in text
    assert claim_rule([SYN]) not in said
