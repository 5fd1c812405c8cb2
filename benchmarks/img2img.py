"""Images per second of skinrepro.generate against the loop of the official notebook of Wang et al.
2024.

python benchmarks/img2img.py                 # CPU, the miniature base model python
benchmarks/img2img.py --quick         # two parents, two repeats, nothing written python
benchmarks/img2img.py --where         # where the seconds of each side go python
benchmarks/img2img.py --cuda          # Stable Diffusion 2.1 at full size with random weights, half
precision

What is compared, in one process, on the same model, parents, prompts, scheduler, steps, strength,
guidance, precision and seeds, alternating (A B A B ...) after one unmeasured round of each:

* plain: one photograph at a time through diffusers' StableDiffusionImg2ImgPipeline with
num_images_per_prompt = 5; the pictures are resized and saved by PIL in line. With an adapter
(LoRA), it is loaded as the pipeline loads it, beside the weights. * ours: skinrepro.generate on the
table of all images.

Settings are the paper's: 100 steps, strength 0.5 (50 steps walked), guidance 2, five images per
photograph, JPEG. `--steps` changes the first.

Images are compared before any time is taken: as PNG, in single precision no value may differ by
more than 1 of 255 levels and fewer than 1 % may differ; in half precision the mean difference must
stay below 2 levels. Beside it stands a yardstick, the plain loop against itself with one image at a
time instead of five: what the order of additions alone does. Exit status 1 if a check fails.

Rates are by the wall clock, medians over repeats with quartiles; `ratio` is the median of the
repeats' ratios. `ratio_cpu` is the same by processor time, which other programs on the machine
disturb less (CPU only). Memory is the highest resident size of a process of its own (CPU) or what
torch allocated (CUDA). TFLOP/s counts the UNet and the codec, by torch's counter; the share is of
`--peak` (989: H200, bfloat16 without sparsity).
"""

import argparse
import contextlib
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from skinrepro.core import atomic_path, commit
from skinrepro.generate import Files, generate
from skinrepro.images import load_image
from skinrepro.latent import load_base
from skinrepro.latent_drawer import LatentDrawer, default_batch_size, walked

RESULTS = Path(__file__).resolve().parent / "results" / "img2img.csv"
CONDITIONS = ["basal cell carcinoma", "folliculitis", "psoriasis", "squamous cell carcinoma"]
PER_PARENT = 5


# ---------------------------------------------------------------------------- what both sides are
# given
def photograph(file, seed):  # a smooth picture with some grain, 800 x 600
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(60, 220, (6, 8, 3), dtype=np.uint8)).resize(
        (800, 600), Image.BICUBIC
    )
    Image.fromarray(
        (np.asarray(coarse, float) + rng.normal(0, 4, (600, 800, 1))).clip(0, 255).astype(np.uint8)
    ).save(file, quality=90)


def table(folder, n, steps):
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(n):
        photograph(folder / f"{i}.jpg", i)
        label = CONDITIONS[i % 4]
        dark = ["a dark-skinned", "a very dark-skinned"][i // 4 % 2]
        prompt = f"An image of {label} on the skin of {dark} individual"
        rows += [
            dict(
                image_id=f"{i}-{k}",
                path=str(folder / f"{i}.jpg"),
                parent_id=str(i),
                prompt=prompt,
                strength=0.5,
                guidance=2.0,
                steps=steps,
                seed=1000 * i + k,
                label=label,
            )
            for k in range(PER_PARENT)
        ]
    return pd.DataFrame(rows)


def model(ask, adapter, dtype):
    if ask.cuda:
        base = load_base("sd21-base", weights="random", device="cuda", dtype=dtype)
    else:
        base = load_base("miniature", folder=ask.base, dtype=dtype)
    if adapter:  # as the pipeline's load_lora_weights leaves it: beside the weights
        from peft import LoraConfig

        torch.manual_seed(0)
        base.unet.add_adapter(
            LoraConfig(
                r=8,
                lora_alpha=8,
                init_lora_weights="gaussian",
                target_modules=["to_k", "to_q", "to_v", "to_out.0"],
            )
        )
        for name, p in base.unet.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.02)
        base.unet.eval().requires_grad_(False).to(dtype)
    return base


