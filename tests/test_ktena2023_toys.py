"""The toys of ktena2023 against values from outside: fractions, sums over every possible sample,
searches that know nothing of the closed forms, scikit-learn's own densities.
"""

from fractions import Fraction
from itertools import permutations, product
from math import factorial, prod

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from skinrepro.papers import ktena2023_toys as toys
from skinrepro.records import kept_images, read_record

MIXTURE = ROOT / "nbs" / "papers" / "ktena2023" / "mixture.ipynb"
SMALL = dict(
    seed=0,
    training_points=6,
    p=0.2,
    p_hat=0.5,
    points=9,
    resamples=300,
    undefined="left out",
    sizes="10,60",
    order="forward",
    rows="y",
    repeats=3,
    fits="60,600",
    world="3x2",
    panels="3x2",
    unlabelled_points=600,
    labelled_points="4,40",
    generated_points="0,200",
    validation=400,
    classifier="logistic",
    naming="one to one",
    scale=0.1,
    scale_is="sd",
    covariance="gram",
)


def test_the_experiment_has_these_parameters():
    from skinrepro.runs import declared

    assert set(declared(MIXTURE)) == {*SMALL, "toy", "profile"}
    assert declared(MIXTURE)["toy"] in toys.TOYS
    for panel in f"{toys.PANELS},{toys.LIMITS}".split(","):
        assert min(toys.shape(panel)) >= 2


# One letter, two meanings
# -------------------------------------------------------------------------------------------------


def test_a_share_is_given_by_one_of_its_names():
    real, generated = toys.mixing_shares(share_generated=0.1)
    assert (real, generated) == (0.9, 0.1) == tuple(toys.mixing_shares(share_real=0.9))
    assert toys.mixing_shares(share_real=0) == (0, 1) and toys.mixing_shares(share_real=1) == (1, 0)


@pytest.mark.parametrize(
    "given, says",
    [
        ({}, "neither was"),
        (dict(share_real=0.5, share_generated=0.5), "both were"),
        (dict(share_real=0.0, share_generated=0.0), "both were"),  # a 0 is given, too
        (dict(share_real=1.1), "share_real = 1.1 is no share"),
        (dict(share_generated=-0.1), "share_generated = -0.1 is no share"),
        (dict(share_generated=float("nan")), "no share"),
    ],
)
def test_a_share_with_no_name_or_two_is_refused(given, says):
    with pytest.raises(ValueError, match=says):
        toys.mixing_shares(**given)


# D1
# -------------------------------------------------------------------------------------------------


def by_fractions(p, t, p_hat):
    if t == p_hat:
        return None
    return min(Fraction(1), max(Fraction(0), (p - t) / (p_hat - t)))


def test_what_is_called_impossible_is_infinitely_far():
    with np.errstate(all="raise"):  # and is seen, not computed
        assert toys.kl([0.5, 0.5], [1, 0]) == np.inf
        assert toys.kl([1, 0], [0.5, 0.5]) == pytest.approx(np.log(2))


def test_the_printed_share_is_exact_and_only_one_training_set_gives_it():
    p, p_hat = Fraction(1, 5), Fraction(1, 2)
    found = {k: by_fractions(p, Fraction(k, 6), p_hat) for k in range(7)}
    assert [k for k, a in found.items() if a == Fraction(1, 10)] == [1]
    for k, wanted in found.items():
        share = toys.best_share(0.2, k / 6, 0.5)
        assert np.isnan(share) if wanted is None else abs(share - float(wanted)) < 1e-15
    rows = toys.single_run(SMALL).rows
    by = rows.set_index(["metric", "series", "x"]).value
    assert abs(by["share_generated", "mixture", ""] - 0.1) < 1e-12
    assert abs(by["share_real", "mixture", ""] - 0.9) < 1e-12
    assert abs(by["probability", "mixture", 0] - 0.2) < 1e-12 and by["kl", "mixture", ""] < 1e-12


