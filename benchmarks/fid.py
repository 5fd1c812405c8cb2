"""FID of a small group of images beside three peers, on the same features in one run.

python benchmarks/fid.py           # 291 real, 500 generated, 2048 features; minutes of one core
python benchmarks/fid.py --quick   # 256 features, one round, to see that it runs, nothing written
python benchmarks/fid.py --bias    # instead: error of each measure against n on phantoms, minutes

Four ways from the same two arrays in float64 to one number:

* skinrepro.fidelity.fid: singular values of a 291 x 500 matrix
* scipy: means and covariances by NumPy, scipy.linalg.sqrtm of their product (as pytorch-fid and
  clean-fid do; SciPy 1.16 rewrote sqrtm, so this is not the ratio that older figures speak of)
* torchmetrics: means and covariances, then torchmetrics.image.fid._compute_fid (what its metric
  calls on its running sums)
* torch-fidelity: fid_features_to_statistics and fid_statistics_to_metric (what its command calls)

The covariances are timed on each side that needs them. The features are correlated and skewed,
with eigenvalues that fall as those of a network do. One thread. Rounds are interleaved; a ratio is
the median of the rounds' ratios. Exit status 1 if a peer differs by more than 1e-6, relative, or is
less than 20 times as slow. What differs are the peers' square roots of the rounding errors of some
1500 eigenvalues that ought to be 0; `own_apart` is our number against a second way of ours, from
scalar products of the images.

`--bias` renders 4000 phantoms on light and 2000 on dark skin, describes them by their mean colours
and by a network, draws pairs of sets of 12 to 2000 images without replacement, and writes mean,
scatter and error of each measure to results/fid_bias.csv. The floors of skinrepro.fidelity follow
from it (nbs/51_fidelity.ipynb).
"""

import argparse
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from skinrepro.core import commit
from skinrepro.fidelity import _fid, bias_curve, fid, products

RESULTS = Path(__file__).resolve().parent / "results"
N_REAL, N_GENERATED, WIDTH = 291, 500, 2048
TARGET, TOLERANCE = 20, 1e-6


# ---- beside the peers


def clouds(d):
    "Two sets of rows as a network might give: correlated, at least 0, eigenvalues that fall."
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(d, d)) * np.arange(1, d + 1)[:, None] ** -0.5
    real = np.maximum(rng.normal(size=(N_REAL, d)) @ mixing, 0)
    return real, np.maximum(0.2 + 1.1 * rng.normal(size=(N_GENERATED, d)) @ mixing, 0)


def scipy_fid(real, generated):
    from scipy.linalg import sqrtm

    (m, s), (n, t) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (real, generated))
    return float(((m - n) ** 2).sum() + np.trace(s + t) - 2 * np.trace(sqrtm(s @ t)).real)


def torchmetrics_fid(real, generated):
    import torch
    from torchmetrics.image.fid import _compute_fid

    x, y = torch.from_numpy(real), torch.from_numpy(generated)
    return float(_compute_fid(x.mean(0), x.T.cov(), y.mean(0), y.T.cov()))


def torch_fidelity_fid(real, generated):
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    one, two = (fid_features_to_statistics(torch.from_numpy(x)) for x in (real, generated))
    return fid_statistics_to_metric(one, two, False)["frechet_inception_distance"]


PEERS = dict(scipy=scipy_fid, torchmetrics=torchmetrics_fid, torch_fidelity=torch_fidelity_fid)


def versions() -> dict:
    from importlib.metadata import version

    return {k: version(k.replace("_", "-")) for k in PEERS}


def beside(d, rounds) -> pd.DataFrame:  # a row for each peer
    import torch

    torch.set_num_threads(1)
    real, generated = clouds(d)
    sides = dict(skinrepro=fid, **PEERS)
    small = real[:20, :8], generated[:20, :8]
    for function in sides.values():
        function(*small)  # imports
    fid(real, generated)
    seconds, values = {k: [] for k in sides}, {}
    for _ in range(rounds):
        for k, function in sides.items():
            start = time.perf_counter()
            values[k] = function(real, generated)
            seconds[k].append(time.perf_counter() - start)
            print(f"  {k}: {seconds[k][-1]:.3f} s, {values[k]:.9g}", file=sys.stderr, flush=True)
    own = np.array(seconds["skinrepro"])
    return pd.DataFrame(
        [
            dict(
                peer=k,
                version=versions()[k],
                n_real=N_REAL,
                n_generated=N_GENERATED,
                d=d,
                rounds=rounds,
                ours_s=np.median(own),
                peer_s=np.median(seconds[k]),
                ratio=np.median(np.array(seconds[k]) / own),
                ours=values["skinrepro"],
                theirs=values[k],
                apart=abs(values[k] / values["skinrepro"] - 1),
                own_apart=abs(_fid(products(real, generated)) / values["skinrepro"] - 1),
                commit=commit(),
            )
            for k in PEERS
        ]
    )


