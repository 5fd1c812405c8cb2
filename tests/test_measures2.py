"""Measures of the analyses beside numbers of scikit-learn, torchmetrics, torch-fidelity and SciPy,
closed forms and counting by hand: top-k and areas per finding, gaps, the posterior estimate of
fairness, shift of domains, who is missed, neighbours, raters.
"""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from skinrepro import fairness, figures, metrics, raters, shift
from skinrepro.tables import read_reported

RNG = np.random.default_rng


# ---- the first three


@pytest.mark.parametrize("k", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_top_k_is_that_of_sklearn(k, seed):
    from sklearn.metrics import top_k_accuracy_score

    rng = RNG(seed)
    q, y = rng.dirichlet(np.ones(7) / 2, 83), rng.integers(0, 7, 83)
    theirs = top_k_accuracy_score(y, q, k=k, labels=range(7), normalize=False)
    assert metrics.top_k(q, y, k).sum() == theirs
    assert (metrics.top_k(q, y, 1) == (metrics.top1(q) == y)).all()
    tied = rng.integers(1, 4, (83, 7)) / 1.0
    tied /= tied.sum(1, keepdims=True)
    mirrored = top_k_accuracy_score(6 - y, tied[:, ::-1], k=k, labels=range(7), normalize=False)
    assert metrics.top_k(tied, y, k).sum() == mirrored  # theirs takes the last of equal ones
    ranks = [sorted(range(7), key=lambda c: (-row[c], c)).index(t) for row, t in zip(tied, y)]
    assert metrics.top_k(tied, y, k).tolist() == [r < k for r in ranks]


@pytest.mark.parametrize("k", [0, 4, 5])
def test_top_k_of_all_classes_is_refused(k):
    with pytest.raises(ValueError, match="from 1 to 3"):
        metrics.top_k(np.full((2, 4), 0.25), [0, 1], k)


def test_balanced_top_k_is_the_mean_over_classes_that_have_images():
    from torchmetrics.functional.classification import multiclass_accuracy

    torch = pytest.importorskip("torch")
    rng = RNG(5)
    q, y = rng.dirichlet(np.ones(6), 200), rng.choice([0, 1, 2, 4], 200, p=[0.7, 0.2, 0.05, 0.05])
    ours = metrics.class_mean(metrics.top_k(q, y, 3), y)
    each = multiclass_accuracy(
        torch.from_numpy(q), torch.from_numpy(y), num_classes=6, top_k=3, average="none"
    ).numpy()
    assert ours == pytest.approx(each[[0, 1, 2, 4]].mean(), abs=1e-6)
    assert abs(ours - metrics.top_k(q, y, 3).mean()) > 0.01  # another number than the plain one


def test_sensitivity_in_three_readings_is_sklearns():
    from sklearn.metrics import recall_score

    rng = RNG(2)
    y, p = rng.choice(8, 400, p=[0.3, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05, 0]), rng.integers(0, 8, 400)
    of = [1, 5, 6, 7]
    found = metrics.sensitivity(y, p, of, 8)
    assert found.pooled == pytest.approx(recall_score(y, p, labels=of, average="micro"))
    assert found.mean == pytest.approx(recall_score(y, p, labels=[1, 5, 6], average="macro"))
    assert found.any == pytest.approx(recall_score(np.isin(y, of), np.isin(p, of)))
    assert found.n == np.isin(y, of).sum() and found.n_classes == 3 and found.any > found.pooled
    with pytest.raises(ValueError, match="sensitivity is not defined here"):
        metrics.sensitivity([0, 0], [0, 1], [1], 2)


def test_ranked_by_group_is_each_group_alone():
    rng = RNG(4)
    q, y = rng.dirichlet(np.ones(6), 120), rng.integers(0, 6, 120)
    sex = rng.choice(np.array(["F", "M", None], object), 120)
    t = metrics.ranked_by_group(y, q, sex, 3, (2, 3)).set_index(["metric", "group"])
    for g in "FM":
        at = sex == g
        hit, found = (
            metrics.top_k(q[at], y[at], 3),
            metrics.sensitivity(y[at], q[at].argmax(1), (2, 3), 6),
        )
        assert t.value["top3", g] == hit.mean() and t.n["top3", g] == at.sum()
        assert t.value["balanced_top3", g] == metrics.class_mean(hit, y[at])
        assert t.value["sensitivity", g] == found.pooled and t.n["sensitivity", g] == found.n
        assert t.value["sensitivity_mean", g] == found.mean
        assert t.n_classes_present["sensitivity", g] == found.n_classes
    assert t.n["top3", "all"] == 120


def test_score_ranked_goes_by_rule_and_by_name():
    rng = RNG(6)
    names = ["melanoma", "acne", "eczema", "nevus"]
    y = rng.integers(0, 4, 40)
    parts = []
    for rule in ("val", "last"):
        t = pd.DataFrame(rng.dirichlet(np.ones(4), 40), columns=[f"p_{i}" for i in range(4)])
        parts.append(
            t.assign(label=[names[i] for i in y], sex=[*"MF"] * 20, select_on=rule, epoch=3)
        )
    t = metrics.score_ranked(pd.concat(parts), names, "sex", 2, ("melanoma",))
    for rule, part in zip(("val", "last"), parts):
        q = part.filter(like="p_").to_numpy()
        own = metrics.ranked_by_group(y, q, [*"MF"] * 20, 2, (0,))
        assert t[t.select_on == rule].value.tolist() == own.value.tolist()
    with pytest.raises(ValueError, match=r"\['Melanoma'\] are asked for"):
        metrics.score_ranked(parts[0], names, "sex", 2, ("Melanoma",))


# ---- several findings


def findings(seed, n=150):
    rng = RNG(seed)
    y = (rng.random((n, 4)) < [0.5, 0.3, 0.1, 0.04]).astype(float)
    q = np.round(np.clip(0.3 * y + rng.random((n, 4)) * 0.7, 0, 1), 2)  # with ties
    return q, y


@pytest.mark.parametrize("seed", range(3))
def test_areas_are_those_of_sklearn_torchmetrics_and_pairs(seed):
    from sklearn.metrics import roc_auc_score
    from torchmetrics.functional.classification import multilabel_auroc

    torch = pytest.importorskip("torch")
    q, y = findings(seed)
    t = metrics.auc_by_label(q, y, "abcd")
    theirs = multilabel_auroc(torch.from_numpy(q), torch.from_numpy(y).long(), 4, average="none")
    assert t.value.to_numpy() == pytest.approx(theirs.numpy(), abs=1e-6)
    assert metrics.mean_auc(t).value == pytest.approx(roc_auc_score(y, q, average="macro"))
    pairs = [(a > b) + (a == b) / 2 for a in q[y[:, 2] == 1, 2] for b in q[y[:, 2] == 0, 2]]
    assert t.value[2] == pytest.approx(np.mean(pairs))
    assert (t.n_positive + t.n_negative == 150).all() and t.n_positive.tolist() == list(y.sum(0))


def test_a_finding_without_positives_is_said_and_not_averaged():
    q, y = findings(0)
    whole = metrics.auc_by_label(q, y, "abcd")
    y[:, 1], y[:, 3] = 0, 1
    y[:20, 0] = np.nan  # unknown: these images do not count for a
    t = metrics.auc_by_label(q, y, "abcd")
    assert t.why.tolist() == ["", "no positive image", "", "no negative image"]
    assert t.value.isna().tolist() == [False, True, False, True]
    mean = metrics.mean_auc(t)
    assert mean == (pytest.approx((t.value[0] + whole.value[2]) / 2), 2, ("b", "d"))
    known = metrics.auc_by_label(q[20:, :1], y[20:, :1], "a")
    assert t.value[0] == known.value[0] and t.n_positive[0] == known.n_positive[0]
    y[:, [0, 2]] = 0
    with pytest.raises(ValueError, match="a: no positive image; b: no positive image"):
        metrics.mean_auc(metrics.auc_by_label(q, y, "abcd"))


def test_means_of_groups_are_of_the_same_findings():
    q, y = findings(1)
    sex = np.repeat(["F", "M"], 75)
    y[75:, 3] = 0
    assert y[:75, 3].any()
    t = metrics.auc_by_group(q, y, "abcd", sex).set_index(["metric", "group"])
    alone = metrics.auc_by_label(q[:75], y[:75], "abcd")
    assert t.value["auc", "F"] == pytest.approx(alone.value[:3].mean())
    assert t.value["auc", "F"] != pytest.approx(alone.value.mean(), abs=1e-4)
    assert t.value["auc_d", "F"] == alone.value[3] and ("auc_d", "M") not in t.index
    assert (t.n_classes_present["auc"] == 3).all() and t.n["auc", "F"] == 75
    gap = fairness.group_gaps(t.reset_index()).set_index("metric")
    assert gap.value["auc_gap"] == pytest.approx(abs(t.value["auc", "F"] - t.value["auc", "M"]))
    assert "auc_d_gap" not in gap.index
    y[75:] = 0
    with pytest.raises(ValueError, match="in every group"):
        metrics.auc_by_group(q, y, "abcd", sex)


@pytest.mark.parametrize(
    "q, y, why",
    [
        ([[0.5, 1.5]], [[1, 0]], "Row 0, b: 1.5 is no probability. Apply a sigmoid"),
        ([[0.5, np.nan]], [[1, 0]], "Row 0, b: nan"),
        ([[0.5, 0.5]], [[1, -1]], "Row 0, b: the target -1.0 is none of"),
        ([[0.5, 0.5]], [[1, np.inf]], "the target inf"),
        ([[0.5]], [[1]], r"\(1, 1\)"),
    ],
)
def test_findings_that_cannot_be_measured(q, y, why):
    with pytest.raises(ValueError, match=why):
        metrics.auc_by_label(q, y, "ab")


# ---- fairness


def test_gaps_leave_out_whom_they_cannot_measure():
    t = pd.DataFrame(
        [("a", 0.9, 40), ("b", np.nan, 0), ("c", 0.3, 7), ("d", 0.5, 90), ("all", 0.1, 137)],
        columns=["group", "value", "n"],
    ).assign(metric="top3")
    gap = fairness.group_gaps(t).iloc[0]
    assert gap.value == pytest.approx(0.6) and gap.n == 7
    assert (gap.best, gap.worst, gap.left_out, gap.metric) == ("a", "c", "b", "top3_gap")
    assert fairness.group_gaps(t, ["a", "d"]).value.item() == pytest.approx(0.4)
    with pytest.raises(ValueError, match="No number of"):
        fairness.group_gaps(t, ["a", "z"])
    with pytest.raises(ValueError, match="Two numbers of top3, a"):
        fairness.group_gaps(pd.concat([t, t]))


COUNTS = [((1, 0), (1, 1)), ((17, 61), (20, 100)), ((0, 9), (4, 9)), ((3, 200), (9, 321))]


@pytest.mark.parametrize("hits, n", COUNTS + [((5000, 10), (6639, 20)), ((0, 0), (1, 700))])
def test_the_mode_is_that_of_a_numerical_convolution(hits, n):
    from scipy.integrate import quad
    from scipy.signal import fftconvolve
    from scipy.stats import beta

    a, b = (beta(1 + k, 1 + m - k) for k, m in zip(hits, n))
    x = np.linspace(0, 1, 40001)
    density = fftconvolve(a.pdf(x), b.pdf(x)[::-1]) / 40000
    mode = fairness.difference_mode(hits, n)
    assert mode == pytest.approx((density.argmax() - 40000) / 40000, abs=2e-4)
    d = mode + 0.3 * (a.var() + b.var()) ** 0.5
    if -1 < d < 1:
        top = dict(points=[p for p in (a.mean(), b.mean() + d) if max(0, d) < p < min(1, 1 + d)])
        value = quad(lambda v: a.pdf(v) * b.pdf(v - d), max(0, d), min(1, 1 + d), limit=300, **top)
        assert fairness.difference_density(d, hits, n) == pytest.approx(value[0], rel=1e-6)
    swapped = fairness.difference_mode(hits[::-1], n[::-1])
    assert swapped == pytest.approx(-mode, abs=1e-6)


def test_the_mode_in_closed_form_and_a_density_that_adds_up_to_one():
    assert fairness.difference_mode((1, 0), (1, 1)) == pytest.approx(2**0.5 - 1, abs=1e-7)
    d = np.linspace(-1, 1, 2001)
    f = [fairness.difference_density(v, (17, 61), (20, 100)) for v in d]
    assert np.trapezoid(f, d) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("how, off", [("kde", 0.15), ("histogram", 0.35)])
@pytest.mark.parametrize("hits, n", COUNTS[1:])
def test_sampled_modes_are_near_the_exact_one(how, off, hits, n):
    x = fairness.posterior_differences(hits, n, seed=3)
    assert len(x) == 100_000
    exact = fairness.difference_mode(hits, n)
    assert abs(fairness.sampled_mode(x, how) - exact) < off * x.std()
    assert x.mean() == pytest.approx(
        (1 + hits[0]) / (2 + n[0]) - (1 + hits[1]) / (2 + n[1]), abs=5 * x.std() / len(x) ** 0.5
    )


def test_the_central_estimate_is_the_spread_of_the_modes():
    right = np.r_[np.arange(30) < 24, np.arange(50) < 25, np.arange(9) < 9]
    group = np.repeat(["a", "b", "c"], [30, 50, 9])
    of = [((24, 34), (30, 59)), ((25, 33), (50, 39)), ((9, 49), (9, 80))]
    modes = [fairness.difference_mode(*c) for c in of]
    exact = fairness.central_estimate(right, group, [*"abcd"], "exact")
    assert exact.value == pytest.approx(np.std(modes)) and exact.left_out == ("d",)
    assert list(exact.modes) == [*"abc"] and exact.n == 9
    for how in ("kde", "histogram"):
        one = fairness.central_estimate(right, group, how=how, seed=1)
        assert one == fairness.central_estimate(right, group, how=how, seed=1)
        assert one.value == pytest.approx(exact.value, abs=0.03) and one.value != exact.value
    with pytest.raises(ValueError, match="needs two groups"):
        fairness.central_estimate(right, ["a"] * 89, ["a", "b"])
    with pytest.raises(ValueError, match="both need an image"):
        fairness.difference_mode((0, 3), (0, 5))


# ---- shift


def domains(seed, n=60, m=70, d=12):
    rng = RNG(seed)
    return np.maximum(rng.normal(size=(n, d)), 0), np.maximum(rng.normal(0.4, 1.3, (m, d)), 0)


def test_discrepancies_are_those_of_two_peers():
    torch = pytest.importorskip("torch")
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torchmetrics.image.kid import poly_mmd

    u, z = domains(0, 60, 60)
    ours = shift.mmd_estimates(u, z, 3, 60)  # all of both: the draw only deals out the order
    x, y = map(torch.from_numpy, (u, z))
    theirs = kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=60, verbose=False)
    assert ours == pytest.approx([theirs["kernel_inception_distance_mean"]] * 3, rel=1e-6)
    assert ours == pytest.approx([float(poly_mmd(x, y))] * 3, rel=1e-6)


