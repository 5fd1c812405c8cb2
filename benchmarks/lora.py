"""LoRA training of skinrepro.personalise against a plain loop that does what diffusers'
train_text_to_image_lora.py does.

python benchmarks/lora.py                                   # CPU, the miniature base: about six
minutes on one thread python benchmarks/lora.py --quick                           # fewer steps and
repeats, to see that it runs; nothing is written python benchmarks/lora.py --folder DIR
# a base model in this folder instead of the shipped one python benchmarks/lora.py --device cuda
# Stable Diffusion 2.1 in full size, random weights, bf16, 512 px SKINREPRO_DATA=... python
benchmarks/lora.py                # adds the photographs of PAD-UFES-20

* peer: at each step a DataLoader opens four image files and resizes them, the VAE encodes them, the
text encoder encodes their prompts; AdamW as torch makes it by default, learning-rate scheduler,
`accelerator.accumulate`, the loss gathered and read by `.item()` twice a step, as the script does
(diffusers 0.3x, examples/text_to_image; its defaults: no worker processes, no checkpointing of
activations). * ours: skinrepro.personalise.lora on latents that were encoded before (mean and
standard deviation; each step draws afresh), prompts encoded once, fused AdamW, the loss read once
per log row. What encoding costs is in column `encode_s`; `ratio_3000` is the ratio for a training
of the paper's 3000 steps with that cost counted in.

Same base model, precision, rank, learning rate, clipping, files, centre crop, and the same draws:
row order, posterior noise, noise, time steps. The losses of the first steps are compared, relative
to the peer's, and must agree within the tolerance (exit status 1 if not). Arms alternate in one
process; rates are by the wall clock, medians over the repeats with quartiles, each repeat after a
warm-up of two steps. `ratio_cpu` is the same by processor time, which other programs on the machine
disturb less; on a CPU `encode_s`, `ratio_3000`, `tflop_s` and the parts are by processor time too.
Under load believe those.

Settings on a CPU. `codec` is the encoder of images: * miniature: the shipped base's own, one
convolution; almost nothing is saved by not calling it; * proportionate: a stock AutoencoderKL with
random weights, its encoder as much dearer than the denoiser as Stable Diffusion's is (1.5 times a
forward pass of the UNet): the miniature's timing as it would be with a real autoencoder. For timing
only. and `images` says which files the peer decodes. `parts` tells where the peer's time goes.
"""

import argparse
import copy
import csv
import os
import platform
import resource
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import diffusers
import numpy as np
import peft
import torch
from PIL import Image
from torchvision import transforms as T

from skinrepro.core import atomic_path, commit, data_folder, has_data
from skinrepro.denoise import draw_generator, draw_noise, draw_rows, training_scheduler
from skinrepro.images import load_image
from skinrepro.latent import Latents, encode_images, load_base, prompt_ids
from skinrepro.loop import Training
from skinrepro.personalise import lora
from skinrepro.phantom import render

RESULTS = Path(__file__).resolve().parent / "results" / "lora.csv"
BATCH, RANK, LR, SEED, PAPER_STEPS, WARM = 4, 8, 1e-4, 0, 3000, 2
TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]
TOLERANCE = {
    "no": 1e-4,
    "bf16": 2e-2,
}  # of a step's loss, relative: rounding only, which training amplifies from step to step
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # bf16, dense, FLOP/s
VAE_TO_UNET = 1.5  # FLOPs of Stable Diffusion's encoder over a forward pass of its UNet, at 512 px


# ---------------------------------------------------------------------------- images
def textured(w, h, seed):  # blotches and grain
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


def written(folder, make, n, suffix):
    folder.mkdir(parents=True)
    files = [folder / f"{i}{suffix}" for i in range(n)]
    for i, f in enumerate(files):
        make(i).save(f, **({"quality": 90} if suffix == ".jpg" else {}))
    return files


def real(name, n):
    files = sorted(
        f for f in (data_folder(name) / "images").iterdir() if f.suffix in (".png", ".jpg")
    )
    return files[:: max(1, len(files) // n)][:n]


def prompts_of(n):
    tones = ("a very light-skinned", "a light-skinned", "a dark-skinned", "a very dark-skinned")
    labels = ("basal cell carcinoma", "folliculitis", "psoriasis", "squamous cell carcinoma")
    return [
        f"An image of {labels[i // 4 % 4]} on the skin of {tones[i % 4]} individual"
        for i in range(n)
    ]


# ---------------------------------------------------------------------------- the peer
class Files(torch.utils.data.Dataset):
    "Decodes and resizes at each access."

    def __init__(self, base, files, prompts):
        self.files, self.ids = files, prompt_ids(base, prompts)
        self.transform = T.Compose(
            [
                T.Resize(base.size, T.InterpolationMode.BILINEAR),
                T.CenterCrop(base.size),
                T.ToTensor(),
                T.Normalize([0.5], [0.5]),
            ]
        )

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        return self.transform(Image.open(self.files[i]).convert("RGB")), self.ids[i]


def now(device):  # (wall, processor) seconds, when the device has done what it was given
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])


