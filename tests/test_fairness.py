"""Fairness measures beside fairlearn's, beside sums by hand, and beside what chance alone gives."""

import numpy as np
import pandas as pd
import pytest

from skinrepro.fairness import (
    FAIRNESS,
    accuracy_disparity,
    best_to_worst,
    compare_fairness,
    demographic_parity,
    demographic_parity_of,
    disparity_intervals,
    essp,
    expected_disparity,
    fairness,
    group_counts,
    parity_gaps,
    performance_gaps,
    worst_group,
)
from skinrepro.metrics import by_group
from skinrepro.uncertainty import interval_by_group, proportion_interval


def binary(seed, n=211):
    rng = np.random.default_rng(seed)
    group = rng.choice(["African", "Asian", "Caucasian"], n, p=[0.12, 0.3, 0.58])
    y = rng.integers(0, 2, n)
    p = np.where(rng.random(n) < np.where(group == "African", 0.55, 0.8), y, 1 - y)
    return y, p, group


@pytest.mark.parametrize("seed", range(5))
def test_fairlearn_has_the_same_rates_and_differences(seed):
    """Comparable: the rate of each group and of all (MetricFrame of selection_rate, and of
    accuracy_score), the largest distance to the overall rate and the range of the rates. The sum
    over groups fairlearn does not have; it is summed here from its own rates.
    """
    fl = pytest.importorskip("fairlearn.metrics")
    from sklearn.metrics import accuracy_score

    y, p, z = binary(seed)
    frame = fl.MetricFrame(
        metrics=dict(rate=fl.selection_rate, accuracy=accuracy_score),
        y_true=y,
        y_pred=p,
        sensitive_features=z,
    )
    theirs = frame.by_group.rate - frame.overall.rate
    ours = parity_gaps(p, z, 1)
    assert ours.index.tolist() == theirs.index.tolist()
    assert np.abs(ours - theirs).max() < 1e-12
    assert abs(demographic_parity_of(p, z, 1) - theirs.abs().sum()) < 1e-12
    for c in (0, 1):  # with two classes each class tells the same
        assert abs(demographic_parity_of(p, z, c) - demographic_parity(p, z, 2)) < 1e-12
    of = fl.demographic_parity_difference
    assert abs(ours.abs().max() - of(y, p, sensitive_features=z, method="to_overall")) < 1e-12
    assert abs(ours.max() - ours.min() - of(y, p, sensitive_features=z)) < 1e-12
    of_accuracy = (frame.by_group.accuracy - frame.overall.accuracy).abs()
    assert abs(accuracy_disparity(y, p, z) - of_accuracy.sum()) < 1e-12
    right = parity_gaps(y == p, z, True)
    assert abs(right.abs().max() - frame.difference(method="to_overall").accuracy) < 1e-12
    worst = worst_group(y, p, z)
    assert abs(worst.accuracy - frame.group_min().accuracy) < 1e-12
    assert frame.by_group.accuracy.idxmin() == worst.group


@pytest.mark.parametrize("seed", range(3))
def test_more_classes_are_their_mean(seed):
    fl = pytest.importorskip("fairlearn.metrics")
    rng = np.random.default_rng(seed)
    p, z = rng.integers(0, 5, 157), rng.choice(list("abc"), 157, p=[0.1, 0.3, 0.6])
    each = []
    for c in range(5):
        frame = fl.MetricFrame(
            metrics=fl.selection_rate, y_true=p == c, y_pred=p == c, sensitive_features=z
        )
        each.append((frame.by_group - frame.overall).abs().sum())
    assert abs(demographic_parity(p, z, 5) - np.mean(each)) < 1e-12
    assert abs(demographic_parity_of(p, z, 3) - each[3]) < 1e-12