def test_no_share_on_a_grid_is_better_in_either_order():
    rng, grid = np.random.default_rng(0), np.linspace(0, 1, 401)
    for p, t, p_hat in rng.uniform(0.05, 0.95, (25, 3)):
        mixed = t + grid * (p_hat - t)
        forward = p * np.log(p / mixed) + (1 - p) * np.log((1 - p) / (1 - mixed))
        reverse = mixed * np.log(mixed / p) + (1 - mixed) * np.log((1 - mixed) / (1 - p))
        for loss in (forward, reverse):
            assert abs(grid[loss.argmin()] - toys.best_share(p, t, p_hat)) <= 1 / 400


@pytest.mark.parametrize("n, p, p_hat", [(6, 0.2, 0.5), (5, 0.7, 0.6), (4, 0.35, 0.25)])
def test_closed_form_is_the_sum_over_every_sequence_of_draws(n, p, p_hat):
    shares, chances, lost = [], [], 0.0
    for draws in product((0, 1), repeat=n):
        chance = prod(p if d else 1 - p for d in draws)
        share = by_fractions(Fraction(str(p)), Fraction(sum(draws), n), Fraction(str(p_hat)))
        if share is None:
            lost += chance
        else:
            shares.append(float(share))
            chances.append(chance)
    found = toys.exact_share(n, p, p_hat)
    mean = np.dot(shares, chances) / (1 - lost)
    assert abs(found.mean - mean) < 1e-12 and abs(found.undefined - lost) < 1e-12
    sd = np.sqrt(np.dot((np.array(shares) - mean) ** 2, chances) / (1 - lost))
    assert abs(found.sd - sd) < 1e-12
    for bound, level in ((found.low, 0.025), (found.high, 0.975)):  # the smallest that holds it
        below = sum(c for s, c in zip(shares, chances) if s <= bound + 1e-12) / (1 - lost)
        under = sum(c for s, c in zip(shares, chances) if s < bound - 1e-12) / (1 - lost)
        assert under < level <= below + 1e-12


@pytest.mark.parametrize("undefined", toys.UNDEFINED)
def test_resampling_agrees_within_what_a_binomial_allows(undefined):
    """Mean: five standard errors. Quantiles: the number of resamples below a value is binomial, so
    a sample's 2.5 % lies between the exact quantiles at 2.5 % plus and minus five of its sd.
    """
    rng, m = np.random.default_rng(1), 1000
    slack = 5 * (0.025 * 0.975 / m) ** 0.5
    for s in toys.curve_settings(9).itertuples():
        exact = toys.exact_share(s.n, s.p, s.p_hat, undefined)
        drawn = toys.resampled_share(s.n, s.p, s.p_hat, rng, m, undefined)
        left = m * (1 - drawn.undefined) if undefined == "left out" else m
        assert abs(drawn.mean - exact.mean) <= 5 * exact.sd / left**0.5 + 1e-12
        d = toys.share_distribution(s.n, s.p, s.p_hat)
        filled = d.share_generated.fillna({"none": 0.0, "all": 1.0}.get(undefined, np.nan))
        d = d.assign(share=filled).dropna(subset="share").sort_values("share")
        below = (d.probability / d.probability.sum()).cumsum().to_numpy()
        for bound, level in ((drawn.low, 0.025), (drawn.high, 0.975)):
            places = np.searchsorted(below, [level - slack, level + slack])
            low, high = d.share.to_numpy()[np.minimum(places, len(d) - 1)]
            assert low <= bound <= high


def test_the_sample_s_quantiles_are_numpy_s():
    v = np.random.default_rng(2).uniform(size=999)
    found = toys.summarised(v)
    assert (found.low, found.high) == tuple(np.quantile(v, (0.025, 0.975), method="inverted_cdf"))
    assert np.isclose(found.mean, v.mean()) and np.isclose(found.sd, v.std())


def test_where_no_share_is_best_it_is_said_and_counted_as_asked():
    assert np.isnan(toys.best_share(0.2, 0.5, 0.5)) and np.isnan(toys.best_share(0.5, 0.5, 0.5))
    assert toys.best_share(0.2, 0.1, 0.2) == 1  # p = p_hat: generate everything
    for kind, value in (("none", 0.0), ("all", 1.0)):
        found = toys.exact_share(2, 0.2, 0.5, kind)
        assert abs(found.mean - (0.64 * 0.4 + 0.32 * value + 0.04)) < 1e-12
    assert abs(toys.exact_share(2, 0.2, 0.5).undefined - 0.32) < 1e-12
    assert toys.exact_share(7, 0.2, 0.5).undefined == 0  # an odd number has no half
    with pytest.raises(ValueError, match="'left out', 'none', 'all'"):
        toys.exact_share(2, 0.2, 0.5, "half")
    assert np.isnan(toys.summarised([np.nan, np.nan]).mean)