class Clock:
    """Processor seconds (on a GPU: wall seconds) by part, when asked for; a GPU is waited for at
    each part's end.
    """

    def __init__(self, on, device):
        self.on, self.device, self.seconds = on, device, {}

    @contextmanager
    def __call__(self, part):
        start = now(self.device) if self.on else 0.0
        yield
        if self.on:
            self.seconds[part] = (
                self.seconds.get(part, 0.0)
                + (now(self.device) - start)[0 if self.device.startswith("cuda") else 1]
            )


def peer(
    base, files, prompts, steps, precision, clock=None
):  # (losses, seconds of the steps after the warm ones)
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import cast_training_params
    from tqdm import tqdm

    AcceleratorState._reset_state(reset_partial_state=True)
    acc = Accelerator(mixed_precision=precision, cpu=base.device == "cpu")
    clock = clock or Clock(False, base.device)
    unet, vae, text_encoder, scheduler = (
        copy.deepcopy(base.unet),
        base.vae,
        base.text_encoder,
        training_scheduler(base.scheduler, base.device),
    )
    torch.manual_seed(SEED)
    unet.add_adapter(
        peft.LoraConfig(
            r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS
        )
    )
    cast_training_params(unet, torch.float32)
    learned = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, LR, weight_decay=1e-2)
    order = np.concatenate(
        [draw_rows(len(files), BATCH, k, SEED, "lora") for k in range(steps)]
    ).tolist()
    loader = torch.utils.data.DataLoader(
        Files(base, files, prompts), batch_size=BATCH, sampler=order
    )
    unet, optimizer, loader, rate = acc.prepare(
        unet, optimizer, loader, get_scheduler("constant", optimizer)
    )
    losses, bar, batches = [], tqdm(total=steps, disable=True), iter(loader)
    for k in range(steps):
        if k == WARM:
            start = now(base.device)
        with clock("load"):
            pixels, ids = next(batches)
        with acc.accumulate(unet):
            g = draw_generator(base.device, SEED, "lora", k)
            with clock("encode image"):
                with torch.no_grad():
                    d = vae.encode(pixels.to(base.dtype)).latent_dist
                x = (
                    d.mean + d.std * torch.randn(d.mean.shape, generator=g, device=d.mean.device)
                ) * vae.config.scaling_factor
            noise, t = draw_noise(x, scheduler.config.num_train_timesteps, g, base.noise_offset)
            with clock("encode text"), torch.no_grad():
                hidden = text_encoder(ids, return_dict=False)[0]
            with clock("denoiser"):
                out = unet(
                    scheduler.add_noise(x, noise, t).to(base.dtype), t, hidden, return_dict=False
                )[0]
                target = (
                    noise
                    if scheduler.config.prediction_type == "epsilon"
                    else scheduler.get_velocity(x, noise, t)
                )
                loss = torch.nn.functional.mse_loss(out.float(), target.float(), reduction="mean")
                mean = acc.gather(loss.repeat(BATCH)).mean().item()
                acc.backward(loss)
            with clock("optimizer"):
                acc.clip_grad_norm_(learned, 1.0)
                optimizer.step()
                rate.step()
                optimizer.zero_grad()
        losses.append(mean)
        bar.update(1)
        bar.set_postfix(step_loss=loss.detach().item(), lr=rate.get_last_lr()[0])
    return losses, now(base.device) - start


# ---------------------------------------------------------------------------- ours
@dataclass
class Watched(Latents):
    "Latents that look at the clock when the first batch after the warm-up is drawn."

    seen: list = field(default_factory=list)

    def sample(self, index, generator=None):
        self.seen.append(now(str(self.mean.device)) if len(self.seen) == WARM else None)
        return super().sample(index, generator)


def ours(
    base, latents, prompts, steps, precision, every=None
):  # (the log's losses, seconds of the steps after the warm ones)
    own = replace(base, unet=copy.deepcopy(base.unet))
    watched = Watched(latents.mean, latents.std, latents.scaling_factor, latents.hash)
    settings = Training(
        steps,
        batch_size=BATCH,
        lr=LR,
        clip=1.0,
        seed=SEED,
        precision=precision,
        weight_decay=1e-2,
        every=every or steps,
    )
    log = lora(own, watched, prompts, settings, rank=RANK, targets=TARGETS, progress=False)
    return log.loss.tolist(), now(base.device) - watched.seen[WARM]


