"""How hard the phantom radiographs are: area under the ROC curve of a small network, for each
finding and the sex, in the archive that it was trained on and in the other one.

python benchmarks/phantom_radiograph.py            # the seeds that the csv lacks, a CPU-minute each
python benchmarks/phantom_radiograph.py --smoke    # one tiny run, nothing written

One run = one seed = other people and another start: 2000 of archive 0 to train on, 1000 new ones of
each archive to test on; of those of archive 1, 40 % have no finding (more would leave too few that
have one). 32 px, six epochs. Writes figures/phantom/radiograph_auc.csv.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: more cost more than they bring

import argparse

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from skinrepro.core import atomic_path, paths, seed_all
from skinrepro.phantom_radiograph import (
    FINDINGS,
    VERSION,
    finding_states,
    radiograph_table,
    render,
    seed_of,
)

SIZE, TRAIN, TEST, EPOCHS, BATCH = 32, 2000, 1000, 6, 32
TASKS = [*FINDINGS, "sex"]


def people(n, archive, seed, name, healthy=None) -> tuple:  # (n, 1, SIZE, SIZE), (n, 6)
    "Pictures in -1..1, and what there is to tell."
    t = radiograph_table(n, archive, seed, f"{name}-v{VERSION}", healthy)
    x = [
        render(r.labels, r.sex, r.age, r.view, r.domain, seed=seed_of(r.image_id), size=SIZE)
        for r in t.itertuples()
    ]
    y = np.column_stack([finding_states(t), t.sex.eq("male")])
    return torch.tensor(np.stack(x)[:, None] / 127.5 - 1).float(), torch.tensor(y).float()


def network() -> nn.Module:
    "Eight convolutions, six outputs."

    def block(i, o):
        return [
            *(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU()),
            *(nn.Conv2d(o, o, 3, 1, 1), nn.BatchNorm2d(o), nn.ReLU()),
        ]

    trunk = [layer for i, o in ((1, 16), (16, 32), (32, 64), (64, 96)) for layer in block(i, o)]
    return nn.Sequential(*trunk, nn.Flatten(), nn.Dropout(0.3), nn.Linear(96 * 4, len(TASKS)))


def train(x, y, epochs) -> nn.Module:
    net = network()
    steps = epochs * (len(x) // BATCH)
    best = torch.optim.AdamW(net.parameters(), weight_decay=0.02)
    rate = torch.optim.lr_scheduler.OneCycleLR(best, 3e-3, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            loss = nn.functional.binary_cross_entropy_with_logits(net(x[rows]), y[rows])
            best.zero_grad()
            loss.backward()
            best.step()
            rate.step()
    return net.eval()


@torch.no_grad()
def scores(net, x, y, seed, archive) -> list:
    "A row for each task; an AUC that is not defined is missing."
    p = torch.cat([net(part) for part in x.split(200)])
    rows = []
    for k, task in enumerate(TASKS):
        both = 0 < y[:, k].sum() < len(y)
        auc = round(roc_auc_score(y[:, k], p[:, k]), 4) if both else None
        rows.append((VERSION, seed, archive, task, auc, int(y[:, k].sum()), len(y)))
    return rows


def run(seed, n, n_test, epochs) -> pd.DataFrame:
    seed_all(seed)
    net = train(*people(n, "archive 0", seed, "train"), epochs)
    rows = scores(net, *people(n_test, "archive 0", seed, "test"), seed, "archive 0")
    other = people(n_test, "archive 1", seed, "test", 0.4)
    rows += scores(net, *other, seed, "archive 1")
    columns = ["version", "seed", "tested_on", "finding", "auc", "positives", "n"]
    return pd.DataFrame(rows, columns=columns)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.smoke:
        print(run(0, 64, 64, 1))
        return
    csv = paths().figures / "phantom" / "radiograph_auc.csv"
    old = pd.read_csv(csv, dtype={"version": str}) if csv.is_file() else pd.DataFrame()
    old = old[old.version == VERSION] if len(old) else old  # other pixels, another task
    done = set(old.seed) if len(old) else set()
    for seed in set(range(a.seeds)) - done:
        old = pd.concat([old, run(seed, TRAIN, TEST, EPOCHS)], ignore_index=True)
        with atomic_path(csv) as tmp:
            old.to_csv(tmp, index=False, lineterminator="\n")
        five = old[(old.seed == seed) & (old.finding != "sex")].groupby("tested_on").auc.mean()
        print(seed, five.round(3).to_dict(), flush=True)


if __name__ == "__main__":
    main()