def test_the_axes_are_hundredths_and_move_one_thing():
    t = toys.curve_settings()
    assert t.groupby("axis").size().to_dict() == dict(N=99, p=99, p_hat=99)
    for axis, still in (("N", ["p", "p_hat"]), ("p", ["n", "p_hat"]), ("p_hat", ["n", "p"])):
        of = t[t.axis == axis]
        assert all((of[k] == toys.SINGLE[k]).all() for k in still)
    assert t[t.axis == "N"].n.tolist() == list(range(1, 100))


# D2
# -------------------------------------------------------------------------------------------------


def tables(n):
    "Every (2, 2) table of n points, with its probability under P."
    for k in product(range(n + 1), repeat=3):
        if sum(k) <= n:
            counts = np.array([*k, n - sum(k)])
            ways = factorial(n) / prod(factorial(int(c)) for c in counts)
            yield counts.reshape(2, 2) / n, ways * prod(toys.P.ravel() ** counts)


@pytest.mark.parametrize("order", toys.ORDERS)
@pytest.mark.parametrize("generated", [toys.P_HAT, None], ids=["with", "without"])
def test_the_solver_s_answer_satisfies_the_conditions_and_is_the_closed_form(order, generated):
    rng = np.random.default_rng(3)
    for n in (6, 20, 20, 200, 200, 2000):
        t = rng.multinomial(n, toys.P.ravel()).reshape(2, 2) / n
        mix = toys.best_mix(toys.P, t, generated, order)
        exact = toys.mix_in_closed_form(toys.P, t, generated, order)
        if not np.isfinite(exact):
            assert mix.divergence == exact and order == "forward" and (t == 0).any()
            continue
        assert abs(mix.divergence - exact) < 1e-6 and mix.gap < 1e-5
        parts = toys.sources(t, generated)
        w = np.array([mix.weights[name] for name in parts])
        assert abs(w.sum() - 1) < 1e-9 and (w >= 0).all()
        cells = np.stack(list(parts.values()))

        def loss(w, cells=cells):
            mixed = np.tensordot(w / w.sum(), cells, 1)
            pair = (toys.P, mixed) if order == "forward" else (mixed, toys.P)
            return toys.kl(*pair)

        for other in rng.dirichlet(np.ones(len(w)), 40):  # nothing towards any other is better
            assert loss(w) <= loss(0.999 * w + 0.001 * other) + 1e-9
            assert loss(w) <= loss(other) + 1e-9


def test_the_gap_is_an_error_bound_and_sees_wrong_weights():
    t = np.array([[0.3, 0.4], [0.2, 0.1]])
    parts = np.stack(list(toys.sources(t, toys.P_HAT).values()))
    best = toys.mix_in_closed_form(toys.P, t, toys.P_HAT)
    for w in np.random.default_rng(4).dirichlet(np.ones(4), 20):
        value, gradient = toys._slope(w, parts, toys.P, "forward")
        assert value - best <= w @ gradient - gradient.min() + 1e-12
        step = 1e-6 * np.eye(4)
        for order in toys.ORDERS:
            g = toys._slope(w, parts, toys.P, order)[1]
            ends = [
                [toys._slope(w + s * d, parts, toys.P, order)[0] for s in (1, -1)] for d in step
            ]
            assert np.allclose([(a - b) / 2e-6 for a, b in ends], g, atol=1e-5)


@pytest.mark.parametrize("n", [3, 5, 8])
def test_exact_curves_are_sums_over_every_table(n):
    both = without = finite = 0.0
    for t, chance in tables(n):
        both += chance * toys.mix_in_closed_form(toys.P, t, toys.P_HAT)
        alone = toys.mix_in_closed_form(toys.P, t)
        assert np.isfinite(alone) == (t > 0).all()
        if np.isfinite(alone):
            without, finite = without + chance * alone, finite + chance
    found = toys.expected_divergence([n, 9], toys.P, toys.P_HAT).iloc[0]
    assert abs(found.with_generated - both) < 1e-12
    assert abs(found.infinite - (1 - finite)) < 1e-12
    assert abs(toys.infinite_probability(n, toys.P) - (1 - finite)) < 1e-12
    assert n == 3 or abs(found.without_if_finite - without / finite) < 1e-12