def flops(base, latents, prompts, precision):  # of one of our steps, forward and backward
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        ours(base, latents, prompts, WARM + 1, precision)
    return counter.get_total_flops() / (WARM + 1)


# ---------------------------------------------------------------------------- settings
def proportionate(base):
    """The base with a stock AutoencoderKL whose encoder costs VAE_TO_UNET forward passes of the
    UNet.
    """
    from torch.utils.flop_counter import FlopCounterMode

    def cost(run):
        with FlopCounterMode(display=False) as c, torch.no_grad():
            run()
        return c.get_total_flops()

    side, k, width = (
        base.unet.config.sample_size,
        base.unet.config.in_channels,
        base.text_encoder.config.hidden_size,
    )
    unet = cost(
        lambda: base.unet(
            torch.zeros(1, k, side, side),
            torch.tensor([1]),
            torch.zeros(1, base.tokenizer.model_max_length, width),
        )
    )
    levels = (base.size // side).bit_length()

    def made(w):
        torch.manual_seed(0)
        return (
            diffusers.AutoencoderKL(
                down_block_types=["DownEncoderBlock2D"] * levels,
                up_block_types=["UpDecoderBlock2D"] * levels,
                block_out_channels=[w * min(4, 2**i) for i in range(levels)],
                layers_per_block=2,
                latent_channels=k,
                norm_num_groups=4,
                sample_size=base.size,
            )
            .requires_grad_(False)
            .eval()
        )

    of = {
        w: cost(lambda w=w: made(w).encode(torch.zeros(1, 3, base.size, base.size))) / unet
        for w in range(8, 49, 4)
    }
    w = min(of, key=lambda w: abs(of[w] - VAE_TO_UNET))
    return (
        replace(base, vae=made(w)),
        f"proportionate (AutoencoderKL, width {w}, {of[w]:.2f} x UNet forward)",
    )


def quartiles(v):
    return [float(q) for q in np.percentile(v, [25, 50, 75])]


def compare(name, codec, base, files, precision, steps, repeats, compared, stamp):
    prompts = prompts_of(len(files))
    started = now(base.device)
    which = 0 if base.device.startswith("cuda") else 1  # wall, or processor time
    latents = encode_images(base, files, load_image)
    encode = float((now(base.device) - started)[which])
    a, _ = ours(base, latents, prompts, compared, precision, every=1)
    b, _ = peer(base, files, prompts, compared, precision)
    off = float(np.max(np.abs(np.array(a) - b) / b))
    clock = Clock(True, base.device)
    peer(base, files, prompts, steps, precision, clock)
    parts = "; ".join(f"{k} {1e3 * v / steps:.1f} ms" for k, v in clock.seconds.items())
    seconds, memory = {"ours": [], "peer": []}, {}
    for _ in range(repeats):
        for arm, run, data in (("ours", ours, latents), ("peer", peer, files)):
            if base.device.startswith("cuda"):
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            seconds[arm].append(run(base, data, prompts, steps + WARM, precision)[1] / steps)
            if base.device.startswith("cuda"):
                memory[arm] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    work = flops(base, latents, prompts, precision)
    us, them = np.array(seconds["ours"]), np.array(seconds["peer"])
    low, ratio, high = quartiles(them[:, 0] / us[:, 0])
    step = float(np.median(us[:, which]))
    peak = next(
        (
            v
            for k, v in PEAK.items()
            if base.device.startswith("cuda") and k in torch.cuda.get_device_name()
        ),
        None,
    )

    def rate(v):
        return {k: round(q, 2) for k, q in zip(("_q25", "", "_q75"), quartiles(BATCH / v[:, 0]))}

    row = dict(
        base=base.weights,
        codec=codec,
        images=name,
        n=len(files),
        size=base.size,
        precision=precision,
        batch=BATCH,
        steps=steps,
        repeats=repeats,
        **{f"ours_images_s{k}": v for k, v in rate(us).items()},
        **{f"peer_images_s{k}": v for k, v in rate(them).items()},
        ratio=round(ratio, 2),
        ratio_q25=round(low, 2),
        ratio_q75=round(high, 2),
        ratio_cpu="" if peak else round(float(np.median(them[:, 1] / us[:, 1])), 2),
        encode_s=round(encode, 2),
        ratio_3000=round(
            float(
                PAPER_STEPS
                * np.median(them[:, which])
                / (encode + PAPER_STEPS * np.median(us[:, which]))
            ),
            2,
        ),
        loss_diff=f"{off:.1e}",
        tolerance=TOLERANCE[precision],
        losses_compared=compared,
        losses_ok=off <= TOLERANCE[precision],
        peer_parts=parts,
        gflop_per_step=round(work / 1e9, 2),
        tflop_s=round(work / step / 1e12, 4),
        mfu=round(work / step / peak, 3) if peak else "",
        gib_ours=memory.get("ours", ""),
        gib_peer=memory.get("peer", ""),
        gib_process=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        **stamp,
    )
    print_row(row)
    return row


def print_row(r):
    memory = (
        f"{r['gib_ours']} GiB (peer {r['gib_peer']})"
        if r["gib_ours"]
        else f"process {r['gib_process']} GiB"
    )
    peak = f", {100 * r['mfu']:.1f} % of peak" if r["mfu"] else ""
    print(
        f"{r['images']}, codec {r['codec']}:\n  ours {r['ours_images_s']} images/s, peer"
        f" {r['peer_images_s']}: {r['ratio']} x [{r['ratio_q25']}, {r['ratio_q75']}] (by processor"
        f" time {r['ratio_cpu'] or '-'}), {r['ratio_3000']} x over {PAPER_STEPS} steps with"
        f" encoding ({r['encode_s']} s)\n  peer: {r['peer_parts']}\n  losses of"
        f" {r['losses_compared']} steps differ by {r['loss_diff']} (tolerance {r['tolerance']}):"
        f" {'ok' if r['losses_ok'] else 'FAILED'}; {r['gflop_per_step']} GFLOP a step,"
        f" {r['tflop_s']} TFLOP/s{peak}, {memory}",
        flush=True,
    )


def processor():
    try:
        return next(
            line.split(":")[1].strip()
            for line in open("/proc/cpuinfo")
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main():
    ask = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ask.add_argument("--quick", action="store_true", help="few steps, one repeat, nothing written")
    ask.add_argument("--folder", type=Path, help="folder of a miniature base model")
    ask.add_argument(
        "--device", default="cpu", help="cpu, or cuda for the full size with random weights"
    )
    ask.add_argument("--base", default="sd21-base", help="on cuda: which architecture")
    ask.add_argument("--out", type=Path, default=RESULTS, help="csv to write")
    ask = ask.parse_args()
    gpu = ask.device.startswith("cuda")
    steps, repeats, compared = (3, 1, 3) if ask.quick else (50, 5, 20) if gpu else (10, 5, 10)
    torch.set_num_threads(1)
    if not gpu:
        base = load_base("miniature", folder=ask.folder)
    else:
        base = load_base(ask.base, weights="random", device=ask.device, dtype=torch.bfloat16)
    machine = torch.cuda.get_device_name() if gpu else f"{processor()}, {os.cpu_count()} cores"
    stamp = dict(
        machine=machine,
        threads=1,
        commit=commit(),
        libraries="; ".join(f"{m.__name__} {m.__version__}" for m in (torch, diffusers, peft)),
    )
    print("; ".join(f"{k} {v}" for k, v in dict(base=base.weights, **stamp).items()), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        n = 16 if ask.quick else 64
        photos = {
            "rendered 1.0 MP jpg": written(
                scratch / "photo", lambda i: textured(1152, 864, i), n, ".jpg"
            )
        }
        if has_data("pad_ufes20"):
            photos["pad_ufes20"] = real("pad_ufes20", n)
        else:
            print("pad_ufes20: not run, SKINREPRO_DATA is not set or has no such folder")
        if gpu:
            todo = [(name, "AutoencoderKL", base, files, "bf16") for name, files in photos.items()]
        else:
            phantoms = written(
                scratch / "phantom",
                lambda i: Image.fromarray(render("psoriasis", 1 + i % 6, i, 64)),
                n,
                ".png",
            )
            images = {"phantom 64 px png": phantoms, **photos}
            other, codec = proportionate(base)
            todo = [
                (name, c, b, files, "no")
                for c, b in (("miniature", base), (codec, other))
                for name, files in images.items()
            ]
        for name, codec, b, files, precision in todo:
            rows.append(compare(name, codec, b, files, precision, steps, repeats, compared, stamp))
    if not ask.quick:
        with atomic_path(ask.out) as tmp, open(tmp, "w", newline="") as f:
            out = csv.DictWriter(f, rows[0])
            out.writeheader()
            out.writerows(rows)
        print(f"written: {ask.out}")
    if not all(r["losses_ok"] for r in rows):
        sys.exit("FAILED: losses differ by more than the tolerance.")


if __name__ == "__main__":
    main()