# ---------------------------------------------------------------------------- the two sides
def plain(base, t, folder, size, suffix=".jpg", at_once=PER_PARENT):
    pipe = base.pipeline("img2img")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for start in range(0, len(t), at_once):
        rows = t.iloc[start : start + at_once]
        r = rows.iloc[0]
        image = Image.open(r.path).convert("RGB").resize((base.size, base.size), Image.BILINEAR)
        out = pipe(
            prompt=r.prompt,
            image=image,
            strength=r.strength,
            guidance_scale=r.guidance,
            num_inference_steps=int(r.steps),
            num_images_per_prompt=len(rows),
            generator=[torch.Generator().manual_seed(s) for s in rows.seed],
        ).images
        for name, picture in zip(rows.image_id, out):
            if picture.size != (size, size):
                picture = picture.resize((size, size))
            picture.save(Path(folder) / f"{name}{suffix}", quality=95)


def ours(base, t, folder, size, suffix=".jpg", **options):
    drawer = LatentDrawer(base, timing_only=True, **options)  # made anew: its cost is part of it
    generate(t, folder, drawer, Files(size, suffix[1:]), progress=False)


def pictures(t, folder):
    return np.stack([load_image(Path(folder) / f"{i}.png") for i in t.image_id]).astype(int)


def check(
    base, t, folder, size, single
):  # -> mean and largest difference in levels, yardstick, passed
    ours(base, t, folder / "a", size, ".png")
    plain(base, t, folder / "b", size, ".png")
    plain(base, t, folder / "c", size, ".png", at_once=1)
    a, b, c = (pictures(t, folder / k) for k in "abc")
    d, yard = abs(a - b), abs(b - c)
    passed = d.max() <= 1 and (d > 0).mean() < 0.01 if single else d.mean() <= 2.0
    return dict(
        mean_diff=round(d.mean(), 4),
        max_diff=int(d.max()),
        yard_mean=round(yard.mean(), 4),
        yard_max=int(yard.max()),
        pictures_ok=bool(passed and b.std() > 5),
    )


# ---------------------------------------------------------------------------- time, memory, work
def clock(base):
    if base.device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def spent_time(base):  # what other programs disturb least
    return clock(base)[0 if base.device.startswith("cuda") else 1]


def compare(
    base, t, folder, size, repeats, sides
):  # -> {side: (repeats, 2) seconds, wall and processor}, {side: GB on CUDA}
    seconds, memory, cuda = defaultdict(list), {}, base.device.startswith("cuda")
    for r in range(repeats + 1):
        for name, run in sides.items():
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            start = clock(base)
            run(base, t, folder / f"{name}{r}", size)
            end = clock(base)
            if r:
                seconds[name].append(
                    (end[0] - start[0], end[1] - start[1])
                )  # the first round warms up
            if cuda:
                memory[name] = torch.cuda.max_memory_allocated() / 1e9
    return {k: np.array(v) for k, v in seconds.items()}, memory


def memory_of(
    side, ask, adapter, dtype
):  # GB that a process of its own takes at most, all its libraries included
    if ask.quick:
        return float("nan")
    command = [
        sys.executable,
        __file__,
        "--only",
        side,
        "--parents",
        str(ask.parents),
        "--steps",
        "4",
        "--dtype",
        dtype,
    ] + (["--adapter"] if adapter else [])
    out = subprocess.run(
        command + (["--base", str(ask.base)] if ask.base else []),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(out.stdout.splitlines()[-1])


def only(ask):
    import resource

    with tempfile.TemporaryDirectory() as scratch:
        t = table(Path(scratch) / "parents", ask.parents, ask.steps)
        base = model(ask, ask.adapter, getattr(torch, ask.dtype))
        dict(ours=ours, plain=plain)[ask.only](base, t, Path(scratch) / "out", base.size)
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6))


def teraflops(
    base, t
):  # of all images: the UNet with and without prompt at each step, encoder once a parent, decoder
    from torch.utils.flop_counter import FlopCounterMode

    def count(run):
        with FlopCounterMode(display=False) as f, torch.inference_mode():
            run()
        return f.get_total_flops() / 1e12

    to = dict(device=base.device, dtype=base.dtype)
    u = base.unet.config
    z, x = (
        torch.zeros(1, u.in_channels, u.sample_size, u.sample_size, **to),
        torch.zeros(1, 3, base.size, base.size, **to),
    )
    text = torch.zeros(1, base.tokenizer.model_max_length, u.cross_attention_dim, **to)
    return (
        2 * walked(t).sum() * count(lambda: base.unet(z, 500, text))
        + t.path.nunique() * count(lambda: base.vae.encode(x))
        + len(t) * count(lambda: base.vae.decode(z))
    )


