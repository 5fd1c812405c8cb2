"""Whether the phantom histology has room: what a perfect generator could gain.

python benchmarks/phantom_room.py            # the trainings that the csv lacks, and the table: 20
trainings, each of about five CPU seconds
python benchmarks/phantom_room.py --smoke    # one tiny training of each kind, nothing written

A small classifier (`networks.build('resnet_small')`, 32 pixels, from scratch) learns from hospitals
0, 3 and 4 and is tested on all five, on 300 patches each that no training saw.

skewed         hospital 0 whole (1500 patches), ten each of hospitals 3 and 4
skewed+jitter  the same, with colours jittered (`batches.colour_jitter`)
all            1000 each of hospitals 0, 3 and 4: a generator that errs nowhere
all+jitter     the same, jittered

The images are the same for all seeds; a seed is that of the network and of its batches. Steps and
images a step are equal for all. Writes figures/phantom_histology/room.{csv,md} and sheet.png; what
is in the csv is not trained again.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: small images gain nothing by threads

import argparse
import time

import numpy as np
import pandas as pd

from skinrepro.core import atomic_path, paths
from skinrepro.phantom_histology import LABELS, VERSION, histology_manifest, render, seed_of, sheet

METHODS = ("skewed", "skewed+jitter", "all", "all+jitter")
HOSPITALS = (0, 3, 4, 1, 2)  # those that train, validation, test
SIZE, STEPS, BATCH, SEEDS = 32, 130, 64, 5
SKEWED = {0: 750, 3: 5, 4: 5}  # patches of each label
ALL = {0: 500, 3: 500, 4: 500}
TEST = dict.fromkeys(HOSPITALS, 150)


def images(each: dict, name: str, share: float = 1.0) -> tuple:
    "Patches (n, 3, SIZE, SIZE) float in [-1, 1] and codes (n,) as tensors."
    import torch

    n = {h: max(2, int(n * share)) for h, n in each.items()}
    rows = [(label, f"hospital {h}", n[h]) for h in n for label in LABELS]
    m = histology_manifest(pd.DataFrame(rows, columns=["label", "domain", "n"]), name)
    x = np.stack(
        [render(r.label, r.domain, seed_of(r.image_id), SIZE) for r in m.itertuples(index=False)]
    )
    y = m.label.map({label: k for k, label in enumerate(LABELS)}).to_numpy("int64").copy()
    return torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1, torch.from_numpy(y)


def train(x, y, seed: int, jitter: bool, steps: int = STEPS):
    "AdamW with one cycle, flips and quarter turns; labels and hospitals as they come."
    import torch

    from skinrepro.batches import colour_jitter
    from skinrepro.networks import build

    net = build("resnet_small", len(LABELS), SIZE, seed=seed).train()
    g, rng, change = (
        torch.Generator().manual_seed(seed),
        np.random.default_rng(seed),
        colour_jitter(),
    )
    opt = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02)
    plan = torch.optim.lr_scheduler.OneCycleLR(opt, 2e-3, total_steps=steps)
    for _ in range(steps):
        i = torch.randint(len(x), (BATCH,), generator=g)
        b = x[i].rot90(int(torch.randint(4, (), generator=g)), (2, 3))
        b = b.flip(3) if torch.rand((), generator=g) < 0.5 else b
        b = change((b + 1) / 2, rng) * 2 - 1 if jitter else b
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(b), y[i])
        loss.backward()
        opt.step()
        plan.step()
    return net.eval()


def accuracy(net, x, y) -> float:
    import torch

    with torch.inference_mode():
        return float((torch.cat([net(b).argmax(1) for b in x.split(200)]) == y).float().mean())


def table(t: pd.DataFrame) -> str:
    "Mean and standard deviation over seeds, per cent; the gap is best less worst of 0, 3 and 4."
    columns = [f"hospital {h}" for h in HOSPITALS]
    seen = t[columns[:3]]
    t = t.assign(gap=seen.max(axis=1) - seen.min(axis=1))
    lines = [
        "Accuracy (%) on phantom histology (procedural, not patients): mean ± standard deviation of"
        f" {t.seed.nunique()} seeds. Hospitals 0, 3, 4 train; 1 and 2 are unseen. Made by"
        " `python benchmarks/phantom_room.py`.",
        "",
        "| trained on | " + " | ".join(columns) + " | gap of 0, 3, 4 | n |",
        "| --- |" + " --- |" * (len(columns) + 2),
    ]
    for method in METHODS:
        own = t[t.method == method]
        cells = [f"{100 * own[c].mean():.1f} ± {100 * own[c].std():.1f}" for c in [*columns, "gap"]]
        lines.append(f"| {method} | " + " | ".join([*cells, str(len(own))]) + " |")
    return "\n".join(lines) + "\n"


def run(todo: list, keep, share: float = 1.0, steps: int = STEPS):
    "Train what is to do, in turn; keep(row) after each."
    import torch

    torch.set_num_threads(1)
    tests = {h: images({h: n}, "room-test", share) for h, n in TEST.items()}
    sets = {}
    for method, seed in todo:
        kind, _, jitter = method.partition("+")
        if kind not in sets:
            sets[kind] = images(SKEWED if kind == "skewed" else ALL, "room-train", share)
        start = time.process_time()
        net = train(*sets[kind], seed, bool(jitter), steps)
        row = {f"hospital {h}": round(accuracy(net, *tests[h]), 4) for h in HOSPITALS}
        about = dict(renderer=VERSION, method=method, seed=seed, n_train=len(sets[kind][1]))
        seconds = round(time.process_time() - start, 1)
        keep(dict(**about, size=SIZE, steps=steps, **row, cpu_seconds=seconds))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--smoke", action="store_true")
    if p.parse_args().smoke:
        run([(m, 0) for m in METHODS], print, share=0.02, steps=2)
        raise SystemExit
    target = paths().figures / "phantom_histology" / "room.csv"
    kept = pd.read_csv(target, dtype={"renderer": str}) if target.is_file() else None
    kept = [] if kept is None else kept[kept.renderer == VERSION].to_dict("records")
    have = {(r["method"], r["seed"]) for r in kept}

    def keep(row):
        kept.append(row)
        print(row, flush=True)
        t = pd.DataFrame(kept)
        t = t.sort_values(
            ["method", "seed"], key=lambda c: c.map(METHODS.index) if c.name == "method" else c
        )
        with atomic_path(target) as tmp:
            t.to_csv(tmp, index=False)
        with atomic_path(target.with_suffix(".md")) as tmp:
            tmp.write_text(table(t), encoding="utf-8")

    run([(m, s) for s in range(SEEDS) for m in METHODS if (m, s) not in have], keep)
    with atomic_path(target.with_name("sheet.png")) as tmp:
        sheet(columns=4).savefig(tmp, dpi=70)