def test_generated_data_halve_the_divergence_of_large_samples_whatever_they_are():
    for p_hat in (toys.P_HAT, np.array([[0.01, 0.49], [0.49, 0.01]])):
        found = toys.expected_divergence([900], toys.P, p_hat).iloc[0]
        assert found.without_if_finite * 900 == pytest.approx(1, abs=0.02)
        assert found.with_generated * 900 == pytest.approx(0.5, abs=0.03)
    assert toys.large_sample_limit(900, True) * 2 == toys.large_sample_limit(900, False) == 1 / 900


def test_rows_of_the_printed_matrices_may_be_attributes():
    assert np.isclose(toys.P.sum(), 1) and np.isclose(toys.P_HAT.sum(), 1)
    t = np.array([[0.5, 0.2], [0.1, 0.2]])
    found = [
        toys.mix_in_closed_form(*(toys.oriented(d, rows) for d in (toys.P, t, toys.P_HAT)))
        for rows in toys.ROWS
    ]
    assert abs(found[0] - found[1]) > 1e-4
    with pytest.raises(ValueError, match="rows = 'x'"):
        toys.oriented(t, "x")


def test_a_label_that_is_not_there_is_generated_or_infinitely_missed():
    t = np.array([[0.5, 0.5], [0.0, 0.0]])
    assert toys.best_mix(toys.P, t) == ({}, np.inf, 0.0)
    mix = toys.best_mix(toys.P, t, toys.P_HAT)
    assert set(mix.weights) == {"real, y=0", "generated, y=0", "generated, y=1"}
    assert abs(mix.weights["generated, y=1"] - toys.P[1].sum()) < 1e-4


def test_infinite_repeats_are_counted():
    raw = pd.DataFrame(dict(panel="", x=5, series="s", repeat=range(4), kl=[1, 3, np.inf, np.inf]))
    rows = pd.DataFrame(toys.over_repeats(raw, "kl")).set_index(["metric", "series"])
    assert rows.value["kl", "s"] == np.inf and rows.value["infinite", "s"] == 0.5
    some = rows.loc[("kl", "s, finite repeats")]
    assert (some.value, some.n) == (2, 2) and some.high - some.low == pytest.approx(
        2 * 12.7062, 1e-4
    )


# D3 and D4
# -------------------------------------------------------------------------------------------------


def test_readings_of_the_covariance():
    def spread(**reading):
        world = toys.true_mixture(3000, 2, np.random.default_rng(5), **reading)
        assert (np.linalg.eigvalsh(world.covariances) > -1e-12).all()
        return world.covariances[:, 0, 0].mean()

    assert spread() == pytest.approx(2 * 0.01, rel=0.1)  # two squares of N(0, 0.1)
    assert spread(scale_is="variance") == pytest.approx(2 * 0.1, rel=0.1)
    assert spread(scale=0.2) == pytest.approx(2 * 0.04, rel=0.1)
    # eigenvalues of the symmetric part: half of trace plus gap; mean of their absolute values
    rng = np.random.default_rng(6)
    a, b, c = rng.normal(0, 0.1, (3, 200000)) * np.array([[1], [1], [0.5**0.5]])
    r = np.hypot((a - b) / 2, c)
    wanted = (np.abs((a + b) / 2 + r) + np.abs((a + b) / 2 - r)).mean() / 2
    assert spread(covariance="symmetric") == pytest.approx(wanted, rel=0.1)
    for wrong in (dict(scale_is="x"), dict(covariance="x")):
        with pytest.raises(ValueError, match="'x' is not one of"):
            toys.true_mixture(2, 2, np.random.default_rng(0), **wrong)