def test_an_estimate_is_equation_7_without_equal_pairs():
    u, z = domains(1)

    def kernel(a, b):
        return (a @ b / 12 + 1) ** 3

    rng = RNG(5)
    a = u[rng.choice(60, 20, replace=False)]
    b = z[rng.choice(70, 20, replace=False)]
    within = [sum(kernel(x, y) for x, y in permutations(s, 2)) / (20 * 19) for s in (a, b)]
    between = sum(kernel(x, y) for x in a for y in b) / 400
    found = shift.mmd_estimates(u, z, 30, 20, seed=5)
    assert found[0] == pytest.approx(sum(within) - 2 * between, rel=1e-9)
    assert len(found) == 30 and len(set(found)) == 30
    with pytest.raises(ValueError, match="size from 2 to 60"):
        shift.mmd_estimates(u, z)


def test_a_table_of_shifts_draws_the_same_images_for_each_network():
    u, z = domains(2)
    t = shift.shift_table(dict(ID=u, OOD=z, made=u[::-1]), estimates=4, size=30, seed=1)
    assert t.groupby(["domain_1", "domain_2"], sort=False).size().to_dict() == {
        ("ID", "OOD"): 4,
        ("ID", "made"): 4,
        ("OOD", "made"): 4,
    }
    again = shift.shift_table(dict(ID=2 * u, OOD=2 * z), [("ID", "OOD")], 4, 30, 1)
    rng = RNG([1, 0])
    i, j = rng.choice(60, 30, replace=False), rng.choice(70, 30, replace=False)
    from skinrepro.fidelity import kid

    assert t.mmd2[0] == pytest.approx(kid(u[i], z[j]))
    assert again.mmd2[0] == pytest.approx(kid(2 * u[i], 2 * z[j]))
    rng = RNG([1, 2])  # the third pair has draws of its own
    i, j = rng.choice(70, 30, replace=False), rng.choice(60, 30, replace=False)
    assert t.mmd2[8] == pytest.approx(kid(z[i], u[::-1][j]))
    with pytest.raises(ValueError, match="no domain 'ood'"):
        shift.shift_table(dict(ID=u), [("ID", "ood")])
    with pytest.raises(ValueError, match="ID and OOD: size = 300"):
        shift.shift_table(dict(ID=u, OOD=z))


