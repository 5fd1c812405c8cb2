"""Fidelity: the numbers of torch-fidelity, torchmetrics and SciPy on the same features, closed
forms, what is refused, intervals that hold the truth, and floors that follow from the curves.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from scipy.linalg import sqrtm

from skinrepro import fidelity
from skinrepro.fidelity import (
    FLOORS,
    MEASURES,
    bias_curve,
    density_coverage,
    enough,
    fid,
    fid_interval,
    fidelity_table,
    fidelity_variances,
    images_needed,
    inception_score,
    kid,
    precision_recall,
    sliced_wasserstein,
    smallest_enough,
    variance_of,
)

SHAPES = [(12, 40, 64), (30, 30, 200), (150, 20, 48), (90, 120, 16)]  # n, m, d


def clouds(n, m, d, seed=0):
    "Correlated and skewed, at least 0, as the features of a network."
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) * np.arange(1, d + 1)[:, None] ** -0.5
    real = np.maximum(rng.normal(size=(n, d)) @ mixing, 0)
    return real, np.maximum(0.3 + 1.2 * rng.normal(size=(m, d)) @ mixing, 0)


def whitened(rng, n, mean, sd):
    "Mean and covariance are exactly these."
    z = rng.normal(size=(n, len(sd)))
    return mean + np.linalg.qr(z - z.mean(0))[0] * (n - 1) ** 0.5 * sd


# ---- peers


@pytest.mark.parametrize("shape", SHAPES)
def test_fid_is_that_of_three_peers(shape):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torchmetrics.image.fid import _compute_fid

    x, y = clouds(*shape)
    one, two = torch.from_numpy(x), torch.from_numpy(y)
    statistics = [fid_features_to_statistics(t) for t in (one, two)]
    theirs = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    assert fid(x, y) == pytest.approx(theirs, rel=1e-6)
    metric = _compute_fid(one.mean(0), one.T.cov(), two.mean(0), two.T.cov())
    assert fid(x, y) == pytest.approx(float(metric), rel=1e-6)
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum()
    root = np.trace(sqrtm(s @ t)).real
    assert fid(x, y) == pytest.approx(shift + np.trace(s + t) - 2 * root, rel=1e-6)


def test_kid_is_that_of_two_peers():
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torchmetrics.image.kid import poly_mmd

    x, y = map(torch.from_numpy, clouds(50, 50, 64))
    out = kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=50, verbose=False)
    ours = kid(x.numpy(), y.numpy())
    assert ours == pytest.approx(out["kernel_inception_distance_mean"], rel=1e-6)
    assert ours == pytest.approx(float(poly_mmd(x, y)), rel=1e-6)
    assert kid(x.numpy(), y.numpy(), subsets=1, subset_size=50) == pytest.approx(ours, rel=1e-9)
    assert kid(x.numpy(), y.numpy(), subsets=2000, subset_size=30) == pytest.approx(ours, rel=0.03)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_are_those_of_torch_fidelity(k):
    from torch_fidelity.metric_prc import prc_features_to_metric

    x, y = clouds(60, 90, 8)
    y[:60] /= 2  # so that some real images lie outside
    y[:3] = x[:3]  # copies
    given = torch.from_numpy(y), torch.from_numpy(x)  # generated first
    out = prc_features_to_metric(*given, prc_neighborhood=k, verbose=False)
    ours = precision_recall(x, y, k)
    assert 0 < ours.precision < 1 and 0 < ours.recall < 1
    assert ours == pytest.approx((out["precision"], out["recall"]), rel=1e-6)


def test_the_border_belongs_to_a_ball_for_precision_and_not_for_density():
    "By hand, with distances that have no rounding."
    from torch_fidelity.metric_prc import prc_features_to_metric

    x = np.array([[0.0], [1.0], [3.0], [8.0]])  # balls [-1, 1], [0, 2], [1, 5], [3, 13]
    y = np.array([[2.0], [4.0], [13.0], [14.0]])  # [0, 4], [2, 6], [12, 14], [13, 15]
    assert precision_recall(x, y, k=1) == (3 / 4, 3 / 4)
    given = torch.from_numpy(y), torch.from_numpy(x)
    out = prc_features_to_metric(*given, prc_neighborhood=1, verbose=False)
    assert (out["precision"], out["recall"]) == (3 / 4, 3 / 4)
    assert density_coverage(x, y, k=1) == ((1 + 2) / 4, 2 / 4)


@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_by_another_neighbour_search(k):
    from sklearn.neighbors import NearestNeighbors

    x, y = clouds(60, 90, 8)
    own = NearestNeighbors(n_neighbors=k).fit(x).kneighbors()[0][:, -1]  # itself not counted
    apart = np.linalg.norm(x[:, None] - y, axis=2) < own[:, None]
    expected = apart.sum() / (k * 90), apart.any(1).mean()
    assert density_coverage(x, y, k) == pytest.approx(expected)


def test_the_inception_score_is_that_of_torch_fidelity():
    from torch_fidelity.metric_isc import isc_features_to_metric

    p = np.random.default_rng(0).dirichlet(np.full(5, 0.2), 103)
    for splits in (1, 4, 10):
        logits = torch.from_numpy(p).log()
        theirs = isc_features_to_metric(logits, splits, shuffle=False)
        ours = inception_score(p, splits, seed=None)
        assert ours.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
        assert ours.splits == splits and ours.n == 103 // splits
        if splits > 1:
            assert ours.sd == pytest.approx(theirs["inception_score_std"], rel=1e-6)
    assert inception_score(p, 4, seed=1) == inception_score(p, 4, seed=1)
    assert inception_score(p, 4, seed=1) != inception_score(p, 4, seed=2)
    assert inception_score(np.eye(5)).mean == pytest.approx(5)  # zeros are no obstacle


def test_the_sliced_distance_is_that_of_mind():
    "Formula of arXiv 2605.06797 as torch-fidelity 0.5 computes it, with our lines."
    x, y = clouds(40, 40, 12)
    lines = fidelity._directions(50, 12, seed=3)
    a, b = (torch.from_numpy(v @ lines.T).sort(dim=0).values for v in (x, y))
    theirs = 3 * 12 * ((a - b) ** 2).mean(dim=0).mean()
    assert sliced_wasserstein(x, y, 50, seed=3) == pytest.approx(float(theirs), rel=1e-9)
    assert np.allclose(np.linalg.norm(lines, axis=1), 1)


# ---- closed forms


@pytest.mark.parametrize("n, m, d", [(20, 30, 8), (9, 200, 8)])
def test_two_gaussians_with_diagonal_covariances(n, m, d):
    rng = np.random.default_rng(1)
    mean, s, t = rng.normal(size=d), rng.uniform(0.2, 3, d), rng.uniform(0.2, 3, d)
    x, y = whitened(rng, n, 0, s), whitened(rng, m, mean, t)
    truth = (mean**2).sum() + ((s - t) ** 2).sum()
    assert fid(x, y) == pytest.approx(truth, rel=1e-9)
    assert fid(x + 1e5, y + 1e5) == pytest.approx(truth, rel=1e-6)
    p = fidelity.products(x + 1e5, y + 1e5)
    assert fidelity._fid(p) == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_set_has_no_distance_to_itself(shape):
    x = clouds(*shape)[0]
    size = np.trace(np.cov(x, rowvar=False))
    assert abs(fid(x, x)) < 1e-9 * size and abs(fid(x, x[::-1])) < 1e-9 * size
    assert sliced_wasserstein(x, x[::-1], 20) < 1e-20 * size
    assert precision_recall(x, x[::-1]) == (1, 1)


@pytest.mark.parametrize("n, m", [(30, 30), (45, 12)])
def test_one_distribution_has_a_known_density_and_coverage(n, m):
    "Naeem et al. 2020, section 3.2, for any distribution; and KID is unbiased."
    rng, k, times = np.random.default_rng(2), 5, 600
    draws = [np.split(rng.gamma(1, 1, (n + m, 4)), [n]) for _ in range(times)]
    found = np.array([density_coverage(x, y, k) for x, y in draws])
    empty = np.prod([(n - i) / (n + m - i) for i in range(1, k + 1)])
    error = found.std(0) / times**0.5
    assert (np.abs(found.mean(0) - [1, 1 - empty]) < 4 * error).all()
    kids = np.array([kid(x, y) for x, y in draws])
    assert abs(kids.mean()) < 4 * kids.std() / times**0.5


def test_clouds_of_unequal_size_lose_no_image():
    x, y = clouds(6, 4, 3)
    repeated = sliced_wasserstein(np.repeat(x, 2, 0), np.repeat(y, 3, 0), 30)
    assert sliced_wasserstein(x, y, 30) == pytest.approx(repeated, rel=1e-12)


# ---- what is refused


@pytest.mark.parametrize("measure", [fid, kid, sliced_wasserstein])
@pytest.mark.parametrize(
    "real, generated, words",
    [
        (np.ones((0, 3)), np.ones((5, 3)), "0 real image"),
        (np.ones((1, 3)), np.ones((5, 3)), "covariance of one image is undefined.*more real"),
        (np.ones((5, 3)), np.ones((1, 3)), "more generated images, or leave this part out"),
        (np.ones((5, 3)), np.ones((5, 4)), "3 columns, generated ones 4.*same network"),
        (np.ones((5, 3)), np.diag([1, 1, np.nan]), "generated features.*row 2"),
        (np.diag([1, np.inf, 1]), np.ones((5, 3)), "real features.*row 1"),
        (np.ones(5), np.ones(5), "expected"),
    ],
)
def test_what_are_no_two_clouds_is_refused(measure, real, generated, words):
    with pytest.raises(ValueError, match=words):
        measure(real, generated)


def test_more_neighbours_than_images_are_refused():
    x, y = clouds(5, 9, 4)
    for f in (precision_recall, density_coverage):
        assert f(x, y, k=4)
        with pytest.raises(ValueError, match="5 real image.*needs 6"):
            f(x, y, k=5)
        with pytest.raises(ValueError, match="at least 1"):
            f(x, y, k=0)


@pytest.mark.parametrize("size", [1, 21, 1000])
def test_a_subset_is_no_larger_than_what_there_is(size):
    x, y = clouds(20, 40, 4)
    with pytest.raises(ValueError, match="from 2 to 20, or leave subsets out"):
        kid(x, y, subsets=3, subset_size=size)
    assert np.isfinite([kid(x, y, subsets=3, subset_size=20), kid(x, y)]).all()


@pytest.mark.parametrize(
    "wrong, splits, words",
    [
        ([[0.5, 0.6]], 1, "Row 0"),
        ([[0.5, 0.5], [1.5, -0.5]], 1, "Row 1"),
        ([[0.5, np.nan]], 1, "Row 0"),
        (np.empty((0, 5)), 1, "expected"),
        ([0.5, 0.5], 1, "expected"),
        (np.eye(3), 4, "from 1 to 3"),
        (np.eye(3), 0, "from 1 to 3"),
    ],
)
def test_what_is_no_distribution_has_no_score(wrong, splits, words):
    with pytest.raises(ValueError, match=words):
        inception_score(wrong, splits)


# ---- intervals


def percentile(x, y, draws, rng):
    n, m = len(x), len(y)
    resamples = [fid(x[rng.integers(n, size=n)], y[rng.integers(m, size=m)]) for _ in range(draws)]
    return np.quantile(resamples, [0.025, 0.975])


@pytest.mark.parametrize("d, n, m", [(16, 100, 100), (32, 160, 220)])
def test_the_interval_holds_the_truth_and_the_plain_bootstrap_does_not(d, n, m):
    rng, times, held, values = np.random.default_rng(d), 60, [], []
    s = np.arange(1, d + 1) ** -0.5
    t, mean = s * np.linspace(0.8, 1.25, d), np.where(np.arange(d) < 4, 0.4, 0)
    truth = (mean**2).sum() + ((s - t) ** 2).sum()
    assert enough("fid", min(n, m), d)
    for i in range(times):
        x, y = rng.normal(size=(n, d)) * s, mean + rng.normal(size=(m, d)) * t
        ours, plain = fid_interval(x, y, draws=30, seed=i), percentile(x, y, 30, rng)
        held.append((ours.low <= truth <= ours.high, plain[0] <= truth <= plain[1]))
        values.append((ours.value, ours.corrected))
    ours, plain = np.mean(held, 0)
    assert ours >= 0.88 and plain < 0.3  # 95 % of 60 times, less three standard errors: 87 %
    value, corrected = np.mean(values, 0) - truth
    assert abs(corrected) < 0.15 * value


def test_no_difference_lies_within():
    rng, held = np.random.default_rng(4), []
    for i in range(30):
        x, y = rng.normal(size=(2, 80, 12))
        found = fid_interval(x, y, draws=20, seed=i)
        held.append(found.low == 0 <= found.high)
    assert np.mean(held) > 0.85


def test_an_interval_is_of_the_whole_and_repeats():
    x, y = clouds(20, 30, 50)
    a = fid_interval(x, y, 20, seed=1)
    assert a.value == pytest.approx(fid(x, y), rel=1e-9) and a.low <= a.corrected <= a.high
    assert a == fid_interval(x, y, 20, seed=1) != fid_interval(x, y, 20, seed=2)
    narrow = fid_interval(x, y, 20, seed=1, level=0.5)
    assert a.low < narrow.low < narrow.high < a.high
    for wrong in (dict(draws=1), dict(level=1.0)):
        with pytest.raises(ValueError, match="at least 4"):
            fid_interval(x, y, **wrong)
    with pytest.raises(ValueError, match="7 real image.*needs 8"):
        fid_interval(x[:7], y)


# ---- floors


def test_the_declared_floors_follow_from_the_committed_curves():
    t = pd.read_csv(ROOT / "benchmarks" / "results" / "fid_bias.csv")
    assert set(t.metric) == set(MEASURES) and t.n.max() == 2000 and t.n.min() == 12
    for (_, metric), part in t.groupby(["features", "metric"]):
        by = part.sort_values("n").pivot(index="n", columns="pair")
        effect = abs(by["mean"]["dark"].iloc[-1] - by["mean"]["same"].iloc[-1])
        needed = smallest_enough(by.index, by["rmse"]["same"], effect / 10)
        assert needed <= images_needed(metric, part.d.iloc[0]), (metric, needed)


def test_a_floor_counts_images_and_dimensions():
    assert set(FLOORS) == {*MEASURES, "inception_score"}
    assert enough("fid", 50, 10) and not enough("fid", 49, 10) and not enough("fid", 50, 11)
    assert enough("inception_score", 50, 5) and not enough("inception_score", 50, 6)
    with pytest.raises(ValueError, match="'fod' is not one of"):
        enough("fod", 10, 10)


def test_a_bias_curve_knows_the_truth_that_it_is_given():
    def draw(n, rng):
        return rng.normal(size=(2, n, 6))

    t = bias_curve(draw, dict(fid=0, kid=0), (20, 80), ("fid", "kid", "recall"), 8)
    t = t.set_index(["metric", "n"])
    assert (t.bias["fid"] == t["mean"]["fid"]).all() and t.bias["fid", 20] > t.bias["fid", 80] > 0
    assert t.bias["recall", 80] == 0  # no truth given: the last size stands for it
    assert np.allclose(t.rmse, np.hypot(t.bias, t.sd)) and (t.repeats == 8).all()


# ---- tables


def cells(groups, labels):
    return pd.DataFrame(dict(group=groups, label=labels))


@pytest.fixture
def table_of():
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(60, 6)), rng.normal(0.4, 1, (90, 6))
    real = cells(rng.choice(["I-II", "V-VI"], 60), rng.choice(["psoriasis", "acne"], 60))
    generated = cells(rng.choice(["I-II", "V-VI"], 90), rng.choice(["psoriasis", "acne"], 90))
    return x, y, real, generated


def test_a_table_holds_what_each_part_gives_alone(table_of):
    x, y, real, generated = table_of
    t = fidelity_table(*table_of, directions=50, features="made up")
    assert list(t.columns)[:7] == "metric group value n_real n_generated d below_floor".split()
    names = ["all", "I-II", "V-VI"] + [
        f"{g} / {c}" for g in ("I-II", "V-VI") for c in ("acne", "psoriasis")
    ]
    assert list(t.group.unique()) == names and set(t.features) == {"made up"} and set(t.d) == {6}
    by = t.set_index(["group", "metric"])
    for name in names:
        g, _, c = name.partition(" / ")
        i, j = (
            (u.group.eq(g) | (g == "all")) & (u.label.eq(c) | (c == "")) for u in (real, generated)
        )
        a, b = x[i], y[j]
        alone = dict(fid=fid(a, b), kid=kid(a, b))
        alone["sliced_wasserstein"] = sliced_wasserstein(a, b, 50)
        alone |= precision_recall(a, b)._asdict() | density_coverage(a, b)._asdict()
        for metric, value in alone.items():
            row = by.loc[(name, metric)]
            assert row.value == pytest.approx(value, rel=1e-9), (name, metric)
            assert (row.n_real, row.n_generated) == (i.sum(), j.sum())
            assert row.below_floor == (not enough(metric, min(i.sum(), j.sum()), 6))


def test_images_without_a_group_count_for_all_only(table_of):
    x, y, real, generated = table_of
    generated.loc[:9, "group"] = None
    t = fidelity_table(x, y, real, generated, ("kid",)).set_index("group")
    assert t.n_generated["all"] == 90 and t.n_generated[["I-II", "V-VI"]].sum() == 80


@pytest.mark.parametrize("left", [0, 1])
def test_a_cell_with_too_few_images_is_named_or_kept_without_a_number(table_of, left):
    x, y, real, generated = table_of
    place = np.flatnonzero(real.group.eq("V-VI") & real.label.eq("acne"))
    keep = np.setdiff1d(np.arange(60), place[left:])
    given = x[keep], y, real.iloc[keep], generated
    with pytest.raises(ValueError, match=f"'V-VI / acne' has {left} real.*missing='nan'"):
        fidelity_table(*given)
    t = fidelity_table(*given, missing="nan").set_index(["group", "metric"])
    assert t.value["V-VI / acne"].isna().all() and t.below_floor["V-VI / acne"].all()
    assert t.value.isna().sum() == len(MEASURES) and (t.n_real["V-VI / acne"] == left).all()


def test_cells_that_do_not_fit_are_refused(table_of):
    x, y, real, generated = table_of
    for wrong, words in [
        (real.drop(columns="label"), "no column 'label'"),
        (real[:59], "59 real cells for 60 rows"),
        (real.assign(group="all"), "call it otherwise"),
        (real.assign(group="a / b"), "call it otherwise"),
    ]:
        with pytest.raises(ValueError, match=words):
            fidelity_table(x, y, wrong, generated)
    with pytest.raises(ValueError, match="'fod' is not one of"):
        fidelity_table(*table_of, measures=("fod",))


def test_variance_over_groups_and_over_cells(table_of):
    import statistics

    t = fidelity_table(*table_of, measures=("fid", "kid"))
    spread = fidelity_variances(t).set_index(["metric", "over", "ddof"])
    v = t[t.metric == "fid"].set_index("group").value
    groups = [v["I-II"], v["V-VI"]]
    four = [v[k] for k in v.index if " / " in k]
    for over, numbers in dict(groups=groups, cells=four).items():
        assert spread.value["fid", over, 0] == pytest.approx(statistics.pvariance(numbers))
        assert spread.value["fid", over, 1] == pytest.approx(statistics.variance(numbers))
        assert spread.n["fid", over, 0] == len(numbers)
    with pytest.raises(ValueError, match="ddof = 1"):
        variance_of([3.0], 1)
    with pytest.raises(ValueError, match="Value 1 is NaN"):
        variance_of([3.0, np.nan])