def test_points_and_densities_are_those_of_the_mixture():
    from sklearn.mixture import GaussianMixture

    world = toys.true_mixture(3, 4, np.random.default_rng(7))
    x, of = toys.draw_points(world, 30000, np.random.default_rng(8))
    for i in range(3):
        assert np.allclose(x[of == i].mean(0), world.means[i], atol=0.02)
        assert np.allclose(np.cov(x[of == i].T), world.covariances[i], atol=0.005)
    theirs = GaussianMixture(3, random_state=0).fit(x[:900])
    ours = toys.Mixture(theirs.weights_, theirs.means_, theirs.covariances_)
    logs = toys.log_densities(ours, x[:50])
    assert np.allclose(np.log(np.exp(logs).sum(1)), theirs.score_samples(x[:50]))
    assert (logs.argmax(1) == theirs.predict(x[:50])).all()


def test_names_of_modes_make_the_fewest_errors():
    rng = np.random.default_rng(9)
    for _ in range(6):
        world = toys.true_mixture(4, 2, rng)
        x, y = toys.draw_points(world, 15, rng)
        blurred = toys.Mixture(world.weights, rng.permutation(world.means), world.covariances)
        mode = toys.log_densities(blurred, x).argmax(1)
        errors = {q: (np.array(q)[mode] != y).sum() for q in permutations(range(4))}
        found = toys.name_modes(blurred, x, y)
        assert errors[tuple(found)] == min(errors.values())
        free = toys.name_modes(blurred, x, y, "majority")
        least = sum(
            (mode == m).sum() - np.bincount(y[mode == m], minlength=1).max() for m in set(mode)
        )
        assert (free[mode] != y).sum() == least <= min(errors.values())


def test_a_trial_uses_what_it_says():
    world = toys.true_mixture(3, 2, np.random.default_rng(10))
    sizes = toys.Sizes(500, (5, 50), (0, 100), 300)
    t = toys.mixture_trial(world, sizes, np.random.default_rng(11))
    wide = t.pivot(index="x", columns="series", values="accuracy")
    assert list(wide.index) == [5, 50] and set(wide) == {
        "0",
        "100",
        toys.TRUE,
        toys.FITTED,
        toys.NAMED,
    }
    rng = np.random.default_rng(11)  # the same draws by hand
    rng.integers(2**31)
    toys.draw_points(world, 500, rng)
    x, y = toys.draw_points(world, 50, rng)
    test = toys.draw_points(world, 300, rng)
    for n in (5, 50):
        assert wide.loc[n, "0"] == toys.classifier_accuracy((x[:n], y[:n]), test)
    assert wide[toys.TRUE].nunique() == 1
    assert wide.loc[5, toys.TRUE] == np.mean(
        toys.log_densities(world, test[0]).argmax(1) == test[1]
    )


@pytest.mark.parametrize("name", toys.CLASSIFIERS)
def test_every_classifier_learns_two_clouds(name):
    far = toys.Mixture(np.ones(2) / 2, np.array([[0.0, 0], [4, 4]]), np.stack([np.eye(2)] * 2) / 4)
    train, test = (toys.draw_points(far, 60, np.random.default_rng(s)) for s in (12, 13))
    assert toys.classifier_accuracy(train, test, name) > 0.95
    one = train[1] == 1
    assert toys.classifier_accuracy((train[0][one], train[1][one]), test, name) == test[1].mean()


def test_another_classifier_is_refused():
    with pytest.raises(ValueError, match="'logistic', 'knn', 'mlp'"):
        toys.build_classifier("forest")


def test_gain_is_counted_world_by_world():
    found = toys.helped_classifiers(
        SMALL | dict(generated_points="200")
    )  # none is always there, too
    kept = found.kept
    one = kept[kept.repeat == 1].set_index(["x", "series"])
    assert np.isclose(one.gain[4, "200"], one.accuracy[4, "200"] - one.accuracy[4, "0"])
    rows = found.rows.set_index(["metric", "x", "series"])
    paired = kept[(kept.x == 4) & (kept.series == "200")].gain
    assert np.isclose(rows.value["gain", 4, "200"], paired.mean())
    assert rows.n["gain", 4, "200"] == 3 and ("gain", 4, "0") not in rows.index


# Records and figures
# -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    "What the five would leave, through a file as records go."
    parts, kept = [], {}
    for toy, of in toys.TOYS.items():
        found = of(SMALL)
        kept[toy] = found.kept
        about = dict(toy=toy, seed=0, panels="3x2", undefined="left out", run_id=f"mixture-{toy}")
        parts.append(found.rows.assign(**about, data=toys.DATA, profile="smoke"))
    file = tmp_path_factory.mktemp("toys") / "records.csv"
    pd.concat(parts).to_csv(file, index=False)
    return read_record(file), kept