def test_the_rank_test_is_scipys_and_counts_pairs():
    from scipy.stats import mannwhitneyu

    a, b = RNG(0).normal(1, 0.2, 30), RNG(1).normal(1.2, 0.3, 30)
    found = shift.compare_shifts(a, b)
    assert found.u == sum(x > y for x in a for y in b)
    assert found.pvalue == mannwhitneyu(a, b, alternative="two-sided").pvalue < 0.05
    assert found.reduction == pytest.approx(1 - a.sum() / b.sum())
    assert shift.compare_shifts(a, a).pvalue == 1
    with pytest.raises(ValueError, match="not above 0"):
        shift.relative_reduction([1.0], [-1.0, 0.5])


def test_the_headline_is_a_ratio_of_means_and_one_pair_goes_the_other_way():
    pairs = ["train OOD", "train eval", "train made", "made OOD", "eval OOD", "eval made"]
    g1 = pd.DataFrame(  # Table G1 as printed
        dict(
            learned=[0.6279, 0.0121, 0.2472, 0.6992, 0.6107, 0.2374],
            heuristic=[0.7778, 0.0209, 0.3580, 0.7682, 0.7596, 0.3052],
            RandAugment=[0.4748, 0.0128, 0.1262, 0.4151, 0.4554, 0.1037],
        ),
        pairs,
    )
    assert round(100 * shift.relative_reduction(g1.learned, g1.heuristic), 1) == 18.6
    assert shift.relative_reduction(g1.learned, g1.heuristic) == pytest.approx(
        1 - 2.4345 / 2.9897, abs=1e-4
    )
    assert g1.index[g1.RandAugment > g1.learned].tolist() == ["train eval"]
    t = read_reported(ROOT / "nbs" / "papers" / "ktena2023" / "reported.csv")
    t = t[t.artefact.eq("tableG1") & t.metric.eq("MMD")]
    for name, of in t.groupby("augmentation") if len(t) else ():  # what the paper's folder has
        assert sorted(of.value) == sorted(g1[name])