@contextlib.contextmanager
def stopwatch(base):  # -> {part: seconds}; by wrapping the classes, so that copies are counted too
    from diffusers import UNet2DConditionModel

    spent, undo = defaultdict(float), []
    for part, cls, method in (
        ("unet", UNet2DConditionModel, "forward"),
        ("text encoder", type(base.text_encoder), "forward"),
        ("encode image", type(base.vae), "encode"),
        ("decode", type(base.vae), "decode"),
        ("scheduler", type(base.scheduler), "step"),
        ("save", Image.Image, "save"),
    ):
        inner = getattr(cls, method)

        def timed(*a, inner=inner, part=part, **k):
            start = spent_time(base)
            try:
                return inner(*a, **k)
            finally:
                spent[part] += spent_time(base) - start

        undo.append((cls, method, inner))
        setattr(cls, method, timed)
    try:
        yield spent
    finally:
        for u in undo:
            setattr(*u)


def where(base, t, folder, size):
    for name, run in (("plain", plain), ("ours", ours)):
        run(base, t.iloc[:PER_PARENT], folder / f"warm-{name}", size)
        with stopwatch(base) as spent:
            start = spent_time(base)
            run(base, t, folder / f"where-{name}", size)
            total = spent_time(base) - start
        parts = {**spent, "other": total - sum(spent.values())}
        shown = ", ".join(
            f"{k} {1e3 * v / len(t):.1f}" for k, v in sorted(parts.items(), key=lambda p: -p[1])
        )
        print(f"  {name:5} {1e3 * total / len(t):8.1f} ms an image: {shown}", flush=True)


# ---------------------------------------------------------------------------- report
def quartiles(v):
    return [float(q) for q in np.percentile(v, [25, 50, 75])]


def one_case(ask, adapter, dtype, stamp):
    base = model(ask, adapter, getattr(torch, dtype))
    size = 256 if ask.cuda else base.size
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        t = table(folder / "parents", ask.parents, ask.steps)
        small = t[: 2 * PER_PARENT] if ask.cuda else t[: 4 * PER_PARENT]
        name = f"{base.name}{' + LoRA' if adapter else ''}, {dtype}"
        if ask.where:
            print(name)
            return [where(base, t, folder, size)]
        same = check(base, small, folder / "check", size, dtype == "float32")
        sides = dict(plain=plain, ours=ours)
        if ask.compile:
            sides["ours compiled"] = lambda *a: ours(*a, compile=True)
        if ask.fast:
            sides[f"APPROXIMATE: {ask.fast} steps"] = lambda *a: ours(*a, fast_steps=ask.fast)
        seconds, memory = compare(base, t, folder, size, ask.repeats, sides)
        work = teraflops(base, t)
        rows = []
        for side in list(sides)[1:]:
            a, b = seconds[side], seconds["plain"]

            def rate(v):
                return {
                    k: round(q, 3)
                    for k, q in zip(("_q25", "", "_q75"), quartiles(len(t) / v[:, 0]))
                }

            low, ratio, high = quartiles(b[:, 0] / a[:, 0])

            def share(v):
                return work / np.median(v[:, 0])

            rows.append(
                dict(
                    model=name,
                    side=side,
                    images=len(t),
                    steps=ask.steps,
                    walked=int(walked(t).iloc[0]),
                    batch=default_batch_size(base),
                    **{f"ours{k}": v for k, v in rate(a).items()},
                    **{f"plain{k}": v for k, v in rate(b).items()},
                    ratio=round(ratio, 2),
                    ratio_q25=round(low, 2),
                    ratio_q75=round(high, 2),
                    ratio_cpu="" if ask.cuda else round(float(np.median(b[:, 1] / a[:, 1])), 2),
                    ours_tflops=round(share(a), 3),
                    plain_tflops=round(share(b), 3),
                    ours_peak=f"{share(a) / ask.peak:.1%}" if ask.cuda else "",
                    ours_gb=round(
                        memory[side] if ask.cuda else memory_of("ours", ask, adapter, dtype), 2
                    ),
                    plain_gb=round(
                        memory["plain"] if ask.cuda else memory_of("plain", ask, adapter, dtype), 2
                    ),
                    **(same if side == "ours" else {}),
                    **stamp,
                )
            )
            print_row(rows[-1])
    return rows


