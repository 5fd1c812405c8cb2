"""Images per second of skinrepro.images and skinrepro.batches against decoding every epoch, as the
papers' classifier scripts do.

python benchmarks/loader.py                  # all rows, about five minutes on two cores python
benchmarks/loader.py --quick          # fewer images and repeats, to see that it runs
SKINREPRO_DATA=... python benchmarks/loader.py   # adds the photographs of PAD-UFES-20 and HAM10000

What is compared, in the same process, on the same files, alternating (A B A B ...), after one
unmeasured round of each:

* peer: torch DataLoader whose data set opens each file with PIL in every epoch and applies
torchvision's transforms, the list of Groh et al. 2021 that Wang et al. 2024 reuse:
RandomResizedCrop(scale .8-1), RandomRotation(15), ColorJitter(), RandomHorizontalFlip, CenterCrop,
ToTensor, Normalize to train; Resize, CenterCrop, ToTensor, Normalize to evaluate. With no worker
process, and with two, kept alive between epochs (the released script uses 20 on a server). * ours:
skinrepro.batches.batches on a store that was built before. One thread in all: no prefetch thread,
no worker process, also against the peer's two. The time to build the two stores is not in the rate;
it is in column `build_s`, paid once for all epochs and runs.

Every process computes with one thread (torch.set_num_threads(1)). Rates are by the wall clock,
medians over the repeats; the ratio is the median of the repeats' ratios, with quartiles.
`ratio_cpu` is the same by processor time, which other programs on the machine disturb less; it
exists where all work is in one process.

Pixels are compared before any time is taken. Evaluation: no pixel may differ from torchvision's by
more than 2 of 255 levels. Training: with the same drawn crop, angle and flip the mean absolute
difference must stay below the tolerance. Beside it stands a yardstick: what torchvision itself
changes when RandomRotation interpolates bilinearly instead of taking the nearest pixel. The largest
difference of a training image is that of an edge where the two round to different neighbours. Exit
status 1 if a check fails.
"""

import argparse
import csv
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import pandas as pd
import PIL
import torch
import torchvision
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from skinrepro.batches import (
    Draw,
    augment,
    batches,
    cache_pair,
    draw_augmentation,
    eval_transform,
    normalisation,
    resize_for,
    train_transform,
)
from skinrepro.core import atomic_path, commit, data_folder, has_data
from skinrepro.images import load_image

EVAL_MAX, TRAIN_MEAN = 2, 2.0  # levels of 255
RESULTS = Path(__file__).resolve().parent / "results" / "loader.csv"
MEAN, STD = normalisation("resnet18")
BATCH = 32


# ---------------------------------------------------------------------------- images
def textured(w, h, seed):  # blotches, finer blotches, and grain as of a camera's sensor
    rng = np.random.default_rng(seed)
    picture = np.zeros((h, w, 3))
    for cells, strength in ((5, 60), (24, 18), (120, 8)):
        coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        picture += (
            (np.asarray(Image.fromarray(coarse).resize((w, h), Image.BICUBIC), float) - 128)
            * strength
            / 128
        )
    return Image.fromarray(
        (picture + [190, 140, 120] + rng.normal(0, 3, (h, w, 1))).clip(0, 255).astype(np.uint8)
    )


def rendered(folder, n, w, h, suffix):
    folder.mkdir(parents=True)
    files = [folder / f"{i}{suffix}" for i in range(n)]
    for i, f in enumerate(files):
        textured(w, h, i).save(f, **({"quality": 90} if suffix == ".jpg" else {}))
    return files