@pytest.mark.parametrize("shape", [(40, 12), (30, 100)])
def test_components_are_those_of_sklearn_and_of_eigenvalues(shape):
    from sklearn.decomposition import PCA

    rng = RNG(3)
    x = rng.normal(size=shape) * np.linspace(0.1, 2, shape[1])
    shares = (0.6, 0.7, 0.8, 0.9, 0.95)
    found = shift.components_needed(x)
    theirs = [PCA(n_components=s, svd_solver="full").fit(x).n_components_ for s in shares]
    assert found.tolist() == theirs and found.index.tolist() == list(shares)
    values = np.sort(np.linalg.eigvalsh(np.cov(x, rowvar=False)))[::-1]
    part = values.cumsum() / values.sum()
    assert found.tolist() == [int(np.argmax(part >= s)) + 1 for s in shares]
    assert shift.components_needed(x, (1.0,)).item() == min(shape[0] - 1, shape[1])
    some = [shift.components_needed(x, (0.9,), 12, seed).item() for seed in range(4)]
    assert max(some) <= 11 and some == [
        shift.components_needed(x, (0.9,), 12, seed).item() for seed in range(4)
    ]
    with pytest.raises(ValueError, match="there is no variance"):
        shift.components_needed(np.ones((5, 3)))
    with pytest.raises(ValueError, match=r"shares = \(90,\)"):
        shift.components_needed(x, (90,))