# ---- error against the number of images


def phantoms(count, types, seed):
    from skinrepro.phantom import CONDITIONS, render

    rng, names = np.random.default_rng(seed), list(CONDITIONS)[:5]
    return np.stack(
        [
            render(names[rng.integers(5)], int(rng.choice(types)), int(rng.integers(2**31)), 32)
            for _ in range(count)
        ]
    )


@cache
def described(quick):  # name of the features -> light (n, d), dark (n / 2, d)
    from skinrepro.features import embed, feature_network

    n = 200 if quick else 4000
    images = phantoms(n, [1, 2], 11), phantoms(n // 2, [5, 6], 12)
    network = feature_network()
    return {
        "squares": [
            x.reshape(len(x), 4, 8, 4, 8, 3).mean((2, 4)).reshape(len(x), -1) / 255 for x in images
        ],
        network.name: [embed(network, x, "fidelity", 64).astype(float) for x in images],
    }


def drawer(light, dark, pair):
    "n light images, and n others: light ones, a quarter of them dark, or dark ones."

    def draw(n, rng):
        order, other = rng.permutation(len(light)), rng.permutation(len(dark))[:n]
        real, generated = light[order[:n]], light[order[n : 2 * n]]
        swapped = dict(same=0, quarter=round(n / 4), dark=n)[pair]
        return real, np.concatenate([dark[other[:swapped]], generated[swapped:]])

    return draw


def bias(quick) -> pd.DataFrame:
    sizes = (12, 25, 50, 100) if quick else (12, 25, 50, 100, 200, 400, 1000, 2000)
    out = []
    for kind, (light, dark) in described(quick).items():
        for pair in ("same", "quarter", "dark"):
            t = bias_curve(
                drawer(light, dark, pair),
                # of one distribution; 1 - 2^-5 is the coverage of infinitely many (five neighbours)
                dict(fid=0, kid=0, sliced_wasserstein=0, density=1, coverage=1 - 2**-5)
                if pair == "same"
                else {},
                sizes,
                repeats=lambda n: 3 if n > 1000 else max(5, min(40, 4000 // n)),
            )
            out.append(t.assign(features=kind, d=light.shape[1], pair=pair, commit=commit()))
            print(f"  {kind}, {pair}", file=sys.stderr, flush=True)
    first = ["features", "d", "pair"]
    t = pd.concat(out, ignore_index=True)
    return t[first + [c for c in t if c not in first]]


def main():
    ask = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ask.add_argument("--quick", action="store_true", help="small, nothing written")
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--bias", action="store_true", help="error of each measure against n")
    ask = ask.parse_args()
    if ask.bias:
        t, file = bias(ask.quick), RESULTS / "fid_bias.csv"
        means = t[t.pair == "same"].pivot_table(
            index=["features", "metric"], columns="n", values="mean"
        )
        print(means.round(3).to_string())
    else:
        t = beside(256 if ask.quick else WIDTH, 1 if ask.quick else ask.rounds)
        file = RESULTS / "fid.csv"
        print(t.drop(columns="commit").to_string(index=False))
        for r in t.itertuples():
            print(
                f"{r.peer} {r.version}: {r.peer_s:.2f} s, skinrepro {r.ours_s:.3f} s: {r.ratio:.0f}"
                f" times as fast; the numbers differ by {r.apart:.1e} of themselves"
            )
        print(f"a second way to our number, from scalar products: {t.own_apart.max():.1e}")
    if not ask.quick:
        t.to_csv(file, index=False, float_format="%.7g")
        print(f"written: {file}")
    if not ask.bias and ((t.apart > TOLERANCE).any() or (t.ratio < TARGET).any()) and not ask.quick:
        sys.exit(
            f"FAILED: a peer differs by more than {TOLERANCE}, or is less than {TARGET} times."
        )


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