def print_row(r):
    print(
        f"{r['model']:28} {r['side']:14} {r['ours']:8.2f}/s  plain {r['plain']:8.2f}/s  ratio"
        f" {r['ratio']} [{r['ratio_q25']}, {r['ratio_q75']}] by cpu {r['ratio_cpu']} "
        f" {r['ours_tflops']} TFLOP/s {r['ours_peak']} (plain {r['plain_tflops']})  {r['ours_gb']}"
        f" GB (plain {r['plain_gb']})"
    )
    if "mean_diff" in r:
        print(
            f"{'':28} pictures differ by {r['mean_diff']} levels mean, {r['max_diff']} max (plain"
            f" against itself {r['yard_mean']}, {r['yard_max']}):"
            f" {'ok' if r['pictures_ok'] else 'FAILED'}",
            flush=True,
        )


def main():
    ask = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ask.add_argument(
        "--quick", action="store_true", help="4 parents, 8 steps, 2 repeats, nothing written"
    )
    ask.add_argument(
        "--where",
        action="store_true",
        help="print where the time goes (processor time on a CPU), nothing written",
    )
    ask.add_argument(
        "--cuda", action="store_true", help="Stable Diffusion 2.1 with random weights on a GPU"
    )
    ask.add_argument("--compile", action="store_true", help="also with torch.compile")
    ask.add_argument("--fast", type=int, help="also the approximate option fast_steps")
    ask.add_argument(
        "--base",
        type=Path,
        help="folder of the miniature base model; default: the one in the package",
    )
    ask.add_argument("--parents", type=int, default=16)
    ask.add_argument("--steps", type=int, default=100)
    ask.add_argument("--repeats", type=int, default=5)
    ask.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    ask.add_argument(
        "--dtype",
        nargs="*",
        help=(
            "default float32 and bfloat16 on a CPU that multiplies bfloat16 matrices, else float32;"
            " float16 on CUDA"
        ),
    )
    ask.add_argument("--peak", type=float, default=989.0, help="TFLOP/s of the GPU")
    ask.add_argument("--only", choices=["ours", "plain"], help=argparse.SUPPRESS)
    ask.add_argument("--adapter", action="store_true", help=argparse.SUPPRESS)
    ask.add_argument("--out", type=Path, default=RESULTS, help="csv to write")
    ask = ask.parse_args()
    warnings.filterwarnings("ignore")
    if ask.quick:
        ask.parents, ask.steps, ask.repeats = 4, 8, 2
    torch.set_num_threads(ask.threads)
    if ask.only:
        ask.dtype = ask.dtype[0]
        return only(ask)
    dtypes = ask.dtype or (
        ["float16"]
        if ask.cuda
        else ["float32", "bfloat16"]
        if "amx_bf16" in cpu_flags()
        else ["float32"]
    )
    where_ = torch.cuda.get_device_name() if ask.cuda else f"{processor()}, {os.cpu_count()} cores"
    stamp = dict(
        machine=where_,
        threads=ask.threads,
        repeats=ask.repeats,
        commit=commit(),
        libraries=libraries(),
    )
    print("; ".join(f"{k} {v}" for k, v in stamp.items()), flush=True)
    rows = [
        r
        for dtype in dtypes
        for adapter in (True, False)
        for r in one_case(ask, adapter, dtype, stamp)
    ]
    if ask.where:
        return
    if not ask.quick:
        columns = list(dict.fromkeys(k for r in rows for k in r))
        with atomic_path(ask.out) as tmp, open(tmp, "w", newline="") as f:
            out = csv.DictWriter(f, columns)
            out.writeheader()
            out.writerows(rows)
        print(f"written: {ask.out}")
    if not all(r.get("pictures_ok", True) for r in rows):
        sys.exit("FAILED: pictures differ by more than the tolerance.")


def libraries():
    import diffusers
    import transformers

    return "; ".join(f"{m.__name__} {m.__version__}" for m in (torch, diffusers, transformers))


def cpu_flags():
    try:
        return next(line for line in open("/proc/cpuinfo") if line.startswith("flags"))
    except (OSError, StopIteration):
        return ""


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