def test_a_share_that_is_reached_exactly_is_reached():
    x = np.kron(np.eye(2), [[1], [-1]]) * np.sqrt([9, 1])
    assert shift.components_needed(x, (0.9, 0.91)).tolist() == [1, 2]


def answers(seed=0, setups="xyz", runs=5, n=40):
    rng = RNG(seed)
    hard = rng.random(n)
    rows = [
        (s, r, f"i{i}", bool(rng.random() > hard[i]))
        for s in setups
        for r in range(runs)
        for i in range(n)
    ]
    return pd.DataFrame(rows, columns=["setup", "run", "image_id", "right"])


def test_missed_by_all_is_five_of_five():
    t = answers()
    missed = shift.missed_by_all(t)
    for s in "xyz":
        for i in range(40):
            of = t[(t.setup == s) & (t.image_id == f"i{i}")]
            assert missed.loc[s, f"i{i}"] == (of.right.sum() == 0) and len(of) == 5
    assert missed.to_numpy().any() and list(missed.columns[:3]) == ["i0", "i1", "i2"]
    shuffled = shift.missed_by_all(t.sample(frac=1, random_state=0))
    assert shuffled.loc[missed.index, missed.columns].equals(missed)
    with pytest.raises(ValueError, match="take 4 runs of each"):
        shift.missed_by_all(t[~((t.setup == "x") & (t.run == 4))])
    with pytest.raises(ValueError, match="y, run 2 has no answer for image i7"):
        shift.missed_by_all(t[~((t.setup == "y") & (t.run == 2) & (t.image_id == "i7"))])
    with pytest.raises(ValueError, match="Two answers"):
        shift.missed_by_all(pd.concat([t, t[:1]]))


@pytest.mark.parametrize("seed", range(4))
def test_blocks_are_those_of_python_sorting(seed):
    table = RNG(seed).random((3, 50)) < 0.4
    missed = pd.DataFrame(table, list("xyz"), [f"i{i}" for i in range(50)])
    order = sorted(range(50), key=lambda i: (-table[:, i].sum(), *(not v for v in table[:, i]), i))
    assert shift.block_order(missed) == [f"i{i}" for i in order]
    sets = [tuple(table[:, i]) for i in order]
    blocks = [s for k, s in enumerate(sets) if k == 0 or s != sets[k - 1]]
    assert len(blocks) == len(set(blocks)) > 4  # each set of setups stands together


