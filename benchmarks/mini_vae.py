"""Which settings of a small VAE redraw phantoms so that a person recognises lesion and skin?

python benchmarks/mini_vae.py                   # all settings, a minute of one core each; writes
benchmarks/results/mini_vae.csv
python benchmarks/mini_vae.py --only 0,5 --sheet sheet.png     # two of them, with their pictures

Each setting trains as the notebook of lopezperez2025 does, on set B of a repetition that is drawn
from twice as many phantoms, and is judged on a validation part: phantoms of both groups that
neither train nor test in that repetition. Judged by squared error and CIELAB difference (tone), by
the correlation of lightness (structure), and by a person who looks at the sheet. Rows without
processor seconds were measured before these were kept.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from skinrepro.batches import image_batches
from skinrepro.core import device_name
from skinrepro.images import cache_images
from skinrepro.loop import Training
from skinrepro.papers import lopezperez2025 as paper
from skinrepro.tone import structure_correlation
from skinrepro.vae import Objective, build_vae, measure, reconstruct, train_vae

SIZE, VALIDATION = 64, 60  # px; images of each group
BASE = dict(
    fraction=0.15,
    width=8,
    multipliers=(1, 2, 4),
    latent_channels=16,
    epochs=15,
    batch_size=8,
    lr=1e-3,
    schedule="constant",
    kl_weight=1.0,
    feature_weight=1.0,
)
SETTINGS = [
    {},
    dict(lr=1e-4),
    dict(latent_channels=64, lr=3e-3),
    dict(latent_channels=64, width=12, lr=3e-3, schedule="cosine"),
    dict(multipliers=(1, 2), width=16, lr=3e-3),
    dict(multipliers=(1, 2), width=16, lr=3e-3, schedule="cosine"),
    dict(multipliers=(1, 2), width=12, lr=5e-3, schedule="cosine", epochs=20),
]


def validation_part(m, split):
    "The first images of each group that are in neither part of a split."
    rest = m[~m.image_id.isin(split.image_id)]
    return rest.groupby("group").head(VALIDATION).sort_values("group", kind="stable")


def tried(setting, seed=0):  # row of numbers, originals, reconstructions
    s = BASE | setting
    m, _ = paper.load("phantom", SIZE, max(0.3, s["fraction"]))
    split = paper.repetition_split(m, seed, "B", s["fraction"])
    train, held = split[split.split == "train"], validation_part(m, split)
    store = cache_images(m, SIZE, progress=False)
    features = paper.perceptual_features("phantom")
    model = build_vae(s["latent_channels"], s["width"], s["multipliers"], seed=seed)
    training = Training(s["epochs"], s["batch_size"], s["lr"], clip=10.0)
    objective = Objective(kl_weight=s["kl_weight"], feature_weight=s["feature_weight"])
    batches = image_batches(store, train.image_id, s["batch_size"], seed, train=True)
    start = time.process_time()
    log = train_vae(
        model, batches, training, features, objective, progress=False, schedule=s["schedule"]
    )
    seconds = time.process_time() - start
    of_held = image_batches(store, held.image_id, 100)
    found = measure(model, of_held(), features)
    original = store.take(store.rows(held.image_id))
    drawn = np.concatenate([reconstruct(model, x) for (x,) in of_held()])
    row = found[["mse", "delta_e", "perceptual", "latent_std"]].mean().to_dict()
    row |= dict(
        structure=structure_correlation(original, drawn).mean(),
        loss=log.loss.iloc[-1],
        cpu_seconds=seconds,
        parameters=sum(p.numel() for p in model.parameters()),
    )
    return row, original, drawn


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--only", default="", help="numbers of settings")
    p.add_argument("--sheet", default="", help="picture of originals and reconstructions")
    a = p.parse_args()
    torch.set_num_threads(1)
    chosen = [int(k) for k in a.only.split(",")] if a.only else range(len(SETTINGS))
    rows, sheets = [], []
    for k in chosen:
        row, original, drawn = tried(SETTINGS[k])
        rows.append(dict(setting=k) | BASE | SETTINGS[k] | row)
        print(f"{SETTINGS[k]}: {pd.Series(row).round(4).to_dict()}", flush=True)
        picked = np.r_[0 : 2 * VALIDATION : VALIDATION // 6]
        sheets += [original[picked]] * (not sheets) + [drawn[picked]]
    t = pd.DataFrame(rows).assign(device=device_name(), threads=1)
    file = Path(__file__).parent / "results" / "mini_vae.csv"
    if file.is_file():  # settings that were not tried this time keep their rows
        before = pd.read_csv(file)
        t = pd.concat([before[~before.setting.isin(t.setting)], t]).sort_values("setting")
    t.round(4).to_csv(file, index=False)
    if a.sheet:
        from PIL import Image

        rows_of = [np.concatenate(list(r), 1) for r in sheets]
        Image.fromarray(np.concatenate(rows_of)).resize(
            (rows_of[0].shape[1] * 2, SIZE * 2 * len(rows_of)), Image.NEAREST
        ).save(a.sheet)


if __name__ == "__main__":
    main()