def real(name, n):  # a sample spread over the folder
    files = sorted(
        f for f in (data_folder(name) / "images").iterdir() if f.suffix in (".png", ".jpg")
    )
    return files[:: max(1, len(files) // n)][:n]


# ---------------------------------------------------------------------------- the peer
class DecodeEveryEpoch(torch.utils.data.Dataset):
    def __init__(self, files, transform):
        self.files, self.transform = files, transform

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        return self.transform(Image.open(self.files[i]).convert("RGB")), 0


def peer_transform(kind, size):
    resize, end = resize_for(size), [T.CenterCrop(size), T.ToTensor(), T.Normalize(MEAN, STD)]
    if kind == "eval":
        return T.Compose([T.Resize(resize), *end])
    return T.Compose(
        [
            T.RandomResizedCrop(resize, scale=(0.8, 1.0)),
            T.RandomRotation(15),
            T.ColorJitter(),
            T.RandomHorizontalFlip(),
            *end,
        ]
    )


def peer_epoch(files, kind, size, workers):
    loader = torch.utils.data.DataLoader(
        DecodeEveryEpoch(files, peer_transform(kind, size)),
        batch_size=BATCH,
        shuffle=kind == "train",
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=one_thread,
    )

    def run():
        return sum(len(x) for x, _ in loader)

    return run


def one_thread(_):
    torch.set_num_threads(1)


# ---------------------------------------------------------------------------- ours
def our_epoch(store, kind, size):
    rows, codes = store.rows(store.ids), np.zeros(len(store.ids), np.int64)
    transform = (train_transform if kind == "train" else eval_transform)(size, MEAN, STD)
    epoch = iter(range(10**6))

    def run():
        order = np.random.default_rng(0).permutation(len(rows)) if kind == "train" else None
        return sum(
            len(x)
            for x, _, _ in batches(
                store, rows, codes, BATCH, transform, order, epoch=next(epoch), prefetch=0
            )
        )

    return run


# ---------------------------------------------------------------------------- pixels agree
def levels(x):  # normalised tensor -> 0..255
    return (x * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255


def check(kind, files, store, size):  # -> mean and max difference in levels, yardstick, passed
    diffs, yard = [], []
    for k, f in enumerate(files):
        image = Image.fromarray(load_image(f))
        x = torch.from_numpy(store.take(store.rows([str(k)])))
        if kind == "eval":
            ours, theirs = (
                eval_transform(size, MEAN, STD)(x)[0],
                peer_transform("eval", size)(image),
            )
            diffs.append((levels(ours) - levels(theirs)).abs())
        else:
            draw = draw_augmentation([image.size], np.random.default_rng(k))
            ours = levels(augment(x, draw, [image.size], size, MEAN, STD)[0])
            theirs, smooth = (
                by_torchvision(image, draw, size, r)
                for r in (T.InterpolationMode.NEAREST, T.InterpolationMode.BILINEAR)
            )
            diffs.append((ours - theirs).abs())
            yard.append((smooth - theirs).abs().mean())
    diffs = torch.stack(diffs)
    mean, largest = diffs.mean().item(), diffs.max().item()
    passed = largest <= EVAL_MAX + 0.01 if kind == "eval" else mean <= TRAIN_MEAN
    return mean, largest, float(np.mean(yard)) if yard else float("nan"), passed


def by_torchvision(image, draw: Draw, size, rotation):
    left, top, w, h = (int(v) for v in draw.box[0])
    image = TF.resized_crop(image, top, left, h, w, [resize_for(size)] * 2)
    image = TF.rotate(image, float(draw.angle[0]), interpolation=rotation)
    if draw.flip[0]:
        image = TF.hflip(image)
    return TF.pil_to_tensor(TF.center_crop(image, [size, size])).float()


# ---------------------------------------------------------------------------- time
def compare(ours, peer, n, repeats):  # seconds of each repeat, wall and processor, alternating
    seconds = {"ours": [], "peer": []}
    for r in range(repeats + 1):
        for name, run in (("ours", ours), ("peer", peer)):
            wall, cpu = time.perf_counter(), time.process_time()
            seen = run()
            assert seen == n, (name, seen, n)
            if r:
                seconds[name].append(
                    (time.perf_counter() - wall, time.process_time() - cpu)
                )  # the first round warms up
    return np.array(seconds["ours"]), np.array(seconds["peer"])


def quartiles(v):
    return [float(q) for q in np.percentile(v, [25, 50, 75])]


def main():
    ask = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ask.add_argument("--quick", action="store_true", help="32 images, 2 repeats, nothing written")
    ask.add_argument("--out", type=Path, default=RESULTS, help="csv to write")
    ask = ask.parse_args()
    n, repeats = (32, 2) if ask.quick else (192, 5)
    torch.set_num_threads(1)
    stamp = dict(
        machine=f"{processor()}, {os.cpu_count()} cores",
        threads=1,
        batch=BATCH,
        repeats=repeats,
        commit=commit(),
        libraries="; ".join(f"{m.__name__} {m.__version__}" for m in (torch, torchvision, PIL, np)),
    )
    print("; ".join(f"{k} {v}" for k, v in stamp.items()), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        data = {
            "rendered 1.0 MP jpg": rendered(scratch / "photo", n, 1152, 864, ".jpg"),
            "rendered 64 px png": rendered(scratch / "tiny", n, 64, 64, ".png"),
        }
        for name in ("pad_ufes20", "ham10000"):
            if has_data(name):
                data[name] = real(name, n)
            else:
                print(f"{name}: not run, SKINREPRO_DATA is not set or has no such folder")
        for name, files in data.items():
            for size in (64,) if "64 px" in name else (64, 224):
                rows += one_data_set(name, files, size, scratch / "cache", repeats, stamp)
    print_table(rows)
    if not ask.quick:
        with atomic_path(ask.out) as tmp, open(tmp, "w", newline="") as f:
            out = csv.DictWriter(f, rows[0])
            out.writeheader()
            out.writerows(rows)
        print(f"written: {ask.out}")
    if not all(r["pixels_ok"] for r in rows):
        sys.exit("FAILED: pixels differ by more than the tolerance.")


def one_data_set(name, files, size, folder, repeats, stamp):
    manifest = pd.DataFrame(
        dict(image_id=[str(i) for i in range(len(files))], path=[str(f) for f in files])
    )
    started = time.perf_counter()
    train, evaluate = cache_pair(manifest, size, folder=folder, threads=1, progress=False)
    build = time.perf_counter() - started
    pixels, rows = [Image.open(f).size for f in files], []
    for kind, store in (("eval", evaluate), ("train", train)):
        mean, largest, yard, ok = check(kind, files[:48], store, size)
        ours = our_epoch(store, kind, size)
        for workers in (0, 2):
            a, b = compare(ours, peer_epoch(files, kind, size, workers), len(files), repeats)

            def rate(v):
                return {
                    k: round(q)
                    for k, q in zip(("_q25", "", "_q75"), quartiles(len(files) / v[:, 0]))
                }

            low, ratio, high = quartiles(b[:, 0] / a[:, 0])
            rows.append(
                dict(
                    data=name,
                    n=len(files),
                    width=int(np.median([p[0] for p in pixels])),
                    height=int(np.median([p[1] for p in pixels])),
                    kilobytes=round(np.mean([f.stat().st_size for f in files]) / 1024),
                    size=size,
                    transform=kind,
                    peer_workers=workers,
                    **{f"ours{k}": v for k, v in rate(a).items()},
                    **{f"peer{k}": v for k, v in rate(b).items()},
                    ratio=round(ratio, 1),
                    ratio_q25=round(low, 1),
                    ratio_q75=round(high, 1),
                    ratio_cpu=round(float(np.median(b[:, 1] / a[:, 1])), 1) if not workers else "",
                    build_s=round(build, 2),
                    store_px=store.size,
                    mean_diff=round(mean, 3),
                    max_diff=round(largest, 2),
                    rotation_yardstick=round(yard, 3) if kind == "train" else "",
                    tolerance=f"max {EVAL_MAX}" if kind == "eval" else f"mean {TRAIN_MEAN}",
                    pixels_ok=bool(ok),
                    **stamp,
                )
            )
            print_table(rows[-1:], header=False)
    return rows


def print_table(rows, header=True):
    if header:
        print(
            f"\n{'data':20} {'file px':>10} {'net':>4} {'what':5} {'workers':>7} {'ours/s':>7}"
            f" {'peer/s':>6} {'ratio [quartiles]':>22} {'by cpu':>6}  pixels"
        )
    for r in rows:
        pixels = f"{r['mean_diff']:.3f} mean, {r['max_diff']:.0f} max ({r['tolerance']}"
        pixels += (
            f", rotation {r['rotation_yardstick']:.2f})" if r["rotation_yardstick"] != "" else ")"
        )
        ratio = f"{r['ratio']} [{r['ratio_q25']}, {r['ratio_q75']}]"
        print(
            f"{r['data']:20} {r['width']:>5}x{r['height']:<4} {r['size']:>4} {r['transform']:5}"
            f" {r['peer_workers']:>7} {r['ours']:>7} {r['peer']:>6} {ratio:>22} {r['ratio_cpu']:>6}"
            f"  {pixels} {'ok' if r['pixels_ok'] else 'FAILED'}",
            flush=True,
        )


def processor():  # platform.processor() is empty on most Linux machines
    try:
        return next(
            line.split(":")[1].strip()
            for line in open("/proc/cpuinfo")
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