def test_three_classes_by_hand():
    """a: called 0, 0, 1, 2; b: 0, 2. All: 3/6, 1/6, 2/6. a: 1/2, 1/4, 1/4; b: 1/2, 0, 1/2.
    Sums 0, 1/12 + 1/6, 1/12 + 1/6: mean 1/6. Right: a 3 of 4, b 1 of 2, all 4 of 6.
    """
    p, z = [0, 0, 1, 2, 0, 2], list("aaaabb")
    y = [0, 0, 1, 1, 0, 1]
    assert demographic_parity(p, z, 3) == pytest.approx(1 / 6)
    assert accuracy_disparity(y, p, z) == pytest.approx((3 / 4 - 2 / 3) + (2 / 3 - 1 / 2))
    t = fairness(y, p, z, 3, resamples=99)
    of = t[t.group == "all"].set_index("metric").value
    assert of.dp_classes == pytest.approx(1 / 6) and of.dp_accuracy == pytest.approx(1 / 4)
    assert of.essp_classes == pytest.approx((4 / 6) / (7 / 6))
    assert of.essp_accuracy == pytest.approx((4 / 6) / (5 / 4))
    assert of.accuracy_worst == 1 / 2 and t.n[t.metric == "accuracy_worst"].item() == 2


def test_a_perfect_classifier_is_not_at_parity_where_prevalence_differs():
    y, z = np.array([0] * 30 + [1] * 10 + [0] * 10 + [1] * 30), np.repeat(["a", "b"], 40)
    assert demographic_parity(y, z, 2) == 0.5 and accuracy_disparity(y, y, z) == 0
    plain = expected_disparity(y, y, z, 2, "dp_classes")
    given = expected_disparity(y, y, z, 2, "dp_classes", within_class=True)
    assert plain.pvalue < 0.01 and given == (0.5, 0.5, 0.5, 0.5, 1.0)


def test_expected_disparity_is_the_hypergeometric_one():
    from scipy.stats import hypergeom

    y, p, z = binary(7)
    right, n = y == p, len(y)
    expected = 0.0
    for size in np.unique(z, return_counts=True)[1]:
        h = np.arange(size + 1)
        off = np.abs(h / size - right.mean())
        expected += (hypergeom.pmf(h, n, right.sum(), size) * off).sum()
    found = expected_disparity(y, p, z, 2, "dp_accuracy", draws=8000)
    assert found.expected == pytest.approx(expected, abs=0.003)
    assert found.value == accuracy_disparity(y, p, z) and found.pvalue < 0.05
    # for scaled accuracy the unfair side is the low one
    scaled = expected_disparity(y, p, z, 2, "essp_accuracy", draws=999)
    assert scaled.value < scaled.expected and scaled.pvalue < 0.05
    again = expected_disparity(y, p, z, 2, "dp_accuracy", draws=8000)
    assert again == found and expected_disparity(y, p, z, 2, draws=99, seed=1) != found


def test_groups_dealt_out_within_classes_keep_their_classes():
    from skinrepro.fairness import _dealt

    y, p, z = binary(3)
    _, c = group_counts(y, p, z, 2)
    for within in (False, True):
        dealt = _dealt(c, 50, within, np.random.default_rng(0))
        assert (dealt.sum((-1, -2)) == c.sum((-1, -2))).all(), "sizes of groups"
        assert (dealt.sum(1) == c.sum(0)).all(), "what was called what"
        same = (dealt.sum(-1) == c.sum(-1)).all()
        assert same == within, "classes of each group"
        many = _dealt(c, 3000, within, np.random.default_rng(1))
        n = c.sum()  # independent of the group, given the class or altogether
        called = c.sum(0)  # truth, prediction
        expected = (
            c.sum(-1)[..., None] * (called / called.sum(-1, keepdims=True))
            if within
            else c.sum((-1, -2))[:, None, None] * called / n
        )
        assert np.abs(many.mean(0) - expected).max() < 0.25
        assert (many.std(0) > 0.5).all(), "every cell moves"


def test_an_interval_shrinks_with_more_images_and_holds_the_value():
    y, p, z = binary(1)
    few = disparity_intervals(group_counts(y, p, z, 2)[1])
    many = disparity_intervals(group_counts(np.tile(y, 16), np.tile(p, 16), np.tile(z, 16), 2)[1])
    assert np.allclose(few.value, many.value)
    assert ((few.low < few.value) & (few.value < few.high) & (few.low >= 0)).all()
    ratio = (few.high - few.value) / (many.high - many.value)
    assert ((ratio > 3) & (ratio < 5)).all(), ratio  # the root of 16
    assert (few.high.filter(like="essp") <= 1).all()