@pytest.mark.parametrize("toy", toys.TOYS)
def test_a_figure_draws_its_records(records, toy, tmp_path):
    import matplotlib.pyplot as plt

    from skinrepro.figures import save_figure

    every, kept = records
    t = toys.of_toy(every, toy)
    fig, shown = toys.draw(t, kept[toy])
    assert set(shown.run_id) == {f"mixture-{toy}"} and len(fig.axes) == {
        "D2": 1,
        "D4": 1,
        "D1a": 2,
    }.get(toy, 3)
    if toy == "D2":
        texts = [x.get_text() for x in fig.axes[0].texts]
        n_infinite = np.isinf(
            kept[toy][(kept[toy].x == 10) & (kept[toy].series == toys.WITHOUT)].kl
        )
        assert 0 < n_infinite.sum() < 3 and f"∞ {n_infinite.sum()}/3" in texts
    files = save_figure(fig, tmp_path / f"fig{toy}", shown)
    assert "toy distributions" in files[1].read_text() and len(pd.read_csv(files[2])) == len(shown)
    plt.close(fig)


def test_the_drawn_curve_is_the_record(records):
    import matplotlib.pyplot as plt

    t = toys.of_toy(records[0], "D1b")
    fig, _ = toys.draw_share_curves(t)
    line = fig.axes[2].lines[0]
    of = t[(t.metric == "share_generated") & (t.panel == "p_hat") & (t.series == "exact")]
    assert np.allclose(line.get_ydata(), of.sort_values("x").value)
    plt.close(fig)


def test_sentences_are_computed(records):
    said = toys.sentences(records[0])
    assert list(dict.fromkeys(said.heading)) == [f"Toy {toy}" for toy in toys.TOYS]
    assert said.text.str.contains("the printed 0.1 is exactly reproduced").sum() == 1
    assert not said.text.str.contains("nan").any() and set(said.data) == {toys.DATA}
    spoilt = records[0].copy()
    spoilt.loc[spoilt.metric == "share_generated", "value"] = 0.2
    assert toys.sentences(spoilt).text.str.contains("0.1 is not reproduced").sum() == 1
    assert len(toys.sentences(records[0].head(0))) == 0


def test_a_figure_of_several_settings_is_refused(records):
    t = records[0][records[0].toy == "D2"]
    with pytest.raises(ValueError, match="2 runs with one seed"):
        toys.of_toy(pd.concat([t, t.assign(run_id="mixture-other")]), "D2")
    other = t.assign(seed=1, run_id="mixture-other")
    assert set(toys.of_toy(pd.concat([other, t]), "D2").run_id) == {"mixture-D2"}


def test_a_run_keeps_its_samples_and_can_be_published(tmp_path, monkeypatch):
    from skinrepro.runs import execute_notebook

    monkeypatch.setenv("SKINREPRO_RUNS", str(tmp_path / "runs"))
    execute_notebook(MIXTURE, tmp_path / "out.ipynb", dict(toy="D3"), cwd=tmp_path)
    (folder,) = (tmp_path / "runs" / "ktena2023").glob("mixture-*")
    record = read_record(folder / "records.csv")
    assert set(record.data) == {toys.DATA} and set(record.toy) == {"D3"}
    assert len(kept_images(record.data_hash.iloc[0], folder)) == 2  # one sample a world
    points = toys.kept_points(folder.name)
    assert toys.kept_points("mixture-000000000000") is None
    fig, shown = toys.draw(toys.of_toy(record, "D3"), points)
    assert len(fig.axes) == 3 and (points.panel == "labelled").sum() == 10


def test_samples_are_told_apart_by_what_they_hold():
    one, other = (toys.samples_list(dict(s=np.arange(3.0) + d), "D2") for d in (0, 1))
    assert one.md5[0] != other.md5[0] and one.image_id[0] == "D2: s"
    same = toys.samples_list(dict(s=np.arange(3.0) + 1e-9), "D2")  # rounding is no difference
    assert same.md5[0] == one.md5[0]
