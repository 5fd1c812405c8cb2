"""A step of CBDM (skinrepro.balance with skinrepro.personalise.fine_tune) against two separate
passes with the encoders in the loop.

python benchmarks/cbdm.py                   # CPU, the miniature base: about three minutes
python benchmarks/cbdm.py --quick           # fewer steps, to see that it runs; nothing is written
python benchmarks/cbdm.py --device cuda     # Stable Diffusion 1.4 in full size, random weights,
                                            # mixed precision (bf16), 512 px; adds its row

* peer: what diffusers' train_text_to_image.py becomes when the loss of CBDM's released code is put
  in: at each step a DataLoader opens eight image files and resizes them, the VAE encodes them, the
  text encoder encodes the prompts of the true and of the drawn classes, the UNet predicts twice,
  once for each; AdamW as torch makes it by default, learning-rate scheduler, the loss read by
  `.item()` at each step.
* ours: latents and texts that were encoded before, both predictions in one pass (of those images
  only whose label is not dropped), the UNet quickened on a CPU, fused AdamW.

No operation of the UNet can be saved as long as the loss is exact: both of its parts need a
backward pass. What is saved is all the rest. Same base, files, batch, learning rate (the paper's),
clipping and draws: rows, posterior, noise, time steps, dropped labels, other classes. The losses of
the first steps must agree within the tolerance, relative (exit status 1 if not). Arms alternate in
one process, medians over the repeats with quartiles; `ratio_cpu` is by processor time, which other
programs disturb less. `codec` as in lora.py: the miniature's own encoder is one convolution;
`proportionate` is a stock AutoencoderKL with random weights that costs as much beside the miniature
as Stable Diffusion's does beside its UNet.
"""

import argparse
import copy
import csv
import os
import resource
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import diffusers
import numpy as np
import torch
from lora import WARM, Clock, Files, Watched, now, processor, proportionate, quartiles, written
from PIL import Image

from skinrepro.balance import balanced_loss, cell_weights
from skinrepro.core import atomic_path, commit
from skinrepro.denoise import draw_generator, draw_noise, draw_rows, training_scheduler
from skinrepro.images import load_image
from skinrepro.latent import encode_images, load_base, prompt_ids
from skinrepro.loop import Training
from skinrepro.personalise import add_words, fine_tune
from skinrepro.phantom import render

RESULTS = Path(__file__).resolve().parent / "results" / "cbdm.csv"
BATCH, LR, SEED = 8, 3e-7, 0  # of the paper
TOLERANCE = {"no": 1e-5, "bf16": 2e-2}
DISEASES = (
    "psoriasis",
    "squamous cell carcinoma",
    "lichen planus",
    "basal cell carcinoma",
    "allergic contact dermatitis",
)
GROUPS = {"Caucasian": 1, "Asian": 3, "African": 5}  # and a skin type to draw it with
WORDS = [(g, d) for d in DISEASES for g in GROUPS]


def cell(i):  # rare and common ones
    return WORDS[int(len(WORDS) * (i * 0.618 % 1) ** 2)]


def prompts_of(n):
    return ["{} people {}".format(*cell(i)) for i in range(n)]


def loss_of(base, prompts):
    return balanced_loss(base, prompts, term="official", seed=SEED)