def test_an_even_classifier_is_inside_and_an_uneven_one_is_seen():
    "Eighty test sets of a known classifier: at least nine of ten intervals hold the truth."
    rng, sizes = np.random.default_rng(0), (30, 75, 152)
    for accuracies in ([0.7] * 3, [0.4, 0.65, 0.8]):
        q = [np.array([[a, 1 - a], [1 - a, a]]) / 2 for a in accuracies]
        truth = {k: f(np.stack([n * t for n, t in zip(sizes, q)])) for k, f in FAIRNESS.items()}
        held = []
        for seed in range(80):
            c = np.stack([rng.multinomial(n, t.ravel()).reshape(2, 2) for n, t in zip(sizes, q)])
            t = disparity_intervals(c, resamples=399, seed=seed)
            held.append([r.low <= truth[k] <= r.high for k, r in t.iterrows()])
        assert np.mean(held, 0).min() >= 0.88, (accuracies, t.index, np.mean(held, 0))


def test_a_comparison_is_paired():
    rng = np.random.default_rng(0)
    n, z = 600, np.repeat(["a", "b"], [120, 480])
    y = rng.integers(0, 3, n)
    worse = np.where(z == "a", 0.35, 0.75)
    luck = rng.random(n)  # both classifiers fail at the same images
    a = np.where(luck < worse, y, (y + 1) % 3)
    b = np.where(luck < 0.7, y, (y + 1) % 3)
    t = compare_fairness(y, a, b, z, 3, resamples=999)
    for name, f in FAIRNESS.items():
        of = [float(f(group_counts(y, p, z, 3)[1])) for p in (a, b)]
        assert t.loc[name, ["a", "b"]].tolist() == pytest.approx(of)
        assert t.difference[name] == pytest.approx(of[0] - of[1])
    assert t.pvalue["dp_accuracy"] < 0.01 and t.low["dp_accuracy"] > 0
    assert t.pvalue["dp_classes"] > 0.05  # both call all classes alike
    other = compare_fairness(y, b, a, z, 3, resamples=999)
    assert np.allclose(other.difference, -t.difference)
    assert ((t.low <= t.difference) & (t.difference <= t.high)).all()


def test_the_swap_test_rejects_no_more_than_it_may():
    rejected = []
    y, z = np.arange(200) % 2, np.repeat(["a", "b"], [40, 160])
    for seed in range(120):
        a, b = (
            np.where(np.random.default_rng([seed, i]).random(200) < 0.7, y, 1 - y) for i in (0, 1)
        )
        t = compare_fairness(y, a, b, z, 2, resamples=199, seed=seed)
        rejected.append(t.pvalue["dp_accuracy"] <= 0.05)
    assert np.mean(rejected) <= 0.12


def test_the_worst_group_states_its_images():
    y, p, z = binary(2)
    t = by_group(y, p, z, 2)
    t = t[(t.metric == "accuracy") & (t.group != "all")].set_index("group")
    worst = worst_group(y, p, z)
    assert worst.group == t.value.idxmin() and worst.n == t.n[worst.group]
    k = round(worst.accuracy * worst.n)
    assert (worst.low, worst.high) == proportion_interval(k, worst.n)
    tie = worst_group([0, 0, 0, 0, 0], [1, 1, 1, 1, 1], list("aabbb"))
    assert tie.group == "b", "of equals the one that is better known"
    with pytest.raises(ValueError, match="No group has 9 images"):
        worst_group([0, 0], [0, 1], list("ab"), at_least=9)


def test_a_record_has_all_numbers_once():
    y, p, z = binary(4)
    t = fairness(y, p, z, 2, table=interval_by_group, resamples=199)
    assert not t.duplicated(["metric", "group"]).any()
    assert set(FAIRNESS) <= set(t.metric) and t.value.notna().all() and (t.n > 0).all()
    assert t[t.metric == "accuracy"].low.notna().all()
    assert t.columns.tolist()[:5] == ["metric", "group", "value", "n", "n_classes_present"]
    chance = t[t.metric.str.contains("_by_chance")]
    assert len(chance) == 4 and (chance.low <= chance.value).all()


GOOD = dict(y=[0, 1, 0, 1], p=[0, 1, 1, 1], group=["a", "a", "b", "b"])