def test_agreement_by_chance_is_exact():
    from itertools import combinations

    rows = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]], bool)
    found = shift.agreement(rows)
    ways = [
        len({*a} & {*b} & {*c}) >= 2
        for a in combinations(range(6), 3)
        for b in combinations(range(6), 2)
        for c in combinations(range(6), 4)
    ]
    assert found.pvalue == pytest.approx(np.mean(ways)) and found.observed == 2
    assert found.expected == pytest.approx(6 * 3 / 6 * 2 / 6 * 4 / 6)
    assert found.ratio == pytest.approx(2 / found.expected)
    none = shift.agreement(np.zeros((2, 5), bool))
    assert none.observed == 0 and np.isnan(none.ratio) and none.pvalue == 1
    with pytest.raises(ValueError, match="two rows"):
        shift.agreement(rows[:1])


@pytest.mark.parametrize("scale", [1, 255, 1e-3])
def test_neighbours_are_those_of_sklearn(scale):
    from sklearn.neighbors import NearestNeighbors

    rng = RNG(1)
    train = scale * (3 + rng.gamma(0.5, size=(50, 9)))  # lengths differ: no matter of angles
    made = scale * (3 + rng.gamma(0.5, size=(30, 9)))
    t = shift.nearest_training(made, train)
    theirs = NearestNeighbors(algorithm="brute").fit(train)
    distance, where = theirs.kneighbors(made, 1)
    assert (t.nearest == where[:, 0]).all() and np.allclose(t.distance, distance[:, 0])
    by_angle = shift.nearest_training(made, train, distance="cosine")
    assert (by_angle.nearest != t.nearest).any()
    own = np.sort(theirs.kneighbors(train, 2)[0][:, 1])
    assert t.typical[0] == pytest.approx(np.median(own))
    assert t.place.tolist() == pytest.approx([np.mean(own <= d) for d in t.distance])


def test_neighbours_pass_over_kin_and_take_a_reference():
    rng = RNG(2)
    train, held = rng.normal(size=(40, 6)), rng.normal(size=(25, 6))
    twins = np.vstack([train, train + 1e-3])
    kin = [f"p{i}" for i in range(40)] * 2
    made = np.vstack([train[3] + 1e-4, rng.normal(size=6)])
    assert shift.nearest_training(made, twins).place[0] == 0
    of_twins, plain = (
        shift.nearest_training(made, x, kin=k).typical[0] for x, k in ((twins, kin), (train, None))
    )
    assert of_twins == pytest.approx(plain, abs=0.01)
    t = shift.nearest_training(made, train, held)
    apart = np.linalg.norm(held[:, None] - train, axis=2)
    assert t.typical[0] == pytest.approx(np.median(apart.min(1)))
    itself = shift.nearest_training(held, train, held).place
    assert sorted(itself) == pytest.approx(np.arange(1, 26) / 25)  # as near counts
    family = shift.nearest_training(made, train, held, ["p"] * 20 + ["q"] * 20, ["p"] * 25)
    assert family.typical[0] == pytest.approx(np.median(apart[:, 20:].min(1)))
    with pytest.raises(ValueError, match="give a reference"):
        shift.nearest_training(made, train, kin=["p"] * 40)


# ---- raters


def ratings(*rows, **columns):
    t = pd.DataFrame(rows, columns=["image_id", "rater", "label", "confidence"])
    return t.assign(**columns)


EXAMPLE = [("i", "1", "A", 4), ("i", "1", "B", 3), ("i", "2", "A", 3), ("i", "2", "D", 4)]


@pytest.mark.parametrize("by", ["rater", "sum"])
def test_the_example_of_the_paper_is_exact(by):
    soft = raters.soft_labels(ratings(*EXAMPLE), "ABCD", by).loc["i"]
    assert soft.tolist() == pytest.approx([1 / 2, 1 / 6, 0, 1 / 3], abs=1e-15)
    printed = read_reported(ROOT / "nbs" / "papers" / "ktena2023" / "reported.csv")
    printed = printed[printed.metric == "soft label"]
    printed = printed.set_index("label").value if len(printed) else printed
    assert soft.round(3).to_dict() == dict(A=0.5, B=0.167, C=0.0, D=0.333)
    assert printed.empty or printed.to_dict() == soft.round(3).to_dict()
    assert raters.canonical(soft.to_frame().T, "A", 0.5) and not raters.canonical(
        soft.to_frame().T, "A"
    )


def test_soft_labels_by_fractions():
    rows = [("i", "1", "C", 2), ("i", "2", "A", 5), ("i", "2", "B", 4), ("i", "2", "C", 1)]
    rows += [("j", "1", "B", 3), ("k", "1", None, None), ("j", "2", None, None)]
    rows += [("k", "2", None, None)]
    t = ratings(*rows, sufficient=[True] * 5 + [False] * 3)
    soft = raters.soft_labels(t, "ABCD")
    total = 1 + 1 / 2 + 1 / 3
    assert soft.loc["i"].tolist() == pytest.approx(
        [1 / total / 2, 0.5 / total / 2, (1 + 1 / 3 / total) / 2, 0]
    )
    assert soft.loc["j"].tolist() == [0, 1, 0, 0] and "k" not in soft.index  # nobody could tell
    added = raters.soft_labels(t, "ABCD", "sum").loc["i"]
    assert added.tolist() == pytest.approx(np.array([1, 1 / 2, 1 + 1 / 3, 0]) / (1 + total))