def peer(base, files, prompts, steps, precision, clock=None):  # losses, seconds
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from diffusers.optimization import get_scheduler

    AcceleratorState._reset_state(reset_partial_state=True)
    acc = Accelerator(mixed_precision=precision, cpu=base.device == "cpu")
    clock = clock or Clock(False, base.device)
    frozen = torch.bfloat16 if precision == "bf16" else torch.float32
    vae, text_encoder = (
        torch.nn.Module.to(copy.deepcopy(m), dtype=frozen) for m in (base.vae, base.text_encoder)
    )
    unet = copy.deepcopy(base.unet).requires_grad_(True).train()
    scheduler = training_scheduler(base.scheduler, base.device)
    optimizer = torch.optim.AdamW(unet.parameters(), LR, weight_decay=1e-2)
    weights = cell_weights(prompts, "sqrs")
    chances = weights / weights.sum()
    order = [draw_rows(len(files), BATCH, k, SEED, "lora", chances) for k in range(steps)]
    loader = torch.utils.data.DataLoader(
        Files(base, files, prompts), batch_size=BATCH, sampler=np.concatenate(order).tolist()
    )
    unet, optimizer, loader, rate = acc.prepare(
        unet, optimizer, loader, get_scheduler("constant", optimizer)
    )
    drawn, losses, batches = loss_of(base, prompts), [], iter(loader)
    *ids_of, empty = prompt_ids(base, [*dict.fromkeys(prompts), ""]).to(base.device)
    ids_of, last = torch.stack(ids_of), scheduler.config.num_train_timesteps
    for k in range(steps):
        if k == WARM:
            start = now(base.device)
        with clock("load"):
            pixels, ids = next(batches)
        with acc.accumulate(unet):
            g = draw_generator(base.device, SEED, "lora", k)
            with clock("encode image"), torch.no_grad():
                d = vae.encode(pixels.to(frozen)).latent_dist
                mean, std = d.mean.float(), d.std.float()
                x = mean + std * torch.randn(mean.shape, generator=g, device=mean.device)
                x = x * vae.config.scaling_factor
            noise, t = draw_noise(x, last, g, base.noise_offset)
            dropped, (other,) = drawn.draws(k, BATCH)
            dropped = torch.tensor(dropped, device=base.device)
            with clock("encode text"), torch.no_grad():
                own = text_encoder(torch.where(dropped[:, None], empty, ids))[0]
                others = text_encoder(ids_of[torch.tensor(other, device=base.device)])[0]
            noisy = scheduler.add_noise(x, noise, t)
            if scheduler.config.prediction_type == "epsilon":
                target = noise
            else:
                target = scheduler.get_velocity(x, noise, t)
            with clock("denoiser"):
                h = unet(noisy, t, own, return_dict=False)[0].float()
                h_other = unet(noisy, t, others, return_dict=False)[0].float()
                weight = (t / last * ~dropped)[:, None, None, None]
                loss = (h - target).square().mean()
                loss = loss + (weight * (h - h_other.detach()).square()).mean()
                loss = loss + (weight * (h.detach() - h_other).square()).mean() / 4
                losses.append(loss.detach().item())
                acc.backward(loss)
            with clock("optimizer"):
                acc.clip_grad_norm_(unet.parameters(), 1.0)
                optimizer.step()
                rate.step()
                optimizer.zero_grad()
    return losses, now(base.device) - start


def ours(base, latents, prompts, steps, precision, every=None):  # losses, seconds
    own = base.copy()
    watched = Watched(latents.mean, latents.std, latents.scaling_factor, latents.hash)
    how = dict(clip=1.0, seed=SEED, precision=precision, weight_decay=1e-2)
    settings = Training(steps, BATCH, LR, every=every or steps, **how)
    weights = cell_weights(prompts, "sqrs")
    how = dict(loss=loss_of(own, prompts), weights=weights, progress=False)
    log = fine_tune(own, watched, prompts, settings, **how)
    return log.loss.tolist(), now(base.device) - watched.seen[WARM]