@pytest.mark.parametrize(
    "change, groups, said",
    [
        (dict(group=["a", None, "b", "b"]), None, r"1 of 4 images have no group"),
        (dict(group=["a", np.nan, pd.NA, "b"]), None, r"2 of 4 images have no group"),
        (dict(group=["a", "A", "b", "b"]), ["a", "b"], r"Group 'A' is none of .*add it to groups"),
        ({}, ["a", "b", "c"], r"No image of \['c'\]: leave them out of groups"),
        (dict(group=["a"] * 4), None, r"a disparity needs two groups"),
        (dict(group=["a", "b"]), None, r"group has 2 values for 4 images"),
        (dict(p=[0, 1, 2, 1]), None, r"codes 0..2"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, groups, said):
    a = GOOD | change
    with pytest.raises(ValueError, match=said):
        fairness(a["y"], a["p"], a["group"], 2, groups=groups)


def test_remedies_help():
    assert len(fairness(**GOOD, n_classes=2, groups=["a", "b"], resamples=99))
    group = pd.Series(["a", None, "b", "b"])
    y, p = (np.array(GOOD[k])[group.notna()] for k in "yp")
    assert accuracy_disparity(y, p, group[group.notna()]) >= 0
    with pytest.raises(ValueError, match="none of"):
        parity_gaps([0, 1], ["a", "B"], 1, groups=["a", "b"])
    assert len(parity_gaps([0, 1], ["a", "B"], 1, groups=["a", "B"])) == 2
    with pytest.raises(ValueError, match="below 0"):
        essp(0.5, -0.1)
    with pytest.raises(ValueError, match="dp_acuracy"):
        expected_disparity([0, 1], [0, 1], ["a", "b"], 2, "dp_acuracy")
    with pytest.raises(ValueError, match="shape"):
        accuracy_disparity([0, 1], [0, 1, 1], ["a", "b", "b"])


@pytest.mark.parametrize("seed", range(3))
def test_the_gap_is_fairlearns_and_its_parts_are_those_of_scipy(seed):
    y, p, z = binary(seed)
    gap, right = best_to_worst(y, p, z), y == p
    n = pd.Series(right).groupby(z).agg(["mean", "size"])
    assert np.isclose(gap.value, n["mean"].max() - n["mean"].min())
    assert (gap.best, gap.worst) == (n["mean"].idxmax(), n["mean"].idxmin())
    assert gap.n == n["size"][[gap.best, gap.worst]].min() and gap.low <= gap.value <= gap.high
    fl = pytest.importorskip("fairlearn.metrics")
    from sklearn.metrics import accuracy_score

    options = dict(y_true=y, y_pred=p, sensitive_features=z)
    assert np.isclose(gap.value, fl.MetricFrame(metrics=accuracy_score, **options).difference())


def test_the_gap_of_even_groups_is_that_of_chance_and_its_interval_holds():
    """Labels dealt out by numpy, image by image; and of a hundred test sets of three hospitals with
    known accuracies the nominal 95 % interval holds the true gap in at least 90.
    """
    rng = np.random.default_rng(0)
    z, right = np.repeat(list("abc"), [40, 60, 100]), rng.random(200) < 0.8
    y = np.zeros(200, int)
    dealt = []
    for _ in range(3000):
        shuffled = rng.permutation(right)
        dealt.append(np.ptp([shuffled[z == g].mean() for g in "abc"]))
    assert abs(best_to_worst(y, (~right).astype(int), z).by_chance - np.mean(dealt)) < 0.005
    for true in ((0.8, 0.8, 0.8), (0.9, 0.6, 0.8)):
        of_image, held, called = np.repeat(true, [40, 60, 100]), 0, 0
        for _ in range(100):
            gap = best_to_worst(y, (rng.random(200) > of_image).astype(int), z, resamples=199)
            held += gap.low <= np.ptp(true) <= gap.high
            called += gap.pvalue <= 0.05
        assert held >= 90, (true, held)
        assert called <= 12 if np.ptp(true) == 0 else called >= 80, (true, called)


def test_gaps_in_a_record_are_of_the_hospitals_of_one_part():
    y, p, z = binary(3)
    t = performance_gaps(y, p, z, 2, table=interval_by_group)
    assert not t.duplicated(["metric", "group"]).any()
    of = t[t.metric == "accuracy"].set_index("group")
    assert of.n.drop("all").sum() == of.n["all"] == len(y)
    one = performance_gaps(y, p, ["hospital 2"] * len(y), 2)
    assert set(one.metric) == {"accuracy", "precision", "recall", "f1"}
    with pytest.raises(ValueError, match="two groups"):
        best_to_worst(y, p, ["hospital 2"] * len(y))