def test_ties_are_refused_or_shared():
    rows = [("i", "1", "A", 4), ("i", "1", "B", 2), ("i", "1", "C", 2), ("i", "2", "B", 2)]
    with pytest.raises(ValueError, match='B, C of image i the same confidence 2.*ties="mean"'):
        raters.soft_labels(ratings(*rows), "ABC")
    w = raters.weights(raters.check_ratings(ratings(*rows), "ABC"), "mean")
    assert w.tolist() == pytest.approx([1, 5 / 12, 5 / 12, 1])  # (1/2 + 1/3) / 2
    turned = raters.soft_labels(ratings(*rows[::-1]), "ABC", ties="mean").loc["i"]
    assert turned.equals(raters.soft_labels(ratings(*rows), "ABC", ties="mean").loc["i"])
    with pytest.raises(ValueError, match="no ranks"):
        raters.agreement_of(ratings(*rows), "ABC")
    raters.soft_labels(ratings(*rows[:2], rows[3]), "ABC")  # equal over raters is no tie


BAD = {
    "confidence 6.*no number from 1 to 5": dict(confidence=[4, 3, 6, 4]),
    "confidence nan.*no number": dict(confidence=[4, 3, np.nan, 4]),
    "confidence very.*no number": dict(confidence=[4, 3, "very", 4]),
    "Row 3 .*label Z.*none of the classes": dict(label=[*"ABAZ"]),
    "Rater 2 gives image i the diagnosis A twice": dict(label=[*"ABAA"]),
    "Row 1 .*has no label": dict(label=["A", None, "A", "D"]),
    "insufficient quality and has a label": dict(sufficient=[True, False, True, True]),
    "neither True nor False": dict(sufficient=["yes"] * 4),
    "Rater 1 has no row for 1 of 2 images, e.g. j": dict(image_id=[*"iiij"]),
    "Rater 1 has 4 diagnoses of image i; at most 3": dict(rater="1", label=[*"ABCD"]),
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_ratings_that_cannot_be_counted(change):
    why = next(k for k, v in BAD.items() if v is change)
    with pytest.raises(ValueError, match=why):
        raters.check_ratings(ratings(*EXAMPLE).assign(**change), "ABCD")
    with pytest.raises(ValueError, match="no column confidence"):
        raters.check_ratings(ratings(*EXAMPLE).drop(columns="confidence"), "ABCD")


def test_an_image_that_a_rater_lacks_may_be_allowed():
    t = ratings(*EXAMPLE).assign(image_id=[*"iiij"])
    assert len(raters.check_ratings(t, "ABCD", complete=False)) == 4
    both = pd.concat([t, ratings(("j", "1", None, None)).assign(sufficient=False)])
    raters.check_ratings(both.fillna(dict(sufficient=True)), "ABCD")


@pytest.mark.parametrize("seed", range(3))
def test_kappa_is_that_of_torchmetrics(seed):
    torch = pytest.importorskip("torch")
    from torchmetrics.functional.nominal import fleiss_kappa

    counts = RNG(seed).multinomial(7, [0.5, 0.3, 0.2], 12)
    ours = raters.concord(counts)
    theirs = fleiss_kappa(torch.from_numpy(counts), mode="counts")
    assert ours.kappa == pytest.approx(float(theirs), abs=1e-5) and ours.n == 12
    lone = np.vstack([counts, [1, 0, 0], [0, 0, 0]])  # one rater agrees with nobody: not counted
    assert raters.concord(lone) == ours
    assert raters.concord([[2, 0], [1, 1]])[:2] == (1 / 2, (9 + 1) / 16)
    with pytest.raises(ValueError, match="No image has two raters"):
        raters.concord([[1, 0]])


def study():
    rows = [
        ("i", "1", "A", 5), ("i", "1", "B", 2), ("j", "1", "C", 3), ("k", "1", None, None),
        ("i", "2", "B", 4), ("j", "2", "C", 1), ("j", "2", "B", 2), ("k", "2", "A", 5),
    ]  # fmt: skip
    return ratings(*rows, sufficient=[True] * 3 + [False] + [True] * 4)


def test_the_questions_of_the_study_by_hand():
    truth = dict(i="A", j="B", k="A")
    a = raters.rater_answers(study(), truth, "ABC")
    assert a["sufficient quality"].tolist() == pytest.approx([2 / 3, 1])
    assert a["confidence"].tolist() == pytest.approx([4, 11 / 3])
    assert a["top-1 accuracy"].tolist() == pytest.approx([1 / 2, 2 / 3])
    assert a["top-3 accuracy"].tolist() == pytest.approx([1 / 2, 2 / 3])
    assert a.n.tolist() == [3, 3] and a.n_sufficient.tolist() == [2, 3]
    t = raters.study_table(a).set_index("question")
    for q in raters.QUESTIONS:
        assert t["mean"][q] == pytest.approx(a[q].mean()) and t.sd[q] == pytest.approx(a[q].std())
    assert t.n["confidence"] == 2 and t.n["sufficient quality"] == 3 and (t.raters == 2).all()
    with pytest.raises(ValueError, match="no truth, e.g. k"):
        raters.rater_answers(study(), dict(i="A", j="B"), "ABC")
    blind = pd.concat([study(), ratings(*[(i, "3", None, None) for i in "ijk"], sufficient=False)])
    told = raters.study_table(raters.rater_answers(blind, truth, "ABC")).set_index("question")
    assert told.raters.tolist() == [3, 2, 2, 2]
    assert told["mean"]["top-1 accuracy"] == pytest.approx(a["top-1 accuracy"].mean())


def test_a_rater_against_the_others():
    rows = [
        (i, r, x, 3) for i, xs in dict(i="AAB", j="BBB", k="ABC").items() for r, x in zip("123", xs)
    ]
    t = raters.against_the_others(ratings(*rows), "ABC")
    # i: 1 and 2 see A and B (undecided), 3 sees A (wrong); j: all right; k: undecided for all
    assert t.n.to_dict() == {"1": 1, "2": 1, "3": 2}
    assert t["top-1 accuracy"].tolist() == [1, 1, 0.5]
    with pytest.raises(ValueError, match="nobody can be compared"):
        raters.against_the_others(ratings(("i", "1", "A", 3)), "A")


def test_networks_answer_as_raters_and_are_called_so():
    rng = RNG(0)
    q = {f"seed {s}": rng.dirichlet(np.ones(5), 60) for s in range(3)}
    y = rng.integers(0, 5, 60)
    images, labels = [f"i{i}" for i in range(60)], list("ABCDE")
    t = raters.network_ratings(q, images, labels)
    a = raters.rater_answers(t, {i: labels[k] for i, k in zip(images, y)}, labels)
    for name, p in q.items():
        assert a["top-1 accuracy"][name] == pytest.approx((p.argmax(1) == y).mean())
        assert a["top-3 accuracy"][name] == pytest.approx(metrics.top_k(p, y, 3).mean())
        assert a["confidence"][name] == pytest.approx(1 + 4 * p.max(1).mean())
    level = {name: raters.sufficient_at(p, 0.9) for name, p in q.items()}
    strict = raters.network_ratings(q, images, labels, level)
    share = strict.groupby(["rater", "image_id"]).sufficient.first().groupby("rater").mean()
    assert (share.between(0.9, 0.92)).all()
    with pytest.raises(ValueError, match="Network seed 0 has probabilities of shape"):
        raters.network_ratings(q, images[:5], labels)
    assert "no person has seen" in raters.IN_PLACE_OF_RATERS
    assert raters.sufficient_at([[1.0, 0.0]] * 3, 1) == 1


# ---- plots


def test_plots_draw_the_numbers():
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3)
    missed = shift.missed_by_all(answers())
    figures.block_plot(axes[0], missed[shift.block_order(missed)])
    marks = [len(c.get_segments()) for c in axes[0].collections]
    assert marks == missed.sum(axis=1).tolist() == [int(t.get_text()) for t in axes[0].texts]
    at = [s[0][0] - 0.5 for s in axes[0].collections[0].get_segments()]
    assert at == np.flatnonzero(missed[shift.block_order(missed)].iloc[0]).tolist()
    table = pd.DataFrame(dict(x=[1.0], y=[2.0], x_sd=[0.5], y_sd=[np.nan], label=["m"]))
    figures.spread_plot(axes[1], table, dict(m="k"))
    assert len(axes[1].containers[0].lines[2]) == 1  # no bar where there is no spread
    figures.banded_line(axes[2], [0, 1, 2], [1, 2, 3], [0.1, np.nan, 0.1])
    figures.banded_line(axes[2], [0, 1], [1, 2], [0.5, 0.25])
    corners = {tuple(v) for v in axes[2].collections[-1].get_paths()[0].vertices.tolist()}
    assert {(0, 0.5), (0, 1.5), (1, 1.75), (1, 2.25)} <= corners
    figures.share_bars(axes[1], pd.DataFrame(dict(a=[0.75, 0.25])))
    assert [b.get_width() for b in axes[1].patches] == [75, 25]
    with pytest.raises(ValueError, match="add up to 0.9"):
        figures.share_bars(axes[0], pd.DataFrame(dict(a=[0.5, 0.4])))
    plt.close(fig)