def compare(codec, base, files, precision, steps, repeats, compared, stamp):
    prompts = prompts_of(len(files))
    latents = encode_images(base, files, load_image)
    a, _ = ours(base, latents, prompts, compared, precision, every=1)
    b, _ = peer(base, files, prompts, compared, precision)
    off = float(np.max(np.abs(np.array(a) - b) / b))
    clock = Clock(True, base.device)
    peer(base, files, prompts, steps, precision, clock)
    seconds = {"ours": [], "peer": []}
    for _ in range(repeats):
        for arm, run, data in (("ours", ours, latents), ("peer", peer, files)):
            seconds[arm].append(run(base, data, prompts, steps + WARM, precision)[1] / steps)
    us, them = np.array(seconds["ours"]), np.array(seconds["peer"])
    gpu = base.device.startswith("cuda")
    low, ratio, high = quartiles(them[:, 0] / us[:, 0])
    row = dict(
        base=base.weights,
        codec=codec,
        n=len(files),
        size=base.size,
        precision=precision,
        batch=BATCH,
        steps=steps,
        repeats=repeats,
        ours_steps_s=round(float(np.median(1 / us[:, 0])), 3),
        peer_steps_s=round(float(np.median(1 / them[:, 0])), 3),
        ratio=round(ratio, 2),
        ratio_q25=round(low, 2),
        ratio_q75=round(high, 2),
        ratio_cpu="" if gpu else round(float(np.median(them[:, 1] / us[:, 1])), 2),
        loss_diff=f"{off:.1e}",
        tolerance=TOLERANCE[precision],
        losses_compared=compared,
        losses_ok=off <= TOLERANCE[precision],
        peer_parts="; ".join(f"{k} {1e3 * v / steps:.1f} ms" for k, v in clock.seconds.items()),
        gib_process=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        **stamp,
    )
    print(
        f"codec {codec}:\n  ours {row['ours_steps_s']} steps/s, peer {row['peer_steps_s']}:"
        f" {row['ratio']} x [{row['ratio_q25']}, {row['ratio_q75']}] (by processor time"
        f" {row['ratio_cpu'] or '-'})\n  peer: {row['peer_parts']}\n  losses of {compared} steps"
        f" differ by {row['loss_diff']} (tolerance {row['tolerance']}):"
        f" {'ok' if row['losses_ok'] else 'FAILED'}",
        flush=True,
    )
    return row


def write(rows, file):  # those of other machines stay
    old = list(csv.DictReader(open(file))) if file.is_file() else []
    rows = [*(r for r in old if r["machine"] != rows[0]["machine"]), *rows]
    with atomic_path(file) as tmp, open(tmp, "w", newline="") as f:
        out = csv.DictWriter(f, rows[0])
        out.writeheader()
        out.writerows(rows)
    print(f"written: {file}")


def main():
    ask = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ask.add_argument("--quick", action="store_true", help="few steps, nothing written")
    ask.add_argument("--device", default="cpu", help="cpu, or cuda for the full size")
    ask.add_argument("--out", type=Path, default=RESULTS, help="csv to write")
    ask = ask.parse_args()
    gpu = ask.device.startswith("cuda")
    steps, repeats, compared = (3, 1, 3) if ask.quick else (30, 5, 10) if gpu else (4, 5, 6)
    torch.set_num_threads(1)
    if gpu:
        base = load_base("sd14", weights="random", device=ask.device)
    else:
        base = load_base("miniature")
    add_words(base, ["{} people {}".format(*w) for w in WORDS])
    machine = torch.cuda.get_device_name() if gpu else f"{processor()}, {os.cpu_count()} cores"
    libraries = "; ".join(f"{m.__name__} {m.__version__}" for m in (torch, diffusers))
    stamp = dict(machine=machine, threads=1, commit=commit(), libraries=libraries)
    print("; ".join(f"{k} {v}" for k, v in dict(base=base.weights, **stamp).items()), flush=True)

    def picture(i):
        group, disease = cell(i)
        return Image.fromarray(render(disease, GROUPS[group], i, base.size))

    with tempfile.TemporaryDirectory() as scratch:
        files = written(Path(scratch) / "phantom", picture, 16 if ask.quick else 64, ".png")
        todo = [("AutoencoderKL" if gpu else "miniature", base)]
        if not gpu:
            other, codec = proportionate(base)
            todo.append((codec, other))
        how = ("bf16" if gpu else "no", steps, repeats, compared, stamp)
        rows = [compare(codec, b, files, *how) for codec, b in todo]
    if not ask.quick:
        write(rows, ask.out)
    if not all(r["losses_ok"] for r in rows):
        sys.exit("FAILED: losses differ by more than the tolerance.")


if __name__ == "__main__":
    main()
